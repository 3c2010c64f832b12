"""The store of pseudo-labels under kills, on the published program's mistake, and with many objects."""

import signal
import subprocess
import sys
import time
from functools import reduce
from operator import add
from pathlib import Path

import pytest
import torch

from cups.core.errors import InputError, read_image
from cups.core.records import VOID, PanopticLabel
from cups.data.store import PseudoLabelStore
from cups.stages.things_stuff import class_statistics

SETTINGS = {"seed": 3, "matching": {"sizes": [640, 1280]}}
WRITER = """
import sys
from test_store import NAMES, SETTINGS, label
from cups.data.store import PseudoLabelStore
store = PseudoLabelStore.create(sys.argv[1], SETTINGS, 9)
for name in store.missing(NAMES):
    store.write(name, label(NAMES.index(name)))
    print(name, flush=True)
"""
NAMES = [f"clip_{n:04d}" for n in range(150)]
HERE = Path(__file__).parent


def label(seed, size=(64, 96)):
    """Return noise: every pixel of a class above 6 is its own object."""
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.randint(10, size, generator=generator)
    instance = torch.where(semantic > 6, torch.randint(1, 250, size, generator=generator), 0)
    instance[semantic == 9] = 0
    semantic[semantic == 9] = VOID
    return PanopticLabel(semantic, instance, {"points_trusted": seed})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    store = PseudoLabelStore(tmp_path / "killed")
    assert 5 <= len(store.names) < len(NAMES)
    for name in store.names:
        assert torch.equal(store.read(name).stacked(), label(NAMES.index(name)).stacked())
    subprocess.run(command, check=True, capture_output=True, cwd=HERE)

    whole = PseudoLabelStore.create(tmp_path / "whole", SETTINGS, 9)
    for name in NAMES:
        whole.write(name, label(NAMES.index(name)))
    whole.finish()
    PseudoLabelStore(tmp_path / "killed").finish()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_statistics_of_labels_read_again_are_those_on_the_fly(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    for name in NAMES[:4]:
        store.write(name, label(NAMES.index(name)))
    made = reduce(add, (class_statistics(label(n), 9) for n in range(4)))
    read = reduce(add, (class_statistics(store.read(name), 9) for name in NAMES[:4]))
    for key, value in vars(made).items():
        assert torch.equal(value, getattr(read, key))
        assert torch.equal(value, getattr(store.statistics(), key))
    assert set(store.finish().things) == {7, 8}


def test_many_objects_take_sixteen_bits(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    crowded = label(0).replace(instance=torch.arange(64 * 96).view(64, 96))
    store.write("crowd", crowded)
    store.write("pair", crowded.replace(instance=crowded.instance % 256))
    assert read_image(tmp_path / "crowd_instance.png").dtype == "uint16"
    assert read_image(tmp_path / "pair_instance.png").dtype == "uint8"
    assert torch.equal(store.read("crowd").stacked(), crowded.stacked())


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_truncated_files_are_named(tmp_path, kind):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    store.write("a", label(0))
    path = tmp_path / f"a_{kind}.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"a_{kind}\.png: not readable"):
        store.read("a")


def test_broken_json_is_named(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    store.write("a", label(0))
    for text in ("{", "[]", "{}"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=r"a\.json: "):
            store.finish()
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json: "):
            PseudoLabelStore.create(tmp_path, SETTINGS, 9)


def test_an_unfinished_or_empty_store_says_so(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    with pytest.raises(InputError, match="holds no complete pseudo-label"):
        store.finish()
    with pytest.raises(InputError, match="not finished"):
        _ = store.split


def test_a_thousand_frames_are_listed_at_once(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    names = [f"{n:05d}" for n in range(1000)]
    for name in names:
        for ending in (".json", "_semantic.png", "_instance.png"):
            (tmp_path / f"{name}{ending}").touch()
    start = time.perf_counter()
    assert store.missing([*names, "more"]) == ["more"]
    assert time.perf_counter() - start < 1
