"""Run the contenders in turn, round by round, with the limits of the hardware measured beside them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snippets.benchmark.contenders import CONTENDERS
from snippets.benchmark.processes import ask
from snippets.benchmark.results import SCHEMA, load_results, save_results
from snippets.fundamentals.dataset import list_images

LIMITS = "limits"  # takes its turn like a contender
WARM_UP_IMAGES = 16
FORWARD_SECONDS = 4.0
DECODED_IMAGES = 32  # to time decoding: of all classes, as some are larger
MORE_IMAGES = 4  # times as many, for the memory


@dataclass
class Plan:
    """What to measure. A pool gets `limit` images, every other contender a quarter, for each is slower."""

    source: str
    model: str
    contenders: list[str]
    rounds: int
    limit: int
    quick: bool = False  # no warm-up, costs or memory, and the least that the limits need
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask
    paths: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """List the images once. Raises what `list_images` raises."""
        scheme = self.source[: self.source.find("://") + 3] if "://" in self.source else ""
        scheme += "anonymous@" if self.source.startswith("s3://anonymous@") else ""
        self.paths = [scheme + path for path in list_images(self.source)[1]]

    def images(self, name: str) -> list[str]:
        """Return the images of a contender: spread evenly over the source, so that all folders are there."""
        share = self.limit if CONTENDERS[name].is_pool or self.quick else max(1, self.limit // 4)
        return spread_evenly(self.paths, share)


def spread_evenly(paths: list[str], count: int) -> list[str]:
    """Return `count` of the paths at equal distances, or all where there are no more."""
    count = min(count, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def rotate(names: list[str], by: int) -> list[str]:
    """Return the names in an order that begins `by` places later, so that none is always first or last."""
    by %= len(names)
    return names[by:] + names[:by]


def measure(plan: Plan, provenance: dict[str, Any], output: Path) -> tuple[dict[str, Any] | None, bool]:
    """Measure, write the results file after each round, and return the results and whether they are complete.

    An interrupt (KeyboardInterrupt) ends the measuring. The rounds that were finished are in the file then, with
    `complete` false; where none was, the file is left as it was and the results are None.
    """
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "images": {name: len(plan.images(name)) for name in plan.contenders},
        "provenance": provenance,
        "costs": None,
        "memory": None,
        "rounds": [],
    }
    results = None
    try:
        if not plan.quick:
            measured["costs"] = measure_costs(plan)
            measured["memory"] = measure_memory(plan)
            for name in plan.contenders:  # the memory's run has warmed up the pool
                if not CONTENDERS[name].is_pool:
                    say(f"warm-up: {name}")
                    _ask_contender(plan, name, spread_evenly(plan.paths, WARM_UP_IMAGES))
        for index in range(plan.rounds):
            measured["rounds"].append(measure_round(plan, index))
            measured["complete"] = index + 1 == plan.rounds
            results = save_results(output, measured)
            say(f"round {index + 1} of {plan.rounds} finished")
    except KeyboardInterrupt:
        return results, False
    return results, True


def remeasure_costs(plan: Plan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Measure the costs alone, write them into a results file with when and at which commit, and return it all."""
    measured = load_results(output)
    del measured["summary"]
    measured["costs"] = measure_costs(plan)
    measured["costs_provenance"] = {
        key: provenance[key] for key in ("date", "commit", "uncommitted_changes", "command")
    }
    return save_results(output, measured)


def measure_costs(plan: Plan) -> list[dict[str, Any]]:
    """Return the costs over as many runs as there are rounds: medians, and the `factors` of all runs."""
    runs = []
    for index in range(plan.rounds):
        say(f"costs {index + 1} of {plan.rounds}")
        runs.append(plan.ask({"kind": "costs", "source": plan.source, "model": plan.model})["costs"])
    return [_combine(rows) for rows in zip(*runs, strict=True)]


def _combine(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    medians = {key: statistics.median(row[key] for row in rows) for key in ("less", "more", "factor")}
    return {**rows[0], **medians, "factors": [row["factor"] for row in rows]}


def measure_round(plan: Plan, index: int) -> dict[str, Any]:
    """Return one round: the order, each contender's run, the limits, the agreement with naive's labels."""
    order = rotate([*plan.contenders, LIMITS], index)
    answers: dict[str, Any] = {}
    for name in order:
        say(f"round {index + 1} of {plan.rounds}: {name}")
        if name == LIMITS:
            answers[name] = _ask_limits(plan)
        else:
            answers[name] = _ask_contender(plan, name, plan.images(name))
    labels = {name: answers[name]["labels"] for name in plan.contenders}
    return {
        "order": order,
        "runs": {name: answers[name]["run"] for name in plan.contenders},
        "limits": answers[LIMITS],
        "agreement": {name: agreement(labels[name], labels["naive"]) for name in plan.contenders},
        "breakdown": answers["naive"]["breakdown"],
    }


def agreement(labels: dict[str, str], reference: dict[str, str]) -> dict[str, int]:
    """Return how many images were labelled by both, and how many of these got `equal` labels."""
    both = labels.keys() & reference.keys()
    return {"compared": len(both), "equal": sum(labels[image] == reference[image] for image in both)}


def measure_memory(plan: Plan) -> dict[str, Any] | None:
    """Return the peak memory in bytes of the last pool on four times its images, the same again and again."""
    pools = [name for name in plan.contenders if CONTENDERS[name].is_pool]
    if not pools:
        return None
    name = pools[-1]
    paths = plan.images(name) * MORE_IMAGES
    say(f"memory: {name} on {len(paths)} images")
    run = _ask_contender(plan, name, paths)["run"]
    return {"contender": name, "images": run["rows"], "peak_memory_bytes": run["peak_memory_bytes"]}


def _ask_contender(plan: Plan, name: str, paths: list[str]) -> dict[str, Any]:
    return plan.ask({"kind": "contender", "name": name, "source": paths, "model": plan.model})


def _ask_limits(plan: Plan) -> dict[str, Any]:
    return plan.ask(
        {
            "kind": LIMITS,
            "source": spread_evenly(plan.paths, DECODED_IMAGES),
            "model": plan.model,
            "dtypes": sorted({CONTENDERS[name].dtype for name in plan.contenders}, reverse=True),
            "seconds": 0 if plan.quick else FORWARD_SECONDS,
            "one_process_only": plan.quick,
        }
    )


def say(what: str) -> None:
    """Print to stderr what begins now, with the time."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()
