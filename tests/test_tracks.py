"""Identities in pseudo-labels: the same bytes however a run went, and labels of single frames as without them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import cups.run.generate as generating
from cups.core.errors import InputError
from cups.core.files import write_bytes
from cups.evaluation.truth import TruthFolder
from cups.evaluation.video import score_video
from cups.labels.files import write_label
from cups.labels.store import PseudoLabelStore
from cups.labels.tracks import facts_file, read_tracks, tracked_clips
from cups.run.generate import generate
from cups.stages.matching.classical import ClassicalMatcherSettings
from cups.stages.pipeline import PseudoLabelSettings
from cups.street.clips import StreetClips

CLIPS, FRAMES = 2, 3
QUICK = ClassicalMatcherSettings(full_height_px=192)  # twice the height of these images, not four times
SETTINGS = PseudoLabelSettings(num_classes=6, clustering_frames=2, classical=QUICK)


class InMemory:
    """A video whose samples have been read once."""

    def __init__(self, names, pairs, samples):
        self.names, self.pairs, self.samples = names, pairs, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def left(self, index):
        return self.samples[index].left_0


def content(store: PseudoLabelStore) -> dict[str, bytes]:
    """Return the bytes of all files of a store, but for what a run says of itself."""
    files = [path for path in store.root.rglob("*") if path.is_file()]
    return {path.relative_to(store.root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module", autouse=True)
def analysed_once():
    """Keep what the stages find in a frame with some classes: this process looks at each only once; others do anew."""
    found, analyse, describe = {}, generating.analyse, generating.describe

    def kept(function, key, *given):
        if key not in found:
            found[key] = function(*given)
        return found[key]

    def analysed(sample, classes, settings):
        return kept(analyse, (sample.name, generating._digest(classes)), sample, classes, settings)

    def described(sample, settings):
        return kept(describe, sample.name, sample, settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generating, "analyse", analysed)
        patched.setattr(generating, "describe", described)
        yield


@pytest.fixture(scope="module")
def scenes():
    return list(StreetClips(CLIPS, FRAMES, seed=3, height=96, width=192))


@pytest.fixture(scope="module")
def video(scenes):
    street = StreetClips(CLIPS, FRAMES, seed=3, height=96, width=192)
    return InMemory(street.names, street.pairs, [scene.sample for scene in scenes])


@pytest.fixture(scope="module")
def plain(video, tmp_path_factory) -> PseudoLabelStore:
    return generate(video, tmp_path_factory.mktemp("plain"), SETTINGS, workers=1)


@pytest.fixture(scope="module")
def linked(video, plain, tmp_path_factory) -> PseudoLabelStore:
    return generate(video, tmp_path_factory.mktemp("linked"), SETTINGS, workers=1, tracks=True)


def test_every_clip_has_tracks_that_its_labels_know(video, linked):
    assert tracked_clips(linked.root) == [video.names[0], video.names[FRAMES]]
    assert sum(len(read_tracks(linked.root, first).tracks) for first in tracked_clips(linked.root)) > 0
    for clip, first in enumerate(tracked_clips(linked.root)):
        tracks = read_tracks(linked.root, first)
        assert list(tracks.frames) == video.names[clip * FRAMES :][:FRAMES]
        for frame, name in enumerate(tracks.frames):
            label, numbers = linked.read(name), tracks.numbers(frame)
            assert set(numbers) == set(label.instance.unique().tolist()) - {0}
            classes = {track.number: track.pseudo_class for track in tracks.tracks}
            for instance, number in numbers.items():
                assert (label.semantic[label.instance == instance] == classes[number]).all()


def test_what_moves_is_as_in_labels_without_tracks(plain, linked):
    assert tracked_clips(plain.root) == [] and not (plain.root / "links").exists()
    for first in tracked_clips(linked.root):
        tracks = read_tracks(linked.root, first)
        for frame, name in enumerate(tracks.frames):
            alone, label = plain.read(name), linked.read(name)
            seen = [each for track in tracks.tracks for each in track.seen if each.frame == frame]
            moving = {each.instance for each in seen if each.state == "moving"}
            assert moving == set(alone.instance.unique().tolist()) - {0}
            assert torch.equal(torch.where(alone.instance > 0, label.instance, 0), alone.instance)
            background = label.instance == 0
            assert torch.equal(label.semantic[background], alone.semantic[background])


def test_they_are_scored_against_the_clips_they_show(scenes, linked, tmp_path):
    for scene in scenes:
        write_label(tmp_path, scene.sample.name, scene.truth.panoptic)
    scores = score_video(linked.root, TruthFolder(tmp_path), windows=(1, FRAMES))
    assert [row["frames"] for row in scores["per_clip"]] == [FRAMES] * CLIPS and scores["not_judged"] == 0
    assert scores["aq"] > 0 and scores["windows"]["1"]["vpq"] > 0 and scores["true_tracks"] > 0


def test_two_workers_come_to_the_same_bytes(video, linked, tmp_path):
    assert content(generate(video, tmp_path, SETTINGS, workers=2, tracks=True)) == content(linked)


@pytest.mark.parametrize("lost", ["tracks", "label", "label and facts", "all of a clip"])
def test_a_run_that_was_stopped_comes_to_the_same_bytes(video, linked, lost):
    before = content(linked)
    times = {path: path.stat().st_mtime_ns for path in (linked.root / "tracks").iterdir()}
    first, middle = video.names[FRAMES], video.names[FRAMES + 1]
    if lost in ("tracks", "all of a clip"):
        (linked.root / "tracks" / f"{first}.json").unlink()
    for name in {"tracks": [], "all of a clip": video.names[FRAMES:]}.get(lost, [middle]):
        for path in linked.paths(name).values():
            path.unlink(missing_ok=True)
        if lost != "label":
            facts_file(linked.root, name).unlink()
    assert content(generate(video, linked.root, SETTINGS, workers=1, tracks=True)) == before
    other = linked.root / "tracks" / f"{video.names[0]}.json"
    assert other.stat().st_mtime_ns == times[other]


def test_another_call_changes_nothing(video, linked):
    parts = [path for folder in ("tracks", "links", "frames") for path in (linked.root / folder).rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in parts}
    generate(video, linked.root, SETTINGS, workers=1, tracks=True)
    assert {path: path.stat().st_mtime_ns for path in parts} == before


def test_labels_with_and_without_tracks_share_no_folder(video, plain, linked):
    for store, tracks in ((plain, True), (linked, False)):
        with pytest.raises(InputError, match="tracks"):
            generate(video, store.root, SETTINGS, workers=1, tracks=tracks)


def test_what_was_kept_for_linking_may_be_deleted_after_it(video, linked):
    before = content(linked)
    shutil.rmtree(linked.root / "links")
    generate(video, linked.root, SETTINGS, workers=1, tracks=True)
    assert content(linked) == {path: data for path, data in before.items() if not path.startswith("links/")}
    linked.paths(video.names[1])["json"].unlink()
    generate(video, linked.root, SETTINGS, workers=1, tracks=True)
    clip = {facts_file(linked.root, name).relative_to(linked.root).as_posix() for name in video.names[:FRAMES]}
    assert content(linked) == {path: data for path, data in before.items() if path[:6] != "links/" or path in clip}
    for path, data in before.items():
        write_bytes(linked.root / path, data)


def test_lost_facts_are_named(video, linked):
    path = facts_file(linked.root, video.names[0])
    kept, tracks = path.read_bytes(), Path(linked.root / "tracks" / f"{video.names[0]}.json")
    path.write_bytes(b"")
    with pytest.raises(InputError, match=f"{path.name}: not the facts of a frame"):
        generate(video, linked.root, SETTINGS, workers=1, tracks=True)
    path.write_bytes(kept)
    assert json.loads(tracks.read_text())["frames"][0] == video.names[0]
