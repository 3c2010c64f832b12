"""Where the specification's fixtures and real images lie, for the tests that need them."""

import os
from pathlib import Path

import pytest


def shared_folder() -> Path:
    """Return the folder `$CUPS_SHARED`, or `../shared` beside the project; skip the test where it is absent."""
    folder = Path(os.environ.get("CUPS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder}; set CUPS_SHARED to their folder")
    return folder
