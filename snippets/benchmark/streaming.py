"""What a stream takes at 1, 4 and 16 times the data: peak memory, peak object store, and the first row's time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snippets.benchmark.figures import INNER, MARGIN, PAGE, Palette, _at, _svg, _text
from snippets.benchmark.formats import count, factor, gigabytes, kilobytes, median, seconds, with_range
from snippets.benchmark.harness import rotate, say
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, NUMBER, SCHEMA, check_rounds, load_json, write_json
from snippets.benchmark.summary import Round, Spread, ratio, spread
from snippets.benchmark.tables import format_table, provenance_line
from snippets.command import positive

STREAMING = FOLDER / "streaming.json"
SIDE = 1448  # pixels: a block of four images is 8 MiB, beside which the read task that makes it is small
BLOCK_BYTES = 4 * SIDE**2
FREED = {"free_objects_ms": 50}  # in place of the second that Ray waits, in which a second's blocks pile up
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {  # name -> what it is called, times the data, its options
    "1x": ("streamed", 1, FREED),
    "4x": ("streamed, 4 times the data", 4, FREED),
    "16x": ("streamed, 16 times the data", 16, FREED),
    "default": ("the same, freed once a second", 16, {}),
    "materialized": ("materialized first", 1, {**FREED, "materialize": True}),
}
MEASURED = (
    "seconds",
    "first_row_seconds",
    "reads_before_first",
    "peak_memory_bytes",
    "peak_store_bytes",
    "read_tasks_bytes",
)
STREAM_FIELDS = {
    **{key: FIELDS[key] for key in ("schema", "complete", "provenance", "rounds")},
    "blocks": dict,
    "in_flight": int,
    "wait_s": NUMBER,
    "timeline": list,
}
RUN_FIELDS = {"rows": int, **{key: NUMBER for key in MEASURED}}


def ask_for_stream(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own answers, which `streaming_runs` is."""
    return ask(request, module="snippets.benchmark.streaming_runs")


@dataclass(frozen=True)
class StreamPlan:
    """What to measure: `blocks` at 1x, of which `in_flight` may wait, for a model that takes `wait_s` a block."""

    blocks: int
    in_flight: int
    wait_s: float
    rounds: int
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_for_stream

    def __post_init__(self) -> None:
        """Raise ValueError where the smallest run is too small to fill what may be in flight."""
        if self.blocks < 4 * self.in_flight:
            raise ValueError(
                f"The smallest run needs at least {4 * self.in_flight} blocks, four times those in flight."
            )


def measure_streams(plan: StreamPlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run the streams in turn, write the file after each round, and return what is in it.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "provenance": provenance,
        "blocks": {name: plan.blocks * times for name, (_, times, _) in RUNS.items()},
        "in_flight": plan.in_flight,
        "wait_s": plan.wait_s,
        "timeline": [],
        "rounds": [],
    }
    for index in range(plan.rounds):
        order, runs = rotate(list(RUNS), index), {}
        for name in order:
            say(f"round {index + 1} of {plan.rounds}: {name}")
            runs[name] = plan.ask(
                {
                    "kind": "stream",
                    "blocks": measured["blocks"][name],
                    "in_flight": plan.in_flight,
                    "wait_s": plan.wait_s,
                    "with_timeline": name == "1x",
                    **RUNS[name][2],
                }
            )
        timelines = {name: run.pop("timeline") for name, run in runs.items()}
        measured["timeline"] = measured["timeline"] or timelines["1x"]
        measured["rounds"].append({"order": order, "runs": {name: runs[name] for name in RUNS}})
        measured["complete"] = index + 1 == plan.rounds
        check_streams(measured)
        write_json(output, measured)
    return measured


def check_streams(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each run is one that there is."""
    check_rounds(results, STREAM_FIELDS, {"order": list, "runs": dict.fromkeys(RUNS, dict)}, RUN_FIELDS)


def load_streams(path: Path = STREAMING) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_streams)


def summarize_streams(results: dict[str, Any]) -> dict[str, dict[str, Spread | None]]:
    """Return the spreads of each run over the rounds, and its peaks and first row over those of 1x, or of 16x."""
    rounds: list[Round] = results["rounds"]

    def over_rounds(value: Callable[[Round], float | None]) -> Spread | None:
        return spread([value(one) for one in rounds])

    def of_run(name: str) -> dict[str, Spread | None]:
        found = {key: over_rounds(lambda one, key=key: one["runs"][name][key]) for key in MEASURED}  # type: ignore[misc]
        for key, measured, other in (
            ("memory_over_1x", "peak_memory_bytes", "1x"),
            ("store_over_1x", "peak_store_bytes", "1x"),
            ("store_over_16x", "peak_store_bytes", "16x"),
            ("first_row_over_1x", "first_row_seconds", "1x"),
        ):
            found[key] = over_rounds(
                lambda one, measured=measured, other=other: ratio(  # type: ignore[misc]
                    one["runs"][name][measured], one["runs"][other][measured]
                )
            )
        found["store_blocks"] = over_rounds(
            lambda one: round(
                (one["runs"][name]["peak_store_bytes"] - one["runs"][name]["read_tasks_bytes"]) / BLOCK_BYTES
            )
        )
        return found

    return {name: of_run(name) for name in RUNS}


def streams_table(results: dict[str, Any]) -> str:
    """Return a row a run: blocks, peak memory and object store, over 1x, and the first row."""
    rows = [
        [
            RUNS[name][0],
            count(results["blocks"][name]),
            median(found["peak_memory_bytes"], gigabytes),
            with_range(found["memory_over_1x"], factor),
            median(found["peak_store_bytes"], gigabytes),
            with_range(found["store_over_1x"], factor),
            median(found["first_row_seconds"], seconds),
            median(found["reads_before_first"], count),
        ]
        for name, found in summarize_streams(results).items()
    ]
    head = ["run", "blocks", "peak memory, GB", "over 1x", "peak object store, GB", "over 1x", "first row, s"]
    return format_table([*head, "blocks read before it"], rows)


def streams_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers that pages include, by the name of their section."""
    found = summarize_streams(results)
    read_tasks = found["16x"]["read_tasks_bytes"]
    return {
        "memory-16x": median(found["16x"]["memory_over_1x"], factor),
        "store-blocks-1x": median(found["1x"]["store_blocks"], count),
        "store-blocks-16x": median(found["16x"]["store_blocks"], count),
        "in-flight": count(results["in_flight"]),
        "store-default": median(found["default"]["store_over_16x"], factor),
        "read-task": median(read_tasks, lambda value: kilobytes(value / results["blocks"]["16x"])),
        "first-row-materialized": median(found["materialized"]["first_row_over_1x"], factor),
    }


def stream_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: the table, where it comes from, and the numbers."""
    return {
        "table": streams_table(results),
        "provenance-line": provenance_line(results),
        **streams_numbers(results),
    }


def draw_stream(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return a lane for each worker of the first run at 1x: when it read, and when it was the model."""
    rows = results["timeline"]
    fills = {"read": colours.c, "model": colours.a}
    lanes = sorted({(row["operator"], row["worker"]) for row in rows}, key=lambda lane: (lane[0] == "model", lane))
    longest = max(row["ended_s"] for row in rows)
    scale, y, shapes = INNER / longest, 4.0, []
    for operator, worker in lanes:
        shapes.append(f'<rect x="{MARGIN}" y="{y:g}" width="{INNER}" height="16" fill="{colours.fill}"/>')
        boxes = [
            f"M{_at(row['began_s'] * scale)} {y:g}h{max(0.3, (row['ended_s'] - row['began_s']) * scale):.2f}v16"
            f"H{_at(row['began_s'] * scale)}z"
            for row in rows
            if (row["operator"], row["worker"]) == (operator, worker)
        ]
        shapes.append(f'<path d="{"".join(boxes)}" fill="{fills[operator]}"/>')
        y += 20
    shapes.append(f'<path d="M{MARGIN} {y:g} h{INNER}" stroke="{colours.line}" stroke-width="1"/>')
    shapes.append(_text(MARGIN, y + 18, "0 s", colours))
    shapes.append(_text(MARGIN + INNER, y + 18, f"{seconds(longest)} s", colours, 'text-anchor="end"'))
    for index, (operator, fill) in enumerate(fills.items()):
        x = MARGIN + 212 * index
        shapes.append(f'<rect x="{x}" y="{y + 30:g}" width="20" height="16" fill="{fill}"/>')
        shapes.append(_text(x + 28, y + 43, operator, colours))
    counts = {operator: sum(lane == operator for lane, _ in lanes) for operator in fills}
    said = f"{counts['read']} workers read and {counts['model']} are the model, for {seconds(longest)} s."
    return _svg("streaming", "Which operator ran when on which worker", said, int(y + 56), shapes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the streams and write the file; exit with 1 where a run failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = MeasuringParser("snippets.benchmark.streaming", __doc__, STREAMING, "few blocks, shorter waits")
    parser.add_argument("--rounds", type=positive, help="default: 3, and 1 with --quick")
    options = parser.read(arguments)
    what = "blocks of 8 MiB, made in memory"
    plan = (
        StreamPlan(8, 2, 0.005, options.rounds or 1)
        if options.quick
        else StreamPlan(40, 8, 0.1, options.rounds or 3)
    )
    with parser.measuring(options.output):
        hardware = read_hardware()
        provenance = read_provenance(hardware, what, "a timed wait", arguments, "snippets.benchmark.streaming")
        measure_streams(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
