"""The command line: what it writes, and that bad input ends in one line that names the file and the fault."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cups import __version__
from cups.cli import main, parser
from cups.core.errors import InputError
from cups.core.files import read_image, write_png
from cups.core.records import PanopticLabel
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import PseudoLabelStore
from cups.model.files import numbered_split, save_network
from cups.model.network import panoptic_cascade
from cups.stages.labels.pseudo_classes import PseudoClasses
from cups.stages.pipeline import PseudoLabelSettings
from cups.workbench import opening

SIZE = ("--height", "96", "--width", "192")
SETTINGS = "num_classes: 8\n"


def cups(*arguments):
    """Run the installed command in a process of its own."""
    command = Path(sys.executable).with_name("cups")
    return subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_threads_wait_passively_unless_the_environment_says_otherwise(own):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "true"} | ({"OMP_WAIT_POLICY": own} if own else {})
    command = [sys.executable, "-c", "import cups, torch"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr
    if "OMP_WAIT_POLICY" not in shown:
        pytest.skip("PyTorch does not use GNU's OpenMP here")
    assert f"OMP_WAIT_POLICY = '{own or 'PASSIVE'}'" in shown


@pytest.fixture
def fails(capsys):
    """Return a function that runs a command and checks that it ends with code 2 and one line naming `words`."""

    def run(*arguments, words):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:  # argparse
            code = end.code
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.count("\n") == 1 and err.endswith("\n"), err
        assert "Traceback" not in err
        for word in words:
            assert str(word) in err
        return err

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three small scenes, their pseudo-labels and settings, made by the commands."""
    root = tmp_path_factory.mktemp("made")
    (root / "settings.yaml").write_text(SETTINGS)
    assert main(["scenes", "--out", f"{root}/scenes", "--count", "3", "--seed", "1", *SIZE, "--workers", "1"]) == 0
    assert main(label_arguments(root / "scenes", root / "labels", root)) == 0
    return root


@pytest.fixture
def copy(made, tmp_path):
    """Return a copy of `made` that a test may break."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def label_arguments(scenes, out, root):
    settings = ["--settings", str(root / "settings.yaml")]
    return ["pseudo-labels", "--root", str(scenes), "--out", str(out), *settings, "--workers", "1"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_version_is_said():
    done = cups("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cups {__version__}\n", "")


def test_scenes_are_a_stereo_folder_with_truth(made):
    folder = StereoFolder(made / "scenes")
    assert len(folder) == 3 and folder[0].size == (96, 192)
    assert all(sample.truth is not None for sample in folder)


@pytest.mark.parametrize("dataset", ["stereo_folder", "stereo_video", "kitti_raw", "cityscapes_sequences"])
def test_a_file_in_place_of_a_folder_is_called_one(tmp_path, fails, dataset):
    (file := tmp_path / "drive.mp4").write_bytes(b"video")
    command = ("pseudo-labels", "--dataset", dataset, "--root", file, "--out", tmp_path / "out")
    fails(*command, words=[f"{file}: a file, not a folder"])
    fails("evaluate", "--labels", tmp_path, "--truth", file, words=["drive.mp4: a file, not a folder"])


def test_scenes_are_not_rendered_into_a_recording(made, tmp_path, fails):
    root = tmp_path / "recording"
    for side in ("left", "right"):
        shutil.copytree(made / "scenes" / side, root / side)
    (root / "calibration.json").write_text("{}")
    before = contents(root)
    fault = f"{root}: holds images or labels of something else"
    fails("scenes", "--out", root, "--count", 1, *SIZE, words=[fault, "--out"])
    assert contents(root) == before
    # a rendering that was interrupted is completed
    again = shutil.copytree(made / "scenes", tmp_path / "again")
    whole = contents(again)
    for path in (*again.glob("*/000001_*"), again / "calibration.json"):
        path.unlink()
    assert main(["scenes", "--out", str(again), "--count", "3", "--seed", "1", *SIZE, "--workers", "1"]) == 0
    assert contents(again) == whole


def test_labels_are_stored_with_split_and_settings(made):
    store = PseudoLabelStore(made / "labels")
    assert store.names == StereoFolder(made / "scenes").names
    assert store.settings["num_classes"] == 8
    classes = PseudoClasses.load(made / "labels" / "classes.safetensors")
    assert 8 < store.num_classes == 8 + classes.objects.num_classes <= 8 + PseudoLabelSettings().num_object_classes
    assert sorted(store.split.things + store.split.stuff) == list(range(store.num_classes))
    assert store.read(store.names[0]).diagnostics


def test_evaluation_prints_the_scores(made, capsys):
    assert main(["evaluate", "--json", "--labels", f"{made}/labels", "--truth", f"{made}/scenes"]) == 0
    scores = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    keys = {"pq", "sq", "rq", "pq_per_class", "pq_things", "pq_stuff", "miou", "accuracy", "assignments"}
    assert keys <= scores.keys()
    assert 0 <= scores["pq"] <= 1 and len(scores["pq_per_class"]) == 19
    assert len(scores["assignments"]) == PseudoLabelStore(made / "labels").num_classes


def test_help_explains_units_and_defaults(capsys):
    for command in ("scenes", "pseudo-labels", "evaluate"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert "usage: cups" in out
        assert command != "scenes" or ("pixels" in out and "default: 192" in out)


def commands_in(top):
    """Yield the parsers of all commands and of their actions."""
    for action in top._actions:
        for command in (action.choices or {}).values() if isinstance(action, argparse._SubParsersAction) else ():
            yield command
            yield from commands_in(command)


def test_help_marks_what_is_required():
    marked = 0
    for command in commands_in(parser()):
        lines = re.split(r"\n(?=  \S)", command.format_help())  # the help of an option may take several
        for option in (a for a in command._actions if a.option_strings):
            name = re.compile(rf"  .*{option.option_strings[-1]}\b")
            said = next(" ".join(line.split()) for line in lines if name.match(line))
            assert ("(required)" in said) == option.required, (command.prog, said)
            assert "None" not in said and "False" not in said and "[]" not in said
            marked += option.required
    assert marked > 5


SLOW = """
import sys, time
from cups.core import parallel
parallel.LOG_SECONDS = float(sys.argv[1])
start = time.monotonic()
for _ in parallel.progress(range(20), 20, "labelling"):
    time.sleep(0.02)
print(time.monotonic() - start)
"""


def test_a_log_file_gets_a_line_of_progress_now_and_then():
    command = [sys.executable, "-c", SLOW]
    run = subprocess.run([*command, "0.1"], capture_output=True, text=True, check=True)
    often = run.stderr.splitlines()
    assert 2 <= len(often) <= 2 + float(run.stdout) / 0.1
    assert all(re.fullmatch(r"labelling: \d+ of 20 \(\d+ %\), \d\d:\d\d gone, \S+ to go", line) for line in often)
    assert subprocess.run([*command, "30"], capture_output=True, text=True, check=True).stderr == ""


def test_what_cannot_be_explored_fails_in_one_line(fails, made, tmp_path, monkeypatch):
    monkeypatch.setenv("CUPS_HOME", str(tmp_path / "cache"))
    fails("explore", tmp_path / "nowhere", words=[tmp_path / "nowhere", "no such folder"])
    fails("explore", made / "labels", words=[made / "labels", "calibration"])
    fails("explore", made / "scenes", "--labels", made / "scenes", words=["manifest.json", "no such file"])
    fails("explore", made / "scenes", "--dataset", "cityscapes", words=["cityscapes", "not stereo video"])
    fails("explore", made / "scenes", "--fps", "0", words=["fps"])
    fails("explore", "--labels", made / "labels", words=["--labels", "FOLDER"])
    fails("explore", made / "scenes", "--traffic", "oncoming", words=["--traffic", "FOLDER"])
    fails("explore", "--traffic", "jam", words=["jam", "stop_and_go"])
    assert not (tmp_path / "cache").exists()


def test_explore_opens_a_copy_that_knows_video_and_labels(made, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setenv("CUPS_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("cups.workbench.opening.run_lab", lambda *given: asked.append(given))
    monkeypatch.chdir(made)
    before = contents(made)
    command = ["explore", "scenes", "--labels", "labels", "--fps", "10", "--port", "8123", "--no-browser"]
    assert main(command) == main(command) == 0
    assert contents(made) == before
    (copy, options), again = asked
    assert (copy, options) == again and options == ["--port=8123", "--no-browser"]
    assert copy.parent == tmp_path / "cache" / "explore" and str(copy) in capsys.readouterr().err
    cells = json.loads(copy.read_text())["cells"]
    values = {}
    exec(next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])), values)
    assert values["data_root"] == str(made / "scenes") and values["store"] == str(made / "labels")
    assert (values["dataset"], values["fps"], values["runs"]) == ("stereo_folder", 10.0, str(made / "out"))
    assert not any(cell.get("outputs") for cell in cells)
    assert main(["explore"]) == main(["explore", "--traffic", "stop_and_go"]) == 0
    assert len({copy, *(path for path, _ in asked[-2:])}) == 3 and asked[-1][1] == []
    assert '"stop_and_go"  # of street scenes' in asked[-1][0].read_text().replace("\\", "").replace("'", '"')


def test_an_installed_package_brings_the_explorer(tmp_path, monkeypatch):
    """Without a checkout beside it, the notebook is found among the files that pip installed."""
    away = tmp_path / "site" / "cups"
    away.mkdir(parents=True)
    (tmp_path / "share" / "cups").mkdir(parents=True)
    (tmp_path / "share" / "cups" / "explore.ipynb").write_text("{}")
    record = tmp_path / "site" / "cups-0.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: cups\nVersion: 0.1\n")
    (record / "RECORD").write_text("cups/__init__.py,,\n../share/cups/explore.ipynb,,\n")
    monkeypatch.setattr(opening, "files", lambda package: away)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert opening.explorer_file() == (tmp_path / "share" / "cups" / "explore.ipynb").resolve()
    (record / "RECORD").write_text("cups/__init__.py,,\n")
    with pytest.raises(InputError, match="install it again"):
        opening.explorer_file()


def test_the_installed_command_fails_in_one_line(made, tmp_path):
    shutil.copytree(made / "scenes", tmp_path / "scenes")
    broken = tmp_path / "scenes" / "right" / "000001_0.png"
    truncate(broken)
    done = cups(*label_arguments(tmp_path / "scenes", tmp_path / "out", made), "--workers", 2, "--strict")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and str(broken) in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND"]),
        (["paint"], ["paint"]),
        (["scenes"], ["--out"]),
        (["scenes", "--out", "x", "--count", "few"], ["--count", "few"]),
        (["evaluate", "--labels", "x"], ["--truth"]),
        (["pseudo-labels", "--root", "x", "--out"], ["--out"]),
    ],
)
def test_wrong_arguments(fails, arguments, words):
    fails(*arguments, words=words)


@pytest.mark.parametrize(("name", "value"), [("count", "0"), ("height", "-96"), ("width", "0")])
def test_sizes_that_are_not_positive(fails, tmp_path, name, value):
    fails("scenes", "--out", tmp_path / "scenes", f"--{name}={value}", words=[name, value])
    assert not list(tmp_path.iterdir())


def test_missing_folder(fails, tmp_path):
    nowhere = tmp_path / "nowhere"
    fails("pseudo-labels", "--root", nowhere, "--out", tmp_path / "out", words=[nowhere])
    fails("evaluate", "--labels", nowhere, "--truth", tmp_path, words=[nowhere])
    fails("evaluate", "--labels", tmp_path, "--truth", nowhere, words=[nowhere])
    assert not list(tmp_path.iterdir())


def test_unknown_data_set(fails, copy):
    arguments = label_arguments(copy / "scenes", copy / "out", copy)
    fails(*arguments, "--dataset", "dashcams", words=["dashcams", "stereo_folder"])
    assert not (copy / "out").exists()


@pytest.mark.parametrize("side", ["left", "right"])
def test_missing_image(fails, copy, side):
    gone = copy / "scenes" / side / "000001_1.png"
    gone.unlink()
    fails(*label_arguments(copy / "scenes", copy / "out", copy), "--strict", words=[gone, "no such file"])
    shutil.rmtree(gone.parent)
    fails(*label_arguments(copy / "scenes", copy / "nothing", copy), words=[gone.parent, "no such folder"])
    assert not (copy / "nothing").exists()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_unreadable_image(fails, copy, side, content):
    path = copy / "scenes" / side / "000001_0.png"
    path.write_bytes(content)
    fails(*label_arguments(copy / "scenes", copy / "out", copy), "--strict", words=[path])


@pytest.mark.parametrize("side", ["left", "right"])
def test_sizes_that_differ(fails, copy, side):
    path = copy / "scenes" / side / "000002_0.png"
    write_png(path, read_image(path)[:-1])
    fails(*label_arguments(copy / "scenes", copy / "out", copy), "--strict", words=[path, "192 x 95"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"baseline_m": None}, ["baseline_m", "missing"]),
        ({"fx": None}, ["fx", "missing"]),
        ({"baseline_m": 0}, ["baseline_m", "positive"]),
        ({"fy": -700.0}, ["fy", "positive"]),
        ({"fx": "wide"}, ["fx", "wide"]),
        ({"cx": float("nan")}, ["cx", "finite"]),
    ],
)
def test_calibration(fails, copy, change, words):
    path = copy / "scenes" / "calibration.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    fails(*label_arguments(copy / "scenes", copy / "out", copy), words=[path, *words])
    assert not (copy / "out").exists()


def test_missing_or_broken_calibration(fails, copy):
    path = copy / "scenes" / "calibration.json"
    for text in ("{", "[1, 2]"):
        path.write_text(text)
        fails(*label_arguments(copy / "scenes", copy / "out", copy), words=[path])
    path.unlink()
    fails(*label_arguments(copy / "scenes", copy / "out", copy), words=[path, "no such file"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_classes: many", ["num_classes", "many"]),
        ("num_classes: -1", ["num_classes", "-1"]),
        ("min_classes: 90", ["min_classes", "90"]),
        ("colour: red", ["colour", "unknown"]),
        ("crf: {steps", ["YAML"]),
    ],
)
def test_settings(fails, copy, text, words):
    (copy / "settings.yaml").write_text(text)
    fails(*label_arguments(copy / "scenes", copy / "out", copy), words=["settings.yaml", *words])
    (copy / "settings.yaml").unlink()
    fails(*label_arguments(copy / "scenes", copy / "out", copy), words=["settings.yaml", "no such file"])


@pytest.mark.parametrize("place", ["taken", "taken/out", "/sys/kernel", "/sys/kernel/out"])
def test_output_that_cannot_be_written(fails, copy, place):
    """A file, a folder below a file, and folders that not even root may write or make."""
    (copy / "taken").write_text("mine")
    out = copy / place
    fails(*label_arguments(copy / "scenes", out, copy), words=[out])
    fails("scenes", "--out", out, "--count", "1", *SIZE, words=[out])
    assert (copy / "taken").read_text() == "mine"


@pytest.mark.parametrize("kind", ["semantic", "instance"])
@pytest.mark.parametrize("where", ["labels", "scenes/truth"])
def test_truncated_label(fails, copy, where, kind):
    path = copy / where / f"000001_0_{kind}.png"
    if where == "labels":
        path = PseudoLabelStore(copy / "labels").paths("000001_0")[kind]
    truncate(path)
    before = contents(copy / "labels")
    fails("evaluate", "--labels", copy / "labels", "--truth", copy / "scenes", words=[path])
    assert contents(copy / "labels") == before


def test_truth_of_another_size_or_with_unknown_classes(fails, copy):
    path = copy / "scenes" / "truth" / "000001_0_semantic.png"
    semantic = read_image(path)
    write_png(path, np.where(semantic == 0, 77, semantic).astype(np.uint8))
    fails("evaluate", "--labels", copy / "labels", "--truth", copy / "scenes", words=["000001_0", "77"])
    write_png(path, semantic[:90])
    write_png(path.with_name("000001_0_instance.png"), semantic[:90] * 0)
    fails("evaluate", "--labels", copy / "labels", "--truth", copy / "scenes", words=["000001_0"])


def test_stores_that_cannot_be_evaluated(fails, copy):
    evaluate = ("evaluate", "--truth", copy / "scenes", "--labels")
    fails(*evaluate, copy / "scenes", words=["manifest.json", "no such file"])
    started = PseudoLabelStore.create(copy / "started", {}, 12)
    started.write("000000_0", PseudoLabelStore(copy / "labels").read("000000_0"))
    fails(*evaluate, copy / "started", words=["started", "not finished"])
    elsewhere = PseudoLabelStore.create(copy / "elsewhere", {}, 12)
    elsewhere.write("other_0", PanopticLabel(*torch.zeros(2, 96, 192, dtype=torch.long)))
    elsewhere.finish()
    fails(*evaluate, copy / "elsewhere", words=["elsewhere", "no ground truth"])
    truncate(copy / "labels" / "manifest.json")
    fails(*evaluate, copy / "labels", words=[copy / "labels" / "manifest.json"])


def test_a_folder_made_with_other_settings_is_left_alone(fails, copy):
    before = contents(copy / "labels"), contents(copy / "scenes")
    (copy / "settings.yaml").write_text(SETTINGS + "seed: 5\n")
    fails(*label_arguments(copy / "scenes", copy / "labels", copy), words=[copy / "labels", "seed"])
    fails("scenes", "--out", copy / "scenes", "--count", "3", "--seed", "2", *SIZE, words=[copy / "scenes", "seed"])
    assert (contents(copy / "labels"), contents(copy / "scenes")) == before


def test_a_run_that_failed_loses_nothing_and_goes_on(fails, made, copy):
    broken = copy / "scenes" / "right" / "000002_0.png"
    whole = broken.read_bytes()
    shutil.rmtree(copy / "labels")
    store = shutil.copytree(made / "labels", copy / "labels")
    for path in [p for name in ("000001_0", "000002_0") for p in PseudoLabelStore(store).paths(name).values()]:
        path.unlink()
    truncate(broken)
    fails(*label_arguments(copy / "scenes", store, copy), "--strict", words=[broken])
    assert PseudoLabelStore(store).names == ["000000_0", "000001_0"]
    assert not list(store.rglob(".writing-*")) and not list((store / "frames").rglob("000002_0*"))

    broken.write_bytes(whole)
    assert main(label_arguments(copy / "scenes", store, copy)) == 0
    assert contents(store) == contents(made / "labels")


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    """A small network that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "model.safetensors"
    return save_network(path, panoptic_cascade(2, 3, preset="small"), numbered_split(2, 3))


def test_predict_writes_coco_panoptic(made, network_file, tmp_path, capsys):
    images = sorted((made / "scenes").rglob("*left*/*.png"))[:2]
    names = tmp_path / "names.json"
    names.write_text('["road", "building", "sky", "car", "person"]')
    command = ["predict", *images, "--weights", network_file, "--out", tmp_path / "out", "--classes", names]
    options = ["--min-confidence", "0.2", "--scales", "0.5", "1", "--mirror", "--device", "cpu"]
    assert main([str(a) for a in command + options]) == 0
    written = json.loads(Path(json.loads(capsys.readouterr().out)["written"]).read_text())
    assert [c["name"] for c in written["categories"]] == ["road", "building", "sky", "car", "person"]
    assert [c["isthing"] for c in written["categories"]] == [0, 0, 0, 1, 1]
    for image, annotation in zip(written["images"], written["annotations"], strict=True):
        numbers = read_image(tmp_path / "out" / "panoptic" / annotation["file_name"]).astype(int) @ [1, 256, 65536]
        assert numbers.shape == (image["height"], image["width"]) == (96, 192)
        areas = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert areas == {n: int((numbers == n).sum()) for n in np.unique(numbers) if n > 0}
        assert (tmp_path / "out" / "overlay" / f"{Path(annotation['file_name']).stem}.jpg").is_file()


def test_predict_fails_in_one_line(made, network_file, tmp_path, fails):
    image = next((made / "scenes").rglob("*left*/*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:100])
    names = tmp_path / "names.json"
    names.write_text('{"9": "car"}')
    to = ("--out", tmp_path / "out")
    fails("predict", image, "--weights", tmp_path / "x.ckpt", *to, words=["x.ckpt", "no such file"])
    fails("predict", tmp_path / "x.png", "--weights", network_file, *to, words=["x.png", "no such file"])
    fails("predict", broken, "--weights", network_file, *to, words=[broken, "not readable as an image"])
    fails("predict", image, "--weights", broken, *to, words=[broken, "not readable as weights"])
    fails("predict", image, "--weights", network_file, *to, "--classes", names, words=[names, "names class 9"])
    fails("predict", image, "--weights", network_file, *to, "--device", "abacus", words=["abacus", "cannot be used"])
    fails("predict", image, "--weights", network_file, *to, "--scales", "0", words=["scales", "positive"])
    fails("predict", image, "--weights", network_file, *to, "--scales", "nan", words=["scales", "positive"])
    for option in ("--min-confidence", "--min-stuff-probability"):
        fails("predict", image, "--weights", network_file, *to, option, "50", words=["must be in [0, 1]"])


def test_a_refused_call_leaves_the_folder_for_the_right_one(tmp_path, fails, made):
    root = tmp_path / "scenes"
    fails("scenes", "--out", root, "--height", 10, "--width", 10, words=["at least 16 pixels"])
    fails("scenes", "--out", root, "--seed", -1, *SIZE, words=["seed must not be negative"])
    fails("scenes", "--out", made / "labels", *SIZE, words=["holds images or labels of something else"])
    assert main(["scenes", "--out", str(root), "--count", "1", *SIZE, "--workers", "1"]) == 0
    (tmp_path / "bad.png").write_bytes(b"")
    call = "predict", tmp_path / "bad.png", "--network", "street_scenes", "--out", tmp_path / "predicted"
    fails(*call, words=["bad.png"])
    fails(*call, "--mirror", words=["bad.png"])


def test_another_number_of_classes_uses_the_descriptions_again(made, tmp_path, fails):
    settings, out = tmp_path / "s.yaml", tmp_path / "labels"
    settings.write_text("num_classes: 250\n")
    call = "pseudo-labels", "--root", made / "scenes", "--out", out, "--settings", settings, "--workers", 1
    fails(*call, words=["num_classes must be", "got 250"])
    described = {path: path.stat().st_mtime_ns for path in (out / "descriptions").iterdir()}
    assert len(described) == 3
    settings.write_text("num_classes: 8\nmotion: {min_confidence: 0.5}\n")
    fails(*call, words=["motion.min_confidence is 0.9 there, 0.5 here"])
    settings.write_text("num_classes: 249\n")
    fails(*call, words=["num_classes must be", "got 249"])
    assert {path: path.stat().st_mtime_ns for path in described} == described


def test_values_out_of_range_are_refused_before_any_work(made, tmp_path, fails):
    settings = tmp_path / "s.yaml"
    labels = "pseudo-labels", "--root", made / "scenes", "--out", tmp_path / "out"
    for text, word in (("motion: {min_confidence: 90}", "min_confidence"), ("thing_threshold: -3", "thing_threshold")):
        settings.write_text(text)
        fails(*labels, "--settings", settings, words=[f"{word} must lie in [0, 1"])
    fails(*labels, "--overlays", -1, words=["--overlays must not be negative, got -1"])
    fails("pseudo-labels", "--root", made / "scenes", "--out", "", words=["--out is empty"])
    fails("import", tmp_path, "--out", tmp_path / "out", "--root", "nowhere", words=["--root are for --labels"])
    calibration = made / "scenes" / "calibration.json"
    fails("calibration", calibration, "--baseline", -1, words=["the baseline must be positive, got -1 m"])
    assert not (tmp_path / "out").exists()


def test_a_reader_that_has_enough_is_no_fault(tmp_path):
    command = f"{Path(sys.executable).with_name('cups')} data list | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "141" and not ended.stderr
