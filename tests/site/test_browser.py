"""What a reader sees, hears, finds and copies in a browser, on every page."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.page_blocks import CONSOLE_COMMAND, collect
from tests.page_rendering import ROOT
from tests.site.browser import (
    MODES,
    Mode,
    copies,
    look,
    look_at_colours,
    opened_page,
    problems,
    search,
    shades,
    switch_to_dark,
    system_fonts,
    tab,
    tab_through,
    visit,
)
from tests.site.built import PAGES, Site, name, serve

WRITTEN = {page: source for page, source in PAGES.items() if source and source.suffix == ".md"}
SEEN_RESULTS = 3  # pages among the results of a search that a reader sees without scrolling
SCREENSHOTS = ROOT / ".cache" / "screenshots"


def shown_code(source: Path) -> list[str]:
    """Return what a reader wants of each block of a page: its source, and of a console what is typed there."""
    return [
        "\n".join(command[1] for command in CONSOLE_COMMAND.finditer(block.source))
        if block.language == "console"
        else block.source.rstrip("\n")
        for block in collect(source)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_shows_its_reader_no_fault_on_a_desktop(browser: Browser, site: Site, page: str) -> None:
    # Opened once for all that is seen at this width: to open a page takes as long as to look at it.
    light = MODES["light"]
    with opened_page(browser, site, page, light) as (shown, found):
        in_light = look(shown, light, SCREENSHOTS / "light" / f"{name(page)}.jpg")
        switch_to_dark(shown)
        in_dark = look_at_colours(shown, SCREENSHOTS / "dark" / f"{name(page)}.jpg")
        assert {"light": in_light, "dark": in_dark} == {"light": [], "dark": []}
        if page in WRITTEN:
            assert copies(shown) == shown_code(WRITTEN[page])
            assert system_fonts(shown) == set()
        assert found == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_shows_its_reader_no_fault_on_a_phone(browser: Browser, site: Site, page: str) -> None:
    assert problems(browser, site, page, MODES["phone"], SCREENSHOTS / "phone" / f"{name(page)}.jpg") == []


def test_the_promise_fits_one_screen(browser: Browser, site: Site) -> None:
    with tab(browser, Mode(1440, 900)) as opened:
        visit(opened, site.url)
        shown = opened.locator("h1, .promise li, .promise .chart, .pipelines .wrong, .pipelines .right")
        boxes = [element.bounding_box() for element in shown.all()]
        assert len(boxes) == 1 + 3 + 1 + 2
        assert [box for box in boxes if box is None or box["y"] + box["height"] > 900] == []
        naive, final = boxes[-2:]
        assert naive and final and naive["y"] == final["y"]


HATCH_PX = 8  # the side of an anti-pattern that is hatched


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_an_anti_pattern_is_told_without_colour(browser: Browser, site: Site, media: str, colours: str) -> None:
    with tab(browser, MODES[colours]) as opened:
        visit(opened, site.url)
        opened.emulate_media(media="print" if media == "print" else "screen")
        sign = "(block) => getComputedStyle(block, '::before').content"
        wrong, right = (opened.locator(f".pipelines .{kind}") for kind in ("wrong", "right"))
        assert wrong.evaluate(sign).startswith('"\u00d7')
        assert wrong.evaluate(sign).endswith('Anti-pattern"')
        assert "Anti-pattern" not in right.evaluate(sign)
        # Its side is striped, in grey as well; that of the right way is of one tone.
        assert shades(opened, wrong, 1, HATCH_PX - 2) > 80
        assert shades(opened, right, 1, HATCH_PX - 2) < 10
        ink = "(block) => getComputedStyle(block, '::after').printColorAdjust"
        assert wrong.evaluate(ink) == "exact"  # or a printer leaves it out, as the ground of a page


def test_every_page_with_an_anti_pattern_marks_it(browser: Browser, site: Site) -> None:
    marked = {page for page, source in WRITTEN.items() if ".wrong" in source.read_text("utf-8")}
    assert {"", "fundamentals/naive/"} <= marked
    with tab(browser, MODES["light"]) as opened:
        for page in marked:
            visit(opened, site.url + page)
            signs = opened.locator(".highlight.wrong").evaluate_all(
                "(blocks) => blocks.map((block) => getComputedStyle(block, '::before').content)"
            )
            assert signs
            assert all("Anti-pattern" in sign for sign in signs)


def shown_errors() -> dict[str, set[str]]:
    """Return the errors that blocks raise, with their pages; what a page leaves open is left out."""
    errors: dict[str, set[str]] = {}
    for page, source in WRITTEN.items():
        for block in collect(source):
            if block.raises and block.expected:
                errors.setdefault(" ".join(block.expected.replace("...", " ").split()), set()).add(page)
    return errors


def test_a_pasted_error_leads_to_the_page_that_explains_it(browser: Browser, site: Site) -> None:
    errors = shown_errors()
    assert "ValueError: Per-column arrays must each be 1-dimensional" in errors
    with tab(browser, MODES["light"]) as opened:
        visit(opened, site.url)
        for error, pages in errors.items():
            # A lab is the same text as a notebook, all of a part in one page.
            found = dict.fromkeys(page for page in search(opened, error) if not page.startswith("labs/"))
            assert pages & set(list(found)[:SEEN_RESULTS]), error
        assert search(opened, "xylophone quartet") == []


@pytest.mark.parametrize("mode", ["light", "phone"])
def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Browser, site: Site, mode: str) -> None:
    with tab(browser, MODES[mode]) as opened:
        visit(opened, site.url + "fundamentals/actor_pool/")
        assert opened.locator(".drawer-button").is_visible() == (mode == "phone")
        stops, missed = tab_through(opened)
    assert missed == []
    assert [stop.place for stop in stops if not stop.is_visible] == []
    areas = list(dict.fromkeys(stop.area for stop in stops))
    if mode == "light":
        expected = ["skip", "header", "palette", "search", "navigation", "contents", "page", "copy", "footer"]
        assert areas == expected


def test_the_skip_link_leads_to_the_text(browser: Browser, site: Site) -> None:
    with tab(browser, MODES["light"]) as opened:
        visit(opened, site.url + "setup/")
        for key in ("Tab", "Enter", "Tab"):
            opened.keyboard.press(key)
        assert opened.evaluate("document.activeElement.closest('.md-content') !== null")


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the focus is on an element of this kind."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no Tab leads to {selector}")


def test_the_keyboard_switches_light_and_dark(browser: Browser, site: Site) -> None:
    with tab(browser, MODES["light"]) as opened:
        visit(opened, site.url)
        tab_to(opened, "[name=__palette]")
        schemes = []
        for _ in range(2):
            opened.keyboard.press("ArrowRight")
            schemes.append(opened.evaluate("document.body.dataset.mdColorScheme"))
        assert schemes == ["slate", "default"]


def test_the_keyboard_opens_the_navigation_of_a_phone(browser: Browser, site: Site) -> None:
    with tab(browser, MODES["phone"]) as opened:
        visit(opened, site.url)
        tab_to(opened, ".drawer-button")
        opened.keyboard.press("Enter")
        tab_to(opened, ".md-sidebar--primary a[href='setup/']")
        opened.keyboard.press("Enter")
        opened.wait_for_url(f"{site.url}setup/")


PLAIN = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>A page</title>
<link rel="icon" href="data:,"></head>
<body><main><h1>A page</h1><p>A text.</p>PLANTED</main></body>
</html>
"""
NARROW = "width: 5em; white-space: nowrap"
TABLE = '<table style="width: 60em"><tr><th>A head</th></tr><tr><td>A cell</td></tr></table>'
# What is planted into a page, and what is said of it at the width of a phone.
FAULTS = {
    "console-error": ("<script>console.error('planted')</script>", "^error: planted$"),
    "console-warning": ("<script>console.warn('planted')</script>", "^warning: planted$"),
    "exception": ("<script>throw new Error('planted')</script>", "^an exception: .*planted"),
    "other-host": ("<script src='https://example.com/a.js'></script>", r"^a request to example\.com$"),
    "missing-file": ("<img src='missing.png' alt='A picture'>", r"^404: .*/missing\.png$"),
    "no-alt": ("<img src='data:,'>", "^axe image-alt: "),
    "contrast": ("<p style='color: #999'>Pale.</p>", "^axe color-contrast: "),
    # A single character says nothing, and the same fault beside it is one.
    "token": (
        "<style>.p { color: #999 }</style><pre><span class='p'>pale</span> <span class='p'>(</span></pre>",
        "^axe color-contrast: .*pale",
    ),
    "wide-page": ("<div style='width: 500px; height: 1px'></div>", "^the page is 5.. px wide, the screen 390$"),
    "cut-off": (f"<p style='{NARROW}; overflow: hidden'>More text than fits.</p>", "^cut off by p: p "),
    "too-wide": (f"<p style='{NARROW}'>More text than fits.</p>", "^wider than its box: p "),
    "off-screen": ("<p style='margin-left: -4em'>Partly on the screen.</p>", "^cut off by the screen: p "),
    "small": ("<p style='font-size: 6px'>Small.</p>", "^too small to read: p "),
    "table": (
        f"<div style='overflow-x: auto'>{TABLE}</div>",
        "^scrolls sideways, and no keyboard reaches it: div",
    ),
    "folded": (
        f"<details><summary>More</summary><p style='{NARROW}'>More than fits.</p></details>",
        "^wider than",
    ),
}


def look_at(browser: Browser, folder: Path, html: str) -> list[str]:
    """Return what is wrong with a page of this text."""
    (folder / "index.html").write_text(html)
    with serve(folder) as planted:
        return problems(browser, planted, "", MODES["phone"])


def test_a_page_without_a_fault_is_let_through(browser: Browser, tmp_path: Path) -> None:
    reachable = f"<div style='overflow-x: auto' tabindex='0'>{TABLE}</div>"
    assert look_at(browser, tmp_path, PLAIN.replace("PLANTED", reachable)) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(browser: Browser, tmp_path: Path, fault: str) -> None:
    html, said = FAULTS[fault]
    found = look_at(browser, tmp_path, PLAIN.replace("PLANTED", html))
    assert [problem for problem in found if re.search(said, problem)], found


def test_a_fault_in_the_dark_alone_is_seen(browser: Browser, tmp_path: Path) -> None:
    styles = "<style>@media (prefers-color-scheme: dark) { body { color: #555; background: #222 } }</style>"
    (tmp_path / "index.html").write_text(PLAIN.replace("PLANTED", styles))
    with serve(tmp_path) as planted, tab(browser, MODES["light"]) as opened:
        visit(opened, planted.url)
        assert look(opened, MODES["light"]) == []
        opened.emulate_media(color_scheme="dark")
        [problem] = look_at_colours(opened, tmp_path / "dark.jpg")
        assert problem.startswith("axe color-contrast: ")


def test_a_heavy_page_is_seen(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "heavy.js").write_text(f"/* {os.urandom(300_000).hex()} */")
    [problem] = look_at(browser, tmp_path, PLAIN.replace("PLANTED", "<script src='heavy.js'></script>"))
    assert re.fullmatch(r"the first view takes 3\d{5} bytes, of 250000", problem)


def test_a_button_that_copies_something_else_is_seen(browser: Browser, tmp_path: Path) -> None:
    button = "<button data-md-type=copy onclick='navigator.clipboard.writeText(`other`)'>Copy</button>"
    (tmp_path / "index.html").write_text(PLAIN.replace("PLANTED", f"<pre>code</pre>{button}"))
    with serve(tmp_path) as planted, tab(browser, MODES["light"]) as opened:
        visit(opened, planted.url)
        assert copies(opened) == ["other"]


def test_a_focus_that_nobody_sees_and_a_link_without_one_are_seen(browser: Browser, tmp_path: Path) -> None:
    links = (
        "<a href='#a' style='outline: none'>unseen</a> <a href='#b' tabindex='-1'>missed</a> <a href='#c'>c</a>"
    )
    (tmp_path / "index.html").write_text(PLAIN.replace("PLANTED", links))
    with serve(tmp_path) as planted, tab(browser, MODES["light"]) as opened:
        visit(opened, planted.url)
        stops, missed = tab_through(opened)
    assert [(stop.place, stop.is_visible) for stop in stops] == [('a. "unseen"', False), ('a. "c"', True)]
    assert missed == ['a. "missed"']
