"""Files of weights that are damaged or mean harm end in one line, and nothing in them is ever called."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cups.core.checkpoints import fill, read_tensors
from cups.core.errors import InputError

STATE = {"net.weight": torch.arange(6.0).view(2, 3), "net.half": torch.ones(4, dtype=torch.float16)}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Configuration:
    """Stands for the classes that hyperparameters are made of."""

    def __init__(self) -> None:
        self.values = {"classes": [1, 2]}


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_a_checkpoint_with_objects_of_other_classes(tmp_path):
    path = tmp_path / "a.ckpt"
    shared = torch.arange(10.0)
    state = STATE | {"net.view": shared[2:8].view(2, 3).T, "net.parameter": torch.nn.Parameter(shared)}
    torch.save({"state_dict": state, "hyper_parameters": Configuration(), "path": Path("x"), "set": {1}}, path)
    read = read_tensors(path, "net.")
    assert read.keys() == {"weight", "half", "view", "parameter"}
    for name, value in read.items():
        assert torch.equal(value, state[f"net.{name}"]) and value.dtype == state[f"net.{name}"].dtype


@pytest.mark.parametrize("first", [b"\x80", b"PK"])
def test_a_safetensors_file_that_begins_like_another_format(tmp_path, first):
    path = tmp_path / "a.safetensors"
    for filling in range(0, 1 << 16, 8):  # the file begins with the length of its header
        save_file(STATE, path, {"filling": "x" * filling})
        if path.read_bytes().startswith(first):
            break
    assert path.read_bytes().startswith(first) and read_tensors(path).keys() == STATE.keys()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_arrays(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asfortranarray(np.eye(3)), "c": np.array(7)}
    path.write_bytes(pickle.dumps({"model": arrays, "author": "x", "matching": True}, protocol))
    read = read_tensors(path)
    assert all(np.array_equal(read[name].numpy(), array) for name, array in arrays.items())


@pytest.mark.parametrize("function", [os.system, eval, exec, os.remove, __import__, getattr])
def test_calls_are_refused(tmp_path, function):
    victim = tmp_path / "victim"
    victim.write_text("here")
    harm = Call(function, str(victim) if function is os.remove else f"__import__('os').remove({str(victim)!r})")
    for name, content in (("a.ckpt", {"state_dict": STATE, "more": harm}), ("b.ckpt", harm)):
        torch.save(content, tmp_path / name)
        message = one_line(tmp_path / name)
        assert "it wants to call" in message and f".{function.__name__}, which no" in message
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"model": harm}))
    assert "wants to call" in one_line(tmp_path / "c.pkl")
    torch.save(harm, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    one_line(tmp_path / "d.pt")
    assert victim.exists()


def test_truncated_files(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(STATE, path)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "not readable as weights" in one_line(path)
    assert one_line(tmp_path / "missing.ckpt").endswith("no such file")


def test_bombs(tmp_path):
    compressed = tmp_path / "a.ckpt"
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    assert "is compressed" in one_line(compressed)
    header = tmp_path / "b.safetensors"
    header.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    one_line(header)
    lies = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    header.write_bytes(struct.pack("<Q", len(lies)) + lies)
    one_line(header)
    memo = tmp_path / "c.pkl"
    memo.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # asks for a table of two thousand million entries
    assert "holds no tensors" in one_line(memo)


def test_tensors_larger_than_their_storages(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "a.pt")
    assert "does not fit its storage 0 of 1 numbers" in one_line(tmp_path / "a.pt")


def test_storages_shorter_than_their_tensors(tmp_path):
    path, shorter = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(shorter, "w") as out:
        for name in archive.namelist():
            data = archive.read(name)
            out.writestr(name, data[:4] if name.endswith("data/0") else data)
    assert "storage 0 is shorter than it says" in one_line(shorter)


def test_what_does_not_fit_is_listed():
    network = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))
    state = dict(network.state_dict())
    with pytest.raises(InputError, match=r"x.pt: does not fit the network; 8 missing: 0.weight, 0.bias.* and 3 more"):
        fill(network, {}, "x.pt")
    with pytest.raises(InputError, match=r"1 unexpected: more; 1 of another shape: 1.bias \(3,\) instead of \(2,\)"):
        fill(network, state | {"more": torch.zeros(1), "1.bias": torch.zeros(3)}, "x.pt")
