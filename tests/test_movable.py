"""What regions must look like to be taken for something that moves."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from cups.core.errors import InputError
from cups.core.splits import split_by_share
from cups.stages.labels.objects import OBJECT_CHANNELS
from cups.stages.labels.pseudo_classes import FrameDescription, PseudoClasses, fit_pseudo_classes
from cups.stages.semantics.movable import fit_movability
from cups.stages.semantics.regions import REGION_CHANNELS

TOP, SEEN = (REGION_CHANNELS.index(name) for name in ("top", "seen"))


def regions(count: int = 400) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return descriptions of regions of which those of middle height move, their pixels, and those inside objects."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(count, len(REGION_CHANNELS), generator=random)
    rows[:, TOP] = torch.linspace(0, 3, count)
    pixels = torch.randint(20, 200, (count,), generator=random).float()
    return rows, pixels, pixels * ((rows[:, TOP] > 1.2) & (rows[:, TOP] < 1.8))


def test_what_is_neither_low_nor_high_moves():
    rows, pixels, inside = regions()
    model = fit_movability(rows, pixels, inside)
    low, middle, high = (model(rows[own]).mean() for own in (rows[:, TOP] < 0.9, inside > 0, rows[:, TOP] > 2.1))
    assert middle > 4 * low and middle > 4 * high


def test_whether_depth_was_seen_does_not_tell_what_moves():
    rows, pixels, inside = regions()
    rows[:, SEEN] = (inside > 0).float()
    other = rows.clone()
    other[:, SEEN] = 1 - other[:, SEEN]
    model = fit_movability(rows, pixels, inside)
    assert torch.equal(model(rows), model(other))


def test_objects_that_look_like_an_average_pixel_are_things():
    rows, pixels, inside = regions()
    average = (fit_movability(rows, pixels, inside)(rows) - 1).abs().argsort()[:6]
    objects = torch.randn(6, len(OBJECT_CHANNELS), generator=torch.Generator().manual_seed(0))
    found = FrameDescription(rows, pixels, inside, objects, rows[average], torch.ones(6))
    share = fit_pseudo_classes(found, 6, 2).share
    assert split_by_share(share).things == (6, 7)


def test_a_model_of_an_earlier_version_ends_in_one_line(tmp_path):
    rows, pixels, inside = regions()
    objects = torch.randn(6, len(OBJECT_CHANNELS), generator=torch.Generator().manual_seed(0))
    found = FrameDescription(rows, pixels, inside, objects, rows[:6], torch.ones(6))
    path = fit_pseudo_classes(found, 6, 2).save(tmp_path / "classes.safetensors")
    assert PseudoClasses.load(path).num_classes == 8
    tensors = load_file(path)
    tensors["movable.weight"] = tensors.pop("movable.slopes")
    save_file(tensors, path)
    with pytest.raises(InputError, match="does not hold pseudo-classes"):
        PseudoClasses.load(path)
