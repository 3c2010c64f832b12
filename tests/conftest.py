"""Let tests `from shared import shared_folder`, start processes at once, and let all workers end together."""

import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

LARGE = ["execnb.shell", "torch", "torchvision", "lightning", "torchmetrics", "sklearn.cluster", "skimage.segmentation",
         "scipy.ndimage", "matplotlib.pyplot", "plotly.graph_objects", "ipywidgets"]  # fmt: skip

FIRST = ["test_jobs", "test_cluster", "test_distributed", "test_tracks", "test_training", "test_cli", "test_faults"]
"""The modules that take longest; a worker that began one of them last would keep the others waiting."""

APART = "test_notebooks"
"""A module of many tests that share nothing: they come last and fill what time the workers have left."""


def pytest_collection_modifyitems(items):
    """Begin with what takes longest; a module's tests share one worker, so that nothing they share is made twice."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order) + (item.path.stem == APART)))
    for item in items:
        if item.path.stem != APART:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def processes():
    """Processes that start with the large libraries loaded, as copies of one that nothing has run in."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LARGE)
    return context
