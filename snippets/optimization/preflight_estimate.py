"""How long a run will take and what it will cost, from a rehearsal: its own pipeline, over some of its rows."""

from __future__ import annotations

from snippets.architecture.sizing import check
from snippets.fundamentals.actor_pool import Pool
from snippets.optimization.evidence import Observation, observing
from snippets.optimization.production import arrivals, build_pipeline, classifier_arguments
from snippets.optimization.production_parts import Job
from snippets.optimization.trial import interval

# isort: split
# --8<-- [start:imports]
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import ray

# --8<-- [end:imports]


# --8<-- [start:rehearse]
@dataclass(frozen=True)
class Arrival:
    """A table that came: seconds since the begin, rows by then, and rows that were decoded and not yet there."""

    seconds: float
    rows: int
    ahead: int


@dataclass(frozen=True)
class Rehearsal:
    """What came of a pool, of which `placed` actors were there, and how many windows of it count."""

    came: list[Arrival]
    actors: int
    windows: int
    placed: int

    @property
    def begin(self) -> int:
        """Where the windows begin: not before a table of each actor has come. Below 0 where there is none."""
        whole = min(self.windows, max(1, len(self.came) // self.actors - 1))
        return len(self.came) - 1 - whole * self.actors

    @property
    def steady(self) -> bool:
        """Whether all windows are there, and decoding is no more than a few tables ahead of, or behind, itself.

        While the model loads, blocks are decoded in advance. As long as these are used up, the rate is too high.
        """
        if len(self.came) < (self.windows + 1) * self.actors:
            return False
        first, last = self.came[self.begin], self.came[-1]
        table_rows = (last.rows - first.rows) / (self.windows * self.actors)
        return abs(last.ahead - first.ahead) <= max(2, self.actors / 2) * table_rows


MOST_BLOCKS = 64  # for each actor, of a rehearsal


def rehearse(
    job: Job, ids: Sequence[str], pool: Pool, windows: int, budget_s: float, timeout_s: float, seed: int
) -> Rehearsal:
    """Run the job's pipeline over rows in random order, write nothing, and stop when its rate is steady.

    A window is a table of each actor; after `budget_s` a single one is enough. Raises `RuntimeError` where no row
    comes within `timeout_s`.
    """
    batch_size = classifier_arguments(job, pool)[2]
    some = min(len(ids), MOST_BLOCKS * pool.actors * 8 * batch_size)  # a block has at most eight batches
    came, rows = list[Arrival](), 0
    with observing() as seen:
        results = build_pipeline(job, random.Random(seed).sample(ids, some), pool)
        results.context.execution_no_progress_timeout_s = min(timeout_s, job.settings.no_progress_timeout_s)
        began = time.monotonic()
        try:
            for table in arrivals(results):
                now = time.monotonic() - began
                if table is not None and len(table):
                    rows += len(table)
                    decoded = (seen.runs[-1].rows_out() or [some])[0]
                    came.append(Arrival(now, rows, decoded - rows))
                    found = Rehearsal(came, pool.actors, windows, 0)
                    # With the last row decoded the rest is faster than a run is.
                    is_last = some <= decoded < len(ids)
                    if found.steady or is_last or (now > budget_s and found.begin >= 0):
                        break
        except ray.data.exceptions.ExecutionTimeoutError:
            raise RuntimeError(explain_standstill(pool_of(seen)[1], pool, timeout_s)) from None
        actors, placed = pool_of(seen)
        return Rehearsal(came, actors, windows, placed)


def pool_of(seen: Observation) -> tuple[int, int]:
    """Return how many actors the pool of a run has, and how many were there at once."""
    stages = [stage for execution in seen.evidence().executions for stage in execution.stages]
    return max((stage.actors, stage.placed) for stage in stages)


def explain_standstill(placed: int, pool: Pool, timeout_s: float) -> str:
    """Return a sentence on a pipeline from which nothing came."""
    free = ray.available_resources()
    return (
        f"No row came for {timeout_s:g} s: {placed} of {pool.actors} actors with {pool.num_cpus:g} CPUs and "
        f"{pool.num_gpus:g} GPUs each were there, beside decode tasks of {pool.decode_cpus:g} CPU, and the "
        f"cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs that nobody holds."
    )


# --8<-- [end:rehearse]


# --8<-- [start:estimate]
@dataclass(frozen=True)
class Estimate:
    """How long a run takes, from its begin to its last row: between `low_s` and `high_s` with a confidence.

    The interval is that of the median rate of the windows. A confidence of 0 means that there is one window, or
    that all rows were rehearsed.
    """

    rows: int
    rows_per_second: float
    first_rows_s: float
    seconds: float
    low_s: float
    high_s: float
    confidence: float


def estimate(rehearsal: Rehearsal, rows: int, write_s: float = 0) -> Estimate:
    """Return what a run over so many rows takes, that spends `write_s` seconds with writing.

    It takes t + (N - n) / r: t and n are the seconds and rows at which the windows begin, N all rows, r the median
    rate of the windows; or the first rows and then `write_s`, as far as that is more. Raises `ValueError` where
    too few rows came to have a rate.
    """
    came = rehearsal.came
    ended = came[-1] if came else Arrival(0, 0, 0)
    windows = list(itertools.pairwise(came[rehearsal.begin :: rehearsal.actors] if rehearsal.begin >= 0 else []))
    rates = [(after.rows - before.rows) / (after.seconds - before.seconds) for before, after in windows]
    if ended.rows >= rows > 0:  # all of it was rehearsed
        rate, confidence = ended.rows / ended.seconds, 0.0
        spans = (ended.seconds, ended.seconds, ended.seconds)
    elif not rates:
        raise ValueError(f"{ended.rows} rows in {ended.seconds:.0f} s are too few to say how long {rows} take.")
    else:
        begun, rate = came[rehearsal.begin], statistics.median(rates)
        low, high, confidence = interval(rates)
        spans = (
            begun.seconds + (rows - begun.rows) / rate,
            begun.seconds + (rows - begun.rows) / high,
            begun.seconds + (rows - begun.rows) / low,
        )
    first_s = came[0].seconds
    seconds, low_s, high_s = (max(span, first_s + write_s) for span in spans)
    return Estimate(rows, rate, first_s, seconds, low_s, high_s, confidence)


# --8<-- [end:estimate]


# --8<-- [start:cost]
@dataclass(frozen=True)
class Prices:
    """What you pay, in one currency: for an hour of all nodes, 1,000 reads of the storage, 10**9 bytes read."""

    an_hour: float = 0
    a_thousand_reads: float = 0
    a_gigabyte: float = 0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a price that is no finite number, or below zero."""
        for name, price in asdict(self).items():
            check(f"The price of {name.replace('_', ' ')}", price, may_equal=True)

    def cost(self, seconds: float, rows: int, mean_bytes: float) -> float:
        """Return what a run of so many seconds costs, that reads each row's image once."""
        reads = rows / 1000 * self.a_thousand_reads + rows * mean_bytes / 1e9 * self.a_gigabyte
        return seconds / 3600 * self.an_hour + reads


# --8<-- [end:cost]
