"""Two processes that learn together learn what one does from the same images, and end as one does when they fail."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training import SPLIT, TINY, Frames, FramesWithoutLabels

from cups.core.errors import InputError
from cups.core.processes import from_all_processes, own_share, process_index
from cups.core.records import PanopticLabel
from cups.evaluation.panoptic_quality import PanopticQuality
from cups.model.network import panoptic_cascade
from cups.training.augment import augmentation_settings
from cups.training.dataset import PseudoLabelDataset
from cups.training.self_training import self_train, self_train_settings
from cups.training.trainer import TrainResult, train, train_settings

USUAL = {"steps": 5, "warmup_steps": 1, "log_every_steps": 1, "checkpoint_every_steps": 2, "max_gradient_norm": 1.0}


class Unlike(Frames):
    """Frames of several sizes, of which some hold no object: each process has other counts of everything."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, PanopticLabel]:
        image, label = super().__getitem__(index)
        width = 64 + 8 * index
        semantic, instance = label.semantic[:, :width].clone(), label.instance[:, :width].clone()
        if index % 2:
            semantic[semantic == 3], instance[:] = 255, 0
        return image[:, :, :width].contiguous(), PanopticLabel(semantic, instance)


def learn(folder: Path, frames: Frames, validate=None, **changes) -> tuple[dict[str, torch.Tensor], TrainResult]:
    torch.manual_seed(0)
    # in float32 the noise of sums decides now and then which of two equal proposals comes first
    model = panoptic_cascade(1, 2, "small", **TINY).double()
    own = {"self_enhanced_after": 2, "own_confidence": 0.05}
    data = PseudoLabelDataset(frames, SPLIT, augmentation_settings("small", resolution_share=(0.8, 1.2), resolutions=3))
    settings = train_settings("small", **USUAL | own | changes)
    result = train(model, data, settings, folder, progress=False, validate=validate, accelerator="cpu")
    return model.state_dict(), result


def teach(folder: Path, **changes) -> tuple[dict[str, torch.Tensor], TrainResult]:
    torch.manual_seed(0)
    model = panoptic_cascade(1, 2, "small", **TINY).double()
    settings = self_train_settings("small", min_confidence=0.05, confidence_rise=0.0, **USUAL | changes)
    frames = FramesWithoutLabels(Frames())
    result = self_train(model, frames, SPLIT, settings, folder, progress=False, accelerator="cpu")
    return model.state_dict(), result


def assert_same(one: tuple[dict[str, torch.Tensor], TrainResult], two: tuple[dict[str, torch.Tensor], TrainResult]):
    """The losses of every step are equal in all digits of float32, and the weights in twice as many."""
    for expected, found in zip(one[1].history, two[1].history, strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), expected["step"]
    for name, weight in one[0].items():
        torch.testing.assert_close(two[0][name], weight, rtol=1e-8, atol=1e-8)


def test_two_processes_learn_what_one_does(tmp_path):
    one = learn(tmp_path / "one", Unlike(), batch_size=4)
    assert_same(one, learn(tmp_path / "two", Unlike(), batch_size=2, devices=2))


def test_two_processes_teach_themselves_what_one_does(tmp_path):
    one = teach(tmp_path / "one", batch_size=2)
    assert_same(one, teach(tmp_path / "two", batch_size=1, devices=2))


SECOND_NODE = "import sys; from test_distributed import Path, Unlike, learn; " \
    "learn(Path(sys.argv[1]), Unlike(), batch_size=2, nodes=2)"


def test_two_nodes_learn_what_one_process_does(tmp_path, monkeypatch):
    one = learn(tmp_path / "one", Unlike(), batch_size=4)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    environment = {**os.environ, "NODE_RANK": "1"}
    command = [sys.executable, "-c", SECOND_NODE, str(tmp_path / "two")]
    with subprocess.Popen(command, env=environment, cwd=Path(__file__).parent) as second:
        assert_same(one, learn(tmp_path / "two", Unlike(), batch_size=2, nodes=2))
        assert second.wait(60) == 0


def ended(folder: Path) -> TrainResult:
    """Learn in two processes; the second one is killed at step 3 where a file `kill` says so."""

    def validate(network: torch.nn.Module) -> dict[str, float]:
        """Score made-up predictions, each process its share, and die where it is asked to."""
        if (folder / "kill").exists() and (folder / "checkpoints" / "last.ckpt").exists() and process_index() == 1:
            (folder / "kill").touch()  # when it happened
            os.kill(os.getpid(), signal.SIGKILL)
        metric, weights = PanopticQuality([1], [0], 2, assignments=[0, 1]), sum(map(torch.sum, network.parameters()))
        for i in own_share(3):
            maps = torch.zeros(1, 8, 8, 2, dtype=torch.long)
            maps[:, :, i + 1 :] = 1
            metric.update(torch.zeros_like(maps), maps)
        return {"pq": metric.compute()["pq"].item(), "weights": weights.item(), "seen": len(from_all_processes(0))}

    return learn(folder, Frames(), validate, batch_size=1, devices=2, validate_every_steps=1)


def test_a_killed_process_ends_the_run_and_the_same_call_goes_on(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "kill").touch()
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 was killed \(SIGKILL\)"):
        ended(killed)
    assert time.time() - (killed / "kill").stat().st_mtime < 60, "the others wait for a process that is dead"
    (killed / "kill").unlink()
    expected, found = ended(whole), ended(killed)
    assert found[1].first_step == 2 and found[1].history == expected[1].history
    assert found[1].validation == expected[1].validation and len(found[1].validation) == 5
    assert all(torch.equal(weight, found[0][name]) for name, weight in expected[0].items())
    kept = {path.name for path in killed.iterdir()}
    assert kept == {"checkpoints", "tensorboard"} and len(list((whole / "tensorboard").iterdir())) == 2
    assert {path.name for path in (killed / "checkpoints").iterdir()} == {"last.ckpt"}
    three = PanopticQuality([1], [0], 2, assignments=[0, 1])
    for i in range(3):
        maps = torch.zeros(1, 8, 8, 2, dtype=torch.long)
        maps[:, :, i + 1 :] = 1
        three.update(torch.zeros_like(maps), maps)
    assert found[1].validation[0]["pq"] == three.compute()["pq"].item() and found[1].validation[0]["seen"] == 2


def test_a_loss_that_is_not_finite_ends_all_processes(tmp_path):
    with pytest.raises(InputError, match=r"not finite at step \d: .* kept in .*failed_batch"):
        learn(tmp_path, Frames(), batch_size=1, devices=2, learning_rate=1e12, max_gradient_norm=1e12)


def test_devices_and_nodes_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"devices: 4096 asked for, this node has .* CPU core"):
        learn(tmp_path, Frames(), devices=4096)
    with pytest.raises(InputError, match="nodes = 2: start under SLURM's srun, or set NODE_RANK and MASTER_ADDR"):
        learn(tmp_path, Frames(), nodes=2)
    with pytest.raises(InputError, match="nodes must be positive"):
        learn(tmp_path, Frames(), nodes=0)
