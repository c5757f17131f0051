"""How close a preflight's estimate comes: the time that it foretells against that of the run which follows."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snippets.benchmark.formats import count, factor, median, percent, seconds, with_range
from snippets.benchmark.harness import rotate, say
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import Hardware, read_hardware, read_provenance
from snippets.benchmark.results import (
    FIELDS,
    FOLDER,
    NUMBER,
    SCHEMA,
    check_fields,
    check_head,
    load_json,
    write_json,
)
from snippets.benchmark.summary import Round, Spread, spread
from snippets.benchmark.tables import format_table, provenance_line
from snippets.checkpoint import check_checkpoint
from snippets.command import positive
from snippets.fundamentals.dataset import list_images
from snippets.optimization.production_parts import write_manifest
from snippets.samples import images_and_model

PREFLIGHT = FOLDER / "preflight.json"
IMAGES = 2000
GOAL = 0.2  # of the run's seconds, by which the median estimate may be wrong
FIELDS_OF_FLIGHTS = {
    **{key: FIELDS[key] for key in ("schema", "complete", "provenance", "rounds")},
    "images": int,
    "dtypes": list,
}
ESTIMATE = {"seconds": NUMBER, "low_s": NUMBER, "high_s": NUMBER}
RUN_FIELDS = {"estimate": ESTIMATE, "run": {"seconds": NUMBER, "rows": int}}


def ask_for_flight(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own answers, which `preflight_runs` is."""
    return ask(request, module="snippets.benchmark.preflight_runs")


@dataclass(frozen=True)
class FlightPlan:
    """What to measure: for each precision a preflight, then the run over `images` images, in each round."""

    source: str
    model: str
    images: int
    dtypes: list[str]
    rounds: int
    extent: dict[str, Any] = field(default_factory=dict)  # of the preflight, where it is not the default
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_for_flight


def dtypes_for(hardware: Hardware) -> list[str]:
    """Return the precisions that are worth a run."""
    return ["float32", "bfloat16"] if hardware.has_bfloat16 else ["float32"]


def link_images(source: str, folder: Path, images: int) -> None:
    """Link so many images into a folder, each under a name of its own, the same again where there are not as many.

    Raises `ValueError` where the source is not on this machine.
    """
    if "://" in source:
        raise ValueError(
            f"The images are linked, so they have to be on a disk of this machine, and not at {source}."
        )
    paths = list_images(source)[1]
    for number in range(images):
        path = Path(paths[number % len(paths)])
        (folder / f"{number:05}{path.suffix}").symlink_to(path)


def measure_flights(plan: FlightPlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Measure each precision in turn, write the file after each round, and return what is in it.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "provenance": provenance,
        "images": plan.images,
        "dtypes": plan.dtypes,
        "rounds": [],
    }
    with tempfile.TemporaryDirectory(prefix="preflight-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        link_images(plan.source, folder / "images", plan.images)
        manifest = f"{folder}/manifest.parquet"
        job = {"manifest": manifest, "images": write_manifest(f"{folder}/images", manifest), "model": plan.model}
        for index in range(plan.rounds):
            order, runs = rotate(plan.dtypes, index), {}
            for dtype in order:
                say(f"round {index + 1} of {plan.rounds}: {dtype}")
                estimate = plan.ask({"kind": "preflight", "dtype": dtype, "extent": plan.extent, **job})
                run = plan.ask({"kind": "production", "dtype": dtype, **job})
                runs[dtype] = {"estimate": estimate, "run": run}
            measured["rounds"].append({"order": order, "runs": {dtype: runs[dtype] for dtype in plan.dtypes}})
            measured["complete"] = index + 1 == plan.rounds
            check_flights(measured)
            write_json(output, measured)
    return measured


def check_flights(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each run had all images."""
    check_head(results, FIELDS_OF_FLIGHTS)
    if not results["dtypes"]:
        raise ValueError("has no rounds.")
    for index, one in enumerate(results["rounds"]):
        where = f"rounds[{index}]."
        check_fields(where, one, {"order": list, "runs": {dtype: RUN_FIELDS for dtype in results["dtypes"]}})
        for dtype in results["dtypes"]:
            if one["runs"][dtype]["run"]["rows"] != results["images"]:
                raise ValueError(f"has a {where}runs.{dtype} that is not of all images.")


def load_flights(path: Path = PREFLIGHT) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_flights)


def summarize_flights(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each precision the spreads of estimate, run and their ratio, and the share of runs held.

    A run is `held` if it took what the interval says; `error` is how far the median ratio is from 1.
    """
    rounds: list[Round] = results["rounds"]

    def of(dtype: str) -> dict[str, Any]:
        pairs = [(one["runs"][dtype]["estimate"], one["runs"][dtype]["run"]["seconds"]) for one in rounds]
        ratios = spread([found["seconds"] / run_s for found, run_s in pairs])
        assert ratios is not None
        held = sum(found["low_s"] <= run_s <= found["high_s"] for found, run_s in pairs) / len(pairs)
        estimates: Spread | None = spread([found["seconds"] for found, _ in pairs])
        runs = spread([run_s for _, run_s in pairs])
        return {
            "estimate": estimates,
            "run": runs,
            "ratio": ratios,
            "held": held,
            "error": abs(ratios["median"] - 1),
        }

    return {dtype: of(dtype) for dtype in results["dtypes"]}


def flights_table(results: dict[str, Any]) -> str:
    """Return a row a precision: what was foretold, what the run took, their ratio, and the share held."""
    rows = [
        [
            f"`{dtype}`",
            count(results["images"]),
            with_range(found["estimate"], seconds),
            with_range(found["run"], seconds),
            with_range(found["ratio"], factor),
            percent(found["held"]),
        ]
        for dtype, found in summarize_flights(results).items()
    ]
    head = ["precision", "images", "foretold, s", "took, s", "foretold over taken", "in the interval, %"]
    return format_table(head, rows)


def flights_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers that pages include, by the name of their section."""
    found = summarize_flights(results)
    worst = max(of["error"] for of in found.values())
    ratios = {f"ratio-{dtype}": median(of["ratio"], factor) for dtype, of in found.items()}
    return {"error-percent": percent(worst), **ratios}


def flight_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: the table, where it comes from, and the numbers."""
    return {
        "table": flights_table(results),
        "provenance-line": provenance_line(results),
        **flights_numbers(results),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = MeasuringParser("snippets.benchmark.preflight", __doc__, PREFLIGHT)
    add = parser.add_argument
    add("--rounds", type=positive, help="default: 3, and 1 with --quick")
    add("--limit", type=positive, help=f"images of a run (default: {IMAGES}, and 16 with --quick)")
    options = parser.read(arguments)
    hardware = read_hardware()
    with parser.measuring(options.output):
        source, model = images_and_model()
        check_checkpoint(model)
        provenance = read_provenance(hardware, source, model, arguments, "snippets.benchmark.preflight")
        dtypes = dtypes_for(hardware)[: 1 if options.quick else None]
        images = options.limit or (16 if options.quick else IMAGES)
        extent = {"windows": 1} if options.quick else {}
        plan = FlightPlan(source, model, images, dtypes, options.rounds or (1 if options.quick else 3), extent)
        measure_flights(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
