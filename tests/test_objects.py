"""Descriptions and classes of moving objects, from the exact geometry of street scenes."""

import pytest
import torch

from cups.core.records import Proposals
from cups.core.taxonomy import CITYSCAPES_19
from cups.stages.labels.objects import OBJECT_CHANNELS, describe_objects, fit_object_classes, object_classes
from cups.stages.scene_flow import scene_flow
from cups.street.scenes import exact_matches, street_scene

MIN_PIXELS = 60  # of a moving object that is looked at


@pytest.fixture(scope="module")
def exact():
    """Return flow, exact proposals and true classes of the moving objects of a few scenes."""
    frames = []
    for seed in range(40, 48):
        scene = street_scene(seed, 128, 256)
        truth, instance, kept = scene.truth, torch.zeros_like(scene.truth.panoptic.instance), []
        for index, number in enumerate(truth.object_ids.tolist()):
            mask = truth.panoptic.instance == number
            if truth.moving[index] and mask.sum() >= MIN_PIXELS:
                kept.append(index)
                instance[mask] = len(kept)
        proposals = Proposals(instance, truth.object_motions[kept], truth.camera_motion, torch.ones(len(kept)))
        flow = scene_flow(scene.sample, exact_matches(scene))
        frames.append((flow, proposals, truth.object_classes[kept]))
    return frames


def test_people_and_cars_share_no_class(exact):
    described = torch.cat([describe_objects(flow, proposals) for flow, proposals, _ in exact])
    names = [CITYSCAPES_19.names[number] for number in torch.cat([true for *_, true in exact]).tolist()]
    classes = object_classes(described, fit_object_classes(described, 4)).tolist()
    of = {name: {c for c, n in zip(classes, names, strict=True) if n == name} for name in ("person", "car")}
    assert of["person"] and of["car"] and not of["person"] & of["car"], of


def test_walkers_are_slower_and_narrower_than_cars(exact):
    described = torch.cat([describe_objects(flow, proposals) for flow, proposals, _ in exact])
    true = torch.cat([true for *_, true in exact])
    person, car = (described[true == CITYSCAPES_19.names.index(name)].median(0).values for name in ("person", "car"))
    for channel in ("width", "speed"):
        assert person[OBJECT_CHANNELS.index(channel)] < car[OBJECT_CHANNELS.index(channel)] - 0.5
    assert 1.2 < float(person[0].exp()) < 2.1  # metres


def test_the_number_of_an_object_does_not_matter(exact):
    flow, proposals, _ = max(exact, key=lambda frame: len(frame[1].motions))
    count = len(proposals.motions)
    assert count > 1
    back = torch.cat([torch.zeros(1).long(), torch.arange(count, 0, -1)])
    turned = proposals.replace(instance=back[proposals.instance], motions=proposals.motions.flip(0))
    features = torch.rand(5, 32, 64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (describe_objects(flow, p, features) for p in (proposals, turned))
    assert ours.shape == (count, len(OBJECT_CHANNELS) + 5)
    torch.testing.assert_close(ours, theirs.flip(0))
    empty = describe_objects(flow, proposals.replace(instance=torch.zeros_like(proposals.instance)), features)
    assert (empty == 0).all()


def test_classes_do_not_depend_on_the_order_of_objects():
    generator = torch.Generator().manual_seed(1)
    described = torch.randn(120, len(OBJECT_CHANNELS) + 12, generator=generator)
    found = fit_object_classes(described, 5, seed=3)
    again = fit_object_classes(described[torch.randperm(120, generator=generator)], 5, seed=3)
    assert all(torch.equal(vars(found)[name], vars(again)[name]) for name in vars(found))
    assert found.projection.shape == (len(OBJECT_CHANNELS) + 12, len(OBJECT_CHANNELS) + 8)
