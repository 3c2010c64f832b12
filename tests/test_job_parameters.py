"""A job that is given a parameter it does not have, or a value of the wrong type, ends at once in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from papermill.inspection import inspect_notebook

from cups.run.parameters import ParameterError, check_parameters, given_parameters

ROOT = Path(__file__).parents[1]
JOBS = ("pseudo_labels", "train", "self_train", "fine_tune", "evaluate", "pretrain", "train_semantics")


def cells(job: str) -> list[str]:
    """Return the sources of a job's code from its parameters on."""
    code = [
        cell for cell in json.loads((ROOT / f"nbs/{job}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"
    ]
    first = next(i for i, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", []))
    return ["".join(cell["source"]) for cell in code[first:]]


@pytest.mark.parametrize("job", JOBS)
def test_papermill_knows_every_parameter(job):
    defaults, _ = given_parameters([cells(job)[0], "# Parameters\n", ""])
    assert list(inspect_notebook(ROOT / f"nbs/{job}.ipynb")) == list(defaults)
    namespace: dict = {}
    exec(cells(job)[0], namespace)
    assert set(defaults) == namespace.keys() - {"__builtins__"}
    sized = ("pseudo_labels", "train", "pretrain", "train_semantics")
    assert {"height", "width"} <= set(defaults) or job not in sized


def told(job: str, **given: object) -> str:
    """Return what a job says to parameters, with its own cells run in the order that papermill runs them in."""
    injected = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in given.items())
    namespace: dict = {}
    ran = [cells(job)[0], injected, cells(job)[1]]
    for i, source in enumerate(ran, 1):
        namespace["In"] = ["", *ran[:i]]
        try:
            exec(source, namespace)
        except ParameterError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("job", JOBS)
def test_every_job_asks_before_it_does_anything(job):
    assert told(job, run_dri="out") == "run_dri: the notebook has no such parameter; did you mean run_dir?"
    assert told(job, run_dir=3).startswith("run_dir: 3 is not text (as text: -r run_dir 3)")
    assert told(job, run_dir="out", num_shown=1) == "" or job == "fine_tune"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("steps", "abc", "'abc' is not a whole number"),
        ("steps", 2.5, "2.5 is not a whole number"),
        ("steps", True, "True is not a whole number"),
        ("steps", None, "None is not a whole number"),
        ("use_fixed", "yes", "'yes' is not True or False"),
        ("use_fixed", 1, "1 is not True or False"),
        ("devices", 1.5, "1.5 is not a whole number or text"),
        ("training", "fast", "'fast' is not a mapping (give it as -y 'training: {key: value}')"),
        ("data_root", False, "False is not text (as text: -r data_root False)"),
    ],
)
def test_values_of_the_wrong_type_are_named(name, value, says):
    assert told("train", **{name: value}) == f"{name}: {says}"


def test_values_that_fit_pass():
    assert told("train", devices="auto", steps=3, training={"learning_rate": 1}, data_root="x") == ""
    assert told("train_semantics", cache_gib=5) == ""  # a whole number is a number
    assert told("evaluate", scales=[1, 0.5], mirror=True, without=["sky"], PAPERMILL_OUTPUT_PATH="x") == ""
    assert told("evaluate", scales=["a"]).startswith("scales: ['a'] is not a list, each a number")
    assert told("evaluate", without="sky").startswith("without: 'sky' is not a list")
    check_parameters({"In": ["", "steps = 'by hand'", ""], "steps": "by hand"})  # a person runs the notebook


@pytest.mark.parametrize("notebook", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_with_parameters_asks(notebook):
    code = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    assert all("check_parameters(globals()" in "".join(code[i + 1]["source"]) for i in tagged)


def test_benchmarks_take_lists_for_tuples_and_sizes_in_one_line():
    assert told("benchmarks/confidence", seeds=[1, 2]) == ""
    assert told("benchmarks/crf", height=96, width="x") == "width: 'x' is not a whole number"


def test_papermill_ends_in_that_line(tmp_path):
    command = [sys.executable, "-m", "papermill", "nbs/train.ipynb", str(tmp_path / "out.ipynb"), "-p", "run_dir"]
    command += [str(tmp_path / "run"), "-p", "heigth", "96", "-p", "steps", "many"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0 and not (tmp_path / "run").exists()
    last = re.sub(r"\x1b\[[\d;]*m", "", run.stderr).strip().splitlines()[-1]
    assert last == (
        "ParameterError: heigth: the notebook has no such parameter; did you mean height?; "
        "steps: 'many' is not a whole number"
    )
