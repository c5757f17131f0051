"""`pytest --codeblocks docs/`: execute every code block of the pages, as a reader would.

pytest-codeblocks brings the option and the form of the directives. Here `page_blocks.py` collects what the
site renders, `page_run.py` runs each page in a process of its own, and `page_environment.py` finds it a
cluster and images.
"""

import json
import platform
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:  # loaded for every run of pytest, most of which need none of it
    from tests.page_blocks import Block
    from tests.page_run import Outcome, PageRun

REPORTED_VERSIONS = ("ray", "torch", "transformers")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options beside `--codeblocks`."""
    group = parser.getgroup("codeblocks", "executing the code blocks of Markdown pages")
    group.addoption("--codeblocks-timeout", type=float, default=300, metavar="S", help="time limit of a page")
    group.addoption("--codeblocks-gpus", type=int, default=1, metavar="N", help="logical GPUs of a Ray worker")
    group.addoption("--codeblocks-workers", type=int, default=2, metavar="N", help="Ray workers; 0: one machine")
    group.addoption("--codeblocks-report", type=Path, metavar="FILE", help="write how each block ended, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Take the place of pytest-codeblocks' own collector, which passes over much that is rendered."""
    if config.option.codeblocks:
        config.pluginmanager.unregister(name="codeblocks")
        config.stash[RUNNER] = Runner(config)
        config.pluginmanager.register(config.stash[RUNNER], "codeblocks_runner")


class Runner:
    """A run over pages: what they share, and the report.

    Side by side (`-n`) each process has a cluster of its own, and tells what it ran to the one that reports.
    """

    def __init__(self, config: pytest.Config) -> None:
        from tests.page_environment import PageEnvironment
        from tests.sources import digest_sources

        self.limit_s: float = config.option.codeblocks_timeout
        self.report_file: Path | None = config.option.codeblocks_report
        self.environment = PageEnvironment(config.option.codeblocks_gpus, config.option.codeblocks_workers)
        self.told: dict[str, Any] | None = getattr(config, "workeroutput", None)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.sources = digest_sources()
        self.blocks: list[dict[str, Any]] = []
        self.refused: list[dict[str, Any]] = []
        self.signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: in order

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> "Page | None":
        """Collect any Markdown file that pytest is given, or finds."""
        return Page.from_parent(parent, path=file_path) if file_path.suffix == ".md" else None

    def record(self, block: "Block", outcome: "Outcome") -> None:
        """Note for the report how a block ended."""
        self.blocks.append(
            {
                "page": block.page,
                "line": block.line,
                "section": block.section,
                "language": block.language,
                "seconds": round(outcome.seconds, 3),
                "outcome": outcome.result,
                "cause": outcome.cause or None,
            }
        )

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Give each of the processes a page at a time."""
        from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]
        from xdist.workermanage import NodeManager  # type: ignore[import-untyped]

        NodeManager.EXIT_TIMEOUT = 20  # after Ctrl-C: 10 s are too few for some to stop their clusters
        return LoadFileScheduling(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a process ran that has ended; one that died says nothing."""
        if told := getattr(node, "workeroutput", {}).get("codeblocks"):
            self.blocks += told["blocks"]
            self.refused = told["refused"]  # the same of each, as each collects all pages
            self.environment.resources = told["resources"] or self.environment.resources
            self.environment.samples = told["samples"] or self.environment.samples

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write the report; from here on nothing interrupts the cleaning up."""
        for number in self.signals:
            signal.signal(number, signal.SIG_IGN)
        if self.told is not None:
            ran = {"blocks": self.blocks, "refused": self.refused}
            found = {"resources": self.environment.resources, "samples": self.environment.samples}
            self.told["codeblocks"] = ran | found
        elif self.report_file:
            self.report_file.write_text(json.dumps(self.report(), indent=2) + "\n")

    def pytest_unconfigure(self) -> None:
        """Stop the cluster, now that the last page has ended."""
        self.environment.close()
        for number, handler in self.signals.items():
            signal.signal(number, handler)

    def report(self) -> dict[str, Any]:
        """Return what ran where, and how it ended."""
        versions = {name: version(name) for name in REPORTED_VERSIONS}
        return {
            "started": self.started,
            "sources": self.sources,
            "versions": {"python": platform.python_version(), **versions},
            "cluster": self.environment.resources,
            "images": self.environment.data["IMAGES"],
            "model": self.environment.data["MODEL"],
            "blocks": sorted(self.blocks, key=lambda block: block["page"]),
            "refused": self.refused,
        }


RUNNER = pytest.StashKey[Runner]()


class BlockFailed(Exception):
    """What a reader needs to know about a block that failed."""


class Page(pytest.File):
    """A Markdown page: a program, whose blocks run in order."""

    run: "PageRun | None" = None

    def collect(self) -> Iterator["BlockItem"]:
        """Yield a test for each block that is run; refuse a page with code that cannot be."""
        from tests.page_blocks import PageError, collect

        self.runner = self.config.stash[RUNNER]
        try:
            self.blocks = [block for block in collect(self.path) if block.is_executed]
        except PageError as error:
            for line, cause in error.problems:
                self.runner.refused.append({"page": error.page, "line": line, "cause": cause})
            raise self.CollectError(str(error)) from None
        for block in self.blocks:
            yield BlockItem.from_parent(self, name=block.name.rpartition("::")[2], block=block)

    def setup(self) -> None:
        """Prepare what the page needs, outside of its time limit, and start it."""
        from tests.page_blocks import needs_package
        from tests.page_environment import UnusableError
        from tests.page_run import PageRun

        has_package = needs_package(self.path)
        code = "\n".join(block.source for block in self.blocks)
        needs_ray = has_package or bool(re.search(r"\bray\b", code))
        needs_data = has_package or bool(re.search(r"\b(IMAGES|MODEL)\b", code))
        try:
            variables = self.runner.environment.prepare(
                needs_ray, needs_data, bool(re.search(r"\bMODELS\b", code))
            )
        except UnusableError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        self.run = PageRun(has_package, variables, self.runner.limit_s)

    def outcome(self, block: "Block") -> "Outcome":
        """Return how a block ended, after running those before it."""
        assert self.run is not None
        return self.run.outcome(block, self.blocks, can_run=lambda each: not each.gpu or has_gpu(each.gpu_module))

    def teardown(self) -> None:
        """End the page; whatever still went on then fails its last block."""
        if self.run and (left := self.run.close()):
            cause = f"the page left a process running: {'; '.join(left)}"
            self.runner.blocks[-1] |= {"outcome": "failed", "cause": cause}
            raise BlockFailed(f"{self.blocks[-1].where}: {cause}")


class BlockItem(pytest.Item):
    """The test of one block, named for the line of its fence."""

    def __init__(self, *, block: "Block", **node: Any) -> None:
        super().__init__(**node)
        self.block = block
        self.add_marker(pytest.mark.timeout(0))  # pages have their own limit, which leaves out the cluster

    def runtest(self) -> None:
        """Run the block, unless a later one was run before it."""
        page = cast(Page, self.parent)
        outcome = page.outcome(self.block)
        page.runner.record(self.block, outcome)
        if outcome.result == "skipped":
            pytest.skip(outcome.cause)
        if outcome.result == "failed":
            self.add_report_section("call", "log", outcome.log or "")
            is_full = self.config.option.tbstyle == "long" and outcome.full_detail
            detail = outcome.full_detail if is_full else outcome.detail
            raise BlockFailed(f"{self.block.where}: {outcome.cause}\n{detail}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show what concerns the reader, without the runner's own frames."""
        if isinstance(excinfo.value, BlockFailed):
            return str(excinfo.value).rstrip()
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return file, line and title of a failure."""
        return self.path, self.block.line - 1, self.block.where


@cache
def has_gpu(module: str | None = None) -> bool:
    """Whether a CUDA device is present, and the package that a block needs besides."""
    import torch

    return bool(torch.cuda.is_available()) and (module is None or find_spec(module) is not None)
