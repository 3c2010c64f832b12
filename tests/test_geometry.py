"""Warping and visibility against exact published values."""

import importlib.util

import numpy as np
import torch
from shared import shared_folder

from cups.core.geometry import visible, warp


def procedural():
    spec = importlib.util.spec_from_file_location("procedural", shared_folder() / "fixtures" / "procedural.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_warp_and_visibility_match_the_fixture():
    fixture = np.load(shared_folder() / "fixtures" / "warping.npz")
    image = torch.from_numpy(procedural().procedural_image(64, 96, int(fixture["seed"])))[None]
    forward, backward = (torch.from_numpy(fixture[f"flow_{name}"]) for name in ("forward", "backward"))
    warped, inside = warp(image, forward)
    np.testing.assert_allclose(warped.numpy(), fixture["warped_image"], atol=1e-4)
    np.testing.assert_array_equal(inside.numpy(), fixture["inside"])
    np.testing.assert_array_equal(visible(forward, backward).numpy(), fixture["visible"])
