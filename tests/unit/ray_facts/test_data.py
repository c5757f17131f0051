"""What Ray Data does with rows: which are lost, doubled or never seen, and how many bytes they take."""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import ray
from PIL import Image
from ray.exceptions import RayTaskError

from tests.ray_cluster import RayCluster


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return when it is so; fail if it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def save_images(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """Write a JPEG for each width and height."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{n:02d}.jpg" for n in range(len(sizes))]
    for path, (width, height) in zip(paths, sizes, strict=True):
        Image.effect_noise((width, height), 50).save(path)
    return paths


@pytest.fixture
def one_truncated(tmp_path: Path) -> str:
    """A folder of eight images, of which one is truncated."""
    paths = save_images(tmp_path / "images", [(40, 30)] * 8)
    paths[3].write_bytes(paths[3].read_bytes()[:400])
    return str(tmp_path / "images")


def test_one_truncated_image_ends_the_read(one_truncated: str) -> None:
    with pytest.raises(RayTaskError, match="truncated"):
        ray.data.read_images(one_truncated, mode="RGB").take_all()


def test_read_images_has_no_option_that_skips_a_bad_file() -> None:
    options = inspect.signature(ray.data.read_images).parameters
    near = {
        name
        for name in options
        if {"error", "errors", "errored", "skip", "invalid", "ignore"} & {*name.split("_")}
    }
    assert near == {"ignore_missing_paths"}  # which is about absent files


def test_max_errored_blocks_loses_the_good_images_of_the_block(one_truncated: str, context: Any) -> None:
    context.max_errored_blocks = -1
    images = ray.data.read_images(one_truncated, mode="RGB", override_num_blocks=2, include_paths=True)
    assert sorted(Path(row["path"]).stem for row in images.take_all()) == ["04", "05", "06", "07"]


def test_float32_takes_four_times_the_bytes_of_uint8() -> None:
    pixels = np.zeros((8, 224, 224, 3), np.uint8)
    as_bytes = ray.data.from_numpy(pixels).materialize().size_bytes()
    as_floats = ray.data.from_numpy(pixels.astype(np.float32)).materialize().size_bytes()
    assert as_floats / as_bytes == pytest.approx(4, rel=0.01)


def test_count_of_an_unexecuted_plan_may_not_run_the_function(counter: Any, context: Any) -> None:
    context.max_errored_blocks = -1

    def lose_a_block(row: dict[str, Any]) -> dict[str, Any]:
        ray.get(counter.add.remote())
        if row["id"] == 3:
            raise ValueError("a bad row")
        return row

    def plan() -> Any:
        return ray.data.range(16, override_num_blocks=4).map(lose_a_block)

    assert plan().count() == 16
    assert ray.get(counter.total.remote()) == 0
    assert len(plan().take_all()) == 12  # what is there


def test_count_runs_a_function_that_may_change_the_number_of_rows(counter: Any) -> None:
    def counted(batch: dict[str, Any]) -> dict[str, Any]:
        ray.get(counter.add.remote())
        return batch

    assert ray.data.range(16, override_num_blocks=4).map_batches(counted).count() == 16
    assert ray.get(counter.total.remote()) == 4


def test_every_look_runs_the_plan_again(counter: Any) -> None:
    def counted(batch: dict[str, Any]) -> dict[str, Any]:
        ray.get(counter.add.remote())
        return batch

    numbers = ray.data.range(8, override_num_blocks=1).map_batches(counted)
    for look in (numbers.schema, lambda: numbers.take(2), numbers.count, numbers.take_all):
        look()
    assert ray.get(counter.total.remote()) == 4


def test_take_stops_before_the_rest_is_run(counter: Any) -> None:
    def counted(batch: dict[str, Any]) -> dict[str, Any]:
        ray.get(counter.add.remote())
        return batch

    numbers = ray.data.range(400, override_num_blocks=100)
    numbers.map_batches(counted, batch_size=4, compute=ray.data.TaskPoolStrategy(size=2)).take(20)
    assert 5 <= ray.get(counter.total.remote()) < 100


def test_what_materialize_keeps_lives_until_nothing_refers_to_it(ray_cluster: RayCluster) -> None:
    def kept_bytes() -> float:
        free = ray.available_resources().get("object_store_memory", 0)
        return float(ray.cluster_resources()["object_store_memory"] - free)

    before = kept_bytes()
    kept = ray.data.range_tensor(64, shape=(400, 400), override_num_blocks=8).materialize()
    assert kept.size_bytes() > 80e6
    wait_until(lambda: kept_bytes() > before + 80e6)
    kept.take_all()
    assert kept_bytes() > before + 80e6
    del kept
    wait_until(lambda: kept_bytes() < before + 1e6)


def test_cudf_is_a_batch_format() -> None:
    numbers = ray.data.range(8)
    on_gpu = numbers.map_batches(lambda frame: frame, batch_format="cudf", num_gpus=1, batch_size=4)
    assert on_gpu._logical_plan.dag.batch_format == "cudf"
    with pytest.raises(ValueError, match="batch format"):
        numbers.map_batches(lambda frame: frame, batch_format="frames").take_all()


def test_rows_of_a_frame_are_refused_and_its_columns_accepted() -> None:
    def records(batch: dict[str, Any]) -> Any:
        return pd.DataFrame(batch).to_dict("records")

    def columns(batch: dict[str, Any]) -> Any:
        return pd.DataFrame(batch).to_dict("list")

    def frame(batch: dict[str, Any]) -> Any:
        return pd.DataFrame(batch)

    numbers = ray.data.range(4)
    with pytest.raises(RayTaskError, match="Returning a list of objects from `map_batches` is not allowed"):
        numbers.map_batches(records).take_all()
    for accepted in (columns, frame):
        assert sorted(row["id"] for row in numbers.map_batches(accepted).take_all()) == [0, 1, 2, 3]


def test_reads_wait_for_a_consumer_that_waits(counter: Any, context: Any) -> None:
    blocks, block_bytes = 60, 4_000_000
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=10 * block_bytes)

    def make_block(batch: dict[str, Any]) -> dict[str, Any]:
        ray.get(counter.add.remote())
        return {"data": np.zeros((1, block_bytes), np.uint8)}

    def made() -> int:
        return int(ray.get(counter.total.remote()))

    consumer = iter(
        ray.data.range(blocks, override_num_blocks=blocks).map_batches(make_block).iter_batches(batch_size=1)
    )
    next(consumer)
    seen, since = made(), time.monotonic()
    while time.monotonic() - since < 2:  # until nothing more is made
        time.sleep(0.1)
        if (now := made()) != seen:
            seen, since = now, time.monotonic()
    assert seen < blocks / 2
    assert sum(1 for _ in consumer) == blocks - 1  # and all of them, once it goes on
    assert made() == blocks
