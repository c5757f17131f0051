"""The pages hold beyond the samples: on other images and labels, on one machine, without a GPU.

Those of the part whose notebook is run do so in `test_labs.py`; here the others that read images or a checkpoint,
and some that look at nodes. The rest would be the same program twice.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from snippets.fundamentals import setup
from snippets.samples import Samples
from tests.labs import IN_KERNEL, pages_of
from tests.page_blocks import collect
from tests.page_environment import PUBLIC
from tests.page_rendering import ROOT

FOLDERS = {"docs", "optimization"}  # with such pages
# What these show of nodes and their CPUs is to hold where there is one.
OF_NODES = ["architecture/blocks.md"]
# Beyond the line that defines them; or a command of this package, which reads the same variables.
READS = re.compile(r"""(?<!")\b(?:IMAGES|MODEL)\b(?! =|")|-m snippets\.""")


@cache
def pages_that_read_images() -> dict[str, list[Path]]:
    """Return the pages that use the images or the checkpoint, by the name of their folder."""
    in_kernel = set(pages_of(IN_KERNEL))
    found: dict[str, list[Path]] = {}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if "assets" not in page.parts and page not in in_kernel:
            blocks = [block for block in collect(page) if block.is_executed]
            if any(READS.search(block.source) for block in blocks):
                found.setdefault(page.parent.name, []).append(page)
    return found


def run_pages(pages: list[Path], report: Path, *options: str, **variables: str) -> dict[str, Any]:
    """Run pages as a reader does, see each of them pass, and return the report."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--codeblocks"),
            *(*options, f"--codeblocks-report={report}", *map(str, pages)),
        ],
        cwd=ROOT,
        env={**outer, **variables},
        capture_output=True,
        text=True,
    )
    ran: dict[str, Any] = json.loads(report.read_text())
    failed = [f"{block['page']}:{block['line']}: {block['cause']}" for block in ran["blocks"] if block["cause"]]
    assert [cause for cause in failed if "no CUDA device" not in cause] == []
    assert done.returncode == 0, done.stdout
    assert {block["page"] for block in ran["blocks"]} == {str(page.relative_to(ROOT)) for page in pages}
    return ran


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_pages_hold_on_other_images_and_labels_on_one_machine_without_a_gpu(
    other_sample_set: Samples, tmp_path: Path
) -> None:
    pages = [page for of_folder in pages_that_read_images().values() for page in of_folder]
    pages += [ROOT / "docs" / page for page in OF_NODES]
    other = {"IMAGES": str(other_sample_set.images), "MODEL": str(other_sample_set.model)}
    ran = run_pages(pages, tmp_path / "report.json", "--codeblocks-gpus=0", "--codeblocks-workers=0", **other)
    assert (ran["images"], ran["model"]) == (other["IMAGES"], other["MODEL"])
    assert ran["cluster"] == {"nodes": 1, "cpus": 2, "gpus": 0}


def test_pages_that_read_images_are_found() -> None:
    assert pages_that_read_images().keys() == FOLDERS
    found = {str(page.relative_to(ROOT)) for pages in pages_that_read_images().values() for page in pages}
    assert {"docs/index.md", "docs/verify.md"} <= found
    assert "docs/architecture/sizing.md" not in found  # formulas alone


def test_the_runner_falls_back_to_what_the_pages_fall_back_to() -> None:
    source = inspect.getsource(setup)
    for name, place in PUBLIC.items():
        assert f'{name} = os.environ.get("{name}") or "{place}"' in source
