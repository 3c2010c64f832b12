"""Labelled data sets in their official layouts: what is read, and that every fault is found and said in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import shared_folder

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, read_json, write_json, write_png
from cups.core.records import VOID, PanopticLabel
from cups.core.taxonomy import CITYSCAPES_7, CITYSCAPES_19, CITYSCAPES_27, cityscapes_classes, coarsened, lacking_in
from cups.datasets.check import check_dataset
from cups.datasets.cityscapes import Cityscapes
from cups.datasets.label_maps import BDD100K_LABELS, MOTS_CLASSES, MOTS_LABELS, WAYMO_LABELS, class_numbers, read_map
from cups.datasets.labelled_folder import image_size
from cups.datasets.miniatures import MINIATURES, street_frames, write_miniature
from cups.datasets.mots import Mots
from cups.datasets.muses import Muses
from cups.datasets.registry import DATASETS, open_dataset, open_labelled_dataset
from cups.datasets.waymo import Waymo, convert_waymo, front_image, read_records, wire_message, write_records
from cups.evaluation.panoptic import panoptic_scores
from cups.labels.store import PseudoLabelStore
from cups.model.files import numbered_split
from cups.run.scenes import render_scenes

LABELLED = ["bdd10k", "cityscapes", "kitti_panoptic", "mots", "muses", "waymo"]
SPLIT = {"mots": "train", "muses": "val/clear/day"}
LABELS = {  # the file of one label in each miniature
    "bdd10k": "labels/pan_seg/bitmasks/val/00000000-00000000.png",
    "cityscapes": "gtFine/val/frankfurt/frankfurt_000000_000000_gtFine_instanceIds.png",
    "kitti_panoptic": "validation/cityscapes_instance_format/000000_10.png",
    "mots": "train/instances/0002/000001.png",
    "muses": "gt_panoptic/val/clear/day/REC0000_frame_000000_gt_panoptic.png",
    "waymo": "validation/segment-1_000_020_000_with_camera_labels/0_semantic.png",
}
IMAGES = {
    "bdd10k": "images/10k/val/00000000-00000000.jpg",
    "cityscapes": "leftImg8bit/val/frankfurt/frankfurt_000000_000000_leftImg8bit.png",
    "kitti_panoptic": "validation/images/000000_10.png",
    "mots": "train/images/0002/000001.jpg",
    "muses": "frame_camera/val/clear/day/REC0000_frame_000000_frame_camera.png",
    "waymo": "validation/segment-1_000_020_000_with_camera_labels/0_image.jpg",
}


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniatures")
    return {name: write_miniature(name, root / name) for name in LABELLED}


@pytest.fixture
def copy(miniatures, tmp_path):
    """Return a function that gives a copy of a miniature that a test may break."""
    return lambda name: shutil.copytree(miniatures[name], tmp_path / name)


def known_split(taxonomy):
    return numbered_split(len(taxonomy.thing_classes), len(taxonomy.stuff_classes))


def as_numbered(label, taxonomy):
    """Return a truth as a prediction whose classes are numbered stuff first, as `numbered_split` has them."""
    order = torch.full((VOID + 1,), VOID)
    split = known_split(taxonomy)
    order[taxonomy.stuff_classes], order[taxonomy.thing_classes] = torch.tensor(split.stuff), torch.tensor(split.things)
    return label.replace(semantic=order[label.semantic])


def saved(path, array):
    Image.fromarray(array).save(path)


def line(capsys):
    """Return what the last command said of its fault: one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


# Reading


@pytest.mark.parametrize("name", LABELLED)
def test_names_images_and_truth_belong_together(miniatures, name):
    data = open_labelled_dataset(name, miniatures[name])
    assert len(data) == len(data.names) == len(set(data.names)) == 2
    for index, frame in enumerate(data.names):
        image, truth = data.left(index), data.truth(frame)
        assert image.shape == (3, 96, 192) and image.dtype == torch.uint8 and image.float().std() > 10
        assert truth.semantic.shape == truth.instance.shape == (96, 192)
        classes = truth.semantic[truth.semantic != VOID]
        assert classes.max() < len(data.taxonomy)
        is_thing = torch.zeros(VOID + 1, dtype=torch.bool)
        is_thing[data.taxonomy.thing_classes] = True
        assert is_thing[truth.semantic[truth.instance > 0]].all()
        assert not {data.taxonomy.names[k] for k in classes.unique()} & set(data.lacking)
    assert PseudoLabelStore.create(miniatures[name].parent / f"{name}_names", {}, 1).missing(data.names) == data.names


@pytest.mark.parametrize("name", LABELLED)
def test_what_was_drawn_is_read(miniatures, name):
    """The scene's objects come back, pixel for pixel, with the classes that the data set has."""
    seed = {"cityscapes": 0, "kitti_panoptic": 1, "bdd10k": 2, "muses": 3, "mots": 4, "waymo": 5}[name]
    person, car = CITYSCAPES_19.names.index("person"), CITYSCAPES_19.names.index("car")
    data = open_labelled_dataset(name, miniatures[name], classes=19)
    for frame, (_, drawn) in zip(data.names, street_frames(2, seed), strict=True):
        read, inside = data.truth(frame), slice(0, 92 if name == "cityscapes" else 96)
        kinds = (person,) if name == "mots" else (person, car)
        for kind in kinds:
            ours, theirs = (label.semantic[inside] == kind for label in (read, drawn))
            assert torch.equal(ours, theirs)
        counted = torch.isin(drawn.semantic, torch.tensor(kinds)) & (read.instance > 0)
        pairs = torch.unique(torch.stack([drawn.instance, read.semantic, read.instance])[:, counted], dim=1)
        assert pairs.shape[1] == len(pairs[0].unique()) > 0  # no object is parted, none are joined
        if name != "mots":
            kept = (read.semantic != VOID) & ~torch.isin(drawn.semantic, torch.tensor([3, 4, 9]))  # Waymo lacks these
            assert torch.equal(read.semantic[kept], drawn.semantic[kept]) and kept.float().mean() > 0.75


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("count", [27, 19, 7, 2])
def test_truth_scores_100_percent_against_itself(miniatures, name, count):
    cls = type(open_labelled_dataset(name, miniatures[name]))
    if count not in cls.offered:
        with pytest.raises(InputError, match=f"not in {count}"):
            open_labelled_dataset(name, miniatures[name], classes=count)
        return
    data = open_labelled_dataset(name, miniatures[name], classes=count)
    truths = [data.truth(frame) for frame in data.names]
    pairs = ((as_numbered(truth, data.taxonomy), truth) for truth in truths)
    scores = panoptic_scores(pairs, known_split(data.taxonomy), data.taxonomy, data.lacking)
    assert scores["pq"] == scores["pq_things"] == scores["accuracy"] == scores["miou"] == 1 and scores["frames"] == 2


@pytest.mark.parametrize("name", sorted(set(LABELLED) - {"mots"}))
def test_reading_in_fewer_classes_is_coarsening(miniatures, name):
    fine = open_labelled_dataset(name, miniatures[name])
    for count in {27, 19, 7} & set(fine.offered):
        if count > len(fine.taxonomy):
            continue
        coarse = open_labelled_dataset(name, miniatures[name], classes=count)
        for frame in fine.names:
            expected = coarsened(fine.truth(frame), fine.taxonomy, coarse.taxonomy)
            assert torch.equal(coarse.truth(frame).semantic, expected.semantic)
            assert torch.equal(coarse.truth(frame).instance > 0, expected.instance > 0)
        assert list(coarse.lacking) == lacking_in(fine.lacking, fine.taxonomy, coarse.taxonomy)


@pytest.mark.parametrize("name", LABELLED)
def test_height_resizes_image_and_labels_alike(miniatures, name):
    whole, half = (open_labelled_dataset(name, miniatures[name], **h) for h in ({}, {"height": 48}))
    image, truth = half.left(0), half.truth(half.names[0])
    assert image.shape == (3, 48, 96) and truth.semantic.shape == (48, 96)
    assert set(truth.semantic.unique().tolist()) <= set(whole.truth(whole.names[0]).semantic.unique().tolist())
    means = whole.left(0).float().view(3, 48, 2, 96, 2).mean((2, 4))
    assert (image - means).abs().mean() < 4


def test_groups_have_a_class_and_no_instance(miniatures):
    for name in ("cityscapes", "bdd10k", "muses"):
        data = open_labelled_dataset(name, miniatures[name], classes=19)
        truth = data.truth(data.names[0])
        assert ((truth.semantic != VOID) & (truth.semantic > 10) & (truth.instance == 0)).any(), name


def test_ignored_regions_are_void(miniatures, copy):
    data, riders = Mots(miniatures["mots"]), 0
    for frame, (_, drawn) in zip(data.names, street_frames(2, 4), strict=True):
        rider = drawn.semantic == CITYSCAPES_19.names.index("rider")
        riders += int(rider.sum())
        assert (data.truth(frame).semantic[rider] == VOID).all()
        assert set(data.truth(frame).semantic.unique().tolist()) <= {0, 1, VOID}
    assert riders > 0 and data.taxonomy is MOTS_CLASSES
    root = copy("bdd10k")
    mask = np.array(Image.open(root / LABELS["bdd10k"]))
    mask[..., 1] = 1
    saved(root / LABELS["bdd10k"], mask)
    assert (open_dataset("bdd10k", root).truth("00000000-00000000").semantic == VOID).all()


def test_bdd_instances_take_two_bytes(copy):
    root = copy("bdd10k")
    mask = np.array(Image.open(root / LABELS["bdd10k"]))
    mask[:40, :20], mask[:40, 20:40] = (35, 0, 1, 2), (35, 0, 2, 2)
    saved(root / LABELS["bdd10k"], mask)
    instance = open_dataset("bdd10k", root).truth("00000000-00000000").instance
    assert (instance[0, 0], instance[0, 20]) == (258, 514)


def test_the_real_frame_reads_as_cityscapes():
    root = shared_folder() / "data" / "cityscapes_tiny"
    data = Cityscapes(root, classes=19)
    (name,) = data.names
    assert name == "frankfurt_000000_000294" and data.left(0).shape == (3, 128, 256)
    truth = data.truth(name)
    folder = root / "gtFine" / "val" / "frankfurt"
    train_ids = read_map(folder / f"{name}_gtFine_labelTrainIds.png", "L")
    assert (truth.semantic == train_ids).float().mean() > 0.997  # reducing the two files rounded 77 edge pixels apart
    for kind in truth.semantic.unique():
        assert train_ids[truth.semantic == kind].mode().values == kind
    instances = read_map(folder / f"{name}_gtFine_instanceIds.png", "I;16")
    objects = torch.stack([truth.semantic, truth.instance])[:, truth.instance > 0].unique(dim=1)
    assert objects.shape[1] == instances[instances >= 1000].unique().numel() == 7
    assert torch.equal(truth.instance > 0, instances >= 1000)
    report = check_dataset("cityscapes", root)
    assert report.usable == ["val"]


# Tables


def test_label_tables_are_those_of_the_specification_but_for_what_the_notebook_says():
    spec = json.loads((shared_folder() / "spec" / "labels.json").read_text())
    keys = ("id", "name", "to_27", "to_19", "to_7")
    assert [{k: getattr(label, k) for k in keys} for label in BDD100K_LABELS] == [
        {k: label[k] for k in keys} for label in spec["bdd100k_10k"]
    ]
    different = {}
    for ours, theirs in zip(WAYMO_LABELS, spec["waymo"], strict=True):
        assert ours.id == theirs["id"] and ours.name.replace(" ", "") == theirs["name"].replace(" ", "")
        assert ours.to_19 == theirs["to_19"]
        if ours.to_7 != (VOID if theirs["to_7"] == -1 else theirs["to_7"]):
            different[ours.name] = ours.to_7
    assert different == {"lane marker": 0, "road marker": 0}
    present = [name not in lacking_in(Waymo.lacking, CITYSCAPES_27, CITYSCAPES_19) for name in CITYSCAPES_19.names]
    assert present == spec["waymo_classes_present_19"]
    assert list(MOTS_CLASSES.names) == spec["mots"]["classes"] and MOTS_CLASSES.thing_classes == spec["mots"]["things"]


def test_tables_agree_over_their_sets_of_classes():
    for labels in (BDD100K_LABELS, WAYMO_LABELS, MOTS_LABELS):
        assert len({label.id for label in labels}) == len(labels)
        for label in labels:
            fine = PanopticLabel(torch.tensor([[label.to_27]]), torch.zeros(1, 1, dtype=torch.long))
            assert label.to_19 in (VOID, coarsened(fine, CITYSCAPES_27, CITYSCAPES_19).semantic.item())
            assert label.to_7 in (VOID, coarsened(fine, CITYSCAPES_27, CITYSCAPES_7).semantic.item())
    assert {label.to_19 for label in BDD100K_LABELS} == {*range(19), VOID}
    assert class_numbers(MOTS_LABELS, 19) == {0: VOID, 1: 13, 2: 11, 10: VOID}


def test_a_class_is_lacking_if_all_its_members_are():
    assert lacking_in(["sky"], CITYSCAPES_19, CITYSCAPES_7) == ["sky"]
    assert lacking_in(["person"], CITYSCAPES_19, CITYSCAPES_7) == []
    assert lacking_in(["person", "rider"], CITYSCAPES_19, CITYSCAPES_7) == ["human"]


# Waymo's files


def test_waymo_conversion_follows_objects_and_goes_on(tmp_path):
    """Two labelled frames of one scene: the mapping says which object is which; an unmapped one is nobody else's."""
    panoptic = np.full((8, 12), 20 * 1000, np.uint16)
    panoptic[:4, :4], panoptic[:4, 4:8], panoptic[:4, 8:] = 2001, 2002, 9003
    image = np.zeros((8, 12, 3), np.uint8)

    def frame(pairs, name=1):
        saved(tmp_path / "label.png", panoptic)
        saved(tmp_path / "image.jpg", image)
        mapping = [(3, wire_message((1, one), (2, two))) for one, two in pairs]
        label = wire_message((1, 1000), (2, (tmp_path / "label.png").read_bytes()), *mapping)
        jpeg = (2, (tmp_path / "image.jpg").read_bytes())
        return wire_message((1, b"context"), (2, 1 << 60), (4, wire_message((1, name), jpeg, (10, label))))

    write_records(tmp_path / "raw" / "a.tfrecord", [frame([(1, 90000), (2, 70000)]), frame([(1, 70000), (2, 90000)])])
    assert convert_waymo(tmp_path / "raw", tmp_path) == 2
    first, second = (read_map(tmp_path / "validation" / "a" / f"{i}_instance.png", "I;16") for i in (0, 1))
    assert first[0, 0] == second[0, 4] and first[0, 4] == second[0, 0] and first[0, 0] != first[0, 4]
    assert first[0, 8] not in second and first[7, 0] == second[7, 0] == 0
    assert len(Waymo(tmp_path)) == 2 and Waymo(tmp_path, classes=19).truth("a_0").semantic[0, 8] == 11
    whole = {path: path.read_bytes() for path in (tmp_path / "validation").rglob("*.png")}
    (tmp_path / "validation" / "a" / "1_instance.png").unlink()
    assert convert_waymo(tmp_path / "raw", tmp_path) == 2
    assert whole == {path: path.read_bytes() for path in (tmp_path / "validation").rglob("*.png")}
    assert front_image(frame([], name=2)) is None  # another camera


def test_waymo_files_that_are_damaged(miniatures, tmp_path, capsys):
    path = next(miniatures["waymo"].rglob("*.tfrecord"))
    assert len(list(read_records(path))) == 4
    broken, content = tmp_path / "broken.tfrecord", path.read_bytes()
    for damaged, fault in (
        (content[:-9], "cut short"),
        (content[:5] + b"\xff" + content[6:], "not a TFRecord file"),
        (b"", "none of the 1 files has a labelled image"),
    ):
        broken.write_bytes(damaged)
        assert main(["data", "convert", "waymo", str(tmp_path), str(tmp_path / "out"), "--workers", "1"]) == 2
        assert fault in (error := line(capsys)) and str(tmp_path) in error
    write_records(broken, [b"\xff\xff\xff"])
    with pytest.raises(InputError, match=r"broken\.tfrecord: record 0 is not a frame"):
        convert_waymo(tmp_path, tmp_path / "out")


# Faults


def check(root, name):
    """Return the code of the command and its lines."""
    return main(["data", "check", name, str(root)])


@pytest.mark.parametrize("name", LABELLED)
def test_check_calls_a_miniature_usable(miniatures, name, capsys):
    assert check(miniatures[name], name) == 0
    *counts, verdict = capsys.readouterr().out.splitlines()
    assert verdict == f"{name}: can be used, split {SPLIT.get(name, 'val')}"
    assert len(counts) == 1 and counts[0].startswith(f"{SPLIT.get(name, 'val')}: 2 ")


def found(capsys, name, root):
    """Run the check on a broken data set and return its one fault."""
    assert check(root, name) == 2
    out, error = capsys.readouterr()
    assert error == f"cups: error: {name}: cannot be used, 1 fault\n"
    return out.splitlines()[-1]


def refused(name, root):
    """Read all labels of a broken data set and return what the reader says."""
    with pytest.raises(InputError) as error:
        data = open_labelled_dataset(name, root)
        for index, frame in enumerate(data.names):
            data.left(index), data.truth(frame)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("side", ["image", "label"])
def test_missing_partner(copy, name, side, capsys):
    root, kept = copy(name), LABELS[name] if side == "image" else IMAGES[name]
    (root / (IMAGES if side == "image" else LABELS)[name]).unlink()
    if name == "waymo":  # of three files two are left
        assert check(root, name) == 2 and capsys.readouterr().out.count("no partner") == 2
    else:
        assert f"{root / kept}: no partner among" in found(capsys, name, root)
    assert "no partner among" in refused(name, root)
    assert len(open_labelled_dataset(name, root, incomplete=True)) == 1


@pytest.mark.parametrize("name", LABELLED)
def test_truncated_image_and_label(copy, name, capsys):
    root = copy(name)
    for path in (root / LABELS[name], root / IMAGES[name]):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert f"{path}: not readable as an image" in found(capsys, name, root)
        assert str(path) in refused(name, root)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", LABELLED)
def test_label_of_another_size(copy, name, capsys):
    root = copy(name)
    path = root / LABELS[name]
    saved(path, np.array(Image.open(path))[:, :-2])
    assert f"{path}: 190 x 96 pixels, but {root / IMAGES[name]} has 192 x 96" in found(capsys, name, root)
    assert str(path.parent) in refused(name, root)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bdd10k", (41, 0, 0, 41)),
        ("bdd10k", (255, 0, 0, 0)),
        ("cityscapes", 34),
        ("cityscapes", 35002),
        ("kitti_panoptic", 60000),
        ("mots", 3001),
        ("muses", (9, 9, 9)),
        ("waymo", 30),
    ],
)
def test_unknown_id(copy, name, value, capsys):
    root = copy(name)
    path = root / LABELS[name]
    array = np.array(Image.open(path))
    array[3, 5] = value
    saved(path, array)
    assert f"{path}: the map holds" in found(capsys, name, root)
    assert f"{path}: the map holds" in refused(name, root)


@pytest.mark.parametrize("name", LABELLED)
def test_label_of_another_kind(copy, name, capsys):
    root = copy(name)
    path = root / LABELS[name]
    saved(path, np.zeros((96, 192) if name in ("bdd10k", "muses") else (96, 192, 3), np.uint8))
    assert f"{path}: an image of mode" in found(capsys, name, root)
    assert f"{path}: an image of mode" in refused(name, root)


@pytest.mark.parametrize("name", LABELLED)
def test_missing_folder_says_what_to_download(copy, name, tmp_path, capsys):
    assert check(tmp_path / "nowhere", name) == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in line(capsys)
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty", name) == 2
    out = capsys.readouterr().out
    assert "http" in out and all("no such folder; get " in fault for fault in out.splitlines())
    assert "no such folder; get " in refused(name, tmp_path / "empty")
    root = copy(name)
    folder = root / ("validation" if name == "waymo" else Path(LABELS[name]).parts[0])
    if name in ("kitti_panoptic", "mots"):
        folder = root / Path(LABELS[name]).parents[0 if name == "kitti_panoptic" else 1]
    shutil.rmtree(folder)
    assert check(root, name) == 2
    assert "no such folder; get " in capsys.readouterr().out


def test_list_of_segments_that_does_not_fit(copy, capsys):
    root = copy("muses")
    path = root / "gt_panoptic" / "gt_panoptic_by_condition" / "val_clear_day.json"
    content = read_json(path)
    write_json(path, {"annotations": content["annotations"][1:]})
    assert "which is not in the list of segments" in found(capsys, "muses", root)
    write_json(path, [1])
    assert found(capsys, "muses", root) == f"{path}: not a list of segments in COCO's panoptic format"
    path.unlink()
    assert found(capsys, "muses", root) == f"{path}: no such file"
    assert refused("muses", root) == f"{path}: no such file"


def test_options_that_do_not_fit(miniatures):
    root = miniatures["cityscapes"]
    for options, fault in (
        ({"split": "night"}, "no split 'night'; known are test, train, val"),
        ({"split": "train"}, "no such folder; get leftImg8bit"),
        ({"classes": 20}, "27, 19, 7 classes, not in 20"),
        ({"height": -1}, "height must be positive"),
        ({"colour": 1}, "no option 'colour'"),
    ):
        with pytest.raises(InputError, match=fault):
            open_dataset("cityscapes", root, **options)
    with pytest.raises(InputError, match="no image 'paris'"):
        Cityscapes(root).truth("paris")
    with pytest.raises(InputError, match="known are train/clear/day"):
        Muses(miniatures["muses"], "val")
    with pytest.raises(InputError, match=r"notes\.txt: not readable as an image"):
        (root / "notes.txt").write_text("a")
        image_size(root / "notes.txt")


def test_full_check_opens_every_file(copy, tmp_path, capsys):
    root = tmp_path / "many"
    source = copy("kitti_panoptic") / "validation"
    for number in range(50):
        for kind in ("images", "cityscapes_instance_format"):
            (root / "validation" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(source / kind / "000000_10.png", root / "validation" / kind / f"{number:06d}_10.png")
    broken = root / "validation" / "images" / "000049_10.png"
    broken.write_bytes(b"")
    assert check(root, "kitti_panoptic") == 0
    assert "50 of 200 images" in capsys.readouterr().out
    assert main(["data", "check", "kitti_panoptic", str(root), "--full", "--workers", "1"]) == 2
    assert f"{broken}: not readable" in capsys.readouterr().out


def test_check_of_a_stereo_folder(tmp_path, capsys):
    root = tmp_path / "scenes"
    render_scenes(root, 2, height=48, width=96, workers=1)
    for name in ("stereo_folder", "street_scenes"):
        assert check(root, name) == 0
        assert capsys.readouterr().out.endswith(f"{name}: can be used, split all\n")
    right = root / "right" / "000001_1.png"
    right.rename(tmp_path / "right.png")
    assert f"{root / 'left' / '000001_1.png'}: no partner" in found(capsys, "stereo_folder", root)
    (tmp_path / "right.png").rename(right)
    (root / "calibration.json").write_text("{")
    assert str(root / "calibration.json") in found(capsys, "stereo_folder", root)


def test_check_reads_samples_of_stereo_video(tmp_path, capsys):
    kitti = tmp_path / "kitti"
    write_miniature("kitti_raw", kitti, frames=3)
    assert check(kitti, "kitti_raw") == 0
    for path in kitti.rglob("*.png"):  # halved, and the calibration forgotten
        write_png(path, np.ascontiguousarray(read_image(path)[::2, ::2]))
    assert check(kitti, "kitti_raw") == 2 and "calib_cam_to_cam.txt says" in capsys.readouterr().out
    cityscapes = tmp_path / "cityscapes"
    write_miniature("cityscapes_sequences", cityscapes, frames=3)
    assert check(cityscapes, "cityscapes_sequences") == 0
    for path in cityscapes.rglob("*_camera.json"):
        camera = json.loads(path.read_text())
        path.write_text(json.dumps(camera | {"intrinsic": camera["intrinsic"] | {"u0": 99999.0}}))
    assert check(cityscapes, "cityscapes_sequences") == 2 and "_camera.json: " in capsys.readouterr().out


def test_list_names_every_data_set(capsys):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in DATASETS) and set(LABELLED) <= set(MINIATURES) <= set(DATASETS)
    assert check(".", "imagenet") == 2 and "'imagenet' is not known" in line(capsys)


# Evaluation


@pytest.mark.parametrize("name", LABELLED)
def test_command_evaluates_on_any_labelled_data_set(miniatures, name, tmp_path, capsys):
    data = open_labelled_dataset(name, miniatures[name])
    split = known_split(data.taxonomy)
    store = PseudoLabelStore.create(tmp_path / "labels", {}, len(data.taxonomy))
    for frame in data.names:
        store.write(frame, as_numbered(data.truth(frame), data.taxonomy))
    store.finish()
    command = ["evaluate", "--json", "--dataset", name, "--labels", f"{tmp_path}/labels"]
    command += ["--truth", str(miniatures[name])]
    assert main(command) == 0
    scores = json.loads(capsys.readouterr().out)
    assert len(scores["pq_per_class"]) == len(data.taxonomy) and scores["frames"] == 2 and scores["accuracy"] == 1
    left_out = [n for n, value in zip(data.taxonomy.names, scores["pq_per_class"], strict=True) if value is None]
    assert set(data.lacking) <= set(left_out) and len(split.things) == len(data.taxonomy.thing_classes)
    if name != "mots":
        assert main([*command, "--classes", "7"]) == 0
        assert len(json.loads(capsys.readouterr().out)["pq_per_class"]) == len(cityscapes_classes(7))
    assert main([*command, "--height", "48"]) == 2 and "96 x 48 pixels" in line(capsys)


def test_another_split_is_evaluated(miniatures, tmp_path, capsys):
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 19)
    command = ["evaluate", "--labels", str(store.root), "--dataset", "cityscapes"]
    assert main([*command, "--truth", str(miniatures["cityscapes"]), "--split", "night"]) == 2
    assert "no split 'night'; known are test, train, val" in line(capsys)
    root = shutil.copytree(miniatures["cityscapes"], tmp_path / "both")
    for kind in ("leftImg8bit", "gtFine"):
        (root / kind / "val").rename(root / kind / "train")
    data = open_labelled_dataset("cityscapes", root, split="train", classes=19)
    for frame in data.names:
        store.write(frame, as_numbered(data.truth(frame), data.taxonomy))
    store.finish()
    command += ["--truth", str(root), "--classes", "19", "--json"]
    assert main(command) == 2 and "no such folder" in line(capsys)
    assert main([*command, "--split", "train"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == len(data.names)


def test_pseudo_labels_need_stereo_video(miniatures, tmp_path, capsys):
    root = str(miniatures["bdd10k"])
    assert main(["pseudo-labels", "--dataset", "bdd10k", "--root", root, "--out", str(tmp_path / "out")]) == 2
    assert "single images, not stereo video" in line(capsys)
    labels = ["evaluate", "--labels", str(tmp_path), "--truth", root, "--dataset"]
    assert main([*labels, "kitti_raw"]) == 2 and "has no ground truth" in line(capsys)
