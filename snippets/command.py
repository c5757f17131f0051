"""What `python -m snippets.PART.MODULE` does: run the module's pipeline, recorded, and say what came out."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

PUBLIC_IMAGES = "s3://anonymous@air-example-data-2/imagenette2/val/"
PUBLIC_MODEL = "microsoft/resnet-50@34c2154c194f829b11125337b98c8f5f9965ff19"
SHOWN_ROWS = 3
VERSIONS = ("ray", "torch", "transformers")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}.\n")


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def build_parser(module: ModuleType) -> Parser:
    """Return the parser of a module's command: the common options, and those that it adds."""
    parser = Parser(prog=f"python -m {module.__name__}", description=module.__doc__)
    environment = os.environ.get
    add = parser.add_argument
    add("--images", default=environment("IMAGES") or PUBLIC_IMAGES, help="folder, file, manifest or s3:// URI")
    add("--model", default=environment("MODEL") or PUBLIC_MODEL, help="folder, or name@revision on the hub")
    add("--limit", type=positive, help="rows at the most (default: all)")
    add("--json", action="store_true", help="print one line of JSON, and no progress bar")
    if hasattr(module, "add_options"):
        module.add_options(parser)
    return parser


def run_module(name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command of a module and exit: 0, or 2 with a sentence about what the caller can mend."""
    # Imported by its name, so that workers import it too, which is where the recording hooks in.
    module = importlib.import_module(name)
    options = build_parser(module).parse_args(arguments)
    try:
        report, rows = run(module, options)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.exit(_fail(sentence))
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(format_report(report, rows))
    sys.exit(0)


def _fail(sentence: str) -> int:
    sys.stderr.write(sentence.rstrip() + "\n")
    return 2


def explain(error: Exception) -> str | None:
    """Return a sentence for an error that comes from the input, or None for one that is ours."""
    import ray

    if isinstance(error, ray.exceptions.RayError | ray.data.exceptions.RayDataUserCodeException):
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        last = re.sub(r"\x1b\[\d*m", "", lines[-1]) if lines else type(error).__name__
        return f"The job ended in a worker: {last}"
    if isinstance(error, ValueError | OSError):
        return str(error)
    return None


def run(module: ModuleType, options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run a module's pipeline and return the report that `--json` prints, and the first rows.

    The report: `rows` that came out, `errors` (those that carry one), `files_skipped` (without an image suffix),
    `seconds` and `start_up_seconds` after `ray_init_seconds`, `steady_rows_per_second` (see `steady_rate`),
    `model_loads`, `batches`, `peak_memory_bytes` (see `recording`), `device` and `versions`.
    """
    from snippets.checkpoint import check_checkpoint
    from snippets.fundamentals.dataset import list_images

    _, _, skipped = list_images(options.images, options.limit)
    check_checkpoint(options.model)

    # Ray logs as an error that an actor could not be restarted without its arguments, of which there is no danger.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray.data

    from snippets.fundamentals.setup import configure_data_context
    from snippets.recording import recording, start_up_seconds, steady_rate

    logging.getLogger("ray.data").setLevel(logging.ERROR if options.json else logging.WARNING)
    began = time.time()
    with recording(**ray_options()) as record:
        configure_data_context(progress_bars=not options.json)
        started = time.time()
        rows, errors, first = drain(module.run(options))
        ended = time.time()
    ray.shutdown()
    batches = record.of("batch")
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    report = {
        "rows": rows,
        "errors": errors,
        "files_skipped": len(skipped),
        "seconds": ended - started,
        "ray_init_seconds": started - began,
        "start_up_seconds": start_up_seconds(batches, started),
        "steady_rows_per_second": steady_rate(batches),
        "model_loads": len(record.of("load")),
        "batches": len(batches),
        "peak_memory_bytes": record.peak_memory_bytes,
        "device": ", ".join(sorted({event.device for event in batches})) or "cpu",
        "versions": {"python": platform.python_version(), **versions},
    }
    return report, first


def ray_options() -> dict[str, Any]:
    """Return what the commands give to `ray.init()`: on this machine, nothing listens beyond it."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    return quiet if "RAY_ADDRESS" in os.environ else {**quiet, "_node_ip_address": "127.0.0.1"}


def drain(result: Any) -> tuple[int, int, list[dict[str, Any]]]:
    """Return how many rows came out, how many of them carry an error, and the first few."""
    if isinstance(result, list):
        return len(result), 0, result
    rows = errors = 0
    first: list[dict[str, Any]] = []
    for table in result.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += len(table)
        if "error" in table.column_names:
            errors += sum(bool(error) for error in table["error"].to_pylist())
        if len(first) < SHOWN_ROWS:
            columns = [name for name in table.column_names if name != "image"]
            first += table.select(columns).slice(0, SHOWN_ROWS - len(first)).to_pylist()
    return rows, errors, first


def format_report(report: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the rows and the report as a person reads them."""
    lines = ["  ".join(f"{name}: {_short(value)}" for name, value in row.items()) for row in rows]
    lines += ["", *(f"{name:24}{_short(value)}" for name, value in report.items())]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
