"""A training run that is killed, at whatever moment, ends as one that was not; a full disk costs no checkpoint."""

import random
import time
from pathlib import Path

import pytest
import torch
from kill_training import run


class Run:
    """A process that trains, and what it says."""

    def __init__(self, processes, folder: Path, stage: str, disk_bytes: int | None = None):
        folder.mkdir(exist_ok=True)
        self.heard, sender = processes.Pipe(duplex=False)
        self.process = processes.Process(target=run, args=(folder, stage, sender, disk_bytes))
        self.process.start()
        sender.close()

    def word(self) -> str:
        """Return what it says next; nothing once it has ended."""
        assert self.heard.poll(300), "it takes too long"
        try:
            return self.heard.recv()
        except EOFError:
            return ""

    def finish(self) -> str:
        """Return the last that it said, when it has ended."""
        last = ""
        while word := self.word():
            last = word
        self.process.join()
        return last

    def kill(self) -> None:
        self.process.kill()
        self.finish()


def finish(processes, folder: Path, stage: str) -> dict:
    training = Run(processes, folder, stage)
    last = training.finish()
    assert training.process.exitcode == 0, last
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("stage", ["train", "self_train"])
def test_a_killed_run_ends_with_the_same_weights(processes, tmp_path, stage):
    draw, steps_seen = random.Random(stage), 0
    whole = finish(processes, tmp_path / "whole", stage)
    for _ in range(3):
        training = Run(processes, tmp_path / "killed", stage)
        for _ in range(draw.randint(1, 4)):
            steps_seen += training.word() == "step"
        time.sleep(draw.uniform(0, 0.1))  # in the middle of a step, or of a checkpoint that is being written
        training.kill()
    assert steps_seen >= 3
    killed = finish(processes, tmp_path / "killed", stage)
    assert killed == whole and len(whole["validation"]) == 12
    networks = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert networks[0] == networks[1]
    left = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert left == {"last.ckpt"}


def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoint(processes, tmp_path):
    training = Run(processes, tmp_path, "train")
    for _ in range(3):
        training.word()
    training.kill()
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    training = Run(processes, tmp_path, "train", disk_bytes=200_000)
    fault = training.finish()
    assert training.process.exitcode != 0
    assert "last.ckpt: cannot be written" in fault.strip().splitlines()[-1], fault
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
