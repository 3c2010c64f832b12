"""Labels for people to fix, for the tests of the workbench."""

from pathlib import Path

from cups.core.records import PanopticLabel
from cups.datasets.stereo_folder import StereoFolder, write_sample
from cups.labels.store import PseudoLabelStore
from cups.street.scenes import street_scene


def write_fixable(root: Path) -> tuple[PseudoLabelStore, StereoFolder]:
    """Return a store of three street scenes with their true labels, and their video, made in a folder."""
    store = PseudoLabelStore.create(root / "labels", {}, num_classes=20)
    for number in range(3):
        sample = street_scene(number, 64, 128).sample
        store.write(write_sample(root / "video", sample, number), sample.truth)
    store.finish()
    return PseudoLabelStore(store.root), StereoFolder(root / "video")


def in_object(label: PanopticLabel) -> tuple[int, int]:
    """Return a pixel (x, y) of the largest object."""
    y, x = (label.instance == label.instance[label.instance > 0].mode().values).nonzero()[0].tolist()
    return x, y
