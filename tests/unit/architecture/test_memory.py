"""Readers share what lies in the object store, writers and objects do not, and what is full says so."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.data.exceptions import ExecutionTimeoutError

from snippets.architecture.memory import (
    convert,
    follow,
    growth,
    main,
    measure,
    photographs,
    reserve,
    spilled_so_far,
    start_with_shm,
    where,
)
from tests.ray_cluster import OBJECT_STORE_BYTES, WORKERS, RayCluster

SIZE = 40_000_000


@pytest.fixture(autouse=True)
def context(connected: RayCluster) -> Iterator[Any]:
    """The defaults, on the cluster; a test may change them."""
    before, context = ray.data.DataContext.get_current(), ray.data.DataContext()
    context.enable_progress_bars = False
    ray.data.DataContext._set_current(context)
    yield context
    ray.data.DataContext._set_current(before)


def test_readers_share_an_array_and_writers_do_not() -> None:
    read, written = growth(3, SIZE), growth(3, SIZE, write=True)
    assert read["unique"] < SIZE / 10
    assert SIZE / 2 < read["proportional"] < 1.1 * SIZE  # the store's own process maps it too
    assert 2.9 * SIZE < written["unique"] < 3.5 * SIZE


@pytest.mark.parametrize(
    ("column", "options", "copies"),
    [
        ("pixels", {}, (0, 0.1)),
        ("pixels", {"batch_size": 64}, (0, 0.1)),
        ("pixels", {"batch_size": 64, "zero_copy_batch": False}, (0.9, 2.3)),
        ("pixels", {"zero_copy_batch": False}, (0, 0.1)),
        ("pixels", {"blocks": 4, "batch_size": 64}, (0.9, 2.3)),
        ("file", {}, (0.9, 1.3)),
        ("thing", {}, (0.9, 1.3)),
    ],
)
def test_numbers_stay_in_the_store_and_objects_are_copied(
    column: str, options: dict[str, Any], copies: tuple[float, float]
) -> None:
    found = where(column, **options)
    least, most = copies
    assert least * 64e6 <= found["grown"] <= most * 64e6
    if column == "pixels":
        is_copied = "blocks" in options or options.keys() >= {"zero_copy_batch", "batch_size"}
        assert found["writeable"] == is_copied


def test_a_tensor_is_a_view_and_its_floats_are_four_times_the_batch() -> None:
    steps = follow(rows=40)
    assert [row["step"] for row in steps] == ["array", "tensor of it", "torch.float32"]
    assert [row["own"] for row in steps] == pytest.approx([0, 0, 4], abs=0.3)
    assert [row["shared"] for row in steps] == pytest.approx([1, 1, 1], abs=0.3)
    assert {row["device"] for row in steps} == {0}


@pytest.mark.parametrize("may_mount", [True, False])
def test_a_store_that_dev_shm_does_not_hold_lies_in_files(
    may_mount: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not may_mount:
        refuses = tmp_path / "unshare"
        refuses.write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
        refuses.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert start_with_shm(64_000_000, 80_000_000) == "a folder of temporary files"


def test_the_store_of_a_container_by_default_is_too_small_for_ray() -> None:
    assert "minimum allowed" in start_with_shm(64 * 2**20, 64 * 2**20)  # what Docker gives


def test_a_large_store_is_refused_where_dev_shm_is_small() -> None:
    refusal = start_with_shm(64_000_000, 11_000_000_000)
    assert refusal.startswith("ValueError: The configured object store size (11.0 GB) exceeds /dev/shm size (0.06")


def test_kept_images_spill_and_images_that_pass_do_not() -> None:
    images = 1000
    assert images * 1_000_000 > (1 + WORKERS) * OBJECT_STORE_BYTES
    before = spilled_so_far()
    passed = photographs(images, in_flight_bytes=100e6).map_batches(measure, num_cpus=0.5).materialize()
    assert spilled_so_far() == before
    assert passed.sum("images") == images
    kept = photographs(images, in_flight_bytes=100e6).materialize()  # what decides is what is kept, and no limit
    assert spilled_so_far() > before
    assert kept.count() == images


def test_a_bounded_process_says_what_it_could_not_allocate_and_smaller_batches_fit() -> None:
    reason = convert(batch_size=200)
    assert "MemoryError: Unable to allocate" in reason
    assert "shape (200, 1000000) and data type float64" in reason
    assert convert(batch_size=5) == "40 batches"


def test_memory_is_reserved_not_bounded_and_more_than_a_node_has_waits(context: Any) -> None:
    assert reserve(memory=1e6) == {"reserved": 1e6, "taken": 5e7}
    assert reserve(memory=None)["reserved"] == 0  # its operator had made no block when it was made
    context.execution_no_progress_timeout_s = 5  # enough for an actor that fits, as the one before
    too_much = 2 * max(node["Resources"]["memory"] for node in ray.nodes() if node["Alive"])
    with pytest.raises(ExecutionTimeoutError, match="no progress"):
        reserve(memory=too_much)


def test_the_command_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--readers", "1", "--bytes", "8000000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["read"]["unique"] < 4e6 < 7e6 < report["written"]["unique"]
    with pytest.raises(SystemExit) as exited:
        main(["--readers", "0"])
    assert exited.value.code == 2
