"""Beyond one machine: a real cluster of 1 to 8 nodes, the simulation calibrated on it, and its answers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snippets.architecture import simulation
from snippets.architecture.simulation import (
    ASSUMPTIONS,
    DESIGNS,
    Answer,
    Cluster,
    Machine,
    design,
    simulate,
    sweep,
)
from snippets.benchmark.figures import INNER, MARGIN, PAGE, Palette, _at, _svg, _text
from snippets.benchmark.formats import MISSING, count, factor, median, percent, seconds, with_range
from snippets.benchmark.harness import say
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, NUMBER, SCHEMA, check_rounds, load_json, write_json
from snippets.benchmark.summary import Round, Spread, spread
from snippets.benchmark.tables import format_table, provenance_line
from snippets.command import positive

SCALING = FOLDER / "scaling.json"
WAIT_S = 0.25  # that stands for a batch on an accelerator


@dataclass(frozen=True)
class Planned:
    """A run: its nodes, its batches in all, the wait that stands for one; `slow` nodes take twice as long.

    `change`: a node joins, or one is killed, after a quarter of the batches. `calibrates` what it is for.
    """

    title: str
    nodes: int
    batches: int
    wait_s: float = WAIT_S
    actors_a_node: int = 1
    slow: int = 0
    change: str | None = None
    calibrates: str | None = None

    @property
    def actors(self) -> int:
        """The actors of the pool: where a node joins, one more than there is room for before."""
        return (self.nodes + (self.change == "join")) * self.actors_a_node


NODES = (1, 2, 4, 8)
WEAK, STRONG = 60, 128  # batches a node, and in all


def _weak(nodes: int) -> Planned:
    calibrates = "handover_s" if nodes == 1 else None
    return Planned("weak scaling", nodes, WEAK * nodes, calibrates=calibrates)


PLAN: dict[str, Planned] = {
    "weak-1": _weak(1),
    "strong-1": Planned("strong scaling", 1, STRONG),
    "weak-2": _weak(2),
    "strong-2": Planned("strong scaling", 2, STRONG),
    "join": Planned("a node joins", 2, 120, change="join"),
    "uneven": Planned("one node of half the speed", 3, 120, slow=1),
    "weak-4": _weak(4),
    "strong-4": Planned("strong scaling", 4, STRONG),
    "busy-4": Planned("no wait", 4, 800, wait_s=0),
    # Long enough for Ray to take the node for dead before the end: until then what it had is nobody's.
    "leave": Planned("a node is killed", 4, 280, change="leave"),
    "weak-8": _weak(8),
    "strong-8": Planned("strong scaling", 8, STRONG),
    "short-8": Planned("short batches", 8, 480, wait_s=0.1),
    "busy-8": Planned("no wait", 8, 1600, wait_s=0, calibrates="driver_task_s"),
    "busy-16": Planned("no wait, two actors a node", 8, 1600, wait_s=0, actors_a_node=2),
}
RUN_FIELDS = {
    **{key: int for key in ("batches", "ids", "rows", "tasks", "steps")},
    **{key: NUMBER for key in ("wait_s", "seconds", "executor_s", "process_s")},
    "changed_s": (*NUMBER, type(None)),
    "nodes": list,
    "ends_s": list,
    "samples": dict,
}
SCALING_FIELDS = {
    **{key: FIELDS[key] for key in ("schema", "complete", "provenance", "rounds")},
    "calibration": {name: NUMBER for name in simulation.CALIBRATED},
    "simulated": {"designs": dict, "preemptions": dict},
}


def ask_for_round(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own answers, which `scaling_runs` is."""
    return ask(request, module="snippets.benchmark.scaling_runs")


def calibrate(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the medians over the rounds of what the simulation takes from them.

    `handover_s` is what a batch takes beyond its wait on one node. `driver_task_s` is the time of a task where the
    batches take none: the driver's, and that of workers which share its cores.
    """

    def handover(run: dict[str, Any]) -> float:
        return float(run["seconds"] / run["batches"] - run["wait_s"])

    def driver(run: dict[str, Any]) -> float:
        return float(run["seconds"] / run["batches"])

    return {
        "handover_s": max(0.0, statistics.median(handover(one["runs"]["weak-1"]) for one in rounds)),
        "driver_task_s": statistics.median(driver(one["runs"]["busy-8"]) for one in rounds),
    }


def predict(planned: Planned, run: dict[str, Any], calibration: dict[str, float]) -> float:
    """Return the seconds that the simulation says of a run. When a node joined, or was killed, is given to it."""
    forward_s = run["wait_s"] + calibration["handover_s"]
    actors = planned.nodes * planned.actors_a_node
    machines = [
        Machine(forward_s + (run["wait_s"] if index < planned.slow * planned.actors_a_node else 0))
        for index in range(actors)
    ]
    if planned.change == "join":
        machines.append(Machine(forward_s, joins_s=max(node["began_s"] for node in run["nodes"])))
    elif planned.change == "leave":
        machines[-1] = Machine(forward_s, leaves_s=run["changed_s"])
    return simulate(Cluster(machines, calibration["driver_task_s"]), run["batches"]).seconds


def simulate_designs(calibration: dict[str, float], most: int, images: float) -> dict[str, Any]:
    """Return each design's answers for 1, 2, 4 ... nodes, and the last one's on nodes that are taken away."""
    given = {"images": images}
    best = design(list(DESIGNS)[-1]) | given
    rates = {"never": 0.0, "every 20 hours": 0.05, "every 5 hours": 0.2, "every hour": 1.0}
    designs = {}
    for name in DESIGNS:
        say(f"simulating: {name}")
        designs[name] = [asdict(each) for each in sweep(design(name) | given, calibration, most)]
    preempted = {
        name: asdict(simulation.answer(most, best | {"preemptions": a_hour}, calibration))
        for name, a_hour in rates.items()
    }
    return {"designs": designs, "preemptions": preempted}


@dataclass(frozen=True)
class ScalingPlan:
    """What to measure: how many rounds, which part of the batches and waits, and nodes and images to simulate."""

    rounds: int
    scale: float = 1.0
    most: int = 1024
    images: float = 1e9
    names: tuple[str, ...] = tuple(PLAN)
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_for_round


def measure_scaling(plan: ScalingPlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run the rounds, write the file after each, simulate, and return what is in the file.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    rounds: list[Round] = []
    for index in range(plan.rounds):
        say(f"round {index + 1} of {plan.rounds}: {len(plan.names)} runs on 1 to {max(NODES)} nodes")
        rounds.append(plan.ask({"kind": "round", "names": list(plan.names), "scale": plan.scale}))
        calibration = calibrate(rounds)
        measured = {
            "schema": SCHEMA,
            "complete": index + 1 == plan.rounds,
            "provenance": provenance,
            "rounds": rounds,
            "calibration": calibration,
            "simulated": {"designs": {}, "preemptions": {}},
        }
        if measured["complete"]:
            measured["simulated"] = simulate_designs(calibration, plan.most, plan.images)
        check_scaling(measured)
        write_json(output, measured)
    return measured


def resimulate(path: Path, most: int = 1024, images: float = 1e9) -> dict[str, Any]:
    """Simulate again from the rounds in a results file, write it, and return what is in it."""
    measured = load_scaling(path)
    measured["calibration"] = calibrate(measured["rounds"])
    measured["simulated"] = simulate_designs(measured["calibration"], most, images)
    write_json(path, measured)
    return measured


def check_scaling(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and the calibration is theirs."""
    check_rounds(results, SCALING_FIELDS, {"runs": dict.fromkeys(PLAN, dict)}, RUN_FIELDS)
    if results["calibration"] != calibrate(results["rounds"]):
        raise ValueError("has a calibration that does not follow from its rounds: it was edited.")


def load_scaling(path: Path = SCALING) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_scaling)


def over_rounds(results: dict[str, Any], value: Callable[[dict[str, Any]], float | None]) -> Spread | None:
    """Return the spread over the rounds of a value of their runs, which it takes by name."""
    return spread([value(one["runs"]) for one in results["rounds"]])


def efficiency(results: dict[str, Any], kind: str, nodes: int) -> Spread | None:
    """Return the speed of a node among so many over that of one alone, within a round: 1 is linear scaling."""

    def a_node(run: dict[str, Any], among: int) -> float:
        return float(run["batches"] / run["seconds"] / among)

    return over_rounds(results, lambda runs: a_node(runs[f"{kind}-{nodes}"], nodes) / a_node(runs[f"{kind}-1"], 1))


def driver_ms(run: dict[str, Any], key: str) -> float:
    """Return milliseconds of CPU that a task takes of the driver: of its loop's thread, or of all its threads."""
    return float(1e3 * run[key] / run["tasks"])


def rate_around(run: dict[str, Any], is_after: bool) -> float:
    """Return batches a second before a node joined or was killed, or after it, from when the batches ended."""
    ends, changed = run["ends_s"], run["changed_s"]
    joined = max(node["began_s"] for node in run["nodes"])
    from_s = max(changed, joined) if is_after else 0
    to_s = ends[-1] if is_after else changed
    return float(sum(from_s < end <= to_s for end in ends) / (to_s - from_s))


def predictions(results: dict[str, Any]) -> dict[str, tuple[Spread, Spread, Spread]]:
    """Return measured and predicted seconds, and the error (of 1), of each run that nothing was calibrated on."""
    found = {}
    for name, planned in PLAN.items():
        if planned.calibrates:
            continue
        measured = [one["runs"][name]["seconds"] for one in results["rounds"]]
        predicted = [predict(planned, one["runs"][name], results["calibration"]) for one in results["rounds"]]
        errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
        spreads = (spread(measured), spread(predicted), spread(errors))
        found[name] = tuple(each for each in spreads if each)
    return found  # type: ignore[return-value]


def efficiency_table(results: dict[str, Any]) -> str:
    """Return a row a number of nodes: seconds and efficiency of weak and of strong scaling."""
    rows = []
    for nodes in NODES:
        row = [count(nodes)]
        for kind in ("weak", "strong"):
            name = f"{kind}-{nodes}"
            took = over_rounds(results, lambda runs, name=name: runs[name]["seconds"])  # type: ignore[misc]
            row += [median(took, seconds), with_range(efficiency(results, kind, nodes), factor)]
        rows.append(row)
    head = ["nodes", "weak scaling, s", "efficiency", "strong scaling, s", "efficiency"]
    return format_table(head, rows)


def membership_table(results: dict[str, Any]) -> str:
    """Return the runs in which the cluster changes, or is uneven: rows, and batches a second."""
    rows = []
    for name in ("join", "leave"):
        runs = [one["runs"][name] for one in results["rounds"]]
        before, after = (spread([rate_around(run, later) for run in runs]) for later in (False, True))
        rows.append(
            [
                PLAN[name].title,
                count(runs[0]["batches"]),
                count(min(run["ids"] for run in runs)),
                count(max(run["rows"] - run["ids"] for run in runs)),
                with_range(before, lambda value: f"{value:.1f}"),
                with_range(after, lambda value: f"{value:.1f}"),
            ]
        )
    head = ["change", "batches", "came out", "came out twice", "batches/s before", "after"]
    return format_table(head, rows)


def uneven_table(results: dict[str, Any]) -> str:
    """Return what the nodes of the uneven run did, the slow one first."""
    rows = []
    for is_slow in (True, False):
        done = over_rounds(
            results,
            lambda runs, is_slow=is_slow: statistics.mean(  # type: ignore[misc]
                node["batches"] for node in runs["uneven"]["nodes"] if node["is_slow"] == is_slow
            ),
        )
        rows.append(["half the speed" if is_slow else "each of the others", with_range(done, count)])
    return format_table(["node", "batches"], rows)


def driver_table(results: dict[str, Any]) -> str:
    """Return what a task takes of the driver, by pool, where it waits and where it does not."""
    rows = []
    for name in ("weak-1", "weak-8", "busy-4", "busy-8", "busy-16"):
        planned = PLAN[name]
        cells = [
            with_range(over_rounds(results, lambda runs, name=name, key=key: driver_ms(runs[name], key)), factor)  # type: ignore[misc]
            for key in ("executor_s", "process_s")
        ]
        tasks = over_rounds(results, lambda runs, name=name: runs[name]["tasks"] / runs[name]["seconds"])  # type: ignore[misc]
        steps = over_rounds(results, lambda runs, name=name: runs[name]["steps"] / runs[name]["tasks"])  # type: ignore[misc]
        rows.append([planned.title, count(planned.actors), median(tasks, seconds), median(steps, factor), *cells])
    head = ["run", "actors", "tasks/s", "steps a task", "CPU ms a task: the loop", "the whole driver"]
    return format_table(head, rows)


STEPS_SHOWN = 7


def samples_table(results: dict[str, Any]) -> str:
    """Return what the loop was doing when looked at, in the run that keeps it busiest."""
    total: dict[str, int] = {}
    for one in results["rounds"]:
        for name, seen in one["runs"]["busy-8"]["samples"].items():
            total[name] = total.get(name, 0) + seen
    most = sorted(total, key=lambda name: -total[name])[:STEPS_SHOWN]
    looks = sum(total.values())
    rows = [[f"`{name}`", percent(total[name] / looks)] for name in most]
    return format_table(["the loop is in", "of the looks, %"], rows)


def validation_table(results: dict[str, Any]) -> str:
    """Return measured against predicted seconds of the runs that nothing was calibrated on."""
    rows = [
        [
            PLAN[name].title,
            count(PLAN[name].nodes),
            with_range(measured, seconds),
            median(predicted, seconds),
            f"{percent(error['median'])} %",
        ]
        for name, (measured, predicted, error) in predictions(results).items()
    ]
    return format_table(["run", "nodes", "measured, s", "simulated, s", "error"], rows)


def median_error(results: dict[str, Any]) -> float:
    """Return the median error (of 1) over all runs that nothing was calibrated on."""
    return float(statistics.median(error["median"] for _, _, error in predictions(results).values()))


def answers_of(results: dict[str, Any], name: str) -> list[Answer]:
    """Return the answers of a design, by their number of nodes."""
    return [Answer(**each) for each in results["simulated"]["designs"].get(name, [])]


def hours(value: float) -> str:
    """Return seconds as hours."""
    return seconds(value / 3600)


def designs_table(results: dict[str, Any]) -> str:
    """Return for each design where it stops, what it waits for then, and time and cost on the most nodes."""
    rows = []
    for name in DESIGNS:
        answers = answers_of(results, name)
        if not answers:
            continue
        stop, last = simulation.stops_at(answers), answers[-1]
        cheapest = min(answers, key=lambda each: each.cost)
        rows.append(
            [
                name,
                (stop or last).limit,
                count(stop.nodes) if stop else "none",
                hours(last.seconds),
                f"{last.cost:,.0f}",
                f"{cheapest.cost:,.0f}",
            ]
        )
    most = max((each.nodes for name in DESIGNS for each in answers_of(results, name)), default=0)
    head = ["design", "busiest at that number", "efficiency below 0.9 at", f"hours on {most} nodes"]
    return format_table([*head, "dollars there", "fewest dollars"], rows, words=2)


def preemptions_table(results: dict[str, Any]) -> str:
    """Return what the last design takes on nodes that are taken away."""
    rows = [
        [name, count(each["preemptions"]), hours(each["seconds"]), f"{each['cost']:,.0f}"]
        for name, each in results["simulated"]["preemptions"].items()
    ]
    return format_table(["a node is taken away", "preemptions", "hours", "dollars, at the same price"], rows)


def assumptions_table() -> str:
    """Return the assumptions with their sources, the measured ones last."""
    rows = []
    for given in ASSUMPTIONS:
        source = given["source"]
        before, _, address = source.rpartition("https://")
        linked = f"{before}[source](https://{address})" if address and "https://" in source else source
        rows.append([f"`{given['name']}`", given["meaning"], linked, f"{given['value']:,g} {given['unit']}"])
    return format_table(["name", "what it is", "from", "value"], rows, words=3)


def scaling_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers that pages include, by the name of their section."""
    calibration = results["calibration"]
    busiest = over_rounds(results, lambda runs: runs["busy-8"]["tasks"] / runs["busy-8"]["seconds"])
    found = {
        "weak-efficiency": median(efficiency(results, "weak", max(NODES)), factor),
        "strong-efficiency": median(efficiency(results, "strong", max(NODES)), factor),
        "driver-ms": factor(1e3 * calibration["driver_task_s"]),
        "handover-ms": factor(1e3 * calibration["handover_s"]),
        "tasks-a-second": median(busiest, lambda value: f"{value:.0f}"),
        "median-error": percent(median_error(results)),
        "worst-error": percent(max(error["median"] for _, _, error in predictions(results).values())),
    }
    for name in DESIGNS:
        answers, key = answers_of(results, name), name.replace(" ", "-").replace(",", "")
        stop = simulation.stops_at(answers) if answers else None
        found[f"{key}-stops"] = MISSING if not answers else count(stop.nodes) if stop else "none of these"
        found[f"{key}-hours"] = hours(answers[-1].seconds) if answers else MISSING
        found[f"{key}-dollars"] = f"{answers[-1].cost:,.0f}" if answers else MISSING
    return found


def scaling_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return the tables and numbers that pages include, by the name of their section."""
    return {
        "efficiency": efficiency_table(results),
        "membership": membership_table(results),
        "uneven": uneven_table(results),
        "driver": driver_table(results),
        "samples": samples_table(results),
        "validation": validation_table(results),
        "designs": designs_table(results),
        "preemptions": preemptions_table(results),
        "assumptions": assumptions_table(),
        "provenance-line": provenance_line(results),
        **scaling_numbers(results),
    }


def draw_designs(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return the efficiency of each design against the number of nodes, which doubles from mark to mark."""
    height, top = 200, 16
    inks = (colours.b, colours.d, colours.c, colours.a, colours.text, colours.line)
    marks = ("", "6 3", "2 3", "", "6 3", "")
    answers = {name: found for name in DESIGNS if (found := answers_of(results, name))}
    most = max((each.nodes for found in answers.values() for each in found), default=1)
    doublings = max(1, most.bit_length() - 1)

    def x(nodes: int) -> float:
        return (nodes.bit_length() - 1) / doublings * INNER

    shapes, said = [], []
    for share in (0, 0.5, 1):
        y = top + height * (1 - share)
        shapes.append(f'<path d="M{MARGIN} {y:g} h{INNER}" stroke="{colours.line}" stroke-width="1"/>')
        shapes.append(_text(MARGIN, y - 4, f"{share:g}", colours))
    for nodes in [2**power for power in range(0, doublings + 1, 2)]:
        anchor = "start" if nodes == 1 else "end" if nodes == most else "middle"
        label = f"{nodes} node" if nodes == 1 else str(nodes)
        shapes.append(_text(float(_at(x(nodes))), top + height + 18, label, colours, f'text-anchor="{anchor}"'))
    for index, (name, found) in enumerate(answers.items()):
        points = " ".join(
            f"{_at(x(each.nodes))},{top + height * (1 - simulation.efficiency(each, found[0])):.1f}"
            for each in found
        )
        dash = f' stroke-dasharray="{marks[index]}"' if marks[index] else ""
        line = f'fill="none" stroke="{inks[index]}" stroke-width="2.5"{dash}'
        y = top + height + 44 + 22 * index
        shapes.append(f'<polyline points="{points}" {line}/>')
        shapes.append(f'<path d="M{MARGIN} {y} h36" {line}/>')
        shapes.append(_text(MARGIN + 46, y + 5, name, colours))
        stop = simulation.stops_at(found)
        said.append(f"{name}: below 0.9 at {stop.nodes} nodes" if stop else f"{name}: 0.9 or more on all")
    title = "Efficiency of each design against the number of nodes"
    return _svg("scaling", title, ". ".join(said) + ".", top + height + 44 + 22 * len(answers), shapes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, simulate and write the file; exit with 1 where a run failed, 2 for a file that cannot be read."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = MeasuringParser("snippets.benchmark.scaling", __doc__, SCALING, "few and short batches")
    add = parser.add_argument
    add("--rounds", type=positive, help="default: 2, and 1 with --quick")
    add("--simulate", action="store_true", help="measure nothing: simulate again from the rounds in the file")
    options = parser.read(arguments)
    rounds = options.rounds or (1 if options.quick else 2)
    plan = ScalingPlan(rounds, scale=0.1, most=16, images=1e5) if options.quick else ScalingPlan(rounds)
    with parser.measuring(options.output):
        if options.simulate:
            resimulate(options.output, plan.most, plan.images)
        else:
            model = f"a timed wait of {WAIT_S:g} s a batch"
            hardware = read_hardware()
            provenance = read_provenance(hardware, "none", model, arguments, "snippets.benchmark.scaling")
            measure_scaling(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
