"""A fast reader before a slow model, in a process of its own: what each operator has queued, whenever it changes.

`python -m snippets.benchmark.queue_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import ray

from snippets.architecture.backpressure import Account, account
from snippets.architecture.streaming import (
    BLOCK_BYTES,
    ROWS,
    Ledger,
    Watched,
    load_images,
    start_actor,
    watch_executor,
)
from snippets.benchmark.processes import answer_request
from snippets.command import ray_options
from snippets.fundamentals.setup import configure_data_context

STORE_BYTES = 512 * 2**20  # half of it is Ray's own limit, which all blocks are well below
CPUS = 8  # reserved and not used: enough tasks at each of the executor's looks that reading is the faster stage
OPERATORS = ("read", "flip", "model")


def flip(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the columns `id` and `image` of one block, the images mirrored: a copy of as many bytes."""
    return {"id": batch["id"], "image": batch["image"][:, :, ::-1].copy()}


class SlowModel:
    """Stands for a model: it waits a set time for each block."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the column `id` of one batch."""
        time.sleep(self.wait_s)
        return {"id": batch["id"]}


def build_pipeline(blocks: int, in_flight: float, wait_s: float) -> ray.data.Dataset:
    """Return so many blocks, read, flipped, and put through an actor: three operators, as each reserves otherwise.

    `in_flight` limits the blocks in the object store between the first read and the model.
    """
    return (
        load_images(blocks, start_actor(Ledger), in_flight)
        .map_batches(flip, batch_size=None, num_cpus=0.5)
        .map_batches(
            SlowModel,
            fn_constructor_args=(wait_s,),
            batch_size=ROWS,
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
    )


def series(watched: Watched, began: float) -> dict[str, Any]:
    """Return what the executor saw, one value a change: blocks, and seconds since `began`.

    `queued` has each operator's blocks that the next has not taken, `budget_blocks` what is left to it for new
    tasks, and `used_blocks` what all have in the object store, with what their tasks are about to make.
    """
    seen = [(at, look[1:]) for at, look in zip(watched.times, watched.looks, strict=True) if look[0].limit_bytes]

    def of_each(value: Callable[[Account], float]) -> dict[str, list[float]]:
        return {name: [value(look[place]) for _, look in seen] for place, name in enumerate(OPERATORS)}

    return {
        "at_s": [round(at - began, 3) for at, _ in seen],
        "queued": of_each(lambda operator: operator.queued),
        "budget_blocks": of_each(
            lambda operator: round(min(operator.budget_bytes, operator.limit_bytes) / BLOCK_BYTES, 2)
        ),
        "used_blocks": [round(sum(operator.used_bytes for operator in look) / BLOCK_BYTES, 2) for _, look in seen],
    }


def run_queues(blocks: int, in_flight: int | None, wait_s: float) -> dict[str, Any]:
    """Run the pipeline to its last row; return its `rows`, its `seconds` once Ray is there, and `series`."""
    options = ray_options()
    if "RAY_ADDRESS" not in os.environ:
        options |= {"object_store_memory": STORE_BYTES, "num_cpus": CPUS}
    ray.init(**options)
    configure_data_context(progress_bars=False)
    predictions = build_pipeline(blocks, in_flight or float("inf"), wait_s)
    watched = watch_executor(predictions, account)
    began = time.time()
    rows = sum(len(batch["id"]) for batch in predictions.iter_batches(batch_size=None))
    ended = time.time()
    ray.shutdown()
    return {"rows": rows, "seconds": ended - began, **series(watched, began)}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"queues": run_queues}


if __name__ == "__main__":
    answer_request(KINDS)
