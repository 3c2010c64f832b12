"""Let tests `from shared import shared_folder`, start processes at once, and let all workers end together."""

import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parent))

LARGE = ["pytest", "nbformat", "execnb.shell", "ipykernel.kernelapp", "torch", "torchvision", "lightning",
         "torchmetrics", "sklearn.cluster", "skimage.segmentation", "scipy.ndimage", "matplotlib.pyplot",
         "plotly.graph_objects", "ipywidgets"]  # fmt: skip
"""What the copies of a process need: the module of tests whose function they run is among what they import."""

LONG = ["test_cluster", "test_jobs", "test_distributed", "test_onnx", "test_cli", "test_faults", "test_tracks",
        "test_stale_results", "test_semantic_head"]  # fmt: skip
"""The modules that take longest and start most processes: late, to leave the tests in the browser beside them alone,
and not last, since a worker that began one of them then would keep the others waiting."""

APART = "test_notebooks"
"""A module of many tests that share nothing: they come last and fill what time the workers have left."""


def pytest_collection_modifyitems(items):
    """Begin with what is short."""
    order = {name: number for number, name in enumerate([*LONG, APART])}
    items.sort(key=lambda item: order.get(item.path.stem, -1))


class Modules(LoadScopeScheduling):
    """Give each module to one worker, so that nothing its tests share is made twice, and notebooks one by one."""

    def _split_scope(self, nodeid):
        path = nodeid.split("::")[0]
        return nodeid if Path(path).stem == APART else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Choose how `make tests` shares the tests among workers."""
    return Modules(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def processes():
    """Processes that start with the large libraries loaded, as copies of one that nothing has run in."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LARGE)
    return context
