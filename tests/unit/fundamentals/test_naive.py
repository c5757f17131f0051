"""The naive pipeline is as bad as its page says, and nothing in its code makes it worse."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from snippets.fundamentals import naive
from snippets.recording import most_at_once

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.conftest import RecordedRun
    from tests.ray_cluster import RayCluster


def test_the_model_is_loaded_once_for_every_batch(naive_run: RecordedRun) -> None:
    record, _ = naive_run
    batches, loads = record.of("batch"), record.of("load")
    assert len(loads) == len(batches) > 1
    for batch in batches:
        within = [load for load in loads if load.worker == batch.worker and batch.start <= load.start < batch.end]
        assert len(within) == 1
    assert len(record.of("pipeline")) == len(batches)


def test_batches_hold_four_images_at_most(naive_run: RecordedRun) -> None:
    record, _ = naive_run
    sizes = [batch.rows for batch in record.of("batch")]
    assert max(sizes) == 4
    assert sum(sizes) == 32


def test_images_go_through_the_model_one_at_a_time(naive_run: RecordedRun) -> None:
    record, _ = naive_run
    assert len(record.of("forward")) == len(record.of("preprocess")) == 32


def test_two_tasks_run_at_a_time_although_the_cluster_has_room_for_five(
    naive_run: RecordedRun, ray_cluster: RayCluster
) -> None:
    record, _ = naive_run
    assert most_at_once(record.of("batch")) == 2
    assert ray_cluster.resources["cpus"] == 5


def test_every_image_gets_a_label_of_the_checkpoint(naive_run: RecordedRun, spread_images: list[str]) -> None:
    _, rows = naive_run
    assert sorted(row["id"] for row in rows) == spread_images[::2]
    assert len({row["label"] for row in rows}) > 5
    assert all(0 < row["score"] <= 1 for row in rows)


def test_the_shown_code_holds_no_handicap_and_no_counter() -> None:
    source = inspect.getsource(naive)
    for handicap in ("sleep", "thread", "device", "num_cpus", "record", "print", "count", "global"):
        assert handicap not in source, handicap


def test_one_batch_in_this_process_has_the_columns_of_the_page(sample_set: Samples) -> None:
    image = np.asarray(Image.open(next(sample_set.images.rglob("*.jpg"))).convert("RGB"))
    batch = {"image": np.array([image, image]), "path": np.array(["a", "b"])}
    labelled = naive.classify_batch(batch, str(sample_set.model), None)
    assert list(labelled) == ["id", "label", "score"]
    assert list(labelled["id"]) == ["a", "b"]
    assert labelled["label"][0] == labelled["label"][1]
