"""Say at the top of each page how long it takes to read, and which page comes before it."""

from __future__ import annotations

import math
import posixpath
import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown  # type: ignore[import-untyped]
from mkdocs.config import load_config
from mkdocs.utils.meta import get_data

from snippets.reference.generated import ROOT, update

DOCS = ROOT / "docs"
WORDS_A_MINUTE = 200  # of prose; code is read word by word as well
READ = ("setup.md", "verify.md", "fundamentals/", "optimization/", "architecture/")  # the rest is looked up
INCLUDE = re.compile(r'^--8<-- "docs/assets/reference/reading\.md:.*"$', re.M)
UNREAD = ("details", "svg", "style", "script")  # what is folded, and figures


def pages() -> list[str]:
    """Return the pages that are read from top to end, below docs/, in the order of the navigation."""
    return [page for page in navigation() if page.startswith(READ) and page.endswith(".md")]


def navigation() -> list[str]:
    """Return all pages of the site, below docs/, in the order of its navigation."""

    def names(entry: Any) -> Iterator[str]:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, str):
                yield value
            else:
                for each in value:
                    yield from names(each)

    return [name for entry in _site()["nav"] for name in names(entry)]


@cache
def _site() -> Any:
    return load_config(str(ROOT / "mkdocs.yml"), plugins=[])


def count_words(text: str) -> int:
    """Return the words of a page as the site shows it, prose and code, but for what is folded and for figures."""
    body, _ = get_data(text)
    site = _site()
    snippets = dict(site["mdx_configs"]["pymdownx.snippets"])
    snippets["base_path"] = [str(ROOT / base) for base in snippets["base_path"]]
    snippets["check_paths"] = False  # the build names what is missing
    extensions, settings = site["markdown_extensions"], {**site["mdx_configs"], "pymdownx.snippets": snippets}
    rendered = markdown.markdown(INCLUDE.sub("", body), extensions=extensions, extension_configs=settings)
    return len(_Shown(rendered).text.split())


class _Shown(HTMLParser):
    """The text of HTML that a reader sees without opening anything."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.unread = "", 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.unread += tag in UNREAD

    def handle_endtag(self, tag: str) -> None:
        self.unread -= tag in UNREAD

    def handle_data(self, data: str) -> None:
        self.text += "" if self.unread else data


def minutes(page: Path) -> int:
    """Return how long a page takes to read, in whole minutes, at least one."""
    return max(1, math.ceil(count_words(page.read_text("utf-8")) / WORDS_A_MINUTE))


def needs(page: str) -> list[str]:
    """Return what has to be read before a page: what its front matter `needs`, or the page before it.

    Raises `ValueError` for a page that is not in the navigation.
    """
    needed = get_data((DOCS / page).read_text("utf-8"))[1].get("needs")
    if needed is not None:
        unknown = sorted({*needed} - {*navigation()})
        if unknown:
            raise ValueError(f"docs/{page} needs {', '.join(unknown)}, which is not in the navigation")
        return list(needed)
    before = pages()[: pages().index(page)]
    return before[-1:]


def title(page: str) -> str:
    """Return the heading of a page."""
    found = re.search(r"^# (.+)", (DOCS / page).read_text("utf-8"), re.M)
    assert found  # a test looks that each page has one
    return found[1]


def line(page: str) -> str:
    """Return what stands under the title of a page, in Markdown."""
    links = [f"[{title(need)}]({posixpath.relpath(need, posixpath.dirname(page))})" for need in needs(page)]
    before = f" · before this: {', '.join(links)}" if links else ""
    return f"{minutes(DOCS / page)} min{before}\n{{.reading}}"


def section(page: str) -> str:
    """Return the name under which a page includes its line."""
    return page.removesuffix(".md").replace("/", "-")


def render() -> str:
    """Return the lines of all pages, each in a section."""
    return "\n".join(
        f"<!-- --8<-- [start:{section(page)}] -->\n{line(page)}\n<!-- --8<-- [end:{section(page)}] -->\n"
        for page in pages()
    )


if __name__ == "__main__":
    sys.exit(update("reading", render))
