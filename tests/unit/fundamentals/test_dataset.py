"""Images are read from wherever they lie, with an id for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from snippets.fundamentals.dataset import describe_batch, list_images, open_filesystem, read_images

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.jpg", "a/1.JPEG", "a/c/3.png", "notes.txt", "a/model.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_folder_is_searched_with_its_subfolders_and_other_files_are_named(folder: Path) -> None:
    filesystem, images, others = list_images(str(folder))
    assert isinstance(filesystem, fs.LocalFileSystem)
    assert images == [f"{folder}/a/1.JPEG", f"{folder}/a/c/3.png", f"{folder}/b/2.jpg"]
    assert others == [f"{folder}/a/model.bin", f"{folder}/notes.txt"]


def test_a_relative_folder_gives_absolute_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list_images("a")[1] == [f"{folder}/a/1.JPEG", f"{folder}/a/c/3.png"]


def test_a_file_and_a_list_of_files_are_sources(folder: Path) -> None:
    one, two = f"{folder}/a/1.JPEG", f"{folder}/b/2.jpg"
    assert list_images(two)[1:] == ([two], [])
    assert list_images([two, one, f"{folder}/notes.txt"])[1:] == ([one, two], [f"{folder}/notes.txt"])


def test_paths_in_a_manifest_are_relative_to_it_or_absolute(folder: Path) -> None:
    manifest = folder / "manifest.parquet"
    pq.write_table(pa.table({"path": ["b/2.jpg", f"{folder}/a/1.JPEG"], "label": ["x", "y"]}), manifest)
    assert list_images(str(manifest))[1] == [f"{folder}/a/1.JPEG", f"{folder}/b/2.jpg"]


def test_the_samples_manifest_lists_the_samples_folder(sample_set: Samples) -> None:
    assert list_images(str(sample_set.manifest))[1] == list_images(str(sample_set.images))[1]


def test_the_limit_takes_the_first_and_counts_all_others(folder: Path) -> None:
    assert list_images(str(folder), 2)[1:] == (list_images(str(folder))[1][:2], list_images(str(folder))[2])
    assert len(list_images(str(folder), 99)[1]) == 3


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(folder: Path, limit: int) -> None:
    with pytest.raises(ValueError, match=rf"^The limit must be at least 1 image, not {limit}\.$"):
        list_images(str(folder), limit)


def test_what_is_not_there_and_what_holds_no_image_is_named(tmp_path: Path) -> None:
    for name in ("missing", "missing.parquet"):
        with pytest.raises(FileNotFoundError, match=rf"^There is no file or folder {tmp_path}/{name}\.$"):
            list_images(f"{tmp_path}/{name}")
    with pytest.raises(ValueError, match=rf"^There is no image among the 0 files of {tmp_path}\.$"):
        list_images(str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match=rf"^There is no image among the 1 files of {source}\.$"):
            list_images(str(source))
    with pytest.raises(ValueError, match=r"^There is no image among the 0 files of \[\]\.$"):
        list_images([])


# S3, where no server is needed: tests/s3 has one


def test_a_public_bucket_is_read_in_its_own_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    asked = []

    def resolve(name: str) -> str:
        asked.append(name)
        return "eu-west-3"

    monkeypatch.setattr(fs, "resolve_s3_region", resolve)
    filesystem, path = open_filesystem("s3://anonymous@public/imagenette2/val/")
    assert (asked, path) == (["public"], "public/imagenette2/val")
    assert filesystem.region == "eu-west-3"


@pytest.mark.parametrize("place", ["", "/key", "name:word@bucket", "name@bucket", "name:wo/rd@bucket", "a b/key"])
def test_an_address_of_another_form_is_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(ValueError, match=r"^An s3:// address is [^']*, without credentials\.$") as refused:
        open_filesystem(f"s3://{place}")
    assert "word" not in str(refused.value)


# Read by Ray Data


def test_grey_and_cmyk_images_have_three_channels_and_keep_their_sizes(
    connected: RayCluster, sample_set: Samples, tmp_path: Path
) -> None:
    by_mode: dict[str, Path] = {}
    for path in sorted(sample_set.images.rglob("*.jpg")):
        by_mode.setdefault(Image.open(path).mode, path)
    assert set(by_mode) == {"RGB", "L", "CMYK"}
    paths = [str(path) for path in by_mode.values()]
    batch = read_images(paths).take_batch(3)
    assert describe_batch(batch) == [("image", (3,), "object"), ("path", (3,), "object")]
    assert sorted(batch["path"]) == sorted(paths)
    for path, image in zip(batch["path"], batch["image"], strict=True):
        assert (image.shape, image.dtype) == ((*Image.open(path).size[::-1], 3), np.uint8)


def test_images_of_one_size_are_one_array() -> None:
    batch = {"image": np.zeros((2, 4, 5, 3), np.uint8), "path": np.array(["a", "b"])}
    assert describe_batch(batch) == [("image", (2, 4, 5, 3), "uint8"), ("path", (2,), "<U1")]


def test_every_image_read_has_its_path_as_id(connected: RayCluster, sample_set: Samples) -> None:
    rows = read_images(str(sample_set.manifest), 6).take_all()
    assert sorted(row["path"] for row in rows) == list_images(str(sample_set.images), 6)[1]


@pytest.mark.parametrize("num_cpus", [0.25, 1])
def test_each_read_task_reserves_the_cpus_asked_for(
    connected: RayCluster, sample_set: Samples, num_cpus: float
) -> None:
    images = read_images(str(sample_set.images), 3, num_cpus=num_cpus)
    assert images._logical_plan.dag.ray_remote_args["num_cpus"] == num_cpus
