"""The ONNX file computes what the network computes, and says in one line why it cannot be written or read."""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import shared_folder

from cups.cli import main
from cups.core.errors import InputError
from cups.core.images import read_rgb
from cups.model.config import VisionTransformerSettings
from cups.model.files import load, numbered_split, save_network
from cups.model.inference import network_output, predict
from cups.model.network import panoptic_cascade
from cups.run.export_network import MIN_SAME_PIXELS, checked_agreement, onnx_agreement
from cups.street.scenes import street_scene

pytest.importorskip("onnxscript", reason="pip install 'cups[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'cups[onnx]'")

from cups.model.onnx import ONNX_OUTPUTS, export_onnx, onnx_map, onnx_output, open_onnx  # noqa: E402

SIZE = (120, 200)  # neither side is a multiple of 32


@pytest.fixture(scope="module")
def network():
    return load("street_scenes")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return what the command prints; its file is used by all the tests, since making one takes seconds."""
    path, printed = tmp_path_factory.mktemp("onnx") / "network.onnx", io.StringIO()
    command = ["export-network", "street_scenes", "--out", path, "--height", SIZE[0], "--width", SIZE[1]]
    with contextlib.redirect_stdout(printed):
        assert main([str(word) for word in command]) == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def session(exported):
    return open_onnx(exported["written"])


def test_the_command_says_what_agrees(exported):
    assert (exported["height"], exported["width"]) == SIZE
    assert exported["agreement"]["images"] == 3 and exported["agreement"]["same_pixels"] >= MIN_SAME_PIXELS
    assert [path.name for path in Path(exported["written"]).parent.iterdir()] == ["network.onnx"]


def test_street_scenes_have_the_same_map(network, session):
    agreement = onnx_agreement(network, session, [street_scene(seed, *SIZE).sample.left_0 for seed in range(4)])
    assert agreement["images"] == 4 and agreement["detections"] > 0
    assert agreement["same_pixels"] >= MIN_SAME_PIXELS
    assert agreement["differences"]["classes"] == 0
    assert agreement["differences"]["boxes"] < 0.01
    assert max(agreement["differences"][name] for name in ("semantic", "scores", "masks")) < 1e-3


def test_photographs_have_the_same_map(network, session):
    files = sorted((shared_folder() / "data" / "kitti_street21" / "left").glob("*.png"))[:4]
    images = [torch.nn.functional.interpolate(read_rgb(file)[None].float(), SIZE, mode="area")[0] for file in files]
    agreement = onnx_agreement(network, session, [image.round().byte() for image in images])
    assert agreement["images"] == 4 and agreement["same_pixels"] >= MIN_SAME_PIXELS


def test_the_map_is_that_of_predict_with_its_segments(network, session):
    image = street_scene(7, *SIZE).sample.left_0
    ours, theirs = predict(network, image), onnx_map(session, onnx_output(session, image))
    assert torch.equal(ours.semantic, theirs.semantic) and torch.equal(ours.instance, theirs.instance)
    for here, there in zip(ours.diagnostics["segments"], theirs.diagnostics["segments"], strict=True):
        assert there == here | {"score": pytest.approx(here["score"], abs=1e-5)}


def test_the_file_alone_has_names_types_and_classes(network, session):
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", [3, *SIZE])
    assert tuple(output.name for output in session.get_outputs()) == ONNX_OUTPUTS
    saved = json.loads(session.get_modelmeta().custom_metadata_map["cups"])
    assert saved["split"] == network.split.to_dict()
    assert saved["config"]["min_confidence"] == network.config.min_confidence


def test_other_weights_are_told_apart(exported):
    other = load("street_scenes")
    with torch.no_grad():
        other.roi_heads.box_predictor[2].bbox_pred.bias += 2
        other.sem_seg_head.predictor.bias += torch.linspace(-1, 1, len(other.sem_seg_head.predictor.bias))
    with pytest.raises(InputError, match=r"^only \d+.\d+% of the ONNX file's map are as the network's; differences"):
        checked_agreement(other, exported["written"], [street_scene(0, *SIZE).sample.left_0])


def test_an_image_without_detections(network, session):
    image = torch.tensor([120, 255, 60], dtype=torch.uint8)[:, None, None].expand(3, *SIZE).contiguous()  # a lawn
    outputs, ours = onnx_output(session, image), network_output(network, image)
    assert len(ours.scores) == 0 and outputs.boxes.shape == (0, 4) and outputs.masks.shape == (0, 28, 28)
    assert torch.equal(onnx_map(session, outputs).semantic, predict(network, image).semantic)


def test_a_vision_transformer_computes_the_same(tmp_path):
    """Its smoothed bicubic resizing of images and positions has operators of its own; the heads are those above."""
    torch.manual_seed(0)
    sizes = VisionTransformerSettings(channels=64, depth=1, grid=7, registers=2)
    fresh = panoptic_cascade(2, 3, preset="small", vision_transformer=sizes).eval()
    image = fresh.normalise([street_scene(0, 64, 96).sample.left_0])
    torch.onnx.export(fresh.backbone, (image,), tmp_path / "backbone.onnx", input_names=["x"], verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for ours, theirs in zip(fresh.backbone(image), session.run(None, {"x": image.numpy()}), strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4)


def test_the_exporter_leaves_the_network_as_it_was(exported, network):
    """Constants that are kept between calls are no symbols of the exporter afterwards."""
    again = load("street_scenes")
    image = street_scene(2, *SIZE).sample.left_0
    assert torch.equal(predict(again, image).semantic, predict(network, image).semantic)


def test_what_cannot_be_used_is_said_in_one_line(network, session, tmp_path):
    with pytest.raises(InputError, match=r"takes uint8 images \(3, 120, 200\), got float32 \(3, 120, 200\)"):
        onnx_output(session, np.zeros((3, *SIZE), np.float32))
    with pytest.raises(InputError, match="height and width must be positive, got 0 x 64"):
        export_onnx(network, tmp_path / "network.onnx", (0, 64))
    without = panoptic_cascade(1, 2, preset="small")
    with pytest.raises(InputError, match="holds no split"):
        export_onnx(without, tmp_path / "network.onnx", (64, 64))
    with pytest.raises(InputError, match=r"missing\.onnx: no such file"):
        open_onnx(tmp_path / "missing.onnx")
    (tmp_path / "weights.onnx").write_bytes(save_network(tmp_path / "w", without, numbered_split(1, 2)).read_bytes())
    with pytest.raises(InputError, match=r"weights\.onnx: not an ONNX file"):
        open_onnx(tmp_path / "weights.onnx")


def test_a_file_of_another_program_is_told_apart(tmp_path):
    import onnx

    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", [shape], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"other\.onnx: not written by `cups export-network`"):
        open_onnx(tmp_path / "other.onnx")


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_without_the_packages_one_line_says_how_to_install_them(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # how Python notes that a module cannot be imported
    assert main(["export-network", "street_scenes", "--out", str(tmp_path / "network.onnx")]) == 2
    said = capsys.readouterr()
    assert said.err == f"cups: error: writing an ONNX file needs {name}: pip install 'cups[onnx]'\n" and not said.out
