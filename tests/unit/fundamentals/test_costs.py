"""Each cost is measured as its name says, and two values are compared the right way round."""

from __future__ import annotations

import io
import itertools
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from snippets.fundamentals import costs
from snippets.fundamentals.costs import actors_at_work, forward_seconds, load_factor, median_seconds

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


def test_a_load_of_nine_seconds_for_one_of_compute_makes_a_batch_ten_times_longer() -> None:
    assert load_factor(9, 1) == 10
    assert load_factor(0, 5) == 1


def test_the_median_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    durations = iter([1000.0, 5.0, 1.0, 30.0])

    def work() -> None:
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert median_seconds(work, repeats=3) == 5


def test_a_forward_pass_sees_a_whole_batch_on_the_networks_device() -> None:
    import torch

    shapes = []

    class Network:
        device, dtype = torch.device("cpu"), torch.bfloat16

        def __call__(self, pixels: Any) -> Any:
            shapes.append((tuple(pixels.shape), pixels.dtype, torch.is_inference_mode_enabled()))
            return SimpleNamespace(logits=pixels)

    assert forward_seconds(Network(), 3, repeats=2) > 0
    assert shapes == [((3, 3, 224, 224), torch.bfloat16, True)] * 3


@pytest.mark.parametrize(("blocks", "expected"), [(1, 1), (8, 2)])
def test_one_block_keeps_one_actor_of_two_at_work_and_eight_both(
    connected: RayCluster, blocks: int, expected: int
) -> None:
    assert actors_at_work(80, blocks, 10, 2) == expected


def test_the_rate_sums_processes_that_each_have_the_threads(
    connected: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loop:
        def __init__(self, model: str, dtype: str, batch_size: int) -> None:
            self.batch_size = batch_size

        def run(self, threads: int, seconds: float) -> float:
            kept = os.environ.get("MALLOC_ARENA_MAX") == "1"
            return threads * self.batch_size * (10 if kept else 1) if seconds else 0

    monkeypatch.setattr(costs, "ForwardLoop", Loop)
    loops = costs.start_loops("m", 2, "float32", 4)
    assert costs.forward_rate(loops, 3, 1) == 2 * 3 * 4 * 10
    assert costs.forward_rate(loops[:1], 3, 1) == 3 * 4 * 10
    assert costs.forward_rate(costs.start_loops("m", 1, "float32", 4, keep_memory=False), 3, 1) == 3 * 4


def test_a_loop_makes_at_least_two_passes_over_its_batch(sample_set: Samples) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        loop = costs.ForwardLoop(str(sample_set.model), "bfloat16", 2)
        passes: list[Any] = []
        network = loop.network

        def watch(pixels: Any) -> Any:
            passes.append((pixels.shape, torch.get_num_threads()))
            return network(pixels)

        loop.network = watch
        assert loop.run(1, 0) > 0
        assert loop.run(2, 0) > 0
    finally:
        torch.set_num_threads(threads)
    assert passes == [((2, 3, 224, 224), 1)] * 2 + [((2, 3, 224, 224), 2)] * 2
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_decode_seconds_are_of_one_image(sample_set: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(costs, "decode_image", lambda encoded, _: decoded.append(encoded))
    monkeypatch.setattr(costs, "median_seconds", lambda call, repeats: call() or 6.0)
    assert costs.decode_seconds(str(sample_set.images), str(sample_set.model), 3) == 2
    assert len(decoded) == 3


def test_every_cost_has_its_two_values_and_the_factor_between_them(
    connected: RayCluster, sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(costs, "median_seconds", lambda call, repeats: call() and 2.0)
    monkeypatch.setattr(costs, "forward_seconds", lambda network, size, repeats: 0.5 * size**0.5)
    monkeypatch.setattr(costs, "decode_seconds", lambda source, model, images: 0.125 * images)
    monkeypatch.setattr(costs, "actors_at_work", lambda rows, blocks, batch_size, actors: min(blocks, actors))
    rates = itertools.count(10, 10)
    monkeypatch.setattr(costs, "start_loops", lambda *_, **__: [])
    monkeypatch.setattr(costs, "forward_rate", lambda *_, **__: next(rates))
    rows = costs.measure(str(sample_set.images), str(sample_set.model), limit=4)
    assert all(list(row) == ["cost", "unit", "less", "more", "factor"] for row in rows)
    assert {row["cost"]: (row["less"], row["more"], row["factor"]) for row in rows} == {
        "load for each batch of 1": (0.5, 2.5, 5.0),
        "load for each batch of 4": (1.0, 3.0, 3.0),
        "one at a time instead of batches of 4": (0.25, 0.5, 2.0),
        "one block for two actors": (1, 2, 2.0),
        "one actor at work instead of one a core": (20, 30, 1.5),
        "threads instead of actors": (10, 30, 3.0),
        "memory given back to the kernel": (30, 40, 40 / 30),
        "decode against forward": (0.5, 0.25, 0.5),
    }


def test_the_bar_reaches_its_end(
    connected: RayCluster, sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    bars = []

    def bar(**options: Any) -> Any:
        bars.append(tqdm(**{**options, "disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(costs, "tqdm", bar)
    for name, value in (
        ("median_seconds", 1.0),
        ("decode_seconds", 1.0),
        ("actors_at_work", 1),
        ("forward_rate", 1.0),
        ("start_loops", []),
    ):
        monkeypatch.setattr(costs, name, lambda *_, value=value, **__: value)
    for has_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        costs.measure(str(sample_set.images), str(sample_set.model), limit=4, progress=True)
        assert bars[-1].n == bars[-1].total
