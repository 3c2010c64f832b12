"""Panoptic quality against published figures, a slow reference, and itself in other orders and processes."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from shared import shared_folder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cups.core.errors import InputError
from cups.core.records import VOID
from cups.evaluation.overlaps import plain_scores
from cups.evaluation.panoptic_quality import PanopticQuality

SPLIT = {"thing_pseudo_classes": range(10, 16), "stuff_pseudo_classes": range(10)}
MASK = [True] * 5 + [False] * 2 + [True] * 3 + [False]


def fixture_maps():
    maps = np.load(shared_folder() / "fixtures" / "panoptic_quality.npz")
    return torch.tensor(maps["prediction"]), torch.tensor(maps["target"])


def make(**options):
    return PanopticQuality(things=range(7, 11), stuff=range(7), num_pseudo_classes=16, **options)


def random_maps(seed, count=3, size=(48, 80), num_classes=16, num_things=6):
    """Blocks of random classes; the last classes are things. Void everywhere, some things without a number."""
    random = np.random.default_rng(seed)
    maps = np.zeros((count, *size, 2), np.int64)
    for image in maps:
        for instance in range(1, 40):
            c = random.choice([*range(num_classes), VOID, VOID])
            y, x = random.integers(size)
            h, w = random.integers(4, 40, 2)
            counted = num_classes - num_things <= c < VOID and random.random() < 0.8
            image[y : y + h, x : x + w] = c, instance * counted
    return torch.tensor(maps)


def related_maps(seed, count=3):
    """A truth of 11 classes and a prediction of 16 pseudo-classes that agrees with it in parts."""
    random = np.random.default_rng(seed)
    target = random_maps(seed, count, num_classes=11, num_things=4).numpy()
    prediction = random_maps(seed + 1000, count).numpy()
    names = np.array([0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 14])
    renamed = target.copy()
    known = target[..., 0] < VOID
    renamed[..., 0][known] = names[target[..., 0][known]]
    keep = np.kron(random.random((count, 6, 8)) < 0.8, np.ones((8, 10), bool))
    prediction[keep] = renamed[keep]
    return torch.tensor(prediction), torch.tensor(target)


def slow_quality(prediction, target, assignments, num_classes, things):
    """PQ, SQ and RQ per class by comparing every segment's mask with every other's."""
    table = np.full(256, VOID)
    table[: len(assignments)] = assignments
    counts = np.zeros((num_classes, 4))
    for p, t in zip(prediction.numpy(), target.numpy(), strict=True):
        masks = []
        for m, classes in ((p, table[p[..., 0]]), (t, t[..., 0])):
            numbers = np.where(np.isin(classes, list(things)), m[..., 1], 0)
            names = {(c, n) for c, n in zip(classes.ravel(), numbers.ravel(), strict=True)}
            masks.append({name: (classes == name[0]) & (numbers == name[1]) for name in names if name[0] != VOID})
        void_p, void_t = table[p[..., 0]] == VOID, t[..., 0] == VOID
        found = set()
        for a, mask_a in masks[0].items():
            for b, mask_b in masks[1].items():
                union = ((mask_a | mask_b) & ~void_p & ~void_t).sum()
                shared = (mask_a & mask_b).sum()
                if a[0] == b[0] and shared > 0.5 * union:
                    counts[a[0]] += shared / union, 1, 0, 0
                    found |= {("p", a), ("t", b)}
        for a, mask_a in masks[0].items():
            counts[a[0], 2] += ("p", a) not in found and (mask_a & void_t).mean() <= 0.5 * mask_a.mean()
        for b, mask_b in masks[1].items():
            counts[b[0], 3] += ("t", b) not in found and (mask_b & void_p).mean() <= 0.5 * mask_b.mean()
    iou, tp, fp, fn = counts.T
    with np.errstate(invalid="ignore"):
        sq = np.where(tp > 0, iou / np.maximum(tp, 1), 0)
        rq = tp / (tp + fp / 2 + fn / 2)
    return sq * rq, np.where(np.isnan(rq), np.nan, sq), rq


@pytest.mark.parametrize(
    ("name", "options"), [("split", SPLIT), ("joint", {}), ("masked", SPLIT | {"classes_mask": MASK})]
)
def test_published_figures(name, options):
    prediction, target = fixture_maps()
    expected = json.loads((shared_folder() / "fixtures" / "panoptic_quality.json").read_text())[name]
    metric = make(**options)
    metric.update(prediction[:4], target[:4])
    metric.update(prediction[4:], target[4:])
    scores = metric.compute()
    assert list(scores) == list(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(scores[key].numpy(), value, rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("options", [SPLIT, {}])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_slow_reference(seed, options):
    prediction, target = related_maps(seed)
    metric = make(**options)
    metric.update(prediction, target)
    scores = metric.compute()
    expected = slow_quality(prediction, target, scores["assignments"].numpy(), 11, range(7, 11))
    for name, value in zip(("pq", "sq", "rq"), expected, strict=True):
        np.testing.assert_allclose(scores[f"{name}_per_class"], value, atol=1e-6)
        np.testing.assert_allclose(scores[name], np.nanmean(value), atol=1e-6)
        np.testing.assert_allclose(scores[f"{name}_things"], np.nanmean(value[7:]), atol=1e-6)
    assert 0.05 < scores["pq"] < 0.95


def test_matching_keeps_things_among_things():
    prediction, target = related_maps(7)
    metric = make(**SPLIT)
    metric.update(prediction, target)
    assignments = metric.compute()["assignments"]
    assert (assignments[:10] < 7).all() and (assignments[10:] >= 7).all()
    assert set(assignments.tolist()) == set(range(11))


def test_order_and_batches_do_not_matter():
    maps = [related_maps(seed) for seed in range(5)]
    one, other = make(**SPLIT), make(**SPLIT)
    one.update(torch.cat([p for p, _ in maps]), torch.cat([t for _, t in maps]))
    for p, t in reversed(maps):
        other.update(p.flip(0).int(), t.flip(0).int())
    one, other = one.compute(), other.compute()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_merged_parts_equal_the_whole():
    maps = [related_maps(seed) for seed in range(3)]
    whole, *parts = (make(**SPLIT) for _ in range(4))
    for part, (p, t) in zip(parts, maps, strict=True):
        whole.update(p, t)
        part.update(p, t)
    merged = pickle.loads(pickle.dumps(parts[2]))
    merged.merge_state(parts[0])
    merged.merge_state(parts[1])
    expected, scores = whole.compute(), merged.compute()
    assert all(torch.equal(value, scores[key]) for key, value in expected.items())


def score_on_one_rank(rank, folder, shares):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    metric = make(**SPLIT)
    for seed in shares[rank]:
        metric.update(*related_maps(seed, count=1))
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_agree_with_one(tmp_path):
    shares = ((), (0, 1, 2))  # the first process got no image
    other = torch.multiprocessing.spawn(score_on_other_ranks, (str(tmp_path), shares), nprocs=1, join=False)
    score_on_one_rank(0, tmp_path, shares)
    other.join()
    whole = make(**SPLIT)
    for seed in sum(shares, ()):
        whole.update(*related_maps(seed, count=1))
    expected = whole.compute()
    for rank in range(len(shares)):
        scores = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(value, scores[key]) for key, value in expected.items())


def score_on_other_ranks(index, folder, shares):
    score_on_one_rank(index + 1, folder, shares)


class Operations(TorchDispatchMode):
    """Count PyTorch's operations, and the elements that they make."""

    def __init__(self):
        super().__init__()
        self.count = self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        self.count += 1
        self.elements += sum(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor))
        return made


def test_keeps_counts_only_and_passes_few_times_over_the_pixels():
    maps = related_maps(0, count=4)
    prediction, target = (m.repeat_interleave(11, 1).repeat_interleave(13, 2)[:, :512, :1024] for m in maps)
    assert prediction.shape == (4, 512, 1024, 2)
    metric = make(**SPLIT)
    with Operations() as many:
        metric.update(prediction, target)
    state = [tensor for tensors in metric.metric_state.values() for tensor in tensors]
    assert sum(t.numel() * t.element_size() for t in state) / len(prediction) < 50e3
    metric.reset()
    with Operations() as few:  # one segment in each image
        metric.update(prediction[:, :1, :1].expand_as(prediction), target[:, :1, :1].expand_as(target))
    assert many.count <= few.count, "operations do not grow with the number of segments"
    assert many.elements < 15 * prediction.numel()


def test_classes_that_do_not_occur_are_left_out():
    prediction, target = torch.zeros(2, 1, 8, 8, 2, dtype=torch.uint8)
    metric = make(**SPLIT)
    metric.update(prediction, target)
    scores = plain_scores(metric.compute())
    assert scores["pq"] == scores["pq_stuff"] == scores["miou"] == scores["accuracy"] == 1
    assert scores["pq_things"] is None and scores["pq_per_class"] == [1.0] + [None] * 10
    json.dumps(scores, allow_nan=False)


def test_nothing_to_score():
    with pytest.warns(UserWarning, match="before the"):
        assert plain_scores(make().compute())["pq"] is None


def test_void_is_nobodys():
    prediction, target = torch.zeros(2, 1, 10, 10, 2, dtype=torch.long)
    prediction[0, :, 5:] = torch.tensor([12, 1])  # an object that lies on void ground truth for the most part
    target[0, :, 4:] = torch.tensor([VOID, 3])
    metric = make(**SPLIT)
    metric.update(prediction, target)
    scores = metric.compute()
    assert scores["pq"] == 1 and math.isnan(scores["pq_things"])
    metric.update(torch.full_like(prediction, VOID), target)  # published: nothing said is nothing missed
    assert metric.compute()["pq"] == 1


def test_no_thing_pseudo_classes():
    prediction, target = torch.zeros(2, 1, 8, 8, 2, dtype=torch.long)
    target[0, :4] = torch.tensor([7, 1])
    metric = make(thing_pseudo_classes=[], stuff_pseudo_classes=range(16))
    metric.update(prediction, target)
    scores = metric.compute()
    assert scores["pq_things"] == 0 and scores["assignments"].max() < 7
    only_things = PanopticQuality([0], [], 2, thing_pseudo_classes=[1], stuff_pseudo_classes=[0])
    only_things.update(prediction, torch.zeros_like(target))
    assert only_things.compute()["assignments"].tolist() == [VOID, 0]


def test_predicted_ground_truth_classes():
    target = random_maps(3, num_classes=11, num_things=4)
    metric = PanopticQuality(things=range(7, 11), stuff=range(7), num_pseudo_classes=11)
    metric.update(target, target)
    scores = metric.compute()
    assert scores["assignments"].tolist() == list(range(11)) and scores["pq"] == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda p, t: (p[0], t[0]), r"shape \(B, H, W, 2\)"),
        (lambda p, t: (p[..., :1], t[..., :1]), r"shape \(B, H, W, 2\)"),
        (lambda p, t: (p, t[:, 1:]), "differ in shape"),
        (lambda p, t: (p.float(), t), "prediction must hold integers"),
        (lambda p, t: (p, t > 0), "target must hold integers"),
        (lambda p, t: (p + 16, t), "prediction holds class 16"),
        (lambda p, t: (p, t + 11), "target holds class 11"),
        (lambda p, t: (p - 1, t), "holds values from -1"),
        (lambda p, t: (p, t + (torch.arange(2) << 23)), "outside 0..8388607"),
    ],
)
def test_wrong_maps_are_refused(change, fault):
    metric = make()
    maps = torch.zeros(2, 2, 8, 8, 2, dtype=torch.long)
    with pytest.raises(InputError, match=fault):
        metric.update(*change(*maps))
    assert not metric.pairs


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (([1], [0, 1], 3), "things and stuff share the class 1"),
        (([3], [0, 1], 3), "things and stuff must together be 0..2"),
        (([1], [0], 0), "num_pseudo_classes must be 1 to 255"),
        (([1], [0], 3, [0, 1], [1, 2]), "pseudo-classes share the class 1"),
        (([1], [0], 3, [0], [1]), "pseudo-classes must together be 0..2"),
        (([1], [0], 3, None, None, [True]), "classes_mask has 1 entries for 2 classes"),
    ],
)
def test_wrong_classes_are_refused(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        PanopticQuality(*arguments)
