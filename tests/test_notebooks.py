"""Every notebook runs: what it asserts holds. Jobs (`skip_exec`) have tests of their own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def notebooks() -> list[str]:
    paths = sorted((ROOT / "nbs").rglob("*.ipynb"))
    tested = [p for p in paths if ".ipynb_checkpoints" not in p.parts and "skip_exec: true" not in p.read_text()]
    return [str(p.relative_to(ROOT / "nbs")) for p in tested]


@pytest.mark.parametrize("name", notebooks())
def test_notebook_runs(name):
    path = ROOT / "nbs" / name
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
