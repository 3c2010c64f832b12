"""The pictures of labels: one a frame, in the colours of the legend, drawn again when they no longer fit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cups.cli import main
from cups.core.class_colours import class_colours
from cups.core.records import VOID, PanopticLabel
from cups.core.splits import SplitChoice
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import PseudoLabelStore
from cups.run.overlays import OVERLAYS, write_overlays
from cups.run.scenes import render_scenes

HEIGHT, WIDTH = 64, 128


@pytest.fixture
def labelled(tmp_path):
    """Return stereo video without truth and labels of three classes: left, right, and an object in the middle."""
    video = render_scenes(tmp_path / "video", 3, 1, HEIGHT, WIDTH, workers=1)
    for path in (tmp_path / "video" / "truth").iterdir():
        path.unlink()
    store = PseudoLabelStore.create(tmp_path / "labels", {}, 3)
    semantic = (torch.arange(WIDTH) >= WIDTH // 2).long().repeat(HEIGHT, 1)
    semantic[:8] = VOID
    semantic[20:40, 50:78] = 2
    for name in video.names:
        store.write(name, PanopticLabel(semantic, (semantic == 2).long()))
    store.finish()
    return StereoFolder(tmp_path / "video"), PseudoLabelStore(tmp_path / "labels")


def colour_in(picture: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return the mean colour of a part of a picture, less its grey: what an overlay adds to a grey image."""
    mean = picture[rows, columns].reshape(-1, 3).astype(float).mean(0)
    return mean - mean.mean()


def test_every_class_has_the_colour_of_the_legend(labelled):
    video, store = labelled
    folder = write_overlays(store, video)
    legend = dict(json.loads((folder / "classes.json").read_text()))
    assert list(legend) == ["class 2 (thing)", "class 0", "class 1", "void"]
    colours = [[int(legend[n][k : k + 2], 16) for k in (1, 3, 5)] for n in ("class 0", "class 1", "class 2 (thing)")]
    assert np.array_equal(colours, class_colours(3, [2]))
    picture = np.asarray(Image.open(folder / f"{store.names[0]}.jpg"))
    places = (slice(44, 60), slice(4, 44)), (slice(44, 60), slice(84, 124)), (slice(24, 36), slice(55, 72))
    for place, colour in zip(places, np.array(colours, float), strict=True):
        assert np.abs(colour_in(picture, *place) - 0.6 * (colour - colour.mean())).max() < 12
    assert np.abs(colour_in(picture, slice(0, 6), slice(0, 128))).max() < 6, "void is without colour"


def test_they_are_drawn_again_only_when_they_no_longer_fit(labelled):
    video, store = labelled
    folder = write_overlays(store, video)

    def content() -> dict[str, tuple[int, bytes]]:
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.jpg")}

    first = content()
    write_overlays(store, video)
    assert content() == first
    store.choose(SplitChoice(things=(1,)))
    write_overlays(store, video)
    changed = content()
    assert all(changed[name][1] != first[name][1] for name in first), "class 1 is a thing now, and strong"
    write_overlays(store, video, most=1)
    assert set(content()) == {f"{store.names[0]}.jpg"}
    assert write_overlays(store, video, most=0) is None


def test_pictures_that_another_process_writes_are_left_alone(labelled):
    video, store = labelled
    folder = write_overlays(store, video)
    names = (".writing-elsewhere-12-abcdefgh.jpg", "no_frame.jpg")
    for name in names:
        (folder / name).touch()
    write_overlays(store, video)
    assert [(folder / name).exists() for name in names] == [True, False]


def test_the_command_draws_as_many_as_are_asked_for(tmp_path):
    video, labels, few = (tmp_path / name for name in ("video", "labels", "few.yaml"))
    names = render_scenes(video, 2, 1, HEIGHT, WIDTH, workers=1).names
    few.write_text("num_classes: 4\nnum_object_classes: 0\n")
    options = "--root", str(video), "--out", str(labels), "--workers", "1", "--settings", str(few), "--overlays", "1"
    main(["pseudo-labels", *options])
    assert {path.name for path in (labels / OVERLAYS).iterdir()} == {f"{names[0]}.jpg", "classes.json", "legend.png"}
    assert "mostly road" in (labels / OVERLAYS / "classes.json").read_text()
