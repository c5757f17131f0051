"""Memory: what of a batch lies in shared memory and what in a process, and what happens when either is full."""

from __future__ import annotations

import json
from collections.abc import Sequence

from snippets.command import Parser, connection, positive

# isort: split
# --8<-- [start:imports]
import os
import resource
import shutil
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:reader]
class Reader:
    """Hold an array from the object store, and say what memory its process has. Linux only."""

    def __init__(self) -> None:
        self.array = np.zeros(1, np.uint8)

    def memory(self) -> tuple[int, int]:
        """Return unique and proportional set size in bytes: without shared pages, or with a part of each."""
        memory = psutil.Process().memory_full_info()
        return memory.uss, memory.pss

    def read(self, references: list[ray.ObjectRef]) -> bool:
        """Get the array, touch each page, and return whether it can be written to."""
        self.array = ray.get(references[0])
        self.array[::4096].sum()
        return bool(self.array.flags.writeable)

    def write(self) -> bool:
        """Write to a copy, the only way to write, and return whether that can be written to."""
        self.array = self.array.copy()
        self.array += 1
        return bool(self.array.flags.writeable)


def growth(readers: int, array_bytes: int, write: bool = False) -> dict[str, int]:
    """Return by how much the processes of `readers` of one array grow, in bytes, all together.

    `unique` is what is theirs alone, `proportional` counts a page that n processes share as 1/n in each.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Reader)
    actors = [actor.remote() for _ in range(readers)]
    small, large = ray.put(np.ones(1 << 20, np.uint8)), ray.put(np.ones(array_bytes, np.uint8))
    ray.get([reader.read.remote([small]) for reader in actors])  # what a first read needs, besides the array
    before = ray.get([reader.memory.remote() for reader in actors])
    ray.get([reader.read.remote([large]) for reader in actors])
    if write:
        ray.get([reader.write.remote() for reader in actors])
    after = ray.get([reader.memory.remote() for reader in actors])
    for reader in actors:
        ray.kill(reader)
    unique, proportional = (np.array(after) - np.array(before)).sum(axis=0)
    return {"unique": int(unique), "proportional": int(proportional)}


# --8<-- [end:reader]


# --8<-- [start:batches]
def fill(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return rows of a million bytes in three forms: `pixels` of one size, `file` as bytes, `thing` in Python."""
    rows = len(batch["id"])
    return {
        "pixels": np.ones((rows, 1_000_000), np.uint8),
        "file": [bytes(1_000_000)] * rows,
        "thing": [{"bytes": bytes(1_000_000)} for _ in range(rows)],
    }


class Where:
    """Say of a column whether its batch lies in the object store or in this process."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.before = psutil.Process().memory_full_info().uss

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Return `type` of a value, whether it is `writeable`, and the bytes that this process grew by."""
        values = batch[self.column]
        grown = psutil.Process().memory_full_info().uss - self.before
        return {"type": [type(values[0]).__name__], "writeable": [values.flags.writeable], "grown": [grown]}


def where(column: str, blocks: int = 1, **options: Any) -> dict[str, Any]:
    """Return what `Where` says of a batch of 64 rows, read by an actor from blocks that are there already."""
    source = ray.data.range(64, override_num_blocks=blocks).map_batches(fill)
    source = source.select_columns([column]).materialize()
    pool = ray.data.ActorPoolStrategy(size=1)
    (row,) = source.map_batches(Where, fn_constructor_args=[column], compute=pool, **options).take_all()
    return dict(row)


# --8<-- [end:batches]


# --8<-- [start:way]
class Way:
    """Follow a batch from the object store into a tensor, and say what it takes after each step. Linux only."""

    def __init__(self, use_gpu: bool) -> None:
        import torch

        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes here
        self.torch, self.use_gpu = torch, use_gpu
        if use_gpu:
            torch.ones(1, device="cuda")  # CUDA's context is no batch's
        self.before = self.memory()

    def memory(self) -> tuple[int, int, int]:
        """Return the bytes that are this process's own, that it shares, and that it has on the device."""
        memory = psutil.Process().memory_full_info()
        return memory.uss, memory.shared, self.torch.cuda.memory_allocated() if self.use_gpu else 0

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Return `step`, and `own`, `shared` and `device`: growth since the start, in sizes of the batch."""
        pixels, rows = batch["pixels"], []

        def note(step: str) -> None:
            grown = np.subtract(self.memory(), self.before) / pixels.nbytes
            rows.append({"step": step, **dict(zip(("own", "shared", "device"), grown, strict=True))})

        pixels[:, ::4096].sum()  # touches each page
        note("array")
        tensor = self.torch.from_numpy(pixels)
        note("tensor of it")
        if self.use_gpu:
            tensor = tensor.to("cuda")
            note("tensor on the device")
        numbers = tensor.float()
        note(f"{numbers.dtype}")
        return {name: [row[name] for row in rows] for name in rows[0]}


def follow(rows: int = 64, num_gpus: float = 0) -> list[dict[str, Any]]:
    """Return what `Way` says of a batch of so many million bytes, on a GPU if it reserves one."""
    pixels = ray.data.range(rows, override_num_blocks=1).map_batches(fill).select_columns(["pixels"])
    pool = ray.data.ActorPoolStrategy(size=1)
    followed = pixels.materialize().map_batches(
        Way, fn_constructor_args=[num_gpus > 0], compute=pool, batch_size=rows, num_cpus=0.5, num_gpus=num_gpus
    )
    return [dict(row) for row in followed.take_all()]


# --8<-- [end:way]


# --8<-- [start:small_shm]
STARTS_RAY = """
import sys, psutil, ray

store_bytes, told_bytes = map(int, sys.argv[1:])
if told_bytes:  # instead of a mount
    ray._private.utils.get_shared_memory_bytes = lambda: told_bytes
ray.init("local", object_store_memory=store_bytes, include_dashboard=False, _node_ip_address="127.0.0.1")
children = psutil.Process().children(recursive=True)
[place] = {word for child in children for word in child.cmdline() if word.startswith("--plasma_directory=")}
print("shared memory" if place.endswith("/dev/shm") else "a folder of temporary files")
"""


def start_with_shm(shm_bytes: int, store_bytes: int) -> str:
    """Start Ray where `/dev/shm` has so many bytes; return where its object store lies, or why it did not start.

    The small `/dev/shm` is a tmpfs of its own, in a namespace that nobody else is in. Where the system lets
    nobody mount one, Ray is told the size instead. Linux only.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def start(*inside: str, told_bytes: int = 0) -> subprocess.CompletedProcess[str]:
        command = [*inside, sys.executable, "-c", STARTS_RAY, str(store_bytes), str(told_bytes)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    mount = f'mount -t tmpfs -o size={shm_bytes} tmpfs /dev/shm && exec "$@"'
    in_namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    has_unshare = shutil.which("unshare") is not None
    may_mount = has_unshare and subprocess.run([*in_namespace, "true"], capture_output=True).returncode == 0
    done = start(*in_namespace) if may_mount else start(told_bytes=shm_bytes)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


# --8<-- [end:small_shm]


# --8<-- [start:spilled]
def photographs(rows: int, in_flight_bytes: float = float("inf")) -> ray.data.Dataset:
    """Return images of a million bytes each, twenty in a block; so many bytes may lie in the object store."""

    def take(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": np.ones((len(batch["id"]), 1_000_000), np.uint8)}

    images = ray.data.range(rows, override_num_blocks=max(1, rows // 20)).map_batches(take)
    options = images.context.execution_options
    options.resource_limits = options.resource_limits.copy(object_store_memory=in_flight_bytes)
    return images


def measure(batch: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Return the number of images, and nothing else."""
    return {"images": [len(batch["image"])]}


def spilled_so_far() -> int:
    """Return the bytes that the cluster wrote to disk since its start because object stores were full.

    `stats()` of any run has them as text: `Cluster memory: Spilled to disk`.
    """
    return int(ray.data.range(1, override_num_blocks=1).materialize().get_stats_summary().global_bytes_spilled)


# --8<-- [end:spilled]


# --8<-- [start:bounded]
class Bounded:
    """Convert images in a process that may take `more_bytes` beyond what it has. Linux only."""

    def __init__(self, more_bytes: int) -> None:
        ray.get(ray.put(np.ones(1 << 20, np.uint8)))  # maps the node's whole store, which counts too
        now = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, resource.RLIM_INFINITY))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[float]]:
        """Return the mean of the batch, by way of eight bytes for each of its own."""
        return {"mean": [float(batch["image"].astype(np.float64).mean())]}


def convert(batch_size: int, more_bytes: int = 1_000_000_000) -> str:
    """Convert 200 images in batches and return how many batches came out, or the reason why none did."""
    converted = photographs(200).map_batches(
        Bounded,
        fn_constructor_args=[more_bytes],
        batch_size=batch_size,
        num_cpus=0.5,  # not what the read reserves: the actor converts, and makes nothing
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    try:
        return f"{len(converted.take_all())} batches"
    except ray.exceptions.RayTaskError as error:
        return next(line for line in str(error).splitlines() if "MemoryError: " in line)


# --8<-- [end:bounded]


# --8<-- [start:reserve]
class Hog:
    """Say what memory this actor reserved, after it has taken 50 million bytes."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[float]]:
        """Return `reserved` and `taken`, both in bytes."""
        taken = np.ones(50_000_000, np.uint8)
        reserved = ray.get_runtime_context().get_assigned_resources().get("memory", 0)
        return {"reserved": [float(reserved)], "taken": [float(taken.nbytes)]}


def reserve(memory: float | None) -> dict[str, float]:
    """Return what an actor reserved by `memory=`, and what it took."""
    pool = ray.data.ActorPoolStrategy(size=1)
    source = ray.data.range(1, override_num_blocks=1)
    (row,) = source.map_batches(Hog, compute=pool, memory=memory, num_cpus=0.5).take_all()
    return dict(row)


# --8<-- [end:reserve]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what readers of one array grow by, and return the exit status."""
    parser = Parser(prog="python -m snippets.architecture.memory", description=__doc__)
    parser.add_argument("--readers", type=positive, default=4, help="processes that read (default: 4)")
    parser.add_argument("--bytes", type=positive, default=50_000_000, help="bytes of the array")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    with connection():
        report = {
            "read": growth(options.readers, options.bytes),
            "written": growth(options.readers, options.bytes, write=True),
        }
    lines = [json.dumps(report)] if options.json else [f"{name:10}{value}" for name, value in report.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    from snippets.architecture import memory as module

    sys.exit(module.main())
