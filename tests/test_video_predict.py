"""Videos through the command line: identities in every file, the same after an interruption, one line on a bad file."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_tools

from cups import Tracker, track
from cups.cli import main
from cups.core.files import read_image, write_json, write_png
from cups.core.images import to_array
from cups.core.records import VOID, PanopticLabel
from cups.datasets.video_files import VideoFile
from cups.labels.coco import coco_categories
from cups.model.files import load, numbered_split, save_network
from cups.model.network import panoptic_cascade
from cups.model.tracker import TrackerSettings
from cups.run.video import write_mots
from cups.street.scenes import street_clip

HEIGHT, WIDTH = 64, 128


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a network that has learnt nothing, `frames/` and the same as `drive.avi`."""
    folder = tmp_path_factory.mktemp("video")
    torch.manual_seed(0)
    save_network(folder / "model.safetensors", panoptic_cascade(2, 3, preset="small"), numbered_split(2, 3))
    writer = cv2.VideoWriter(str(folder / "drive.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for number, scene in enumerate(street_clip(1, 4, HEIGHT, WIDTH)):
        image = to_array(scene.sample.left_0)
        write_png(folder / "frames" / f"{number}.png", image)
        writer.write(image[..., ::-1])
    writer.release()
    return folder


def arguments(made: Path, video: Path, out: Path, *more) -> list[str]:
    options = ["--network", made, "--out", out, "--device", "cpu", "--min-confidence", 0.3, *more]
    return [str(each) for each in ("predict", video, *options)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mp4")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_video_file_gets_identities_in_all_formats(made, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(made, made / "drive.avi", out)) == 0
    written = json.loads(Path(json.loads(capsys.readouterr().out)["written"]).read_text())
    assert [image["frame_index"] for image in written["images"]] == [0, 1, 2, 3]
    assert (len(VideoFile(out / "overlay.mp4")), VideoFile(out / "overlay.mp4").width) == (4, WIDTH)
    tracks = {each["id"]: each["category_id"] for each in written["tracks"]}
    assert tracks and all(a["category_id"] == tracks[a["track_id"]] for a in written["annotations"])
    lines = [line.split(" ") for line in (out / "mots.txt").read_text().splitlines()]
    assert len(lines) == len(written["annotations"])
    panoptic = json.loads((out / "panoptic.json").read_text())["annotations"]
    for frame, number, _, height, width, counts in lines:
        segments = panoptic[int(frame)]["segments_info"]
        (segment,) = (s for s in segments if s.get("track_id") == int(number))
        ids = read_image(out / "panoptic" / f"{int(frame):06d}.png").astype(int) @ [1, 256, 65536]
        mask = mask_tools.decode({"size": [int(height), int(width)], "counts": counts.encode()})
        assert np.array_equal(mask > 0, ids == segment["id"]) and mask.sum() == segment["area"]


def test_classes_that_share_a_name_keep_their_number_in_mots(made, tmp_path):
    segments = [
        {"track_id": k, "category_id": k + 1, "segmentation": {"size": [2, 2], "counts": "04"}} for k in (1, 2, 3, 4)
    ]
    write_json(tmp_path / "annotations" / "0.json", {"segments_info": segments})
    split, names = numbered_split(1, 4), {0: "road", 1: "car", 2: "car", 3: "person", 4: "bus"}
    path = write_mots(tmp_path, ["0"], coco_categories(split, names))
    assert [line.split(" ")[2] for line in path.read_text().splitlines()] == ["1", "1", "2", "104"]


def test_an_interrupted_run_goes_on_with_the_same_result(made, tmp_path, monkeypatch):
    import cups.run.video as video

    assert main(arguments(made, made / "frames", tmp_path / "whole", "--video")) == 0
    usual, calls = video.write_json, []

    def stops(path, value):
        calls.append(path)
        if len([path for path in calls if path.parent.name == "annotations"]) == 3:
            raise KeyboardInterrupt
        return usual(path, value)

    monkeypatch.setattr(video, "write_json", stops)
    assert main(arguments(made, made / "frames", tmp_path / "parts", "--video")) == 130
    assert not (tmp_path / "parts" / "tracks.json").exists()
    monkeypatch.undo()
    assert main(arguments(made, made / "frames", tmp_path / "parts", "--video")) == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_bad_file_is_said_in_one_line(made, tmp_path, capsys):
    def fails(*more) -> str:
        capsys.readouterr()
        assert main(arguments(made, *more)) == 2
        line = capsys.readouterr().err
        assert line.startswith("cups: error: ") and line.count("\n") == 1
        return line

    cut = tmp_path / "cut.avi"
    cut.write_bytes((made / "drive.avi").read_bytes()[:200])
    assert "cut.avi: not readable as a video" in fails(cut, tmp_path / "o")
    assert "x.mp4: no such file" in fails(tmp_path / "x.mp4", tmp_path / "o")
    capsys.readouterr()
    two = arguments(made, made / "drive.avi", tmp_path / "o")
    assert main([*two[:2], *two[1:]]) == 2 and "one video at a time" in capsys.readouterr().err
    frames = shutil.copytree(made / "frames", tmp_path / "frames")
    write_png(frames / "2.png", np.zeros((2 * HEIGHT, WIDTH, 3), np.uint8))
    assert "frame 2: an image of another size follows" in fails(frames, tmp_path / "sizes", "--video")
    assert "video_sha256" in fails(made / "frames", tmp_path / "sizes", "--video")
    assert main(arguments(made, made / "frames", tmp_path / "sizes", "--video", "--again")) == 0


def test_the_python_interface_gives_what_the_command_gives(made):
    network = load(made / "model.safetensors", min_confidence=0.3)
    images = [scene.sample.left_0 for scene in street_clip(1, 3, HEIGHT, WIDTH)]
    first, second = (list(track(network, images)) for _ in range(2))
    assert len(first) == 3 and any((label.instance > 0).any() for label in first)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.instance, other.instance) and torch.equal(one.semantic, other.semantic)


def square(left: int, score: float) -> tuple[torch.Tensor, PanopticLabel]:
    instance = torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    instance[20:44, left : left + 24] = 1
    image = torch.where(instance > 0, 200, 60).byte().expand(3, -1, -1).contiguous()
    segments = [{"class_id": 3, "instance": 1, "score": score}]
    return image, PanopticLabel(torch.where(instance > 0, 3, VOID), instance, {"segments": segments})


def test_an_object_between_the_pixels_that_are_looked_at_has_no_track():
    instance = torch.zeros(4 * HEIGHT, 4 * WIDTH + 1280, dtype=torch.long)
    instance[101, 101], instance[150:200, 300:360] = 1, 2  # every third pixel is looked at, from 1 on
    segments = [{"class_id": 3, "instance": number, "score": 0.9} for number in (1, 2)]
    label = PanopticLabel(torch.where(instance > 0, 3, VOID), instance, {"segments": segments})
    tracker, image = Tracker(), torch.zeros(3, *instance.shape, dtype=torch.uint8)
    assert [tracker.update(image, label) for _ in range(3)] == [{2: 1}] * 3


def test_an_unsure_detection_continues_a_track_and_starts_none():
    tracker = Tracker()
    assert tracker.update(*square(10, 0.3)) == {}
    assert tracker.update(*square(12, 0.9)) == {1: 1}
    assert tracker.update(*square(14, 0.3)) == {1: 1}
    assert tracker.update(*square(16, 0.1)) == {}


def test_a_track_ends_after_the_images_it_may_be_lost_for():
    for gone, expected in ((2, {1: 1}), (3, {1: 2})):
        tracker = Tracker(TrackerSettings(lost_frames=2))
        image, label = square(40, 0.9)
        tracker.update(image, label)
        nothing = label.replace(instance=torch.zeros_like(label.instance), diagnostics={"segments": []})
        for _ in range(gone):
            assert tracker.update(image, nothing) == {}
        assert tracker.update(image, label) == expected


def test_a_folder_given_by_a_dot_is_called_by_its_name(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made / "frames")
    assert main(arguments(made, Path("."), tmp_path / "out", "--video")) == 0
    written = json.loads((tmp_path / "out" / "tracks.json").read_text())
    assert written["videos"] == [{"id": 1, "name": "frames"}]


@pytest.mark.parametrize("more", [(), ("--video",)])
def test_a_folder_that_may_not_be_read_is_named(made, tmp_path, monkeypatch, capsys, more):
    def refuse(folder: Path):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(arguments(made, made / "frames", tmp_path / "out", *more)) == 2
    assert f"{made / 'frames'}: cannot be read (Permission denied)" in capsys.readouterr().err
