"""The networks of DINO and DINOv2 are read from their files, compute what they should, and describe frames."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shared import dinov2_file
from torch.nn import functional as F

from cups.cli import main
from cups.core.checkpoints import read_tensors
from cups.core.errors import InputError
from cups.core.images import normalised
from cups.core.settings import load_settings
from cups.labels.store import PseudoLabelStore
from cups.run.features import with_features
from cups.run.scenes import render_scenes
from cups.stages.labels.pseudo_classes import fit_pseudo_classes
from cups.stages.matching.classical import ClassicalMatcher
from cups.stages.pipeline import PseudoLabelSettings, analyse, describe
from cups.stages.semantics.depthg import DepthG, DepthGFeatures, DepthGSettings, depthg_for
from cups.stages.semantics.tokens import TokenFeatures, TokenSettings, token_features
from cups.stages.semantics.vision_transformer import VisionTransformer, vision_transformer_for
from cups.street.scenes import street_scene

KINDS = {
    "dino": {"patch_px": 8, "grid": 4},
    "dino16": {"patch_px": 16, "grid": 3},
    "dinov2": {"patch_px": 14, "grid": 5, "layer_scale": True},
    "dinov2_reg4": {"patch_px": 14, "grid": 5, "registers": 4, "layer_scale": True},
}
NAMES = {  # of one block and of what is outside of blocks, as published
    "dino": "attn.proj attn.qkv mlp.fc1 mlp.fc2 norm1 norm2",
    "dinov2": "attn.proj attn.qkv ls1.gamma ls2.gamma mlp.fc1 mlp.fc2 norm1 norm2",
}


def random_network(kind: str, seed: int = 0) -> VisionTransformer:
    """Return a narrow network of a kind with random weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    network = VisionTransformer(channels=128, depth=3, **KINDS[kind]).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def published_tensors(network: VisionTransformer) -> dict[str, torch.Tensor]:
    """Return its tensors as files hold them: DINOv2's have a token for masks, which is of no use here."""
    tensors = dict(network.state_dict())
    return tensors | {"mask_token": torch.zeros(1, 128)} if "blocks.0.ls1.gamma" in tensors else tensors


@torch.inference_mode()
def by_hand(tensors: dict[str, torch.Tensor], images: torch.Tensor, patch_px: int) -> torch.Tensor:
    """Return all tokens after the last norm, written as formulas: the positions' grid must be that of the images."""
    weight = {n: t.double() for n, t in tensors.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    patches = F.unfold(images.double(), patch_px, stride=patch_px).transpose(1, 2)
    patches = patches @ weight["patch_embed.proj.weight"].flatten(1).T + weight["patch_embed.proj.bias"]
    x = torch.cat([weight["cls_token"].expand(len(images), -1, -1), patches], 1) + weight["pos_embed"]
    if "register_tokens" in weight:
        x = torch.cat([x[:, :1], weight["register_tokens"].expand(len(images), -1, -1), x[:, 1:]], 1)
    for number in range(len({n.split(".")[1] for n in tensors if n.startswith("blocks.")})):
        block = f"blocks.{number}"
        query, key, value = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        heads = []
        for c in range(0, query.shape[-1], 64):
            q, k, v = (part[..., c : c + 64] for part in (query, key, value))
            heads.append((q @ k.transpose(1, 2) / 8).softmax(-1) @ v)
        x = x + linear(torch.cat(heads, -1), f"{block}.attn.proj") * weight.get(f"{block}.ls1.gamma", 1)
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(hidden, f"{block}.mlp.fc2") * weight.get(f"{block}.ls2.gamma", 1)
    return norm(x, "norm")


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_tokens_are_those_of_the_formulas(kind):
    network, side = random_network(kind), KINDS[kind]["patch_px"] * KINDS[kind]["grid"]
    images = torch.randn(2, 3, side, side)
    expected = by_hand(published_tensors(network), images, network.patch_px)
    torch.testing.assert_close(network.tokens(images).double(), expected, atol=1e-4, rtol=1e-4)
    patches = expected[:, 1 + network.registers :].transpose(1, 2).unflatten(2, (KINDS[kind]["grid"],) * 2)
    torch.testing.assert_close(network(images).double(), patches, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_those_of_the_published_files(kind):
    names = set(random_network(kind).state_dict())
    family = kind.split("_")[0].removesuffix("16")
    blocks = {n.removesuffix(".weight").removesuffix(".bias") for n in names if n.startswith("blocks.")}
    assert {n.split(".", 2)[2] for n in blocks} == set(NAMES[family].split())
    outside = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    registers = {"register_tokens"} if kind == "dinov2_reg4" else set()
    assert {n for n in names if not n.startswith("blocks.")} == outside | registers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@torch.inference_mode()
def test_a_file_says_what_the_network_is(kind, ending, tmp_path):
    network = random_network(kind)
    path, tensors = tmp_path / f"x.{ending}", published_tensors(network)
    torch.save(tensors, path) if ending == "pth" else save_file(tensors, path)
    read = vision_transformer_for(read_tensors(path), path).eval()
    image = torch.randn(1, 3, 7 * network.patch_px, 9 * network.patch_px)
    assert read(image).shape == (1, 128, 7, 9) and torch.equal(read(image), network(image))


def without(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if part not in n}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "patch_embed.proj.weight' is missing"),
        (lambda t: t | {"patch_embed.proj.weight": torch.zeros(128, 588)}, "not the weights of a vision transformer"),
        (lambda t: t | {"pos_embed": torch.zeros(1, 20, 128)}, "20 positions"),
        (lambda t: t | {"pos_embed": torch.zeros(0)}, "not the weights of a vision transformer"),
        (lambda t: t | {"pos_embed": torch.zeros(1, 0, 128)}, "0 positions"),
        (lambda t: t | {"patch_embed.proj.weight": torch.zeros(100, 3, 14, 14)}, "100 channels"),
        (lambda t: without(t, "blocks"), "0 blocks"),
        (lambda t: without(t, "blocks.1.ls2"), "1 missing: blocks.1.ls2.gamma"),
        (lambda t: without(t, "blocks.0.ls1"), "unexpected: blocks.0.ls2.gamma"),
        (lambda t: t | {"head.weight": torch.zeros(1000, 128)}, "1 unexpected: head.weight"),  # learned with labels
        (lambda t: t | {"register_tokens": torch.zeros(1, 4, 64)}, "of another shape: register_tokens"),
    ],
)
def test_wrong_files_end_in_one_line(change, fault):
    tensors = change(published_tensors(random_network("dinov2")))
    with pytest.raises(InputError, match=fault) as error:
        vision_transformer_for(tensors, "some.pth")
    assert str(error.value).startswith("some.pth: ") and "\n" not in str(error.value)


@torch.inference_mode()
def test_the_tokens_of_dinov2_are_those_of_another_program():
    path = dinov2_file()
    network = vision_transformer_for(read_tensors(path), path).eval()
    with np.load(path.with_name("reference.npz")) as file:
        image, tokens = (torch.from_numpy(file[name]) for name in ("image_rgb01", "tokens"))
    image = normalised(image.permute(2, 0, 1))[None]
    found = network.tokens(image)[0]
    assert found.shape == tokens.shape and (found - tokens).abs().max() < 0.02
    network.offset = 0.1  # as published for weights without registers: nearly the same
    assert (network.tokens(image)[0] - tokens).abs().mean() < 0.02


@torch.inference_mode()
def test_windows():
    network = random_network("dinov2_reg4")
    image = torch.randn(3, 6 * 14, 9 * 14)
    whole = network(image[None])[0]
    assert torch.equal(token_features(network, image), whole)
    assert torch.equal(token_features(network, image, window=9), whole)
    windows = token_features(network, image, window=5, windows_at_once=1)
    torch.testing.assert_close(windows, token_features(network, image, window=5), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(windows[:, 0, 0], network(image[None, :, :70, :70])[0, :, 0, 0])
    torch.testing.assert_close(windows[:, 5, 8], network(image[None, :, 14:, 56:])[0, :, 4, 4])
    assert token_features(network, image, window=1).shape == whole.shape


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "own.pth"
    torch.save(published_tensors(random_network("dinov2")), path)
    return path


def test_tokens_take_their_part_in_the_pipeline(file):
    sample = street_scene((5, 0), 128, 192).sample
    tokens = TokenSettings(str(file), tokens_high=16, device="cpu")
    settings = PseudoLabelSettings(features="dinov2", dinov2=tokens, num_classes=5, num_object_classes=0)
    classes = fit_pseudo_classes(describe(sample, settings), settings.num_classes, 0)
    first, second = (analyse(sample, classes, settings) for _ in range(2))
    assert first.scores.log_probs.shape == (5, 128, 192) and len(first.label.semantic.unique()) > 1
    assert torch.equal(first.scores.log_probs, second.scores.log_probs)
    assert TokenFeatures(tokens)(sample, first.matches).shape == (128, 16, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_of_depthg_is_read_on_every_backbone(kind, tmp_path):
    path = tmp_path / "head.ckpt"
    network = DepthG(random_network(kind), code=6, num_clusters=4).eval()
    network.cluster_probe.clusters.data = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    extra = {"net.model.mask_token": torch.zeros(1, 128), "decoder.bias": torch.zeros(3)}
    torch.save({"state_dict": network.state_dict() | extra}, path)
    read = depthg_for(read_tensors(path), path).eval()
    assert read.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    describe_frame = DepthGFeatures(DepthGSettings(str(path), device="cpu"))
    sample = street_scene((5, 0), 96, 128).sample
    matches = ClassicalMatcher()(sample)
    assert describe_frame(sample, matches).shape == (4, 96, 128) and describe_frame.clusters().num_classes == 4


def test_auto_takes_what_is_here_and_a_store_keeps_it(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUPS_HOME", str(tmp_path / "home"))
    render_scenes(tmp_path / "video", 2, 0, 96, 192, workers=1)
    given = tmp_path / "labels.yaml"
    lines = f"features: auto\nnum_classes: 6\nnum_object_classes: 0\ndinov2:\n  weights: {file}\n"
    given.write_text(lines + "  tokens_high: 10\n  device: cpu\n")
    command = ["pseudo-labels", "--root", str(tmp_path / "video"), "--out", str(tmp_path / "labels"), "--workers", "1"]
    assert main([*command, "--settings", str(given)]) == 0
    assert f"cups: features: dinov2 (weights: {file})" in capsys.readouterr().err
    store = PseudoLabelStore(tmp_path / "labels")
    assert store.settings["features"] == "dinov2" and len(store) == 2
    settings = load_settings(PseudoLabelSettings, given)
    os.remove(file)
    assert with_features(settings).features == "handcrafted"
    assert with_features(settings, store.root).features == "dinov2"
    assert with_features(replace(settings, features="dino")).features == "dino"
