"""Published weights arrive whole from a server that misbehaves, or the command says in one line why not."""

import re
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from cups import weights
from cups.cli import main
from cups.core.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*no SHA-256 of this file is known")
CONTENT = bytes(range(256)) * 2000


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the path names, and keeps what it was asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        if self.path == "/404":
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if self.path == "/whole" and start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        if self.path == "/from_the_start":
            start = 0
        announced = len(CONTENT) - start + (100 if self.path == "/too_short" else 0)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{start + announced}")
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        end = start + len(CONTENT) // 2 + 1 if self.path in ("/breaks_off", "/from_the_start") else len(CONTENT)
        if self.path == "/from_the_start" and len(self.asked) > 1:
            end = len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def offered(tmp_path, monkeypatch) -> Iterator[callable]:
    """Return a function that makes the server's answer of a name known as the weights `here`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CUPS_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "PAUSE_S", 0.0)
    monkeypatch.setattr(Server, "asked", [])

    def offer(path: str, digest: str = "") -> None:
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        entry = replace(weights.REGISTRY["cups"], file="here.ckpt", url=url, sha256=digest)
        monkeypatch.setitem(weights.REGISTRY, "here", entry)

    yield offer
    server.shutdown()
    server.server_close()


def test_a_network_that_comes_with_the_package_is_there():
    assert weights.fetch("street_scenes") == weights.weights_file("street_scenes")


def test_a_line_that_breaks_off_is_taken_up(offered, tmp_path):
    offered("breaks_off", sha256(CONTENT).hexdigest())
    path = weights.fetch("here")
    assert path == tmp_path / "weights" / "here.ckpt" and path.read_bytes() == CONTENT
    assert Server.asked == ["", f"bytes={len(CONTENT) // 2 + 1}-"]
    assert weights.fetch("here") == path and len(Server.asked) == 2
    assert not path.with_name("here.ckpt.part").exists()


def test_a_later_call_goes_on(offered, tmp_path):
    offered("whole")
    part = tmp_path / "weights" / "here.ckpt.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:1000])
    assert weights.fetch("here").read_bytes() == CONTENT and Server.asked == ["bytes=1000-"]


def test_a_part_that_is_whole_is_taken(offered, tmp_path):
    offered("whole")
    part = tmp_path / "weights" / "here.ckpt.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    assert weights.fetch("here").read_bytes() == CONTENT


def test_a_server_that_cannot_go_on_starts_again(offered):
    offered("from_the_start")
    assert weights.fetch("here").read_bytes() == CONTENT


def test_a_wrong_length_is_said(offered, tmp_path):
    offered("too_short")
    with pytest.raises(InputError, match=f"{len(CONTENT)} bytes of {len(CONTENT) + 100} were received"):
        weights.fetch("here")
    assert not (tmp_path / "weights" / "here.ckpt").exists()


def test_other_content_is_said_and_deleted(offered, tmp_path):
    offered("whole", "0" * 64)
    with pytest.raises(InputError, match=r"its SHA-256 is .* expected 000"):
        weights.fetch("here")
    assert not list((tmp_path / "weights").glob("here.ckpt*part"))


def test_a_file_without_a_hash_says_so_and_is_compared_with_what_came_first(offered, tmp_path, monkeypatch):
    offered("whole")
    digest = sha256(CONTENT).hexdigest()
    with pytest.warns(UserWarning, match=f"no SHA-256 of this file is known, .* it is {digest}") as said:
        path = weights.fetch("here")
    assert len(said) == 1 and "\n" not in str(said[0].message)
    record = path.with_name("here.ckpt.sha256")
    assert record.read_text() == f"{digest}  here.ckpt\n"  # as `sha256sum --check` reads it
    path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.fetch("here")  # the same again: nothing to say
    path.unlink()
    monkeypatch.setattr(sys.modules[__name__], "CONTENT", CONTENT[::-1])
    with pytest.raises(InputError, match=f"expected {digest}.* what was fetched first; delete .*here.ckpt.sha256"):
        weights.fetch("here")
    assert not path.exists() and not path.with_name("here.ckpt.part").exists()
    record.unlink()
    with pytest.warns(UserWarning, match=sha256(CONTENT).hexdigest()):
        assert weights.fetch("here").read_bytes() == CONTENT


def test_every_hash_that_is_pinned_is_one(capsys):
    pinned = {name: entry.sha256 for name, entry in weights.REGISTRY.items() if entry.sha256}
    assert {name for name in weights.REGISTRY if name.startswith("dinov2")} == pinned.keys()
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in pinned.values())
    assert len(set(pinned.values())) == len(pinned)
    assert main(["weights", "list"]) == 0
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines()}
    assert all(digest[:8] in rows[name] for name, digest in pinned.items())
    assert all("not known" in rows[name] for name in weights.REGISTRY.keys() - pinned.keys())


def test_commands(offered, capsys, tmp_path):
    offered("404")
    assert main(["weights", "fetch", "here"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cups: error: http://127.0.0.1") and error.endswith("404: the server answers 404 Not Found")
    assert main(["weights", "fetch", "nothing"]) == 2
    assert "weights 'nothing' are not known; there are street_scenes, raft_smurf" in capsys.readouterr().err
    offered("whole")
    assert main(["weights", "fetch", "here"]) == 0 and main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "weights") in said and "Apache-2.0" in said


def test_no_server_at_all_is_said(monkeypatch, offered):
    offered("whole")
    monkeypatch.setitem(weights.REGISTRY, "here", replace(weights.REGISTRY["here"], url="http://127.0.0.1:9/x"))
    with pytest.raises(InputError, match=r"broke off 5 times .*refused"):
        weights.fetch("here")
