"""One stream in a process of its own: its peak memory and object store, its first row's time, what ran when.

`python -m snippets.benchmark.streaming_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private.internal_api import node_stats
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer

from snippets.architecture.streaming import ROWS, Ledger, load_images, note, start_actor, timeline
from snippets.benchmark.processes import answer_request
from snippets.benchmark.streaming import SIDE
from snippets.command import ray_options
from snippets.fundamentals.setup import configure_data_context
from snippets.recording import recording

ACTORS = 2
STORE_BYTES = 512 * 2**20  # an object store that a larger dataset does not fit into
SAMPLE_S = 0.1


class TimedModel:
    """Stands for a model that is slower than the reads: it waits a set time for each block."""

    def __init__(self, ledger: Any, wait_s: float) -> None:
        self.ledger, self.wait_s = ledger, wait_s

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the column `id` of one batch."""
        began = time.time()
        time.sleep(self.wait_s)
        note(self.ledger, "model", int(batch["id"][0]) // ROWS, began)
        return {"id": batch["id"]}


class StoreSampler:
    """The most bytes that lay in the object stores of all nodes, sampled by a thread."""

    def __init__(self) -> None:
        self.nodes = [
            (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes() if node["Alive"]
        ]
        self.peak_bytes, self.stopped = 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        """End the thread, after one last sample; return the peak in bytes."""
        self.stopped.set()
        self.thread.join()
        return self.peak_bytes

    def _sample(self) -> None:
        is_last = False
        while not is_last:
            is_last = self.stopped.wait(SAMPLE_S)
            stats = [node_stats(*node, include_memory_info=False).store_stats for node in self.nodes]
            self.peak_bytes = max(self.peak_bytes, sum(each.object_store_bytes_used for each in stats))


def count_read_tasks(dataset: ray.data.Dataset) -> list[int]:
    """Return a list that gets the bytes of the dataset's read tasks in the object store, once it has run."""
    found: list[int] = []

    class Count(ExecutionCallback):  # type: ignore[misc]
        def after_execution_succeeds(self, executor: Any) -> None:
            inputs = next(each for each in executor._topology if isinstance(each, InputDataBuffer))
            found.append(sum(bundle.size_bytes() for bundle in inputs._input_data))

    dataset.context.custom_execution_callback_classes.append(Count)  # the dataset's own copy
    return found


def run_stream(
    blocks: int,
    in_flight: int,
    wait_s: float,
    materialize: bool = False,
    free_objects_ms: int | None = None,
    with_timeline: bool = False,
) -> dict[str, Any]:
    """Read so many blocks, pass them through the model, and drop what comes out; or materialize before that.

    `first_row_seconds` and `seconds` begin with the first read, once Ray is there; `reads_before_first` counts
    the blocks read when the first row came out. `peak_memory_bytes` is of all processes, see `recording`, and
    `peak_store_bytes` of the object stores, of which `read_tasks_bytes` are the read tasks. `timeline` has a row
    a call, where it is asked for. With `free_objects_ms` a Ray that is started here frees what nobody refers to so
    often.
    """
    options = ray_options()
    if "RAY_ADDRESS" not in os.environ:
        options["object_store_memory"] = STORE_BYTES
        if free_objects_ms:
            options["_system_config"] = {"free_objects_period_milliseconds": free_objects_ms}
    with recording(**options) as record:
        configure_data_context(progress_bars=False)
        ledger, store = start_actor(Ledger), StoreSampler()
        predictions = load_images(blocks, ledger, in_flight, SIDE).map_batches(
            TimedModel,
            fn_constructor_args=(ledger, wait_s),
            batch_size=ROWS,
            num_cpus=0,
            compute=ray.data.ActorPoolStrategy(size=ACTORS),
        )
        read_tasks = count_read_tasks(predictions)
        began = time.monotonic()
        if materialize:
            predictions = predictions.materialize()
        batches = iter(predictions.iter_batches(batch_size=None))
        rows = len(next(batches)["id"])
        first = time.monotonic()
        reads = len(ray.get(ledger.blocks.remote("read")))
        rows += sum(len(batch["id"]) for batch in batches)
        ended, peak_store = time.monotonic(), store.stop()
        spans = ray.get(ledger.all.remote()) if with_timeline else []
        del ledger
    ray.shutdown()
    return {
        "rows": rows,
        "seconds": ended - began,
        "first_row_seconds": first - began,
        "reads_before_first": reads,
        "peak_memory_bytes": record.peak_memory_bytes,
        "peak_store_bytes": peak_store,
        "read_tasks_bytes": read_tasks[0],
        "timeline": timeline(spans) if spans else [],
    }


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"stream": run_stream}


if __name__ == "__main__":
    answer_request(KINDS)
