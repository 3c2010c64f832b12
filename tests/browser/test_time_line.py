"""The time line of tracks in a browser: bars, playing, paths in space, and frames where an identity may change."""

import json
import re
from dataclasses import replace

import pytest
from notebook_page import Page, copy_notebook, overlapping, wait_for

from cups.core.files import write_json, write_png
from cups.core.pictures import image_rgb
from cups.labels.files import write_label
from cups.labels.store import PseudoLabelStore
from cups.labels.tracks import write_tracks
from cups.street.scenes import street_clip
from cups.workbench.track_paths import exchanged, true_tracks

NOTEBOOK = "time_line.ipynb"
FRAMES, CHANGED = 14, 8
SIZES = {"small": (1280, 800), "large": (1600, 1000)}


@pytest.fixture(scope="module")
def clip(lab):
    """Write a street as video and as a store with its true tracks, two of them exchanged in a frame; return these."""
    scenes = street_clip(4, FRAMES, 192, 384)
    store = PseudoLabelStore.create(lab.folder / "tracked", {}, 19)
    names = [f"{number:06d}" for number in range(FRAMES + 1)]
    for number, name in enumerate(names):
        for side in ("left", "right"):
            time_ = int(number == FRAMES)
            image = getattr(scenes[number - time_].sample, f"{side}_{time_}")
            write_png(lab.folder / "street" / side / f"{name}.png", image_rgb(image))
    write_json(lab.folder / "street" / "calibration.json", scenes[0].sample.calibration.to_dict())
    for name, scene in zip(names, scenes, strict=False):
        store.write(name, scene.truth.panoptic)
        write_label(lab.folder / "street" / "truth", name, scene.truth.panoptic)
    true = replace(true_tracks(scenes), frames=tuple(names[:FRAMES]))
    whole = [track.number for track in true.tracks if len(track.seen) == FRAMES]
    mixed = exchanged(true, *whole[:2], CHANGED)
    last = mixed.tracks[-1]  # one that was missed for some frames: hidden, and then carried on
    seen = [replace(each, state="carried") if each.frame < 6 else each for each in last.seen if not 2 <= each.frame < 4]
    mixed = replace(mixed, tracks=(*mixed.tracks[:-1], replace(last, seen=tuple(seen))))
    write_tracks(store.root, mixed)
    return mixed, whole[:2]


@pytest.fixture(scope="module")
def opened(window, lab, clip):
    """Open the explorer's notebook on the store, run it, and open the time line as a person does."""
    copy_notebook(lab, NOTEBOOK, labs=True, dataset="stereo_folder", data_root="street", store="tracked", stages=False)
    opened = Page(window.new_page(), lab, NOTEBOOK)
    opened.run_all()
    cell = opened.page.locator(".jp-CodeCell", has_text="TimeLine(")
    cell.scroll_into_view_if_needed()
    cell.get_by_role("button", name="Open with the stored labels").click()
    opened.page.locator(".cups-time-line .cups-view[data-done=true]").wait_for()
    yield opened
    opened.page.close()


@pytest.fixture
def found(opened):
    """Return the element of the lab, scrolled into view in the small window."""
    opened.page.set_viewport_size(dict(zip(("width", "height"), SIZES["small"], strict=True)))
    element = opened.page.locator(".cups-time-line")
    element.evaluate("element => element.scrollIntoView()")
    return element


def at_frame(found) -> str | None:
    """Return the index of the frame that is shown, if the cursor of the bars is there, too."""
    shown = found.locator(".cups-view").get_attribute("data-frame")
    return shown if found.locator(".cups-bars-over").get_attribute("data-frame") == shown else None


def click_bar(found, track: int, frame: int) -> None:
    """Click the bar of a track at a frame."""
    lane = found.locator(f".cups-bars-row[data-track='{track}'] .cups-bars-lane")
    lane.scroll_into_view_if_needed()
    box = lane.bounding_box()
    found.page.mouse.click(box["x"] + (frame + 0.5) / FRAMES * box["width"], box["y"] + box["height"] / 2)


def test_every_track_has_a_bar_with_its_gaps_and_states(found, clip):
    tracks, _ = clip
    rows = found.locator(".cups-bars-row")
    assert rows.count() == len(tracks.tracks)
    last = rows.last
    states = last.locator(".cups-bars-run").evaluate_all("runs => runs.map((run) => run.className.split('cups-bars-').at(-1))")
    assert states == ["carried", "carried", tracks.tracks[-1].seen[-1].state]
    lefts = [run.bounding_box() for run in last.locator(".cups-bars-run").all()]
    width = last.locator(".cups-bars-lane").bounding_box()["width"]
    gap = lefts[1]["x"] - lefts[0]["x"] - lefts[0]["width"]
    assert gap == pytest.approx(2 / FRAMES * width, abs=2), "hidden for two frames"
    assert re.match(r"\d+ · \d+, mostly \w+", rows.first.inner_text())


def test_a_click_on_a_bar_goes_to_its_frame_and_selects_the_object(found, clip, artefacts):
    _, (first, _) = clip
    click_bar(found, first, 5)
    wait_for(lambda: at_frame(found) == "5", "the frame is not shown")
    found.get_by_text(re.compile(f"Track {first} · .*seen in {FRAMES} of {FRAMES} frames; .* here")).wait_for()
    assert "cups-on" in found.locator(f".cups-bars-row[data-track='{first}']").get_attribute("class")
    assert found.locator(".cups-bars-row.cups-on").count() == 1
    found.page.screenshot(path=artefacts / "time_line_bar.png")


def test_a_click_on_an_object_selects_its_track(opened, found, lab, clip):
    tracks, (_, second) = clip
    click_bar(found, tracks.tracks[0].number, 1)
    wait_for(lambda: at_frame(found) == "1", "the frame is not shown")
    instance = PseudoLabelStore(lab.folder / "tracked").read(tracks.frames[1]).instance
    inside = (instance == next(i for i, t in tracks.numbers(1).items() if t == second)).nonzero()
    y, x = inside[len(inside) // 2].tolist()
    box = found.locator(".cups-stage").bounding_box()
    scale = min(box["width"] / instance.shape[1], box["height"] / instance.shape[0])
    left, top = ((box[side] - scale * size) / 2 for side, size in (("width", 384), ("height", 192)))
    found.page.mouse.click(box["x"] + left + scale * (x + 0.5), box["y"] + top + scale * (y + 0.5))
    found.get_by_text(re.compile(f"Track {second} · ")).wait_for()
    wait_for(lambda: found.locator(f".cups-bars-row.cups-on[data-track='{second}']").count(), "its bar is not selected")


def test_the_frame_where_two_tracks_were_exchanged_is_on_top_and_a_click_goes_there(found, clip, artefacts):
    _, pair = clip
    lines = found.locator("select[size] option")
    top = lines.all_inner_texts()[:2]
    assert {int(re.search(r"frame\s+(\d+)", line).group(1)) for line in top} == {CHANGED + 1}
    assert {int(re.search(r"track\s(\d+):", line).group(1)) for line in top} == set(pair)
    for start in (1, 0):  # also when it was chosen before
        click_bar(found, pair[0], start)
        wait_for(lambda start=start: at_frame(found) == str(start), "where it starts is not shown")
        wait_for(lambda: found.locator("select[size]").evaluate("e => e.selectedIndex") == -1, "still chosen")
        found.locator("select[size]").select_option(index=1)
        wait_for(lambda: at_frame(found) == str(CHANGED), "the frame is not shown")
        found.page.screenshot(path=artefacts / "time_line_doubt.png")


def test_playing_moves_cursor_and_paths_and_stops_at_the_end(opened, found, lab, clip):
    tracks, _ = clip
    click_bar(found, tracks.tracks[0].number, 3)
    wait_for(lambda: at_frame(found) == "3", "the frame is not shown")
    found.get_by_label("Play", exact=True).click()
    found.get_by_label("Pause", exact=True).click()
    paused = int(found.locator(".cups-view").get_attribute("data-frame"))
    assert paused < FRAMES - 1
    found.get_by_label("Play", exact=True).click()
    wait_for(lambda: at_frame(found) == str(FRAMES - 1), "the clip is not played to its end")
    found.get_by_label("Play", exact=True).wait_for()


def test_a_frame_that_was_seen_comes_at_once(found, clip, artefacts):
    tracks, _ = clip
    row = found.locator(f".cups-bars-row[data-track='{tracks.tracks[0].number}'] .cups-bars-lane")
    row.scroll_into_view_if_needed()
    seconds = found.evaluate(
        """async (lab, [track, frames, shown]) => {
          const view = lab.querySelector('.cups-view');
          const lane = lab.querySelector(`.cups-bars-row[data-track='${track}'] .cups-bars-lane`);
          const seconds = [];
          for (const frame of shown) {
            const box = lane.getBoundingClientRect();
            const start = performance.now();
            const x = box.left + ((frame + 0.5) / frames) * box.width;
            lane.dispatchEvent(new PointerEvent('pointerdown', {bubbles: true, button: 0, clientX: x, clientY: box.top + 5}));
            while (view.dataset.frame !== String(frame)) await new Promise(requestAnimationFrame);
            seconds.push((performance.now() - start) / 1000);
            await new Promise((done) => setTimeout(done, 300));
          }
          return seconds;
        }""",
        [tracks.tracks[0].number, FRAMES, [9, 10, 11, 9, 10, 11, 9, 10, 11]],
    )
    (artefacts / "time_line_seconds.json").write_text(json.dumps([round(value, 3) for value in seconds]))
    assert sorted(seconds[3:])[len(seconds[3:]) // 2] < 0.5, seconds  # 0.1 s on an idle machine


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_window_and_takes_the_theme(opened, found, clip, size, theme, artefacts):
    page, (width, height) = opened.page, SIZES[size]
    opened.theme(theme)
    page.set_viewport_size({"width": width, "height": height})
    click_bar(found, clip[1][0], 6)
    wait_for(lambda: at_frame(found) == "6", "the frame is not shown")
    found.evaluate("element => element.scrollIntoView()")
    page.wait_for_timeout(1500)
    page.screenshot(path=artefacts / f"time_line_{size}_{theme}.png")
    box = found.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 0.8 * width
    assert box["height"] <= height - 100
    plot = found.locator(".js-plotly-plot").bounding_box()
    assert found.locator(".main-svg").first.bounding_box()["width"] > 0.97 * plot["width"]
    controls = found.locator("button, select, input").all()
    boxes = [control.bounding_box() for control in controls if control.is_visible() and "cups-bars" not in (control.get_attribute("class") or "")]
    assert len(boxes) >= 5 and not overlapping(boxes)


def test_a_store_without_tracks_says_how_to_get_them(opened, lab, clip):
    (lab.folder / "tracked" / "tracks").rename(lab.folder / "tracked" / "aside")
    try:
        cell = opened.page.locator(".jp-CodeCell", has_text="TimeLine(")
        cell.get_by_role("button", name="Open with the stored labels").click()
        cell.get_by_text(re.compile("tracked: no tracks; `cups pseudo-labels --tracks`")).wait_for()
    finally:
        (lab.folder / "tracked" / "aside").rename(lab.folder / "tracked" / "tracks")
