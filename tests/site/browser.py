"""A headless Chromium that looks at a page as its readers do, and says what is wrong with it."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Locator, Page, expect, sync_playwright

from tests.page_rendering import ROOT
from tests.site.built import Site

FIRST_VIEW_BYTES = 250_000  # compressed; the search index, which loads in a worker, does not delay a view
LAB_FIRST_VIEW_BYTES = 400_000  # a notebook brings the style sheet of JupyterLab with it
AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
AXE_RUN = (Path(__file__).parent / "axe_run.js").read_text("utf-8")
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
COLOURS = ["color-contrast", "link-in-text-block"]  # its rules that look at them
FONTS = (Path(__file__).parent / "fonts.js").read_text("utf-8")
LAYOUT = (Path(__file__).parent / "layout.js").read_text("utf-8")
KEYBOARD = (Path(__file__).parent / "keyboard.js").read_text("utf-8")
# The theme adds a button to each block of code when it starts.
BUTTONS_ARE_THERE = "!document.querySelector('.md-typeset pre:not(:has(.md-code__button)) > code')"
LAID_OUT = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
# What a button has put into the clipboard, which is emptied; nothing after some seconds.
TAKE_COPIED = """async () => {
  let copied = "";
  for (let frame = 0; frame < 600 && !copied; frame++) {
    await new Promise(requestAnimationFrame);
    copied = await navigator.clipboard.readText();
  }
  await navigator.clipboard.writeText("");
  return copied;
}"""
LOUD = ("error", "warning")  # what a console must not say
ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # another host fails at once, online or not
]


@dataclass(frozen=True)
class Mode:
    """How a reader looks at the site."""

    width: int
    height: int
    colours: Literal["light", "dark"] = "light"
    is_phone: bool = False


MODES = {
    "light": Mode(1280, 800),
    "dark": Mode(1280, 800, "dark"),
    "phone": Mode(390, 844, is_phone=True),
}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser that `scripts/install-browser` finds."""
    found = subprocess.run([ROOT / "scripts" / "install-browser", "--find"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found.stdout.strip(), args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def tab(browser: Browser, mode: Mode) -> Iterator[Page]:
    """A tab with an empty cache and an empty clipboard."""
    context = browser.new_context(
        viewport={"width": mode.width, "height": mode.height},
        color_scheme=mode.colours,
        is_mobile=mode.is_phone,
        has_touch=mode.is_phone,
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    )
    yield context.new_page()
    context.close()


def visit(page: Page, url: str) -> None:
    """Open a page and wait until its scripts have done their work."""
    page.goto(url, wait_until="load")
    page.wait_for_function(BUTTONS_ARE_THERE)
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page is laid out and painted."""
    page.evaluate(f"document.fonts.ready.then(() => {LAID_OUT})")


@contextlib.contextmanager
def opened_page(browser: Browser, site: Site, path: str, mode: Mode) -> Iterator[tuple[Page, list[str]]]:
    """Open a page of the site; yield it, and what is wrong with what it says, asks for and weighs, as it comes."""
    found: list[str] = []
    requested: dict[str, None] = {}

    def note_request(url: str) -> None:
        requested[url] = None
        if urlsplit(url).scheme not in ("data", "blob") and not site.serves(url):
            found.append(f"a request to {urlsplit(url).netloc}")

    with tab(browser, mode) as page:
        page.on("console", lambda it: found.append(f"{it.type}: {it.text}") if it.type in LOUD else None)
        page.on("pageerror", lambda error: found.append(f"an exception: {error}"))
        page.on("request", lambda request: note_request(request.url))
        page.on("requestfailed", lambda request: found.append(f"{request.failure}: {request.url}"))
        page.on("response", lambda it: found.append(f"{it.status}: {it.url}") if it.status >= 400 else None)
        visit(page, site.url + path)
        transferred = sum(site.transferred_bytes(url) for url in requested if "search_index" not in url)
        most = LAB_FIRST_VIEW_BYTES if re.fullmatch(r"labs/\w+/", path) else FIRST_VIEW_BYTES
        if transferred > most:
            found.append(f"the first view takes {transferred} bytes, of {most}")
        yield page, found


def look(page: Page, mode: Mode, picture: Path | None = None) -> list[str]:
    """Return what of an open page cannot be read, by eye or by screen reader; keep it at `picture` as it was."""
    if picture:
        _take(page, picture)
    _unfold(page)
    return [*page.evaluate(LAYOUT, mode.width), *_violations(page, AXE_TAGS)]


def look_at_colours(page: Page, picture: Path) -> list[str]:
    """Return what of a page that was looked at cannot be read in other colours: all else is the same in them."""
    _take(page, picture)
    _unfold(page)
    return _violations(page, COLOURS)


def _take(page: Page, picture: Path) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=picture, full_page=True, type="jpeg", quality=70)  # to encode a PNG takes a second


def _unfold(page: Page) -> None:
    """Open what is folded, which is read as well."""
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
    settle(page)


def problems(browser: Browser, site: Site, path: str, mode: Mode, picture: Path | None = None) -> list[str]:
    """Return what is wrong with a page of the site; keep a picture of it."""
    with opened_page(browser, site, path, mode) as (page, found):
        seen = look(page, mode, picture)
        return [*found, *seen]


def switch_to_dark(page: Page) -> None:
    """Choose the dark palette, as its button does, with what was unfolded folded again."""
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = false })")
    page.emulate_media(color_scheme="dark")
    page.locator("[data-md-color-scheme=slate][name=__palette]").evaluate("(choice) => choice.click()")
    page.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    settle(page)


def _violations(page: Page, rules: list[str]) -> list[str]:
    page.evaluate(AXE)
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    broken = page.evaluate(AXE_RUN, options)
    settle(page)
    return [
        f"axe {rule['id']}: {rule['help']}: {node['html'][:150]}" + (f" and {more} more" if more else "")
        for rule in broken
        for node, more in [(rule["nodes"][0], len(rule["nodes"]) - 1)]
    ]


def system_fonts(page: Page) -> set[str]:
    """Return the fonts that an open page takes from this machine, and not from the site."""
    page.evaluate(FONTS)  # one probe for each font that the styles ask for, with the characters set in it
    settle(page)
    session = page.context.new_cdp_session(page)
    for domain in ("DOM", "CSS"):
        session.send(f"{domain}.enable")
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    probes = session.send("DOM.querySelectorAll", {"nodeId": root, "selector": ".probe"})["nodeIds"]
    assert probes
    used = [
        font
        for probe in probes
        for font in session.send("CSS.getPlatformFontsForNode", {"nodeId": probe})["fonts"]
    ]
    assert used
    return {font["familyName"] for font in used if not font["isCustomFont"]}


def shades(page: Page, element: Locator, left: int, width: int) -> int:
    """Return how far the greys of a strip within an element lie apart, 0 to 255."""
    box = element.bounding_box()
    assert box
    clip = FloatRect(x=box["x"] + left, y=box["y"], width=width, height=box["height"])
    greys = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True))).convert("L").tobytes()
    return max(greys) - min(greys)


def copies(page: Page) -> list[str]:
    """Return what each copy button of an open page puts into the clipboard, from the top."""
    _unfold(page)
    page.evaluate("navigator.clipboard.writeText('')")
    copied = []
    for button in page.locator("button[data-md-type=copy]").all():
        button.click()
        copied.append(str(page.evaluate(TAKE_COPIED)))
    return copied


def search(page: Page, text: str) -> list[str]:
    """Return the addresses that the site's search finds for a text, best first."""
    field, meta = page.locator(".md-search__input"), page.locator(".md-search-result__meta")
    for typed, answer in (("", "Type to start searching"), (text, "matching document")):
        field.fill(typed)
        field.press("End")  # the theme looks when a key is released
        expect(meta).to_contain_text(answer)
    found = int(re.sub(r"\D", "", meta.inner_text()) or 0)
    documents = page.locator(".md-search-result__item > a")
    expect(documents.nth(min(found, 10) - 1) if found else documents).to_have_count(min(found, 1))
    return list(documents.evaluate_all("(links) => links.map((link) => new URL(link.href).pathname.slice(1))"))


@dataclass(frozen=True)
class Stop:
    """What the focus stands on."""

    place: str
    area: str
    is_visible: bool


def tab_through(page: Page) -> tuple[list[Stop], list[str]]:
    """Press Tab from top to end: return where the focus stood, and what can be clicked and never had it."""
    page.evaluate(KEYBOARD)
    page.add_style_tag(content="* { transition: none !important }")  # what opens with the focus is open at once
    stops: list[Stop] = []
    while True:
        page.keyboard.press("Tab")
        settle(page)
        stop = page.evaluate("focused()")
        if stop is None:
            return stops, page.evaluate("notFocused()")
        stops.append(Stop(**stop))
        assert len(stops) < 1000, f"the focus does not leave {stops[-1].place}"
