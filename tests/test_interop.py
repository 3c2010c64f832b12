"""What goes to detectron2 and PyTorch3D is right there: read by them where they are installed, by hand elsewhere."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from shared import shared_folder

from cups.core.errors import InputError
from cups.core.files import write_png
from cups.core.images import read_rgb, to_array
from cups.core.records import VOID, PanopticLabel
from cups.core.splits import claimed_segments
from cups.interop.detectron2_data import detectron2_frames, register_detectron2, write_detectron2
from cups.interop.detectron2_network import (
    DETECTRON2_LINE,
    DETECTRON2_NAMES,
    config_from_detectron2,
    detectron2_config,
    detectron2_settings,
    from_detectron2,
    to_detectron2,
)
from cups.interop.pytorch3d import PYTORCH3D_LINE, moving_points, to_pointclouds
from cups.labels.fixed import Edit, FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.model.config import PanopticCascadeConfig, VisionTransformerSettings
from cups.model.files import load, numbered_split
from cups.model.inference import predict
from cups.model.network import panoptic_cascade
from cups.stages.scene_flow import scene_flow
from cups.street.scenes import exact_matches, street_scene

NUM_CLASSES, SIZE = 19, (96, 192)


READING = {"augmentations": [], "image_format": "RGB", "use_instance_mask": True, "instance_mask_format": "bitmask"}


@pytest.fixture
def detectron2():
    return pytest.importorskip("detectron2", reason=DETECTRON2_LINE)


@pytest.fixture(scope="module")
def scenes():
    return {f"scene_{seed}": street_scene(seed, *SIZE) for seed in range(3)}


@pytest.fixture(scope="module")
def store(scenes, tmp_path_factory):
    """Return a store with the true labels of street scenes, whose classes that move are things."""
    store = PseudoLabelStore.create(tmp_path_factory.mktemp("labels"), {"made": "in a test"}, NUM_CLASSES)
    for name, scene in scenes.items():
        store.write(name, scene.truth.panoptic)
    store.finish()
    return store


@pytest.fixture(scope="module")
def images(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, scene in scenes.items():
        write_png(folder / "left" / f"{name}.png", to_array(scene.sample.left_0))
    return folder


@pytest.fixture(scope="module")
def written(store, images, tmp_path_factory):
    return write_detectron2(store.root, images, tmp_path_factory.mktemp("detectron2"))


def test_frames_hold_objects_semantics_and_panoptic_maps(store, written):
    assert store.split.things and store.split.stuff
    objects = 0
    for frame in detectron2_frames(written):
        name = frame["file_name"].rsplit("/", 1)[-1].removesuffix(".png")
        label = store.read(name)
        semantic = np.asarray(Image.open(frame["sem_seg_file_name"]))
        for k, channel in zip(store.split.stuff, range(1, 99), strict=False):
            assert np.array_equal(semantic == channel, label.semantic.numpy() == k)
        masks = [coco_mask.decode(a["segmentation"]).astype(bool) for a in frame["annotations"]]
        for annotation, mask in zip(frame["annotations"], masks, strict=True):
            (number,), (k,) = label.instance[mask].unique(), label.semantic[mask].unique()
            assert np.array_equal(mask, (label.instance == number).numpy())
            assert store.split.things[annotation["category_id"]] == k
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert annotation["bbox"] == box and annotation["bbox_mode"] == 0
        covered = np.any(masks, axis=0) if masks else np.zeros(SIZE, bool)
        assert np.array_equal(semantic == 0, covered)
        numbers = np.asarray(Image.open(frame["pan_seg_file_name"])).astype(int) @ [1, 256, 65536]
        claimed = claimed_segments(label, store.split).semantic.numpy()
        for segment in frame["segments_info"]:
            classes = store.split.things if segment["isthing"] else (None, *store.split.stuff)
            assert set(claimed[numbers == segment["id"]]) == {classes[segment["category_id"]]}
            assert segment["area"] == (numbers == segment["id"]).sum()
        assert np.array_equal(numbers == 0, claimed == VOID)
        objects += len(masks)
    assert objects > 0


def test_labels_of_stereo_video_go_with_its_left_images(store, images, written, tmp_path):
    video = tmp_path / "video"
    shutil.copytree(images / "left", video / "left")
    shutil.copytree(images / "left", video / "right")
    write_detectron2(store.root, video, tmp_path / "out")
    files = [Path(frame["file_name"]) for frame in detectron2_frames(tmp_path / "out")]
    assert {file.parent for file in files} == {video / "left"}
    (video / "left").rename(video / "other")
    with pytest.raises(InputError, match=r"scene_0\.png and .*scene_0\.png have the name of one frame"):
        write_detectron2(store.root, video, tmp_path / "out")


def test_labels_that_a_person_fixed_and_photos_held_upright_are_taken(tmp_path):
    stored, semantic = np.zeros((24, 40, 3), np.uint8), torch.zeros(40, 24, dtype=torch.long)  # seen turned by 90°
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "a.jpg", exif=exif)
    semantic[:, :10] = 2
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 3)
    store.write("a", PanopticLabel(semantic, (semantic == 2).long()))
    store.finish(threshold=0.0)
    fixed = PanopticLabel(torch.ones_like(semantic), torch.zeros_like(semantic))
    for objects in (1, 0):
        (frame,) = detectron2_frames(write_detectron2(store.root, tmp_path / "images", tmp_path / "out"))
        assert (frame["height"], frame["width"]) == (40, 24) and len(frame["annotations"]) == objects
        FixedLabels(store).write_fixed("a", fixed, [Edit("delete", ((0, 0),))])


def test_a_missing_image_and_one_of_another_size_are_named(store, images, tmp_path):
    files = {path.stem: path for path in images.rglob("*.png")}
    write_png(tmp_path / "half.png", np.zeros((48, 96, 3), np.uint8))
    with pytest.raises(InputError, match=r"half\.png: 48 x 96 pixels high and wide, its label is 96 x 192"):
        write_detectron2(store.root, files | {"scene_1": tmp_path / "half.png"}, tmp_path / "out")
    del files["scene_2"]
    with pytest.raises(InputError, match="no image of frame scene_2"):
        write_detectron2(store.root, files, tmp_path / "out")
    with pytest.raises(InputError, match="nowhere: no such folder"):
        write_detectron2(store.root, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"detectron2\.json"):
        detectron2_frames(tmp_path)


def test_detectron2_reads_the_data_set(detectron2, written, store, tmp_path):
    from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog

    register_detectron2("cups_test", written)
    assert MetadataCatalog.get("cups_test").stuff_classes[0] == "things"
    assert MetadataCatalog.get("cups_test").thing_dataset_id_to_contiguous_id[store.split.things[0] + 1] == 0
    with pytest.raises(InputError, match="detectron2 has a data set cups_test already"):
        register_detectron2("cups_test", written)
    read = DatasetMapper(True, **READING)
    for frame in DatasetCatalog.get("cups_test"):
        got = read(dict(frame))
        assert got["image"].shape == (3, *SIZE) and got["sem_seg"].shape == SIZE
        assert len(got["instances"]) == len(frame["annotations"])
        covered = got["instances"].gt_masks.tensor.any(0) if len(got["instances"]) else torch.zeros(SIZE) > 0
        assert torch.equal(covered, got["sem_seg"] == 0)


def test_a_model_of_detectron2_learns_from_the_data_set(detectron2, written, store):
    from detectron2.data import DatasetMapper
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    network = panoptic_cascade(len(store.split.things), len(store.split.stuff), preset="small")
    model = to_detectron2(network).train()
    read = DatasetMapper(True, **READING)
    with EventStorage():
        losses = model([read(dict(frame)) for frame in detectron2_frames(written)])
    assert {"loss_sem_seg", "loss_mask", "loss_rpn_cls", "loss_cls_stage2"} <= losses.keys()
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0


def from_panoptic_seg(output, network):
    """Return the panoptic map, in pseudo-classes, of what detectron2 puts out."""
    numbers, segments = output["panoptic_seg"]
    semantic, instance = torch.full(numbers.shape, VOID), torch.zeros(numbers.shape, dtype=torch.int64)
    for segment in segments:
        here, k = numbers == segment["id"], segment["category_id"]
        semantic[here] = network.split.things[k] if segment["isthing"] else network.split.stuff[k - 1]
        instance[here] = segment["id"] if segment["isthing"] else 0
    return PanopticLabel(semantic, instance)


@torch.no_grad()
def same_numbers(network, images):
    """Check that a model of detectron2 has the same detections, scores and maps; return the number of detections."""
    model, count = to_detectron2(network), 0
    for image in images:
        (theirs,), (semantic,) = model.inference([{"image": image}], do_postprocess=False)
        ours = network([image])[0]
        count += len(ours.scores)
        scale = float(ours.semantic.abs().max())
        shown = semantic[:, : image.shape[1], : image.shape[2]]
        torch.testing.assert_close(shown, ours.semantic, rtol=0, atol=3e-4 * scale)
        torch.testing.assert_close(theirs.pred_boxes.tensor, ours.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(theirs.scores, ours.scores, rtol=1e-4, atol=1e-4)
        assert torch.equal(theirs.pred_classes, ours.classes)
        torch.testing.assert_close(theirs.pred_masks[:, 0], ours.masks, rtol=1e-3, atol=1e-3)
        here, there = predict(network, image), from_panoptic_seg(model([{"image": image}])[0], network)
        assert ((here.semantic == there.semantic) & (here.instance == there.instance)).float().mean() >= 0.999
    return count


def test_the_small_network_has_the_same_numbers_there(detectron2, scenes):
    network = load("street_scenes")
    assert same_numbers(network, [scene.sample.left_0 for scene in scenes.values()]) > 0
    files = sorted((shared_folder() / "data" / "kitti_street21" / "left").glob("*.png"))[:2]
    same_numbers(network, [read_rgb(file)[:, 100:251, 300:601] for file in files])


def test_the_published_architecture_has_the_same_numbers_there(detectron2, scenes):
    torch.manual_seed(0)
    network, image = panoptic_cascade(3, 8, proposals_test=100), scenes["scene_0"].sample.left_0
    network.split = numbered_split(3, 8)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        network.backbone(network.normalise([image]))  # statistics of the image: fresh ones make all scores alike
    for predictor in network.eval().roi_heads.box_predictor:
        predictor.cls_score.weight.data *= 10  # scores far enough apart that rounding does not change their order
    assert len(network([image])[0].scores.unique()) > 50
    assert detectron2_config(network).MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"
    assert same_numbers(network, [image]) > 50


@pytest.mark.parametrize("changes", [{"preset": "small"}, {"depth": 18, "max_overlap": 0.25}])
def test_there_and_back(detectron2, changes):
    network = panoptic_cascade(2, 5, **changes)
    model = to_detectron2(network)
    back = from_detectron2(detectron2_config(network), model)
    state = back.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items() if "num_b" not in name)
    for name in [*DETECTRON2_NAMES, "num_stuff", "anchor_sizes_px", "roi_level_4_px"]:
        assert getattr(back.config, name) == getattr(network.config, name), name


def test_other_architectures_are_refused(detectron2):
    from detectron2 import model_zoo

    cfg = model_zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    with pytest.raises(InputError, match=r"not this architecture: MODEL\.PIXEL_MEAN is \(103\.53, 116\.28"):
        config_from_detectron2(cfg)
    transformer = VisionTransformerSettings(channels=64, depth=1)
    with pytest.raises(InputError, match="only networks with a ResNet"):
        detectron2_config(panoptic_cascade(1, 1, "small", vision_transformer=transformer))


def test_settings_are_those_of_the_published_network():
    settings = detectron2_settings(PanopticCascadeConfig(num_things=5, num_stuff=22))
    assert settings["MODEL.META_ARCHITECTURE"] == "PanopticFPN" and settings["INPUT.FORMAT"] == "RGB"
    assert settings["MODEL.PIXEL_MEAN"] == pytest.approx([123.675, 116.28, 103.53])
    assert (settings["MODEL.ROI_HEADS.NUM_CLASSES"], settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]) == (5, 23)
    assert settings["MODEL.ANCHOR_GENERATOR.SIZES"] == [[32], [64], [128], [256], [512]]


def test_without_the_packages_one_line_says_how_to_install_them(monkeypatch, written):
    for name in ("detectron2", "detectron2.modeling", "detectron2.data", "pytorch3d.structures"):
        monkeypatch.setitem(sys.modules, name, None)  # how Python notes that a module cannot be imported
    with pytest.raises(InputError) as fault:
        to_detectron2(load("street_scenes"))
    assert str(fault.value).endswith(DETECTRON2_LINE) and "\n" not in str(fault.value)
    with pytest.raises(InputError, match="needs detectron2"):
        register_detectron2("cups_absent", written)
    with pytest.raises(InputError) as fault:
        to_pointclouds([], [])
    assert str(fault.value).endswith(PYTORCH3D_LINE)


def test_points_are_in_metres_and_move_as_the_scene_does(scenes):
    scene = scenes["scene_0"]
    flow = scene_flow(scene.sample, exact_matches(scene))
    points, features = moving_points(flow, scene.sample.left_0)
    calibration = flow.calibration
    rows, columns = torch.nonzero(flow.trusted).unbind(1)
    # x to the left and y upwards: a pixel right of the centre has a negative x
    assert torch.allclose(points[:, 0], -(columns - calibration.cx) / calibration.fx * points[:, 2], atol=1e-3)
    assert torch.allclose(points[:, 1], -(rows - calibration.cy) / calibration.fy * points[:, 2], atol=1e-3)
    moved = points + features[:, 3:]
    across = -moved[:, 0] / moved[:, 2] * calibration.fx + calibration.cx - columns
    assert (across - flow.flow[0][flow.trusted]).abs().median() < 0.05
    assert torch.equal((features[:, :3] * 255).round().byte(), scene.sample.left_0[:, rows, columns].T)


def test_pytorch3d_holds_the_clouds(scenes):
    structures = pytest.importorskip("pytorch3d.structures", reason=PYTORCH3D_LINE)
    flows = [scene_flow(scene.sample, exact_matches(scene)) for scene in scenes.values()]
    pictures = [scene.sample.left_0 for scene in scenes.values()]
    clouds = to_pointclouds(flows, pictures)
    assert isinstance(clouds, structures.Pointclouds) and len(clouds) == 3
    assert clouds.num_points_per_cloud().tolist() == [int(flow.trusted.sum()) for flow in flows]
    points, features = moving_points(flows[1], pictures[1])
    assert torch.equal(clouds.points_list()[1], points) and torch.equal(clouds.features_list()[1], features)


def test_the_panoptic_file_is_read_by_pycocotools_categories(written, store):
    found = json.loads((written / "panoptic.json").read_text())
    assert min(category["id"] for category in found["categories"]) >= 1
    assert {c["id"] - 1 for c in found["categories"] if c["isthing"]} == set(store.split.things)
    used = {segment["category_id"] for annotation in found["annotations"] for segment in annotation["segments_info"]}
    assert used <= {category["id"] for category in found["categories"]} and len(found["images"]) == 3
