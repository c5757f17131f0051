"""Features are right, no file loses its row, and a frame is built where image arrays allow it."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import ray
from PIL import Image

from snippets.fundamentals import preprocessing
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.preprocessing import add_features, describe_images, read_headers

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


def test_features_of_a_known_frame() -> None:
    frame = pd.DataFrame(
        {"id": ["a", "b", "c"], "bytes": [1000, 500, 7], "width": [200, 50, 0], "height": [100, 80, 0]}
    ).assign(error=["", "", "broken"])
    features = add_features(frame)
    assert list(features) == ["id", "megapixels", "bits_per_pixel", "is_portrait", "error"]
    assert features["megapixels"].tolist() == [0.02, 0.004, 0]
    assert features["bits_per_pixel"].tolist()[:2] == [0.4, 1.0]
    assert np.isnan(features["bits_per_pixel"][2])
    assert features["is_portrait"].tolist() == [False, True, False]
    assert "megapixels" not in frame  # the frame that was given is left as it was


def test_features_of_the_samples_equal_what_pillow_says(connected: RayCluster, sample_set: Samples) -> None:
    rows = describe_images(str(sample_set.manifest), 40).take_all()
    assert sorted(row["id"] for row in rows) == list_images(str(sample_set.images), 40)[1]
    for row in rows[::8]:
        width, height = Image.open(row["id"]).size
        assert row["megapixels"] == pytest.approx(width * height / 1e6)
        assert row["is_portrait"] == (height > width)
        assert 0 < row["bits_per_pixel"] < 24
        assert row["error"] == ""


def test_files_without_a_header_keep_their_row_and_say_why(connected: RayCluster, sample_set: Samples) -> None:
    rows = {row["id"].rpartition("/")[2]: row for row in describe_images(str(sample_set.hostile)).take_all()}
    assert len(rows) == 8
    errors = {name for name, row in rows.items() if row["error"]}
    assert errors == {"zero_bytes.jpg", "text.jpg", "claims_20000x20000.jpg"}
    assert all(rows[name]["megapixels"] == 0 and rows[name]["bits_per_pixel"] is None for name in errors)
    assert "UnidentifiedImageError" in rows["text.jpg"]["error"]


def test_a_missing_file_keeps_its_row(tmp_path: Any) -> None:
    from pyarrow import fs

    headers = read_headers({"id": [f"{tmp_path}/no.jpg"]}, fs.LocalFileSystem())
    assert (headers["width"], headers["bytes"]) == ([0], [0])
    assert "FileNotFoundError" in headers["error"][0]


def test_the_module_imports_no_frame_library() -> None:
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(preprocessing)))]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert {"pyarrow", "ray"} <= names
    assert not {name for name in names if name.startswith(("pandas", "cudf"))}


def test_features_are_computed_in_the_format_and_on_the_gpus_asked_for(
    connected: RayCluster, sample_set: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    features = describe_images(str(sample_set.images), 4, batch_format="pandas", num_gpus=0.5)
    stage = features._logical_plan.dag
    assert (stage.batch_format, stage.ray_remote_args["num_gpus"]) == ("pandas", 0.5)
    assert features.count() == 4


def test_images_of_one_size_make_no_frame_by_hand_but_one_by_batch_format(connected: RayCluster) -> None:
    images = ray.data.from_numpy(np.zeros((6, 4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="Per-column arrays must each be 1-dimensional"):
        pd.DataFrame(images.take_batch(6))

    def add_mean(frame: Any) -> Any:
        return frame.assign(mean=[float(np.asarray(image).mean()) for image in frame["data"]])[["mean"]]

    means = images.map_batches(add_mean, batch_format="pandas").take_all()
    assert [row["mean"] for row in means] == [0.0] * 6


def test_ragged_images_do_make_a_frame() -> None:
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros((4, 5, 3)), np.zeros((2, 2, 3))]
    assert pd.DataFrame({"image": ragged}).shape == (2, 1)
