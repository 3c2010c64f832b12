"""The readers of stereo video data sets on miniatures in their official layouts, whole and damaged."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared_folder

from cups.core.errors import InputError
from cups.core.files import read_image, write_json, write_png
from cups.core.taxonomy import CITYSCAPES_27, CITYSCAPES_LABELS
from cups.datasets import cityscapes_sequences, kitti_raw
from cups.datasets.cityscapes import read_instance_ids
from cups.datasets.cityscapes_sequences import CityscapesSequences, NearestCamera, read_camera, valid_pixels
from cups.datasets.inventory import list_files, lonely
from cups.datasets.kitti_raw import DRIVES_LEFT_OUT, LABELLED_FRAMES, KittiRaw, left_out, read_calibration
from cups.run.generate import generate
from cups.stages.matching.classical import ClassicalMatcher
from cups.stages.pipeline import PseudoLabelSettings
from cups.stages.scene_flow import scene_flow

LEFT = "leftImg8bit_sequence/train/aachen/aachen_000000_000020_leftImg8bit.png"
RIGHT = "rightImg8bit_sequence/train/aachen/aachen_000000_000020_rightImg8bit.png"
CAMERA = "camera/train/aachen/aachen_000000_000019_camera.json"
DRIVE = "2011_09_26/2011_09_26_drive_0001_sync"


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    cityscapes_sequences.write_miniature(folder / "cityscapes", height=64)
    kitti_raw.write_miniature(folder / "kitti", height=64)
    return folder


@pytest.fixture
def cityscapes(miniatures, tmp_path):
    return shutil.copytree(miniatures / "cityscapes", tmp_path / "cityscapes")


@pytest.fixture
def kitti(miniatures, tmp_path):
    return shutil.copytree(miniatures / "kitti", tmp_path / "kitti")


def fails(call, *parts):
    """Check that a call ends in one line that holds the parts."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


# Cityscapes


def test_cityscapes_pairs_images_and_truth(cityscapes):
    dataset = CityscapesSequences(cityscapes)
    assert dataset.names == [
        *("aachen_000000_000019", "aachen_000000_000020", "bochum_000000_000313", "bochum_000000_000314"),
        *("bochum_000000_000598", "bochum_000000_000599", "bochum_000000_000602", "bochum_000000_000603"),
    ]
    assert len(dataset) == 8 and dataset.fps == 17
    sample = dataset[1]
    folder = cityscapes / "rightImg8bit_sequence" / "train" / "aachen"
    right_1 = np.array(Image.open(folder / "aachen_000000_000021_rightImg8bit.png"))
    assert np.array_equal(sample.right_1.permute(1, 2, 0), right_1)
    assert torch.equal(sample.left_0, dataset[0].left_1) and torch.equal(dataset.left(1), sample.left_0)
    assert sample.truth is None and dataset.truth("aachen_000000_000020") is None
    assert CityscapesSequences(cityscapes, "val").names == ["frankfurt_000001_001016", "frankfurt_000001_001017"]


def test_cityscapes_truth_in_27_classes(cityscapes):
    stem = cityscapes / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine"
    ids, numbers = (read_image(f"{stem}_{kind}.png").astype(int) for kind in ("labelIds", "instanceIds"))
    assert ids.dtype == int and read_image(f"{stem}_instanceIds.png").dtype == np.uint16
    truth = CityscapesSequences(cityscapes)[0].truth
    assert np.array_equal(truth.semantic, ids - 7)  # in the miniature all pixels have one of the 27 classes
    assert np.array_equal(truth.instance, np.where(numbers >= 1000, numbers % 1000 + 1, 0)) and truth.instance.any()
    objects = truth.semantic[truth.instance > 0].unique()
    assert all(CITYSCAPES_27.things[number] for number in objects.tolist())
    half = CityscapesSequences(cityscapes, height=32).truth("aachen_000000_000019")
    assert half.semantic.shape == (32, 64) and np.array_equal(half.semantic, truth.semantic[1::2, 1::2])
    cut_off(stem.with_name(stem.name + "_instanceIds.png"))
    fails(lambda: CityscapesSequences(cityscapes)[0], f"{stem}_instanceIds.png: not readable as an image")


def test_cityscapes_truth_of_a_real_frame():
    (path,) = (shared_folder() / "data" / "cityscapes_tiny" / "gtFine").rglob("*_gtFine_labelTrainIds.png")
    ids = path.with_name(path.name.replace("labelTrainIds", "instanceIds"))
    semantic, instance = read_instance_ids(ids, 27)
    to_19 = np.full(256, 255)
    for label in CITYSCAPES_LABELS:
        if label.to_27 != 255:
            to_19[label.to_27] = label.to_19
    assert (to_19[semantic] == read_image(path)).mean() > 0.99  # the files were scaled down one by one
    objects = {kind: instance[semantic == kind].unique().tolist() for kind in semantic[instance > 0].unique().tolist()}
    assert objects == {17: [1, 2, 3, 4], 19: [1, 2, 3]}  # four people, three cars


def test_cityscapes_calibration_after_scaling(tmp_path):
    values = {"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 2200.0, "fy": 2300.0, "u0": 1099.5, "v0": 511.5}}
    write_json(tmp_path / "camera" / "train" / "ulm" / "ulm_000001_000019_camera.json", values)
    for number in (18, 19):
        for side in ("left", "right"):
            name = f"{side}Img8bit_sequence/train/ulm/ulm_000001_{number:06d}_{side}Img8bit.png"
            write_png(tmp_path / name, np.full((1024, 2048, 3), number, np.uint8))
    sample = CityscapesSequences(tmp_path)[0]
    camera = sample.calibration
    assert sample.size == (640, 1280) == (camera.height, camera.width)
    # 5 / 8 of the size; u = 1099.5 is 1100 pixels from the left edge, and 1100 * 5 / 8 = 687.5
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((1375.0, 1437.5, 687.0, 319.5))
    assert camera.baseline_m == 0.2
    rows, columns = (sample.valid.any(axis).nonzero().flatten() for axis in (1, 0))
    assert (columns[0], columns[-1], len(columns)) == (60, 1219, 1160)  # 96 * 5 / 8 on either side
    assert (rows[0], rows[-1], len(rows)) == (32, 511, 480)  # 51 and 205 rows of 1024
    assert sample.valid.sum() == 1160 * 480
    whole = CityscapesSequences(tmp_path, height=None)[0]
    assert whole.size == (1024, 2048) and whole.calibration.cx == 1099.5
    assert valid_pixels(1024, 2048).sum() == (2048 - 2 * 96) * (1024 - 51 - 205)


def test_cityscapes_takes_the_nearest_calibration(cityscapes):
    folder = cityscapes / "camera" / "train" / "bochum"
    for number, baseline_m in ((313, 0.2), (600, 0.3)):
        path = folder / f"bochum_000000_{number:06d}_camera.json"
        write_json(path, json.loads(path.read_text()) | {"extrinsic": {"baseline": baseline_m}})
    dataset = CityscapesSequences(cityscapes)
    assert [dataset[i].calibration.baseline_m for i in range(2, 8)] == [0.2, 0.2, 0.3, 0.3, 0.3, 0.3]
    far = NearestCamera(["a_1_100", "a_1_200"])
    assert [far(f"a_1_{n}") for n in (79, 80, 120, 121, 180)] == [None, "a_1_100", "a_1_100", None, "a_1_200"]
    (folder / "bochum_000000_000600_camera.json").rename(folder / "bochum_000000_000700_camera.json")
    dataset = CityscapesSequences(cityscapes)
    assert len(dataset) == 8 and dataset[2].calibration.baseline_m == 0.2  # of 598 it is said when it is read
    fails(lambda: dataset[4], folder, "no calibration file of clip bochum_000000 within 20 frames")
    shutil.rmtree(cityscapes / "camera")
    fails(lambda: CityscapesSequences(cityscapes), "camera/train/aachen: no calibration file of clip aachen_000000")


def test_cityscapes_frames_without_a_partner_are_named(cityscapes):
    names = CityscapesSequences(cityscapes).names
    (cityscapes / RIGHT).unlink()
    dataset = CityscapesSequences(cityscapes)
    assert dataset.names == names
    for index in (0, 1):  # the middle one of frames 19, 20, 21 has no right image
        fails(lambda index=index: dataset[index], f"{cityscapes / RIGHT}: no such file")
    assert dataset[2].name == "bochum_000000_000313"
    parts = [part for part in cityscapes_sequences.inventory(cityscapes) if part.split == "train"]
    assert [(path, part.kind) for path, part in lonely(parts)] == [(cityscapes / LEFT, "right images")]
    (cityscapes / LEFT).unlink()  # a frame that neither camera has is a hole
    assert CityscapesSequences(cityscapes).names == names[2:]
    shutil.rmtree(cityscapes / "rightImg8bit_sequence" / "train" / "aachen")
    fails(lambda: CityscapesSequences(cityscapes), "rightImg8bit_sequence/train/aachen: no right images")


def test_cityscapes_faults_in_files(cityscapes):
    dataset = CityscapesSequences(cityscapes)
    cut_off(cityscapes / LEFT)
    fails(lambda: dataset[0], f"{cityscapes / LEFT}: not readable as an image")
    write_png(cityscapes / LEFT, np.zeros((64, 100, 3), np.uint8))
    fails(lambda: dataset[0], f"{cityscapes / LEFT}: 100 x 64 pixels, but ", "000019_leftImg8bit.png has 128 x 64")
    shutil.copy(cityscapes / RIGHT, cityscapes / LEFT)
    path, good = cityscapes / CAMERA, json.loads((cityscapes / CAMERA).read_text())
    for change, fault in (
        ({"extrinsic": {}}, "calibration value extrinsic.baseline is missing"),
        ({"intrinsic": None}, "calibration value intrinsic.fx is missing"),
        ({"extrinsic": {"baseline": -0.2}}, "baseline_m must be positive"),
        ({"intrinsic": good["intrinsic"] | {"u0": 1096.0}}, "lies outside of the 128 x 64 pixels of the image"),
    ):
        write_json(path, good | change)
        fails(lambda: dataset[0], f"{path}: ", fault)
    write_json(path, [])
    fails(lambda: read_camera(path, 64, 128), "extrinsic.baseline is missing")
    path.write_text("{")
    fails(lambda: dataset[0], f"{path}: not readable as JSON")


def test_cityscapes_faults_in_folders(cityscapes, tmp_path):
    fails(lambda: CityscapesSequences(tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    fails(lambda: CityscapesSequences(tmp_path), tmp_path / "leftImg8bit_sequence" / "train", "no images")
    odd = (cityscapes / LEFT).with_name("copy_of_aachen_leftImg8bit.png")
    shutil.copy(cityscapes / LEFT, odd)
    fails(lambda: CityscapesSequences(cityscapes), odd, "expected the name <city>_<clip>_<frame>_leftImg8bit.png")
    shutil.rmtree(cityscapes / "leftImg8bit_sequence" / "train")
    lone = cityscapes / LEFT
    lone.parent.mkdir(parents=True)
    shutil.copy(cityscapes / RIGHT, lone)
    for path in (cityscapes / RIGHT).parent.iterdir():
        if path.name != (cityscapes / RIGHT).name:
            path.unlink()
    fails(lambda: CityscapesSequences(cityscapes), cityscapes, "no two frames follow each other")


def test_deep_and_grey_images_become_rgb_of_8_bits(cityscapes):
    grey = (np.arange(64 * 128).reshape(64, 128) * 8).astype(np.uint16)
    write_png(cityscapes / LEFT, grey)
    assert np.array_equal(CityscapesSequences(cityscapes)[0].left_1, np.stack([grey // 256] * 3))


def test_nothing_outside_the_valid_pixels_is_trusted(cityscapes):
    sample = CityscapesSequences(cityscapes)[0]
    flow = scene_flow(sample, ClassicalMatcher()(sample))
    assert flow.trusted.any() and not flow.trusted[~sample.valid].any() and not flow.flow_seen[~sample.valid].any()
    everywhere = scene_flow(sample.replace(valid=None), ClassicalMatcher()(sample))
    assert everywhere.trusted[~sample.valid].any()


# KITTI


def test_kitti_pairs_and_images(kitti):
    dataset = KittiRaw(kitti)
    assert dataset.names == [
        "2011_09_26_drive_0001_sync_0000000000",
        "2011_09_26_drive_0001_sync_0000000001",
        "2011_09_26_drive_0005_sync_0000000003",  # frame 5 is near the labelled frame 10
        "2011_10_03_drive_0027_sync_0000000000",
        "2011_10_03_drive_0027_sync_0000000001",
        "2011_10_03_drive_0027_sync_0000000004",  # after a hole at 3
        "2011_10_03_drive_0027_sync_0000000005",
    ]
    assert dataset.fps == 10 and dataset[2].truth is None and dataset[2].valid is None
    right_1 = read_image(kitti / DRIVE / "image_03" / "data" / "0000000002.png")
    assert np.array_equal(dataset[1].right_1.permute(1, 2, 0), right_1)
    cut = KittiRaw(kitti, height=60, width=200)
    assert torch.equal(cut.left(0), dataset.left(0)[:, 2:62, 6:206]) and cut[0].size == (60, 200)


def test_kitti_calibration_after_cropping(kitti):
    numbers = "7.215377e+02 0 6.095593e+02 {} 0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.745884e-03"
    lines = ["S_rect_02: 1.242000e+03 3.750000e+02", "P_rect_02: " + numbers.format("4.485728e+01")]
    lines += ["corner_dist: 9.950000e-02", "P_rect_03: " + numbers.format("-3.395242e+02"), ""]
    (kitti / "2011_09_26" / "calib_cam_to_cam.txt").write_text("\n".join(lines))
    for side in ("image_02", "image_03"):
        for number in range(3):
            write_png(kitti / DRIVE / side / "data" / f"{number:010d}.png", np.zeros((375, 1242, 3), np.uint8))
    camera = KittiRaw(kitti)[0].calibration
    assert (camera.height, camera.width) == (368, 1104)
    # the window starts at row (375 - 368) // 2 = 3 and column (1242 - 1104) / 2 = 69
    assert (camera.fx, camera.fy) == (721.5377, 721.5377)
    assert (camera.cx, camera.cy) == pytest.approx((540.5593, 169.854))
    assert camera.baseline_m == pytest.approx((44.85728 + 339.5242) / 721.5377)  # 0.5327


def test_kitti_leaves_out_what_the_specification_says(kitti):
    facts = json.loads((shared_folder() / "spec" / "labels.json").read_text())["kitti_raw"]
    assert set(facts["ignored_clips"]) == DRIVES_LEFT_OUT
    form = "{0}/{1}_sync/image_02/data/{2:010d}.png"
    frames = [form.format(drive[:10], drive, frame) for drive, some in LABELLED_FRAMES.items() for frame in some]
    assert sorted(frames) == sorted(facts["validation_frames"])
    near = [frame for frame in range(640, 665) if not left_out("2011_09_26_drive_0022", frame)]
    assert near == [660, 661, 662, 663, 664]


def test_kitti_faults(kitti, tmp_path):
    fails(lambda: KittiRaw(tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    fails(lambda: KittiRaw(kitti / DRIVE), f"{kitti / DRIVE}: no images")
    fails(lambda: KittiRaw(kitti, height=0), "crop must be positive")
    dataset, image = KittiRaw(kitti), kitti / DRIVE / "image_02" / "data" / "0000000000.png"
    write_png(image, np.zeros((64, 100, 3), np.uint8))
    fails(lambda: dataset[0], f"image_03/data/0000000000.png: 212 x 64 pixels, but {image} has 100 x 64")
    for side in ("image_02", "image_03"):
        for number in range(3):
            write_png(kitti / DRIVE / side / "data" / f"{number:010d}.png", np.zeros((64, 100, 3), np.uint8))
    fails(lambda: dataset[0], f"{image}: 100 x 64 pixels, but calib_cam_to_cam.txt says 212 x 64")
    image.write_bytes(image.read_bytes()[:60])
    fails(lambda: dataset.left(0), f"{image}: not readable as an image")
    image.unlink()
    fails(lambda: dataset.left(0), f"{image}: no such file")
    assert KittiRaw(kitti).names == dataset.names
    fails(lambda: KittiRaw(kitti)[0], f"{image}: no such file")
    shutil.rmtree(kitti / DRIVE / "image_03")
    fails(lambda: KittiRaw(kitti), f"{kitti / DRIVE / 'image_03'}: no right images")


def test_kitti_calibration_faults(kitti):
    path = kitti / "2011_09_26" / "calib_cam_to_cam.txt"
    good = path.read_text()
    assert KittiRaw(kitti)[0].calibration.baseline_m == pytest.approx(0.5, abs=1e-5)
    for bad, fault in (
        (good.replace("P_rect_03", "P_rect_01"), "P_rect_03 is missing"),
        (good.replace("P_rect_02: ", "P_rect_02: one "), "P_rect_02 is not made of numbers"),
        (good.replace("P_rect_02: ", "P_rect_02: 1 "), "P_rect_02 has 13 numbers, expected 12"),
        (good.replace("_02:", "_xx:").replace("_03:", "_02:").replace("_xx:", "_03:"), "baseline_m must be positive"),
        (good.replace("S_rect_02: ", "S_rect_02: nan "), "S_rect_02 has 3 numbers"),
        ("S_rect_02: nan 5\n" + good.split("\n", 2)[2], "cannot convert float NaN"),
    ):
        path.write_text(bad)
        fails(lambda: KittiRaw(kitti), f"{path}: ", fault)
    path.write_bytes(b"\xff\xfe\x00")
    fails(lambda: read_calibration(path), f"{path}: not readable as text")
    path.unlink()
    fails(lambda: KittiRaw(kitti), f"{path}: no such file")


# Both


@pytest.mark.parametrize("kind", ["cityscapes", "kitti"])
def test_pseudo_labels_of_a_miniature(kind, miniatures, tmp_path):
    root = miniatures / kind
    dataset = CityscapesSequences(root, "val") if kind == "cityscapes" else KittiRaw(root, height=60, width=128)
    dataset = pickle.loads(pickle.dumps(dataset))  # as other processes get it
    dataset.pairs = dataset.pairs[:2]
    settings = PseudoLabelSettings(num_classes=6, num_object_classes=2)
    store = generate(dataset, tmp_path / "labels", settings, workers=1)
    assert store.names == dataset.names
    label = store.read(dataset.names[0])
    assert label.semantic.shape == dataset[0].size == {"cityscapes": (64, 128), "kitti": (60, 128)}[kind]
    assert label.diagnostics["flow"]


# The listing of files


def test_listing_sees_what_changes(cityscapes):
    pattern = "leftImg8bit_sequence/*/*/*.png"
    (first,) = list_files(cityscapes, pattern)
    assert sum(map(len, first.values())) == 15
    (cityscapes / LEFT).unlink()
    shutil.copytree(cityscapes / "leftImg8bit_sequence" / "val", cityscapes / "leftImg8bit_sequence" / "test")
    (second,) = list_files(cityscapes, pattern)
    assert sum(map(len, second.values())) == 17 and "leftImg8bit_sequence/test/frankfurt" in second


def test_listing_follows_links(cityscapes):
    target = cityscapes / "camera" / "train" / "aachen"
    shutil.rmtree(target)
    target.symlink_to(target.with_name("bochum"))
    assert list_files(cityscapes, "camera/train/*/*.json")[0].keys() == {"camera/train/aachen", "camera/train/bochum"}
    shutil.rmtree(target.with_name("bochum"))
    assert list_files(cityscapes, "camera/train/*/*.json") == [{}]
