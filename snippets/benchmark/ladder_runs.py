"""One measurement of the ladder in a process of its own: a build, a rung, or the limits of engines and decoders.

`python -m snippets.benchmark.ladder_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ray
import torch

from snippets.benchmark.processes import answer_request
from snippets.benchmark.runs import _answer, _record
from snippets.command import ray_options
from snippets.fundamentals import costs
from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, decode, load_preprocessing
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.stepwise import STEPS
from snippets.optimization.engines import (
    BATCH_SIZE,
    ENGINES,
    Calibration,
    build_engine,
    choose_calibration,
    open_engine,
)
from snippets.optimization.gpu import DEVICE_ENGINES, GPU_RUNGS, open_on_device
from snippets.optimization.ladder import RUNGS, decode_cheaply

ALL_RUNGS = RUNGS | GPU_RUNGS
Source = list[str]
DECODERS = {"full": decode, "cheap": decode_cheaply}
REFERENCE = "memory"  # a step that leaves the pixels alone, and so has naive's labels


def measure_build(artefact: str, model: str, calibration: Source, folder: str) -> dict[str, Any]:
    """Return the `seconds` to build an artefact, imports included, null where it was there, and its `bytes`."""
    start = time.perf_counter()
    built = build_engine(model, artefact, _calibration(calibration), folder)
    seconds = None if built.seconds is None else time.perf_counter() - start
    return {"seconds": seconds, "bytes": built.path.stat().st_size}


def run_rung(name: str, source: Source, model: str, calibration: Source, folder: str) -> dict[str, Any]:
    """Run a rung; return its `run` and `labels`, as `runs.run_contender` does, and its `scores` by id."""

    def pipeline(source: Any, model: str, limit: int | None) -> ray.data.Dataset:
        return ALL_RUNGS[name].run(source, model, calibration=_calibration(calibration), folder=folder)

    record, rows = _record(pipeline, source, model)
    return {**_answer(record, rows), "scores": {row["id"]: row["score"] for row in rows}}


def run_reference(source: Source, model: str) -> dict[str, Any]:
    """Return the labels and scores that others are compared to: PyTorch's, of the checkpoint's own processor."""
    record, rows = _record(STEPS[REFERENCE].run, source, model)
    return {**_answer(record, rows), "scores": {row["id"]: row["score"] for row in rows}}


def _calibration(source: Source) -> Calibration:
    return choose_calibration(source, count=len(source))


class EngineLoop:
    """A process that does nothing but forward passes of an engine over one batch."""

    def __init__(self, model: str, engine: str, calibration: Source, folder: str) -> None:
        self.model, self.engine, self.crop = model, ENGINES[engine], load_preprocessing(model).crop
        self.path = build_engine(model, self.engine.artefact, _calibration(calibration), folder).path
        self.forward: Callable[[np.ndarray], np.ndarray] | None = None
        self.images = np.zeros((BATCH_SIZE, self.crop, self.crop, 3), np.uint8)

    def run(self, threads: int, seconds: float) -> float:
        """Return images per second of at least `seconds` of forward passes, and at least two of them."""
        if self.forward is None:
            self.forward = open_engine(self.path, self.engine, self.crop, threads=threads)
        passes, start = 0, time.perf_counter()
        while passes < 2 or time.perf_counter() - start < seconds:
            self.forward(self.images)
            passes += 1
        return passes * BATCH_SIZE / (time.perf_counter() - start)


class DeviceLoop:
    """A process that does nothing but forward passes on a device, over one chunk that is there already."""

    def __init__(self, model: str, engine: str) -> None:
        on_gpu = torch.cuda.is_available()
        self.opened = open_on_device(model, load_preprocessing(model), DEVICE_ENGINES[engine], use_gpu=on_gpu)

    def run(self, threads: int, seconds: float) -> float:
        """Return images per second of at least `seconds` of forward passes, and at least two of them."""
        torch.set_num_threads(threads)
        images = torch.zeros_like(self.opened.buffers[0], device=self.opened.device)
        passes, start = 0, time.perf_counter()
        with torch.inference_mode():
            while passes < 2 or time.perf_counter() - start < seconds:
                for _ in range(2):  # one is launched while the other is computed
                    probabilities = self.opened.forward(images)
                probabilities.sum().item()  # waits for a GPU to finish
                passes += 2
        return passes * len(images) / (time.perf_counter() - start)


def measure_limits(
    source: Source, model: str, engines: list[str], calibration: Source, folder: str, seconds: float
) -> dict[str, Any]:
    """Return what rungs are held against: `cores`, `decode` seconds an image on one core, and `forward` rates.

    `decode` is by decoder, `forward` by engine, in images per second of bare forward passes: on a CPU of a process
    a core with one thread each, as the pool has them, at the same time; on a GPU of one process.
    """
    ray.init(**ray_options())
    cores = int(ray.cluster_resources()["CPU"])
    on_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    process = ray.remote(num_cpus=0, runtime_env={"env_vars": KEEP_FREED_MEMORY})(EngineLoop)
    device_process = ray.remote(num_cpus=0, num_gpus=1 if on_gpu else 0)(DeviceLoop)
    forward = {}
    for engine in engines:
        if engine == "eager":
            loops = costs.start_loops(model, 1 if on_gpu else cores)
        elif engine in DEVICE_ENGINES:
            loops = [device_process.remote(model, engine)]
        else:
            loops = [process.remote(model, engine, calibration, folder) for _ in range(cores)]
        forward[engine] = costs.forward_rate(loops, 1, seconds)
        del loops
    filesystem, paths, _ = list_images(source)
    to = load_preprocessing(model)
    decoding = {
        name: costs.median_seconds(partial(decoder, {"id": paths}, filesystem, to), 3) / len(paths)
        for name, decoder in DECODERS.items()
    }
    ray.shutdown()
    return {"cores": cores, "decode": decoding, "forward": forward}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "build": measure_build,
    "rung": run_rung,
    "reference": run_reference,
    "limits": measure_limits,
}


if __name__ == "__main__":
    answer_request(KINDS)
