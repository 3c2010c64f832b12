"""The jobs run as papermill runs them, on data small enough for a test."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kernels import copied_kernels
from papermill.__main__ import papermill as command_line
from papermill.exceptions import PapermillExecutionError
from safetensors.torch import load_file, save_file

from cups.cli import main
from cups.core.files import write_json, write_png
from cups.core.images import to_array
from cups.core.taxonomy import CITYSCAPES_27
from cups.datasets.miniatures import write_miniature
from cups.labels.store import PseudoLabelStore
from cups.model import load
from cups.stages.pipeline import PseudoLabelSettings
from cups.stages.semantics.handcrafted import HandcraftedFeatures
from cups.stages.semantics.vision_transformer import VisionTransformer
from cups.street.scenes import street_clip
from cups.workbench.networks import networks_in
from cups.workbench.run_frames import compared_pictures, run_classes, run_video
from cups.workbench.run_records import read_run

ROOT = Path(__file__).parents[1]
QUICK = {"classical": {"full_height_px": 192}}
"""Match at twice the height of these images, not at four times."""

SMALL = {"num_scenes": 3, "num_test_scenes": 2, "height": 96, "width": 192, "steps": 2, "batch_size": 2, "num_shown": 1,
         "label_settings": QUICK,
         "workers": 1}  # processes of their own take seconds to start; `pretrain` and `pseudo_labels` start some

OF_LABELS = {name: value for name, value in SMALL.items() if name != "label_settings"}
"""The same where labels are there already."""


def papermill(notebook: str, folder: Path, **parameters) -> dict:
    """Run a job; return what it recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [
        item
        for name, value in parameters.items()
        for item in (("-y", json.dumps({name: value})) if isinstance(value, list | dict) else ("-p", name, str(value)))
    ]
    executed = folder / f"{Path(notebook).name}.ipynb"
    command = [f"nbs/{notebook}.ipynb", str(executed), *options, "-p", "run_dir", str(folder)]
    with contextlib.chdir(ROOT):
        command_line([str(word) for word in command], standalone_mode=False)
    return json.loads((folder / "metrics.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    papermill("train", folder, **SMALL)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _start_at_once(trained, processes):
    """After the first job, which imports everything in a process of its own, the others' kernels are copies."""
    with copied_kernels(processes):
        yield


def test_train_scores_labels_and_network_on_unseen_scenes(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    for name in ("pseudo_labels", "stage2", "stage2_views"):
        assert metrics[name]["frames"] == SMALL["num_test_scenes"]
        assert 0 <= metrics[name]["pq"] <= 1
        assert len(metrics[name]["pq_per_class"]) == 19
    assert metrics["environment"]["packages"]["torch"]
    assert metrics["seconds"] > 0
    pictures = [
        output
        for cell in json.loads((trained / "train.ipynb").read_text())["cells"]
        for output in cell.get("outputs", [])
        if output.get("data", {}).keys() & {"image/png", "image/jpeg"}
    ]
    assert len(pictures) == 3  # at the top, loss curves, and the one frame to show
    for measure in ("still_found", "void_share"):
        assert all(0 <= metrics[measure][name] <= 1 for name in ("pseudo_labels", "stage2", "stage2_views"))
    assert len(metrics["frame_accuracy"]) == SMALL["num_test_scenes"]
    assert ("stage2_void" in metrics) == (metrics["min_stuff_probability"] > 0)
    if "stage2_void" in metrics:
        assert abs(metrics["void_share"]["stage2_void"] - metrics["void_share"]["pseudo_labels"]) < 0.05


def test_the_record_of_a_training_begins_with_its_result(trained):
    cells = json.loads((trained / "train.ipynb").read_text())["cells"]
    assert "".join(cells[0]["source"]).startswith("# Train\n")
    picture, summary = next(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    assert picture["data"].keys() & {"image/png", "image/jpeg"}
    assert "| network |" in "".join(summary["data"]["text/markdown"])
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if any("widget" in kind for kind in output.get("data", {}))]
    bars = [text for o in outputs if "%|" in (text := "".join(o.get("data", {}).get("text/plain", "")))]
    assert len(bars) > 2 and all("100%|" in bar for bar in bars)


def test_a_pretrained_network_starts_other_trainings(trained, tmp_path):
    made = {"num_scenes": 3, "height": 96, "width": 192, "num_classes": 8, "steps": 2, "batch_size": 2, "num_shown": 1}
    metrics = papermill("pretrain", tmp_path / "pretrain", **made, num_compared=0, start="street_scenes")
    assert metrics["started_from"] == "street_scenes"
    start = tmp_path / "pretrain" / "street_scenes.safetensors"
    assert load(start).config.num_stuff <= 8
    folders = {"data_root": trained / "scenes", "pseudo_labels": trained / "labels", "test_root": trained / "scenes"}
    metrics = papermill("train", tmp_path / "train", **OF_LABELS, **folders, start=start)
    assert metrics["started_from"] == str(start) and metrics["stage2"]["frames"] == SMALL["num_scenes"]
    assert metrics["learnt_from_and_scored"] == PseudoLabelStore(trained / "labels").names
    assert "of which the network learnt from all" in (tmp_path / "train" / "train.ipynb").read_text()


def test_a_refused_training_leaves_what_later_jobs_take_over(trained, tmp_path):
    before = json.loads((trained / "metrics.json").read_text())
    copy = shutil.copytree(trained, tmp_path / "copy")
    with pytest.raises(PapermillExecutionError, match="choose another folder"):
        papermill("train", copy, **SMALL, data_root=trained / "test_scenes", test_root=trained / "scenes")
    after = json.loads((copy / "metrics.json").read_text())
    assert before["parameters"].keys() == after["parameters"].keys() and before["learnt_from_and_scored"] == []
    assert after["parameters"] == before["parameters"] and after["parameters"]["test_height"] == 0


@pytest.mark.parametrize(
    ("job", "given", "said"),
    [
        ("train", {"dataset": "kitti_raw"}, r"dataset kitti_raw: give its folder \(data_root\)"),
        ("pseudo_labels", {"dataset": "kitti_raw"}, r"dataset kitti_raw: give its folder \(data_root\)"),
        ("train", {"test_dataset": "kitti_step"}, r"test_dataset kitti_step: give its folder \(test_root\)"),
        ("train", {"pseudo_labels": "x", "label_settings": {"seed": 1}}, "label_settings: the labels of pseudo_labels"),
        ("train", {"training": {"step": 3}}, "setting step is unknown"),
        ("train", {"view_scales": [0.0]}, "scales of test-time augmentation must be positive"),
        ("pretrain", {"training": {"steps": 0}}, "steps must be positive"),
        ("self_train", {"completion": {"confidence": 0.5}}, "setting confidence is unknown; there are min_confidence"),
        ("self_train", {"completion": {"min_confidence": 70}}, r"min_confidence must lie in \[0, 1\]"),
    ],
)
def test_a_job_refuses_what_it_cannot_use_before_any_work(trained, tmp_path, job, given, said):
    network = {"network": trained} if job == "self_train" else {}
    run = tmp_path / "run"
    with pytest.raises(PapermillExecutionError, match=said):
        papermill(job, run, **given, **network)
    assert [path.name for path in run.iterdir()] == [f"{job}.ipynb"]


def test_evaluate_gives_the_scores_that_training_gave(trained, tmp_path):
    metrics = papermill("evaluate", tmp_path, network=trained / "model.safetensors", num_shown=1)
    assert metrics["stage2"] == json.loads((trained / "metrics.json").read_text())["stage2"]
    assert metrics["detection"]["stage2"]["objects"] > 0 and 0 <= metrics["detection"]["stage2"]["ar100"] <= 1
    assert list(metrics["semantic"]) == ["stage2"] and 0 <= metrics["semantic"]["stage2"]["miou"] <= 1


def test_evaluate_sets_labels_and_network_side_by_side_in_seven_classes(trained, tmp_path):
    metrics = papermill(
        "evaluate",
        tmp_path,
        network=trained / "model.safetensors",
        labels=trained / "labels",
        truth_root=trained / "scenes",
        classes=7,
        semantic_crf=True,
        num_shown=1,
    )
    for name in ("pseudo_labels", "stage2"):
        assert len(metrics[name]["pq_per_class"]) == 7 and metrics[name]["frames"] == SMALL["num_scenes"]
        assert metrics["detection"][name]["frames"] == SMALL["num_scenes"]
        assert len(metrics["semantic"][name]["iou_per_class"]) == 19
        assert metrics["semantic"][f"{name} + CRF"]["unclaimed"] == 0
    assert len(metrics["confusion"]) == 7


def test_evaluate_takes_other_data_sets_in_their_own_classes(trained, tmp_path):
    metrics = papermill(
        "evaluate",
        tmp_path / "run",
        network=trained / "model.safetensors",
        dataset="waymo",
        truth_root=write_miniature("waymo", tmp_path / "waymo"),
        height=80,
        num_shown=1,
    )
    assert metrics["stage2"]["frames"] == 2 and len(metrics["confusion"]) == 27
    walls = [metrics["stage2"]["pq_per_class"][CITYSCAPES_27.names.index(name)] for name in ("wall", "terrain")]
    assert walls == [None, None] and metrics["detection"]["stage2"]["objects"] > 0


def test_a_training_without_ground_truth_tells_where_it_does_not_follow_its_labels(trained, tmp_path):
    given = {"data_root": trained / "scenes", "pseudo_labels": trained / "labels"}
    metrics = papermill("train", tmp_path, **OF_LABELS, **given)
    agreements = metrics["frame_agreement"]
    assert len(agreements) == SMALL["num_scenes"] and list(agreements.values()) == sorted(agreements.values())
    summary = json.loads((tmp_path / "train.ipynb").read_text())["cells"][2]["outputs"][1]
    assert f"least in {next(iter(agreements))} (" in "".join(summary["data"]["text/markdown"])
    run = read_run(tmp_path, tmp_path)
    video, name = run_video(run), next(iter(agreements))
    titles = list(compared_pictures([run], name, video, classes={run.name: run_classes(run, video)}))
    assert titles[0] == name and titles[1] == f"label of {run.name}" and titles[3] == "where it is not as labelled"
    assert titles[2] == f"{run.name}: {100 * agreements[name]:.1f} % of the pixels are as labelled"


@pytest.mark.parametrize("teacher", ["fixed", "moving"])
def test_self_training_goes_on_from_training(trained, tmp_path, teacher):
    before = json.loads((trained / "metrics.json").read_text())["stage2"]
    metrics = papermill(
        "self_train",
        tmp_path,
        network=trained / "model.safetensors",
        pseudo_labels="auto" if teacher == "fixed" else "",  # what goes with the small preset
        steps=2,
        batch_size=2,
        num_shown=1,
    )
    assert metrics["teacher"] == teacher and networks_in(tmp_path).keys() == {"self_trained"}
    run = read_run(tmp_path, tmp_path)
    assert run.parameters["preset"] == "small" and Path(run.parameters["test_root"]).samefile(trained / "test_scenes")
    if teacher == "fixed":
        assert PseudoLabelStore(tmp_path / "labels").names == PseudoLabelStore(trained / "labels").names
    assert metrics["stage2"] == before and 0 <= metrics["stage3"]["pq"] <= 1
    assert list(metrics["void_share"]) == ["stage2", "stage3", "stage3_views"] == list(metrics["still_found"])
    assert metrics["frame_accuracy"].keys() == metrics["frame_accuracy_before"].keys()
    assert load(tmp_path / "model.safetensors").split is not None


def test_a_vision_transformer_goes_through_training_and_fine_tuning(trained, tmp_path):
    backbone = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(VisionTransformer(64, depth=1, grid=4, patch_px=14).state_dict(), backbone)
    expected = load_file(backbone)
    data = {"data_root": trained / "scenes", "test_root": trained / "test_scenes", "batch_size": 2, "num_shown": 1}
    of_labels = {"pseudo_labels": trained / "labels", "steps": 2}
    metrics = papermill("train", tmp_path / "train", **data, **of_labels, backbone=backbone)
    assert 0 <= metrics["stage2"]["pq"] <= 1
    backbone.unlink()  # the network's file is all that is needed
    network = tmp_path / "train" / "model.safetensors"
    papermill("fine_tune", tmp_path / "tune", **data, network=network, count=1, steps=1, compare=True)
    for path in (network, tmp_path / "tune" / "fine_tuned" / "model.safetensors"):
        weights = load(path).backbone.bottom_up.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_fine_tuning_names_the_classes(trained, tmp_path):
    metrics = papermill(
        "fine_tune",
        tmp_path,
        network=trained / "model.safetensors",
        data_root=trained / "scenes",
        test_root=trained / "scenes",  # of its three frames two are learnt from
        count=2,
        steps=2,
        batch_size=2,
        num_shown=1,
    )
    assert len(metrics["labelled_frames"]) == 2 and metrics["not_scored"] == sorted(metrics["labelled_frames"])
    assert metrics["fine_tuned"]["frames"] == 1
    for name in ("named", "fine_tuned", "from_scratch"):
        assert metrics[name]["assignments"] == list(range(19)) and 0 <= metrics[name]["pq"] <= 1
    assert len(load(tmp_path / "fine_tuned" / "model.safetensors").split.things) == 8


HEAD = {"steps": 4, "batch_size": 4, "locations": 8, "code": 8, "checkpoint_every_steps": 2}


def test_a_semantic_head_learns_and_its_file_makes_labels(trained, tmp_path):
    backbone = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    save_file(VisionTransformer(64, depth=1, patch_px=8, grid=4).state_dict(), backbone)
    data = {"data_root": trained / "scenes", "test_root": trained / "test_scenes", "num_shown": 1}
    tokens = {"dinov2": {"weights": str(backbone), "tokens_high": 12}, **QUICK}
    chosen = {"features": "dinov2", "settings": tokens, "num_classes": 6, "head": HEAD}
    metrics = papermill("train_semantics", tmp_path / "run", **data, **chosen)
    assert metrics["shape"] == [64, 12, 24] and [entry["step"] for entry in metrics["history"]] == [2, 4]
    assert set(metrics["semantic"]) == {"features, clustered", "semantic head"}
    assert all(0 <= scores["miou"] <= 1 and scores["frames"] == 2 for scores in metrics["semantic"].values())
    assert sum(map(sum, metrics["overlap"])) > 0
    again = papermill("train_semantics", tmp_path / "run", **data, **chosen)
    assert again["first_step"] == 4 and again["semantic"] == metrics["semantic"]
    depthg = {"weights": metrics["weights"], "tokens_high": 12}
    used = {"features": "depthg", "num_classes": 6, "depthg": depthg, **QUICK}
    labels = papermill("pseudo_labels", tmp_path / "labels", data_root=trained / "scenes", settings=used, num_shown=1)
    assert labels["frames"] == SMALL["num_scenes"] and labels["failed"] == 0


def test_a_semantic_head_of_handcrafted_features_has_no_file(trained, tmp_path):
    test_root = shutil.copytree(trained / "test_scenes", tmp_path / "test_scenes")
    for path in (test_root / "truth").glob("000001_0_[si]*.png"):
        path.unlink()
    metrics = papermill(
        "train_semantics",
        tmp_path,
        data_root=trained / "scenes",
        test_root=test_root,
        features="handcrafted",
        settings=QUICK,
        head=HEAD | {"steps": 2, "batch_size": 2},
        cache_gib=0,
        num_shown=1,
    )
    assert {scores["frames"] for scores in metrics["semantic"].values()} == {1} and "weights" not in metrics
    assert metrics["shape"] == [len(HandcraftedFeatures.names), 48, 96]
    assert not list(tmp_path.rglob("features/*.safetensors")) and not list(tmp_path.glob("*.safetensors"))


def test_labels_of_a_killed_job_are_those_of_an_undisturbed_one(trained, tmp_path):
    """The same folder, killed while it labels and started again, holds the same bytes."""
    options = ["--dataset", "stereo_folder", "--root", str(trained / "scenes")]
    assert main(["pseudo-labels", *options, "--out", str(tmp_path / "whole"), "--workers", "1"]) == 0
    cups = [sys.executable, "-c", "from cups.cli import main; raise SystemExit(main())", "pseudo-labels", *options]
    killed = subprocess.Popen([*cups, "--out", str(tmp_path / "killed"), "--workers", "2"], start_new_session=True)
    while killed.poll() is None and not list((tmp_path / "killed").rglob("*_0.json")):
        time.sleep(0.05)
    assert killed.poll() is None, "it was faster than the test"
    os.killpg(killed.pid, signal.SIGKILL)
    assert len(list((tmp_path / "killed").rglob("*_0.json"))) < SMALL["num_scenes"]
    assert main(["pseudo-labels", *options, "--out", str(tmp_path / "killed"), "--workers", "1"]) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def write_clip(root: Path) -> Path:
    """Write three consecutive stereo frames of a street."""
    scenes = [scene.sample for scene in street_clip(5, 2, 96, 192)]
    frames = [(scene.left_0, scene.right_0) for scene in scenes] + [(scenes[-1].left_1, scenes[-1].right_1)]
    for number, pair in enumerate(frames):
        for side, image in zip(("left", "right"), pair, strict=True):
            write_png(root / side / f"{number:02d}.png", to_array(image))
    write_json(root / "calibration.json", scenes[0].calibration.to_dict())
    return root


def test_semantics_are_scored_and_a_second_run_takes_what_is_there(tmp_path):
    given = {"num_scenes": 3, "num_test_scenes": 2, "height": 96, "width": 192, "seeds": [4], "workers": 1}
    variants = {"ten": {"num_classes": 10}, "six": {"num_classes": 6, "crf": {"steps": 2}}}
    settings = {"label_settings": {"crf": {"smoothness_weight": 2.0}, **QUICK}, "variants": variants}
    clips = [str(write_clip(tmp_path / "clip"))]
    first = papermill("benchmarks/semantics", tmp_path / "out", **given, **settings, clip_roots=clips)
    assert first["settings"]["six"]["crf"] == {"smoothness_weight": 2.0, "steps": 2}
    for name, count in (("ten", 10), ("six", 6)):
        scores, parts = first["street"][name]["4"], first["parts"][name]
        assert scores["frames"] == 2 and 0 < scores["void"] < 1
        assert scores["classes"] == count + PseudoLabelSettings().num_object_classes
        assert parts["as they are"]["pq"] == pytest.approx(scores["pq"], abs=1e-6)
        assert parts["true classes of both"]["pq_stuff"] > 0.9 > parts["as they are"]["pq_stuff"]
        assert 0.2 < first["clips"][name]["clip"]["stable"] < 1 < first["clips"][name]["clip"]["segments"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "96x192").rglob("*_semantic.png")}
    again = papermill("benchmarks/semantics", tmp_path / "out", **given, **settings)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again["parts"] == first["parts"]
