"""Labels for other programs and back: what they read is what we meant, and what nobody touched stays bit for bit."""

import json
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, read_json, write_json, write_png
from cups.core.records import VOID, Calibration, PanopticLabel, StereoSample
from cups.core.splits import SplitChoice, claimed_segments
from cups.core.taxonomy import CITYSCAPES_19
from cups.datasets.cityscapes import Cityscapes
from cups.datasets.kitti_raw import KittiRaw
from cups.datasets.kitti_raw import write_miniature as write_kitti
from cups.datasets.labelled_images import LabelledImages
from cups.datasets.stereo_folder import StereoFolder, write_sample
from cups.evaluation.panoptic import score_store
from cups.labels.coco import segment_numbers, write_coco
from cups.labels.corrected import import_labels, new_store
from cups.labels.fixed import Edit, FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.run.export import FORMATS, export_labels
from cups.workbench.label_drafts import save_drafts, saved_draft
from cups.workbench.label_edits import replay

FRAMES, HEIGHT, WIDTH = 3, 40, 60
ROAD, POLE, SKY, PERSON, CAR = (CITYSCAPES_19.names.index(n) for n in ("road", "pole", "sky", "person", "car"))


def street(number):
    """Return a label with what a store knows and COCO does not: thing pixels of no object, numbers on stuff, void."""
    semantic, instance = torch.full((HEIGHT, WIDTH), SKY), torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    semantic[20:] = ROAD
    instance[36:, 40:] = 9  # a number on stuff
    semantic[10:25, 5:15], instance[10:25, 5:15] = PERSON, 300
    semantic[15:30, 20 + number : 40], instance[15:30, 20 + number : 40] = CAR, 2
    semantic[15:30, 30:35], instance[15:30, 30:35] = CAR, 7  # a second car, which parts the first
    semantic[30:34, :6] = CAR  # of no object
    semantic[38:] = VOID
    return PanopticLabel(semantic, instance)


@pytest.fixture
def made(tmp_path):
    """Return a folder with a stereo folder `video`, its labels, and names of their classes."""
    generator = torch.Generator().manual_seed(0)
    camera = Calibration(fx=50, fy=50, cx=30, cy=20, baseline_m=0.2, width=WIDTH, height=HEIGHT)
    store = PseudoLabelStore.create(tmp_path / "labels", {}, len(CITYSCAPES_19))
    for number in range(FRAMES):
        views = torch.randint(0, 256, (4, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
        label = street(number)
        store.write(write_sample(tmp_path / "video", StereoSample(*views, camera, truth=label), number), label)
    for path in (tmp_path / "video").glob("*/000001_*.png"):  # one clip is JPEG
        if path.parent.name != "truth":
            Image.open(path).save(path.with_suffix(".jpg"))
            path.unlink()
    store.finish()
    store.choose(
        SplitChoice(things=tuple(CITYSCAPES_19.thing_classes), stuff=tuple(CITYSCAPES_19.stuff_classes))
    )
    write_json(tmp_path / "names.json", list(CITYSCAPES_19.names))
    return tmp_path


def exported(made, kind, out="out", **options):
    """Export the labels with their names; return what is said."""
    return export_labels(made / "labels", kind, made / out, made / "names.json", **options)


def bits(label):
    return label.stacked().numpy().tobytes()


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def claimed(made, name):
    store = PseudoLabelStore(made / "labels")
    return claimed_segments(store.read(name), store.split)


# Export


def test_categories_count_from_1_and_have_names_and_colours_of_their_own(made):
    file = read_json(exported(made, "coco-panoptic")["written"])
    assert [c["id"] for c in file["categories"]] == list(range(1, 20))
    assert file["categories"][CAR] == {
        "id": CAR + 1, "name": "car", "supercategory": "thing", "isthing": 1, "color": [0, 0, 142]
    }  # fmt: skip
    unnamed = read_json(export_labels(made / "labels", "coco-panoptic", made / "unnamed")["written"])["categories"]
    assert unnamed[CAR]["name"] == f"class {CAR} (thing)" and unnamed[ROAD]["name"] == f"class {ROAD} (stuff)"
    assert len({tuple(c["color"]) for c in unnamed}) == 19
    write_json(made / "shared.json", {ROAD: "flat", POLE: "flat", CAR: "car"})
    said = export_labels(made / "labels", "png", made / "shared", made / "shared.json")
    shared = read_json(said["written"])["classes"]
    assert shared[ROAD]["name"] == "flat (class 0)" and shared[POLE]["name"] == f"flat (class {POLE})"
    assert shared[CAR]["name"] == "car"


def test_scores_of_an_evaluation_name_the_classes(made):
    scores = score_store(made / "labels", StereoFolder(made / "video"))
    plain = {key: np.asarray(scores[key]).tolist() for key in ("assignments", "pq_per_class")}
    written = export_labels(made / "labels", "png", made / "out", write_json(made / "scores.json", plain))["written"]
    names = [entry["name"] for entry in read_json(written)["classes"]]
    assert (names[ROAD], names[SKY], names[CAR], names[PERSON]) == ("road", "sky", "car", "person")


def test_images_have_the_names_of_their_files(made):
    said = exported(made, "coco-panoptic", dataset=StereoFolder(made / "video"))
    images = read_json(said["written"])["images"]
    assert [image["file_name"] for image in images] == ["left/000000_0.png", "left/000001_0.jpg", "left/000002_0.png"]
    for image in images:
        assert Image.open(made / "video" / image["file_name"]).size == (image["width"], image["height"])
    assert said["notes"] == [] and "FRAME.png" in exported(made, "coco-panoptic", "other")["notes"][0]


def test_labels_that_do_not_fit_the_file_are_refused_or_come_with_images(tmp_path):
    kitti = KittiRaw(write_kitti(tmp_path / "kitti", 2, 64), height=48, width=144)
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 2)
    store.write(kitti.names[0], PanopticLabel(*torch.zeros(2, 48, 144, dtype=torch.long)))
    store.finish()
    with pytest.raises(InputError, match=r"0000000000.png: \d+ x 64 pixels, but the label of .* has 144 x 48; write"):
        export_labels(tmp_path / "labels", "coco-panoptic", tmp_path / "a", dataset=kitti)
    said = export_labels(tmp_path / "labels", "coco-panoptic", tmp_path / "b", dataset=kitti, images=True)
    (image,) = read_json(said["written"])["images"]
    written = read_image(tmp_path / "b" / "images" / "default" / image["file_name"])
    assert np.array_equal(written, kitti.left(0).permute(1, 2, 0).numpy())


def test_panoptic_maps_and_their_lists_say_the_same(made):
    path = Path(exported(made, "coco-panoptic")["written"])
    for annotation in read_json(path)["annotations"]:
        numbers = segment_numbers(read_image(path.with_suffix("") / annotation["file_name"], "RGB"))
        label = claimed(made, annotation["file_name"].removesuffix(".png"))
        assert set(np.unique(numbers)) - {0} == {s["id"] for s in annotation["segments_info"]}
        assert np.array_equal(numbers == 0, label.semantic.numpy() == VOID)
        for segment in annotation["segments_info"]:
            inside = numbers == segment["id"]
            rows, columns = np.nonzero(inside)
            width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
            assert segment["bbox"] == [columns.min(), rows.min(), width, height] and segment["area"] == inside.sum()
            assert set(label.semantic.numpy()[inside]) == {segment["category_id"] - 1}
            assert len(set(label.instance.numpy()[inside])) == 1 and segment["iscrowd"] == 0


def test_pycocotools_reads_objects_and_scores_them_as_perfect(made, capsys):
    coco = COCO(exported(made, "coco-instances")["written"])
    names = {category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert names == {CITYSCAPES_19.names[k] for k in CITYSCAPES_19.thing_classes}
    masks = {}
    for image in coco.loadImgs(coco.getImgIds()):
        label = claimed(made, image["file_name"].removesuffix(".png"))
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == 3
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert type(annotation["segmentation"]["counts"]) is str and annotation["area"] == mask.sum()
            assert mask_tools.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
            (number,) = np.unique(label.instance.numpy()[mask])
            assert np.array_equal(mask, label.instance.numpy() == number)
            masks[annotation["id"]] = mask
    assert sorted(masks) == list(range(1, 3 * FRAMES + 1))
    found = [{key: a[key] for key in ("image_id", "category_id", "segmentation")} for a in coco.dataset["annotations"]]
    scored = COCOeval(coco, coco.loadRes([entry | {"score": 1.0} for entry in found]), "segm")
    scored.evaluate(), scored.accumulate(), scored.summarize()
    assert scored.stats[0] == 1.0


def test_cityscapes_files_read_as_the_same_labels(made):
    said = exported(made, "cityscapes", dataset=StereoFolder(made / "video"), images=True)
    back = Cityscapes(made / "out", split="train", height=None, classes=19)
    assert len(back.names) == FRAMES and said["notes"] == []
    for place, entry in enumerate(read_json(said["written"])["frames"]):
        label, read = claimed(made, entry["frame"]), back.truth(back.names[place])
        assert torch.equal(label.semantic, read.semantic)
        assert torch.equal(label.instance > 0, read.instance > 0)
        pairs = torch.stack([label.semantic, label.instance, read.instance], -1)[label.instance > 0].unique(dim=0)
        assert len(pairs) == len(pairs[:, :2].unique(dim=0)) == len(pairs[:, ::2].unique(dim=0)) == 3
        left = StereoFolder(made / "video").left(place)
        assert torch.equal(back.left(place), left)
    shown = read_image(next((made / "out").rglob("*_color.png")))
    assert shown[0, 0].tolist() == [70, 130, 180] and shown[39, 0].tolist() == [0, 0, 0]


def test_classes_without_a_name_of_cityscapes_are_unlabeled_and_said(made):
    with pytest.raises(InputError, match="no class has a name of Cityscapes"):
        export_labels(made / "labels", "cityscapes", made / "none")
    names = write_json(made / "few.json", {ROAD: "road", CAR: "car"})
    note = export_labels(made / "labels", "cityscapes", made / "few", names)["notes"][-1]
    assert note.startswith("17 classes have no name of Cityscapes and become unlabeled: class 1 (stuff), ")
    ids = read_image(next((made / "few").rglob("*_labelIds.png")))
    assert set(np.unique(ids)) == {0, 7, 26}


def test_png_holds_classes_numbers_and_colours(made):
    said = exported(made, "png", dataset=StereoFolder(made / "video"))
    file = read_json(said["written"])
    assert file["void"] == VOID
    assert file["classes"][CAR] == {"id": CAR, "name": "car", "thing": True, "colour": [0, 0, 142]}
    for frame in file["frames"]:
        label = claimed(made, frame["frame"])
        assert np.array_equal(read_image(made / "out" / frame["semantic"]), label.semantic.numpy())
        assert np.array_equal(read_image(made / "out" / frame["instance"], "I;16"), label.instance.numpy())
        with Image.open(made / "out" / "colour" / f"{frame['frame']}.png") as shown:
            assert shown.mode == "P" and np.array_equal(np.array(shown), label.semantic.numpy())
            assert shown.convert("RGB").getpixel((0, 0)) == (70, 130, 180)
            assert shown.convert("RGB").getpixel((0, HEIGHT - 1)) == (0, 0, 0)


# Interruption, and what is there already


@pytest.mark.parametrize("kind", FORMATS)
def test_an_interrupted_export_goes_on_and_ends_in_the_same_bytes(made, kind):
    exported(made, kind, "whole")

    def stopped(function, items, description=""):
        yield function(items[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported(made, kind, "parts", map=stopped)
    assert not list((made / "parts").rglob("*_default.json")) and not (made / "parts" / "labels.json").exists()
    with (made / "parts" / "frames.jsonl").open("a") as file:
        file.write('{"file_name": "0000')  # killed while it wrote
    assert exported(made, kind, "parts")["new"] == FRAMES - 1
    assert contents(made / "parts") == contents(made / "whole")
    assert exported(made, kind, "parts")["new"] == 0 and contents(made / "parts") == contents(made / "whole")


DYING = """
import signal, sys
from cups.run.export import export_labels

def until_killed(function, items, description):
    for item in items:
        yield function(item)
        if item[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.02)  # nobody handles it: the process dies wherever it is

export_labels(sys.argv[1], "coco-panoptic", sys.argv[2], map=until_killed)
"""


def test_a_killed_export_leaves_no_half_file(made):
    store = PseudoLabelStore(made / "labels")
    for number in range(60):
        store.write(f"more_{number:02d}", store.read("000000_0"))
    store.finish()
    died = subprocess.run([sys.executable, "-c", DYING, f"{made}/labels", f"{made}/out"], check=False).returncode
    written = [p for p in made.glob("out/annotations/panoptic_default/*.png") if p.name[0] != "."]
    assert died == -signal.SIGALRM and not (made / "out" / "annotations" / "panoptic_default.json").exists()
    assert 1 <= len(written) < 63
    for path in written:
        assert read_image(path).shape == (HEIGHT, WIDTH, 3)
    assert export_labels(made / "labels", "coco-panoptic", made / "out")["frames"] == 63
    export_labels(made / "labels", "coco-panoptic", made / "whole")
    there = {name: content for name, content in contents(made / "out").items() if ".writing-" not in name}
    assert there == contents(made / "whole")


def test_another_export_is_not_mixed_with_the_one_that_is_there(made):
    exported(made, "png")
    with pytest.raises(InputError, match=r"export.json: another export, format is 'png' there, 'cityscapes' here"):
        exported(made, "cityscapes")
    with pytest.raises(InputError, match=r"export, classes.0 is 'road, stuff' there, 'class 0 \(stuff\), stuff' here"):
        export_labels(made / "labels", "png", made / "out")
    FixedLabels(PseudoLabelStore(made / "labels")).write_imported("000001_0", street(9))
    with pytest.raises(InputError, match="its labels are others, or have changed since"):
        exported(made, "png")
    (made / "rest").mkdir()
    (made / "rest" / ".writing-here-1-abc.json").touch()  # by a process that was killed in its first write
    exported(made, "png", "rest")
    with pytest.raises(InputError, match=r"holds other files \(labels\); choose another folder"):
        exported(made, "png", ".")
    with pytest.raises(InputError, match=r"has no frame '000002_0', which .* holds a label of; another data set\?"):
        (made / "video" / "left" / "000002_0.png").rename(made / "other.png")
        (made / "video" / "right" / "000002_0.png").unlink()
        exported(made, "png", "b", dataset=StereoFolder(made / "video"))


def test_labels_written_since_the_store_was_finished_are_not_taken_for_those_before(made):
    exported(made, "png")
    store = PseudoLabelStore(made / "labels")
    for path in store.paths("000001_0").values():
        path.unlink()
    store.write("000001_0", street(9))  # and killed before it was finished
    with pytest.raises(InputError, match=r"labels: labels were written or removed since .* `cups store merge` finish"):
        exported(made, "png")
    PseudoLabelStore(made / "labels").finish()
    with pytest.raises(InputError, match="its labels are others, or have changed since"):
        exported(made, "png")


def test_two_exports_into_one_folder_do_not_meet(made):
    exported(made, "png")
    with FileLock(made / "out" / "export.lock"), pytest.raises(InputError, match="out: another process exports into"):
        exported(made, "png")


def test_time_stamps_with_a_dot_keep_their_maps_apart(made):
    store = PseudoLabelStore.create(made / "stamps", {}, 19)
    for name in ("1700000000.25", "1700000000.50", "1700000000-25"):
        store.write(name, street(len(name)))
    store.finish()
    path = Path(export_labels(made / "stamps", "coco-panoptic", made / "out")["written"])
    maps = [annotation["file_name"] for annotation in read_json(path)["annotations"]]
    assert len({m.split(".")[0] for m in maps}) == 3 and all((path.with_suffix("") / m).exists() for m in maps)
    assert import_labels(path, made / "stamps")["changed"] == []


def test_the_command_offers_all_formats(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert f"{{{','.join(FORMATS)}}}" in capsys.readouterr().out


def test_a_million_frames_do_not_lie_in_memory(tmp_path):
    frames = ({"image_id": n, "segments_info": [{"id": k} for k in range(20)]} for n in range(3000))
    tracemalloc.start()
    path = write_coco(tmp_path / "a.json", iter([]), frames, [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4 and len(read_json(path)["annotations"]) == 3000


# And back


def as_other_programs_write(made, file, suffix=".jpg"):
    """Number categories, images and segments anew, forget `isthing`, drop folders: as a converter does."""
    out, source = made / "corrected", Path(file)
    given = read_json(source)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(given["categories"]))
    for category, number in zip(given["categories"], order, strict=True):
        category.update(id=int(number) + 1, isthing=0)
        del category["color"]
    given["categories"].sort(key=lambda c: c["id"])
    renumbered = {old + 1: int(new) + 1 for old, new in enumerate(order)}
    for image, annotation in zip(given["images"], given["annotations"], strict=True):
        numbers = segment_numbers(read_image(source.with_suffix("") / annotation["file_name"]))
        changed = np.zeros_like(numbers)
        fresh = rng.permutation(np.arange(200, 200 + len(annotation["segments_info"]))).tolist()
        for segment, new in zip(annotation["segments_info"], fresh, strict=True):
            changed[numbers == segment["id"]] = new
            segment.update(id=new, category_id=renumbered[segment["category_id"]], area=float(segment["area"]))
            del segment["instance"]
        rng.shuffle(annotation["segments_info"])
        image["id"] = annotation["image_id"] = image["id"] + 40
        image["file_name"] = Path(image["file_name"]).stem + suffix
        annotation["file_name"] = Path(annotation["file_name"]).name
        colours = np.stack([changed >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
        write_png(out / "annotations" / "panoptic_default" / annotation["file_name"], colours)
    write_json(out / "annotations" / "panoptic_default.json", given)
    return out


def edit_map(folder, name, change):
    """Change the numbers of a map of segments and its list."""
    path = folder / "annotations" / "panoptic_default.json"
    given = read_json(path)
    annotation = next(a for a in given["annotations"] if a["file_name"] == f"{name}.png")
    file = path.with_suffix("") / annotation["file_name"]
    numbers = segment_numbers(read_image(file))
    change(numbers, annotation["segments_info"], {c["name"]: c["id"] for c in given["categories"]})
    write_png(file, np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8))
    write_json(path, given)


@pytest.mark.parametrize("kind", ["coco-panoptic", "coco-instances"])
def test_what_nobody_touched_stays_bit_for_bit(made, kind):
    before = contents(made / "labels")
    exported(made, kind, dataset=StereoFolder(made / "video"))
    said = import_labels(made / "out", made / "labels", made / "names.json")
    assert (said["images"], said["changed"], said["notes"]) == (FRAMES, [], [])
    if kind == "coco-panoptic":
        other = as_other_programs_write(made, made / "out" / "annotations" / "panoptic_default.json")
        assert import_labels(other, made / "labels", made / "names.json")["changed"] == []
    assert contents(made / "labels") == before


def test_corrections_reach_training_and_the_original_stays(made):
    original = contents(made / "labels" / "frames")
    other = as_other_programs_write(made, exported(made, "coco-panoptic")["written"])

    def change(numbers, segments, categories):
        person = int(numbers[12, 8])
        next(s for s in segments if s["id"] == person)["category_id"] = categories["rider"]
        numbers[0:4, 0:5] = 900  # a new pole
        segments.append({"id": 900, "category_id": categories["pole"], "area": 20, "iscrowd": 0})
        numbers[10:14, 45:50] = 901  # a new car
        segments.append({"id": 901, "category_id": categories["car"], "area": 20, "iscrowd": 0})

    edit_map(other, "000001_0", change)
    assert import_labels(other, made / "labels", made / "names.json")["changed"] == ["000001_0"]
    store = PseudoLabelStore(made / "labels")
    labels, expected = FixedLabels(store), store.read("000001_0")
    rider = CITYSCAPES_19.names.index("rider")
    expected.semantic[expected.semantic == PERSON] = rider
    expected.semantic[0:4, 0:5] = POLE
    expected.semantic[10:14, 45:50], expected.instance[10:14, 45:50] = CAR, 301  # a number that is free
    assert bits(labels.read("000001_0")) == bits(expected)
    _, trained = LabelledImages(StereoFolder(made / "video"), labels)[1]
    assert bits(trained) == bits(expected)
    assert contents(made / "labels" / "frames") == original and labels.fixed_names == ["000001_0"]

    again = read_json(exported(made, "coco-panoptic", "again")["written"])["annotations"][1]
    assert [s["category_id"] - 1 for s in again["segments_info"]].count(rider) == 1
    assert import_labels(made / "out", made / "labels", made / "names.json")["changed"] == ["000001_0"]  # taken back
    assert labels.fixed_names == [] and bits(labels.read("000001_0")) == bits(store.read("000001_0"))


def test_the_label_fixer_goes_on_with_what_was_corrected(made):
    labels = FixedLabels(PseudoLabelStore(made / "labels"))
    other = street(5)
    labels.write_imported("000000_0", other)
    draft = saved_draft(labels, "000000_0", labels.start("000000_0"))
    assert draft.edits == () and not draft.unsaved
    edit = Edit("relabel", ((8, 12),), to_class=ROAD)
    draft.push((edit,))
    save_drafts(labels, {"000000_0": draft})
    assert bits(labels.read("000000_0")) == bits(replay(other, [edit]))
    draft = saved_draft(labels, "000000_0", labels.start("000000_0"))
    draft.move(-1)
    save_drafts(labels, {"000000_0": draft})
    assert bits(labels.read("000000_0")) == bits(other)
    labels.remove_fixed("000000_0")
    assert bits(labels.read("000000_0")) == bits(labels.store.read("000000_0")) == bits(labels.start("000000_0"))


def test_objects_come_back_from_polygons_and_from_masks_that_are_called_crowds(made):
    """As CVAT's COCO 1.0: masks are unpacked run lengths with iscrowd 1, shapes are polygons."""
    path = Path(exported(made, "coco-instances")["written"])
    given = read_json(path)
    kept = [a for a in given["annotations"] if a["image_id"] != 1]
    for annotation in kept:
        flat = mask_tools.decode(annotation["segmentation"]).ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *changes, flat.size]).tolist()
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts if flat[0] == 0 else [0, *counts]}
        annotation["iscrowd"] = 1
    square = {"id": 900, "image_id": 1, "category_id": CAR + 1, "segmentation": [[50, 2, 56, 2, 56, 8, 50, 8]]}
    write_json(path, given | {"annotations": [*kept, square]})
    said = import_labels(path, made / "labels", made / "names.json")
    assert said["changed"] == ["000000_0"] and said["notes"] == []
    store = PseudoLabelStore(made / "labels")
    expected = store.read("000000_0")
    gone = (expected.instance > 0) & torch.isin(expected.semantic, torch.tensor([PERSON, CAR]))
    expected.semantic[gone], expected.instance[gone] = VOID, 0
    expected.semantic[2:8, 50:56], expected.instance[2:8, 50:56] = CAR, 301
    assert bits(FixedLabels(store).read("000000_0")) == bits(expected)
    write_json(path, given)
    assert import_labels(path, made / "labels", made / "names.json")["changed"] == ["000000_0"]  # sky shows again
    assert FixedLabels(store).fixed_names == []


def test_frames_are_told_by_the_folders_of_their_files(tmp_path):
    kitti = KittiRaw(write_kitti(tmp_path / "kitti", 2, 64), height=64, width=96)
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 2)
    zeros = torch.zeros(kitti.left(0).shape[1:], dtype=torch.long)
    for name in kitti.names:
        store.write(name, PanopticLabel(zeros, zeros))
    store.finish()
    said = export_labels(tmp_path / "labels", "coco-panoptic", tmp_path / "out", dataset=kitti, images=True)
    path = Path(said["written"])
    given = read_json(path)
    for image, name in zip(given["images"], kitti.names, strict=True):
        image["file_name"] = kitti.path("left", name).relative_to(tmp_path).as_posix()  # with a folder more
    write_json(path, given)
    arguments = ["import", str(path), "--labels", f"{tmp_path}/labels"]
    assert main([*arguments, "--dataset", "kitti_raw", "--root", f"{tmp_path}/kitti"]) == 0
    assert main(arguments) == 2  # 0000000000.png is no frame's name


def test_a_new_store_has_the_same_maps(made, capsys):
    path = exported(made, "coco-panoptic")["written"]
    assert main(["import", path, "--out", f"{made}/copy"]) == 0
    store, copy = PseudoLabelStore(made / "labels"), PseudoLabelStore(made / "copy")
    assert copy.names == store.names and copy.split.things == store.split.things
    for name in store.names:
        assert bits(copy.read(name)) == bits(claimed(made, name))
    assert json.loads(capsys.readouterr().out)["frames"] == FRAMES
    other = new_store(as_other_programs_write(made, path), made / "other")  # things by their supercategory
    assert len(other.split.things) == len(store.split.things) and len(other) == FRAMES


def test_a_new_store_takes_corrections_but_no_other_data_set(made, capsys):
    path = Path(exported(made, "coco-panoptic")["written"])
    new_store(path, made / "copy")
    edit_map(made / "out", "000000_0", lambda numbers, *_: np.put(numbers, 0, 2))  # corrected further
    new_store(path, made / "copy")
    new_store(path, made / "fresh")
    copy, fresh = PseudoLabelStore(made / "copy"), PseudoLabelStore(made / "fresh")
    assert copy.names == fresh.names and all(bits(copy.read(name)) == bits(fresh.read(name)) for name in copy.names)
    before, given = contents(made / "copy"), read_json(path)
    other_data_set(given)
    write_json(path, given)
    assert main(["import", str(path), "--out", f"{made}/copy"]) == 2
    said = capsys.readouterr().err
    assert "copy: holds a label of 000000_0, which" in said and "--again" not in said and said.count("\n") == 1
    assert contents(made / "copy") == before


def unlisted(given):
    given["annotations"][2]["segments_info"].pop()


def twice(given):
    given["annotations"][2]["segments_info"].append(given["annotations"][2]["segments_info"][0])


def unknown_image(given):
    given["images"][2]["file_name"] = "holiday.png"


def other_data_set(given):
    for image in given["images"]:
        image["file_name"] = f"a/frankfurt_{image['id']}.png"


def unknown_category(given):
    given["categories"][CAR]["name"] = "Automobile"


def unlisted_category(given):
    del given["categories"][CAR]


def two_of_a_frame(given):
    given["images"][2]["file_name"] = "000001_0.jpg"


def no_map(given):
    given["annotations"][2]["file_name"] = "gone.png"


WRONG = {
    unlisted: r"000002_0.png: holds segment 5, which panoptic_default.json does not list",
    twice: r"segment 1 of 000002_0.png is listed twice",
    unknown_image: r"panoptic_default.json: image holiday.png is of no frame of these labels$",
    other_data_set: r"image a/frankfurt_1.png is of no frame of these labels, nor is any other$",
    unknown_category: r"category 'Automobile' is no class of these labels; there are road, sidewalk, building, wall",
    unlisted_category: rf"an annotation has category {CAR + 1}, which is not listed",
    two_of_a_frame: r"images 000001_0.png and 000001_0.jpg are both of frame '000001_0'",
    no_map: r"panoptic_default/gone.png: no such file",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda f: f.__name__)
def test_what_does_not_belong_to_the_labels_is_one_line_and_nothing_is_written(made, spoil, capsys):
    path = Path(exported(made, "coco-panoptic")["written"])
    edit_map(made / "out", "000000_0", lambda numbers, *_: np.put(numbers, 0, 2))  # would be a fix
    given = read_json(path)
    spoil(given)
    write_json(path, given)
    with pytest.raises(InputError, match=WRONG[spoil]) as error:
        import_labels(path, made / "labels", made / "names.json")
    assert "\n" not in str(error.value) and not (made / "labels" / "fixed").exists()
    assert main(["import", str(path), "--labels", f"{made}/labels", "--classes", f"{made}/names.json"]) == 2
    assert capsys.readouterr().err == f"cups: error: {error.value}\n"


def test_files_of_another_kind_are_one_line(made, capsys):
    path = Path(exported(made, "coco-panoptic")["written"])
    first = path.with_suffix("") / "000000_0.png"
    write_png(first, np.zeros((20, 30, 3), np.uint8))
    (made / "task.zip").write_bytes(b"PK")
    write_json(made / "list.json", [1, 2])
    expected = {
        path: f"{first}: holds",
        made / "task.zip": f"{made}/task.zip: an archive; unpack it, and give the folder",
        made / "list.json": f"{made}/list.json: not labels in COCO's format",
        made / "video": f"{made}/video: expected one file panoptic*.json or instances*.json, found none",
        made / "gone.json": f"{made}/gone.json: no such file",
    }
    del expected[path]
    given = read_json(path)
    given["annotations"][0]["segments_info"] = []
    write_json(path, given)
    expected[path] = f"{first}: image 000000_0.png has 30 x 20 pixels, its label 60 x 40"
    for file, line in expected.items():
        assert main(["import", str(file), "--labels", f"{made}/labels", "--classes", f"{made}/names.json"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"cups: error: {line}") and said.count("\n") == 1


def test_overlaps_are_said_and_the_visible_pixels_count(made):
    exported(made, "coco-panoptic")

    def cover(numbers, segments, categories):
        numbers[15:30, 30:33] = numbers[12, 8]  # the person lies over the second car, whose area stays

    edit_map(made / "out", "000000_0", cover)
    said = import_labels(made / "out", made / "labels", made / "names.json")
    assert said["changed"] == ["000000_0"] and len(said["notes"]) == 1
    assert said["notes"][0].startswith("segments overlap, the visible pixels count; the first is ")
    found = FixedLabels(PseudoLabelStore(made / "labels")).read("000000_0")
    assert (found.instance[15:30, 30:33] == 300).all() and (found.instance[15:30, 33:35] == 7).all()


def test_the_old_form_of_the_command_says_what_is_missing(made, capsys):
    with pytest.raises(SystemExit):
        main(["export", f"{made}/labels", f"{made}/coco"])
    assert "--out" in capsys.readouterr().err


# The programs themselves, where they are installed


def test_panopticapi_finds_labels_equal_to_themselves(made, capsys):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    path = exported(made, "coco-panoptic")["written"]
    scores = evaluation.pq_compute(path, path)
    assert scores["All"]["pq"] == scores["Things"]["pq"] == scores["Stuff"]["pq"] == 1 and scores["All"]["n"] == 4


@pytest.mark.parametrize("kind", ["coco-panoptic", "coco-instances"])
def test_labels_survive_datumaro(made, kind):
    """It is the library that CVAT converts with."""
    dataset = pytest.importorskip("datumaro.components.dataset").Dataset
    exported(made, kind, dataset=StereoFolder(made / "video"), images=True)
    read = dataset.import_from(str(made / "out"), kind.replace("-", "_"))
    assert len(read) == FRAMES and all(item.media.data.shape == (HEIGHT, WIDTH, 3) for item in read)
    masks = {"segmentation_mode": "mask"} if kind == "coco-instances" else {}
    read.export(str(made / "back"), kind.replace("-", "_"), save_media=False, **masks)
    said = import_labels(made / "back", made / "labels", made / "names.json")
    assert said["images"] == FRAMES and said["changed"] == []


def test_cityscapes_scripts_find_labels_equal_to_themselves(made, capsys):
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    exported(made, "cityscapes", dataset=StereoFolder(made / "video"), images=True)
    files = sorted(map(str, (made / "out").glob("gtFine/train/*/*_gtFine_labelIds.png")))
    evaluation.args.quiet, evaluation.args.JSONOutput = True, False
    assert evaluation.evaluateImgLists(files, files, evaluation.args)["averageScoreInstClasses"] == 1
    instances = pytest.importorskip("cityscapesscripts.evaluation.instances2dict").instances2dict
    found = instances([file.replace("labelIds", "instanceIds") for file in files])
    assert all(len(one["car"]) == 2 and len(one["person"]) == 1 for one in found.values())


def test_fiftyone_reads_the_same_masks(made):
    reader = pytest.importorskip("fiftyone.utils.coco").COCODetectionDatasetImporter
    path = exported(made, "coco-instances", dataset=StereoFolder(made / "video"), images=True)["written"]
    images = str(made / "out" / "images" / "default")
    importer = reader(data_path=images, labels_path=path, label_types=["segmentations"], include_id=True)
    importer.setup()
    for file, size, labels in importer:
        label = claimed(made, Path(file).stem)
        assert (size.width, size.height) == (WIDTH, HEIGHT) and len(labels["segmentations"].detections) == 3
        for found in labels["segmentations"].detections:
            x, y = (round(part * side) for part, side in zip(found.bounding_box[:2], (WIDTH, HEIGHT), strict=True))
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[y : y + found.mask.shape[0], x : x + found.mask.shape[1]] = found.mask
            (number,) = np.unique(label.instance.numpy()[mask])
            assert np.array_equal(mask, label.instance.numpy() == number)
            assert set(label.semantic.numpy()[mask]) == {CITYSCAPES_19.names.index(found.label)}
