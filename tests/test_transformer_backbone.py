"""A vision transformer takes the place of the ResNet under the same heads: read from its file, frozen or learning."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared import dinov2_file
from test_training import SPLIT, TINY, Frames, FramesWithoutLabels
from torch.nn import functional as F

from cups.core.errors import InputError
from cups.core.images import normalised
from cups.model import PanopticCascade, load, load_backbone, panoptic_cascade, save_network
from cups.model.files import numbered_split
from cups.stages.semantics.vision_transformer import VisionTransformer
from cups.training.dataset import PseudoLabelDataset
from cups.training.self_training import self_train, self_train_settings
from cups.training.trainer import make_optimizer, train, train_settings

KINDS = {
    "dino8": {"patch_px": 8, "grid": 4},
    "dino16": {"patch_px": 16, "grid": 3},
    "dinov2": {"patch_px": 14, "grid": 5, "layer_scale": True},
    "dinov2_reg4": {"patch_px": 14, "grid": 5, "registers": 4, "layer_scale": True},
}
STEPS = {"steps": 4, "batch_size": 2, "warmup_steps": 1, "checkpoint_every_steps": 2, "log_every_steps": 1}


@pytest.fixture
def file(tmp_path) -> Path:
    return transformer_file(tmp_path / "transformer.safetensors", "dinov2")


def transformer_file(path: Path, kind: str) -> Path:
    torch.manual_seed(1)
    tensors = VisionTransformer(64, depth=2, **KINDS[kind]).state_dict()
    tensors["pos_embed"].normal_()
    save_file(tensors | ({"mask_token": torch.zeros(1, 64)} if kind.startswith("dinov2") else {}), path)
    return path


def network_with(path: Path, frozen: bool = True) -> PanopticCascade:
    torch.manual_seed(0)
    return load_backbone(panoptic_cascade(1, 2, "small", **TINY), path, frozen)


@pytest.fixture
def real_file() -> Path:
    return dinov2_file()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_network_needs_no_other_file(kind, tmp_path):
    path = transformer_file(tmp_path / "transformer.safetensors", kind)
    network = network_with(path).eval()
    saved = save_network(tmp_path / "model.safetensors", network, SPLIT)
    path.unlink()
    again = load(saved)
    assert again.config == network.config and not again.training
    images = [torch.rand(3, 64, 96), torch.rand(3, 50, 77)]  # the smaller one is filled up
    for one, two in zip(network(images), again(images), strict=True):
        assert all(torch.equal(value, vars(two)[name]) for name, value in vars(one).items())
    sizes = [tuple(f.shape) for f in again.backbone(again.normalise(images))]
    assert sizes == [(2, 16, *size) for size in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))]


def test_a_resnet_is_built_as_before_and_files_without_the_setting_are_read(tmp_path):
    network = panoptic_cascade(1, 2, "small", **TINY)
    assert type(network.backbone).__name__ == "FeaturePyramid"
    path = save_network(tmp_path / "model.safetensors", network, SPLIT)
    with safe_open(path, framework="pt") as opened:
        metadata = json.loads(opened.metadata()["cups"])
    del metadata["config"]["vision_transformer"]
    save_file(load_file(path), path, {"cups": json.dumps(metadata)})
    assert load(path).config == network.config


def learn(folder: Path, path: Path, frozen: bool) -> PanopticCascade:
    network = network_with(path, frozen)
    data = PseudoLabelDataset(Frames(), SPLIT)
    train(network, data, train_settings("small", **STEPS), folder, progress=False, accelerator="cpu")
    return network


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_one_keeps_its_weights_and_the_other_learns(frozen, file, tmp_path):
    before = network_with(file, frozen)
    after = learn(tmp_path / "run", file, frozen)
    for name, weight in before.named_parameters():
        of_the_transformer = name.startswith("backbone.bottom_up.")
        same = torch.equal(weight, after.get_parameter(name))
        assert same == (of_the_transformer and frozen) or not weight.any(), name
    again = learn(tmp_path / "again", file, frozen)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in after.state_dict().items())


def test_what_learns_of_it_learns_slower(file):
    settings = train_settings("small")
    for frozen, rates in ((True, [1e-3]), (False, [1e-3, 1e-4])):
        network = network_with(file, frozen)
        groups = make_optimizer(network, settings).param_groups
        assert sorted({group["lr"] for group in groups}, reverse=True) == pytest.approx(rates)
        pretrained = {id(p) for p in network.backbone.bottom_up.parameters()}
        for group in groups:
            assert {id(p) in pretrained for p in group["params"]} == {group["lr"] < 1e-3}
        assert sum(len(g["params"]) for g in groups) == len([p for p in network.parameters() if p.requires_grad])


def test_self_training_leaves_a_frozen_one_as_it_is(file, tmp_path):
    network = network_with(file)
    settings = self_train_settings("small", min_confidence=0.05, learning_part="all", **STEPS)
    self_train(network, FramesWithoutLabels(Frames()), SPLIT, settings, tmp_path, progress=False, accelerator="cpu")
    expected = load_file(file)
    assert all(torch.equal(w, expected[name]) for name, w in network.backbone.bottom_up.state_dict().items())
    assert not torch.equal(network.backbone.level4[0].weight, network_with(file).backbone.level4[0].weight)
    network.train()
    assert not any(p.requires_grad for p in network.backbone.bottom_up.parameters())


def test_files_that_do_not_fit_end_in_one_line(file, tmp_path):
    tensors = load_file(file)
    wrong = tmp_path / "wrong.safetensors"
    for change, fault in (
        ({"blocks.0.norm1.weight": torch.zeros(32)}, "does not fit .* of another shape: blocks.0.norm1.weight"),
        ({"head.weight": torch.zeros(3, 64)}, "1 unexpected: head.weight"),
    ):
        save_file(tensors | change, wrong)
        with pytest.raises(InputError, match=rf"wrong\.safetensors: .*{fault}") as error:
            network_with(wrong)
        assert "\n" not in str(error.value)
    save_network(wrong, panoptic_cascade(1, 1, "small"), numbered_split(1, 1))
    with pytest.raises(InputError, match=r"wrong\.safetensors: does not fit the network"):
        load_backbone(network_with(file), wrong)  # a ResNet


def test_the_real_one(real_file, tmp_path):
    torch.manual_seed(0)
    network = load_backbone(panoptic_cascade(2, 3), real_file)
    sizes = network.config.vision_transformer
    assert (sizes.channels, sizes.depth, sizes.patch_px, sizes.grid, sizes.registers) == (384, 12, 14, 37, 0)
    with np.load(real_file.with_name("reference.npz")) as reference:
        image, tokens = (torch.from_numpy(reference[name]) for name in ("image_rgb01", "tokens"))
    # enlarged, so that the backbone resizes it to the 224 pixels of the reference again
    enlarged = F.interpolate(normalised(image.permute(2, 0, 1))[None], (256, 256), mode="bicubic", align_corners=False)
    seen = []
    network.backbone.bottom_up.register_forward_hook(lambda module, given, made: seen.append(made))
    features = network.backbone(enlarged)
    assert [tuple(f.shape) for f in features] == [(1, 256, 256 // s, 256 // s) for s in network.backbone.strides]
    expected = tokens[1:].T.unflatten(1, (16, 16))
    assert F.cosine_similarity(seen[0][0], expected, dim=0).mean() > 0.95
    assert not seen[0].requires_grad and all(f.requires_grad for f in features)
    saved = save_network(tmp_path / "model.safetensors", network, numbered_split(2, 3))
    again = load(saved).backbone(enlarged)
    assert all(torch.equal(one, two) for one, two in zip(network.eval().backbone(enlarged), again, strict=True))
