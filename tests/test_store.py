"""The store of pseudo-labels under kills, with many writers, many frames and many objects."""

import json
import platform
import signal
import subprocess
import sys
from collections import Counter
from functools import reduce
from operator import add
from pathlib import Path
from zlib import crc32

import pytest
import torch

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, write_png
from cups.core.records import VOID, PanopticLabel
from cups.core.splits import class_statistics
from cups.labels.check import check_store, merge_store
from cups.labels.store import INDEX_FILE, PseudoLabelStore, shard_of

SETTINGS = {"seed": 3, "matching": {"sizes": [640, 1280]}}
WRITER = """
import sys
from test_store import NAMES, SETTINGS, label
from cups.labels.store import PseudoLabelStore
store = PseudoLabelStore.create(sys.argv[1], SETTINGS, 9)
names = store.missing(NAMES)
for name in names:
    print(name, flush=True)
    sys.stdin.readline()  # whoever started this sets the pace
    store.write(name, label(NAMES.index(name)))
store.finish()
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
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start_writer(folder):
    """Start a process that waits for a line before each frame, and none any more when the input is closed."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)


def kill_amid_frames(process):
    process.stdin.write("\n" * 20)
    process.stdin.flush()
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()


def filled(folder, names=NAMES[:4]):
    """Return a store that holds frames of noise."""
    store = PseudoLabelStore.create(folder, SETTINGS, 9)
    for name in names:
        store.write(name, label(NAMES.index(name)))
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of a finished store that nobody disturbed."""
    store = filled(tmp_path_factory.mktemp("whole"), NAMES)
    store.finish()
    return contents(store.root)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(whole, tmp_path):
    kill_amid_frames(start_writer(tmp_path))
    store = PseudoLabelStore(tmp_path)
    assert 4 <= len(store.names) <= 20  # a name is said before its frame is written
    for name in store.names:
        assert torch.equal(store.read(name).stacked(), label(NAMES.index(name)).stacked())
    start_writer(tmp_path).communicate()
    assert contents(tmp_path) == whole


def test_two_runs_on_one_folder_join_and_one_may_be_killed(whole, tmp_path):
    runs = [start_writer(tmp_path) for _ in range(3)]
    for run in runs:
        run.stdout.readline()  # now each has all frames before it
    for run in runs[1:]:
        run.stdin.close()
    kill_amid_frames(runs[0])
    assert [run.wait() for run in runs] == [-signal.SIGKILL, 0, 0]
    PseudoLabelStore(tmp_path).finish()
    assert contents(tmp_path) == whole


def test_a_joined_run_leaves_complete_frames_and_the_index_alone(tmp_path):
    store = filled(tmp_path)
    store.finish()
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    filled(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before
    (path := store.paths(NAMES[0])["semantic"]).write_bytes(b"")
    store.write(NAMES[0], label(0))
    assert path.stat().st_size and torch.equal(store.read(NAMES[0]).stacked(), label(0).stacked())


def test_a_frame_written_while_another_run_finishes_is_not_lost(tmp_path):
    store, other = filled(tmp_path, NAMES[:3]), PseudoLabelStore(tmp_path)
    late = iter(NAMES[3:])

    def map_while_another_writes(merge, folders, description):
        merged = list(map(merge, folders))
        other.write(name := next(late), label(NAMES.index(name)))
        return merged

    store.finish(map=map_while_another_writes)  # which never ends: the other run will finish
    assert PseudoLabelStore(tmp_path).names == NAMES[: 150 - len(list(late))]
    assert not (tmp_path / INDEX_FILE).exists()
    other.finish()
    assert (tmp_path / INDEX_FILE).exists() and PseudoLabelStore(tmp_path).names == other.names


def test_one_late_frame_is_merged_too(tmp_path):
    store = filled(tmp_path, NAMES[:3])
    calls = []

    def map_once_disturbed(merge, folders, description):
        calls.append(len(folders))
        merged = list(map(merge, folders))
        if len(calls) == 1:
            filled(tmp_path, NAMES[:4])
        return reversed(merged)

    store.finish(map=map_once_disturbed)
    assert len(calls) == 2 and calls[1] == 1 and (tmp_path / INDEX_FILE).exists()
    filled(tmp_path / "other").finish()
    assert contents(tmp_path / "other") == {k: v for k, v in contents(tmp_path).items() if not k.startswith("other")}


def test_an_index_is_believed_only_where_the_manifest_knows_it(tmp_path):
    store = filled(tmp_path, NAMES[:3])
    store.finish()
    old = (tmp_path / INDEX_FILE).read_bytes()
    store.write(NAMES[3], label(3))
    (tmp_path / INDEX_FILE).write_bytes(old[:-8])  # cut off
    assert PseudoLabelStore(tmp_path).names == NAMES[:4]
    store.finish()
    (tmp_path / INDEX_FILE).write_bytes(old)  # as if a finishing run had been killed
    again = PseudoLabelStore(tmp_path)
    assert again.names == NAMES[:4] and len(again) == 4
    again.finish()
    good = contents(tmp_path)
    (tmp_path / INDEX_FILE).unlink()
    assert again.names == NAMES[:4] and torch.equal(again.class_pixels()[1], store.class_pixels()[1])
    again.finish()
    assert contents(tmp_path) == good


def test_failures_are_kept_and_tried_again(tmp_path):
    store = filled(tmp_path, NAMES[:2])
    store.write_failure(NAMES[2], "left.png: no such file")
    store.write_failure(NAMES[0], "out of memory")  # it is complete already
    assert store.failures == {NAMES[2]: "left.png: no such file"}
    assert store.missing(NAMES[:3]) == [NAMES[2]] and not store.is_complete(NAMES[2])
    store.finish()
    assert PseudoLabelStore(tmp_path).failures == store.failures == {NAMES[2]: "left.png: no such file"}
    assert json.loads((tmp_path / "manifest.json").read_text())["counts"] == {"frames": 2, "failures": 1}
    store.write(NAMES[2], label(2))
    assert store.failures == {} and store.is_complete(NAMES[2])
    store.finish()
    filled(tmp_path / "other", NAMES[:3]).finish()
    assert contents(tmp_path / "other") == {k: v for k, v in contents(tmp_path).items() if not k.startswith("other")}


def test_a_stale_failure_goes_when_the_store_is_finished(tmp_path):
    store = filled(tmp_path)
    stale = store.paths(NAMES[0])["json"].with_suffix(".failure")
    stale.write_text('{"failure": "killed"}')
    assert store.failures == {} and store.is_complete(NAMES[0])
    store.finish()
    assert not stale.exists()


def test_a_flat_store_is_refused_in_one_line(tmp_path):
    (tmp_path / "manifest.json").write_text('{"num_classes": 9, "settings": {}, "packages": []}')
    for use in (PseudoLabelStore, lambda root: PseudoLabelStore.create(root, {}, 9)):
        with pytest.raises(InputError, match=r"manifest\.json: a store of layout 1, but [^\n]*$"):
            use(tmp_path)


@pytest.fixture(scope="module")
def heard():
    """Count, for the rest of this process, the files that are opened and the folders that are listed."""
    counted = Counter()
    events = {"open", "os.listdir", "os.scandir"}
    sys.addaudithook(lambda event, _: counted.update([event] if event in events else []))
    return counted


@pytest.fixture
def accesses(heard):
    heard.clear()
    return heard


def test_opening_and_reading_do_not_depend_on_the_number_of_frames(tmp_path, accesses):
    counts = []
    for number in (3, 60):
        filled(tmp_path / str(number), NAMES[:number]).finish()
        accesses.clear()
        store = PseudoLabelStore(tmp_path / str(number))
        opening = Counter(accesses)
        store.read(NAMES[1])
        reading = Counter(accesses)
        assert len(store) == len(store.names) == len(store.class_pixels()[1]) == number
        assert store.is_complete(NAMES[1]) and store.failures == {} and store.statistics()
        counts.append((opening, reading, Counter(accesses)))
    assert counts[0] == counts[1]
    opening, reading, all_of_it = counts[0]
    assert opening == {"open": 1} and reading.keys() == {"open"} and reading["open"] <= 6 and all_of_it == reading


def test_frames_spread_over_the_shards():
    sizes = Counter(shard_of(f"frankfurt_{n:06d}_{n % 30:06d}") for n in range(25_600))
    assert len(sizes) == 256 and min(sizes.values()) > 50 and max(sizes.values()) < 200


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
    assert read_image(store.paths("crowd")["instance"]).dtype == "uint16"
    assert read_image(store.paths("pair")["instance"]).dtype == "uint8"
    assert torch.equal(store.read("crowd").stacked(), crowded.stacked())


@pytest.mark.parametrize("kind", ["semantic", "instance"])
def test_truncated_files_are_named(tmp_path, kind):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    store.write("a", label(0))
    path = store.paths("a")[kind]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"a_{kind}\.png: not readable"):
        store.read("a")


def test_broken_json_is_named(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    store.write("a", label(0))
    for text in ("{", "[]", "{}", '{"diagnostics": {}, "crc32": {}, "statistics": {"pixels": [1]}}'):
        store.paths("a")["json"].write_text(text)
        with pytest.raises(InputError, match=r"a\.json: "):
            store.finish()
    for text in ("{", "[]", "{}"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError, match=r"manifest\.json: "):
            PseudoLabelStore.create(tmp_path, SETTINGS, 9)


def test_an_unfinished_or_empty_store_says_so(tmp_path):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    with pytest.raises(InputError, match="holds no complete pseudo-label"):
        store.finish()
    with pytest.raises(InputError, match="not finished"):
        _ = store.split


def test_a_thousand_frames_are_listed_without_being_opened(tmp_path, accesses):
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9)
    names = [f"{n:05d}" for n in range(1000)]
    for path in [path for name in names for path in store.paths(name).values()]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    accesses.clear()
    assert store.missing([*names, "more"]) == ["more"]
    assert accesses.keys() == {"os.listdir"} and accesses["os.listdir"] <= 257


DAMAGES = {
    "cut off": lambda files, root: cut(files["semantic"]),
    "another image": lambda files, root: write_png(files["instance"], read_image(files["instance"]) + 1),
    "another size": lambda files, root: write_png(files["semantic"], read_image(files["semantic"])[:9]),
    "unknown class": lambda files, root: wrong_class(files),
    "lost image": lambda files, root: files["instance"].unlink(),
    "lost JSON": lambda files, root: files["json"].unlink(),
    "broken JSON": lambda files, root: cut(files["json"]),
    "no statistics": lambda files, root: edit(files["json"], statistics={}),
    "other statistics": lambda files, root: edit(files["json"], statistics=dict.fromkeys(
        ("pixels", "proposals", "pixels_inside_proposals"), [1] * 9)),
    "wrong shard": lambda files, root: [move_away(path) for path in files.values()],
    "stray file": lambda files, root: (files["json"].parent / "thumbs.db").touch(),
    "broken failure": lambda files, root: next(root.rglob("*.failure")).write_text("{}"),
    "lost index": lambda files, root: (root / INDEX_FILE).unlink(),
    "cut index": lambda files, root: cut(root / INDEX_FILE),
}  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def move_away(path):
    target = path.parent.with_name("00" if path.parent.name != "00" else "01")
    target.mkdir(exist_ok=True)
    path.rename(target / path.name)


def wrong_class(files):
    """Replace the image together with its checksum."""
    write_png(files["semantic"], read_image(files["semantic"]) * 0 + 77)
    record = json.loads(files["json"].read_text())
    record["crc32"]["semantic"] = crc32(files["semantic"].read_bytes())
    files["json"].write_text(json.dumps(record))


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_every_damage(tmp_path, damage, capsys):
    store = filled(tmp_path)
    store.write_failure("unreadable", "left.png: not readable")
    store.finish()
    assert check_store(tmp_path) == (4, [])
    DAMAGES[damage](store.paths(NAMES[1]), tmp_path)
    assert main(["store", "check", str(tmp_path), "--workers", "1"]) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines and all(line.startswith(str(tmp_path)) for line in lines)
    assert f"{len(lines)} fault" in said.err and said.err.count("\n") == 1
    named = {"stray file": "thumbs.db", "broken failure": ".failure"}
    assert named.get(damage, INDEX_FILE if "index" in damage else NAMES[1]) in lines[0]


def test_check_finds_an_index_that_disagrees(tmp_path):
    store = filled(tmp_path)
    store.finish()
    for path in store.paths(NAMES[0]).values():
        path.unlink()
    assert len(check_store(tmp_path)[1]) == 1
    hidden = filled(tmp_path / "other", NAMES[4:5])
    for path in hidden.paths(NAMES[4]).values():
        (target := tmp_path / path.relative_to(hidden.root)).parent.mkdir(exist_ok=True)
        path.rename(target)
    edit(path := store.paths(NAMES[1])["json"], statistics=frame(store, 2)["statistics"])
    faults = check_store(tmp_path)[1]
    assert [word for word in ("lacks 1", "not complete, 1", "other pixels of 1") if word in " ".join(faults)] == [
        "lacks 1", "not complete, 1", "other pixels of 1",
    ]  # fmt: skip
    assert len(faults) == 4 and faults[0].startswith(str(path))


def frame(store, number):
    return json.loads(store.paths(NAMES[number])["json"].read_text())


def test_merge_and_stats_from_the_command_line(tmp_path, capsys):
    store = filled(tmp_path)
    for number in (7, 8):
        store.write_failure(NAMES[number], f"/data/left/{number}.png: 3 x {number} pixels (cut off)")
    name = f".writing-{platform.node()}-{2**22 + 1}-abcdefgh.png"
    left_over = [store.paths(NAMES[0])["json"].parent, *(tmp_path / folder for folder in ("overlays", "links/3f"))]
    for folder in left_over:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert main(["store", "stats", str(tmp_path), "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is False
    assert main(["store", "merge", str(tmp_path), "--workers", "2"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert not any((folder / name).exists() for folder in left_over)
    assert stats["frames"] == 4 and stats["finished"] and stats["things"] == [7, 8]
    assert stats["failures"] == {"N x N pixels": 2}
    assert sum(stats["class_shares"]) == pytest.approx(1, abs=1e-4) and len(stats["class_shares"]) == 9
    assert stats["bytes"] == sum(map(len, contents(tmp_path).values()))
    assert main(["store", "stats", str(tmp_path / "frames")]) == 2


def test_shares_that_come_with_the_classes_decide_and_are_kept(tmp_path):
    store = filled(tmp_path)
    share = torch.tensor([0.5, 0.0, 0.1, 0.0, 0.3])
    assert store.finish(0.2, share=share).things == (0, 4)
    again = PseudoLabelStore(tmp_path)
    assert again.split.order.tolist() == [0, 4, 2, 1, 3, 5, 6, 7, 8]
    assert torch.equal(again.split.share[:3], share[[0, 4, 2]])
    assert again.finish(0.05).things == (0, 2, 4)


def test_shares_are_those_of_the_classes_also_where_another_command_finishes_the_labels(tmp_path):
    share = torch.tensor([0.5, 0.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0])
    store = PseudoLabelStore.create(tmp_path, SETTINGS, 9, share=share)
    store.write(NAMES[0], label(0))  # and killed
    manifest = (tmp_path / "manifest.json").read_bytes()
    PseudoLabelStore.create(tmp_path, SETTINGS, 9, share=share)
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    merge_store(tmp_path)
    assert PseudoLabelStore(tmp_path).split.things == (0, 2, 4)


def test_labels_of_equal_areas_at_other_places_have_another_checksum(tmp_path):
    """A training or an export that was made from the one is not taken for one made from the other."""
    checksums = []
    for folder, flipped in (("a", ()), ("b", (1,)), ("c", ())):
        store = PseudoLabelStore.create(tmp_path / folder, SETTINGS, 9)
        for number in range(3):
            made = label(number)
            maps = {kind: getattr(made, kind).flip(flipped) for kind in ("semantic", "instance")}
            store.write(NAMES[number], made.replace(**maps))
        store.finish()
        checksums.append(store.checksum)
    assert checksums[0] == checksums[2] != checksums[1]
