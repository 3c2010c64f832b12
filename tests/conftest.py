"""Make `from shared import shared_folder` work from any folder, and processes start at once."""

import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

LARGE = ["execnb.shell", "torch", "torchvision", "lightning", "torchmetrics", "sklearn.cluster", "skimage.segmentation",
         "scipy.ndimage", "matplotlib.pyplot", "plotly.graph_objects", "ipywidgets"]  # fmt: skip


@pytest.fixture(scope="session")
def processes():
    """Processes that start with the large libraries loaded, as copies of one that nothing has run in."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LARGE)
    return context
