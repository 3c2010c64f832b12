"""Motion on input that shows nothing, and on real frames with hand-drawn masks."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from shared import shared_folder

from cups.core.errors import InputError
from cups.core.files import write_png
from cups.core.records import Calibration, StereoSample
from cups.core.settings import load_settings, settings_from_dict
from cups.datasets.stereo_folder import StereoFolder
from cups.stages.matching.classical import ClassicalMatcher
from cups.stages.motion.propose import propose
from cups.stages.motion.settings import MotionSettings
from cups.stages.pipeline import PseudoLabelSettings
from cups.stages.scene_flow import scene_flow
from cups.street.scenes import exact_matches, street_scene


def sample_of(image: torch.Tensor, baseline_m: float = 0.5) -> StereoSample:
    """Return a sample of four times the same image."""
    height, width = image.shape[-2:]
    camera = Calibration(100.0, 100.0, width / 2, height / 2, baseline_m, width, height)
    return StereoSample(image, image, image, image, camera)


def noise_image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "sample",
    [
        sample_of(torch.full((3, 96, 128), 77, dtype=torch.uint8)),
        sample_of(torch.zeros(3, 2, 2, dtype=torch.uint8)),
        sample_of(torch.zeros(3, 1, 1, dtype=torch.uint8)),
        sample_of(noise_image(33, 47)),
        sample_of(noise_image(96, 128)),
        sample_of(noise_image(96, 128), baseline_m=500.0),
    ],
    ids=["constant colour", "2 x 2", "1 x 1", "small", "identical frames, no disparity", "baseline in millimetres"],
)
def test_nothing_to_find(sample: StereoSample) -> None:
    flow = scene_flow(sample, ClassicalMatcher()(sample))
    found = propose(sample, flow)
    assert all(t.isfinite().all() for t in (flow.points_0, flow.points_1, flow.noise_px, found.camera_motion))
    assert not found.instance.any() and len(found.motions) == 0
    assert found.diagnostics["why_empty"]


def test_no_number_no_proposal() -> None:
    scene = street_scene(3)
    matches = exact_matches(scene)
    nothing = torch.full_like(matches.disparity_0, float("nan"))
    found = propose(scene.sample, scene_flow(scene.sample, matches.replace(disparity_0=nothing)))
    assert not found.instance.any() and "trusted" in found.diagnostics["why_empty"]
    spoilt = matches.flow_forward.clone()
    spoilt[:, ::3] = float("nan")
    found = propose(scene.sample, scene_flow(scene.sample, matches.replace(flow_forward=spoilt)))
    assert found.motions.isfinite().all() and found.scores.isfinite().all() and found.camera_motion.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_any_precision(dtype: torch.dtype) -> None:
    scene = street_scene(3)
    matches = exact_matches(scene)
    changed = {name: getattr(matches, name).to(dtype) for name in ("flow_forward", "flow_backward", "disparity_0")}
    found = propose(scene.sample, scene_flow(scene.sample, matches.replace(**changed)))
    assert found.motions.dtype == torch.float32 and found.motions.isfinite().all()


def test_static_street_has_no_proposals() -> None:
    scene = street_scene(11, height=256, width=512, static=True)
    found = propose(scene.sample, scene_flow(scene.sample, exact_matches(scene)))
    assert not found.instance.any() and found.diagnostics["why_empty"]


def test_same_result_on_any_number_of_threads() -> None:
    scene = street_scene(4)
    flow = scene_flow(scene.sample, ClassicalMatcher()(scene.sample))
    threads = torch.get_num_threads()
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        results.append(propose(scene.sample, flow, seed=5))
    torch.set_num_threads(threads)
    assert torch.equal(results[0].instance, results[1].instance)
    assert torch.equal(results[0].motions, results[1].motions)


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("{regions: {min_evidence: 0.2}}", "motion.regions.min_evidence is motion.min_evidence now: rename it"),
        ("{ego: {min_points: 99}}", "motion.ego.min_points is motion.min_trusted_points now: rename it"),
        ("{regions: {segments: {min_area_px: 9}}}", "motion.regions.segments.min_area_px is motion.min_area_px now"),
        ("{regions: {segments: {jump_m: 0.3}}}", "motion.regions.segments.jump_m was removed (it is a constant of"
         " cups.stages.motion.depth_segments now): delete it"),
        ("{ego: {points: 99}}", "motion.ego.points was removed (it is a constant of"
         " cups.stages.motion.ego_motion now): delete it"),
        ("{rise_share: 0.2}", "motion.rise_share was removed"),
        ("{ego: {}}", "motion.ego was removed"),
        ("{ego: 3}", "motion.ego was removed"),
        ("{egos: {}}", "motion.egos is unknown; there are min_trusted_points"),
    ],
)  # fmt: skip
def test_an_old_settings_file_ends_in_one_line_that_says_what_to_do(old: str, message: str, tmp_path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"num_classes: 40\nmotion: {old}\n")
    with pytest.raises(InputError) as caught:
        load_settings(PseudoLabelSettings, path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_all_old_names_lead_to_settings_or_modules_that_exist() -> None:
    assert set(MotionSettings.MOVED.values()) <= set(MotionSettings.__dataclass_fields__)
    for module in MotionSettings.REMOVED.values():
        import_module(module)
    with pytest.raises(InputError, match="; "):
        settings_from_dict(MotionSettings, {"ego": {"points": 1, "min_points": 2}}, "motion")


def test_kitti_vehicles(tmp_path) -> None:
    shared = shared_folder()
    frames = StereoFolder(shared / "data" / "kitti_000043")
    for index in (2, 6):
        sample = frames[index]
        found = propose(sample, scene_flow(sample, ClassicalMatcher()(sample)))
        write_png(tmp_path / f"{index:02d}.png", found.instance.numpy().astype(np.uint8))
    truth = shared / "data" / "kitti_000043" / "moving_objects"
    command = [sys.executable, shared / "tools" / "score_motion.py", truth, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    recall, iou, extra = (result.splitlines()[-1].split()[i] for i in (1, 4, 6))
    assert recall == "6/6" and float(iou) >= 0.70 and int(extra) <= 1, result
