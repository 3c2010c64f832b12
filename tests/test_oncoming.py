"""Street scenes with near, fast, oncoming traffic; and that scenes without it are what they were before."""

import hashlib
import json

import numpy as np
import pytest
import torch

from cups.cli import main
from cups.core.errors import InputError
from cups.core.geometry import pixel_grid, warp
from cups.street.layout import street_world
from cups.street.scenes import TRAFFIC, StreetScenes, street_clip, street_scene

SIZE = 96, 192


def fingerprint(world):
    """Hash where everything in a world is, to a micrometre, so that the last bits of a sine do not count."""
    paths = [[a.label, len(a.mesh), *(np.round(v, 6) + 0.0 for v in vars(a.path).values())] for a in world.actors]
    places = np.round(world.scenery.points[::50], 4).sum(dtype=np.float64)
    numbers = [len(world.scenery), round(float(places), 1), round(world.step_s, 9), round(world.camera_height_m, 9)]
    return hashlib.sha256(json.dumps([np.array(p, float).tolist() for p in paths] + numbers).encode()).hexdigest()[:12]


@pytest.mark.parametrize(("seed", "before"), [(0, "5b0d370e5774"), (1, "600bb6b10775"), ((2026, 3), "375f3ec06578")])
def test_town_traffic_is_what_it_was(seed, before):
    assert fingerprint(street_world(seed)) == before
    assert fingerprint(street_world(seed, traffic=TRAFFIC["oncoming"])) != before


def test_truth_explains_the_images_of_oncoming_traffic():
    """Where a point is seen at both times, the later image shows it in the same colour; half a pixel off, less so."""
    for seed in (1, 3):
        scene = street_scene((4, seed), 144, 480, traffic="oncoming")
        truth, sample = scene.truth, scene.sample
        moving = (truth.panoptic.instance[..., None] == truth.object_ids[truth.moving]).any(-1) & truth.flow_visible
        fast = moving & (truth.flow_forward.norm(dim=0) > 10)
        assert fast.sum() > 300

        def misses(off, sample=sample, truth=truth, fast=fast):
            there = warp(sample.left_1[None].float(), truth.flow_forward[None] + off)[0][0]
            return (there - sample.left_0.float()).abs().mean(0)[fast].median()

        assert misses(0.0) < 4 and misses(3.0) > 1.3 * misses(0.0)


def test_disparity_and_flow_of_fast_vehicles_agree_with_their_motion():
    scene = street_scene((4, 1), *SIZE, traffic="oncoming")
    truth, camera = scene.truth, scene.sample.calibration
    pixels = pixel_grid(*SIZE).double()
    for number, motion in zip(truth.object_ids.tolist(), truth.object_motions.double(), strict=True):
        own = truth.panoptic.instance == number
        depth = camera.fx * camera.baseline_m / truth.disparity_0[own].double()
        x = (pixels[0, own] - camera.cx) / camera.fx * depth
        y = (pixels[1, own] - camera.cy) / camera.fy * depth
        x, y, z = motion[:3, :3] @ torch.stack([x, y, depth]) + motion[:3, 3:]
        ahead = z > 0.5
        end = torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy])
        off = end - pixels[:, own] - truth.flow_forward[:, own]
        assert off[:, ahead].abs().max() < 0.05


def test_grey_images_have_one_brightness_and_the_same_truth():
    colour, grey = (street_scene(3, *SIZE, traffic="oncoming", grey=grey) for grey in (False, True))
    assert torch.equal(colour.truth.flow_forward, grey.truth.flow_forward)
    for name in ("left_0", "right_0", "left_1", "right_1"):
        image = getattr(grey.sample, name)
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        luma = torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), getattr(colour.sample, name).float(), 1)
        assert (image[0] - luma).abs().mean() < 4
    assert not torch.equal(colour.sample.left_0[0], colour.sample.left_0[1])


def test_a_clip_of_oncoming_traffic_continues_and_is_repeatable():
    first, second = street_clip(5, 2, *SIZE, traffic="oncoming")
    assert torch.equal(first.sample.right_1, second.sample.right_0)
    again = StreetScenes(6, seed=8, height=64, width=96, traffic="oncoming", grey=True)
    assert torch.equal(again[5].sample.left_1, again[5].sample.left_1)
    assert not street_scene(5, 64, 96, static=True, traffic="oncoming").truth.moving.any()
    with pytest.raises(InputError, match="traffic must be one of town, oncoming"):
        StreetScenes(1, traffic="rush hour")


def test_the_command_renders_oncoming_traffic(tmp_path, capsys):
    arguments = ["scenes", "--out", str(tmp_path / "s"), "--count", "1", "--seed", "8", "--height", "64"]
    arguments += ["--width", "96", "--workers", "1"]
    assert main([*arguments, "--traffic", "oncoming", "--grey"]) == 0
    made = json.loads((tmp_path / "s" / "scenes.json").read_text())
    assert made == {"seed": 8, "height": 64, "width": 96, "traffic": "oncoming", "grey": True}
    assert main(arguments) != 0  # other scenes do not go into the same folder
    assert "the folder holds scenes of" in capsys.readouterr().err
