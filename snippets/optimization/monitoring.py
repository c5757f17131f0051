"""Watch a run from outside: counters for Prometheus, log lines with run and row ids, the stacks of a worker."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, Classifier, decode, load_preprocessing, plan_pool
from snippets.fundamentals.watching import this_job

# isort: split
# --8<-- [start:imports]
import faulthandler
import inspect
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from prometheus_client.parser import text_string_to_metric_families
from pyarrow import fs
from ray.util import metrics, state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:batches]
def count_rows(batch: Any) -> int:
    """Return the rows of a batch: a dictionary of columns, an Arrow table or a data frame."""
    return len(next(iter(batch.values()), ())) if isinstance(batch, dict) else len(batch)


def count_bytes(batch: Any) -> int:
    """Return the bytes of a batch's columns; of Python objects, those of what refers to them."""
    if isinstance(batch, pa.Table):
        return int(batch.nbytes)
    return sum(np.asarray(batch[name]).nbytes for name in batch)


def column(batch: Any, name: str) -> list[Any]:
    """Return the values of a column; none where the batch has no such column."""
    if name not in (batch.column_names if isinstance(batch, pa.Table) else batch):
        return []
    values = batch[name]
    return list(values.to_pylist() if isinstance(values, pa.ChunkedArray) else values)


# --8<-- [end:batches]


# --8<-- [start:meter]
class StageMeter:
    """What one worker counts and logs of a stage of a run.

    Errors are those that a batch's column `error` names, as in part 1, and exceptions; rows are named by `id`.
    """

    def __init__(self, run: str, stage: str) -> None:
        self.names = {"run": run, "stage": stage}
        self.rows = self.counter("rows", "Rows taken")
        self.batches = self.counter("batches", "Batches taken")
        self.busy = self.counter("batch_seconds", "Seconds in calls")
        self.waiting = self.counter("wait_seconds", "Seconds of actors between calls")
        self.loads = self.counter("model_loads", "Constructors, and calls in which torch made parameters")
        self.errors = self.counter("errors", "Rows that failed", "cause")
        self.bytes = self.counter("bytes", "Bytes of batches", "direction")
        self.log = logging.getLogger("pipeline")
        self.free_since: float | None = None
        faulthandler.register(signal.SIGUSR1, sys.__stderr__ or 2)

    def counter(self, name: str, description: str, *more: str) -> Callable[..., None]:
        """Return what adds to a counter, which Ray exports as `ray_pipeline_NAME_total`."""
        made = metrics.Counter(f"pipeline_{name}", description, ("run", "stage", *more))
        made.set_default_tags(self.names)

        def add(value: float, **labels: str) -> None:
            if value > 0:  # Ray refuses 0
                made.inc(value, labels)

        return add

    def load(self, construct: Callable[[], None]) -> None:
        """Run the constructor of an actor's class."""
        began = time.perf_counter()
        construct()
        self.loads(1)
        self.free_since = time.perf_counter()
        self.log.info("loaded", extra={**self.names, "seconds": self.free_since - began})

    def call(self, function: Callable[..., Any], batch: Any) -> Any:
        """Run a function over a batch and return what it returns."""
        began, ids, result = time.perf_counter(), column(batch, "id"), None
        if self.free_since is not None:  # of a task, nobody knows what its worker did before
            self.waiting(began - self.free_since)
        try:
            with torch_parameters() as made:
                result = function(batch)
        except Exception as error:
            self.fail({type(error).__name__: ids or [None] * count_rows(batch)})
            raise
        finally:
            ended = time.perf_counter()
            if self.free_since is not None:
                self.free_since = ended
            self.busy(ended - began)
            self.batches(1)
            self.rows(count_rows(batch))
            self.loads(bool(made))
        self.bytes(count_bytes(batch), direction="in")
        self.bytes(count_bytes(result), direction="out")
        failed: defaultdict[str, list[Any]] = defaultdict(list)
        if errors := column(result, "error"):
            for id, text in zip(column(result, "id") or [None] * len(errors), errors, strict=True):
                if text:
                    failed[cause_of(text)].append(id)
        self.fail(failed)
        self.log.debug("batch", extra={**self.names, "rows": [str(id) for id in ids]})
        return result

    def fail(self, rows_by_cause: dict[str, list[Any]]) -> None:
        """Count the rows that failed, and name them in the log."""
        for cause, rows in rows_by_cause.items():
            self.errors(len(rows), cause=cause)
            self.log.warning("rows failed", extra={**self.names, "cause": cause, "rows": [str(id) for id in rows]})


def cause_of(error: str) -> str:
    """Return the type that an error's text begins with: texts with paths in them would each be a series."""
    kinds = "Error|Exception|Warning|Invalid|Interrupt|Exit|Expired"  # with which the names of types end
    found = re.match(rf"(?:[a-z_]\w*\.)*[A-Z]\w*(?:{kinds})(?=: |$)|(?:{kinds})(?=: |$)", error)
    return found[0] if found else "other"


@contextmanager
def torch_parameters() -> Iterator[list[str]]:
    """Collect the names of the parameters that torch makes; none of a call that imports torch itself."""
    made: list[str] = []
    hook = None
    if torch := sys.modules.get("torch"):
        hear = torch.nn.modules.module.register_module_parameter_registration_hook
        hook = hear(lambda _module, name, _parameter: made.append(name))
    try:
        yield made
    finally:
        if hook:
            hook.remove()


# --8<-- [end:meter]


# --8<-- [start:monitored]
def monitored(udf: Any, run: str) -> Any:
    """Return a class, or a function, of the same name that does the same and is metered.

    Raises `TypeError` for one that yields: what it does happens after its call.
    """
    stage, plain = udf.__name__, udf
    if inspect.isgeneratorfunction(udf.__call__ if isinstance(udf, type) else udf):
        raise TypeError(f"{stage} yields its batches, and only what returns a batch can be metered.")

    if not isinstance(udf, type):

        def function(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return StageMeter(run, stage).call(lambda batch: udf(batch, *args, **kwargs), batch)

        function.__name__ = stage
        return function

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        self.stage_meter = StageMeter(run, stage)
        self.stage_meter.load(partial(plain.__init__, self, *args, **kwargs))

    def call(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return self.stage_meter.call(lambda batch: plain.__call__(self, batch, *args, **kwargs), batch)

    return type(stage, (udf,), {"__init__": construct, "__call__": call})


# --8<-- [end:monitored]


# --8<-- [start:scrape]
def scrape() -> list[Any]:
    """Return the samples that the nodes export now, each with `name`, `labels` and `value`."""
    samples = []
    for node in ray.nodes():
        if node["Alive"]:
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(address, timeout=10) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    samples += family.samples
    return samples


def totals(run: str) -> Counter[tuple[str, ...]]:
    """Return a run's counters, summed over its workers, by stage, name, and cause or direction."""
    found: Counter[tuple[str, ...]] = Counter()
    for sample in scrape():
        name, labels = re.fullmatch(r"ray_pipeline_(\w+)_total", sample.name), sample.labels
        if name and labels["run"] == run:
            more = [labels[key] for key in ("cause", "direction") if key in labels]
            found[labels["stage"], name[1], *more] += sample.value
    return found


def await_rows(run: str, stage: str, rows: int, timeout_s: float = 60) -> Counter[tuple[str, ...]]:
    """Return the totals once a stage has reported so many rows, or after the time: workers report every 10 s."""
    deadline = time.monotonic() + timeout_s
    while totals(run)[stage, "rows"] < rows and time.monotonic() < deadline:
        time.sleep(0.5)
    return totals(run)  # once more: a worker's counters arrive one after the other


# --8<-- [end:scrape]


# --8<-- [start:logs]
def list_workers(stage: str) -> list[Any]:
    """Return the actors of a stage of this job, also those that have ended; each has `pid`, `node_id`, `state`."""
    return [actor for actor in state.list_actors(**this_job()) if f"MapBatches({stage})" in actor.class_name]


def read_log(worker: Any) -> str:
    """Return what a worker wrote to stderr, wherever its node is."""
    address = ray.get_runtime_context().gcs_address
    return "".join(state.get_log(address, node_id=worker.node_id, pid=worker.pid, suffix="err"))


def log_records(worker: Any) -> list[dict[str, Any]]:
    """Return the lines of a worker's log that are JSON."""
    return [json.loads(line) for line in read_log(worker).splitlines() if line.startswith("{")]


# --8<-- [end:logs]


# --8<-- [start:stacks]
def on_node(worker: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function on a worker's node, beside whatever is reserved there."""
    where = NodeAffinitySchedulingStrategy(worker.node_id, soft=False)
    return ray.get(ray.remote(function).options(num_cpus=0, scheduling_strategy=where).remote(*args))


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process of this machine."""
    os.kill(pid, number)


def dump_stacks(worker: Any, timeout_s: float = 10) -> str:
    """Return the Python stacks of a metered worker's threads, from its log. It needs no right but to signal it.

    Raises `TimeoutError` where none appears.
    """
    before = len(read_log(worker))
    on_node(worker, send_signal, worker.pid, signal.SIGUSR1)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if "(most recent call first)" in (text := read_log(worker)[before:]):
            return text
        time.sleep(0.2)
    raise TimeoutError(f"Worker {worker.pid} wrote no stack within {timeout_s:g} s.")


def spy(pid: int) -> str:
    """Return the Python stacks of any process of this machine, as py-spy reads them from its memory.

    Raises `PermissionError` where that is not allowed: it takes root or `CAP_SYS_PTRACE`.
    """
    beside = Path(sys.executable).with_name("py-spy")  # which `ray[default]` brings
    program = str(beside) if beside.exists() else "py-spy"
    done = subprocess.run([program, "dump", "--pid", str(pid)], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    return done.stdout


# --8<-- [end:stacks]


# --8<-- [start:classify_metered]
def classify_metered(
    filesystem: fs.FileSystem, paths: list[str], model: str, run: str, batch_size: int = 8
) -> ray.data.Dataset:
    """Return part 1's predictions, by one actor, with both stages metered."""
    to, pool = load_preprocessing(model), plan_pool(actors=1)
    rows = ray.data.from_items(
        [{"id": path} for path in paths], override_num_blocks=math.ceil(len(paths) / batch_size)
    )
    return rows.map_batches(
        monitored(decode, run), fn_kwargs={"filesystem": filesystem, "to": to}, num_cpus=pool.decode_cpus
    ).map_batches(
        monitored(Classifier, run),
        fn_constructor_args=(model, to, batch_size, "auto", pool.threads, pool.num_gpus > 0),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )


# --8<-- [end:classify_metered]


def run(options: Any) -> list[dict[str, Any]]:
    """Return what the counters of a metered run say, by stage."""
    from snippets.fundamentals.dataset import list_images

    filesystem, paths, _ = list_images(options.images, options.limit)
    run_id = time.strftime("%Y%m%dT%H%M%S")
    classify_metered(filesystem, paths, options.model, run_id).materialize()
    found = await_rows(run_id, Classifier.__name__, len(paths))
    return [
        {"stage": stage, "counter": " ".join(name), "value": value}
        for (stage, *name), value in sorted(found.items())
    ]


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.monitoring")
