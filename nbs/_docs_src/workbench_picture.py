"""Record the workbench on street scenes as an animated picture: `workbench_picture.py OUT.webp`; needs Chromium."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT)]

from notebook_page import Lab, Page, exploring  # noqa: E402

LAYERS = ("left image", "depth", "optical flow", "residual motion", "moving objects", "classes", "pseudo-label")
"""What the picture shows, one after the other, in the order of the stages."""

WINDOW = {"width": 1280, "height": 800}
SECONDS = 1.5
"""How long each layer stays."""


def screenshots(lab: Lab) -> list[Image.Image]:
    """Return a picture of the window for every layer."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = Page(browser.new_context(viewport=WINDOW).new_page(), lab, next(lab.folder.glob("*.ipynb")).name)
        page.run_all()
        page.wait_frame(0, done=True)
        page.show()
        page.page.wait_for_timeout(4000)  # thumbnails come last
        found = []
        for name in LAYERS:
            page.view.get_by_label(f"Show {name}", exact=True).click()
            page.page.wait_for_timeout(1000)
            found.append(Image.open(io.BytesIO(page.page.screenshot())).convert("RGB"))
        browser.close()
    return found


def main(out: Path) -> None:
    """Write the picture."""
    with TemporaryDirectory() as home, exploring(Path(home)) as lab:
        first, *others = screenshots(lab)
    options = {"duration": round(1000 * SECONDS), "loop": 0, "quality": 80, "method": 6}
    first.save(out, save_all=True, append_images=others, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
