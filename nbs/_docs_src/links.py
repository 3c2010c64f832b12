"""Check a built site: links, pictures and anchors exist, nothing is loaded from elsewhere, and tables are tables.

`links.py SITE` prints what is wrong and exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, what it loads, what can be linked to in it, and its tables that are shown as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.tables: list[str] = []
        self.tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses and names of a tag."""
        self.tag, values = tag, {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])
        elif tag == "link" and "stylesheet" in values.get("rel", ""):
            self.loads.append(values["href"])

    def handle_data(self, data: str) -> None:
        """Note a paragraph that is the text of a table in Markdown."""
        if self.tag == "p" and data.startswith("| "):
            self.tables.append(data.split("\n")[0])


def faults(site: Path) -> list[str]:
    """Return one line for every broken link, table shown as text and address elsewhere that a folder of pages loads."""
    site = site.resolve()
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    found, look_up = [], cache(_target)  # the pages of a folder share most of their addresses
    for path, page in pages.items():
        found += [f"{path.relative_to(site)}: a table is shown as text: {table}" for table in page.tables]
        for address in page.links + page.loads:
            fault = _fault(address, path, pages, address in page.loads, look_up)
            if fault:
                found.append(f"{path.relative_to(site)}: {fault}: {address}")
    return found if pages else [f"{site}: no pages"]


def _target(folder: Path, address: str) -> tuple[Path, bool]:
    """Return the file that an address on a page of a folder leads to, and whether it exists."""
    target = (folder / unquote(address)).resolve()
    return target, target.is_file()


def _fault(
    address: str, path: Path, pages: dict[Path, Page], loaded: bool, look_up: Callable[[Path, str], tuple[Path, bool]]
) -> str | None:
    """Return what is wrong with an address on the page `path`."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        elsewhere = parts.netloc or parts.scheme not in ("data", "mailto", "javascript")
        return "loaded from elsewhere" if loaded and elsewhere else None
    target, exists = look_up(path.parent, parts.path) if parts.path else (path, True)
    if not exists:
        return "no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "no such anchor"
    return None


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or "all links lead somewhere")
    sys.exit(bool(wrong))
