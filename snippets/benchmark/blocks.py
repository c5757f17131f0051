"""What the size of blocks, the form of rows, the layout of files, and fusion change: rates, bytes and memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snippets.benchmark.figures import INNER, PAGE, Palette, _bar, _svg
from snippets.benchmark.formats import count, factor, gigabytes, median, rate, with_range
from snippets.benchmark.harness import rotate, say, spread_evenly
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import read_hardware, read_provenance
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
from snippets.benchmark.summary import Round, Spread, ratio, spread
from snippets.benchmark.tables import format_table, provenance_line
from snippets.checkpoint import check_checkpoint
from snippets.command import positive
from snippets.fundamentals.dataset import list_images
from snippets.samples import images_and_model

BLOCKS = FOLDER / "blocks.json"
SHARDS = 10


@dataclass(frozen=True)
class Run:
    """A run: what kind `block_runs` has, what the tables call it, and what it asks for besides its images."""

    kind: str
    title: str
    asks: dict[str, Any]


def _in_blocks(kind: str, sizes: Sequence[int | None], **asks: Any) -> dict[str, Run]:
    return {
        f"{kind}-{rows or 'all'}": Run(kind, str(rows) if rows else "all", {"rows_a_block": rows, **asks})
        for rows in sizes
    }


RUNS: dict[str, Run] = {
    **_in_blocks("decoding", (1, 16, 64, 256, None)),
    **_in_blocks("pipeline", (1, 16, 48, None), plan="course"),
    "form-encoded": Run("form", "encoded files", {"form": "encoded"}),
    "form-uint8": Run("form", "pixels, uint8", {"form": "uint8"}),
    "form-float32": Run("form", "pixels, float32", {"form": "float32"}),
    "files-small": Run("files", "a file each", {"layout": "small"}),
    "files-parquet": Run("files", f"{SHARDS} Parquet files", {"layout": "parquet"}),
    "files-tar": Run("files", f"{SHARDS} tar files", {"layout": "tar"}),
    "fusion-parted": Run("fusion", "three operators", {"rows_a_block": 16, "plan": "parted"}),
    "fusion-cheap": Run("fusion", "the filter fused with decoding", {"rows_a_block": 16, "plan": "cheap"}),
    "fusion-all": Run("fusion", "all in the actors", {"rows_a_block": 16, "plan": "all"}),
}
TITLES = {"1": "1 image in a block", "all": "All images in one block"}
QUICK = ("decoding-1", "pipeline-all", "form-uint8", "files-tar")  # one of each kind that `block_runs` has
MODULE_KINDS = {"fusion": "pipeline"}  # what `block_runs` calls it
RUN_FIELDS = {
    "rows": int,
    "blocks": int,
    "seconds": NUMBER,
    "rows_per_second": (*NUMBER, type(None)),
    "peak_memory_bytes": int,
    "passed_bytes": int,
    "actors": (int, type(None)),
    "operators": (list, type(None)),
}
BLOCK_FIELDS = {
    **{key: FIELDS[key] for key in ("schema", "complete", "provenance", "rounds")},
    "images": dict,
}


def ask_for_blocks(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a process of its own answers, which `block_runs` is."""
    return ask(request, module="snippets.benchmark.block_runs")


@dataclass(frozen=True)
class BlockPlan:
    """What to measure: names of `RUNS`, and how many images, or files, a run of each kind has."""

    source: str
    model: str
    names: list[str]
    images: dict[str, int]
    rounds: int
    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_for_blocks


def measure_blocks(plan: BlockPlan, provenance: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run what is planned in turn, write the file after each round, and return what is in it.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    from snippets.benchmark.block_runs import write_layouts

    _, paths, _ = list_images(plan.source)
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "provenance": provenance,
        "images": plan.images,
        "rounds": [],
    }
    with tempfile.TemporaryDirectory(prefix="layouts-") as folder:
        say(f"writing {plan.images['files']} files")
        write_layouts(Path(folder), paths, plan.images["files"], SHARDS)
        for index in range(plan.rounds):
            order, runs = rotate(plan.names, index), {}
            for name in order:
                say(f"round {index + 1} of {plan.rounds}: {name}")
                runs[name] = plan.ask(_request(plan, RUNS[name], paths, folder))
            measured["rounds"].append({"order": order, "runs": {name: runs[name] for name in plan.names}})
            measured["complete"] = index + 1 == plan.rounds
            check_blocks(measured)
            write_json(output, measured)
    return measured


def _request(plan: BlockPlan, run: Run, paths: list[str], folder: str) -> dict[str, Any]:
    request = {"kind": MODULE_KINDS.get(run.kind, run.kind), **run.asks}
    if run.kind == "files":
        return {**request, "folder": folder}
    images = plan.images[run.kind]
    source = spread_evenly(paths * -(-images // len(paths)), images)
    if "rows_a_block" in request:
        request["rows_a_block"] = min(request["rows_a_block"] or images, images)
    return {**request, "source": source, "model": plan.model}


def check_blocks(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each run is one that there is."""
    check_head(results, BLOCK_FIELDS)
    names = list(results["rounds"][0].get("runs", {}))
    if unknown := sorted(set(names) - set(RUNS)):
        raise ValueError(f"has runs that there are not: {', '.join(unknown)}.")
    for index, one in enumerate(results["rounds"]):
        check_fields(f"rounds[{index}].", one, {"order": list, "runs": {name: RUN_FIELDS for name in names}})


def load_blocks(path: Path = BLOCKS) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_blocks)


def over_rounds(results: dict[str, Any], value: Callable[[Round], float | None]) -> Spread | None:
    """Return the spread of a value over the rounds."""
    return spread([value(one) for one in results["rounds"]])


def of_run(results: dict[str, Any], name: str, key: str) -> Spread | None:
    """Return the spread of what a run measured, or None where it was not run."""
    return over_rounds(results, lambda one: one["runs"].get(name, {}).get(key))


def times(results: dict[str, Any], name: str, over: str, key: str = "rows_per_second") -> Spread | None:
    """Return by how many times a run has more of something than another, taken within each round."""
    return over_rounds(results, lambda one: ratio(*(one["runs"].get(each, {}).get(key) for each in (name, over))))


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.0f}"


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "blocks": ("blocks", count),
    "actors": ("actors that worked", count),
    "passed_bytes": ("MB that operators passed on", _megabytes),
    "rows_per_second": ("a second", rate),
    "seconds": ("seconds, start-up included", lambda value: f"{value:.1f}"),
    "peak_memory_bytes": ("peak memory, GB", gigabytes),
}


def kind_table(results: dict[str, Any], kind: str, first: str, unit: str, keys: Sequence[str]) -> str:
    """Return a row a run of a kind, with some of `COLUMNS`; `first` heads the titles, `unit` what is counted."""
    names = [name for name in results["rounds"][0]["runs"] if RUNS[name].kind == kind]
    rows = [
        [
            RUNS[name].title,
            *(
                (with_range if key == "rows_per_second" else median)(of_run(results, name, key), COLUMNS[key][1])
                for key in keys
            ),
        ]
        for name in names
    ]
    heads = [f"{unit} {COLUMNS[key][0]}" if key == "rows_per_second" else COLUMNS[key][0] for key in keys]
    return format_table([first, *heads], rows)


def block_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers that pages include, by name; `not measured` where a run is missing."""
    pairs = {
        "one-row": ("decoding-1", "decoding-64"),
        "one-block": ("decoding-all", "decoding-64"),
        "one-block-pipeline": ("pipeline-all", "pipeline-16"),
        "float32": ("form-float32", "form-uint8"),
        "encoded": ("form-encoded", "form-uint8"),
        "parquet": ("files-parquet", "files-small"),
        "tar": ("files-tar", "files-small"),
        "cheap": ("fusion-cheap", "fusion-parted"),
        "all": ("fusion-all", "fusion-parted"),
    }
    numbers = {f"{name}-rate": median(times(results, *pair), factor) for name, pair in pairs.items()}
    for name in ("one-row", "one-block", "float32"):
        numbers[f"{name}-memory"] = median(times(results, *pairs[name], "peak_memory_bytes"), factor)
    for name in ("float32", "encoded", "cheap", "all"):
        numbers[f"{name}-bytes"] = median(times(results, *pairs[name], "passed_bytes"), factor)
    return numbers | {f"{kind}-count": count(images) for kind, images in results["images"].items()}


def block_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: a table a question, where it comes from, and the numbers."""
    sizes, memory = ("blocks", "rows_per_second", "peak_memory_bytes"), "peak_memory_bytes"
    passed = ("passed_bytes", "rows_per_second", memory)
    return {
        "sizes": kind_table(results, "decoding", "images in a block", "images", sizes),
        "pipeline": kind_table(
            results, "pipeline", "images in a block", "images", ("blocks", "actors", "seconds", memory)
        ),
        "forms": kind_table(results, "form", "between the operators", "images", passed),
        "files": kind_table(results, "files", "layout", "files", ("blocks", "rows_per_second", memory)),
        "fusion": kind_table(results, "fusion", "plan", "images", (*passed, "seconds")),
        "provenance-line": provenance_line(results),
        **block_numbers(results),
    }


def draw_blocks(results: dict[str, Any], colours: Palette = PAGE) -> str:
    """Return a bar a size of blocks: images that were decoded a second, with the lowest and the highest round."""
    names = [name for name in results["rounds"][0]["runs"] if RUNS[name].kind == "decoding"]
    found = {name: of_run(results, name, "rows_per_second") for name in names}
    scale = INNER / max([1e-9, *(each["max"] for each in found.values() if each)])
    shapes, said = [], []
    for place, (name, each) in enumerate(found.items()):
        memory = median(of_run(results, name, "peak_memory_bytes"), gigabytes)
        title = TITLES.get(RUNS[name].title, f"{RUNS[name].title} images in a block")
        speed = f"{median(each, rate)} images/s, {memory} GB"
        shapes += _bar(4 + 52 * place, title, speed, each, scale, colours.c, colours)
        said.append(f"{title}: {speed}")
    title = "Images decoded per second, and peak memory, by the size of blocks"
    return _svg("blocks", title, ". ".join(said) + ".", 4 + 52 * len(names), shapes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    quick = "one run of each kind, few images"
    parser = MeasuringParser("snippets.benchmark.blocks", __doc__, BLOCKS, quick)
    parser.add_argument("--rounds", type=positive, help="default: 2, and 1 with --quick")
    options = parser.read(arguments)
    images = {"decoding": 2048, "pipeline": 96, "form": 1024, "files": 10_000, "fusion": 96}
    if options.quick:
        images = {"decoding": 16, "pipeline": 16, "form": 16, "files": 40, "fusion": 16}
    names = list(QUICK if options.quick else RUNS)
    with parser.measuring(options.output):
        source, model = images_and_model()
        check_checkpoint(model)
        list_images(source)
        plan = BlockPlan(source, model, names, images, options.rounds or (1 if options.quick else 2))
        provenance = read_provenance(read_hardware(), source, model, arguments, "snippets.benchmark.blocks")
        measure_blocks(plan, provenance, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
