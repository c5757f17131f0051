"""Read images from a folder, a list, a Parquet manifest or S3, with an id for each."""

from __future__ import annotations

# --8<-- [start:imports]
import os
import posixpath
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:filesystem]
def open_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow filesystem of a URI or local path, and the path within it.

    `s3://anonymous@bucket/key` reads a public bucket without credentials; any other `s3://` URI
    takes them from the environment. `AWS_ENDPOINT_URL` names another server than Amazon's.
    Raises `ValueError` where an `s3://` URI has another form: credentials in it would be logged.
    """
    if uri.startswith("s3://"):
        parts = re.fullmatch(r"s3://(anonymous@)?([\w.-]+)(/.*)?", uri)
        if not parts:
            raise ValueError(
                "An s3:// address is s3://bucket/key or s3://anonymous@bucket/key, without credentials."
            )
        anonymous, bucket, key = parts.groups("")
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION", "us-east-1") if endpoint else fs.resolve_s3_region(bucket)
        filesystem = fs.S3FileSystem(anonymous=bool(anonymous), region=region, endpoint_override=endpoint)
        return filesystem, f"{bucket}{key}".rstrip("/")
    if "://" in uri:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path
    return fs.LocalFileSystem(), str(Path(uri).absolute())


def look_up(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """Return what is at a path: a file, a folder or nothing.

    S3 tells its reasons to a listing alone, a wrong key or a missing bucket. Raises `OSError` with them.
    """
    refusal = None
    try:
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.NotFound:
            return info
    except OSError as error:
        if "ACCESS_DENIED" not in str(error):
            raise
        refusal = error
    with suppress(FileNotFoundError):
        filesystem.get_file_info(fs.FileSelector(path))
    if refusal:
        raise refusal
    return info


# --8<-- [end:filesystem]


# --8<-- [start:list_images]
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")


def list_images(
    source: str | Sequence[str], limit: int | None = None
) -> tuple[fs.FileSystem, list[str], list[str]]:
    """Return the filesystem, the first `limit` image paths, sorted, and the paths of other files.

    `source` is a folder (searched with all its subfolders), one file, a list of files, or a Parquet
    manifest with a column `path` (relative to the manifest's folder, or absolute). A path is an
    image's id in every result. Raises `FileNotFoundError` where there is nothing, `ValueError`
    where there is no image or the limit is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"The limit must be at least 1 image, not {limit}.")
    if not isinstance(source, str):
        filesystem = open_filesystem(source[0])[0] if source else fs.LocalFileSystem()
        paths = [open_filesystem(path)[1] for path in source]
    else:
        filesystem, path = open_filesystem(source)
        info = look_up(filesystem, path)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"There is no file or folder {source}.")
        if info.is_file and path.endswith(".parquet"):
            rows = pq.read_table(path, columns=["path"], filesystem=filesystem)["path"].to_pylist()
            paths = [posixpath.join(posixpath.dirname(path), row) for row in rows]
        else:
            files = [info] if info.is_file else filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            paths = [file.path for file in files if file.is_file]
    images = sorted(path for path in paths if path.lower().endswith(IMAGE_SUFFIXES))
    if not images:
        raise ValueError(f"There is no image among the {len(paths)} files of {source}.")
    return filesystem, images[:limit], sorted(set(paths) - set(images))


# --8<-- [end:list_images]


# --8<-- [start:read_images]
def read_images(source: str | Sequence[str], limit: int | None = None, num_cpus: float = 1) -> ray.data.Dataset:
    """Read images into the columns `image` (uint8, height x width x 3, ragged) and `path`.

    `num_cpus` is what each read task reserves: how many tasks run at a time, not how fast one is.
    One file that cannot be decoded ends the job.
    """
    filesystem, paths, _ = list_images(source, limit)
    return ray.data.read_images(
        paths,
        filesystem=filesystem,
        mode="RGB",  # greyscale and CMYK files become three channels, as the model expects
        include_paths=True,
        num_cpus=num_cpus,
    )


# --8<-- [end:read_images]


# --8<-- [start:describe_batch]
def describe_batch(batch: dict[str, Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """Return (column, shape, dtype) for each column of a NumPy batch."""
    return [(name, column.shape, str(column.dtype)) for name, column in batch.items()]


# --8<-- [end:describe_batch]


def run(options: Any) -> ray.data.Dataset:
    """Return the images as the command reads them."""
    return read_images(options.images, options.limit)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.dataset")
