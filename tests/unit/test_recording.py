"""What is recorded is counted once, and rates are those that can be worked out by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from snippets import recording
from snippets.recording import (
    PER_BATCH,
    WATCHED,
    Event,
    MemorySampler,
    Recorder,
    Recording,
    most_at_once,
    start_up_seconds,
    steady_rate,
)

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.conftest import RecordedRun

ALLOCATED_BYTES = 200_000_000


def batches(**workers: list[tuple[float, float]]) -> list[Event]:
    """Batches of 4 rows each, by worker."""
    spans = [(worker, span) for worker, spans in workers.items() for span in spans]
    return [Event("batch", worker, start, end, 4, "cpu") for worker, (start, end) in spans]


TWO_WORKERS = batches(a=[(0, 10), (10, 12), (12, 14), (14, 16)], b=[(1, 11), (11, 13), (13, 15), (15, 17)])


def test_steady_state_lasts_from_the_last_first_batch_to_the_first_last_one() -> None:
    # From 11, when b has ended its first batch, to 16, when a has none left: half of a's second batch, its third
    # and fourth, b's second and third, and half of b's fourth: 20 rows in 5 seconds.
    assert steady_rate(TWO_WORKERS) == 4


def test_a_long_first_batch_does_not_change_the_rate() -> None:
    # As above, but 100 seconds of loading come first.
    slow = batches(a=[(-100, 10), (10, 12), (12, 14), (14, 16)], b=[(-99, 11), (11, 13), (13, 15), (15, 17)])
    assert steady_rate(slow) == 4


def test_one_worker_is_steady_after_its_first_batch() -> None:
    assert steady_rate(batches(a=[(0, 5), (5, 6), (6, 7), (8, 9)])) == 12 / 4


def test_workers_that_take_turns_count_as_one() -> None:
    # A task pool may start a new worker for each batch; no two are ever at work at once.
    assert most_at_once(batches(a=[(0, 1)], b=[(1, 2)], c=[(2, 3)])) == 1
    assert steady_rate(batches(a=[(0, 1)], b=[(1, 2)], c=[(2, 3)])) == 8 / 2


@pytest.mark.parametrize(
    "events",
    [
        [],
        batches(a=[(0, 1)]),
        batches(a=[(0, 1)], b=[(0, 1)]),
        batches(a=[(0, 10), (10, 12)], b=[(0, 11), (11, 13)]),  # between 11 and 12 less than a batch a worker
    ],
)
def test_too_little_of_a_steady_state_is_no_rate(events: list[Event]) -> None:
    assert steady_rate(events) is None


def test_most_at_once_counts_overlaps_and_not_what_only_touches() -> None:
    assert most_at_once(TWO_WORKERS) == 2
    assert most_at_once(batches(a=[(0, 9)], b=[(1, 3)], c=[(2, 4)], d=[(5, 6)])) == 3
    assert most_at_once(batches(a=[(0, 1), (1, 2)])) == 1
    assert most_at_once([]) == 0


def test_start_up_ends_when_as_many_are_at_work_as_ever_are() -> None:
    assert start_up_seconds(TWO_WORKERS, started=-3) == 4
    assert start_up_seconds(batches(a=[(2, 3), (4, 5)]), started=0) == 2
    assert start_up_seconds([], started=0) is None


def test_events_of_a_kind_come_by_their_begin() -> None:
    load = Event("load", "a", 0, 1, 0, "cpu")
    kept = Recording([TWO_WORKERS[2], load, TWO_WORKERS[0]])
    assert kept.of("batch") == [TWO_WORKERS[0], TWO_WORKERS[2]]
    assert kept.of("load") == [load]
    assert kept.of("decode") == []


def test_memory_of_a_child_is_seen_and_of_the_parent_alone_is_not() -> None:
    code = f"held = b'x' * {ALLOCATED_BYTES}; print('held', flush=True); input()"
    samplers = [MemorySampler([psutil.Process()], with_children=with_children) for with_children in (True, False)]
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with_child, alone = (sampler.stop() for sampler in samplers)
        child.communicate(b"\n")
    assert with_child - alone > 0.9 * ALLOCATED_BYTES
    assert samplers[0].stop() == with_child
    assert not samplers[0].thread.is_alive()


def test_sampling_takes_a_bounded_share_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[float] = []

    def read_slowly(process: psutil.Process) -> int:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass
        spent.append(time.thread_time() - began)
        return 0

    monkeypatch.setattr(recording, "_memory_bytes", read_slowly)
    monkeypatch.setattr(recording, "SAMPLE_S", 0.001)
    began = time.monotonic()
    sampler = MemorySampler([psutil.Process()], with_children=False)
    while len(spent) < 2:
        time.sleep(0.01)
    assert time.monotonic() - began > spent[0] / recording.SAMPLING_SHARE
    sampler.stop()


def test_a_process_that_has_ended_counts_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
    assert recording._memory_bytes(process) == 0


def test_peak_memory_of_a_run_holds_at_least_one_model_an_actor(
    pool_run: RecordedRun, sample_set: Samples
) -> None:
    weights = (sample_set.model / "model.safetensors").stat().st_size
    assert 2 * weights < pool_run[0].peak_memory_bytes < psutil.virtual_memory().total


def test_a_recorder_keeps_what_it_is_told() -> None:
    recorder = Recorder()
    recorder.record(TWO_WORKERS[0])
    events, peak = recorder.finish()
    assert events == [TWO_WORKERS[0]]
    assert peak > 0


RUN_WATCHED = """
import json, os, sys
import numpy as np
from snippets import recording
events = []
recording._record = events.append
recording._worker = lambda: "w"
recording.watch()
from transformers import AutoModelForImageClassification
from transformers import pipeline
for _ in range(2):
    AutoModelForImageClassification.from_pretrained(os.environ["MODEL"])
counts = [len(events)]
classifier = pipeline("image-classification", model=os.environ["MODEL"])
classifier(np.zeros((9, 9, 3), np.uint8))
from snippets.fundamentals.naive import classify_batch
batch = {"image": np.zeros((3, 9, 9, 3), np.uint8), "path": np.array(["a", "b", "c"])}
classify_batch(batch, os.environ["MODEL"], None)
print(json.dumps({"first": counts[0], "events": [(event.kind, event.rows, event.device) for event in events]}))
"""


def test_each_load_counts_once_though_the_auto_class_calls_the_concrete_one(sample_set: Samples) -> None:
    environment = {**os.environ, "MODEL": str(sample_set.model)}
    command = [sys.executable, "-c", RUN_WATCHED]
    seen = json.loads(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[
            -1
        ]
    )
    assert seen["first"] == 2
    kinds = [kind for kind, _, _ in seen["events"]]
    assert kinds == [
        *["load"] * 3,
        "pipeline",
        *["preprocess", "forward"],
        "load",
        "pipeline",
        *["preprocess", "forward"] * 3,
        "batch",
    ]
    assert [rows for kind, rows, _ in seen["events"] if kind == "batch"] == [3]
    assert all(rows == 0 for kind, rows, _ in seen["events"] if kind not in PER_BATCH)


def test_everything_watched_exists() -> None:
    import importlib
    from operator import attrgetter

    for module, functions in WATCHED.items():
        for name, kind in functions.items():
            assert callable(attrgetter(name)(importlib.import_module(module))), (module, name, kind)


def test_the_device_is_the_card_only_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert recording._device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    assert recording._device() == "a card"
    monkeypatch.delitem(sys.modules, "torch")
    assert recording._device() == "cpu"


def test_the_hook_wraps_each_function_once_it_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "watched_module.py").write_text("def work(batch): return len(batch['id'])\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(recording, "WATCHED", {"watched_module": {"work": "batch"}})
    events: list[Event] = []
    monkeypatch.setattr(recording, "_record", events.append)
    monkeypatch.setattr(recording, "_worker", lambda: "w")
    recording.watch()
    assert "watched_module" not in sys.modules
    import watched_module  # type: ignore[import-not-found]

    assert watched_module.work({"id": ["a", "b"]}) == 2
    assert [(event.kind, event.worker, event.rows) for event in events] == [("batch", "w", 2)]
    assert events[0].start <= events[0].end
    del sys.modules["watched_module"]
