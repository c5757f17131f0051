"""Write the predictions to Parquet, read them back and count them, and give everything back to the cluster."""

from __future__ import annotations

import tempfile

from pyarrow import fs

from snippets.fundamentals import actor_pool
from snippets.fundamentals.dataset import look_up, open_filesystem

# isort: split
# --8<-- [start:imports]
import time
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray

# --8<-- [end:imports]


# --8<-- [start:write_results]
def write_results(predictions: ray.data.Dataset, folder: str) -> None:
    """Write predictions as Parquet files to a folder or URI that does not exist yet.

    Ray's default appends: a rerun would write every row a second time. This raises `ValueError` instead.
    """
    filesystem, path = open_filesystem(folder)
    predictions.write_parquet(path, filesystem=filesystem, mode=ray.data.SaveMode.ERROR)


# --8<-- [end:write_results]


# --8<-- [start:count_results]
def count_results(folder: str) -> dict[str, Any]:
    """Return `rows`, `ids` (distinct), `errors`, and the count of each label, from the files themselves."""
    filesystem, path = open_filesystem(folder)
    table = pads.dataset(path, filesystem=filesystem).to_table(columns=["id", "label", "error"])
    labels = pc.value_counts(table["label"].drop_null()).to_pylist()
    return {
        "rows": len(table),
        "ids": pc.count_distinct(table["id"]).as_py(),
        "errors": len(table) - table["error"].null_count,
        "labels": {row["values"]: row["counts"] for row in labels},
    }


# --8<-- [end:count_results]


# --8<-- [start:wait_until_released]
def wait_until_released(timeout_s: float = 30) -> bool:
    """Return whether, in time, all CPUs and GPUs are free again: the pool's actors end after the last row."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        total, free = ray.cluster_resources(), ray.available_resources()
        if all(free.get(kind, 0) == total.get(kind, 0) for kind in ("CPU", "GPU")):
            return True
        time.sleep(0.2)
    return False


# --8<-- [end:wait_until_released]


def add_options(parser: Any) -> None:
    """Add what overrides the plan, and where the predictions go."""
    actor_pool.add_options(parser)
    parser.add_argument(
        "--output", help="new folder or s3:// URI for the predictions (default: a temporary folder)"
    )


def run(options: Any) -> ray.data.Dataset:
    """Classify, write, and return what is read back. Raises `ValueError` where the output exists."""
    with tempfile.TemporaryDirectory(prefix="results-") as temporary:
        output = options.output or f"{temporary}/predictions"
        filesystem, path = open_filesystem(output)
        if look_up(filesystem, path).type != fs.FileType.NotFound:
            raise ValueError(f"Results go to a new place, and there is something at {output}.")
        write_results(actor_pool.run(options), output)
        return ray.data.read_parquet(path, filesystem=filesystem).materialize()


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.results")
