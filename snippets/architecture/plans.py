"""Plans and fusion: which operators of a pipeline become one, read from the plans of the installed Ray."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from snippets.command import Parser, connection, positive

# isort: split
# --8<-- [start:imports]
import contextlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

# --8<-- [end:imports]


# --8<-- [start:plans]
def plans(dataset: ray.data.Dataset) -> dict[str, str]:
    """Return the plans that `explain()` prints, by their names; nothing is executed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        dataset.explain()
    _, *parts = re.split(r"^-+ (.+?) -+\n", printed.getvalue(), flags=re.M)
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


def planned_operators(dataset: ray.data.Dataset) -> list[str]:
    """Return the physical operators that will run, the read first; `a->b` is one, fused of two."""
    lines = plans(dataset)["Physical Plan (Optimized)"].splitlines()
    named = [re.search(r"(\w+)\[(.*)\]$", line) for line in reversed(lines)]
    return [found[2] for found in named if found and found[1] != "InputDataBuffer"]


# --8<-- [end:plans]


# --8<-- [start:executed_operators]
def executed_operators(dataset: ray.data.Dataset) -> list[str]:
    """Return the operators that did run, the read first; none for a dataset that has not."""
    return re.findall(r"^Operator \d+ (.+?): ", dataset.stats(), re.M)


# --8<-- [end:executed_operators]


# --8<-- [start:functions]
def by_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row."""
    return row


def keep(row: dict[str, Any]) -> bool:
    """Keep every row, which the planner cannot know."""
    return True


def twice(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the row two times."""
    return [row, row]


def by_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the batch."""
    return batch


class Model:
    """Stand in for a model that an actor has loaded."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the batch."""
        return batch


# --8<-- [end:functions]


RULES = {
    "fits": "fits",
    "sort": "1 kinds, behind a sort",
    "kind": "1 kinds",
    "size": "2 sizes",
    "rows": "3 rows",
    "resources": "4 resources",
    "repartition": "5 repartition",
}

# Each line is evaluated as it stands, with `rows` (64 ids in 4 blocks), `pool` (one actor), `files` and `folder`.
# The word before it is the rule that decides about the last two steps; `fits` and `sort` join them.
CHAINS = """
fits         rows.map(by_row)
fits         rows.filter(keep)
fits         rows.flat_map(twice)
fits         rows.select_columns(["id"])
fits         rows.map_batches(by_batch)
fits         rows.map_batches(by_batch, batch_size="auto")
rows         rows.map_batches(by_batch, batch_size=16)
size         rows.map_batches(by_batch, compute=TaskPoolStrategy(size=1))
fits         rows.map_batches(Model, compute=pool)
rows         rows.map_batches(Model, compute=pool, batch_size=16)
fits         ray.data.read_parquet(files).map_batches(by_batch)
kind         rows.materialize().map_batches(by_batch)
fits         rows.map(by_row).map_batches(by_batch, batch_size=16)
rows         rows.filter(keep).map_batches(by_batch, batch_size=16)
rows         rows.flat_map(twice).map_batches(by_batch, batch_size=16)
fits         rows.map_batches(by_batch).map_batches(by_batch, batch_size=16)
fits         rows.map_batches(by_batch, batch_size=16).map_batches(by_batch, batch_size=32)
fits         rows.map_batches(by_batch).map_batches(Model, compute=pool)
fits         rows.map_batches(by_batch).map_batches(Model, compute=pool, batch_size=16)
kind         rows.map_batches(Model, compute=pool).map_batches(by_batch)
kind         rows.map_batches(Model, compute=pool).map_batches(Model, compute=pool)
size         rows.map_batches(by_batch, compute=TaskPoolStrategy(size=1)).map_batches(by_batch)
fits         rows.map_batches(by_batch, compute=TaskPoolStrategy(size=1)).map_batches(Model, compute=pool)
size         rows.map_batches(by_batch, compute=TaskPoolStrategy(size=2)).map_batches(Model, compute=pool)
fits         rows.map_batches(by_batch).map_batches(by_batch, num_cpus=1)
resources    rows.map_batches(by_batch).map_batches(by_batch, num_cpus=0.5)
resources    rows.map_batches(by_batch).map_batches(by_batch, memory=1e6)
resources    rows.map_batches(by_batch).map_batches(by_batch, runtime_env={"env_vars": {"A": "1"}})
resources    rows.map_batches(by_batch).map_batches(Model, compute=pool, batch_size=16, num_gpus=1)
fits         rows.map_batches(by_batch, batch_size=16, num_gpus=1).map_batches(Model, compute=pool, batch_size=16, num_gpus=1)
kind         rows.map_batches(by_batch).limit(8)
kind         rows.map(by_row).limit(8)
kind         rows.limit(8).map_batches(by_batch)
fits         rows.map_batches(by_batch).random_shuffle()
fits         rows.map_batches(by_batch).repartition(8, shuffle=True)
kind         rows.map_batches(by_batch).repartition(8)
sort         rows.sort("id").map_batches(by_batch)
fits         rows.map_batches(by_batch, batch_size=16).repartition(target_num_rows_per_block=12)
fits         rows.map_batches(by_batch, batch_size=16).repartition(target_num_rows_per_block=8, strict=True)
repartition  rows.map_batches(by_batch, batch_size=16).repartition(target_num_rows_per_block=12, strict=True)
repartition  rows.repartition(target_num_rows_per_block=16).map_batches(by_batch)
fits         rows.map_batches(by_batch, batch_size=16).repartition(target_num_rows_per_block=8, strict=True).map_batches(by_batch)
fits         rows.write_parquet(folder)
rows         rows.write_parquet(folder, min_rows_per_file=16)
fits         rows.map_batches(by_batch, batch_size=16).write_parquet(folder)
kind         rows.map_batches(Model, compute=pool).write_parquet(folder)
resources    rows.map_batches(by_batch, num_cpus=0.5).write_parquet(folder)
""".strip()  # noqa: E501


@dataclass(frozen=True)
class Pair:
    """A pipeline as code, the rule that decides about its last two steps, and the operators that it plans."""

    code: str
    rule: str
    operators: tuple[str, ...]

    @property
    def fused(self) -> bool:
        """Whether its last two steps are one operator."""
        return "->" in self.operators[-1]


def chains() -> list[tuple[str, str]]:
    """Return the pipelines of the fusion table: the rule and the code of each."""
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in CHAINS.splitlines()]


@contextlib.contextmanager
def evaluator() -> Iterator[Callable[[str], ray.data.Dataset]]:
    """Yield a function that makes the dataset of a pipeline's code; one that ends in a write is executed."""
    with tempfile.TemporaryDirectory(prefix="plans-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Use 'expr' instead of 'fn'")  # the table shows both ways to filter
        rows = ray.data.range(64, override_num_blocks=4)
        rows.write_parquet(f"{folder}/files")
        names = {"rows": rows, "pool": ActorPoolStrategy(size=1), "files": f"{folder}/files"}
        names["TaskPoolStrategy"] = ray.data.TaskPoolStrategy
        writes = 0

        def evaluate(code: str) -> ray.data.Dataset:
            nonlocal writes
            chain, write, arguments = code.partition(".write_parquet(folder")
            dataset: ray.data.Dataset = eval(chain, {**globals(), **names})
            if write:
                writes += 1
                dataset.write_parquet(f"{folder}/{writes}", **eval(f"dict({arguments.strip(', ')}"))
            return dataset

        yield evaluate


def fusion_pairs(limit: int | None = None) -> list[Pair]:
    """Plan every pipeline of the table, or the first few, with the installed Ray; it must be connected."""
    with evaluator() as evaluate:
        pairs = []
        for rule, code in chains()[:limit]:
            dataset = evaluate(code)
            # A write is planned and executed in one call: what ran is the only plan that there is.
            found = executed_operators(dataset) if "write_parquet" in code else planned_operators(dataset)
            pairs.append(Pair(code, rule, tuple(found)))
        return pairs


HEAD = ["| pipeline | last two fused | rule | operators that run |", "| --- | --- | --- | --- |"]


def fusion_table(pairs: Sequence[Pair]) -> str:
    """Return the table in Markdown, and of which version it is."""
    lines = [f"Planned by ray {version('ray')}.", "", *HEAD]
    for pair in pairs:
        operators = ", then ".join(f"`{name}`" for name in pair.operators)
        lines.append(f"| `{pair.code}` | {'yes' if pair.fused else '**no**'} | {RULES[pair.rule]} | {operators} |")
    return "\n".join(lines) + "\n"


def changed_pairs(before: str, after: str) -> list[str]:
    """Return what two tables say differently, pipeline by pipeline: code, old and new operators."""
    tables = []
    for text in (before, after):
        cells = [
            [cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| `")
        ]
        tables.append({row[0].strip("| "): row[-1].strip("| ") for row in cells})
    old, new = tables
    return [
        f"{code}: {old.get(code, 'not there')} became {new.get(code, 'not there')}"
        for code in [*old, *(code for code in new if code not in old)]
        if old.get(code) != new.get(code)
    ]


# --8<-- [start:draw]
PIXELS = (64, 64, 3)


def draw(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stand in for decoding: return `image` (uint8, n x 64 x 64 x 3), and `drawn_by`, this process."""
    rows = len(batch["id"])
    return {"image": np.zeros((rows, *PIXELS), np.uint8), "drawn_by": np.full(rows, os.getpid())}


class Look:
    """Stand in for a model: return `drawn_by` and `seen_by`, the processes of both steps."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return two numbers a row; the pixels go no further."""
        return {"drawn_by": batch["drawn_by"], "seen_by": np.full(len(batch["image"]), os.getpid())}


# --8<-- [end:draw]


# --8<-- [start:draw_and_look]
def draw_and_look(look_cpus: float) -> ray.data.Dataset:
    """Return what a pool of one actor makes of 64 images in 4 blocks; with one CPU it draws them too."""
    return (
        ray.data.range(64, override_num_blocks=4)
        .map_batches(draw)
        .map_batches(Look, compute=ActorPoolStrategy(size=1), batch_size=16, num_cpus=look_cpus)
    )


def passed_on(executed: ray.data.Dataset) -> list[tuple[str, int, int]]:
    """Return (operator, blocks, bytes) that each operator of a run put into the object store."""
    summaries = [executed.get_stats_summary()]
    for summary in summaries:
        summaries += summary.parents
    return [
        (operator.operator_name, operator.output_size_bytes.count, operator.output_size_bytes.sum)
        for summary in reversed(summaries)
        for operator in summary.operators_stats
        if operator.output_size_bytes
    ]


# --8<-- [end:draw_and_look]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the fusion table of the installed Ray, or with `--json` a line of JSON, and return the exit status."""
    parser = Parser(prog="python -m snippets.architecture.plans", description=__doc__)
    parser.add_argument("--limit", type=positive, help="pipelines at the most (default: all)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with connection():
        pairs = fusion_pairs(options.limit)
    if options.json:
        rows = [{"pipeline": pair.code, "fused": pair.fused, "operators": pair.operators} for pair in pairs]
        sys.stdout.write(json.dumps({"pairs": rows, "ray": version("ray")}) + "\n")
    else:
        sys.stdout.write(fusion_table(pairs))
    return 0


if __name__ == "__main__":
    from snippets.architecture import plans as module

    sys.exit(module.main())
