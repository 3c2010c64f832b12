"""SMURF and DepthG compute what the published networks compute with the same weights."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import load_fixture, procedural_image, procedural_state, shared_folder

from cups.core.checkpoints import fill, read_tensors
from cups.core.errors import InputError
from cups.core.images import normalised
from cups.stages.matching.smurf import SmurfMatcher, SmurfSettings
from cups.stages.matching.smurf_network import Smurf
from cups.stages.semantics import depthg
from cups.stages.semantics.depthg import DepthG, DepthGSettings, depthg_for


def names_and_shapes(network: torch.nn.Module) -> set[str]:
    return {f"{name}\t{'x'.join(map(str, value.shape))}" for name, value in network.state_dict().items()}


def published(table: str) -> set[str]:
    return set((shared_folder() / "fixtures" / table).read_text().splitlines())


def test_names_and_shapes_are_those_of_the_lists():
    assert names_and_shapes(Smurf()) == published("smurf_keys.tsv")
    not_needed = ("train_cluster_probe", "linear_probe", "decoder")
    needed = {line for line in published("depthg_keys.tsv") if not line.startswith(not_needed)}
    assert names_and_shapes(DepthG()) == needed


@pytest.fixture(scope="module")
def smurf_file(tmp_path_factory) -> Path:
    fixture = load_fixture("smurf")
    path = tmp_path_factory.mktemp("weights") / "raft_smurf.pt"
    torch.save(procedural_state(Smurf(), int(fixture["seed"])), path)
    return path


@torch.inference_mode()
def test_smurf(smurf_file):
    fixture = load_fixture("smurf")
    network = fill(Smurf(), read_tensors(smurf_file), smurf_file).eval()
    seed = int(fixture["seed"])
    images = torch.stack([procedural_image(128, 192, seed), procedural_image(128, 192, seed, (3, 1))])
    for updates in (1, 6):
        there, back = network(images, [[(0, 1), (1, 0)]], updates)[0]
        expected = torch.from_numpy(fixture[f"flow_{updates}"])[0]
        assert (there - expected).abs().max() < 1e-3
        assert torch.allclose(there, expected, rtol=1e-4, atol=1e-4)
    for ours, name in ((-there[0], "disparity_6"), (back[0], "disparity_backward_6")):
        assert (ours.clamp(min=0) - torch.from_numpy(fixture[name])[0, 0]).abs().max() < 1e-3


@torch.inference_mode()
def test_frames_that_are_matched_at_once_are_matched_as_alone(smurf_file):
    """A GPU's process works on several frames with one network."""
    network = fill(Smurf(), read_tensors(smurf_file), smurf_file).eval()
    images = [torch.stack([procedural_image(128, 192, seed, *shift) for shift in ((), ((3, 1),))]) for seed in (1, 2)]

    def match(pair: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(pair, [[(0, 1), (1, 0)]], 4)[0]

    alone = [match(pair) for pair in images]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(match, images * 2))
    assert all(torch.equal(a, b) for a, b in zip(at_once, alone * 2, strict=True))


@pytest.fixture(scope="module")
def depthg_file(tmp_path_factory) -> Path:
    fixture = load_fixture("depthg")
    state = procedural_state(DepthG(code=int(fixture["dim"]), num_clusters=int(fixture["num_clusters"])), 0)
    path = tmp_path_factory.mktemp("weights") / "depthg.ckpt"
    torch.save({"state_dict": state | {"decoder.bias": torch.zeros(768)}, "hyper_parameters": {"cfg": Path("x")}}, path)
    return path


@torch.inference_mode()
def test_depthg(depthg_file):
    fixture = load_fixture("depthg")
    network = depthg_for(read_tensors(depthg_file), depthg_file).eval()
    image = normalised(procedural_image(128, 256, int(fixture["seed"])))
    depth = torch.from_numpy(fixture["depth"])[0, 0]
    ours = {
        "dino_feature": network.net.model(image[None])[:, ::32],
        "code": network.net(image[None]),
        "log_probs": network(image[None]),
        "sliding_window": depthg.sliding_window(network, image)[None, :, ::4, ::4],
        "depth_guided": depthg.depth_guided(network, image, depth)[None, :, ::4, ::4],
    }
    for name, value in ours.items():
        assert value.shape == fixture[name].shape
        assert np.abs(value.numpy() - fixture[name]).max() < 1e-4, name


def test_networks_take_their_part_in_the_pipeline(smurf_file, depthg_file, tmp_path):
    from cups.stages.labels.pseudo_classes import PseudoClasses, fit_pseudo_classes
    from cups.stages.pipeline import PseudoLabelSettings, analyse, describe, known_clusters
    from cups.street.scenes import street_scene

    sample = street_scene((5, 0), 128, 192).sample
    settings = PseudoLabelSettings(
        matcher="smurf",
        smurf=SmurfSettings(str(smurf_file), updates=1),
        features="depthg",
        depthg=DepthGSettings(str(depthg_file)),
        num_classes=27,
        num_object_classes=0,
    )
    assert SmurfMatcher(settings.smurf)(sample).flow_forward.shape == (2, 128, 192)
    with pytest.raises(InputError, match="num_classes must be 27 with features depthg, got 40"):
        known_clusters(replace(settings, num_classes=40))
    clusters = known_clusters(settings)
    classes = fit_pseudo_classes(describe(sample, settings), settings.num_classes, 0, pixels=clusters)
    classes = PseudoClasses.load(classes.save(tmp_path / "classes.safetensors"))
    analysis = analyse(sample, classes, settings)
    assert analysis.scores.log_probs.shape == (27, 128, 192)
    assert analysis.label.diagnostics["matches"]["matcher"] == "smurf"
