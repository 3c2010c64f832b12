"""Flow that starts from the camera's motion and from the shifts of vehicles, on its own and on real frames."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared_folder

from cups.core.geometry import back_project, depth_from_disparity, project
from cups.core.images import to_array
from cups.core.records import Calibration, StereoSample
from cups.core.rigid import se3_exp, transform
from cups.datasets.stereo_folder import StereoFolder
from cups.stages.matching.classical import ClassicalMatcher
from cups.stages.matching.guided_flow import guided_flow
from cups.stages.matching.look_alike import inverse_search_flow
from cups.stages.matching.rigid_flow import rigid_flow
from cups.stages.motion.propose import propose
from cups.stages.scene_flow import scene_flow
from cups.street.scenes import street_scene


def test_rigid_flow_is_what_projection_says() -> None:
    camera = Calibration(fx=300.0, fy=280.0, cx=60.0, cy=40.0, baseline_m=0.5, width=120, height=80)
    disparity = 5 + 20 * torch.rand(80, 120, generator=torch.Generator().manual_seed(0))
    motion = se3_exp(torch.tensor([0.2, -0.1, -1.5, 0.01, 0.02, -0.01]))
    points = back_project(depth_from_disparity(disparity, camera), camera).flatten(0, 1)
    there = project(transform(motion, points), camera)[:, :2].reshape(80, 120, 2).numpy()
    rows, columns = np.indices((80, 120), np.float32)
    part = (slice(10, 30), slice(40, 90))
    flow = rigid_flow(disparity.numpy(), motion.numpy().astype(np.float64), camera, part)
    assert np.abs(flow + np.stack([columns, rows], -1)[part] - there[part]).max() < 1e-2


def grey_and_disparities(sample: StereoSample, *disparities: torch.Tensor) -> tuple[tuple, tuple]:
    grey = tuple(cv2.cvtColor(to_array(image), cv2.COLOR_RGB2GRAY) for image in (sample.left_0, sample.left_1))
    return grey, tuple((d.numpy(), d.numpy() > 0) for d in disparities)


def test_without_depth_or_texture_flow_has_no_guide() -> None:
    scene = street_scene(3)
    nothing = torch.zeros_like(scene.truth.disparity_0)
    grey, known = grey_and_disparities(scene.sample, nothing, nothing)
    flows = guided_flow(grey, known, scene.sample.calibration)
    plain = inverse_search_flow(*grey), inverse_search_flow(*grey[::-1])
    assert all(np.array_equal(*pair) for pair in zip(flows, plain, strict=True))
    flat = tuple(np.full_like(image, 90) for image in grey)
    _, known = grey_and_disparities(scene.sample, scene.truth.disparity_0, scene.truth.disparity_1)
    assert all(np.isfinite(flow).all() for flow in guided_flow(flat, known, scene.sample.calibration))


def test_oncoming_vehicles_are_followed_the_same_way_every_time() -> None:
    guided, plain = [], []
    for seed in (4, 7):
        scene = street_scene(seed, 256, 512, traffic="oncoming")
        truth = scene.truth
        grey, known = grey_and_disparities(scene.sample, truth.disparity_0, truth.disparity_1)
        forward, backward = guided_flow(grey, known, scene.sample.calibration)
        if not guided:
            again = guided_flow(grey, known, scene.sample.calibration)
            assert np.array_equal(forward, again[0]) and np.array_equal(backward, again[1])
        right = truth.flow_forward.permute(1, 2, 0).numpy()
        far = truth.flow_visible.numpy() & (np.linalg.norm(right, axis=-1) > 10)
        for errors, flow in ((guided, forward), (plain, inverse_search_flow(*grey))):
            errors.append(np.linalg.norm(flow - right, axis=-1)[far] > 3)
    outliers, outliers_plain = (np.concatenate(errors).mean() for errors in (guided, plain))
    assert outliers < 0.6 * outliers_plain, (outliers, outliers_plain)


@pytest.mark.parametrize(("first", "second"), [(8, 9), (8, 6)], ids=["a frame on", "two frames back"])
def test_oncoming_cars_of_a_real_road(first: int, second: int) -> None:
    root = shared_folder() / "data" / "kitti_street21"
    frames = StereoFolder(root)
    images = [frames.image(side, f"{index:06d}") for index in (first, second) for side in ("left", "right")]
    sample = StereoSample(*images, frames.calibration)
    instance = propose(sample, scene_flow(sample, ClassicalMatcher()(sample))).instance.numpy()
    truth = np.asarray(Image.open(root / "moving_objects" / f"{first:06d}.png"))
    for vehicle in np.unique(truth)[1:]:
        number = np.bincount(instance[truth == vehicle]).argmax()
        overlap = ((instance == number) & (truth == vehicle)).sum() / ((instance == number) | (truth == vehicle)).sum()
        assert number and overlap > 0.6, (vehicle, overlap)
