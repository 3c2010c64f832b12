"""Frames find their neighbours and their other eye by any names that recorders and people give them."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import write_json, write_png
from cups.core.records import PanopticLabel
from cups.datasets.check import check_dataset
from cups.datasets.frame_names import consecutive_pairs, frame_places, matched_sides
from cups.datasets.kitti_raw import KittiRaw, write_miniature
from cups.datasets.mots import Mots
from cups.datasets.mots import write_miniature as write_mots
from cups.datasets.registry import open_stereo_dataset
from cups.datasets.stereo_folder import StereoFolder
from cups.evaluation.truth import TruthFolder
from cups.labels.files import write_label
from cups.labels.store import PseudoLabelStore
from cups.run.scenes import render_scenes

CALIBRATION = {"fx": 30.0, "fy": 30.0, "cx": 3.5, "cy": 2.5, "baseline_m": 0.5, "width": 8, "height": 6}
EUROC = [1403636579763555584 + 50_000_000 * number for number in range(8)]


def stereo_folder(root, left, right=None):
    """Write a stereo folder of files of these names; frame n of either side is grey of level 10 n, 10 n + 1."""
    write_json(root / "calibration.json", CALIBRATION)
    for bright, (side, names) in enumerate((("left", left), ("right", left if right is None else right))):
        (root / side).mkdir()
        for number, name in enumerate(names):
            level = 10 * number + bright
            image = Image.fromarray(np.full((6, 8), level, np.uint8))
            image.save(root / side / name, format="JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG")
    return root


def levels(video):
    """Return the grey levels of the four images of every sample."""
    views = ("left_0", "right_0", "left_1", "right_1")
    return [tuple(int(getattr(video[i], view)[0, 0, 0]) for view in views) for i in range(len(video))]


def neighbours(pairs):
    """Return the levels of samples of these frames, each with both sides of it."""
    return [(10 * a, 10 * a + 1, 10 * b, 10 * b + 1) for a, b in pairs]


@pytest.mark.parametrize(
    "name",
    [
        lambda n: str(EUROC[n]),  # EuRoC, ROS 2: nanoseconds
        lambda n: str(EUROC[n] // 1000),
        lambda n: str(EUROC[n] // 1_000_000),
        lambda n: f"{EUROC[n] / 1e9:.6f}",  # TUM
        lambda n: str(round(EUROC[n] / 1e9, 2)),  # without zeros at the end
        lambda n: f"{EUROC[n] // 10**9}.{EUROC[n] % 10**9:09d}",
        lambda n: f"cam_{EUROC[n] // 10**9}_{EUROC[n] % 10**9:09d}",  # ROS 1
        lambda n: f"{EUROC[n] // 10**9}_{EUROC[n] % 10**9}",  # without zeros in front
        lambda n: f"{1234567 + round(33333.4 * n):09d}",  # microseconds since the recorder was started
        lambda n: f"{round(33.4 * n)}",  # milliseconds since the recording began
        lambda n: f"{n / 30:.6f}",
        lambda n: f"frame{n + 8}",  # frame10 comes after frame9
        lambda n: f"img ({n})"[:-1],
        lambda n: f"clip.2.{n:04d}",
    ],
)
def test_frames_follow_each_other_in_time(tmp_path, name):
    video = StereoFolder(stereo_folder(tmp_path, [f"{name(n)}.png" for n in range(8)]))
    assert video.names == [name(n) for n in range(7)]
    assert levels(video) == neighbours((n, n + 1) for n in range(7))
    assert check_dataset("stereo_folder", tmp_path, full=True).usable == ["all"]


def test_a_clip_ends_at_a_gap_in_time(tmp_path):
    jitter = [0, 3_000_000, -4_000_000, 2_000_000, 0, 9_000_000, -9_000_000, 0]
    times = [time + late for time, late in zip(EUROC, jitter, strict=True)]
    names = [f"{time}.png" for number, time in enumerate(times) if number != 3]
    video = StereoFolder(stereo_folder(tmp_path, names))
    assert levels(video) == neighbours([(0, 1), (1, 2), (3, 4), (4, 5), (5, 6)])


def test_times_of_two_clips_are_two_clips():
    names = [f"{clip}_{time}" for clip in "ba" for time in EUROC[:3]]
    assert [pair[0][0] + pair[1][0] for pair in consecutive_pairs(names)] == ["aa", "aa", "bb", "bb"]


@pytest.mark.parametrize("digits", [3, 6])
def test_seconds_since_the_recorder_was_started_go_on(digits):
    times = [f"cam_{8.55 + n / 10:.{digits}f}" for n in range(40)]
    assert len(consecutive_pairs(times)) == 39
    late = [f"cam_{8.56 + n / 10:.{digits}f}" for n in range(40)]
    assert matched_sides(times, late) == dict(zip(times, late, strict=True))
    takes = [f"take{take}.{n:04d}" for take in (1, 2) for n in range(0, 90, 7)]  # numbers behind a point
    with pytest.warns(UserWarning, match="numbered 7 apart"):
        assert len(consecutive_pairs(takes)) == 24


@pytest.mark.parametrize("step", [2, 3])
def test_every_nth_frame(tmp_path, step):
    expected = neighbours((n, n + step) for n in range(0, 10 - step, step))
    for kind, name in (("numbers", lambda n: f"a_{n + 95}"), ("times", lambda n: str(EUROC[0] + 16_666_667 * n))):
        root = tmp_path / kind
        root.mkdir()
        stereo_folder(root, [f"{name(n)}.png" for n in range(10)])
        assert levels(open_stereo_dataset("stereo_folder", root, frame_step=step)) == expected
    with pytest.raises(InputError, match="numbers or time stamps 20 apart"):
        StereoFolder(tmp_path / "numbers", frame_step=20)
    with pytest.raises(InputError, match="frame_step must be positive, got 0"):
        StereoFolder(tmp_path / "numbers", frame_step=0)


def test_steps_begin_anew_behind_a_hole():
    assert consecutive_pairs([str(n) for n in (0, 1, 2, 3, 5, 6, 7, 8, 9)], 2) == [
        ("0", "2"), ("3", "5"), ("5", "7"), ("7", "9")
    ]  # fmt: skip


def test_left_and_right_are_paired_by_the_nearest_time(tmp_path):
    late = [f"{time + 1_200_000}.png" for time in EUROC]  # by 1.2 ms
    lost = [name for number, name in enumerate(late) if number != 4]
    video = StereoFolder(stereo_folder(tmp_path, [f"{time}.png" for time in EUROC], lost))
    assert video.names == [str(time) for time in EUROC[:7]]
    assert [int(video[0].right_0[0, 0, 0]), int(video[5].right_0[0, 0, 0])] == [1, 41]  # the sixth file left is frame 5
    with pytest.raises(InputError, match=f"right/{EUROC[4]}.png: no such file, but .*left/{EUROC[4]}.png is there"):
        video[4]
    (fault,) = check_dataset("stereo_folder", tmp_path, full=True).faults["all"]
    assert fault.startswith(f"{tmp_path}/left/{EUROC[4]}.png: no partner among the right images")


def test_cameras_that_are_a_third_of_a_frame_apart_are_no_pair(tmp_path):
    stereo_folder(tmp_path, [f"{time}.png" for time in EUROC], [f"{time + 17_000_000}.png" for time in EUROC])
    with pytest.raises(InputError, match="right: no image belongs to one in left/; expected the same names or numbers"):
        StereoFolder(tmp_path)


def test_sides_whose_names_differ_are_paired_by_number(tmp_path):
    right = [f"right{n}.JPG" for n in (1, 2, 3)]
    video = StereoFolder(stereo_folder(tmp_path, [f"left{n:02d}.jpg" for n in (1, 2, 3)], right))
    assert video.names == ["left01", "left02"] and levels(video) == neighbours([(0, 1), (1, 2)])
    assert matched_sides(["b_l_1", "a_l_1"], ["a_r_1", "b_r_1"]) == {"b_l_1": "b_r_1", "a_l_1": "a_r_1"}
    by_start = matched_sides(["L_1200_1", "L_1300_1"], ["R_1201_1", "R_1301_1"])  # each recorder named its clips
    assert by_start == {"L_1200_1": "R_1201_1", "L_1300_1": "R_1301_1"}


def test_clips_that_one_side_lacks_are_no_others():
    left = [f"camL_run{clip}_{n:04d}" for clip in (1, 2) for n in range(3)]
    right = [f"camR_run{clip}_{n:04d}" for clip in (2, 3) for n in range(3)]
    expected = {f"camL_run2_{n:04d}": f"camR_run2_{n:04d}" for n in range(3)}
    assert matched_sides(left, right) == matched_sides(left, [*right, "camR_run4_0000"]) == expected


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPEG"])
def test_sides_of_another_suffix(tmp_path, suffix):
    video = StereoFolder(stereo_folder(tmp_path, ["0.png", "1.png"], [f"0{suffix}", f"1{suffix}"]))
    assert levels(video) == neighbours([(0, 1)])
    assert check_dataset("stereo_folder", tmp_path, full=True).usable == ["all"]


def test_hidden_files_are_no_frames(tmp_path):
    stereo_folder(tmp_path, ["0.png", "1.png"])
    (tmp_path / "truth").mkdir()
    write_label(tmp_path / "truth", "0", PanopticLabel(torch.zeros(6, 8).long(), torch.zeros(6, 8).long()))
    for name in ("._0.png", "._2.png", ".DS_Store", "Thumbs.db", ".hidden_7.png"):
        for side in ("left", "right"):
            (tmp_path / side / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "truth" / "._0_semantic.png").write_bytes(b"\0\5\x16\7")
    assert list(StereoFolder(tmp_path).files) == ["0", "1"] and TruthFolder(tmp_path).names == ["0"]
    assert check_dataset("stereo_folder", tmp_path, full=True).usable == ["all"]


def test_hidden_files_are_no_frames_of_labelled_data_sets(tmp_path):
    write_mots(tmp_path)
    names = Mots(tmp_path).names
    for path in list(tmp_path.rglob("*.jpg")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert Mots(tmp_path).names == names


def test_symbolic_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    stereo_folder(tmp_path / "real", ["0.png", "1.png"])
    linked = tmp_path / "linked"
    (linked / "right").mkdir(parents=True)
    (linked / "left").symlink_to(tmp_path / "real" / "left")
    for path in (tmp_path / "real" / "right").iterdir():
        (linked / "right" / path.name).symlink_to(path)
    (linked / "calibration.json").symlink_to(tmp_path / "real" / "calibration.json")
    assert levels(StereoFolder(linked)) == neighbours([(0, 1)])
    (tmp_path / "real" / "right" / "1.png").unlink()
    with pytest.raises(InputError, match=r"linked/right/1\.png: no such file"):
        StereoFolder(linked)[0]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["x_0.png", "x_0.jpg", "x_1.png"], "left/x_0.png: x_0.jpg has the same name; keep one of them"),
        (["x_1.png", "x_01.png", "x_2.png"], "x_01 and x_1 have the same number"),
        (["1403636579.5.png", "1403636579.50.png"], "1403636579.5 and 1403636579.50 have the same number"),
        (["start.png", "end.png"], "the name of a frame must end in its number or time stamp"),
        (["3.png", "70.png", "71000.png"], "left: no two frames have numbers or time stamps that follow each other"),
        (["a\n1.png", "a\n2.png"], r"cannot name a frame: it .* characters that do not show"),
        (["a" * 210 + "1.png", "a" * 210 + "2.png"], "cannot name a frame: it is longer than 200 bytes"),
    ],
)
def test_names_that_cannot_be_used_are_refused_on_opening(tmp_path, names, fault):
    stereo_folder(tmp_path, names)
    with pytest.raises(InputError, match=fault) as caught:
        StereoFolder(tmp_path)
    assert "\n" not in str(caught.value)
    try:
        said = check_dataset("stereo_folder", tmp_path).lines
    except InputError as error:
        said = [str(error)]
    assert str(caught.value) in said


def test_names_that_are_not_utf8_are_refused_on_opening(tmp_path):
    stereo_folder(tmp_path, ["0.png", "1.png"])
    for side in ("left", "right"):
        for number in (0, 1):
            shutil.copy(tmp_path / side / "0.png", os.fsencode(tmp_path / side) + b"/stra\xdfe" + b"%d.png" % number)
    with pytest.raises(InputError, match="cannot name a frame: it is not UTF-8"):
        StereoFolder(tmp_path)


def test_few_frames_at_random_are_no_video():
    numbers = sorted(np.random.default_rng(0).choice(100_000, 40, replace=False).tolist())
    assert frame_places(map(str, numbers))[1] == 0 and not consecutive_pairs(map(str, numbers))


@pytest.mark.parametrize("per_second", [10**3, 10**6, 10**9])
def test_photos_taken_now_and_then_are_no_video(per_second):
    times = 1_403_636_579 + np.random.default_rng(0).integers(0, 100_000, 30)
    with pytest.raises(InputError, match=r"frames are [\de+.]* s apart by their time stamps, too far"):
        consecutive_pairs([str(int(time) * per_second) for time in times])
    assert len(consecutive_pairs([str(int(times[0] * per_second + per_second // 2 * n)) for n in range(9)])) == 8


def test_one_frame_that_came_at_once_after_another_ends_no_recording():
    times = [1_700_000_000_000 + 33 * n for n in range(300)]
    times[150] = times[149] + 1
    assert len(consecutive_pairs(map(str, times))) >= 297
    assert len(matched_sides(map(str, times), [str(time + 2) for time in times])) >= 298


def test_each_clip_has_its_own_frame_rate():
    names = [f"{clip}_{10**18 + n * 10**9 // rate}" for clip, rate in (("a", 30), ("b", 10)) for n in range(60)]
    pairs = consecutive_pairs(names)
    assert [sum(first.startswith(clip) for first, _ in pairs) for clip in "ab"] == [59, 59]
    assert not consecutive_pairs([f"a_{10**18 + n * 10**8}" for n in range(60) if n % 3])[0][1].endswith("300000000")


def test_thinned_videos_are_taken_with_a_warning():
    with pytest.warns(UserWarning, match="frames are numbered 5 apart and taken for neighbours in time"):
        assert len(consecutive_pairs([f"{5 * n:04d}" for n in range(8)])) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        consecutive_pairs([str(time) for time in EUROC])


def test_kitti_copies_as_jpeg(tmp_path):
    root = write_miniature(tmp_path, frames=2, height=32)
    as_png = KittiRaw(root, 24, 64)
    expected = [as_png.left(index) for index in range(len(as_png))]
    for path in list(root.glob("*/*/*/data/*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=98, subsampling=0)
        path.unlink()
    as_jpeg = KittiRaw(root, 24, 64)
    assert as_jpeg.names == as_png.names and as_jpeg[0].right_1.shape == (3, 24, 64)
    for index, image in enumerate(expected):
        assert (as_jpeg.left(index).int() - image.int()).abs().float().mean() < 3
    assert check_dataset("kitti_raw", root, full=True).usable == ["train"]
    other = next(root.glob("*/*/image_03/data/*.jpg"))
    other.rename(other.with_suffix(".PNG"))
    assert KittiRaw(root, 24, 64).names == as_png.names
    other.with_suffix(".png").write_bytes(b"")
    with pytest.raises(InputError, match="has the same name; keep one of them"):
        KittiRaw(root, 24, 64)


def test_frame_step_of_kitti(tmp_path):
    root = write_miniature(tmp_path, frames=4, height=32)
    assert [(a[-2:], b[-2:]) for a, b in KittiRaw(root, 24, 64, frame_step=3).pairs if "0001" in a] == [("00", "03")]


def test_spaces_and_letters_of_any_language_are_labelled_and_found_again(tmp_path, capsys):
    root, out = tmp_path / "Straße in Köln", str(tmp_path / "étiquettes 1")
    render_scenes(root, 2, height=64, width=128, workers=1)
    for side in ("left", "right"):
        for number, path in enumerate(sorted((root / side).iterdir())):
            path.rename(path.with_name(f"左 Fahrt é {number}.PNG"))
    shutil.rmtree(root / "truth")
    assert StereoFolder(root).names == [f"左 Fahrt é {number}" for number in range(3)]
    command = ["pseudo-labels", "--root", str(root), "--out", out, "--workers", "1", "--frame-step", "2"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 1
    store = PseudoLabelStore(out)
    assert store.names == ["左 Fahrt é 0"] and store.is_indexed and not store.missing(store.names)
    assert store.read("左 Fahrt é 0").semantic.shape == (64, 128)
    assert main(["store", "check", out]) == 0


def test_a_truth_is_found_by_the_name_of_the_left_image(tmp_path):
    stereo_folder(tmp_path, [f"{time}.png" for time in EUROC], [f"{time + 9}.png" for time in EUROC])
    (tmp_path / "truth").mkdir()
    write_label(tmp_path / "truth", str(EUROC[0]), PanopticLabel(torch.ones(6, 8).long(), torch.zeros(6, 8).long()))
    assert StereoFolder(tmp_path)[0].truth.semantic.unique().tolist() == [1]
    write_png(tmp_path / "left" / "note.txt.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(InputError, match=r"note\.txt: the name of a frame must end in its number"):
        StereoFolder(tmp_path)
