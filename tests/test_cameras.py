"""What cameras deliver: calibration files of every kind, raw pairs to be rectified, and video files."""

import json
import os
import pickle
import platform
import shutil
import threading

import cv2
import numpy as np
import pytest
import torch
import yaml

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, write_json, write_png
from cups.core.images import to_array
from cups.core.records import Calibration
from cups.datasets.calibration_files import folder_calibration, read_pair
from cups.datasets.camera_pair import CameraPair, Lens
from cups.datasets.check import check_dataset
from cups.datasets.clips import clips_of
from cups.datasets.kitti_raw import read_calibration
from cups.datasets.rectification import rectification, vertical_offset
from cups.datasets.stereo_folder import StereoFolder
from cups.datasets.stereo_video import StereoVideo, _first_drop
from cups.datasets.video_files import VideoFile
from cups.labels.store import PseudoLabelStore
from cups.run.inputs import source_states
from cups.run.rectify import rectify_folder
from cups.street.scenes import street_clip
from cups.workbench.sources import open_source

# As published with the data: odometry sequence 00, and the raw recordings of 2011_09_26.
KITTI_00 = """\
P0: 7.188560000000e+02 0.000000000000e+00 6.071928000000e+02 0.000000000000e+00 0.000000000000e+00 7.188560000000e+02 \
1.852157000000e+02 0.000000000000e+00 0.000000000000e+00 0.000000000000e+00 1.000000000000e+00 0.000000000000e+00
P1: 7.188560000000e+02 0.000000000000e+00 6.071928000000e+02 -3.861448000000e+02 0.000000000000e+00 7.188560000000e+02 \
1.852157000000e+02 0.000000000000e+00 0.000000000000e+00 0.000000000000e+00 1.000000000000e+00 0.000000000000e+00
P2: 7.188560000000e+02 0.000000000000e+00 6.071928000000e+02 4.538225000000e+01 0.000000000000e+00 7.188560000000e+02 \
1.852157000000e+02 -1.130887000000e-01 0.000000000000e+00 0.000000000000e+00 1.000000000000e+00 3.779761000000e-03
P3: 7.188560000000e+02 0.000000000000e+00 6.071928000000e+02 -3.372877000000e+02 0.000000000000e+00 7.188560000000e+02 \
1.852157000000e+02 2.369057000000e+00 0.000000000000e+00 0.000000000000e+00 1.000000000000e+00 4.915215000000e-03
Tr: 4.276802385584e-04 -9.999672484946e-01 -8.084491683471e-03 -1.198459927713e-02 -7.210626507497e-03 \
8.081198471645e-03 -9.999413164504e-01 -5.403984729748e-02 9.999738645903e-01 4.859485810390e-04 -7.206933692422e-03 \
-2.921968648686e-01
"""
KITTI_RAW = """\
calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_02: 1.392000e+03 5.120000e+02
K_02: 9.597910e+02 0.000000e+00 6.960217e+02 0.000000e+00 9.569251e+02 2.241806e+02 0.000000e+00 0.000000e+00 \
1.000000e+00
D_02: -3.691481e-01 1.968681e-01 1.353473e-03 5.677587e-04 -6.770705e-02
R_02: 9.999758e-01 -5.267463e-03 -4.552439e-03 5.251945e-03 9.999804e-01 -3.413835e-03 4.570332e-03 3.389843e-03 \
9.999838e-01
T_02: 5.956621e-02 2.900141e-04 2.577209e-03
S_rect_02: 1.242000e+03 3.750000e+02
R_rect_02: 9.998817e-01 1.511453e-02 -2.841595e-03 -1.511724e-02 9.998853e-01 -9.338510e-04 2.827154e-03 9.766976e-04 \
9.999955e-01
P_rect_02: 7.215377e+02 0.000000e+00 6.095593e+02 4.485728e+01 0.000000e+00 7.215377e+02 1.728540e+02 2.163791e-01 \
0.000000e+00 0.000000e+00 1.000000e+00 2.745884e-03
S_03: 1.392000e+03 5.120000e+02
K_03: 9.037596e+02 0.000000e+00 6.957519e+02 0.000000e+00 9.019653e+02 2.242509e+02 0.000000e+00 0.000000e+00 \
1.000000e+00
D_03: -3.639558e-01 1.788651e-01 6.029694e-04 -3.922424e-04 -5.382460e-02
R_03: 9.995599e-01 1.699522e-02 -2.431313e-02 -1.704422e-02 9.998531e-01 -1.809756e-03 2.427880e-02 2.223358e-03 \
9.997028e-01
T_03: -4.731050e-01 5.551470e-03 -5.250882e-03
S_rect_03: 1.242000e+03 3.750000e+02
R_rect_03: 9.998321e-01 -7.193136e-03 1.685599e-02 7.232804e-03 9.999712e-01 -2.293585e-03 -1.683901e-02 2.415116e-03 \
9.998553e-01
P_rect_03: 7.215377e+02 0.000000e+00 6.095593e+02 -3.395242e+02 0.000000e+00 7.215377e+02 1.728540e+02 2.199936e+00 \
0.000000e+00 0.000000e+00 1.000000e+00 2.729905e-03
"""
# Middlebury 2021, a scene without an offset; and 2014, Adirondack, with one.
MIDDLEBURY = """\
cam0=[1733.74 0 792.27; 0 1733.74 541.89; 0 0 1]
cam1=[1733.74 0 792.27; 0 1733.74 541.89; 0 0 1]
doffs=0
baseline=536.62
width=1920
height=1080
ndisp=170
vmin=55
vmax=142
"""
ADIRONDACK = """\
cam0=[4161.221 0 1445.577; 0 4161.221 984.686; 0 0 1]
cam1=[4161.221 0 1654.636; 0 4161.221 984.686; 0 0 1]
doffs=209.059
baseline=176.252
width=2880
height=1988
ndisp=280
isint=0
vmin=33
vmax=257
dyavg=0
dymax=0
"""
KALIBR = """\
cam0:
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]
  distortion_model: radtan
  intrinsics: [458.654, 457.296, 367.215, 248.375]
  resolution: [752, 480]
  rostopic: /cam0/image_raw
cam1:
  T_cn_cnm1:
  - [0.99999726, 0.00231214, 0.00037601, -0.11007381]
  - [-0.00231714, 0.99989805, 0.01408985, 0.00039912]
  - [-0.00034339, -0.01409069, 0.99990066, -0.00085370]
  - [0.0, 0.0, 0.0, 1.0]
  cam_overlaps: [0]
  camera_model: pinhole
  distortion_coeffs: [-0.28368365, 0.07451284, -0.00010473, -3.55590700e-05]
  distortion_model: radtan
  intrinsics: [457.587, 456.134, 379.999, 255.238]
  resolution: [752, 480]
  rostopic: /cam1/image_raw
"""


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(call, *words):
    """Assert that a call ends in one line with these words."""
    with pytest.raises(InputError) as error:
        call()
    line = str(error.value)
    assert "\n" not in line and all(str(word) in line for word in words), line


# ---- Calibration ----


def test_kitti_odometry(tmp_path, capsys):
    file = written(tmp_path / "calib.txt", KITTI_00.replace("\n", "\r\n"))
    refused(lambda: read_pair(file).calibration(), file, "--width and --height")
    out = tmp_path / "out" / "calibration.json"
    assert main(["calibration", str(file), "--out", str(out), "--width", "1241", "--height", "376"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    words = str(file), "KITTI odometry", "fx 718.86 px", "baseline 0.5323 m", "1241 x 376"
    assert all(word in said for word in words)
    camera = Calibration.from_json(out)
    assert (camera.fx, camera.cx, camera.cy) == (718.856, 607.1928, 185.2157)
    assert camera.baseline_m == pytest.approx((45.38225 + 337.2877) / 718.856)  # not 0.386 or 386, of P1 alone
    assert read_pair(file, grey=True).calibration((1241, 376)).baseline_m == pytest.approx(386.1448 / 718.856)


def test_kitti_raw(tmp_path):
    file = written(tmp_path / "calib_cam_to_cam.txt", KITTI_RAW)
    pair = read_pair(file)
    assert pair.calibration() == read_calibration(file)
    # the pose of the raw cameras is that of the rectified ones, to a millimetre
    assert np.linalg.norm(pair.translation_m) == pytest.approx(pair.calibration().baseline_m, abs=1e-3)
    straighten = rectification(pair)
    assert straighten.raw_size == (1392, 512)  # the raw images are larger than KITTI's rectified ones
    ours, theirs = straighten.calibration, pair.calibration()
    assert ours.width / ours.fx == pytest.approx(theirs.width / theirs.fx, rel=0.1)  # nearly the same view


def test_middlebury_is_in_millimetres_and_must_have_one_principal_point(tmp_path, capsys):
    camera = read_pair(written(tmp_path / "calib.txt", MIDDLEBURY)).calibration()
    assert camera.baseline_m == pytest.approx(0.53662)
    assert camera == Calibration(1733.74, 1733.74, 792.27, 541.89, camera.baseline_m, 1920, 1080)
    file = written(tmp_path / "adirondack.txt", ADIRONDACK)
    assert main(["calibration", str(file)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "209.059 pixels apart (doffs)" in line and "cups rectify" in line
    # in metres by mistake: not a baseline of 0.2 mm
    file = written(tmp_path / "metres.txt", MIDDLEBURY.replace("536.62", "0.53662"))
    refused(lambda: read_pair(file).calibration(), file, "0.00053662 m cannot be", "--unit")
    assert read_pair(file, unit_m=1.0).calibration().baseline_m == 0.53662
    other = written(tmp_path / "other.txt", ADIRONDACK.replace("doffs=209", "doffs=20"))
    refused(lambda: read_pair(other), other, "doffs is 20.059")


@pytest.mark.parametrize(
    "text", ["754.67 0 489.4 0 754.67 265.2 0 0 1\n0.063\n", "754.67 0 489.4\n0 754.67 265.2\n0 0 1\n0.063"]
)
def test_plain_matrix(tmp_path, text):
    file = written(tmp_path / "K.txt", text)
    assert read_pair(file).calibration((960, 540)) == Calibration(754.67, 754.67, 489.4, 265.2, 0.063, 960, 540)
    without = written(tmp_path / "K2.txt", text.removesuffix("\n").removesuffix("0.063"))
    refused(lambda: read_pair(without).calibration((960, 540)), without, "--baseline")
    assert read_pair(without).calibration((960, 540), baseline_m=0.1).baseline_m == 0.1


@pytest.fixture(scope="module")
def stereo_calibrated():
    """What OpenCV's stereoCalibrate and stereoRectify return for a chessboard of 30 mm squares seen by a known pair."""
    size, rng = (640, 480), np.random.default_rng(0)
    board = np.zeros((54, 3), np.float32)
    board[:, :2] = 30.0 * np.mgrid[:9, :6].T.reshape(-1, 2)
    matrix = np.array([[520.0, 0, 325], [0, 521, 238], [0, 0, 1]])
    bends = np.array([-0.25, 0.08, 0.001, -0.0005, 0]), np.array([-0.22, 0.06, -0.0005, 0.001, 0])
    turn, move = cv2.Rodrigues(np.array([0.01, -0.015, 0.006]))[0], np.array([[-119.0], [1.5], [-2.0]])
    seen = [[], []]
    for _ in range(12):
        pose = cv2.Rodrigues(rng.uniform(-0.5, 0.5, 3))[0]
        place = np.array([[-120.0], [-75], [0]]) + rng.uniform((-80, -60, 500), (80, 60, 800)).reshape(3, 1)
        for side, (r, t) in enumerate(((pose, place), (turn @ pose, turn @ place + move))):
            points, _ = cv2.projectPoints(board, cv2.Rodrigues(r)[0], t, matrix, bends[side])
            seen[side].append(points.astype(np.float32))
    boards = [board] * 12
    singles = [cv2.calibrateCamera(boards, points, size, None, None)[1:3] for points in seen]
    _, k1, d1, k2, d2, r, t, *_ = cv2.stereoCalibrate(
        boards, *seen, *singles[0], *singles[1], size, flags=cv2.CALIB_FIX_INTRINSIC
    )
    r1, r2, p1, p2, q, *_ = cv2.stereoRectify(k1, d1, k2, d2, size, r, t)
    return {"M1": k1, "D1": d1, "M2": k2, "D2": d2, "R": r, "T": t, "R1": r1, "R2": r2, "P1": p1, "P2": p2, "Q": q}


def opencv_file(path, values):
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in values.items():
        storage.write(name, value)
    storage.release()
    return path


@pytest.mark.parametrize("suffix", ["yml", "yaml", "xml", "json"])
def test_opencv(tmp_path, stereo_calibrated, suffix, capsys):
    values, size = stereo_calibrated, ["--width", "640", "--height", "480"]
    intrinsics = opencv_file(tmp_path / f"intrinsics.{suffix}", {k: values[k] for k in ("M1", "D1", "M2", "D2")})
    extrinsics = opencv_file(tmp_path / f"extrinsics.{suffix}", {k: v for k, v in values.items() if k[0] in "RTPQ"})
    out = tmp_path / "calibration.json"
    arguments = ["calibration", str(intrinsics), str(extrinsics), *size, "--out", str(out)]
    assert main(arguments) == 2  # the squares were given in millimetres, and nothing in the file says so
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "m cannot be" in line and "--unit" in line and not out.exists()
    assert main([*arguments, "--unit", "mm"]) == 0
    assert "of rectified images, not of the raw ones" in capsys.readouterr().out
    camera = Calibration.from_json(out)
    assert camera.baseline_m == pytest.approx(0.119, rel=0.01)  # as the pair was
    assert camera.fx == pytest.approx(values["P1"][0, 0]) and camera.cx == pytest.approx(values["P1"][0, 2])
    refused(lambda: read_pair(intrinsics).calibration((640, 480)), intrinsics, "how far apart")
    whole = read_pair(opencv_file(tmp_path / f"stereo.{suffix}", values), unit_m=1e-3)
    assert whole.calibration((640, 480)) == camera and whole.lenses[1].distortion.shape == (5,)
    by_q = read_pair(opencv_file(tmp_path / f"q.{suffix}", {"Q": values["Q"]}), unit_m=1e-3).calibration((640, 480))
    assert by_q.baseline_m == pytest.approx(camera.baseline_m) and by_q.fx == pytest.approx(camera.fx)


@pytest.mark.parametrize("names", [
    ("cameraMatrix1", "cameraMatrix2", "distCoeffs1", "distCoeffs2"),
    ("K_left", "K_right", "D_left", "D_right"),
    ("camera_matrix_l", "camera_matrix_r", "dist_coeffs_l", "dist_coeffs_r"),
    ("mtxL", "mtxR", "distL", "distR"),
    ("LEFT.K", "RIGHT.K", "LEFT.D", "RIGHT.D"),
    ("left_camera_matrix", "right_camera_matrix", "left_distortion", "right_distortion"),
    ("K0", "K1", "D0", "D1"),
])  # fmt: skip
def test_spellings_of_opencv(tmp_path, names):
    matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    other = np.array([[501.0, 0, 320], [0, 501, 240], [0, 0, 1]])
    values = dict(zip(names, (matrix, other, np.full(5, 0.01), np.full(5, 0.02)), strict=True))
    values |= {"R": np.eye(3), "T": np.array([-0.2, 0, 0]), "image_width": 640, "image_height": 480}
    written(tmp_path / "pair.yaml", yaml.safe_dump({k: np.asarray(v).tolist() for k, v in values.items()}))
    np.savez(tmp_path / "pair.npz", **values)
    shutil.copy(tmp_path / "pair.npz", tmp_path / "PAIR.NPZ")
    for file in ("pair.yaml", "pair.npz", "PAIR.NPZ"):
        pair = read_pair(tmp_path / file)
        assert [lens.matrix[0, 0] for lens in pair.lenses] == [500, 501] and pair.size == (640, 480)
        assert [lens.distortion[0] for lens in pair.lenses] == [0.01, 0.02]
        refused(pair.calibration, file, "distort", "cups rectify")


@pytest.mark.parametrize("said, fisheye", [
    ({}, False), ({"fisheye": False}, False), ({"is_fisheye": 0}, False), ({"fisheye": "no"}, False),
    ({"note": "not a fisheye lens"}, False), ({"model": "pinhole"}, False), ({"fisheye": True}, True),
    ({"isFisheye": 1}, True), ({"camera_model": "opencv_fisheye"}, True), ({"type": "fisheye"}, True),
    ({"fisheye_flags": 14}, True), ({"left": {"fisheye": False}}, False), ({"left": {"model": "fisheye"}}, True),
])  # fmt: skip
def test_a_fisheye_is_what_is_said_to_be_one(tmp_path, said, fisheye):
    matrix, bend = [[500.0, 0, 320], [0, 500, 240], [0, 0, 1]], [-0.1, 0.01, 0, 0]
    pair = {"K1": matrix, "K2": matrix, "D1": bend, "D2": bend, "R": np.eye(3).tolist(), "T": [-0.2, 0, 0]}
    for file, text in (("pair.json", json.dumps(pair | said)), ("pair.yaml", yaml.safe_dump(pair | said))):
        assert [lens.fisheye for lens in read_pair(written(tmp_path / file, text)).lenses] == [fisheye] * 2
    if not any(isinstance(value, dict | bool) for value in said.values()):  # what OpenCV writes
        values = {name: np.array(value) if isinstance(value, list) else value for name, value in (pair | said).items()}
        assert read_pair(opencv_file(tmp_path / "cv.yml", values)).lenses[0].fisheye == fisheye


EUROC = """\
%YAML:1.0
LEFT.height: 480
LEFT.width: 752
LEFT.D: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data:[-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05, 0.0]
LEFT.K: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [458.654, 0.0, 367.215, 0.0, 457.296, 248.375, 0.0, 0.0, 1.0]
LEFT.R: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [0.999966347530033, -0.001422739138722922, 0.008079580483432283, 0.001365741834644127, 0.9999741760894847,
      0.007055629199258132, -0.008089410156878961, -0.007044357138835809, 0.9999424675829176]
LEFT.P: !!opencv-matrix
   rows: 3
   cols: 4
   dt: d
   data: [435.2046959714599, 0, 367.4517211914062, 0,  0, 435.2046959714599, 252.2008514404297, 0,  0, 0, 1, 0]
RIGHT.height: 480
RIGHT.width: 752
RIGHT.D: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data:[-0.28368365, 0.07451284, -0.00010473, -3.555907e-05, 0.0]
RIGHT.K: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [457.587, 0.0, 379.999, 0.0, 456.134, 255.238, 0.0, 0.0, 1]
RIGHT.R: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [0.9999633526194376, -0.003625811871560086, 0.007755443660172947, 0.003680398547259526, 0.9999684752771629,
      -0.007035845251224894, -0.007729688520722713, 0.007064130529506649, 0.999945173484644]
RIGHT.P: !!opencv-matrix
   rows: 3
   cols: 4
   dt: d
   data: [435.2046959714599, 0, 367.4517211914062, -47.90639384423901, 0, 435.2046959714599, 252.2008514404297, 0,
      0, 0, 1, 0]
"""


def test_two_files_of_one_camera_agree(tmp_path):
    # EuRoC's cameras as Kalibr's chain, and as the settings of ORB-SLAM2: rectifying rotations, but no R and T
    chain, settings = written(tmp_path / "chain.yaml", KALIBR), written(tmp_path / "EuRoC.yaml", EUROC)
    one, other = read_pair(chain), read_pair(settings)
    assert other.calibration().baseline_m == pytest.approx(0.110078, abs=1e-5) and other.size == one.size
    assert np.allclose(one.rotation, other.rotation, atol=2e-4)
    assert np.allclose(one.translation_m, other.translation_m, atol=2e-5)
    ours, theirs = rectification(one).calibration, rectification(other).calibration
    assert ours.fx == pytest.approx(theirs.fx, abs=0.1) and abs(ours.cx - theirs.cx) < 0.2


def camera_info(values, side, size=(640, 480)):
    """Return the text of a camera_info as ROS' calibrator writes it."""
    def matrix(name, rows, cols):
        data = ", ".join(f"{number:.5f}" for number in np.ravel(values[name]))
        return f"  rows: {rows}\n  cols: {cols}\n  data: [{data}]\n"

    return (
        f"image_width: {size[0]}\nimage_height: {size[1]}\ncamera_name: narrow_stereo/{side}\n"
        f"camera_matrix:\n{matrix(f'M{side}', 3, 3)}distortion_model: plumb_bob\n"
        f"distortion_coefficients:\n{matrix(f'D{side}', 1, np.size(values[f'D{side}']))}"
        f"rectification_matrix:\n{matrix(f'R{side}', 3, 3)}projection_matrix:\n{matrix(f'P{side}', 3, 4)}"
    )


def in_metres(values):
    return values | {"T": values["T"] / 1000, "P2": values["P2"] * [1, 1, 1, 1e-3]}


def test_ros(tmp_path, stereo_calibrated, capsys):
    values = in_metres(stereo_calibrated)
    left, right = (written(tmp_path / f"{n}.yaml", camera_info(values, s)) for n, s in (("left", 1), ("right", 2)))
    assert main(["calibration", str(left), str(right), "--out", str(tmp_path / "calibration.json")]) == 0
    assert "ROS camera_info" in capsys.readouterr().out
    camera = Calibration.from_json(tmp_path / "calibration.json")
    assert camera.baseline_m == pytest.approx(0.119, rel=0.01) and (camera.width, camera.height) == (640, 480)
    pair = read_pair(left, right)
    printed = []
    for file in (left, right):  # as a message that `rostopic echo` prints
        info = yaml.safe_load(file.read_text())
        message = {key: info[name]["data"] for key, name in (("D", "distortion_coefficients"), ("K", "camera_matrix"),
                   ("R", "rectification_matrix"), ("P", "projection_matrix"))}  # fmt: skip
        message |= {"height": 480, "width": 640, "distortion_model": "plumb_bob"}
        printed.append(written(tmp_path / f"echo_{file.stem}.txt", yaml.safe_dump(message) + "---\n"))
    assert read_pair(*printed).calibration() == pair.calibration()
    assert np.allclose(pair.rotation, values["R"], atol=1e-4)
    assert np.allclose(pair.translation_m, values["T"].ravel(), atol=1e-4)
    refused(lambda: read_pair(left).calibration(), left, "one camera", "left.yaml right.yaml")
    refused(lambda: read_pair(right, left).calibration(), "swap left and right")
    whole = written(tmp_path / "calib.txt", KITTI_00)
    refused(lambda: read_pair(left, whole), whole, "give it alone")
    refused(lambda: read_pair(left, right, whole), "got 3")
    small = written(tmp_path / "small.yaml", camera_info(values, 2, (320, 240)))
    refused(lambda: read_pair(left, small), small, "320 x 240")


def test_kalibr(tmp_path, capsys):
    file = written(tmp_path / "camchain.yaml", KALIBR)
    assert main(["calibration", str(file)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(file) in line and "distort" in line and "cups rectify" in line
    pair = read_pair(file)
    assert np.linalg.norm(pair.translation_m) == pytest.approx(0.110078, abs=1e-6) and pair.size == (752, 480)
    straight = KALIBR.replace("[-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05]", "[0, 0, 0, 0]")
    chain = yaml.safe_load(straight)
    chain["cam1"] |= {key: chain["cam0"][key] for key in ("intrinsics", "distortion_coeffs")}
    chain["cam1"]["T_cn_cnm1"] = np.eye(4).tolist()
    chain["cam1"]["T_cn_cnm1"][0][3] = 0.11  # cam0 is the right one
    camera = read_pair(written(tmp_path / "r.yaml", yaml.safe_dump(chain))).calibration()
    assert camera.baseline_m == pytest.approx(0.11)
    assert camera == Calibration(458.654, 457.296, 367.215, 248.375, camera.baseline_m, 752, 480)
    omni = written(tmp_path / "omni.yaml", KALIBR.replace("camera_model: pinhole", "camera_model: omni"))
    refused(lambda: read_pair(omni), omni, "omni")


@pytest.mark.parametrize("text, words", [
    ("", ["a kind that is known"]),
    ("Calibrated on Monday: all fine", ["known"]),
    ("a: [1, 2\nb: }", ["not readable as YAML"]),
    ("%YAML:1.0\n---\nM1: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n   data: [ 1., 2.", ["not readable"]),
    ("P2: 1 2 3 4 5 6 7 8 9 10 11 12\n", ["P3 is missing"]),
    (KITTI_RAW.replace("P_rect_03: 7.215377e+02", "P_rect_03:"), ["P_rect_03 has 11 numbers, expected 12"]),
    (KITTI_RAW.replace("-3.395242e+02", "nan"), ["not finite"]),
    ("K1: [[500, 0, 320], [0, 500, 240]]\nK2: 1\n", ["K", "numbers, expected 9"]),
    ("1 2 3 4 5 6 7 8", ["nine numbers"]),
    ("cam0: {intrinsics: [1, 1, 1, 1]}\ncam1: {intrinsics: [1, 1, 1, 1]}\n", ["resolution of cam0 is missing"]),
])  # fmt: skip
def test_a_file_that_cannot_be_used_ends_in_one_line(tmp_path, capsys, text, words):
    file = written(tmp_path / "some.yaml", text)
    assert main(["calibration", str(file), "--width", "640", "--height", "480"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(file) in line and all(word in line for word in words), line


def test_damaged_arrays_of_numpy_end_in_one_line(tmp_path):
    file = tmp_path / "stereo.npz"
    np.savez(file, K1=np.eye(3), K2=np.eye(3))
    whole = file.read_bytes()
    np.save(tmp_path / "bare.npy", np.eye(3))
    for damaged in (b"", whole[:200], whole[:100] + bytes(60) + whole[160:], (tmp_path / "bare.npy").read_bytes()):
        file.write_bytes(damaged)
        refused(lambda: read_pair(file), file, "not readable as arrays of NumPy")


# ---- Readers take such files ----


@pytest.fixture(scope="module")
def clip():
    """Six frames of a street scene of 96 x 192 pixels."""
    return [scene.sample for scene in street_clip(3, 6, 96, 192)]


def stereo_folder(root, samples, grey=False):
    for number, sample in enumerate(samples):
        for side in ("left", "right"):
            image = to_array(getattr(sample, f"{side}_0"))
            write_png(root / side / f"{number:06d}.png", image[..., 1] if grey else image)
    return root


@pytest.mark.parametrize("grey", [False, True])
def test_stereo_folder_with_kittis_file(tmp_path, clip, grey):
    root = stereo_folder(tmp_path / "video", clip[:2], grey)
    refused(lambda: StereoFolder(root), "calibration.json: no such file")
    written(root / "calib.txt", KITTI_00)
    camera = StereoFolder(root)[0].calibration
    assert (camera.width, camera.height) == (192, 96)
    assert camera.baseline_m == pytest.approx(0.53717 if grey else 0.53233, abs=1e-5)
    report = check_dataset("stereo_folder", root)
    assert report.usable and "1 of 1 calibration" in report.lines[0]


def test_stereo_folder_with_a_file_of_the_raw_cameras_warns(tmp_path, clip, stereo_calibrated):
    root = stereo_folder(tmp_path / "video", clip[:2])
    for name, side in (("left", 1), ("right", 2)):
        written(root / f"{name}.yaml", camera_info(in_metres(stereo_calibrated), side, (192, 96)))
    with pytest.warns(UserWarning, match="raw images have to go through cups rectify") as caught:
        assert StereoFolder(root).calibration.baseline_m == pytest.approx(0.119, rel=0.01)
    assert len(caught) == 1
    write_json(root / "calibration.json", clip[0].calibration.to_dict())  # what counts first
    assert StereoFolder(root).calibration == clip[0].calibration


def test_stereo_folder_refuses_a_chain_with_distortion(tmp_path, clip):
    root = stereo_folder(tmp_path / "video", clip[:2])
    written(root / "camchain-mynt.yaml", KALIBR)
    refused(lambda: StereoFolder(root), "camchain-mynt.yaml", "cups rectify")


# ---- Rectification ----


def raw_image(image, camera, lens, turn):
    """Return what a camera with a lens, turned against the one that took an image (H, W, 3), sees; the same size."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.stack([x.ravel(), y.ravel()], -1)[:, None]
    undistort = cv2.fisheye.undistortPoints if lens.fisheye else cv2.undistortPoints
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    places = undistort(pixels, lens.matrix, lens.distortion, R=turn.T, P=matrix).reshape(height, width, 2)
    return cv2.remap(image, places.astype(np.float32), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


@pytest.fixture(scope="module", params=["radtan", "equidistant"])
def raw_recording(request, tmp_path_factory):
    """Two frames of a street scene taken by two lenses that distort and are turned, with Kalibr's file; 16 bits."""
    fisheye = request.param == "equidistant"
    samples = [scene.sample for scene in street_clip(7, 2, 240, 480)]
    camera, root = samples[0].calibration, tmp_path_factory.mktemp(request.param)
    turns = [cv2.Rodrigues(np.array(angles))[0] for angles in ((0.012, -0.01, 0.01), (-0.015, 0.012, -0.012))]
    bends = ((-0.15, 0.04, 0.001, 0), (-0.12, 0.03, 0, 0.001))
    if fisheye:
        bends = ((-0.03, 0.01, 0.002, -0.001), (-0.02, 0.008, 0, 0))
    focal = camera.fx
    matrices = [
        np.array([[f, 0, camera.cx + x], [0, f, camera.cy], [0, 0, 1]]) for f, x in ((focal, 3), (focal + 4, -5))
    ]
    lenses = [Lens(matrix, np.array(bend), fisheye) for matrix, bend in zip(matrices, bends, strict=True)]
    for number, sample in enumerate(samples):
        for side, lens, turn in zip(("left", "right"), lenses, turns, strict=True):
            image = raw_image(to_array(getattr(sample, f"{side}_0")), camera, lens, turn)
            path = root / side / f"{number:06d}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), image[..., ::-1].astype(np.uint16) * 250 + 7)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turns[1] @ turns[0].T, turns[1] @ np.array([-camera.baseline_m, 0, 0])
    chain = {
        f"cam{n}": {
            "camera_model": "pinhole", "distortion_model": request.param, "distortion_coeffs": list(bends[n]),
            "intrinsics": [float(m[0, 0]), float(m[1, 1]), float(m[0, 2]), float(m[1, 2])], "resolution": [480, 240],
        }
        for n, m in enumerate(matrices)
    }  # fmt: skip
    chain["cam1"]["T_cn_cnm1"] = pose.tolist()
    written(root / "camchain.yaml", yaml.safe_dump(chain))
    return root, camera


def test_rectify(raw_recording, tmp_path, capsys):
    root, camera = raw_recording
    out = tmp_path / "video"
    assert main(["rectify", str(root), "--out", str(out), "--workers", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 4 and report["rows_apart_before_px"] > 2 and report["rows_apart_after_px"] < 0.3
    left, right = (cv2.imread(str(out / side / "000001.png"), cv2.IMREAD_UNCHANGED) for side in ("left", "right"))
    assert left.dtype == np.uint16 and left.max() > 255 * 100  # 16 bits stay
    assert (left > 0).all() and (right > 0).all()  # no border without a scene
    assert vertical_offset(left, right) < 0.3
    made = Calibration.from_json(out / "calibration.json")
    assert made.baseline_m == pytest.approx(camera.baseline_m) and (made.height, made.width) == left.shape[:2]

    # The calibration is right, too: points at the depth that it tells have the disparity of the scene.
    assert made.fx == pytest.approx(camera.fx, rel=0.25)
    assert folder_calibration(out) == made


def test_a_lens_that_sees_behind_itself():
    # as published with the TUM VI data set: 195 degrees, for which cv2.fisheye.stereoRectify makes the focal length 61
    bends = np.array([0.00348, 0.00072, -0.00205, 0.0002]), np.array([0.0034, 0.00177, -0.00266, 0.00033])
    lenses = tuple(
        Lens(np.array([[f, 0, x], [0, f, y], [0, 0, 1]]), bend, fisheye=True)
        for (f, x, y), bend in zip(((190.98, 254.93, 256.9), (190.44, 252.6, 254.92)), bends, strict=True)
    )
    turn, move = cv2.Rodrigues(np.array([0.0, 0.026, -0.012]))[0], np.array([-0.101, -0.002, -0.001])
    straighten = rectification(CameraPair("Kalibr", "camchain.yaml", (512, 512), None, lenses, turn, move))
    camera = straighten.calibration
    assert 95 < np.degrees(np.arctan(camera.cx / camera.fx) + np.arctan((511 - camera.cx) / camera.fx)) < 105
    white = np.full((512, 512), 255, np.uint8)
    assert all((straighten(side, white) == 255).all() for side in ("left", "right"))
    # and where a point of the scene comes out is where the camera says
    points = np.array([[0.5, -0.3, 2.0], [-1.0, 0.4, 3.0], [0.1, 0.1, 1.0]])
    places = []
    poses = (np.zeros(3), np.zeros(3)), (cv2.Rodrigues(turn)[0].ravel(), move)
    for side, lens, (r, t) in zip(("left", "right"), lenses, poses, strict=True):
        seen, _ = cv2.fisheye.projectPoints(points[:, None], r, t, lens.matrix, lens.distortion)
        away = np.linalg.norm(straighten.maps[side][None] - seen.reshape(-1, 1, 1, 2), axis=-1)
        places.append([np.unravel_index(each.argmin(), each.shape) for each in away])
    rows, columns = np.moveaxis(np.array(places, float), -1, 0)
    depth = camera.fx * camera.baseline_m / (columns[0] - columns[1])
    assert np.abs(rows[0] - rows[1]).max() <= 1 and np.allclose(depth, points[:, 2], rtol=0.08)


@pytest.mark.parametrize("raw_recording", ["radtan"], indirect=True)
def test_rectify_goes_on_and_never_mixes(raw_recording, tmp_path):
    root, _ = raw_recording
    raw, out = shutil.copytree(root, tmp_path / "raw"), tmp_path / "video"
    rectify_folder(raw, out, workers=1)
    files = sorted(out.rglob("*.*"))
    before = {path: path.read_bytes() for path in files}
    (out / "right" / "000001.png").unlink()
    (out / "calibration.json").unlink()
    (out / "left" / f".writing-{platform.node()}-999999-abcd1234.png").touch()  # of a process that was killed
    refused(lambda: StereoFolder(out), "calibration.json")  # what is not finished cannot be opened
    stamp = (out / "left" / "000000.png").stat().st_mtime_ns
    rectify_folder(raw, out, workers=1)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*.*"))} == before
    assert (out / "left" / "000000.png").stat().st_mtime_ns == stamp
    # a newer raw image is done again
    shutil.copy(raw / "left" / "000001.png", raw / "left" / "000000.png")
    os.utime(raw / "left" / "000000.png", ns=(stamp + 10**9, stamp + 10**9))
    rectify_folder(raw, out, workers=1)
    assert (out / "left" / "000000.png").read_bytes() == before[out / "left" / "000001.png"]
    # the bits that a person has added to the calibration stay
    camera = json.loads((out / "calibration.json").read_text())
    (out / "calibration.json").write_text(json.dumps(camera | {"bits": 12}))
    rectify_folder(raw, out, workers=1)
    assert json.loads((out / "calibration.json").read_text()) == camera | {"bits": 12}
    # another calibration, or another recording, is refused
    refused(lambda: rectify_folder(raw, out, baseline_m=1.0, workers=1), out, "another calibration")
    refused(lambda: rectify_folder(root, out, workers=1), out, "another raw")
    refused(lambda: rectify_folder(raw, raw, workers=1), "holds the raw images")


def test_another_calibration_of_a_wide_lens_is_another_though_the_view_is_the_same(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "video"
    for side in ("left", "right"):
        write_png(raw / side / "0.png", np.random.default_rng(0).integers(0, 256, (120, 160), np.uint8))

    def calibrated(*bends):
        camera = {"camera_model": "pinhole", "distortion_model": "equidistant", "distortion_coeffs": list(bends),
                  "intrinsics": [40.0, 40.0, 80.0, 60.0], "resolution": [160, 120]}  # fmt: skip
        pose = np.eye(4)
        pose[0, 3] = -0.1
        written(raw / "camchain.yaml", yaml.safe_dump({"cam0": camera, "cam1": camera | {"T_cn_cnm1": pose.tolist()}}))

    calibrated(0.0, 0.0, 0.0, 0.0)
    rectify_folder(raw, out, workers=1)
    made_from = json.loads((out / "rectified_from.json").read_text())
    calibrated(-0.03, 0.01, 0.0, 0.0)
    refused(lambda: rectify_folder(raw, out, workers=1), out, "another raw_calibration")
    del made_from["raw_calibration"]  # of an earlier version
    (out / "rectified_from.json").write_text(json.dumps(made_from))
    rectify_folder(raw, out, workers=1)


@pytest.mark.parametrize("raw_recording", ["radtan"], indirect=True)
def test_rectify_keeps_nothing_of_an_earlier_recording(raw_recording, tmp_path):
    root, _ = raw_recording
    raw, out = shutil.copytree(root, tmp_path / "raw"), tmp_path / "video"
    rectify_folder(raw, out, workers=1)
    before = {path: path.read_bytes() for path in out.glob("*/*.png")}
    images = [(raw / side / "000000.png", raw / side / "000001.png") for side in ("left", "right")]
    for first, second in images:  # another recording is unpacked in its place, with the times of its files
        first.rename(tmp_path / "kept.png")
        second.rename(first)
        (tmp_path / "kept.png").rename(second)
        for path, time_s in ((first, 10**9), (second, 10**9 + 1)):
            os.utime(path, (time_s, time_s))
    rectify_folder(raw, out, workers=1)
    other = {"000000": "000001", "000001": "000000"}
    assert all(path.read_bytes() == before[path.with_stem(other[path.stem])] for path in before)
    for _, second in images:
        second.unlink()
    refused(lambda: rectify_folder(raw, out, workers=1), out / "left" / "000001.png", "has no raw image", "--out")


@pytest.mark.parametrize("raw_recording", ["radtan"], indirect=True)
def test_rectify_says_that_a_calibration_is_wrong(raw_recording, tmp_path, capsys):
    root, _ = raw_recording
    chain = yaml.safe_load((root / "camchain.yaml").read_text())
    chain["cam1"]["T_cn_cnm1"][:3] = [[*row, move] for row, move in zip(np.eye(3).tolist(), (-0.5, 0, 0), strict=True)]
    wrong = written(tmp_path / "wrong.yaml", yaml.safe_dump(chain))
    options = ["--workers", "1", "--calibration"]
    assert main(["rectify", str(root), "--out", str(tmp_path / "a"), *options, str(wrong)]) == 0
    assert "rows of left and right still differ by" in capsys.readouterr().err
    # images that were rectified before: the distortion is taken out a second time
    done = tmp_path / "done"
    rectify_folder(root, done, workers=1)
    camera = Calibration.from_json(done / "calibration.json")
    for part in chain.values():
        part["resolution"] = [camera.width, camera.height]
    chain["cam1"]["T_cn_cnm1"] = yaml.safe_load((root / "camchain.yaml").read_text())["cam1"]["T_cn_cnm1"]
    again = written(tmp_path / "again.yaml", yaml.safe_dump(chain))
    assert main(["rectify", str(done), "--out", str(tmp_path / "b"), *options, str(again)]) == 0
    assert "the images were rectified already" in capsys.readouterr().err


@pytest.mark.parametrize("raw_recording", ["radtan"], indirect=True)
def test_rectify_refuses_what_it_cannot_use(raw_recording, tmp_path):
    root, _ = raw_recording
    refused(lambda: rectify_folder(tmp_path, tmp_path / "out"), tmp_path / "left", "no such folder")
    raw = shutil.copytree(root, tmp_path / "raw")
    cut = (raw / "right" / "000001.png").read_bytes()[:300]
    (raw / "right" / "000001.png").write_bytes(cut)
    refused(lambda: rectify_folder(raw, tmp_path / "out", workers=1), raw / "right" / "000001.png", "not readable")
    write_png(raw / "right" / "000001.png", np.zeros((20, 30), np.uint8))
    refused(lambda: rectify_folder(raw, tmp_path / "out", workers=1), "30 x 20 pixels, but the cameras have 480 x 240")
    (raw / "camchain.yaml").unlink()
    refused(lambda: rectify_folder(raw, tmp_path / "other", workers=1), raw, "--calibration")


def test_rectify_shifts_images_whose_principal_points_differ(tmp_path):
    sample = next(iter(street_clip(7, 2, 240, 480))).sample
    camera, doffs = sample.calibration, 20
    for side, shift in (("left", 0), ("right", doffs)):
        write_png(tmp_path / "raw" / side / "0.png", np.roll(to_array(getattr(sample, f"{side}_0")), shift, 1))
    lines = [f"cam{n}=[{camera.fx} 0 {camera.cx + n * doffs}; 0 {camera.fy} {camera.cy}; 0 0 1]" for n in (0, 1)]
    lines += [f"doffs={doffs}", f"baseline={1000 * camera.baseline_m}", "width=480", "height=240"]
    written(tmp_path / "raw" / "calib.txt", "\n".join(lines))
    rectify_folder(tmp_path / "raw", tmp_path / "out", workers=1)
    made = Calibration.from_json(tmp_path / "out" / "calibration.json")
    left = read_image(tmp_path / "out" / "left" / "0.png")
    # the same view of both: a window of the left image, scaled to the width
    scale = made.fx / camera.fx
    move = np.array([[scale, 0, made.cx - scale * camera.cx], [0, scale, made.cy - scale * camera.cy]])
    window = cv2.warpAffine(to_array(sample.right_0), move, (made.width, made.height), flags=cv2.INTER_LINEAR)
    right = read_image(tmp_path / "out" / "right" / "0.png")
    assert left.shape == right.shape and np.abs(right.astype(int) - window)[5:-5, 5:-5].mean() < 1.5


# ---- Video files ----


def write_video(path, images, codec="MJPG", fps=10.0):
    """Write RGB images as a video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (width, height))
    assert writer.isOpened(), codec
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return path


def numbered(count, size=(64, 96)):
    """Return frames that show their number: bit k as a black or white stripe."""
    stripes = (np.repeat((n >> np.arange(8)) & 1, size[1] // 8) for n in range(count))
    return [np.tile(row[None, :, None], (size[0], 1, 3)).astype(np.uint8) * 255 for row in stripes]


def shown(image):
    """Return the number that a frame (H, W, 3) shows."""
    width = image.shape[1] // 8
    return int(((image[5, width // 2 :: width, 0] > 127) << np.arange(8)).sum())


@pytest.mark.parametrize(
    "name, codec",
    [("v.mp4", "mp4v"), ("v.avi", "MJPG"), ("x.avi", "XVID"), ("v.mkv", "FFV1"), ("w.mkv", "VP80")],
)
def test_any_frame_of_a_video_is_that_frame(tmp_path, name, codec):
    video = VideoFile(write_video(tmp_path / name, numbered(160), codec))
    order = [0, 1, 2, 159, 158, 3, 80, 79, 81, 120, *np.random.default_rng(0).integers(0, 160, 15).tolist()]
    assert len(video) == 160 and [shown(video[n]) for n in order] == order
    copy = pickle.loads(pickle.dumps(video))  # as it goes to another process
    assert [shown(copy[n]) for n in (150, 4)] == [150, 4]
    with pytest.raises(IndexError):
        video[160]


def with_times(path, lengths):
    """Give the frames of an MP4 file other lengths: rewrite its table of them, and the sizes of the boxes around it."""
    data, at, ends = bytearray(path.read_bytes()), 0, len(path.read_bytes())
    boxes = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"]
    places = []
    while boxes:
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        assert at < ends
        if kind == boxes[0]:
            places.append(at)
            boxes.pop(0)
            at += 8
        else:
            at += size
    table = places[-1]
    old = int.from_bytes(data[table : table + 4], "big")
    entries = b"".join((1).to_bytes(4, "big") + int(length).to_bytes(4, "big") for length in lengths)
    new = b"stts" + bytes(4) + len(lengths).to_bytes(4, "big") + entries
    data[table + 4 : table + old] = new
    for place in places:
        size = int.from_bytes(data[place : place + 4], "big") + len(new) + 4 - old
        data[place : place + 4] = size.to_bytes(4, "big")
    path.write_bytes(data)


def early_head(data):
    """Return an MP4 file with its table of frames before the frames, as files for streaming have it."""
    boxes, at = {}, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes[data[at + 4 : at + 8]] = bytearray(data[at : at + size])
        at += size
    moov = boxes.pop(b"moov")
    at = moov.index(b"stco") + 8
    for n in range(int.from_bytes(moov[at : at + 4], "big")):
        place = at + 4 + 4 * n
        moov[place : place + 4] = (int.from_bytes(moov[place : place + 4], "big") + len(moov)).to_bytes(4, "big")
    return bytes(boxes.pop(b"ftyp") + moov + b"".join(boxes.values()))


def test_a_trimmed_video_is_what_it_shows(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered(60), "mp4v")
    with_times(path, [2048] * 60)  # the list of what to show ends after half
    video = VideoFile(path)
    assert len(video) < 40 and [shown(video[n]) for n in (20, 3)] == [20, 3]


@pytest.mark.parametrize("first", [3, 14, 30])
def test_a_video_that_was_cut_without_decoding_begins_with_what_it_shows(tmp_path, first):
    path = write_video(tmp_path / "v.mp4", numbered(60), "mp4v")  # every twelfth frame is stored whole
    data = bytearray(path.read_bytes())
    scale, entry = data.index(b"mdhd") + 16, data.index(b"elst") + 12
    begin = int.from_bytes(data[scale : scale + 4], "big") * first // 10
    data[entry + 4 : entry + 8] = begin.to_bytes(4, "big")
    path.write_bytes(data)
    video = VideoFile(path)
    assert len(video) == 60 - first
    for n in (5, len(video) - 1, 0, 7, len(video) - 2):
        assert shown(video[n]) == first + n


def test_frames_at_a_varying_rate(tmp_path):
    path, rng = write_video(tmp_path / "v.mp4", numbered(150), "mp4v"), np.random.default_rng(0)
    lengths = rng.integers(256, 4096, 150).astype(float)
    lengths = np.diff(np.round(np.cumsum([0, *lengths]) * 150 * 1024 / lengths.sum())).astype(int)
    with_times(path, lengths)  # in all as long as before, as the list of what to show says
    video = VideoFile(path)
    assert len(video) == 150 and np.diff(video.times_ms).std() > 10
    order = [140, 3, 60, 149, *rng.integers(0, 150, 20).tolist()]
    assert [shown(video[n]) for n in order] == order
    plain, wrong = cv2.VideoCapture(str(path)), 0
    for n in order:
        plain.set(cv2.CAP_PROP_POS_FRAMES, n)
        found, image = plain.read()
        wrong += not found or shown(image) != n
    assert wrong > 5  # OpenCV's own jumps go elsewhere, else this test would show nothing


def test_no_sample_spans_a_gap_in_time(tmp_path, clip):
    for side in ("left", "right"):
        path = write_video(tmp_path / f"{side}.mp4", [to_array(getattr(s, f"{side}_0")) for s in clip], "mp4v")
        with_times(path, [768, 768, 2304, 768, 768, 768])
    write_json(tmp_path / "calibration.json", clip[0].calibration.to_dict())
    video = StereoVideo(tmp_path)
    assert video.names == ["000000", "000001", "000003", "000004"]
    assert clips_of(video) == [[0, 1], [2, 3]], "objects keep their identity up to the gap"


@pytest.mark.parametrize("late, frame", [("right", 3), ("left", 1)])
def test_a_frame_that_one_side_dropped_is_seen_in_the_times(tmp_path, clip, late, frame):
    files = {}
    for side in ("left", "right"):
        images = [to_array(getattr(s, f"{side}_0")) for s in clip]
        lengths = [1024] * len(images)
        if side == late:
            del images[frame]
            lengths = [1024 * (1 + (n == frame - 1)) for n in range(len(images))]
        files[side] = write_video(tmp_path / f"{side}.mp4", images, "mp4v")
        with_times(files[side], lengths)
    write_json(tmp_path / "calibration.json", clip[0].calibration.to_dict())
    refused(lambda: StereoVideo(tmp_path), files[late], f"from frame {frame} on", "100 ms", "one side dropped a frame")


class Times:
    """Times of a video in milliseconds, as a `VideoFile` has them."""

    step_ms, has_times = VideoFile.step_ms, VideoFile.has_times

    def __init__(self, times_ms):
        self.times_ms = np.asarray(times_ms, float)

    def __len__(self):
        return len(self.times_ms)


def test_times_that_jitter_or_drift_are_no_dropped_frames():
    rng, frames = np.random.default_rng(0), np.arange(3000)
    exact, kept = 1000 / 30 * frames, np.delete(frames, 1700)
    hiccup = exact + 40.0 * (frames == 500) + 31.0 * (frames == 2999)
    ticks = [1000 / 64 * np.floor(64 / 60 * (frames + phase)) for phase in (0.2, 0.7)]  # of a clock of 64 Hz
    same = {
        "offset": (exact, exact + 5000), "milliseconds": (exact.round(), exact), "drift": (exact, 1.001 * exact),
        "nominal rates": (exact, 40.0 * frames), "hiccup": (exact, hiccup), "ticks": ticks,
        "jitter": [np.maximum.accumulate(exact + rng.normal(0, 5, 3000)) + 1e-3 * frames for _ in range(2)],
        "arrival": [np.maximum.accumulate(exact + rng.exponential(12, 3000)) + 1e-3 * frames for _ in range(2)],
        "both dropped it": (exact[kept], exact[kept]),
    }  # fmt: skip
    assert {name: _first_drop(*map(Times, times)) for name, times in same.items()} == dict.fromkeys(same)
    assert _first_drop(Times(exact), Times(same["jitter"][1][kept]))[0] == 1700
    frame, jump = _first_drop(Times((1.001 * exact)[kept].round()), Times(exact))
    assert frame == 1700 and jump == pytest.approx(-1000 / 30, abs=4)


def test_threads_that_read_one_video_get_their_frames(tmp_path):
    video, wrong = VideoFile(write_video(tmp_path / "v.mp4", numbered(120), "mp4v")), []

    def read(seed):
        for n in np.random.default_rng(seed).integers(0, 120, 15).tolist():
            if shown(video[n]) != n:
                wrong.append(n)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reading_on_decodes_each_frame_once(tmp_path, monkeypatch):
    video, grabbed = VideoFile(write_video(tmp_path / "v.mp4", numbered(100), "mp4v")), []
    capture = video._opened()

    class Counting:
        def __getattr__(self, name):
            if name in ("grab", "set"):
                grabbed.append(name)
            return getattr(capture, name)

    video._capture = Counting()
    for n in range(0, 60):
        assert shown(video[n]) == n and shown(video[n + 1]) == n + 1  # as samples are read
    assert grabbed == ["grab"] * 61
    grabbed.clear()
    assert shown(video[99]) == 99 and len(grabbed) < 10  # a jump does not decode what lies between


@pytest.fixture
def drive(tmp_path, clip):
    """A folder of two video files with a calibration, and the frames."""
    frames = {side: [to_array(getattr(s, f"{side}_0")) for s in clip] for side in ("left", "right")}
    for side, images in frames.items():
        write_video(tmp_path / "drive" / f"a b_{side}.avi", images)
    write_json(tmp_path / "drive" / "calibration.json", clip[0].calibration.to_dict())
    return tmp_path / "drive", frames


def joined(root, frames, axis, name="both.mkv", codec="FFV1"):
    """Make the video of a folder one file with both images in each frame."""
    for path in root.glob("*.avi"):
        path.unlink()
    return write_video(root / name, [np.concatenate(pair, axis) for pair in zip(*frames.values(), strict=True)], codec)


@pytest.mark.parametrize("layout, axis", [("files", None), ("side_by_side", 1), ("top_bottom", 0)])
def test_layouts(drive, clip, layout, axis):
    root, frames = drive
    name = "a b"
    if axis is not None:
        joined(root, frames, axis)
        name = "both"
    for options in ({}, {"layout": layout}) if axis is not None else ({},):
        video = StereoVideo(root, **options)
        assert video.names == [f"{name}_{n:06d}" for n in range(5)]
        for place in (3, 0, 4):
            sample = video[place]
            for view in ("left_0", "right_0", "left_1", "right_1"):
                seen, there = getattr(sample, view).float(), getattr(clip[place], view).float()
                other = getattr(clip[(place + 2) % 5], view).float()
                assert (seen - there).abs().mean() < min(6, (seen - other).abs().mean() / 2)
            assert torch.equal(video.left(place), sample.left_0) and sample.calibration == clip[0].calibration
    if axis is not None:
        wrong = "top_bottom" if axis else "side_by_side"
        refused(lambda: StereoVideo(root, layout=wrong), "both.mkv", "but the calibration is of 192 x 96")


def test_a_step_is_an_option_or_kept_beside_the_video(drive):
    root, frames = drive
    assert StereoVideo(root, frame_step=2).names == ["a b_000000", "a b_000002"]
    assert clips_of(StereoVideo(root, frame_step=2)) == [[0, 1]]
    states = [source_states(StereoVideo(root, frame_step=step))["a b_000000"] for step in (1, 2, 1)]
    assert states[0] == states[2] != states[1]  # so that labels of the one are compared with the frames of the other
    write_json(root / "stereo_video.json", {"frame_step": 3})
    video = StereoVideo(root)
    assert video.names == ["a b_000000"] and StereoVideo(root, frame_step=1).names[1] == "a b_000001"
    assert (video[0].left_1.permute(1, 2, 0).numpy().astype(int) - frames["left"][3]).mean() < 6
    wrong = (({"step": 3}, "expected"), ({"frame_step": 0}, "positive"), ({"layout": "sbs"}, "layout must be"))
    for options, word in wrong:
        write_json(root / "stereo_video.json", options)
        refused(lambda: StereoVideo(root), word)


def test_faults_of_video_end_in_one_line(drive, capfd):
    root, frames = drive
    left, right = root / "a b_left.avi", root / "a b_right.avi"
    whole = right.read_bytes()
    refused(lambda: StereoVideo(root, layout="diagonal"), "layout must be one of")
    right.write_bytes(whole[: len(whole) // 2])
    refused(lambda: StereoVideo(root), right, "cut off")
    right.write_bytes(b"not a video")
    refused(lambda: StereoVideo(root), right, "not readable as a video")
    write_video(right, frames["right"][:5])
    with pytest.warns(UserWarning, match="6 frames, but a b_right.avi has 5; the last one is left out"):
        assert len(StereoVideo(root)) == 4
    write_video(right, frames["right"][:3])
    refused(lambda: StereoVideo(root), left, "6 frames, but a b_right.avi has 3", "cut them to match")
    write_video(right, numbered(6))
    refused(lambda: StereoVideo(root), right, "images of 96 x 64 pixels, but the calibration is of 192 x 96")
    right.unlink()
    refused(lambda: StereoVideo(root), left, "the other side of clip 'a b' is missing")
    joined(root, frames, 1, "both.mp4", "mp4v")
    data = (root / "both.mp4").read_bytes()
    (root / "both.mp4").write_bytes(early_head(data)[:-1000])
    refused(lambda: StereoVideo(root), root / "both.mp4", "cut off")
    (root / "both.mp4").write_bytes(early_head(data))
    assert len(StereoVideo(root)) == 5
    (root / "both.mp4").write_bytes(data[:-1000])
    refused(lambda: StereoVideo(root), root / "both.mp4", "not readable as a video")
    write_video(root / "both.mp4", [np.zeros((96, 386, 3), np.uint8)] * 3, "mp4v")
    refused(lambda: StereoVideo(root), "386 x 96 pixels", "neither side by side nor above each other")
    (root / "both.mp4").unlink()
    codec = cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG")  # the one that keeps odd sizes
    writer = cv2.VideoWriter(str(root / "both.avi"), *codec, 10, (193, 97))
    writer.write(np.zeros((97, 193, 3), np.uint8))
    writer.release()
    refused(lambda: StereoVideo(root, layout="side_by_side"), "193 x 97 pixels", "width cannot be halved")
    refused(lambda: StereoVideo(root, layout="top_bottom"), "height cannot be halved")
    (root / "both.avi").unlink()
    refused(lambda: StereoVideo(root), root, "no video files")
    assert main(["pseudo-labels", "--dataset", "stereo_video", "--root", str(root), "--out", str(root / "o")]) == 2
    assert capfd.readouterr().err.count("cups: error") == 1


def test_the_check_reads_frames(drive):
    root, _ = drive
    assert check_dataset("stereo_video", root, full=True).usable == ["all"]
    path = root / "a b_right.avi"
    *before, last = path.read_bytes().split(b"\xff\xd8")  # where the JPEG of each frame begins
    path.write_bytes(b"\xff\xd8".join([*before, bytes(1000) + last[1000:]]))
    report = check_dataset("stereo_video", root)
    assert not report.usable and str(path) in report.lines[-1]


def test_pseudo_labels_and_explore(drive, tmp_path, capsys):
    root, _ = drive
    for side in ("left", "right"):
        (root / f"a b_{side}.avi").rename(root / f"ab_{side}.avi")
    write_json(root / "stereo_video.json", {"frame_step": 3})
    settings = written(tmp_path / "settings.yaml", "num_classes: 4\n")
    out = tmp_path / "labels"
    options = ["--settings", str(settings), "--workers", "1"]
    command = ["pseudo-labels", "--dataset", "stereo_video", "--root", str(root), "--out", str(out), *options]
    assert main(command) == 0
    assert sorted(PseudoLabelStore(out).names) == ["ab_000000"]
    capsys.readouterr()
    # labels of another step are not gone on with: the frame that follows is another one
    assert main([*command, "--frame-step", "2"]) == 2
    assert "left_1 and right_1 are others now" in capsys.readouterr().err
    source = open_source("stereo_video", root, stages=False)
    assert source.names == ["ab_000000"] and source.left(0).shape == (3, 96, 192)
    assert [frame.name for frame in source.load(0)] == ["ab_000000"]
    assert check_dataset("stereo_video", root).usable
