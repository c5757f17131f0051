"""Find the batch size and the pool by measuring candidates, and pass them to `classify`."""

from __future__ import annotations

from tqdm import tqdm

from snippets.checkpoint import check_checkpoint
from snippets.command import Parser, connection, explain, fail, positive
from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, Classifier, Pool, load_preprocessing, plan_pool
from snippets.fundamentals.setup import MODEL, split_revision
from snippets.optimization.curves import draw_curve
from snippets.optimization.trial import (
    Build,
    Outcome,
    Repeat,
    Tuning,
    choose,
    measure_in_processes,
    remember,
    search,
)

# isort: split
# --8<-- [start:imports]
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:passes]
def peak_memory_bytes() -> int:
    """Return the highest memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # see getrusage(2)


class Passes:
    """Batches through the pool's own classifier. A call of it is a repeat, of `repeat_s` seconds or one batch.

    The images are black: a network takes as long over any others.
    """

    def __init__(
        self, model: str, batch_size: int, dtype: str, threads: int, use_gpu: bool, repeat_s: float
    ) -> None:
        to = load_preprocessing(model)
        self.classifier = Classifier(model, to, batch_size, dtype, threads, use_gpu)
        images = np.zeros((batch_size, to.crop, to.crop, 3), np.uint8)
        self.batch = {"id": [""] * batch_size, "image": images, "error": np.full(batch_size, "")}
        self.batch_size, self.repeat_s = batch_size, repeat_s

    def __call__(self) -> Repeat:
        """Return rows, seconds, and peak memory in bytes: on a GPU what torch reserved there."""
        import torch

        rows, seconds, start = 0, 0.0, time.perf_counter()
        while not rows or seconds < self.repeat_s:
            self.classifier(self.batch)  # returns when the labels are here, so a GPU has finished
            rows += self.batch_size
            seconds = time.perf_counter() - start
        on_gpu = self.classifier.device.type == "cuda"
        return rows, seconds, torch.cuda.max_memory_reserved() if on_gpu else peak_memory_bytes()


# --8<-- [end:passes]


# --8<-- [start:identity]
def checkpoint_hash(model: str) -> str:
    """Return the SHA-256 of a folder's weights and configuration, or the commit of a checkpoint on the hub."""
    name, revision = split_revision(model)
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    digest = hashlib.sha256()
    for path in sorted(Path(name).iterdir()):
        if path.suffix in (".json", ".safetensors"):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def describe_worker() -> dict[str, Any]:
    """Return the processor of this machine, and the versions of what computes on it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "transformers")}
    return {"processor": next(named, platform.machine()), "python": platform.python_version(), **versions}


def describe_devices(timeout_s: float = 120) -> list[dict[str, Any]]:
    """Return a row a live node: CPUs, GPUs and their types, processor and versions, in an order that holds."""
    nodes = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            types = sorted(name for name in has if name.startswith("accelerator_type:"))
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(describe_worker).options(num_cpus=0, scheduling_strategy=place).remote()
            nodes.append(({"cpus": has.get("CPU", 0), "gpus": has.get("GPU", 0), "types": types}, look))
    found = [{**node, **ray.get(look, timeout=timeout_s)} for node, look in nodes]
    return sorted(found, key=str)


# --8<-- [end:identity]


# --8<-- [start:tuners]
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batch-inference-tuning"


@dataclass(frozen=True)
class Effort:
    """How long to search: a candidate has `repeats` of at least `repeat_s` seconds, all of them `budget_s`."""

    repeats: int = 5
    repeat_s: float = 0.5
    budget_s: float = 300
    tolerance: float = 0.05
    confirm: bool = True


def tune_batch_size(
    model: str,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    dtype: str = "auto",
    effort: Effort = Effort(),
    cache: Path | None = CACHE,
    workload: Callable[..., Callable[[], Repeat]] = Passes,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> Tuning:
    """Find the smallest batch size about as fast as any, in one process with what an actor of the pool has.

    `workload` makes what is measured from the arguments of `Passes`; `progress` is told each outcome. Raises
    `ValueError` where no size fits.
    """
    pool = plan_pool()

    def measure(batch_size: int, left_s: float) -> Outcome:
        build = partial(workload, model, batch_size, dtype, pool.threads, pool.num_gpus > 0, effort.repeat_s)
        return measure_pool(batch_size, build, pool, 1, left_s, effort.repeats)

    question = {"of": "batch_size", "candidates": sorted(set(batch_sizes)), "dtype": dtype}
    question["workload"] = workload.__qualname__
    return tune(model, question, measure, lambda best: {"batch_size": best}, effort, cache, progress)


def tune_pool(
    model: str,
    batch_size: int,
    actors: Sequence[int] | None = None,
    dtype: str = "auto",
    effort: Effort = Effort(),
    cache: Path | None = CACHE,
    workload: Callable[..., Callable[[], Repeat]] = Passes,
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> Tuning:
    """Find the smallest pool about as fast as any, with all its actors at work at the same time.

    Without GPUs more actors have fewer threads each. With GPUs more actors than GPUs share them. Raises
    `ValueError` where a pool cannot be scheduled, or none fits into memory.
    """
    full = plan_pool()
    if actors is None:
        doubled = tuple(2**power for power in range(full.actors.bit_length()))
        actors = tuple(full.actors * share for share in (1, 2, 4)) if full.num_gpus else (*doubled, full.actors)
    pools = {size: plan_pool(size, gpu_share(size, full)) for size in actors}

    def measure(size: int, left_s: float) -> Outcome:
        pool = pools[size]
        build = partial(workload, model, batch_size, dtype, pool.threads, pool.num_gpus > 0, effort.repeat_s)
        return measure_pool(size, build, pool, size, left_s, effort.repeats)

    def arguments(best: int) -> dict[str, Any]:
        return {"actors": best, "num_gpus": pools[best].num_gpus}

    question = {"of": "actors", "candidates": sorted(pools), "dtype": dtype, "batch_size": batch_size}
    question["workload"] = workload.__qualname__
    return tune(model, question, measure, arguments, effort, cache, progress)


def gpu_share(actors: int, full: Pool) -> float:
    """Return the part of a GPU that each actor reserves; `full` has an actor for each GPU, or none."""
    return 1 / math.ceil(actors / full.actors) if full.num_gpus else 0


def measure_pool(candidate: int, build: Build, pool: Pool, processes: int, left_s: float, repeats: int) -> Outcome:
    """Measure in processes that reserve, and start with, what the actors of the pool do."""
    return measure_in_processes(
        candidate,
        build,
        left_s,
        repeats,
        processes=processes,
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )


def tune(
    model: str,
    question: dict[str, Any],
    measure: Callable[[int, float], Outcome],
    arguments: Callable[[int], dict[str, Any]],
    effort: Effort,
    cache: Path | None,
    progress: Callable[[Outcome], None],
) -> Tuning:
    """Answer a question about a checkpoint on this cluster, from the cache or by a search."""

    def measured(candidate: int, left_s: float) -> Outcome:
        outcome = measure(candidate, left_s)
        progress(outcome)
        return outcome

    def find() -> Tuning:
        outcomes, stopped = search(
            question["candidates"], measured, effort.budget_s, effort.tolerance, effort.confirm
        )
        choice = choose(outcomes, effort.tolerance)
        return Tuning(choice, arguments(choice.best), tuple(outcomes), stopped)

    if cache is None:
        return find()
    asked = {**question, **asdict(effort), "checkpoint": checkpoint_hash(model), "devices": describe_devices()}
    return remember(cache, asked, find)


# --8<-- [end:tuners]


# --8<-- [start:curve]
def curve(tuning: Tuning) -> list[dict[str, Any]]:
    """Return a row a candidate: median, lowest and highest rate in images/s, peak in bytes, and any failure."""
    return [
        {
            "candidate": each.candidate,
            "rate": statistics.median(each.rates) if each.rates else None,
            "lowest": min(each.rates, default=None),
            "highest": max(each.rates, default=None),
            "peak_bytes": each.peak_bytes or None,
            "failure": each.failure,
        }
        for each in tuning.outcomes
    ]


# --8<-- [end:curve]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both curves and what `classify` takes, and return 0, or 2 after a sentence about the input."""
    parser = Parser(prog="python -m snippets.optimization.tuners", description=__doc__)
    add = parser.add_argument
    add("--model", default=MODEL, help="folder, or name@revision on the hub")
    add("--batch-sizes", type=positive, nargs="+", default=BATCH_SIZES, help="candidates")
    add("--actors", type=positive, nargs="+", help="candidates (default: up to what fits)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    add("--repeats", type=positive, default=Effort.repeats, help="of a candidate (default: %(default)s)")
    add("--budget", type=positive, default=Effort.budget_s, help="seconds for each curve (default: %(default)s)")
    add("--cache", type=Path, default=CACHE, help="folder of what was found before (default: %(default)s)")
    add("--again", action="store_true", help="measure, whatever was found before")
    add("--figures", type=Path, help="folder to draw both curves into")
    add("--json", action="store_true", help="print one line of JSON, and no progress")
    options = parser.parse_args(arguments)
    effort = Effort(options.repeats, budget_s=options.budget)
    cache = None if options.again else options.cache
    try:
        check_checkpoint(options.model)
        with connection(), tqdm(desc="candidates", disable=options.json) as bar:
            of = (options.dtype, effort, cache, Passes, lambda outcome: bar.update())
            by_batch = tune_batch_size(options.model, options.batch_sizes, *of)
            by_pool = tune_pool(options.model, by_batch.choice.best, options.actors, *of)
    except Exception as error:
        if (sentence := explain(error)) is None:
            raise
        return fail(sentence)
    found = {"batch size": by_batch, "actors": by_pool}
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        for name, tuning in found.items():
            figure = draw_curve(tuning, f"Images per second by {name}")
            (options.figures / f"{name.replace(' ', '-')}.svg").write_text(figure)
    if options.json:
        report = {name: {"curve": curve(each), **asdict(each.choice)} for name, each in found.items()}
        taken = {**by_batch.arguments, **by_pool.arguments}
        sys.stdout.write(json.dumps({**report, "arguments": taken}) + "\n")
    else:
        sys.stdout.write("\n".join(format_tuning(name, each) for name, each in found.items()))
    return 0


def format_tuning(name: str, tuning: Tuning) -> str:
    """Return the curve of a search and its choice as a person reads them."""
    lines = [f"{name:>12}{'images/s':>12}{'lowest':>10}{'highest':>10}{'MB':>8}"]
    for row in curve(tuning):
        measured = f"    {row['failure']}"
        if not row["failure"]:
            measured = (
                "{rate:12.1f}{lowest:10.1f}{highest:10.1f}".format(**row) + f"{row['peak_bytes'] / 1e6:8.0f}"
            )
        lines.append(f"{row['candidate']:>12}{measured}")
    choice = tuning.choice
    sure = "sure" if choice.sure else "not sure"
    loss = f"with each median in its {choice.confidence:.0%} interval, it loses at most {choice.may_lose:.0%}"
    lines.append(f"{choice.best} is the choice, {sure}: {loss}. Ended: {tuning.stopped}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from snippets.optimization import tuners as module  # by its name, so that workers import it

    sys.exit(module.main())
