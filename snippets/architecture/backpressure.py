"""Resources and backpressure: what waits before a slow model, who may use how much, and which pools deadlock."""

from __future__ import annotations

import json
import sys

from snippets.architecture.streaming import (
    ROWS,
    Gate,
    Look,
    Watched,
    load_images,
    look,
    start_actor,
    watch_executor,
)
from snippets.command import Parser, connection, format_report, positive
from snippets.fundamentals.setup import configure_data_context

# isort: split
# --8<-- [start:imports]
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

# --8<-- [end:imports]


# --8<-- [start:gated_model]
class GatedModel:
    """Stands for a model slower than anything: each batch waits at a gate, and that of block `held` at another."""

    def __init__(self, gate: Any, last_gate: Any = None, held: int = -1) -> None:
        self.gate, self.last_gate, self.held = gate, last_gate, held

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the column `id` of one batch, once the gates are open."""
        ray.get(self.gate.go_through.remote())
        if int(batch["id"][0]) // ROWS == self.held:
            ray.get(self.last_gate.go_through.remote())
        return {"id": batch["id"]}


def classify_behind(
    gates: Sequence[Any], images: ray.data.Dataset, pool: Any, num_cpus: float = 0
) -> ray.data.Dataset:
    """Return the ids of the images after a pool of `GatedModel`; `gates` and more are its arguments."""
    return images.map_batches(
        GatedModel, fn_constructor_args=gates, batch_size=ROWS, compute=pool, num_cpus=num_cpus
    )


# --8<-- [end:gated_model]


# --8<-- [start:account]
@dataclass(frozen=True)
class Account(Look):
    """What an operator has, and may have. Bytes are in the object store.

    `used_bytes` are its blocks until the next operator has done with them, and what its running tasks will make.
    `reserved_bytes` nobody else may use, and `budget_bytes` are left to it for new tasks. `limit_bytes` and
    `limit_cpus` are those of the whole dataset. `actors` are alive.
    """

    used_bytes: float
    reserved_bytes: float
    budget_bytes: float
    limit_bytes: float
    limit_cpus: float
    actors: int


def account(executor: Any, operator: Any) -> Account:
    """Return an executor's account of an operator. The names are Ray's own, and may change with it."""
    manager = executor._resource_manager
    allocator, limits, budget = (
        manager.op_resource_allocator,
        manager.get_global_limits(),
        manager.get_budget(operator),
    )
    tasks = allocator._op_reserved.get(operator)
    for_outputs = allocator._reserved_for_op_outputs.get(operator, 0)
    return Account(
        **vars(look(executor, operator)),
        used_bytes=manager.get_op_usage(operator).object_store_memory,
        reserved_bytes=tasks.object_store_memory + for_outputs if tasks else 0,
        budget_bytes=budget.object_store_memory if budget else 0,
        limit_bytes=limits.object_store_memory,
        limit_cpus=limits.cpu,
        actors=sum(pool.num_running_actors() for pool in operator.get_autoscaling_actor_pools()),
    )


# --8<-- [end:account]


# --8<-- [start:while_running]
TIMEOUT_S = 240  # for the executor to come to look so: a dataset that ended without a word counts for 180 s


@contextmanager
def while_running(dataset: ray.data.Dataset) -> Iterator[Watched]:
    """Execute a dataset beside the block of a `with`, which sees its accounts; wait for its last row after it."""
    watched, failed = watch_executor(dataset, account), []

    def consume() -> None:
        try:
            for _ in dataset.iter_batches(batch_size=None):
                pass
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=consume, daemon=True)  # that of a block that failed may wait for ever
    thread.start()
    yield watched
    thread.join()
    if failed:
        raise failed[0]


def wait_until(
    watched: Watched, is_so: Callable[[list[Account]], bool], steps: int = 0, timeout_s: float = TIMEOUT_S
) -> Any:
    """Return the accounts once they are so, and have not changed for so many steps. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        seen = watched.looks[-1] if watched.looks else []
        if seen and watched.unchanged_steps >= steps and is_so(seen):
            return seen
        time.sleep(0.01)
    raise TimeoutError("The executor did not come to look like that.")


# --8<-- [end:while_running]


# --8<-- [start:hold_back]
STILL_STEPS = 20  # of the executor, each of which waits a tenth of a second while a batch is at the gate


def hold_back(blocks: int, in_flight: float) -> tuple[list[Account], list[list[Account]]]:
    """Run a reader before a model that takes no step until the reads stand still; let it go, and end.

    Returns the accounts when they stood still, and all accounts in their order.
    """
    gate = start_actor(Gate)
    images = load_images(blocks, in_flight=in_flight)

    def is_still(seen: list[Account]) -> bool:
        _, reads, model = seen
        has_stopped = reads.finished == blocks or (reads.finished > 0 and reads.is_held_back)
        return has_stopped and model.submitted > 0 and model.limit_bytes > 0

    with while_running(classify_behind([gate], images, ray.data.ActorPoolStrategy(size=1))) as watched:
        still = wait_until(watched, is_still, STILL_STEPS)
        ray.get(gate.open.remote())
    return still, watched.looks


def queued(looks: list[list[Account]]) -> list[dict[str, int]]:
    """Return, for each change that the executor saw, the blocks of each operator that nobody has taken yet."""
    return [{operator.operator: operator.queued for operator in seen[1:]} for seen in looks]


# --8<-- [end:hold_back]


# --8<-- [start:resize_pool]
def resize_pool(most: int, least: int = 1, blocks: int = 12) -> tuple[int, int]:
    """Run a pool; return its actors while all its batches are held, and while that of one block is."""
    gate, last_gate = start_actor(Gate), start_actor(Gate)
    pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most)
    images = load_images(blocks)
    with while_running(classify_behind([gate, last_gate, blocks - 1], images, pool)) as watched:
        grown = ray.get(gate.wait_for.remote(most), timeout=TIMEOUT_S)  # as many actors hold a batch each
        ray.get(gate.open.remote())
        ray.get(last_gate.wait_for.remote(1), timeout=TIMEOUT_S)
        shrunk = wait_until(watched, lambda seen: seen[-1].actors == 1)[-1].actors
        ray.get(last_gate.open.remote())
    return grown, shrunk


# --8<-- [end:resize_pool]


# --8<-- [start:limits]
def limits_of(
    watched: Watched, is_so: Callable[[Account], bool] = lambda of: of.limit_cpus > 0
) -> tuple[float, float]:
    """Return the CPUs and the bytes that a running dataset may use. It learns them a moment after its start."""
    seen = wait_until(watched, lambda seen: is_so(seen[0]))[0]
    return seen.limit_cpus, seen.limit_bytes


def held_images(gate: Any) -> ray.data.Dataset:
    """Return a dataset of two blocks, of which the second waits at a gate."""
    return load_images(2, gate=gate, held=1)


def share_cluster() -> list[tuple[float, float]]:
    """Return the limits of a dataset alone, beside another, and after that has ended."""
    gate, other_gate = start_actor(Gate), start_actor(Gate)
    half: float = ray.cluster_resources()["object_store_memory"] / 2

    def is_alone(of: Account) -> bool:
        return abs(of.limit_bytes - half) < 1

    with while_running(held_images(gate)) as watched:
        alone = limits_of(watched, is_alone)
        with while_running(held_images(other_gate)) as other:
            limits_of(other)
            beside = limits_of(watched, lambda of: of.limit_bytes < alone[1])
            ray.get(other_gate.open.remote())
        after = limits_of(watched, is_alone)
        ray.get(gate.open.remote())
    return [alone, beside, after]


# --8<-- [end:limits]


# --8<-- [start:feed_pool]
def feed_pool(pool: Any, num_cpus: float, no_progress_timeout_s: float) -> ray.data.Dataset:
    """Return 16 images in 4 blocks, before a pool of models that wait for nothing.

    It raises `ray.data.exceptions.ExecutionTimeoutError` where nothing has moved for so long.
    """
    gate = start_actor(Gate)
    ray.get(gate.open.remote())
    rows = classify_behind([gate], load_images(4), pool, num_cpus)
    rows.context.execution_no_progress_timeout_s = no_progress_timeout_s
    return rows


def cpus_left(actors: int, num_cpus: float) -> float:
    """Return the CPUs of the cluster that a pool leaves to the tasks that feed it."""
    return float(ray.cluster_resources()["CPU"]) - actors * num_cpus


# --8<-- [end:feed_pool]


def run(options: Any) -> list[dict[str, Any]]:
    """Return the accounts of the operators when the reads stand still before a model that does."""
    still, _ = hold_back(options.blocks, options.in_flight or float("inf"))
    return [vars(operator) for operator in still[1:]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline, and print the accounts; return 0, or exit with 2 for input that cannot be used."""
    parser = Parser(prog="python -m snippets.architecture.backpressure", description=__doc__)
    parser.add_argument("--blocks", type=positive, default=32, help="of four images each (default: 32)")
    parser.add_argument("--in-flight", type=positive, help="blocks in the object store (default: no limit)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with connection():
        configure_data_context(progress_bars=False)
        rows = run(options)
    sys.stdout.write(json.dumps(rows) + "\n" if options.json else format_report({}, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
