"""What num_cpus, num_gpus, memory, batch size, pool size and block count do, and what they leave alone."""

from __future__ import annotations

import json
import sys

from snippets.command import Parser, connection

# isort: split
# --8<-- [start:imports]
import io
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:look]
def look_around(take_bytes: int = 0) -> dict[str, Any]:
    """Return what a process sees of its node, and the bytes that it took, whatever it reserved."""
    taken = np.ones(take_bytes, np.uint8)
    return {
        "cores": os.cpu_count(),
        "omp_threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "bytes": taken.nbytes,
    }


def look_from(take_bytes: int = 0, **reservation: float) -> dict[str, Any]:
    """Look around from a task that reserves `num_cpus`, `num_gpus` or `memory`, the last in bytes."""
    seen: dict[str, Any] = ray.get(ray.remote(look_around).options(**reservation).remote(take_bytes))
    return seen


# --8<-- [end:look]


# --8<-- [start:at_once]
class Door:
    """Counts who is inside, and lets nobody out before `meet` have been inside at once."""

    def __init__(self, meet: int = 1) -> None:
        self.meet, self.inside, self.most = meet, 0, 0

    def enter(self) -> None:
        """Count one more."""
        self.inside += 1
        self.most = max(self.most, self.inside)

    def is_open(self) -> bool:
        """Return whether enough have met."""
        return self.most >= self.meet

    def leave(self) -> int:
        """Count one fewer; return how many were inside at once at the most."""
        self.inside -= 1
        return self.most


def answer(asked: Any) -> Any:
    """Wait for an answer and hold the CPUs: in `ray.get` a task would lend them to others meanwhile."""
    return asked.future().result()


def one_node() -> dict[str, Any]:
    """Return the live node with the most CPUs."""
    return dict(max((n for n in ray.nodes() if n["Alive"]), key=lambda node: node["Resources"].get("CPU", 0)))


def on_one_node(function: Callable[..., Any], **reservation: float) -> Any:
    """Return the function as a task that reserves this on one and the same node."""
    place = NodeAffinitySchedulingStrategy(one_node()["NodeID"], soft=False)
    return ray.remote(function).options(scheduling_strategy=place, **reservation)


def most_at_once(tasks: int, meet: int = 1, **reservation: float) -> int:
    """Return how many of the tasks with this reservation were on one node at the same time.

    With `meet` they wait until so many are: for ever, where the node has no room for them.
    """
    door = ray.remote(num_cpus=0)(Door).remote(meet)

    def stay() -> int:
        answer(door.enter.remote())
        if meet == 1:
            time.sleep(0.3)  # long enough for others to enter, if they could
        while not answer(door.is_open.remote()):
            time.sleep(0.05)
        return int(answer(door.leave.remote()))

    task = on_one_node(stay, **{"num_cpus": 0, **reservation})
    return int(max(ray.get([task.remote() for _ in range(tasks)])))


# --8<-- [end:at_once]


# --8<-- [start:batches]
def batches_seen(rows: int, blocks: int, batch_size: int | None) -> list[int]:
    """Return how many rows each call of a function saw, sorted."""

    def measure(batch: dict[str, Any]) -> dict[str, Any]:
        return {"rows": [len(batch["id"])]}

    numbers = ray.data.range(rows, override_num_blocks=blocks).materialize()
    return sorted(row["rows"] for row in numbers.map_batches(measure, batch_size=batch_size).take_all())


# --8<-- [end:batches]


# --8<-- [start:pool]
class Ledger:
    """Writes down who has loaded how many bytes, and who has had a batch."""

    def __init__(self) -> None:
        self.loads, self.workers = list[int](), set[str]()

    def load(self, weights_bytes: int) -> None:
        """Note a load."""
        self.loads.append(weights_bytes)

    def work(self, worker: str) -> None:
        """Note who had a batch."""
        self.workers.add(worker)

    def counts(self) -> tuple[int, int, int]:
        """Return loads, workers that had a batch, and bytes loaded."""
        return len(self.loads), len(self.workers), sum(self.loads)


def pool_at_work(actors: int, blocks: int, weights_bytes: int) -> tuple[int, int, int]:
    """Run a pool over as many blocks; return its loads, the actors that had a batch, and all weights' bytes."""
    ledger = ray.remote(num_cpus=0)(Ledger).remote()

    class Loaded:
        def __init__(self) -> None:
            self.weights = np.ones(weights_bytes, np.uint8)
            ray.get(ledger.load.remote(self.weights.nbytes))

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            while ray.get(ledger.counts.remote())[0] < actors:  # the pool stands before any of it works
                time.sleep(0.05)
            ray.get(ledger.work.remote(ray.get_runtime_context().get_actor_id()))
            return batch

    numbers = ray.data.range(4 * blocks, override_num_blocks=blocks).materialize()
    pool = ray.data.ActorPoolStrategy(size=actors)
    numbers.map_batches(Loaded, batch_size=4, compute=pool, num_cpus=0.1).materialize()
    counts: tuple[int, int, int] = ray.get(ledger.counts.remote())
    return counts


# --8<-- [end:pool]


# --8<-- [start:stages]
def fetch() -> None:
    """Read from storage that answers after a while: the core has nothing to do."""
    time.sleep(0.05)


def make_decode() -> Callable[[], None]:
    """Return what decodes a JPEG of a million pixels."""
    buffer = io.BytesIO()
    Image.effect_noise((1000, 1000), 50).save(buffer, "JPEG")
    return lambda: Image.open(io.BytesIO(buffer.getvalue())).load()


def make_forward() -> Callable[[], None]:
    """Return what multiplies pixels by weights, as a layer does. Each process gets weights of its own."""
    weights, pixels = np.ones((1000, 1000), np.float32), np.ones((256, 1000), np.float32)
    return lambda: [pixels @ weights for _ in range(5)].clear()


# --8<-- [end:stages]


# --8<-- [start:try]
def try_reservation(
    work: Callable[[], Any], num_cpus: float, tasks: int | None = None, calls: int = 4
) -> dict[str, float]:
    """Run tasks with this reservation on one node, four for each of its CPUs; each calls `work` so many times.

    Returns how many ran `at_once`, calls a second as `rate`, the CPU seconds of a call as `cpu_s`, which are those
    of the calling thread, and the share of its time in which a task did not compute as `idle`.
    """
    tasks = tasks or 4 * max(1, int(one_node()["Resources"].get("CPU", 1)))
    door = ray.remote(num_cpus=0)(Door).remote()

    def call() -> tuple[float, float, int]:
        answer(door.enter.remote())
        wall_s, cpu_s = time.perf_counter(), time.thread_time()  # not what Ray's own threads compute
        for _ in range(calls):
            work()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
        return wall_s, cpu_s, answer(door.leave.remote())

    task = on_one_node(call, num_cpus=num_cpus)
    ray.get([task.remote() for _ in range(tasks)])  # starts the processes
    start = time.perf_counter()
    walls, cpus, most = zip(*ray.get([task.remote() for _ in range(tasks)]), strict=True)
    rate = tasks * calls / (time.perf_counter() - start)
    return {"at_once": max(most), "rate": rate, "cpu_s": sum(cpus) / tasks / calls, "idle": idle(walls, cpus)}


def idle(wall_s: Sequence[float], cpu_s: Sequence[float]) -> float:
    """Return the share of the time in which tasks did not compute, from 0 to 1."""
    return max(0.0, 1 - sum(cpu_s) / sum(wall_s))


def reservation_for(cpu_s: float, wait_s: float) -> float:
    """Return the `num_cpus` with which waiting tasks keep the cores busy, and no more: the share that computes.

    Cores are busy once cores / share tasks run at once. Raises `ValueError` where a task takes no time.
    """
    if min(cpu_s, wait_s) < 0 or cpu_s + wait_s <= 0:
        raise ValueError(f"A task takes some time, not {cpu_s:g} s of computing and {wait_s:g} s of waiting.")
    return cpu_s / (cpu_s + wait_s)


# --8<-- [end:try]


def compare(nums: Sequence[float] = (1, 0.25)) -> list[dict[str, Any]]:
    """Try each stage with each reservation; return a row for each."""
    stages = {"read": fetch, "decode": make_decode(), "forward": make_forward()}
    return [
        {"stage": name, "num_cpus": num_cpus, **try_reservation(work, num_cpus)}
        for name, work in stages.items()
        for num_cpus in nums
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what lower reservations gain here for a stage that reads, one that decodes and one that classifies."""
    parser = Parser(prog="python -m snippets.optimization.reservations", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with connection():
        rows = compare()
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        for row in rows:
            sys.stdout.write("  ".join(f"{name}: {_short(value)}" for name, value in row.items()) + "\n")
    return 0


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
