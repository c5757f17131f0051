"""Take the naive pipeline apart: what each habit costs on this machine, measured one at a time."""

from __future__ import annotations

import itertools
from typing import TypeVar

from tqdm import tqdm

from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, decode_image, load_preprocessing
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

# --8<-- [end:imports]


# --8<-- [start:median_seconds]
def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median seconds of a call, after one that warms up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# --8<-- [end:median_seconds]


# --8<-- [start:load]
def load_pipeline(model: str) -> Any:
    """Load a checkpoint as the naive pipeline does for every batch."""
    from transformers import pipeline

    name, revision = split_revision(model)
    return pipeline("image-classification", model=name, revision=revision)


def load_factor(load_s: float, compute_s: float) -> float:
    """Return how many times longer a batch takes that loads the model first: (L + C) / C."""
    return (load_s + compute_s) / compute_s


# --8<-- [end:load]


# --8<-- [start:forward]
def forward_seconds(network: Any, batch_size: int, repeats: int = 5) -> float:
    """Return the median seconds of one forward pass over `batch_size` images of 224 x 224 pixels."""
    import torch

    pixels = torch.zeros(batch_size, 3, 224, 224, device=network.device, dtype=network.dtype)

    def forward() -> None:
        with torch.inference_mode():
            network(pixels).logits.sum().item()  # the sum waits for a GPU to finish

    return median_seconds(forward, repeats)


# --8<-- [end:forward]


# --8<-- [start:actors_at_work]
def actors_at_work(rows: int, blocks: int, batch_size: int, actors: int) -> int:
    """Return how many actors of a pool ever see a batch."""

    class Tag:
        """Mark each row with the actor that saw it."""

        def __init__(self) -> None:
            self.actor = ray.get_runtime_context().get_actor_id()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.2)  # long enough that another actor would be given the next batch
            return {"actor": np.full(len(batch["id"]), self.actor)}

    pool = ray.data.ActorPoolStrategy(size=actors)
    tagged = ray.data.range(rows, override_num_blocks=blocks).materialize()
    tagged = tagged.map_batches(Tag, batch_size=batch_size, compute=pool, num_cpus=0.1)
    tagged.context.wait_for_min_actors_s = 60  # as in a long run: each actor is there when the first batch is
    return len({row["actor"] for row in tagged.iter_rows()})


# --8<-- [end:actors_at_work]


# --8<-- [start:forward_rate]
class ForwardLoop:
    """A process that does nothing but forward passes over one batch, with a model of its own."""

    def __init__(self, model: str, dtype: str, batch_size: int) -> None:
        import torch
        from transformers import AutoModelForImageClassification

        name, revision = split_revision(model)
        network = AutoModelForImageClassification.from_pretrained(name, revision=revision).eval()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = network.to(device, getattr(torch, dtype), memory_format=torch.channels_last)
        self.pixels = torch.zeros(batch_size, 3, 224, 224, device=device, dtype=getattr(torch, dtype))
        self.pixels = self.pixels.to(memory_format=torch.channels_last)

    def run(self, threads: int, seconds: float) -> float:
        """Return images per second of at least `seconds` of forward passes, and at least two of them."""
        import torch

        torch.set_num_threads(threads)
        passes, start = 0, time.perf_counter()
        with torch.inference_mode():
            while passes < 2 or time.perf_counter() - start < seconds:
                self.network(self.pixels).logits.sum().item()
                passes += 1
        return passes * len(self.pixels) / (time.perf_counter() - start)


def start_loops(
    model: str, processes: int, dtype: str = "float32", batch_size: int = 16, keep_memory: bool = True
) -> list[Any]:
    """Start processes for `forward_rate`. They end when nothing refers to them."""
    environment = {"env_vars": KEEP_FREED_MEMORY} if keep_memory else {}
    process = ray.remote(num_cpus=0, runtime_env=environment)(ForwardLoop)
    return [process.remote(model, dtype, batch_size) for _ in range(processes)]


def forward_rate(loops: list[Any], threads: int = 1, seconds: float = 4) -> float:
    """Return images per second of bare forward passes, summed over processes that run at the same time."""
    ray.get([loop.run.remote(threads, 0) for loop in loops])  # warm-up, until all have loaded
    rates: list[float] = ray.get([loop.run.remote(threads, seconds) for loop in loops])
    return sum(rates)


# --8<-- [end:forward_rate]


# --8<-- [start:decode_seconds]
def decode_seconds(source: str | list[str], model: str, images: int = 32) -> float:
    """Return the seconds that one core takes to read, decode and resize an image."""
    filesystem, paths, _ = list_images(source, images)
    to = load_preprocessing(model)

    def decode_all() -> None:
        for path in paths:
            with filesystem.open_input_stream(path) as stream:
                decode_image(stream.readall(), to)

    return median_seconds(decode_all, repeats=3) / len(paths)


# --8<-- [end:decode_seconds]


T = TypeVar("T")


def measure(source: str, model: str, limit: int | None = None, progress: bool = False) -> list[dict[str, Any]]:
    """Return one row a cost: what was compared, the two values with their unit, and the factor between them.

    Batches are of 1, 4, 16 and 64 images, as far as `limit` allows, and bare forward passes run for four seconds,
    or less with a limit below 64. `progress` shows a bar.
    """
    import torch

    seconds = min(4, (limit or 64) / 16)
    batch_sizes = [size for size in (1, 4, 16, 64) if size <= (limit or 64)]
    usual = max(size for size in batch_sizes if size <= 16)
    has_gpu = torch.cuda.is_available()

    bar = tqdm(total=len(batch_sizes) + (3 if has_gpu else 7), desc="costs", disable=not progress)

    def measured(value: T) -> T:
        bar.update()
        return value

    classifier = load_pipeline(model)
    load_s = measured(median_seconds(lambda: load_pipeline(model), repeats=3))
    forward_s = {size: measured(forward_seconds(classifier.model, size, 3)) for size in batch_sizes}
    decode_s = measured(decode_seconds(source, model, min(32, limit or 32)))
    cpus = int(ray.cluster_resources().get("CPU", 1))

    rows = [
        _row(f"load for each batch of {size}", "s", seconds, load_s + seconds)
        for size, seconds in forward_s.items()
    ]
    rows += [
        _row(f"one at a time instead of batches of {size}", "s an image", seconds / size, forward_s[1])
        for size, seconds in itertools.islice(forward_s.items(), 1, None)
    ]
    one_block, eight_blocks = measured([actors_at_work(80, blocks, 10, 2) for blocks in (1, 8)])
    rows.append(_row("one block for two actors", "actors at work", one_block, eight_blocks))
    if not has_gpu:
        loops = start_loops(model, cpus, batch_size=usual, keep_memory=False)
        threads = measured(forward_rate(loops[:1], cpus, seconds))
        one = measured(forward_rate(loops[:1], 1, seconds))
        actors = measured(forward_rate(loops, 1, seconds))
        del loops
        kept = measured(forward_rate(start_loops(model, cpus, batch_size=usual), 1, seconds))
        rows.append(_row("one actor at work instead of one a core", "images/s", one, actors))
        rows.append(_row("threads instead of actors", "images/s", threads, actors))
        rows.append(_row("memory given back to the kernel", "images/s", actors, kept))
    rows.append(_row("decode against forward", "s an image", decode_s, forward_s[usual] / usual))
    bar.close()
    return rows


def _row(cost: str, unit: str, less: float, more: float) -> dict[str, Any]:
    return {"cost": cost, "unit": unit, "less": less, "more": more, "factor": more / less}


def run(options: Any) -> list[dict[str, Any]]:
    """Return the costs as the command prints them, measured on at most `limit` images."""
    return measure(options.images, options.model, options.limit, progress=not options.json)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.costs")
