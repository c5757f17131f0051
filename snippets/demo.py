"""Run the naive and the optimized pipeline on the same images, and compare what they did in a small table."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from snippets import command
from snippets.fundamentals import actor_pool

PIPELINES = {"naive": "snippets.fundamentals.naive", "optimized": "snippets.fundamentals.actor_pool"}
DEFAULT_LIMIT = 128


def consume(result: Any) -> tuple[int, int, list[dict[str, Any]]]:
    """Return how many rows came out, how many carry an error, and all of them: they are few here."""
    rows = result.take_all()
    return len(rows), sum(bool(row.get("error")) for row in rows), rows


def format_table(reports: dict[str, dict[str, Any]], agreeing: int, compared: int) -> str:
    """Return one row a pipeline, and a sentence on how many labels agree."""
    columns = ("images", "seconds", "images/s in steady state", "model loads")
    lines = ["  ".join(("pipeline ", *columns))]
    for name, report in reports.items():
        rate = report["steady_rows_per_second"]
        values = (
            report["rows"],
            f"{report['seconds']:.1f}",
            f"{rate:.1f}" if rate else "-",
            report["model_loads"],
        )
        cells = (f"{value!s:>{len(column)}}" for value, column in zip(values, columns, strict=True))
        lines.append("  ".join((f"{name:9}", *cells)))
    verdict = "the labels agree" if agreeing == compared else "the labels DIFFER"
    return "\n".join((*lines, f"{agreeing} of {compared} labels are equal: {verdict}."))


def main() -> int:
    """Run both pipelines; return 1 where the labels differ, 2 for input that cannot be used."""
    parser = command.build_parser(actor_pool)
    parser.prog, parser.description = "python -m snippets.demo", __doc__
    parser.set_defaults(limit=DEFAULT_LIMIT)
    options = parser.parse_args()
    reports, labels = {}, []
    try:
        for name, module in PIPELINES.items():
            sys.stdout.write(f"\nThe {name} pipeline ({module}) on {options.limit} images:\n")
            sys.stdout.flush()
            reports[name], rows = command.run(importlib.import_module(module), options, consume)
            labels.append({row["id"]: row["label"] for row in rows})
    except Exception as error:
        if sentence := command.explain(error):
            return command.fail(sentence)
        raise
    agreeing = sum(labels[0][image] == labels[1].get(image) for image in labels[0])
    sys.stdout.write("\n" + format_table(reports, agreeing, len(labels[0])) + "\n")
    return 0 if agreeing == len(labels[0]) else 1


if __name__ == "__main__":
    sys.exit(main())
