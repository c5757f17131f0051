"""The lines of code that the ladder's table states are counted in what the pages show."""

import pytest

from snippets.benchmark import code_lines
from snippets.benchmark.code_lines import SECTIONS, lines_of
from snippets.benchmark.ladder_runs import ALL_RUNGS
from tests.page_rendering import ROOT


def test_every_section_of_a_rung_is_shown_on_a_page() -> None:
    pages = "".join(path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md"))
    assert {*SECTIONS} == {*ALL_RUNGS}
    for named in {section for sections in SECTIONS.values() for section in sections}:
        assert f'--8<-- "snippets/{named}"' in pages, named


def test_lines_are_counted_without_empty_ones_and_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    section = "fundamentals/naive.py:classify_batch"
    monkeypatch.setitem(SECTIONS, "naive", (section,))
    source = (ROOT / "snippets" / "fundamentals" / "naive.py").read_text("utf-8")
    shown = source.split("[start:classify_batch]\n")[1].split("# --8<-- [end:classify_batch]")[0]
    assert lines_of("naive") == sum(bool(line.strip()) for line in shown.splitlines())
    monkeypatch.setitem(SECTIONS, "naive", (section, section))
    assert lines_of("naive") == 2 * code_lines._lines_of_section(section)


def test_a_section_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECTIONS, "naive", ("fundamentals/naive.py:gone",))
    with pytest.raises(ValueError, match=r"naive\.py has no section gone"):
        lines_of("naive")
