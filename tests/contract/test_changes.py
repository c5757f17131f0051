"""The report on another version of Ray names what failed there, and nothing that passed or did not run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import changes
from tests.changes import describe_changes, main

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_holds"/>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_broke[1]"><failure/></testcase>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_gpu"><skipped/></testcase>
<testcase classname="tests.unit.test_a" file="tests/unit/test_a.py" name="test_other"><error/></testcase>
</testsuite></testsuites>"""
CLAIMS: list[dict[str, Any]] = [
    {"id": name, "page": "docs/a.md", "claim": f"It {name}.", "test": f"tests/unit/test_a.py::test_{name}"}
    for name in ("holds", "broke", "gpu", "missing")
]
BLOCKS = [
    {"page": "docs/a.md", "line": 3, "outcome": "passed", "cause": None},
    {"page": "docs/a.md", "line": 9, "outcome": "failed", "cause": "KeyError: 'x'\nmore"},
    {"page": "docs/a.md", "line": 12, "outcome": "skipped", "cause": "no CUDA device"},
]


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reports of a run of the tests and of the pages."""
    monkeypatch.setattr(changes, "load_claims", lambda: (CLAIMS, []))
    (tmp_path / "tests.xml").write_text(JUNIT)
    (tmp_path / "blocks.json").write_text(json.dumps({"versions": {"ray": "9.9"}, "blocks": BLOCKS}))
    return [str(tmp_path / "tests.xml"), str(tmp_path / "blocks.json")]


def test_what_failed_is_named_once_with_its_cause(reports: list[str]) -> None:
    assert describe_changes(*map(Path, reports)).splitlines() == [
        "# What changes with Ray 9.9",
        "",
        "3 blocks and 4 claims, run with ray 9.9.",
        "",
        "## Blocks",
        "",
        "- `docs/a.md:9` KeyError: 'x'",
        "",
        "## Claims",
        "",
        "- **broke** (docs/a.md): It broke. test tests/unit/test_a.py::test_broke: failure",
        "",
        "## Other tests",
        "",
        "- `tests/unit/test_a.py::test_other`",
    ]


def test_the_command_reports_and_fails_only_without_its_files(
    reports: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(reports) == 0
    assert capsys.readouterr().out.startswith("# What changes with Ray 9.9\n")
    assert main([reports[0], "nothing.json"]) == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_a_version_that_changes_nothing_says_so(reports: list[str]) -> None:
    Path(reports[0]).write_text(JUNIT.replace("<failure/>", "").replace("<error/>", ""))
    ran = {"versions": {"ray": "9.9"}, "blocks": BLOCKS[::2]}
    Path(reports[1]).write_text(json.dumps(ran))
    assert describe_changes(*map(Path, reports)).count("None changed.") == 3
