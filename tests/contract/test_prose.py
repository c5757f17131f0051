"""The pages keep to the style: no banned word, no typed measurement, one takeaway, and a way on."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.page_rendering import ROOT

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "assets" not in path.parts)
TUTORIAL = ("docs/setup.md", "docs/fundamentals/")
WORDS = range(300, 1001)
CALLOUTS = 2  # besides the takeaway

BANNED = re.compile(
    r"\b(simply|just|easily|currently|obviously|blazing\w*|lightning|seamless\w*|powerful)\b", re.I
)
EMOJI = re.compile(r"[\u2600-\u27bf\u2b50\u2b55\ufe0f\U0001f000-\U0001faff]")
UNIT = (
    r"\w+/s|\w+ (?:a|per) (?:second|minute|hour|day)|%|percent|ms|µs|s|sec|seconds?|min|minutes?|h|hours?|days?"
    r"|[kKMGT]i?B|bytes?|x(?!\s*\d)|\u00d7(?!\s*\d)|times|-?fold"
)
MEASUREMENT = re.compile(rf"\d[\d.,]*[\s-]*(?:{UNIT})(?!\w)|\bfactors? of\s+\d+")
PRIVATE = re.compile(r"(?<![\w}.\])])/(?:work|root|farm)/")

FENCE = re.compile(r"^(?P<indent>[ >]*)(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
LINK_TARGET = re.compile(r"(?<=\])\([^)]*\)|(?<=\])\[[^]]*\]|<https?://[^>]*>")
RESULTS = re.compile(r"<!-- results:begin -->.*?<!-- results:end -->", re.S)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.S)
INCLUDE = re.compile(r"^[ >]*--8<--.*$", re.M)
MARK = re.compile(r"\{[:#.][^}\n]*\}")
INLINE_CODE = re.compile(r"(?P<ticks>`+)(?:(?!\n[ ]*\n).)+?(?P=ticks)(?!`)", re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)


def blank(text: str) -> str:
    """Return as many characters, and the same lines, with nothing on them."""
    return re.sub(r"[^\n]", " ", text)


def erase(pattern: re.Pattern[str], text: str) -> str:
    """Return the text with blanks where the pattern matches."""
    return pattern.sub(lambda match: blank(match[0]), text)


def without_fences(text: str) -> str:
    """Return the text without its fenced code."""
    lines, mark = [], ""
    for line in text.split("\n"):
        fence = FENCE.match(line)
        is_code = bool(mark or fence)
        if not mark and fence:
            mark = fence["mark"]
        elif mark and fence and fence["mark"].startswith(mark) and not fence["info"].strip():
            mark = ""
        lines.append(blank(line) if is_code else line)
    return "\n".join(lines)


def prose(text: str) -> str:
    """Return what a person wrote for people to read, each character at its place."""
    text = without_fences(text)
    for pattern in (RESULTS, FRONT_MATTER, INCLUDE, MARK, INLINE_CODE):
        text = erase(pattern, text)
    return text


def line_of(text: str, position: int) -> int:
    """Return the line, counted from 1."""
    return text.count("\n", 0, position) + 1


def sentence(text: str, start: int, end: int) -> str:
    """Return the sentence, table row or list item around a place."""
    boundary = re.compile(r"[.!?:;](?=\s)|\n(?=\s*(?:\n|[|*-]|\d+\.\s))")
    first = max((match.end() for match in boundary.finditer(text, 0, start)), default=0)
    after = boundary.search(text, end)
    return text[first : after.start() if after else len(text)]


def banned_words(_: str, text: str) -> Iterator[tuple[int, str]]:
    """Words that claim without saying, and emoji."""
    read = erase(LINK_TARGET, erase(COMMENT, prose(text)))
    for match in BANNED.finditer(read):
        yield line_of(text, match.start()), f"the word {match[0]!r}"
    for match in EMOJI.finditer(read):
        yield line_of(text, match.start()), f"the emoji {match[0]!r}"


def typed_measurements(_: str, text: str) -> Iterator[tuple[int, str]]:
    """Numbers of speed, time, size or ratio that come neither from the results file nor from a linked source."""
    written = prose(text)
    read = erase(LINK_TARGET, erase(COMMENT, written))
    for match in MEASUREMENT.finditer(read):
        number = line_of(text, match.start())
        is_definition = "<!-- definition -->" in text.split("\n")[number - 1]
        is_linked = re.search(r"\]\(https?://|<https?://", sentence(written, match.start(), match.end()))
        if not is_definition and not is_linked:
            yield number, f"a typed measurement: {' '.join(match[0].split())!r}"


def wrong_titles(_: str, text: str) -> Iterator[tuple[int, str]]:
    """Blocks whose title is not the file that they show."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        title = re.search(r'^[ >]*(?:`{3,}|~{3,}).*\btitle="(snippets/[^"]*)"', line)
        shown = re.search(r'--8<-- "([^":]*)', lines[number] if number < len(lines) else "")
        if title and (shown is None or shown[1] != title[1]):
            yield number, f"the title {title[1]}, and another file is shown"
        if title and not (ROOT / title[1]).is_file():
            yield number, f"the title {title[1]}, which is no file"


def wrong_form(page: str, text: str) -> Iterator[tuple[int, str]]:
    """Headings, callouts, the takeaway and the way on."""
    is_tutorial = page.startswith(TUTORIAL)
    lines = prose(text).split("\n")
    headings = [number for number, line in enumerate(lines, 1) if line.startswith("# ")]
    if len(headings) != 1:
        yield (headings or [1, 1])[-1], f"{len(headings)} headings of the first level"
    callouts = [number for number, line in enumerate(lines, 1) if re.match(r"\s*!!! ", line)]
    takeaways = [number for number in callouts if lines[number - 1].strip() == '!!! abstract "Takeaway"']
    if len(callouts) - len(takeaways) > CALLOUTS:
        yield callouts[-1], f"{len(callouts) - len(takeaways)} callouts besides the takeaway"
    if len(takeaways) > 1 or (is_tutorial and not takeaways):
        yield (takeaways or [1])[-1], f"{len(takeaways)} takeaways"
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).rstrip())
    if is_tutorial and not re.search(r"\b(Next|Then)\b.*\]\(", paragraphs[-1], re.S):
        yield len(text.rstrip().split("\n")), "no link to the next page at the end"


def wrong_length(page: str, text: str) -> Iterator[tuple[int, str]]:
    """Pages that nobody finishes, and steps of the tutorial that say too little."""
    read = FRONT_MATTER.sub("", INCLUDE.sub("", MARK.sub("", COMMENT.sub("", without_fences(text)))))
    words = len(re.findall(r"\w[\w'-]*", LINK_TARGET.sub("", read)))
    if words >= WORDS.stop or (words < WORDS.start and page.startswith(TUTORIAL)):
        yield 1, f"{words} words outside of code, not {WORDS.start} to {WORDS.stop - 1}"


def private_paths(_: str, text: str) -> Iterator[tuple[int, str]]:
    """Places on the machine of whoever wrote it."""
    for match in PRIVATE.finditer(text):
        yield line_of(text, match.start()), f"the private path {match[0]}"


Check = Callable[[str, str], Iterator[tuple[int, str]]]
EVERYWHERE: tuple[Check, ...] = (banned_words, typed_measurements)
ON_PAGES: tuple[Check, ...] = (*EVERYWHERE, wrong_titles, wrong_form, wrong_length)


def problems(page: str, text: str, checks: tuple[Check, ...]) -> list[str]:
    """Return what is wrong on a page, each with its line."""
    found = [(line, cause) for check in checks for line, cause in check(page, text)]
    return [f"{page}:{line}: {cause}" for line, cause in sorted(found)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_keeps_to_the_style(page: Path) -> None:
    assert problems(page.relative_to(ROOT).as_posix(), page.read_text(), ON_PAGES) == []


def test_the_readme_keeps_to_the_style() -> None:
    assert problems("README.md", (ROOT / "README.md").read_text(), EVERYWHERE) == []


def test_nothing_committed_names_a_private_path() -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "README.md", "docs", "tests"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    texts = {name: (ROOT / name).read_bytes() for name in files if name and (ROOT / name).is_file()}
    assert len(texts) > 10
    found = [problems(name, text.decode(errors="replace"), (private_paths,)) for name, text in texts.items()]
    assert [problem for each in found for problem in each] == []


TRUE_PAGE = f"""---
hide: [navigation]
---

# A page

It takes {"a word and " * 160} `16 GB` of memory, justly. See [a source](https://example.com/a-10-x), which
measured 12 images/s with 3 GB in 5 minutes. An image has 224 x 224 pixels, a batch 16 rows, version 3.12.

A block has 128 MB. <!-- definition -->

Here one core decodes
--8<-- "docs/assets/results/numbers.md:decode-per-core"
images/s, in `batches of
4 s`.

<!-- results:begin -->
It ran 3.1 times as fast.
<!-- results:end -->

```python title="snippets/samples.py"
--8<-- "snippets/samples.py:imports"
```

````markdown
```text
it took 5 s, simply
```
````

!!! warning "One"

    A text.

??? abstract "Folded"

    A text.

!!! abstract "Takeaway"

    A text.

Next: [on](index.md).
"""

FAULTS = {
    "banned": ("It takes", "It simply takes", "the word 'simply'"),
    "capital": ("It takes", "Currently it takes", "the word 'Currently'"),
    "prefix": ("It takes", "It seamlessly takes", "the word 'seamlessly'"),
    "in-heading": ("# A page", "# A powerful page", "the word 'powerful'"),
    "in-callout": ("    A text.", "    Just a text.", "the word 'Just'"),
    "emoji": ("# A page", "# A page \U0001f680", "the emoji"),
    "rate": ("Here one", "At 12 images/s, one", "a typed measurement: '12 images/s'"),
    "rate-in-words": ("Here one", "At 12 images a second one", "a typed measurement: '12 images a second'"),
    "percent": ("Here one", "In 90 % of them one", "a typed measurement: '90 %'"),
    "time": ("Here one", "In 5.5 s one", "a typed measurement: '5.5 s'"),
    "minutes": ("Here one", "In 20 minutes one", "a typed measurement: '20 minutes'"),
    "size": ("Here one", "With 16 GB one", "a typed measurement: '16 GB'"),
    "ratio": ("Here one", "By 3x one", "a typed measurement: '3x'"),
    "times": ("Here one", "At 4 times one", "a typed measurement: '4 times'"),
    "fold": ("Here one", "A 4-fold one", "a typed measurement: '4-fold'"),
    "factor": ("Here one", "A factor of 4, one", "a typed measurement: 'factor of 4'"),
    "over-two-lines": ("Here one", "Here 16\nGB of one", "a typed measurement: '16 GB'"),
    "beside-a-source": ("Next: ", "It took 5 s. A [source](https://example.com). Next: ", "measurement: '5 s'"),
    "internal-link": ("Next: [on]", "Next: [in 5 s]", "a typed measurement: '5 s'"),
    "not-defined-here": (" <!-- definition -->", "\n<!-- definition -->", "a typed measurement: '128 MB'"),
    "title": ('title="snippets/samples.py"', 'title="snippets/command.py"', "another file is shown"),
    "title-of-nothing": ("snippets/samples.py", "snippets/nothing.py", "which is no file"),
    "second-h1": ("??? abstract", "# Another\n\n??? abstract", "2 headings of the first level"),
    "no-h1": ("# A page", "## A page", "0 headings of the first level"),
    "callouts": ("??? abstract", "!!! note\n\n    a\n\n!!! note\n\n    a\n\n??? abstract", "3 callouts besides"),
    "no-takeaway": ('!!! abstract "Takeaway"', "??? abstract", "0 takeaways"),
    "two-takeaways": ("??? abstract", '!!! abstract "Takeaway"\n\n    a\n\n??? abstract', "2 takeaways"),
    "no-way-on": ("Next: [on](index.md).", "The end.", "no link to the next page"),
    "short": ("a word and " * 150, "", "words outside of code"),
    "long": ("It takes", "a word and " * 400 + "It takes", "words outside of code"),
}


def test_a_true_page_has_no_problem() -> None:
    assert problems("docs/setup.md", TRUE_PAGE, ON_PAGES) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_with_its_line(fault: str) -> None:
    old, new, cause = FAULTS[fault]
    assert old in TRUE_PAGE
    found = problems("docs/setup.md", TRUE_PAGE.replace(old, new), ON_PAGES)
    assert len(found) >= 1
    assert all(re.match(r"docs/setup\.md:\d+: ", problem) for problem in found)
    assert any(cause in problem for problem in found), found


@pytest.mark.parametrize("folder", ["work", "root", "farm"])
def test_a_private_path_is_caught(folder: str) -> None:
    text = f"first\nopen('/{folder}/a')\n"
    assert problems("a.py", text, (private_paths,)) == [f"a.py:2: the private path /{folder}/"]
    assert problems("a.py", f"tmp_path/{folder}/a and docs.{folder}/", (private_paths,)) == []
