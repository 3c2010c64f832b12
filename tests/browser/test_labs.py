"""The labs in a browser: moving a slider, dragging the threshold, clicking a bar, selecting rows and runs."""

import json
import re
import shutil

import pytest
from notebook_page import Page, overlapping, wait_for, write_notebook

from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import CHOICE_FILE, PseudoLabelStore
from cups.run.generate import generate
from cups.run.runs import RunFolder
from cups.run.scenes import render_scenes
from cups.stages.pipeline import PseudoLabelSettings

STREET = """
from cups.street.scenes import street_scene
from cups.stages.pipeline import PseudoLabelSettings, analyse, describe
from cups.stages.labels.pseudo_classes import fit_pseudo_classes

sample = street_scene(7).sample
settings = PseudoLabelSettings(num_classes=6, num_object_classes=0)
classes = fit_pseudo_classes(describe(sample, settings), 6, 0)
analysis = analyse(sample, classes, settings)
"""
FILES = """
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import PseudoLabelStore

video, store = StereoFolder("scenes"), PseudoLabelStore("labels")
"""
LABS = {
    "motion-lab": (STREET, "cups.workbench.motion_lab", "MotionLab(analysis, fps=10)"),
    "threshold-lab": (STREET, "cups.workbench.threshold_lab", "ThresholdLab(sample, classes, settings)"),
    "thing-stuff-lab": (FILES, "cups.workbench.thing_stuff_lab", "ThingStuffLab(store, video)"),
    "run-browser": (FILES, "cups.workbench.run_browser", 'RunBrowser("runs", video)'),
}
"""By the class of their element: what to run before, the module, and the call."""


def lab_cells(name: str) -> tuple[str, str]:
    """Return the sources of two cells: what a lab needs, and the lab."""
    before, module, call = LABS[name]
    return before, f"from {module} import {call.partition('(')[0]}\n\n{call}"


@pytest.fixture(scope="module")
def files(lab):
    """Make a small video, its labels and two runs in JupyterLab's folder."""
    settings = PseudoLabelSettings(num_classes=6, num_object_classes=0)
    render_scenes(lab.folder / "scenes", 2, 1, 96, 192, workers=1)
    video = StereoFolder(lab.folder / "scenes")
    generate(video, lab.folder / "labels", settings, workers=1)
    for name, steps in (("long", 300), ("short", 100)):
        run = RunFolder(lab.folder / "runs" / name)
        curve = [{"step": s, "pq": s / 1000} for s in range(100, steps + 1, 100)]
        accuracy = {frame: 0.2 + 0.1 * n for n, frame in enumerate(video.names)}
        run.record(validation=curve, frame_accuracy=accuracy, seconds=steps, stage2={"pq": steps / 1000})
        shutil.copytree(lab.folder / "labels", run.path / "test_labels")


@pytest.fixture(scope="module")
def labs(window, lab, files):
    """Return a function that opens a notebook with a lab, runs it, and returns its page; each is opened once."""
    opened = {}

    def open_lab(name: str) -> Page:
        if name not in opened:
            write_notebook(lab.folder / f"{name}.ipynb", *lab_cells(name))
            opened[name] = Page(window.new_page(), lab, f"{name}.ipynb")
            opened[name].run_all()
        return opened[name]

    yield open_lab
    for page in opened.values():
        page.page.close()


def shown(labs, name: str):
    """Open a lab, scroll it into view, and return its page and its element."""
    page = labs(name).page
    page.bring_to_front()
    element = page.locator(f".cups-{name}")
    element.wait_for()
    element.scroll_into_view_if_needed()
    return page, element


@pytest.mark.parametrize("name", LABS)
def test_a_lab_fits_the_window_and_its_controls_do_not_overlap(labs, artefacts, name):
    page, found = shown(labs, name)
    page.wait_for_timeout(1500)
    page.screenshot(path=artefacts / f"{name}.png")
    box = found.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280
    controls = found.locator("button, select, input, .noUi-base, textarea").all()
    boxes = [control.bounding_box() for control in controls if control.is_visible()]
    assert len(boxes) >= 3 and all(box["x"] + box["width"] <= 1280 for box in boxes)
    assert not overlapping(boxes)
    assert box["height"] <= 700


@pytest.mark.parametrize("name", ["motion-lab", "thing-stuff-lab"])
def test_a_plot_takes_the_theme(labs, artefacts, name):
    page, found = shown(labs, name)
    colour = "e => { const s = getComputedStyle(e); return [s.fill, s.backgroundColor]; }"
    texts = {}
    for theme in ("Dark", "Light"):
        labs(name).theme(theme)
        found.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        page.screenshot(path=artefacts / f"{name}_{theme}.png")
        plots = found.locator(".main-svg").all()
        assert plots and {plot.evaluate(colour)[1] for plot in plots} == {"rgba(0, 0, 0, 0)"}
        texts[theme] = found.locator(".cups-plot text").first.evaluate(colour)[0]
    assert texts["Dark"] != texts["Light"]


MIDDLE_OF_LARGEST = (
    "(lambda d: (lambda m: [d['region'], *divmod(int(__import__('cv2').distanceTransform(m, 1, 3).argmax()), m.shape[1])])"
    "((analysis.proposals.regions == d['region']).numpy().astype('uint8')))"
    "(max(analysis.proposals.diagnostics['dropped'], key=lambda d: d['region_px']))"
)
"""Number, row and column of the middle of the largest dropped region: a browser rounds the place of a click."""


GIVE_UP = """
const timeout = AbortSignal.timeout.bind(AbortSignal);
AbortSignal.timeout = (ms) => timeout(ms === 2000 ? 0 : ms);
"""
"""anywidget gives up on a widget after two seconds; with this script at once, as if the browser were slow."""


def test_a_slow_browser_draws_the_data_and_hears_the_kernel(browser, lab, artefacts):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(GIVE_UP)
    write_notebook(lab.folder / "slow.ipynb", *lab_cells("motion-lab"))
    notebook = Page(context.new_page(), lab, "slow.ipynb")
    given_up = []
    notebook.page.on("pageerror", lambda error: given_up.append(str(error)))
    notebook.run_all()
    found = notebook.page.locator(".cups-motion-lab")
    image = found.locator(".cups-click-picture")
    traces = "plot => plot.data?.[0]?.x?.length ?? 0"
    wait_for(lambda: found.locator(".js-plotly-plot").evaluate(traces) > 1000, "the plot has no points")
    assert found.locator(".cups-plot.js-plotly-plot").count() == 1  # what the colours of the theme are for
    picture = image.get_attribute("src")
    found.locator("select").select_option(index=1)
    wait_for(lambda: image.get_attribute("src") != picture, "the picture does not change")
    found.get_by_text("trust", exact=True).click()
    found.get_by_text("not trusted").wait_for()
    notebook.page.screenshot(path=artefacts / "slow_browser.png")
    assert any("Failed to initialize model" in error for error in given_up)
    context.close()


def test_a_click_selects_a_region_in_the_list_and_the_cloud(labs, lab, artefacts):
    page, found = shown(labs, "motion-lab")
    image = found.locator(".cups-click-picture")
    picture = image.get_attribute("src")
    found.locator("select").select_option(index=1)
    wait_for(lambda: image.get_attribute("src") != picture, "the picture does not change")
    found.get_by_text(re.compile("Region \\d+ was dropped: .* The slider “.*” keeps it")).wait_for()
    found.locator("select").select_option(index=0)
    found.get_by_text("Click a region in the picture").wait_for()
    size = image.evaluate("e => [e.naturalWidth, e.naturalHeight, e.clientWidth, e.clientHeight]")
    region, y, x = json.loads(lab.ask("motion-lab.ipynb", MIDDLE_OF_LARGEST))
    image.click(position={"x": (x + 0.5) * size[2] / size[0], "y": (y + 0.5) * size[3] / size[1]})
    found.get_by_text(f"Region {region} was dropped").wait_for()
    assert found.locator("select").evaluate("e => e.selectedIndex") > 0
    found.get_by_text("trust", exact=True).click()
    found.get_by_text("not trusted").wait_for()
    found.get_by_text("residual, px", exact=True).first.click()
    found.get_by_text("not trusted").wait_for(state="detached")
    assert found.locator("canvas").count()
    page.screenshot(path=artefacts / "motion-lab-clicked.png")


def test_a_moved_slider_changes_what_is_shown(labs, artefacts):
    page, found = shown(labs, "threshold-lab")
    found.get_by_text("computed in").wait_for()
    found.get_by_role("tab", name="motion").click()
    before, after = (found.locator("img").nth(k) for k in (0, 1))
    picture = after.get_attribute("src")
    handle = found.get_by_role("slider").filter(visible=True).first
    handle.focus()
    for _ in range(10):
        handle.press("PageDown")
    found.get_by_text("motion.min_confidence = 0").first.wait_for()
    wait_for(lambda: after.get_attribute("src") != picture, "the picture does not change")
    assert before.get_attribute("src") != after.get_attribute("src")
    assert "min_confidence" in found.locator("textarea").input_value()
    found.get_by_text("proposals.objects").wait_for()
    page.screenshot(path=artefacts / "threshold-lab-moved.png")


def test_the_threshold_is_dragged_and_a_class_decided_by_hand(labs, lab, artefacts):
    page, found = shown(labs, "thing-stuff-lab")
    number = found.locator("input[type=number]")
    start = float(number.input_value())
    line = found.locator(".shapelayer path").first.bounding_box()
    page.mouse.move(line["x"] + line["width"] / 2, line["y"] + line["height"] / 2)
    page.mouse.down()
    page.mouse.move(line["x"] + line["width"] / 2, line["y"] - 60, steps=8)
    page.mouse.up()
    wait_for(lambda: float(number.input_value()) > start + 0.01, "the number does not follow the line")
    assert re.fullmatch(r"0\.\d{1,3}", number.input_value()), "three digits"
    bar = found.locator(".barlayer .point path").first.bounding_box()
    page.mouse.click(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] - 3)
    found.get_by_text(re.compile("pixels in 2 frames|pixels in 1 frames")).wait_for()
    found.get_by_role("button", name="stuff", exact=True).click()
    found.get_by_text(re.compile("stuff, share")).wait_for()  # a click may overtake the state of the buttons
    found.get_by_text("not saved").wait_for()
    found.get_by_role("button", name="Save choice").click()
    found.get_by_text("as the jobs will see it").wait_for()
    page.screenshot(path=artefacts / "thing-stuff-lab-decided.png")
    choice = json.loads((lab.folder / "labels" / CHOICE_FILE).read_text())
    store = PseudoLabelStore(lab.folder / "labels")
    assert choice["threshold"] == pytest.approx(float(number.input_value()), abs=1e-3)
    assert choice["stuff"] == [store.measured_split.order[0]] and not set(choice["stuff"]) & set(store.split.things)


def test_two_runs_are_compared(labs, artefacts):
    page, found = shown(labs, "run-browser")
    found.locator("select[multiple]").select_option(index=[0, 1])
    found.get_by_role("tab", name="Curves").click()
    found.locator(".scatterlayer .trace").nth(1).wait_for()
    found.get_by_role("tab", name="Frames").click()
    found.get_by_text("2 frames, worst first").wait_for()
    found.locator("select[size]:not([multiple])").select_option(index=1)
    found.locator("img").nth(3).wait_for()
    page.screenshot(path=artefacts / "run-browser-frames.png")
