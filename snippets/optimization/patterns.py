"""Three whole jobs to begin from: prepare images once, and label what was prepared, on CPUs or on GPUs."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import (
    KEEP_FREED_MEMORY,
    Classifier,
    Preprocessing,
    decode,
    load_preprocessing,
    plan_pool,
)
from snippets.fundamentals.dataset import list_images, open_filesystem

# isort: split
# --8<-- [start:imports]
import math
import tempfile
from typing import Any

import ray
from pyarrow import fs
from ray.data.expressions import col

# --8<-- [end:imports]


# --8<-- [start:prepare]
ROWS_A_FILE = 128


def decode_and_describe(
    batch: dict[str, Any],
    filesystem: fs.FileSystem,
    to: Preprocessing,
) -> dict[str, Any]:
    """Return the columns of `decode`, and `brightness`: the mean pixel, 0 to 255, float64."""
    decoded = decode(batch, filesystem, to)
    return {**decoded, "brightness": decoded["image"].mean((1, 2, 3))}


def prepare(
    source: str | list[str],
    model: str,
    folder: str,
    limit: int | None = None,
) -> None:
    """Decode the images of a source for a model, and write them as Parquet to a new folder.

    A file that cannot be read or decoded keeps its row, with `error`. Raises `ValueError` where
    the folder exists.
    """
    filesystem, paths, _ = list_images(source, limit)
    output, path = open_filesystem(folder)
    decoding = {"filesystem": filesystem, "to": load_preprocessing(model)}
    blocks = math.ceil(len(paths) / ROWS_A_FILE)
    (
        ray.data.from_items([{"id": path} for path in paths], override_num_blocks=blocks)
        .map_batches(decode_and_describe, fn_kwargs=decoding)
        .write_parquet(path, filesystem=output, mode=ray.data.SaveMode.ERROR)
    )


# --8<-- [end:prepare]


# --8<-- [start:label_prepared]
def label_prepared(
    folder: str,
    model: str,
    num_gpus: float | None = None,
    darkest: float = 0,
) -> ray.data.Dataset:
    """Return `id`, `label`, `score` and `error` of what `prepare` wrote, without images below `darkest`.

    `num_gpus=0` takes the CPUs, and None the GPUs where there are any. Rows with an error are kept.
    """
    filesystem, path = open_filesystem(folder)
    to, pool = load_preprocessing(model), plan_pool(num_gpus=num_gpus)
    batch_size = 64 if pool.num_gpus else 16
    settings = (model, to, batch_size, "auto", pool.threads, pool.num_gpus > 0)
    return (
        ray.data.read_parquet(path, filesystem=filesystem)
        .filter(expr=(col("error") != "") | (col("brightness") >= darkest))
        .select_columns(["id", "image", "error"])
        .repartition(target_num_rows_per_block=2 * batch_size)
        .map_batches(
            Classifier,
            fn_constructor_args=settings,
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )


# --8<-- [end:label_prepared]


def add_options(parser: Any) -> None:
    """Add where prepared images go, on what they are labelled, and which are left out."""
    from snippets.command import gpus

    parser.add_argument("--output", help="new folder or s3:// URI for what is prepared (default: a temporary one)")
    parser.add_argument("--num-gpus", type=gpus, help="GPUs that an actor reserves; 0 runs on the CPU")
    parser.add_argument("--darkest", type=float, default=0, help="leave darker images out (0 to 255)")


def run(options: Any) -> ray.data.Dataset:
    """Prepare, then label, and return the predictions."""
    with tempfile.TemporaryDirectory(prefix="prepared-") as temporary:
        folder = options.output or f"{temporary}/images"
        prepare(options.images, options.model, folder, options.limit)
        return label_prepared(folder, options.model, options.num_gpus, options.darkest).materialize()


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.patterns")
