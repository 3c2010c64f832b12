"""The colours of flow are the usual ones, without the library that they are usual in."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cups.core.pictures import flow_rgb


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_the_wheel_is_that_of_torchvision(scale):
    flow = scale * torch.randn(2, 60, 90, generator=torch.manual_seed(1))
    flow[:, 0, 0] = float("nan")
    from torchvision.utils import flow_to_image

    usual = flow_to_image(torch.nan_to_num(flow)).permute(1, 2, 0).numpy()
    assert np.abs(flow_rgb(flow).astype(int) - usual).max() <= 1


def test_a_picture_of_flow_does_not_import_torchvision():
    program = "import sys, torch; from cups.core.pictures import flow_rgb; flow_rgb(torch.ones(2, 4, 5));"
    found = subprocess.run([sys.executable, "-c", program + "print('torchvision' in sys.modules)"], capture_output=True,
                           text=True, check=True)  # fmt: skip
    assert found.stdout.strip() == "False"
