"""`cups explore` opens one's own video, with its labels, and leaves its folder as it was."""

from pathlib import Path

from notebook_page import Page, exploring

from cups.cli import main

SIZE = ("--height", "96", "--width", "192", "--workers", "1")


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_ones_own_video_and_its_labels(window, tmp_path, artefacts):
    video, labels = str(tmp_path / "my video"), str(tmp_path / "labels")
    (tmp_path / "settings.yaml").write_text("num_classes: 8\n")
    assert main(["scenes", "--out", video, "--count", "2", *SIZE]) == 0
    settings = ["--settings", str(tmp_path / "settings.yaml"), "--workers", "1"]
    assert main(["pseudo-labels", "--root", video, "--out", labels, *settings]) == 0
    before = files(tmp_path / "my video"), files(tmp_path / "labels")
    home = tmp_path / "home"
    with exploring(home, video, "--labels", labels) as lab:
        (copy,) = lab.folder.glob("*.ipynb")
        page = Page(window.new_page(), lab, copy.name)
        page.page.get_by_text("Run All Cells").first.wait_for()
        page.run_all()
        page.wait_frame(0, done=True)
        assert "pseudo-label" in page.view.locator(".cups-layers .cups-on").all_inner_texts()
        page.page.screenshot(path=artefacts / "own_video.png")
        page.page.close()
    assert lab.process.returncode == 0
    assert (files(tmp_path / "my video"), files(tmp_path / "labels")) == before
