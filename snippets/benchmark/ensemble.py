"""What the layouts of an ensemble take of time and memory, and how often their combined answers are right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snippets.benchmark.formats import (
    MISSING,
    count,
    either,
    factor,
    gigabytes,
    median,
    percent,
    rate,
    seconds,
    with_range,
)
from snippets.benchmark.harness import rotate, say
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import public_name, read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, NUMBER, SCHEMA, check_rounds, load_json, write_json
from snippets.benchmark.summary import Round, Spread, ratio, spread
from snippets.benchmark.tables import format_table, provenance_line
from snippets.checkpoint import check_checkpoint
from snippets.command import positive
from snippets.optimization.ensemble_models import models_for
from snippets.samples import DEFAULT_ROOT, build_samples, images_and_model

ENSEMBLE = FOLDER / "ensemble.json"
RUNS = {  # name -> what it is called, its layout, which models, and whether it is a cascade
    "alone": ("the costliest model alone", "together", slice(-1, None), False),
    "together": ("all in each actor", "together", slice(None), False),
    "pools": ("a pool each, in a row", "pools", slice(None), False),
    "branches": ("a pool each, joined by id", "branches", slice(None), False),
    "cascade": ("a cascade in each actor", "together", slice(None), True),
    "cascade-pools": ("a cascade of pools", "pools", slice(None), True),
}
RUN_FIELDS = {
    "rows": int,
    "seconds": NUMBER,
    "start_up_seconds": (*NUMBER, type(None)),
    "steady_rows_per_second": (*NUMBER, type(None)),
    "model_loads": int,
    "peak_memory_bytes": int,
    "peak_store_bytes": int,
    "asked": dict,
}
ENSEMBLE_FIELDS = {
    **{key: FIELDS[key] for key in ("schema", "complete", "provenance", "rounds")},
    "images": int,
    "sure": NUMBER,
    "alone": {"members": dict, "decode": NUMBER, "decode_one": NUMBER, "views": int},
    "quality": {"images": int, "held_out": int},
}


def ask_for_ensemble(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own answers, which `ensemble_runs` is."""
    return ask(request, module="snippets.benchmark.ensemble_runs")


@dataclass(frozen=True)
class EnsemblePlan:
    """What to measure: the layouts over `limit` images of a source, with weights and `sure` from `held_out`.

    `forward_seconds` is how long each model runs alone. `sure` is taken where no image says what it shows.
    """

    source: str
    held_out: str
    models: tuple[str, ...]
    rounds: int
    limit: int
    forward_seconds: float = 8
    sure: float = 0.6
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_for_ensemble


def measure_ensemble(plan: EnsemblePlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Measure the models alone, what they answer, and the layouts in turn; write the file after each round.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    models = list(plan.models)
    say("the models alone")
    alone = plan.ask({"kind": "members", "source": plan.source, "models": models, "seconds": plan.forward_seconds})
    say("what they answer")
    quality = plan.ask({"kind": "quality", "source": plan.source, "held_out": plan.held_out, "models": models})
    sure = min(quality.get("sure", plan.sure), 1)
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "provenance": provenance,
        "images": plan.limit,
        "sure": sure,
        "alone": alone,
        "quality": quality,
        "rounds": [],
    }
    for index in range(plan.rounds):
        order, runs = rotate(list(RUNS), index), {}
        for name in order:
            say(f"round {index + 1} of {plan.rounds}: {name}")
            _, layout, which, is_cascade = RUNS[name]
            runs[name] = plan.ask(
                {
                    "kind": "layout",
                    "layout": layout,
                    "source": plan.source,
                    "models": models[which],
                    "limit": plan.limit,
                    "sure": sure if is_cascade else None,
                }
            )
        measured["rounds"].append({"order": order, "runs": {name: runs[name] for name in RUNS}})
        measured["complete"] = index + 1 == plan.rounds
        check_ensemble(measured)
        write_json(output, measured)
    return measured


def check_ensemble(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each run is one that there is."""
    check_rounds(results, ENSEMBLE_FIELDS, {"order": list, "runs": dict.fromkeys(RUNS, dict)}, RUN_FIELDS)


def load_measured_ensemble(path: Path = ENSEMBLE) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_ensemble)


def summarize_ensemble(results: dict[str, Any]) -> dict[str, dict[str, Spread | None]]:
    """Return the spreads of each run over the rounds; ratios are to `together` within a round."""
    rounds: list[Round] = results["rounds"]

    def of_run(name: str) -> dict[str, Spread | None]:
        runs = [one["runs"][name] for one in rounds]
        others = [one["runs"]["together"] for one in rounds]
        keys = (
            "start_up_seconds",
            "model_loads",
            "peak_memory_bytes",
            "peak_store_bytes",
        )
        return {
            **{key: spread([run[key] for run in runs]) for key in keys},
            "end_to_end": spread([run["rows"] / run["seconds"] for run in runs]),
            "over_together": spread(
                [
                    ratio(run["rows"] / run["seconds"], other["rows"] / other["seconds"])
                    for run, other in zip(runs, others, strict=True)
                ]
            ),
            "memory_over_together": spread(
                [
                    ratio(run["peak_memory_bytes"], other["peak_memory_bytes"])
                    for run, other in zip(runs, others, strict=True)
                ]
            ),
        }

    return {name: of_run(name) for name in RUNS}


def layouts_table(results: dict[str, Any]) -> str:
    """Return a row a layout: speed, start-up, models loaded, memory, and how many images the last model saw."""
    first = results["rounds"][0]["runs"]
    rows = [
        [
            RUNS[name][0],
            with_range(found["end_to_end"], rate),
            with_range(found["over_together"], factor),
            median(found["start_up_seconds"], seconds),
            median(found["model_loads"], count),
            median(found["peak_memory_bytes"], gigabytes),
            median(found["peak_store_bytes"], gigabytes),
            count([*first[name]["asked"].values()][-1]),
        ]
        for name, found in summarize_ensemble(results).items()
    ]
    head = ["layout", "images/s end to end", "over all in each", "start-up, s"]
    return format_table(
        [*head, "model loads", "peak memory, GB", "peak object store, GB", "images that the costliest model saw"],
        rows,
    )


def members_table(results: dict[str, Any]) -> str:
    """Return a row a model: its weights, what loading it takes, its forward rate, and how often it is right."""
    accuracy = results["quality"].get("alone") or {}
    rows = [
        [
            name,
            f"{found['weight_bytes'] / 1e6:.1f}",
            f"{found['load_bytes'] / 1e6:.0f}",
            seconds(found["load_seconds"]),
            rate(found["rows_per_second"]),
            either(accuracy.get(name), percent),
        ]
        for name, found in results["alone"]["members"].items()
    ]
    head = ["model", "weights, MB", "memory of a load, MB", "load, s", "forward passes, images/s"]
    return format_table([*head, "right, %"], rows)


def quality_table(results: dict[str, Any]) -> str:
    """Return a row a combination: how often it is right."""
    combined = results["quality"].get("combined") or {}
    titles = {"mean": "mean probability", "vote": "vote", "weights": "fitted weights"}
    return format_table(
        ["combination", "right, %"],
        [[title, either(combined.get(key), percent)] for key, title in titles.items()],
    )


def cascades_table(results: dict[str, Any]) -> str:
    """Return a row a value of `sure`: the share of images that each later model sees, and the accuracy."""
    names = [*results["alone"]["members"]][1:]
    rows = [
        [
            f"{found['sure']:g}",
            *(percent(found["asked"][name]) for name in names),
            percent(found["accuracy"]),
        ]
        for found in results["quality"].get("cascades") or []
    ]
    return format_table(["`sure`", *(f"{name} is asked, %" for name in names), "right, %"], rows)


def ensemble_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers that pages include, by the name of their section."""
    found = {}
    for name, of in summarize_ensemble(results).items():
        found[f"{name}-over-together"] = median(of["over_together"], factor)
        found[f"{name}-memory-over-together"] = median(of["memory_over_together"], factor)
        found[f"{name}-loads"] = median(of["model_loads"], count)
    alone, weights = results["alone"], results["quality"].get("weights")
    found["sure"] = f"{results['sure']:g}"
    found["images"] = count(results["images"])
    found["views-over-one"] = factor(alone["decode"] / alone["decode_one"])
    found["held-out"] = count(results["quality"]["held_out"])
    found["weights"] = (
        ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()) if weights else MISSING
    )
    return found


def ensemble_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: the tables, where they come from, and the numbers."""
    return {
        "layouts": layouts_table(results),
        "members": members_table(results),
        "quality": quality_table(results),
        "cascades": cascades_table(results),
        "provenance-line": provenance_line(results),
        **ensemble_numbers(results),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = MeasuringParser("snippets.benchmark.ensemble", __doc__, ENSEMBLE)
    add = parser.add_argument
    add("--rounds", type=positive, help="default: 3, and 1 with --quick")
    add("--limit", type=positive, help="images of a run (default: 512, and 32 with --quick)")
    add("--held-out", help="images that weights and cascade are chosen on (default: the samples' held-out ones)")
    options = parser.read(arguments)
    with parser.measuring(options.output):
        source, model = images_and_model()
        models = models_for(model).split(",")
        for each in models:
            check_checkpoint(each)
        plan = EnsemblePlan(
            source,
            options.held_out or str(build_samples(DEFAULT_ROOT).held_out),
            tuple(models),
            options.rounds or (1 if options.quick else 3),
            options.limit or (32 if options.quick else 512),
            0.5 if options.quick else 8,
        )
        names = ",".join(map(public_name, models))
        provenance = read_provenance(read_hardware(), source, names, arguments, "snippets.benchmark.ensemble")
        measure_ensemble(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
