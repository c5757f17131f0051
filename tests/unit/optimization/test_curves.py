"""The figure says what the search found, in bars and in words."""

from __future__ import annotations

from xml.etree import ElementTree

from snippets.optimization.curves import draw_curve
from snippets.optimization.trial import FLAT, Choice, Outcome, Tuning

SVG = "{http://www.w3.org/2000/svg}"
OUTCOMES = (Outcome(1, (10.0, 12.0, 11.0), 5_000_000), Outcome(2, (20.0, 30.0, 22.0), 9_000_000))
FOUND = Tuning(Choice(2, 22.0, 0.1, 0.75, False), {}, (*OUTCOMES, Outcome(4, failure="out of <memory>")), FLAT)


def test_bars_are_medians_with_the_lowest_and_highest_repeat() -> None:
    figure = ElementTree.fromstring(draw_curve(FOUND, "Batches & more"))
    widths = [float(bar.get("width", 0)) for bar in figure.findall(f"{SVG}rect")]
    assert widths == [round(11 / 30 * 250, 1), round(22 / 30 * 250, 1)]  # 30 is the longest
    spreads = [path.get("d") for path in figure.findall(f"{SVG}path")]
    assert spreads == ["M143.3 32H160.0", "M226.7 66H310.0"]


def test_it_says_in_words_what_it_shows_and_marks_the_choice() -> None:
    figure = ElementTree.fromstring(draw_curve(FOUND, "Batches & more"))
    assert figure.findtext(f"{SVG}title") == "Batches & more"
    assert figure.findtext(f"{SVG}desc") == (
        "1: 11 images/s, 5 MB. 2: 22 images/s, 9 MB, chosen. 4: out of <memory>."
    )
    bold = [text.text for text in figure.findall(f"{SVG}text") if text.get("font-weight")]
    assert bold == ["Batches & more", "2", "22 images/s, 9 MB"]


def test_without_any_outcome_that_was_measured_there_are_reasons_alone() -> None:
    nothing = Tuning(Choice(0, 0.0, 0.0, 0.0, False), {}, (Outcome(4, failure="out of memory"),), FLAT)
    assert ElementTree.fromstring(draw_curve(nothing, "t")).findall(f"{SVG}rect") == []
