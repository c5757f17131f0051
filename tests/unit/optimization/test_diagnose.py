"""Each sick pipeline gets exactly its verdict, whatever its names and sizes are, and a healthy one gets none.

What a function costs is stated: it sleeps so long for each row. The balanced pipeline has four CPUs that decode at
8 ms a row and two actors at 4 ms a row, so that both stages need 2 ms a row.
"""

from __future__ import annotations

import copy
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray

from snippets.fundamentals.watching import watch
from snippets.optimization.diagnose import diagnose, report
from snippets.optimization.evidence import (
    Call,
    Evidence,
    Execution,
    Meter,
    Node,
    Observation,
    Stage,
    allowed_threads,
    observing,
)

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

Function = Callable[[dict[str, Any]], dict[str, Any]]
# Each pipeline runs with one of these, and what was seen of it is looked at again in disguise.
NAMES = ("first", "second", "factor")
plain = pytest.mark.parametrize(NAMES, [("decode", "Forward", 1)], ids=["plain"])
renamed = pytest.mark.parametrize(NAMES, [("make_coffee", "Kettle", 2)], ids=["renamed_and_doubled"])


def costing(name: str, seconds_a_row: float) -> Function:
    """Return a function that costs so much."""

    def function(batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds_a_row * len(batch["id"]))
        return batch

    function.__name__ = name
    return function


def actor_costing(name: str, seconds_a_row: float) -> type:
    """Return a class whose calls cost so much."""

    def call(_: Any, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds_a_row * len(batch["id"]))
        return batch

    return type(name, (), {"__call__": call})


def pipeline(
    first: Function,
    second: type,
    rows: int = 64,
    blocks: int = 16,
    batch_size: int = 4,
    source: ray.data.Dataset | None = None,
    pool: dict[str, Any] | None = None,
    **tasks: Any,
) -> ray.data.Dataset:
    """Return a plan: tasks, then a pool of two actors that reserve half a CPU each."""
    source = source or ray.data.range(rows, override_num_blocks=blocks)
    where = {"compute": ray.data.ActorPoolStrategy(size=2), "num_cpus": 0.5, **(pool or {})}
    return source.map_batches(first, **tasks).map_batches(second, batch_size=batch_size, **where)


def in_disguise(evidence: Evidence) -> Evidence:
    """Return what would have been seen with every name another one, and twice the rows in twice the time."""

    def double(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(2 * size for size in sizes)

    def disguise(stage: Stage) -> Stage:
        return replace(
            stage,
            name=stage.name.swapcase(),
            batch_size=stage.batch_size and 2 * stage.batch_size,
            rows_in=2 * stage.rows_in,
            seconds=2 * stage.seconds,
            task_rows=double(stage.task_rows),
            task_bytes=double(stage.task_bytes),
        )

    executions = [
        replace(run, stages=tuple(map(disguise, run.stages)), spilled_bytes=2 * run.spilled_bytes)
        for run in evidence.executions
    ]
    calls = [replace(call, function=call.function.swapcase()) for call in evidence.calls]
    return Evidence(tuple(executions), tuple(calls))


def verdicts(seen: Observation | Evidence) -> list[tuple[str, str]]:
    """Return what is found and where, after a look in disguise has found the same."""
    evidence = seen.evidence() if isinstance(seen, Observation) else seen
    found = [(finding.verdict, finding.where) for finding in diagnose(evidence)]
    hidden = [(finding.verdict, finding.where.swapcase()) for finding in diagnose(in_disguise(evidence))]
    assert hidden == found
    return found


def healthy(first: str, second: str, factor: int) -> ray.data.Dataset:
    return pipeline(costing(first, 0.008), actor_costing(second, 0.004), 64 * factor)


@renamed
def test_a_balanced_pipeline_gets_no_verdict(connected: RayCluster, first: str, second: str, factor: int) -> None:
    with observing() as seen:
        kept = healthy(first, second, factor).materialize()
        assert kept.count() == len(kept.take_all()) == 64 * factor
    assert verdicts(seen) == []


@plain
def test_decode_bound(connected: RayCluster, first: str, second: str, factor: int) -> None:
    with observing() as seen:
        pipeline(costing(first, 0.06), actor_costing(second, 0.001), 64 * factor).materialize()
    assert verdicts(seen) == [("decode-bound", f"ReadRange->MapBatches({first})")]


@plain
def test_forward_bound(connected: RayCluster, first: str, second: str, factor: int) -> None:
    with observing() as seen:
        pipeline(costing(first, 0.002), actor_costing(second, 0.02), 64 * factor).materialize()
    assert verdicts(seen) == [("forward-bound", f"MapBatches({second})")]


@renamed
def test_starved_actors(connected: RayCluster, first: str, second: str, factor: int) -> None:
    one = ray.data.TaskPoolStrategy(size=1)
    with observing() as seen:
        pipeline(costing(first, 0.016), actor_costing(second, 0.004), 64 * factor, compute=one).materialize()
    assert verdicts(seen) == [("starved actors", f"MapBatches({second})")]


@renamed
def test_too_few_blocks(connected: RayCluster, first: str, second: str, factor: int) -> None:
    with observing() as seen:
        pipeline(costing(first, 0.008), actor_costing(second, 0.004), 64 * factor, blocks=2).materialize()
    assert verdicts(seen) == [("too few blocks", f"MapBatches({second})")]


@plain
def test_too_few_batches(connected: RayCluster, first: str, second: str, factor: int) -> None:
    with observing() as seen:
        plan = pipeline(costing(first, 0.008), actor_costing(second, 0.004), 64 * factor, batch_size=64 * factor)
        plan.materialize()
    assert verdicts(seen) == [("too few batches", f"MapBatches({second})")]


@renamed
def test_skew(connected: RayCluster, first: str, second: str, factor: int) -> None:
    sizes = [factor * size for size in (4, 4, 4, 64, 4, 4, 4, 4)]
    with observing() as seen:
        source = ray.data.from_numpy([np.zeros(size) for size in sizes]).rename_columns({"data": "id"})
        pipeline(costing(first, 0.008), actor_costing(second, 0.004), source=source).materialize()
    found = verdicts(seen)
    assert [verdict for verdict, _ in found] == ["skew"]


@plain
def test_run_several_times(connected: RayCluster, first: str, second: str, factor: int) -> None:
    with observing() as seen:
        plan = healthy(first, second, factor)
        assert plan.count() == len(plan.take_all()) == 64 * factor
    assert [verdict for verdict, _ in verdicts(seen)] == ["run several times"]


@plain
def test_a_pool_that_leaves_no_cpu_to_its_tasks(
    connected: RayCluster, first: str, second: str, factor: int
) -> None:
    pool = {"compute": ray.data.ActorPoolStrategy(size=5), "num_cpus": 1}
    with observing() as seen:
        plan = pipeline(costing(first, 0.008), actor_costing(second, 0.004), 64 * factor, pool=pool)
        plan.context.execution_no_progress_timeout_s = 3
        looks = []
        with pytest.raises(ray.data.exceptions.ExecutionTimeoutError):
            watch(plan, lambda: looks.append(seen.evidence()))
    running = [look for look in looks if [each.state for each in look.executions] == ["running"]]
    assert running
    for evidence in (running[-1], seen.evidence()):
        ((verdict, where),) = verdicts(evidence)
        assert verdict == "pool cannot be scheduled" and where.endswith(f"MapBatches({second})")


@renamed
def test_more_actors_than_gpus(connected: RayCluster, first: str, second: str, factor: int) -> None:
    pool = {"compute": ray.data.ActorPoolStrategy(size=2 + factor), "num_cpus": 0, "num_gpus": 1}
    with observing() as seen:
        pipeline(costing(first, 0.008), actor_costing(second, 0.004), 64 * factor, pool=pool).materialize()
    assert verdicts(seen) == [("pool cannot be scheduled", f"MapBatches({second})")]


@renamed
def test_threads(connected: RayCluster, first: str, second: str, factor: int) -> None:
    pool = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(8 * factor)}}}
    with observing() as seen:
        actor = seen.probe(actor_costing(second, 0.004))
        pipeline(seen.probe(costing(first, 0.008)), actor, 64 * factor, pool=pool).materialize()
    assert verdicts(seen) == [("thread over-subscription", second)]


def loading(name: str, path: Path) -> Function:
    """Return a function that loads a model for each batch, and one that would keep it."""

    def function(batch: dict[str, Any]) -> dict[str, Any]:
        weights = np.load(path)
        return {**batch, "label": batch["id"] * weights[0]}

    function.__name__ = name
    return function


class Kept:
    """A model that is loaded once an actor."""

    def __init__(self, path: Path) -> None:
        self.weights = np.load(path)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.004 * len(batch["id"]))
        return {**batch, "label": batch["id"] * self.weights[0]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with a model in it."""
    np.save(tmp_path / "weights.npy", np.ones(50_000))
    return tmp_path / "weights.npy"


@plain
def test_a_model_that_is_loaded_for_each_batch(
    connected: RayCluster, weights: Path, first: str, second: str, factor: int
) -> None:
    np.save(weights, np.ones(50_000 * factor))
    with observing() as seen:
        function = seen.probe(loading(first, weights))
        ray.data.range(64 * factor, override_num_blocks=2).map_batches(function, batch_size=4).materialize()
    assert verdicts(seen) == [("model loaded per batch", first)]


def test_a_model_that_is_loaded_once_an_actor(connected: RayCluster, weights: Path) -> None:
    with observing() as seen:
        first, second = seen.probe(costing("decode", 0.008)), seen.probe(Kept)
        pipeline(first, second, pool={"fn_constructor_args": (weights,)}).materialize()
    assert len(seen.evidence().calls) == 32
    assert verdicts(seen) == []


def making(name: str, row_bytes: int) -> Function:
    """Return a function that makes large rows."""

    def function(batch: dict[str, Any]) -> dict[str, Any]:
        return {"data": np.zeros((len(batch["id"]), row_bytes), np.uint8)}

    function.__name__ = name
    return function


@renamed
def test_spilling(connected: RayCluster, first: str, second: str, factor: int) -> None:
    node = next(node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU"))
    here = {"ray.io/node-id": node}
    with observing() as seen:
        rows = ray.data.range(20 * factor, override_num_blocks=20 * factor)
        rows.map_batches(making(first, 20_000_000), label_selector=here).materialize()
    assert [verdict for verdict, _ in verdicts(seen)] == ["spilling"]


class Compiled:
    """A model that torch compiles anew for each number of rows, unless these are padded."""

    def __init__(self, padded_rows: int) -> None:
        import torch

        self.padded_rows = padded_rows
        self.network = torch.compile(torch.nn.Linear(1, 1), backend="eager", dynamic=False)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        rows = np.zeros((max(self.padded_rows, len(batch["id"])), 1), np.float32)
        with torch.inference_mode():
            self.network(torch.from_numpy(rows))
        time.sleep(0.015 * len(batch["id"]))
        return batch


@pytest.mark.parametrize(("name", "factor", "padded_rows"), [("Kettle", 2, 0), ("Model", 1, 8)])
def test_recompilation(connected: RayCluster, name: str, factor: int, padded_rows: int) -> None:
    sizes = [factor * rows for rows in range(1, 8)]
    with observing() as seen:
        source = ray.data.from_numpy([np.zeros(size) for size in sizes]).rename_columns({"data": "id"})
        model = seen.probe(type(name, (Compiled,), {}))
        where = {"compute": ray.data.ActorPoolStrategy(size=1), "fn_constructor_args": (factor * padded_rows,)}
        decoded = source.map_batches(costing("decode", 0.06))
        decoded.map_batches(model, batch_size=None, num_cpus=0.5, **where).materialize()
    assert verdicts(seen) == ([] if padded_rows else [("recompilation", name)])


DECODE = Stage("MapBatches(a)", functions=(1,), tasks=16, rows_in=64, seconds=4, task_rows=(4,) * 16)
MODEL = Stage("MapBatches(B)", 2, 2, None, 0.5, 0, 4, (2,), 16, 16, 64, 2.0, (4,) * 16, (64,) * 16)
NODES = {"head": Node(1), "one": Node(2, 1), "two": Node(2, 1)}


def of_stages(*stages: Stage, state: str = "finished") -> Evidence:
    return Evidence((Execution(state, stages, NODES),))


def test_nothing_seen_is_nothing_found() -> None:
    assert diagnose(Evidence()) == []
    assert report([]) == "No limit stands out."


@pytest.mark.parametrize(
    ("decode", "model", "verdict"),
    [
        ({}, {}, []),  # one second each
        ({"seconds": 4 * 2.9}, {}, []),
        ({"seconds": 4 * 3.1}, {}, ["decode-bound"]),
        ({}, {"seconds": 2 * 2.9}, []),
        ({}, {"seconds": 2 * 3.1}, ["forward-bound"]),
        ({"seconds": 0}, {}, []),  # there is nothing to compare with
        ({"tasks": 0}, {"tasks": 0}, ["too few blocks"]),
        ({"max_tasks": 1}, {}, ["starved actors"]),
        ({"max_tasks": 3, "seconds": 4 * 3.1}, {}, ["decode-bound"]),  # the limit is no cause
        ({"num_cpus": 2, "seconds": 8}, {}, ["starved actors"]),
        ({"tasks": 1, "seconds": 8}, {}, ["decode-bound"]),  # there is no other task to run beside
        ({}, {"tasks": 4}, []),
        ({}, {"tasks": 3}, ["too few blocks"]),
        ({}, {"tasks": 3, "rows_in": 12}, ["too few batches"]),
        ({}, {"task_rows": (4,) * 15 + (13,)}, []),
        ({}, {"task_rows": (4,) * 15 + (80,)}, ["skew"]),
        ({}, {"task_rows": (4,) * 199 + (80,)}, []),  # one of many: the others fill the time
        ({}, {"task_bytes": (4,) * 15 + (80,)}, ["skew"]),
        ({}, {"num_gpus": 1}, []),
        ({}, {"num_gpus": 1, "actors": 3}, ["pool cannot be scheduled"]),
        ({}, {"num_cpus": 3, "num_gpus": 0}, ["pool cannot be scheduled"]),
        ({}, {"num_cpus": 1, "actors": 4}, ["decode-bound"]),  # one CPU is left to decode
        ({}, {"num_cpus": 1, "actors": 5}, ["pool cannot be scheduled"]),
    ],
)
def test_a_verdict_begins_at_its_margin(decode: dict[str, Any], model: dict[str, Any], verdict: list[str]) -> None:
    found = diagnose(of_stages(replace(DECODE, **decode), replace(MODEL, **model)))
    assert [finding.verdict for finding in found] == verdict
    assert report(found).count(" -> ") == len(verdict)


def test_a_run_under_way_is_not_blamed_for_what_may_come() -> None:
    few = replace(MODEL, tasks=1)
    assert diagnose(of_stages(DECODE, few, state="running")) == []
    assert [each.verdict for each in diagnose(of_stages(DECODE, few))] == ["too few blocks"]


def test_a_look_at_a_few_rows_is_no_second_run() -> None:
    whole, look = of_stages(DECODE, MODEL), of_stages(replace(DECODE, rows_in=8), replace(MODEL, rows_in=8))
    assert diagnose(Evidence(look.executions + whole.executions)) == []
    again = diagnose(Evidence(whole.executions * 2))
    assert [each.verdict for each in again] == ["run several times"]


def test_a_run_without_functions_may_spill() -> None:
    read = (replace(DECODE, name="ReadParquet", functions=()),)
    for stages, verdict in ((read, ["spilling"]), ((), [])):
        found = diagnose(Evidence((Execution("finished", stages, NODES, spilled_bytes=1),)))
        assert [finding.verdict for finding in found] == verdict


def test_what_a_cause_explains_is_no_bound_of_its_own() -> None:
    slow = of_stages(DECODE, replace(MODEL, seconds=60)).executions
    calls = [Call("B", 1, "one", second, second + 1, graphs=1) for second in range(4)]
    assert [each.verdict for each in diagnose(Evidence(slow, tuple(calls)))] == ["recompilation"]
    assert [each.verdict for each in diagnose(Evidence(slow, tuple(calls[:2])))] == ["forward-bound"]


def test_threads_count_where_calls_overlap() -> None:
    def calls(gap: float) -> tuple[Call, ...]:
        return tuple(Call("B", worker, "one", gap * worker, gap * worker + 1, threads=2) for worker in range(4))

    for few in (calls(gap=2), calls(gap=0.6)):  # two at once are twice the CPUs, and no more
        assert diagnose(Evidence(of_stages().executions, few)) == []
    together = diagnose(Evidence(of_stages().executions, calls(gap=0.1)))
    assert [each.verdict for each in together] == ["thread over-subscription"]


def test_a_file_or_a_model_that_a_worker_has_already_is_loaded_again() -> None:
    def calls(workers: int, **what: Any) -> Evidence:
        return Evidence(calls=tuple(Call("a", n % workers, "one", n, n + 1, **what) for n in range(6)))

    for what in ({"files": ("w",)}, {"parameters": 2}):
        assert [each.verdict for each in diagnose(calls(2, **what))] == ["model loaded per batch"]
        assert diagnose(calls(6, **what)) == []  # once a worker
    different = Evidence(calls=tuple(Call("a", 0, "one", n, n + 1, files=(str(n),)) for n in range(6)))
    assert diagnose(different) == []


def test_settings_are_as_before_once_nothing_is_observed() -> None:
    context = ray.data.DataContext.get_current()
    before = list(context.custom_execution_callback_classes)
    with observing() as seen:
        assert context.custom_execution_callback_classes == [*before, seen]
    assert context.custom_execution_callback_classes == before


def test_workers_get_the_settings_without_what_was_seen() -> None:
    seen = Observation()
    seen()
    assert pickle.loads(pickle.dumps(seen)).runs == []
    assert copy.deepcopy(seen) is seen


def test_what_is_read_of_a_run_is_what_it_did(connected: RayCluster) -> None:
    with observing() as seen:
        ray.data.range(24, override_num_blocks=6).map_batches(
            costing("f", 0), batch_size=4, num_cpus=0.5
        ).materialize()
    (run,) = seen.evidence().executions
    assert (run.state, run.spilled_bytes) == ("finished", 0)
    assert sorted((node.cpus, node.gpus) for node in run.nodes.values()) == [(1, 0), (2, 1), (2, 1)]
    read, stage = run.stages
    assert (read.name, read.tasks, read.functions) == ("ReadRange", 6, ())
    assert (stage.name, stage.actors, stage.num_cpus, stage.batch_size) == ("MapBatches(f)", 0, 0.5, 4)
    assert (stage.tasks, stage.blocks_in, stage.rows_in, stage.task_rows) == (6, 6, 24, (4,) * 6)
    assert len(stage.functions) == 1


def test_a_meter_sees_files_models_graphs_and_threads(
    connected: RayCluster, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    (tmp_path / "small").write_text("too small for a model")
    with Meter() as meter:
        np.load(weights)
        (tmp_path / "small").read_text()
        (tmp_path / "written").write_bytes(bytes(100_000))
        network = torch.compile(torch.nn.Linear(1, 1), backend="eager")
        network(torch.ones(1, 1))
    call = meter.call("f")
    assert call.files == (str(weights),)
    assert (call.parameters, call.graphs, call.threads) == (2, 1, torch.get_num_threads())
    with Meter() as meter:
        network(torch.ones(1, 1))
    assert (meter.parameters, meter.graphs, meter.call("f").files) == (0, 0, ())
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert allowed_threads() == 3
