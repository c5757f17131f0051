"""Each page says how long it takes to read and what comes before it, as its words and the navigation have it."""

import re
from pathlib import Path

import pytest

from snippets.reference import reading
from snippets.reference.generated import update
from snippets.reference.reading import DOCS, count_words, line, minutes, needs, pages, render, section, title

INCLUDE = re.compile(r"^# .+\n\n--8<-- \"docs/assets/reference/reading\.md:([\w-]+)\"$", re.M)


def test_the_committed_lines_are_what_the_pages_say() -> None:
    assert update("reading", render, ["--check"]) == 0


def test_every_page_that_is_read_from_top_to_end_shows_its_own_line() -> None:
    assert {"setup.md", "verify.md", "fundamentals/index.md", "fundamentals/naive.md"} <= {*pages()}
    shown = {page: INCLUDE.findall((DOCS / page).read_text("utf-8")) for page in pages()}
    assert shown == {page: [section(page)] for page in pages()}


def test_no_two_pages_share_a_line() -> None:
    assert len({section(page) for page in pages()}) == len(pages())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A title\n\nTwo `words`.\n", 4),
        ("---\nneeds: [setup.md]\n---\n\nOne.\n", 1),
        ("```python\na = 1\n```\n", 3),
        ('??? abstract "Code from earlier pages"\n\n    ```python\n    a = 1\n    ```\n\nAfter.\n', 1),
        ('<figure class="chart"><svg><text>10 images</text></svg></figure>\n\nBelow.\n', 1),
        ("| a | b |\n| --- | --- |\n| 1 | 2 |\n", 4),
        ('--8<-- "snippets/fundamentals/naive.py:imports"\n', 6),
        ('--8<-- "docs/assets/reference/reading.md:no-such-page"\n\nOne.\n', 1),
    ],
    ids=["prose", "front-matter", "code", "folded", "figure", "table", "include", "its-own-line"],
)
def test_words_are_counted_as_they_are_shown(text: str, words: int) -> None:
    assert count_words(text) == words


def test_minutes_are_whole_and_at_least_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for words, expected in ((0, 1), (1, 1), (200, 1), (201, 2), (2000, 10)):
        page.write_text("word " * words)
        assert minutes(page) == expected


def test_the_page_before_is_what_a_page_needs_unless_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs(pages()[0]) == []
    assert needs("fundamentals/index.md") == ["setup.md"]
    assert needs("verify.md") == ["setup.md"]  # its front matter, as the page before it is not needed
    before = pages()[pages().index("fundamentals/naive.md") - 1]
    assert needs("fundamentals/naive.md") == [before]
    link = before.removeprefix("fundamentals/")
    assert line("fundamentals/naive.md").endswith(f" · before this: [{title(before)}]({link})\n{{.reading}}")
    assert line("fundamentals/index.md").endswith("[Setup](../setup.md)\n{.reading}")
    monkeypatch.setattr(reading, "navigation", lambda: ["verify.md"])
    with pytest.raises(ValueError, match=r"docs/verify\.md needs setup\.md, which is not in the navigation"):
        needs("verify.md")
