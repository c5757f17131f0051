"""Read what Ray says about a run: the stats of its operators, its actors and tasks, the Dashboard's address."""

from __future__ import annotations

# --8<-- [start:imports]
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.util import state

# --8<-- [end:imports]


# --8<-- [start:operator_stats]
def operator_stats(executed: ray.data.Dataset) -> list[dict[str, Any]]:
    """Return one row an operator, from the read on; nothing where the dataset has not been executed.

    `wall_s` and `cpu_s` are seconds summed over the operator's `tasks`, which made `blocks` of `rows` in all.
    """
    # A developer API, which may change with Ray: the stable `stats()` has these numbers as text only.
    summaries = [executed.get_stats_summary()]
    for summary in summaries:
        summaries += summary.parents
    return [
        {
            "operator": operator.operator_name,
            "tasks": operator.task_rows.count,
            "blocks": operator.output_num_rows.count,
            "rows": operator.output_num_rows.sum,
            "wall_s": operator.wall_time.sum,
            "cpu_s": operator.cpu_time.sum,
        }
        for summary in reversed(summaries)
        for operator in summary.operators_stats
        if operator.task_rows  # what was given as it is ran no task
    ]


# --8<-- [end:operator_stats]


# --8<-- [start:count_actors]
def this_job() -> dict[str, Any]:
    """Return arguments that make the state API list all of this job, and nothing of others.

    Left to itself it lists 100 entries of any job, and asks which Ray is meant where a machine runs two.
    """
    context = ray.get_runtime_context()
    return {
        "address": context.gcs_address,
        "filters": [("job_id", "=", context.get_job_id())],
        "limit": 10_000,
    }


def count_actors() -> Counter[tuple[str, str]]:
    """Return how many actors this job has, or had, by class and state."""
    return Counter((actor.class_name, actor.state) for actor in state.list_actors(**this_job()))


def count_tasks() -> Counter[str]:
    """Return how many tasks this job has started, by name. Ray reports them about a second late."""
    return Counter(task.name for task in state.list_tasks(**this_job()))


# --8<-- [end:count_actors]


# --8<-- [start:watch]
def watch(
    dataset: ray.data.Dataset, look: Callable[[], Any], every_s: float = 0.2
) -> tuple[ray.data.Dataset, list[Any]]:
    """Execute a dataset; return it materialized, and what `look` returned meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(dataset.materialize)
        seen = []
        while not running.done():
            seen.append(look())
            time.sleep(every_s)
        return running.result(), seen


# --8<-- [end:watch]


# --8<-- [start:tally]
class Tally:
    """Counts calls, in whichever workers they are made."""

    def __init__(self) -> None:
        self.calls = 0

    def add(self) -> None:
        """Count one more."""
        self.calls += 1

    def total(self) -> int:
        """Return the calls so far."""
        return self.calls


def start_tally() -> Any:
    """Return an actor that counts. It ends when nothing refers to it."""
    return ray.remote(num_cpus=0)(Tally).remote()


def tallied(function: Callable[..., Any], tally: Any) -> Callable[..., Any]:
    """Return a function of the same name that counts each of its calls."""

    def call(batch: Any, **arguments: Any) -> Any:
        ray.get(tally.add.remote())
        return function(batch, **arguments)

    call.__name__ = function.__name__
    return call


# --8<-- [end:tally]


# --8<-- [start:dashboard_url]
def dashboard_url() -> str:
    """Return the Dashboard's address as Ray's own nodes reach it; it has none on a cluster without a dashboard."""
    address = ray.init(ignore_reinit_error=True).dashboard_url
    return f"http://{address}" if address else "none"


# --8<-- [end:dashboard_url]


def run(options: Any) -> list[dict[str, Any]]:
    """Return the operators of the naive and of the optimized pipeline, after a run of each."""
    from snippets.fundamentals.actor_pool import classify
    from snippets.fundamentals.dataset import read_images
    from snippets.fundamentals.naive import classify_naively

    naive = classify_naively(read_images(options.images, options.limit), options.model).materialize()
    pool = classify(options.images, options.model, options.limit).materialize()
    rows = [("naive", row) for row in operator_stats(naive)] + [("optimized", row) for row in operator_stats(pool)]
    return [{"pipeline": pipeline, **row} for pipeline, row in rows]


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.watching")
