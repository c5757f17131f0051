"""Blocks: who decides how many there are and how large, and how batches are cut from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from snippets.command import Parser, connection, fail, positive

# isort: split
# --8<-- [start:imports]
import io
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

# --8<-- [end:imports]


# --8<-- [start:blocks_of]
def blocks_of(dataset: ray.data.Dataset) -> list[pa.Table]:
    """Execute a dataset and return its blocks, in any order."""
    blocks: list[pa.Table] = ray.get(dataset.get_internal_block_refs())
    return blocks


def draw(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stand in for decoding: return `image` (uint8, n x 64 x 64 x 3)."""
    return {"image": np.zeros((len(batch["id"]), 64, 64, 3), np.uint8)}


# --8<-- [end:blocks_of]


# --8<-- [start:batch_sizes]
def batch_sizes(block_rows: list[int], batch_size: int) -> Counter[int]:
    """Return how many batches of each size Ray cuts from blocks of these rows, in their order.

    A task gets whole blocks until their rows suffice for one batch. It cuts batches from them, and what is left
    over is a batch too: no batch crosses a task. Raises `ValueError` where a number is not positive.
    """
    if batch_size < 1 or min(block_rows, default=1) < 1:
        raise ValueError("Blocks and batches have at least one row.")
    sizes: Counter[int] = Counter()
    waiting = 0
    for position, rows in enumerate(block_rows, 1):
        waiting += rows
        if waiting >= batch_size or position == len(block_rows):
            sizes[batch_size] += waiting // batch_size
            sizes[waiting % batch_size] += waiting % batch_size > 0
            waiting = 0
    return +sizes


def cut_batches(dataset: ray.data.Dataset, batch_size: int) -> Counter[int]:
    """Run a function over a dataset and return how many batches of each size it saw."""

    def count(batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
        return {"rows": [len(next(iter(batch.values())))]}

    return Counter(row["rows"] for row in dataset.map_batches(count, batch_size=batch_size).take_all())


def filled(sizes: Counter[int], batch_size: int) -> float:
    """Return the share of rows (0 to 1) in batches that are all padded to `batch_size`."""
    return sum(rows * batches for rows, batches in sizes.items()) / (batch_size * sum(sizes.values()))


# --8<-- [end:batch_sizes]


# --8<-- [start:pool_tasks]
def pool_tasks(blocks: int, batch_size: int, rows: int = 64) -> int:
    """Return how many tasks a pool of two actors gets from this many equal blocks: no more can work at a time."""
    source = ray.data.range(rows, override_num_blocks=blocks)
    pool = ray.data.ActorPoolStrategy(size=2)
    executed = source.map_batches(Look, compute=pool, batch_size=batch_size, num_cpus=0.25).materialize()
    return int(executed.get_stats_summary().operators_stats[-1].task_rows.count)


class Look:
    """Stand in for a model."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the batch."""
        return batch


# --8<-- [end:pool_tasks]


# --8<-- [start:forms]
def encode(pixels: np.ndarray) -> bytes:
    """Return an image (uint8, height x width x 3) as the bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def forms(rows: int = 64, side: int = 224) -> dict[str, int]:
    """Return the bytes of a block that holds the same images as JPEG, as uint8 and as float32."""
    slope = np.linspace(0, 255, side, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(-20, 20, (side, side, 3))
    image = np.clip(slope[:, None, None] + noise, 0, 255).astype(np.uint8)

    def block_bytes(column: Any) -> int:
        (block,) = blocks_of(ray.data.from_numpy(column) if isinstance(column, np.ndarray) else column)
        return int(block.nbytes)

    pixels = np.repeat(image[None], rows, axis=0)
    files = [{"file": encode(image)} for _ in range(rows)]
    return {
        "JPEG": block_bytes(ray.data.from_items(files, override_num_blocks=1)),
        "uint8": block_bytes(pixels),
        "float32": block_bytes(pixels.astype(np.float32)),
    }


# --8<-- [end:forms]


# --8<-- [start:many_files]
def many_files(folder: str, files: int, file_bytes: int = 100) -> dict[str, dict[str, int]]:
    """Write the same rows as `files` small files and as one Parquet file, and count what reading each takes.

    `files` in `tasks` that read, which make `blocks`. The folder must be one that all nodes see.
    """
    small, shard = Path(folder, "small"), Path(folder, "shard")
    small.mkdir()
    for number in range(files):
        (small / f"{number:06}.bin").write_bytes(bytes(file_bytes))
    ray.data.read_binary_files(str(small)).repartition(1).write_parquet(str(shard))
    counted = {}
    for name, read in {"small": ray.data.read_binary_files, "shard": ray.data.read_parquet}.items():
        executed = read(str(Path(folder, name))).materialize()
        stats = executed.get_stats_summary().operators_stats[-1]
        counted[name] = {
            "files": len([*Path(folder, name).iterdir()]),
            "tasks": int(stats.task_rows.count),
            "blocks": executed.num_blocks(),
            "rows": executed.count(),
        }
    return counted


# --8<-- [end:many_files]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how batches are cut from blocks of equal size, and what Ray did, and return the exit status."""
    parser = Parser(prog="python -m snippets.architecture.blocks", description=__doc__)
    parser.add_argument("--rows", type=positive, default=1000, help="rows of the dataset (default: 1000)")
    parser.add_argument("--blocks", type=positive, default=50, help="blocks of the dataset (default: 50)")
    parser.add_argument("--batch-size", type=positive, default=32, help="rows of a batch (default: 32)")
    parser.add_argument("--files", type=positive, help="count also what reading so many small files takes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    if options.rows % options.blocks:
        return fail(f"{options.rows} rows do not make {options.blocks} equal blocks.")
    report: dict[str, Any] = {
        "predicted": batch_sizes([options.rows // options.blocks] * options.blocks, options.batch_size)
    }
    with connection(), tempfile.TemporaryDirectory(prefix="blocks-") as folder:
        dataset = ray.data.range(options.rows, override_num_blocks=options.blocks)
        report["cut"] = cut_batches(dataset, options.batch_size)
        report["filled"] = filled(report["cut"], options.batch_size)
        if options.files:
            report["files"] = many_files(folder, options.files)
    lines = [json.dumps(report)] if options.json else [f"{name:12}{value}" for name, value in report.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    from snippets.architecture import blocks as module

    sys.exit(module.main())
