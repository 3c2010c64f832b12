"""A short training run that tells of every step; `test_training_faults` kills it."""

import resource
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from test_training import SPLIT, TINY, Frames, FramesWithoutLabels

from cups.model.files import save_network
from cups.model.network import panoptic_cascade
from cups.training.dataset import PseudoLabelDataset
from cups.training.self_training import self_train, self_train_settings
from cups.training.trainer import train, train_settings

USUAL = {"steps": 12, "batch_size": 2, "warmup_steps": 1, "checkpoint_every_steps": 1, "log_every_steps": 4}


def run(folder: Path, stage: str, parent: Connection, disk_bytes: int | None) -> None:
    """Train, in files of at most so many bytes; send "step" after every step, and the traceback of a fault."""
    if disk_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk_bytes, disk_bytes))
    try:
        learn(folder, stage, parent)
    except Exception as error:
        parent.send(traceback.format_exc())
        raise SystemExit(1) from error


def learn(folder: Path, stage: str, parent: Connection) -> None:
    """Train the network of `test_training`, or let it teach itself."""

    def validate(network: torch.nn.Module) -> dict[str, float]:
        weights = float(sum(p.double().abs().sum() for p in network.parameters()))
        parent.send("step")
        return {"weights": weights}

    torch.manual_seed(0)
    model = panoptic_cascade(1, 2, "small", **TINY)
    options = {"progress": False, "accelerator": "cpu", "validate": validate}
    if stage == "train":
        own = {"self_enhanced_after": 3, "own_confidence": 0.05, "validate_every_steps": 1}
        settings = train_settings("small", **USUAL, **own)
        result = train(model, PseudoLabelDataset(Frames(), SPLIT), settings, folder, **options)
    else:
        sure = {"min_confidence": 0.05, "confidence_rise": 0.0, "validate_every_steps": 1}
        settings = self_train_settings("small", **USUAL, **sure)
        result = self_train(model, FramesWithoutLabels(Frames()), SPLIT, settings, folder, **options)
    torch.save({"history": result.history, "validation": result.validation}, folder / "result.pt")
    save_network(folder / "model.safetensors", model, SPLIT)
