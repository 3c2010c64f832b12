"""A training run that is killed, at whatever moment, ends as one that was not; a full disk costs no checkpoint."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
LIMIT_FILES = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
    "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "


def start(folder: Path, stage: str, before: str = "") -> subprocess.Popen:
    program = f"{before}import sys; sys.argv = ['', {str(folder)!r}, {stage!r}]; sys.path.insert(0, {str(HERE)!r}); " \
        "import runpy; runpy.run_module('kill_training', run_name='__main__')"
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE.parent)


def finish(folder: Path, stage: str) -> dict:
    process = start(folder, stage)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("stage", ["train", "self_train"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, stage):
    draw, steps_seen = random.Random(stage), 0
    whole = finish(tmp_path / "whole", stage)
    for _ in range(3):
        process = start(tmp_path / "killed", stage)
        for _ in range(draw.randint(1, 4)):
            steps_seen += process.stdout.readline() == "step\n"
        time.sleep(draw.uniform(0, 0.1))  # in the middle of a step, or of a checkpoint that is being written
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert steps_seen >= 3
    killed = finish(tmp_path / "killed", stage)
    assert killed == whole and len(whole["validation"]) == 12
    networks = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert networks[0] == networks[1]
    left = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert left == {"last.ckpt"}


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint(tmp_path):
    process = start(tmp_path, "train")
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    process = start(tmp_path, "train", LIMIT_FILES)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "last.ckpt: cannot be written" in errors.strip().splitlines()[-1], errors
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
