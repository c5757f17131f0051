"""Streaming execution: blocks come out while others are unread, and reads run ahead only so far."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from snippets.command import Parser, connection, format_report, positive
from snippets.fundamentals.setup import configure_data_context

# isort: split
# --8<-- [start:imports]
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

# --8<-- [end:imports]


# --8<-- [start:ledger]
@dataclass(frozen=True)
class Span:
    """One call of a function in a worker: `began` and `ended` are seconds since the epoch."""

    operator: str
    block: int
    worker: str  # node and process
    began: float
    ended: float


class Ledger:
    """Keeps what workers say that they have done."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.noted = asyncio.Condition()

    async def note(self, span: Span) -> None:
        """Keep one call."""
        async with self.noted:
            self.spans.append(span)
            self.noted.notify_all()

    async def wait_for(self, operator: str, count: int) -> None:
        """Return once a function has finished so many blocks."""
        async with self.noted:
            await self.noted.wait_for(lambda: self.count(operator) >= count)

    def count(self, operator: str) -> int:
        """Return how many blocks a function has finished."""
        return sum(span.operator == operator for span in self.spans)

    async def all(self) -> list[Span]:
        """Return the calls so far."""
        return self.spans

    async def blocks(self, operator: str) -> list[int]:
        """Return which blocks a function has finished, in that order."""
        return [span.block for span in self.spans if span.operator == operator]


class Gate:
    """Holds whoever passes until it is open."""

    def __init__(self) -> None:
        self.opened, self.arrived = asyncio.Event(), asyncio.Condition()
        self.waiting = 0

    async def go_through(self) -> None:
        """Return once the gate is open."""
        async with self.arrived:
            self.waiting += 1
            self.arrived.notify_all()
        await self.opened.wait()

    async def wait_for(self, count: int) -> int:
        """Return how many have come to the gate, once there are `count` of them."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.waiting >= count)
        return self.waiting

    async def open(self) -> None:
        """Let through who waits, and all who come."""
        self.opened.set()


def start_actor(kind: type) -> Any:
    """Return an actor that reserves no CPU. It ends when nothing refers to it."""
    return ray.remote(num_cpus=0)(kind).remote()


def note(ledger: Any, operator: str, block: int, began: float) -> None:
    """Write into the ledger that a call ended now, in this worker."""
    context = ray.get_runtime_context()
    worker = f"{context.get_node_id()[:6]}-{context.get_worker_id()[:6]}"
    ray.get(ledger.note.remote(Span(operator, block, worker, began, time.time())))


# --8<-- [end:ledger]


# --8<-- [start:load_images]
ROWS, SIDE = 4, 512  # rows in a block, and pixels along the edge of its images
BLOCK_BYTES = ROWS * SIDE * SIDE


def read(batch: dict[str, Any], side: int, ledger: Any = None, gate: Any = None, held: int = -1) -> dict[str, Any]:
    """Return a block: `id` and `image` (uint8, ROWS x side x side). Block `held` waits at the gate first."""
    began, block = time.time(), int(batch["id"][0]) // ROWS
    if block == held:
        ray.get(gate.go_through.remote())
    images = np.full((len(batch["id"]), side, side), block % 256, np.uint8)
    if ledger is not None:
        note(ledger, "read", block, began)
    return {"id": batch["id"], "image": images}


def load_images(
    blocks: int, ledger: Any = None, in_flight: float = float("inf"), side: int = SIDE, **arguments: Any
) -> ray.data.Dataset:
    """Return a dataset of so many blocks, each made by a task of its own; `arguments` go to `read`.

    `in_flight` limits, in blocks, what may lie in the object store between the reads and the consumer.
    """
    rows = ray.data.range(ROWS * blocks, override_num_blocks=blocks)
    options = rows.context.execution_options
    options.resource_limits = options.resource_limits.copy(object_store_memory=in_flight * ROWS * side**2)
    return rows.map_batches(read, batch_size=None, fn_kwargs={"side": side, "ledger": ledger, **arguments})


# --8<-- [end:load_images]


# --8<-- [start:watch_executor]
SETTLED_STEPS = 50  # of the executor: where nothing changed in these, nothing is about to


@dataclass(frozen=True)
class Look:
    """An operator as the executor saw it: counts of its tasks, and of its blocks that nobody has taken yet."""

    operator: str
    submitted: int
    finished: int
    queued: int
    is_held_back: bool


@dataclass
class Watched:
    """What an executor looked like whenever something had changed, and how many steps ago the last change was."""

    looks: list[list[Any]] = field(default_factory=list)
    unchanged_steps: int = 0
    times: list[float] = field(default_factory=list)  # of the looks, in seconds since the epoch

    def add(self, seen: list[Any]) -> None:
        """Keep what the executor looks like after a step."""
        self.unchanged_steps += 1
        if self.looks[-1:] != [seen]:
            self.looks.append(seen)
            self.times.append(time.time())
            self.unchanged_steps = 0


def look(_: Any, operator: Any) -> Look:
    """Return an executor's counts of an operator. The names are Ray's own, and may change with it."""
    metrics = operator.metrics
    return Look(
        operator.name,
        metrics.num_tasks_submitted,
        metrics.num_tasks_finished,
        metrics.num_external_outqueue_blocks,
        operator._in_task_submission_backpressure,
    )


def watch_executor(dataset: ray.data.Dataset, look: Callable[[Any, Any], Any] = look) -> Watched:
    """Return what is filled while the dataset runs, with what `look` returns of an executor and its operators."""
    watched = Watched()

    class Watch(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: Any) -> None:
            watched.add([look(executor, operator) for operator in executor._topology])

    dataset.context.custom_execution_callback_classes.append(Watch)  # the dataset's own copy
    return watched


# --8<-- [end:watch_executor]


# --8<-- [start:run_ahead]
def wait_until_settled(watched: Watched, made: Callable[[], int], timeout_s: float = 120) -> None:
    """Return once every read that was begun has ended, and the executor holds back the others.

    Raises `TimeoutError`.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        reads = watched.looks[-1][-1] if watched.looks else None
        is_settled = watched.unchanged_steps >= SETTLED_STEPS
        if reads and is_settled and reads.finished > 0 and made() == reads.submitted and reads.is_held_back:
            return
        time.sleep(0.01)
    raise TimeoutError("The executor neither holds the reads back nor ends.")


def run_ahead(blocks: int, in_flight: int) -> dict[str, int]:
    """Take one block, wait until the executor begins no more reads, and take the rest; return counts of blocks.

    `at_first` had been read when the first came out, `ahead` when the reads stood still; `out` came out in all.
    """
    ledger = start_actor(Ledger)
    images = load_images(blocks, ledger, in_flight)
    watched = watch_executor(images)
    batches = iter(images.iter_batches(batch_size=None))
    next(batches)

    def made() -> int:
        return len(ray.get(ledger.blocks.remote("read")))

    at_first = made()
    wait_until_settled(watched, made)
    return {"blocks": blocks, "at_first": at_first, "ahead": made() - 1, "out": 1 + sum(1 for _ in batches)}


# --8<-- [end:run_ahead]


# --8<-- [start:reads_before_first_batch]
def reads_before_first_batch(
    build: Callable[[ray.data.Dataset], ray.data.Dataset], blocks: int, in_flight: int
) -> int:
    """Return how many of the blocks had been read when the first batch of what `build` makes of them came out."""
    ledger = start_actor(Ledger)
    batches = iter(build(load_images(blocks, ledger, in_flight)).iter_batches(batch_size=None))
    next(batches)
    return len(ray.get(ledger.blocks.remote("read")))


# --8<-- [end:reads_before_first_batch]


# --8<-- [start:brightness]
class Brightness:
    """Stands for a model: `id` and the mean `brightness` of each image. It opens a gate with its first batch."""

    def __init__(self, ledger: Any, gate: Any) -> None:
        self.ledger, self.gate = ledger, gate

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of one batch."""
        began, block = time.time(), int(batch["id"][0]) // ROWS
        brightness = batch["image"].mean(axis=(1, 2))
        note(self.ledger, "model", block, began)
        ray.get(self.gate.open.remote())
        return {"id": batch["id"], "brightness": brightness}


def measure_brightness(images: ray.data.Dataset, ledger: Any, gate: Any, actors: int = 2) -> ray.data.Dataset:
    """Return the brightness of each image, from a pool of actors that reserve no CPU."""
    return images.map_batches(
        Brightness,
        fn_constructor_args=(ledger, gate),
        batch_size=ROWS,
        num_cpus=0,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )


def timeline(spans: list[Span]) -> list[dict[str, Any]]:
    """Return one row a call, by its begin: worker, operator, block, and its seconds since the first began."""
    first = min(span.began for span in spans)
    return [
        {
            "worker": span.worker,
            "operator": span.operator,
            "block": span.block,
            "began_s": span.began - first,
            "ended_s": span.ended - first,
        }
        for span in sorted(spans, key=lambda span: span.began)
    ]


# --8<-- [end:brightness]


def run(options: Any) -> list[dict[str, Any]]:
    """Return the timeline of a pipeline whose last read waits until the model has had its first batch."""
    ledger, gate = start_actor(Ledger), start_actor(Gate)
    held = options.blocks - 1 or -1  # a block alone cannot wait for one before it
    images = load_images(options.blocks, ledger, gate=gate, held=held)
    measure_brightness(images, ledger, gate).materialize()
    return timeline(ray.get(ledger.all.remote()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pipeline, and print its timeline; return 0, or exit with 2 for input that cannot be used."""
    parser = Parser(prog="python -m snippets.architecture.streaming", description=__doc__)
    parser.add_argument("--blocks", type=positive, default=16, help="of four images each (default: 16)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with connection():
        configure_data_context(progress_bars=False)
        rows = run(options)
    sys.stdout.write(json.dumps(rows) + "\n" if options.json else format_report({}, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
