"""What Ray says about a run is what happened in it, and what it leaves out is left out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.util import state

from snippets.fundamentals.watching import (
    count_actors,
    count_tasks,
    dashboard_url,
    operator_stats,
    start_tally,
    tallied,
    this_job,
    watch,
)

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

LOAD_S = 1.0
REPORTED_S = 30  # Ray reports tasks about a second late


def same(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def load_and_return(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(LOAD_S)
    return batch


class LoadOnce:
    def __init__(self) -> None:
        time.sleep(LOAD_S)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


class Slow:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.5)
        return batch


def pool_of_two(udf: type) -> ray.data.Dataset:
    rows = ray.data.range(16, override_num_blocks=8)
    return rows.map_batches(udf, batch_size=2, num_cpus=0.5, compute=ray.data.ActorPoolStrategy(size=2))


def wait_for(reported: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + REPORTED_S
    while not (there := reported()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return there


def test_there_are_no_stats_before_a_run(connected: RayCluster) -> None:
    dataset = ray.data.range(8).map_batches(same)
    assert dataset.stats() == ""
    assert operator_stats(dataset) == []


def test_the_numbers_are_those_of_the_text(connected: RayCluster) -> None:
    executed = ray.data.range(10, override_num_blocks=5).map_batches(same, batch_size=4).materialize()
    rows = operator_stats(executed)
    assert [row["operator"] for row in rows] == ["ReadRange", "MapBatches(same)"]
    text = executed.stats()
    heads = re.findall(r"^Operator \d+ (.+): (\d+) tasks executed, (\d+) blocks produced", text, re.M)
    assert [(row["operator"], str(row["tasks"]), str(row["blocks"])) for row in rows] == heads
    totals = re.findall(r"^\* Output num rows per block: .* (\d+) total", text, re.M)
    assert [str(row["rows"]) for row in rows] == totals == ["10", "10"]
    for line in ("Remote cpu time", "Block transform time", "Ray Data throughput"):
        assert text.count(line) >= 2
    assert all(row["wall_s"] > 0 and row["cpu_s"] > 0 for row in rows)
    assert "load" not in text.lower()


def test_a_tasks_wall_time_holds_its_loads_and_a_pools_leaves_them_out(connected: RayCluster) -> None:
    naive = ray.data.range(4, override_num_blocks=2).map_batches(load_and_return, batch_size=1).materialize()
    pool = pool_of_two(LoadOnce).materialize()
    assert operator_stats(naive)[-1]["wall_s"] >= 4 * LOAD_S
    assert operator_stats(pool)[-1]["wall_s"] < LOAD_S


def test_the_pools_actors_are_alive_while_it_runs_and_dead_after_it(connected: RayCluster) -> None:
    worker = "MapWorker(MapBatches(Slow))"
    executed, looks = watch(pool_of_two(Slow), count_actors)
    assert executed.count() == 16
    assert max(look[worker, "ALIVE"] for look in looks) == 2
    assert wait_for(lambda: count_actors()[worker, "DEAD"] == 2)
    assert count_actors()[worker, "ALIVE"] == 0
    _, looks = watch(ray.data.range(4).map_batches(load_and_return, batch_size=4), count_actors)
    assert looks
    assert not [name for look in looks for name, _ in look if "load_and_return" in name]


def test_what_fails_while_it_is_watched_raises(connected: RayCluster) -> None:
    def fail(batch: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no image")

    with pytest.raises(ray.exceptions.RayError, match="no image"):
        watch(ray.data.range(1).map_batches(fail), count_actors)


def test_calls_are_counted_where_tasks_hide_them(connected: RayCluster) -> None:
    def load(batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    class LoadedOnce(LoadOnce):
        pass

    tally = start_tally()
    ray.data.range(16, override_num_blocks=2).map_batches(tallied(load, tally), batch_size=2).materialize()
    pool_of_two(LoadedOnce).materialize()
    assert ray.get(tally.total.remote()) == 8
    assert wait_for(lambda: count_tasks()["MapBatches(load)"] == 2)
    assert wait_for(lambda: count_tasks()["MapWorker(MapBatches(LoadedOnce)).__init__"] == 2)


def test_by_default_the_state_api_lists_a_hundred_and_is_silent_about_the_rest(connected: RayCluster) -> None:
    def numbered() -> None:
        pass

    task = ray.remote(num_cpus=0.1)(numbered)
    ray.get([task.remote() for _ in range(120)])
    assert wait_for(lambda: count_tasks()["numbered"] == 120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed = state.list_tasks(address=this_job()["address"])
    assert len(listed) == 100


OTHER_JOB = """
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=0.1)
def elsewhere():
    pass
ray.get(elsewhere.remote())
"""


def test_what_other_jobs_do_is_left_out(connected: RayCluster) -> None:
    subprocess.run([sys.executable, "-c", OTHER_JOB], check=True, capture_output=True, timeout=120)

    def tasks_of_all() -> set[str]:
        return {task.name for task in state.list_tasks(address=this_job()["address"], limit=10_000)}

    assert wait_for(lambda: "elsewhere" in tasks_of_all())
    assert "elsewhere" not in count_tasks()


def get_json(path: str) -> Any:
    with urllib.request.urlopen(dashboard_url() + path, timeout=30) as answer:
        return json.load(answer)


def test_without_prometheus_the_dashboard_knows_blocks_and_no_rows(connected: RayCluster) -> None:
    dataset = ray.data.range(12, override_num_blocks=3).map_batches(same, batch_size=4)
    dataset.set_name("named")
    dataset.materialize()
    job = ray.get_runtime_context().get_job_id()
    found = [each for each in get_json(f"/api/data/datasets/{job}")["datasets"] if "named_" in each["dataset"]]
    assert [(each["state"], each["progress"], each["total"]) for each in found] == [("FINISHED", 3, 3)]
    assert [operator["name"] for operator in found[0]["operators"]][1:] == ["ReadRange", "MapBatches(same)"]
    assert all("queued_blocks" in operator for operator in found[0]["operators"])
    for operator in found[0]["operators"]:
        assert operator["ray_data_output_rows"]["max"] == operator["ray_data_memory_usage_bytes"]["max"] == 0
    for service in ("prometheus", "grafana"):
        with pytest.raises(urllib.error.HTTPError, match="500"):
            get_json(f"/api/{service}_health")


def test_the_dashboard_listens_on_loopback(connected: RayCluster) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", dashboard_url())
    nodes = get_json("/nodes?view=summary")["data"]["summary"]
    assert [node["raylet"]["state"] for node in nodes] == ["ALIVE"] * 3


# A Ray of its own, which ends with its process.
ALONE = """
import json, pathlib, sys, urllib.error, urllib.request
import ray
from ray.util import state
from snippets.fundamentals.watching import count_actors, dashboard_url

def status(headers):
    request = urllib.request.Request(dashboard_url() + "/api/v0/nodes", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code

ray.init("local", num_cpus=1, include_dashboard=sys.argv[1] == "on", dashboard_port=0, log_to_driver=False,
         _node_ip_address="127.0.0.1")
if sys.argv[1] == "on":
    token = (pathlib.Path.home() / ".ray" / "auth_token").read_text().strip()
    said = [status({}), status({"Authorization": f"Bearer {token}"}), str(dict(count_actors()))]
else:
    try:
        said = [dashboard_url(), str(count_actors())]
    except Exception as error:
        said = [dashboard_url(), str(error)]
print(json.dumps(said))
"""


def alone(home: Path, dashboard: str, **variables: str) -> Any:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **variables}
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, dashboard], env={**outer, **own}, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two say that start at the same time, one with a dashboard and one without."""
    with ThreadPoolExecutor() as threads:
        running = {
            "on": threads.submit(alone, tmp_path_factory.mktemp("on"), "on"),
            "off": threads.submit(alone, tmp_path_factory.mktemp("off"), "off", RAY_AUTH_MODE="disabled"),
        }
    return {dashboard: one.result() for dashboard, one in running.items()}


def test_without_a_dashboard_the_state_api_says_what_is_missing(said: dict[str, Any]) -> None:
    url, why = said["off"]
    assert url == "none"
    assert "pip install ray[default]" in why


def test_a_dashboard_asks_for_the_token_that_ray_wrote(said: dict[str, Any]) -> None:
    assert said["on"] == [401, 200, "{}"]
