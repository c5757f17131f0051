"""Blocks come out while others are unread, reads run ahead only so far, and what ends that is counted."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray._private.internal_api import node_stats

from snippets.architecture import streaming
from snippets.architecture.streaming import (
    BLOCK_BYTES,
    ROWS,
    SETTLED_STEPS,
    Gate,
    Ledger,
    Look,
    Span,
    Watched,
    load_images,
    reads_before_first_batch,
    run_ahead,
    start_actor,
    timeline,
    wait_until_settled,
    watch_executor,
)

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

BLOCKS, IN_FLIGHT = 12, 3
HANDED_ON = 4  # blocks that the iterator has taken, and those it holds while the executor does not know yet


def test_rows_come_out_while_others_are_still_read(connected: RayCluster) -> None:
    ledger, gate = start_actor(Ledger), start_actor(Gate)
    images = load_images(8, ledger, gate=gate, held=7)
    batches = iter(images.iter_batches(batch_size=None))
    first = next(batches)  # were there no streaming, this would wait for block 7, which waits for the gate
    assert first["image"].nbytes == BLOCK_BYTES
    assert ray.get(gate.wait_for.remote(1)) == 1
    assert 7 not in ray.get(ledger.blocks.remote("read"))
    ray.get(gate.open.remote())
    ids = [*first["id"], *(one for batch in batches for one in batch["id"])]
    assert sorted(ids) == list(range(8 * ROWS))
    assert sorted(ray.get(ledger.blocks.remote("read"))) == list(range(8))


@pytest.mark.parametrize("blocks", [24, 96])
def test_reads_run_ahead_of_a_consumer_that_waits_by_a_number_of_blocks_whatever_the_data(
    connected: RayCluster, blocks: int
) -> None:
    found = run_ahead(blocks, in_flight=8)
    assert found["out"] == found["blocks"] == blocks
    assert 1 <= found["at_first"] <= 8 + HANDED_ON
    assert 1 <= found["ahead"] <= 8 + HANDED_ON


def test_without_a_limit_they_run_further_ahead(connected: RayCluster) -> None:
    watched = watch_executor(images := load_images(24, ledger := start_actor(Ledger)))
    batches = iter(images.iter_batches(batch_size=None))
    next(batches)
    ray.get(ledger.wait_for.remote("read", 24))  # the store of the cluster has room for all
    wait_until_seen(watched, lambda reads: reads.submitted == 24)
    assert sum(1 for _ in batches) == 23


def wait_until_seen(watched: Watched, is_so: Callable[[Any], bool]) -> None:
    """Return once the last operator looked like that. The executor looks a moment after what it did."""
    deadline = time.monotonic() + 240  # a dataset that ended without a word counts for 180 s
    while not (watched.looks and is_so(watched.looks[-1][-1])):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_read_task_is_an_object_in_the_store_from_begin_to_end(connected: RayCluster) -> None:
    def objects() -> int:
        nodes = [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes() if node["Alive"]]
        return sum(node_stats(*each, include_memory_info=False).store_stats.num_local_objects for each in nodes)

    before, gate = objects(), start_actor(Gate)
    batches = iter(load_images(64, gate=gate, held=63, in_flight=4).iter_batches(batch_size=None))
    for _ in range(60):
        next(batches)
    assert objects() - before >= 64  # of blocks there are few
    ray.get(gate.open.remote())
    assert sum(1 for _ in batches) == 4
    del batches
    deadline = time.monotonic() + 60
    while objects() - before >= 64:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_half_of_the_object_store_is_the_default_limit(connected: RayCluster) -> None:
    def limit(executor: Any, _: Any) -> float:
        return float(executor._resource_manager.get_global_limits().object_store_memory)

    gate = start_actor(Gate)
    watched = watch_executor(images := load_images(8, gate=gate, held=7), limit)
    batches = iter(images.iter_batches(batch_size=None))
    next(batches)  # which waits for a block or two more than the first: the iterator fetches ahead
    half = ray.cluster_resources()["object_store_memory"] / 2
    wait_until_seen(watched, lambda seen: seen == half)  # the executor learns it a moment after it began
    ray.get(gate.open.remote())
    assert sum(1 for _ in batches) == 7


def test_it_streams_as_it_is(connected: RayCluster) -> None:
    assert reads_before_first_batch(lambda images: images, BLOCKS, IN_FLIGHT) <= IN_FLIGHT + HANDED_ON
    assert (
        reads_before_first_batch(lambda images: images.limit(2 * ROWS), BLOCKS, IN_FLIGHT) <= IN_FLIGHT + HANDED_ON
    )


@pytest.mark.parametrize(
    "breaks",
    [
        lambda images: images.materialize(),
        lambda images: images.sort("id"),
        lambda images: images.random_shuffle(),
        lambda images: images.repartition(4, shuffle=True),
        lambda images: images.repartition(4),
        lambda images: images.randomize_block_order(),
    ],
    ids=["materialize", "sort", "random_shuffle", "repartition with shuffle", "repartition", "block order"],
)
def test_it_does_not_where_the_first_row_needs_the_last_block(
    connected: RayCluster, breaks: Callable[[ray.data.Dataset], ray.data.Dataset]
) -> None:
    assert reads_before_first_batch(breaks, BLOCKS, IN_FLIGHT) == BLOCKS


def test_repartition_by_rows_streams(connected: RayCluster) -> None:
    def smaller(images: ray.data.Dataset) -> ray.data.Dataset:
        return images.repartition(target_num_rows_per_block=2)

    assert reads_before_first_batch(smaller, BLOCKS, IN_FLIGHT) <= IN_FLIGHT + HANDED_ON


def test_a_count_runs_what_changes_rows_and_nothing_else(connected: RayCluster) -> None:
    untransformed = ray.data.range(BLOCKS, override_num_blocks=BLOCKS)
    watched = watch_executor(untransformed)
    assert (untransformed.count(), watched.looks) == (BLOCKS, [])
    ledger = start_actor(Ledger)
    images = load_images(BLOCKS, ledger)
    for times in (1, 2):
        assert images.count() == BLOCKS * ROWS
        assert len(ray.get(ledger.blocks.remote("read"))) == times * BLOCKS


def test_a_count_after_steps_that_keep_the_rows_runs_nothing(connected: RayCluster) -> None:
    def fail(rows: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("executed")

    rows = ray.data.range(BLOCKS, override_num_blocks=2)
    assert rows.map(fail).count() == BLOCKS
    assert rows.map_batches(fail, udf_modifying_row_count=False).count() == BLOCKS
    with pytest.raises(ray.exceptions.RayError, match="executed"):
        rows.map_batches(fail).count()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list a process's memory")
@pytest.mark.parametrize("is_collected_by_take_all", [False, True])
def test_what_a_driver_collects_stays_in_the_object_store(
    connected: RayCluster, is_collected_by_take_all: bool
) -> None:
    images = load_images(BLOCKS, in_flight=IN_FLIGHT)
    rows: list[dict[str, Any]]
    rows = images.take_all() if is_collected_by_take_all else list(images.iter_batches(batch_size=None))
    assert sum(row["image"].nbytes for row in rows) == BLOCKS * BLOCK_BYTES > IN_FLIGHT * BLOCK_BYTES
    shared = shared_memory()
    for row in rows:
        address = row["image"].__array_interface__["data"][0]
        assert any(begin <= address < end for begin, end in shared)


def shared_memory() -> list[tuple[int, int]]:
    """Return the address ranges of this process that are Ray's object store."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "plasma" in line:
            begin, end = line.split()[0].split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def test_the_timeline_is_what_ran_when_on_which_worker(connected: RayCluster) -> None:
    rows = streaming.run(Namespace(blocks=8))
    calls: dict[str, dict[int, dict[str, Any]]] = {"read": {}, "model": {}}
    for row in rows:
        calls[row["operator"]][row["block"]] = row
    assert len(rows) == 16
    assert sorted(calls["read"]) == sorted(calls["model"]) == list(range(8))
    assert all(calls["read"][block]["ended_s"] <= calls["model"][block]["began_s"] for block in range(8))
    # The last block waited at the gate until the model had had one.
    assert min(row["ended_s"] for row in calls["model"].values()) <= calls["read"][7]["ended_s"]
    assert {row["worker"] for row in calls["read"].values()}.isdisjoint(
        row["worker"] for row in calls["model"].values()
    )
    by_worker: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_worker.setdefault(row["worker"], []).append(row)
    for lane in by_worker.values():
        assert all(before["ended_s"] <= after["began_s"] for before, after in pairwise(lane))


def test_a_timeline_begins_at_nought_and_is_in_order() -> None:
    rows = timeline([Span("model", 0, "b", 12.5, 13.0), Span("read", 0, "a", 10.0, 12.0)])
    assert [(row["operator"], row["began_s"], row["ended_s"]) for row in rows] == [
        ("read", 0.0, 2.0),
        ("model", 2.5, 3.0),
    ]


def look(submitted: int, finished: int, is_held_back: bool) -> list[Look]:
    return [Look("Input", 0, 0, 9, False), Look("read", submitted, finished, 0, is_held_back)]


@pytest.mark.parametrize(
    ("seen", "made", "steps"),
    [
        (look(4, 2, False), 4, SETTLED_STEPS),
        (look(4, 2, True), 3, SETTLED_STEPS),
        (look(4, 0, True), 4, SETTLED_STEPS),
        (look(4, 2, True), 4, SETTLED_STEPS - 1),
    ],
    ids=["not held back", "one still reads", "sizes unknown", "changed a moment ago"],
)
def test_reads_have_not_settled_while_more_may_begin(seen: list[Look], made: int, steps: int) -> None:
    with pytest.raises(TimeoutError, match="neither holds the reads back nor ends"):
        wait_until_settled(Watched([seen], steps), lambda: made, timeout_s=0.02)
    wait_until_settled(Watched([look(4, 2, True)], SETTLED_STEPS), lambda: 4, timeout_s=5)


def test_only_changes_are_kept() -> None:
    watched = Watched()
    for seen in (look(1, 0, False), look(1, 0, False), look(2, 0, False)):
        watched.add(seen)
    assert (len(watched.looks), watched.unchanged_steps) == (2, 0)


def test_the_command_prints_the_timeline(connected: RayCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert streaming.main(["--blocks", "1", "--json"]) == 0
    assert [row["operator"] for row in json.loads(capsys.readouterr().out)] == ["read", "model"]
    with pytest.raises(SystemExit, match="2"):
        streaming.main(["--blocks", "0"])
    assert "must be a whole number of at least 1, not 0" in capsys.readouterr().err
