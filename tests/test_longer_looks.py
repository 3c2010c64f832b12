"""Looks over several frames of a clip: what they add to tracks, and the same bytes wherever they are taken."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from cups.core.parallel import serial_map
from cups.core.records import PanopticLabel, Proposals
from cups.labels.store import PseudoLabelStore
from cups.labels.tracks import read_tracks, tracked_clips
from cups.run.link import link_store, write_facts
from cups.stages.labels.objects import OBJECT_CHANNELS
from cups.stages.labels.pseudo_classes import PseudoClasses
from cups.stages.motion.settings import MotionSettings
from cups.stages.pipeline import PseudoLabelSettings
from cups.stages.scene_flow import scene_flow
from cups.stages.semantics.clusters import Clusters
from cups.stages.tracking.facts import colour_histograms, link_facts
from cups.stages.tracking.linking import LongLook, link_clip, linked_label
from cups.stages.tracking.longer import long_look, long_looks
from cups.street.scenes import exact_matches, street_clip

FRAMES, HEIGHT, WIDTH = 6, 96, 192


def clusters(centres) -> Clusters:
    """Return one class a centre, in units of the channels themselves."""
    size = centres.shape[1]
    known = torch.zeros(size), torch.ones(size), torch.eye(size)
    return Clusters(*known, centres, torch.arange(len(centres)), torch.tensor(1.0))


@pytest.fixture(scope="module")
def classes() -> PseudoClasses:
    """Three classes of pixels, and two of objects: up to a metre wide, and wider."""
    centres = torch.zeros(2, len(OBJECT_CHANNELS))
    centres[:, 1] = torch.tensor([-3.0, 3.0])
    return PseudoClasses(clusters(torch.eye(3)), torch.ones(5, 2), clusters(centres))


@pytest.fixture(scope="module")
def scenes():
    return street_clip(4, FRAMES, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def clip(scenes):
    """The facts of a clip whose frames found nothing that moves."""
    facts = []
    for scene in scenes:
        nothing = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
        none = Proposals(nothing, torch.zeros(0, 4, 4), scene.truth.camera_motion, torch.zeros(0))
        flow = scene_flow(scene.sample, exact_matches(scene))
        facts.append(link_facts(scene.sample, flow, none, PanopticLabel(nothing, nothing)))
    return facts


def true_look(scenes, clip) -> tuple[LongLook, int]:
    """Return a look from the first frame that has its largest object that moves, and the number of that."""
    truth = scenes[0].truth
    sizes = torch.bincount(truth.panoptic.instance.flatten(), minlength=int(truth.object_ids.max()) + 1)
    n = int(max(truth.object_ids[truth.moving].tolist(), key=lambda number: int(sizes[number])))
    motion = truth.object_motions[truth.object_ids == n]
    instance = (truth.panoptic.instance == n).long()
    own = torch.linalg.inv(truth.camera_motion) @ motion
    return LongLook(instance, own, torch.ones(1), torch.tensor([4]), colour_histograms(clip[0].image, instance, 1)), n


def best_iou(instance, true) -> float:
    """Return the greatest IoU of an object with a true mask."""
    found = [instance == n for n in instance.unique().tolist() if n]
    return max([float((mask & true).sum() / (mask | true).sum()) for mask in found], default=0.0)


def test_what_only_a_look_finds_is_carried_from_there(scenes, clip):
    look, n = true_look(scenes, clip)
    names = [str(k) for k in range(FRAMES)]
    assert not link_clip(clip, names).tracks.tracks
    linked = link_clip(clip, names, looks={0: look})
    (track,) = linked.tracks.tracks
    assert track.pseudo_class == 4 and [each.frame for each in track.seen][:3] == [0, 1, 2]
    assert {each.state for each in track.seen} <= {"carried", "standing"}
    for frame in (0, 1, 2):
        label = linked_label(clip[frame], frame, linked)
        assert best_iou(label.instance, scenes[frame].truth.panoptic.instance == n) > 0.7
        assert (label.semantic[label.instance > 0] == 4).all()


def test_a_look_confirms_what_one_frame_found(scenes, clip):
    look, _ = true_look(scenes, clip)
    first = clip[0].replace(
        instance=look.instance, motions=clip[0].camera_motion @ look.own, scores=torch.tensor([0.95]), looks=look.looks,
        centres=torch.tensor([[0.0, 0.0, 10.0]]),
    )  # fmt: skip
    names, frames = [str(k) for k in range(FRAMES)], [first, *clip[1:]]
    (alone,), (sure,) = (link_clip(frames, names, looks=looks).tracks.tracks for looks in ({}, {0: look}))
    assert [each.frame for each in alone.seen] == [0]  # found once, it is carried nowhere
    assert sure.seen[0] == alone.seen[0] and sure.seen[0].state == "moving" and len(sure.seen) > 2
    assert sure.pseudo_class == alone.pseudo_class  # the frame's own


def test_objects_of_low_confidence_are_taken_but_no_lower(clip):
    def classify(flow, proposals):
        return torch.full((len(proposals.motions),), 4)

    look = long_look(clip, 0, 4, classify)
    assert len(look.scores) and look.scores.min() >= 0.5 and (look.pseudo_classes == 4).all()
    lenient = long_look(clip, 0, 4, classify, replace(MotionSettings(), min_confidence=0.1))
    assert len(lenient.scores) >= len(look.scores)
    assert long_looks(clip[:4], classify) == {}


def stored(root, clip) -> tuple[PseudoLabelStore, list[str], list[tuple[str, str]]]:
    """Return a store with the facts of two clips, and the names and pairs of their frames."""
    names = [f"{place}_{k}" for place in "ab" for k in range(FRAMES)]
    pairs = [(first, after) for first, after in pairwise(names) if first[0] == after[0]]
    store = PseudoLabelStore.create(root, {}, 5)
    for name, facts in zip(names, clip * 2, strict=True):
        write_facts(root, name, facts.replace(notes={"diagnostics": {}, "inputs": {}}))
        store.write(name, PanopticLabel(facts.semantic, facts.instance))
    return store, names, pairs


class Video:
    """The names of the frames of clips."""

    def __init__(self, names, pairs):
        self.names, self.pairs = names, pairs


def elsewhere(function, items, description=""):
    """Call a function for the last item first, as another process might, with other random numbers and threads."""
    torch.manual_seed(len(items))
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    results = [function(item) for item in reversed(items)]
    torch.set_num_threads(threads)
    return results[::-1]


def test_it_does_not_matter_where_and_when_a_clip_is_linked(clip, classes, tmp_path):
    contents = []
    for mapper in (serial_map, elsewhere):
        store, names, pairs = stored(tmp_path / mapper.__name__, clip)
        assert link_store(Video(names, pairs), store, mapper, classes, PseudoLabelSettings()) > 0
        assert tracked_clips(store.root) == ["a_0", "b_0"]
        assert {track.pseudo_class for track in read_tracks(store.root, "a_0").tracks} <= {3, 4}
        paths = sorted(path for path in store.root.rglob("*") if path.is_file())
        contents.append({path.relative_to(store.root).as_posix(): path.read_bytes() for path in paths})
    assert contents[0] == contents[1] and any(path.startswith("tracks/") for path in contents[0])
