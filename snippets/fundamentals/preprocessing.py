"""DataFrame work beside the model: one function on frames, which runs on pandas and on cuDF."""

from __future__ import annotations

from snippets.fundamentals.dataset import list_images

# isort: split
# --8<-- [start:imports]
import io
import math
from typing import Any

import ray
from PIL import Image
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:read_headers]
def read_headers(batch: dict[str, Any], filesystem: fs.FileSystem) -> dict[str, Any]:
    """Return `id`, `bytes`, `width`, `height` (pixels) and `error` of image files.

    Only the header is parsed: no pixel is decoded. What has none gets a width and height of 0.
    """
    columns: dict[str, list[Any]] = {"bytes": [], "width": [], "height": [], "error": []}
    for path in batch["id"]:
        size, width, height, error = 0, 0, 0, ""
        try:
            with filesystem.open_input_stream(path) as stream:
                encoded = stream.readall()
            size = len(encoded)
            width, height = Image.open(io.BytesIO(encoded)).size
        except Exception as reason:
            error = f"{type(reason).__name__}: {reason}"
        for column, value in zip(columns.values(), (size, width, height, error), strict=True):
            column.append(value)
    return {"id": batch["id"], **columns}


# --8<-- [end:read_headers]


# --8<-- [start:add_features]
def add_features(frame: Any) -> Any:
    """Return a frame with `megapixels`, `bits_per_pixel` and `is_portrait` beside `id` and `error`.

    It calls only methods that pandas and cuDF share, and imports neither: the frame brings its library.
    """
    pixels = frame["width"] * frame["height"]
    frame = frame.assign(
        megapixels=pixels / 1e6,
        bits_per_pixel=(8 * frame["bytes"] / pixels).where(pixels > 0),
        is_portrait=frame["height"] > frame["width"],
    )
    return frame[["id", "megapixels", "bits_per_pixel", "is_portrait", "error"]]


# --8<-- [end:add_features]


# --8<-- [start:describe_images]
def describe_images(
    source: str | list[str], limit: int | None = None, batch_format: str = "pandas", num_gpus: float = 0
) -> ray.data.Dataset:
    """Return one row of features an image; `batch_format="cudf"` with a GPU computes them there."""
    filesystem, paths, _ = list_images(source, limit)
    return (
        ray.data.from_items([{"id": path} for path in paths], override_num_blocks=math.ceil(len(paths) / 256))
        .map_batches(read_headers, fn_kwargs={"filesystem": filesystem})
        .map_batches(add_features, batch_format=batch_format, batch_size=256, num_gpus=num_gpus)
    )


# --8<-- [end:describe_images]


def run(options: Any) -> ray.data.Dataset:
    """Return the features that the command asks for."""
    return describe_images(options.images, options.limit)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.preprocessing")
