"""The tuners measure what the pool would run, find what is known to be best, and return what `classify` takes."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray

from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, classify, plan_pool
from snippets.optimization import tuners
from snippets.optimization.trial import DIED, FLAT, Choice, Outcome, Repeat, Tuning
from snippets.optimization.tuners import (
    Effort,
    Passes,
    checkpoint_hash,
    curve,
    describe_devices,
    peak_memory_bytes,
    tune_batch_size,
    tune_pool,
)

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

ONCE = Effort(confirm=False)


def best_at_16(
    model: str, batch_size: int, dtype: str, threads: int, use_gpu: bool, repeat_s: float
) -> Callable[[], Repeat]:
    """Stand in for a model: a batch costs a second, each row some more, and above 16 far more."""
    seconds = 1 + batch_size / 16 + max(0, batch_size - 16) / 4
    return lambda: (batch_size, seconds, 1000 * batch_size)


class Processes:
    """Stands in for processes: keeps what was asked of them, and says what a pool of a size reaches."""

    def __init__(self, rates: dict[int, float]) -> None:
        self.rates = rates
        self.asked: list[dict[str, Any]] = []

    def __call__(self, candidate: int, build: Any, left_s: float, repeats: int, **options: Any) -> Outcome:
        _, batch_size, dtype, threads, use_gpu, _ = build.args
        made = {"batch_size": batch_size, "dtype": dtype, "threads": threads, "use_gpu": use_gpu}
        self.asked.append({"of": build.func, **made, "repeats": repeats, **options})
        return Outcome(candidate, (self.rates[candidate],) * repeats, candidate)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """No process is started."""
    stand_in = Processes({1: 10.0, 2: 20.0, 4: 30.0, 8: 30.0, 16: 30.0})
    monkeypatch.setattr(tuners, "measure_in_processes", stand_in)
    return stand_in


def nodes(*resources: dict[str, float]) -> Callable[[], list[dict[str, Any]]]:
    """Stand in for `ray.nodes`."""
    return lambda: [{"Alive": True, "NodeID": str(n), "Resources": each} for n, each in enumerate(resources)]


# Batch size


def test_the_known_optimum_is_found_by_processes_and_kept(
    connected: RayCluster, sample_set: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(model: Path = sample_set.model, dtype: str = "auto", effort: Effort = ONCE) -> Tuning:
        return tune_batch_size(str(model), (4, 16, 64), dtype, effort=effort, cache=tmp_path, workload=best_at_16)

    tuned = tune()
    assert tuned.arguments == {"batch_size": 16}
    assert tuned.choice.sure
    assert [row["candidate"] for row in curve(tuned)] == [4, 16, 64]
    assert (curve(tuned)[1]["rate"], curve(tuned)[1]["peak_bytes"]) == (8, 16_000)

    def measure(*_: Any, **__: Any) -> Outcome:
        raise AssertionError("a trial")

    monkeypatch.setattr(tuners, "measure_in_processes", measure)
    assert tune() == tuned
    copy = tmp_path / "copy"
    shutil.copytree(sample_set.model, copy)
    assert tune(copy) == tuned  # the same checkpoint elsewhere
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    devices = describe_devices()
    for other in ({"model": copy}, {"dtype": "float32"}, {"effort": Effort(confirm=False, repeats=6)}):
        with pytest.raises(AssertionError, match="a trial"):
            tune(**other)
    for changed in ({"torch": "0"}, {"processor": "another"}, {"gpus": 8}):
        monkeypatch.setattr(tuners, "describe_devices", lambda changed=changed: [{**devices[0], **changed}])
        with pytest.raises(AssertionError, match="a trial"):
            tune()


def test_a_batch_size_is_measured_as_an_actor_of_the_pool_would_run_it(
    connected: RayCluster, processes: Processes
) -> None:
    tuned = tune_batch_size("model", (8, 4, 4), "bfloat16", effort=ONCE, cache=None)
    assert tuned.arguments == {"batch_size": 4}
    assert [asked["batch_size"] for asked in processes.asked] == [4, 8]
    for asked in processes.asked:
        assert {**asked, "batch_size": 0} == {
            "of": Passes,
            "batch_size": 0,
            "dtype": "bfloat16",
            "threads": 2,  # of five CPUs for two actors, and no more than a node has
            "use_gpu": True,
            "repeats": 5,
            "processes": 1,
            "num_cpus": 0,
            "num_gpus": 1,
            "runtime_env": {"env_vars": KEEP_FREED_MEMORY},
        }


# Pool


def test_without_gpus_actors_are_tried_up_to_what_fits_and_share_the_cores(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 6}))
    processes.rates |= {6: 50.0}
    tuned = tune_pool("model", 16, effort=ONCE, cache=None)
    assert [(asked["processes"], asked["threads"]) for asked in processes.asked] == [
        (1, 6),
        (2, 3),
        (4, 1),
        (6, 1),
    ]
    assert {(asked["batch_size"], asked["num_cpus"], asked["num_gpus"]) for asked in processes.asked} == {
        (16, 0.5, 0)
    }
    assert tuned.arguments == {"actors": 6, "num_gpus": 0}


def test_with_gpus_several_actors_may_share_one(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}))
    tuned = tune_pool("model", 64, effort=ONCE, cache=None)
    assert [(asked["processes"], asked["num_gpus"]) for asked in processes.asked] == [(4, 1), (8, 0.5), (16, 0.25)]
    assert {asked["use_gpu"] for asked in processes.asked} == {True}
    assert tuned.arguments == {"actors": 4, "num_gpus": 1}  # two or four on one gain nothing
    assert tuned.stopped == FLAT


def test_a_pool_that_does_not_fit_is_refused_before_any_is_measured(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", nodes({"CPU": 2}))
    with pytest.raises(ValueError, match=r"A pool of 3 actors .* at most 2 fit"):
        tune_pool("model", 16, actors=(1, 2, 3), effort=ONCE, cache=None)
    assert processes.asked == []


def test_what_the_tuners_return_is_what_classify_takes(connected: RayCluster, processes: Processes) -> None:
    by_batch = tune_batch_size("model", (4, 8), effort=ONCE, cache=None)
    by_pool = tune_pool("model", **by_batch.arguments, actors=(1, 2), effort=ONCE, cache=None)
    found = {**by_batch.arguments, **by_pool.arguments}
    assert found == {"batch_size": 4, "actors": 2, "num_gpus": 1}
    inspect.signature(classify).bind("images", "model", **found)  # raises where it takes one of them not
    assert plan_pool(found["actors"], found["num_gpus"]).actors == 2  # which is what it does with them


# What is measured


def test_a_repeat_is_batches_for_as_long_as_asked_and_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    built: list[tuple[Any, ...]] = []

    class Stub:
        device = SimpleNamespace(type="cpu")

        def __init__(self, *arguments: Any) -> None:
            built.append(arguments)

        def __call__(self, batch: dict[str, Any]) -> None:
            assert {name: len(column) for name, column in batch.items()} == {"id": 4, "image": 4, "error": 4}
            assert (batch["error"] == "").all()  # an image with an error would not be classified
            clock.now += 0.2

    to = SimpleNamespace(crop=8)
    monkeypatch.setattr(tuners, "time", clock)
    monkeypatch.setattr(tuners, "Classifier", Stub)
    monkeypatch.setattr(tuners, "load_preprocessing", lambda model: to)
    rows, seconds, peak = Passes("model", 4, "float32", 3, False, repeat_s=0.5)()
    assert rows == 12
    assert seconds == pytest.approx(0.6)
    assert peak == peak_memory_bytes() > 10**6
    assert Passes("model", 4, "float32", 3, False, repeat_s=0)()[0] == 4
    assert built == [("model", to, 4, "float32", 3, False)] * 2


def test_two_batch_sizes_of_the_sample_model_are_measured(
    connected: RayCluster, sample_set: Samples, tmp_path: Path
) -> None:
    least = Effort(repeats=1, repeat_s=0, confirm=False)
    tuned = tune_batch_size(str(sample_set.model), (1, 4), effort=least, cache=tmp_path)
    weights = (sample_set.model / "model.safetensors").stat().st_size
    assert [each.candidate for each in tuned.outcomes] == [1, 4]
    for outcome in tuned.outcomes:
        assert not outcome.failure
        assert outcome.peak_bytes > weights
        assert len(outcome.rates) == 1
    assert tuned.arguments["batch_size"] in (1, 4)
    assert not tuned.choice.sure  # one repeat says nothing of the spread


# By what it is kept


def test_the_hash_is_of_weights_and_configuration_wherever_they_lie(tmp_path: Path) -> None:
    hashes = []
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_text(text)
        (folder / "README.md").write_text(name)
        hashes.append(checkpoint_hash(str(folder)))
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "a" / "config.json").write_text("{}")
    assert checkpoint_hash(str(tmp_path / "a")) != hashes[0]


def test_a_checkpoint_on_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(name: str, file: str, revision: str | None) -> str:
        assert (name, revision) == ("owner/name", "main")
        return f"/cache/models--owner--name/snapshots/abc123/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert checkpoint_hash("owner/name@main") == "abc123"


def test_each_node_is_described_the_same_each_time(connected: RayCluster) -> None:
    devices = describe_devices()
    assert sorted((row["cpus"], row["gpus"]) for row in devices) == [(1, 0), (2, 1), (2, 1)]
    assert all(row["processor"] and row["ray"] == ray.__version__ for row in devices)
    assert describe_devices() == devices


# The command


def test_the_command_tunes_the_pool_with_the_batch_size_it_found(
    connected: RayCluster,
    processes: Processes,
    sample_set: Samples,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--model", str(sample_set.model), "--batch-sizes", "4", "2", "--actors", "1", "2", "--repeats", "5"]
    figures = tmp_path / "new"
    assert tuners.main([*given, "--cache", str(tmp_path / "cache"), "--json", "--figures", str(figures)]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["arguments"] == {"batch_size": 4, "actors": 2, "num_gpus": 1}
    assert [asked["batch_size"] for asked in processes.asked] == [2, 4, 4, 2, 4, 4, 4, 4]  # each twice
    assert report["batch size"]["curve"][0] == {
        "candidate": 2,
        "rate": 20,
        "lowest": 20,
        "highest": 20,
        "peak_bytes": 2,
        "failure": "",
    }
    assert (report["actors"]["best"], report["actors"]["sure"]) == (2, True)
    assert {path.name for path in figures.iterdir()} == {"batch-size.svg", "actors.svg"}
    assert "Images per second by actors" in (figures / "actors.svg").read_text()

    tried = len(processes.asked)
    assert tuners.main([*given, "--cache", str(tmp_path / "cache")]) == 0
    assert len(processes.asked) == tried
    out, _ = capsys.readouterr()
    loss = "with each median in its 98% interval, it loses at most 0%"
    assert f"4 is the choice, sure: {loss}. Ended: all candidates tried.\n" in out
    assert tuners.main([*given, "--cache", str(tmp_path / "cache"), "--again"]) == 0
    assert len(processes.asked) == 2 * tried


def test_bad_input_ends_in_a_sentence(connected: RayCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuners.main(["--model", "/no/such/folder", "--json"]) == 2
    assert capsys.readouterr().err == "There is no checkpoint folder /no/such/folder.\n"
    with pytest.raises(SystemExit) as ended:
        tuners.main(["--budget", "soon"])
    assert ended.value.code == 2


def test_a_failure_stands_in_the_curve_with_its_reason() -> None:
    tuning = Tuning(
        Choice(1, 2.0, 0.12, 0.75, False), {}, (Outcome(1, (2.0,), 9 * 10**6), Outcome(2, failure=DIED)), "x"
    )
    lines = tuners.format_tuning("batch size", tuning).splitlines()
    assert lines[0].split() == ["batch", "size", "images/s", "lowest", "highest", "MB"]
    assert lines[1].split() == ["1", "2.0", "2.0", "2.0", "9"]
    assert lines[2].split(maxsplit=1) == ["2", DIED]
    loss = "with each median in its 75% interval, it loses at most 12%"
    assert lines[3] == f"1 is the choice, not sure: {loss}. Ended: x."
    assert curve(tuning)[1] == {
        "candidate": 2,
        "rate": None,
        "lowest": None,
        "highest": None,
        "peak_bytes": None,
        "failure": DIED,
    }
