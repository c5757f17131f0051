"""What is prepared once is labelled as the files are, and only what is asked for by name is read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import ray
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from pyarrow import fs
from ray.data._internal.datasource_v2.formats.parquet.footer_file_indexer import FooterFileIndexer
from ray.data.expressions import col
from ray.util.state import list_actors

from snippets.architecture.plans import executed_operators, planned_operators
from snippets.fundamentals.actor_pool import load_preprocessing, plan_pool
from snippets.optimization import patterns
from snippets.optimization.patterns import label_prepared, prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from snippets.recording import Recording
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

FOOTER_READERS = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("patterns") / "prepared")


@pytest.fixture
def prepared(connected: RayCluster, sample_set: Samples, spread_images: list[str], folder: str) -> str:
    """A folder with the spread images as Parquet, and one file that is no image."""
    if not Path(folder).exists():
        broken = Path(folder).with_name("broken.jpg")
        broken.write_bytes(b"no image")
        prepare([*spread_images, str(broken)], str(sample_set.model), folder)
    return folder


@pytest.fixture
def one_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of one: each actor more would load a model of its own."""
    monkeypatch.setattr(patterns, "plan_pool", partial(plan_pool, 1))


def test_all_steps_are_one_operator_and_every_row_is_written(
    prepared: str, sample_set: Samples, spread_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[list[str]] = []
    tables = [pq.read_table(path) for path in Path(prepared).iterdir()]
    rows = [row for table in tables for row in table.select(["id", "error", "brightness"]).to_pylist()]
    assert len(rows) == len(spread_images) + 1
    assert {row["id"] for row in rows if not row["error"]} == {*spread_images}
    assert all(0 < row["brightness"] < 255 for row in rows if not row["error"])
    with monkeypatch.context() as patch:
        patch.setattr(
            ray.data.Dataset, "write_parquet", lambda self, *_, **__: plans.append(planned_operators(self))
        )
        prepare(spread_images[:1], str(sample_set.model), "new")
    assert plans == [["MapBatches(decode_and_describe)"]]  # to which a write is fused
    with pytest.raises(ValueError, match="already exists"):
        prepare(spread_images[:1], str(sample_set.model), prepared)


def footer_readers() -> set[str]:
    """The actors so far that looked into Parquet files' footers, dead or alive."""
    return {str(actor.actor_id) for actor in list_actors(limit=10_000) if "FooterReader" in actor.class_name}


def test_a_read_starts_as_many_readers_of_footers_as_the_environment_says(
    prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = footer_readers()
    monkeypatch.setenv(FOOTER_READERS, "3")
    assert ray.data.read_parquet(prepared).select_columns(["id"]).materialize().count() > 0
    assert len(footer_readers() - before) == 3
    default = f"import {FooterFileIndexer.__module__} as m; print(m._DEFAULT_NUM_ACTORS)"
    unset = {name: value for name, value in os.environ.items() if name != FOOTER_READERS}
    assert subprocess.check_output([sys.executable, "-c", default], env=unset, text=True) == "32\n"


@pytest.mark.usefixtures("one_actor")
def test_labels_are_those_of_the_files(
    prepared: str, sample_set: Samples, pool_run: tuple[Recording, list[dict[str, Any]]]
) -> None:
    expected = {row["id"]: row["label"] for row in pool_run[1]}
    predictions = label_prepared(prepared, str(sample_set.model), num_gpus=0).materialize()
    rows = predictions.take_all()
    assert {row["id"]: row["label"] for row in rows if row["error"] is None} == expected
    assert len(rows) == len(expected) + 1
    assert executed_operators(predictions)[-1] == "MapBatches(Classifier)"


@pytest.mark.usefixtures("one_actor")
def test_images_below_the_brightness_never_reach_the_model(
    prepared: str, sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.production_driver import make_stand_in  # not of workers, which import this module

    monkeypatch.setattr(patterns, "Classifier", make_stand_in())  # which says what reaches it
    brightness = sorted(ray.data.read_parquet(prepared).to_pandas()["brightness"])
    middle = brightness[len(brightness) // 2]
    predictions = label_prepared(prepared, str(sample_set.model), num_gpus=0, darkest=middle)
    assert "Filter" not in "".join(planned_operators(predictions))
    rows = predictions.take_all()
    assert sum(row["error"] is None for row in rows) == sum(value >= middle for value in brightness)
    assert sum(row["error"] is not None for row in rows) == 1  # nothing is lost for being dark


class Counted(io.FileIO):
    """A file that notes in another how many bytes are read of it."""

    def __init__(self, path: str, log: str) -> None:
        super().__init__(path)
        self.log = log

    def read(self, size: int | None = -1) -> bytes:
        """Read as ever."""
        found = super().read(size) or b""
        with Path(self.log).open("a") as log:
            log.write(f"{len(found)}\n")
        return found


class CountedFiles(LocalFileSystem):  # type: ignore[misc]
    """Local files, counted."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.log = log

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> Counted:
        return Counted(path, self.log)


@pytest.mark.parametrize(
    ("choose", "operators", "reads_all"),
    [
        (lambda data: data.select_columns(["id", "brightness"]), "ReadFilesParquetV2", False),
        (
            lambda data: data.filter(expr=col("brightness") < 256).select_columns(["id", "brightness"]),
            "ReadFilesParquetV2",
            False,
        ),
        (
            lambda data: data.filter(lambda row: row["brightness"] < 256).select_columns(["id", "brightness"]),
            "ReadFilesParquetV2->Filter(<lambda>)->Project",
            True,
        ),
    ],
)
def test_only_columns_that_are_named_are_read(
    prepared: str,
    tmp_path: Path,
    choose: Callable[[ray.data.Dataset], ray.data.Dataset],
    operators: str,
    reads_all: bool,
) -> None:
    log = tmp_path / "read"
    files = fs.PyFileSystem(fs.FSSpecHandler(CountedFiles(str(log))))
    chosen = choose(ray.data.read_parquet(prepared, filesystem=files))
    assert planned_operators(chosen) == ["ListFiles", operators]
    before = len(log.read_text().split()) if log.exists() else 0
    assert chosen.materialize().count() == pq.read_table(prepared).num_rows
    read = sum(map(int, log.read_text().split()[before:]))
    size = sum(path.stat().st_size for path in Path(prepared).iterdir())
    assert read > 0.9 * size if reads_all else read < 0.1 * size


def test_few_blocks_are_cut_for_the_pool(prepared: str) -> None:
    images = ray.data.read_parquet(prepared).select_columns(["id"])
    assert images.materialize().num_blocks() == 1
    cut = images.repartition(target_num_rows_per_block=32).materialize()
    assert cut.num_blocks() == 3 and cut.count() == images.count()


def test_prepared_pixels_may_take_more_than_the_files(
    prepared: str, spread_images: list[str], sample_set: Samples
) -> None:
    written = sum(path.stat().st_size for path in Path(prepared).iterdir()) / (len(spread_images) + 1)
    assert written > min(Path(path).stat().st_size for path in spread_images)
    assert load_preprocessing(str(sample_set.model)).crop == 224
