"""Street clips keep identities while things stop and start; labelled video is read as it was written, or refused."""

import json

import numpy as np
import pytest
import torch

from cups.cli import main
from cups.core.errors import InputError
from cups.core.records import VOID
from cups.datasets.cityscapes_vps import CityscapesVps
from cups.datasets.clips import clips_of
from cups.datasets.kitti_step import KittiStep
from cups.datasets.miniatures import write_miniature
from cups.datasets.mots import Mots
from cups.datasets.registry import open_labelled_dataset
from cups.datasets.stereo_folder import StereoFolder
from cups.evaluation.tracking_quality import SegmentationAndTrackingQuality
from cups.evaluation.video_panoptic_quality import VideoPanopticQuality
from cups.street.clips import StreetClips
from cups.street.layout import street_world
from cups.street.scenes import TRAFFIC, street_clip, street_scene

SIZE = {"height": 64, "width": 128}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    return {name: write_miniature(name, folder / name, 3) for name in ("kitti_step", "cityscapes_vps", "mots")}


def test_vehicles_stop_and_start_within_two_seconds():
    changes = []
    for seed in range(8):
        actors = street_world((31, seed), traffic=TRAFFIC["stop_and_go"]).actors
        moves = np.array([(a.moves(0.0, 0.1), a.moves(1.9, 2.0)) for a in actors if a.label >= 13], int)
        changes.append([(moves @ way == 1).sum() for way in ([1, -1], [-1, 1])])
    assert (np.array(changes) > 0).mean() > 0.7, changes


def test_the_drive_stays_on_its_lane_however_long():
    for seed in range(3):
        world = street_world((32, seed), traffic=TRAFFIC["stop_and_go"])
        assert world.ego.way_m(1000.0) == world.ego.way_m(500.0) < 80
        for time in np.linspace(0, 100, 20):
            pose = world.ego.pose(time)
            along = np.linspace(-5, 90, 1901)
            x, z, _ = world.street.place(along, 0.0)
            beside = np.hypot(x - pose[0, 3], z - pose[2, 3]).min()
            assert 0.5 < beside < world.street.half_m


def test_truth_of_what_stands_is_that_of_the_street():
    """What stands has the motion of static points, but for the last crawl before a stop; what moves has another."""
    seen, still = {True: 0, False: 0}, 0
    for scene in street_clip((33, 1), 12, 48, 96, traffic="stop_and_go", rate_hz=6):
        for moves, motion in zip(scene.truth.moving.tolist(), scene.truth.object_motions, strict=True):
            apart = (motion - scene.truth.camera_motion).abs().max()
            assert apart > 1e-3 if moves else apart < 0.05 / 6 + 1e-3  # 5 cm/s count as standing
            seen[moves] += 1
            still += bool(apart < 1e-5)
    assert min(seen.values()) > 5 and still > 0.8 * seen[False]


def test_objects_keep_number_and_class_over_a_clip_in_any_order():
    clips = StreetClips(2, frames=4, seed=34, **SIZE)
    backwards = [clips[index] for index in reversed(range(len(clips)))][::-1]
    for scene, again in zip(backwards, (clips[index] for index in range(len(clips))), strict=True):
        assert torch.equal(scene.sample.left_1, again.sample.left_1) and scene.sample.name == again.sample.name
        assert torch.equal(scene.truth.panoptic.instance, again.truth.panoptic.instance)
    classes = {}
    for scene in backwards[:4]:
        for number, kind in zip(scene.truth.object_ids.tolist(), scene.truth.object_classes.tolist(), strict=True):
            assert classes.setdefault(number, kind) == kind
    assert len(classes) > 3
    assert [len(names) for names in clips_of(clips)] == [4, 4]


def test_the_rate_is_the_time_between_frames():
    fast, slow = (street_clip(4, 2, 48, 96, traffic="oncoming", rate_hz=rate) for rate in (20, 10))
    assert torch.equal(fast[1].sample.left_1[0] > -1, slow[0].sample.left_1[0] > -1)
    assert torch.equal(fast[1].truth.disparity_1, slow[0].truth.disparity_1)
    assert torch.equal(slow[0].sample.left_0, street_scene(4, 48, 96, traffic="oncoming").sample.left_0)
    assert not torch.equal(fast[0].truth.disparity_1, slow[0].truth.disparity_1)
    with pytest.raises(InputError, match="rate_hz must be positive"):
        StreetClips(1, rate_hz=0)


def test_the_command_writes_clips_and_their_truth_in_both_layouts(tmp_path, capsys):
    out = tmp_path / "clips"
    command = ["scenes", "--out", str(out), "--count", "2", "--frames", "3", "--rate", "5", "--seed", "6", "--height"]
    command += ["64", "--width", "128", "--traffic", "stop_and_go", "--workers", "1"]
    assert main([*command, "--layout", "coco"]) != 0 and "kitti_step or cityscapes_vps" in capsys.readouterr().err
    assert main([*command, "--layout", "kitti_step", "cityscapes_vps"]) == 0
    folder, clips = StereoFolder(out), StreetClips(2, 3, 6, 5.0, traffic="stop_and_go", **SIZE)
    assert len(folder) == 6 and [len(names) for names in clips_of(folder)] == [3, 3]
    assert json.loads((out / "scenes.json").read_text())["rate_hz"] == 5
    assert torch.equal(folder[4].right_1, clips[4].sample.right_1)
    step, vps = (open_labelled_dataset(name, out / name) for name in ("kitti_step", "cityscapes_vps"))
    for index, (first, second) in enumerate(zip(step.names, vps.names, strict=True)):
        true = clips[index].truth.panoptic
        assert torch.equal(step.truth(first).semantic, true.semantic)
        assert torch.equal(vps.truth(second).semantic, true.semantic)
        counted = torch.isin(true.semantic, torch.tensor([11, 13]))
        assert torch.equal(step.truth(first).instance, true.instance * counted)


@pytest.mark.parametrize("reader", [KittiStep, CityscapesVps, Mots])
def test_labelled_video_feeds_the_scores_of_video(roots, reader):
    """Truth scores 100 % against itself, and less where an object changes its identity in a clip."""
    names = {KittiStep: "kitti_step", CityscapesVps: "cityscapes_vps", Mots: "mots"}
    data = reader(roots[names[reader]])
    assert [len(names) for names in data.clips] == [3] and len(data.pairs) == 2
    kinds = data.taxonomy.thing_classes, data.taxonomy.stuff_classes, len(data.taxonomy)
    own = list(range(len(data.taxonomy)))
    whole = torch.stack([data.truth(frame).stacked() for frame in data.clips[0]])
    crowd = torch.isin(whole[..., 0], torch.tensor(kinds[0])) & (whole[..., 1] == 0)
    whole[crowd] = torch.tensor([VOID, 0])
    swapped = whole.clone()
    semantic, instance = whole[..., 0], whole[..., 1]
    kind = max(kinds[0], key=lambda k: (semantic == k).sum())
    numbers = [n for n in instance[semantic == kind].unique().tolist() if n and (instance[0] == n).any()]
    largest = max(numbers, key=lambda n: (instance == n).sum())
    swapped[1:, ..., 1][(semantic[1:] == kind) & (instance[1:] == largest)] = 999
    for metric, key in (
        (SegmentationAndTrackingQuality(*kinds, assignments=own), "stq"),
        (VideoPanopticQuality(*kinds, window=3, assignments=own), "vpq"),
    ):
        scores = []
        for prediction in (whole, swapped):
            metric.reset()
            metric.update(prediction, whole, 0)
            scores.append(metric.compute()[key].item())
        assert scores[0] == pytest.approx(1) and scores[1] < 0.999


def test_wrong_layouts_give_one_line(roots, tmp_path):
    path = next(roots["kitti_step"].glob("panoptic_maps/val/*/000001.png"))
    whole = path.read_bytes()
    with pytest.raises(InputError, match="no such folder; get KITTI's tracking images"):
        KittiStep(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"000001\.png: no partner among the panoptic maps"):
        KittiStep(roots["kitti_step"])
    path.write_bytes(whole)

    notes = roots["cityscapes_vps"] / "panoptic_gt_val_city_vps.json"
    kept, data = notes.read_text(), CityscapesVps(roots["cityscapes_vps"])
    content = json.loads(kept)
    faults = {
        "no annotation of": {"annotations": content["annotations"][1:]},
        "is not in": {"annotations": [{**a, "segments_info": a["segments_info"][1:]} for a in content["annotations"]]},
        "not the annotations of Cityscapes-VPS": {"images": []},
    }
    for line, wrong in faults.items():
        notes.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=line) as error:
            CityscapesVps(roots["cityscapes_vps"]).truth(data.names[0])
        assert "\n" not in str(error.value)
    notes.write_text(kept)
    assert data.truth(data.names[0]).instance.max() > 0
