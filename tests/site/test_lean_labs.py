"""What the hook that makes the notebooks' pages lean leaves out, and what it keeps."""

import pytest
from playwright.sync_api import Browser

from scripts.lean_labs import make_lean
from tests.labs import LABS, Lab
from tests.site.browser import MODES, tab, visit
from tests.site.built import Site

CELL = '<div class="hl"><pre><span>a</span>\n</pre></div>\n<div class="clipboard-copy-txt" id="cell-1">a</div>'


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".a.hl{x:y}.hl{x:y}", ".hl{x:y}"),
        (".a,.hl,p{x:y}", ".hl,p{x:y}"),
        (".hl:not(.a,.b) p{x:y}", ".hl:not(.a,.b) p{x:y}"),
        (".a:is(.hl, p){x:y}", ""),
        ("@media print{.a{x:y}.hl{x:y}}", "@media print{.hl{x:y}}"),
        ("@font-face{font-family:f}", "@font-face{font-family:f}"),
        (":root{--jp-icon-add: url(data:image/svg+xml;base64,AA==);--b: 1}", ":root{--b: 1}"),
        ("/* told */ .hl{x:y} p", ".hl{x:y}"),
    ],
    ids=["two classes", "a list", "not", "is", "media", "font", "icon", "cut off"],
)
def test_rules_of_classes_that_are_not_there_are_left_out(css: str, kept: str) -> None:
    assert make_lean(f"<style>{css}</style>{CELL}").partition("</style>")[0] == f"<style>{kept}"


def test_code_is_there_once_and_has_the_name_that_its_button_asks_for() -> None:
    assert make_lean(CELL) == '<div class="hl"><pre id="cell-1"><span>a</span>\n</pre></div>\n'


@pytest.mark.parametrize("part", LABS)
def test_a_cells_button_copies_its_code(browser: Browser, site: Site, part: str) -> None:
    sources = [cell.source for cell in Lab(part).cells if cell.cell_type == "code"]
    with tab(browser, MODES["light"]) as page:
        visit(page, f"{site.url}labs/{part}/")
        buttons = page.locator("clipboard-copy")
        assert buttons.count() == len(sources)
        for number in (0, len(sources) // 2, len(sources) - 1):
            buttons.nth(number).evaluate("(button) => button.click()")
            page.wait_for_function(
                "async (t) => (await navigator.clipboard.readText()).trimEnd() === t", arg=sources[number]
            )
