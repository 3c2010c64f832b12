"""What void, crowds and the matching of classes do to panoptic quality, against panopticapi and a slow reference."""

import json
import re

import numpy as np
import pytest
import torch

from cups.cli import main
from cups.core.files import write_json, write_png
from cups.core.records import VOID, PanopticLabel
from cups.core.splits import ThingStuffSplit
from cups.core.taxonomy import CITYSCAPES_19, Taxonomy
from cups.datasets.bdd10k import Bdd10k, write_miniature
from cups.evaluation.overlaps import SegmentScorer
from cups.evaluation.panoptic import panoptic_scores
from cups.evaluation.panoptic_quality import PanopticQuality
from cups.labels.files import write_label
from cups.labels.store import PseudoLabelStore
from cups.run.runs import RunFolder
from cups.workbench.run_records import find_runs, run_row

THINGS, STUFF = (3, 4), (0, 1, 2)
TAXONOMY = Taxonomy(("a", "b", "c", "d", "e"), np.zeros((5, 3), np.uint8), np.array([False] * 3 + [True] * 2))
KNOWN = ThingStuffSplit(THINGS, STUFF, torch.arange(5), torch.zeros(5))


def maps(seed: int, size: tuple[int, int] = (40, 60)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a truth with void and crowds (things of instance 0), and a prediction with void that agrees in parts."""
    random = np.random.default_rng(seed)
    truth = np.zeros((*size, 2), np.int64)
    for number in range(1, 25):
        c = random.choice([0, 1, 2, 3, 3, 4, 4, VOID])
        y, x, h, w = random.integers((0, 0, 6, 6), (*size, 20, 25))
        truth[y : y + h, x : x + w] = c, number * (c in THINGS and random.random() < 0.7)
    prediction = np.roll(truth, random.integers(-2, 3, 2), (0, 1))
    prediction[np.isin(prediction[..., 0], THINGS) & (prediction[..., 1] == 0), 1] = 99  # one object on the crowd
    for number in range(30, 36):
        c = random.choice([0, 1, 3, 4, VOID, VOID])
        y, x, h, w = random.integers((0, 0, 6, 6), (*size, 16, 20))
        prediction[y : y + h, x : x + w] = c, number * (c in THINGS)
    prediction[prediction[..., 0] == VOID, 1] = 0
    return torch.tensor(prediction), torch.tensor(truth)


def slow_quality(pairs, void_missed: bool, ignore_crowds: bool) -> list[float]:
    """Return the PQ of every class by comparing all masks of an image with each other."""
    counts = np.zeros((5, 4))
    for prediction, truth in pairs:
        masks = []
        for m in (prediction.numpy(), truth.numpy()):
            code = m[..., 0] * 1000 + m[..., 1]
            masks.append({int(n): code == n for n in np.unique(code) if n // 1000 != VOID})
        void_p, void_t = (m.numpy()[..., 0] == VOID for m in (prediction, truth))
        crowds = {n for n in masks[1] if n // 1000 in THINGS and n % 1000 == 0} if ignore_crowds else set()
        found = set()
        for a, p in masks[0].items():
            for b, t in masks[1].items():
                union = ((p | t) & ~void_t & (True if void_missed else ~void_p)).sum()
                if a // 1000 == b // 1000 and b not in crowds and (p & t).sum() > 0.5 * union:
                    counts[a // 1000] += (p & t).sum() / union, 1, 0, 0
                    found |= {("p", a), ("t", b)}
        for a, p in masks[0].items():
            nobodys = void_t | masks[1].get(a // 1000 * 1000 if a // 1000 * 1000 in crowds else -1, False)
            counts[a // 1000, 2] += ("p", a) not in found and (p & nobodys).sum() <= 0.5 * p.sum()
        for b, t in masks[1].items():
            hidden = 0 if void_missed else (t & void_p).sum()
            counts[b // 1000, 3] += ("t", b) not in found and b not in crowds and hidden <= 0.5 * t.sum()
    iou, tp, fp, fn = counts.T
    return iou / (tp + fp / 2 + fn / 2)


@pytest.mark.parametrize("void_missed", [False, True])
@pytest.mark.parametrize("ignore_crowds", [False, True])
def test_void_and_crowds_equal_a_slow_reference(void_missed, ignore_crowds):
    pairs = [maps(seed) for seed in range(6)]
    metric = PanopticQuality(
        THINGS, STUFF, 5, assignments=range(5), void_missed=void_missed, ignore_crowds=ignore_crowds
    )
    for prediction, truth in pairs:
        metric.update(prediction[None], truth[None])
    expected = slow_quality(pairs, void_missed, ignore_crowds)
    np.testing.assert_allclose(metric.compute()["pq_per_class"], expected, atol=1e-6)
    others = [(v, c) for v in (False, True) for c in (False, True) if (v, c) != (void_missed, ignore_crowds)]
    assert all(not np.allclose(slow_quality(pairs, *other), expected, atol=1e-4) for other in others)


def test_void_missed_and_ignored_crowds_are_panopticapi(tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    pairs = [maps(seed) for seed in range(6)]
    names = "abcde"
    categories = [{"id": k + 1, "name": names[k], "isthing": int(k in THINGS)} for k in range(5)]
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(len(pairs))]
    for which, folder in enumerate(("predicted", "true")):
        annotations = []
        for i, pair in enumerate(pairs):
            classes, instances = pair[which].numpy().transpose(2, 0, 1)
            code = np.where(classes == VOID, 0, 1000 * (classes + 1) + instances)
            segments = [
                {"id": n, "category_id": n // 1000, "area": int((code == n).sum()), "bbox": [0, 0, 1, 1],
                 "iscrowd": int(n // 1000 - 1 in THINGS and n % 1000 == 0)}
                for n in np.unique(code[code > 0]).tolist()
            ]  # fmt: skip
            annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
            colours = np.stack([code >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
            (tmp_path / folder).mkdir(exist_ok=True)
            write_png(tmp_path / folder / f"{i}.png", colours)
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_json(tmp_path / f"{folder}.json", content)
    files = (f"{tmp_path}/true.json", f"{tmp_path}/predicted.json", f"{tmp_path}/true", f"{tmp_path}/predicted")
    expected = evaluation.pq_compute(*files)
    scorer = SegmentScorer(THINGS, STUFF, 5, assignments=range(5), void_missed=True, ignore_crowds=True)
    scores = scorer.scores([scorer.count(p[None], t[None])[0] for p, t in pairs])
    for key in ("pq", "sq", "rq"):
        assert scores[key] == pytest.approx(expected["All"][key], abs=1e-9)
        assert scores[f"{key}_things"] == pytest.approx(expected["Things"][key], abs=1e-9)
        assert scores[f"{key}_stuff"] == pytest.approx(expected["Stuff"][key], abs=1e-9)


def label(semantic, instance=None) -> PanopticLabel:
    """Return a label of nested lists."""
    semantic = torch.tensor(semantic)
    return PanopticLabel(semantic, torch.zeros_like(semantic) if instance is None else torch.tensor(instance))


def test_the_share_of_void_stands_beside_the_quality():
    truth = label([[0] * 6 + [VOID] * 2, [1] * 8])
    predicted = label([[0] * 3 + [VOID] * 5, [1] * 7 + [VOID]])
    scores = panoptic_scores([(predicted, truth)], KNOWN, TAXONOMY)
    assert scores["void_share"] == pytest.approx(4 / 14)
    assert scores["void_share_per_class"] == pytest.approx([0.5, 0.125, None, None, None])
    assert scores["pq"] == 1 and scores["accuracy"] == 1  # as published: void costs nothing
    missed = panoptic_scores([(predicted, truth)], KNOWN, TAXONOMY, void_missed=True)
    assert missed["pq_per_class"][:2] == pytest.approx([0, 7 / 8]) and missed["accuracy"] == pytest.approx(10 / 14)
    assert scores["pq_void_missed"] == missed["pq"] == missed["pq_void_missed"] < 1
    assert missed["miou"] == pytest.approx((0.5 + 7 / 8) / 2) and missed["void_share"] == scores["void_share"]


def test_each_pseudo_class_with_its_majority_class_stands_beside_the_published_matching():
    truth = label([[0] * 10, [0] * 6 + [1] * 4])
    predicted = label([[2] * 10, [0] * 6 + [0] * 4])  # pseudo-class 0 lies on class 0 for the most part
    scores = panoptic_scores([(predicted, truth)], KNOWN, TAXONOMY)
    assert scores["assignments"][:3] == [1, 2, 0] and scores["majority"]["assignments"][:3] == [0, 0, 0]
    assert scores["pq_per_class"][0] == pytest.approx(10 / 16)
    assert scores["majority"]["pq_per_class"][0] == pytest.approx(16 / 20)
    assert "majority" not in panoptic_scores([(truth, truth)], KNOWN, TAXONOMY, assignments=range(5))


def test_crowds_of_a_data_set_are_nobodys_to_find(tmp_path):
    write_miniature(tmp_path)  # the last object of each image is a crowd
    data = Bdd10k(tmp_path, "val")
    split = ThingStuffSplit(
        tuple(data.taxonomy.thing_classes), tuple(data.taxonomy.stuff_classes), torch.arange(19), torch.zeros(19)
    )
    truths = [data.truth(name) for name in data.names]
    crowds = [torch.isin(t.semantic, torch.tensor(split.things)) & (t.instance == 0) for t in truths]
    assert all(crowd.any() for crowd in crowds)
    pairs = [(t, t) for t in truths]  # whose crowds are void as a prediction
    counted = panoptic_scores(pairs, split, data.taxonomy, void_missed=True)
    assert counted["pq_things"] < 1
    assert panoptic_scores(pairs, split, data.taxonomy, void_missed=True, ignore_crowds=True)["pq_things"] == 1


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Return the arguments that score a store of one frame whose lower half is void."""
    folder = tmp_path_factory.mktemp("scored")
    semantic = torch.zeros(8, 8, dtype=torch.long)
    semantic[4:] = CITYSCAPES_19.names.index("sky")
    truth = PanopticLabel(semantic, torch.zeros_like(semantic))
    store = PseudoLabelStore.create(folder / "labels", {}, 19)
    store.write("a", truth.replace(semantic=torch.where(semantic > 0, VOID, semantic)))
    store.finish()
    write_label(folder / "truth", "a", truth)
    return ["evaluate", "--labels", str(folder / "labels"), "--truth", str(folder)]


def test_people_get_tables_and_programs_json(scored, capsys):
    assert main(scored) == 0
    said = capsys.readouterr().out
    with pytest.raises(json.JSONDecodeError):
        json.loads(said)
    head, _, row = said.splitlines()[:3]
    cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row)), strict=True))
    assert (cells["PQ"], cells["void"], cells["PQ, majority"], cells["frames"]) == ("100.0", "50.0", "100.0", "1")
    assert re.search(r"^\| sky +\| stuff +\| +– \| 100.0 \|$", said, re.M)
    assert "leaves void: as published, it costs no PQ." in " ".join(said.split())
    assert main([*scored, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["void_share"] == 0.5 and scores["pq"] == scores["majority"]["pq"] == 1


def test_the_command_counts_void_as_missed(scored, capsys):
    assert main([*scored, "--void-missed"]) == 0
    assert "leaves void: it is counted as missed." in " ".join(capsys.readouterr().out.split())
    assert main([*scored, "--json", "--void-missed"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["pq"] == scores["accuracy"] == 0.5 and scores["void_missed"] and not scores["ignore_crowds"]


def score_in_one_process(rank: int, folder: str) -> None:
    """Score this process' share of the frames."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    pairs = [tuple(PanopticLabel(m[..., 0], m[..., 1]) for m in maps(seed)) for seed in range(5)]
    scores = panoptic_scores(pairs[rank::2], KNOWN, TAXONOMY)
    write_json(f"{folder}/{rank}.json", scores)
    torch.distributed.destroy_process_group()


def test_processes_score_together_what_one_does(tmp_path):
    torch.multiprocessing.spawn(score_in_one_process, (str(tmp_path),), nprocs=2)
    pairs = [tuple(PanopticLabel(m[..., 0], m[..., 1]) for m in maps(seed)) for seed in range(5)]
    alone = panoptic_scores(pairs, KNOWN, TAXONOMY)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


def test_void_stands_beside_the_quality_of_a_run(tmp_path):
    RunFolder(tmp_path / "new").record(stage2={"pq": 0.351, "void_share": 0.024})
    RunFolder(tmp_path / "old").record(stage2={"pq": 0.1})  # recorded by an earlier version
    found = {run.name: run_row(run)["PQ, %"] for run in find_runs(tmp_path)}
    assert found == {"new": "network 35.1 (void 2.4)", "old": "network 10.0"}
