"""What makes stereo video silently wrong is said with its number, and what is right is never doubted."""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from shared import shared_folder

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, write_json, write_png
from cups.core.images import to_array
from cups.core.records import Calibration, StereoSample
from cups.datasets.check import check_dataset
from cups.datasets.sense import PairMeasures, calibration_lines, measure_pair, missing_lines, pair_lines, sense
from cups.datasets.stereo_folder import StereoFolder
from cups.run.generate import generate
from cups.stages.pipeline import PseudoLabelSettings, describe, run_stages
from cups.stages.scene_flow import SceneFlowSettings, trust_lines
from cups.street.scenes import street_clip, street_scene
from cups.workbench.explorer import FrameExplorer
from cups.workbench.reports import motion_report

CLIPS = ("kitti2012_000027", "kitti2012_000138", "kitti2015_000002", "kitti2015_000010", "kitti_000043",
         "kitti_odometry_color20", "kitti_odometry_gray51_static", "kitti_street21")  # fmt: skip


class Clip:
    """A data set in memory: frames are pairs of a left and a right image."""

    def __init__(self, frames, calibration):
        self.frames, self.calibration = frames, calibration
        self.pairs = list(pairwise(f"{number:06d}" for number in range(len(frames))))
        self.names = [name for name, _ in self.pairs]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return StereoSample(*self.frames[index], *self.frames[index + 1], self.calibration, self.names[index])

    def left(self, index):
        return self.frames[index][0]


def real_image(path):
    array = read_image(path)
    return torch.from_numpy(np.stack([array] * 3) if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def real_clip(name, frames=None):
    root = shared_folder() / "data" / name
    files = sorted(path.name for path in (root / "left").iterdir())[:frames]
    images = [tuple(real_image(root / side / file) for side in ("left", "right")) for file in files]
    return Clip(images, Calibration.from_json(root / "calibration.json"))


def rendered_clip(seed, frames=3, height=192):
    clip = [scene.sample for scene in street_clip(seed, frames, height, 2 * height)]
    return Clip([(each.left_0, each.right_0) for each in clip], clip[0].calibration)


def turned(image, degrees):
    height, width = image.shape[1:]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    array = cv2.warpAffine(to_array(image), turn, (width, height), borderMode=cv2.BORDER_REFLECT)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def right_changed(change):
    return lambda clip: Clip([(left, change(right)) for left, right in clip.frames], clip.calibration)


def camera_changed(**values):
    return lambda clip: Clip(
        clip.frames, replace(clip.calibration, **{k: v * getattr(clip.calibration, k) for k, v in values.items()})
    )


RED = torch.tensor([1.25, 1, 1])[:, None, None]
FAULTS = {
    "exchanged": (lambda clip: Clip([pair[::-1] for pair in clip.frames], clip.calibration), "exchanged"),
    "2 px lower": (right_changed(lambda right: right.roll(2, 1)), "px lower on the right"),
    "turned by 0.5 degrees": (right_changed(lambda right: turned(right, 0.5)), "not rectified"),
    "gain 1.3": (right_changed(lambda right: (right * 1.3).clamp(max=255).byte()), "times as bright"),
    "red 1.25": (right_changed(lambda right: (right * RED).clamp(max=255).byte()), "white balance"),
    "repeated": (lambda clip: Clip([clip.frames[0], *clip.frames], clip.calibration), "after 000000 is a copy"),
    "millimetres": (camera_changed(baseline_m=1000), "in millimetres? Then write 0.5"),
    "centimetres": (camera_changed(baseline_m=100), "in centimetres"),
    "kilometres": (camera_changed(baseline_m=0.001), "expected metres"),
    "twice the size": (camera_changed(fx=2, fy=2, cx=2, cy=2), "2 times as large"),
    "fx a tenth": (camera_changed(fx=0.1, fy=0.1), "fx 72"),
}


@pytest.mark.parametrize("name", CLIPS)
def test_no_doubt_of_real_clips(name):
    assert sense(real_clip(name, frames=4)) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_real_pair_is_one_line(fault):
    make, words = FAULTS[fault]
    lines = sense(make(real_clip("kitti_street21", frames=2)))
    assert len(lines) == 1 and words in lines[0] and "\n" not in lines[0]


@pytest.mark.parametrize("seed", range(3))
def test_streets_are_not_doubted_until_they_are_wrong(seed):
    clip = rendered_clip(seed)
    assert sense(clip) == []
    assert all("exchanged" in line for line in sense(FAULTS["exchanged"][0](clip))[:1])
    assert "2.0 px lower on the right" in sense(FAULTS["2 px lower"][0](clip))[0]


@pytest.mark.parametrize("name", ["kitti_street21", "kitti_odometry_gray51_static"])
def test_a_dropped_frame_is_seen_by_the_jump(name):
    clip = real_clip(name, frames=6)
    lines = sense(Clip(clip.frames[:3] + clip.frames[4:], clip.calibration))
    assert len(lines) == 1 and "after 000002 as before" in lines[0]


def test_what_shows_too_little_is_not_judged():
    generator, left = torch.Generator().manual_seed(0), real_clip("kitti_street21", 2).frames[0][0]
    noise = [torch.randint(0, 40, left.shape, generator=generator, dtype=torch.uint8) for _ in range(4)]
    for frames in ([(noise[0], noise[1]), (noise[2], noise[3])], [(left // 255, left // 255)] * 2):
        measures = [measure_pair(*pair) for pair in frames]
        assert measures[0] == measures[1] or measures[0].points == measures[1].points == 0
        assert pair_lines(measures) == []


def test_a_dark_noisy_clip_is_not_doubted():
    generator = torch.Generator().manual_seed(0)
    clip = real_clip("kitti_000043", 3)

    def night(image):
        return (image * 0.15 + 2 * torch.randn(image.shape, generator=generator)).clamp(0, 255).byte()

    assert sense(Clip([(night(left), night(right)) for left, right in clip.frames], clip.calibration)) == []


def test_the_same_fault_of_many_frames_is_one_line_with_its_count():
    lines = pair_lines([PairMeasures(100, 9.0, 0.0, 1.5, 1.5)] * 4 + [PairMeasures(100, 9.0, 0.0, 0.1, 0.2)])
    assert lines == [
        "the pairs are not rectified in 4 of 5 frames looked at: rows of matched points differ by 1.5 px (median; "
        "1.5 px lower on the right), allowed is 1 px; rectify them first"
    ]


def test_missing_numbers():
    assert missing_lines(["a_03", "a_04", "a_05", "a_08"]) == [
        "1 frame number is missing inside clips, the first before a_08: no pair is made across a gap"
    ]
    assert missing_lines([f"{clip:06d}_0" for clip in range(5)]) == []  # pairs, as `cups scenes` writes them
    assert missing_lines(["x_0", "x_1", "x_2", "x_40", "x_41"]) == []  # two clips of one name


@pytest.mark.parametrize(("fx", "width"), [(721.5, 1242), (2262.5, 2048), (387, 640), (700, 2208), (2083, 1920)])
def test_calibrations_of_known_cameras_are_plausible(fx, width):
    assert calibration_lines(Calibration(fx, fx, 0.48 * width, 0.3 * width, 0.12, width, width // 2)) == []


def write_folder(root, clip, **camera):
    for number, (left, right) in enumerate(clip.frames):
        write_png(root / "left" / f"{number:04d}.png", to_array(left))
        write_png(root / "right" / f"{number:04d}.png", to_array(right))
    write_json(root / "calibration.json", clip.calibration.to_dict() | camera)
    return StereoFolder(root)


def test_the_check_of_a_data_set_says_it(tmp_path, capsys):
    folder = write_folder(tmp_path / "video", FAULTS["exchanged"][0](rendered_clip(0)), baseline_m=500.0)
    report = check_dataset("stereo_folder", folder.root)
    assert report.usable == ["all"] and len(report.warnings["all"]) == 2
    assert main(["data", "check", "stereo_folder", str(folder.root), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "all: warning: left and right look exchanged in 2 of 2 frames" in said and "; 2 warnings" in said


def test_a_run_says_it_before_the_work_and_after_the_first_pass(tmp_path, capsys):
    folder = write_folder(tmp_path / "video", rendered_clip(0, 2, height=96), baseline_m=500.0)
    (tmp_path / "settings.yaml").write_text("num_classes: 6\n")
    words = ["--root", folder.root, "--out", tmp_path / "labels", "--settings", tmp_path / "settings.yaml"]
    assert main(["pseudo-labels", *map(str, words), "--workers", "1"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cups: warning: ")]
    assert len(lines) == 3 and "baseline_m 500 is implausible" in lines[0]
    assert "100% of the points lie outside the depth range of 2.5 to 70 m" in lines[1]
    assert "nothing was found to move" in lines[2]


def test_a_run_on_a_good_folder_says_nothing(tmp_path, recwarn):
    folder = write_folder(tmp_path / "video", rendered_clip(0, 2, height=96))
    generate(folder, tmp_path / "labels", PseudoLabelSettings(num_classes=6), workers=1)
    assert [str(each.message) for each in recwarn if each.category is UserWarning] == []


@pytest.mark.parametrize(("static", "why"), [(True, "nothing was found to move"), (False, "shares are at most 0.99")])
def test_labels_without_things_say_so(static, why, tmp_path):
    frames = [scene.sample for scene in street_clip(0, 3, 128, 256, static=static)]
    clip = Clip([(frame.left_0, frame.right_0) for frame in frames], frames[0].calibration)
    settings = PseudoLabelSettings(num_classes=16, num_object_classes=0, thing_threshold=0.99)
    with pytest.warns(UserWarning, match=why):
        store = generate(clip, tmp_path, settings, workers=1)
    assert not store.split.things


def test_a_depth_range_of_another_scene_is_said():
    sample, near = street_scene(0, 96, 192).sample, SceneFlowSettings(min_depth_m=0.05, max_depth_m=1.0)
    described = describe(sample, PseudoLabelSettings(scene_flow=near))
    (line,) = trust_lines(described.trust, near)
    assert "outside the depth range of 0.05 to 1 m" in line and described.trust.shape == (1, 3)
    assert trust_lines(describe(sample, PseudoLabelSettings()).trust, SceneFlowSettings()) == []
    assert "only 1.0% of the points are trusted" in trust_lines(torch.tensor([[0.01, 0.2, 12.0]]), near)[0]


def test_a_frame_without_objects_says_why():
    sample, settings = street_scene(0, 128, 256).sample, PseudoLabelSettings()
    copied = sample.replace(left_1=sample.left_0, right_1=sample.right_0)
    records = run_stages({"sample": copied}, settings, ("proposals",))
    report = motion_report({name: records[name].diagnostics for name in ("flow", "proposals")})
    assert "**Doubtful: the frames at t and t + 1 are the same image" in report
    whole = run_stages({"sample": sample}, settings, ("proposals",))["proposals"]
    assert "faults" not in whole.diagnostics


def test_the_explorer_shows_it_above_the_picture(tmp_path):
    write_folder(tmp_path / "video", rendered_clip(0), baseline_m=500.0)
    explorer = FrameExplorer.open("stereo_folder", tmp_path / "video", stages=False)
    explorer.preparing.join(30)
    assert "baseline_m 500 is implausible" in explorer.view.notice and explorer.view.message == ""
    explorer.close()


def test_nothing_waits_for_the_first_frame_of_a_closed_explorer(tmp_path, monkeypatch):
    write_folder(tmp_path / "video", rendered_clip(0), baseline_m=500.0)
    monkeypatch.setenv("JPY_SESSION_NAME", "explore.ipynb")  # a browser is there, and asks for nothing
    explorer = FrameExplorer.open("stereo_folder", tmp_path / "video", stages=False)
    explorer.preparing.join(0.5)
    assert explorer.preparing.is_alive()
    explorer.close()
    explorer.preparing.join(30)
    assert not explorer.preparing.is_alive() and explorer.view.notice == ""


@pytest.mark.parametrize(("size", "words"), [((96, 48), "images are 0.5 times as large"), ((192, 90), "says 192 x 96")])
def test_a_calibration_of_another_resolution_is_refused_with_the_factor(tmp_path, size, words):
    folder = write_folder(tmp_path / "video", rendered_clip(0, 2, height=96))
    path = folder.root / "left" / "0000.png"
    write_png(path, cv2.resize(read_image(path), size))
    with pytest.raises(InputError) as fault:
        folder[0]
    assert words in str(fault.value) and ("times" in str(fault.value)) == ("times" in words)
