"""`cups evaluate --video`: what this package writes for clips, against labelled video; one line where it cannot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cups import SegmentationAndTrackingQuality, VideoPanopticQuality, track
from cups.cli import main
from cups.core.files import read_json, write_json
from cups.core.images import to_array
from cups.core.records import PanopticLabel
from cups.core.splits import claimed_segments
from cups.core.taxonomy import CITYSCAPES_19
from cups.datasets import cityscapes_vps, kitti_step
from cups.datasets.clips import clips_of
from cups.datasets.kitti_step import KITTI_STEP_CLASSES, KittiStep
from cups.evaluation.identity_switches import identity_switches
from cups.evaluation.overlaps import count_overlaps
from cups.evaluation.video import score_video
from cups.labels.store import PseudoLabelStore
from cups.labels.tracks import ClipTracks, Sighting, Track, read_tracks, write_tracks
from cups.model.files import load, numbered_split, save_network
from cups.model.network import panoptic_cascade
from cups.model.tracker import TrackerSettings
from cups.run.scenes import render_scenes

FRAMES = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a KITTI-STEP of one clip, and what a network that has learnt nothing predicts for it."""
    folder = tmp_path_factory.mktemp("step")
    kitti_step.write_miniature(folder / "step", FRAMES)
    torch.manual_seed(0)
    save_network(folder / "model.safetensors", panoptic_cascade(2, 3, preset="small"), numbered_split(2, 3))
    options = ["--network", str(folder / "model.safetensors"), "--device", "cpu", "--min-confidence", "0.3"]
    clip = folder / "step" / "images" / "val" / "0002"
    assert main(["predict", str(clip), "--video", "--out", str(folder / "out" / "0002"), *options]) == 0
    return folder


def evaluated(capsys, *options) -> tuple[int, str, str]:
    """Return the exit code of `cups evaluate --video --json`, what it printed, and its complaint."""
    code = main([str(each) for each in ("evaluate", "--video", "--json", *options)])
    said = capsys.readouterr()
    return code, said.out, said.err


def store_of_truth(truth: KittiStep, root: Path, exchanged: int) -> PseudoLabelStore:
    """Return a store whose labels are the truth, with other identities from frame `exchanged` on."""
    store = PseudoLabelStore.create(root, {}, len(truth.taxonomy))
    seen: dict[tuple[int, int], list[Sighting]] = {}
    for frame, name in enumerate(truth.names):
        label = truth.truth(name)
        codes = label.semantic << 32 | label.instance
        for number, code in enumerate(codes[label.instance > 0].unique().tolist(), 1):
            label.instance[codes == code] = number
            key = code, int(frame >= exchanged)
            seen.setdefault(key, []).append(Sighting(frame, number, "moving", 1.0))
        store.write(name, label)
    store.finish(threshold=0.0)
    tracks = [Track(number, key[0] >> 32, tuple(each)) for number, (key, each) in enumerate(sorted(seen.items()), 1)]
    write_tracks(root, ClipTracks(tuple(truth.names), (None,) * len(truth), tuple(tracks)))
    return store


@pytest.mark.parametrize("labels", ["out", "out/0002"])
def test_a_predicted_video_has_the_scores_of_the_labels_in_memory(made, capsys, labels):
    options = ["--labels", made / labels, "--truth", made / "step", "--dataset", "kitti_step", "--windows", 1, 2]
    code, out, err = evaluated(capsys, *options)
    scores = json.loads(out)
    assert code == 0 and "have no label" not in err and scores["frames"] == FRAMES and scores["not_judged"] == 0
    truth, network = KittiStep(made / "step"), load(made / "model.safetensors", min_confidence=0.3)
    images = [truth.left(k) for k in range(FRAMES)]
    predicted = track(network, images, TrackerSettings(start_confidence=0.3))
    maps = torch.stack([claimed_segments(label, network.split).stacked() for label in predicted])
    target = torch.stack([truth.truth(name).stacked() for name in truth.names])
    classes = {"things": KITTI_STEP_CLASSES.thing_classes, "stuff": KITTI_STEP_CLASSES.stuff_classes}
    classes |= {"num_pseudo_classes": 5, "thing_pseudo_classes": (3, 4), "stuff_pseudo_classes": (0, 1, 2)}
    for metric, name, there in (
        (SegmentationAndTrackingQuality(**classes), "stq", scores),
        (VideoPanopticQuality(**classes, window=1), "vpq", scores["windows"]["1"]),
        (VideoPanopticQuality(**classes, window=2), "vpq", scores["windows"]["2"]),
    ):
        metric.update(maps, target, 0)
        assert abs(metric.compute()[name] - there[name]) < 1e-6
    overlaps = [count_overlaps(*pair) for pair in zip(maps, target, strict=True)]
    found = identity_switches(overlaps, KITTI_STEP_CLASSES.thing_classes)
    assert (scores["switches"], scores["true_tracks"]) == found


def test_an_exchange_costs_identities_and_nothing_else(made, tmp_path):
    truth = KittiStep(made / "step")
    whole = score_video(store_of_truth(truth, tmp_path / "a", FRAMES).root, truth, windows=(1, 2))
    parted = score_video(store_of_truth(truth, tmp_path / "b", 2).root, truth, windows=(1, 2))
    assert whole["aq"] == 1 and whole["switches"] == 0 and whole["true_tracks"] > 0
    assert parted["windows"]["1"] == whole["windows"]["1"] and parted["iou"] == whole["iou"]
    assert parted["aq"] < 0.8 and parted["switches"] > 0
    assert parted["windows"]["2"]["vpq_things"] < whole["windows"]["2"]["vpq_things"]


def test_a_table_is_printed(made, capsys):
    options = ["--labels", made / "out", "--truth", made / "step", "--dataset", "kitti_step", "--windows", 2]
    assert main([str(each) for each in ("evaluate", "--video", *options)]) == 0
    said = capsys.readouterr().out
    assert "| VPQ 2 |" in said and "switches / tracks" in said and "| road" in said


def test_every_fifth_frame_of_a_video_is_judged(made, tmp_path, capsys):
    cityscapes_vps.write_miniature(tmp_path / "vps", 2)
    truth = cityscapes_vps.CityscapesVps(tmp_path / "vps")
    out = shutil.copytree(made / "out" / "0002", tmp_path / "out")
    panoptic = read_json(out / "panoptic.json")
    for k, image in enumerate(panoptic["images"]):  # the frames between the labelled ones are called something else
        image["file_name"] = f"{truth.names[k // 2]}_newImg8bit.png" if k % 2 == 0 else f"other_{k}.png"
    write_json(out / "panoptic.json", panoptic)
    code, said, err = evaluated(
        capsys, "--labels", out, "--truth", tmp_path / "vps", "--dataset", "cityscapes_vps", "--windows", 1, 2
    )
    assert code == 0, err
    scores = json.loads(said)
    assert scores["frames"] == 2 and len(scores["windows"]["2"]["vpq_per_class"]) == len(CITYSCAPES_19)


def renamed(made: Path, out: Path) -> Path:
    """Return a copy of the prediction of clip 0002 under the name of another clip."""
    shutil.copytree(made / "out" / "0002", out)
    tracks = read_json(out / "tracks.json")
    tracks["videos"][0]["name"] = out.name
    write_json(out / "tracks.json", tracks)
    return out


@pytest.mark.parametrize("others", [0, FRAMES])
def test_a_sequence_without_truth_is_left_out(made, tmp_path, others):
    """Clip 0003 has no truth; 0002 has it for two frames, and the truth may have a longer clip."""
    truth, root, labels = KittiStep(made / "step"), tmp_path / "step", tmp_path / "out"
    for clip, frames in ((2, 2), (7, others)):
        for k in range(frames):
            label = truth.truth(truth.names[k])
            kitti_step.write_step_frame(root, "val", clip, k, to_array(truth.left(k)), label)
    renamed(made, labels / "0002")
    alone = score_video(labels, KittiStep(root), windows=(1,))
    assert alone["frames"] == 2 and alone["not_judged"] == others
    renamed(made, labels / "0003")
    assert score_video(labels, KittiStep(root), windows=(1,)) == alone


def test_names_of_files_alone_count_where_they_are_unique(made, tmp_path):
    labels, truth = renamed(made, tmp_path / "drive"), KittiStep(made / "step")
    assert score_video(labels, truth, windows=(1,))["frames"] == FRAMES


def clips_without(truth: KittiStep, root: Path, gone: int | None, parted: bool) -> Path:
    """Return a store of the truth with no label of one frame; it has the frames after the first two in another clip."""
    store_of_truth(truth, root, FRAMES)
    known = read_tracks(root, truth.names[0])
    (root / "tracks" / f"{truth.names[0]}.json").unlink()
    kept = [frame for frame in range(FRAMES) if frame != gone]
    for frames in [[k for k in kept if k < 2], [k for k in kept if k >= 2]] if parted else [kept]:
        seen = {
            each.number: tuple(replace(s, frame=frames.index(s.frame)) for s in each.seen if s.frame in frames)
            for each in known.tracks
        }
        tracks = tuple(replace(each, seen=seen[each.number]) for each in known.tracks if seen[each.number])
        write_tracks(root, ClipTracks(tuple(truth.names[k] for k in frames), (None,) * len(frames), tracks))
    return root


@pytest.mark.parametrize(("gone", "parted", "sizes"), [(1, False, [1, 2]), (1, True, [1, 2]), (None, True, [2, 2])])
def test_a_clip_with_a_gap_is_scored_in_parts(made, tmp_path, capsys, gone, parted, sizes):
    truth = KittiStep(made / "step")
    labels = clips_without(truth, tmp_path / "labels", gone, parted)
    options = "--labels", labels, "--truth", made / "step", "--dataset", "kitti_step", "--windows", 1, 2
    code, out, err = evaluated(capsys, *options)
    scores, (line, *others) = json.loads(out), [line for line in err.splitlines() if line.startswith("cups:")]
    first, after = truth.names[1], truth.names[2]
    why = f"no label of {first}" if gone else f"{first} and {after} follow each other, but their labels are of two"
    assert code == 0 and len(others) == (gone is not None) and f"{labels}: {why}" in line and "in parts" in line, err
    assert [(row["name"], row["frames"]) for row in scores["per_clip"]] == [(truth.names[0], sizes[0]), (after, 2)]
    assert scores["aq"] == 1 and scores["windows"]["2"]["vpq"] == 1 and scores["switches"] == 0
    assert scores["not_judged"] == (gone is not None)
    code, out, err = evaluated(capsys, *options, "--strict")
    assert (code == 0) == (gone is None) and (code == 0 or f"no label of 1 of {FRAMES} frames" in err)


def test_a_clip_ends_at_a_frame_without_truth(tmp_path):
    folder = render_scenes(tmp_path / "video", 2, 3, 48, 96, workers=1, frames=5)
    store = store_of_truth(folder, tmp_path / "labels", len(folder))
    (tmp_path / "labels" / "tracks").rename(tmp_path / "tracks")
    for clip in clips_of(folder):  # one file a clip, with other identities after its third frame
        seen: dict[tuple[int, int, int], list[Sighting]] = {}
        for frame, index in enumerate(clip):
            label = store.read(folder.names[index])
            for number in label.instance[label.instance > 0].unique().tolist():
                code = int(folder.truth(folder.names[index]).instance[label.instance == number][0])
                kind = int(label.semantic[label.instance == number][0])
                seen.setdefault((code, kind, frame > 2), []).append(Sighting(frame, number, "moving", 1.0))
        tracks = [Track(n, kind, tuple(each)) for n, ((_, kind, _), each) in enumerate(sorted(seen.items()), 1)]
        names = tuple(folder.names[index] for index in clip)
        write_tracks(store.root, ClipTracks(names, (None,) * len(names), tuple(tracks)))
        for path in (folder.root / "truth").glob(f"{names[2]}*"):
            path.unlink()
    scores = score_video(store.root, folder, windows=(2,))
    assert scores["clips"] == 4 and scores["frames"] == 8 and scores["windows"]["2"]["vpq"] == 1
    for path in (folder.root / "truth").glob(f"{folder.names[-1].rsplit('_', 1)[0]}*"):
        path.unlink()
    assert score_video(store.root, folder, windows=(2,))["clips"] == 2


def damaged(made: Path, folder: Path, fault: str) -> list[str]:
    """Write labels with a fault; return what the complaint must hold."""
    truth = KittiStep(made / "step")
    if fault == "no tracks":
        store_of_truth(truth, folder, FRAMES)
        shutil.rmtree(folder / "tracks")
        return [str(folder), "without tracks", "--tracks"]
    if fault == "other clip":
        shutil.copytree(made / "out" / "0002", folder)
        tracks = read_json(folder / "tracks.json")
        tracks["videos"][0]["name"] = "0007"
        write_json(folder / "tracks.json", tracks)
        panoptic = read_json(folder / "panoptic.json")
        for image in panoptic["images"]:
            image["file_name"] = "x" + image["file_name"]
        write_json(folder / "panoptic.json", panoptic)
        return [str(folder), "none of its frames (0007_x000000, ...)", truth.names[0]]
    if fault == "other size":
        store = PseudoLabelStore.create(folder, {}, 2)
        for name in truth.names:
            store.write(name, PanopticLabel(*torch.zeros(2, 8, 8, dtype=torch.long)))
        store.finish(threshold=0.5)
        write_tracks(folder, ClipTracks(tuple(truth.names), (None,) * FRAMES, ()))
        return [truth.names[0], "8 x 8", "pixels"]
    shutil.copytree(made / "out" / "0002", folder)
    (folder / "panoptic" / "000002.png").unlink()
    return [str(folder / "panoptic" / "000002.png")]


@pytest.mark.parametrize("fault", ["no tracks", "other clip", "other size", "missing map"])
def test_what_cannot_be_scored_is_said_in_one_line(made, tmp_path, capsys, fault):
    parts = damaged(made, tmp_path / "labels", fault)
    code, out, err = evaluated(
        capsys, "--labels", tmp_path / "labels", "--truth", made / "step", "--dataset", "kitti_step"
    )
    lines = [line for line in err.splitlines() if line.startswith("cups:")]
    assert code != 0 and not out and len(lines) == 1 and "Traceback" not in err, err
    assert all(part in lines[0] for part in parts), lines[0]


def test_windows_belong_to_video(made, capsys):
    assert main(["evaluate", "--labels", "x", "--truth", "y", "--windows", "2"]) != 0
    assert "--windows needs --video" in capsys.readouterr().err
