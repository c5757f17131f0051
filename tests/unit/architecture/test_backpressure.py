"""Reads wait for a slow model, each operator has bytes of its own, and a pool with every CPU ends in an error."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import ray
from ray.data import ActorPoolStrategy
from ray.data._internal.actor_autoscaler.default_actor_autoscaler import DefaultActorAutoscaler
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.annotations import RayDeprecationWarning

from snippets.architecture import backpressure
from snippets.architecture.backpressure import (
    STILL_STEPS,
    Account,
    account,
    classify_behind,
    cpus_left,
    feed_pool,
    held_images,
    hold_back,
    limits_of,
    queued,
    resize_pool,
    share_cluster,
    wait_until,
    while_running,
)
from snippets.architecture.streaming import (
    BLOCK_BYTES,
    Gate,
    Watched,
    load_images,
    start_actor,
    watch_executor,
)

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

BLOCKS, IN_FLIGHT = 24, 8


def test_without_a_limit_all_blocks_are_read_before_the_model_has_done_one(connected: RayCluster) -> None:
    (_, reads, model), looks = hold_back(BLOCKS, float("inf"))
    assert (reads.finished, model.finished) == (BLOCKS, 0)
    assert reads.queued + model.submitted == BLOCKS
    assert max(seen[1].limit_bytes for seen in looks) == ray.cluster_resources()["object_store_memory"] / 2
    most = max(seen["ReadRange->MapBatches(read)"] for seen in queued(looks))
    assert most >= reads.queued
    assert queued(looks)[-1]["ReadRange->MapBatches(read)"] == 0
    assert (looks[-1][1].finished, looks[-1][2].finished) == (BLOCKS, BLOCKS)


def test_with_one_the_reads_wait_and_each_operator_keeps_a_quarter_of_it(connected: RayCluster) -> None:
    (_, reads, model), looks = hold_back(BLOCKS, IN_FLIGHT)
    limit = IN_FLIGHT * BLOCK_BYTES
    assert reads.is_held_back
    assert 0 < reads.submitted <= IN_FLIGHT
    assert reads.limit_bytes == model.limit_bytes == limit
    # Half of the limit is reserved, in equal parts, and a block's header may go beyond.
    assert reads.reserved_bytes == pytest.approx(limit / 4, rel=0.01)
    assert model.reserved_bytes == pytest.approx(limit / 4, rel=0.01)
    assert reads.budget_bytes < BLOCK_BYTES < limit - model.reserved_bytes
    assert model.budget_bytes > 0 == model.used_bytes  # what is its own nobody has taken
    assert (looks[-1][1].finished, looks[-1][2].finished) == (BLOCKS, BLOCKS)


def test_three_operators_keep_a_sixth_each(connected: RayCluster) -> None:
    gate = start_actor(Gate)
    images = load_images(BLOCKS, in_flight=16)  # so that a sixth is more than one task needs
    behind = classify_behind([gate], images, ActorPoolStrategy(size=1))
    behind = behind.map_batches(lambda batch: batch, num_cpus=0.5)
    with while_running(behind) as watched:
        seen = wait_until(watched, lambda seen: seen[1].finished > 0 and seen[1].is_held_back, STILL_STEPS)
        ray.get(gate.open.remote())
    assert [one.reserved_bytes * 6 for one in seen[1:]] == pytest.approx([16 * BLOCK_BYTES] * 3, rel=0.01)


def test_an_operator_that_has_ended_gives_its_part_back(connected: RayCluster) -> None:
    gate, last_gate = start_actor(Gate), start_actor(Gate)
    images = load_images(BLOCKS, in_flight=IN_FLIGHT)
    behind = classify_behind([gate, last_gate, BLOCKS - 1], images, ActorPoolStrategy(size=1))
    with while_running(behind) as watched:
        before = wait_until(watched, lambda seen: seen[1].is_held_back and seen[1].limit_bytes > 0)
        ray.get(gate.open.remote())
        ray.get(last_gate.wait_for.remote(1), timeout=120)
        after = wait_until(watched, lambda seen: seen[1].reserved_bytes == 0)
        ray.get(last_gate.open.remote())
    limit = IN_FLIGHT * BLOCK_BYTES
    assert before[2].reserved_bytes == pytest.approx(limit / 4, rel=0.01)
    # Half of what the last blocks leave, which the model has not given back.
    assert after[2].reserved_bytes == pytest.approx((limit - after[1].used_bytes) / 2, rel=0.01)
    assert after[2].reserved_bytes > limit / 4
    assert after[1].finished == BLOCKS > after[2].finished


def test_limits_are_copied_and_not_changed_in_place(connected: RayCluster) -> None:
    limits = ray.data.range(1).context.execution_options.resource_limits
    with pytest.raises(AttributeError, match="no setter"):
        limits.object_store_memory = 1
    assert limits.copy(object_store_memory=1).object_store_memory == 1


def test_a_dataset_without_a_cpu_to_itself_runs_all_the_same(connected: RayCluster) -> None:
    rows = ray.data.range(4, override_num_blocks=4).map_batches(lambda batch: batch)
    options = rows.context.execution_options
    options.resource_limits = options.resource_limits.copy(cpu=0)
    watched = watch_executor(rows, account)
    assert len(rows.take_all()) == 4
    assert max(seen[1].limit_cpus for seen in watched.looks) == 0
    assert max(seen[1].submitted - seen[1].finished for seen in watched.looks) == 1


@pytest.mark.parametrize(
    ("actors", "tasks_an_actor", "added"),
    [(2, 1.75, 1), (2, 1.74, 0), (3, 2.0, 0), (3, 0.51, 0), (3, 0.5, -1), (2, 0.5, -1), (1, 0.5, 0)],
)
def test_a_pool_of_one_to_three_grows_at_175_tasks_in_100_actors_and_shrinks_at_50(
    actors: int, tasks_an_actor: float, added: int
) -> None:
    assert asked_for(actors, tasks_an_actor, is_fed=True) == added


def test_without_input_any_pool_gives_up_one_actor_at_a_time() -> None:
    assert asked_for(3, 2.0, is_fed=False) == asked_for(3, 0.5, is_fed=False, least=3) == -1


def asked_for(actors: int, tasks_an_actor: float, is_fed: bool, least: int = 1) -> int:
    """Return how many actors Ray would add to a pool of at most three."""
    pool, operator, manager, state = Mock(), Mock(_inputs_complete=not is_fed), Mock(), Mock()
    pool.current_size.return_value, pool.get_pool_util.return_value = actors, tasks_an_actor
    pool.min_size.return_value, pool.max_size.return_value = least, 3
    pool.num_pending_actors.return_value = 0
    operator.has_completed.return_value, operator.metrics.num_inputs_received = False, 1
    state.total_enqueued_input_blocks.return_value = int(is_fed)
    manager.get_allocation.return_value = manager.get_budget.return_value = None
    autoscaler = DefaultActorAutoscaler({}, manager, config=ray.data.DataContext().autoscaling_config)
    return int(autoscaler._derive_target_scaling_config(pool, operator, state).delta)


def test_a_pool_grows_while_its_batches_wait_and_shrinks_when_nothing_does(connected: RayCluster) -> None:
    assert resize_pool(most=2, blocks=6) == (2, 1)


def test_a_pool_of_a_fixed_size_gives_up_its_idle_actors_too(connected: RayCluster) -> None:
    assert resize_pool(most=2, least=2, blocks=6) == (2, 1)


def test_what_is_excluded_is_not_used_and_the_option_is_deprecated(connected: RayCluster) -> None:
    def hold(batch: dict[str, Any], gate: Any) -> dict[str, Any]:
        ray.get(gate.go_through.remote())
        return batch

    gate, cpus = start_actor(Gate), ray.cluster_resources()["CPU"]
    rows = ray.data.range(8, override_num_blocks=8).map_batches(hold, fn_kwargs={"gate": gate})
    options = rows.context.execution_options
    with pytest.warns(RayDeprecationWarning, match=r"exclude_resources.*label_selector"):
        options.exclude_resources = options.exclude_resources.copy(cpu=cpus - 2)
    with while_running(rows) as watched:
        assert limits_of(watched, lambda of: of.limit_cpus == 2)[0] == 2
        ray.get(gate.wait_for.remote(2), timeout=120)
        seen = wait_until(watched, lambda seen: seen[1].is_held_back, STILL_STEPS)
        assert (seen[1].submitted, ray.get(gate.wait_for.remote(2))) == (2, 2)
        ray.get(gate.open.remote())


def test_a_label_selector_keeps_a_dataset_to_the_nodes_that_carry_the_label(connected: RayCluster) -> None:
    def note_node(batch: dict[str, Any]) -> dict[str, Any]:
        return {"node": [ray.get_runtime_context().get_node_id()] * len(batch["id"])}

    for node in [node["NodeID"] for node in ray.nodes() if node["Alive"]][1:]:
        rows = ray.data.range(8, override_num_blocks=8)
        rows.context.execution_options.label_selector = {"ray.io/node-id": node}
        assert {row["node"] for row in rows.map_batches(note_node).take_all()} == {node}


def test_two_datasets_have_half_of_each_node_each_and_whole_cpus(connected: RayCluster) -> None:
    cpus = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"]]
    alone, beside, after = share_cluster()
    half_of_the_store = ray.cluster_resources()["object_store_memory"] / 2
    assert alone == after == (sum(cpus), half_of_the_store)
    assert beside == (sum(each // 2 for each in cpus), half_of_the_store / 2)
    assert beside[0] < sum(cpus) / 2  # a node of one CPU is nobody's


OTHER_JOB = """
import ray
ray.init(log_to_driver=False, namespace="two-jobs")
gate = ray.get_actor("gate")
def hold(batch):
    ray.get(gate.go_through.remote())
    return batch
ray.data.DataContext.get_current().enable_progress_bars = False
ray.data.range(1).map_batches(hold).materialize()
"""


def test_so_have_the_datasets_of_two_jobs(connected: RayCluster) -> None:
    own = start_actor(Gate)
    gate = ray.remote(num_cpus=0)(Gate).options(name="gate", namespace="two-jobs").remote()
    half = ray.cluster_resources()["object_store_memory"] / 2
    with while_running(held_images(own)) as watched:
        alone = limits_of(watched, lambda of: of.limit_bytes == half)
        other = subprocess.Popen([sys.executable, "-c", OTHER_JOB], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            ray.get(gate.wait_for.remote(1), timeout=120)
            assert limits_of(watched, lambda of: of.limit_bytes < alone[1])[1] == alone[1] / 2
        finally:
            ray.get(gate.open.remote())
            other.communicate(timeout=120)
        assert limits_of(watched, lambda of: of.limit_bytes > alone[1] / 2) == alone
        ray.get(own.open.remote())


def test_a_pool_that_holds_every_cpu_ends_in_an_error_and_one_that_leaves_one_in_rows(
    connected: RayCluster,
) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    assert (cpus_left(cpus, 1), cpus_left(cpus - 1, 1), cpus_left(cpus, 0)) == (0, 1, cpus)
    for pool in (ActorPoolStrategy(size=cpus), ActorPoolStrategy(min_size=cpus, max_size=cpus + 1)):
        stuck = feed_pool(pool, num_cpus=1, no_progress_timeout_s=3)
        stuck.context.wait_for_min_actors_s = 120  # from when all actors are there, seconds are enough
        watched = watch_executor(stuck, account)
        with pytest.raises(ExecutionTimeoutError, match="no progress for at least 3s"):
            stuck.take_all()
        _, reads, model = watched.looks[-1]
        assert (model.actors, reads.finished) == (cpus, 0)  # that is why, and not that they were slow to start
    assert cpus_left(2, 2) == 1  # the workers' CPUs are held, and the head's is free
    for pool, num_cpus in ((ActorPoolStrategy(size=2), 2), (ActorPoolStrategy(min_size=1, max_size=cpus), 1)):
        assert len(feed_pool(pool, num_cpus, no_progress_timeout_s=120).take_all()) == 16


def test_what_fails_in_a_run_is_raised_after_the_block(connected: RayCluster) -> None:
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no image")

    with (
        pytest.raises(ray.exceptions.RayError, match="no image"),
        while_running(ray.data.range(1).map_batches(fail)),
    ):
        pass


def test_waiting_for_what_does_not_come_ends() -> None:
    for watched in (Watched(), Watched([[]]), Watched([[1]], unchanged_steps=4)):
        with pytest.raises(TimeoutError, match="did not come to look like that"):
            wait_until(watched, lambda seen: True, steps=5, timeout_s=0.02)
    assert wait_until(Watched([[1]], unchanged_steps=5), lambda seen: True, steps=5, timeout_s=5) == [1]


def test_the_command_prints_the_accounts(connected: RayCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert backpressure.main(["--blocks", "4", "--json"]) == 0
    accounts = [Account(**row) for row in json.loads(capsys.readouterr().out)]
    assert [one.operator for one in accounts] == ["ReadRange->MapBatches(read)", "MapBatches(GatedModel)"]
    assert [one.actors for one in accounts] == [0, 1]
    with pytest.raises(SystemExit, match="2"):
        backpressure.main(["--in-flight", "0"])
    assert "must be a whole number of at least 1, not 0" in capsys.readouterr().err
