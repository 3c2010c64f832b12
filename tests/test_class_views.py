"""A class has one name and one colour in every view, wherever there is a ground truth to name it after."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from cups.core.class_colours import named_classes
from cups.core.files import write_json
from cups.core.records import VOID
from cups.labels.store import PseudoLabelStore
from cups.run.generate import generate
from cups.run.scenes import render_scenes
from cups.stages.pipeline import PseudoLabelSettings
from cups.workbench import run_frames, run_records, threshold_lab
from cups.workbench.explorer import FrameExplorer
from cups.workbench.label_fixer import LabelFixer, label_packet
from cups.workbench.layers import pack
from cups.workbench.seen_labels import SeenLabels
from cups.workbench.segment_filter import SegmentFilter
from cups.workbench.sources import StreetSource

SETTINGS = PseudoLabelSettings(num_classes=6, num_object_classes=2)
OUTLINE = (255, 255, 255)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A street scene with ground truth, its store, and its frame in the explorer."""
    folder = tmp_path_factory.mktemp("views")
    video = render_scenes(folder / "scenes", 1, 1, 96, 192, workers=1)
    store = generate(video, folder / "train" / "test_labels", SETTINGS, workers=1)
    explorer = FrameExplorer.open("stereo_folder", folder / "scenes", store.root)
    *_, frame = explorer.source.load(0)
    return folder, video, store, explorer, frame


def entries(packet, layer="panoptic"):
    """Return the colours of a layer's legend by the names of the classes, as `(r, g, b)`."""
    shown = {name: colour for name, colour in packet.content["legends"][layer]["entries"] if name != "void"}
    return {name: tuple(bytes.fromhex(colour[1:])) for name, colour in shown.items()}


def in_picture(rgb, label, classes):
    """Return the colours of a picture (H, W, 3) inside of the classes of a label, by their names."""
    return {
        name: {tuple(map(int, colour)) for colour in rgb[label.semantic.numpy() == k]} - {OUTLINE}
        for k, name in enumerate(classes.names)
        if (label.semantic == k).any()
    }


def test_all_views_of_a_store_give_a_class_the_explorers_name_and_colour(labelled):
    folder, video, store, explorer, frame = labelled
    classes, label = explorer.classes, store.read(store.names[0])
    seen = entries(pack(frame, classes, explorer.taxonomy, 1024, {}))
    assert sum(", mostly " in name for name in seen) >= 3
    fixer = LabelFixer(store, video)
    assert entries(label_packet("frame", label, None, fixer.classes)) == seen
    assert {name for name, _ in fixer.to_class.options} == set(classes.names)
    assert fixer.swatch.value.count(f"rgb{tuple(classes.colours[0].tolist())}") == 1
    assert SegmentFilter(store, video).class_names == list(classes.names)
    scores = {"pq": 0.2, "assignments": [VOID] * store.num_classes}
    write_json(folder / "train" / "metrics.json", {"pseudo_labels": scores})
    run = run_records.find_runs(folder / "train")[0]
    found = run_frames.run_label(run, store.names[0], video.left(0))
    picture = run_frames.label_picture(*found, video.left(0), classes=run_frames.run_classes(run, video))
    assert in_picture(picture, label, classes) == {name: {colour} for name, colour in seen.items()}


def test_the_threshold_lab_shows_the_explorers_names_and_colours(labelled):
    *_, explorer, _ = labelled
    kept, classes = explorer.source.classes, explorer.classes
    lab = threshold_lab.ThresholdLab(explorer.sample, kept, SETTINGS, known=explorer.kept(), named=classes)
    assert lab.wait(60)
    label = lab.after[1].label
    seen = re.findall(r"background:rgb\((\d+), (\d+), (\d+)\).*?</span>(.*?) [\d.]+ %", lab.after_legend.value)
    colours = {name: tuple(map(int, colour)) for *colour, name in seen}
    known = dict(zip(classes.names, map(tuple, classes.colours.tolist()), strict=True))
    assert colours == {name: known[name] for name in colours}
    assert len(colours) == len(label.semantic[label.semantic != VOID].unique())
    picture = np.asarray(Image.open(BytesIO(lab.after_picture.value)).convert("RGB"))
    assert in_picture(picture, label, classes) == {name: {colour} for name, colour in colours.items()}
    lab.sliders["num_classes"].value = 5
    assert lab.wait(60) and re.search(r"\d, was \d, mostly road", lab.after_legend.value)


def test_the_threshold_lab_alone_names_classes_by_the_truth_of_its_frame(labelled):
    *_, explorer, _ = labelled
    kept = explorer.source.classes
    lab = threshold_lab.ThresholdLab(explorer.sample, kept, SETTINGS, known=explorer.kept())
    assert lab.wait(60) and lab.truth is not None
    assert re.search(r"\d, (mostly|partly) road", lab.after_legend.value)
    blind = threshold_lab.ThresholdLab(explorer.sample.replace(truth=None), kept, SETTINGS)
    assert blind.wait(60) and blind.truth is None and "mostly" not in blind.after_legend.value
    assert "class 0" in " ".join(blind.named.names)


def test_classes_of_a_store_that_does_not_fit_are_not_named_after_it(labelled):
    kept = labelled[3].source.classes
    lab = threshold_lab.ThresholdLab(labelled[3].sample, kept, SETTINGS, named=named_classes(40))
    lab.recomputer.stop()
    assert lab.named.names == named_classes(kept.num_classes, range(6, kept.num_classes)).names


def test_parts_of_a_class_are_shades_of_its_colour(labelled):
    kept = labelled[3].source.classes
    named = named_classes(kept.num_classes, range(6, kept.num_classes))
    apart, joined = (kept.regrouped(number) for number in (len(kept.pixels.centres), 5))
    made = threshold_lab.regrouped_classes(named, kept, joined)
    assert {tuple(colour) for colour in made.colours} < {tuple(colour) for colour in named.colours}
    parts = threshold_lab.regrouped_classes(named, kept, apart)
    for k in range(kept.pixels.num_classes):
        own = [n for n, c in enumerate(parts.names) if c.endswith(f"was class {k}")]
        assert sorted(own) == sorted(apart.pixels.classes[kept.pixels.classes == k].tolist())
        assert sum((parts.colours[n] == named.colours[k]).all() for n in own) == 1
    assert (parts.colours[len(apart.pixels.centres) :] == named.colours[6:]).all()
    assert parts.things.sum() == len(named) - 6


def test_the_labels_of_frames_that_were_looked_at_are_named_as_in_the_explorer(tmp_path):
    source = StreetSource(1, 2, 3, 96, 192, settings=SETTINGS, class_frames=2)
    explorer = FrameExplorer(source)
    labels = SeenLabels(source, tmp_path / "seen").update(0)
    fixer = LabelFixer(labels, source)
    names = [[name.removesuffix(" (thing)") for name in view] for view in (fixer.class_names, explorer.classes.names)]
    assert names[0] == names[1] and any("mostly" in name for name in names[0])  # the store decides what is a thing
    assert (fixer.classes.colours == explorer.classes.colours).all()
    again = StreetSource(1, 2, 3, 96, 192, settings=SETTINGS)
    SeenLabels(again, tmp_path / "seen")
    fixer = LabelFixer(PseudoLabelStore(labels.root), again)
    assert (FrameExplorer(again).classes.colours == fixer.classes.colours).all() and again.met is not None
    assert torch.equal(again.classes.counts, source.classes.counts)
