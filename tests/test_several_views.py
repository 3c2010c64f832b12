"""What one view of labels or frames does while another one, or a job, changes them; and that no fault ends a view."""

import os
import threading
from pathlib import Path

import pytest
import torch

from cups.core.errors import InputError
from cups.core.records import PanopticLabel
from cups.labels.fixed import Edit, FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.labels.tracks import ClipTracks, Sighting, Track, write_tracks
from cups.workbench import segment_table
from cups.workbench.explorer import FrameExplorer, LatestFirst
from cups.workbench.label_drafts import Draft, save_drafts, saved_draft
from cups.workbench.label_fixer import LabelFixer
from cups.workbench.segment_table import SegmentTable
from cups.workbench.showing import Opener
from cups.workbench.sources import StreetSource
from cups.workbench.threshold_lab import ThresholdLab
from cups.workbench.time_line import TimeLine
from cups.workbench.waiting import Progress, Watch


@pytest.fixture
def video():
    return StreetSource(drives=1, frames=2, seed=7, height=64, width=128, stages=False)


@pytest.fixture
def store(video, tmp_path):
    """Return a store with the truth of the video as its labels."""
    made = PseudoLabelStore.create(tmp_path / "labels", {}, num_classes=40)
    for index, name in enumerate(video.names):
        made.write(name, video.scene(index).sample.truth)
    made.finish()
    return made


def delete_one(fixer: LabelFixer, frame: int = 0) -> None:
    """Delete an object of a frame."""
    fixer.show(frame)
    y, x = (fixer.label.instance > 0).nonzero()[0].tolist()
    fixer.click(x, y)
    fixer.delete()


def test_a_fix_is_kept_until_its_frame_is_read(store, video):
    fixer = LabelFixer(store, video)
    delete_one(fixer)
    fixer.save()
    again = LabelFixer(store, video)
    assert again.buttons["restore"].disabled
    again.buttons["restore"].click()
    assert again.labels.is_fixed(video.names[0])


def test_a_fix_is_kept_where_the_image_cannot_be_read(store, video, monkeypatch):
    fixer = LabelFixer(store, video)
    delete_one(fixer)
    fixer.save()

    def unread(index):
        raise InputError(f"{video.names[index]}: cannot be read")

    again = LabelFixer(store, video)
    with monkeypatch.context() as patched, pytest.raises(InputError, match="cannot be read"):
        patched.setattr(video, "left", unread)
        again.show(0)
    again.buttons["restore"].click()
    assert again.labels.is_fixed(video.names[0])
    (again.labels.folder / f"{video.names[0]}.json").write_text("{}")
    with pytest.raises(InputError, match="json"):
        again.show(0)
    again.buttons["restore"].click()
    assert not again.labels.is_fixed(video.names[0])


def test_the_second_fixer_of_a_store_does_not_overwrite_what_the_first_saved(store, video):
    first, second = LabelFixer(store, video), LabelFixer(store, video)
    delete_one(first)
    delete_one(second)
    first.save()
    edits = first.labels.read_fixed(video.names[0])[1]
    second.click(5, 5)
    second.relabel(3)
    with pytest.raises(InputError, match=f"{video.names[0]}.json: was saved or imported by another one"):
        second.save()
    assert first.labels.read_fixed(video.names[0])[1] == edits and second.unsaved == [video.names[0]]


EDITS = [
    Edit("relabel", ((5, 5),), to_class=3),
    Edit("delete", ((30, 12),)),
    Edit("split", ((50, 12),), line=(50, 0, 51, 39)),
    Edit("paint", ((2, 30), (20, 38)), to_class=1, to_thing=True, radius=2.5),
    Edit("erase", ((5, 5), (9, 9)), radius=0.7),
    Edit("merge", ((45, 12), (58, 12)), origin="before"),
]


def test_edits_of_every_kind_are_saved_one_after_the_other(tmp_path):
    instance = torch.zeros(40, 64, dtype=torch.int64)
    instance[10:25, 20:40], instance[10:25, 42:62] = 3, 4
    store = PseudoLabelStore.create(tmp_path / "labels", {}, num_classes=4)
    store.write("frame", PanopticLabel((instance > 0).long(), instance))
    labels, draft = FixedLabels(store), Draft()
    for count in range(1, len(EDITS) + 1):
        draft.push(tuple(EDITS[:count]))
        save_drafts(labels, {"frame": draft})
        assert saved_draft(labels, "frame", labels.start("frame")).edits == draft.edits
    draft.push(())
    save_drafts(labels, {"frame": draft})
    assert not labels.is_fixed("frame")


def test_a_lab_with_unsaved_edits_is_not_opened_anew(store, video):
    opener = Opener(lambda: LabelFixer(store, video), "Open")
    opener.press()
    fixer = opener.children[1]
    delete_one(fixer)
    opener.press()
    assert opener.children[1] is fixer and "edits of 1 frame are not saved" in opener.status.value
    fixer.save()
    opener.press()
    assert opener.children[1] is not fixer and opener.status.value == ""


def test_the_threshold_lab_stays_with_its_frame_when_the_explorer_goes_on():
    source = StreetSource(drives=1, frames=2, seed=7, height=64, width=128, class_frames=1)
    explorer = FrameExplorer(source)

    def step_on(progress: Progress) -> None:
        explorer.view.frame = 1

    sample = explorer.analysis(Watch(step_on)).sample
    lab = ThresholdLab(sample, source.classes, source.settings, known=explorer.kept(), named=explorer.classes)
    lab.wait()
    assert lab.after[1].sample.name == sample.name == source.names[0]


def test_a_fault_does_not_end_the_thread_of_a_view(capsys):
    served, done = [], threading.Event()

    def serve(request: int) -> None:
        served.append(request)
        done.set()
        if request == 1:
            raise KeyError("of a view")

    worker = LatestFirst(serve)
    for request in (1, 2):
        done.clear()
        worker.ask(request)
        assert done.wait(10)
    assert served == [1, 2] and "KeyError: 'of a view'" in capsys.readouterr().err


def test_a_frame_that_is_being_replaced_is_left_out_of_the_table(store, video, monkeypatch):
    class Listed:
        """The files of a folder as they were before one of them was removed."""

        def __init__(self, folder: Path) -> None:
            self.files = list(scandir(folder))
            (folder / f"{video.names[0]}.json").unlink(missing_ok=True)

        def __enter__(self) -> list[os.DirEntry]:
            return self.files

        def __exit__(self, *_) -> None:
            pass

    scandir, table = os.scandir, SegmentTable(store)
    monkeypatch.setattr(segment_table.os, "scandir", Listed)
    assert list(table.stamps()) == [video.names[1]]


def test_a_frame_of_the_clip_before_is_not_asked_of_the_next(tmp_path):
    instance = torch.zeros(32, 64, dtype=torch.int64)
    instance[8:16, 8:24] = 1
    label = PanopticLabel(torch.full((32, 64), 2), instance)
    store = PseudoLabelStore.create(tmp_path / "labels", {}, num_classes=5)
    for clip, count in (("a", 9), ("b", 3)):
        names = [f"{clip}_{k:06d}" for k in range(count)]
        for name in names:
            store.write(name, label)
        seen = tuple(Sighting(k, 1, "moving", 0.9, (0.0, 0.0, 10.0), 0.9 if k else None) for k in range(count))
        write_tracks(store.root, ClipTracks(tuple(names), (torch.eye(4),) * count, (Track(1, 2, seen),)))
    store.finish()
    lines = TimeLine(store)
    lines.wait()
    asked = lines.view, lines.clip, {"kind": "frame", "index": 8, "view": 0, "number": 1}
    sent, packet_of = [], type(lines)._packet
    lines.view.send_frame = lambda request, packet, **_: sent.append(packet)

    def chosen_meanwhile(clip, frame):
        lines.choice.value = "b_000000"
        return packet_of(lines, clip, frame)

    lines._packet = chosen_meanwhile
    lines._serve(asked)
    assert len(sent) == 1 and lines.clip.frames[0] == "b_000000"
