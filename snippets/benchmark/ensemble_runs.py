"""One layout of an ensemble, its models alone, or what they answer, measured in a process of its own.

`python -m snippets.benchmark.ensemble_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import ray

from snippets.benchmark.processes import answer_request
from snippets.benchmark.streaming_runs import StoreSampler
from snippets.command import ray_options
from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY
from snippets.fundamentals.costs import median_seconds
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import configure_data_context
from snippets.optimization.ensemble import (
    LAYOUTS,
    Each,
    LoadedModel,
    Member,
    Rule,
    classify_together,
    load_ensemble,
)
from snippets.optimization.ensemble_scores import (
    answered,
    choose,
    choose_sure,
    fit_weights,
    labels_from_folders,
    stop_when_sure,
)
from snippets.optimization.ensemble_views import View, decode_views
from snippets.recording import recording

Answers = tuple[np.ndarray, np.ndarray]  # probabilities (n, models, labels), and the true labels
SURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def run_layout(
    layout: str, source: str, models: Sequence[str], limit: int, sure: float | None = None
) -> dict[str, Any]:
    """Run a layout to its last row and return what it did, as `Recording.report` says, and more.

    `steady_rows_per_second` counts images and not answers; `asked` is how many images each model answered, and
    `peak_store_bytes` the most that lay in the object stores.
    """
    names = [member.name for member in load_ensemble(models).members]
    with recording(**ray_options()) as record:
        configure_data_context(progress_bars=False)
        store = StoreSampler()
        answers = LAYOUTS[layout](source, models, limit, Rule(sure=sure))
        rows = [
            row
            for table in answers.iter_batches(batch_size=None, batch_format="pyarrow")
            for row in table.to_pylist()
        ]
        peak_store = store.stop()
    ray.shutdown()
    report = record.report()
    passed = sum(event.rows for event in record.of("batch"))
    if report["steady_rows_per_second"] is not None:
        report["steady_rows_per_second"] *= len(rows) / passed
    return {
        "rows": len(rows),
        "errors": sum(bool(row["error"]) for row in rows),
        **report,
        "peak_store_bytes": peak_store,
        "asked": {name: sum(name in row["models"] for row in rows) for name in names},
    }


class Alone:
    """One model in a process that does nothing else."""

    def __init__(self, member: Member, batch_size: int, threads: int) -> None:
        import torch
        import transformers

        process = psutil.Process()
        _ = torch, transformers.AutoModelForImageClassification  # imported before the clock starts
        before, began = process.memory_full_info().uss, time.perf_counter()
        self.model = LoadedModel(member, batch_size, threads, use_gpu=True)
        self.load_seconds = time.perf_counter() - began
        self.load_bytes = process.memory_full_info().uss - before
        self.weight_bytes = sum(each.numel() * each.element_size() for each in self.model.network.parameters())

    def run(self, seconds: float, side: int) -> dict[str, Any]:
        """Return what loading took, and images per second of at least two forward passes in so many seconds."""
        images = np.zeros((self.model.batch_size, side, side, 3), np.uint8)
        self.model.forward(images)  # the first one chooses kernels
        passes, began = 0, time.perf_counter()
        while passes < 2 or time.perf_counter() - began < seconds:
            self.model.forward(images)
            passes += 1
        return {
            "rows_per_second": passes * len(images) / (time.perf_counter() - began),
            "load_seconds": self.load_seconds,
            "load_bytes": self.load_bytes,
            "weight_bytes": self.weight_bytes,
        }


def measure_members(source: str, models: Sequence[str], seconds: float) -> dict[str, Any]:
    """Return what each model takes alone, by name, on all cores: see `Alone.run`.

    And the seconds to read and decode an image on one core: `decode` for all views, `decode_one` for the first.
    """
    ensemble = load_ensemble(models)
    ray.init(**ray_options())
    on_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    threads, batch_size = int(ray.cluster_resources()["CPU"]), 64 if on_gpu else 16
    alone = ray.remote(num_cpus=0, num_gpus=int(on_gpu), runtime_env={"env_vars": KEEP_FREED_MEMORY})(Alone)
    found = {}
    for member in ensemble.members:
        actor = alone.remote(member, batch_size, threads)
        found[member.name] = ray.get(actor.run.remote(seconds, ensemble.views[member.view].side))
        ray.kill(actor)
    ray.shutdown()
    return {
        "members": found,
        "decode": _decode_seconds(source, ensemble.views),
        "decode_one": _decode_seconds(source, ensemble.views[:1]),
        "views": len(ensemble.views),
    }


def _decode_seconds(source: str, views: Sequence[View]) -> float:
    filesystem, paths, _ = list_images(source, 32)
    return median_seconds(lambda: decode_views({"id": paths}, filesystem, views), repeats=3) / len(paths)


def measure_quality(source: str, held_out: str, models: Sequence[str]) -> dict[str, Any]:
    """Ask all models about the images and about the held-out ones; return `describe_quality` of their answers."""
    ensemble = load_ensemble(models)
    ray.init(**ray_options())
    configure_data_context(progress_bars=False)

    def answers(of: str) -> Answers:
        rows = classify_together(of, models, actor=Each).take_all()
        truth = labels_from_folders([row["id"] for row in rows], ensemble.labels)
        return np.stack([row["probabilities"] for row in rows])[truth >= 0], truth[truth >= 0]

    found = describe_quality([member.name for member in ensemble.members], answers(held_out), answers(source))
    ray.shutdown()
    return found


def describe_quality(names: Sequence[str], held_out: Answers, images: Answers) -> dict[str, Any]:
    """Return how often models `alone`, `combined` and in `cascades` are right (0 to 1) about the images.

    `weights`, and `sure` of the cascade that loses nothing, are chosen on the held-out ones. A cascade's
    `asked` is the share of images about which each model is. All is null without an image whose truth is known.
    """
    (fitted, fitted_truth), (found, truth) = held_out, images
    counts = {"images": len(truth), "held_out": len(fitted_truth)}
    if not len(truth):
        return {**counts, "alone": None, "combined": None, "weights": None, "cascades": None}

    def right(probabilities: np.ndarray, *how: Any) -> float:
        return float((choose(probabilities, *how)[0] == truth).mean())

    def cascade(sure: float) -> dict[str, Any]:
        kept = stop_when_sure(found, sure)
        asked = dict(zip(names, answered(kept).mean(axis=0).tolist(), strict=True))
        return {"sure": sure, "accuracy": right(kept), "asked": asked}

    weights = fit_weights(fitted, fitted_truth)
    return {
        **counts,
        "alone": {name: right(found[:, [place]]) for place, name in enumerate(names)},
        "combined": {
            "mean": right(found),
            "vote": right(found, "vote"),
            "weights": right(found, "mean", weights),
        },
        "weights": dict(zip(names, weights, strict=True)),
        "sure": choose_sure(fitted, fitted_truth),
        "cascades": [cascade(sure) for sure in SURES],
    }


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "layout": run_layout,
    "members": measure_members,
    "quality": measure_quality,
}


if __name__ == "__main__":
    answer_request(KINDS)
