"""Chapters can be read: one idea a cell, every public name at work, and no stored output that shows an error."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MAX_DEFINITIONS, MAX_LINES = 3, 65
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def code_cells(path: Path) -> tuple[list[str], list[str]]:
    """Return the sources of a notebook's exported cells, and those of its other cells of code."""
    exported, other = [], []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            (exported if re.search(r"^#\|\s*exports?\b", source, re.M) else other).append(source)
    return exported, other


def parsed(source: str) -> list[ast.stmt]:
    """Return the statements of a cell, none if it holds a magic."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def public_names(path: Path) -> set[str]:
    """Return the public functions, classes and constants that a notebook exports."""
    names = set()
    for node in (node for source in code_cells(path)[0] for node in parsed(source)):
        if isinstance(node, DEFINITION) and not any("patch" in ast.unparse(d) for d in node.decorator_list):
            names.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                names.add(target.id)
    return {name for name in names if not name.startswith("_")}


@cache
def words(path: Path) -> set[str]:
    """Return the identifiers in the code of a notebook or in a test."""
    text = path.read_text() if path.suffix == ".py" else "\n".join("\n".join(cells) for cells in code_cells(path))
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_a_notebook_stays_small(path):
    """Executing one stores the state of its widgets, 5 MB for every plot."""
    assert path.stat().st_size < 1e6
    notebook = json.loads(path.read_text())
    shown = any("application/vnd.jupyter.widget-view+json" in output.get("data", {})
                for cell in notebook["cells"] for output in cell.get("outputs", []))  # fmt: skip
    assert shown or "widgets" not in notebook["metadata"], "state of widgets that no output shows"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_a_cell_holds_one_idea(path):
    for source in code_cells(path)[0]:
        names = [node.name for node in parsed(source) if isinstance(node, DEFINITION)]
        assert len(names) <= MAX_DEFINITIONS, f"a cell defines {', '.join(names)}"
        assert source.count("\n") < MAX_LINES, f"the cell of {names[:1]} has {source.count(chr(10)) + 1} lines"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_every_public_name_is_at_work_somewhere(path):
    shown = set(re.findall(r"\w+", "\n".join(code_cells(path)[1])))
    elsewhere = [p for p in NOTEBOOKS if p != path] + sorted((ROOT / "tests").rglob("*.py"))
    unused = {name for name in public_names(path) - shown if not any(name in words(p) for p in elsewhere)}
    assert not unused, f"shown nowhere and used by nobody else: make them private or show them: {sorted(unused)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_type_variables_are_private(path):
    for node in (node for source in code_cells(path)[0] for node in parsed(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("TypeVar("):
            assert node.targets[0].id.startswith("_"), ast.unparse(node)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_no_stored_output_shows_an_error(path):
    for cell in json.loads(path.read_text())["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", output.get("evalue")
            text = re.sub(r"data:[\w/]+;base64,[^\"\\]*", "", json.dumps({k: v for k, v in output.items()}))
            assert not re.search(r"Traceback \(most recent|reads layout \d", text), text[:300]
