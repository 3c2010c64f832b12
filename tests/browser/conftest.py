"""JupyterLab on a free port, a browser on it, and `nbs/explore.ipynb` run from a copy."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
"""How long to wait for what takes a few seconds on an idle machine."""


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Return the folder that screenshots go to."""
    folder = Path(os.environ.get("OUT", ROOT / "build" / "browser"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def browser():
    """Start Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="install the extra `browser`")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("no Chromium; `make test-browser` says how to get it")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@dataclass
class Lab:
    """A running JupyterLab."""

    address: str
    token: str
    folder: Path
    process: subprocess.Popen

    def api(self, path: str, method: str = "GET"):
        """Return what the server answers."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def kernel_of(self, notebook: str) -> dict:
        """Return the kernel of a notebook."""
        return next(s["kernel"] for s in self.api("sessions") if s["path"] == notebook)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Run JupyterLab with settings of its own in an empty folder."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    port, token = free_port(), secrets.token_hex(16)
    options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
               "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--allow-root",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings",
           "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}  # fmt: skip
    environment = os.environ | {name: str(home / value) for name, value in own.items()} | {"PYTHONPATH": str(ROOT)}
    settings = home / "settings" / "@jupyterlab"
    for plugin, values in {"apputils-extension/notification": {"fetchNews": "false"}}.items():
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    server = Lab(f"http://127.0.0.1:{port}", token, folder, process)
    try:
        wait_for(lambda: answers(server), f"JupyterLab does not answer; see {home / 'log.txt'}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(server: Lab) -> bool:
    assert server.process.poll() is None, "JupyterLab ended"
    try:
        return bool(server.api("status"))
    except (urllib.error.URLError, ConnectionError):
        return False


def wait_for(check, message: str, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, message
        time.sleep(0.2)


def copy_notebook(lab: Lab, name: str, **parameters) -> Path:
    """Copy `nbs/explore.ipynb` without outputs, with other parameters."""
    notebook = json.loads((ROOT / "nbs" / "explore.ipynb").read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell["metadata"].get("tags", []):
            source = "".join(cell["source"])
            for key, value in parameters.items():
                source, count = re.subn(rf"(?m)^{key} = .*$", lambda _, k=key, v=value: f"{k} = {v!r}", source)
                assert count == 1, f"no parameter {key}"
            cell["source"] = source.splitlines(keepends=True)
    path = lab.folder / name
    path.write_text(json.dumps(notebook))
    return path


class Page:
    """A notebook in the browser, and the frame view in it."""

    def __init__(self, page, lab: Lab, notebook: str) -> None:
        self.page, self.lab, self.notebook = page, lab, notebook
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(f"{lab.address}/lab/tree/{notebook}?token={lab.token}&reset")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.locator(".jp-NotebookPanel-toolbar").wait_for()
        self.collapse()

    @property
    def view(self):
        return self.page.locator(".cups-view")

    @property
    def stage(self):
        return self.page.locator(".cups-stage")

    def collapse(self) -> None:
        """Close the side bar, so that the notebook has the window."""
        if self.page.locator("#jp-left-stack").is_visible():
            self.page.keyboard.press("Control+b")
            self.page.locator("#jp-left-stack").wait_for(state="hidden")

    def run_all(self) -> None:
        self.page.locator(".jp-Notebook").click(position={"x": 5, "y": 5})
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()

    def wait_frame(self, index: int, done: bool = False) -> None:
        """Wait until frame `index` is on screen."""
        more = "[data-done=true]" if done else ""
        self.page.locator(f".cups-view[data-frame='{index}']{more}").wait_for()

    def slide(self, label: str, value: float) -> None:
        """Move a slider to a value, as a drag does."""
        self.page.get_by_label(label, exact=True).evaluate(
            "(element, value) => { element.value = value; element.dispatchEvent(new Event('input', {bubbles: true})); }", value
        )

    def value(self, label: str) -> float:
        return float(self.page.get_by_label(label, exact=True).input_value())

    def pixel(self, x: float, y: float) -> list[int]:
        """Return the colour of the canvas at a place given in shares of its width and height."""
        return self.page.locator(".cups-stage canvas").evaluate(
            "(c, [x, y]) => [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data]", [x, y]
        )

    def hover(self, x: float, y: float) -> str:
        """Point at a place given in shares of the stage and return the text."""
        self.stage.scroll_into_view_if_needed()
        box = self.stage.bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return self.page.locator(".cups-hover").inner_text()


@pytest.fixture(scope="module")
def window(browser):
    """Return a window of the size that the controls are made for."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()
