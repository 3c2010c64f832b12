"""Fault campaign of pseudo-label generation: whatever dies, the finished store is that of an undisturbed run.

    python tests/fault_campaign.py --kills 50 --frames 1000

kills workers, schedulers, runs and whole process trees at random moments, and looks at bad frames, full disks,
read-only folders, wrong clocks and two runs on one folder. One line per trial, a table at the end; exit code 1 if
anything was violated. `test_faults` runs a short form.

What is counted: every time a frame is read for a pass (`Counted`). A frame that is read again in the same pass was done
twice. Each worker process has one frame in flight, so the death of one worker may cost one repeat, and that of a
scheduler, a run or a tree as many as it has workers; the sum of repeats of a trial must not be above that, and no frame
may be repeated more often than there were kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from cups.cli import main
from cups.core.files import read_image, write_png
from cups.datasets.registry import DATASETS, Entry
from cups.datasets.stereo_folder import StereoFolder
from cups.run import generate as generation

HERE = Path(__file__).parent
PROGRAM = [sys.executable, "-c", "from fault_campaign import run; run()", "pseudo-labels", "--dataset", "counted"]
SETTINGS = """num_classes: 6
num_object_classes: 2
clustering_frames: 12
classical: {full_height_px: 96, flow_finest_scale: 2}
"""
WORKERS = 2
PATIENCE_S = 600
KINDS = {"local": ("worker", "worker", "run", "tree"), "scheduler": ("worker", "scheduler", "scheduler", "run", "tree")}
MOMENTS = ("starting", "describing", "labelling", "finishing")


def without_progress(err: str) -> str:
    """Return what was said on standard error without the lines of progress, which a slow machine sees more of."""
    return re.sub(r"^.*: \d+ of \d+ \(\d+ %\), .* gone, .* to go\n", "", err, flags=re.MULTILINE)


class Counted:
    """A stereo folder that writes down which samples are read, and for which pass, beside itself."""

    def __init__(self, root: str) -> None:
        self.folder, self.place = StereoFolder(root), Path(root).parent
        self.names = self.folder.names

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int):
        second = (self.place / "out" / "classes.safetensors").exists()
        log = os.open(self.place / "reads.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        with suppress(OSError):  # a limit of file sizes is meant for the store
            os.write(log, f"{'labelling' if second else 'describing'} {self.names[index]}\n".encode())
        os.close(log)
        return self.folder[index]

    def left(self, index: int):
        return self.folder.left(index)

    def truth(self, name: str):
        return self.folder.truth(name)


def run() -> None:
    """Run the command line with the data set `counted`."""
    generation.sense = lambda dataset: []  # its look at a few frames before the passes is not counted
    DATASETS["counted"] = Entry("fault_campaign:Counted", True, False, "a stereo folder that counts")
    raise SystemExit(main())


@dataclass
class Outcome:
    """What a trial showed."""

    name: str
    kills: list[tuple[str, str]] = field(default_factory=list)
    repeats: int = 0
    allowed: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def check(self, holds: bool, fault: str) -> None:
        """Keep a fault unless something holds."""
        if not holds:
            self.faults.append(fault)

    def line(self) -> str:
        """Return the trial in one line."""
        kills = f"{len(self.kills)} kills ({', '.join(map('/'.join, self.kills))}), " if self.kills else ""
        repeats = f"repeats {self.repeats} of {self.allowed} allowed, " if self.kills else ""
        note = f"{self.note}, " if self.note else ""
        return f"{self.name}: {kills}{repeats}{note}{'; '.join(self.faults) or 'ok'} [{self.seconds:.0f} s]"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a store by their names."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    """Wait until a condition holds; say whether it did in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that run."""
    gone = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() not in gone:
                found.append(process)
    return found


def spawned(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the worker processes that a process started: `dask worker` anew, `cups` as copies of a process."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                if "spawn_main" in command:
                    found.append(child)
                elif "forkserver" in command:
                    found += child.children()
    return alive(found)


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and all it started, at once: they are a process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Scheduler:
    """`dask scheduler` on one port, and workers, as a cluster's people start them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start all, and wait until the scheduler listens."""
        options = ["scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        worker = ["worker", self.address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder)]
        worker += ["--death-timeout", "60"]  # else one that never saw its scheduler waits for ever
        self.processes = [self._start(options), *(self._start(worker) for _ in range(WORKERS))]
        if not wait_for(self._listens, 120):
            raise RuntimeError("no scheduler starts here")

    def _start(self, options: list[str]) -> subprocess.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        return subprocess.Popen([sys.executable, "-m", "dask", *options], env=environment(self.folder), **quiet)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def workers(self) -> list[psutil.Process]:
        """Return the processes that work."""
        return [worker for nanny in self.processes[1:] for worker in spawned(nanny)]

    def lose(self) -> list[str]:
        """Kill the scheduler; return a fault if workers go on without it."""
        self.processes[0].kill()
        self.processes[0].wait()
        gone = wait_for(lambda: all(nanny.poll() is not None for nanny in self.processes[1:]), 180)
        return [] if gone else ["workers outlive their scheduler"]

    def stop(self) -> None:
        """Kill all."""
        for process in self.processes:
            kill_tree(process)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a run: this script can be imported, temporary files go to a folder."""
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}


class Campaign:
    """Trials on the same few street scenes.

    Parameters
    ----------
    folder : Path
        Where everything is written.
    scenes : int
        Number of frames.
    seed : int
        Of what is killed, and when.
    """

    def __init__(self, folder: Path, scenes: int, seed: int) -> None:
        from cups.run.scenes import render_scenes

        self.folder, self.count, self.draw = folder, scenes, random.Random(seed)
        render_scenes(folder / "video", scenes, seed=5, height=96, width=192, workers=1)  # something moves
        (folder / "settings.yaml").write_text(SETTINGS)
        self.names = StereoFolder(folder / "video").names
        place = self.place("undisturbed")
        code, _, err = self.finish(self.start(place, "--workers", 1))
        if code:
            raise RuntimeError(err)
        self.whole = contents(place / "out")

    def place(self, name: str, video: Path | None = None) -> Path:
        """Make the folder of a trial."""
        place = self.folder / name
        place.mkdir()
        (place / "video").symlink_to(video or self.folder / "video")
        return place

    def command(self, place: Path, *more: object) -> list[str]:
        """Return the command of a run."""
        given = ["--root", place / "video", "--out", place / "out", "--settings", self.folder / "settings.yaml", *more]
        return [*PROGRAM, *map(str, given)]

    def start(self, place: Path, *more: object, before: tuple[str, ...] = (), **options) -> subprocess.Popen:
        """Start a run in a process group of its own; `before` are words before its command."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen([*before, *self.command(place, *more)], env=environment(place), **pipes, **options)

    def finish(self, process: subprocess.Popen, seconds: float = PATIENCE_S) -> tuple[int, str, str]:
        """Wait for a run; return its exit code and what it said."""
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            return -1, "", "the run hangs"
        return process.returncode, out, without_progress(err)

    def labelled(self, place: Path) -> int:
        """Return how many frames have a label."""
        return len(list((place / "out" / "frames").glob("*/[!.]*.json")))

    def progress(self, place: Path) -> int:
        """Return how many frames are described and labelled."""
        if (place / "out" / "classes.safetensors").exists():
            return self.count + self.labelled(place)
        return len(list((place / "out" / "descriptions").glob("[!.]*")))

    def reads(self, place: Path) -> Counter[str]:
        """Return how often each frame was read in each pass."""
        log = place / "reads.log"
        return Counter(log.read_text().splitlines() if log.exists() else [])

    def is_whole(self, place: Path, outcome: Outcome) -> None:
        """Compare all bytes with those of the undisturbed run."""
        there = contents(place / "out")
        other = sorted(name for name in there.keys() | self.whole.keys() if there.get(name) != self.whole.get(name))
        outcome.check(not other, f"{len(other)} files differ: {', '.join(other[:3])}")
        own = [name for name in there if (place / "out" / name).stat().st_mode & 0o444 != 0o444]
        outcome.check(not own, f"only their owner can read {', '.join(own[:3])}")

    def runs_to_the_end(self, place: Path, outcome: Outcome, *more: object, said: str = "") -> None:
        """Run once more without a fault; all must be there."""
        code, _, err = self.finish(self.start(place, *more))
        outcome.check(code == 0 and err == said, f"the last run ended with {code}: {err.strip()[-200:]}")
        self.is_whole(place, outcome)

    def refused(self, result: tuple[int, str, str], outcome: Outcome, *words: str) -> None:
        """Check that a run ended with code 2 and one line that holds some words."""
        code, out, err = result
        one = (code, out, err.count("\n")) == (2, "", 1) and all(word in err for word in words)
        outcome.check(one, f"ended with {code}: {err.strip()[-300:]!r}")

    def moment(self) -> tuple[float, float]:
        """Draw a moment: frames described and labelled before it, and seconds after that."""
        when = self.draw.choices(MOMENTS, (2, 6, 6, 3))[0]
        if when == "starting":
            return 0.0, self.draw.uniform(0, 6)
        if when == "finishing":
            return 2.0 * self.count, self.draw.uniform(0, 0.3)
        return self.draw.uniform(0, self.count) + self.count * (when == "labelling"), self.draw.uniform(0, 0.3)

    def kills(self, number: int, way: str, count: int, kinds: list[str] | None = None) -> Outcome:
        """Kill `count` times while one store is made; then let it finish."""
        outcome, place = Outcome(f"kills {number} ({way})"), self.place(f"kills-{number}")
        kinds = kinds or [self.draw.choice(KINDS[way]) for _ in range(count)]
        moments = sorted(self.moment() for _ in kinds)
        trial = Killing(self, place, way, outcome)
        try:
            for kind, (progress, delay) in zip(kinds, moments, strict=True):
                trial.kill(kind, progress, delay)
            code, _, err = self.finish(trial.run)
            outcome.check((code, err) == (0, ""), f"the last run ended with {code}: {err.strip()[-300:]!r}")
        finally:
            trial.stop()
        self.is_whole(place, outcome)
        self.count_reads(place, outcome)
        return outcome

    def count_reads(self, place: Path, outcome: Outcome) -> None:
        """Check that every frame was done in both passes, and how often twice."""
        reads = self.reads(place)
        once = {f"{phase} {name}" for phase in MOMENTS[1:3] for name in self.names}
        outcome.check(set(reads) == once, "not every frame was read in both passes")
        outcome.repeats = sum(reads.values()) - len(reads)
        outcome.allowed = sum(1 if kind == "worker" else WORKERS for kind, _ in outcome.kills)
        outcome.check(outcome.repeats <= outcome.allowed, f"{outcome.repeats} repeats, allowed {outcome.allowed}")
        most = max(reads.values(), default=1) - 1
        outcome.check(most <= len(outcome.kills), f"a frame was repeated {most} times")

    def two_runs(self, number: int) -> Outcome:
        """Start two runs on one folder at the same moment; every other time, one of them is killed."""
        outcome, place = Outcome(f"two runs {number}"), self.place(f"two-{number}")
        runs = [self.start(place, "--workers", 1)]
        time.sleep(self.draw.choice((0, self.draw.uniform(0, 1))))
        runs.append(self.start(place, "--workers", 1))
        if number % 2:
            until = self.draw.uniform(0, 2 * self.count)
            wait_for(lambda: self.progress(place) >= until or runs[0].poll() is not None)
            victim = runs.pop(self.draw.randrange(2))
            kill_tree(victim)
            outcome.note = "one was killed"
        for code, _, err in map(self.finish, runs):
            outcome.check((code, err) == (0, ""), f"a run ended with {code}: {err.strip()[-300:]!r}")
        if number % 2:  # the other one may have ended while there were files of the one that was still alive
            self.runs_to_the_end(place, outcome, "--workers", 1)
        self.is_whole(place, outcome)
        return outcome

    def file_limits(self) -> Outcome:
        """Let no file be longer than some bytes: a disk that is full at different moments."""
        outcome, place = Outcome("files limited"), self.place("limited")
        sizes = sorted({len(content) for content in self.whole.values()})
        limits = [sizes[0] // 2, *sorted(self.draw.sample(sizes, 2)), sizes[-1] - 1]
        for limit in limits:
            before = contents(place / "out") if (place / "out").exists() else {}

            def limited(limit=limit):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            result = self.finish(self.start(place, "--workers", 1, preexec_fn=limited))
            self.refused(result, outcome, "cannot be written (File too large)")
            lost = before.keys() - contents(place / "out").keys()
            lost = {name for name in lost if not name.startswith("descriptions")}  # they go when they have been used
            outcome.check(lost <= {"index.safetensors"}, f"files were lost: {sorted(lost)[:3]}")
        outcome.note = f"limits {', '.join(map(str, limits))} bytes"
        self.runs_to_the_end(place, outcome, "--workers", 1)
        return outcome

    def full_disk(self) -> Outcome:
        """Write to a small file system until it is full; then make it larger."""
        outcome, place = Outcome("disk full"), self.place("full")
        if not _can_mount():
            outcome.note = "skipped: no mounts here"
            return outcome
        pages = sum(-(-len(content) // 4096) for content in self.whole.values())
        size = self.draw.randint(pages // 4, pages // 2) * 4096
        script = 'mkdir out && mount -t tmpfs -o size=%d none out && ("$@"; echo $? >code); cp -a out first; ' \
            'mount -o remount,size=64M out && "$@"; code=$?; cp -a out kept; exit $code'  # fmt: skip
        before = ("unshare", "-rm", "sh", "-c", script % size, "sh")
        code, _, err = self.finish(self.start(place, "--workers", 1, before=before, cwd=place))
        first = int((place / "code").read_text())
        self.refused((first, "", err), outcome, "cannot be written (No space left on device)")
        outcome.check(code == 0, f"the second run ended with {code}")
        outcome.note = f"{size} bytes"
        (place / "out").rmdir()
        (place / "kept").rename(place / "out")
        self.is_whole(place, outcome)
        return outcome

    def read_only(self) -> Outcome:
        """Go on in a folder that cannot be written."""
        outcome, place = Outcome("read-only folder"), self.place("read-only")
        if not _can_mount():
            outcome.note = "skipped: no mounts here"
            return outcome
        self.half_made(place)
        before = contents(place / "out")
        script = 'mount --bind out out && mount -o remount,ro,bind out && exec "$@"'
        words = ("unshare", "-rm", "sh", "-c", script, "sh")
        result = self.finish(self.start(place, "--workers", 1, before=words, cwd=place))
        self.refused(result, outcome, str(place / "out"), "cannot be written (Read-only file system)")
        outcome.check(contents(place / "out") == before, "files changed")
        self.runs_to_the_end(place, outcome, "--workers", 1)
        return outcome

    def half_made(self, place: Path) -> None:
        """Copy the undisturbed store, but for half of its frames and what `finish` makes."""
        shutil.copytree(self.folder / "undisturbed" / "out", place / "out")
        for name in self.draw.sample(self.names, self.count // 2):
            self.draw.choice(list((place / "out" / "frames").glob(f"*/{name}*"))).unlink()
        if self.draw.random() < 0.5:
            (place / "out" / "index.safetensors").unlink()

    def clocks(self) -> Outcome:
        """Go on after the clock jumped: times of files lie years ahead or back, and so do those of a killed run."""
        outcome, place = Outcome("wrong clocks"), self.place("clocks")
        shutil.copytree(self.folder / "video", place / "moved")
        (place / "video").unlink()
        (place / "moved").rename(place / "video")
        run = self.start(place, "--workers", 1)
        wait_for(lambda: self.progress(place) > self.count or run.poll() is not None)
        kill_tree(run)
        left = f".writing-{os.uname().nodename}-{run.pid}-abcdefgh.json"
        (place / "out" / left).write_text("{")
        ten_years = 10 * 365 * 86400
        for path in [path for folder in ("video", "out") for path in (place / folder).rglob("*")]:
            moment = time.time() + self.draw.choice((-2, -1, 1, 2)) * ten_years
            os.utime(path, (moment, moment))
        self.runs_to_the_end(place, outcome, "--workers", 1)
        return outcome

    def bad_frames(self, count: int, share: float = 0.02) -> Outcome:
        """Label many frames, links to a few scenes, among which some cannot be used."""
        outcome, place = Outcome(f"bad frames among {count}"), self.folder / "bad"
        bad = self.scatter(place / "video", count, max(4, round(count * share)))
        code, out, err = self.finish(self.start(place, "--workers", 1, "--strict"))
        self.refused((code, out, err), outcome)
        outcome.check(any(f"{name}:" in err and path in err for name, (path, _) in bad.items()), f"strict: {err!r}")
        shutil.rmtree(place / "out")
        code, out, err = self.finish(self.start(place, "--workers", WORKERS), PATIENCE_S + 10 * count)
        manifest = place / "out" / "manifest.json"
        line = f"cups: {len(bad)} of {count} frames could not be labelled; see failures in {manifest}\n"
        outcome.check((code, err) == (3, line), f"ended with {code}: {err.strip()[-300:]!r}")
        failures = json.loads(manifest.read_text()).get("failures", {})
        outcome.check(sorted(failures) == sorted(bad), "other frames failed than the bad ones")
        wrong = [name for name, words in bad.items() if not all(word in failures.get(name, "") for word in words)]
        outcome.check(not wrong, f"wrong reasons, the first: {[failures.get(name) for name in wrong[:1]]}")
        outcome.check(self.labelled(place) == count - len(bad), f"{self.labelled(place)} frames labelled")
        outcome.note = f"{len(bad)} bad, {self.labelled(place)} labelled"
        return outcome

    def scatter(self, video: Path, count: int, bad: int) -> dict[str, tuple[str, str]]:
        """Make a stereo folder of links, spoil some; return the file and a word of the reason by name."""
        for side in ("left", "right"):
            (video / side).mkdir(parents=True)
            for number in range(count):
                for frame in (0, 1):
                    source = self.folder / "video" / side / f"{number % self.count:06d}_{frame}.png"
                    (video / side / f"{number:06d}_{frame}.png").symlink_to(source)
        shutil.copy(self.folder / "video" / "calibration.json", video)
        spoilt = {}
        for place, number in enumerate(sorted(self.draw.sample(range(count), bad))):
            side, frame = self.draw.choice(("left", "right")), self.draw.choice((0, 1))
            path = video / side / f"{number:06d}_{frame}.png"
            spoilt[f"{number:06d}_0"] = str(path), SPOIL[place % len(SPOIL)](path)
        return spoilt


def _can_mount() -> bool:
    """Say whether a mount of one's own can be made here, without being root."""
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def unreadable(path: Path) -> str:
    """Put something else into an image file."""
    _replace(path, b"no image at all")
    return "not readable as an image"


def truncated(path: Path) -> str:
    """Cut an image file off."""
    content = path.read_bytes()
    _replace(path, content[: len(content) // 2])
    return "not readable as an image"


def of_another_size(path: Path) -> str:
    """Take a row away from an image."""
    image = np.ascontiguousarray(read_image(path)[:-1])
    path.unlink()
    write_png(path, image)
    return f"{image.shape[1]} x {image.shape[0]} pixels"


def without_partner(path: Path) -> str:
    """Remove an image; that of the other side stays."""
    path.unlink()
    return "no such file"


SPOIL = (unreadable, truncated, of_another_size, without_partner)


class Killing:
    """A run that is killed and started again."""

    def __init__(self, campaign: Campaign, place: Path, way: str, outcome: Outcome) -> None:
        self.campaign, self.place, self.outcome = campaign, place, outcome
        self.scheduler = Scheduler(place) if way == "scheduler" else None
        self.options = ("--scheduler", self.scheduler.address) if self.scheduler else ("--workers", WORKERS)
        if self.scheduler:
            self.scheduler.start()
        self.start()

    def start(self) -> None:
        """Start the same command (again)."""
        self.read_before = sum(self.campaign.reads(self.place).values())
        self.run = self.campaign.start(self.place, *self.options)

    def stop(self) -> None:
        """Leave nobody behind."""
        kill_tree(self.run)
        if self.scheduler:
            self.scheduler.stop()

    def ended(self) -> bool:
        """Say whether the run came to its end by itself, before it could be killed."""
        return self.run.poll() is not None

    def kill(self, kind: str, progress: float, delay: float) -> None:
        """Kill something at a moment; start a run again that has ended by then."""
        for _ in range(20):
            wait_for(lambda: self.ended() or self.campaign.progress(self.place) >= progress)
            time.sleep(delay)
            victim = self._victim() if kind == "worker" else None
            if not self.ended() and (victim or kind != "worker"):
                break
            if self.ended():
                self.ends_well()
                self.start()
            delay = self.campaign.draw.uniform(0, 5)
        else:
            self.outcome.note = "a kill found nothing to kill"
            return
        self.outcome.kills.append((kind, self.moment()))
        getattr(self, f"kill_{kind}")(*([victim] if victim else []))

    def ends_well(self) -> None:
        """Check a run that came to its end."""
        code, _, err = self.campaign.finish(self.run)
        self.outcome.check((code, err) == (0, ""), f"ended with {code}: {err.strip()[-300:]!r}")

    def moment(self) -> str:
        """Say what the run is at."""
        if self.campaign.labelled(self.place) == self.campaign.count:
            return "finishing"
        if sum(self.campaign.reads(self.place).values()) == self.read_before:
            return "starting"
        return MOMENTS[1 + (self.place / "out" / "classes.safetensors").exists()]

    def _victim(self) -> psutil.Process | None:
        """Choose a worker; there may be none yet, or none any more."""
        workers = self.scheduler.workers() if self.scheduler else spawned(self.run)
        return self.campaign.draw.choice(workers) if workers else None

    def kill_worker(self, victim: psutil.Process) -> None:
        """Kill a worker: the run goes on."""
        with suppress(psutil.NoSuchProcess):
            victim.kill()

    def kill_scheduler(self) -> None:
        """Kill the scheduler: the run says so in one line, workers go, and the same command goes on."""
        self.outcome.faults += self.scheduler.lose()
        code, out, err = self.campaign.finish(self.run)
        if code != 0:
            self.campaign.refused((code, out, err), self.outcome, self.scheduler.address)
        self.scheduler.stop()
        self.scheduler.start()
        self.start()

    def kill_run(self) -> None:
        """Kill the run alone: processes that it started end by themselves."""
        workers = spawned(self.run)
        self.run.kill()
        self.run.wait()
        self.outcome.check(wait_for(lambda: not alive(workers), 60), "workers outlive their run")
        self.start()

    def kill_tree(self) -> None:
        """Kill everything at once."""
        kill_tree(self.run)
        if self.scheduler:
            self.scheduler.stop()
            self.scheduler.start()
        self.start()


def kill_trials(campaign: Campaign, kills: int, per_store: int = 7) -> Iterator[Outcome]:
    """Yield the outcomes of stores during which something is killed."""
    number = 0
    while kills > 0:
        way = ("local", "scheduler")[number % 2]
        outcome = yield from _timed(lambda: campaign.kills(number, way, min(kills, per_store)))  # noqa: B023
        kills, number = kills - max(1, len(outcome.kills)), number + 1


def trials(campaign: Campaign, kills: int, others: bool, frames: int) -> Iterator[Outcome]:
    """Yield the outcomes of a whole campaign."""
    yield from kill_trials(campaign, kills)
    if others:
        for number in range(4):
            yield from _timed(lambda: campaign.two_runs(number))  # noqa: B023
        for trial in (campaign.file_limits, campaign.full_disk, campaign.read_only, campaign.clocks):
            yield from _timed(trial)
    if frames:
        yield from _timed(lambda: campaign.bad_frames(frames))


def _timed(trial: Callable[[], Outcome]) -> Iterator[Outcome]:
    """Yield and return what a trial showed, and how long it took."""
    start = time.monotonic()
    outcome = trial()
    outcome.seconds = time.monotonic() - start
    yield outcome
    return outcome


def summary(outcomes: list[Outcome]) -> str:
    """Return the table of kills by kind and moment, and the sums."""
    counts = Counter(kill for outcome in outcomes for kill in outcome.kills)
    kinds = sorted({kind for kind, _ in counts})
    rows = [f"{'killed':10}" + "".join(f"{moment:>12}" for moment in (*MOMENTS, "all"))]
    for kind in kinds:
        cells = [counts[kind, moment] for moment in MOMENTS]
        rows.append(f"{kind:10}" + "".join(f"{cell:12}" for cell in (*cells, sum(cells))))
    totals = [sum(counts[kind, moment] for kind in kinds) for moment in MOMENTS]
    rows.append(f"{'all':10}" + "".join(f"{cell:12}" for cell in (*totals, sum(totals))))
    repeats, allowed = (sum(getattr(outcome, key) for outcome in outcomes) for key in ("repeats", "allowed"))
    faults = sum(len(outcome.faults) for outcome in outcomes)
    rows.append(f"frames done twice: {repeats} of {allowed} allowed (one for each worker that lost its frame)")
    rows.append(f"violations: {faults} in {len(outcomes)} trials, {sum(o.seconds for o in outcomes):.0f} s")
    return "\n".join(rows)


@contextmanager
def folder_for(path: str | None) -> Iterator[Path]:
    """Give a folder to write to; one that was not asked for is removed."""
    if path:
        Path(path).mkdir(parents=True)
        yield Path(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def campaign_from_the_command_line() -> int:
    """Run the campaign; return 1 if anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how often something is killed")
    parser.add_argument("--frames", type=int, default=1000, help="frames among which bad ones are; 0 leaves that out")
    parser.add_argument("--no-others", action="store_true", help="leave out two runs, full disks, folders and clocks")
    parser.add_argument("--scenes", type=int, default=12, help="frames of the other trials")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--folder", help="new folder to write to, which stays; by default a temporary one")
    options = parser.parse_args()
    outcomes = []
    with folder_for(options.folder) as folder:
        campaign = Campaign(folder, options.scenes, options.seed)
        for outcome in trials(campaign, options.kills, not options.no_others, options.frames):
            outcomes.append(outcome)
            print(outcome.line(), flush=True)
    print(summary(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(campaign_from_the_command_line())
