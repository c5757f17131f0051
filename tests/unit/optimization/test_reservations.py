"""Reservations decide what runs at a time, and nothing about how a process behaves once it runs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from snippets.optimization import reservations
from snippets.optimization.reservations import (
    batches_seen,
    fetch,
    idle,
    look_around,
    look_from,
    make_decode,
    make_forward,
    most_at_once,
    one_node,
    pool_at_work,
    reservation_for,
    try_reservation,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ray_cluster import RayCluster


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def test_num_cpus_says_how_many_run_at_a_time(connected: RayCluster) -> None:
    assert one_node()["Resources"]["CPU"] == 2
    assert most_at_once(tasks=4, num_cpus=2) == 1
    assert most_at_once(tasks=4, num_cpus=0.5, meet=4) == 4


def test_memory_says_how_many_run_at_a_time(connected: RayCluster) -> None:
    memory = one_node()["Resources"]["memory"]
    assert most_at_once(tasks=3, memory=int(0.6 * memory)) == 1
    assert most_at_once(tasks=3, memory=int(0.3 * memory), meet=3) == 3


def test_memory_is_not_enforced(connected: RayCluster) -> None:
    assert look_from(take_bytes=50_000_000, memory=1_000_000)["bytes"] == 50_000_000


def test_a_smaller_reservation_hides_no_core_but_sets_the_threads(connected: RayCluster) -> None:
    small, large = look_from(num_cpus=0.25), look_from(num_cpus=2)
    assert small["cores"] == large["cores"]
    assert (small["omp_threads"], large["omp_threads"]) == ("1", "2")
    assert look_from(num_cpus=1.5)["omp_threads"] == "1"
    look = ray.remote(look_around).options(num_cpus=2, runtime_env={"env_vars": {"OMP_NUM_THREADS": "3"}})
    assert ray.get(look.remote())["omp_threads"] == "3"


def test_half_a_gpu_is_a_whole_device_that_two_are_shown(connected: RayCluster) -> None:
    shown = [look_from(num_gpus=number, num_cpus=0)["gpus"] for number in (0.5, 1)]
    assert shown == ["0", "0"]
    node = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU"))

    class Half:
        def look(self) -> tuple[Any, Any]:
            return ray.get_gpu_ids(), look_around()["gpus"]

    half = ray.remote(Half).options(
        num_gpus=0.5, num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )
    both = [half.remote(), half.remote()]  # alive at the same time
    first, second = ray.get([each.look.remote() for each in both])
    assert first == second
    assert (len(first[0]), first[1]) == (1, "0")


@pytest.mark.parametrize(
    ("batch_size", "calls"), [(16, [4, 4, 16, 16]), (None, [20, 20]), (20, [20, 20]), (40, [40])]
)
def test_batches_are_cut_from_blocks(connected: RayCluster, batch_size: int | None, calls: list[int]) -> None:
    assert batches_seen(40, 2, batch_size) == calls


def test_a_pool_loads_in_every_actor_though_only_one_has_work(connected: RayCluster) -> None:
    loads, worked, loaded = pool_at_work(actors=3, blocks=1, weights_bytes=1000)
    assert (loads, worked, loaded) == (3, 1, 3000)


def test_waiting_takes_no_cpu_and_decoding_and_multiplying_take_as_much_as_before(connected: RayCluster) -> None:
    read = try_reservation(fetch, num_cpus=0.25, tasks=4, calls=2)
    assert read["idle"] > 0.5
    for work in (make_decode(), make_forward()):
        # Not 2, with which a second thread would compute, whose time is not the task's own.
        alone, together = (try_reservation(work, num_cpus, tasks=4, calls=4) for num_cpus in (1, 0.25))
        assert alone["at_once"] <= 2  # of four, as the node has two CPUs
        # A core that is shared does not do the work in fewer seconds. A third leaves room for a noisy machine.
        assert together["cpu_s"] > alone["cpu_s"] / 3
        assert min(alone["cpu_s"], together["cpu_s"]) > 3 * read["cpu_s"]


def test_four_tasks_are_tried_for_each_cpu(connected: RayCluster, tmp_path: Path) -> None:
    def note() -> None:
        (tmp_path / uuid.uuid4().hex).touch()

    try_reservation(note, num_cpus=0.25, calls=1)
    assert len([*tmp_path.iterdir()]) == 2 * 4 * 2  # with the round that starts the processes


def test_what_a_task_computes_is_what_it_should_reserve() -> None:
    assert reservation_for(cpu_s=0.01, wait_s=0.03) == 0.25
    assert reservation_for(cpu_s=0.01, wait_s=0) == 1
    assert idle([0.5, 1.5], [0.25, 0.25]) == 0.75
    assert idle([1.0], [1.2]) == 0  # several threads
    with pytest.raises(ValueError, match="A task takes some time, not 0 s of computing"):
        reservation_for(0, 0)


def test_the_command_tries_each_stage_with_each_reservation(
    connected: RayCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reservations, "try_reservation", lambda work, num_cpus: {"at_once": 1, "rate": 2.5})
    assert reservations.main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["stage"], row["num_cpus"]) for row in rows] == [
        (stage, num_cpus) for stage in ("read", "decode", "forward") for num_cpus in (1, 0.25)
    ]
    assert reservations.main([]) == 0
    assert "stage: read  num_cpus: 1  at_once: 1  rate: 2.5\n" in capsys.readouterr().out
