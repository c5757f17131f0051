"""Each batch comes out once, whoever joins or is killed; a slow node takes fewer; the driver's time is counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from snippets.architecture import scaling
from snippets.architecture.scaling import (
    Barrier,
    Call,
    LocalCluster,
    classify_timed,
    collect,
    list_batches,
    name_step,
    rate,
    start_barrier,
    took_s,
    watch_driver,
)
from snippets.fundamentals.setup import configure_data_context


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of our own, which tests make larger and smaller; in this order with the fewest nodes started."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as environment:
        # A node that does not answer is dead after a second, and not after a quarter of a minute.
        environment.setenv("RAY_health_check_period_ms", "300")
        environment.setenv("RAY_health_check_failure_threshold", "3")
        started = LocalCluster(1)
    with started as cluster:
        cluster.connect()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        configure_data_context(progress_bars=False)
        yield cluster


def by_node(calls: list[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.node, []).append(call)
    return found


def test_all_nodes_take_part_and_each_batch_comes_out_once(cluster: LocalCluster) -> None:
    cluster.resize(2)
    dataset = classify_timed(list_batches(12), 2, 0.05, barrier=start_barrier(2))
    driver = watch_driver(dataset)
    calls = collect(dataset)
    assert sorted(call.id for call in calls) == list(range(12))
    assert set(by_node(calls)) == set(cluster.node_ids())
    assert all(call.ended_s - call.began_s >= 0.05 for call in calls)
    assert driver.tasks == 12 + 12  # each batch is read, and goes through the model
    assert 0 < driver.executor_s < driver.process_s
    assert driver.steps > 0 and sum(driver.samples.values()) > 0


def test_a_slow_node_takes_fewer_batches(cluster: LocalCluster) -> None:
    cluster.resize(2)
    quick, slow = cluster.node_ids()
    dataset = classify_timed(list_batches(20), 2, 0.02, waits_s={slow: 1.0}, barrier=start_barrier(2))
    nodes = by_node(collect(dataset))
    assert len(nodes[slow]) < len(nodes[quick])
    assert all(call.ended_s - call.began_s >= 1 for call in nodes[slow])


def test_a_node_that_is_killed_loses_no_batch(cluster: LocalCluster) -> None:
    cluster.resize(2)
    kept, killed = cluster.node_ids()
    dataset = classify_timed(list_batches(24), 2, 0.1, barrier=start_barrier(2))
    calls = collect(dataset, cluster.remove_node, change_after=8)
    assert sorted(call.id for call in calls) == list(range(24))
    assert cluster.node_ids() == [kept]
    nodes = by_node(calls)
    assert len(nodes[killed]) < len(nodes[kept])
    assert calls[-1].node == kept


def test_a_node_that_joins_takes_batches_of_a_pool_that_was_too_large(cluster: LocalCluster) -> None:
    cluster.resize(1)
    calls = collect(classify_timed(list_batches(60), 2, 0.1), cluster.add_node, change_after=3)
    assert sorted(call.id for call in calls) == list(range(60))
    assert set(by_node(calls)) == set(cluster.node_ids())
    assert len(cluster.node_ids()) == 2


def test_the_command_has_a_row_for_each_number_of_nodes(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "LocalCluster", lambda: contextlib.nullcontext(cluster))
    monkeypatch.setattr(cluster, "connect", lambda: None)
    assert scaling.main(["--nodes", "2", "--batches", "4", "--wait", "0.02", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["nodes"], row["batches"]) for row in rows] == [(1, 4), (2, 8)]
    assert rows[0]["efficiency"] == 1
    assert all(row["driver_ms_a_task"] > 0 for row in rows)


@pytest.mark.parametrize("given", [["--nodes", "0"], ["--wait", "-1"], ["--wait", "soon"], ["--batches", "x"]])
def test_what_cannot_be_used_ends_in_a_sentence(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scaling.main(given)
    assert given[1] in capsys.readouterr().err


def test_a_barrier_holds_until_enough_are_there() -> None:
    async def arrive() -> list[bool]:
        barrier = Barrier(2)
        first = asyncio.create_task(barrier.arrive())
        await asyncio.sleep(0)
        seen = [first.done()]
        await barrier.arrive()
        await first
        await barrier.arrive()  # one too many passes
        return [*seen, first.done()]

    assert asyncio.run(arrive()) == [False, True]


def test_seconds_and_rate_are_from_the_first_begin_to_the_last_end() -> None:
    calls = [Call(0, "a", 10.0, 11.0), Call(1, "b", 10.5, 14.0)]
    assert took_s(calls) == 4
    assert rate(calls) == 0.5


def test_a_step_is_named_by_what_the_loop_has_called() -> None:
    seen: list[str] = []

    def look() -> None:
        seen.append(name_step(sys._getframe()))

    def wait() -> None:
        look()

    def select_operator_to_run() -> None:
        look()

    def _scheduling_loop_step(call: Any) -> None:
        call()

    _scheduling_loop_step(select_operator_to_run)
    _scheduling_loop_step(wait)
    look()
    assert seen == ["select_operator_to_run", "wait", "other"]
