"""One camera and depth from anywhere give what stereo gives, and say what they cannot know."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from shared import shared_folder

from cups.core.errors import InputError
from cups.core.files import write_json, write_png
from cups.core.geometry import back_project, depth_from_disparity
from cups.core.images import to_array
from cups.core.made_from import sample_inputs
from cups.core.records import METRES, RELATIVE_DEPTH, RELATIVE_INVERSE, Depth
from cups.datasets.check import check_dataset
from cups.datasets.depth_folder import NOMINAL_BASELINE_M, DepthFolder, matched_depth, write_depth_sample
from cups.datasets.lidar import lidar_to_camera
from cups.datasets.registry import open_stereo_dataset
from cups.datasets.sense import sample_faults
from cups.stages.matching.classical import ClassicalMatcher, filled_depth
from cups.stages.matching.given_depth import given_disparities
from cups.stages.motion.propose import propose
from cups.stages.scene_flow import SceneFlowSettings, scene_flow
from cups.street.scenes import street_scene
from cups.workbench.layers import frame_layers
from cups.workbench.reports import motion_report
from cups.workbench.sources import DatasetSource


@pytest.fixture(scope="module")
def scene():
    return street_scene((1, 5), 128, 256)


def true_depth(scene, kind=METRES, factor=1.0, shift=0.0, seen=(None, None)):
    """The sample of a scene without its right camera, with true depth, of which a share may be unknown."""
    maps = []
    for time in (0, 1):
        disparity = getattr(scene.truth, f"disparity_{time}")
        metres = torch.where(disparity > 0, depth_from_disparity(disparity, scene.sample.calibration), torch.inf)
        values = factor / metres + shift if kind == RELATIVE_INVERSE else factor * metres
        confidence = torch.ones_like(values) if seen[time] is None else seen[time].float()
        maps.append(Depth(values, confidence, kind, "truth"))
    return scene.sample.replace(right_0=None, right_1=None, depth_0=maps[0], depth_1=maps[1])


class TrueStereo(ClassicalMatcher):
    """Stereo that matches left and right without a mistake, to the last bit that a depth map keeps."""

    def __init__(self, scene):
        super().__init__()
        self.scene = scene

    def _disparities(self, sample, left, factor):
        def larger(values):
            return values.repeat_interleave(factor, 0).repeat_interleave(factor, 1)

        maps = []
        for time in (0, 1):
            names = ("disparity", "disparity_right", "disparity_visible")
            disparity, right, seen = (getattr(self.scene.truth, f"{name}_{time}") for name in names)
            kept = given_disparities(true_depth(self.scene)).disparities[time]
            filled = filled_depth(kept, seen | (disparity == 0), factor)[0]
            maps.append((filled, factor * larger(right), larger(seen & (disparity > 0))))
        return maps, {}


def test_depth_gives_the_proposals_of_stereo_with_true_disparity(scene):
    """Where depth is known of the same pixels, and noise is clamped to one bound: to the bit."""
    bounds = SceneFlowSettings(min_noise_px=0.25)
    seen = [scene.truth.disparity_visible_0, scene.truth.disparity_visible_1]
    seen = [s | (d == 0) for s, d in zip(seen, (scene.truth.disparity_0, scene.truth.disparity_1), strict=True)]
    mono, found = true_depth(scene, seen=seen), []
    for sample, matcher in ((scene.sample, TrueStereo(scene)), (mono, ClassicalMatcher())):
        matches = matcher(sample)
        found.append((matches, propose(sample, scene_flow(sample, matches, bounds), seed=5)))
    (stereo, expected), (one, proposals) = found
    assert torch.equal(stereo.disparity_visible_0, one.disparity_visible_0) and one.disparity_right_0 is None
    assert len(expected.motions) >= 2
    assert torch.equal(proposals.instance, expected.instance) and torch.equal(proposals.motions, expected.motions)


def test_a_moment_needs_a_right_image_or_depth(scene):
    with pytest.raises(InputError, match="needs a right image or depth"):
        scene.sample.replace(right_1=None)
    with pytest.raises(InputError, match="needs a right image or depth"):
        true_depth(scene).replace(depth_1=None)
    with pytest.raises(InputError, match="kind of depth"):
        Depth(torch.ones(2, 2), torch.ones(2, 2), "feet")


def test_other_depth_is_another_input(scene):
    one = true_depth(scene)
    other = one.replace(depth_1=one.depth_1.replace(confidence=0.9 * one.depth_1.confidence))
    assert sample_inputs(one) == sample_inputs(true_depth(scene))
    assert sample_inputs(one)["images"] != sample_inputs(other)["images"]


@pytest.mark.parametrize("kind, factor, shift", [(RELATIVE_DEPTH, 0.13, 0.0), (RELATIVE_INVERSE, 40.0, 3.0)])
def test_scale_and_shift_are_found(scene, kind, factor, shift):
    """Up to one factor, which is that of the camera's height; and that is said."""
    given = given_disparities(true_depth(scene, kind, factor, shift))
    truth = scene.truth.disparity_0
    ratio = (given.disparities[0] / truth)[truth > 1]
    low, middle, high = ratio.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert high / low < 1.15 and 0.7 < middle < 1.2
    later = (given.disparities[1] / scene.truth.disparity_1)[scene.truth.disparity_1 > 1].median().item()
    assert later == pytest.approx(middle, rel=0.05)
    assert not given.facts["scale_known"] and any("above the ground" in line for line in given.facts["cannot_know"])


def test_the_camera_s_height_is_a_scale(scene):
    sample = true_depth(scene, RELATIVE_DEPTH, 7.0)
    high = sample.replace(depth_0=sample.depth_0.replace(camera_height_m=1.3))
    given, truth = given_disparities(high), scene.truth.disparity_0
    assert given.facts["scale_known"]
    guessed = given_disparities(sample).disparities[0][truth > 1].median()
    assert given.disparities[0][truth > 1].median() / guessed == pytest.approx(1.65 / 1.3, rel=0.01)


def test_a_camera_at_rest_leaves_the_shift_open(scene):
    sample = true_depth(scene, RELATIVE_INVERSE, 40.0, 3.0)
    still = sample.replace(left_1=sample.left_0, depth_1=sample.depth_0)
    lines = given_disparities(still).facts["cannot_know"]
    assert any(line.startswith("shift of inverse depth") for line in lines)


def test_unknown_depth_is_not_trusted_and_not_far(scene):
    hole = torch.ones(128, 256, dtype=torch.bool)
    hole[60:100, 100:140] = False
    given = given_disparities(true_depth(scene, seen=(hole, None)))
    disparity, right, seen = filled_depth(given.disparities[0], given.known[0])
    assert right is None and not seen[60:100, 100:140].any() and seen[hole].float().mean() > 0.5
    assert (disparity[90:100, 100:140] > 0).all()  # filled from its surroundings: not the sky


@pytest.fixture
def folder(scene, tmp_path):
    write_depth_sample(tmp_path, true_depth(scene), 0)
    return tmp_path


def test_command_line_and_workbench_take_a_depth_folder(folder, scene):
    report = check_dataset("stereo_folder", folder)
    assert report.usable and "2 images, 2 depth maps" in report.lines[0], report.lines
    video = open_stereo_dataset("stereo_folder", folder)
    assert isinstance(video, DepthFolder) and video.names == ["000000_0"]
    source = DatasetSource(video)
    *_, frame = source.load(0)
    assert frame.right is None and frame.proposals is not None
    assert {"left", "next", "depth", "proposals"} <= frame_layers(frame, source.classes).keys()
    assert "right" not in frame_layers(frame, source.classes)
    assert "Not known: no right camera" in motion_report(frame.diagnostics)


def test_a_wrong_factor_is_doubted(folder, scene):
    camera = scene.sample.calibration.to_dict()
    write_json(folder / "calibration.json", camera | {"depth_scale": 0.01})
    assert any("expected depth_scale" in line for line in check_dataset("depth_folder", folder).lines)
    assert not any("depth" in line for line in sample_faults(true_depth(scene)))


def test_a_camera_without_baseline_has_a_nominal_one(folder, scene):
    camera = scene.sample.calibration
    (folder / "calibration.json").unlink()
    (folder / "K.txt").write_text(f"{camera.fx} 0 {camera.cx} 0 {camera.fy} {camera.cy} 0 0 1\n")
    assert DepthFolder(folder).calibration.baseline_m == NOMINAL_BASELINE_M
    assert DepthFolder(folder)[0].depth_0.values.max() < 256  # a thousand are a metre now


@pytest.mark.parametrize(
    "values, words",
    [
        ({"depth": "feet"}, "depth must be one of"), ({"depth_scale": "5000"}, "depth_scale must be"),
        ({"fx": 0}, "fx"), ({"depth_scale": 0}, "depth_scale must be a positive"),
        ({"width": 256.5}, "width must be a whole number"),
    ],
)
def test_a_wrong_value_is_said_on_opening(folder, scene, values, words):
    write_json(folder / "calibration.json", scene.sample.calibration.to_dict() | values)
    with pytest.raises(InputError, match=words):
        DepthFolder(folder)


def test_inverse_depth_with_a_shift_is_signed(folder, scene):
    inverse = np.where(scene.truth.depth_0 > 0, 1 / scene.truth.depth_0.clamp(0.5), np.nan).astype(np.float32)
    hole = np.isnan(inverse)
    hole[60:80, 100:140] = True
    write_json(folder / "calibration.json", scene.sample.calibration.to_dict() | {"depth": RELATIVE_INVERSE})
    (folder / "depth" / "000000_0.png").unlink()
    found = []
    for shift in (0.0, np.nanmean(inverse)):
        np.save(folder / "depth" / "000000_0.npy", np.where(hole, np.nan, inverse - np.float32(shift)))
        depth = DepthFolder(folder)[0].depth_0
        assert np.array_equal(depth.known.numpy(), ~hole)
        assert np.allclose(depth.values.numpy()[~hole], inverse[~hole] - shift, atol=1e-6)
        found.append(given_disparities(DepthFolder(folder)[0]).disparities[0].numpy()[~hole])
    assert np.allclose(*found, atol=0.01)  # the unknown shift changes nothing
    # of whole numbers 0 is the farthest, not unknown
    (folder / "depth" / "000000_0.npy").unlink()
    write_png(folder / "depth" / "000000_0.png", np.where(hole, 0, 255 * inverse.clip(0, 1)).astype(np.uint8))
    assert DepthFolder(folder)[0].depth_0.known.all()


def test_maps_of_another_resolution(folder):
    path = folder / "depth" / "000000_0.png"
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    write_png(path, np.ascontiguousarray(depth[::2, ::2]))
    assert DepthFolder(folder)[0].depth_0.values.shape == (128, 256) and check_dataset("depth_folder", folder).usable
    write_png(path, np.ascontiguousarray(depth[:, ::2]))
    with pytest.raises(InputError, match="expected the shape of 256 x 128"):
        DepthFolder(folder)[0]
    report = check_dataset("depth_folder", folder)
    assert not report.usable and "expected the shape of 256 x 128" in report.lines[-1]
    path.unlink()
    path.with_suffix(".npy").write_bytes(b"damaged")
    assert check_dataset("depth_folder", folder).faults["all"] == [
        f"{path.with_suffix('.npy')}: not readable as a depth map"
    ]


@pytest.mark.parametrize("width", [100, 768])
def test_maps_of_another_resolution_are_not_shifted(folder, width):
    columns = np.tile(np.arange(1, width + 1, dtype=np.float32), (width // 2, 1))
    (folder / "depth" / "000000_0.png").unlink()
    np.save(folder / "depth" / "000000_0.npy", columns * 256)
    read = DepthFolder(folder)[0].depth_0.values[0].numpy() - 1
    meant = (np.arange(256) + 0.5) * width / 256 - 0.5  # where the middles of the pixels lie in the map
    assert abs((read - meant).mean()) < 0.05


def test_the_check_takes_grey_depth_stored_as_colour(folder):
    write_json(folder / "calibration.json", json.loads((folder / "calibration.json").read_text()) | {"depth_scale": 10})
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None], (128, 1, 3))
    for path in (folder / "depth").iterdir():
        write_png(path, ramp)
    assert DepthFolder(folder)[0].depth_0.values.max() == 25.5 and check_dataset("depth_folder", folder).usable
    write_png(path, ramp * np.array([1, 2, 3], np.uint8))  # a picture of depth in colours
    assert "expected one number a pixel" in check_dataset("depth_folder", folder).faults["all"][0]


def test_a_size_with_a_point_is_a_size(folder):
    path = folder / "depth" / "000000_0.png"
    write_png(path, np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[::2, ::2]))
    values = json.loads((folder / "calibration.json").read_text())
    write_json(folder / "calibration.json", values | {"width": float(values["width"])})
    assert DepthFolder(folder)[0].depth_0.values.shape == (128, 256)


def test_a_sample_names_every_file_it_is_read_from(folder):
    video = DepthFolder(folder)
    before, whole = sample_inputs(video[0]), video.sources(0)
    sure = write_png(folder / "confidence" / "000000_0.png", np.full(video[0].size, 128, np.uint8))
    assert video.sources(0) == [*whole[:4], sure, *whole[4:]] and sample_inputs(video[0]) != before


def test_depth_is_matched_by_time_and_images_without_it_are_left_out(folder):
    shutil.move(folder / "left", folder / "rgb")
    for kind, late in (("rgb", 0.0), ("depth", 0.011)):
        files = sorted((folder / kind).iterdir())
        for k in range(4):
            if (kind, k) != ("depth", 3):
                shutil.copy(files[k % 2], folder / kind / f"{1341846434.7 + k / 30 + late:.6f}.png")
        for file in files:
            file.unlink()
    with pytest.warns(UserWarning, match="1 of 4 images have no depth"):
        video = DepthFolder(folder)
    assert len(video) == 2 and video.sides["depth"][video.names[0]].stem == "1341846434.711000"
    with pytest.raises(InputError, match="no image has a depth map"):
        DepthFolder(folder, tolerance_s=0.001)


def test_one_equal_time_stamp_does_not_switch_matching_by_time_off():
    images = [f"1403636579.{1000 * ms:06d}" for ms in range(0, 900, 30)]
    maps = [f"1403636579.{1000 * (ms + 5):06d}" for ms in range(0, 870, 30)] + [images[-1]]
    assert list(matched_depth(images, maps).items()) == list(zip(images, maps, strict=True))
    assert matched_depth(images, maps[::2]) == dict(zip(images[::2], maps[::2], strict=True))
    names = [f"{number:03d}" for number in range(6)]
    assert matched_depth(names, ["002", "004", "009"]) == {"002": "002", "004": "004"}  # numbers are no times


@pytest.mark.parametrize("per_s", [10**3, 10**6, 10**9])
def test_a_map_of_another_time_is_none_whatever_the_unit_of_the_stamps(per_s):
    images = [str(1403636579 * per_s + number * per_s // 10) for number in range(10)]
    late = lambda ms: [str(int(name) + ms * per_s // 1000) for name in images]  # noqa: E731
    assert matched_depth(images, late(15)) == dict(zip(images, late(15), strict=True))
    assert matched_depth(images, late(45)) == {}  # 0.045 of the 0.1 s between two images
    small = [str(100_000 * number) for number in range(1, 10)]  # since when, and in what unit?
    assert len(matched_depth(small, [str(int(name) + 45_000) for name in small])) == 9


def test_a_map_is_of_one_image():
    images = [f"1403636579.{1000 * ms:06d}" for ms in range(0, 640, 16)]
    maps = [f"1403636579.{1000 * (ms + 7):06d}" for ms in range(0, 640, 32)]
    assert matched_depth(images, maps) == dict(zip(images[::2], maps, strict=True))


def test_scans_of_a_lidar(scene, tmp_path):
    """In KITTI's layout of odometry: the scanner sits above and behind the camera, and looks along its own axes."""
    camera, sample = scene.sample.calibration, scene.sample
    turn = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], float)  # x ahead, y left, z up
    move = np.array([0.05, -0.3, -0.1])
    for time in (0, 1):
        disparity = getattr(scene.truth, f"disparity_{time}")
        points = back_project(depth_from_disparity(disparity, camera), camera)[::2, ::2].reshape(-1, 3).numpy()
        points = (points[points[:, 2] > 0] - move) @ turn
        (tmp_path / "velodyne").mkdir(exist_ok=True)
        np.concatenate([points, points[:, :1]], 1).astype(np.float32).tofile(tmp_path / "velodyne" / f"00000{time}.bin")
        write_png(tmp_path / "image_2" / f"00000{time}.png", to_array(getattr(sample, f"left_{time}")))
    projection = np.array([[camera.fx, 0, camera.cx, 0], [0, camera.fy, camera.cy, 0], [0, 0, 1, 0]])
    lines = [f"P{n}: " + " ".join(f"{v:.9g}" for v in projection.ravel()) for n in range(4)]
    lines[3] = f"P3: {camera.fx} 0 {camera.cx} {-camera.fx * camera.baseline_m} 0 {camera.fy} {camera.cy} 0 0 0 1 0"
    (tmp_path / "calib.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="nothing says where the scanner is"):
        DepthFolder(tmp_path)
    tr = "Tr: " + " ".join(f"{v:.9g}" for v in np.column_stack([turn, move]).ravel())
    (tmp_path / "calib.txt").write_text("\n".join([*lines, tr]) + "\n")
    video = DepthFolder(tmp_path)
    depth, truth = video[0].depth_0, depth_from_disparity(scene.truth.disparity_0, camera)
    known = depth.known & (truth > 0) & (truth < 40)
    wrong = (depth.values / truth - 1).abs()[known]
    assert video.calibration.baseline_m == pytest.approx(camera.baseline_m, rel=1e-4)
    assert known.float().mean() > 0.4 and (wrong > 0.1).float().mean() < 0.02
    assert not depth.known[truth == 0].float().mean() > 0.1  # the sky stays unknown


def test_a_note_in_any_encoding_beside_a_scanner_does_no_harm(tmp_path):
    numbers = "R: 0 -1 0 0 0 -1 1 0 0\nT: 1 2 3\n"
    for start in ("# Grün\n".encode("latin-1"), b"\xef\xbb\xbf"):
        (tmp_path / "calib_velo_to_cam.txt").write_bytes(start + numbers.encode())
        assert np.array_equal(lidar_to_camera(tmp_path)[:3, 3], [1, 2, 3])


def test_two_people_before_an_rgbd_sensor():
    """At the published settings the man who leans forward is found; he who sits moves too little against the noise."""
    video = DepthFolder(shared_folder() / "data" / "tum_rgbd_walking")
    sample = video[0]
    depth = sample.depth_0
    assert len(video) == 5 and 0.5 < depth.known.float().mean() < 0.8
    assert 2 < depth.values[depth.known].median() < 3.5
    proposals = propose(sample, scene_flow(sample, ClassicalMatcher()(sample)))
    rows, columns = np.indices(sample.size)
    man = torch.from_numpy((columns > 350) & (columns < 610) & (rows > 250)) & depth.known & (depth.values < 1.75)
    best = max(
        ((proposals.instance == n) & man).sum() / ((proposals.instance == n) | man).sum()
        for n in range(1, int(proposals.instance.max()) + 1)
    )
    assert best > 0.6
