"""The labs of the workbench: what they draw, what they compute again, what they keep."""

import json
import re
import threading
from dataclasses import replace
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
import torch
from fixing import in_object, write_fixable
from PIL import Image

from cups.core.class_colours import named_classes
from cups.core.errors import InputError
from cups.core.files import write_json
from cups.core.pictures import image_rgb
from cups.core.records import VOID, PanopticLabel
from cups.core.rigid import invert
from cups.core.settings import load_settings, setting, with_setting
from cups.core.splits import SplitChoice
from cups.datasets.labelled_images import LabelledImages
from cups.datasets.stereo_folder import StereoFolder, write_sample
from cups.evaluation.panoptic import score_store
from cups.evaluation.truth import TruthFolder
from cups.labels.files import write_label
from cups.labels.fixed import Edit, FixedLabels
from cups.labels.store import CHOICE_FILE, PseudoLabelStore
from cups.run.runs import RunFolder
from cups.stages import pipeline
from cups.stages.labels.pseudo_classes import fit_pseudo_classes
from cups.stages.pipeline import PseudoLabelSettings, Stage, analyse, describe
from cups.stages.semantics.depthg import unit_clusters
from cups.street.scenes import street_scene
from cups.workbench import (
    label_edits,
    label_fixer,
    motion_lab,
    run_browser,
    run_frames,
    run_records,
    sources,
    stage_cache,
    thing_stuff_lab,
    threshold_lab,
)
from cups.workbench.explorer import source_classes
from cups.workbench.rules import RULES
from cups.workbench.seen_labels import SeenLabels
from cups.workbench.view.frame_view import FrameView
from cups.workbench.waiting import Watch

SETTINGS = PseudoLabelSettings(num_classes=6, num_object_classes=0)
ALL_STAGES = tuple(stage.name for stage in pipeline.STAGES)
WITHOUT_UNIT = ("steps", "updates", "points", "distance", "colour", "confidence")


@pytest.fixture(scope="module")
def street():
    """Return a sample, classes fitted to it, and what the stages make of it."""
    sample = street_scene(7).sample
    classes = fit_pseudo_classes(describe(sample, SETTINGS), SETTINGS.num_classes, 0)
    return sample, classes, analyse(sample, classes, SETTINGS)


@pytest.fixture
def calls(monkeypatch):
    """Return the list of stages that are computed, as they are computed."""
    made, real = [], Stage.__call__

    def counted(stage, records, settings):
        made.append(stage.name)
        return real(stage, records, settings)

    monkeypatch.setattr(Stage, "__call__", counted)
    return made


# The stages


def test_a_new_stage_is_run_by_all_who_run_the_method(street, monkeypatch):
    sample, classes, _ = street
    blank = Stage("blank", ("semantic",), "blank", (), lambda settings, semantic: torch.zeros_like(semantic))
    *before, fusion, movable, last = pipeline.STAGES
    longer = (*before, blank, replace(fusion, needs=("blank", "proposals")), movable, last)
    monkeypatch.setattr(pipeline, "STAGES", longer)
    names = []
    cache = threshold_lab.StageCache(sample, classes)
    _, in_lab = threshold_lab.recompute(cache, SETTINGS, lambda name, place: names.append(name))
    assert names == [stage.name for stage in longer]
    source = sources.StreetSource(drives=1, frames=1, height=96, width=192, class_frames=1, settings=SETTINGS)
    *_, explored = source.load(0)
    for label in (in_lab.label, explored.label, analyse(sample, classes, SETTINGS).label):
        assert not label.semantic.any()


# The motion lab


def test_motion_figure_is_in_metres_and_of_equal_aspect(street):
    analysis = street[2]
    figure = motion_lab.motion_figure(analysis, fps=10, points=2000)
    cloud, highlighted, shafts, tips, here, there = figure.data
    assert len(cloud.x) <= 2000 and len(highlighted.x) == 0 and len(tips.x) == len(analysis.proposals.motions) > 0
    assert figure.layout.scene.aspectmode == "data"
    assert [figure.layout.scene[f"{a}axis"].title.text for a in "xyz"] == ["right, m", "ahead, m", "up, m"]
    assert cloud.marker.colorbar.title.text == "own motion, m/s"
    eye = invert(analysis.proposals.camera_motion)[:3, 3]
    assert [here.x[0], here.y[0], here.z[0]] == [0, 0, 0]
    assert np.allclose([there.x[0], there.y[0], there.z[0]], [eye[0], eye[2], -eye[1]], atol=1e-6)
    assert np.linalg.norm(motion_lab.object_arrows(analysis)[1], axis=1).max() > 0.1  # metres in a tenth of a second
    assert np.isnan(shafts.x).sum() == len(tips.x)


def test_points_are_where_pixels_see_them(street):
    analysis = street[2]
    pixels = motion_lab.cloud_pixels(analysis, trusted=True, count=500)
    assert len(pixels) == 500 and analysis.flow.trusted.reshape(-1)[pixels].all()
    assert (analysis.proposals.instance.reshape(-1)[pixels] > 0).sum() == 250
    figure = motion_lab.motion_figure(analysis, points=500)
    x, y, z = analysis.flow.points_0.reshape(-1, 3)[pixels].T
    for drawn, expected in zip((figure.data[0].x, figure.data[0].y, figure.data[0].z), (x, z, -y), strict=True):
        assert np.allclose(drawn, expected)


def test_every_dropped_proposal_has_a_row_and_is_highlighted(street):
    analysis = street[2]
    lab, dropped = motion_lab.MotionLab(analysis, points=1000), analysis.proposals.diagnostics["dropped"]
    assert len(lab.dropped.options) == len(dropped) + 1
    rule, least = RULES["confidence"], SETTINGS.motion.min_confidence
    row, region = next(r for r in lab.dropped.options if rule.fault in r[0])
    assert re.search(rf"{rule.fault}: .+ \(0\.\d\d, not {rule.number(least)}\)$", row)
    before = lab.picture.value
    lab.dropped.value = region
    assert len(lab.figure.data[1].x) == next(d["region_px"] for d in dropped if d["region"] == region)
    assert lab.picture.value != before
    lab.colouring.value = "residual"
    assert lab.figure.data[0].marker.colorbar.title.text == "residual, px"
    lab.colouring.value = "trust"
    assert set(np.unique(lab.figure.data[0].marker.color)) == {0.0, 1.0}
    assert len(lab.figure.data[1].x)


def test_motion_lab_of_a_frame_in_which_nothing_moves():
    sample = street_scene(8, height=96, width=192, static=True).sample
    settings = PseudoLabelSettings(num_classes=6, num_object_classes=0)
    analysis = analyse(sample, fit_pseudo_classes(describe(sample, settings), 6, 0), settings)
    still = analysis.replace(proposals=analysis.proposals.replace(
        instance=torch.zeros_like(analysis.semantic), motions=torch.zeros(0, 4, 4), diagnostics={"why_empty": "calm"},
        regions=None,
    ))  # fmt: skip
    lab = motion_lab.MotionLab(still)
    assert len(lab.figure.data[3].x) == 0 and "calm" in lab.children[2].children[0].children[0].value


# The threshold lab


@pytest.mark.parametrize(
    ("name", "value", "computed"),
    [
        ("thing_threshold", 0.1, ("object classes",)),
        ("crf.steps", 3, ("classes", "CRF", "fusion", "object classes")),
        ("num_classes", 9, ("classes", "CRF", "fusion", "movable", "object classes")),
        ("motion.min_confidence", 0.2, ("motion", "fusion", "object classes")),
        ("scene_flow.max_depth_m", 40.0, ("scene flow", "motion", "fusion", "object classes")),
        ("classical.speckle_px", 0, ALL_STAGES),
    ],
)
def test_only_the_stage_that_changed_and_those_after_it_are_computed(street, calls, name, value, computed):
    sample, classes, analysis = street
    cache, first = threshold_lab.recompute(threshold_lab.StageCache(sample, classes), SETTINGS)
    assert tuple(calls) == ALL_STAGES and torch.equal(first.label.stacked(), analysis.label.stacked())
    calls.clear()
    changed = with_setting(SETTINGS, name, value)
    cache, second = threshold_lab.recompute(cache, changed)
    assert tuple(calls) == computed
    calls.clear()
    threshold_lab.recompute(threshold_lab.recompute(cache, SETTINGS)[0], changed)
    assert calls == []
    if name == "classical.speckle_px":
        assert torch.equal(second.label.stacked(), analyse(sample, classes, changed).label.stacked())


def test_a_class_of_objects_under_the_threshold_is_stuff_for_the_explorer_as_for_the_store(tmp_path):
    splits = {}
    for threshold in (0.0, 0.99):
        settings = PseudoLabelSettings(num_classes=6, num_object_classes=2, thing_threshold=threshold)
        source = sources.StreetSource(drives=1, frames=2, height=96, width=192, class_frames=2, settings=settings)
        store = SeenLabels(source, tmp_path / str(threshold)).update(0, Watch())
        splits[threshold] = store.split.things
        assert source.things == store.split.things == stage_cache.split_of(source.classes, settings).things
        assert [name.endswith("(thing)") for name in source_classes(source).names] == [
            k in store.split.things for k in range(store.num_classes)
        ]
    assert len(splits[0.0]) > len(splits[0.99])


def test_a_newer_request_stops_an_older_one_and_nothing_stale_is_shown(street, monkeypatch):
    sample, classes, _ = street
    cache, _ = threshold_lab.recompute(threshold_lab.StageCache(sample, classes), SETTINGS)
    inside, go_on, computed, shown, faults = threading.Event(), threading.Event(), [], [], []

    def slow(x, flow, settings, seed):
        computed.append(settings.min_confidence)
        inside.set()
        assert go_on.wait(30)
        return real(x, flow, settings, seed=seed)

    real = pipeline.propose
    monkeypatch.setattr(pipeline, "propose", slow)
    work = threshold_lab.Recomputer(cache, lambda s, a, t: shown.append((s, a)), lambda *_: None, faults.append)
    for confidence in (0.1, 0.2, 0.3, 0.4):
        work.request(with_setting(SETTINGS, "motion.min_confidence", confidence))
        assert inside.wait(30)
    assert computed == [0.1] and not shown
    go_on.set()
    assert work.wait(60)
    assert computed == [0.1, 0.4] and [s.motion.min_confidence for s, _ in shown] == [0.4] and not faults
    inside.clear(), go_on.clear()
    work.request(with_setting(SETTINGS, "motion.min_confidence", 0.5))
    assert inside.wait(30)
    work.stop()
    go_on.set()
    assert work.wait(60) and len(shown) == 1


def test_a_stage_that_fails_gives_one_line_and_the_next_request_works(street, monkeypatch):
    sample, classes, _ = street
    lab = threshold_lab.ThresholdLab(sample, classes, SETTINGS)
    assert lab.wait(120) and lab.after is lab.before
    lab.sliders["classical.block_px"].value = 4
    assert "block_px must be odd" in lab.status.value and "\n" not in lab.status.value
    real = pipeline.dense_crf
    monkeypatch.setattr(pipeline, "dense_crf", lambda *_: (_ for _ in ()).throw(InputError("out of\npaint")))
    lab.sliders["crf.steps"].value = 2
    assert lab.wait(60) and lab.status.value == "<b>out of paint</b>" and lab.after[0] == SETTINGS
    monkeypatch.setattr(pipeline, "dense_crf", real)
    lab.sliders["crf.steps"].value = 3
    assert lab.wait(60) and lab.after[0].crf.steps == 3 and "computed in" in lab.status.value


def test_a_lab_without_a_result_shows_the_image(street, monkeypatch):
    sample, classes, _ = street
    monkeypatch.setattr(pipeline, "dense_crf", lambda *_: (_ for _ in ()).throw(InputError("out of paint")))
    lab = threshold_lab.ThresholdLab(sample, classes, SETTINGS)
    assert lab.wait(120) and lab.after is None
    for shown in (lab.before_picture, lab.after_picture):
        assert np.array_equal(np.asarray(Image.open(BytesIO(shown.value)).convert("RGB")), image_rgb(sample.left_0))


def test_a_moved_slider_shows_before_and_after_and_gives_yaml(street, tmp_path):
    sample, classes, _ = street
    lab = threshold_lab.ThresholdLab(sample, classes, SETTINGS)
    assert lab.wait(120)
    first = lab.after_picture.value
    lab.sliders["motion.min_confidence"].value = 0.0
    assert lab.wait(60)
    assert lab.before_picture.value == first != lab.after_picture.value
    assert "motion.min_confidence = 0" in lab.after_title.value and "as at the start" in lab.before_title.value
    assert "PQ, %" in lab.table.value and "proposals.objects" in lab.table.value
    lab.path.value = str(tmp_path / "settings.yaml")
    lab.save_button.click()
    assert load_settings(PseudoLabelSettings, tmp_path / "settings.yaml") == lab.settings == lab.after[0]
    lab.path.value = "/dev/null/settings.yaml"
    lab.save_button.click()
    assert "cannot be written" in lab.saved.value
    lab.pin_button.click()
    assert lab.table.value == "<i>no number differs</i>"
    lab.reset_button.click()
    assert lab.wait(60) and lab.settings == SETTINGS and lab.after_picture.value == first
    assert lab.sliders["motion.min_confidence"].value == SETTINGS.motion.min_confidence


def test_another_number_of_classes_joins_the_centres_that_are_there(street, calls, tmp_path):
    sample, classes, _ = street
    lab = threshold_lab.ThresholdLab(sample, classes, PseudoLabelSettings(num_object_classes=0))
    assert lab.wait(120) and lab.settings == SETTINGS  # the number of classes is that of the data set's
    lab.shown.value = "classes"
    slider, before = lab.sliders["num_classes"], lab.after_picture.value
    assert slider.min <= 5 < 12 < slider.max and slider.value == 6 and "of 6 classes occur" in lab.after_legend.value
    calls.clear()
    slider.value = 12
    assert lab.wait(60) and calls == ["classes", "CRF", "fusion", "movable", "object classes"]
    settings, analysis = lab.after
    expected = analyse(sample, classes.regrouped(12), settings)
    assert torch.equal(analysis.label.stacked(), expected.label.stacked()) and analysis.scores is None
    assert "classes" not in lab.recomputer.cache.results  # scores take more memory than all that is kept
    assert lab.before_picture.value == before != lab.after_picture.value
    assert "num_classes = 12" in lab.after_title.value and "of 12 classes occur" in lab.after_legend.value
    assert load_settings(PseudoLabelSettings, lab.save(tmp_path / "settings.yaml")).num_classes == 12
    lab.shown.value = "disparity"
    assert lab.after_legend.value == ""
    lab.reset_button.click()
    assert lab.wait(60) and slider.value == 6 and lab.settings == SETTINGS


def test_joined_classes_keep_the_colour_of_the_largest_and_their_share(street):
    classes = street[1]
    fine = classes.regrouped(len(classes.pixels.centres))
    named, fewer = named_classes(fine.num_classes), classes.regrouped(9)
    colours = named.colours
    for number, colour in enumerate(threshold_lab.regrouped_classes(named, fine, fewer).colours):
        members = (fewer.pixels.classes == number).nonzero()[:, 0]
        largest = members[classes.counts[members, 0].argmax()]
        assert (colour == colours[fine.pixels.classes[largest]]).all()
    ratio = [classes.counts[fewer.pixels.classes == k].sum(0).double() for k in range(9)]
    ratio = torch.stack([inside / pixels for pixels, inside in ratio])
    torch.testing.assert_close(fewer.share.double(), ratio / ratio.sum())


def test_classes_that_came_with_the_features_have_no_slider(street):
    given = street[1].replace(pixels=unit_clusters(6))
    assert "classes" not in threshold_lab.controls(SETTINGS, given)
    with pytest.raises(InputError, match="the number of classes of pixels, 6, came with the features"):
        threshold_lab.grouped(given, with_setting(SETTINGS, "num_classes", 3))


@pytest.mark.parametrize("matching", ["classical", "smurf"])
def test_every_slider_begins_at_its_setting_and_has_a_unit(matching):
    settings = PseudoLabelSettings(matcher=matching)
    bounds = {rule.setting for rule in RULES.values()}  # drop_advice names the slider of each
    groups = threshold_lab.controls(settings)
    assert bounds <= {control.name for control in groups["motion"]}
    for group in groups.values():
        assert group and sum(control.name not in bounds for control in group) <= 5
        for control in group:
            assert threshold_lab.slider(control, settings).value == setting(settings, control.name)
            assert control.low <= setting(settings, control.name) <= control.high
            assert "," in control.label or control.label.split()[-1] in WITHOUT_UNIT


# Things and stuff


@pytest.fixture
def store(tmp_path):
    """Return a finished store of three frames: class 3 always lies inside objects, class 2 half of the time."""
    made = PseudoLabelStore.create(tmp_path / "labels", {"seed": 0}, num_classes=5)
    for number in range(3):
        semantic = torch.arange(4).repeat_interleave(16).expand(32, 64).clone()
        instance = (semantic == 3).long()
        instance[:16][semantic[:16] == 2] = 2
        made.write(f"clip_{number}", PanopticLabel(semantic, instance))
    made.finish(0.08)
    return PseudoLabelStore(made.root)


def test_a_choice_is_kept_beside_the_manifest_and_the_jobs_take_it(store, tmp_path):
    manifest = (store.root / "manifest.json").read_bytes()
    for number in range(3):
        truth = PanopticLabel(torch.arange(4).repeat_interleave(16).expand(32, 64) + 10, torch.zeros(32, 64).long())
        write_label(tmp_path / "truth", f"clip_{number}", truth)
    truth = TruthFolder(tmp_path / "truth")
    before = score_store(store.root, truth)
    store.choose(SplitChoice(things=(0,), stuff=(2, 3)))
    assert (store.root / "manifest.json").read_bytes() == manifest and not list(store.root.glob(".writing-*"))
    again = PseudoLabelStore(store.root)
    assert again.split.things == (0,) and again.split.stuff == (1, 2, 3, 4) and again.measured_split.things == (2, 3)
    assert again.names == store.names and torch.equal(again.split.share, again.measured_split.share)
    assert score_store(store.root, truth)["pq_stuff"] != before["pq_stuff"]
    assert again.finish(0.08).things == (0,)
    (store.root / CHOICE_FILE).write_text('{"things": [9]}')
    with pytest.raises(InputError, match=f"{CHOICE_FILE}: class 9 is chosen, but there are only 5 classes"):
        score_store(store.root, truth)


def test_bars_line_and_number_are_one(store):
    lab = thing_stuff_lab.ThingStuffLab(store)
    bars = lab.figure.data[0]
    assert bars.x == ("3", "2", "0", "1", "4") and bars.y[0] == pytest.approx(2 / 3) and lab.split.things == (2, 3)
    lab.figure.plotly_relayout({"shapes[0].y0": 0.5, "shapes[0].y1": 0.5, "shapes[0].x0": 0.1})
    assert lab.threshold.value == lab.threshold_slider.value == 0.5 and lab.split.things == (3,)
    assert lab.figure.layout.shapes[0].x0 == 0 and lab.figure.data[0].text[:2] == ("thing", "stuff")
    lab.figure.plotly_relayout({"shapes[0].y0": 0.4, "shapes[0].y1": 0.6})
    assert lab.figure.layout.shapes[0].y0 == lab.figure.layout.shapes[0].y1 == 0.5
    lab.threshold.value = 0.2
    assert lab.figure.layout.shapes[0].y1 == 0.2 and lab.split.things == (2, 3)
    lab.sorting.value = "number of the class"
    assert lab.figure.data[0].x == ("0", "1", "2", "3", "4")
    assert not (store.root / CHOICE_FILE).exists()


def test_a_class_is_decided_by_hand_and_saved(store):
    lab = thing_stuff_lab.ThingStuffLab(store)
    lab.show_class(2)
    shown = lab.examples.value
    lab.kind.value = "stuff"
    assert lab.split.things == (3,) and "not saved" in lab.status.value
    assert lab.figure.data[0].text[1] == "stuff (by hand)" and lab.figure.data[0].marker.pattern.shape[1] == "/"
    lab.show_class(0)
    assert lab.kind.value is None and lab.examples.value != shown
    lab.kind.value = "thing"
    lab.save_button.click()
    assert json.loads((store.root / CHOICE_FILE).read_text()) == {"threshold": None, "things": [0], "stuff": [2]}
    again = thing_stuff_lab.ThingStuffLab(PseudoLabelStore(store.root))
    assert again.split.things == (0, 3) and "as the jobs will see it" in again.status.value
    again.show_class(2)
    assert again.kind.value == "stuff"
    again.show_class(4)  # occurs nowhere
    assert "0 pixels in 0 frames" in again.about.value


def test_examples_show_the_largest_object_first(store):
    label = store.read("clip_0")
    assert thing_stuff_lab.class_window(label, 3) == (slice(0, 32), slice(40, 64))
    assert thing_stuff_lab.class_window(label, 2) == (slice(0, 24), slice(24, 56))
    image = torch.full((3, 32, 64), 90, dtype=torch.uint8)
    example = thing_stuff_lab.class_example(label, 0, image, side_px=64)
    assert example.shape == (64, 64, 3) and {30, 90} <= set(np.unique(example))


# Runs


@pytest.fixture
def runs(tmp_path):
    """Return a folder of two runs with notebooks beside them, and four folders that cannot be used."""
    for number, (name, steps) in enumerate({"long": 300, "short": 100}.items()):
        accuracy = {f"clip_{n}": 0.9 - 0.2 * ((n + number) % 3) for n in range(4)}
        RunFolder(tmp_path / name).record(
            validation=[{"step": s, "pq": s / 1000} for s in range(100, steps + 1, 100)], stage2={"pq": steps / 1000},
            seconds=steps, frame_accuracy=accuracy, environment={"git": "0123456789ab"},
        )  # fmt: skip
        source = "steps = 250  # training steps\nheight, width = 192, 384\nseed = 0\nfolder = str(1)"
        cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [source]}
        about = {"input_path": "nbs/train.ipynb", "parameters": {"steps": steps, "run_dir": f"out/{name}"},
                 "start_time": f"2026-01-0{number + 1}T10:00:00.1"}  # fmt: skip
        write_json(tmp_path / f"{name}.ipynb", {"cells": [cell], "metadata": {"papermill": about}})
    damaged = {"cut": "{", "list": "[1]", "odd": '{"validation": "none"}', "share": '{"frame_agreement": [1]}'}
    for name, text in damaged.items():
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "metrics.json").write_text(text)
    return tmp_path


def test_runs_are_found_with_their_parameters(runs):
    (runs / "long" / "scenes").mkdir()
    (runs / "long" / "scenes" / "calibration.json").write_text("{}")
    (runs / "long" / "scenes" / "metrics.json").write_text("not reached below a video: " + "x")
    found = {run.name: run for run in run_records.find_runs(runs)}
    run = found["short"]
    assert run.parameters == {"steps": 100, "height": 192, "width": 384, "seed": 0, "run_dir": "out/short"}
    row = run_records.run_row(run)
    assert row["job"] == "train" and row["PQ, %"] == "network 10.0" and row["minutes"] == "1.7"
    assert row["commit"] == "0123456789ab" and row["started"] == "2026-01-02 10:00"
    assert "bad/list" in found and found["bad/list"].fault.endswith("metrics.json: expected names and numbers")
    assert found["bad/odd"].fault.endswith("validation is no list of steps")
    assert found["bad/share"].fault.endswith("frame_agreement holds no numbers by frame")
    by_pq = run_records.sorted_runs(list(found.values()), "PQ")
    assert [r.name for r in by_pq[:2]] == ["long", "short"]


def test_frames_of_two_runs_are_compared_worst_first(runs):
    found = {run.name: run for run in run_records.find_runs(runs)}
    rows = run_frames.compared_frames(found["long"], found["short"])
    worst = [min(a, b) for _, a, b in rows]
    assert len(rows) == 4 and worst == sorted(worst) and rows[0][0] == "clip_1"
    with pytest.raises(InputError, match=r"no frame_accuracy; the jobs .* write it"):
        run_frames.compared_frames(found["long"], found["bad/odd"])


def test_frames_of_one_run_are_listed_worst_first(runs):
    browser = run_browser.RunBrowser(runs)
    browser.table.value = ["long"]
    accuracy = browser.chosen[0].metrics["frame_accuracy"]
    names = [name for _, name in browser.frames.options if name]
    assert len(names) == len(accuracy) > 1 and names == sorted(accuracy, key=lambda n: (accuracy[n], n))
    assert "change" not in browser.frame_status.value
    browser.table.value = []
    assert "select one run" in browser.frame_status.value and not browser.frames.options


def test_the_browser_says_in_a_line_what_it_cannot_use(runs, tmp_path):
    assert "no such folder" in run_browser.RunBrowser(tmp_path / "none").status.value
    (tmp_path / "empty").mkdir()
    assert "holds no run" in run_browser.RunBrowser(tmp_path / "empty").status.value
    browser = run_browser.RunBrowser(runs)
    browser.table.value = ["long", "short"]
    assert [line.name for line in browser.figure.data] == ["long", "short"]
    assert browser.figure.data[0].y == (10, 20, 30) and "<th>long</th><th>short</th>" in browser.parameters.value
    browser.frames.value = "clip_2"
    assert "give the browser their data set" in browser.frame_status.value
    browser.table.value = ["bad/cut", "long"]
    assert "no frame_accuracy" in browser.frame_status.value and len(browser.figure.data) == 1


def test_frames_are_shown_from_stores_and_video(runs, tmp_path):
    scene = street_scene(3, 64, 96)
    name = write_sample(tmp_path / "video", scene.sample, 0)
    for run in ("long", "short"):
        made = PseudoLabelStore.create(runs / run / "test_labels", {}, num_classes=19)
        made.write(name, scene.sample.truth)
        RunFolder(runs / run).record(frame_accuracy={name: 0.5})
    browser = run_browser.RunBrowser(runs, StereoFolder(tmp_path / "video"))
    browser.table.value = ["long", "short"]
    browser.frames.value = name
    assert [file[:4] for file in browser.pictures.files] == 4 * [b"\x89PNG"]
    both = browser.pictures.captions
    browser.table.value = ["long"]
    assert not browser.pictures.files
    browser.frames.value = name
    assert len(browser.pictures.files) == 3 and browser.pictures.captions != both


def test_curves_come_from_tensorboard_too(runs):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(runs / "long" / "tensorboard")) as writer:
        for step in (10, 20):
            writer.add_scalar("loss/total", 1 / step, step)
    run = next(r for r in run_records.find_runs(runs) if r.name == "long")
    curves = run_records.run_curves(run)
    assert [step for step, _ in curves["loss/total"]] == [10, 20] and len(curves) == 2
    assert run_records.curves_figure({"long": curves}, "loss/total").layout.yaxis.type == "log"


# Fixing labels


@pytest.fixture
def small_label():
    """Return a label of two parts of class 0, an object of class 1 in two pieces, and one of class 2."""
    semantic = torch.tensor([[0, 1, 0, 1, 2]] * 4)
    return PanopticLabel(semantic, torch.tensor([[0, 4, 0, 4, 7]] * 4))


@pytest.fixture
def fixable(tmp_path):
    return write_fixable(tmp_path)


def test_segments_are_relabelled_deleted_merged_and_split(small_label):
    masks = label_edits.selected_masks(small_label, [(0, 0), (2, 3), (1, 0), (3, 1), (4, 0)])
    left, right, broken, whole = masks
    assert [int(mask.sum()) for mask in masks] == [4, 4, 8, 4] and not (left & right).any()
    thing = label_edits.relabel(small_label, left, 2, to_thing=True)
    assert thing.semantic[0].tolist() == [2, 1, 0, 1, 2] and thing.instance[0].tolist() == [8, 4, 0, 4, 7]
    assert label_edits.relabel(small_label, whole, 1, to_thing=True).instance[0].tolist() == [0, 4, 0, 4, 7]
    stuff = label_edits.relabel(small_label, broken, 0, to_thing=False)
    assert stuff.semantic[0].tolist() == [0, 0, 0, 0, 2] and stuff.instance[0].tolist() == [0, 0, 0, 0, 7]
    gone = label_edits.delete(small_label, whole)
    assert gone.semantic[0].tolist() == [0, 1, 0, 1, VOID] and gone.instance[0].tolist() == [0, 4, 0, 4, 0]
    merged = label_edits.merge(small_label, [whole, right, broken])
    assert merged.semantic[0].tolist() == [0, 2, 2, 2, 2] and merged.instance[0].tolist() == [0, 7, 7, 7, 7]
    pieces = label_edits.split(small_label, broken)
    assert len(pieces.instance.unique()) == 4 and torch.equal(pieces.semantic, small_label.semantic)
    halves = label_edits.split(small_label, left, (0, 1, 5, 1))
    assert halves.instance[:, 0].tolist() in ([8, 8, 0, 0], [0, 0, 8, 8])
    assert small_label.instance[0].tolist() == [0, 4, 0, 4, 7], "the label itself stays"


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (Edit("merge", ((1, 0), (3, 1))), "two segments or more"),
        (Edit("split", ((4, 0),)), "in one piece"),
        (Edit("split", ((4, 0),), line=(0, 0, 0, 1)), "does not cross"),
        (Edit("relabel", ((4, 0),), 2, True), "changes nothing"),
        (Edit("delete", ((5, 0),)), r"pixel \(5, 0\) is outside of the label, 5 x 4"),
    ],
)
def test_an_edit_that_is_not_possible_says_why(small_label, edit, fault):
    with pytest.raises(InputError, match=fault):
        label_edits.apply_edit(small_label, edit)


def test_fixes_lie_beside_the_labels_and_can_be_undone_after_they_are_saved(fixable):
    store, video = fixable
    files = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    fixer = label_fixer.LabelFixer(store, video)
    fixer.show(0)
    automatic, place = fixer.label, in_object(fixer.label)
    fixer.click(*place)
    fixer.relabel(0)
    once = fixer.label
    fixer.delete()
    twice = fixer.label
    fixer.undo()
    assert torch.equal(fixer.label.stacked(), once.stacked())
    fixer.redo()
    assert torch.equal(fixer.label.stacked(), twice.stacked()) and not fixer.labels.fixed_names
    fixer.show(2)
    assert fixer.unsaved == store.names[:1] and store.names[0] in fixer.status.value
    fixer.buttons["save"].click()
    assert not fixer.unsaved and fixer.buttons["save"].disabled
    assert all(path.read_bytes() == before for path, before in files.items())
    fixed = FixedLabels(PseudoLabelStore(store.root))
    assert fixed.fixed_names == store.names[:1] and fixed.names == store.names
    assert torch.equal(fixed.read(store.names[0]).stacked(), twice.stacked())
    assert [edit.kind for edit in fixed.read_fixed(store.names[0])[1]] == ["relabel", "delete"]
    images = LabelledImages(video, fixed)
    assert torch.equal(images[0][1].stacked(), twice.stacked()) and torch.equal(images[1][1].stacked(), store.read(
        store.names[1]).stacked())  # fmt: skip

    again = label_fixer.LabelFixer(store, video)
    again.show(0)
    again.undo()
    assert torch.equal(again.label.stacked(), once.stacked()) and again.unsaved
    again.restore()
    assert torch.equal(again.label.stacked(), automatic.stacked())
    again.save()
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == files


def test_a_fixer_says_what_it_cannot_use_and_goes_on(fixable, tmp_path):
    store, video = fixable
    names = store.names
    fixer = label_fixer.LabelFixer(store, video)
    for index in (0, 1):
        fixer.show(index)
        fixer.click(*in_object(fixer.label))
        fixer.delete()
    fixer.save()
    (store.root / "fixed" / f"{names[0]}_semantic.png").write_bytes(b"not an image")
    edits = store.root / "fixed" / f"{names[1]}.json"
    edits.write_text(edits.read_text().replace("delete", "split"))
    again = label_fixer.LabelFixer(store, video)
    sent = []
    again.view.send = lambda content, buffers=(): sent.append(content)
    for index, fault in enumerate((f"{names[0]}_semantic.png: not readable", "do not lead from the automatic label")):
        again._serve({"index": index, "view": "a", "number": index})
        assert sent[-1]["kind"] == "error" and fault in sent[-1]["text"]
    again._serve({"index": 2, "view": "a", "number": 3})
    assert sent[-1]["kind"] == "frame" and again.buttons["delete"].disabled
    with pytest.raises(InputError, match="fixed"):
        again.show(0)
    again.buttons["restore"].click()
    assert FixedLabels(store).fixed_names == names[1:2] and torch.equal(again.label.stacked(), store.read(
        names[0]).stacked())  # fmt: skip

    small = street_scene(0, 32, 64).sample
    write_sample(tmp_path / "small", small, 0)
    other = label_fixer.LabelFixer(store, StereoFolder(tmp_path / "small"))
    with pytest.raises(InputError, match=r"differ in size \(128 x 64 and 64 x 32\)"):
        other.show(0)
    empty = PseudoLabelStore.create(tmp_path / "empty", {}, num_classes=3)
    assert "not finished" in label_fixer.LabelFixer(empty, video).view.message


def test_a_failed_write_leaves_the_earlier_fix(fixable, monkeypatch):
    fixed = FixedLabels(fixable[0])
    name, label = fixed.names[0], fixed.read(fixed.names[0])
    changed = label_edits.apply_edit(label, edit := Edit("delete", (in_object(label),)))
    fixed.write_fixed(name, changed, [edit])
    files = {path: path.read_bytes() for path in fixed.folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cups.labels.fixed.write_json", full)
    with pytest.raises(InputError, match=f"{name}.json: cannot be written .No space left"):
        fixed.write_fixed(name, label, [])
    assert {path: path.read_bytes() for path in fixed.folder.iterdir()} == files


# The files of the browser


def test_the_style_sheet_parses_and_styles_elements_that_exist():
    tinycss2 = pytest.importorskip("tinycss2")
    folder = files("cups.workbench.view")
    rules = tinycss2.parse_stylesheet(folder.joinpath("frame_view.css").read_text(encoding="utf-8"), True, True)
    assert len(rules) > 40 and all(rule.type == "qualified-rule" for rule in rules)
    for rule in rules:
        declarations = tinycss2.parse_blocks_contents(rule.content, True, True)
        assert declarations and all(declaration.type == "declaration" for declaration in declarations)
    styled = {name for rule in rules for name in re.findall(r"\.(cups-[\w-]+)", tinycss2.serialize(rule.prelude))}
    script = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name.endswith(".js"))
    assert styled <= set(re.findall(r"cups-[\w-]+", script))


def test_no_name_of_the_joined_script_is_defined_twice():
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", FrameView._esm, re.M)
    assert len(names) == len(set(names)) > 15 and not re.search(r"^import\b", FrameView._esm, re.M)
