"""The pages hold beyond the samples: on other images and labels, and on a cluster that has no GPU.

Those of a part that has a notebook run so in `test_labs.py`; the others that read images or a checkpoint, here.
What reads neither would be the same program twice.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from snippets.fundamentals import setup
from snippets.samples import Samples
from tests.labs import LABS, pages_of
from tests.page_blocks import collect
from tests.page_environment import PUBLIC
from tests.page_rendering import ROOT

FOLDERS = ("docs", "optimization")  # with such pages
# Beyond the line that defines them; or a command of this package, which reads the same variables.
READS = re.compile(r"""(?<!")\b(?:IMAGES|MODEL)\b(?! =|")|-m snippets\.""")


@cache
def pages_that_read_images() -> dict[str, list[Path]]:
    """Return the pages that use the images or the checkpoint, by the name of their folder."""
    in_labs = {page for part in LABS for page in pages_of(part)}
    found: dict[str, list[Path]] = {}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if "assets" not in page.parts and page not in in_labs:
            blocks = [block for block in collect(page) if block.is_executed]
            if any(READS.search(block.source) for block in blocks):
                found.setdefault(page.parent.name, []).append(page)
    return found


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", FOLDERS)
def test_pages_hold_on_other_images_and_labels_without_a_gpu(
    folder: str, other_sample_set: Samples, tmp_path: Path
) -> None:
    other, pages = other_sample_set, pages_that_read_images()[folder]
    report = tmp_path / "report.json"
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--codeblocks"),
            *("--codeblocks-gpus=0", f"--codeblocks-report={report}", *map(str, pages)),
        ],
        cwd=ROOT,
        env={**outer, "IMAGES": str(other.images), "MODEL": str(other.model)},
        capture_output=True,
        text=True,
    )
    ran = json.loads(report.read_text())
    assert (ran["images"], ran["model"]) == (str(other.images), str(other.model))
    assert ran["cluster"]["gpus"] == 0
    failed = [f"{block['page']}:{block['line']}: {block['cause']}" for block in ran["blocks"] if block["cause"]]
    assert [cause for cause in failed if "no CUDA device" not in cause] == []
    assert done.returncode == 0, done.stdout
    assert {block["page"] for block in ran["blocks"]} == {str(page.relative_to(ROOT)) for page in pages}


def test_pages_that_read_images_are_found() -> None:
    assert pages_that_read_images().keys() == {*FOLDERS}
    found = {str(page.relative_to(ROOT)) for pages in pages_that_read_images().values() for page in pages}
    assert {"docs/index.md", "docs/verify.md"} <= found
    assert "docs/architecture/sizing.md" not in found  # formulas alone


def test_the_runner_falls_back_to_what_the_pages_fall_back_to() -> None:
    source = inspect.getsource(setup)
    for name, place in PUBLIC.items():
        assert f'{name} = os.environ.get("{name}") or "{place}"' in source
