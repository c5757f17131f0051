"""The process in which a page runs, block after block, like the cells of a fresh notebook kernel.

`page_run.py` starts it as a script, with the number of an open socket as its argument. It knows nothing of
pages: it executes the sources that arrive, and answers how each ended and whether something of it goes on.
"""

import faulthandler
import io
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

PAGE_MARK = "CODEBLOCKS_PAGE"  # in the environment of a page's processes, by which they are told
GRACE_S = 1.0  # for threads and processes that are about to end
STANDARD_LIBRARY = str(Path(threading.__file__).parent) + os.sep

# These outlive a block by design; at the end of the page they must be gone too.
HELPERS = re.compile(r"multiprocessing\.(resource_tracker|forkserver)|/ray/|^ray::")

REMOTE_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+), in ')
TERMINAL_COLOUR = re.compile(r"\x1b\[\d*m")


def page_processes(mark: str, kernel_pid: int) -> list[psutil.Process]:
    """Return the living processes that the page with this mark started, without the kernel itself."""
    found: set[psutil.Process] = set()
    with suppress(psutil.Error):
        found |= set(psutil.Process(kernel_pid).children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(PAGE_MARK) == mark:
                found.add(process)
    return [process for process in found if process.pid != kernel_pid and is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs: one that ended and waits to be reaped does not."""
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def wait_for_end(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Wait for processes that may be another's children; return those that are still alive."""
    deadline = time.monotonic() + limit_s
    while (alive := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def command(process: psutil.Process) -> str:
    """Return the command line of a process that may have ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "(ended)"


class BlockError(Exception):
    """A block that raised nothing, and yet failed."""


class DriverOutput(io.StringIO):
    """What the page prints. Ray's threads repeat what the workers print here, whenever it arrives: a log."""

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_") and sys.__stdout__:
            return sys.__stdout__.write(text)
        return super().write(text)

    def take(self) -> str:
        """Return what was printed since the last call."""
        printed = self.getvalue()
        self.seek(0)
        self.truncate()
        return printed


class Kernel:
    """One namespace, `__main__`, and the blocks executed in it."""

    def __init__(self) -> None:
        self.main = sys.modules["__main__"] = types.ModuleType("__main__")
        self.output = sys.stdout = DriverOutput()
        self.blocks: set[str] = set()  # by the file names that their tracebacks show
        self.threads: list[threading.Thread] = []
        self._note_threads()

    def execute(self, language: str, source: str, name: str) -> dict[str, Any]:
        """Execute a block; return what it printed, the seconds it took, and how it failed."""
        self.blocks.add(name)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        folder, failure = Path.cwd(), None
        start = time.perf_counter()
        try:
            if language == "bash":
                self._run_bash(source)
            else:
                exec(compile(source, name, "exec", dont_inherit=True), self.main.__dict__)
            self._check_folder(folder)
            self._check_threads()
            self._check_processes()
        except BaseException as error:  # also SystemExit and KeyboardInterrupt: no block ends a page
            failure = self._describe(error)
        seconds = time.perf_counter() - start
        return {"output": self.output.take(), "seconds": seconds, "failure": failure}

    def _run_bash(self, source: str) -> None:
        # To a file: a pipe would wait for whatever the block left running in the background.
        with tempfile.TemporaryFile("w+") as printed:
            status = subprocess.run(["bash", "-euo", "pipefail", "-c", source], stdout=printed).returncode
            printed.seek(0)
            self.output.write(printed.read())
        if status:
            raise BlockError(f"bash ended with exit status {status}")

    def _check_folder(self, folder: Path) -> None:
        if (left_in := Path.cwd()) != folder:
            os.chdir(folder)
            raise BlockError(f"the block left the working directory changed, to {left_in}")

    def _check_threads(self) -> None:
        deadline = time.monotonic() + GRACE_S
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        alive = [thread.name for thread in self.threads if thread.is_alive()]
        self.threads.clear()
        if alive:
            raise BlockError(f"the block left a thread running: {', '.join(alive)}")

    def _check_processes(self) -> None:
        started = page_processes(os.environ[PAGE_MARK], os.getpid())
        left = wait_for_end([each for each in started if not HELPERS.search(command(each))], GRACE_S)
        if left:
            raise BlockError(f"the block left a process running: {'; '.join(map(command, left))}")

    def _note_threads(self) -> None:
        """Note each thread that the page's own code starts; libraries may keep theirs."""
        start = threading.Thread.start

        def start_and_note(thread: threading.Thread) -> None:
            frame = sys._getframe(1)
            while frame.f_back and self._is_standard_library(frame.f_code.co_filename):
                frame = frame.f_back
            if frame.f_code.co_filename in self.blocks:
                self.threads.append(thread)
            start(thread)

        threading.Thread.start = start_and_note  # type: ignore[method-assign, assignment]

    @staticmethod
    def _is_standard_library(file: str) -> bool:
        return file.startswith(STANDARD_LIBRARY) and "site-packages" not in file

    def _describe(self, error: BaseException) -> dict[str, Any]:
        """Return the cause in a few words, and the traceback: the page's own lines of it, and all."""
        if isinstance(error, BlockError):
            return {"cause": str(error), "message": "", "names": [], "short": "", "full": ""}
        full = TERMINAL_COLOUR.sub("", "".join(traceback.format_exception(error)))
        message = TERMINAL_COLOUR.sub("", "".join(traceback.format_exception_only(error)).strip())
        own = self._own_frames(traceback.TracebackException.from_exception(error))
        kinds = type(error).__mro__
        if any(kind.__module__.startswith("ray.") for kind in kinds):
            remote, cause = self._remote_lines(message)
            short = "".join(own.stack.format()) + remote
        else:
            # A SyntaxError has its line before its words.
            cause = message.splitlines()[-1] if isinstance(error, SyntaxError) else message
            short = "".join(own.format())
        names = [kind.__name__ for kind in kinds] + re.findall(r"\A(?:\w+\.)*(\w+)", cause)
        return {"cause": cause, "message": message, "names": names, "short": short, "full": full}

    def _own_frames(self, error: traceback.TracebackException) -> traceback.TracebackException:
        """Drop the frames of the libraries and of this module."""
        error.stack = traceback.StackSummary.from_list([f for f in error.stack if f.filename in self.blocks])
        for related in (error.__cause__, error.__context__, *(error.exceptions or ())):
            if related is not None:
                self._own_frames(related)
        return error

    def _remote_lines(self, message: str) -> tuple[str, str]:
        """Shorten the worker's traceback in a Ray error to the page's lines; return it, and its last words.

        Ray puts that traceback into the message, and without the source of a page's lines.
        """
        for part in message.split("\n\nThe above exception was the direct cause"):
            lines = part.splitlines()
            frames = [(n, frame) for n, line in enumerate(lines) if (frame := REMOTE_FRAME.match(line))]
            own = [(n, frame) for n, frame in frames if frame["file"] in self.blocks]
            if own:
                end = frames[-1][0] + 1
                while end < len(lines) - 1 and lines[end].startswith("    "):  # the last frame's source
                    end += 1
                cause = "\n".join(lines[end:]).strip()
                worker = lines[0][lines[0].find("ray::") :]
                shown = [f"in the worker {worker}:"]
                for n, frame in own:
                    source = linecache.getline(frame["file"], int(frame["line"])).strip()
                    shown += [lines[n], f"    {source}"]
                return "\n".join([*shown, cause]), cause
        return message, message


def main(socket: int) -> None:
    """Execute what arrives, until nothing more does."""
    faulthandler.register(signal.SIGUSR1)  # by which the runner asks where a block hangs
    sys.argv, sys.path[0] = [""], ""
    connection, kernel = Connection(socket), Kernel()
    with suppress(EOFError):
        while (block := connection.recv()) is not None:
            connection.send(kernel.execute(*block))
    if ray := sys.modules.get("ray"):
        ray.shutdown()
    if sys.__stdout__:
        sys.__stdout__.flush()
    os._exit(0)  # a thread that a block left, and that failed it, is not waited for


if __name__ == "__main__":
    main(int(sys.argv[1]))
