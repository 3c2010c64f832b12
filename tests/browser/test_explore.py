"""The explorer in a browser: what people do with it, and what they see when something is wrong."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from notebook_page import PATIENCE_S, Page, copy_notebook, overlapping, wait_for

from cups.datasets.stereo_folder import write_sample
from cups.labels.store import PseudoLabelStore
from cups.street.scenes import street_clip

SIZE = (96, 192)
FRAMES = 6
DAMAGED = 4
LISTEN = """(element) => {
  element.told = [element.textContent];
  const keep = (changes) => changes.forEach((c) => c.addedNodes.forEach((n) => element.told.push(n.textContent)));
  new MutationObserver(keep).observe(element, {childList: true});
}"""  # every text of an element, however briefly it is shown

SIDES = (("left", "right"), ("right", "left"))


@pytest.fixture(scope="module")
def told() -> list[str]:
    """Return what the page of street scenes said while it computed its first frame."""
    return []


@pytest.fixture(scope="module")
def street(window, lab, told):
    """Open the notebook as it is and run it; return the page and the seconds to the first frame."""
    copy_notebook(lab, "explore.ipynb", labs=True, out="explored", runs="none")
    page = Page(window.new_page(), lab, "explore.ipynb")
    start = time.monotonic()
    page.run_all()
    page.wait_frame(0)
    seconds = time.monotonic() - start
    status = page.view.locator(".cups-status")
    status.evaluate(LISTEN)
    wait_for(lambda: page.view.get_attribute("data-done") == "true", "the frame is not done", 3 * PATIENCE_S)
    told.extend(status.evaluate("(element) => element.told"))
    yield page, seconds
    page.page.close()


@pytest.fixture(scope="module")
def video(window, lab, tmp_path_factory):
    """Open the notebook on a clip of stereo video with truth, one frame of it cut short; no stage runs."""
    folder = tmp_path_factory.mktemp("video")
    for number, scene in enumerate(street_clip((5,), FRAMES, *SIZE)):
        name = write_sample(folder, scene.sample, number)
    assert name == f"{FRAMES - 1:06d}_0"
    damaged = folder / "left" / f"{DAMAGED:06d}_0.png"
    damaged.write_bytes(damaged.read_bytes()[:500])
    copy_notebook(lab, "video.ipynb", dataset="stereo_folder", data_root=str(folder), stages=False,
                  networks="street_scenes")  # fmt: skip
    page = Page(window.new_page(), lab, "video.ipynb")
    page.run_all()
    page.wait_frame(0, done=True)
    yield page
    page.page.close()


def test_first_frame(street, artefacts):
    page, seconds = street
    page.show()
    page.page.screenshot(path=artefacts / "first_frame.png")
    (artefacts / "first_frame.json").write_text(json.dumps({"seconds": round(seconds, 1)}))
    assert seconds < PATIENCE_S
    assert "points are trusted" in page.view.locator(".cups-report").inner_text()


def test_the_page_reads_plotly_before_a_lab_is_opened(street):
    page, _ = street
    wait_for(lambda: page.page.evaluate("Object.keys(globalThis.cupsPlotly ?? {}).length") == 1, "plotly is not read")
    assert not page.page.locator(".cups-plot").count()


LABS = {"motion-lab": "MotionLab(", "threshold-lab": "ThresholdLab(", "thing-stuff-lab": "ThingStuffLab(",
        "label-fixer": "LabelFixer(",
        "segment-filter": "SegmentFilter(", "run-browser": "RunBrowser("}  # fmt: skip
"""By the class of their element: a call in the cell that opens them."""


def opener(page: Page, name: str):
    """Return the button below the cell that opens a lab."""
    return page.page.locator(".jp-CodeCell", has_text=LABS[name]).locator(".cups-opener")


def test_all_labs_open_below_on_what_is_computed(street, lab, artefacts):
    page, _ = street
    seconds = {}
    for name in LABS:
        opener(page, name).scroll_into_view_if_needed()
        start = time.monotonic()
        opener(page, name).get_by_role("button").first.click()
        found = page.page.locator(f".cups-{name}")
        found.wait_for()
        if name == "threshold-lab":
            found.get_by_text("computed in").wait_for()
        seconds[name] = round(time.monotonic() - start, 2)
        found.scroll_into_view_if_needed()
        page.page.wait_for_timeout(1000)
        page.page.screenshot(path=artefacts / f"explore_{name}.png")
    found.get_by_text("no such folder").wait_for()
    memory = memory_of_kernel(lab.kernel_of("explore.ipynb")["id"])
    (artefacts / "memory_mb.json").write_text(json.dumps(memory))
    (artefacts / "labs_seconds.json").write_text(json.dumps(seconds))
    # Its own memory: pages of libraries' files are shared, and how many count depends on what the system has cached.
    assert memory["RssAnon"] < 900, "far above what was measured: see memory_mb.json"
    assert lab.ask("explore.ipynb", "seen.update().names == [explorer.source.names[0]]") == "True"
    assert not (lab.folder / "scenes").exists(), "the labs look at the frames above"
    page.show()


def test_a_lab_says_what_it_waits_for_and_can_be_stopped(street, lab, artefacts):
    page, _ = street
    more = page.page.locator(".cups-opener", has_text="more frames")
    more.scroll_into_view_if_needed()
    more.get_by_role("button", name="Label 6 more frames").click()
    more.get_by_text(re.compile(r"of frame 2 of 6, step \d\d of \d\d, about \d+ (s|min) left")).wait_for()
    page.page.screenshot(path=artefacts / "labs_waiting.png")
    more.get_by_role("button", name="Stop").click()
    more.get_by_text("stopped; what was computed is kept").wait_for()
    labelled = int(lab.ask("explore.ipynb", "len(seen.update().names)"))
    assert 2 <= labelled < 7
    opener(page, "thing-stuff-lab").get_by_role("button").first.click()
    page.page.locator(".cups-thing-stuff-lab .barlayer .point").first.wait_for()
    page.show()


def memory_of_kernel(kernel: str) -> dict[str, int]:
    """Return the resident memory in MB of the process whose command line names a kernel, and its private part."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"kernel-{kernel}" in (process / "cmdline").read_text():
                values = dict(re.findall(r"(VmRSS|RssAnon):\s+(\d+)", (process / "status").read_text()))
                return {name: int(value) // 1000 for name, value in values.items()}
        except OSError:
            continue
    return {}


def test_what_is_wrong_with_the_video_stands_above_the_picture(window, lab, tmp_path, artefacts):
    for number, scene in enumerate(street_clip(0, 4, 192, 384)):
        sample = scene.sample
        exchanged = {f"{side}_{t}": getattr(sample, f"{other}_{t}") for t in (0, 1) for side, other in SIDES}
        write_sample(tmp_path / "video", replace(sample, **exchanged, truth=None), number)
    copy_notebook(lab, "exchanged.ipynb", dataset="stereo_folder", data_root=str(tmp_path / "video"), stages=False)
    page = Page(window.new_page(), lab, "exchanged.ipynb")
    page.run_all()
    page.wait_frame(0)
    page.view.locator(".cups-notice").get_by_text("left and right look exchanged").wait_for()
    page.page.screenshot(path=artefacts / "notice.png")
    page.page.close()


def test_controls_do_not_overlap(street, artefacts):
    page, _ = street
    page.slide("Frame", 0)
    for mode in ("one", "side", "swipe"):
        page.view.get_by_label("Comparison").select_option(mode)
        controls = page.view.locator(".cups-bar > *, .cups-layers input, .cups-layers button, .cups-stage").all()
        boxes = [control.bounding_box() for control in controls if control.is_visible()]
        assert len(boxes) > 30
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 1280 for box in boxes)
        assert not overlapping(boxes)
        page.show()
        page.page.screenshot(path=artefacts / f"mode_{mode}.png")
    page.view.get_by_label("Comparison").select_option("one")


def test_every_control_has_a_label(street):
    page, _ = street
    for control in page.view.locator("input, button, select").all():
        assert control.get_attribute("aria-label")


def test_hover_reads_all_values(street):
    page, _ = street
    text = page.hover(0.5, 0.85)
    for part in (r"x 1\d\d, y 1\d\d", r"\d+, mostly road", r"depth [\d.]+ m|depth unknown",
                 r"flow \(-?[\d.]+, -?[\d.]+\) px", r"scores \d+, \w+ \w+ [01]\.\d\d", r"truth road"):  # fmt: skip
        assert re.search(part, text), text
    assert page.hover(0.5, 0.05) != text


def test_click_fills_the_panel(street, artefacts):
    page, _ = street
    found = find_object(page)
    assert found, "no moving object in the first frames"
    page.page.mouse.down()
    page.page.mouse.up()
    panel = page.view.locator(".cups-panel")
    panel.get_by_text("confidence").wait_for()
    text = panel.inner_text()
    for part in (r"object \d+", r"area\s+[\d,]+ px", r"surface\s+[\d.,]+ m²", r"speed\s+[\d.]+ m/s", r"turned\s+[\d.]+°",
                 r"direction\s+\w+", r"agreement\s+\d+% of [\d,]+ points"):  # fmt: skip
        assert re.search(part, text), text
    page.page.screenshot(path=artefacts / "segment.png")
    beside, picture = panel.bounding_box(), page.stage.bounding_box()
    assert beside["x"] >= picture["x"] + picture["width"] and beside["y"] <= picture["y"] + 5
    assert beside["y"] + beside["height"] <= 800, "below the fold"


def find_object(page: Page) -> str | None:
    """Point at a moving object in one of the first frames, and return what the view says of it."""
    for frame in range(3):
        page.slide("Frame", frame)
        page.wait_frame(frame, done=True)
        for row in range(12, 19):
            for column in range(1, 30):
                text = page.hover(column / 30, row / 20)
                if re.search(r"· object \d+", text):
                    return text
    return None


def test_report_lists_the_objects_and_says_what_each_rule_means(street):
    page, _ = street
    report = page.view.locator(".cups-report")
    objects, dropped = report.locator("table").nth(0), report.locator("table").nth(1)
    assert "confidence" in objects.inner_text() and re.search(r"slider\s", dropped.inner_text())
    assert re.search(r"because[\s\S]+it \w+|few points", dropped.inner_text())
    (trusted,) = [line for line in report.inner_text().splitlines() if "points are trusted" in line]
    assert sum(map(int, re.findall(r"(\d+)%", trusted))) == 100


def test_waiting_is_told_by_stage_with_the_time_left(street, told):
    assert any(re.fullmatch(r"CRF, step \d+ of \d+, about \d+ (s|min) left", text) for text in told), set(told)
    steps = [tuple(map(int, found.groups())) for text in told if (found := re.search(r"step (\d+) of (\d+)", text))]
    assert steps == sorted(steps) and len({total for _, total in steps}) == 1


def only(page: Page, layer: str, name: str):
    """Return the button of a class in the legend of a layer."""
    return page.view.get_by_label(re.compile(f"^Show only .*{name}.* of {layer}$")).first


def test_a_click_on_the_legend_isolates_a_class(street, artefacts):
    page, _ = street
    page.slide("Frame", 0)
    page.wait_frame(0, done=True)
    assert only(page, "pseudo-label", "void").is_visible()
    page.stage.click(position={"x": 5, "y": 5})
    page.view.get_by_text("part of a class").wait_for()  # the segment is marked in the picture
    page.page.keyboard.press("1")
    places = [(x / 24, y / 16) for x in range(1, 24) for y in range(1, 16)]
    image = [page.pixel(*place) for place in places]
    page.page.keyboard.press("8")
    wait_for(lambda: [page.pixel(*p) for p in places] != image, "no label")
    label = [page.pixel(*place) for place in places]
    only(page, "pseudo-label", "mostly road").click()
    wait_for(lambda: [page.pixel(*p) for p in places] != label, "no class is isolated")
    alone = [page.pixel(*place) for place in places]
    page.page.screenshot(path=artefacts / "isolated.png")
    neither = [p for p, a, i, b in zip(places, alone, image, label, strict=True) if a not in (i, b)]
    assert len(neither) < 0.05 * len(places), "only where a border is smoothed it is neither the image nor the label"
    assert (
        0
        < sum(a != i for a, i in zip(alone, image, strict=True))
        < sum(b != i for b, i in zip(label, image, strict=True))
    )
    only(page, "pseudo-label", "mostly road").click()
    wait_for(lambda: [page.pixel(*p) for p in places] == label, "the others do not come back")


def test_a_wide_window_and_a_full_screen_are_filled(street, artefacts):
    page, _ = street
    page.page.set_viewport_size({"width": 1600, "height": 1000})
    wait_for(lambda: page.view.bounding_box()["width"] > 1300, "the view does not grow")
    wait_for(lambda: page.stage.bounding_box()["height"] > 460, "the picture does not grow")
    page.show()
    page.page.screenshot(path=artefacts / "wide.png")
    page.view.get_by_label("Full screen").click()
    wait_for(lambda: page.view.bounding_box()["width"] == 1600, "no full screen")
    page.page.screenshot(path=artefacts / "full_screen.png")
    page.view.get_by_label("Leave full screen").click()
    page.page.set_viewport_size({"width": 1280, "height": 800})
    wait_for(lambda: page.view.bounding_box()["width"] < 1280, "still a full screen")


def test_a_frame_name_is_cut_where_names_are_alike(street):
    page, _ = street
    page.page.set_viewport_size({"width": 640, "height": 800})
    name = page.view.locator(".cups-frame-name")

    def edges() -> list[float]:
        return name.evaluate(
            """e => [e.lastChild, e.querySelector('bdi')].flatMap(
                 (part) => [part.getBoundingClientRect().left, part.getBoundingClientRect().right])"""
        )

    wait_for(lambda: edges()[2] < edges()[0] - 5, "the name fits")
    assert abs(edges()[3] - edges()[1]) < 2, "its end is cut"
    page.page.set_viewport_size({"width": 1280, "height": 800})


def test_the_dark_theme_is_dark(street, artefacts):
    page, _ = street
    page.theme("Dark")
    for width, height in ((1280, 800), (1600, 1000)):
        page.page.set_viewport_size({"width": width, "height": height})
        page.page.wait_for_timeout(300)
        page.show()
        page.page.screenshot(path=artefacts / f"dark_{width}.png")
    colours = "e => [getComputedStyle(e).color, getComputedStyle(e.querySelector('.cups-bar button')).backgroundColor]"
    text, control = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in page.view.evaluate(colours))
    assert text > 150 and control < 100
    page.theme("Light")
    page.page.set_viewport_size({"width": 1280, "height": 800})


def test_slider_and_keys_step_frames(video):
    video.slide("Frame", 2)
    video.wait_frame(2, done=True)
    video.stage.click(position={"x": 20, "y": 20})
    video.page.keyboard.press("ArrowRight")
    video.wait_frame(3, done=True)
    video.page.keyboard.press("ArrowLeft")
    video.page.keyboard.press("ArrowLeft")
    video.wait_frame(1, done=True)
    assert video.value("Frame") == 1
    assert "000001_0" in video.view.locator(".cups-frame-name").inner_text()


def test_a_fast_drag_ends_on_the_last_frame(video):
    for index in (0, 3, 1, 5, 2, 0, 3):
        video.slide("Frame", index)
    video.wait_frame(3, done=True)
    shown = video.pixel(0.5, 0.8)
    time.sleep(1.5)
    assert video.view.get_attribute("data-frame") == "3" and video.pixel(0.5, 0.8) == shown


def test_stepping_never_shows_an_empty_picture(video):
    video.slide("Frame", 0)
    video.wait_frame(0, done=True)
    video.page.evaluate(
        """() => {
          const canvas = document.querySelector('.cups-stage canvas');
          window.empty = 0; window.watched = 0; window.watching = true;
          const look = () => {
            const p = canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data;
            window.watched += 1; if (!p[3]) window.empty += 1;
            if (window.watching) requestAnimationFrame(look);
          };
          look();
        }"""
    )
    video.stage.click(position={"x": 20, "y": 20})
    for index in (1, 2, 3):
        video.page.keyboard.press("ArrowRight")
        video.wait_frame(index, done=True)
    empty, watched = video.page.evaluate("() => { window.watching = false; return [window.empty, window.watched]; }")
    assert empty == 0 and watched > 3


def test_number_keys_choose_layers(video):
    video.slide("Frame", 0)
    video.wait_frame(0, done=True)
    video.stage.click(position={"x": 20, "y": 20})
    before = video.pixel(0.5, 0.9)
    video.page.keyboard.press("9")
    video.page.wait_for_function("() => document.querySelector('.cups-legends').innerText.includes('road')")
    assert video.value("Opacity of ground truth in stack A") == 0.75
    assert video.pixel(0.5, 0.9) != before
    video.page.keyboard.press("1")
    assert video.value("Opacity of ground truth in stack A") == 0


def test_a_network_and_its_difference_from_the_truth_are_layers(video, artefacts):
    video.slide("Frame", 1)
    video.wait_frame(1, done=True)
    video.view.get_by_label("Show network", exact=True).click()
    legends = video.view.locator(".cups-legends")
    legends.get_by_text(re.compile(r"\d+, (mostly|partly) road")).first.wait_for()
    assert "self-trained" not in video.view.locator(".cups-layers").inner_text(), "only what is there"
    assert re.search(r"network \d+, (mostly|partly) \w+", read := video.hover(0.5, 0.9)), read
    video.page.screenshot(path=artefacts / "network.png")
    video.view.get_by_label("Show network, difference").click()
    legends.get_by_text("as in the truth").wait_for()
    video.page.screenshot(path=artefacts / "network_difference.png")
    video.view.get_by_label("Show left image").click()


def test_opacity_changes_the_picture_and_the_kernel_knows(video, lab):
    video.slide("Opacity of ground truth in stack A", 0)
    video.slide("Opacity of left image in stack A", 1)
    image = video.pixel(0.5, 0.9)
    video.slide("Opacity of ground truth in stack A", 1)
    wait_for(lambda: video.pixel(0.5, 0.9) != image, "the picture stays")
    red, green, blue, _ = video.pixel(0.5, 0.9)
    assert abs(red - 128) < 4 and abs(green - 64) < 4 and abs(blue - 128) < 4, "the colour of roads"
    video.slide("Opacity of ground truth in stack A", 0.5)
    mixed = [(a + b) / 2 for a, b in zip(image, (128, 64, 128, 255), strict=True)]
    assert all(abs(a - b) < 4 for a, b in zip(video.pixel(0.5, 0.9), mixed, strict=True))
    assert lab.ask("video.ipynb", "explorer.view.opacities['A']['truth']") == "0.5"
    video.slide("Opacity of ground truth in stack A", 0)


def test_swipe_bar_can_be_dragged(video, artefacts):
    video.view.get_by_label("Comparison").select_option("swipe")
    video.slide("Opacity of ground truth in stack B", 1)
    video.show()
    box = video.stage.bounding_box()
    wait_for(lambda: abs(video.pixel(0.75, 0.9)[0] - 128) < 4, "stack B is on the right")
    left = video.pixel(0.35, 0.9)
    bar = video.view.get_by_label("Swipe bar").bounding_box()
    video.page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + 20)
    video.page.mouse.down()
    video.page.mouse.move(box["x"] + 0.2 * box["width"], bar["y"] + 20, steps=4)
    video.page.mouse.up()
    assert video.pixel(0.35, 0.9) != left and abs(video.pixel(0.35, 0.9)[0] - 128) < 4
    assert abs(int(video.view.get_by_label("Swipe bar").get_attribute("aria-valuenow")) - 20) <= 2
    video.page.screenshot(path=artefacts / "swipe.png")
    video.view.get_by_label("Comparison").select_option("one")


def test_zoom_and_pan_move_the_pixel_under_the_pointer(video):
    def place() -> tuple[int, int]:
        return tuple(map(int, re.search(r"x (\d+), y (\d+)", video.hover(0.25, 0.25)).groups()))

    video.stage.click(position={"x": 20, "y": 20})
    far = place()
    video.page.keyboard.press("+")
    video.page.keyboard.press("+")
    near = place()
    assert near[0] > far[0] and near[1] > far[1]
    video.page.mouse.down()
    video.page.mouse.move(*(c + 40 for c in centre(video)), steps=3)
    video.page.mouse.up()
    assert place() != near
    video.view.get_by_label("Show the whole frame").click()
    assert place() == far


def centre(page: Page) -> tuple[float, float]:
    box = page.stage.bounding_box()
    return box["x"] + box["width"] / 4, box["y"] + box["height"] / 4


def test_play_goes_on_to_the_end_past_a_damaged_frame(video):
    video.slide("Frame", 2)
    video.wait_frame(2, done=True)
    video.view.get_by_label("Play", exact=True).click()
    video.wait_frame(FRAMES - 1, done=True)
    video.view.get_by_label("Play", exact=True).wait_for()


def test_damaged_frame_shows_its_message(video, artefacts):
    video.slide("Frame", DAMAGED)
    message = video.view.locator(".cups-message")
    message.get_by_text("not readable as an image").wait_for()
    assert f"{DAMAGED:06d}_0.png" in message.inner_text() and "\n" not in message.inner_text()
    video.show()
    video.page.screenshot(path=artefacts / "damaged.png")
    video.slide("Frame", DAMAGED + 1)
    video.wait_frame(DAMAGED + 1, done=True)
    message.wait_for(state="hidden")
    video.view.locator(".cups-strip").get_by_text("damaged").wait_for()


def test_thumbnails_choose_frames(video):
    video.view.locator(".cups-strip img").first.wait_for()
    video.view.get_by_label("Frame 2: 000001_0").click()
    video.wait_frame(1, done=True)


def test_bad_folder_and_empty_store_say_so(window, lab, tmp_path):
    store = PseudoLabelStore.create(tmp_path / "store", {}, 5).root
    for scene in street_clip((5,), 1, *SIZE):
        write_sample(tmp_path / "video", scene.sample, 0)
    wrong = {"no such folder": {"data_root": str(tmp_path / "none")},
             "holds no label": {"data_root": str(tmp_path / "video"), "store": str(store)}}  # fmt: skip
    for number, (words, parameters) in enumerate(wrong.items()):
        copy_notebook(lab, f"wrong_{number}.ipynb", dataset="stereo_folder", **parameters)
        page = Page(window.new_page(), lab, f"wrong_{number}.ipynb")
        page.run_all()
        page.view.locator(".cups-message").get_by_text(words).wait_for()
        page.page.close()


def test_restarted_kernel_is_reported_and_running_again_helps(video, artefacts):
    video.restart_kernel()
    video.slide("Frame", 0)
    video.view.locator(".cups-message").get_by_text("No answer from the kernel").wait_for()
    video.show()
    video.page.screenshot(path=artefacts / "restarted.png")
    video.run_all()
    video.view.locator(".cups-message").wait_for(state="hidden")
    video.wait_frame(0, done=True)
    video.slide("Frame", 2)
    video.wait_frame(2, done=True)
