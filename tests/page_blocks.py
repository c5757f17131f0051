"""The blocks of code of a page: what to do with each, and what the page says about it.

`collect(page)` and `console_lines(page)` are for other tests too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mkdocs.utils.meta import get_data
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from tests.page_rendering import ROOT, Rendering

# Pygments decides how a block is shown, so its lexers decide how it is run: every alias is covered.
EXECUTED = {"Python": "python", "Bash": "bash"}
DATA = {
    "Text only": "text",
    "YAML": "yaml",
    "TOML": "toml",
    "JSON": "json",
    "INI": "ini",
    "Markdown": "markdown",
}
LANGUAGES = {**EXECUTED, **DATA, "Bash Session": "console"}

DIRECTIVES = re.compile(
    r"pytest-codeblocks:expected-output"
    r"|pytest-codeblocks:raises\((?P<raises>\w+)\)"
    r"|pytest\.mark\.gpu(?:\((?P<module>\w+)\))?"
    r"|pytest\.mark\.timeout\((?P<timeout>\d+(?:\.\d+)?)\)"
)
GPU_CAPTION = re.compile(r"never by us|last r[au]n\b.*\bon\b.*\b\d{4}-\d{2}-\d{2}", re.I | re.S)
CONSOLE_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.M)


@dataclass
class Block:
    """A block of code of a page, as rendered."""

    page: str  # relative to the repository, where it lies in it
    line: int  # of the opening fence; of the include, where the fence itself is included
    language: str  # python, bash, console, or the kind of data
    source: str  # after includes are expanded
    section: str | None  # `file:section` of the includes that it came from
    directives: tuple[str, ...]
    name: str = ""  # an executed block's test, and its file in tracebacks
    expected: str | None = None  # the output that the page shows for it
    raises: str | None = None  # the exception that it must end with
    timeout_s: float | None = None
    gpu: bool = False
    gpu_module: str | None = None  # a package for GPUs that it needs besides one

    @property
    def is_executed(self) -> bool:
        """Whether it is run, and not only shown."""
        return self.language in EXECUTED.values()

    @property
    def where(self) -> str:
        """Page, line and section, for a message."""
        return f"{self.page}:{self.line}" + (f" ({self.section})" if self.section else "")


class PageError(Exception):
    """What on a page cannot be run, each with its line."""

    def __init__(self, page: str, problems: list[tuple[int, str]]) -> None:
        self.page, self.problems = page, sorted(problems)
        super().__init__("\n".join(f"{page}:{line}: {cause}" for line, cause in self.problems))


def collect(page: Path) -> list[Block]:
    """Return the blocks that the site renders for `page`; raise `PageError` if one cannot be run."""
    page = page.resolve()
    return list(_of_docs(page)) if page.is_relative_to(ROOT / "docs") else _collect(page)


def _collect(page: Path) -> list[Block]:
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.as_posix()
    # The site resolves includes from the repository only; a reader's own page may keep files beside it.
    bases = [] if page.is_relative_to(ROOT / "docs") else [page.parent]
    rendering = Rendering(page.read_text("utf-8-sig"), bases)
    blocks = list(_blocks(name, rendering))
    if rendering.problems:
        raise PageError(name, rendering.problems)
    return blocks


_of_docs = cache(_collect)  # many tests look at all pages, which takes seconds, and none changes them


def needs_package(page: Path) -> bool:
    """Whether the page's front matter says `package: true`: its reader has installed this repository."""
    return get_data(page.read_text("utf-8-sig"))[1].get("package") is True


def console_lines(page: Path) -> list[tuple[int, str]]:
    """Return line and text of each command (`$ ...`) in the page's console blocks."""
    return [
        (block.line + 1 + block.source.count("\n", 0, command.start()), command[1].replace("\\\n", ""))
        for block in collect(page)
        if block.language == "console"
        for command in CONSOLE_COMMAND.finditer(block.source)
    ]


def _blocks(page: str, rendering: Rendering) -> Iterator[Block]:
    directives = rendering.directives()
    executed: Block | None = None
    names: dict[int, int] = {}
    for fence in rendering.shown:
        try:
            language = _language(fence.language)
        except ValueError as error:
            rendering.refuse(fence.start, str(error))
            continue
        line, notes = rendering.line(fence), directives[fence.start]
        texts = tuple(text for _, text in notes)
        block = Block(page, line, language, fence.source + "\n", rendering.section(fence), texts)
        if language != "text" and not block.source.strip():
            rendering.refuse(fence.start, "an empty block")
        if language == "console" and not CONSOLE_COMMAND.search(block.source):
            rendering.refuse(fence.start, "a console block without a line that begins with `$ `")
        for n, text in notes:
            if cause := _apply(text, block, executed):
                rendering.refuse(n, f"<!--{text}-->: {cause}")
        if block.gpu and not GPU_CAPTION.search(f"{fence.title}\n{rendering.paragraph_before(fence.start)}"):
            caption = "`last run on MACHINE, YYYY-MM-DD`, or `never by us`"
            rendering.refuse(fence.start, f"a gpu block needs a caption: {caption}")
        if block.is_executed:
            executed = block
            count = names[line] = names.get(line, 0) + 1  # an included page may hold several blocks
            block.name = f"{page}::line {line}" + (f" ({count})" if count > 1 else "")
        yield block


def _language(word: str) -> str:
    """Return what a fence's word means; raise `ValueError` with the reason if nothing can be done with it."""
    if not word:
        raise ValueError("a fence without a language")
    try:
        lexer = str(get_lexer_by_name(word).name)
    except ClassNotFound:
        raise ValueError(f"unknown language {word!r}") from None
    if lexer not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES.values()))
        raise ValueError(f"a block of {word!r} can neither be run nor is it data; there are {known}")
    return LANGUAGES[lexer]


def _apply(text: str, block: Block, executed: Block | None) -> str | None:
    """Apply a directive to its block, or to the executed one before it; return what is wrong with it."""
    directive = DIRECTIVES.fullmatch(text)
    if directive is None:
        return "not one of expected-output, raises, gpu and timeout; no block is passed over"
    if text.endswith("expected-output"):
        if block.language != "text":
            return "output is shown in a `text` block"
        if executed is None or executed.expected is not None:
            return "no executed block before it whose output is not yet shown"
        if not block.source.replace("...", "").strip():
            return "this output matches anything"
        executed.expected = block.source
    elif not block.is_executed:
        return f"a {block.language} block is not executed"
    elif directive["raises"] and block.language != "python":
        return "only a python block raises"
    else:
        block.raises = directive["raises"] or block.raises
        block.timeout_s = float(directive["timeout"]) if directive["timeout"] else block.timeout_s
        block.gpu |= text.startswith("pytest.mark.gpu")
        block.gpu_module = directive["module"] or block.gpu_module
    return None
