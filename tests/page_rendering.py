"""Render a page as the site does, noting each fence that becomes a block of code, and where it came from.

Every `<pre>` of the rendered page must come from a fence that was recorded while rendering: whatever else
looks like code is a problem with its line, instead of being passed over.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown  # type: ignore[import-untyped]
from markdown.preprocessors import Preprocessor  # type: ignore[import-untyped]
from mkdocs.config import load_config
from mkdocs.utils.meta import get_data
from pymdownx.snippets import SnippetMissingError

ROOT = Path(__file__).resolve().parents[1]

DIRECTIVE = re.compile(r"[\s>]*<!--[-\s]*(pytest.*)")
OPENING_FENCE = re.compile(r"[\s>]*(?:(?:[-*+]|\d+[.)])\s+)*(?:`{3,}[^`]*|~{3,}.*)$")


@dataclass
class Fence:
    """A fence as superfences parsed it; `start` and `end` count lines after includes are expanded."""

    start: int
    end: int
    language: str
    title: str
    source: str


class Rendering:
    """A rendered page: `shown` are its fences, in order, and `problems` what cannot be run, with its line."""

    def __init__(self, text: str, bases: list[Path]) -> None:
        body, _ = get_data(text)
        self.first_line = text.count("\n") - body.count("\n") + 1
        self.problems: list[tuple[int, str]] = []
        self.lines: list[str] = []
        self.origins: list[tuple[int, str | None]] = []  # page line and include of each expanded line
        self.fences: list[Fence] = []

        site = _site_config()
        snippets = dict(site["mdx_configs"]["pymdownx.snippets"])
        snippets["base_path"] = [str(ROOT / base) for base in snippets["base_path"]] + [str(b) for b in bases]
        converter = markdown.Markdown(
            extensions=site["markdown_extensions"],
            extension_configs={**site["mdx_configs"], "pymdownx.snippets": snippets},
        )
        self.snippets: Any = converter.preprocessors["snippet"]
        self.superfences: Any = converter.preprocessors["fenced_code_block"]
        self.convert_fence = self.superfences.process_nested_block
        self.superfences.process_nested_block = self._record
        converter.preprocessors.register(_Step(self._expand), "snippet", 32)  # in place of the site's own
        converter.preprocessors.register(_Step(self._keep), "kept_lines", 25.5)  # just before superfences

        rendered = _RenderedPage(converter.convert(body))
        # A fence in an HTML comment is converted and yet not rendered.
        self.shown = sorted((self.fences[n] for n in rendered.fences), key=lambda fence: fence.start)
        for code in rendered.unrecorded:
            self.refuse(self._find(code), "code in raw HTML, or indented without a fence, cannot be run")
        for n in self._outside(self.fences):
            if OPENING_FENCE.match(self.lines[n]):
                self.refuse(n, f"a fence that the site does not render as code: {self.lines[n].strip()}")

    def refuse(self, n: int, cause: str) -> None:
        """Note why the page cannot run, at an expanded line."""
        self.problems.append((self.origins[n][0], cause))

    def line(self, fence: Fence) -> int:
        """Return the page's line of a fence; that of the include, where the fence itself is included."""
        return self.origins[fence.start][0]

    def section(self, fence: Fence) -> str | None:
        """Return the includes that the fence's lines came from."""
        includes = [include for _, include in self.origins[fence.start : fence.end] if include]
        return ", ".join(dict.fromkeys(includes)) or None

    def directives(self) -> dict[int, list[tuple[int, str]]]:
        """Return line and text of the directives before each shown fence, by the fence's first line."""
        starts, outside = {fence.start for fence in self.shown}, self._outside(self.fences)
        found: dict[int, list[tuple[int, str]]] = {}
        waiting: list[tuple[int, str]] = []
        for n, line in enumerate([*self.lines, "the end of the page"]):
            if n in starts:
                found[n], waiting = waiting, []
            elif n in outside and (directive := DIRECTIVE.match(line)):
                waiting.append((n, re.sub(r"[-\s]*-->\s*$", "", directive[1])))
            elif line.strip(" >"):
                for stray, text in waiting:
                    self.refuse(stray, f"no code block follows <!--{text}-->")
                waiting = []
        return found

    def paragraph_before(self, n: int) -> str:
        """Return the text that ends before line `n`, leaving out directives and blank lines."""
        lines: list[str] = []
        for line in reversed(self.lines[:n]):
            if line.strip() and not DIRECTIVE.match(line):
                lines.insert(0, line)
            elif lines:
                break
        return "\n".join(lines)

    def _expand(self, lines: list[str]) -> list[str]:
        """Expand the includes one at a time, noting where each line comes from."""
        self.snippets.run([])  # resets it
        expanded: list[str] = []
        notation: list[str] = []  # one line, or a whole block of includes between two markers
        is_open = False
        for number, line in enumerate(lines, self.first_line):
            include = self.snippets.RE_ALL_SNIPPETS.match(line)
            notation.append(line)
            if include and include["block_marker"] and not include["escape"]:
                is_open = not is_open
            if is_open:
                continue
            try:
                part = self.snippets.parse_snippets(notation)
            except SnippetMissingError as error:
                self.problems.append((number, f"{' '.join(map(str.strip, notation))}: {error}"))
                part = notation[:1]  # so that the block is not called empty as well
            source = None
            if include and not include["escape"]:
                files = [include["snippet"][1:-1]] if include["snippet"] else notation[1:-1]
                source = " ".join(file.strip() for file in files)
            self.origins += [(number - len(notation) + 1, source)] * len(part)
            expanded += part
            notation = []
        if is_open:
            self.problems.append((number, "an include block without an end"))
        self.origins += [(number, None)] * 2  # Markdown ends a page with two blank lines
        return expanded

    def _keep(self, lines: list[str]) -> list[str]:
        self.lines = lines
        return lines

    def _record(self, indent: str, content: str, start: int, end: int) -> None:
        """Record a fence, and number the block that it is rendered as."""
        fence, render = self.superfences, self.superfences.formatter
        if render is not None:
            number = len(self.fences)
            title, source = str(fence.options.get("title", "")), fence.rebuild_block(fence.code)
            self.fences.append(Fence(start, end, fence.lang or "", title, source))
            fence.formatter = lambda **block: f'<div data-fence="{number}">{render(**block)}</div>'
        self.convert_fence(indent, content, start, end)

    def _outside(self, fences: list[Fence]) -> set[int]:
        inside = {n for fence in fences for n in range(fence.start, fence.end)}
        return set(range(len(self.lines))) - inside

    def _find(self, code: str) -> int:
        """Return the first line, outside of rendered fences, that holds the beginning of `code`."""
        beginning = code.strip().split("\n")[0].strip()
        lines = [(n, html.unescape(self.lines[n])) for n in sorted(self._outside(self.shown))]
        return next((n for part in (beginning, "<pre") for n, line in lines if part and part in line), 0)


class _Step(Preprocessor):  # type: ignore[misc]
    """A step of Python-Markdown that calls a function."""

    def __init__(self, function: Callable[[list[str]], list[str]]) -> None:
        super().__init__()
        self.run = function


class _RenderedPage(HTMLParser):
    """The numbers of the recorded fences on a rendered page, and the text of any other `<pre>`."""

    def __init__(self, rendered: str) -> None:
        super().__init__()
        self.fences: set[int] = set()
        self.unrecorded: list[str] = []
        self.divs: list[bool] = []  # the open ones: is it a recorded fence's?
        self.is_unrecorded = False
        self.feed(rendered)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            number = dict(attrs).get("data-fence")
            self.divs.append(number is not None)
            if number is not None:
                self.fences.add(int(number))
        elif tag == "pre" and not any(self.divs):
            self.unrecorded.append("")
            self.is_unrecorded = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self.divs:
            self.divs.pop()
        elif tag == "pre":
            self.is_unrecorded = False

    def handle_data(self, data: str) -> None:
        if self.is_unrecorded:
            self.unrecorded[-1] += data


@cache
def _site_config() -> Any:
    return load_config(str(ROOT / "mkdocs.yml"), plugins=[])
