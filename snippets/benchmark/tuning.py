"""What the tuners find on this machine: rate and memory by batch size, then by the number of actors."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from snippets.benchmark.formats import count, either, rate
from snippets.benchmark.harness import say
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.provenance import read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, SCHEMA, check_fields, check_head, load_json, write_json
from snippets.benchmark.tables import format_table, provenance_line
from snippets.checkpoint import check_checkpoint
from snippets.command import ray_options
from snippets.optimization.curves import draw_curve
from snippets.optimization.trial import Outcome, Tuning, tuning_of
from snippets.optimization.tuners import BATCH_SIZES, Effort, curve, tune_batch_size, tune_pool
from snippets.samples import images_and_model

TUNING = FOLDER / "tuning.json"
CURVES = {"batch_size": "Images per second by batch size", "actors": "Images per second by actors"}
QUICK = Effort(repeats=1, repeat_s=0, confirm=False)
FIELDS_OF_TUNING = {key: FIELDS[key] for key in ("schema", "complete", "provenance")} | {
    name: {"choice": dict, "arguments": dict, "outcomes": list, "stopped": str} for name in CURVES
}


def measure_tuning(
    model: str, batch_sizes: Sequence[int], effort: Effort, provenance: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Search for the batch size, then for the pool with it, write the file, and return what is in it."""

    def progress(outcome: Outcome) -> None:
        say(f"measured: {outcome.candidate}")

    ray.init(**ray_options())
    try:
        by_batch = tune_batch_size(model, batch_sizes, effort=effort, cache=None, progress=progress)
        by_pool = tune_pool(model, by_batch.choice.best, effort=effort, cache=None, progress=progress)
    finally:
        ray.shutdown()
    tunings = zip(CURVES, (by_batch, by_pool), strict=True)
    found = {name: json.loads(json.dumps(asdict(tuning))) for name, tuning in tunings}  # lists, as in the file
    measured = {"schema": SCHEMA, "complete": True, "provenance": provenance, **found}
    check_tuning(measured)
    write_json(output, measured)
    return measured


def check_tuning(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each search has outcomes."""
    check_head(results, FIELDS_OF_TUNING)
    for name in CURVES:
        check_fields(f"{name}.choice.", results[name]["choice"], {"best": int, "sure": bool})
        if not results[name]["outcomes"]:
            raise ValueError(f"has no {name}.outcomes.")


def load_tuning(path: Path = TUNING) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_tuning)


def tuning_table(tuning: Tuning, head: str) -> str:
    """Return a row a candidate: its median rate with the lowest and highest repeat, and its peak memory."""
    rows = []
    for row in curve(tuning):
        spread = f"{either(row['rate'], rate)} ({either(row['lowest'], rate)}\u2013{either(row['highest'], rate)})"
        memory = either(row["peak_bytes"], lambda size: f"{size / 1e6:.0f}")
        rows.append([count(row["candidate"]), *([row["failure"], ""] if row["failure"] else [spread, memory])])
    return format_table([head, "images/s", "peak memory, MB"], rows)


def tuning_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: a table a search, what was chosen and how sure that is, and the provenance."""
    sections: dict[str, str] = {}
    for name, head in {"batch_size": "batch size", "actors": "actors"}.items():
        tuning = tuning_of(results[name])
        sections |= {
            name: tuning_table(tuning, head),
            f"{name}-best": count(tuning.choice.best),
            f"{name}-sure": "sure" if tuning.choice.sure else "not sure",
            f"{name}-stopped": tuning.stopped,
        }
    return {**sections, "provenance-line": provenance_line({**results, "rounds": [0]})}


def draw_tuning(name: str, results: dict[str, Any]) -> str:
    """Return the curve of one search as the tuners draw it."""
    return draw_curve(tuning_of(results[name]), CURVES[name])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    quick = "two batch sizes, one repeat"
    parser = MeasuringParser("snippets.benchmark.tuning", __doc__, TUNING, quick)
    options = parser.read(arguments)
    sizes, effort = ((1, 2), QUICK) if options.quick else (BATCH_SIZES, Effort())
    with parser.measuring(options.output):
        _, model = images_and_model()
        check_checkpoint(model)
        hardware, what = read_hardware(), "black images in memory"
        provenance = read_provenance(hardware, what, model, arguments, "snippets.benchmark.tuning")
        measure_tuning(model, sizes, effort, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
