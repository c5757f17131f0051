"""What shares the built site, a server, or recorded pipelines, is not run side by side (`pytest -n`)."""

import re
from pathlib import Path

import pytest

from tests.conftest import group_of
from tests.page_rendering import ROOT

FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def files_with(pattern: str) -> list[Path]:
    """Return the files of tests whose code has the pattern."""
    return [file for file in FILES if re.search(pattern, file.read_text("utf-8"))]


@pytest.mark.parametrize(
    ("pattern", "least"),
    [
        (r"\bsite: Site\b|type_in_shell\(\"make site\"\)|ROOT / \"site\"", 5),
        (r"\bbucket: Bucket\b", 4),
        (r"\b(naive|pool)_run: (RecordedRun|tuple)\b", 6),
    ],
    ids=["the built site", "the S3 server", "the recorded pipelines"],
)
def test_files_that_share_something_are_one_group(pattern: str, least: int) -> None:
    files = files_with(pattern)
    assert len(files) >= least
    assert len({group_of(str(file.relative_to(ROOT))) for file in files}) == 1


def test_other_files_are_groups_of_their_own() -> None:
    names = [str(file.relative_to(ROOT)) for file in (ROOT / "tests" / "unit" / "architecture").glob("test_*.py")]
    assert {group_of(f"{name}::test_a[b::c]") for name in names} == set(names)
