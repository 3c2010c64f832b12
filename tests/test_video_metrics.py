"""Quality of video against the references' figures, in any order of the clips, in pieces and over processes."""

import json

import numpy as np
import pytest
import torch
from shared import shared_folder

from cups import SegmentationAndTrackingQuality, VideoPanopticQuality
from cups.core.errors import InputError
from cups.core.records import VOID

CLASSES = {"things": range(11, 19), "stuff": range(11), "num_pseudo_classes": 19}
NAMED = {**CLASSES, "assignments": range(19)}


def fixture():
    folder = shared_folder() / "fixtures"
    maps = np.load(folder / "video_panoptic.npz")
    truth, prediction = (torch.tensor(maps[name]).long() for name in ("truth", "prediction"))
    return prediction, truth, json.loads((folder / "video_panoptic.json").read_text())


def updated(metric, prediction, truth, order=(0, 1, 2)):
    for clip in order:
        metric.update(prediction[clip], truth[clip], clip=clip)
    return metric


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_video_panoptic_quality_of_the_reference(window):
    prediction, truth, expected = fixture()
    scores = updated(VideoPanopticQuality(**NAMED, window=window), prediction, truth).compute()
    expected = expected["vpq"][str(window)]
    assert abs(scores["vpq"].item() - expected["vpq"]) < 1e-6
    np.testing.assert_allclose(scores["vpq_per_class"], np.array(expected["per_class"], float), rtol=0, atol=1e-6)


def test_segmentation_and_tracking_quality_of_the_reference():
    prediction, truth, expected = fixture()
    scores = updated(SegmentationAndTrackingQuality(**NAMED), prediction, truth).compute()
    for name in ("STQ", "AQ", "IoU"):
        assert abs(scores[name.lower()].item() - expected["stq"][name]) < 1e-6
        per_clip = scores[f"{name.lower()}_per_clip"]
        np.testing.assert_allclose(per_clip, expected["stq"][f"{name}_per_seq"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", [VideoPanopticQuality, SegmentationAndTrackingQuality])
def test_order_pieces_and_processes_do_not_matter(metric):
    prediction, truth, _ = fixture()
    options = NAMED | ({"window": 3} if metric is VideoPanopticQuality else {})
    whole = updated(metric(**options), prediction, truth).compute()
    turned = updated(metric(**options), prediction, truth, (2, 0, 1)).compute()
    pieces = metric(**options)
    for frame in range(6):
        updated(pieces, prediction[:, frame : frame + 1], truth[:, frame : frame + 1])
    halves = [updated(metric(**options), prediction, truth, clips) for clips in ((2,), (0, 1))]
    halves[0].merge_state(halves[1])
    for other in (turned, pieces.compute(), halves[0].compute()):
        assert all(torch.equal(value.nan_to_num(), other[name].nan_to_num()) for name, value in whole.items())


@pytest.mark.parametrize("metric", [VideoPanopticQuality, SegmentationAndTrackingQuality])
def test_pseudo_classes_are_matched(metric):
    prediction, truth, _ = fixture()
    generator = torch.Generator().manual_seed(0)
    permutation = torch.cat([torch.randperm(n, generator=generator) + first for first, n in ((0, 11), (11, 8))])
    renamed = prediction.clone()
    known = renamed[..., 0] != VOID
    renamed[..., 0][known] = permutation[renamed[..., 0][known]]
    groups = {"thing_pseudo_classes": range(11, 19), "stuff_pseudo_classes": range(11)}
    plain, other = (updated(metric(**CLASSES, **groups), maps, truth).compute() for maps in (prediction, renamed))
    occurring = prediction[..., 0][known].unique()
    assert torch.equal(other.pop("assignments")[permutation][occurring], plain.pop("assignments")[occurring])
    assert all(value.dtype == torch.float32 for value in plain.values())
    assert all(torch.equal(value.nan_to_num(), other[name].nan_to_num()) for name, value in plain.items())


@pytest.mark.parametrize("seed", [0, 1])
def test_association_equals_a_slow_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 4, (2, 3, 8, 10), generator=generator)  # classes 0 (stuff) to 3
    numbers = torch.randint(0, 3, maps.shape, generator=generator) * (maps > 0)
    prediction, truth = torch.stack([maps, numbers], -1)
    metric = SegmentationAndTrackingQuality([1, 2, 3], [0], 4, assignments=range(4))
    metric.update(prediction, truth, clip=0)

    counted = ~((truth[..., 0] > 0) & (truth[..., 1] == 0))  # crowds do not count
    tubes = [{tuple(s) for s in m[counted].tolist() if s[0]} for m in (prediction, truth)]
    total = 0.0
    for true in tubes[1]:
        is_true = (truth == torch.tensor(true)).all(-1) & counted
        for predicted in tubes[0]:
            is_predicted = (prediction == torch.tensor(predicted)).all(-1) & counted
            shared = (is_true & is_predicted).sum() / 1.0
            total += shared * shared / (is_true | is_predicted).sum() / is_true.sum()
    assert abs(metric.compute()["aq"] - total / len(tubes[1])) < 1e-6


def test_empty_and_wrong_inputs():
    metric = VideoPanopticQuality(**NAMED, window=2)
    assert metric.compute()["vpq"].isnan()
    assert SegmentationAndTrackingQuality(**NAMED).compute()["stq"].isnan()
    frame = torch.zeros(1, 4, 5, 2, dtype=torch.long)
    metric.update(frame, frame, clip=3)  # shorter than the window
    assert metric.compute()["vpq"].isnan()
    with pytest.raises(InputError, match="differ in shape"):
        metric.update(frame, frame[:, :3], clip=3)
