"""Decide what to change: from the counts of a run and a few costs to one change, with what it should gain."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from snippets.architecture.sizing import check_counts, knee_batch_size
from snippets.command import Parser, fail

# isort: split
# --8<-- [start:imports]
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import ray

# --8<-- [end:imports]


# --8<-- [start:measured]
@dataclass(frozen=True)
class Costs:
    """What the work costs, in seconds: measured once, or known.

    A forward pass takes `pass_s`, whatever its batch, and `item_s` an image. `decode_s` is of an image on one
    core, `store_s` of a byte that crosses the object store.
    """

    load_s: float
    pass_s: float
    item_s: float
    decode_s: float = 0
    store_s: float = 0


@dataclass(frozen=True)
class Run:
    """What was counted in a run of a pipeline that decodes and then classifies.

    `calls` of the model's function saw `seen` rows, on `at_work` distinct workers out of `workers`; `loads` is of
    models. `decode_tasks` ran at once at the most; None where the model's workers decoded. `row_bytes` is what
    entered the model's function, `needed_bytes` what it would need. `cpus` is the cluster's, of which a worker
    reserves `worker_cpus` and a decode task `task_cpus`.
    """

    rows: int
    batch_size: int
    blocks: int
    seen: int
    calls: int
    loads: int
    workers: int
    at_work: int
    decode_tasks: int | None
    row_bytes: float
    needed_bytes: float
    cpus: float
    worker_cpus: float
    task_cpus: float


# --8<-- [end:measured]


# --8<-- [start:seconds]
ROUNDING = 1e-9  # of CPUs that add up


def seconds(run: Run, costs: Costs) -> float:
    """Return what a run should take: the slower of its two stages, or their sum where the same workers do both.

    A batch is padded to its full size, so a partial one costs as much. Infinite where nothing can run.
    """
    if run.workers * run.worker_cpus + run.task_cpus > run.cpus + ROUNDING:
        return math.inf
    passes = run.calls * (costs.pass_s + run.batch_size * costs.item_s)
    store = run.seen * run.row_bytes * costs.store_s
    again = max(0, run.loads - run.workers) / max(1, run.at_work)  # a pool's own loads are at the same time
    model = (min(1, run.loads) + again) * costs.load_s + (passes + store) / max(1, run.at_work)
    decode = run.seen * costs.decode_s
    if run.decode_tasks is None:
        return model + decode / max(1, run.at_work)
    return max(model, decode / max(1, run.decode_tasks))


# --8<-- [end:seconds]


# --8<-- [start:changes]
def blocks_to_share(run: Run) -> int:
    """Return four blocks a worker, or as many as there are batches: each takes two in advance."""
    return max(1, min(4 * run.workers, run.rows // run.batch_size))


def leave_a_cpu(run: Run, costs: Costs) -> Run:
    """The pool holds every CPU, and no task can read: fewer actors, or a smaller reservation."""
    free = max(0, run.cpus - run.task_cpus)
    if run.workers * run.worker_cpus <= free:
        return run
    workers = math.floor(free / run.worker_cpus + ROUNDING)
    if workers < 1:
        return replace(run, workers=1, worker_cpus=free, at_work=min(run.at_work, 1))
    return replace(run, workers=workers, at_work=min(run.at_work, workers))


def run_once(run: Run, costs: Costs) -> Run:
    """Rows were computed more than once: keep them, with `materialize()` or a write, and look at that."""
    times = max(1, run.seen / run.rows)
    calls, loads = round(run.calls / times), max(1, round(run.loads / times))
    return replace(run, seen=run.rows, calls=calls, loads=loads)


def load_once(run: Run, costs: Costs) -> Run:
    """Models are loaded in calls: load in the constructor of a class."""
    return replace(run, loads=min(run.loads, run.workers))


def smaller_batches(run: Run, costs: Costs) -> Run:
    """There are fewer batches than workers: cut more."""
    if run.calls >= run.workers:
        return run
    size = max(1, run.rows // (4 * run.workers))
    calls = math.ceil(run.rows / size)
    return replace(run, batch_size=size, calls=calls, at_work=min(run.workers, calls), blocks=4 * run.workers)


def more_blocks(run: Run, costs: Costs) -> Run:
    """Workers got nothing because a task takes a whole block: cut more."""
    blocks = blocks_to_share(run)
    return replace(run, blocks=blocks, at_work=run.workers) if run.blocks < blocks else run


def whole_batches(run: Run, costs: Costs) -> Run:
    """Blocks end in the middle of a batch: give them rows that the batch size divides."""
    calls = math.ceil(run.seen / run.batch_size)
    if calls >= run.calls:
        return run
    rows_a_block = run.batch_size * math.ceil(run.rows / run.blocks / run.batch_size)
    return replace(run, calls=calls, blocks=math.ceil(run.rows / rows_a_block))


def larger_batches(run: Run, costs: Costs) -> Run:
    """The fixed part of a pass weighs too much: batches at the knee, but four for each worker."""
    knee = knee_batch_size(costs.pass_s, costs.item_s)
    size = min(knee, max(1, run.rows // (4 * run.workers)))
    if size <= run.batch_size:
        return run
    return replace(run, batch_size=size, calls=math.ceil(run.seen / size), blocks=max(1, run.rows // size))


def decode_apart(run: Run, costs: Costs) -> Run:
    """The model's workers decode, or Ray has fused the two: with another `num_cpus`, tasks do."""
    return _decode_in(run, room_for_tasks(run)) if run.decode_tasks is None else run


def more_decode_tasks(run: Run, costs: Costs) -> Run:
    """Decoding is behind while CPUs are free: take away what limits its tasks, or let each reserve less."""
    if run.decode_tasks is None or room_for_tasks(run) <= run.decode_tasks:
        return run
    return _decode_in(run, room_for_tasks(run))


def room_for_tasks(run: Run) -> int:
    """Return how many decode tasks have a core each beside the workers, and rows to decode."""
    return max(1, min(int(run.cpus - run.workers * run.worker_cpus), run.rows))


def _decode_in(run: Run, tasks: int) -> Run:
    return replace(run, decode_tasks=tasks, blocks=max(run.blocks, tasks))


def send_bytes(run: Run, costs: Costs) -> Run:
    """Rows are larger than the model needs: send pixels as uint8, and no other column."""
    return replace(run, row_bytes=min(run.row_bytes, run.needed_bytes))


CHANGES: tuple[Callable[[Run, Costs], Run], ...] = (
    leave_a_cpu,
    run_once,
    load_once,
    smaller_batches,
    more_blocks,
    whole_batches,
    larger_batches,
    decode_apart,
    more_decode_tasks,
    send_bytes,
)
# --8<-- [end:changes]


# --8<-- [start:recommend]
WORTHWHILE = 1.1  # a change that gains less is not worth its risk


@dataclass(frozen=True)
class Recommendation:
    """One change, why, how many times faster the run should be, and the counts to expect after it."""

    change: str
    why: str
    gain: float
    expected: Run


def recommend(run: Run, costs: Costs) -> Recommendation:
    """Return the change that gains most, the first of several; else the stage whose own code must get faster.

    The gain of the last kind is the limit: what the whole would gain if that stage took no time.
    Raises `ValueError` where a run has seen no row, unless it could not start, or counts what cannot be, or
    where a decode task reserves more than there is.
    """
    check_counts(rows=run.rows, batch_size=run.batch_size, blocks=run.blocks, workers=run.workers)
    if run.task_cpus > run.cpus:
        raise ValueError(f"A decode task reserves {run.task_cpus:g} CPUs, and there are {run.cpus:g}.")
    now = seconds(run, costs)
    if math.isfinite(now) and min(run.rows, run.seen, run.calls) < 1:
        raise ValueError("A run that has seen no row has nothing to decide from.")
    tried = [(change, change(run, costs)) for change in CHANGES]
    gains = [_gain(now, seconds(expected, costs)) for _, expected in tried]
    best = max(range(len(tried)), key=gains.__getitem__)
    if gains[best] >= WORTHWHILE:
        change, expected = tried[best]
        return Recommendation(change.__name__, str(change.__doc__), gains[best], expected)
    without_decode = _gain(now, seconds(run, replace(costs, decode_s=0)))
    without_model = _gain(now, seconds(run, replace(costs, load_s=0, pass_s=0, item_s=0, store_s=0)))
    if max(without_decode, without_model) < WORTHWHILE:
        return Recommendation("add_hardware", "Both stages are as fast as each other.", 1, run)
    if without_decode > without_model:
        return Recommendation("cheaper_decode", "Decoding bounds, on all cores there are.", without_decode, run)
    return Recommendation("faster_model", "Forward passes bound, and all else is in order.", without_model, run)


def _gain(before: float, after: float) -> float:
    if before == after:
        return 1
    return before / after if after else math.inf


# --8<-- [end:recommend]


# --8<-- [start:recorder]
class Recorder:
    """Writes down what happens in a run, in whichever workers it happens."""

    def __init__(self) -> None:
        self.run, self.events = 0, list[tuple[Any, ...]]()

    def begin(self) -> int:
        """Begin a new run, and return its number."""
        self.run, self.events = self.run + 1, []
        return self.run

    def tell(self, run: int, *event: Any) -> None:
        """Write down an event: "load"; "decode", +1 or -1; "call", worker, rows, bytes. None of an earlier run."""
        if run == self.run:  # an actor that was late may still be loading
            self.events.append(event)

    def counts(self) -> dict[str, Any]:
        """Return what the events add up to."""
        calls = [details for kind, *details in self.events if kind == "call"]
        decoding = [details[0] for kind, *details in self.events if kind == "decode"]
        rows = sum(rows for _, rows, _ in calls)
        return {
            "seen": rows,
            "calls": len(calls),
            "loads": sum(kind == "load" for kind, *_ in self.events),
            "at_work": len({worker for worker, _, _ in calls}),
            "row_bytes": sum(size for _, _, size in calls) / max(1, rows),
            "decoded_blocks": decoding.count(1),
            "decode_tasks": max(accumulate(decoding), default=0),
        }


@dataclass(frozen=True)
class Record:
    """The record of one run, which its workers share."""

    recorder: Any
    run: int

    def tell(self, *event: Any) -> None:
        """Write down an event."""
        ray.get(self.recorder.tell.remote(self.run, *event))

    def wait_for(self, count: str, least: int, timeout_s: float = 120) -> None:
        """Wait until a count has been reached, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while ray.get(self.recorder.counts.remote())[count] < least and time.monotonic() < deadline:
            time.sleep(0.05)


# --8<-- [end:recorder]


# --8<-- [start:pipeline]
Work = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose faults can be chosen. Sleep stands for work, so that its costs are what is stated.

    `decode_tasks` of None gives decoding the workers' reservation, and Ray fuses the two. The result is looked at
    `looks` times, and computed once for all if `keep`. With `meet`, batches wait until so many workers have one,
    and with `meet_decoding` blocks until so many tasks decode: who gets the next is else a matter of timing.
    """

    rows: int = 64
    blocks: int = 8
    batch_size: int = 8
    workers: int = 1
    worker_cpus: float = 0.1
    task_cpus: float = 1
    decode_tasks: int | None = 2
    dtype: str = "uint8"
    load_in_call: bool = False
    looks: int = 1
    keep: bool = False
    meet: int = 1
    meet_decoding: int = 1
    no_progress_timeout_s: float = 120


def stand_in(costs: Costs) -> Callable[[], Work]:
    """Return what takes as long to load as stated, and then as long for each batch."""

    def load() -> Work:
        time.sleep(costs.load_s)
        return lambda batch: time.sleep(costs.pass_s + costs.item_s * len(batch["id"]))

    return load


def execute(pipeline: Pipeline, costs: Costs, load: Callable[[], Work] | None = None, recorder: Any = None) -> Run:
    """Run a pipeline, with stand-ins or a model of your own, and return what was counted.

    Where it made no progress in time, nothing was. `recorder` is a `Recorder` actor to use again.
    """
    load = load or stand_in(costs)
    recorder = recorder or ray.remote(num_cpus=0)(Recorder).remote()
    record = Record(recorder, ray.get(recorder.begin.remote()))
    source = ray.data.range(pipeline.rows, override_num_blocks=pipeline.blocks)
    fused = pipeline.decode_tasks is None
    decoded = source.map_batches(
        decode_stand_in,
        fn_kwargs={"pipeline": pipeline, "decode_s": costs.decode_s, "record": record},
        num_cpus=pipeline.worker_cpus if fused else pipeline.task_cpus,
        compute=ray.data.TaskPoolStrategy(size=pipeline.workers if fused else pipeline.decode_tasks),
    )
    options: dict[str, Any] = {"batch_size": pipeline.batch_size, "num_cpus": pipeline.worker_cpus}
    if pipeline.load_in_call:
        compute = ray.data.TaskPoolStrategy(size=pipeline.workers)
        arguments = {"load": load, "record": record}
        results = decoded.map_batches(call_loading, fn_kwargs=arguments, compute=compute, **options)
    else:
        compute = ray.data.ActorPoolStrategy(size=pipeline.workers)
        results = decoded.map_batches(
            Loaded, fn_constructor_args=(load, record, pipeline.meet), compute=compute, **options
        )
    results.context.execution_no_progress_timeout_s = pipeline.no_progress_timeout_s
    try:
        results = results.materialize() if pipeline.keep else results
        for _ in range(pipeline.looks):
            results.take_all()
    except ray.data.exceptions.ExecutionTimeoutError:
        pass
    return _counted(pipeline, ray.get(recorder.counts.remote()))


def decode_stand_in(batch: dict[str, Any], pipeline: Pipeline, decode_s: float, record: Record) -> dict[str, Any]:
    """Return a small image a row, after as long as decoding takes."""
    record.tell("decode", 1)
    record.wait_for("decode_tasks", pipeline.meet_decoding)
    time.sleep(decode_s * len(batch["id"]))
    record.tell("decode", -1)
    return {"id": batch["id"], "image": np.zeros((len(batch["id"]), 8, 8, 3), pipeline.dtype)}


class Loaded:
    """A model that is loaded once a worker."""

    def __init__(self, load: Callable[[], Work], record: Record, meet: int) -> None:
        self.record, self.meet = record, meet
        record.tell("load")
        self.work = load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count, work, and return the ids."""
        return _call(self.work, batch, self.record, self.meet)


def call_loading(batch: dict[str, Any], load: Callable[[], Work], record: Record) -> dict[str, Any]:
    """Load the model, then count, work, and return the ids."""
    record.tell("load")
    return _call(load(), batch, record, 1)


def _call(work: Work, batch: dict[str, Any], record: Record, meet: int) -> dict[str, Any]:
    worker, size = ray.get_runtime_context().get_worker_id(), sum(column.nbytes for column in batch.values())
    record.tell("call", worker, len(batch["id"]), size)
    record.wait_for("at_work", meet)
    work(batch)
    return {"id": batch["id"]}


def _counted(pipeline: Pipeline, counts: dict[str, Any]) -> Run:
    blocks, decode_tasks = counts.pop("decoded_blocks"), counts.pop("decode_tasks")
    counts["at_work"] = min(counts["at_work"], pipeline.workers)  # tasks go from process to process
    return Run(
        rows=pipeline.rows,
        batch_size=pipeline.batch_size,
        blocks=round(blocks * pipeline.rows / counts["seen"]) if counts["seen"] else pipeline.blocks,
        workers=pipeline.workers,
        decode_tasks=None if pipeline.decode_tasks is None else decode_tasks or pipeline.decode_tasks,
        needed_bytes=8 + 8 * 8 * 3,
        cpus=ray.cluster_resources()["CPU"],
        worker_cpus=pipeline.worker_cpus,
        task_cpus=pipeline.task_cpus,
        **counts,
    )


def apply(pipeline: Pipeline, recommendation: Recommendation) -> Pipeline:
    """Return the pipeline with the one change made."""
    expected = recommendation.expected
    return replace(
        pipeline,
        blocks=expected.blocks,
        batch_size=expected.batch_size,
        workers=expected.workers,
        worker_cpus=expected.worker_cpus,
        decode_tasks=expected.decode_tasks,
        dtype="uint8" if recommendation.change == "send_bytes" else pipeline.dtype,
        load_in_call=pipeline.load_in_call and recommendation.change != "load_once",
        keep=pipeline.keep or recommendation.change == "run_once",
    )


# --8<-- [end:pipeline]


def recommend_from_file(path: str) -> Recommendation:
    """Read `{"run": {...}, "costs": {...}}` and recommend. Raises `ValueError` where that is not what it holds."""
    try:
        given = json.loads(Path(path).read_text())
        run, costs = Run(**given["run"]), Costs(**given["costs"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} does not hold the counts and costs of a run: {error}.") from None
    for name, value in (vars(run) | vars(costs)).items():
        allowed = (int, float, type(None)) if name == "decode_tasks" else (int, float)
        if not isinstance(value, allowed) or isinstance(value, bool) or (value or 0) < 0:
            raise ValueError(f"{path}: {name} must be a number that is not negative, not {value!r}.")
    return recommend(run, costs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is recommended and return 0, or 2 after a sentence about the file."""
    parser = Parser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("file", help="JSON: the fields of Run as `run`, and those of Costs as `costs`")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    try:
        found = recommend_from_file(options.file)
    except (ValueError, OSError) as error:
        return fail(str(error))
    if options.json:
        gain = found.gain if math.isfinite(found.gain) else None  # JSON has no infinity
        sys.stdout.write(json.dumps({**asdict(found), "gain": gain}) + "\n")
    else:
        sys.stdout.write(f"{found.change}: {found.why} Expected gain: {found.gain:.2f}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
