"""Time, retries and cost follow from what happens: tasks that are handed out, and nodes that go."""

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snippets.architecture.running import (
    cost,
    count_prefixes,
    expected_retries,
    network_rate,
    nodes_for_deadline,
    run_seconds,
    start_bytes,
    tail_seconds,
    useful_share,
)

ROOM = 1 + 1e-9
rates = st.floats(0.1, 1e5)


def makespan(workers: int, tasks: list[float]) -> float:
    """Return when the last task ends, if each free worker takes the next one."""
    free = [0.0] * workers
    for task in tasks:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


@given(st.integers(1, 20), st.lists(st.integers(1, 500), min_size=1, max_size=60), rates)
def test_no_run_takes_longer_than_its_work_and_tail(actors: int, rows: list[int], rate: float) -> None:
    bound = run_seconds(sum(rows), actors * rate, tail_s=tail_seconds(actors, max(rows), rate))
    assert makespan(actors, [each / rate for each in rows]) <= bound * ROOM


def test_the_tail_is_reached_by_a_last_block_alone() -> None:
    blocks = [10] * 12 + [40]  # four actors are busy together, then one has the last block
    found = makespan(4, [rows / 5 for rows in blocks])
    assert found == pytest.approx(run_seconds(160, 4 * 5, tail_s=tail_seconds(4, 40, 5)))


@given(st.integers(1, 10**9), rates, st.floats(1, 1e5), st.floats(0, 1e3), st.floats(0, 1e3))
def test_the_nodes_meet_the_deadline_and_one_fewer_does_not(
    items: int, rate: float, deadline: float, start_up: float, tail: float
) -> None:
    if deadline <= start_up + tail:
        with pytest.raises(ValueError, match=r"^The deadline passes during start-up and the last block"):
            nodes_for_deadline(items, rate, deadline, start_up, tail)
        return
    nodes = nodes_for_deadline(items, rate, deadline, start_up, tail)
    slack = 1e-6 * deadline
    assert run_seconds(items, nodes * rate, start_up, tail) <= deadline + slack
    if nodes > 1:
        assert run_seconds(items, (nodes - 1) * rate, start_up, tail) >= deadline - slack


@pytest.mark.parametrize(("task_s", "an_hour"), [(60, 1), (600, 2), (1800, 1.5)])
def test_retries_are_those_of_nodes_that_go_at_random(task_s: float, an_hour: float) -> None:
    chance = random.Random(1)
    tasks, retries, spent = 40_000, 0, 0.0
    for _ in range(tasks):
        while (lives := chance.expovariate(an_hour / 3600)) < task_s:
            retries += 1
            spent += lives
        spent += task_s
    expected = expected_retries(task_s, an_hour)
    four_deviations = 4 * math.sqrt(expected * (1 + expected) / tasks)  # of the mean of a geometric distribution
    assert retries / tasks == pytest.approx(expected, abs=four_deviations)
    assert tasks * task_s / spent == pytest.approx(useful_share(task_s, an_hour, 0), rel=0.02)


@given(st.floats(0.01, 1000), st.floats(0, 3), st.floats(0, 3600))
def test_the_useful_share_falls_with_the_recovery_and_is_all_on_nodes_that_stay(
    task_s: float, an_hour: float, recovery_s: float
) -> None:
    assert useful_share(task_s, 0, recovery_s) == 1
    share = useful_share(task_s, an_hour, recovery_s)
    assert 0 < share <= useful_share(task_s, an_hour, 0) * ROOM <= ROOM**2
    expected_s = task_s * (1 if an_hour == 0 else math.expm1(an_hour / 3600 * task_s) / (an_hour / 3600 * task_s))
    assert share * (1 + an_hour / 3600 * recovery_s) * expected_s == pytest.approx(task_s)


def test_a_block_that_outlives_its_node_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^A block takes longer than a node lives on average"):
        expected_retries(3600, 1)


@given(st.integers(1, 10**6), st.floats(0.1, 1e6), st.floats(0, 100))
def test_two_half_runs_cost_what_one_costs(nodes: int, seconds: float, price: float) -> None:
    assert 2 * cost(nodes, seconds / 2, price) == pytest.approx(cost(nodes, seconds, price))
    assert cost(2 * nodes, seconds / 2, price) == pytest.approx(cost(nodes, seconds, price))


@given(st.floats(0.1, 1e7))
def test_as_many_prefixes_as_carry_the_requests(requests: float) -> None:
    prefixes = count_prefixes(requests)
    assert (prefixes - 1) * 5500 < requests <= prefixes * 5500


def test_the_network_brings_items_and_every_actor_its_weights() -> None:
    assert network_rate(25e9 / 8, 125e3) == 25_000
    assert start_bytes(8, 140e9) == 1120e9
