"""Generation on several processes and on a Dask scheduler: the same bytes, whatever dies, and every bad frame named."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import psutil
import pytest
from fault_campaign import spawned, without_progress

from cups.cli import main
from cups.core.errors import InputError
from cups.core.files import read_image, write_png
from cups.datasets.stereo_folder import StereoFolder
from cups.labels.store import PseudoLabelStore
from cups.run import dask_pool
from cups.run.engine import Engine
from cups.run.generate import generate
from cups.run.scenes import render_scenes
from cups.run.workers import Failure, Workers
from cups.stages.matching.classical import ClassicalMatcherSettings
from cups.stages.pipeline import PseudoLabelSettings

# Matched at twice the height of these images, not at four times: what is compared are bytes.
SETTINGS = PseudoLabelSettings(num_classes=6, classical=ClassicalMatcherSettings(full_height_px=192))
COUNT = 6
GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
COMMAND = [sys.executable, "-c", "from cups.cli import main; raise SystemExit(main())", "pseudo-labels"]


def contents(folder):
    """Return the bytes of all files of a store; nothing may be left over."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "overlays"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    (root / "settings.yaml").write_text("num_classes: 6\nclassical: {full_height_px: 192}\n")
    render_scenes(root / "video", COUNT, seed=2, height=96, width=192, workers=1)
    return root


@pytest.fixture(scope="module")
def whole(scenes):
    """Return the bytes of a store that one process made undisturbed."""
    store = generate(StereoFolder(scenes / "video"), scenes / "whole", SETTINGS, 1)
    assert sum(bool(store.read(name).instance.any()) for name in store.names) > 1, "labels that hold objects"
    return contents(store.root)


def arguments(scenes, out, *more):
    given = {"--root": scenes / "video", "--out": out, "--settings": scenes / "settings.yaml"}
    return [str(word) for pair in given.items() for word in pair] + [str(word) for word in more]


def started(scenes, out, *more, **options):
    """Start the command in a session of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([*COMMAND, *arguments(scenes, out, *more)], **pipes, **options)


def ended(run):
    """Wait for a command; return its exit code and what it said, without progress."""
    out, err = run.communicate(timeout=300)
    return run.returncode, out, without_progress(err)


def wait_for(condition, seconds=300):
    """Wait until a condition holds, and return what it returned. The limit ends what hangs: others run meanwhile."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)
    return found


def labelled(out):
    return len(list((out / "frames").rglob("*.json")))


@contextmanager
def scheduler_with_worker(folder):
    """Run a Dask scheduler and a worker as a cluster's people would; yield the address and both processes."""
    dask, quiet = [sys.executable, "-m", "dask"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*dask, "scheduler", *options], **quiet)
    processes = [scheduler]
    try:
        wait_for(lambda: file.exists() and file.read_text().endswith("}"))
        address = json.loads(file.read_text())["address"]
        options = [address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
        processes.append(subprocess.Popen([*dask, "worker", *options], **quiet))
        yield address, *processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_one_process_does_without_dask(scenes, whole, tmp_path):
    script = """
import sys
from cups.cli import main
code = main(sys.argv[1:])
assert "distributed" not in sys.modules and "dask" not in sys.modules
raise SystemExit(code)
"""
    command = [sys.executable, "-c", script, "pseudo-labels", *arguments(scenes, tmp_path / "out", "--workers", 1)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert contents(tmp_path / "out") == whole


def test_a_scheduler_that_is_there_gives_the_same_bytes_and_its_loss_is_said(scenes, whole, tmp_path):
    with scheduler_with_worker(tmp_path) as (address, scheduler, worker):
        run = started(scenes, "out", "--scheduler", address, cwd=tmp_path)  # where the worker did not start
        code, out, err = ended(run)
        assert code == 0, err
        assert json.loads(out)["frames"] == COUNT and contents(tmp_path / "out") == whole

        run = started(scenes, tmp_path / "lost", "--scheduler", address)
        wait_for(lambda: labelled(tmp_path / "lost"))
        working = psutil.Process(worker.pid).children(recursive=True)
        scheduler.kill()
        code, out, err = ended(run)
        assert (code, out, err.count("\n")) == (2, "", 1) and address in err and "lost" in err
        assert labelled(tmp_path / "lost") < COUNT
        wait_for(lambda: worker.poll() is not None)  # nobody is left who works for nothing
        wait_for(lambda: not any(process.is_running() and process.status() not in GONE for process in working))
    assert main(["pseudo-labels", *arguments(scenes, tmp_path / "lost", "--workers", 1)]) == 0
    assert contents(tmp_path / "lost") == whole


def test_a_killed_worker_is_replaced(scenes, whole, tmp_path):
    run = started(scenes, tmp_path / "out", "--workers", 2)
    wait_for(lambda: (tmp_path / "out" / "descriptions").exists() or run.poll() is not None)
    for done in (0, 2):  # one in the first pass, one in the second
        wait_for(lambda done=done: labelled(tmp_path / "out") >= done)
        wait_for(lambda: spawned(run))
        spawned(run)[0].kill()
    assert ended(run)[::2] == (0, "")
    assert contents(tmp_path / "out") == whole


def test_killed_processes_leave_nobody_behind_and_the_next_run_goes_on(scenes, whole, tmp_path):
    run = started(scenes, tmp_path / "out", "--workers", 2)
    wait_for(lambda: labelled(tmp_path / "out"))
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()  # the processes it started see that it is gone
    run.wait()
    wait_for(lambda: not any(child.is_running() and child.status() not in GONE for child in children))
    assert labelled(tmp_path / "out") < COUNT
    assert main(["pseudo-labels", *arguments(scenes, tmp_path / "out", "--workers", 1)]) == 0
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("count", [2, 4])  # the process that workers are copies of is importing; workers start
def test_an_interrupt_while_processes_start_ends_all_of_them_in_one_line(scenes, tmp_path, count):
    run = started(scenes, tmp_path / "out", "--workers", 2)
    process = psutil.Process(run.pid)
    wait_for(lambda: len(process.children(recursive=True)) >= count)
    children = process.children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    assert ended(run) == (130, "", "cups: interrupted; the same command goes on from here\n")
    wait_for(lambda: not any(child.is_running() and child.status() not in GONE for child in children))


def test_two_runs_share_a_folder(scenes, whole, tmp_path):
    runs = [started(scenes, tmp_path / "out", "--workers", 1) for _ in range(2)]
    for run in runs:
        assert ended(run)[::2] == (0, "")
    assert contents(tmp_path / "out") == whole


def test_jobs_of_a_queue_give_the_same_bytes(scenes, whole, tmp_path):
    pytest.importorskip("dask_jobqueue")
    file = tmp_path / "cluster.yaml"
    file.write_text(f"kind: local\njobs: 1\ncores: 1\nmemory: 2GB\npython: {sys.executable}\n")
    run = started(scenes, tmp_path / "out", "--cluster", file)
    code, _, err = ended(run)
    assert code == 0, err
    assert contents(tmp_path / "out") == whole


class Interrupted:
    """A stereo folder; somebody presses Ctrl-C when some samples are read."""

    def __init__(self, root, after):
        self.folder, self.after, self.read = StereoFolder(root), after, []
        self.names = self.folder.names

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, index):
        if len(self.read) == self.after:
            raise KeyboardInterrupt
        self.read.append(index)
        return self.folder[index]


def test_the_first_pass_goes_on_where_it_stopped(scenes, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("cups.run.generate.sense", lambda dataset: [])  # its look at a few frames is not counted
    first, second = (Interrupted(scenes / "video", after) for after in (4, 1000))
    with pytest.raises(KeyboardInterrupt):
        generate(first, tmp_path / "out", SETTINGS, 1)
    assert len(list((tmp_path / "out" / "descriptions").glob("*.safetensors"))) == 4
    generate(second, tmp_path / "out", SETTINGS, 1)
    assert first.read == [0, 1, 2, 3] and second.read == [4, 5, *range(COUNT)]
    assert contents(tmp_path / "out") == whole


def spoil(video):
    """Make frames unusable in four ways; return a word of the reason for each."""
    unreadable, truncated, small, lonely = (video / "right" / f"{n:06d}_0.png" for n in range(4))
    unreadable.write_bytes(b"no image at all")
    truncated.write_bytes(truncated.read_bytes()[:2000])
    write_png(small, np.ascontiguousarray(read_image(small)[:-1]))
    lonely.unlink()
    words = ("not readable as an image", "not readable as an image", "192 x 95 pixels", "no such file")
    return {path: word for path, word in zip((unreadable, truncated, small, lonely), words, strict=True)}


def test_bad_frames_are_named_and_the_rest_is_labelled(scenes, tmp_path, capsys):
    copytree(scenes, tmp_path / "copy", ignore=lambda *_: ["whole"])
    bad, out = spoil(tmp_path / "copy" / "video"), tmp_path / "out"
    command = ["pseudo-labels", *arguments(tmp_path / "copy", out), "--workers"]
    assert main([*command, "1", "--strict"]) == 2
    err = without_progress(capsys.readouterr().err)
    assert err.count("\n") == 1 and any(str(path) in err for path in bad)

    for workers in "21":  # the second time nothing but the bad ones is left to try
        assert main([*command, workers]) == 3
        said, err = capsys.readouterr()
        said_at_last = f"cups: 4 of {COUNT} frames could not be labelled; see failures in {out}/manifest.json\n"
        assert without_progress(err) == said_at_last
        assert (json.loads(said)["frames"], json.loads(said)["failed"]) == (COUNT - 4, 4)
        failures = json.loads((out / "manifest.json").read_text())["failures"]
        assert sorted(failures) == [path.stem for path in bad]
        for path, word in bad.items():
            assert str(path) in failures[path.stem] and word in failures[path.stem]
    assert PseudoLabelStore(out).names == ["000004_0", "000005_0"]

    for path in bad:
        path.write_bytes((scenes / "video" / "right" / path.name).read_bytes())
    assert main([*command, "1"]) == 0 and PseudoLabelStore(out).failures == {}
    assert len(PseudoLabelStore(out)) == COUNT


def test_a_data_set_without_a_good_frame_is_refused(scenes, tmp_path):
    copytree(scenes / "video", tmp_path / "video")
    for path in (tmp_path / "video" / "left").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=f"none of {COUNT} frames can be used; the first: .*left/000000_0.png"):
        generate(StereoFolder(tmp_path / "video"), tmp_path / "out", SETTINGS, 1)


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(scenes, whole, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # Python ignores the signal: writing fails

    run = started(scenes, tmp_path / "out", "--workers", 2, preexec_fn=limit)
    code, out, err = ended(run)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert str(tmp_path / "out") in err and "descriptions" in err and "cannot be written (File too large)" in err
    assert main(["pseudo-labels", *arguments(scenes, tmp_path / "out", "--workers", 1)]) == 0
    assert contents(tmp_path / "out") == whole


def test_what_cannot_be_reached_or_read_is_said_in_one_line(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dask_pool, "ANSWER_S", 0.5)
    file = tmp_path / "cluster.yaml"
    file.write_text("kind: abacus\n")
    slurm = tmp_path / "slurm.yaml"
    slurm.write_text("kind: slurm\ncores: 1\nmemory: 1GB\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    odd = tmp_path / "odd.yaml"
    odd.write_text("kind: local\ncores: 1\n")
    for options, words in (
        (("--scheduler", "tcp://127.0.0.1:9"), ("tcp://127.0.0.1:9", "no Dask scheduler can be reached")),
        (("--scheduler", "nonsense"), ("nonsense", "no Dask scheduler can be reached")),
        (("--cluster", file), (file, "kind must be one of", "'abacus'")),
        (("--cluster", tmp_path / "none.yaml"), ("none.yaml: no such file",)),
        (("--cluster", slurm), (slurm, "needs the command sbatch")),
        (("--cluster", odd), (odd, "memory")),
        (("--cluster", file, "--scheduler", "tcp://127.0.0.1:9"), ("choose a scheduler or a cluster",)),
        (("--workers", -1), ("workers must not be negative",)),
    ):
        assert main(["pseudo-labels", *arguments(scenes, tmp_path / "out", *options)]) == 2
        said, err = capsys.readouterr()
        assert said == "" and err.count("\n") == 1 and all(str(word) in err for word in words), err


def die_at(item, deadly):
    """Kill the process that works on one of the items."""
    if item == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_an_item_that_kills_its_workers_is_a_failure_and_the_others_are_done(monkeypatch):
    monkeypatch.setattr(dask_pool, "DEATHS", 0)
    with Engine(Workers(2)) as engine:
        found = dict(engine.map_unordered(partial(die_at, deadly=3), range(8)))
    died = found.pop(3)
    assert isinstance(died, Failure) and "died" in died.reason
    assert found == {item: item * item for item in range(8) if item != 3}


def refuse(item):
    """Fail as bad input does."""
    raise InputError(f"{Path('some') / 'file'}: item {item} cannot be used")


def test_errors_of_the_work_come_as_they_are():
    with pytest.raises(InputError, match=r"^some/file: item 0 cannot be used$"), Engine(Workers(2)) as engine:
        list(engine.map([].append, [1]))  # in this process: nothing was started yet
        list(engine.map_unordered(refuse, [0, 0, 0]))


class Deadly:
    """A function that kills the first worker that unpacks it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, item):
        return item * item

    def __setstate__(self, state):
        self.__dict__ = state
        with suppress(FileExistsError):
            (self.folder / "first").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_before_it_knows_what_to_do_is_replaced(tmp_path):
    with Engine(Workers(2)) as engine:
        engine.pool.client.wait_for_workers(2)
        assert dict(engine.map_unordered(Deadly(tmp_path), range(4))) == {0: 0, 1: 1, 2: 4, 3: 9}
    assert (tmp_path / "first").exists()


def test_a_connection_that_ends_between_two_looks_at_it_is_said(monkeypatch):
    with Engine(Workers(2)) as engine:
        results = engine.map_unordered(partial(die_at, deadly=None), range(1000))
        next(results)
        monkeypatch.setattr(engine.pool, "_looked", float("inf"))  # it does not look again
        engine.pool.client.close()
        with pytest.raises(InputError, match="was lost; the same command goes on"):
            list(results)
