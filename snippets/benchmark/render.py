"""Write what the pages and the README show of the results file: numbers, tables and figures."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from snippets.benchmark import tables
from snippets.benchmark.blocks import BLOCKS, block_sections, draw_blocks, load_blocks
from snippets.benchmark.ensemble import ENSEMBLE, ensemble_sections, load_measured_ensemble
from snippets.benchmark.figures import (
    FIXED,
    as_figure,
    draw_breakdown,
    draw_ladder,
    draw_steps,
    draw_throughput,
    draw_timeline,
)
from snippets.benchmark.ladder import GPU_LADDER, LADDER, load_ladder
from snippets.benchmark.numbers import format_numbers
from snippets.benchmark.predictions import PREDICTIONS, load_predictions, prediction_sections
from snippets.benchmark.preflight import PREFLIGHT, flight_sections, load_flights
from snippets.benchmark.provenance import ROOT
from snippets.benchmark.queues import QUEUES, draw_queues, load_queues, queue_sections
from snippets.benchmark.results import PUBLISHED, load_results
from snippets.benchmark.scaling import SCALING, draw_designs, load_scaling, scaling_sections
from snippets.benchmark.stepwise import STEPWISE, load_steps
from snippets.benchmark.streaming import STREAMING, draw_stream, load_streams, stream_sections
from snippets.benchmark.timeline import TIMELINE
from snippets.benchmark.tuning import CURVES, TUNING, draw_tuning, load_tuning, tuning_sections
from snippets.command import Parser

RESULTS = PUBLISHED.relative_to(ROOT)
README_BLOCK = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)


@dataclass(frozen=True)
class Measured:
    """A results file beside Part 1's: its path, what reads it, its text by section, and its figures by name."""

    path: Path
    load: Callable[[Path], dict[str, Any]]
    sections: Callable[[dict[str, Any]], dict[str, str]]
    figures: dict[str, Callable[[dict[str, Any]], str]] = field(default_factory=dict)


# Rendered where they are there, each to a text beside its file and to docs/assets/figures.
MEASURED = (
    Measured(STREAMING, load_streams, stream_sections, {"streaming.svg": draw_stream}),
    Measured(PREDICTIONS, load_predictions, prediction_sections),
    Measured(ENSEMBLE, load_measured_ensemble, ensemble_sections),
    Measured(QUEUES, load_queues, queue_sections, {"queues.svg": draw_queues}),
    Measured(BLOCKS, load_blocks, block_sections, {"blocks.svg": draw_blocks}),
    Measured(PREFLIGHT, load_flights, flight_sections),
    Measured(
        TUNING, load_tuning, tuning_sections, {f"tuning-{name}.svg": partial(draw_tuning, name) for name in CURVES}
    ),
    Measured(SCALING, load_scaling, scaling_sections, {"scaling.svg": draw_designs}),
)


def render(root: Path = ROOT) -> dict[Path, str]:
    """Return the text of each rendered file by its path, from the results file below `root`."""
    path = root / RESULTS
    results = load_results(path)
    folder, figures = root / "docs" / "assets" / "results", root / "docs" / "assets" / "figures"
    rendered = {
        folder / "numbers.md": format_numbers(results),
        folder / "tables.md": format_tables(results, root, path),
        figures / "throughput.svg": as_figure(draw_throughput(results)),
        figures / "breakdown.svg": as_figure(draw_breakdown(results)),
        figures / "throughput-readme.svg": draw_throughput(results, FIXED),
    }
    if (root / TIMELINE.relative_to(ROOT)).exists():
        timeline = json.loads((root / TIMELINE.relative_to(ROOT)).read_text())
        rendered[folder / "timeline.md"] = format_sections(
            {"table": tables.timeline_table(timeline), "provenance": tables.timeline_line(timeline)}
        )
        rendered[figures / "timeline.svg"] = as_figure(draw_timeline(timeline))
    if (steps_path := root / STEPWISE.relative_to(ROOT)).exists():
        steps = load_steps(steps_path)
        rendered[folder / "stepwise.md"] = format_steps(steps, steps_path)
        rendered[figures / "stepwise.svg"] = as_figure(draw_steps(steps))
    if (ladder_path := root / LADDER.relative_to(ROOT)).exists():
        ladder = load_ladder(ladder_path)
        rendered[folder / "ladder.md"] = format_ladder(ladder, ladder_path)
        rendered[figures / "ladder.svg"] = as_figure(draw_ladder(ladder))
    gpu_path = root / GPU_LADDER.relative_to(ROOT)
    measured_on_gpu = tables.gpu_ladder(load_ladder(gpu_path) if gpu_path.exists() else None)
    rendered[gpu_path.with_suffix(".md")] = format_sections({"measured": measured_on_gpu})
    for measured in MEASURED:
        if (measured_path := root / measured.path.relative_to(ROOT)).exists():
            found = measured.load(measured_path)
            rendered[measured_path.with_suffix(".md")] = format_sections(measured.sections(found))
            rendered |= {figures / name: as_figure(draw(found)) for name, draw in measured.figures.items()}
    readme = root / "README.md"
    if readme.exists() and README_BLOCK.search(text := readme.read_text()):
        block = f"{tables.short_table(results)}\n\n{tables.provenance_line(results)}\n"
        rendered[readme] = README_BLOCK.sub(lambda match: match[1] + block + match[2], text)
    return rendered


def format_tables(results: dict[str, Any], root: Path, path: Path) -> str:
    """Return a file with one section a table, as `--8<-- "FILE:NAME"` includes it."""
    sections = {
        "summary": tables.summary_table(results),
        "naive": tables.naive_table(results),
        "limits": tables.limits_table(results),
        "costs": tables.costs_table(results),
        "anti-patterns": tables.anti_patterns_table(results),
        "breakdown": tables.breakdown_table(results),
        "provenance": tables.provenance_table(results, RESULTS.as_posix(), digest_of(path)),
        "provenance-line": tables.provenance_line(results),
        "parts": tables.parts_rows(root / "docs"),
    }
    return format_sections(sections)


def format_steps(steps: dict[str, Any], path: Path) -> str:
    """Return a file with the table of the steps, where it comes from, and the numbers of each step."""
    name = STEPWISE.relative_to(ROOT).as_posix()
    sections = {
        "table": tables.steps_table(steps),
        "provenance": tables.provenance_table(steps, name, digest_of(path)),
        "provenance-line": tables.provenance_line(steps),
        **tables.steps_numbers(steps),
    }
    return format_sections(sections)


def format_ladder(ladder: dict[str, Any], path: Path) -> str:
    """Return a file with the tables of the rungs, where they come from, and the numbers of each rung."""
    name = LADDER.relative_to(ROOT).as_posix()
    sections = {
        "table": tables.ladder_table(ladder),
        "quality": tables.ladder_quality_table(ladder),
        "limits": tables.ladder_limits_table(ladder),
        "provenance": tables.provenance_table(ladder, name, digest_of(path)),
        "provenance-line": tables.provenance_line(ladder),
        **tables.ladder_numbers(ladder),
    }
    return format_sections(sections)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is shown so that any change of the results shows."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def format_sections(sections: dict[str, str]) -> str:
    """Return a file with one section a text, as `--8<-- "FILE:NAME"` includes it."""
    return "\n".join(
        f"<!-- --8<-- [start:{name}] -->\n{text}\n<!-- --8<-- [end:{name}] -->\n"
        for name, text in sections.items()
    )


def differing(root: Path = ROOT) -> list[Path]:
    """Return the files that are not what rendering would write."""
    return [path for path, text in render(root).items() if not path.exists() or path.read_text() != text]


def write_all(root: Path = ROOT) -> list[Path]:
    """Write the files that differ, and return them."""
    rendered, changed = render(root), differing(root)
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rendered[path])
    return changed


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Render, or with `--check` name the files that differ; return 1 where there are any, 2 for bad results."""
    parser = Parser(prog="python -m snippets.benchmark.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where files differ")
    options = parser.parse_args(arguments)
    try:
        changed = differing(root) if options.check else write_all(root)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for path in changed:
        verb = "differs from" if options.check else "rendered from"
        sys.stdout.write(f"{path.relative_to(root)} {verb} {RESULTS}\n")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
