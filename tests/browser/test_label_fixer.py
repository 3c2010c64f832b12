"""The label fixer in a browser: segments are clicked, changed, saved beside the automatic labels, and read again."""

import re

import pytest
import torch
from notebook_page import Page, overlapping, wait_for, write_notebook

from cups.core.records import VOID
from cups.datasets.stereo_folder import StereoFolder, write_sample
from cups.evaluation.class_names import store_classes
from cups.labels.fixed import FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.street.scenes import street_clip
from cups.workbench.segments import segment_at

FRAMES, DAMAGED = 3, 1
NOTEBOOK = "label-fixer.ipynb"
SOURCE = """
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import PseudoLabelStore
from cups.workbench.label_fixer import LabelFixer

fixer = LabelFixer(PseudoLabelStore("fixer_labels"), StereoFolder("fixer_video"))
fixer
"""


@pytest.fixture(scope="module")
def store(lab) -> PseudoLabelStore:
    """Write a video and labels for it into JupyterLab's folder; the images of a frame are damaged afterwards."""
    made = PseudoLabelStore.create(lab.folder / "fixer_labels", {}, num_classes=40)
    for number in range(FRAMES):
        scene = street_clip((7, number), 1, 192, 384)[0]
        name = write_sample(lab.folder / "fixer_video", scene.sample, number)
        made.write(name, scene.sample.truth)
    made.finish()
    names = StereoFolder(lab.folder / "fixer_video").names
    assert made.names == names
    image = lab.folder / "fixer_video" / "left" / f"{names[DAMAGED]}.png"
    image.write_bytes(image.read_bytes()[:1000])
    return made


@pytest.fixture(scope="module")
def fixer(window, lab, store):
    """Open a notebook with the label fixer and run it."""
    write_notebook(lab.folder / NOTEBOOK, SOURCE)
    page = Page(window.new_page(), lab, NOTEBOOK)
    page.page.get_by_text("| Idle").wait_for()
    page.run_all()
    page.wait_frame(0, done=True)
    page.page.locator(".cups-label-fixer").evaluate("element => element.scrollIntoView()")
    yield page
    page.page.close()


def click(fixer: Page, x: int, y: int, add: bool = False) -> None:
    """Click the pixel (x, y) of the frame, which fills the stage."""
    box = fixer.stage.bounding_box()
    scale = min(box["width"] / 384, box["height"] / 192)
    left, top = box["width"] / 2 - 192 * scale, box["height"] / 2 - 96 * scale
    place = {"x": left + (x + 0.5) * scale, "y": top + (y + 0.5) * scale}
    fixer.stage.click(position=place, modifiers=["Shift"] if add else [])


def press(fixer: Page, name: str) -> None:
    """Press a button of the fixer; it must be usable."""
    fixer.page.locator(".cups-label-fixer").get_by_role("button", name=name).click()


def says(fixer: Page, text: str) -> None:
    """Wait until the fixer says something."""
    fixer.page.locator(".cups-label-fixer").get_by_text(re.compile(text)).first.wait_for()


def new_class(fixer: Page) -> str:
    """Return the chosen line of the list of classes; the browser has spaces there that do not break."""
    text = fixer.page.get_by_label("New class:").evaluate("e => e.selectedOptions[0].text")
    return text.replace("\N{NO-BREAK SPACE}", " ")


def middle(mask: torch.Tensor) -> tuple[int, int]:
    """Return a pixel (x, y) of a mask."""
    places = mask.nonzero()
    y, x = places[len(places) // 2].tolist()
    return x, y


def largest_objects(label, count: int) -> list[int]:
    """Return the numbers of the largest objects."""
    numbers, areas = label.instance[label.instance > 0].unique(return_counts=True)
    return numbers[areas.argsort(descending=True)][:count].tolist()


def test_it_fits_the_window_and_its_controls_do_not_overlap(fixer, artefacts):
    found = fixer.page.locator(".cups-label-fixer")
    says(fixer, "no segment selected")
    fixer.page.screenshot(path=artefacts / "label-fixer.png")
    box = found.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1280 and box["height"] <= 700
    controls = [control for control in found.locator("button, select, input").all() if control.is_visible()]
    boxes = [control.bounding_box() for control in controls]
    assert len(boxes) >= 16 and all(b["x"] + b["width"] <= 1280 for b in boxes)
    assert not overlapping(boxes)
    for control in controls:
        labelled = "e => e.ariaLabel || e.title || e.textContent.trim() || (e.labels && e.labels[0]?.textContent)"
        assert control.evaluate(labelled)


def test_segments_are_changed_by_clicks_and_saved_beside_the_label(fixer, store, artefacts):
    name = store.names[0]
    automatic, files = store.read(name), {p: p.read_bytes() for p in store.root.glob("*") if p.is_file()}
    names = store_classes(store, StereoFolder(fixer.lab.folder / "fixer_video")).names
    first, second = largest_objects(automatic, 2)
    one, two = automatic.instance == first, automatic.instance == second

    click(fixer, *middle(one))
    says(fixer, f"object {first}, .*{int(one.sum()):,} px")
    own = names[int(automatic.semantic[one][0])]
    wait_for(lambda: new_class(fixer) == own, "not the class of the selection")
    press(fixer, "Pick class")
    click(fixer, 192, 185)
    road_class = names[int(automatic.semantic[185, 192])]
    assert road_class.endswith("mostly road")
    wait_for(lambda: new_class(fixer) == road_class, "no class is picked")
    assert fixer.page.locator(".cups-swatch").is_visible()
    fixer.page.screenshot(path=artefacts / "label-fixer-selected.png")
    fixer.page.get_by_label("New class:").select_option(label=names[5])
    press(fixer, "Relabel")
    says(fixer, f"part of a class, {re.escape(names[5])}")
    fixer.page.keyboard.press("z")
    says(fixer, "automatic label")
    press(fixer, "Redo")
    says(fixer, "1 edit; not saved")
    press(fixer, "Undo")
    says(fixer, "automatic label")

    click(fixer, *middle(one))
    click(fixer, *middle(two), add=True)
    says(fixer, "2 selected")
    press(fixer, "Merge")
    says(fixer, f"object {first}, .*{int((one | two).sum()):,} px")

    says(fixer, "1 edit; not saved")
    press(fixer, "Cut along a line")
    says(fixer, "click point 1 of 2")
    x, _ = middle(one)
    click(fixer, x, 20)
    says(fixer, "click point 2 of 2")
    fixer.page.screenshot(path=artefacts / "label-fixer-line.png")
    click(fixer, x, 170)
    says(fixer, "2 edits; not saved")

    road = segment_at(automatic, 192, 185).mask
    click(fixer, 192, 185)
    says(fixer, "part of a class")
    fixer.page.keyboard.press("Delete")
    says(fixer, "3 edits; not saved")
    fixer.page.screenshot(path=artefacts / "label-fixer-edited.png")
    assert not (store.root / "fixed").exists()

    press(fixer, "Save 1 frame")
    says(fixer, "3 edits; saved in fixed/")
    label, edits = FixedLabels(store).read_fixed(name)
    assert [edit.kind for edit in edits] == ["merge", "split", "delete"]
    assert (label.semantic[road] == VOID).all() and len(label.instance[one | two].unique()) == 2
    assert len(label.semantic[one | two].unique()) == 1
    assert files == {p: p.read_bytes() for p in store.root.glob("*") if p.is_file()}


def test_edits_outlive_a_step_and_a_damaged_frame_harms_no_other(fixer, store, artefacts):
    sky = segment_at(store.read(store.names[0]), 192, 2).mask
    click(fixer, 192, 2)
    says(fixer, f"{int(sky.sum()):,} px")
    press(fixer, "Delete")
    says(fixer, "4 edits; not saved")
    fixer.page.keyboard.press("ArrowRight")
    fixer.page.locator(".cups-message").get_by_text("not readable as an image").wait_for()
    says(fixer, "no frame is open")
    fixer.page.screenshot(path=artefacts / "label-fixer-damaged.png")
    fixer.page.keyboard.press("ArrowRight")
    fixer.wait_frame(2, done=True)
    says(fixer, f"automatic label; not saved either: {store.names[0]}")
    fixer.page.locator(".cups-message").wait_for(state="hidden")
    fixer.page.get_by_label("Previous frame").click()
    fixer.page.get_by_label("Previous frame").click()
    fixer.wait_frame(0, done=True)
    says(fixer, "4 edits; not saved")
    press(fixer, "Back to the automatic label")
    says(fixer, "automatic label; not saved")
    press(fixer, "Save 1 frame")
    wait_for(lambda: not FixedLabels(store).fixed_names, "the fix is not removed")


def test_keys_count_on_the_buttons_too(fixer):
    click(fixer, 192, 185)
    press(fixer, "Delete")
    says(fixer, "1 edit; not saved|edits; not saved")
    fixer.page.keyboard.press("z")
    says(fixer, "^.?automatic label$")
    fixer.slide("Opacity of label in stack A", 0)
    fixer.slide("Opacity of contours in stack A", 0)
    wait_for(lambda: "0, 'contours': 0" in fixer.lab.ask(NOTEBOOK, "str(fixer.view.opacities['A'])"), "not told")
