"""What each stage can do alone on this machine, the bound of the whole, and what removing a stage would buy."""

from __future__ import annotations

from snippets.architecture.sizing import separate_bound, shared_bound
from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, decode_image, load_preprocessing
from snippets.fundamentals.costs import forward_seconds, median_seconds
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:bound]
BEFORE = "driver"  # what runs here comes before all else: nothing overlaps it


@dataclass(frozen=True)
class Stage:
    """What a stage does alone: images per second with all of the hardware of that name."""

    name: str
    hardware: str
    rate: float


def bound(stages: Sequence[Stage]) -> float:
    """Return the images per second that no pipeline of stages at these rates can exceed.

    Stages on the same hardware take turns, so their times add up; of several kinds of hardware the slowest
    sets the pace; and what comes before adds its own time. Raises `ValueError` for a rate that is not positive.
    """
    before, beside = list[float](), dict[str, list[float]]()
    for stage in stages:
        rates = before if stage.hardware == BEFORE else beside.setdefault(stage.hardware, [])
        rates.append(stage.rate)
    shared = {hardware: shared_bound(*rates) for hardware, rates in beside.items()}
    rest = [separate_bound(**shared).value] if shared else []
    return shared_bound(*before, *rest)


# --8<-- [end:bound]


# --8<-- [start:gain]
def gain(stages: Sequence[Stage], name: str, faster: float = math.inf) -> float:
    """Return how many times higher the bound is once a stage runs `faster` times as fast; for ever: without it.

    On shared hardware this is Amdahl's law, 1 / (1 - p + p / s) (https://doi.org/10.1145/1465482.1465560).
    Where another kind of hardware is next, it ends there. Removing the only stage gains without limit.
    """
    changed = [replace(stage, rate=stage.rate * faster) if stage.name == name else stage for stage in stages]
    left = [stage for stage in changed if stage.rate < math.inf]
    return bound(left) / bound(stages) if left else math.inf


@dataclass(frozen=True)
class Limit:
    """A bound, the stage that sets it, and how much higher it is without that stage, or with it twice as fast."""

    stage: str
    hardware: str
    bound: float
    without: float
    twice_as_fast: float


def limits(stages: Sequence[Stage]) -> list[Limit]:
    """Return what bounds the pipeline, then what bounds it once that is gone, and so on to the last stage.

    The stage that bounds is the one whose removal buys most, the slowest where several buy the same.
    """
    found, left = [], list(stages)
    while left:
        gains = {stage.name: gain(left, stage.name) for stage in left}
        first = max(left, key=lambda stage: (gains[stage.name], -stage.rate))
        twice = gain(left, first.name, faster=2)
        found.append(Limit(first.name, first.hardware, bound(left), gains[first.name], twice))
        left.remove(first)
    return found


# --8<-- [end:gain]


# --8<-- [start:hand]
class Hand:
    """A process without a model, which reads, decodes or writes. Rates are in images per second."""

    def __init__(self, model: str) -> None:
        self.to = load_preprocessing(model)

    def read(self, filesystem: fs.FileSystem, paths: list[str]) -> float:
        """Read whole files. Of a local disk the kernel keeps copies: this is then the rate of a second read."""

        def read_all() -> None:
            for path in paths:
                with filesystem.open_input_stream(path) as stream:
                    stream.readall()

        return len(paths) / median_seconds(read_all, repeats=1)

    def decode(self, encoded: list[bytes]) -> float:
        """Decode, resize and crop bytes that are in memory."""
        seconds = median_seconds(lambda: [decode_image(image, self.to) for image in encoded], repeats=1)
        return len(encoded) / seconds

    def write(self, rows: int) -> float:
        """Write results to a Parquet file in a temporary folder of this node."""
        ids = [f"{row:064}" for row in range(rows)]
        table = pa.table({"id": ids, "label": ["label"] * rows, "score": np.zeros(rows, np.float32)})
        with tempfile.TemporaryDirectory() as folder:
            return rows / median_seconds(lambda: pq.write_table(table, f"{folder}/rows.parquet"))


# --8<-- [end:hand]


# --8<-- [start:network]
SLOWEST_PASS_S = 8  # a batch that would take longer is left out


class Network:
    """A process with a model of its own, which runs bare forward passes. Rates are in images per second."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModelForImageClassification

        torch.set_num_threads(1)  # a process a core
        name, revision = split_revision(model)
        network = AutoModelForImageClassification.from_pretrained(name, revision=revision).eval()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = network.to(self.device, memory_format=torch.channels_last)

    def runs_on(self) -> str:
        """Return `cuda` or `cpu`."""
        return self.device

    def forward(self, dtype: str, batch_sizes: Sequence[int]) -> dict[int, float]:
        """Run a forward pass of each batch size, the smallest first."""
        import torch

        network = self.network.to(getattr(torch, dtype))
        rates, image_s = dict[int, float](), 0.0
        for size in sorted(batch_sizes):
            if rates and image_s * size > SLOWEST_PASS_S:
                break
            image_s = forward_seconds(network, size, repeats=1) / size
            rates[size] = 1 / image_s
        return rates

    def transfer(self, images: int) -> float:
        """Copy decoded images, as bytes, from this process's memory to its GPU."""
        import torch

        pixels = torch.zeros(images, 224, 224, 3, dtype=torch.uint8)

        def send() -> None:
            pixels.to(self.device)
            torch.cuda.synchronize()

        return images / median_seconds(send)


# --8<-- [end:network]


# --8<-- [start:measure]
def start(kind: type, model: str, processes: int, num_gpus: int = 0) -> list[Any]:
    """Start processes on the largest node. They end when nothing refers to them."""
    place = NodeAffinitySchedulingStrategy(largest_node()["NodeID"], soft=False)
    process = ray.remote(kind).options(  # reserves no CPU: a busy cluster would make it wait
        num_cpus=0, num_gpus=num_gpus, scheduling_strategy=place, runtime_env={"env_vars": KEEP_FREED_MEMORY}
    )
    return [process.remote(model) for _ in range(processes)]


def largest_node() -> dict[str, Any]:
    """Return the live node with the most GPUs, and of several such the one with the most CPUs."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return dict(max(alive, key=lambda node: [node["Resources"].get(kind, 0) for kind in ("GPU", "CPU")]))


def start_networks(model: str, processes: int) -> tuple[list[Any], bool]:
    """Start a network for each GPU that torch can use, or as many as `processes`; and say whether on GPUs."""
    gpus = int(largest_node()["Resources"].get("GPU", 0))
    networks = start(Network, model, min(gpus, 1), num_gpus=1)
    if networks and ray.get(networks[0].runs_on.remote()) == "cuda":
        return networks + start(Network, model, gpus - 1, num_gpus=1), True
    return networks + start(Network, model, processes - len(networks)), False


def at_once(processes: list[Any], method: str, *arguments: Any) -> list[Any]:
    """Call a method in all processes at the same time, so that they share what a pipeline would share."""
    return list(ray.get([getattr(process, method).remote(*arguments) for process in processes]))


def measure(
    source: str | list[str],
    model: str,
    limit: int | None = None,
    processes: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> list[dict[str, Any]]:
    """Return a row a measurement on the largest node: `stage`, `hardware`, `variant`, and images/s as `rate`.

    Reads and decodes `limit` images, at most 32, in as many `processes` as the node has CPUs. Forward passes run
    in two precisions, in a process for each GPU or each CPU; transfers on a GPU alone.
    """
    rows: list[dict[str, Any]] = []

    def add(stage: str, hardware: str, variant: str, *rates: float) -> None:
        rows.append({"stage": stage, "hardware": hardware, "variant": variant, "rate": sum(rates)})
        progress(stage)

    listed_s = median_seconds(lambda: list_images(source), repeats=1)
    filesystem, paths, _ = list_images(source)
    add("list", BEFORE, f"{len(paths)} images", len(paths) / listed_s)
    paths = paths[: min(32, limit or 32)]
    processes = processes or max(1, int(largest_node()["Resources"].get("CPU", 1)))

    hands = start(Hand, model, processes)
    add("read", "storage", f"{processes} at once", *at_once(hands, "read", filesystem, paths))
    encoded = [filesystem.open_input_stream(path).readall() for path in paths]
    add("decode", "cpus", f"{processes} at once", *at_once(hands, "decode", encoded))
    add("write", "storage", f"{processes} at once", *at_once(hands, "write", 10_000))

    networks, on_gpus = start_networks(model, processes)
    where = "gpus" if on_gpus else "cpus"
    for dtype in ("float32", "float16" if on_gpus else "bfloat16"):
        each = at_once(networks, "forward", dtype, batch_sizes or ((16, 64, 256) if on_gpus else (1, 4, 16)))
        for size in sorted(set.intersection(*map(set, each))):
            add("forward", where, f"{dtype}, batches of {size}", *(rates[size] for rates in each))
    if on_gpus:
        add("transfer", "gpus", "batches of 64", *at_once(networks, "transfer", 64))
    return rows


def stages_of(rows: Sequence[dict[str, Any]], dtype: str = "float32") -> list[Stage]:
    """Return each stage that was measured, at its best rate; of forward passes, those in one precision.

    Raises `ValueError` where none was measured in that precision.
    """
    best: dict[str, Stage] = {}
    for row in rows:
        stage = Stage(row["stage"], row["hardware"], row["rate"])
        if stage.name == "forward" and not row["variant"].startswith(f"{dtype},"):
            continue
        best[stage.name] = max(stage, best.get(stage.name, stage), key=lambda each: each.rate)
    if "forward" not in best:
        raise ValueError(f"Forward passes in {dtype} were not measured on this hardware.")
    return list(best.values())


# --8<-- [end:measure]


def add_options(parser: Any) -> None:
    """Add the precision that the bound is of, and the processes."""
    from snippets.command import positive

    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--processes", type=positive, help="at once (default: one a CPU, or one a GPU)")


def run(options: Any) -> list[dict[str, Any]]:
    """Return what was measured, then what bounds the pipeline, and what bounds it once that is gone.

    Raises `ValueError` where no forward pass was measured in the precision asked for.
    """
    from tqdm import tqdm

    with tqdm(desc="bounds", disable=options.json) as bar:

        def show(stage: str) -> None:
            bar.set_postfix_str(stage)
            bar.update()

        rows = measure(options.images, options.model, options.limit, options.processes, progress=show)
    return rows + [vars(limit) for limit in limits(stages_of(rows, options.dtype))]


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.bounds")
