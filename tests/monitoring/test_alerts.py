"""A real Prometheus scrapes a real cluster while sick runs and a healthy one go on: each gets its own alert.

What a function costs is stated: it sleeps. Workers report every three seconds here, and the rules are hastened.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import ray.data
import yaml  # type: ignore[import-untyped]
from ray.util import metrics

from snippets.optimization.monitoring import (
    await_rows,
    dump_stacks,
    list_workers,
    log_records,
    monitored,
    on_node,
    run,
    scrape,
    send_signal,
    spy,
    totals,
)
from tests.page_rendering import ROOT
from tests.prometheus_server import DEPLOY, PrometheusServer, hasten, program
from tests.ray_cluster import OBJECT_STORE_BYTES, RayCluster

if TYPE_CHECKING:
    from snippets.samples import Samples

BATCHES = 60
ROWS = 4 * BATCHES
DEADLINE_S = 120
HEALTHY, COST_S = "healthy", 0.6

Batch = dict[str, Any]


def prepare(batch: Batch) -> Batch:
    return batch


def prepare_slowly(batch: Batch) -> Batch:
    time.sleep(0.4)
    return batch


def load_and_classify(batch: Batch) -> Batch:
    import torch

    torch.nn.Linear(2, 2)
    time.sleep(0.25)
    return batch


def refuse_some(batch: Batch) -> Batch:
    time.sleep(0.25)
    errors = ["ValueError: no image" if id % 8 == 3 else "" for id in batch["id"]]
    return {**batch, "error": np.array(errors, object)}


class Forward:
    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s

    def __call__(self, batch: Batch) -> Batch:
        time.sleep(self.cost_s)
        return batch


class Stuck:
    """Hangs in its first batch, in whichever process that is tried first."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate

    def __call__(self, batch: Batch) -> Batch:
        if ray.get(self.gate.is_first.remote()):
            self.wait_for_ever()
        return batch

    def wait_for_ever(self) -> None:
        while True:
            time.sleep(60)


class Gate:
    def __init__(self) -> None:
        self.asked = 0

    def is_first(self) -> bool:
        self.asked += 1
        return self.asked == 1


def tasks(name: str, function: Callable[[Batch], Batch]) -> ray.data.Dataset:
    """A run of one task at a time, of all its batches."""
    rows = ray.data.range(ROWS, override_num_blocks=ROWS // 12)  # a block's rows count when all of it is out
    return rows.map_batches(
        monitored(function, name), batch_size=4, num_cpus=0.2, compute=ray.data.TaskPoolStrategy(size=1)
    )


def feed(function: Callable[[Batch], Batch], rows: int) -> ray.data.Dataset:
    """One task at a time, before a pool."""
    one = ray.data.TaskPoolStrategy(size=1)
    rows_of_task = ray.data.range(rows, override_num_blocks=rows // 12)
    return rows_of_task.map_batches(function, batch_size=4, num_cpus=0.2, compute=one)


def pool(name: str, fed: ray.data.Dataset, actor: type, argument: Any) -> ray.data.Dataset:
    """A run of one actor."""
    return fed.map_batches(
        monitored(actor, name),
        fn_constructor_args=(argument,),
        batch_size=4,
        num_cpus=0.25,  # not 0.2, or Ray would run the function in the actor
        compute=ray.data.ActorPoolStrategy(size=1),
    )


@dataclass
class Watched:
    """What was seen of the runs."""

    alerts: set[tuple[str, str]] = field(default_factory=set)
    queries: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    targets: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    stacks: str = ""
    spied: str = ""
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: list[Any] = field(default_factory=list)


RECORDS = [rule["record"] for rule in yaml.safe_load((DEPLOY / "queries.yml").read_text())["groups"][0]["rules"]]
EXPECTED = {
    ("RunStalled", "stalled"),
    ("RowsFail", "failing"),
    ("ActorsStarved", "starved"),
    ("ModelLoadedPerBatch", "naive"),
    ("Spilling", ""),
}


@contextmanager
def kept_loggers() -> Iterator[None]:
    """Put loggers back as they were: Ray's JSON replaces what the tests of this process share."""
    loggers = [logging.getLogger(name) for name in ("", "ray")]
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of three nodes of its own, whose workers report every three seconds and log JSON."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as environment, kept_loggers():
        # Not less: what a driver reports every five seconds is forgotten after two intervals.
        environment.setenv("RAY_metrics_report_interval_ms", "3000")
        with RayCluster(gpus_per_worker=0, dashboard=True) as cluster:
            for name, value in cluster.client_environment.items():
                environment.setenv(name, value)
            ray.init(log_to_driver=False, logging_config=ray.LoggingConfig(encoding="JSON"))
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield cluster
            ray.shutdown()


def discovery(cluster: RayCluster) -> Path:
    """Return the file in which Ray lists its nodes for Prometheus, once it is there."""
    folder = Path(cluster.client_environment["RAY_TMPDIR"])
    deadline = time.monotonic() + DEADLINE_S
    while not (found := list(folder.glob("ray/session_latest/prom_metrics_service_discovery.json"))):
        assert time.monotonic() < deadline, "no list of nodes"
        time.sleep(0.2)
    return found[0]


def named(name: str, dataset: ray.data.Dataset) -> ray.data.Dataset:
    dataset.set_name(name)
    return dataset


@pytest.fixture(scope="module")
def watched(cluster: RayCluster) -> Watched:
    """All runs at once; the one that hangs is looked at, and ended, when all alerts have fired."""
    seen = Watched()
    held = [ray.put(np.ones(OBJECT_STORE_BYTES // 4, np.uint8)) for _ in range(6)]
    with PrometheusServer(discovery(cluster)) as prometheus, ThreadPoolExecutor(5) as threads:
        gate = ray.remote(num_cpus=0)(Gate).remote()
        plans = {
            # Its blocks are there before it begins: on a busy machine a task that makes them may well starve it.
            HEALTHY: pool(HEALTHY, feed(prepare, ROWS).materialize(), Forward, COST_S),
            "starved": pool("starved", feed(prepare_slowly, ROWS), Forward, 0.001),
            "failing": tasks("failing", refuse_some),
            "naive": tasks("naive", load_and_classify),
            "stalled": pool("stalled", feed(prepare, 24), Stuck, gate),
        }
        runs: dict[str, Future[Any]] = {
            name: threads.submit(named(name, plan).materialize) for name, plan in plans.items()
        }
        try:
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                # Ray adds to a dataset's name.
                seen.alerts |= {(alert, run.partition("_")[0]) for alert, run in prometheus.alerts()}
                for record in RECORDS:
                    seen.queries[record] = prometheus.query(record) or seen.queries.get(record, [])
                if seen.alerts >= EXPECTED and all(run.done() for name, run in runs.items() if name != "stalled"):
                    break
                time.sleep(0.5)
            seen.targets = prometheus.ask("targets")["activeTargets"]
            (stuck,) = [worker for worker in list_workers("Stuck") if worker.state == "ALIVE"]
            seen.stacks = dump_stacks(stuck)
            try:
                seen.spied = on_node(stuck, spy, stuck.pid)
            except PermissionError as error:
                seen.spied = str(error)
        finally:
            for worker in list_workers("Stuck"):
                if worker.state == "ALIVE":
                    on_node(worker, send_signal, worker.pid, signal.SIGKILL)
        seen.rows = {name: run.result(timeout=60).count() for name, run in runs.items()}
        for stage in ("Forward", "Stuck"):
            seen.records[stage] = [record for worker in list_workers(stage) for record in log_records(worker)]
    seen.samples = scrape()
    del held
    return seen


def test_each_sick_run_gets_its_alert_and_the_healthy_one_none(watched: Watched) -> None:
    assert watched.alerts >= EXPECTED
    # On a busy machine any run may put out nothing for seconds: that RunStalled is silent then, promtool shows.
    assert {alert for alert in watched.alerts if alert[0] != "RunStalled"} == EXPECTED - {
        ("RunStalled", "stalled")
    }


def test_prometheus_finds_every_node_by_the_file_that_ray_writes(watched: Watched, cluster: RayCluster) -> None:
    scraped = {target["scrapeUrl"] for target in watched.targets if target["health"] == "up"}
    nodes = {f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()}
    assert len(nodes) == cluster.resources["nodes"]
    assert nodes <= scraped


def test_each_query_answers(watched: Watched) -> None:
    values = {
        record: {(labels.get("run"), labels.get("stage"), labels.get("cause")): value for labels, value in series}
        for record, series in watched.queries.items()
    }
    assert values["pipeline:rows:rate"]
    assert set(values["pipeline:errors:ratio"]) == {("failing", "refuse_some", "ValueError")}
    assert set(values["pipeline:waiting:ratio"]) >= {("starved", "Forward", None)}
    assert values["pipeline:loads:per_batch"]["naive", "load_and_classify", None] > 0.5
    assert 0 < values["pipeline:loads:per_batch"][HEALTHY, "Forward", None] < 0.1
    assert values["cluster:spilled:bytes"][None, None, None] > OBJECT_STORE_BYTES / 4


def test_every_metric_and_label_of_the_rules_is_exported(watched: Watched) -> None:
    exported: dict[str, set[str]] = {}
    for sample in watched.samples:
        exported.setdefault(sample.name, set()).update(sample.labels)
    rules = [(DEPLOY / name).read_text() for name in ("queries.yml", "alerts.yml")]
    names = {name for text in rules for name in re.findall(r"\bray_\w+", text)}
    assert len(names) >= 8
    assert sorted(names - set(exported)) == []
    assert {"run", "stage"} <= exported["ray_pipeline_rows_total"]
    assert "cause" in exported["ray_pipeline_errors_total"]
    assert "dataset" in exported["ray_data_dataset_state"] & exported["ray_data_output_rows"]


def test_counters_say_what_was_done_also_of_actors_that_have_ended(watched: Watched) -> None:
    found = await_rows(HEALTHY, "Forward", ROWS, timeout_s=20)
    assert found["Forward", "rows"] == ROWS == watched.rows[HEALTHY]
    assert found["Forward", "batches"] == BATCHES
    assert found["Forward", "model_loads"] == 1
    assert found["Forward", "batch_seconds"] >= COST_S * BATCHES
    assert found["Forward", "bytes", "in"] == found["Forward", "bytes", "out"] == 8 * ROWS
    assert found["Forward", "wait_seconds"] > 0
    failing = totals("failing")
    assert failing["refuse_some", "errors", "ValueError"] == ROWS / 8
    assert failing["refuse_some", "wait_seconds"] == 0  # of a task, it is not known what its worker did before


def test_the_stack_of_an_actor_that_hangs_shows_the_line(watched: Watched) -> None:
    assert re.search(r'File ".*test_alerts\.py", line \d+ in wait_for_ever', watched.stacks)
    assert "wait_for_ever (" in watched.spied or "ermission" in watched.spied


def test_an_actor_that_is_killed_is_made_again_and_no_row_is_lost(watched: Watched) -> None:
    assert watched.rows["stalled"] == 24
    assert totals("stalled")["Stuck", "model_loads"] == 2


def test_log_lines_carry_run_and_stage(watched: Watched) -> None:
    loads = [record for record in watched.records["Forward"] if record["message"] == "loaded"]
    assert {(record["run"], record["stage"]) for record in loads} == {(HEALTHY, "Forward"), ("starved", "Forward")}
    assert all({"job_id", "node_id", "worker_id", "asctime"} <= set(record) for record in loads)


def test_the_command_meters_both_stages(cluster: RayCluster, sample_set: Samples) -> None:
    options = Namespace(images=str(sample_set.images), model=str(sample_set.model), limit=8)
    counters = {(row["stage"], row["counter"]): row["value"] for row in run(options)}
    assert counters["Classifier", "rows"] == counters["decode", "rows"] == 8
    assert counters["Classifier", "model_loads"] == 1
    assert min(counters["decode", "bytes out"], counters["Classifier", "bytes in"]) > 8 * 224 * 224 * 3


class Raising:
    def __init__(self, level: int) -> None:
        for logger in (logging.getLogger(), logging.getLogger("pipeline")):
            logger.setLevel(level)
            for handler in logger.handlers:
                handler.setLevel(level)

    def __call__(self, batch: Batch) -> Batch:
        if 7 in batch["id"]:
            raise ValueError("no image")
        return batch


def raise_in_the_second_batch(run: str, level: int) -> list[dict[str, Any]]:
    """Return what the actor logged."""
    plan = ray.data.range(8, override_num_blocks=1).map_batches(
        monitored(Raising, run),
        fn_constructor_args=(level,),
        batch_size=4,
        num_cpus=0.2,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    with pytest.raises(ray.exceptions.RayError, match="no image"):
        plan.materialize()
    return [record for worker in list_workers("Raising") for record in log_records(worker) if record["run"] == run]


def test_rows_of_a_batch_that_raises_are_counted_and_named(cluster: RayCluster) -> None:
    records = raise_in_the_second_batch("raising", logging.INFO)
    assert await_rows("raising", "Raising", 8, timeout_s=20)["Raising", "errors", "ValueError"] == 4
    assert [(record["message"], record.get("cause"), record.get("rows")) for record in records] == [
        ("loaded", None, None),
        ("rows failed", "ValueError", ["4", "5", "6", "7"]),
    ]


def test_ids_of_all_rows_are_logged_at_level_debug(cluster: RayCluster) -> None:
    records = raise_in_the_second_batch("talking", logging.DEBUG)
    assert [record["rows"] for record in records if record["message"] == "batch"] == [["0", "1", "2", "3"]]


def test_the_sum_of_a_histogram_is_made_of_the_middles_of_its_buckets(cluster: RayCluster) -> None:
    def observe() -> None:
        metrics.Histogram("probe", boundaries=[10.0], tag_keys=()).observe(1.0)

    ray.get(ray.remote(num_cpus=0)(observe).remote())
    deadline = time.monotonic() + 20
    while not (found := [sample.value for sample in scrape() if sample.name == "ray_probe_sum"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert found == [5.0]


def test_promtool_sees_each_alert_fire_for_its_cause_and_no_other() -> None:
    tests = Path(__file__).with_name("alerts_test.yml")
    done = subprocess.run(
        [program("promtool"), "test", "rules", tests.name], cwd=tests.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    alerts = {rule["alert"] for rule in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]}
    cases = yaml.safe_load(Path(__file__).with_name("alerts_test.yml").read_text())["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == alerts
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == alerts
    assert {alert for alert, _ in EXPECTED} == alerts


def test_prometheus_listens_on_loopback_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError), PrometheusServer(tmp_path / "none.json"):
        (process,) = [each for each in psutil.Process().children() if each.name() == "prometheus"]
        listening = {each.laddr.ip for each in process.net_connections("inet") if each.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        raise ZeroDivisionError
    assert not process.is_running()
    assert list(tmp_path.iterdir()) == []


def install(**variables: str) -> tuple[int, str]:
    script = [shutil.which("bash") or "bash", str(ROOT / "scripts" / "install-prometheus")]
    done = subprocess.run(script, env={**os.environ, **variables}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_script_does_nothing_where_prometheus_is() -> None:
    assert install(OS_RELEASE="/nowhere") == (0, "")


def test_the_script_says_where_it_cannot_install(tmp_path: Path) -> None:
    scripts = shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    release = tmp_path / "os-release"
    release.write_text("ID=fedora\n")
    done = subprocess.run(
        [shutil.which("bash") or "bash", str(scripts / "install-prometheus")],
        env={"PATH": str(tmp_path), "OS_RELEASE": str(release)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("This installs Prometheus on Debian and Ubuntu only: ")
    assert done.stderr.count("\n") == 1


def test_hastened_rules_differ_in_times_alone() -> None:
    assert hasten("rate(x[5m])\n  for: 10m\n") == "rate(x[10s])\n  for: 8s\n"
    for name in ("queries.yml", "alerts.yml"):
        text = (DEPLOY / name).read_text()
        assert re.sub(r"\d+[ms]\b", "", hasten(text)) == re.sub(r"\d+[ms]\b", "", text)
        assert not re.search(r"\d+m\b", hasten(text))
