"""How Ray Data schedules: what waits for ever, what runs with less than was asked, and in which order."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

NO_PROGRESS_S = 2


class Tag:
    """Mark each row with the actor that saw it, and what that actor reserves."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        runtime, rows = ray.get_runtime_context(), len(batch["id"])
        reserved = runtime.get_assigned_resources()
        return {
            "actor": [runtime.get_actor_id()] * rows,
            "cpu": [float(reserved.get("CPU", 0))] * rows,
            "gpu": [float(reserved.get("GPU", 0))] * rows,
        }


def tagged(**options: Any) -> Any:
    """Return 80 rows in 8 blocks, each marked with its actor."""
    return ray.data.range(80, override_num_blocks=8).map_batches(Tag, batch_size=10, **options)


def test_a_gpu_that_no_node_has_ends_in_a_timeout(context: Any) -> None:
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    with pytest.raises(ExecutionTimeoutError, match="no progress"):
        tagged(num_gpus=2, compute=ActorPoolStrategy(size=1)).take_all()


def test_a_pool_that_holds_every_cpu_makes_no_progress_and_one_less_finishes(
    leave_cpus: Callable[[int], None], context: Any
) -> None:
    leave_cpus(2)
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    with pytest.raises(ExecutionTimeoutError, match="no progress"):
        tagged(compute=ActorPoolStrategy(size=2)).take_all()
    context.execution_no_progress_timeout_s = 120
    assert len(tagged(compute=ActorPoolStrategy(size=1)).take_all()) == 80


def test_a_pool_larger_than_the_gpus_runs_with_fewer_actors(warned: list[str]) -> None:
    gpus = int(ray.cluster_resources()["GPU"])
    rows = tagged(num_gpus=1, num_cpus=0, compute=ActorPoolStrategy(size=gpus + 1)).take_all()
    assert len(rows) == 80
    assert 1 <= len({row["actor"] for row in rows}) <= gpus
    assert warned == []  # and says nothing


@pytest.mark.parametrize(("options", "cpus"), [({}, 1.0), ({"num_cpus": 0}, 0.0)], ids=["default", "num_cpus=0"])
def test_a_gpu_actor_reserves_a_cpu_unless_told_otherwise(options: dict[str, int], cpus: float) -> None:
    rows = tagged(num_gpus=1, compute=ActorPoolStrategy(size=1), **options).take_all()
    assert {(row["cpu"], row["gpu"]) for row in rows} == {(cpus, 1.0)}


def test_the_cpu_of_a_gpu_actor_is_the_difference_between_running_and_waiting(
    leave_cpus: Callable[[int], None], context: Any
) -> None:
    leave_cpus(1)
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    pool = ActorPoolStrategy(size=1)
    with pytest.raises(ExecutionTimeoutError, match="no progress"):
        tagged(num_gpus=1, compute=pool).take_all()
    context.execution_no_progress_timeout_s = 120
    assert len(tagged(num_gpus=1, num_cpus=0, compute=pool).take_all()) == 80


@pytest.mark.parametrize("batch_size", [None, "auto"])
def test_num_gpus_needs_an_integer_batch_size(batch_size: str | None) -> None:
    numbers = ray.data.range(8)
    with pytest.raises(ValueError, match="You must provide `batch_size`"):
        numbers.map_batches(Tag, num_gpus=1, batch_size=batch_size)
    with pytest.raises(ValueError, match="You must provide `batch_size`"):
        numbers.map_batches(Tag, num_gpus=1)
    numbers.map_batches(Tag, num_gpus=1, batch_size=4)


def test_concurrency_logs_that_compute_has_taken_its_place(warned: list[str]) -> None:
    by_concurrency = ray.data.range(8).map_batches(Tag, concurrency=2)
    assert len(warned) == 1
    assert "`concurrency`` is deprecated in Ray 2.51" in warned[0]
    by_compute = ray.data.range(8).map_batches(Tag, compute=ActorPoolStrategy(size=2))
    assert len(warned) == 1  # none more
    assert by_concurrency._logical_plan.dag.compute == by_compute._logical_plan.dag.compute  # it still works


def test_rows_do_not_come_out_in_the_order_of_the_input(counter: Any) -> None:
    def last_is_first(batch: dict[str, Any]) -> dict[str, Any]:
        if batch["id"][0] == 0:
            wait_until(lambda: ray.get(counter.total.remote()) == 3)
        ray.get(counter.add.remote())
        return batch

    rows = ray.data.range(4, override_num_blocks=4).map_batches(last_is_first).take_all()
    ids = [row["id"] for row in rows]
    assert sorted(ids) == [0, 1, 2, 3]
    assert ids[0] != 0


def test_a_task_is_a_block_however_many_batches_are_cut_from_it() -> None:
    def tag(batch: dict[str, Any]) -> dict[str, Any]:
        return {"task": [ray.get_runtime_context().get_task_id()], "rows": [len(batch["id"])]}

    batches = ray.data.range(100, override_num_blocks=4).map_batches(tag, batch_size=10).take_all()
    assert sorted(batch["rows"] for batch in batches) == [5] * 4 + [10] * 8
    assert len({batch["task"] for batch in batches}) == 4


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return when it is so; fail if it never is."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_actor_is_given_two_tasks_in_advance(counter: Any) -> None:
    class Late(Tag):
        """The second actor starts once the first is at work, which ends once the second has started."""

        def __init__(self) -> None:
            if ray.get(counter.enter.remote()) == 2:
                wait_until(lambda: ray.get(counter.total.remote()) >= 1)
                ray.get(counter.add.remote())

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if ray.get(counter.total.remote()) == 0:
                ray.get(counter.add.remote())
            wait_until(lambda: ray.get(counter.total.remote()) >= 2)
            return super().__call__(batch)

    two_blocks = ray.data.range(20, override_num_blocks=2).materialize()
    rows = two_blocks.map_batches(Late, batch_size=10, compute=ActorPoolStrategy(size=2)).take_all()
    assert ray.get(counter.most_inside.remote()) == 2
    assert (len(rows), len({row["actor"] for row in rows})) == (20, 1)


def test_an_actor_that_dies_is_replaced_and_starts_from_its_constructor(counter: Any) -> None:
    class DiesOnce:
        def __init__(self) -> None:
            ray.get(counter.enter.remote())

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if ray.get(counter.total.remote()) == 0:
                ray.get(counter.add.remote())
                os.kill(os.getpid(), signal.SIGKILL)
            return batch

    numbers = ray.data.range(40, override_num_blocks=4)
    rows = numbers.map_batches(DiesOnce, batch_size=10, compute=ActorPoolStrategy(size=1)).take_all()
    assert sorted(row["id"] for row in rows) == list(range(40))
    assert ray.get(counter.most_inside.remote()) == 2  # constructors


def wait_for_others(counter: Any, expected: int) -> None:
    """Stay inside until as many tasks are inside as are expected, or until it is clear that they never are."""
    ray.get(counter.enter.remote())
    deadline = time.monotonic() + 60
    while ray.get(counter.most_inside.remote()) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    ray.get(counter.leave.remote())


@pytest.mark.parametrize(("num_cpus", "at_once"), [(1, 1), (0.5, 2)])
def test_num_cpus_of_the_read_sets_how_many_tasks_run_at_once(
    leave_cpus: Callable[[int], None], counter: Any, num_cpus: float, at_once: int
) -> None:
    leave_cpus(1)

    class Numbers(ray.data.Datasource):  # type: ignore[misc]  # Ray is not followed
        def estimate_inmemory_data_size(self) -> int:
            return 8

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            def read() -> Any:
                reserved = ray.get_runtime_context().get_assigned_resources()["CPU"]
                wait_for_others(counter, expected=at_once)
                yield pa.table({"reserved": [float(reserved)]})

            meta = ray.data.block.BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
            return [ray.data.ReadTask(read, meta) for _ in range(8)]

    rows = ray.data.read_datasource(Numbers(), ray_remote_args={"num_cpus": num_cpus}).take_all()
    assert {row["reserved"] for row in rows} == {num_cpus}
    assert ray.get(counter.most_inside.remote()) == at_once


def test_while_one_task_has_nothing_to_hand_over_the_executor_looks_ten_times_a_second(
    leave_cpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []  # tasks that it waits for, how many it wants, how many there were, and the seconds
    wait = ray.wait

    def watched(tasks: list[Any], *, num_returns: int = 1, timeout: float | None = None, **named: Any) -> Any:
        began = time.monotonic()
        ready, others = wait(tasks, num_returns=num_returns, timeout=timeout, **named)
        if timeout:
            looks.append((len(tasks), num_returns, len(ready), time.monotonic() - began))
        return ready, others

    class Model:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.4)
            return batch

    leave_cpus(2)
    rows = ray.data.range(8, override_num_blocks=8).map_batches(lambda batch: batch)
    with monkeypatch.context() as patched:
        patched.setattr(ray, "wait", watched)
        assert rows.map_batches(Model, batch_size=1, compute=ActorPoolStrategy(size=1)).count() == 8
    assert all(wanted == tasks for tasks, wanted, *_ in looks)  # it wants them all
    waited = [seconds for tasks, _, ready, seconds in looks if 0 < ready < tasks]
    assert waited  # some had something to hand over
    assert min(waited) > 0.09  # and it waited for the others all the same
