"""The files of a built site: what leads nowhere in them, and what was left unrendered."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

REFERENCES = ("href", "src", "poster", "data", "action")
ID_REFERENCES = ("for", "aria-labelledby", "aria-describedby", "aria-controls", "headers")
WITHOUT_PROSE = ("code", "pre", "script", "style", "title", "svg")
# Of Markdown: an include, attributes in braces, a link or image without a target.
UNRENDERED = re.compile(r"-+8<-+|\{[#:.][^}]*\}|!?\[[^\]\n\x22]+\][\[(][^\])\n]*[\])]")


class Document(HTMLParser):
    """What a page of HTML declares, refers to and says."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.anchors: set[str] = set()  # with the names that old HTML links to
        self.references: list[tuple[int, str]] = []
        self.id_references: list[tuple[int, str]] = []
        self.prose: list[tuple[int, str]] = []
        self.open: Counter[str] = Counter()
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        line, attributes = self.getpos()[0], {name: value or "" for name, value in attrs}
        self.open[tag] += 1
        self.ids.update([attributes["id"]] if "id" in attributes else [])
        self.anchors |= {attributes[key] for key in ("id", "name") if key in attributes}
        targets = [attributes[key] for key in REFERENCES if key in attributes]
        targets += [part.split()[0] for part in attributes.get("srcset", "").split(",") if part.strip()]
        self.references += [(line, target) for target in targets]
        for key in ID_REFERENCES:
            self.id_references += [(line, name) for name in attributes.get(key, "").split()]

    def handle_endtag(self, tag: str) -> None:
        self.open[tag] -= 1

    def handle_data(self, data: str) -> None:
        if not any(self.open[tag] > 0 for tag in WITHOUT_PROSE):
            self.prose.append((self.getpos()[0], data))


def problems(folder: Path) -> list[str]:
    """Return what is wrong in a site's HTML and CSS, each with its file and line."""
    document = cache(Document)  # a page is linked to from many
    found = []
    for file in sorted(folder.rglob("*.html")):
        found += [(file, line, cause) for line, cause in _of_page(folder, file, document)]
    for file in sorted(folder.rglob("*.css")):
        for match in re.finditer(r"url\(\s*[\"']?(?!data:|#)([^\"')]+)", text := file.read_text("utf-8")):
            if cause := _broken(folder, file, match[1], document):
                found.append((file, text.count("\n", 0, match.start()) + 1, cause))
    return [f"{file.relative_to(folder)}:{line}: {cause}" for file, line, cause in found]


def _of_page(folder: Path, file: Path, document: Callable[[Path], Document]) -> Iterator[tuple[int, str]]:
    page = document(file)
    for line, target in page.references:
        if cause := _broken(folder, file, target, document):
            yield line, cause
    for line, name in page.id_references:
        if name not in page.ids:
            yield line, f"no element has the id {name!r}"
    for name, count in page.ids.items():
        if count > 1:
            yield 1, f"{count} elements have the id {name!r}"
    for line, text in page.prose:
        for match in UNRENDERED.finditer(text):
            yield line + text.count("\n", 0, match.start()), f"not rendered: {match[0]}"


def _broken(folder: Path, file: Path, target: str, document: Callable[[Path], Document]) -> str | None:
    """Return why a reference leads nowhere; one to another host is left alone."""
    here = "/" + file.relative_to(folder).as_posix()
    parts = urlsplit(urljoin(here, target))
    if parts.scheme or parts.netloc:
        return None
    if not target.startswith("/") and urlsplit(target).path.split("/").count("..") > here.count("/") - 1:
        return f"outside of the site: {target}"
    found = folder / unquote(parts.path).lstrip("/")
    if found.is_dir():
        # Without the slash a server redirects, and what is relative there leads elsewhere.
        found = found / "index.html" if parts.path.endswith("/") else found
    if not found.is_file():
        return f"no such file: {target}"
    if parts.fragment and found.suffix == ".html":
        anchors = document(found).anchors
        if unquote(parts.fragment) not in anchors:
            return f"no such anchor: {target}"
    return None
