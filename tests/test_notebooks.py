"""Every notebook runs: what it asserts holds. Jobs (`skip_exec`) have tests of their own."""

import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import nbformat
import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

ROOT = Path(__file__).parents[1]


def notebooks() -> list[str]:
    paths = sorted((ROOT / "nbs").rglob("*.ipynb"))
    tested = [p for p in paths if ".ipynb_checkpoints" not in p.parts and "skip_exec: true" not in p.read_text()]
    return [str(p.relative_to(ROOT / "nbs")) for p in tested]


def run(path: Path, scratch: str, fault: Connection) -> None:
    """Run all cells as `nbdev_test` does; send the traceback of the first that fails, or nothing.

    What the notebook leaves in temporary folders lies in `scratch`.
    """
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.chdir(path.parent)
    shell = CaptureShell(path=str(path.parent))
    try:
        shell.run_all(read_nb(path), exc_stop=True)
    except Exception:
        fault.send(shell.prettytb(str(path)))
    else:
        fault.send("")


def fault_of(path: Path, processes) -> str:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # a hundred notebooks leave a gigabyte
        return _fault_of(path, scratch, processes)


def _fault_of(path: Path, scratch: str, processes) -> str:
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=run, args=(path, scratch, sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(600), "it takes too long"
        return receiver.recv()
    except EOFError:
        return "its process died"
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("name", notebooks())
def test_notebook_runs(name, processes):
    fault = fault_of(ROOT / "nbs" / name, processes)
    assert not fault, fault


def test_a_wrong_assertion_and_a_dead_process_are_faults(tmp_path, processes):
    for cell, fault in (("assert 1 + 1 == 3", "AssertionError"), ("import os; os._exit(0)", "died")):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        nbformat.write(notebook, tmp_path / "wrong.ipynb")
        assert fault in fault_of(tmp_path / "wrong.ipynb", processes)
