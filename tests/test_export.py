"""The package is exactly what the notebooks export."""

import shutil
import subprocess
import sys
from pathlib import Path

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]


def modules(package: Path) -> dict[Path, str]:
    return {p.relative_to(package): p.read_text() for p in package.rglob("*.py")}


def test_package_equals_what_the_notebooks_export(tmp_path):
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for init in (ROOT / "cups").rglob("__init__.py"):
        (tmp_path / init.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(init, tmp_path / init.relative_to(ROOT))
    subprocess.run([Path(sys.executable).parent / "nbdev_export"], cwd=tmp_path, check=True)
    exported, package = modules(tmp_path / "cups"), modules(ROOT / "cups")
    assert exported.keys() == package.keys(), "run nbdev_export, and delete modules without a notebook"
    different = [str(p) for p, text in exported.items() if package[p] != text]
    assert not different, f"run nbdev_export; edited by hand or not exported: {different}"
    assert len(exported) > 10


def test_folders_of_the_package_hold_no_code_of_their_own():
    for init in (ROOT / "cups").rglob("__init__.py"):
        assert len(init.read_text().splitlines()) <= 1, f"{init} is not a notebook's: code in it has no source"


def test_readme_is_the_index_notebook():
    body, _ = MarkdownExporter().from_filename(ROOT / "nbs" / "index.ipynb")
    expected = body.replace("](images/", "](nbs/images/").strip()
    assert (ROOT / "README.md").read_text().strip() == expected, "run make readme"
