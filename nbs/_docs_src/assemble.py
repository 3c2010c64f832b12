"""Assemble the sources of the site from notebooks, data cards and the package: `assemble.py ROOT OUT`.

A page of this folder may have lines that are filled in from elsewhere, so that no figure is written twice:

    %section TITLE           a section of `nbs/index.ipynb` without its title
    %outputs NOTEBOOK        the tables and printed lines that a notebook stores
    %picture NOTEBOOK N ALT  picture N, from 0 on, that a notebook stores
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from cups.cli import parser as command_line

FOLDERS = {
    "stages": "The method in its order: what follows what, and the record that each stage makes.",
    "stages/matching": "Two stereo pairs become optical flow and disparity.",
    "stages/motion": "Scene flow becomes moving objects, each with its SE(3) motion.",
    "stages/semantics": "Features and clusters become a class for every pixel.",
    "stages/labels": "Moving objects and classes become one panoptic pseudo-label.",
    "stages/tracking": "Objects keep their identity from frame to frame.",
    "model": "Panoptic Cascade Mask R-CNN on torch and torchvision.",
    "training": "Targets, augmentation, training, self-training and fine-tuning.",
    "evaluation": "Panoptic quality, classes and objects against ground truth.",
    "run": "The method on many frames: workers, Dask, generation and prediction.",
    "interop": "To detectron2 and back, and to PyTorch3D.",
    "labels": "The pseudo-label store, its check, labels fixed by hand, COCO export.",
    "datasets": "Readers of data sets in their official layouts, their check, and miniatures.",
    "street": "The embedded world: street scenes with exact ground truth, and no download.",
    "workbench": "Look at every stage and turn every setting.",
    "workbench/view": "The view of a frame in the browser.",
    "core": "Records, geometry, settings and files that everything else stands on.",
    "benchmarks": "Speed, memory and accuracy as ratios against named alternatives.",
}
"""Folders of notebooks in reading order; others follow by name."""

RUN_ORDER = ("explore", "train_semantics", "pretrain", "pseudo_labels", "train", "self_train", "fine_tune", "evaluate")
"""Notebooks that people run, in their order; others follow by name."""

DIRECTIVE = re.compile(r"^#\| *(\w+)", re.M)
DIRECTIVE_LINE = re.compile(r"^#\|.*\n?", re.M)


def notebooks(root: Path) -> list[Path]:
    """Return all notebooks but the index, as paths below `nbs`, in reading order."""
    folder = root / "nbs"
    found = [p.relative_to(folder) for p in folder.rglob("*.ipynb")]
    found = [p for p in found if not any(part.startswith((".", "_")) for part in p.parts) and p != Path("index.ipynb")]
    folders, runs = [".", *FOLDERS], list(RUN_ORDER)

    def place(path: Path) -> tuple:
        parent, name = path.parent.as_posix(), path.stem
        first = folders.index(parent) if parent in folders else len(folders)
        return first, parent, runs.index(name) if name in runs else len(runs), name

    return sorted(found, key=place)


def read_notebook(root: Path, name: str | Path) -> dict[str, Any]:
    """Return a notebook, named by its path below `nbs` with or without its ending, with every source one string."""
    notebook = json.loads((root / "nbs" / Path(name).with_suffix(".ipynb")).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def directives(cell: dict[str, Any]) -> set[str]:
    """Return the nbdev directives of a cell."""
    return set(DIRECTIVE.findall(cell["source"])) if cell["cell_type"] == "code" else set()


def is_job(notebook: dict[str, Any]) -> bool:
    """Return whether papermill runs the notebook."""
    return any(cell["cell_type"] == "raw" and "skip_exec: true" in cell["source"] for cell in notebook["cells"])


def module_of(notebook: dict[str, Any]) -> str | None:
    """Return the name of the module that a notebook exports."""
    for cell in notebook["cells"]:
        if found := re.search(r"^#\| *default_exp +([\w.]+)", cell["source"], re.M):
            return f"cups.{found[1]}".removesuffix(".__init__")
    return None


def title_of(notebook: dict[str, Any]) -> tuple[str, str]:
    """Return the title of a notebook and its description in one line."""
    text = next(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    title, rest = re.match(r"# (.+)\n?((?:.|\n)*)", text).groups()
    quote = re.search(r"^> (.+(?:\n> .+)*)", rest, re.M)
    return title, quote[1].replace("\n> ", " ") if quote else ""


def defined_names(code: str) -> list[str]:
    """Return the public names that a cell defines; none for code that is not plain Python."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return []
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names += [name for node in body for name in assigned(node)]
    return [name for name in names if not name.startswith("_")]


def assigned(node: ast.stmt) -> list[str]:
    """Return the names that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [inner.id for target in targets if target for inner in ast.walk(target) if isinstance(inner, ast.Name)]


def only_imports(code: str) -> bool:
    """Return whether a cell does nothing but import."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in body)


def markdown(text: str) -> dict[str, Any]:
    """Return a cell of prose."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code_cells(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a page shows of a cell of code: nothing, the cell, or anchors for its names and the cell."""
    found = directives(cell)
    if found & {"hide", "default_exp"}:
        return []
    code = DIRECTIVE_LINE.sub("", cell["source"]).strip("\n")
    tags, anchors = list(cell["metadata"].get("tags", [])), []
    if only_imports(code):
        tags.append("hide-input")
    elif found & {"export", "exports"}:
        tags.append("exported")
        anchors = [markdown("\n".join(f'<a id="source-{name}"></a>' for name in defined_names(code)))]
    shown = cell | {"source": code, "metadata": cell["metadata"] | {"tags": tags}}
    return [*anchors, shown] if code else []


def origin(path: Path, notebook: dict[str, Any]) -> str:
    """Return the line below a chapter's title that says where it lies and where it leads."""
    module = module_of(notebook)
    if module:
        return f"{{.origin}}\nModule {{py:mod}}`{module}`, made from `nbs/{path.as_posix()}`."
    if is_job(notebook):
        return f"{{.origin}}\nJob `nbs/{path.as_posix()}`: papermill runs it, and what ran is the record of the run."
    return f"{{.origin}}\nNotebook `nbs/{path.as_posix()}`."


def chapter(path: Path, notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook as a page shows it: without directives and hidden cells, exported names anchored."""
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cells += code_cells(cell)
        elif cell["cell_type"] == "markdown":
            cells.append(markdown(cell["source"]))
    cells[0]["source"] += "\n\n" + origin(path, notebook)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def groups(root: Path, paths: list[Path]) -> list[tuple[str, str, list[Path]]]:
    """Return title, description and notebooks of every group of chapters, in reading order."""
    beside = [path for path in paths if path.parent == Path()]
    jobs = [path for path in beside if path.stem in RUN_ORDER or is_job(read_notebook(root, path))]
    rest = [path for path in beside if path not in jobs]
    found = [
        ("To run", "Notebooks with parameters, for people and for papermill.", jobs),
        ("Command line and weights", "The commands, and the registry of published weights.", rest),
    ]
    for folder in dict.fromkeys(path.parent.as_posix() for path in paths if path not in beside):
        inside = [path for path in paths if path.parent.as_posix() == folder]
        found.append((folder.capitalize().replace("/", ": "), FOLDERS.get(folder, ""), inside))
    return found


def chapter_list(root: Path, paths: list[Path]) -> str:
    """Return the page that leads to all chapters."""
    lines = [
        "# Chapters", "",
        "> Every module of the package is a notebook that explains it, shows it at work and checks it.",
        "> They hold the results they were committed with.", "",
    ]  # fmt: skip
    for title, text, inside in groups(root, paths):
        names = [f"/{path.with_suffix('').as_posix()}" for path in inside]
        rows = [f"- {{doc}}`{name}`: {title_of(read_notebook(root, name[1:]))[1]}" for name in names]
        lines += [f"## {title}", "", text, "", *rows, "", *toctree(names, title)]
    return "\n".join(lines)


def toctree(names: list[str], caption: str = "") -> list[str]:
    """Return the lines that put pages into the navigation."""
    return ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *names, "```", ""]


def modules(root: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return the public names of every module with and without a docstring, in the order of the notebooks."""
    found = {}
    for path in notebooks(root):
        module = module_of(read_notebook(root, path))
        if module:
            file = root / Path(*module.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            found[module] = public_names(file.read_text(encoding="utf-8"))
    return found


def public_names(code: str) -> tuple[list[str], list[str]]:
    """Return the names in the last `__all__` of a module: those with a docstring, and the others."""
    body = ast.parse(code).body
    names = [ast.literal_eval(node.value) for node in body if "__all__" in assigned(node)][-1]
    values = {name for node in body for name in assigned(node)}
    documented = (
        node for node, after in pairwise(body)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    )  # fmt: skip
    told = {name for node in documented for name in assigned(node)}
    bare = [name for name in names if name in values - told]
    return [name for name in names if name not in bare], bare


def chapters_of_modules(root: Path) -> dict[str, str]:
    """Return the page of the chapter that every module is made from, without its ending."""
    found = {module_of(read_notebook(root, path)): path.with_suffix("").as_posix() for path in notebooks(root)}
    return {module: page for module, page in found.items() if module}


def reference(module: str, names: list[str], page: str, package: bool) -> str:
    """Return the page of a module in the reference."""
    text = [module, "=" * len(module), "", f"Chapter: :doc:`/{page}`.", ""]
    if package:  # documented where they are defined
        text += [f".. py:module:: {module}", ""]
        listed = ", ".join(f"`{name}`" for name in names)
        return "\n".join([*text, f"Imports, for those who only want to use it: {listed}."])
    table = ["   .. autosummary::", "      :nosignatures:", "", *(f"      {name}" for name in names), ""]
    return "\n".join([*text, f".. automodule:: {module}", "   :members:", "", *table])


def reference_list(root: Path, names: list[str]) -> str:
    """Return the page that leads to the reference of all modules."""
    pages = chapters_of_modules(root)
    lines = ["# Reference", "", "> Commands, parameters of jobs, and every public name of the package.", ""]
    lines += ["- {doc}`commands`: what each takes", "- {doc}`jobs`: the parameters of each, one by one", ""]
    lines += toctree(["commands", "jobs"], "To run")
    packages = {name.rpartition(".")[0] for name in names}
    sections = {name: name if name in packages else name.rpartition(".")[0] for name in names}
    for section in dict.fromkeys(sections.values()):
        inside = [name for name in names if sections[name] == section]
        rows = [f"- [{name}]({name}.rst): {title_of(read_notebook(root, pages[name]))[1]}" for name in inside]
        entries = [f"{name.removeprefix(section + '.')} <{name}>" for name in inside]
        lines += [f"## {section}", "", *rows, "", *toctree(entries, section)]
    return "\n".join(lines)


def parameter_rows(notebook: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, default and meaning of every parameter of a job, in their order."""
    tagged = (c["source"] for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    source = next(tagged, "")
    rows, lines = [], source.splitlines()
    for node in (node for node in ast.parse(source).body if isinstance(node, ast.Assign)):
        names = [inner.id for inner in ast.walk(node.targets[0]) if isinstance(inner, ast.Name)]
        meaning = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip().removeprefix("#").strip()
        rows.append((", ".join(names), ast.unparse(node.value), meaning))
    return rows


def job_list(root: Path, paths: list[Path]) -> str:
    """Return the page of the jobs' parameters, one by one."""
    lines = ["# Parameters of the jobs", "", "> What `-p NAME VALUE` of papermill sets, job by job.", ""]
    for path in paths:
        rows = parameter_rows(notebook := read_notebook(root, path))
        if path.parent != Path() or not rows:
            continue
        name = path.with_suffix("").as_posix()
        lines += [f"## {path.stem}", "", f"{title_of(notebook)[1]} {{doc}}`The notebook </{name}>`.", ""]
        lines += ["| parameter | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{parameter}` | `{default}` | {meaning} |" for parameter, default, meaning in rows] + [""]
    return "\n".join(lines)


def command_list(parser: argparse.ArgumentParser) -> str:
    """Return the page of all commands: the help that each prints."""
    lines = ["# Commands", "", "> What `cups COMMAND --help` says, command by command.", ""]
    for command in commands_of(parser):
        lines += [f"## {command.prog}", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers that run something: those of commands without actions, and of actions."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for command in (command for action in inner for command in action.choices.values()):
        yield from commands_of(command)


def card_list(root: Path) -> str:
    """Return the page that leads to all data cards."""
    rows, names = [], []
    for path in sorted((root / "data_cards").glob("*.md")):
        body = path.read_text(encoding="utf-8").split("\n---\n", 1)[-1]
        title, first = re.search(r"^# (.+)\n+((?:.+\n)+)", body, re.M).groups()
        rows.append(f"- [{title}]({path.name}): {first.strip().split('. ')[0].rstrip('.')}.".replace("\n", " "))
        names.append(path.stem)
    head = ["# Data sets", "", "> A card for each: source, licence, layout, splits, labels, known faults."]
    return "\n".join([*head, "", *rows, "", *toctree(names)])


def index_section(root: Path, title: str) -> str:
    """Return a section of the index without its title; all before the first section for an empty title."""
    text = "\n\n".join(cell["source"] for cell in read_notebook(root, "index")["cells"])
    parts = re.split(r"^## (.+)\n", "\n" + text, flags=re.M)
    sections = {"": re.sub(r"^# .+\n+> .+\n", "", parts[0].lstrip())} | dict(zip(parts[1::2], parts[2::2], strict=True))
    if title not in sections:
        raise SystemExit(f"nbs/index.ipynb has no section {title!r}")
    return sections[title].strip().replace("](_docs_src/", "](/")


def stored_error(notebook: dict[str, Any]) -> str | None:
    """Return the last line of the first error that a notebook's stored outputs hold, None if they hold none."""
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if output["output_type"] == "error":
            return f"{output['ename']}: {output['evalue']}"
        data = {kind: value for kind, value in output.get("data", {}).items() if kind.startswith("text/")}
        for text in ("".join(value) for value in [output.get("text", ""), *data.values()]):
            if "Traceback (most recent call last)" in text:
                return text.strip().splitlines()[-1]
    return None


def check_outputs(root: Path, paths: list[Path]) -> None:
    """Stop with one line for every notebook whose stored outputs hold an error.

    Raises
    ------
    SystemExit
    """
    errors = {path: stored_error(read_notebook(root, path)) for path in paths}
    lines = [f"nbs/{path.as_posix()} stores an error: {error}" for path, error in errors.items() if error]
    if lines:
        raise SystemExit("\n".join(lines))


def stored_outputs(root: Path, name: str) -> str:
    """Return the tables and printed lines that a notebook stores, as Markdown."""
    found = []
    for cell in read_notebook(root, name)["cells"]:
        outputs = cell.get("outputs", [])
        printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
        found += [f"```text\n{printed.rstrip()}\n```"] if printed else []
        found += ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    return "\n\n".join(found) or "*The stored notebook has no results yet.*"


def stored_picture(root: Path, name: str, number: int, out: Path) -> str:
    """Write a picture that a notebook stores below `out`, and return its address from there."""
    kinds = {"image/png": "png", "image/jpeg": "jpg"}
    outputs = [o.get("data", {}) for c in read_notebook(root, name)["cells"] for o in c.get("outputs", [])]
    pictures = [(data[kind], ending) for data in outputs for kind, ending in kinds.items() if kind in data]
    if number >= len(pictures):
        raise SystemExit(f"nbs/{name}.ipynb stores {len(pictures)} pictures, and a page wants number {number}")
    data, ending = pictures[number]
    path = out / "pictures" / f"{name.replace('/', '_')}_{number}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode("".join(data)))
    return "/" + path.relative_to(out).as_posix()


def filled(text: str, root: Path, out: Path) -> str:
    """Return a page with its `%section`, `%outputs` and `%picture` lines filled in."""
    text = re.sub(r"^%section ?(.*)$", lambda m: index_section(root, m[1]), text, flags=re.M)
    text = re.sub(r"^%outputs (\S+)$", lambda m: stored_outputs(root, m[1]), text, flags=re.M)
    picture = r"^%picture (\S+) (\d+) (.+)$"
    return re.sub(picture, lambda m: f"![{m[3]}]({stored_picture(root, m[1], int(m[2]), out)})", text, flags=re.M)


def assemble(root: Path, out: Path) -> None:
    """Write the sources of the whole site into the folder `out`, which is emptied first."""
    here = Path(__file__).parent
    paths, names, pages = notebooks(root), modules(root), chapters_of_modules(root)
    check_outputs(root, [Path("index.ipynb"), *paths])
    shutil.rmtree(out, ignore_errors=True)
    texts = {Path("chapters.md"): chapter_list(root, paths), Path("data_cards/index.md"): card_list(root)}
    texts |= {path: json.dumps(chapter(path, read_notebook(root, path))) for path in paths}
    texts |= {p.relative_to(here): filled(p.read_text(encoding="utf-8"), root, out) for p in here.rglob("*.md")}
    texts |= {p.relative_to(root): p.read_text(encoding="utf-8") for p in (root / "data_cards").glob("*.md")}
    texts[Path("changelog.md")] = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    texts[Path("reference/commands.md")] = command_list(command_line())
    texts[Path("reference/jobs.md")] = job_list(root, paths)
    texts[Path("reference/index.md")] = reference_list(root, list(names))
    for module, (public, _) in names.items():
        package = (root / Path(*module.split("."))).is_dir()
        texts[Path(f"reference/{module}.rst")] = reference(module, public, pages[module], package)
    for path, text in texts.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
    shutil.copytree(root / "nbs" / "images", out / "images")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
