"""Gather what a run leaves behind: its plan, its operators' counts and times, what its functions did inside."""

from __future__ import annotations

# --8<-- [start:imports]
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import ray
from ray._private import internal_api

# --8<-- [end:imports]


# --8<-- [start:evidence]
@dataclass(frozen=True)
class Stage:
    """An operator of a run: what the plan gives it, and what it did.

    `actors` is the size of its pool, 0 for tasks; `placed` how many of them ran at once at the most. `max_tasks`
    is the limit that the plan sets to tasks at once. `functions` identifies the functions that it runs, also in
    the plans of other runs. `seconds` is the time in them, all tasks together: the rows, at the median of the
    blocks' seconds a row, so that the first call of a worker, which imports and warms up, does not count more than
    others. `task_rows` and `task_bytes` are what each task returned.
    """

    name: str
    actors: int = 0
    placed: int = 0
    max_tasks: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    batch_size: int | None = None
    functions: tuple[int, ...] = ()
    tasks: int = 0
    blocks_in: int = 0
    rows_in: int = 0
    seconds: float = 0
    task_rows: tuple[int, ...] = ()
    task_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node's CPUs and GPUs, as Ray counts them."""

    cpus: float
    gpus: float = 0


@dataclass(frozen=True)
class Execution:
    """One run of a plan: `state` is `running`, `finished` or `failed`; the stages are in the order of the plan."""

    state: str
    stages: tuple[Stage, ...]
    nodes: dict[str, Node]
    spilled_bytes: int = 0


@dataclass(frozen=True)
class Call:
    """One call of a probed function, with begin and end in seconds since the epoch.

    `files` are those that it opened, `parameters` counts the torch parameters that it made, `graphs` those that
    torch compiled, and `threads` is how many threads its libraries may use.
    """

    function: str
    worker: int
    node: str
    start: float
    end: float
    files: tuple[str, ...] = ()
    parameters: int = 0
    graphs: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Evidence:
    """All that was observed."""

    executions: tuple[Execution, ...] = ()
    calls: tuple[Call, ...] = ()


# --8<-- [end:evidence]


# --8<-- [start:read_stage]
def read_stage(operator: Any, placed: int) -> Stage:
    """Return what a physical operator of Ray Data 2.60 knows of itself, while it runs or after."""
    metrics, arguments = operator.metrics, getattr(operator, "_ray_remote_args", {})
    logical = operator._logical_operators
    pool = getattr(operator, "_actor_pool", None)
    sizes = [size for each in logical if isinstance(size := getattr(each, "batch_size", None), int)]
    limits = [size for each in logical if (size := getattr(getattr(each, "compute", None), "size", None))]
    rows: defaultdict[int, int] = defaultdict(int)
    size_bytes: defaultdict[int, int] = defaultdict(int)
    row_seconds = []
    for block in [block for blocks in operator.get_stats().values() for block in blocks if block.exec_stats]:
        stats, block_rows = block.exec_stats, block.num_rows or 0
        rows[stats.task_idx] += block_rows
        size_bytes[stats.task_idx] += block.size_bytes or 0
        # Functions of a row are timed only together with what is around them.
        inside = stats.function_body_time_s or stats.block_transform_time_s or 0
        row_seconds.append(inside / max(block_rows, 1))
    return Stage(
        operator.name,
        pool.min_size() if pool else 0,
        placed,
        min(limits, default=None),
        arguments.get("num_cpus", 0) or 0,
        arguments.get("num_gpus", 0) or 0,
        max(sizes, default=None),
        # A plan that is derived from another one keeps its operators. `_fn` is not unique: it may be used twice.
        tuple(id(each) for each in logical if getattr(each, "fn", None) is not None),
        metrics.num_tasks_finished,
        metrics.num_inputs_received,
        metrics.num_row_inputs_received,
        median(row_seconds or [0]) * sum(rows.values()),
        tuple(rows.values()),
        tuple(size_bytes.values()),
    )


# --8<-- [end:read_stage]


# --8<-- [start:observing]
class Run:
    """One run of a plan, as its executor shows it. The four methods are those of Ray Data's callbacks."""

    def __init__(self) -> None:
        self.state = "running"
        self.nodes: dict[str, Node] = {}
        self.executor: Any = None
        self.placed: dict[Any, int] = {}
        self.stages: tuple[Stage, ...] = ()
        self.plan: list[Any] = []
        self.spilled_before = self.spilled = 0

    def before_execution_starts(self, executor: Any) -> None:
        """Note where it begins."""
        self.executor, self.spilled_before = executor, spilled_bytes()
        # Kept, so that no other operator gets the identity of one of these.
        self.plan = [each for operator in executor._topology for each in operator._logical_operators]
        self.nodes = {
            node["NodeID"]: Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()
            if node["Alive"]
        }

    def on_execution_step(self, executor: Any) -> None:
        """Count the actors that are there."""
        for operator in executor._topology:
            if pool := getattr(operator, "_actor_pool", None):
                self.placed[operator] = max(pool.num_running_actors(), self.placed.get(operator, 0))

    def after_execution_succeeds(self, executor: Any) -> None:
        """Keep the numbers, and not the executor, which may hold blocks."""
        self._end("finished")

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Keep the numbers."""
        self._end("failed")

    def _end(self, state: str) -> None:
        found = self.execution()
        self.stages, self.spilled = found.stages, found.spilled_bytes
        self.state, self.executor, self.placed = state, None, {}

    def execution(self) -> Execution:
        """Return what is known of the run by now."""
        if self.executor is None:
            return Execution(self.state, self.stages, self.nodes, self.spilled)
        stages = tuple(read_stage(each, self.placed.get(each, 0)) for each in self._operators())
        return Execution(self.state, stages, self.nodes, spilled_bytes() - self.spilled_before)

    def rows_out(self) -> list[int]:
        """Return how many rows each stage has made by now; nothing of a run that has ended."""
        return [int(each.metrics.rows_task_outputs_generated) for each in self._operators()]

    def _operators(self) -> list[Any]:
        topology = self.executor._topology if self.executor is not None else ()
        return [each for each in topology if hasattr(each, "_ray_remote_args")]


class Observation:
    """What is seen of the runs of all datasets that are made while `observing`."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.notes: Any = None

    def __call__(self) -> Run:
        """Return what Ray Data calls during a run. It asks each entry of its list for one."""
        self.runs.append(Run())
        return self.runs[-1]

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # a dataset copies its settings, and this among them

    def __reduce__(self) -> Any:
        return Observation, ()  # workers get the settings too, but nothing of what was seen

    def probe(self, function: Any) -> Any:
        """Return a function, or a class, that does the same and notes what it does in each call."""
        if self.notes is None:
            self.notes = ray.remote(num_cpus=0)(Notes).remote()
            ray.get(self.notes.calls.remote())  # or the first calls would wait until it is there
        return probed(function, self.notes)

    def evidence(self) -> Evidence:
        """Return what was seen so far; runs may be under way."""
        calls = ray.get(self.notes.calls.remote()) if self.notes is not None else []
        return Evidence(tuple(run.execution() for run in self.runs if run.nodes), tuple(calls))


@contextmanager
def observing() -> Iterator[Observation]:
    """Observe the runs of the datasets that are made in the `with` block, also where they run after it."""
    callbacks: list[Any] = ray.data.DataContext.get_current().custom_execution_callback_classes
    observation = Observation()
    callbacks.append(observation)
    try:
        yield observation
    finally:
        callbacks.remove(observation)


def spilled_bytes() -> int:
    """Return what the cluster's object stores have written to disk so far, as Ray Data's stats ask for it."""
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(internal_api.get_memory_info_reply(state).store_stats.spilled_bytes_total)


# --8<-- [end:observing]


# --8<-- [start:probed]
class Notes:
    """Keeps the calls that workers note."""

    def __init__(self) -> None:
        self.noted: list[Call] = []

    def add(self, call: Call) -> None:
        """Keep a call."""
        self.noted.append(call)

    def calls(self) -> list[Call]:
        """Return the calls so far."""
        return self.noted


def probed(function: Any, notes: Any) -> Any:
    """Return a function or class of the same name, of which each call is noted before it returns."""
    name = function.__name__

    def note(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with Meter() as meter:
            result = call(*args, **kwargs)
        ray.get(notes.add.remote(meter.call(name)))
        return result

    if isinstance(function, type):

        def call_actor(self: Any, *args: Any, **kwargs: Any) -> Any:
            return note(function.__call__, self, *args, **kwargs)

        return type(name, (function,), {"__call__": call_actor})

    def call_function(*args: Any, **kwargs: Any) -> Any:
        return note(function, *args, **kwargs)

    call_function.__name__ = name
    return call_function


@dataclass
class Meter:
    """Sees, in a `with` block, what Ray has no record of: files opened, models made, graphs compiled, threads."""

    start: float = 0
    end: float = 0
    parameters: int = 0
    graphs: int = 0
    opened: list[str] = field(default_factory=list)
    hook: Any = None

    def __enter__(self) -> Self:
        self.opened = opened_files()
        self.opened.clear()
        if torch := sys.modules.get("torch"):

            def count(*_: Any) -> None:
                self.parameters += 1

            self.hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
        self.graphs, self.start = compiled_graphs(), time.time()
        return self

    def __exit__(self, *_: object) -> None:
        self.end, self.graphs = time.time(), compiled_graphs() - self.graphs
        if self.hook is not None:
            self.hook.remove()

    def call(self, function: str) -> Call:
        """Return what was seen, as a call of a function."""
        return Call(
            function,
            os.getpid(),
            ray.get_runtime_context().get_node_id(),
            self.start,
            self.end,
            tuple(sorted({path for path in self.opened if is_large(path)})),
            self.parameters,
            self.graphs,
            allowed_threads(),
        )


LARGE_BYTES = 65_536  # of a file: below, it is no model


def is_large(path: str) -> bool:
    """Say whether a path is a file that might be a model."""
    file = Path(path)
    return file.suffix not in {".py", ".pyc"} and file.is_file() and file.stat().st_size >= LARGE_BYTES


def opened_files() -> list[str]:
    """Return a list to which this process adds each file that Python opens to read, from the first call on.

    What a library opens in native code, as ONNX Runtime does, is not seen.
    """
    opened: list[str] | None = getattr(sys, "_opened_files", None)
    if opened is None:
        opened = []

        def hear(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(arguments[0], str) and "r" in (arguments[1] or "r"):
                opened.append(arguments[0])

        sys.addaudithook(hear)  # which cannot be removed, so there is one a process
        sys._opened_files = opened  # type: ignore[attr-defined]
    return opened


def compiled_graphs() -> int:
    """Return how many graphs `torch.compile` has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def allowed_threads() -> int:
    """Return how many threads torch may use here, or where it is not there, libraries that follow OpenMP."""
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS", 1))


# --8<-- [end:probed]
