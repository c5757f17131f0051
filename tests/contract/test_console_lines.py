"""Every command that a page tells its reader to type was typed here too."""

import importlib.metadata
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement

from tests.page_blocks import collect, console_lines
from tests.page_rendering import ROOT
from tests.ray_cluster import RayCluster

PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "assets" not in path.parts)]
PIP = 'python -m pip install "ray[data,default]==2.60.0" "torch==2.13.0" "transformers==5.23.0" "pillow>=12"'
PRINT_ENV = "export $(make -s print-env)"
OWN_CLUSTER = "export RAY_ADDRESS=HOST:6379 IMAGES=s3://YOUR-BUCKET/images MODEL=YOUR-NAME/MODEL@REVISION RESULTS=s3://YOUR-BUCKET/results"
# What a reader types, and the test that types it.
PROVEN = {
    PIP: "test_what_pip_installs_is_what_the_tests_run_with",
    PRINT_ENV: "test_print_env_gives_a_shell_its_images_and_model",
    OWN_CLUSTER: "test_a_page_of_your_own_runs_on_a_cluster_of_your_own",
    "make site": "test_make_site_runs_the_pipelines_and_builds_the_site",
    "make test": "test_make_test_runs_everything",
    "make bench": "test_make_bench_runs_the_benchmark",
    "make serve": "test_make_serve_serves_the_site",
    "pytest --codeblocks docs/": "test_all_pages_are_collected",
    "pytest --codeblocks path/to/page.md": "test_a_page_of_your_own_runs_on_a_cluster_of_your_own",
}
ENTRY_POINTS = {
    "setup",
    "samples",
    "demo",
    "site",
    "build",
    "serve",
    "test",
    "check",
    "proof",
    "reference",
    "labs",
    "bench",
    "lint",
    "newest-ray",
    "print-env",
}


def not_proven(pages: list[Path]) -> list[str]:
    """Return the console blocks' commands that no test types, with their places; `git clone` needs a network."""
    return [
        f"{page.name}:{line}: {command}"
        for page in pages
        for line, command in console_lines(page)
        if command not in PROVEN and not re.match(r"git clone\b", command)
    ]


def clean_environment() -> dict[str, str]:
    """Return the environment of a reader's shell, with `pytest` and `python` from where this runs."""
    ours = ("RAY_", "IMAGES", "MODEL", "PYTEST_", "MAKE", "MFLAGS", "COV_")
    outer = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return outer | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{outer['PATH']}"}


def type_in_shell(commands: str, folder: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """Run commands as a reader does; return what they print."""
    shell = ["bash", "-e", "-o", "pipefail", "-c", commands]
    environment = clean_environment() | dict(variables or {})
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_on_a_page_is_typed_by_a_test() -> None:
    assert not_proven(PAGES) == []
    assert [test for test in PROVEN.values() if not callable(globals().get(test))] == []


def test_a_command_that_nobody_types_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ git clone https://example.com/a\n$ make site\n$ make coffee\n```\n")
    assert not_proven([page]) == ["page.md:4: make coffee"]


def test_what_pip_installs_is_what_the_tests_run_with() -> None:
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    python, *command = shlex.split(PIP)
    assert (python, command[:3]) == ("python", ["-m", "pip", "install"])
    for text in command[3:]:
        assert text in pinned
        requirement = Requirement(text)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), text
    type_in_shell("python -m pip --version")


def test_print_env_gives_a_shell_its_images_and_model() -> None:
    images, model = (
        Path(line) for line in type_in_shell(f'{PRINT_ENV}; echo "$IMAGES"; echo "$MODEL"').splitlines()
    )
    for folder in (images, model):
        assert folder.is_absolute()
        assert folder.is_dir()
    assert next(images.rglob("*.jpg"))
    assert (model / "config.json").is_file()


def test_all_pages_are_collected() -> None:
    collected = type_in_shell(f"{PRINT_ENV}; pytest --codeblocks docs/ --collect-only -q")
    pages = {f"docs/{page.relative_to(ROOT / 'docs').as_posix()}" for page in PAGES[1:]}
    with_blocks = {page for page in pages if any(block.is_executed for block in collect(ROOT / page))}
    assert {line.partition("::")[0] for line in collected.splitlines() if "::" in line} == with_blocks


def test_a_page_of_your_own_runs_on_a_cluster_of_your_own(ray_cluster: RayCluster, tmp_path: Path) -> None:
    examples = [block.source for block in collect(ROOT / "docs" / "verify.md") if block.language == "markdown"]
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "page.md").write_text("\n".join(examples))
    samples = dict(line.split("=", 1) for line in type_in_shell("make -s print-env").splitlines())
    own = OWN_CLUSTER
    for placeholder, value in (
        ("HOST:6379", ray_cluster.address),
        ("s3://YOUR-BUCKET/images", samples["IMAGES"]),
        ("YOUR-NAME/MODEL@REVISION", samples["MODEL"]),
        ("s3://YOUR-BUCKET/results", str(tmp_path / "results")),
    ):
        assert placeholder in own
        own = own.replace(placeholder, value)
    # The cluster of these tests stays on loopback and asks for no token, which its drivers have to know.
    loopback = {name: value for name, value in ray_cluster.client_environment.items() if name != "RAY_ADDRESS"}
    report = tmp_path / "report.json"
    options = f"--codeblocks-report={report}"
    printed = type_in_shell(f"{own}; pytest --codeblocks path/to/page.md {options}", tmp_path, loopback)
    assert re.search(rf"\b{len(examples)} passed", printed)
    assert samples["IMAGES"] in report.read_text()


@pytest.mark.timeout(600)
def test_make_site_runs_the_pipelines_and_builds_the_site() -> None:
    printed = type_in_shell("make site")
    assert re.search(r"^pipeline +images +seconds +images/s in steady state +model loads$", printed, re.M)
    for pipeline in ("naive", "optimized"):
        assert re.search(rf"^{pipeline} +128 +[\d.]+ +[\d.]+ +\d+$", printed, re.M)
    assert re.search(r"^\d+ of 128 labels are equal", printed, re.M)
    assert printed.rstrip().splitlines()[-1].startswith("The site is in site/.")
    assert "GPU batch inference" in (ROOT / "site" / "index.html").read_text("utf-8")


def test_make_test_runs_everything() -> None:
    # It runs this test, so it cannot be run by it.
    planned = type_in_shell("make --dry-run --always-make test")
    for part in (
        r"ruff check \.",
        r"mypy$",
        r"mkdocs build --strict",
        r"pytest tests -n \d+ --junitxml=\.cache/tests\.xml",
        r"pytest --codeblocks docs ",
        r"python -m tests\.claims \.cache/tests\.xml \.cache/blocks\.json",
    ):
        assert re.search(part, planned, re.M), part
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_make_bench_runs_the_benchmark() -> None:
    # Minutes long; tests/unit/benchmark/test_harness.py runs its quick mode.
    planned = type_in_shell("make --dry-run bench")
    command = re.search(r"IMAGES=/\S+ MODEL=/\S+ \S*python (-m snippets\.benchmark)$", planned, re.M)
    assert command
    type_in_shell(f"python {command[1]} --help")


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago: 8000, which `make serve` takes, may be in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def serving(port: int) -> Iterator[subprocess.Popen[str]]:
    """`make serve`, until the test has ended."""
    make = subprocess.Popen(
        ["make", "serve", f"PORT={port}"],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield make
    processes = [*psutil.Process(make.pid).children(recursive=True), psutil.Process(make.pid)]
    for process in processes:
        process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        process.kill()
    make.communicate()


def test_make_serve_serves_the_site(serving: subprocess.Popen[str], port: int) -> None:
    home, deadline = "", time.monotonic() + 120
    while not home:
        assert serving.poll() is None, serving.communicate()[0]
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                home = answer.read().decode()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    assert "<title>" in home
    assert "GPU batch inference" in home


def test_make_help_lists_every_entry_point() -> None:
    listed = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", type_in_shell("make help"), re.M))
    assert set(listed) - {"help"} == ENTRY_POINTS
    assert all(listed.values())
