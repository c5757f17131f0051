"""What waits before a slow model over time, with a limit and without: the queues of each operator, as a figure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snippets.benchmark.figures import INNER, MARGIN, PAGE, Palette, _at, _svg, _text
from snippets.benchmark.formats import count, factor, seconds
from snippets.benchmark.harness import say
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, NUMBER, SCHEMA, check_head, load_json, write_json
from snippets.benchmark.tables import format_table, provenance_line

QUEUES = FOLDER / "queues.json"
RUNS = {"unlimited": "no limit", "limited": "a limit"}
OPERATORS = ("read", "flip", "model")  # as `queue_runs` names them
QUEUED = {"read": "read, not yet flipped", "flip": "flipped, not yet classified"}
LEAST_IN_FLIGHT = 2 * len(OPERATORS)  # half of a limit is reserved in equal parts: a block for each operator
SERIES = {name: list for name in OPERATORS}
RUN_FIELDS = {
    "rows": int,
    "seconds": NUMBER,
    "at_s": list,
    "queued": SERIES,
    "budget_blocks": SERIES,
    "used_blocks": list,
}
QUEUE_FIELDS = {
    **{key: FIELDS[key] for key in ("schema", "complete", "provenance")},
    "blocks": int,
    "in_flight": int,
    "wait_s": NUMBER,
    "runs": {name: RUN_FIELDS for name in RUNS},
}
PANEL = 88  # height of a panel's curves


def ask_for_queues(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own answers, which `queue_runs` is."""
    return ask(request, module="snippets.benchmark.queue_runs")


@dataclass(frozen=True)
class QueuePlan:
    """What to run: `blocks`, of which `in_flight` may wait in the limited run, for a model of `wait_s` a block."""

    blocks: int
    in_flight: int
    wait_s: float
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_for_queues

    def __post_init__(self) -> None:
        """Raise ValueError where the limit is too small for the operators, or limits nothing."""
        if not LEAST_IN_FLIGHT <= self.in_flight < self.blocks:
            raise ValueError(
                f"The limit must be at least {LEAST_IN_FLIGHT} blocks, and less than the {self.blocks} of the run."
            )


def measure_queues(plan: QueuePlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run the pipeline without a limit and with one, write the file, and return what is in it."""
    runs = {}
    for name, title in RUNS.items():
        say(f"queues: {title}")
        in_flight = plan.in_flight if name == "limited" else None
        request = {"kind": "queues", "blocks": plan.blocks, "in_flight": in_flight, "wait_s": plan.wait_s}
        runs[name] = plan.ask(request)
    measured = {
        "schema": SCHEMA,
        "complete": True,
        "provenance": provenance,
        "blocks": plan.blocks,
        "in_flight": plan.in_flight,
        "wait_s": plan.wait_s,
        "runs": runs,
    }
    check_queues(measured)
    write_json(output, measured)
    return measured


def check_queues(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each series has a value a change."""
    check_head(results, QUEUE_FIELDS)
    for name, run in results["runs"].items():
        each = [run["used_blocks"], *run["queued"].values(), *run["budget_blocks"].values()]
        if not run["at_s"] or {len(values) for values in each} != {len(run["at_s"])}:
            raise ValueError(f"has series of different lengths, or none, in runs.{name}.")


def load_queues(path: Path = QUEUES) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_queues)


def most_waiting(run: dict[str, Any]) -> float:
    """Return the most blocks that waited before the flip and before the model together, at any time."""
    return float(max(map(sum, zip(*(run["queued"][name] for name in QUEUED), strict=True))))


def queues_table(results: dict[str, Any]) -> str:
    """Return a row a run: the most blocks that waited before each operator, that were in use, and the seconds."""
    rows = []
    for name, title in RUNS.items():
        run = results["runs"][name]
        limit = f" of {results['in_flight']} blocks" if name == "limited" else ""
        waiting = [count(max(run["queued"][operator])) for operator in QUEUED]
        rows.append([title + limit, *waiting, f"{max(run['used_blocks']):.1f}", seconds(run["seconds"])])
    head = ["run", "most blocks before the flip", "before the model", "in the object store", "seconds"]
    return format_table(head, rows)


def queue_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: the table, where it comes from, and the numbers."""
    unlimited, limited = (results["runs"][name] for name in RUNS)
    return {
        "table": queues_table(results),
        "provenance-line": provenance_line({**results, "rounds": [0]}),
        "blocks": count(results["blocks"]),
        "in-flight": count(results["in_flight"]),
        "most-unlimited": count(most_waiting(unlimited)),
        "most-limited": count(most_waiting(limited)),
        "seconds-limited": factor(limited["seconds"] / unlimited["seconds"]),
    }


def _steps(at_s: Sequence[float], values: Sequence[float], across: float, up: float, bottom: float) -> str:
    """Return a path that keeps each value until the next; `across` and `up` are lengths a second and a unit."""
    parts, before = list[str](), None
    for at, value in zip(at_s, values, strict=True):
        if value != before:
            to, down = ("H", "V") if parts else ("M", " ")
            parts.append(f"{to}{_at(at * across)}{down}{bottom - value * up:.1f}")
            before = value
    return "".join([*parts, f"H{_at(at_s[-1] * across)}"])


def draw_queues(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return what waits over time without a limit and with one, on one scale, and the budgets of the second."""
    runs = results["runs"]
    longest = max(run["at_s"][-1] for run in runs.values()) or 1.0
    most = max(max(run["queued"][name]) for run in runs.values() for name in QUEUED) or 1
    widest = max(max(values) for values in runs["limited"]["budget_blocks"].values()) or 1
    inks = {"read": colours.c, "flip": colours.a, "model": colours.d}
    panels = [
        *((f"{title.capitalize()}: blocks that wait", runs[name], "queued", most) for name, title in RUNS.items()),
        ("A limit: blocks that each may still begin", runs["limited"], "budget_blocks", widest),
    ]
    shapes, said, y = [], [], 0.0
    for title, run, key, top in panels:
        bottom = y + 26 + PANEL
        shapes.append(_text(MARGIN, y + 16, title, colours, 'font-weight="600"'))
        box = f'x="{MARGIN}" y="{y + 26:g}" width="{INNER}" height="{PANEL}"'
        shapes.append(f'<rect {box} fill="{colours.fill}"/>')
        highest = max(max(run[key][name]) for name in (QUEUED if key == "queued" else OPERATORS))
        shapes.append(_text(MARGIN + INNER, y + 16, f"at most {highest:g}", colours, 'text-anchor="end"'))
        for name in QUEUED if key == "queued" else OPERATORS:
            path = _steps(run["at_s"], run[key][name], INNER / longest, (PANEL - 4) / top, bottom)
            shapes.append(f'<path d="{path}" fill="none" stroke="{inks[name]}" stroke-width="2"/>')
        said.append(f"{title}: at most {highest:g}")
        y = bottom + 12
    shapes.append(_text(MARGIN, y + 6, "0 s", colours))
    shapes.append(_text(MARGIN + INNER, y + 6, f"{seconds(longest)} s", colours, 'text-anchor="end"'))
    for index, (name, words) in enumerate({**QUEUED, "model": "the model (budget only)"}.items()):
        row = y + 22 + 24 * index
        shapes.append(f'<rect x="{MARGIN}" y="{row:g}" width="20" height="16" fill="{inks[name]}"/>')
        shapes.append(_text(MARGIN + 28, row + 13, words, colours))
    title = "Blocks in the queues over time, without a limit and with one"
    return _svg("queues", title, ". ".join(said) + ".", int(y + 98), shapes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the queues and write the file; exit with 1 where a run failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = MeasuringParser(
        "snippets.benchmark.queues", __doc__, QUEUES, "few blocks and a model that waits less"
    )
    options = parser.read(arguments)
    what = "blocks of 1 MiB, made in memory"
    plan = QueuePlan(16, 8, 0.01) if options.quick else QueuePlan(96, 16, 0.1)
    with parser.measuring(options.output):
        provenance = read_provenance(read_hardware(), what, "a timed wait", arguments, "snippets.benchmark.queues")
        measure_queues(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
