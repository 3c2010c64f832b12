"""What the widgets of the workbench show is what is there: beside a thread, after a change on disk, after a fault."""

import threading
import time

import numpy as np
import pytest
import torch
from fixing import in_object, write_fixable

import cups.workbench.label_fixer as label_fixer
import cups.workbench.run_frames as run_frames
import cups.workbench.sources as sources
from cups.core.errors import InputError
from cups.core.records import PanopticLabel
from cups.core.taxonomy import CITYSCAPES_19, CITYSCAPES_27
from cups.labels.fixed import FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.labels.tracks import write_tracks
from cups.stages.pipeline import PseudoLabelSettings
from cups.workbench.explorer import FrameExplorer
from cups.workbench.label_fixer import LabelFixer
from cups.workbench.motion_lab import MotionLab
from cups.workbench.run_records import Run
from cups.workbench.segment_filter import SegmentFilter
from cups.workbench.showing import Opener
from cups.workbench.sources import DatasetSource, StreetSource
from cups.workbench.thing_stuff_lab import ThingStuffLab
from cups.workbench.time_line import TimeLine
from cups.workbench.track_paths import true_tracks


@pytest.fixture
def fixable(tmp_path):
    return write_fixable(tmp_path)


def test_edits_made_while_another_widget_is_made_are_kept(fixable):
    may_go_on = threading.Event()
    may_go_on.set()

    def make(watch):
        may_go_on.wait()
        return LabelFixer(*fixable)

    opener = Opener(make, "Open")
    opener.press()
    opener.wait()
    fixer = opener.children[1]
    may_go_on.clear()
    opener.press()
    fixer.show(0)
    fixer.click(*in_object(fixer.label))
    fixer.delete()
    may_go_on.set()
    opener.wait()
    assert opener.children[1] is fixer and fixer.unsaved == [fixer.opened.name]
    assert "edits of 1 frame are not saved" in opener.status.value


def test_edits_are_not_saved_on_a_label_that_was_imported_meanwhile(fixable):
    store, video = fixable
    fixer, name = LabelFixer(store, video), store.names[0]
    fixer.show(0)
    fixer.click(*in_object(fixer.label))
    fixer.relabel(11)
    imported = store.read(name)
    FixedLabels(store).write_imported(name, imported.replace(instance=torch.zeros_like(imported.instance)))
    with pytest.raises(InputError, match="was saved or imported by another one since it was read"):
        fixer.save()
    assert fixer.unsaved == [name] and not FixedLabels(store).read(name).instance.any()


def test_the_thread_that_carries_edits_and_the_person_have_one_draft(fixable, monkeypatch):
    fixer = LabelFixer(*fixable)
    fixer._flows = type("Flows", (), {"between": lambda *_: None})()
    entered, may_go_on, saved_draft = threading.Event(), threading.Event(), label_fixer.saved_draft

    def slow(*arguments):
        draft = saved_draft(*arguments)
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            may_go_on.wait()
        return draft

    monkeypatch.setattr(label_fixer, "saved_draft", slow)
    fixer.show(0)
    fixer.click(*in_object(fixer.label))
    fixer.delete()
    fixer.carry(1, 1)
    entered.wait()
    fixer.show(1)
    may_go_on.set()
    fixer.wait()
    fixer.click(*in_object(fixer.label))
    fixer.delete()
    assert fixer.opened.name in fixer.unsaved
    fixer.save()
    assert [edit.kind for edit in fixer.labels.read_fixed(fixer.opened.name)[1]] == ["delete"]


def test_every_run_is_judged_in_its_own_classes(monkeypatch):
    sky, car = (CITYSCAPES_27.names.index(name) for name in ("sky", "car"))
    semantic = torch.full((4, 8), sky)
    semantic[2:] = car
    truth = PanopticLabel(semantic, torch.zeros_like(semantic))
    right = PanopticLabel((semantic == car).long(), torch.zeros_like(semantic))

    class Video:
        names, taxonomy = ["f"], CITYSCAPES_27

        def left(self, _):
            return torch.full((3, 4, 8), 100, dtype=torch.uint8)

        def truth(self, _):
            return truth

    def run(taxonomy, folder):
        matched = [taxonomy.names.index("sky"), taxonomy.names.index("car")]
        metrics = {"frame_accuracy": {"f": 1.0}, "stage2": {"pq": 0.9, "assignments": matched}}
        return Run(f"in {len(taxonomy)}", folder, metrics, parameters={"classes": len(taxonomy)})

    runs = [run(taxonomy, run_frames.Path("nowhere")) for taxonomy in (CITYSCAPES_19, CITYSCAPES_27)]
    monkeypatch.setattr(run_frames, "run_label", lambda run, *_: (right, run.metrics["stage2"]["assignments"]))
    for order in (runs, runs[::-1]):
        found = run_frames.compared_pictures(order, "f", Video(), only_wrong=True)
        assert all((rgb == 100).all() for title, rgb in found.items() if title.startswith("in "))
    titled = run_frames.compared_pictures(runs[1:], "f", Video())
    picture = next(rgb for title, rgb in titled.items() if title.startswith("in 27"))
    assert (picture[0, 0] == CITYSCAPES_27.colours[sky]).all()


def test_a_network_that_was_trained_again_is_read_again(tmp_path, monkeypatch):
    import cups.model.files as files
    import cups.model.inference as inference

    monkeypatch.setattr(files, "load", lambda path, device: int(path.read_text()))
    monkeypatch.setattr(inference, "predict", lambda network, image: PanopticLabel(*torch.full((2, 1, 2), network)))
    file, image = tmp_path / "model.safetensors", torch.zeros(3, 1, 2, dtype=torch.uint8)
    for number in (3, 7):
        file.write_text(str(number))
        found, _ = run_frames.run_label(Run("a", tmp_path, {}, parameters={}), "f", image)
        assert (found.semantic == number).all()
        time.sleep(0.02)  # so that the file has another time


def test_thumbnails_and_what_a_click_tells_are_of_the_same_segments(fixable):
    store, video = fixable
    (video.root / "left" / f"{video.names[2]}.png").write_bytes(b"no image")
    segments = SegmentFilter(store, video)
    segments.wait()
    for _ in range(segments.pages):
        assert len(segments.grid.files) == len(segments.shown)
        segments.grid.chosen = 0
        assert segments.shown[0][0] in segments.facts.value
        segments.turn(1)
        segments.wait()
    assert segments.page == segments.pages - 1 and segments.status.value.startswith(f"{len(segments.places)} of")


def test_speeds_are_those_of_each_drive(fixable):
    store, _ = fixable
    video = StreetSource(drives=2, frames=1, height=64, width=128, stages=False)
    video.names = store.names[:2]
    fps = [1 / video.seconds(index) for index in range(2)]
    assert abs(fps[0] - fps[1]) > 0.5
    segments = SegmentFilter(store, video, fps=fps[0])
    segments.wait()
    segments.table.rows["speed"] = 1.0
    frames = [segments.table.names[row["frame"]] for row in segments.table.rows]
    expected = [fps[video.names.index(name)] if name in video.names else fps[0] for name in frames]
    np.testing.assert_allclose(segments._rows()["speed"], expected, rtol=1e-5)


def test_a_clip_whose_tracks_cannot_be_read_is_not_the_one_that_is_chosen(tmp_path):
    source = StreetSource(drives=2, frames=2, height=64, width=128)
    store, firsts = PseudoLabelStore.create(tmp_path / "labels", {}, num_classes=20), []
    for drive in range(2):
        scenes = [source.scene(2 * drive + frame) for frame in range(2)]
        for scene in scenes:
            store.write(scene.sample.name, scene.sample.truth)
        write_tracks(store.root, true_tracks(scenes))
        firsts.append(scenes[0].sample.name)
    store.finish()
    line = TimeLine(PseudoLabelStore(store.root), source)
    (store.root / "tracks" / f"{firsts[1]}.json").write_text("{")
    line.choice.value = firsts[1]
    assert firsts[1] in line.about.value and line.choice.value == line.view.names[0] == firsts[0]


def test_examples_of_another_class_do_not_stay(fixable):
    store, video = fixable
    lab = ThingStuffLab(store, video)
    lab.show_class(0)
    before = lab.examples.value
    (video.root / "left" / f"{video.names[2]}.png").write_bytes(b"no image")
    lab.show_class(13)
    assert video.names[2] in lab.status.value and lab.examples.value != before


def test_a_click_on_an_object_highlights_it_although_a_line_of_the_list_is_chosen():
    source = StreetSource(drives=4, frames=2, height=96, width=192)
    for index in range(len(source)):
        made = source.records(index, ("proposals",))
        found = made["proposals"]
        dropped = [entry["region"] for entry in found.diagnostics.get("dropped", [])]
        if dropped and len(found.motions):
            break
    analysis = type("Analysis", (), made)
    lab = MotionLab(analysis, 10.0, points=500)
    moving = int(found.regions[found.instance > 0].mode().values)
    lab.dropped.value = dropped[0]
    assert lab.region == dropped[0]
    lab.select(moving)
    assert lab.region == moving and lab.dropped.value is None and str(moving) in lab.about.value
    lab.dropped.value = dropped[0]
    lab.dropped.value = None
    assert lab.region is None


def test_stages_do_not_begin_on_frames_that_are_stepped_over(fixable, monkeypatch):
    store, video = fixable
    begun = []

    def records(self, index, *_):
        begun.append(index)
        time.sleep(0.3)
        raise sources.Stopped

    monkeypatch.setattr(sources.StageSource, "records", records)
    explorer = FrameExplorer(DatasetSource(video, store, settings=PseudoLabelSettings()))
    for index in range(len(explorer.source)):
        explorer._answer({"kind": "frame", "index": index, "view": "a", "number": index})
        time.sleep(0.05)
    time.sleep(1)
    assert begun == [len(explorer.source) - 1]


@pytest.mark.parametrize("names", [["1700000000.1", "1700000000.2"], ["1403636579763555584", "1403636579813555456"]])
def test_frames_named_by_time_have_neighbours(names):
    source = type("Source", (), {"names": names, "pairs": [tuple(names)]})
    assert sources.neighbours(source, 0, 5) == [0, 1]
