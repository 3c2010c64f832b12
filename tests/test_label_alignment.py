"""Labels lie on their images to a fraction of a pixel wherever a training changes the size of both."""

import numpy as np
import pytest
import torch

from cups.core.records import VOID, PanopticLabel
from cups.model.semantic_head import semantic_loss, taught_semantic_loss
from cups.training.augment import augmentation_settings, flip_and_crop, rescale

HEIGHT, WIDTH = 96, 128


def centre(weights: torch.Tensor) -> np.ndarray:
    """Return the mean place (x, y) of the weights (H, W) of pixels."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in weights.shape), indexing="ij")
    return np.array([float((each * weights).sum() / weights.sum()) for each in (x, y)])


@pytest.mark.parametrize(("preset", "change"), [("small", flip_and_crop), ("cityscapes", rescale)])
def test_image_and_label_are_scaled_alike(preset, change):
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    disc = (x - 64) ** 2 + (y - 48) ** 2 < 10**2
    image, label = (255 * disc).to(torch.uint8).expand(3, -1, -1).contiguous(), PanopticLabel(disc.long(), disc.long())
    settings, apart = augmentation_settings(preset), []
    for seed in range(60):
        changed, labelled = change(image, label, settings, np.random.default_rng(seed))
        apart.append(centre(labelled.instance.double()) - centre(changed[0].double()))
    assert np.abs(np.mean(apart, 0)).max() < 0.1, "nearest neighbours from the corner of a pixel are 0.5 apart"


def gradient(loss, scores: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a loss by scores."""
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(scores, *more), scores)[0]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_semantic_loss_of_a_mirrored_label_is_mirrored(stride):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 8 * stride, 8 * stride), generator=generator)
    target[:, :2, :3] = VOID
    taught, inside = scores.softmax(1), torch.ones_like(target, dtype=torch.bool)
    for loss, more in ((semantic_loss, (target,)), (taught_semantic_loss, (target, taught, inside))):
        mirrored = gradient(loss, scores.flip(-1), *(each.flip(-1) for each in more))
        torch.testing.assert_close(mirrored, gradient(loss, scores, *more).flip(-1))
