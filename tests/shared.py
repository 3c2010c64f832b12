"""Where the specification's fixtures and real images lie, and how to read them, for the tests that need them."""

import importlib.util
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


def shared_folder() -> Path:
    """Return the folder `$CUPS_SHARED`, or `../shared` beside the project; skip the test where it is absent."""
    folder = Path(os.environ.get("CUPS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder}; set CUPS_SHARED to their folder")
    return folder


def dinov2_file() -> Path:
    """Return the file of a DINOv2 ViT-S/14; skip the test where it is absent."""
    path = shared_folder() / "weights" / "dinov2_vits14_fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


def load_fixture(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a fixture."""
    with np.load(shared_folder() / "fixtures" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@cache
def procedural() -> ModuleType:
    """Return the module that makes weights and images."""
    spec = importlib.util.spec_from_file_location("procedural", shared_folder() / "fixtures" / "procedural.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def procedural_state(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return the state dict of a network whose every tensor follows from its name."""
    make = procedural().procedural_tensor
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return {name: torch.from_numpy(np.asarray(make(name, shape, seed))) for name, shape in shapes.items()}


def procedural_image(*arguments) -> torch.Tensor:
    """Return an image (3, H, W) in [0, 1]."""
    return torch.from_numpy(procedural().procedural_image(*arguments))
