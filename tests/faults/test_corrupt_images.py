"""A corrupt image neither ends the optimized pipeline nor vanishes from its results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.fundamentals.actor_pool import classify
from snippets.fundamentals.dataset import list_images

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

BROKEN = {
    "truncated.jpg": "truncated",
    "zero_bytes.jpg": "UnidentifiedImageError",
    "text.jpg": "UnidentifiedImageError",
    "claims_20000x20000.jpg": "DecompressionBombError: Image size (400000000 pixels)",
}
WHOLE = {"png_inside.jpg", "animated.gif", "one_pixel.jpg", "déjà vu 山.jpg"}

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def hostile_rows(sample_set: Samples) -> Rows:
    """Filled by the first test that is connected."""
    return {}


@pytest.fixture
def rows(connected: RayCluster, sample_set: Samples, hostile_rows: Rows) -> Rows:
    """The row of each file in the hostile folder, by file name, from batches of 4."""
    if not hostile_rows:
        found = classify(str(sample_set.hostile), str(sample_set.model), batch_size=4, actors=1).take_all()
        assert len(found) == len({row["id"] for row in found})
        hostile_rows.update({Path(row["id"]).name: row for row in found})
    return hostile_rows


@pytest.mark.parametrize(("name", "reason"), BROKEN.items())
def test_what_cannot_be_decoded_has_a_row_that_says_why(rows: Rows, name: str, reason: str) -> None:
    assert reason in rows[name]["error"]
    assert rows[name]["label"] is None
    assert rows[name]["score"] is None


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_can_be_decoded_has_a_label_whatever_it_is_called(rows: Rows, sample_set: Samples, name: str) -> None:
    labels = {folder.name for folder in sample_set.images.iterdir()}
    assert rows[name]["error"] is None
    assert rows[name]["label"] in labels
    assert 0 < rows[name]["score"] <= 1


def test_the_counts_add_up_and_what_is_no_image_by_name_is_skipped(rows: Rows, sample_set: Samples) -> None:
    _, images, skipped = list_images(str(sample_set.hostile))
    assert set(rows) == set(BROKEN) | WHOLE == {Path(path).name for path in images}
    assert [Path(path).name for path in skipped] == ["README.txt"]
    assert len(rows) + len(skipped) == len(list(sample_set.hostile.iterdir()))


def test_batches_of_nothing_but_broken_and_missing_files_come_out_whole(
    connected: RayCluster, sample_set: Samples, tmp_path: Path
) -> None:
    reasons = {str(tmp_path / "gone.jpg"): "FileNotFoundError"}  # went away after it was listed
    for index in range(5):
        path = shutil.copy(sample_set.hostile / "truncated.jpg", tmp_path / f"{index}.jpg")
        reasons[str(path)] = "truncated"
    rows = classify(list(reasons), str(sample_set.model), batch_size=4, actors=1).take_all()
    assert sorted(row["id"] for row in rows) == sorted(reasons)
    assert all(reasons[row["id"]] in row["error"] and row["label"] is None for row in rows)
