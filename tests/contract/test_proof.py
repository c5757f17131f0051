"""The overview says what was proven of the sources as they are, and nothing where they have changed since."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import claims
from tests.proof import main, render_proof
from tests.sources import digest_sources, source_files

EMPTY = "<!-- --8<-- [start:proof] -->\n<!-- --8<-- [end:proof] -->\n"
JUNIT = """<testsuites><testsuite><properties><property name="sources" value="{sources}"/></properties>
<testcase classname="tests.test_a" file="tests/test_a.py" name="test_holds"/>
<testcase classname="tests.test_a" file="tests/test_a.py" name="test_broke"><failure/></testcase>
<testcase classname="tests.test_a" file="tests/test_a.py" name="test_gpu"><skipped/></testcase>
</testsuite></testsuites>"""
VERSIONS = {"python": "3.11.2", "ray": "2.60.0", "torch": "2.13.0", "transformers": "5.23.0"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one page, with the reports of a full run of its tests."""
    for name in ("docs/assets/results", "tests", ".cache"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text("# Page\n")
    (tmp_path / "tests" / "test_a.py").write_text("")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Begin"]):
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *author, *command], cwd=tmp_path, check=True)
    entries = [
        {"id": "holds", "test": "tests/test_a.py::test_holds"},
        {"id": "broke", "test": "tests/test_a.py::test_broke"},
        {"id": "told", "source": "https://example.org"},
    ]
    monkeypatch.setattr(claims, "load_claims", lambda: (entries, []))
    report_run(tmp_path, digest_sources(tmp_path))
    return tmp_path


def report_run(repository: Path, sources: str) -> None:
    """Write the reports as `make test` leaves them."""
    outcomes = ("passed", "passed", "skipped")
    blocks = [{"page": "docs/index.md", "line": 3, "outcome": outcome} for outcome in outcomes]
    report = {"sources": sources, "started": "2026-01-02T03:04:05+00:00", "versions": VERSIONS, "blocks": blocks}
    (repository / ".cache" / "blocks.json").write_text(json.dumps(report))
    (repository / ".cache" / "tests.xml").write_text(JUNIT.format(sources=sources))


def rendered(repository: Path) -> str:
    """Return what the overview includes."""
    return (repository / "docs" / "assets" / "results" / "proof.md").read_text()


def test_the_report_counts_what_passed_and_what_did_not(repository: Path) -> None:
    assert main([], repository) == 0
    text = rendered(repository)
    assert "2 of 3 blocks pass; 1 needs a GPU and did not run." in text
    assert "2 of 3 claims are proven**, 1 of them by a source." in text
    assert "1 tests passed, 1 failed, 1 were skipped." in text
    assert "on 2026-01-02 with Python 3.11.2, Ray 2.60.0, PyTorch 2.13.0 and transformers 5.23.0" in text
    assert f"SHA-256 `{digest_sources(repository)[:12]}`" in text


@pytest.mark.parametrize("name", ["docs/index.md", "tests/test_a.py", "docs/new.md", "pyproject.toml"])
def test_it_shows_nothing_when_a_source_has_changed_since(repository: Path, name: str) -> None:
    main([], repository)
    (repository / name).write_text("changed\n")
    assert main(["--render"], repository) == 0
    assert rendered(repository) == EMPTY


def test_a_source_that_is_renamed_or_removed_is_a_change(repository: Path) -> None:
    main([], repository)
    page = repository / "docs" / "index.md"
    page.rename(page.with_name("other.md"))
    assert render_proof(repository) == EMPTY
    page.with_name("other.md").unlink()
    assert render_proof(repository) == EMPTY


def test_writing_the_report_is_no_change_of_the_sources(repository: Path) -> None:
    before = digest_sources(repository)
    main([], repository)
    assert digest_sources(repository) == before
    main(["--render"], repository)
    assert rendered(repository) != EMPTY


def test_a_run_of_other_sources_is_refused_and_the_page_says_nothing(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([], repository)
    (repository / "docs" / "index.md").write_text("changed while the tests ran\n")
    assert main([], repository) == 2
    assert capsys.readouterr().err == "The sources have changed since they were tested: run make test first.\n"
    assert rendered(repository) == EMPTY


def test_tests_and_pages_must_have_run_on_the_same_sources(repository: Path) -> None:
    blocks = json.loads((repository / ".cache" / "blocks.json").read_text())
    (repository / ".cache" / "blocks.json").write_text(json.dumps({**blocks, "sources": "of before"}))
    assert main([], repository) == 2


def test_no_full_run_ends_in_a_sentence(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / ".cache" / "tests.xml").unlink()
    assert main([], repository) == 2
    assert capsys.readouterr().err == "There is no full run to report on: run make test first.\n"


def test_a_run_of_the_tests_says_which_sources_it_is_of(tmp_path: Path) -> None:
    one = f"{__file__}::test_no_full_run_ends_in_a_sentence"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        one,
        f"--junitxml={tmp_path}/tests.xml",
        "-o",
        "junit_family=xunit1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert f'name="sources" value="{digest_sources()}"' in (tmp_path / "tests.xml").read_text()


def test_the_sources_of_this_repository_are_its_tracked_files() -> None:
    from tests.page_rendering import ROOT

    command = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
        "--",
        "docs",
        "snippets",
        "tests",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    tracked = {ROOT / name for name in listed if name and (ROOT / name).is_file()}
    found = {
        path for path in source_files(ROOT) if path.relative_to(ROOT).parts[0] in ("docs", "snippets", "tests")
    }
    assert {path.name for path in tracked ^ found} == {"proof.json", "proof.md"} & {path.name for path in tracked}
