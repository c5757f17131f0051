"""The calculator answers in a browser what `sizing` answers in Python, and can be used by everybody."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from snippets.architecture.calculator import DEFAULTS, INPUTS, QUANTITIES, plan
from snippets.architecture.calculator_files import show
from tests.site.browser import MODES, tab, tab_through, visit
from tests.site.built import Site

PAGE = "architecture/calculator/"
MANY = 1000
NONSENSE: list[Any] = [0, -1, -0.5, 1e300, math.nan, math.inf, -math.inf, None, True, "", "abc", "12", [], 1.5]
SAME = 1e-9
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def draw(chance: random.Random, given: dict[str, Any]) -> float:
    """Return a value within the limits of an input: its default, its lowest, or another, each size as likely."""
    low = max(given.get("least", 0), 1e-3)
    if chance.random() < 0.15:
        return float(given["least"]) if "least" in given else float(given["default"])
    value = math.exp(chance.uniform(math.log(low), math.log(given["most"])))
    usual = given["default"] * math.exp(chance.gauss(0, 1.5))
    value = value if chance.random() < 0.1 else min(max(usual, low), given["most"])
    return float(max(math.floor(value), given["least"])) if given.get("whole") else value


def draw_many(count: int) -> list[dict[str, Any]]:
    """Return inputs, the same ones every time: machines of the presets, others, and a tenth with nonsense."""
    chance = random.Random(6)
    drawn = []
    for _ in range(count):
        values: dict[str, Any] = {given["name"]: draw(chance, given) for given in INPUTS}
        if chance.random() < 0.5:
            values |= chance.choice(QUANTITIES["preset"])["values"]
        if chance.random() < 0.02:
            values |= {"preemptions": 900, "rate": 1}
        if chance.random() < 0.1:
            values[chance.choice(INPUTS)["name"]] = chance.choice(NONSENSE)
        drawn.append(values)
    return drawn


def answer(values: dict[str, Any]) -> dict[str, Any]:
    """Return what Python says: the plan, or why there is none."""
    try:
        found = plan(values)
    except ValueError as error:
        return {"refusal": str(error)}
    return {"answers": found.answers, "limits": found.limits, "code": found.code}


ANSWER_ALL = """(inputs) => {
  const { plan } = document.querySelector("form.calculator");
  return inputs.map((values) => {
    try { return plan(values); } catch (error) { return { refusal: error.message }; }
  });
}"""


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return in what two answers differ: numbers by more than a relative 1e-9, all else at all."""
    if expected.keys() != found.keys() or "refusal" in expected:
        return [] if expected == found else [f"{expected} {found}"]
    if expected["answers"].keys() != found["answers"].keys():
        return ["other answers"]
    differing = [
        f"{name}: {value!r} {found['answers'][name]!r}"
        for name, value in expected["answers"].items()
        if not math.isclose(value, found["answers"][name], rel_tol=SAME)
    ]
    if expected["limits"] != found["limits"]:
        differing.append(f"limits: {expected['limits']} {found['limits']}")
    return differing + code_differences(expected["code"], found["code"])


def code_differences(expected: str, found: str) -> list[str]:
    """Return in what two codes differ. Beyond 2**53 JavaScript writes another number that means the same float."""
    if NUMBER.sub("#", expected) != NUMBER.sub("#", found):
        return [f"code: {expected} {found}"]
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True)
    return [
        f"code: {one} {other}" for one, other in pairs if not math.isclose(float(one), float(other), rel_tol=SAME)
    ]


@pytest.fixture(scope="module")
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """The calculator, open, for tests that leave it as it is."""
    with tab(browser, MODES["light"]) as opened:
        visit(opened, site.url + PAGE)
        yield opened


def test_the_script_answers_as_python_does(page: Page) -> None:
    inputs = draw_many(MANY)
    expected = [answer(values) for values in inputs]
    found = page.evaluate(ANSWER_ALL, inputs)
    wrong = [
        (values, differing)
        for values, one, other in zip(inputs, expected, found, strict=True)
        if (differing := differences(one, other))
    ]
    assert wrong == []

    # The inputs reach all of it: plans and refusals of each kind, each limit, with and without a GPU.
    refused = Counter(re.sub(r"\d+", "n", one["refusal"]) for one in expected if "refusal" in one)
    assert sum(refused.values()) < 0.6 * MANY
    kinds = [kind for kind in refused if not re.search(r"\) must be ", kind)]
    assert len(kinds) == 7, refused
    for ending in ("a number", "more than n", "at least n", "at most n", "a whole number"):
        assert any(kind.endswith(f" must be {ending}.") for kind in refused), ending
    decided = {(name, limit) for one in expected for name, limit in one.get("limits", {}).items()}
    assert {limit for _, limit in decided} == set(QUANTITIES["limits"])
    assert {bool(values["gpus"]) for values, one in zip(inputs, expected, strict=True) if "limits" in one} == {
        True,
        False,
    }


@pytest.fixture
def opened(browser: Browser, site: Site) -> Iterator[Page]:
    """A fresh tab with the calculator."""
    with tab(browser, MODES["light"]) as fresh:
        visit(fresh, site.url + PAGE)
        yield fresh


def shown(page: Page) -> dict[str, list[str]]:
    """Return the cells of the table of answers, by the answer's name."""
    rows = page.locator("[data-answer]").all()
    return {str(row.get_attribute("data-answer")): row.locator("td").all_text_contents() for row in rows}


def expected_cells(values: dict[str, Any]) -> dict[str, list[str]]:
    """Return what the table should show."""
    found, limits = plan(values), QUANTITIES["limits"]
    return {
        each["name"]: [
            f"{show(found.answers[each['name']])} {each['unit']}",
            limits[found.limits[each["name"]]] if each["name"] in found.limits else "",
        ]
        for each in QUANTITIES["output"]
    }


def test_without_javascript_the_defaults_are_worked_and_no_form_is_shown(browser: Browser, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.url + PAGE)
    assert shown(page) == expected_cells(DEFAULTS)
    assert page.locator(".sized").text_content() == plan(DEFAULTS).code
    expect(page.locator("form.calculator")).to_be_hidden()
    expect(page.locator("noscript")).to_be_visible()
    expect(page.locator("button.copy-code")).to_be_hidden()
    context.close()


def test_the_script_shows_the_same_and_then_what_is_entered(opened: Page) -> None:
    assert shown(opened) == expected_cells(DEFAULTS)
    opened.get_by_label("CPUs, a node").fill("4")
    opened.get_by_label("Deadline").fill("0.5")
    values = {**DEFAULTS, "cpus": 4, "deadline_h": 0.5}
    assert shown(opened) == expected_cells(values)
    assert opened.locator(".sized").text_content() == plan(values).code
    assert f"{plan(values).answers['nodes']} nodes" in str(opened.get_by_role("status").text_content())


def test_a_preset_fills_the_machine_and_an_edit_leaves_it(opened: Page) -> None:
    machine = opened.get_by_role("combobox", name="Machine")
    assert machine.input_value() == "g6.4xlarge"  # what the defaults are
    machine.select_option("p5.48xlarge")
    [preset] = [each for each in QUANTITIES["preset"] if each["name"] == "p5.48xlarge"]
    assert shown(opened) == expected_cells({**DEFAULTS, **preset["values"]})
    opened.get_by_label("CPUs, a node").fill("96")
    assert machine.input_value() == ""


def test_the_address_brings_the_values_back(opened: Page, site: Site) -> None:
    opened.get_by_label("Number of items").fill("1,000,000")
    opened.get_by_label("Preemptions of a node").fill("0.2")
    expect(opened).to_have_url(f"{site.url}{PAGE}#items=1%2C000%2C000&preemptions=0.2")
    opened.get_by_role("button", name="Copy a link").click()
    expect(opened.get_by_role("status")).to_have_text("Copied.")
    address = opened.evaluate("navigator.clipboard.readText()")
    opened.goto("about:blank")
    visit(opened, address)
    assert shown(opened) == expected_cells({**DEFAULTS, "items": 1_000_000, "preemptions": 0.2})
    opened.goto(f"{site.url}{PAGE}#cpus=4")  # the same page, which is not loaded again
    expect(opened.get_by_label("CPUs, a node")).to_have_value("4")
    assert shown(opened) == expected_cells({**DEFAULTS, "cpus": 4})
    opened.goto(address)
    expect(opened.get_by_label("Number of items")).to_have_value("1,000,000")
    opened.get_by_label("Number of items").fill("10000000")
    opened.get_by_label("Preemptions of a node").fill("0")
    expect(opened).to_have_url(site.url + PAGE)


def test_nothing_is_requested_however_often_it_changes(opened: Page, site: Site) -> None:
    requested: list[str] = []
    opened.on("request", lambda request: requested.append(request.url))
    for hours in ("2", "3", "no number", "4"):
        opened.get_by_label("Deadline").fill(hours)
    opened.get_by_role("combobox", name="Machine").select_option("g6.xlarge")
    opened.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    # Chromium looks at a page's icon again whenever its address changes: that much, and nothing that was entered.
    assert set(requested) <= {f"{site.url}assets/icon.svg"}


@pytest.mark.parametrize(
    ("label", "typed"),
    [("Deadline", ""), ("Deadline", "soon"), ("Deadline", "-1"), ("GPUs, a node", "1.5"), ("Parameters", "1e9")],
)
def test_nonsense_is_refused_at_its_field_and_no_answer_is_left(page: Page, label: str, typed: str) -> None:
    field = page.get_by_label(label)
    field.fill(typed)
    name = str(field.get_attribute("name"))
    with pytest.raises(ValueError) as refused:
        plan({**DEFAULTS, name: float(typed) if re.match(r"[-\d]", typed) else typed})
    expect(page.get_by_role("status")).to_have_text(str(refused.value))
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[data-answer=nodes] td").first).to_be_hidden()
    assert page.locator(".sized").text_content() == ""
    field.fill(str(DEFAULTS[name]))
    assert shown(page) == expected_cells(DEFAULTS)
    assert page.locator("[aria-invalid]").count() == 0


def test_the_code_is_copied_as_it_is_shown(page: Page) -> None:
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_role("status")).to_have_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == plan(DEFAULTS).code


def test_every_field_has_a_name_and_help_and_changes_are_announced(page: Page) -> None:
    for given in INPUTS:
        field = page.get_by_label(f"{given['label']}, {given['unit']}", exact=True)
        expect(field).to_have_accessible_description(given["help"])
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("mode", ["light", "phone"])
def test_the_keyboard_reaches_every_field(browser: Browser, site: Site, mode: str) -> None:
    with tab(browser, MODES[mode]) as page:
        visit(page, site.url + PAGE)
        stops, missed = tab_through(page)
    assert missed == []
    assert [stop.place for stop in stops if not stop.is_visible] == []


def test_the_script_is_on_this_page_alone(site: Site) -> None:
    pages = {path for path in site.folder.rglob("*.html") if "calculator.js" in path.read_text("utf-8")}
    assert pages == {site.folder / PAGE / "index.html"}
