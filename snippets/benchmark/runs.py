"""One measurement in a process of its own, with a fresh Ray, as a user's: a pipeline, the limits or the costs.

`python -m snippets.benchmark.runs ANSWER` reads a request as JSON from standard input and writes its answer to
the file ANSWER. A request names its `kind` and the parameters of the function of that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import PurePosixPath
from typing import Any

import ray

from snippets.benchmark.breakdown import break_down
from snippets.benchmark.contenders import CONTENDERS, Run, Source
from snippets.benchmark.processes import answer_request
from snippets.command import ray_options
from snippets.fundamentals import costs
from snippets.fundamentals.setup import configure_data_context
from snippets.fundamentals.stepwise import STEPS
from snippets.recording import Recording, recording

BATCH_SIZE, GPU_BATCH_SIZE = 16, 64  # what `classify` chooses


def run_contender(name: str, source: Source, model: str) -> dict[str, Any]:
    """Run a contender to its last row and return what it did.

    `run` is what `Recording.report` says, with `rows`, `errors` and `accuracy`: the share of labels (0 to 1)
    that are the name of the image's folder, null where no folder has the name of a label. `labels` maps ids to
    labels. `breakdown` is there for `naive` alone.
    """
    record, rows = _record(CONTENDERS[name].run, source, model)
    answer = _answer(record, rows)
    if name == "naive":
        answer["breakdown"] = break_down(record.events, record.connected, record.ended)
    return answer


def run_step(name: str, source: Source, model: str) -> dict[str, Any]:
    """Run a step of `snippets.fundamentals.stepwise`; return its `run` and `labels`, as `run_contender` does."""
    return _answer(*_record(STEPS[name].run, source, model))


def _record(run: Run, source: Source, model: str) -> tuple[Recording, list[dict[str, Any]]]:
    with recording(**ray_options()) as record:
        configure_data_context(progress_bars=False)
        rows = _drain(run(source, model, None))
    ray.shutdown()
    return record, rows


def _answer(record: Recording, rows: list[dict[str, Any]]) -> dict[str, Any]:
    labels = {row["id"]: row["label"] for row in rows}
    run = {
        "rows": len(rows),
        "errors": sum(bool(row.get("error")) for row in rows),
        **record.report(),
        "accuracy": _accuracy(labels),
    }
    return {"run": run, "labels": labels}


def _drain(predictions: ray.data.Dataset) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for table in predictions.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += table.to_pylist()
    return rows


def _accuracy(labels: dict[str, str]) -> float | None:
    folders = {image: PurePosixPath(image).parent.name for image in labels}
    if set(labels.values()).isdisjoint(folders.values()):
        return None
    return sum(labels[image] == folder for image, folder in folders.items()) / len(labels)


def measure_limits(
    source: Source, model: str, dtypes: list[str], seconds: float, one_process_only: bool = False
) -> dict[str, Any]:
    """Return what pipelines are held against: `cores`, `decode_seconds` an image on one core, `forward` rates.

    `forward` maps a dtype to images per second of bare forward passes, in batches as the pool makes them, of
    `one_process` with a thread for each core, and of `process_per_core` with one thread each, null on a GPU.
    """
    ray.init(**ray_options())
    cores = int(ray.cluster_resources()["CPU"])
    on_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    batch_size = GPU_BATCH_SIZE if on_gpu else BATCH_SIZE

    is_one_process = on_gpu or one_process_only
    forward = {}
    for dtype in dtypes:
        loops = costs.start_loops(model, 1 if is_one_process else cores, dtype, batch_size)
        forward[dtype] = {
            "one_process": costs.forward_rate(loops[:1], cores, seconds),
            "process_per_core": None if is_one_process else costs.forward_rate(loops, 1, seconds),
        }
    decode_seconds = costs.decode_seconds(source, model)
    ray.shutdown()
    return {"cores": cores, "on_gpu": on_gpu, "decode_seconds": decode_seconds, "forward": forward}


def record_events(name: str, source: Source, model: str) -> dict[str, Any]:
    """Return all `events` of a contender's run, when it `started` (since the epoch), and its `seconds`."""
    record, _ = _record(CONTENDERS[name].run, source, model)
    events = [astuple(event) for event in record.events]
    return {"events": events, "started": record.connected, "seconds": record.ended - record.connected}


def measure_costs(source: str, model: str) -> dict[str, Any]:
    """Return the rows of `costs.measure`."""
    ray.init(**ray_options())
    configure_data_context(progress_bars=False)
    rows = costs.measure(source, model)
    ray.shutdown()
    return {"costs": rows}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "contender": run_contender,
    "step": run_step,
    "events": record_events,
    "limits": measure_limits,
    "costs": measure_costs,
}


if __name__ == "__main__":
    answer_request(KINDS)
