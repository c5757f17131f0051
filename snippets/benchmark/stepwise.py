"""What each change gains: the steps from the naive to the optimized pipeline, run in turn, round by round."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snippets.benchmark.harness import WARM_UP_IMAGES, Plan, agreement, rotate, say, spread_evenly
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.provenance import Hardware, read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, SCHEMA, check_rounds, load_json, write_json
from snippets.benchmark.summary import MEASURED, Round, Spread, ratio, spread
from snippets.checkpoint import check_checkpoint
from snippets.command import positive
from snippets.fundamentals.stepwise import STEPS
from snippets.samples import images_and_model

STEPWISE = FOLDER / "stepwise.json"
IN_FOURS = ("naive", "kept")  # their batches are of four, so that fewer images have as many of them
STEP_FIELDS = {key: FIELDS[key] for key in ("schema", "complete", "images", "provenance", "rounds")}
STEP_ROUND = {"order": list, "runs": {"naive": dict}, "agreement": {"naive": dict}}


@dataclass
class StepPlan(Plan):
    """What to measure: steps in place of contenders. Those `IN_FOURS` get a third of the images."""

    def images(self, name: str) -> list[str]:
        """Return the images of a step, spread evenly over the source."""
        share = max(1, self.limit // 3) if name in IN_FOURS and not self.quick else self.limit
        return spread_evenly(self.paths, share)


def steps_for(hardware: Hardware) -> list[str]:
    """Return the names of the steps whose precision the hardware computes by itself, not by emulation."""
    return [name for name, step in STEPS.items() if step.dtype == "float32" or hardware.has_bfloat16]


def measure_steps(plan: StepPlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run the steps of a plan in turn, write the file after each round, and return what is in it.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "images": {name: len(plan.images(name)) for name in plan.contenders},
        "provenance": provenance,
        "rounds": [],
    }
    if not plan.quick:
        for name in (plan.contenders[0], plan.contenders[-1]):
            say(f"warm-up: {name}")
            _ask(plan, name, spread_evenly(plan.paths, WARM_UP_IMAGES))
    for index in range(plan.rounds):
        order = rotate(plan.contenders, index)
        answers = {}
        for name in order:
            say(f"round {index + 1} of {plan.rounds}: {name}")
            answers[name] = _ask(plan, name, plan.images(name))
        labels = {name: answers[name]["labels"] for name in plan.contenders}
        measured["rounds"].append(
            {
                "order": order,
                "runs": {name: answers[name]["run"] for name in plan.contenders},
                "agreement": {name: agreement(labels[name], labels["naive"]) for name in plan.contenders},
            }
        )
        measured["complete"] = index + 1 == plan.rounds
        check_steps(measured)
        write_json(output, measured)
    return measured


def _ask(plan: StepPlan, name: str, paths: list[str]) -> dict[str, Any]:
    return plan.ask({"kind": "step", "name": name, "source": paths, "model": plan.model})


def check_steps(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each step is one that there is."""
    check_rounds(results, STEP_FIELDS, STEP_ROUND)
    for one in results["rounds"]:
        if not (one["runs"].keys() == one["agreement"].keys() == results["images"].keys() <= STEPS.keys()):
            raise ValueError("has rounds of other steps than there are.")


def load_steps(path: Path = STEPWISE) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_steps)


def summarize_steps(results: dict[str, Any]) -> dict[str, dict[str, Spread | None]]:
    """Return the spreads of each step over the rounds: what was measured, and the ratios within a round.

    `gain` is the rate in steady state over that of the step before, `over_naive` over the first, `agreement` the
    share of images (0 to 1) with naive's label.
    """
    rounds: list[Round] = results["rounds"]
    names = list(results["images"])

    def over_rounds(value: Callable[[Round], float | None]) -> Spread | None:
        return spread([value(one) for one in rounds])

    def rate_over(name: str, other: str) -> Spread | None:
        key = "steady_rows_per_second"
        return over_rounds(lambda one: ratio(one["runs"][name][key], one["runs"][other][key]))

    def of_step(name: str, before: str) -> dict[str, Spread | None]:
        found = {key: over_rounds(lambda one, key=key: one["runs"][name][key]) for key in MEASURED}  # type: ignore[misc]
        found["gain"] = rate_over(name, before) if name != before else None
        found["over_naive"] = rate_over(name, "naive")
        found["agreement"] = over_rounds(
            lambda one: one["agreement"][name]["equal"] / one["agreement"][name]["compared"]
        )
        return found

    return {name: of_step(name, before) for before, name in zip([names[0], *names], names, strict=False)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the steps and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = MeasuringParser("snippets.benchmark.stepwise", __doc__, STEPWISE, "few images, no warm-up")
    add = parser.add_argument
    add("--rounds", type=positive, help="default: 5, and 1 with --quick")
    add("--limit", type=positive, help="images of a run; the first steps get a third (default: 192)")
    options = parser.read(arguments)
    hardware = read_hardware()
    limit, rounds = options.limit or (32 if options.quick else 192), options.rounds or (1 if options.quick else 5)
    with parser.measuring(options.output):
        source, model = images_and_model()
        check_checkpoint(model)
        plan = StepPlan(source, model, steps_for(hardware), rounds, limit, options.quick)
        provenance = read_provenance(hardware, source, model, arguments, "snippets.benchmark.stepwise")
        measure_steps(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
