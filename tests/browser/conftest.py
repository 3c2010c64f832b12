"""JupyterLab on a free port, and a browser on it."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_page import ROOT, Lab, answers, free_port, wait_for


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
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    server = Lab(f"http://127.0.0.1:{port}", token, folder, home / "runtime", process)
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


@pytest.fixture(scope="module")
def window(browser):
    """Return a window of the size that the controls are made for."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep a picture of every open page where a test fails."""
    report = yield
    if report.failed and "window" in item.fixturenames and (window := item.funcargs.get("window")):
        folder = item.funcargs.get("artefacts") or ROOT / "build" / "browser"
        for number, page in enumerate(window.pages):
            page.screenshot(path=Path(folder) / f"failed_{item.name}_{number}.png")
    return report
