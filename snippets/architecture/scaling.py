"""Beyond one machine: nodes that are processes here, an accelerator that is a wait, and what the driver does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Self

from snippets.command import Parser, format_report, positive, stdout_for_the_answer
from snippets.fundamentals.setup import configure_data_context

# isort: split
# --8<-- [start:imports]
import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

# --8<-- [end:imports]
# isort: split
import shutil
import tempfile

from ray._private import ray_constants
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# What keeps a cluster to this machine and to itself: the loopback, no token, and no report to anyone.
ENVIRONMENT = {
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class LocalCluster:
    """A head without a CPU, and nodes of one CPU and one *logical* GPU each: real raylets on this machine.

    The driver is on the head. A node takes a few processes and about 300 MB. Leaving the `with` block stops all.
    """

    def __init__(self, nodes: int = 1) -> None:
        # Not in TMPDIR: sockets lie in here, and their paths are limited to about 100 characters.
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        variables = {**ENVIRONMENT, "RAY_TMPDIR": self._folder}
        self._before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        ray_constants.ENABLE_RAY_CLUSTER = False  # as the variable, which Ray has read already
        self._cluster = Cluster()
        self.nodes: list[Any] = []
        ports = {"dashboard_host": "127.0.0.1", "dashboard_port": 0, "dashboard_agent_listen_port": None}
        try:
            self._cluster.add_node(num_cpus=0, include_dashboard=False, **ports)
            self.resize(nodes)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What `ray.init(address=...)` takes."""
        return str(self._cluster.address)

    def connect(self) -> None:
        """Make this process a driver of the cluster."""
        ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)

    def node_ids(self) -> list[str]:
        """Return the ids of the nodes, in the order in which they joined."""
        return [node.node_id for node in self.nodes]

    def add_node(self) -> None:
        """Let a node join; return once Ray knows it."""
        self.nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1))

    def remove_node(self) -> None:
        """Kill the newest node with all of its processes, without a word before."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def resize(self, nodes: int) -> None:
        """Add or remove nodes until there are so many."""
        while len(self.nodes) < nodes:
            self.add_node()
        while len(self.nodes) > nodes:
            self.remove_node()

    def close(self) -> None:
        """Disconnect, stop every process of the cluster and remove its files."""
        ray.shutdown()
        self._cluster.shutdown()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --8<-- [start:timed_model]
class Barrier:
    """Holds those who arrive until there are enough of them; from then on it holds nobody."""

    def __init__(self, count: int) -> None:
        self.left, self.opened = count, asyncio.Event()

    async def arrive(self) -> None:
        """Return once `count` have arrived."""
        self.left -= 1
        if self.left <= 0:
            self.opened.set()
        await self.opened.wait()


class TimedModel:
    """Stands for a model on an accelerator: it waits a set time a batch, and says where and when it did.

    Like the kernels of a GPU, a wait takes no core: many nodes fit on one machine, and scheduling is what is left.
    """

    def __init__(self, wait_s: float, waits_s: dict[str, float] | None = None, barrier: Any = None) -> None:
        self.node = ray.get_runtime_context().get_node_id()
        self.wait_s = (waits_s or {}).get(self.node, wait_s)
        self.barrier = barrier

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return `id`, `node`, `began_s`, `ended_s` (of the epoch) of a row: it stands for a batch of images."""
        if self.barrier is not None:
            ray.get(self.barrier.arrive.remote())
            self.barrier = None
        began = time.time()
        time.sleep(self.wait_s)
        times = {"began_s": np.array([began]), "ended_s": np.array([time.time()])}
        return {"id": batch["id"], "node": np.array([self.node]), **times}


def list_batches(count: int) -> ray.data.Dataset:
    """Return a row a batch, each in a block of its own, so that each is a task."""
    return ray.data.range(count, override_num_blocks=count)


def classify_timed(
    batches: ray.data.Dataset, actors: int, wait_s: float, gpus: float = 1, **arguments: Any
) -> ray.data.Dataset:
    """Return the batches after a pool whose actors reserve `gpus` each; `arguments` are those of `TimedModel`."""
    return batches.map_batches(
        TimedModel,
        fn_constructor_kwargs={"wait_s": wait_s, **arguments},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=0,
        num_gpus=gpus,
    )


# --8<-- [end:timed_model]


# --8<-- [start:calls]
@dataclass(frozen=True)
class Call:
    """One batch: its row, the node that took it, and the seconds of the epoch when it began and ended."""

    id: int
    node: str
    began_s: float
    ended_s: float


def collect(rows: ray.data.Dataset, change: Callable[[], None] | None = None, change_after: int = 0) -> list[Call]:
    """Run a dataset; return its calls in the order of their ends. `change` is called after so many came out."""
    calls: list[Call] = []
    for batch in rows.iter_batches(batch_size=None):
        columns = (batch[name].tolist() for name in ("id", "node", "began_s", "ended_s"))
        calls += [Call(*values) for values in zip(*columns, strict=True)]
        if change is not None and len(calls) >= change_after:
            change()
            change = None
    return sorted(calls, key=lambda call: call.ended_s)


def took_s(calls: Iterable[Call]) -> float:
    """Return the seconds from the first begin to the last end."""
    calls = list(calls)
    return max(call.ended_s for call in calls) - min(call.began_s for call in calls)


def rate(calls: Iterable[Call]) -> float:
    """Return batches a second over the seconds that they took."""
    calls = list(calls)
    return len(calls) / took_s(calls)


# --8<-- [end:calls]


# --8<-- [start:driver_time]
SAMPLE_S = 0.005


@dataclass
class DriverTime:
    """Where the driver's time goes. Seconds of CPU: `executor_s` of the thread with the loop, `process_s` of all.

    `samples` counts what the loop was doing, looked at every few milliseconds, its waiting included.
    """

    steps: int = 0
    tasks: int = 0
    executor_s: float = 0
    process_s: float = 0
    samples: Counter[str] = field(default_factory=Counter)
    has_ended: bool = False


def watch_driver(dataset: ray.data.Dataset) -> DriverTime:
    """Return what is filled while the dataset runs in this process."""
    found, before = DriverTime(), time.process_time()

    class Watch(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: Any) -> None:  # in the thread of the loop
            found.steps += 1
            found.executor_s, found.process_s = time.thread_time(), time.process_time() - before
            found.tasks = sum(operator.metrics.num_tasks_finished for operator in executor._topology)
            if found.steps == 1:
                thread = threading.get_ident()
                threading.Thread(target=sample, args=(thread,), daemon=True).start()

        def after_execution_succeeds(self, executor: Any) -> None:
            found.has_ended = True

        def after_execution_fails(self, executor: Any, error: Exception) -> None:
            found.has_ended = True

    def sample(thread: int) -> None:
        while not found.has_ended and (frame := sys._current_frames().get(thread)):
            found.samples[name_step(frame)] += 1
            time.sleep(SAMPLE_S)

    dataset.context.custom_execution_callback_classes.append(Watch)  # the dataset's own copy
    return found


def name_step(frame: Any) -> str:
    """Return the function that the loop has called, or `wait` where it waits for a task to end."""
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    if "wait" in names[:3]:
        return "wait"
    place = names.index("_scheduling_loop_step") if "_scheduling_loop_step" in names else 0
    return names[place - 1] if place > 0 else "other"


# --8<-- [end:driver_time]


def start_barrier(actors: int) -> Any:
    """Return an actor at which a pool's models wait for each other with their first batch, to begin at once."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # never killed
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Barrier).remote(actors)


def run(options: Any) -> list[dict[str, Any]]:
    """Return a row for each number of nodes: seconds, batches a second, and both against one node."""
    rows: list[dict[str, Any]] = []
    with LocalCluster() as cluster:
        cluster.connect()
        configure_data_context(progress_bars=False)
        for nodes in [count for count in (1, 2, 4, 8, 16) if count <= options.nodes]:
            cluster.resize(nodes)
            batches = list_batches(options.batches * nodes)
            dataset = classify_timed(batches, nodes, options.wait, barrier=start_barrier(nodes))
            driver = watch_driver(dataset)
            calls = collect(dataset)
            took = took_s(calls)
            rows.append(
                {
                    "nodes": nodes,
                    "batches": len({call.id for call in calls}),
                    "seconds": took,
                    "efficiency": (rows[0]["seconds"] if rows else took) / took,
                    "driver_ms_a_task": 1e3 * driver.process_s / driver.tasks,
                }
            )
    return rows


def wait(text: str) -> float:
    """Parse seconds from 0 to 60. Raises `ValueError`."""
    if not 0 <= (seconds := float(text)) <= 60:
        raise ValueError
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on 1, 2, 4 ... nodes, and print a row each; return 0, or exit with 2 for input that cannot be used."""
    parser = Parser(prog="python -m snippets.architecture.scaling", description=__doc__)
    parser.add_argument("--nodes", type=positive, default=4, help="at the most, all on this machine (default: 4)")
    parser.add_argument("--batches", type=positive, default=40, help="for each node (default: 40)")
    parser.add_argument("--wait", type=wait, default=0.25, help="seconds that stand for a batch (default: 0.25)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with stdout_for_the_answer():
        rows = run(options)
    sys.stdout.write(json.dumps(rows) + "\n" if options.json else format_report({}, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
