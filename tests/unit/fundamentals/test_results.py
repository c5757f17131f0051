"""Results are written once, counted from the files themselves, and everything is given back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
import ray

from snippets.fundamentals.actor_pool import RESULT, classify
from snippets.fundamentals.results import count_results, wait_until_released, write_results

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


def make_predictions() -> ray.data.Dataset:
    columns = {
        "id": ["a", "b", "c", "d"],
        "label": ["dunes", None, "dunes", "sea"],
        "score": [0.5, None, 0.25, 1.0],
        "error": [None, "OSError: broken", None, None],
    }
    return ray.data.from_arrow(pa.table(columns, RESULT))


def test_what_is_written_is_read_back_and_counted(connected: RayCluster, tmp_path: Path) -> None:
    folder = f"{tmp_path}/predictions"
    write_results(make_predictions(), folder)
    assert count_results(folder) == {"rows": 4, "ids": 4, "errors": 1, "labels": {"dunes": 2, "sea": 1}}
    rows = ray.data.read_parquet(folder).take_all()
    assert sorted(rows, key=lambda row: str(row["id"])) == make_predictions().take_all()


def test_a_second_write_raises_and_leaves_the_files_as_they_were(connected: RayCluster, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    write_results(make_predictions(), str(folder))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=f"{folder} already exists"):
        write_results(make_predictions(), str(folder))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_rays_default_would_have_written_every_row_twice(connected: RayCluster, tmp_path: Path) -> None:
    for _ in range(2):
        make_predictions().write_parquet(str(tmp_path))
    assert count_results(str(tmp_path)) == {
        "rows": 8,
        "ids": 4,
        "errors": 2,
        "labels": {"dunes": 4, "sea": 2},
    }


def test_a_uri_is_a_folder_too(connected: RayCluster, tmp_path: Path) -> None:
    write_results(make_predictions(), f"file://{tmp_path}/predictions")
    assert count_results(f"file://{tmp_path}/predictions")["rows"] == 4


def test_cpus_and_gpus_are_free_again_after_the_pipeline(
    connected: RayCluster, sample_set: Samples, tmp_path: Path
) -> None:
    predictions = classify(str(sample_set.images), str(sample_set.model), 6, batch_size=4)
    write_results(predictions, f"{tmp_path}/predictions")
    assert count_results(f"{tmp_path}/predictions")["rows"] == 6
    assert wait_until_released()
    assert ray.available_resources()["GPU"] == connected.resources["gpus"]
    assert ray.available_resources()["CPU"] == connected.resources["cpus"]


def test_what_an_actor_holds_is_seen_until_it_ends(connected: RayCluster) -> None:
    class Holder:
        def ready(self) -> None:
            pass

    holder = ray.remote(num_cpus=0, num_gpus=1)(Holder).remote()
    ray.get(holder.ready.remote())
    assert not wait_until_released(timeout_s=1)
    ray.kill(holder)
    assert wait_until_released()


def test_shutdown_leaves_the_cluster(connected: RayCluster) -> None:
    assert ray.is_initialized()
    ray.shutdown()
    assert not ray.is_initialized()
