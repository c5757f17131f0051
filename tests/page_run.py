"""Run the blocks of one page in a process of their own, in an empty folder, and leave nothing of them."""

import difflib
import doctest
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.page_blocks import Block
from tests.page_kernel import PAGE_MARK, command, page_processes, wait_for_end

KERNEL = Path(__file__).with_name("page_kernel.py")
HIDDEN_PACKAGES = ("snippets", "tests")
END_S = 20.0  # for Ray to detach at the end of a page
STOP_S = 5.0  # for processes to end after what they belong to
LOG_CHARACTERS = 4000
DOCTEST_OPTIONS = doctest.ELLIPSIS | doctest.DONT_ACCEPT_BLANKLINE | doctest.DONT_ACCEPT_TRUE_FOR_1


@dataclass
class Outcome:
    """How a block ended."""

    result: str  # passed, failed or skipped
    cause: str = ""  # in a line
    detail: str = ""  # the page's own lines of the traceback, or a diff
    full_detail: str = ""  # the whole traceback
    log: str | None = None  # the end of what Ray, its workers and the block wrote besides the block's output
    seconds: float = 0.0


class PageRun:
    """A page that is being run: its process, its folder, and how its blocks ended."""

    def __init__(self, has_package: bool, environment: Mapping[str, str], limit_s: float) -> None:
        self.limit_s = limit_s  # for all blocks without a limit of their own
        self.outcomes: dict[str, Outcome] = {}
        self.failure: tuple[Block, Outcome] | None = None
        self.is_busy = False
        self.folder = Path(tempfile.mkdtemp(prefix="page-"))
        for name in ("work", "tmp", "hidden"):
            (self.folder / name).mkdir()
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs, (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(KERNEL), str(theirs.fileno())],
                cwd=self.folder / "work",
                env=self._environment(has_package, environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the runner, which then ends the page
            )

    def outcome(self, block: Block, page: list[Block], can_run: Callable[[Block], bool]) -> Outcome:
        """Return how `block` ended, after running it and those before it on the page, each once."""
        for each in page[: page.index(block) + 1]:
            if each.name not in self.outcomes:
                lacking = " with ".join(filter(None, ("no CUDA device", each.gpu_module)))
                outcome = self._run(each) if can_run(each) else Outcome("skipped", lacking)
                self.outcomes[each.name] = outcome
                if outcome.result == "failed" and self.failure is None:
                    self.failure = each, outcome
        return self.outcomes[block.name]

    def close(self) -> list[str]:
        """End the page and remove its files; return the commands that went on, and had to be stopped."""
        try:
            if not self.is_busy:  # as it is after Ctrl-C
                with suppress(OSError, subprocess.TimeoutExpired):
                    self.connection.send(None)
                    self.process.wait(END_S)
        finally:
            stopped = self._stop(patience_s=0 if self.is_busy or self.failure else STOP_S)
            self.connection.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        return [] if self.failure or self.is_busy else stopped

    def _run(self, block: Block) -> Outcome:
        if self.failure:
            first, outcome = self.failure
            return Outcome("failed", f"an earlier block of this page failed: {first.where}: {outcome.cause}")
        limit_s = self.limit_s if block.timeout_s is None else block.timeout_s
        log_start, start = self._log_size(), time.perf_counter()
        try:
            self.is_busy = True
            self.connection.send((block.language, block.source, block.name))
            if self.connection.poll(limit_s):
                outcome = judge(block, **self.connection.recv())
            else:
                outcome = self._hung(block, limit_s, log_start)
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
            outcome = Outcome("failed", f"the block ended its process, with status {self.process.poll()}")
        self.is_busy = False
        outcome.seconds = outcome.seconds or time.perf_counter() - start
        if block.timeout_s is None:
            self.limit_s = max(0.0, self.limit_s - outcome.seconds)
        log = self._log(log_start) if outcome.log is None else outcome.log
        outcome.log = log[-LOG_CHARACTERS:]
        return outcome

    def _hung(self, block: Block, limit_s: float, log_start: int) -> Outcome:
        """Ask the page's Python where it hangs, and stop it."""
        log_end, deadline = self._log_size(), time.monotonic() + 2
        if block.language == "python":
            self.process.send_signal(signal.SIGUSR1)
        frame = re.compile(rf'^  File "{re.escape(block.name)}", line (\d+)', re.M)
        lines: list[str] = []
        while block.language == "python" and not lines and time.monotonic() < deadline:
            time.sleep(0.05)
            lines = frame.findall(self._log(log_end))
        self._stop(patience_s=0)
        place = f", in: {block.source.splitlines()[int(lines[-1]) - 1].strip()}" if lines else ""
        log = self._log(log_start, log_end)  # without the answer, which names the runner's own lines
        return Outcome("failed", f"the block did not end within {limit_s:g} s{place}", log=log)

    def _stop(self, patience_s: float) -> list[str]:
        """Stop the page's process, and what is left of what it started; return the latter."""
        left = page_processes(str(self.folder), self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        left = wait_for_end(left, patience_s)
        commands = [command(process) for process in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for_end(left, STOP_S)
        return commands

    def _environment(self, has_package: bool, environment: Mapping[str, str]) -> dict[str, str]:
        theirs = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
        own = {
            PAGE_MARK: str(self.folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "TMPDIR": str(self.folder / "tmp"),
            # A pipeline that waits for resources in vain ends with Ray's own words, not with the time limit.
            "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
        }
        if not has_package:
            # A reader has the public packages only: hide the repository from the page, and what it starts.
            for name in HIDDEN_PACKAGES:
                reason = f"No module named '{name}': the page lacks `package: true`"
                (self.folder / "hidden" / f"{name}.py").write_text(f'raise ModuleNotFoundError("{reason}")\n')
            own["PYTHONPATH"] = str(self.folder / "hidden")
        return {**theirs, **own, **environment}

    def _log_size(self) -> int:
        return (self.folder / "log").stat().st_size

    def _log(self, start: int, end: int | None = None) -> str:
        with (self.folder / "log").open("rb") as log:
            log.seek(start)
            return log.read(None if end is None else end - start).decode(errors="replace")


def judge(block: Block, output: str, seconds: float, failure: dict[str, Any] | None) -> Outcome:
    """Compare how a block ended, and what it printed, with what the page says."""
    shown = [output]
    if failure and block.raises in failure["names"]:
        shown = [output + failure["message"], output + failure["cause"]]
    elif failure:
        cause = failure["cause"].split("\n")[0]
        return Outcome("failed", cause, failure["short"], failure["full"], seconds=seconds)
    elif block.raises:
        cause = f"the block raised nothing, and the page says {block.raises}"
        return Outcome("failed", cause, seconds=seconds)
    expected = block.expected
    if expected is not None and not any(matches(expected, each, is_end=bool(failure)) for each in shown):
        detail = difference(expected, shown[-1])
        return Outcome("failed", "the output differs from the page", detail, seconds=seconds)
    return Outcome("passed", seconds=seconds)


def matches(expected: str, output: str, is_end: bool = False) -> bool:
    """Compare as doctest does with `...`, but for trailing white space; or compare with the output's end."""
    want, got = "\n".join(_lines(expected)) + "\n", "\n".join(_lines(output)) + "\n"
    if is_end:
        want, got = f"...\n{want}", f"\n{got}"
    return doctest.OutputChecker().check_output(want, got, DOCTEST_OPTIONS)


def difference(expected: str, output: str) -> str:
    """Return a diff of the page's output and the real one."""
    diff = difflib.unified_diff(_lines(expected), _lines(output), "the page", "the block", lineterm="")
    return "\n".join(diff)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]
