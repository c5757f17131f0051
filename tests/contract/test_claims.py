"""Every claim that a page marks has an entry with a proof that exists, and every entry its mark on the page."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown  # type: ignore[import-untyped]
import pytest
from mkdocs.config import load_config
from mkdocs.utils.meta import get_data

from tests import claims as claims_module
from tests.claims import Entries, find_blocks, load_claims, main, outcomes_of_tests, proofs, unproven
from tests.page_rendering import ROOT

MARK = "claim-"
RESULTS = ROOT / "docs" / "assets" / "results"
VERDICTS = ("true", "corrected", "dropped")


@dataclass
class Marked:
    """A rendered page: its anchors, and claim marks that were left in the text."""

    anchors: set[str] = field(default_factory=set)
    stray: list[str] = field(default_factory=list)

    @property
    def claims(self) -> set[str]:
        """The claims that the page marks."""
        return {anchor.removeprefix(MARK) for anchor in self.anchors if anchor.startswith(MARK)}


class _Anchors(HTMLParser):
    def __init__(self, rendered: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text: list[str] = []
        self.code = 0
        self.feed(rendered)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.code += tag in ("code", "pre")
        self.found += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag in ("code", "pre")

    def handle_data(self, data: str) -> None:
        if not self.code:
            self.text.append(data)


def read_marks(text: str) -> Marked:
    """Render a page as the site does, but for its includes, which hold no anchor that an entry could name."""
    site = load_config(str(ROOT / "mkdocs.yml"), plugins=[])
    extensions = [name for name in site["markdown_extensions"] if name != "pymdownx.snippets"]
    configs = {name: value for name, value in site["mdx_configs"].items() if name in extensions}
    body, _ = get_data(text)
    rendered = _Anchors(markdown.markdown(body, extensions=extensions, extension_configs=configs))
    twice = {f"#{anchor} twice" for anchor in rendered.found if rendered.found.count(anchor) > 1}
    return Marked(set(rendered.found), sorted({*re.findall(r"#claim-[\w-]*", "".join(rendered.text)), *twice}))


@cache
def marked_pages() -> dict[str, Marked]:
    """Return the site's pages, by their paths in the repository."""
    paths = [path for path in (ROOT / "docs").rglob("*.md") if "assets" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): read_marks(path.read_text("utf-8")) for path in paths}


def unmatched(claims: Entries, pages: Mapping[str, Marked]) -> list[str]:
    """Return marks without an entry, entries without a mark, and what is named twice."""
    marks = {(page, claim) for page, marked in pages.items() for claim in marked.claims}
    entries = [(claim["page"], claim["id"]) for claim in claims]
    problems = [f"{page}#{MARK}{claim}: no entry" for page, claim in sorted(marks - set(entries))]
    problems += [f"{page}#{MARK}{claim}: no mark on the page" for page, claim in sorted(set(entries) - marks)]
    identities = [claim for _, claim in entries]
    problems += [f"{claim}: two entries" for claim in sorted({i for i in identities if identities.count(i) > 1})]
    problems += [f"{page}: {stray}: not rendered as a mark" for page in pages for stray in pages[page].stray]
    return problems


def malformed(claims: Entries) -> list[str]:
    """Return entries that do not say what is claimed, or name no proof."""
    known = {"id", "page", "claim", *claims_module.KINDS}
    problems = []
    for claim in claims:
        if unknown := set(claim) - known:
            problems.append(f"{claim['id']}: unknown: {', '.join(sorted(unknown))}")
        if not claim.get("claim", "").endswith("."):
            problems.append(f"{claim['id']}: no sentence that says what is claimed")
        if not proofs(claim):
            problems.append(f"{claim['id']}: no proof")
    return problems


def without_proof(claims: Entries, exists: Mapping[str, Callable[[str, str], str | None]]) -> list[str]:
    """Return proofs that do not exist, with what is missing; `exists` looks for each kind."""
    return [
        f"{claim['id']}: {kind} {place}: {missing}"
        for claim in claims
        for kind, place in proofs(claim)
        if (missing := exists[kind](place, claim["page"]))
    ]


def missing_test(place: str, _: str, root: Path = ROOT) -> str | None:
    """Return what of `tests/file.py::Class::test_name` does not exist."""
    file, *names = place.partition("[")[0].split("::")
    if not names or not file.startswith("tests/") or not names[-1].startswith("test_"):
        return "not of the form tests/file.py::test_name"
    if not (root / file).is_file():
        return "no such file"
    body: Iterable[ast.stmt] = ast.parse((root / file).read_text("utf-8")).body
    for name in names:
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
        if not found:
            return f"no {name} in the file"
        body = found[-1].body
    return None


def missing_block(place: str, page: str) -> str | None:
    """Return what is missing of the block `docs/page.md: substring`."""
    file, _, substring = place.partition(": ")
    if file != page or not substring.strip():
        return "not of the form PAGE: substring, with the claim's own page"
    blocks = find_blocks(place)
    if not blocks:
        return "no executed block with this source"
    if not any(block.expected or block.raises for block in blocks):
        return "a block that shows no output proves nothing"
    return None


def missing_result(place: str, page: str) -> str | None:
    """Return what is missing of the section `file.md:section` of the results, which the page must include."""
    file, _, section = place.partition(":")
    if not (RESULTS / file).is_file() or f"[start:{section}]" not in (RESULTS / file).read_text("utf-8"):
        return "no such section of the results"
    if f'--8<-- "docs/assets/results/{place}"' not in (ROOT / page).read_text("utf-8"):
        return "not included by the page"
    return None


def missing_source(place: str, _: str) -> str | None:
    """Return what is wrong with the address of a source."""
    return None if re.fullmatch(r"https://[\w.-]+/\S*", place) else "no public address"


EXISTS: dict[str, Callable[[str, str], str | None]] = {
    "test": missing_test,
    "block": missing_block,
    "result": missing_result,
    "source": missing_source,
}


def wrong_seeds(seeds: Entries, pages: Mapping[str, Marked]) -> list[str]:
    """Return entries of the seed that say nothing, or whose place does not exist."""
    problems = []
    for seed in seeds:
        name = f"seed {seed.get('lines')}, {seed.get('says')}"
        if unknown := set(seed) - {"lines", "says", "verdict", "page", "why"}:
            problems.append(f"{name}: unknown: {', '.join(sorted(unknown))}")
        if not re.fullmatch(r"\d+(-\d+)?(, \d+(-\d+)?)*", str(seed.get("lines"))):
            problems.append(f"{name}: lines are numbers and ranges")
        if not seed.get("says"):
            problems.append(f"{name}: nothing said")
        if seed.get("verdict") not in VERDICTS:
            problems.append(f"{name}: the verdict is one of {', '.join(VERDICTS)}")
        if seed.get("verdict") in ("corrected", "dropped") and not str(seed.get("why", "")).endswith("."):
            problems.append(f"{name}: no sentence on why it was {seed['verdict']}")
        page, _, anchor = str(seed.get("page", "")).partition("#")
        if seed.get("verdict") == "dropped" and page:
            problems.append(f"{name}: dropped, and yet on a page")
        if seed.get("verdict") != "dropped" and page not in pages:
            problems.append(f"{name}: no page {page}")
        elif anchor and anchor not in pages[page].anchors:
            problems.append(f"{name}: no anchor {anchor} on {page}")
    return problems


def test_every_mark_has_an_entry_and_every_entry_its_mark() -> None:
    assert unmatched(load_claims()[0], marked_pages()) == []


def test_every_claim_says_what_is_claimed_and_names_a_proof() -> None:
    assert malformed(load_claims()[0]) == []


def test_every_proof_exists() -> None:
    assert without_proof(load_claims()[0], EXISTS) == []


def test_every_part_of_the_seed_has_its_place_or_a_reason() -> None:
    seeds = load_claims()[1]
    assert len(seeds) >= 70
    assert wrong_seeds(seeds, marked_pages()) == []


PAGE = "docs/a.md"
TRUE_CLAIM: dict[str, Any] = {"id": "one", "page": PAGE, "claim": "It holds.", "test": "tests/t.py::test_one"}
TRUE_SEED = {"lines": "3-5, 7", "says": "it holds", "verdict": "true", "page": f"{PAGE}#claim-one"}
TRUE_PAGES = {PAGE: Marked({"claim-one", "a-heading"})}


def test_marks_are_read_as_they_are_rendered() -> None:
    text = (
        "---\na: b\n---\n# Title `code`\n\nA text.\n{#claim-one}\n\n```text\n{#claim-code}\n```\n\n"
        '!!! note "N"\n\n    A text.\n    {#claim-two}\n\n`{#claim-shown}`\n\n- an item\n\n\n{#claim-lost}\n'
    )
    marked = read_marks(text)
    assert (marked.claims, marked.stray) == ({"one", "two"}, ["#claim-lost"])
    assert "title-code" in marked.anchors
    assert read_marks("A text.\n{#claim-one}\n\nA text.\n{#claim-one}\n").stray == ["#claim-one twice"]


def test_true_entries_have_no_problem() -> None:
    assert unmatched([TRUE_CLAIM], TRUE_PAGES) == []
    assert malformed([TRUE_CLAIM]) == []
    assert wrong_seeds([TRUE_SEED], TRUE_PAGES) == []


def test_a_missing_entry_a_missing_mark_and_a_double_are_caught() -> None:
    assert unmatched([], TRUE_PAGES) == ["docs/a.md#claim-one: no entry"]
    assert unmatched([TRUE_CLAIM], {PAGE: Marked()}) == ["docs/a.md#claim-one: no mark on the page"]
    assert unmatched([TRUE_CLAIM, TRUE_CLAIM], TRUE_PAGES) == ["one: two entries"]
    elsewhere = {PAGE: Marked(), "docs/b.md": Marked({"claim-one"})}
    assert len(unmatched([TRUE_CLAIM], elsewhere)) == 2
    stray = {PAGE: Marked({"claim-one"}, ["#claim-two"])}
    assert unmatched([TRUE_CLAIM], stray) == ["docs/a.md: #claim-two: not rendered as a mark"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"test": []}, "one: no proof"),
        ({"claim": ""}, "one: no sentence that says what is claimed"),
        ({"proof": "a"}, "one: unknown: proof"),
    ],
)
def test_a_malformed_claim_is_caught(change: dict[str, Any], problem: str) -> None:
    assert malformed([TRUE_CLAIM | change]) == [problem]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"verdict": "maybe"}, "the verdict is one of"),
        ({"verdict": "corrected"}, "no sentence on why"),
        ({"verdict": "dropped", "why": "It is empty."}, "dropped, and yet on a page"),
        ({"page": "docs/b.md"}, "no page docs/b.md"),
        ({"page": f"{PAGE}#nowhere"}, "no anchor nowhere"),
        ({"lines": "three"}, "lines are numbers"),
        ({"says": ""}, "nothing said"),
        ({"note": "a"}, "unknown: note"),
    ],
)
def test_a_wrong_entry_of_the_seed_is_caught(change: dict[str, str], problem: str) -> None:
    found = wrong_seeds([TRUE_SEED | change], TRUE_PAGES)
    assert len(found) == 1
    assert problem in found[0]


TEST_FILE = "def test_one(): ...\ndef helper(): ...\nclass TestMany:\n    def test_two(self): ...\n"


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        ("tests/t.py::test_one", None),
        ("tests/t.py::test_one[a]", None),
        ("tests/t.py::TestMany::test_two", None),
        ("tests/t.py::test_two", "no test_two in the file"),
        ("tests/t.py::TestMany::test_one", "no test_one in the file"),
        ("tests/other.py::test_one", "no such file"),
        ("tests/t.py", "not of the form"),
        ("tests/t.py::helper", "not of the form"),
    ],
)
def test_a_proof_by_a_test_must_exist(tmp_path: Path, place: str, missing: str | None) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "t.py").write_text(TEST_FILE)
    found = missing_test(place, PAGE, root=tmp_path)
    assert (found is None) == (missing is None)
    assert missing is None or missing in str(found)


def test_a_proof_by_a_block_must_exist_and_show_something(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    shown = "<!--pytest-codeblocks:expected-output-->\n```text\n1\n```\n"
    page.write_text(f"```python\na = 1\n```\n\n```python\nprint(a)\n```\n{shown}")
    assert missing_block(f"{page}: print(a)", str(page)) is None
    assert missing_block(f"{page}: a = 1", str(page)) == "a block that shows no output proves nothing"
    assert missing_block(f"{page}: print(b)", str(page)) == "no executed block with this source"
    assert "the claim's own page" in str(missing_block(f"{page}: print(a)", PAGE))


def test_a_proof_by_a_result_or_a_source_must_exist() -> None:
    assert missing_result("numbers.md:nothing-measured", "docs/setup.md") == "no such section of the results"
    assert missing_source("https://docs.ray.io/en/latest/", PAGE) is None
    assert missing_source("http://localhost/", PAGE) == "no public address"


def test_a_missing_proof_is_named_with_its_claim() -> None:
    found = without_proof([TRUE_CLAIM | {"test": "tests/nothing.py::test_one"}], EXISTS)
    assert found == ["one: test tests/nothing.py::test_one: no such file"]


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_one[1]"/>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_one[2]"/>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_half[1]"/>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_half[2]"><failure/></testcase>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_skip"><skipped/></testcase>
<testcase classname="tests.unit.test_a.TestMany" file="tests/unit/test_a.py" name="test_two"/>
</testsuite></testsuites>"""


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    """The report of a run of pytest."""
    (tmp_path / "tests.xml").write_text(JUNIT)
    return tmp_path / "tests.xml"


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("test_one", None),
        ("test_one[2]", None),
        ("test_half[1]", None),
        ("TestMany::test_two", None),
        ("test_half", "failure, passed"),
        ("test_skip", "skipped"),
        ("test_two", "not run"),
    ],
)
def test_a_test_proves_a_claim_if_it_ran_and_passed(junit: Path, name: str, how: str | None) -> None:
    place = f"tests/unit/test_a.py::{name}"
    found = unproven([TRUE_CLAIM | {"test": place}], outcomes_of_tests(junit), {})
    assert found == ([f"one: test {place}: {how}"] if how else [])


@pytest.mark.parametrize(("outcome", "status"), [("passed", 0), ("skipped", 1), (None, 1)])
def test_the_command_names_what_did_not_run(
    junit: Path,
    outcome: str | None,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = junit.with_name("page.md")
    page.write_text("A text.\n\n```python\nassert True\n```\n")
    by_block = {"id": "block", "page": str(page), "claim": "It holds.", "block": f"{page}: assert True"}
    by_source = TRUE_CLAIM | {"id": "source", "test": [], "source": "https://docs.ray.io/en/latest/"}
    by_test = TRUE_CLAIM | {"test": ["tests/unit/test_a.py::test_one", "tests/unit/test_a.py::TestMany::test_two"]}
    monkeypatch.setattr(claims_module, "load_claims", lambda: ([by_block, by_source, by_test], []))
    blocks = [] if outcome is None else [{"page": str(page), "line": 3, "outcome": outcome}]
    report = junit.with_name("blocks.json")
    report.write_text(json.dumps({"blocks": blocks}))

    assert main([str(junit), str(report)]) == status
    shown = capsys.readouterr()
    proven = 3 - status
    assert shown.out == f"{proven} of 3 claims are proven, 1 of them by a source.\n"
    assert (f"block {page}: assert True: {outcome or 'not run'}" in shown.err) == bool(status)
