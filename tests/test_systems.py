"""Nothing at import time that macOS or Windows lacks, and no file name, text or process that they treat otherwise.

Only Linux runs here: what another system lacks is taken away, or looked for in the source.
"""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

import cups
from cups.core import files, memory
from cups.core.files import read_json, write_json, write_png
from cups.core.processes import usable_cores
from cups.core.settings import load_settings
from cups.datasets.labelled_images import LabelledImages
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import PseudoLabelStore
from cups.run import generate
from cups.run.scenes import render_scenes
from cups.run.workers import Workers
from cups.stages.pipeline import PseudoLabelSettings
from cups.training.augment import augmentation_settings
from cups.training.dataset import PseudoLabelDataset, collate

PACKAGE = Path(cups.__file__).parent
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py")
LACKING_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "crypt"}
LACKING_OS = {
    "fork", "forkpty", "wait", "wait3", "wait4", "waitid", "getuid", "geteuid", "getgid", "getegid", "setuid", "setsid",
    "killpg", "getpgid", "setpgid", "getpgrp", "nice", "getpriority", "uname", "statvfs", "mkfifo", "mknod", "chown",
    "fchown", "lchown", "chroot", "sched_getaffinity", "sched_setaffinity", "sched_yield", "sysconf", "getloadavg",
    "posix_fadvise", "pread", "pwrite", "sync", "sendfile", "memfd_create", "register_at_fork", "openpty", "fchmod",
    "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "O_SYNC", "O_TMPFILE", "WNOHANG",
}  # fmt: skip
LACKING_SIGNALS = {"SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGSTOP", "SIGCONT"}

ELSEWHERE = f"""
import builtins, importlib, os, pkgutil, signal, sys

import torch, distributed, lightning.pytorch, torchvision, torchmetrics, sklearn  # they have their own ways
from concurrent.futures import ProcessPoolExecutor

lacking = {sorted(LACKING_MODULES)}
whole = builtins.__import__

def without(name, globals=None, *rest, **options):
    if name.partition(".")[0] in lacking and str((globals or {{}}).get("__name__", "")).startswith("cups"):
        raise ImportError(f"no module {{name}} on this system")
    return whole(name, globals, *rest, **options)

builtins.__import__ = without
for name in {sorted(LACKING_OS)}:
    if hasattr(os, name):
        delattr(os, name)
for name in {sorted(LACKING_SIGNALS)}:
    delattr(signal, name)
import cups
names = [module.name for module in pkgutil.walk_packages(cups.__path__, "cups.")]
for name in names:
    importlib.import_module(name)
from cups.run.runs import environment
from cups.run.workers import Workers
assert environment()["cpus"] == Workers().processes == os.cpu_count()
print(len(names))
"""


def test_every_module_is_imported_without_what_other_systems_lack():
    run = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) > 100


def used(path: Path) -> set[str]:
    """Return the attributes of `os` and `signal`, and the modules at the top, that a source file names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "signal"):
            found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "signal"):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_only_one_place_asks_what_linux_alone_has():
    lacking = LACKING_MODULES | {f"os.{n}" for n in LACKING_OS} | {f"signal.{n}" for n in LACKING_SIGNALS}
    found = {(path.relative_to(PACKAGE).as_posix(), name) for path in SOURCES for name in used(path) & lacking}
    assert found == {("core/processes.py", "os.sched_getaffinity")}  # behind hasattr


def test_text_is_utf_8_on_every_system():
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--preview", "--select", "PLW1514", str(PACKAGE)]
    run = subprocess.run(ruff, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                assert any(k.arg == "encoding" for k in node.keywords), f"{path}: {ast.unparse(node)}"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])  # Windows' editors begin a file with the second
def test_files_of_windows_editors_are_read(tmp_path, mark):
    (tmp_path / "a.json").write_bytes(mark + '{"city": "Zürich"}\r\n'.encode())
    assert read_json(tmp_path / "a.json") == {"city": "Zürich"}
    (tmp_path / "a.yaml").write_bytes(mark + b"num_classes: 9\r\n")
    assert load_settings(PseudoLabelSettings, tmp_path / "a.yaml").num_classes == 9


def test_cores_are_counted_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == Workers().processes == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_a_process_is_looked_for_without_sending_it_ctrl_c(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert psutil.pid_exists(os.getpid())  # imported as what this system is
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("on Windows signal 0 is Ctrl+C"))
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: Path(f"/proc/{pid}").exists())  # as psutil does it there
    try:
        assert files._is_running(child.pid)
    finally:
        child.communicate(b"\n")
    assert not files._is_running(child.pid)


def test_the_peak_of_memory_is_bytes_on_macos(monkeypatch):
    here = memory.peak_memory_bytes()
    monkeypatch.setattr(Path, "exists", lambda self: False)  # /proc
    in_kb = memory.peak_memory_bytes()
    assert here == pytest.approx(in_kb, rel=0.2)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.peak_memory_bytes() * 1024 == pytest.approx(in_kb, rel=0.2)


def test_a_folder_that_cannot_be_locked_is_worked_on_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "fcntl", None)
    with generate._locked_folder(tmp_path) as first, generate._locked_folder(tmp_path) as second:
        assert not first and not second


# Names of files


def odd_names(folder: Path) -> list[str]:
    """Return the names below a folder that Windows refuses."""
    reserved = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}
    return [
        path.name
        for path in folder.rglob("*")
        if set(path.name) & set('<>:"|?*\\') or path.name[-1] in ". " or path.name.split(".")[0].lower() in reserved
    ]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """Return a folder with street scenes and their labels."""
    folder = tmp_path_factory.mktemp("labelled")
    render_scenes(folder / "scenes", 2, 0, 64, 128, 1)
    store = PseudoLabelStore.create(folder / "labels", {}, 19)
    for sample in StereoFolder(folder / "scenes"):
        store.write(sample.name, sample.truth)
    store.finish()
    return folder


def test_windows_takes_the_names_of_what_is_written(labelled, tmp_path):
    assert len(list(labelled.rglob("*"))) > 15 and odd_names(labelled) == []
    write_png(tmp_path / "a:b.png", torch.zeros(2, 2, dtype=torch.uint8).numpy())
    assert odd_names(tmp_path) == ["a:b.png"]


def test_no_name_that_is_stored_has_a_path_of_this_system(labelled):
    store = PseudoLabelStore(labelled / "labels")
    manifest = json.dumps(read_json(labelled / "labels" / "manifest.json"))
    assert store.names and not any(os.sep in name or "\\" in name for name in store.names)
    assert str(labelled) not in manifest


# Processes


def test_workers_of_a_training_can_be_spawned(labelled):
    """On macOS and Windows a worker is another Python that is sent the data set."""
    store = PseudoLabelStore(labelled / "labels")
    images = LabelledImages(StereoFolder(labelled / "scenes"), store)
    data = PseudoLabelDataset(images, store.split, augmentation_settings("small"), seed=0)
    options = {"batch_sampler": [[(0, 0), (0, 1)]], "collate_fn": collate}  # epoch 0, frames 0 and 1
    here = next(iter(DataLoader(data, **options)))
    spawned = next(iter(DataLoader(data, **options, num_workers=1, multiprocessing_context="spawn")))
    assert all(torch.equal(one, other) for one, other in zip(here[0], spawned[0], strict=True))


def test_signals_of_this_system_are_not_needed_to_end_workers(monkeypatch):
    from cups.run import dask_pool

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    class Ended(dask_pool.Nanny):
        """A nanny of a process that runs, without its server."""

        pid = child.pid

        def __init__(self) -> None:
            pass

        def __del__(self) -> None:
            pass

        def close_gracefully(self) -> None:
            pass

    class Cluster:
        """The processes of a pool."""

        def __init__(self) -> None:
            self._created = {Ended()}

    monkeypatch.delattr(signal, "SIGKILL")
    dask_pool._kill(Cluster())
    assert child.wait(10) == -signal.SIGTERM
    dask_pool._kill(Cluster())  # it has ended already
    child.stdin.close()


def test_an_input_of_windows_paths_is_kept(tmp_path):
    write_json(tmp_path / "a.json", {"path": r"C:\data\left"})
    assert read_json(tmp_path / "a.json")["path"] == r"C:\data\left"
