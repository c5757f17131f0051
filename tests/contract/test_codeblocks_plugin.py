"""The runner catches every fault planted in a page, in every form that is rendered, and passes true pages."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.contract.planted_pages import (
    FAULTS,
    FORMS,
    FRONT,
    OUTPUT,
    RAY_FAULTS,
    RAY_TRUE_PAGES,
    REFUSED,
    TRUE_PAGES,
    Fault,
)
from tests.page_blocks import PageError, collect, console_lines
from tests.page_environment import PageEnvironment, UnusableError
from tests.page_kernel import is_alive
from tests.page_rendering import ROOT
from tests.page_run import matches
from tests.ray_cluster import RayCluster

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
OUR_DATA = {"IMAGES": "/the/images", "MODEL": "a/model@1"}


@dataclass
class Run:
    """A finished run of pytest on pages."""

    status: int
    output: str
    seconds: float
    report: dict[str, Any]

    def blocks(self, page: Path) -> list[dict[str, Any]]:
        """Return the report's blocks of a page."""
        return [block for block in self.report["blocks"] if block["page"] == str(page)]


def run_pages(*arguments: Path | str, report: Path, **environment: str) -> Run:
    """Run the pages as a reader does, in the repository."""
    start = time.monotonic()
    done = subprocess.run(
        [*PYTEST, "--codeblocks", f"--codeblocks-report={report}", *map(str, arguments)],
        cwd=ROOT,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - start
    return Run(done.returncode, done.stdout + done.stderr, seconds, json.loads(report.read_text()))


def clean_environment() -> dict[str, str]:
    """Return the environment without what this test run set in it."""
    ours = ("RAY_", "IMAGES", "MODEL", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def write_form(folder: Path, form: str, python: str, bash: str) -> Path:
    """Write a page with one block of the given code in the given form."""
    page = folder / f"{form}.md"
    page.write_text(FRONT + FORMS[form].format(python=python, bash=bash, stem=form))
    part = f"import nothing_of_this\n# --8<-- [start:part]\n{python}\n# --8<-- [end:part]\n"
    page.with_suffix(".py").write_text(part)
    page.with_suffix(".inc").write_text(f"```python\n{python}\n```\n")
    return page


def write_pages(folder: Path, pages: dict[str, str]) -> dict[str, Path]:
    """Write pages, by their names."""
    folder.mkdir()
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text)
    return {name: folder / f"{name}.md" for name in pages}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def planted(folder: Path) -> Run:
    """One run over all planted pages that need no Ray."""
    for name in ("lies", "truths"):
        (folder / name).mkdir()
    for form in FORMS:
        write_form(folder / "lies", form, python="assert 1 == 2", bash="[ 1 = 2 ]")
        write_form(folder / "truths", form, python="assert 1 == 1", bash="[ 1 = 1 ]")
    write_pages(folder / "true", TRUE_PAGES)
    write_pages(folder / "faults", {name: fault.page for name, fault in FAULTS.items()})
    (folder / "faults" / "section.py").write_text("# --8<-- [start:part]\n1 / 0\n# --8<-- [end:part]\n")
    write_pages(folder / "refused", {"refused": REFUSED["missing_section"][0]})
    pages = [folder / name for name in ("lies", "truths", "true", "faults", "refused")]
    return run_pages("--continue-on-collection-errors", *pages, report=folder / "report.json")


@pytest.mark.parametrize("form", FORMS)
def test_a_lie_is_caught_in_every_form(planted: Run, folder: Path, form: str) -> None:
    page = folder / "lies" / f"{form}.md"
    [block] = planted.blocks(page)
    assert block["outcome"] == "failed"
    assert re.match("AssertionError|bash ended with exit status 1", block["cause"])
    line = page.read_text().splitlines()[block["line"] - 1]
    assert re.search(r"^[\s>]*(```|~~~)|--8<--", line)
    assert "included" not in form or block["section"].startswith(form)


@pytest.mark.parametrize("form", FORMS)
def test_a_true_block_passes_in_every_form(planted: Run, folder: Path, form: str) -> None:
    [block] = planted.blocks(folder / "truths" / f"{form}.md")
    assert (block["outcome"], block["cause"]) == ("passed", None)


@pytest.mark.parametrize("name", TRUE_PAGES)
def test_a_true_page_passes(planted: Run, folder: Path, name: str) -> None:
    outcomes = {block["outcome"] for block in planted.blocks(folder / "true" / f"{name}.md")}
    assert outcomes == {"gpu": {gpu_outcome()}, "gpu_module": {"skipped"}, "data": set()}.get(name, {"passed"})


def gpu_outcome() -> str:
    """Return how a block that needs a GPU must end here."""
    import torch

    return "passed" if torch.cuda.is_available() else "skipped"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_page_line_and_cause(planted: Run, folder: Path, name: str) -> None:
    assert_caught(planted, folder / "faults" / f"{name}.md", FAULTS[name])


def assert_caught(run: Run, page: Path, fault: Fault) -> None:
    """Assert that the fault is the page's first failure, in the report and in what the reader sees."""
    block = next(block for block in run.blocks(page) if block["outcome"] == "failed")
    assert block["line"] == fault.line
    assert fault.cause in block["cause"]
    assert f"{page}:{fault.line}" in run.output


def test_a_failure_shows_section_and_own_lines_only(planted: Run, folder: Path) -> None:
    page = folder / "faults" / "section.md"
    shown = planted.output.split(f"\n{page}:3 (section.py:part): ", 1)[1].split("\n____")[0]
    assert shown.splitlines()[:4] == [
        "ZeroDivisionError: division by zero",
        "Traceback (most recent call last):",
        f'  File "{page}::line 3", line 1, in <module>',
        "    1 / 0",
    ]
    assert "page_kernel.py" not in planted.output


def test_a_difference_of_output_is_shown(planted: Run) -> None:
    assert "--- the page\n+++ the block\n@@ -1 +1 @@\n-42\n+41" in planted.output


def test_refused_pages_fail_the_run(planted: Run, folder: Path) -> None:
    [refused] = planted.report["refused"]
    assert (refused["page"], refused["line"]) == (str(folder / "refused" / "refused.md"), 3)
    assert "section 'nowhere'" in refused["cause"]
    assert f"{refused['page']}:3: {refused['cause']}" in planted.output
    assert planted.status != 0


def test_planted_pages_leave_no_process(planted: Run) -> None:
    commands = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert ["sleep", "1234"] not in commands


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, line, cause = REFUSED[name]
    page = tmp_path / "page.md"
    page.write_text(FRONT + text)
    with pytest.raises(PageError) as refusal:
        collect(page)
    first_line, first_cause = refusal.value.problems[0]
    assert first_line == line + FRONT.count("\n")
    assert cause in first_cause


def test_console_lines_are_listed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ make site\nbuilt\n$ python -m x \\\n    --help\n```\n")
    assert console_lines(page) == [(2, "make site"), (4, "python -m x     --help")]


def test_every_word_of_the_output_counts() -> None:
    assert matches("True", "True  \n\n")
    assert not matches("True", "1")
    assert not matches("", "x")
    assert matches("ValueError: x", "more\nValueError: x", is_end=True)
    assert not matches("Error: x", "more\nValueError: x", is_end=True)


def test_a_block_alone_runs_those_before_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    blocks = [
        "open('log', 'a').write('a')",
        "open('log', 'a').write('b')",
        "print(open('log').read())",
        "1 / 0",
    ]
    page.write_text("".join(f"```python\n{block}\n```\n" for block in blocks[:3]) + OUTPUT.format("ab"))
    run = run_pages(f"{page}::line 7", report=tmp_path / "report.json")
    assert [(block["line"], block["outcome"]) for block in run.report["blocks"]] == [(7, "passed")]
    assert run.status == 0

    page.write_text("".join(f"```python\n{block}\n```\n" for block in (blocks[3], blocks[0])))
    run = run_pages(f"{page}::line 4", report=tmp_path / "report.json")
    assert f"{page}:4: an earlier block of this page failed: {page}:1: ZeroDivisionError" in run.output


def test_pages_side_by_side_make_one_report(tmp_path: Path) -> None:
    """Two processes run a page each, with all of its blocks."""
    folder, ran_by = tmp_path / "pages", tmp_path / "ran_by"
    ran_by.mkdir()
    blocks = "```python\nimport os\nx = {}\n```\n\n```python\nopen(f'{}/{{os.getppid()}}', 'w')\n1 / x\n```\n"
    pages = write_pages(folder, {name: blocks.format(x, ran_by) for x, name in enumerate("ab")})
    run = run_pages("-n2", folder, report=tmp_path / "report.json")
    assert [(block["page"], block["line"], block["outcome"]) for block in run.report["blocks"]] == [
        (str(pages["a"]), 1, "passed"),
        (str(pages["a"]), 6, "failed"),
        (str(pages["b"]), 1, "passed"),
        (str(pages["b"]), 6, "passed"),
    ]
    assert f"{pages['a']}:6: ZeroDivisionError" in run.output
    assert len([*ran_by.iterdir()]) == 2


def test_a_page_has_a_time_limit(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport time\ntime.sleep(0.7)\n```\n\n```python\ntime.sleep(0.7)\n```\n")
    run = run_pages("--codeblocks-timeout=1", page, report=tmp_path / "report.json")
    assert [block["outcome"] for block in run.report["blocks"]] == ["passed", "failed"]


def test_any_page_can_be_given_to_plain_pytest(tmp_path: Path) -> None:
    """Outside of the repository pytest reads no pyproject.toml: the plugin is found by its entry point."""
    page = write_form(tmp_path, "title", python="assert 1 == 2", bash="")
    command = [sys.executable, "-m", "pytest", "--codeblocks", "-p", "no:cacheprovider", str(page)]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    assert f"{page}:7: AssertionError" in done.stdout


@pytest.fixture(scope="module")
def planted_with_ray(folder: Path) -> Run:
    """One run over the planted pages that need Ray."""
    write_pages(folder / "ray_faults", {name: fault.page for name, fault in RAY_FAULTS.items()})
    write_pages(folder / "ray_true", RAY_TRUE_PAGES)
    pages = [folder / "ray_true", folder / "ray_faults"]
    return run_pages(*pages, report=folder / "ray_report.json", **OUR_DATA)


@pytest.mark.cluster
@pytest.mark.parametrize("name", RAY_TRUE_PAGES)
def test_a_true_page_passes_on_the_cluster(planted_with_ray: Run, folder: Path, name: str) -> None:
    blocks = planted_with_ray.blocks(folder / "ray_true" / f"{name}.md")
    assert {(block["outcome"], block["cause"]) for block in blocks} == {("passed", None)}


@pytest.mark.cluster
@pytest.mark.parametrize("name", RAY_FAULTS)
def test_a_fault_on_the_cluster_is_named(planted_with_ray: Run, folder: Path, name: str) -> None:
    assert_caught(planted_with_ray, folder / "ray_faults" / f"{name}.md", RAY_FAULTS[name])


@pytest.mark.cluster
def test_the_error_of_a_udf_is_shortened_to_the_readers_lines(planted_with_ray: Run, folder: Path) -> None:
    page = folder / "ray_faults" / "udf.md"
    shown = planted_with_ray.output.split(f"\n{page}:8: ", 1)[1].split("\n----")[0]
    lines = [line for line in shown.splitlines() if not line.startswith("in the worker ray::")]
    assert lines == [
        "ValueError: a bad batch",
        f'  File "{page}::line 8", line 1, in <module>',
        "    ray.data.range(4).map_batches(broken).take_all()",
        f'  File "{page}::line 1", line 4, in broken',
        "    raise ValueError('a bad batch')",
        "ValueError: a bad batch",
    ]


@pytest.mark.cluster
def test_the_report_says_where_it_ran(planted_with_ray: Run) -> None:
    report = planted_with_ray.report
    assert report["cluster"] == {"nodes": 3, "cpus": 5, "gpus": 2}
    assert (report["images"], report["model"]) == tuple(OUR_DATA.values())
    assert set(report["versions"]) == {"python", "ray", "torch", "transformers"}
    assert re.fullmatch("[0-9a-f]{64}", report["sources"])
    assert report["started"].startswith("20")
    for block in report["blocks"]:
        assert set(block) == {"page", "line", "section", "language", "seconds", "outcome", "cause"}


@pytest.mark.cluster
@pytest.mark.parametrize(("number", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupt_leaves_nothing(tmp_path: Path, number: int, to_group: bool) -> None:
    page, started, report = tmp_path / "page.md", tmp_path / "started", tmp_path / "report.json"
    page.write_text(
        "```python\nx = 1\n```\n\n```python\nimport pathlib, ray, subprocess, time\nray.init()\n"
        "assert len(ray.nodes()) == 3 and 'GPU' not in ray.cluster_resources()\n"
        "subprocess.Popen(['sleep', '1235'])\n"
        f"pathlib.Path('{started}').touch()\ntime.sleep(100)\n```\n"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = psutil.Popen(
        [*PYTEST, "--codeblocks", "--codeblocks-gpus=0", f"--codeblocks-report={report}", page],
        cwd=ROOT,
        env=clean_environment() | {"TMPDIR": str(scratch)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    wait_for(started.exists)
    family = process.children(recursive=True)
    commands = "\n".join(" ".join(child.cmdline()) for child in family)
    [ray_folder] = set(re.findall(r"/tmp/ray-\w+", commands))
    assert "gcs_server" in commands
    assert "sleep 1235" in commands
    if to_group:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(30) == pytest.ExitCode.INTERRUPTED
    assert [child for child in family if is_alive(child)] == []
    assert not Path(ray_folder).exists()
    assert list(scratch.iterdir()) == []
    assert [block["outcome"] for block in json.loads(report.read_text())["blocks"]] == ["passed"]


def wait_for(condition: Any, limit_s: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s"
        time.sleep(0.05)


@pytest.fixture
def ray_page(tmp_path: Path) -> Iterator[Path]:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport os, ray\nprint(os.environ['IMAGES'])\nray.init()\n```\n")
    yield page


def test_an_unreachable_cluster_ends_the_run_in_a_sentence(ray_page: Path, tmp_path: Path) -> None:
    run = run_pages(ray_page, report=tmp_path / "report.json", RAY_ADDRESS="127.0.0.1:1")
    assert "No Ray cluster answers at RAY_ADDRESS=127.0.0.1:1" in run.output
    assert "Traceback" not in run.output
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert run.seconds < 30


def test_a_silent_cluster_ends_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as environment:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        environment.setenv("RAY_ADDRESS", address)
        environment.setattr("tests.page_environment.CONNECT_S", 3.0)
        with pytest.raises(UnusableError, match=rf"^No answer within 3 s .*{address} \(.*\)\.$"):
            PageEnvironment(gpus_per_worker=1).prepare(needs_ray=True, needs_data=True)


@pytest.mark.cluster
def test_a_readers_cluster_must_read_images_and_checkpoint(
    ray_cluster: RayCluster, ray_page: Path, tmp_path: Path
) -> None:
    environment = {**ray_cluster.client_environment, "MODEL": str(tmp_path), "IMAGES": str(tmp_path)}
    report = tmp_path / "report.json"
    run = run_pages(ray_page, report=report, **environment)
    assert re.search(r"Node 127.0.0.1 of the Ray cluster at \S+ cannot read MODEL=\S+ \(.*config.json", run.output)
    assert run.status == pytest.ExitCode.USAGE_ERROR

    (tmp_path / "config.json").write_text("{}")
    ray_page.write_text(ray_page.read_text() + OUTPUT.format(tmp_path))
    run = run_pages(ray_page, report=report, **environment)
    assert run.status == 0, run.output
    assert run.report["images"] == str(tmp_path)
    assert run.report["cluster"] == {"nodes": 3, "cpus": 5, "gpus": 2}


@pytest.mark.cluster
def test_drivers_of_other_tests_join_the_cluster(ray_cluster: RayCluster) -> None:
    import ray

    ray.init()
    try:
        assert ray.cluster_resources()["GPU"] == 2
        assert len({node["NodeID"] for node in ray.nodes()}) == 3
    finally:
        ray.shutdown()
