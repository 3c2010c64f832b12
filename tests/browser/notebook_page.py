"""A running JupyterLab, and a notebook of it in a browser."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import nbformat
from jupyter_client import BlockingKernelClient

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
"""How long to wait for what takes a few seconds on an idle machine."""


@dataclass
class Lab:
    """A running JupyterLab."""

    address: str
    token: str
    folder: Path
    runtime: Path
    process: subprocess.Popen

    def api(self, path: str):
        """Return what the server answers."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def kernel_of(self, notebook: str) -> dict:
        """Return the kernel of a notebook."""
        return next(s["kernel"] for s in self.api("sessions") if s["path"] == notebook)

    def ask(self, notebook: str, expression: str) -> str:
        """Return the repr of an expression in the kernel of a notebook."""
        client = BlockingKernelClient(connection_file=str(self.runtime / f"kernel-{self.kernel_of(notebook)['id']}.json"))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(PATIENCE_S)
            answer = client.execute("", user_expressions={"asked": expression}, reply=True, timeout=PATIENCE_S)
            return answer["content"]["user_expressions"]["asked"]["data"]["text/plain"]
        finally:
            client.stop_channels()


def write_notebook(path: Path, *sources: str) -> None:
    """Write a notebook with these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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


@contextmanager
def exploring(home: Path, *arguments: str) -> Iterator[Lab]:
    """Run `cups explore`; what it, JupyterLab and kernels keep lies in the folder `home`."""
    port, token = free_port(), secrets.token_hex(16)
    own = {"CUPS_HOME": "cups", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython",
           "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}  # fmt: skip
    environment = os.environ | {name: str(home / value) for name, value in own.items()}
    environment |= {"JUPYTER_TOKEN": token, "PYTHONPATH": str(ROOT)}
    settings = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false"}')
    program = "import sys; from cups.cli import main; sys.exit(main())"
    options = ["--no-browser", "--allow-root", "--port", str(port), *arguments]
    with (home / "log.txt").open("w") as log:
        command = [sys.executable, "-c", program, "explore", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    lab = Lab(f"http://127.0.0.1:{port}", token, home / "cups" / "explore", home / "runtime", process)
    try:
        wait_for(lambda: answers(lab), f"JupyterLab does not answer; see {home / 'log.txt'}")
        yield lab
    finally:
        process.terminate()
        process.wait(30)


def overlapping(boxes: list[dict]) -> list[tuple[dict, dict]]:
    """Return the pairs of boxes that lie on one another by more than half a pixel both ways."""

    def shared(a: dict, b: dict, start: str, size: str) -> float:
        return min(a[start] + a[size], b[start] + b[size]) - max(a[start], b[start])

    pairs = combinations(boxes, 2)
    return [(a, b) for a, b in pairs if shared(a, b, "x", "width") > 0.5 and shared(a, b, "y", "height") > 0.5]


def copy_notebook(lab: Lab, name: str, labs: bool = False, **parameters) -> Path:
    """Copy `nbs/explore.ipynb` without outputs, with other parameters, and without its labs if they are not asked for."""
    notebook = json.loads((ROOT / "nbs" / "explore.ipynb").read_text())
    if not labs:
        first = next(k for k, cell in enumerate(notebook["cells"]) if "## Motion in 3D\n" in cell["source"])
        notebook["cells"] = notebook["cells"][:first]
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
        self.wait_for_kernel()

    @property
    def view(self):
        return self.page.locator(".cups-view").first

    @property
    def stage(self):
        return self.view.locator(".cups-stage")

    def show(self) -> None:
        """Scroll to the top of the view."""
        self.view.locator(".cups-bar").evaluate("element => element.scrollIntoView()")

    def collapse(self) -> None:
        """Close the side bar, so that the notebook has the window."""
        if self.page.locator("#jp-left-stack").is_visible():
            self.page.keyboard.press("Control+b")
            self.page.locator("#jp-left-stack").wait_for(state="hidden")

    def menu(self, name: str, item: str) -> None:
        self.page.locator(".jp-Notebook").click(position={"x": 5, "y": 5})
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{name}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).click()

    def theme(self, name: str) -> None:
        """Choose a theme of JupyterLab: `Light` or `Dark`."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Settings$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^JupyterLab {name}$")).click()
        self.page.locator(f"body[data-jp-theme-light={str(name == 'Light').lower()}]").wait_for(state="attached")

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")

    def restart_kernel(self) -> None:
        """Restart the kernel as a person does: JupyterLab does not notice a restart that it has not made."""
        self.menu("Kernel", "Restart Kernel…")
        with self.page.expect_websocket():  # JupyterLab connects to the new kernel
            self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Wait until the notebook has a kernel that is idle: JupyterLab says so too early, and loses cells run then."""
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()

        def idle() -> bool:
            kernels = [s["kernel"] for s in self.lab.api("sessions") if s["path"] == self.notebook]
            return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels)

        wait_for(idle, "the kernel does not start")
        self.page.wait_for_timeout(500)  # the browser hears of it

    def wait_frame(self, index: int, done: bool = False) -> None:
        """Wait until frame `index` is on screen."""

        def there() -> bool:
            shown, whole = (self.view.get_attribute(f"data-{name}") for name in ("frame", "done"))
            return shown == str(index) and (whole == "true" or not done)

        wait_for(there, f"frame {index} is not shown")

    def slide(self, label: str, value: float) -> None:
        """Move a slider to a value, as a drag does."""
        self.view.get_by_label(label, exact=True).evaluate(
            "(e, value) => { e.value = value; e.dispatchEvent(new Event('input', {bubbles: true})); }", value
        )

    def value(self, label: str) -> float:
        return float(self.view.get_by_label(label, exact=True).input_value())

    def pixel(self, x: float, y: float) -> list[int]:
        """Return the colour of the canvas at a place given in shares of its width and height."""
        return self.stage.locator("canvas").evaluate(
            "(c, [x, y]) => [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data]", [x, y]
        )

    def hover(self, x: float, y: float) -> str:
        """Point at a place given in shares of the stage and return the text."""
        self.show()
        box = self.stage.bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return self.view.locator(".cups-hover").inner_text()
