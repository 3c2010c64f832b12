"""Record the workbench in Chromium as an animated picture: `workbench_picture.py OUT.webp`; needs the extra `browser`."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT)]

from notebook_page import Lab, Page, answers, chromium_program, free_port, wait_for  # noqa: E402

LAYERS = (("image",), ("depth",), ("motion",), ("classes",), ("label",))
"""What is shown, one after the other."""

WINDOW = {"width": 1280, "height": 860}
SECONDS = 1.6
"""How long each stays."""
