"""Evaluation: sets of classes, classes alone, objects alone, and the export of pseudo-labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared_folder

from cups.cli import main
from cups.core.errors import InputError
from cups.core.records import VOID, Matches, PanopticLabel
from cups.core.splits import ThingStuffSplit
from cups.core.taxonomy import (
    CITYSCAPES_7,
    CITYSCAPES_19,
    CITYSCAPES_27,
    CITYSCAPES_LABELS,
    Taxonomy,
    cityscapes_classes,
    coarsened,
    from_cityscapes_ids,
)
from cups.evaluation.classes import semantic_scores, snapped_to_image, square_view
from cups.evaluation.objects import (
    detected_objects,
    detection_scores,
    labelled_objects,
    numbered_masks,
    true_objects,
)
from cups.evaluation.panoptic import panoptic_scores
from cups.evaluation.semantic_quality import Fragmentation, class_stability, fragmentation
from cups.labels.files import write_label
from cups.labels.store import PseudoLabelStore
from cups.model.config import Prediction
from cups.model.files import numbered_split
from cups.model.inference import combine, network_output, predict
from cups.model.network import panoptic_cascade

MADE_UP = Taxonomy(("a",) * 27, np.zeros((27, 3), np.uint8), np.zeros(27, bool))
CAR, PERSON, RIDER = (CITYSCAPES_19.names.index(name) for name in ("car", "person", "rider"))


def known_split(taxonomy):
    """Return the split of a prediction that is in a truth's own classes."""
    count = len(taxonomy)
    return ThingStuffSplit(
        tuple(taxonomy.thing_classes), tuple(taxonomy.stuff_classes), torch.arange(count), torch.zeros(count)
    )


def truth_27():
    """Return a truth that shows all 27 classes and void, each thing class twice, every class numbering its own."""
    semantic, instance = torch.zeros(2, 28 * 6, 40, dtype=torch.long)
    for number in range(28):
        rows = slice(6 * number, 6 * number + 6)
        semantic[rows] = number if number < 27 else VOID
        if number in CITYSCAPES_27.thing_classes:
            instance[rows, :20], instance[rows, 20:] = 1, 2
    return PanopticLabel(semantic, instance)


def objects(*boxes, size=(60, 80), scores=None):
    """Return rectangles (top, left, bottom, right) as masks with scores, 1 by default."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks, torch.tensor(scores or [1.0] * len(boxes))


def truth_of(*boxes, name=CAR):
    """Return a truth of objects of one class on a road."""
    semantic, instance = torch.zeros(2, 60, 80, dtype=torch.long)
    for number, mask in enumerate(objects(*boxes)[0], 1):
        semantic[mask], instance[mask] = name, number
    return PanopticLabel(semantic, instance)


def test_labels_are_those_of_the_specification():
    expected = json.loads((shared_folder() / "spec" / "labels.json").read_text())["cityscapes"]
    keys = ("id", "name", "category", "to_27", "to_19", "to_7")
    here = [{key: getattr(label, key) for key in keys} for label in CITYSCAPES_LABELS if label.id >= 0]
    assert here == [{key: label[key] for key in keys} for label in expected["labels"]]
    for count in (27, 19, 7):
        assert list(cityscapes_classes(count).names) == expected[f"classes_{count}"]
        assert cityscapes_classes(count).thing_classes == expected[f"things_{count}"]


def test_colours_are_the_official_ones():
    colours = dict(zip(CITYSCAPES_27.names, CITYSCAPES_27.colours.tolist(), strict=True))
    assert colours["parking"] == [250, 170, 160] and colours["trailer"] == [0, 0, 110]
    assert all(colours[name] == c.tolist() for name, c in zip(CITYSCAPES_19.names, CITYSCAPES_19.colours, strict=True))


def test_ids_coarsen_as_their_classes_do():
    ids = torch.arange(-1, 34)[None]
    fine = PanopticLabel(from_cityscapes_ids(ids, CITYSCAPES_27), torch.zeros_like(ids))
    for target in (CITYSCAPES_27, CITYSCAPES_19, CITYSCAPES_7):
        assert torch.equal(coarsened(fine, CITYSCAPES_27, target).semantic, from_cityscapes_ids(ids, target))
    in_19 = coarsened(fine, CITYSCAPES_27, CITYSCAPES_19)
    in_7 = coarsened(in_19, CITYSCAPES_19, CITYSCAPES_7).semantic
    expected = torch.where(in_19.semantic == VOID, VOID, from_cityscapes_ids(ids, CITYSCAPES_7))
    assert torch.equal(in_7, expected)  # parking is void in 19 classes, and stays so


def test_objects_stay_apart_when_classes_merge():
    truth = PanopticLabel(torch.tensor([[PERSON, RIDER, RIDER, CAR, 0]]), torch.tensor([[4, 4, 0, 4, 4]]))
    coarse = coarsened(truth, CITYSCAPES_19, CITYSCAPES_7)
    person, rider, crowd, car, _ = coarse.instance[0].tolist()
    assert coarse.semantic[0].tolist() == [5, 5, 5, 6, 0]
    assert crowd == 0 and len({person, rider, car, 0}) == 4


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (lambda: cityscapes_classes(34), "27, 19 or 7 classes, not 34"),
        (lambda: from_cityscapes_ids(torch.tensor([[34]]), CITYSCAPES_7), "holds 34"),
        (lambda: from_cityscapes_ids(torch.tensor([[-2]]), CITYSCAPES_7), "holds -2"),
        (lambda: coarsened(truth_27(), CITYSCAPES_19, CITYSCAPES_27), "finer"),
        (lambda: coarsened(truth_27(), CITYSCAPES_19, CITYSCAPES_7), "holds 19, not one of the 19 classes"),
        (lambda: coarsened(truth_27(), MADE_UP, CITYSCAPES_7), "not one of the sets"),
    ],
)
def test_classes_that_do_not_fit(act, fault):
    with pytest.raises(InputError, match=fault):
        act()


@pytest.mark.parametrize("count", [27, 19, 7])
def test_a_truth_scores_100_percent_against_itself(count):
    taxonomy = cityscapes_classes(count)
    truth = coarsened(truth_27(), CITYSCAPES_27, taxonomy)
    scores = panoptic_scores([(truth, truth)], known_split(taxonomy), taxonomy)
    assert scores["pq"] == scores["miou"] == scores["accuracy"] == 1 and scores["pq_per_class"] == [1.0] * count
    found = detection_scores([(labelled_objects(truth, known_split(taxonomy)), truth)], taxonomy)
    assert found["ap"] == found["ar100"] == pytest.approx(1, abs=1e-6)
    assert found["objects"] == {27: 20, 19: 16, 7: 20}[count]
    alone = semantic_scores([(truth.semantic, truth.semantic)], count, taxonomy)
    assert alone["miou"] == alone["accuracy"] == 1 and alone["iou_per_class"] == [1.0] * count


@pytest.mark.parametrize("count", [27, 19, 7])
def test_command_evaluates_in_other_classes(count, tmp_path, capsys):
    taxonomy = cityscapes_classes(count)
    store = PseudoLabelStore.create(tmp_path / "labels", {}, count)
    store.write("a_0", coarsened(truth_27(), CITYSCAPES_27, taxonomy))
    store.finish()
    write_label(tmp_path / "truth", "a_0", truth_27())
    command = ["evaluate", "--labels", f"{tmp_path}/labels", "--truth", f"{tmp_path}", "--classes", f"{count}"]
    assert main([*command, "--truth-classes", "27", "--without", "sky", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["pq"] == scores["pq_things"] == 1
    assert [k for k, value in enumerate(scores["pq_per_class"]) if value is None] == [taxonomy.names.index("sky")]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--classes", "8"], "27, 19 or 7 classes, not 8"),
        (["--classes", "27"], "cannot be evaluated in 27"),
        (["--without", "dragon"], "'dragon' is none of the 19 classes"),
    ],
)
def test_command_refuses_other_classes(options, fault, tmp_path, capsys):
    truth = truth_of((0, 0, 9, 9))
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 19)
    store.write("a_0", truth)
    store.finish()
    write_label(tmp_path / "truth", "a_0", truth)
    assert main(["evaluate", "--labels", f"{tmp_path}/labels", "--truth", f"{tmp_path}/truth", *options]) == 2
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1


def test_view_is_the_middle_of_the_frame():
    columns, rows = torch.arange(1280).expand(640, 1280), torch.arange(640)[:, None].expand(640, 1280)
    x, y = square_view(columns), square_view(rows)
    assert x.shape == y.shape == (320, 320)
    assert (x[0, 0], x[0, -1], y[0, 0], y[-1, 0]) == (321, 959, 1, 639)
    image = square_view((columns // 6).to(torch.uint8).expand(3, -1, -1))
    assert (image[0].int() - x // 6).abs().max() <= 1  # the same pixels as in the class map


def test_classes_alone_know_no_things_and_count_void_as_wrong():
    truth = torch.tensor([[CAR] * 6 + [0] * 6 + [VOID] * 3])
    found = torch.tensor([[0] * 4 + [VOID] * 2 + [1] * 6 + [1] * 3])
    scores = semantic_scores([(found, truth)], 3)
    assert scores["assignments"][:2] == [CAR, 0] and scores["frames"] == 1
    assert scores["accuracy"] == pytest.approx(10 / 12) and scores["unclaimed"] == pytest.approx(2 / 12)
    assert scores["miou"] == pytest.approx((4 / 6 + 1) / 2) and scores["iou_per_class"][CAR] == pytest.approx(4 / 6)
    assert semantic_scores([(found, truth)], 3, without=["car"])["miou"] == 1
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        semantic_scores([(found + 1, truth)], 2)
    with pytest.raises(InputError, match=r"outside 0\.\.0"):  # not void, but the first class that there is not
        semantic_scores([(found, truth)], 1)
    with pytest.raises(InputError, match="no frame"):
        semantic_scores([], 2)


def test_frames_add_up_before_classes_are_matched():
    """A pseudo-class that means one thing here and another there gets the class it shares most pixels with in all."""
    first, second = (torch.zeros(1, 3).long(), torch.full((1, 3), CAR)), (torch.zeros(1, 5).long(), torch.zeros(1, 5))
    scores = semantic_scores([first, (second[0], second[1].long())], 1)
    assert scores["assignments"] == [0] and scores["accuracy"] == pytest.approx(5 / 8)
    assert scores["miou"] == pytest.approx((5 / 8 + 0) / 2)


def test_crf_follows_the_image_and_fills_void():
    right = torch.arange(48).expand(48, 48) >= 24
    image = torch.where(right, 200, 40).to(torch.uint8).expand(3, -1, -1).contiguous()
    rough = right.long()
    rough[8:12, 4:8], rough[30:34, 20:23], rough[20:28, 30:40] = 2, 1, VOID
    assert torch.equal(snapped_to_image(rough, image, 3), right.long())
    for certainty in (1.0, 1 / 3):
        with pytest.raises(InputError, match="certainty"):
            snapped_to_image(rough, image, 3, certainty)


def test_average_precision_by_hand():
    """Sorted by score: a false one, an exact one, one of IoU 0.56; three to find in two frames."""
    first = objects((0, 0, 20, 20), scores=[0.9]), truth_of((0, 0, 20, 20))
    second = (
        objects((40, 40, 50, 50), (20, 0, 30, 9), scores=[0.95, 0.5]),
        truth_of((20, 0, 36, 10), (0, 60, 10, 70), name=PERSON),
    )
    scores = detection_scores([first, second])
    assert (scores["objects"], scores["frames"]) == (3, 2)
    assert scores["ap50"] == pytest.approx(2 / 3 * 67 / 101, abs=1e-6)  # precision 2/3 up to a recall of 2/3
    assert scores["ap75"] == pytest.approx(1 / 2 * 34 / 101, abs=1e-6)
    assert scores["ap"] == pytest.approx((2 * 2 / 3 * 67 + 8 / 2 * 34) / 1010, abs=1e-6)
    assert scores["ar100"] == pytest.approx((2 * 2 / 3 + 8 / 3) / 10)
    assert scores["ar_small"] == scores["ar100"] and scores["ar_large"] is None


def test_what_has_no_number_may_be_found_or_not():
    truth = truth_of((0, 0, 20, 20))
    truth.semantic[30:50, :20], truth.semantic[30:50, 40:60] = PERSON, VOID
    truth.instance[50:, 70:] = 5  # stuff with a number is no object
    masks, crowd = true_objects(truth)
    assert masks.sum((1, 2)).tolist() == [400, 800] and crowd.tolist() == [False, True]
    alone, rest = (0, 0, 20, 20), ((30, 0, 40, 20), (30, 40, 50, 50))
    scores = [0.5, 0.9, 0.9]
    assert detection_scores([(objects(alone, *rest, scores=scores), truth)])["ap"] == pytest.approx(1, abs=1e-6)
    on_road = objects(alone, (50, 70, 60, 80), scores=[0.5, 0.9])
    assert detection_scores([(on_road, truth)])["ap"] == pytest.approx(0.5, abs=1e-6)
    missed = detection_scores([((masks[:0], torch.zeros(0)), truth)])
    assert missed["ar_small"] == 0 and missed["ar_medium"] is missed["ar_large"] is None
    nothing = truth_of()
    assert detection_scores([(objects(alone), nothing)])["ap"] is None
    assert detection_scores([(objects(), truth)])["ap"] == 0


def test_objects_of_labels_are_those_of_thing_classes():
    label = PanopticLabel(torch.tensor([[3, 3, 4, 4, 5, VOID]]), torch.tensor([[1, 1, 1, 0, 2, 2]]))
    split = ThingStuffSplit((3, 4), (5,), torch.arange(3), torch.zeros(3))
    masks, scores = labelled_objects(label, split)
    assert masks.tolist() == [[[True, True, False, False, False, False]], [[False, False, True, False, False, False]]]
    assert scores.tolist() == [1, 1]
    assert len(numbered_masks(label)) == 3


def test_objects_of_a_network_are_all_its_detections():
    boxes = torch.tensor([[10.0, 5, 30, 25], [40, 20, 60, 50]])
    masks = torch.ones(2, 28, 28)
    masks[1, :14] = 0  # the lower half
    prediction = Prediction(torch.zeros(2, 60, 80), boxes, torch.tensor([0.8, 0.06]), torch.tensor([0, 1]), masks)
    found, scores = detected_objects(prediction)
    expected, _ = objects((5, 10, 25, 30), (35, 40, 50, 60))
    assert torch.equal(found, expected) and torch.equal(scores, prediction.scores)


@pytest.mark.parametrize("views", [{}, {"scales": (0.5, 1.0), "mirror": True}])
def test_the_network_is_asked_as_predict_asks_it(views):
    torch.manual_seed(0)
    model = panoptic_cascade(2, 3, preset="small").eval()
    image = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    split = numbered_split(2, 3)
    output = network_output(model, image, **views)
    label, _ = combine(output, model.config, split.things, split.stuff)
    expected = predict(model, image, split, **views)
    assert torch.equal(label.stacked(), expected.stacked())
    assert not output.semantic.requires_grad and len(detected_objects(output)[0]) == len(output.scores) > 0


def test_exported_labels_read_back(tmp_path, capsys):
    semantic, instance = torch.zeros(2, 40, 50, dtype=torch.long)
    semantic[20:] = 2
    semantic[5:15, 10:30], instance[5:15, 10:30] = 1, 300
    semantic[25:30, 0:5] = 1  # a thing class outside every object
    semantic[35:, 40:] = VOID
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 3)
    command = ["export", f"{tmp_path}/labels", "--out", f"{tmp_path}/out", "--classes", f"{tmp_path}/names.json"]
    (tmp_path / "names.json").write_text('{"1": "car"}')
    store.write("b_0", PanopticLabel(semantic, instance))
    assert main(command) == 2
    assert "not finished" in capsys.readouterr().err
    store.finish(threshold=0.5)
    assert main(command) == 0
    path = Path(json.loads(capsys.readouterr().out)["written"])
    written = json.loads(path.read_text())

    assert [(c["id"], c["name"], c["isthing"]) for c in written["categories"]] == [
        (1, "class 0 (stuff)", 0),
        (2, "car", 1),
        (3, "class 2 (stuff)", 0),
    ]
    assert written["images"] == [{"id": 1, "file_name": "b_0.png", "height": 40, "width": 50}]
    (annotation,) = written["annotations"]
    numbers = np.array(Image.open(path.with_suffix("") / annotation["file_name"])).astype(int)
    numbers = numbers @ [1, 256, 65536]
    found = {s["category_id"] - 1: s for s in annotation["segments_info"]}
    assert {k: (s["area"], s["bbox"], s["iscrowd"]) for k, s in found.items()} == {
        0: (20 * 50 - 200, [0, 0, 50, 20], 0),
        1: (200, [10, 5, 20, 10], 0),
        2: (20 * 50 - 25 - 50, [0, 20, 50, 20], 0),
    }
    expected = np.zeros((40, 50), int)
    for k, s in found.items():
        expected[(semantic == k).numpy() & ((instance > 0).numpy() | (k != 1))] = s["id"]
    assert np.array_equal(numbers, expected) and (expected == 0).sum() == 75


# Quality without truth


def test_classes_are_followed_along_the_flow_to_the_nearest_pixel():
    flow, zeros = torch.zeros(2, 4, 6), torch.zeros(4, 6)
    flow[0], flow[1] = 1.6, -0.7  # two to the right, one up: 4 columns of 3 rows end inside the image
    visible = torch.ones(4, 6, dtype=torch.bool)
    visible[1, 0] = False
    matches = Matches(flow, -flow, *[zeros] * 4, visible, visible, visible)
    before = torch.arange(24).view(4, 6)
    after = torch.full((4, 6), 99)
    after[:3, 2:] = before[1:, :4]
    assert class_stability(before, after, matches) == 1
    after[0, 3] = VOID  # the pixel at row 1, column 1, is void then; 11 are followed
    assert class_stability(before, after, matches) == pytest.approx(10 / 11)
    before[3, 0] = VOID
    assert class_stability(before, after, matches) == pytest.approx(9 / 10)
    moving = torch.zeros(4, 6, dtype=torch.bool)
    moving[1] = True
    assert class_stability(before, after, matches, ignore=moving) == 1
    assert np.isnan(class_stability(before, after, matches, ignore=torch.ones_like(moving)))


def test_segments_are_counted_by_class_and_the_small_ones_by_area():
    semantic = torch.zeros(100, 100, dtype=torch.long)
    semantic[:, 50:] = 7
    semantic[10, 10:19] = 7  # 9 pixels, fewer than a thousandth of the image
    semantic[30, 10:20] = 7  # 10 are not fewer
    semantic[60:63, 60:63] = 0  # 9 again
    semantic[80:90, 50] = VOID
    assert fragmentation(semantic) == Fragmentation(segments=5, small_share=18 / 9990)
    assert fragmentation(semantic[:1]) == Fragmentation(segments=2, small_share=0)
    assert np.isnan(fragmentation(torch.full((3, 3), VOID)).small_share)
