"""The site: its sources are what the notebooks say, its commands exist, and its links are checked."""

import ast
import json
import re
import shlex
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "nbs" / "_docs_src"
sys.path.insert(0, str(SOURCES))

import assemble  # noqa: E402
import links  # noqa: E402

from cups.cli import parser  # noqa: E402
from cups.stages.motion.confidence import TERMS  # noqa: E402
from cups.stages.motion.propose import propose  # noqa: E402
from cups.stages.motion.settings import MotionSettings  # noqa: E402
from cups.stages.scene_flow import scene_flow  # noqa: E402
from cups.street.scenes import exact_matches, street_scene  # noqa: E402

PAGES = sorted(SOURCES.rglob("*.md"))


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of code of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def parameters(notebook: str) -> set[str]:
    """Return the names of the parameters of a job."""
    cells = assemble.read_notebook(ROOT, Path(notebook).relative_to("nbs"))["cells"]
    source = next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return {name for node in ast.parse(source).body for name in assemble.assigned(node)}


def parameters_cell(notebook: Path) -> bool:
    """Return whether a notebook has parameters."""
    cells = assemble.read_notebook(ROOT, notebook)["cells"]
    return any("parameters" in cell["metadata"].get("tags", []) for cell in cells)


def test_every_notebook_is_a_chapter_in_reading_order():
    names = [path.as_posix() for path in assemble.notebooks(ROOT)]
    assert set(names) == {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")
                          if ".ipynb_checkpoints" not in p.parts} - {"index.ipynb"}  # fmt: skip
    order = ["train.ipynb", "stages/03_pipeline.ipynb", "stages/matching/08_classical.ipynb",
             "street/01_textures.ipynb", "core/05_files.ipynb", "benchmarks/crf.ipynb"]  # fmt: skip
    assert sorted(order, key=names.index) == order


def test_new_folders_and_notebooks_are_picked_up(tmp_path):
    for name in ("index", "data/31_new", "data/04_old", "zebra/01_first", "_hidden/x"):
        path = tmp_path / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"cells": [{"cell_type": "markdown", "source": ["# T\\n", "\\n", "> What."]}]}')
    paths = assemble.notebooks(tmp_path)
    assert [p.as_posix() for p in paths] == ["data/04_old.ipynb", "data/31_new.ipynb", "zebra/01_first.ipynb"]
    listed = assemble.chapter_list(tmp_path, paths)
    assert "## Zebra" in listed and "- {doc}`/data/31_new`: What." in listed


def test_nested_folders_read_well():
    chapters = assemble.chapter_list(ROOT, assemble.notebooks(ROOT))
    assert "## Stages: motion\n\nScene flow becomes" in chapters and ":caption: Stages: motion" in chapters
    listed = assemble.reference_list(ROOT, list(assemble.modules(ROOT)))
    assert "## cups.stages.motion\n" in listed and "\npropose <cups.stages.motion.propose>\n" in listed
    modules = re.findall(r"^- \[([\w.]+)\]", listed, re.M)
    assert len(modules) == len(set(modules)) and set(modules) == set(assemble.modules(ROOT))
    assert all(name in assemble.FOLDERS for name in {p.parent.as_posix() for p in assemble.notebooks(ROOT)} - {"."})


TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: no good\n"


@pytest.mark.parametrize(
    "output",
    [
        {"output_type": "error", "ename": "ValueError", "evalue": "no good", "traceback": []},
        {"output_type": "stream", "name": "stderr", "text": TRACEBACK.splitlines(keepends=True)},
        {"output_type": "display_data", "data": {"text/plain": [TRACEBACK]}},
    ],
    ids=lambda output: output["output_type"],
)
def test_a_stored_error_stops_the_build(output, tmp_path):
    good = {"output_type": "stream", "name": "stdout", "text": ["fine\n"]}
    for name, outputs in (("index", [good]), ("core/01_bad", [good, output])):
        path = tmp_path / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["f()"], "outputs": outputs}]}))
    with pytest.raises(SystemExit, match=r"^nbs/core/01_bad\.ipynb stores an error: ValueError: no good$"):
        assemble.check_outputs(tmp_path, [Path("index.ipynb"), Path("core/01_bad.ipynb")])


def test_no_committed_notebook_stores_an_error():
    assemble.check_outputs(ROOT, [Path("index.ipynb"), *assemble.notebooks(ROOT)])


def test_every_parameter_of_every_job_is_in_the_reference_with_its_meaning():
    page = assemble.job_list(ROOT, assemble.notebooks(ROOT))
    jobs = [p for p in assemble.notebooks(ROOT) if p.parent == Path() and parameters_cell(p)]
    assert len(jobs) > 7
    for job in jobs:
        rows = assemble.parameter_rows(assemble.read_notebook(ROOT, job))
        assert {name for names, _, _ in rows for name in names.split(", ")} == parameters(f"nbs/{job}")
        assert all(meaning for _, _, meaning in rows), rows
        section = page.split(f"\n## {job.stem}\n")[1].split("\n## ")[0]
        assert all(f"| `{name}` | `{default}` | {meaning} |" in section for name, default, meaning in rows)


def test_meanings_of_parameters_stand_behind_them():
    source = 'a, b = 1, "# 2"  # sizes: "é"\nc = {}'
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    assert assemble.parameter_rows({"cells": [cell]}) == [("a, b", "(1, '# 2')", 'sizes: "é"'), ("c", "{}", "")]


def test_the_help_of_every_command_is_in_the_reference():
    page = assemble.command_list(parser())
    for name in ("scenes", "explore", "data check", "store merge", "weights fetch"):
        assert f"\n## cups {name}\n" in page and f"usage: cups {name} " in page
    assert page.count("\n## ") == page.count("usage: ")


def test_directives_and_hidden_cells_are_not_shown():
    def cell(source: str, **more) -> dict:
        return {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], **more}

    cells = [
        {"cell_type": "raw", "source": "---\nskip_exec: true\n---"},
        assemble.markdown("# Title\n\n> What."),
        cell("#| default_exp core.x"),
        cell("#| export\nimport math"),
        cell("#| export\nLIMIT, _hidden = 3, 4\ndef f():\n    return 1"),
        cell("f()"),
        cell("#| hide\nimport nbdev; nbdev.nbdev_export()"),
    ]
    shown = assemble.chapter(Path("core/01_x.ipynb"), {"cells": cells})["cells"]
    assert [c["cell_type"] for c in shown] == ["markdown", "code", "markdown", "code", "code"]
    assert not any(re.search(r"#\||nbdev_export|skip_exec", c["source"]) for c in shown)
    assert "{py:mod}`cups.core.x`" in shown[0]["source"]
    assert shown[2]["source"] == '<a id="source-f"></a>\n<a id="source-LIMIT"></a>'
    assert [c["metadata"].get("tags") for c in shown if c["cell_type"] == "code"] == [["hide-input"], ["exported"], []]


def test_a_page_that_asks_for_what_is_not_there_stops_the_build(tmp_path):
    with pytest.raises(SystemExit, match="no section 'Nonsense'"):
        assemble.filled("%section Nonsense", ROOT, tmp_path)
    with pytest.raises(SystemExit, match="stores 0 pictures"):
        assemble.filled("%picture core/05_files 0 A picture", ROOT, tmp_path)


def test_pages_are_filled_with_what_notebooks_store(tmp_path):
    text = assemble.filled("%outputs benchmarks/crf\n\n%picture benchmarks/crf 0 Maps", ROOT, tmp_path)
    assert "| pydensecrf, one thread |" in text
    assert "![Maps](/pictures/benchmarks_crf_0.jpg)" in text
    assert (tmp_path / "pictures" / "benchmarks_crf_0.jpg").read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_and_imports_on_the_pages_exist(path, tmp_path):
    text = assemble.filled(path.read_text(), ROOT, tmp_path)
    for line in "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["cups"]:
            parser().parse_args(words[1:])
        elif words[:1] == ["papermill"]:
            given = {words[k + 1] for k, word in enumerate(words) if word == "-p"}
            assert given <= parameters(words[1]), line
        elif words[:1] == ["make"]:
            assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text(), line
    for node in (node for block in blocks(text, "python") for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("cups"):
            module = import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_every_reason_for_an_empty_instance_map_is_explained():
    text = (SOURCES / "guide" / "empty_instance_map.md").read_text()
    scene = street_scene(3, 64, 128)
    distrusted = scene_flow(scene.sample, exact_matches(scene)).diagnostics["distrusted_share"]
    rules = {m[1] for f in fields(MotionSettings) if (m := re.fullmatch("(?:min|max)_(.+)", f.name))}
    assert len(rules) > 5 and len(distrusted) > 4
    missing = {name for name in {*distrusted, *rules, *(term.name for term in TERMS)} if f"`{name}`" not in text}
    assert not missing


def test_every_sentence_about_an_empty_instance_map_is_explained():
    headings = re.findall('^## "(.+)"$', (SOURCES / "guide" / "empty_instance_map.md").read_text(), re.M)
    patterns = [re.escape(h).replace("N", r"\d+").replace("RULE", r"\w+") for h in headings]
    moving, static = street_scene(7, 96, 192), street_scene(7, 96, 192, static=True)
    cases = [
        (moving, MotionSettings(min_trusted_points=10**6)),
        (static, MotionSettings()),
        (moving, MotionSettings(min_confidence=1.0)),
    ]
    for (scene, settings), pattern in zip(cases, patterns, strict=True):
        flow = scene_flow(scene.sample, exact_matches(scene))
        why = propose(scene.sample, flow, settings).diagnostics["why_empty"]
        assert re.fullmatch(pattern.replace("512", r"\d+"), why), why


BROKEN = """<html><head><link rel="stylesheet" href="gone.css"><script src="https://cdn.example/x.js"></script></head>
<body id="here"><a href="#here">a</a><a href="#nowhere">b</a><a href="other.html#there">c</a>
<a href="other.html#not-there">d</a><a href="missing%20page.html">e</a><img src="data:image/png;base64,AA==">
<a href="https://example.org/never-fetched">f</a><a href="mailto:a@b">g</a>
<p>| a | b |
| --- | --- |</p><table><tr><td><p>c | d</p></td></tr></table></body></html>"""


def test_broken_links_and_tables_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text(BROKEN)
    (tmp_path / "sub" / "other.html").write_text('<a name="there" href="../sub/page.html?q=1#here"></a>')
    assert links.faults(tmp_path) == [
        "sub/page.html: a table is shown as text: | a | b |",
        "sub/page.html: no such anchor: #nowhere",
        "sub/page.html: no such anchor: other.html#not-there",
        "sub/page.html: no such file: missing%20page.html",
        "sub/page.html: no such file: gone.css",
        "sub/page.html: loaded from elsewhere: https://cdn.example/x.js",
    ]
    assert links.faults(tmp_path / "nothing") == [f"{tmp_path / 'nothing'}: no pages"]
