"""The label fixer's brush, eraser and carrying of edits to neighbouring frames, by drags and buttons in a browser."""

import re

import pytest
import torch
from notebook_page import Page, overlapping, wait_for, write_notebook

from cups.core.records import VOID
from cups.evaluation.class_names import store_classes
from cups.labels.fixed import FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.workbench.label_drafts import saved_draft
from cups.workbench.sources import StreetSource

FRAMES, SEED, WIDTH, HEIGHT = 4, 7, 384, 192
NOTEBOOK = "label-fixer-brush.ipynb"
SOURCE = f"""
from cups.labels.store import PseudoLabelStore
from cups.workbench.label_fixer import LabelFixer
from cups.workbench.sources import StreetSource

video = StreetSource(drives=1, frames={FRAMES}, seed={SEED}, stages=False)
fixer = LabelFixer(PseudoLabelStore("brush_labels"), video)
fixer
"""


@pytest.fixture(scope="module")
def store(lab) -> PseudoLabelStore:
    """Write the true labels of a drive into JupyterLab's folder."""
    video = StreetSource(drives=1, frames=FRAMES, seed=SEED, stages=False)
    made = PseudoLabelStore.create(lab.folder / "brush_labels", {}, num_classes=40)
    for number, name in enumerate(video.names):
        made.write(name, video.scene(number).sample.truth)
    made.finish()
    return made


@pytest.fixture(scope="module")
def fixer(window, lab, store):
    """Open a notebook with the label fixer and run it."""
    write_notebook(lab.folder / NOTEBOOK, SOURCE)
    page = Page(window.new_page(), lab, NOTEBOOK)
    page.run_all()
    page.wait_frame(0, done=True)
    page.page.locator(".cups-label-fixer").evaluate("element => element.scrollIntoView()")
    yield page
    page.page.close()


def place(fixer: Page, x: float, y: float) -> tuple[float, float]:
    """Return where the pixel (x, y) of the frame, which fills the stage, is in the window."""
    box = fixer.stage.bounding_box()
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    left, top = box["width"] / 2 - WIDTH / 2 * scale, box["height"] / 2 - HEIGHT / 2 * scale
    return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale


def class_names(store: PseudoLabelStore) -> tuple[str, ...]:
    """Return the names of the classes, from the ground truth of the drive."""
    return store_classes(store, StreetSource(drives=1, frames=FRAMES, seed=SEED, stages=False)).names


def drag(fixer: Page, *pixels: tuple[int, int], release: bool = True) -> None:
    """Drag the pointer from pixel to pixel (x, y)."""
    mouse = fixer.page.mouse
    mouse.move(*place(fixer, *pixels[0]))
    mouse.down()
    for x, y in pixels[1:]:
        mouse.move(*place(fixer, x, y), steps=6)
    if release:
        mouse.up()


def click(fixer: Page, x: int, y: int, *held: str) -> None:
    """Click the pixel (x, y) of the frame, with keys held."""
    box, (left, top) = fixer.stage.bounding_box(), place(fixer, x, y)
    fixer.stage.click(position={"x": left - box["x"], "y": top - box["y"]}, modifiers=list(held))


def press(fixer: Page, name: str) -> None:
    """Press a button of the fixer; it must be usable."""
    fixer.page.locator(".cups-label-fixer").get_by_role("button", name=name).click()


def says(fixer: Page, text: str) -> None:
    """Wait until the fixer says something."""
    fixer.page.locator(".cups-label-fixer").get_by_text(re.compile(text)).first.wait_for()


def inner(mask: torch.Tensor) -> tuple[int, int]:
    """Return a pixel (x, y) of a mask."""
    places = mask.nonzero()
    y, x = places[len(places) // 2].tolist()
    return x, y


def test_its_controls_have_room_in_both_themes(fixer, artefacts):
    found = fixer.page.locator(".cups-label-fixer")
    for theme in ("Dark", "Light"):
        fixer.theme(theme)
        fixer.page.locator("#jupyterlab-splash").wait_for(state="detached")
        fixer.page.screenshot(path=artefacts / f"label-fixer-brush-{theme.lower()}.png")
        controls = [control for control in found.locator("button, select, input").all() if control.is_visible()]
        boxes = [control.bounding_box() for control in controls]
        assert len(boxes) >= 22 and all(box["x"] + box["width"] <= 1280 for box in boxes)
        assert not overlapping(boxes)


def test_a_drag_paints_onto_the_segment_that_was_clicked_and_the_eraser_takes_away(fixer, store, artefacts):
    label = store.read(store.names[0])
    number = int(label.instance[label.instance > 0].mode().values)
    x, y = inner(label.instance == number)
    click(fixer, x, y)
    own = int(label.semantic[y, x])
    says(fixer, f"object {number}, {re.escape(class_names(store)[own])}")
    press(fixer, "Brush")
    says(fixer, f"paints onto object {number} of class {own}")
    before = fixer.pixel(100 / WIDTH, 60 / HEIGHT)
    drag(fixer, (60, 30), (100, 60), (140, 30), release=False)
    fixer.page.screenshot(path=artefacts / "label-fixer-stroke.png")
    during = fixer.pixel(100 / WIDTH, 60 / HEIGHT)
    fixer.page.mouse.up()
    says(fixer, "1 edit; not saved")
    grown = int(fixer.lab.ask(NOTEBOOK, f"int((fixer.label.instance == {number}).sum())"))
    assert grown > int((label.instance == number).sum()) + 1000
    assert fixer.lab.ask(NOTEBOOK, "int(fixer.label.instance[60, 100])") == str(number)
    assert max(abs(a - b) for a, b in zip(during, before, strict=True)) > 15, "the stroke is not seen while it is drawn"

    fixer.page.keyboard.press("e")
    says(fixer, "what the eraser covers becomes void")
    drag(fixer, (60, 30), (80, 45))
    says(fixer, "2 edits; not saved")
    assert fixer.lab.ask(NOTEBOOK, "int(fixer.label.semantic[30, 60])") == str(VOID)
    fixer.page.screenshot(path=artefacts / "label-fixer-painted.png")
    fixer.page.keyboard.press("z")
    says(fixer, "1 edit; not saved")
    assert fixer.lab.ask(NOTEBOOK, "int(fixer.label.instance[30, 60])") == str(number)


def test_a_click_with_alt_takes_the_class_and_strokes_of_another_class_make_one_new_object(fixer, store):
    label = store.read(store.names[0])
    fixer.page.keyboard.press("b")
    click(fixer, 192, 185, "Alt")
    road = int(label.semantic[185, 192])
    says(fixer, f"paints onto the selected part of class {road}")
    thing = store.split.things[-1]
    fixer.page.get_by_label("New class:").select_option(label=class_names(store)[thing])
    says(fixer, f"paints a new object of class {thing}")
    drag(fixer, (200, 20), (230, 20))
    says(fixer, f"paints onto object .* of class {thing}")
    drag(fixer, (230, 20), (230, 50))
    says(fixer, "3 edits; not saved")
    assert fixer.lab.ask(NOTEBOOK, "fixer.label.instance[20, 200] == fixer.label.instance[50, 230] > 0") == "tensor(True)"
    fixer.page.keyboard.press("]")
    wait_for(lambda: fixer.lab.ask(NOTEBOOK, "fixer.view.brush['radius']") == "9", "the brush does not grow")
    press(fixer, "Save 1 frame")
    says(fixer, "3 edits; saved in fixed/")
    _, edits = FixedLabels(store).read_fixed(store.names[0])
    assert [edit.kind for edit in edits] == ["paint"] * 3 and edits[1].onto is None and edits[2].onto is not None
    assert saved_draft(FixedLabels(store), store.names[0], label).edits == edits, "painted again, the label is the same"
    fixer.page.keyboard.press("Escape")
    says(fixer, "no segment selected")


def test_an_edit_is_carried_to_the_next_frames_says_where_it_ends_and_is_undone(fixer, store, artefacts):
    label = store.read(store.names[0])
    number = int(label.instance[label.instance > 0].mode().values)
    click(fixer, *inner(label.instance == number))
    fixer.page.get_by_label("New class:").select_option(label=class_names(store)[39])
    press(fixer, "Relabel")
    says(fixer, "4 edits; not saved")
    press(fixer, "Carry to next frames")
    says(fixer, "optical flow to .*, step")
    says(fixer, r"carried to 3 of 5 frames \(agreement [01]\.\d\d to [01]\.\d\d\)")
    says(fixer, "ended at the last frame")
    fixer.page.screenshot(path=artefacts / "label-fixer-carried.png")
    press(fixer, "Save 4 frames")
    says(fixer, "4 edits; saved in fixed/")
    labels = FixedLabels(store)
    for name in store.names[1:]:
        fixed, edits = labels.read_fixed(name)
        changed = fixed.semantic != store.read(name).semantic
        assert edits[-1].origin == store.names[0] and (fixed.semantic[changed] == 39).all()
        assert ((store.read(name).instance == number) == changed).all()
    press(fixer, "Take carried edits back")
    says(fixer, "undone")
    press(fixer, "Save 3 frames")
    wait_for(lambda: labels.fixed_names == store.names[:1], "what was carried is not undone")
