"""The results file: what it must hold, and its way to and from disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snippets.benchmark.provenance import ROOT
from snippets.benchmark.summary import summarize

FOLDER = ROOT / "docs" / "assets" / "results"
PUBLISHED = FOLDER / "cpu-2-cores.json"  # what the pages show

SCHEMA = 1
# The keys that must be there, with the types of their values. None stands for JSON's null.
NUMBER = (int, float)
FIELDS: dict[str, Any] = {
    "schema": int,
    "complete": bool,
    "images": dict,
    "provenance": {
        "date": str,
        "commit": (str, type(None)),
        "uncommitted_changes": (bool, type(None)),
        "command": str,
        "images": str,
        "model": str,
        "versions": {name: str for name in ("python", "ray", "torch", "transformers", "pillow", "numpy")},
        "system": str,
        "hardware": {
            "processor": str,
            "cores": int,
            "memory_bytes": int,
            "instruction_sets": list,
            "gpu": (str, type(None)),
        },
    },
    "rounds": list,
    "costs": (list, type(None)),
    "memory": (dict, type(None)),
    "summary": dict,
}
ROUND: dict[str, Any] = {
    "order": list,
    "runs": {"naive": dict},
    "limits": {"cores": int, "on_gpu": bool, "decode_seconds": NUMBER, "forward": {"float32": dict}},
    "agreement": {"naive": dict},
    "breakdown": dict,
}
RUN: dict[str, Any] = {
    "rows": int,
    "errors": int,
    "seconds": NUMBER,
    "ray_init_seconds": NUMBER,
    "start_up_seconds": (*NUMBER, type(None)),
    "steady_rows_per_second": (*NUMBER, type(None)),
    "model_loads": int,
    "batches": int,
    "peak_memory_bytes": int,
    "device": str,
    "accuracy": (*NUMBER, type(None)),
}


def load_results(path: Path) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_results)


def load_json(path: Path, check: Callable[[Any], None]) -> dict[str, Any]:
    """Return what a results file holds and `check` lets pass. Raises ValueError with a sentence that names it."""
    try:
        results = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"There is no results file {path}: make bench writes one.") from None
    except ValueError as error:
        raise ValueError(f"The results file {path} is not JSON ({error}).") from None
    try:
        check(results)
    except ValueError as error:
        raise ValueError(f"The results file {path} {error}") from None
    return dict(results)


def save_results(path: Path, measured: dict[str, Any]) -> dict[str, Any]:
    """Add the summary to what was measured, write both, and return them."""
    results = {**measured, "summary": summarize(measured)}
    check_results(results)
    write_json(path, results)
    return results


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write a results file, so that an interrupt never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def check_results(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and the summary follows from the rounds."""
    check_rounds(results, FIELDS, ROUND)
    try:
        derived = summarize(results)
    except KeyError as error:
        raise ValueError(f"has no {error} where its summary needs one.") from None
    if derived != results["summary"]:
        raise ValueError("has a summary that does not follow from its rounds: it was edited.")


def check_head(results: Any, fields: dict[str, Any]) -> None:
    """Raise ValueError, with what is wrong, unless the results have all keys, this schema, and a round."""
    check_fields("", results, fields)
    if results["schema"] != SCHEMA:
        raise ValueError(f"has the schema {results['schema']}, and this code reads {SCHEMA}.")
    if "rounds" in fields and not results["rounds"]:
        raise ValueError("has no rounds.")


def check_rounds(
    results: Any, fields: dict[str, Any], of_round: dict[str, Any], of_run: dict[str, Any] | None = None
) -> None:
    """Raise ValueError, with what is wrong, unless the results, their rounds and the runs of these have all keys.

    `of_run` is what each run has; None is what a run of a pipeline reports.
    """
    check_head(results, fields)
    for index, one in enumerate(results["rounds"]):
        check_fields(f"rounds[{index}].", one, of_round)
        for name, run in one["runs"].items():
            check_fields(f"rounds[{index}].runs.{name}.", run, RUN if of_run is None else of_run)


def check_fields(where: str, found: Any, fields: dict[str, Any]) -> None:
    """Raise ValueError, with the key after `where`, unless all fields are there with values of their types."""
    for key, expected in fields.items():
        if not isinstance(found, dict) or key not in found:
            raise ValueError(f"has no {where}{key}.")
        kind = dict if isinstance(expected, dict) else expected
        if not isinstance(found[key], kind):
            raise ValueError(f"has a {where}{key} of the wrong type: {type(found[key]).__name__}.")
        if isinstance(expected, dict):
            check_fields(f"{where}{key}.", found[key], expected)
