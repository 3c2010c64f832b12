"""Fusion and the things/stuff split against figures of the published program."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from shared import shared_folder

from cups.core.errors import InputError
from cups.core.files import read_json
from cups.core.records import VOID, PanopticLabel, Proposals
from cups.core.splits import class_statistics, relative_share, split_by_share, split_things_stuff
from cups.stages.labels.fusion import fuse

NUM_CLASSES = 16


@pytest.fixture(scope="module")
def published():
    """Published figures, the aligned class maps, and ours fused from the same predictions."""
    folder = shared_folder() / "fixtures"
    maps = np.load(folder / "panoptic_quality.npz")
    prediction = torch.from_numpy(maps["prediction"]).long()
    prediction[prediction == VOID] = 0  # as the published figures were computed
    labels = []
    for frame in prediction:
        instance = frame[..., 1]
        motions = torch.eye(4).expand(int(instance.max()), 4, 4)
        labels.append(fuse(frame[..., 0], Proposals(instance, motions, torch.eye(4), torch.ones(len(motions)))))
    return read_json(folder / "panoptic_quality.json")["thing_stuff"], maps["aligned_semantics"], labels


def test_fused_semantics_are_the_published_ones(published):
    _, aligned, labels = published
    assert np.array_equal(torch.stack([label.semantic for label in labels]).numpy(), aligned)


def test_statistics_and_split_are_the_published_ones(published):
    figures, _, labels = published
    statistics = reduce(add, [class_statistics(label, NUM_CLASSES) for label in labels])
    assert statistics.pixels_inside_proposals.tolist() == figures["pixels_inside_proposals"]
    assert statistics.proposals.tolist() == figures["proposals"]
    assert statistics.pixels.tolist() == figures["pixels"]
    for threshold, num_things in figures["num_things"].items():
        split = split_things_stuff(statistics, float(threshold))
        assert split.order.tolist() == figures["order"]
        assert split.share.dtype == torch.float32
        assert split.share.tolist() == figures["share"]
        assert len(split.things) == num_things
        assert sorted(split.things + split.stuff) == list(range(NUM_CLASSES))


def test_statistics_do_not_depend_on_the_order_of_frames():
    generator = torch.Generator().manual_seed(0)
    frames = []
    for _ in range(5):
        semantic = torch.randint(0, NUM_CLASSES, (20, 30), generator=generator)
        semantic[:3] = VOID
        instance = torch.randint(0, 4, (20, 30), generator=generator)
        frames.append(class_statistics(PanopticLabel(semantic, instance), NUM_CLASSES))
    whole = reduce(add, frames)
    halves = reduce(add, frames[:2:-1]) + reduce(add, frames[:3])
    assert all(torch.equal(vars(whole)[name], vars(halves)[name]) for name in vars(whole))
    assert int(whole.pixels.sum()) == 5 * 17 * 30


@pytest.mark.parametrize("number", [1, 4, 12, 40])
def test_classes_of_objects_are_things_however_many_there_are(number):
    stuff = torch.tensor([[4000.0, 20], [9000, 0]])
    objects = torch.tensor([[900.0, 270]]).repeat(number, 1)
    share = relative_share(torch.cat([stuff, objects]), base=0.05)
    torch.testing.assert_close(share[2:], torch.full((number,), 0.3 / 0.05 / 27))
    assert split_by_share(share).things == tuple(range(2, 2 + number))
    torch.testing.assert_close(share, relative_share(7 * torch.cat([stuff, objects]), base=0.05))


def test_a_class_of_false_proposals_on_what_never_moves_is_stuff():
    share = relative_share(torch.tensor([[1000.0, 10], [900, 270], [400, 8]]), base=0.05)
    assert split_by_share(share).things == (1,)
    with pytest.raises(InputError, match="threshold must lie"):
        split_by_share(share, 1.0)
