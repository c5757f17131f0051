"""Decode an image once, and cut from it the pixels that each of several models wants."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import Preprocessing, load_preprocessing
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:view]
@dataclass(frozen=True)
class View:
    """The square of pixels that a model is given of an image. Models with equal views share the array.

    `side` is that of the square. `resize` is the length of the shorter edge before the square is cut from the
    centre; None squeezes the whole image into it. Both are in pixels; `resample` is Pillow's number of a filter.
    """

    side: int
    resize: int | None
    resample: int


SQUEEZING = ("ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor")


def load_view(model: str) -> tuple[View, Preprocessing]:
    """Return the view that a checkpoint asks for, and its preprocessing with mean and standard deviation.

    It knows ConvNext's way, which is ResNet's too, and the vision transformer's. Raises `ValueError` for others.
    """
    name, revision = split_revision(model)
    path = Path(name) / "preprocessor_config.json"
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(name, "preprocessor_config.json", revision=revision))
    config = json.loads(path.read_text())
    if config.get("image_processor_type", config.get("feature_extractor_type")) not in SQUEEZING:
        to = load_preprocessing(model)
        return View(to.crop, to.resize, to.resample), to
    size = config["size"]  # a number, in checkpoints of before 2023
    side = size if isinstance(size, int) else size["height"]
    if not isinstance(size, int) and size["width"] != side:
        raise ValueError(f"{path} asks for an image that is not square.")
    to = Preprocessing(side, side, config["resample"], tuple(config["image_mean"]), tuple(config["image_std"]))
    return View(side, None, to.resample), to


# --8<-- [end:view]


# --8<-- [start:decode]
def cut(image: Image.Image, view: View) -> np.ndarray:
    """Return the pixels of a view, uint8 (side, side, 3). Only those that it keeps are computed."""
    width, height = image.size
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if view.resize is not None:
        short = min(width, height)
        resized_width, resized_height = view.resize * width // short, view.resize * height // short
        left, top = (resized_width - view.side) // 2, (resized_height - view.side) // 2
        x, y = width / resized_width, height / resized_height  # source pixels for one resized pixel
        box = (left * x, top * y, (left + view.side) * x, (top + view.side) * y)
    return np.asarray(image.resize((view.side, view.side), Image.Resampling(view.resample), box))


def decode_views(batch: dict[str, Any], filesystem: fs.FileSystem, views: Sequence[View]) -> dict[str, Any]:
    """Read and decode each file once, into `id`, `view_0`, `view_1` ... (uint8, n x side x side x 3) and `error`.

    A file that cannot be read or decoded keeps its row: `error` says why, its pixels are zero.
    """
    pixels = [np.zeros((len(batch["id"]), view.side, view.side, 3), np.uint8) for view in views]
    errors = []
    for row, path in enumerate(batch["id"]):
        try:
            with filesystem.open_input_stream(path) as stream:
                image = Image.open(io.BytesIO(stream.readall())).convert("RGB")
            for of_view, view in zip(pixels, views, strict=True):
                of_view[row] = cut(image, view)
            errors.append("")
        except Exception as error:  # Pillow's decoders raise many types, and none may end the job
            errors.append(f"{type(error).__name__}: {error}")
    columns = {f"view_{index}": of_view for index, of_view in enumerate(pixels)}
    return {"id": batch["id"], **columns, "error": errors}


# --8<-- [end:decode]
