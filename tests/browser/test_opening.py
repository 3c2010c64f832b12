"""`cups explore` opens one's own video, with its labels, and leaves its folder as it was."""

from pathlib import Path
from urllib.parse import quote

import pytest
from notebook_page import Page, exploring

from cups.cli import main

SIZE = ("--height", "96", "--width", "192", "--workers", "1")


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Make two street scenes and their labels."""
    root = tmp_path_factory.mktemp("labelled")
    (root / "settings.yaml").write_text("num_classes: 8\n")
    assert main(["scenes", "--out", f"{root}/my video", "--count", "2", *SIZE]) == 0
    settings = ["--settings", f"{root}/settings.yaml", "--workers", "1"]
    assert main(["pseudo-labels", "--root", f"{root}/my video", "--out", f"{root}/labels", *settings]) == 0
    return root


def test_ones_own_video_and_its_labels(labelled, window, tmp_path, artefacts):
    before = files(labelled)
    with exploring(tmp_path, f"{labelled}/my video", "--labels", f"{labelled}/labels") as lab:
        (copy,) = lab.folder.glob("*.ipynb")
        page = Page(window.new_page(), lab, copy.name)
        page.page.locator(".jp-Notebook em", has_text="Run All Cells").wait_for()
        page.run_all()
        page.wait_frame(0, done=True)
        assert page.value("Opacity of pseudo-label in stack A") > 0
        page.show()
        page.page.screenshot(path=artefacts / "own_video.png")
        page.page.close()
    assert lab.process.returncode == 0
    assert f"/lab/tree/{quote(copy.name)}?token=" in (tmp_path / "log.txt").read_text()  # for who opens no browser here
    assert files(labelled) == before
