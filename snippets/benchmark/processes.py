"""Ask a process of its own for a measurement, and leave none of its processes behind, however it ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from snippets.benchmark.provenance import ROOT

GRACE_S = 15
MARK = "SNIPPETS_BENCHMARK_RUN"  # an environment variable that all processes of a run inherit


def ask(request: dict[str, Any], module: str = "snippets.benchmark.runs") -> dict[str, Any]:
    """Run `python -m module` with a request on its standard input and return its answer.

    Raises RuntimeError with the end of what it printed where it fails. Before this returns, or raises anything,
    KeyboardInterrupt among it, all processes of the run have ended.
    """
    quiet = {"RAY_BACKEND_LOG_LEVEL": "fatal", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log.txt")
        process = None
        with log.open("w") as output:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, str(answer)],
                    cwd=ROOT,
                    env={**quiet, **os.environ, MARK: mark},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then ends this
                )
                process.communicate(json.dumps(request))
            finally:
                with _uninterrupted():
                    if process is not None:
                        process.terminate()  # Ray stops its processes; without effect once it has ended
                    end_run(mark)
                    if process is not None:
                        process.wait()
        if process.returncode or not answer.exists():
            said = "\n".join(log.read_text().strip().splitlines()[-12:])
            what = " ".join(str(request[key]) for key in ("kind", "name") if key in request)
            raise RuntimeError(f"The measurement of {what} ended with status {process.returncode}:\n{said}")
        found: dict[str, Any] = json.loads(answer.read_text())
    return found


def answer_request(kinds: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Be the process that is asked: call the function of the request's kind, and write what it returns."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    request = json.load(sys.stdin)
    answer = kinds[request.pop("kind")](**request)
    Path(sys.argv[1]).write_text(json.dumps(answer))


def end_run(mark: str) -> None:
    """Wait until the processes of a run have ended, and kill those that have not in time."""
    deadline = time.monotonic() + GRACE_S
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    while left:  # a process that is killed may have started another
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)
        left = _marked(mark)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C not stop the tidying up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
