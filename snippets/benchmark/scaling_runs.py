"""A round of runs on a real cluster that grows, in a process of its own: what each took, and the driver's part.

`python -m snippets.benchmark.scaling_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from snippets.architecture.scaling import (
    Call,
    LocalCluster,
    classify_timed,
    collect,
    list_batches,
    start_barrier,
    took_s,
    watch_driver,
)
from snippets.benchmark.processes import answer_request
from snippets.benchmark.scaling import PLAN, Planned
from snippets.fundamentals.setup import configure_data_context


def run_round(names: list[str], scale: float) -> dict[str, Any]:
    """Return what each of the runs of the plan took, in its order. `scale` multiplies batches and waits."""
    with LocalCluster() as cluster:
        cluster.connect()
        configure_data_context(progress_bars=False)
        return {"runs": {name: measure(cluster, PLAN[name], scale) for name in names}}


def measure(cluster: LocalCluster, planned: Planned, scale: float) -> dict[str, Any]:
    """Return a run's batches and their ids once each, its seconds, and CPU seconds of the driver.

    The rows are in the object store before it begins, so that only the pool is measured. `nodes` are the seconds
    of the first begin and the last end on each, and its batches; `changed_s` is when a node joined or was killed.
    """
    cluster.resize(planned.nodes)
    batches, wait_s = max(2 * planned.actors, round(planned.batches * scale)), planned.wait_s * scale
    slow = dict.fromkeys(cluster.node_ids()[: planned.slow], 2 * wait_s)
    present = planned.nodes * planned.actors_a_node  # of whom the others, where a node joins, are not waited for
    dataset = classify_timed(
        list_batches(batches).materialize(),
        planned.actors,
        wait_s,
        gpus=1 / planned.actors_a_node,
        waits_s=slow,
        barrier=start_barrier(present),
    )
    driver, changed = watch_driver(dataset), []

    def change() -> None:
        changed.append(time.time())
        (cluster.add_node if planned.change == "join" else cluster.remove_node)()

    calls = collect(dataset, change if planned.change else None, batches // 4)
    began = min(call.began_s for call in calls)
    by_node: dict[str, list[Call]] = {}
    for call in calls:
        by_node.setdefault(call.node, []).append(call)
    return {
        "batches": batches,
        "ids": len({call.id for call in calls}),
        "rows": len(calls),
        "wait_s": wait_s,
        "seconds": took_s(calls),
        "changed_s": changed[0] - began if changed else None,
        "nodes": [
            {
                "batches": len(own),
                "began_s": min(call.began_s for call in own) - began,
                "ended_s": max(call.ended_s for call in own) - began,
                "is_slow": node in slow,
            }
            for node, own in by_node.items()
        ],
        "ends_s": [round(call.ended_s - began, 4) for call in calls] if planned.change else [],
        "tasks": driver.tasks,
        "steps": driver.steps,
        "executor_s": driver.executor_s,
        "process_s": driver.process_s,
        "samples": dict(driver.samples.most_common()),
    }


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"round": run_round}


if __name__ == "__main__":
    answer_request(KINDS)
