"""The bound follows from what shares which hardware, and what is measured is what its row says."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snippets.architecture.sizing import separate_bound, shared_bound
from snippets.command import build_parser
from snippets.fundamentals.dataset import list_images
from snippets.optimization import bounds
from snippets.optimization.bounds import BEFORE, Hand, Network, Stage, bound, gain, limits, measure, stages_of

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

ON_CPU = [Stage("decode", "cpus", 300.0), Stage("forward", "cpus", 100.0)]
ON_GPU = [Stage("decode", "cpus", 300.0), Stage("forward", "gpus", 1000.0), Stage("read", "storage", 400.0)]


def test_on_shared_hardware_times_add_up() -> None:
    assert bound(ON_CPU) == shared_bound(300, 100) == 75


def test_on_separate_hardware_the_slowest_sets_the_pace() -> None:
    assert bound(ON_GPU) == separate_bound(cpus=300, gpus=1000, storage=400).value == 300


def test_what_comes_before_adds_its_time_to_all_else() -> None:
    assert bound([Stage("list", BEFORE, 300.0), *ON_GPU]) == 150
    assert bound([Stage("list", BEFORE, 300.0)]) == 300


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_rate_that_is_no_positive_number_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be"):
        bound([Stage("read", "storage", rate)])


def test_removing_what_bounds_gains_up_to_the_next_limit_and_anything_else_nothing() -> None:
    assert gain(ON_GPU, "decode") == 400 / 300
    assert gain(ON_GPU, "decode", faster=2) == 400 / 300  # storage is next
    assert gain(ON_GPU, "decode", faster=1.1) == pytest.approx(1.1)
    assert gain(ON_GPU, "read") == gain(ON_GPU, "forward", faster=2) == 1
    assert gain([Stage("read", "storage", 5.0)], "read") == math.inf


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.floats(1.01, 100))
def test_on_shared_hardware_the_gain_is_amdahls(decode: float, forward: float, faster: float) -> None:
    stages = [Stage("decode", "cpus", decode), Stage("forward", "cpus", forward)]
    share = (1 / forward) / (1 / decode + 1 / forward)
    assert gain(stages, "forward", faster) == pytest.approx(1 / (1 - share + share / faster))
    assert gain(stages, "forward") == pytest.approx(1 / (1 - share))


def test_the_limits_are_named_one_after_another_with_what_each_removal_buys() -> None:
    found = limits([*ON_GPU, Stage("write", "storage", 1e6)])
    assert [limit.stage for limit in found] == ["decode", "read", "forward", "write"]
    assert [limit.bound for limit in found] == [300, pytest.approx(400, rel=1e-3), 1000, 1e6]
    for limit, after in itertools.pairwise(found):
        assert limit.bound * limit.without == pytest.approx(after.bound)
    assert found[-1].without == math.inf
    assert [limit.stage for limit in limits(ON_CPU)] == ["forward", "decode"]


def test_where_two_kinds_of_hardware_are_equal_removing_one_stage_buys_nothing() -> None:
    found = limits(
        [Stage("decode", "cpus", 100.0), Stage("forward", "gpus", 100.0), Stage("read", "storage", 900.0)]
    )
    assert (found[0].stage, found[0].without) == ("decode", 1)
    assert [limit.stage for limit in found] == ["decode", "forward", "read"]


def test_a_stage_counts_at_its_best_and_forward_passes_in_the_precision_asked_for() -> None:
    def row(stage: str, variant: str, rate: float) -> dict[str, Any]:
        return {"stage": stage, "hardware": "cpus", "variant": variant, "rate": rate}

    rows = [
        row("decode", "2 at once", 300.0),
        row("forward", "float32, batches of 1", 10.0),
        row("forward", "float32, batches of 4", 20.0),
        row("forward", "float32, batches of 16", 15.0),
        row("forward", "bfloat16, batches of 4", 50.0),
    ]
    assert stages_of(rows) == [Stage("decode", "cpus", 300.0), Stage("forward", "cpus", 20.0)]
    assert stages_of(rows, "bfloat16")[1] == Stage("forward", "cpus", 50.0)
    with pytest.raises(ValueError, match=r"^Forward passes in float16 were not measured on this hardware"):
        stages_of(rows, "float16")


# What is measured


@pytest.fixture
def one_call(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls are made once and said to take two seconds; what they return is kept."""
    returned: list[Any] = []

    def two_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
        returned.append(call())
        return 2.0

    monkeypatch.setattr(bounds, "median_seconds", two_seconds)
    return returned


def test_reading_decoding_and_writing_are_rates_of_whole_images(sample_set: Samples, one_call: list[Any]) -> None:
    hand = Hand(str(sample_set.model))
    filesystem, paths, _ = list_images(str(sample_set.images), 3)
    assert hand.read(filesystem, paths) == 3 / 2
    encoded = [filesystem.open_input_stream(path).readall() for path in paths]
    assert hand.decode(encoded) == 3 / 2
    assert [image.shape for image in one_call[-1]] == [(224, 224, 3)] * 3
    assert hand.write(10) == 10 / 2


def test_a_batch_that_would_take_too_long_is_left_out(
    sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    threads, seen = torch.get_num_threads(), []

    def two_seconds_an_image(network: Any, batch_size: int, repeats: int) -> float:
        seen.append((network.dtype, torch.get_num_threads()))
        return 2.0 * batch_size

    monkeypatch.setattr(bounds, "forward_seconds", two_seconds_an_image)
    try:
        network = Network(str(sample_set.model))
        assert network.forward("bfloat16", (16, 4, 1)) == {1: 0.5, 4: 0.5}
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {(torch.bfloat16, 1)}
    assert network.runs_on() == ("cuda" if torch.cuda.is_available() else "cpu")


class FakeHand(Hand):
    def read(self, filesystem: Any, paths: list[str]) -> float:
        return float(len(paths))

    def decode(self, encoded: list[bytes]) -> float:
        return 10.0 * len(encoded) * all(encoded)

    def write(self, rows: int) -> float:
        return float(rows)


class FakeNetwork:
    def __init__(self, model: str) -> None:
        self.device = "cpu"

    def runs_on(self) -> str:
        return self.device

    def forward(self, dtype: str, batch_sizes: list[int]) -> dict[int, float]:
        return {size: float(size) for size in batch_sizes if size < 16}  # the last took too long

    def transfer(self, images: int) -> float:
        return float(images)


class FakeNetworkOnGpu(FakeNetwork):
    def __init__(self, model: str) -> None:
        self.device = "cuda"

    def forward(self, dtype: str, batch_sizes: list[int]) -> dict[int, float]:
        return {batch_sizes[0]: 7.0}


def test_each_stage_is_measured_in_all_processes_of_a_node_at_once(
    connected: RayCluster, sample_set: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Meeting(FakeHand):
        def read(self, filesystem: Any, paths: list[str]) -> float:
            (tmp_path / f"entered-{os.getpid()}").touch()
            deadline = time.monotonic() + 120
            while len([*tmp_path.glob("entered-*")]) < 2:  # one after the other they would not meet
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return float(len(paths))

    monkeypatch.setattr(bounds, "Hand", Meeting)
    monkeypatch.setattr(bounds, "Network", FakeNetwork)
    listed = len(list_images(str(sample_set.images))[1])
    told: list[str] = []
    rows = measure(str(sample_set.images), str(sample_set.model), limit=3, progress=told.append)
    assert rows[0]["variant"] == f"{listed} images"
    assert [(row["stage"], row["hardware"], row["variant"], row["rate"]) for row in rows[1:]] == [
        ("read", "storage", "2 at once", 2 * 3),  # the largest node has two CPUs
        ("decode", "cpus", "2 at once", 2 * 30),
        ("write", "storage", "2 at once", 2 * 10_000),
        ("forward", "cpus", "float32, batches of 1", 2 * 1),
        ("forward", "cpus", "float32, batches of 4", 2 * 4),
        ("forward", "cpus", "bfloat16, batches of 1", 2 * 1),
        ("forward", "cpus", "bfloat16, batches of 4", 2 * 4),
    ]
    assert told == [row["stage"] for row in rows]
    monkeypatch.setattr(bounds, "Network", FakeNetworkOnGpu)  # the node has one logical GPU
    rows = measure(str(sample_set.images), str(sample_set.model), limit=3, batch_sizes=(8,))
    assert [(row["stage"], row["hardware"], row["variant"], row["rate"]) for row in rows[4:]] == [
        ("forward", "gpus", "float32, batches of 8", 7),
        ("forward", "gpus", "float16, batches of 8", 7),
        ("transfer", "gpus", "batches of 64", 64),
    ]


def test_the_command_reports_what_was_measured_and_then_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"stage": "decode", "hardware": "cpus", "variant": "1 at once", "rate": 300.0},
        {"stage": "forward", "hardware": "cpus", "variant": "float32, batches of 1", "rate": 100.0},
    ]
    monkeypatch.setattr(bounds, "measure", lambda *_, **__: rows)
    parser = build_parser(bounds)
    reported = bounds.run(parser.parse_args(["--json"]))
    assert reported[:2] == rows
    assert [(row["stage"], row["bound"]) for row in reported[2:]] == [("forward", 75), ("decode", 300)]
    with pytest.raises(ValueError, match="float16 were not measured"):
        bounds.run(parser.parse_args(["--json", "--dtype", "float16"]))
