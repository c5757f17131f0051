"""What `python -m snippets.PART.MODULE` does: run the module's pipeline, recorded, and say what came out."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any, NoReturn

from snippets.s3_errors import explain_refusal, name_endpoint

SHOWN_ROWS = 3
VERSIONS = ("ray", "torch", "transformers")
Rows = list[dict[str, Any]]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}.\n")


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not re.fullmatch(r"\+?0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def gpus(text: str) -> float:
    """Parse what Ray takes as a number of GPUs: a part of one, or a whole number, or 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (0 <= number <= 1 or (number.is_integer() and number > 1)):
        raise argparse.ArgumentTypeError(f"must be 0 to 1 or a whole number, not {text}")
    return number


def build_parser(module: ModuleType) -> Parser:
    """Return the parser of a module's command: the common options, and those that it adds."""
    from snippets.fundamentals.setup import IMAGES, MODEL

    parser = Parser(prog=f"python -m {module.__name__}", description=module.__doc__)
    add = parser.add_argument
    add("--images", default=IMAGES, help="folder, file, manifest or s3:// URI")
    add("--model", default=MODEL, help="folder, or name@revision on the hub")
    add("--limit", type=positive, help="rows at the most (default: all)")
    add("--json", action="store_true", help="print one line of JSON, and no progress bar")
    if hasattr(module, "add_options"):
        module.add_options(parser)
    return parser


def run_module(name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command of a module and exit: 0, or 2 with a sentence about what the caller can mend.

    Where every row carries an error, 1 with a sentence about the first, after the report.
    """
    # Imported by its name, so that workers import it too, which is where the recording hooks in.
    module = importlib.import_module(name)
    options = build_parser(module).parse_args(arguments)
    try:
        report, rows = run(module, options)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.exit(fail(sentence))
    if options.json:
        sys.stdout.write(json.dumps(report, default=str) + "\n")
    else:
        sys.stdout.write(format_report({name: of for name, of in report.items() if name != "found"}, rows))
    if 0 < report["rows"] == report["errors"]:
        sys.exit(fail(f"Every row carries an error, as the first does: {rows[0]['error']}", status=1))
    sys.exit(0)


def fail(sentence: str, status: int = 2) -> int:
    """Print a sentence to stderr and return the exit status."""
    sys.stderr.write(sentence.rstrip() + "\n")
    return status


def explain(error: Exception) -> str | None:
    """Return a sentence for an error that comes from the input, or None for one that is ours."""
    import ray

    lines = [*re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines(), type(error).__name__]
    if isinstance(error, ray.data.exceptions.ExecutionTimeoutError):
        return lines[0]
    if isinstance(error, ray.exceptions.RayError):
        # The text of a traceback, after which Ray adds errors of its own and advice.
        causes = [line for line in lines if re.match(r"(?!ray\.exceptions\.)[\w.]*[A-Z]\w*: ", line)]
        where, cause = re.search(r"ray::(.+?)\(\)", lines[0]), [lines[0], *causes][-1]
        return f"The job ended in {where[1] if where else 'a worker'}: {explain_refusal(cause) or cause}"
    if isinstance(error, ValueError | OSError):
        text = re.sub(r"^\[Errno \d+\] (.+?)\.? Detail: \[errno \d+\] (.+)", r"\1: \2.", str(error))  # pyarrow's
        return explain_refusal(text) or name_endpoint(text)
    return None


def count(result: Any) -> tuple[int, int, Rows]:
    """Return how many rows came out, how many of them carry an error, and the first few."""
    if isinstance(result, list):
        return len(result), 0, result
    rows = errors = 0
    first: Rows = []
    for table in result.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += len(table)
        if "error" in table.column_names:
            errors += sum(bool(error) for error in table["error"].to_pylist())
        if len(first) < SHOWN_ROWS:
            first += _shown(table.slice(0, SHOWN_ROWS - len(first)))
    return rows, errors, first


def _shown(table: Any) -> Rows:
    """Return the rows of an Arrow table, and of an image its dtype and shape."""
    if "image" not in table.column_names:
        return list(table.to_pylist())
    images = table["image"].combine_chunks().to_numpy(zero_copy_only=False)
    rows = table.drop_columns("image").to_pylist()
    return [{**row, "image": f"{image.dtype} {image.shape}"} for row, image in zip(rows, images, strict=True)]


def run(
    module: ModuleType, options: argparse.Namespace, consume: Callable[[Any], tuple[int, int, Rows]] = count
) -> tuple[dict[str, Any], Rows]:
    """Run a module's pipeline and return the report that `--json` prints, and the rows that `consume` kept.

    The report: `rows` that came out, `errors` (those that carry one), `files_skipped` (without an image suffix),
    what `Recording.report` adds, and `versions`; `found`, the rows of a module that answers with a list.
    """
    from snippets.checkpoint import check_checkpoint
    from snippets.fundamentals.dataset import list_images

    if options.json:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars too
    _, _, skipped = list_images(options.images, options.limit)
    check_checkpoint(options.model)

    # Ray logs as an error that an actor could not be restarted without its arguments, of which there is no danger.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data

    from snippets.fundamentals.setup import configure_data_context
    from snippets.recording import recording

    # Where there is no terminal for bars, Ray logs the progress.
    level = logging.ERROR if options.json else logging.WARNING if sys.stdout.isatty() else logging.INFO
    logger = logging.getLogger("ray.data")
    logger.setLevel(level)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(_is_no_error)  # the run ends in one sentence; Ray's log file has the traceback
    with stdout_for_the_answer():
        with recording(**ray_options()) as record:
            configure_data_context(progress_bars=not options.json)
            result = module.run(options)
            rows, errors, first = consume(result)
        ray.shutdown()
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    report = {
        "rows": rows,
        "errors": errors,
        "files_skipped": len(skipped),
        **record.report(),
        "versions": {"python": platform.python_version(), **versions},
    }
    if isinstance(result, list):  # a few rows that are the answer, and not the rows of a dataset
        report["found"] = result
    return report, first


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def ray_options() -> dict[str, Any]:
    """Return what the commands give to `ray.init()`: on this machine, nothing listens beyond it."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" in os.environ:
        return quiet
    # Nobody looks at a dashboard of the run of one command, and it would share the cores.
    return {**quiet, "_node_ip_address": "127.0.0.1", "include_dashboard": False}


@contextmanager
def stdout_for_the_answer() -> Iterator[None]:
    """Send to stderr what Ray prints of its own accord, so that stdout has what the command answers alone.

    Ray's drivers print to stdout what is published to all of them: a node that died, a disk that is nearly full.
    """
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def connection() -> Iterator[None]:
    """Be connected, to the cluster of this process or to a Ray that ends afterwards, without a word on stdout."""
    import ray.data

    with stdout_for_the_answer():
        if ray.is_initialized():
            yield
            return
        # Ray logs as an error that an actor could not be restarted without its arguments.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(**ray_options())
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()


def format_report(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the rows and the report as a person reads them."""
    lines = ["  ".join(f"{name}: {_short(value)}" for name, value in row.items()) for row in rows]
    lines += ["", *(f"{name:24}{_short(value)}" for name, value in report.items())]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
