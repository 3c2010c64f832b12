"""A result is gone on with only if it comes from the same input; anything else ends in one line, or is made again."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import SPLIT, TINY, Frames

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, read_json, write_json, write_png
from cups.core.images import to_array
from cups.core.records import PanopticLabel
from cups.core.settings import settings_from_dict
from cups.datasets.labelled_images import LabelledImages, LeftImages
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.fixed import FixedLabels
from cups.labels.store import PseudoLabelStore
from cups.model.files import numbered_split, save_network
from cups.model.network import panoptic_cascade
from cups.run.generate import clustering_frames, generate
from cups.run.scenes import render_scenes
from cups.stages.labels.pseudo_classes import PseudoClasses
from cups.stages.matching.smurf import SmurfSettings
from cups.stages.pipeline import METHOD_VERSION, PseudoLabelSettings
from cups.street.scenes import street_scene
from cups.training.dataset import PseudoLabelDataset
from cups.training.self_training import Frames as SelfTrainingFrames
from cups.training.trainer import TrainResult, train, train_settings

FAST = {"full_height_px": 48, "flow_finest_scale": 3}
FEW = {"num_classes": 6, "num_object_classes": 2, "classical": FAST, "crf": {"steps": 1}}
SETTINGS = settings_from_dict(PseudoLabelSettings, FEW)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what is remembered of files apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUPS_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def fails(capsys):
    """Run the command line; expect code 2 and one line, and return it."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("cups: error: ")
        return err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "overlays"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# Predictions


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A small network that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    return save_network(path, panoptic_cascade(2, 3, preset="small"), numbered_split(2, 3))


def write_images(folder: Path, seed: int) -> Path:
    for number in range(2):
        write_png(folder / f"{number}.png", to_array(street_scene((seed, number), 64, 96).sample.left_0))
    return folder


def predict(images: Path, network: Path, out: Path, *more) -> list:
    return ["predict", images, "--weights", network, "--out", out, "--device", "cpu", "--min-confidence", 0.2, *more]


def test_predictions_of_another_folder_are_not_those_of_this_one(network, tmp_path, fails):
    first, second = write_images(tmp_path / "A", 1), write_images(tmp_path / "B", 2)
    run = lambda *arguments: main([str(a) for a in predict(*arguments)])  # noqa: E731
    assert run(first, network, tmp_path / "o") == run(second, network, tmp_path / "fresh") == 0
    before = contents(tmp_path / "o")
    line = fails(*predict(second, network, tmp_path / "o"))
    assert f"{tmp_path / 'o'}: the map of {second / '0.png'} was made from {first / '0.png'}; so were 1 more" in line
    assert "choose another folder, or start afresh (--again" in line and contents(tmp_path / "o") == before
    assert run(second, network, tmp_path / "o", "--again") == 0
    assert contents(tmp_path / "o") == contents(tmp_path / "fresh") != before


def test_images_of_the_same_length_are_told_apart(network, tmp_path, fails):
    for folder, value in (("A", 10), ("B", 200)):  # not compressed: the files have the same length, and here one time
        (tmp_path / folder).mkdir()
        head = b"BM" + np.array([54 + 64 * 96 * 3, 0, 54, 40, 96, 64], "<u4").tobytes() + b"\x01\0\x18\0" + bytes(24)
        (tmp_path / folder / "0.bmp").write_bytes(head + bytes([value]) * (64 * 96 * 3))
        os.utime(tmp_path / folder / "0.bmp", (10**9, 10**9))
    assert main([str(a) for a in predict(tmp_path / "A", network, tmp_path / "o")]) == 0
    assert "0.bmp was made from" in fails(*predict(tmp_path / "B", network, tmp_path / "o"))


def test_predictions_of_copied_images_stay_and_those_of_changed_ones_do_not(network, tmp_path, fails):
    images, out = write_images(tmp_path / "images", 1), tmp_path / "o"
    run = lambda *arguments: main([str(a) for a in predict(*arguments)])  # noqa: E731
    run(images, network, out)
    written = times(out / "panoptic")
    shutil.copytree(images, tmp_path / "copy", copy_function=shutil.copyfile)
    assert run(tmp_path / "copy", network, out) == 0 and times(out / "panoptic") == written
    write_png(images / "1.png", 255 - read_image(images / "1.png"))
    line = fails(*predict(images, network, out))
    assert f"the map of {images / '1.png'} was made before that file was changed" in line
    assert run(images, network, out, "--again") == 0
    changed = {path for path, time in times(out / "panoptic").items() if written[path] != time}
    assert changed == {str(out / "panoptic" / "1.png")}  # the other one is that of its image


def test_images_added_by_a_later_call_are_listed_with_the_others(network, tmp_path):
    images, out = write_images(tmp_path / "images", 1), tmp_path / "o"
    run = lambda *arguments: main([str(a) for a in predict(*arguments)])  # noqa: E731
    assert run(images / "1.png", network, out) == run(images / "0.png", network, out) == 0
    listed = json.loads((out / "panoptic.json").read_text())
    assert [image["file_name"] for image in listed["images"]] == ["0.png", "1.png"]
    (out / "panoptic" / "1.png").unlink()  # as of a folder that was copied in part
    (out / "annotations" / ".writing-elsewhere-1-abcdefgh.json").write_text("{")  # by a process that was killed
    assert run(images, network, out) == run(images, network, tmp_path / "fresh") == 0
    fresh = contents(tmp_path / "fresh")
    assert {name: content for name, content in contents(out).items() if ".writing" not in name} == fresh


def test_pictures_are_not_left_in_the_colours_of_other_names(network, tmp_path, fails):
    images, out = write_images(tmp_path / "images", 1), tmp_path / "o"
    (tmp_path / "names.json").write_text(json.dumps({"4": "sky"}))
    assert main([str(a) for a in predict(images, network, out)]) == 0
    named = predict(images, network, out, "--classes", tmp_path / "names.json")
    assert "made with other settings, colours.4 is [" in fails(*named)
    assert main([str(a) for a in (*named, "--again")]) == 0
    assert "[70, 130, 180]" in (out / "panoptic.json").read_text()


def test_predictions_of_other_weights_are_made_again(network, tmp_path, fails):
    images, out = write_images(tmp_path / "images", 1), tmp_path / "o"
    torch.manual_seed(1)
    other = save_network(tmp_path / "other.safetensors", panoptic_cascade(2, 3, preset="small"), numbered_split(2, 3))
    main([str(a) for a in predict(images, network, out)])
    line = fails(*predict(images, other, out))
    assert "weights_sha256 is '" in line and "choose another folder, or start afresh (--again" in line
    assert main([str(a) for a in predict(images, other, out, "--again")]) == 0
    assert main([str(a) for a in predict(images, other, tmp_path / "fresh")]) == 0
    assert contents(out) == contents(tmp_path / "fresh")


# Labels


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three scenes, and their labels."""
    folder = tmp_path_factory.mktemp("made")
    video = render_scenes(folder / "video", 3, seed=2, height=48, width=96, workers=1)
    generate(video, folder / "labels", SETTINGS, workers=1)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """The same in a folder of its own; times of files are those of the copy."""
    shutil.copytree(made, tmp_path / "copy", copy_function=shutil.copyfile)
    return tmp_path / "copy"


def label(folder: Path, out: str = "labels", settings: PseudoLabelSettings = SETTINGS, **options) -> PseudoLabelStore:
    return generate(StereoFolder(folder / "video"), folder / out, settings, 1, **options)


def correct_calibration(folder: Path, **changes: float) -> None:
    write_json(folder / "video" / "calibration.json", read_json(folder / "video" / "calibration.json") | changes)


def change_image(path: Path) -> None:
    write_png(path, np.ascontiguousarray(read_image(path)[:, ::-1]))


def test_a_copied_data_set_is_the_same(made, copy):
    before = times(copy / "labels")
    for _ in range(2):  # compared by content once, by the state of the files from then on
        label(copy)
        assert contents(copy / "labels") == contents(made / "labels")
    assert {path: time for path, time in times(copy / "labels").items() if before[path] != time}.keys() <= {
        str(copy / "labels" / name) for name in ("manifest.json", "index.safetensors")
    }


def test_no_image_is_opened_where_no_file_has_changed(copy, monkeypatch):
    label(copy)
    monkeypatch.setattr(StereoFolder, "__getitem__", lambda *_: pytest.fail("an image was read"))
    label(copy)
    os.utime(copy / "video" / "calibration.json")  # its content is the same
    label(copy)


def test_a_corrected_calibration_is_named(copy, fails):
    write_json(copy / "settings.yaml", FEW)  # JSON is YAML
    command = ["pseudo-labels", "--root", copy / "video", "--out", copy / "labels", "--workers", 1]
    command += ["--settings", copy / "settings.yaml"]
    assert main([str(a) for a in command]) == 0
    before, there = contents(copy / "labels"), read_json(copy / "video" / "calibration.json")["fx"]
    correct_calibration(copy, fx=there + 1)
    line = fails(*command)
    assert f"{copy / 'labels'}: 000000_0 is not the frame that was labelled, calibration.fx is {there} there" in line
    assert f"{there + 1} here; so are 2 more frames; choose another folder, or start afresh (--again" in line
    assert contents(copy / "labels") == before
    assert main([str(a) for a in [*command, "--again"]]) == 0
    label(copy, "fresh")
    assert contents(copy / "labels") == contents(copy / "fresh") != before


@pytest.mark.parametrize("is_remembered", [True, False])
def test_another_image_of_the_same_name_is_named(copy, monkeypatch, tmp_path, is_remembered):
    label(copy)
    change_image(copy / "video" / "right" / "000001_1.png")
    if not is_remembered:
        monkeypatch.setenv("CUPS_HOME", str(tmp_path / "another machine"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"000001_0 is not the frame that was labelled, right_1 is another now"):
            label(copy)


def test_a_frame_that_showed_no_class_is_labelled_again_alone(copy):
    settings = replace(SETTINGS, clustering_frames=2)
    shown = [name for _, name in clustering_frames(StereoFolder(copy / "video").names, settings)]
    assert shown == ["000000_0", "000002_0"]
    label(copy, "two", settings)
    before = times(copy / "two" / "frames")
    change_image(copy / "video" / "left" / "000001_0.png")
    label(copy, "two", settings, again=True)
    changed = {Path(path).name for path, time in times(copy / "two" / "frames").items() if before[path] != time}
    assert changed == {"000001_0.json", "000001_0_semantic.png", "000001_0_instance.png"}


def test_a_description_of_another_image_is_made_again(copy):
    """A run was killed while it described frames; an image was replaced since."""
    video = StereoFolder(copy / "video")
    with pytest.raises(InputError, match="none"):
        generate(OneFrameAtMost(video), copy / "killed", SETTINGS, 1, strict=True)
    assert [path.stem for path in (copy / "killed" / "descriptions").iterdir()] == ["000000_0"]
    change_image(copy / "video" / "left" / "000000_0.png")
    label(copy, "killed")
    label(copy, "other")
    assert contents(copy / "killed") == contents(copy / "other") != contents(copy / "labels")


class OneFrameAtMost:
    """A video whose other frames cannot be read."""

    def __init__(self, video: StereoFolder) -> None:
        self.video, self.names, self.sources = video, video.names, video.sources

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int):
        if index:
            raise InputError("none")
        return self.video[index]


def test_an_image_that_the_classes_were_found_on_must_stay_until_it_is_labelled(copy):
    label(copy)
    for path in PseudoLabelStore(copy / "labels").paths("000002_0").values():
        path.unlink()
    change_image(copy / "video" / "left" / "000002_0.png")
    with pytest.raises(InputError, match="000002_0 is not the frame that was labelled, left_0 is another now"):
        label(copy)


def test_other_weights_of_the_same_name_are_named(copy):
    weights = copy / "smurf.pt"
    weights.write_bytes(b"no weights")
    settings = PseudoLabelSettings(matcher="smurf", smurf=SmurfSettings(weights=str(weights), device="cpu"))
    with pytest.raises(InputError, match="none of 3 frames can be used"):
        label(copy, "smurf", settings)
    weights.write_bytes(b"other ones")
    with pytest.raises(InputError, match=r"manifest\.json: made with another method, weights\.smurf is '\w+' there"):
        label(copy, "smurf", settings)


def test_a_new_version_of_the_method_is_named(copy, monkeypatch):
    label(copy)
    monkeypatch.setattr("cups.run.generate.METHOD_VERSION", METHOD_VERSION + 1)
    said = f"another method, version is {METHOD_VERSION} there, {METHOD_VERSION + 1} here; choose another folder"
    with pytest.raises(InputError, match=said):
        label(copy)


def test_labels_of_other_classes_are_named(copy):
    classes = PseudoClasses.load(copy / "labels" / "classes.safetensors")
    label(copy, "test", classes=classes)
    label(copy, "test", classes=classes)
    others = classes.replace(counts=classes.counts + 1)
    with pytest.raises(InputError, match="another method, given_classes is"):
        label(copy, "test", classes=others)


def test_other_settings_start_afresh_where_the_user_says_so(copy):
    other = replace(SETTINGS, seed=1)
    with pytest.raises(InputError, match="other settings, seed is 0 there, 1 here; choose another folder, or start"):
        label(copy, settings=other)
    before = contents(copy / "labels")
    assert label(copy, settings=other, again=True).settings["seed"] == 1
    written = contents(copy / "labels")
    assert written.keys() == before.keys() and written["classes.safetensors"] != before["classes.safetensors"]


def test_what_a_person_fixed_is_never_removed(copy):
    store = PseudoLabelStore(copy / "labels")
    FixedLabels(store).write_fixed("000000_0", store.read("000000_0"), [])
    correct_calibration(copy, baseline_m=1.5)
    with pytest.raises(InputError, match=r"labels/fixed: a person made this for the labels that are there"):
        label(copy, again=True)
    assert FixedLabels(store).fixed_names == ["000000_0"] and store.labelled() == set(store.names)


def test_a_fixed_label_is_not_left_on_another_image(copy):
    settings = replace(SETTINGS, clustering_frames=2)
    store = label(copy, "two", settings)
    FixedLabels(store).write_fixed("000001_0", store.read("000001_0"), [])
    before = contents(copy / "two")
    change_image(copy / "video" / "left" / "000001_0.png")
    for _ in range(2):
        with pytest.raises(InputError, match=r"two/fixed: a person made the label of 000001_0 for another image"):
            label(copy, "two", settings, again=True)
    assert contents(copy / "two") == before


def test_a_run_killed_while_it_clears_a_store_is_gone_on_with(copy, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cups.run.inputs.shutil.rmtree", killed)
        label(copy, settings=replace(SETTINGS, seed=1), again=True)
    assert list((copy / "labels").glob("frames.removed*"))
    for seed in (1, 2):
        label(copy, settings=replace(SETTINGS, seed=seed), again=True)
        (copy / "labels" / "frames.removed" / "00").mkdir(parents=True)  # as an earlier version left it
    label(copy, settings=SETTINGS, again=True)
    assert not list((copy / "labels").glob("frames.removed*"))


def without_inputs(copy, *left_out):
    """Take out of a store what its frames were made from, and of its manifest what is named."""
    manifest = read_json(copy / "labels" / "manifest.json")
    write_json(copy / "labels" / "manifest.json", {k: v for k, v in manifest.items() if k not in left_out})
    (copy / "labels" / "classes.json").unlink()
    for path in (copy / "labels" / "frames").rglob("*.json"):
        write_json(path, {key: value for key, value in read_json(path).items() if key != "inputs"})


def test_labels_that_do_not_say_what_they_were_made_from_are_gone_on_with(copy):
    without_inputs(copy, "index")
    with pytest.warns(UserWarning, match="3 frames were labelled by an earlier version, which did not note"):
        label(copy)
    assert read_json(copy / "labels" / "manifest.json")["method"]["version"] == METHOD_VERSION


def test_labels_of_an_unknown_version_are_those_of_the_first(copy):
    without_inputs(copy, "index", "method")
    with pytest.raises(InputError, match=f"made with another method, version is 1 there, {METHOD_VERSION} here"):
        label(copy)


def test_the_method_is_the_one_of_its_version(tmp_path):
    """If this fails the method has changed: count METHOD_VERSION up, and write down what it makes now.

    Processors round differently: a few pixels may differ. On two small frames k-means may end elsewhere, so what the
    method makes is written down for both machines that differed.
    """
    video = render_scenes(tmp_path / "video", 2, seed=2, height=96, width=192, workers=1)
    store = generate(video, tmp_path / "labels", PseudoLabelSettings(num_classes=6, num_object_classes=2), 1)
    made = store.statistics()
    known = [
        ([0, 0, 0, 0, 0, 0, 2, 1], [2460, 9505, 1538, 850, 1124, 13191, 217, 537]),  # most machines
        ([0, 0, 0, 0, 0, 0, 1, 2], [10944, 2673, 1798, 849, 1179, 13377, 76, 671]),  # one with AVX2 alone
    ]
    objects = made.proposals.tolist()
    assert METHOD_VERSION == 5
    assert any(objects == n and (made.pixels - torch.tensor(px)).abs().sum() < 300 for n, px in known), made.pixels


# Training


def run(folder: Path, data: PseudoLabelDataset, again: bool = False, **changes) -> tuple[dict, TrainResult]:
    torch.manual_seed(0)
    model = panoptic_cascade(1, 2, preset="small", **TINY)
    settings = train_settings("small", **{"steps": 2, "batch_size": 2, "warmup_steps": 1} | changes)
    result = train(model, data, settings, folder, progress=False, accelerator="cpu", again=again)
    return model.state_dict(), result


def squares(seed: int = 0) -> PseudoLabelDataset:
    return PseudoLabelDataset(Frames(), SPLIT, seed=seed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 1}, "settings.batch_size is 2 there, 1 here"),
        ({"learning_rate": 0.5}, "settings.learning_rate is 0.001 there, 0.5 here"),
        ({"steps": 3}, "settings.steps is 2 there, 3 here"),
    ],
)
def test_a_training_of_other_settings_is_named(tmp_path, changes, said):
    run(tmp_path / "run", squares())
    with pytest.raises(InputError, match=f"run: trained with something else, {said}; choose another folder, or"):
        run(tmp_path / "run", squares(), **changes)


def test_a_training_starts_afresh_where_the_user_says_so(tmp_path):
    run(tmp_path / "run", squares())
    again, result = run(tmp_path / "run", squares(), again=True, learning_rate=0.002)
    fresh, _ = run(tmp_path / "fresh", squares(), learning_rate=0.002)
    assert result.first_step == 0 and all(torch.equal(value, fresh[name]) for name, value in again.items())
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1  # the curves of the first one are gone
    _, result = run(tmp_path / "run", squares(), again=True, learning_rate=0.002)
    assert result.first_step == 2  # the same again goes on


def test_what_does_not_decide_the_weights_may_change(tmp_path):
    run(tmp_path, squares(), final_rate_share=1.0)
    _, result = run(tmp_path, squares(), final_rate_share=1.0, log_every_steps=1, steps=3)
    assert result.first_step == 2 and result.history[-1]["step"] == 3
    with pytest.raises(InputError, match=r"last\.ckpt: has 3 steps behind it, more than the 2 asked for"):
        run(tmp_path, squares(), final_rate_share=1.0)


def unnoted(store, root):
    """Return a copy of a store that does not say which images it labelled."""
    copied = PseudoLabelStore.create(root, {}, store.num_classes)
    for name in store.names:
        copied.write(name, store.read(name))
    return copied


def test_a_training_of_other_labels_or_images_is_named(copy, tmp_path):
    store = PseudoLabelStore(copy / "labels")
    silent = unnoted(store, tmp_path / "silent")
    pairs = lambda labels: PseudoLabelDataset(LabelledImages(StereoFolder(copy / "video"), labels), SPLIT)  # noqa: E731
    run(tmp_path / "run", pairs(silent), steps=1, batch_size=1)
    FixedLabels(silent).write_fixed("000000_0", store.read("000001_0"), [])
    with pytest.raises(InputError, match=r"trained with something else, data\.labels is"):
        run(tmp_path / "run", pairs(FixedLabels(silent)), steps=1, batch_size=1)
    change_image(copy / "video" / "left" / "000001_0.png")
    with pytest.raises(InputError, match=r"trained with something else, data\.images is"):
        run(tmp_path / "run", pairs(silent), steps=1, batch_size=1)


def test_labels_of_other_images_teach_nothing(copy):
    store, video = PseudoLabelStore(copy / "labels"), StereoFolder(copy / "video")
    assert len(LabelledImages(video, store)) == len(LabelledImages(video, FixedLabels(store))) == 3
    change_image(copy / "video" / "left" / "000001_0.png")
    for labels in (store, FixedLabels(store)):
        with pytest.raises(InputError, match=r"labels: the label of 000001_0 was made from another image"):
            LabelledImages(video, labels)


class Half(Frames):
    """Labels of half the size of one image."""

    def __getitem__(self, index: int):
        image, label = super().__getitem__(index)
        half = PanopticLabel(label.semantic[::2, ::2], label.instance[::2, ::2])
        return image, half if index == 3 else label


def test_labels_of_another_size_are_refused(copy):
    store = PseudoLabelStore(copy / "labels")
    store.write("000001_0", PanopticLabel(*torch.zeros(2, 24, 48, dtype=torch.int64)))
    data = PseudoLabelDataset(LabelledImages(StereoFolder(copy / "video"), store), SPLIT, max_unreadable_share=0.9)
    with pytest.raises(InputError, match=r"labels: 000001_0: the image has 96 x 48 pixels, its label 48 x 24"):
        data[0, 1]
    for frames in (PseudoLabelDataset(Half(), SPLIT, augmentation=None), SelfTrainingFrames(Half())):
        with pytest.raises(InputError, match=r"frame 3: the image has 96 x 64 pixels, its label 48 x 32"):
            frames[0, 3]
    assert len(LeftImages(StereoFolder(copy / "video"))) == 3  # without labels nothing is compared


# Evaluation


def test_frames_that_are_not_judged_are_said(copy, capsys, fails):
    command = ["evaluate", "--labels", copy / "labels", "--truth", copy / "video", "--json"]
    assert main([str(a) for a in command]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["not_judged"] == 0 and err == ""
    store = PseudoLabelStore(copy / "labels")
    store.paths("000001_0")["json"].unlink()
    store.finish()
    assert main([str(a) for a in command]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["not_judged"], json.loads(out)["frames"]) == (1, 2)
    line = f"cups: 1 of 3 frames with ground truth have no label in {copy / 'labels'}: not judged; --strict"
    assert err.startswith(line) and err.count("\n") == 1
    assert "no label of 1 of 3 frames with ground truth, 000001_0 for one" in fails(*command, "--strict")
