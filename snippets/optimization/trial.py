"""Measure candidates in processes that may die, choose among them, and say how sure the choice is."""

from __future__ import annotations

# --8<-- [start:imports]
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

# --8<-- [end:imports]


# --8<-- [start:trial]
Repeat = tuple[int, float, int]  # rows, seconds, and the highest memory of the process so far in bytes
Build = Callable[[], Callable[[], Repeat]]  # makes what is measured; each call of that is a repeat


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: rows/s of each repeat and peak memory in bytes, or why there are none."""

    candidate: int
    rates: tuple[float, ...] = ()
    peak_bytes: int = 0
    failure: str = ""


OUT_OF_MEMORY = "out of memory"
DIED = "its process died, as it does when memory runs out"
OUT_OF_TIME = "longer than the time left"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether Python, NumPy, or torch on any device could not have the memory it asked for."""
    return (
        isinstance(error, MemoryError)
        or "out of memory" in str(error).lower()  # CUDA's
        or "DefaultCPUAllocator" in str(error)  # torch's on a CPU
    )


class Trial:
    """A process for one candidate. It is never used again, so its peak memory is that candidate's."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.call: Callable[[], Repeat] | None = None

    def run(self) -> Repeat | str:
        """Return one repeat, or `OUT_OF_MEMORY`. Any other exception is a fault, and raised."""
        try:
            self.call = self.call or self.build()
            return self.call()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return OUT_OF_MEMORY


def measure_in_processes(
    candidate: int,
    build: Build,
    timeout_s: float,
    repeats: int = 5,
    warm_ups: int = 1,
    processes: int = 1,
    **options: Any,
) -> Outcome:
    """Measure a candidate in processes that run at the same time; rates and peaks are summed over them.

    Each builds what is measured and runs it `warm_ups` times, not counted. A repeat starts in all at once.
    `options` are those of a Ray actor. None of the processes is left when this returns or raises.
    """
    deadline = time.monotonic() + timeout_s
    trials = [ray.remote(Trial).options(**options).remote(build) for _ in range(processes)]
    rates: list[float] = []
    peak_bytes = 0
    try:
        for turn in range(warm_ups + repeats):
            left_s = max(0, deadline - time.monotonic())
            answers = ray.get([trial.run.remote() for trial in trials], timeout=left_s)
            if OUT_OF_MEMORY in answers:
                return Outcome(candidate, failure=OUT_OF_MEMORY)
            peak_bytes = max(peak_bytes, sum(peak for _, _, peak in answers))
            if turn >= warm_ups:
                rates.append(sum(rows / seconds for rows, seconds, _ in answers))
    except ray.exceptions.GetTimeoutError:
        return Outcome(candidate, failure=OUT_OF_TIME)
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
        return Outcome(candidate, failure=DIED)
    finally:
        for trial in trials:
            ray.kill(trial)
    return Outcome(candidate, tuple(rates), peak_bytes)


# --8<-- [end:trial]


# --8<-- [start:interval]
def interval(rates: Sequence[float], confidence: float = 0.9) -> tuple[float, float, float]:
    """Return the narrowest pair of repeats that holds the true median with `confidence`, and how sure that is.

    Repeats k and n + 1 - k in order of size do so with 1 - 2 P(X < k), X binomial with n and 1/2, if repeats are
    independent, whatever their distribution
    (https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.quantile_test.html). Fewer than
    five repeats cannot: the pair is then the lowest and the highest, and what is returned less than 0.9.
    """
    ordered, n = sorted(rates), len(rates)

    def holds(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, below) for below in range(k)) / 2.0**n

    k = max((k for k in range(1, (n + 1) // 2 + 1) if holds(k) >= confidence), default=1)
    return ordered[k - 1], ordered[n - k], holds(k)


# --8<-- [end:interval]


# --8<-- [start:choose]
@dataclass(frozen=True)
class Choice:
    """The best candidate, the share of throughput it may lose against another, and how sure that is.

    `may_lose` compares the low end of its interval with the highest end of the others': with each median in its
    interval, it loses no more. `confidence` is that of the less certain of the two intervals. `sure` is a loss of
    no more than twice the tolerance, with intervals at 0.9.
    """

    best: int
    rate: float
    may_lose: float
    confidence: float
    sure: bool


def choose(outcomes: Iterable[Outcome], tolerance: float = 0.05) -> Choice:
    """Choose the smallest candidate whose median is within `tolerance` of the best: it needs the least memory.

    Raises `ValueError` where no candidate was measured.
    """
    outcomes = list(outcomes)
    fit = sorted((each for each in outcomes if not each.failure), key=lambda each: each.candidate)
    if not fit:
        reasons = (
            "; ".join(f"{each.candidate}: {each.failure}" for each in outcomes) or "there was no time for one"
        )
        raise ValueError(f"No candidate could be measured ({reasons}).")
    best_rate = max(statistics.median(each.rates) for each in fit)
    chosen = next(each for each in fit if statistics.median(each.rates) >= (1 - tolerance) * best_rate)
    low, _, confidence = interval(chosen.rates)
    high = low
    if others := [interval(each.rates) for each in fit if each is not chosen]:
        _, high, others_confidence = max(others, key=lambda each: each[1])
        confidence = min(confidence, others_confidence)
    may_lose = max(0.0, 1 - low / high)
    sure = confidence >= 0.9 and may_lose <= 2 * tolerance
    return Choice(chosen.candidate, statistics.median(chosen.rates), may_lose, confidence, sure)


# --8<-- [end:choose]


# --8<-- [start:search]
ALL_TRIED, FLAT, OUT_OF_BUDGET = "all candidates tried", "the curve is flat", "the budget is spent"


@dataclass(frozen=True)
class Tuning:
    """What a search found: the choice, what `classify` takes of it, each outcome, and why the search ended."""

    choice: Choice
    arguments: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    stopped: str


def is_flat(outcomes: Sequence[Outcome], tolerance: float, patience: int = 2) -> bool:
    """Return whether the last `patience` candidates gained no more than `tolerance` over all before them."""
    medians = [statistics.median(each.rates) for each in outcomes]
    return len(medians) > patience and max(medians[-patience:]) <= (1 + tolerance) * max(medians[:-patience])


def search(
    candidates: Iterable[int],
    measure: Callable[[int, float], Outcome],
    budget_s: float,
    tolerance: float = 0.05,
    confirm: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Outcome], str]:
    """Measure candidates, the smallest first, until the curve is flat, one fails, or the time is spent.

    `measure` is given a candidate and the seconds left. With `confirm`, the best candidate and its closest rival
    are measured once more, the other way round, so that what else the machine did meanwhile widens their spread.
    """
    begun, outcomes, stopped = clock(), list[Outcome](), ALL_TRIED

    def measured(candidate: int) -> Outcome | None:
        left_s = budget_s - (clock() - begun)
        return measure(candidate, left_s) if left_s > 0 else None

    for candidate in sorted(set(candidates)):
        outcome = measured(candidate)
        if outcome is None:
            stopped = OUT_OF_BUDGET
            break
        outcomes.append(outcome)
        if outcome.failure:  # larger ones need more of what it lacked
            stopped = f"{candidate}: {outcome.failure}"
            break
        if is_flat(outcomes, tolerance):
            stopped = FLAT
            break
    if confirm:
        for outcome in reversed(contenders(outcomes, tolerance)):
            if again := measured(outcome.candidate):
                outcomes[outcomes.index(outcome)] = replace(
                    outcome,
                    rates=outcome.rates + again.rates,
                    peak_bytes=max(outcome.peak_bytes, again.peak_bytes),
                    failure=again.failure if again.failure != OUT_OF_TIME else "",
                )
    return outcomes, stopped


def contenders(outcomes: Sequence[Outcome], tolerance: float) -> list[Outcome]:
    """Return the choice and the one of the others that may be fastest, in order of size."""
    fit = [each for each in outcomes if not each.failure]
    if len(fit) < 2:
        return []
    best = choose(fit, tolerance).best
    rival = max((each for each in fit if each.candidate != best), key=lambda each: interval(each.rates)[1])
    return [each for each in fit if each.candidate == best or each is rival]


# --8<-- [end:search]


# --8<-- [start:remember]
def remember(folder: Path | None, question: dict[str, Any], answer: Callable[[], Tuning]) -> Tuning:
    """Return the tuning that `folder` keeps for a question, or find it and keep it. Without a folder: find it.

    The question is anything that JSON can say. A file that is damaged, or of another question, is replaced.
    """
    if folder is None:
        return answer()
    asked = json.dumps(question, sort_keys=True)
    path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    kept = recall(path, asked) if path.is_file() else None
    return kept or keep(path, asked, answer())


def recall(path: Path, asked: str) -> Tuning | None:
    """Return the tuning in a file, or nothing where it is damaged or answers another question."""
    try:
        kept = json.loads(path.read_text())
        if kept["question"] != json.loads(asked):
            return None
        return tuning_of(kept)
    except (ValueError, KeyError, TypeError):
        return None


def tuning_of(kept: dict[str, Any]) -> Tuning:
    """Return a tuning from what JSON made of it. Raises `KeyError` or `TypeError` where it is none."""
    outcomes = tuple(Outcome(**{**each, "rates": tuple(each["rates"])}) for each in kept["outcomes"])
    return Tuning(Choice(**kept["choice"]), kept["arguments"], outcomes, kept["stopped"])


def keep(path: Path, asked: str, found: Tuning) -> Tuning:
    """Write a tuning to a file, whole or not at all, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"question": json.loads(asked), **asdict(found)}, indent=2))
    unfinished.replace(path)
    return found


# --8<-- [end:remember]
