"""A search finds what is known to be best, survives what dies, and says when it cannot tell."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from snippets.optimization.trial import (
    ALL_TRIED,
    DIED,
    FLAT,
    OUT_OF_BUDGET,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    Choice,
    Outcome,
    Repeat,
    Tuning,
    choose,
    interval,
    is_flat,
    is_out_of_memory,
    measure_in_processes,
    remember,
    search,
)

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STEADY = (1.0, 1.0, 1.0, 1.0, 1.0)


class Bench:
    """Stands in for processes: seconds of a batch by a stated function, on a clock that only it moves."""

    def __init__(self, batch_seconds: Callable[[int], float], noise: tuple[float, ...] = STEADY) -> None:
        self.batch_seconds, self.noise = batch_seconds, noise
        self.now = 0.0
        self.tried: list[int] = []
        self.fails: dict[int, str] = {}

    def __call__(self, candidate: int, left_s: float) -> Outcome:
        self.tried.append(candidate)
        if candidate in self.fails:
            return Outcome(candidate, failure=self.fails[candidate])
        seconds = [self.batch_seconds(candidate) * factor for factor in self.noise]
        self.now += sum(seconds)
        return Outcome(candidate, tuple(candidate / each for each in seconds), 1000 * candidate)

    def search(self, budget_s: float = 1e9, **options: Any) -> tuple[list[Outcome], str]:
        """Search `SIZES` by this clock."""
        return search(SIZES, self, budget_s, clock=lambda: self.now, **options)


def best_at_32(size: int) -> float:
    """Seconds of a batch: a start, a part for each row, and more where the rows spill out of some cache."""
    return 0.1 + 0.01 * size + 0.002 * math.pow(max(0, size - 32), 1.5)


# The choice


def test_the_known_optimum_is_found_and_is_sure() -> None:
    bench = Bench(best_at_32)
    outcomes, _ = bench.search(confirm=False)
    assert max(SIZES, key=lambda size: size / best_at_32(size)) == 32
    assert choose(outcomes) == Choice(32, 32 / best_at_32(32), 0.0, 0.9375, True)


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 8), st.floats(0, 2))
def test_of_what_was_tried_the_smallest_that_is_about_as_fast_as_the_best_is_chosen(
    start: float, row: float, knee: int, bend: float
) -> None:
    bench = Bench(lambda size: start + row * size + bend * row * max(0, size - 2**knee) ** 1.5)
    outcomes, _ = bench.search()
    rates = {each.candidate: statistics.median(each.rates) for each in outcomes}
    enough = 0.95 * max(rates.values())
    best = choose(outcomes).best
    assert rates[best] >= enough
    assert all(rate < enough for size, rate in rates.items() if size < best)


def test_a_noisy_workload_is_reported_as_unsure_with_what_the_choice_may_cost() -> None:
    noisy = Bench(best_at_32, noise=(0.7, 0.85, 1.0, 1.2, 1.4))
    for choice in (choose(noisy.search(confirm=False)[0]), choose(noisy.search()[0])):
        assert (choice.best, choice.sure) == (32, False)
        lowest, highest_of_rival = 32 / best_at_32(32) / 1.4, 16 / best_at_32(16) / 0.7
        assert choice.may_lose == pytest.approx(1 - lowest / highest_of_rival)


def test_fewer_than_five_repeats_are_never_sure() -> None:
    few, enough = (choose(Bench(best_at_32, (1.0,) * n).search(confirm=False)[0]) for n in (4, 5))
    assert (few.may_lose, enough.may_lose) == (0, 0)
    assert (few.sure, few.confidence) == (False, 0.875)
    assert (enough.sure, enough.confidence) == (True, 0.9375)


def test_a_loss_is_against_the_others_and_a_single_candidate_can_lose_nothing() -> None:
    slow, fast = Outcome(1, (9.0, 10.0, 11.0, 10.0, 10.0)), Outcome(2, (9.0, 10.2, 12.0, 10.0, 10.4))
    assert choose([slow, fast]).best == 1  # within the tolerance, and smaller
    assert choose([slow, fast]).may_lose == 1 - 9 / 12
    assert choose([slow]).may_lose == 0


def test_without_an_outcome_the_error_says_why() -> None:
    with pytest.raises(ValueError, match=rf"^No candidate could be measured \(8: {OUT_OF_MEMORY}\)\.$"):
        choose([Outcome(8, failure=OUT_OF_MEMORY)])
    with pytest.raises(ValueError, match="there was no time"):
        choose([])


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    assert interval([5.0]) == (5, 5, 0)
    assert interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (1, 5, 0.9375)
    assert interval([float(n) for n in range(10)])[:2] == (1, 8)  # two outliers no longer count
    draws = np.random.default_rng(0).exponential(size=(4000, 8))  # a median of log 2
    ends = np.array([interval(list(row)) for row in draws])
    held = np.mean((ends[:, 0] <= math.log(2)) & (math.log(2) <= ends[:, 1]))
    assert held == pytest.approx(ends[0, 2], abs=0.02)
    assert ends[0, 2] == pytest.approx(1 - 2 * 9 / 256)


# When it ends


def test_it_stops_where_two_candidates_in_a_row_gain_nothing() -> None:
    bench = Bench(best_at_32)
    outcomes, stopped = bench.search(confirm=False)
    assert bench.tried == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [each.candidate for each in outcomes] == bench.tried
    assert stopped == FLAT


def test_one_bad_candidate_does_not_end_it() -> None:
    bench = Bench(lambda size: 1.0 if size != 8 else 2.0)  # a size that the hardware dislikes
    outcomes, stopped = bench.search(confirm=False)
    assert bench.tried == list(SIZES)
    assert stopped == ALL_TRIED
    assert choose(outcomes).best == 256


def test_small_gains_that_add_up_are_not_flat() -> None:
    creeping = [Outcome(n, (1.03**n,)) for n in range(3)]
    assert not is_flat(creeping, tolerance=0.05)
    assert is_flat(creeping, tolerance=0.07)
    assert not is_flat(creeping[:2], tolerance=1)  # too few to say


def test_the_budget_ends_it_and_no_candidate_begins_after() -> None:
    bench = Bench(lambda size: 2.0)  # ten seconds a candidate
    outcomes, stopped = bench.search(budget_s=25)
    assert bench.tried == [1, 2, 4]
    assert stopped == OUT_OF_BUDGET
    assert choose(outcomes).best == 4


def test_larger_candidates_than_one_that_failed_are_not_tried() -> None:
    bench = Bench(lambda size: 1.0)
    bench.fails = {16: OUT_OF_MEMORY}
    outcomes, stopped = bench.search(confirm=False)
    assert bench.tried == [1, 2, 4, 8, 16]
    assert stopped == f"16: {OUT_OF_MEMORY}"
    assert choose(outcomes).best == 8


def test_the_best_and_its_rival_are_measured_again_the_other_way_round() -> None:
    bench = Bench(best_at_32)
    outcomes, _ = bench.search()
    assert bench.tried == [1, 2, 4, 8, 16, 32, 64, 128, 32, 16]
    assert {each.candidate: len(each.rates) for each in outcomes} == {
        **dict.fromkeys((1, 2, 4, 8, 64, 128), 5),
        **dict.fromkeys((16, 32), 10),
    }


def test_a_machine_that_was_busy_for_a_while_is_found_out_by_the_second_look() -> None:
    quiet, busy = Bench(best_at_32), Bench(lambda size: best_at_32(size) * (1 if len(busy.tried) <= 8 else 2))
    assert choose(busy.search(confirm=False)[0]).sure
    busy.tried.clear()
    choice = choose(busy.search()[0])
    assert (choice.best, choice.sure) == (32, False)
    assert choice.may_lose > 0.1
    assert choose(quiet.search()[0]).sure


def test_one_that_fails_at_the_second_look_is_no_longer_chosen_and_time_that_runs_out_changes_nothing() -> None:
    for failure, best in ((DIED, 128), (OUT_OF_TIME, 256)):
        bench = Bench(lambda size: 1.0)
        measured = bench.__call__

        def second_fails(size: int, left_s: float, failure: str = failure, of: Any = measured) -> Outcome:
            again = size == 256 and size in of.__self__.tried
            return Outcome(size, failure=failure) if again else of(size, left_s)

        assert choose(search(SIZES, second_fails, 1e9)[0]).best == best


# Processes that may die


class Steps:
    """Build is counted apart from repeats, which tell how often it was called before."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Repeat:
        self.calls += 1
        return 100 * self.calls, 2.0, self.calls


def kill_itself() -> Callable[[], Repeat]:
    """End as the kernel ends a process when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def take(more_bytes: int) -> Callable[[], Repeat]:
    """Take memory in a process that may have 500 MB more than it has."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 500_000_000, resource.RLIM_INFINITY))
    return lambda: (len(np.ones(more_bytes // 8)), 1.0, more_bytes)


def fault() -> Callable[[], Repeat]:
    """Raise what has nothing to do with memory."""
    raise KeyError("a fault of the workload")


def test_warm_ups_do_not_count_and_each_repeat_does(connected: RayCluster) -> None:
    outcome = measure_in_processes(7, Steps, 120, repeats=3, warm_ups=2, num_cpus=0)
    assert outcome == Outcome(7, (150, 200, 250), 5)


def test_processes_measure_together_and_their_rates_and_peaks_add_up(connected: RayCluster) -> None:
    outcome = measure_in_processes(2, Steps, 120, repeats=2, processes=2, num_cpus=0)
    assert outcome == Outcome(2, (200, 300), 6)


def test_out_of_memory_and_death_are_results_and_the_search_goes_on(connected: RayCluster) -> None:
    def measure(candidate: int, left_s: float) -> Outcome:
        build = kill_itself if candidate == 100 else partial(take, candidate * 10**6)
        return measure_in_processes(candidate, build, left_s, repeats=1, warm_ups=0, num_cpus=0)

    outcomes, stopped = search((50, 2000), measure, 120, confirm=False)
    assert outcomes == [Outcome(50, (50e6 / 8,), 50_000_000), Outcome(2000, failure=OUT_OF_MEMORY)]
    assert stopped == f"2000: {OUT_OF_MEMORY}"
    assert choose(outcomes).best == 50
    assert search((100,), measure, 120) == ([Outcome(100, failure=DIED)], f"100: {DIED}")


def test_a_fault_is_no_lack_of_memory_and_is_raised(connected: RayCluster) -> None:
    with pytest.raises(ray.exceptions.RayTaskError, match="a fault of the workload"):
        measure_in_processes(1, fault, 120, num_cpus=0)


def test_what_cannot_be_scheduled_ends_with_the_time(connected: RayCluster) -> None:
    assert measure_in_processes(1, Steps, 0.2, num_cpus=1000) == Outcome(1, failure=OUT_OF_TIME)


def test_torchs_ways_to_say_that_there_is_no_memory_are_known() -> None:
    import torch

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**55)
    assert isinstance(refused.value, Exception)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# The cache

FOUND = Tuning(Choice(4, 2.5, 0.01, 0.9375, True), {"batch_size": 4}, (Outcome(4, (2.5, 2.0), 9),), ALL_TRIED)


def test_what_is_kept_is_not_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer() -> Tuning:
        asked.append(1)
        return FOUND

    folder = tmp_path / "new" / "folder"
    for question in ({"a": 1, "b": (2,)}, {"b": [2], "a": 1}):
        assert remember(folder, question, answer) == FOUND
    assert len(asked) == 1
    assert remember(folder, {"a": 2, "b": [2]}, answer) == FOUND
    assert len(asked) == 2
    assert len(list(folder.iterdir())) == 2  # nothing unfinished beside them
    remember(None, {"a": 1, "b": [2]}, answer)
    assert len(asked) == 3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"question": {"a": 1}}', json.dumps({"question": {"a": 2}})])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: str) -> None:
    remember(tmp_path, {"a": 1}, lambda: FOUND)
    (kept,) = tmp_path.iterdir()
    kept.write_text(damage)
    other = Tuning(Choice(8, 1.0, 0.0, 0.9375, True), {"batch_size": 8}, (), FLAT)
    assert remember(tmp_path, {"a": 1}, lambda: other) == other
    assert remember(tmp_path, {"a": 1}, lambda: FOUND) == other
