"""The browser of runs in a browser: scores, parameters, curves and frames of one run and of two."""

import re
import shutil

import pytest
from notebook_page import Page, wait_for, write_notebook

from cups.core.files import write_json
from cups.datasets.stereo_folder import StereoFolder
from cups.run.generate import generate
from cups.run.runs import RunFolder
from cups.run.scenes import render_scenes
from cups.stages.pipeline import PseudoLabelSettings

NOTEBOOK = "runs_and_segments.ipynb"
CELLS = (
    """
from cups.workbench.run_browser import RunBrowser

RunBrowser("compared")
""",
)
SIZES = {"small": (1280, 800), "large": (1600, 1000)}


def scores(pq: float, road: float) -> dict:
    """Return what a run records of a result."""
    classes = [road, 0.5, 0.7, *[None] * 10, pq, *[None] * 5]
    return {"pq": pq, "pq_things": pq / 2, "pq_stuff": 2 * pq, "pq_per_class": classes, "frames": 2,
            "assignments": [0, 1, 2, 8, 10, 13]}  # fmt: skip


@pytest.fixture(scope="module")
def files(lab):
    """Make a video with labels, two runs that were evaluated on it, one evaluated on another, and one on none."""
    settings = PseudoLabelSettings(num_classes=6, num_object_classes=0)
    folder = lab.folder / "compared"
    video = render_scenes(folder / "long" / "test_scenes", 2, 1, 96, 192, workers=1)
    generate(video, folder / "long" / "test_labels", settings, workers=1)
    for part in ("test_scenes", "test_labels"):
        shutil.copytree(folder / "long" / part, folder / "short" / part)
    render_scenes(folder / "other" / "test_scenes", 2, 7, 96, 192, workers=1)
    for part, name in (("test_scenes", "scenes"), ("test_labels", "labels")):
        shutil.copytree(folder / "long" / part, folder / "blind" / name)
    shutil.rmtree(folder / "blind" / "scenes" / "truth")
    first, second = StereoFolder(folder / "long" / "test_scenes").names
    RunFolder(folder / "blind").record(frame_agreement={first: 0.4, second: 0.6})
    for place, name in enumerate(("long", "short", "other")):
        run = RunFolder(folder / name)
        run.record(training_settings={"learning_rate": 0.0002}, environment={"git": "0123456789ab", "cpus": 2})
        run.record(validation=[{"step": s, "pq": s / 1000} for s in (100, 200, 300 - 100 * place)])
        run.record(pseudo_labels=scores(0.3, 0.7), stage2=scores(0.4 - 0.1 * place, 0.8 - 0.2 * place))
        run.record(frame_accuracy={first: 0.9 - 0.5 * place, second: 0.3}, void_share={"stage2": 0.123})
        cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "steps = 250\nseed = 0"}
        about = {"input_path": "train.ipynb", "parameters": {"steps": 300 - 100 * place, "run_dir": name}}
        write_json(folder / f"{name}.ipynb", {"cells": [cell], "metadata": {"papermill": about}})


@pytest.fixture(scope="module")
def page(window, lab, files):
    """Open a notebook with the widgets and run it."""
    write_notebook(lab.folder / NOTEBOOK, *CELLS)
    opened = Page(window.new_page(), lab, NOTEBOOK)
    opened.run_all()
    opened.page.locator(".cups-run-browser .cups-table").first.wait_for()
    yield opened.page
    opened.page.close()


@pytest.fixture(autouse=True)
def small_window(page):
    """Begin every test in the small window, also after one that failed in another."""
    page.set_viewport_size(dict(zip(("width", "height"), SIZES["small"], strict=True)))


def use_theme(page, name: str) -> None:
    """Choose a theme as a person does."""
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Settings$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{name}$")).click()
    light = "true" if "Light" in name else "false"
    wait_for(lambda: page.locator("body").get_attribute("data-jp-theme-light") == light, "the theme does not change")
    page.wait_for_timeout(500)


def runs_tab(page, name: str):
    """Open a tab of the run browser and return the browser's element."""
    found = page.locator(".cups-run-browser")
    found.get_by_role("tab", name=name).click()
    found.evaluate("element => element.scrollIntoView()")
    return found


def select_runs(page, *names: str) -> None:
    """Select runs in the table."""
    table = page.locator(".cups-run-browser select[multiple]")
    texts = table.locator("option").all_inner_texts()
    table.select_option(index=[k for k, text in enumerate(texts) if re.split(r"\s", text)[0] in names])


def test_scores_stand_side_by_side_and_class_by_class(page, artefacts):
    select_runs(page, "long", "short")
    found = runs_tab(page, "Scores")
    found.get_by_text("class, PQ in %").wait_for()
    text = found.inner_text()
    for part in (r"long\s+network\s+40\.0\s+20\.0\s+80\.0\s+12\.3\s+2", r"short\s+network\s+30\.0",
                 r"road\s+stuff\s+80\.0\s+60\.0\s+-20\.0", r"car\s+thing\s+40\.0\s+30\.0\s+-10\.0"):  # fmt: skip
        assert re.search(part, text), text
    assert text.index("road") < text.index("car"), "the largest change comes first"
    page.screenshot(path=artefacts / "runs_scores.png")
    select_runs(page, "long")
    wait_for(lambda: re.search(r"road\s+stuff\s+70\.0\s+80\.0\s+\+10\.0", found.inner_text()), "not compared with the labels")


def test_parameters_are_those_that_took_effect(page, artefacts):
    select_runs(page, "long", "short")
    found = runs_tab(page, "Parameters")
    wait_for(lambda: re.search(r"steps\s+300\s+200", found.inner_text()), "the two runs are not compared")
    text = found.inner_text()
    assert re.search(r"seed\s+0\s+0", text) and "0.0002" in text
    found.get_by_text("only what differs").click()
    found.get_by_text("training.learning_rate").wait_for(state="hidden")
    assert re.search(r"steps\s+300\s+200", found.inner_text())
    page.screenshot(path=artefacts / "runs_parameters.png")


@pytest.mark.parametrize("size", SIZES)
def test_the_plot_fills_its_width_and_takes_the_theme(page, size, artefacts):
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    select_runs(page, "long", "short")
    found = runs_tab(page, "Curves")
    found.locator(".scatterlayer .trace").nth(1).wait_for()
    place = found.locator(".cups-plot").bounding_box()["width"]
    wait_for(lambda: found.locator(".main-svg").first.bounding_box()["width"] > 0.97 * place, "the plot stays narrow", 10)
    assert place > 0.8 * width
    colours = {}
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        use_theme(page, theme)
        page.screenshot(path=artefacts / f"runs_curves_{size}_{theme[11:]}.png")
        colour = "e => { const s = getComputedStyle(e); return [s.fill, s.backgroundColor]; }"
        colours[theme] = found.locator(".xtick text").first.evaluate(colour)[0]
        assert found.locator(".main-svg").first.evaluate(colour)[1] == "rgba(0, 0, 0, 0)"
    assert colours["JupyterLab Dark"] != colours["JupyterLab Light"]


def test_the_worst_frames_of_one_run_are_shown(page, artefacts):
    select_runs(page, "long")
    found = runs_tab(page, "Frames")
    found.get_by_text("2 frames, worst first").wait_for()
    cells = found.locator(".cups-grid-cell")
    cells.nth(2).wait_for()
    assert "30.0 % of the pixels are right" in cells.nth(2).inner_text() and cells.count() == 4
    page.screenshot(path=artefacts / "runs_worst_frame.png")
    assert found.bounding_box()["height"] <= 700


def test_frames_that_changed_most_come_with_both_predictions(page, lab, artefacts):
    select_runs(page, "long", "short")
    found = runs_tab(page, "Frames")
    found.locator("select:visible").filter(has_text="changed most first").select_option("changed most first")
    found.get_by_text("2 frames, changed most first").wait_for()
    lines = found.locator("select[size]:not([multiple]) option").all_inner_texts()
    assert lines[0].endswith("-50.0") and lines[1].endswith("0.0")
    found.locator(".cups-grid-cell").nth(3).wait_for()
    titles = found.locator(".cups-grid-cell").all_inner_texts()
    assert titles[2:] == ["long: 90.0 % of the pixels are right", "short: 40.0 % of the pixels are right"]
    picture = found.locator(".cups-grid-cell img").nth(2)
    before = picture.get_attribute("src")
    found.get_by_text("only what is wrong").click()
    wait_for(lambda: picture.get_attribute("src") != before, "the picture does not change")
    page.screenshot(path=artefacts / "runs_frames_wrong.png")
    found.get_by_text("only what is wrong").click()


def test_a_run_without_ground_truth_shows_where_it_is_not_as_labelled(page, artefacts):
    select_runs(page, "blind")
    found = runs_tab(page, "Frames")
    found.get_by_text("2 frames, worst first: as labelled pixels in %, blind").wait_for()
    found.locator(".cups-grid-cell").nth(3).wait_for()
    titles = found.locator(".cups-grid-cell").all_inner_texts()
    assert titles[1:] == ["label of blind", "blind: 40.0 % of the pixels are as labelled", "where it is not as labelled"]
    page.screenshot(path=artefacts / "runs_blind.png")
    select_runs(page, "blind", "long")
    found.get_by_text("frames with ground truth are not compared with those without").wait_for()


def test_runs_on_other_images_are_not_compared_by_frame(page):
    select_runs(page, "long", "other")
    found = runs_tab(page, "Frames")
    found.get_by_text("have other images under the same names").wait_for()
    assert not found.locator(".cups-grid-cell").count()
    runs_tab(page, "Scores").get_by_text("evaluated on other images: part of the difference is theirs").wait_for()
