"""Blocks are counted, and the batches that are cut from them are those that were predicted."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.data.context import MAX_SAFE_BLOCK_SIZE_FACTOR

from snippets.architecture import blocks as module
from snippets.architecture.blocks import (
    batch_sizes,
    blocks_of,
    cut_batches,
    draw,
    filled,
    forms,
    main,
    many_files,
    pool_tasks,
)
from snippets.architecture.plans import executed_operators
from tests.ray_cluster import RayCluster

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@pytest.fixture
def context(connected: RayCluster) -> Iterator[Any]:
    """The defaults, on the cluster; a test may change them."""
    before, context = ray.data.DataContext.get_current(), ray.data.DataContext()
    context.enable_progress_bars = False
    ray.data.DataContext._set_current(context)
    yield context
    ray.data.DataContext._set_current(before)


@given(sizes, st.integers(1, 70))
def test_every_row_is_in_a_batch_and_no_batch_is_too_large(block_rows: list[int], batch_size: int) -> None:
    cut = batch_sizes(block_rows, batch_size)
    assert sum(rows * count for rows, count in cut.items()) == sum(block_rows)
    assert max(cut) <= batch_size
    assert all(count > 0 for count in cut.values())
    assert sum(cut.values()) - cut[batch_size] <= len(block_rows)  # a task leaves one rest at the most
    assert 0 < filled(cut, batch_size) <= 1


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_blocks_of_whole_batches_leave_no_rest(blocks: int, batches: int, batch_size: int) -> None:
    cut = batch_sizes([batches * batch_size] * blocks, batch_size)
    assert cut == {batch_size: blocks * batches}
    assert filled(cut, batch_size) == 1


@pytest.mark.parametrize(("rows", "batch_size"), [([4], 0), ([4, 0], 2)])
def test_empty_blocks_and_batches_are_refused(rows: list[int], batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        batch_sizes(rows, batch_size)


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    ("rows", "blocks", "batch_size"), [(1000, 50, 32), (640, 20, 32), (96, 4, 30), (64, 8, 12), (64, 4, 100)]
)
def test_ray_cuts_the_batches_that_are_predicted(rows: int, blocks: int, batch_size: int) -> None:
    seen = cut_batches(ray.data.range(rows, override_num_blocks=blocks), batch_size)
    assert seen == batch_sizes([rows // blocks] * blocks, batch_size)


@pytest.mark.usefixtures("context")
def test_only_a_strict_repartition_aligns_blocks() -> None:
    rows = ray.data.range(200, override_num_blocks=10)
    loose = rows.repartition(target_num_rows_per_block=32)
    strict = rows.repartition(target_num_rows_per_block=32, strict=True)
    assert cut_batches(loose, 32) == batch_sizes([20] * 10, 32) == Counter({32: 5, 8: 5})
    assert cut_batches(strict, 32) == Counter({32: 6, 8: 1})


def test_a_read_makes_two_blocks_a_cpu_unless_told_or_forced_by_size(context: Any) -> None:
    cpus = ray.cluster_resources()["CPU"]
    assert len(blocks_of(ray.data.range(1000))) == 2 * cpus
    assert len(blocks_of(ray.data.range(1000, override_num_blocks=20))) == 20
    context.target_min_block_size = 80  # ten ids
    assert len(blocks_of(ray.data.range(1000))) == 100
    context.read_op_min_num_blocks = 40
    assert len(blocks_of(ray.data.range(1000))) == 40
    context.target_max_block_size = 160  # blocks of twenty ids
    assert len(blocks_of(ray.data.range(1000))) >= 50


def test_a_block_is_a_table_that_ends_with_the_row_that_reaches_the_target(context: Any) -> None:
    image, target = 64 * 64 * 3, 200_000
    context.target_max_block_size = target
    made = blocks_of(ray.data.range(64, override_num_blocks=1).map_batches(draw))
    assert all(isinstance(block, pa.Table) for block in made)
    assert sorted(block.num_rows for block in made) == [13, 17, 17, 17]
    assert 16 * image < target <= 17 * image
    assert all(block.nbytes <= MAX_SAFE_BLOCK_SIZE_FACTOR * target for block in made)
    assert MAX_SAFE_BLOCK_SIZE_FACTOR == 1.5  # half as large again
    for part, blocks in ((1.4, 1), (1.6, 2)):  # of the target, that all images together are
        context.target_max_block_size = int(64 * image / part)
        assert len(blocks_of(ray.data.range(64, override_num_blocks=1).map_batches(draw))) == blocks
    # A function that returns several batches hands them over one by one: a block ends with one of them.
    context.target_max_block_size = target
    batches = ray.data.range(64, override_num_blocks=1).map_batches(draw, batch_size=8)
    assert sorted(block.num_rows for block in blocks_of(batches)) == [16, 24, 24]
    context.target_max_block_size = int(64 * image / 1.4)
    assert len(blocks_of(ray.data.range(64, override_num_blocks=1).map_batches(draw, batch_size=8))) == 2
    context.target_max_block_size = 1000  # less than an image
    made = blocks_of(ray.data.range(8, override_num_blocks=1).map_batches(draw))
    assert [block.num_rows for block in made] == [1] * 8


@pytest.mark.usefixtures("context")
def test_what_a_function_returns_is_a_table_of_arrow_whatever_it_is() -> None:
    def as_frame(batch: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame(batch)

    def as_objects(batch: dict[str, Any]) -> dict[str, list[object]]:
        return {"thing": [object() for _ in batch["id"]]}

    for function in (as_frame, as_objects):
        made = blocks_of(ray.data.range(8, override_num_blocks=1).map_batches(function))
        assert [type(block) for block in made] == [pa.Table]
    assert isinstance(blocks_of(ray.data.from_pandas(pd.DataFrame({"id": [1]})))[0], pd.DataFrame)


def test_a_read_of_fewer_files_than_blocks_splits_what_each_task_read(context: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    lines = ray.data.read_text(str(tmp_path), override_num_blocks=4)
    assert len(blocks_of(lines)) == 4
    ran = executed_operators(lines.map_batches(lambda batch: batch).materialize())
    assert ran == ["ReadText->SplitBlocks(4)", "MapBatches(<lambda>)"]  # and nothing joins it


@pytest.mark.usefixtures("context")
def test_a_pool_has_as_many_tasks_as_blocks_make_batches_for() -> None:
    assert [pool_tasks(blocks, 8) for blocks in (1, 8)] == [1, 8]
    assert [pool_tasks(8, batch_size) for batch_size in (16, 64)] == [4, 1]


def test_forms_of_an_image_differ_by_their_bytes(connected: RayCluster) -> None:
    taken = forms(rows=16, side=112)
    pixels = 16 * 112 * 112 * 3
    assert pixels <= taken["uint8"] < 1.01 * pixels
    assert 4 * pixels <= taken["float32"] < 4.04 * pixels
    assert taken["JPEG"] < pixels / 2


def test_ten_thousand_files_are_many_tasks_and_one_shard_is_one(context: Any, tmp_path: Path) -> None:
    counted = many_files(str(tmp_path), files=10_000)
    small, shard = counted["small"], counted["shard"]
    assert (small["files"], small["rows"]) == (10_000, 10_000)
    assert small["tasks"] == small["blocks"] == 2 * ray.cluster_resources()["CPU"]
    assert shard == {"files": 1, "tasks": 1, "blocks": 1, "rows": 10_000}


@pytest.mark.usefixtures("connected")
def test_the_command_predicts_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "80", "--blocks", "4", "--batch-size", "16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["predicted"] == report["cut"] == {"16": 4, "4": 4}
    assert report["filled"] == 80 / 128
    assert module.main(["--rows", "10", "--blocks", "3"]) == 2
    assert capsys.readouterr().err == "10 rows do not make 3 equal blocks.\n"
