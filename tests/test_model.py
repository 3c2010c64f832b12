"""The full-size network computes what the published one computes with the same weights."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from shared import load_fixture, procedural_image, procedural_state, shared_folder

from cups.core.errors import InputError
from cups.model import load, load_backbone
from cups.model.cascade_heads import CascadeHeads
from cups.model.inference import combine
from cups.model.network import PanopticCascade, panoptic_cascade


def names_and_shapes(network: torch.nn.Module) -> list[str]:
    return sorted(f"{name}\t{'x'.join(map(str, value.shape))}" for name, value in network.state_dict().items())


def test_names_and_shapes_are_the_published_ones():
    lines = names_and_shapes(panoptic_cascade(8, 19))
    assert len(lines) == 431
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "54b6fe74bacf4ced68e47505780427e0c05a94943ea13899756c6c900617f6af"


def test_names_and_shapes_are_those_of_the_list():
    table = (shared_folder() / "fixtures" / "panoptic_cascade_keys.tsv").read_text().splitlines()
    assert names_and_shapes(panoptic_cascade(8, 19)) == sorted(line if "\t" in line else f"{line}\t" for line in table)


@pytest.fixture(scope="module")
def fixture() -> dict[str, np.ndarray]:
    return load_fixture("panoptic_cascade")


@pytest.fixture(scope="module")
def network(fixture) -> PanopticCascade:
    network = panoptic_cascade(int(fixture["num_things"]), int(fixture["num_stuff"]), min_confidence=0.1).eval()
    network.load_state_dict(procedural_state(network, int(fixture["seed"])))
    return network


@pytest.fixture(scope="module")
def image(fixture) -> torch.Tensor:
    return procedural_image(*(int(fixture[name]) for name in ("height", "width", "seed")))


@pytest.fixture(scope="module")
def features(network, image) -> list[torch.Tensor]:
    with torch.no_grad():
        return network.backbone(network.normalise([image]))


def assert_close(ours: torch.Tensor, theirs: np.ndarray, relative: float = 1e-4) -> None:
    """Compare within `relative` of the values' standard deviation: single values may be near zero."""
    theirs = torch.from_numpy(theirs)
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max() / theirs.std()
    assert difference < relative, f"differs by {difference:.2e} of the standard deviation"


def test_features(features, fixture):
    for level, feature in enumerate(features, start=2):
        assert_close(feature[:, ::16], fixture[f"feature_p{level}"])


@torch.no_grad()
def test_semantic_scores(network, features, fixture):
    assert_close(network.sem_seg_head(features)[..., ::4, ::4], fixture["sem_seg"])


@torch.no_grad()
def test_region_head(network, features, fixture):
    scores, offsets = network.proposal_generator.rpn_head(features)
    for level in range(5):
        assert_close(scores[level], fixture[f"rpn_objectness_{level}"])
        assert_close(offsets[level], fixture[f"rpn_deltas_{level}"])


@torch.no_grad()
def test_heads_on_given_boxes(network, features, fixture):
    heads: CascadeHeads = network.roi_heads
    boxes = [torch.from_numpy(fixture["boxes"])]
    for stage in range(3):
        scores, offsets = heads.classify(stage, features, boxes)
        assert_close(scores, fixture[f"box_scores_{stage}"])
        assert_close(offsets, fixture[f"box_deltas_{stage}"])
    assert_close(heads.mask_logits(features, boxes)[..., ::2, ::2], fixture["mask_logits"])


def nearest_boxes(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each of their boxes the one of ours that lies nearest, and its distance in pixels.

    A fifth number beside the four of a box tells its class.

    Ranks are not compared: scores that agree to the sixth digit change places with the number of threads.
    """
    assert ours.shape == theirs.shape
    distance, index = (ours[None] - theirs[:, None]).abs().amax(dim=2).min(dim=1)
    return index, distance


@torch.no_grad()
def test_proposals(network, features, image, fixture):
    boxes, logits, _ = network.proposal_generator(features, [tuple(image.shape[-2:])])
    index, distance = nearest_boxes(boxes[0][:100], torch.from_numpy(fixture["proposal_boxes"]))
    assert (distance < 0.1).float().mean() >= 0.99
    assert (logits[0][index] - torch.from_numpy(fixture["proposal_logits"])).abs().max() < 1e-3


@torch.no_grad()
def test_instances_and_panoptic_map(network, image, fixture):
    prediction = network([image])[0]
    theirs = torch.from_numpy(fixture["instance_boxes"]), torch.from_numpy(fixture["instance_classes"])
    ours = prediction.boxes, prediction.classes
    index, distance = nearest_boxes(*(torch.cat([boxes, classes[:, None]], 1) for boxes, classes in (ours, theirs)))
    assert (distance < 0.1).float().mean() >= 0.99
    assert (prediction.scores[index] - torch.from_numpy(fixture["instance_scores"])).abs().max() < 1e-3
    # Thing classes 0..7 as they are, stuff class j as 100 + j, so that the map says which kind it is.
    label, segments = combine(prediction, network.config, range(8), range(101, 120))
    info = json.loads(str(fixture["panoptic_info"]))
    classes = {0: 255} | {s["id"]: s["category_id"] + (0 if s["isthing"] else 100) for s in info}
    expected = np.vectorize(classes.__getitem__)(fixture["panoptic"])
    assert (label.semantic.numpy() == expected).mean() >= 0.99
    numbers = {0: 0} | {s["id"]: s["id"] if s["isthing"] else 0 for s in info}
    assert (label.instance.numpy() == np.vectorize(numbers.__getitem__)(fixture["panoptic"])).mean() >= 0.99
    areas = [s.area_px for s in segments if s.instance == 0]
    assert areas == pytest.approx([s["area"] for s in info if not s["isthing"]], rel=1e-3)


def test_bad_settings_end_in_one_line():
    for arguments, fault in (((0, 5), "num_things"), ((5, 0), "num_stuff"), ((1, 1, "tiny"), "unknown preset")):
        with pytest.raises(InputError, match=fault):
            panoptic_cascade(*arguments)
    with pytest.raises(InputError, match="no targets"):
        panoptic_cascade(1, 1, preset="small").train()(torch.zeros(1, 3, 64, 64))


class Configuration:
    """Stands for the objects among the hyperparameters of a published checkpoint."""


def test_a_published_checkpoint(network, fixture, tmp_path):
    path = tmp_path / "cups.ckpt"
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    state |= {f"teacher_{name}": torch.zeros(1) for name in state}
    torch.save({"state_dict": state, "hyper_parameters": {"config": Configuration()}}, path)
    read = load(path, min_confidence=0.1)
    assert (read.config.num_things, read.config.num_stuff) == (8, 19) and read.config == network.config
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in read.state_dict().items())
    assert not read.training and read.split.stuff == tuple(range(19)) and read.split.things == tuple(range(19, 27))


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path):
    path = tmp_path / "cups.ckpt"
    state = {f"model.{name}": value for name, value in panoptic_cascade(2, 3).state_dict().items()}
    del state["model.backbone.fpn_output2.weight"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(InputError, match=r"cups.ckpt: does not fit .* 1 missing: backbone.fpn_output2.weight$"):
        load(path)
    torch.save({"state_dict": {"model.a": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"cups\.ckpt: not the weights of a panoptic network"):
        load(path)


def test_a_pretrained_backbone(tmp_path):
    path = tmp_path / "backbone.pkl"
    source, target = panoptic_cascade(1, 1).backbone.bottom_up, panoptic_cascade(1, 1)
    arrays = {n: v.numpy() for n, v in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x", "matching_heuristics": "y"}))
    loaded = load_backbone(target, path).backbone.bottom_up
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.state_dict().items())
