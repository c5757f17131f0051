"""Record what a run does from outside the code that is shown: model loads, batches, decoding, memory.

A hook in each of Ray's workers wraps the functions to watch as their modules are imported, so that a pipeline
runs unchanged. Each node has one recorder, an actor that keeps the events and samples the node's memory.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
import wrapt
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SAMPLE_S = 1
SAMPLING_SHARE = 1 / 50  # of a core, at most: the kernel walks through all memory to tell what is shared
WATCHED = {  # module -> function or method -> kind of event
    "transformers.modeling_utils": {"PreTrainedModel.from_pretrained": "load"},
    "transformers.pipelines": {"pipeline": "pipeline"},
    "transformers.pipelines.image_classification": {
        "ImageClassificationPipeline.preprocess": "preprocess",
        "ImageClassificationPipeline._forward": "forward",
    },
    "snippets.fundamentals.naive": {"classify_batch": "batch"},
    "snippets.fundamentals.actor_pool": {"decode": "decode", "Classifier.__call__": "batch"},
    "snippets.fundamentals.stepwise": {"KeptModel.__call__": "batch"},
    "snippets.fundamentals.preprocessing": {"read_headers": "decode", "add_features": "batch"},
    "snippets.optimization.engines": {"open_engine": "load"},
    "snippets.optimization.ladder": {"CompiledClassifier.__call__": "batch"},
    "snippets.optimization.own_model": {"Worker.__call__": "batch"},
    "snippets.optimization.ensemble_views": {"decode_views": "decode"},
    "snippets.optimization.ensemble": {"LoadedModel.forward": "batch"},
    "snippets.benchmark.contenders": {"InferenceWorker.__call__": "batch"},
}
PER_BATCH = ("batch", "decode")


@dataclass(frozen=True)
class Event:
    """One call of a watched function: its worker, its begin and end in seconds since the epoch."""

    kind: str  # load, batch, decode ...: a value in WATCHED
    worker: str  # node and process
    start: float
    end: float
    rows: int  # of the batch it was called with; 0 for a load
    device: str  # what the worker computes on


@dataclass
class Recording:
    """What a run did. It is complete once the `recording` block has ended."""

    events: list[Event] = field(default_factory=list)
    peak_memory_bytes: int = 0
    began: float = 0  # in seconds since the epoch, as are the next two
    connected: float = 0  # to Ray, and the recorders are there
    ended: float = 0

    def of(self, kind: str) -> list[Event]:
        """Return the events of a kind, by their begin."""
        return sorted((event for event in self.events if event.kind == kind), key=lambda event: event.start)

    def report(self) -> dict[str, Any]:
        """Return what the run did, in numbers.

        `seconds` and `start_up_seconds` begin once Ray is there, which takes `ray_init_seconds`; for
        `steady_rows_per_second` and `start_up_seconds` see the functions below, for `peak_memory_bytes` see
        `recording`. `model_loads` and `batches` count the calls.
        """
        batches = self.of("batch")
        return {
            "seconds": self.ended - self.connected,
            "ray_init_seconds": self.connected - self.began,
            "start_up_seconds": start_up_seconds(batches, self.connected),
            "steady_rows_per_second": steady_rate(batches),
            "model_loads": len(self.of("load")),
            "batches": len(batches),
            "peak_memory_bytes": self.peak_memory_bytes,
            "device": ", ".join(sorted({event.device for event in batches})) or "cpu",
        }


@contextmanager
def recording(**init: Any) -> Iterator[Recording]:
    """Connect to Ray with the hook in its workers, and yield a recording that is filled at the end.

    `init` goes to `ray.init()`. The peak memory is the largest proportional set size (PSS, in which pages that
    processes share count once) of the driver plus, for each node, that of its raylet and workers. The parts
    need not peak together, so that the sum is an upper bound. Where the system has no PSS, as on macOS, it is
    the unique set size.
    """
    began = time.time()
    ray.init(runtime_env={"worker_process_setup_hook": watch}, **init)
    recorders = [_start_recorder(node["NodeID"]) for node in ray.nodes() if node["Alive"]]
    ray.get([recorder.ready.remote() for recorder in recorders])
    driver, found = MemorySampler([psutil.Process()], with_children=False), Recording()
    found.began, found.connected = began, time.time()
    try:
        yield found
        found.ended = time.time()
        for events, peak in ray.get([recorder.finish.remote() for recorder in recorders]):
            found.events += events
            found.peak_memory_bytes += peak
        found.peak_memory_bytes += driver.stop()
    finally:
        driver.stop()
        for recorder in recorders:
            ray.kill(recorder)


def recorder_name(node_id: str) -> str:
    """Return the name of the recorder of a node."""
    return f"recorder-{node_id}"


def _start_recorder(node_id: str) -> Any:
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": on_node, "name": recorder_name(node_id)}
    return ray.remote(Recorder).options(**options).remote()


class Recorder:
    """The events and the peak memory of one node."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.memory = MemorySampler([psutil.Process(os.getppid())], with_children=True)  # a worker's parent

    def ready(self) -> None:
        """Return once the recorder is there."""

    def record(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def finish(self) -> tuple[list[Event], int]:
        """Return the events, and the peak memory in bytes."""
        return self.events, self.memory.stop()


class MemorySampler:
    """The peak memory of some processes, sampled by a thread."""

    def __init__(self, processes: list[psutil.Process], with_children: bool) -> None:
        self.processes, self.with_children, self.peak_bytes = processes, with_children, 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._sample, name="memory-sampler", daemon=True)
        self.thread.start()

    def stop(self) -> int:
        """End the thread, after one last sample; return the peak in bytes. Stopping twice does no harm."""
        self.stopped.set()
        self.thread.join()
        return self.peak_bytes

    def _sample(self) -> None:
        is_last, wait_s = False, float(SAMPLE_S)
        while not is_last:
            is_last = self.stopped.wait(wait_s)
            began_s = time.thread_time()
            found = list(self.processes)
            for process in self.processes if self.with_children else []:
                found += process.children(recursive=True)
            self.peak_bytes = max(self.peak_bytes, sum(map(_memory_bytes, found)))
            wait_s = max(SAMPLE_S, (time.thread_time() - began_s) / SAMPLING_SHARE)


def _memory_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.Error:  # it ended
        return 0
    return int(getattr(memory, "pss", memory.uss))


def watch() -> None:
    """Wrap the functions to watch, in this worker, when and if their modules are imported."""
    for module, functions in WATCHED.items():
        wrapt.when_imported(module)(functools.partial(_wrap_functions, functions=functions))


def _wrap_functions(module: Any, functions: Mapping[str, str]) -> None:
    for name, kind in functions.items():
        wrapt.wrap_function_wrapper(module, name, _recorded(kind))


def _recorded(kind: str) -> Callable[..., Any]:
    def call(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start = time.time()
        result = wrapped(*args, **kwargs)
        batch = args[0] if args else None
        if isinstance(batch, dict):  # a NumPy batch; a frame has its length
            batch = next(iter(batch.values()), ())
        rows = len(batch) if kind in PER_BATCH and batch is not None else 0
        _record(Event(kind, _worker(), start, time.time(), rows, _device()))
        return result

    return call


def _record(event: Event) -> None:
    # Waiting for the answer makes the count exact: no event is on its way when the run ends.
    recorder = ray.get_actor(recorder_name(ray.get_runtime_context().get_node_id()))
    ray.get(recorder.record.remote(event))


def _worker() -> str:
    return f"{ray.get_runtime_context().get_node_id()[:8]}:{os.getpid()}"


def _device() -> str:
    torch = sys.modules.get("torch")
    in_use = torch is not None and torch.cuda.is_initialized()
    return str(torch.cuda.get_device_name()) if torch is not None and in_use else "cpu"


def steady_rate(batches: list[Event]) -> float | None:
    """Return rows per second in steady state, or None where there is too little of it.

    Let w be the most batches that were at work at once. Steady state begins when w workers have ended their
    first batch, so that imports, loads and warm-up are over, and ends when fewer than w workers have a batch
    left. A batch that lies partly within counts by the share of its time that does. There is too little where
    that is less than one batch a worker.
    """
    by_worker: dict[str, list[Event]] = {}
    for event in batches:
        by_worker.setdefault(event.worker, []).append(event)
    width = most_at_once(batches)
    if not width or len(by_worker) < width:
        return None
    begin = sorted(min(event.end for event in events) for events in by_worker.values())[width - 1]
    end = sorted(max(event.end for event in events) for events in by_worker.values())[-width]
    if end <= begin:
        return None
    inside = sum(
        event.rows * (min(end, event.end) - max(begin, event.start)) / (event.end - event.start)
        for event in batches
        if event.start < end and event.end > begin
    )
    typical = sorted(event.rows for event in batches)[len(batches) // 2]
    return inside / (end - begin) if inside >= width * typical > 0 else None


def most_at_once(events: list[Event]) -> int:
    """Return how many of the calls overlapped at most."""
    steps = sorted([(event.start, 1) for event in events] + [(event.end, -1) for event in events])
    running = most = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


def start_up_seconds(batches: list[Event], started: float) -> float | None:
    """Return the seconds from `started` (since the epoch) until as many batches are at work as ever are."""
    width = most_at_once(batches)
    first: dict[str, float] = {}
    for event in batches:
        first[event.worker] = min(event.start, first.get(event.worker, event.start))
    return sorted(first.values())[width - 1] - started if first else None
