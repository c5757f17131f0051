"""A file is decoded once, and each model is given the pixels that its own image processor would make."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import transformers
from PIL import Image
from pyarrow import fs

from snippets.fundamentals.actor_pool import decode_image
from snippets.optimization.ensemble_models import SmallModels, build_small_models
from snippets.optimization.ensemble_views import View, cut, decode_views, load_view

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def small() -> SmallModels:
    return build_small_models()


def test_each_checkpoint_says_what_it_wants(small: SmallModels) -> None:
    resnet, of_resnet = load_view(str(small.resnet))
    vit, of_vit = load_view(str(small.vit))
    assert (resnet, vit) == (View(224, 256, 3), View(224, None, 2))
    assert of_resnet.mean == (0.485, 0.456, 0.406) and of_vit.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (180, 135), (224, 224)])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_pixels_are_those_of_the_models_own_processor(
    small: SmallModels, name: str, size: tuple[int, int]
) -> None:
    folder = str(getattr(small, name))
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    view, to = load_view(folder)
    hub: Any = transformers
    expected = hub.AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="np")["pixel_values"][0]
    found = (cut(image, view) / 255 - to.mean) / to.std
    assert np.abs(found.transpose(2, 0, 1) - expected).max() < 3 / 255 / min(to.std)  # levels, of rounding twice


def test_the_crop_is_part_1s(small: SmallModels) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (333, 500, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    view, to = load_view(str(small.resnet))
    assert (cut(image, view) == decode_image(buffer.getvalue(), to)).all()


def test_a_file_is_decoded_once_for_all_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / name)
    opened: list[Any] = []
    whole = Image.open

    def open_and_count(file: Any) -> Any:
        opened.append(file)
        return whole(file)

    monkeypatch.setattr(Image, "open", open_and_count)
    views = (View(8, 9, 3), View(8, None, 2), View(4, None, 2))
    batch = {"id": [str(tmp_path / name) for name in ("a.png", "b.png")]}
    found = decode_views(batch, fs.LocalFileSystem(), views)
    assert len(opened) == 2
    assert [found[f"view_{index}"].shape for index in range(3)] == [(2, 8, 8, 3), (2, 8, 8, 3), (2, 4, 4, 3)]
    assert all((found[f"view_{index}"] == (10, 20, 30)).all() for index in range(3))


def test_a_file_that_cannot_be_decoded_keeps_its_row(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    found = decode_views({"id": [str(tmp_path / "text.jpg")]}, fs.LocalFileSystem(), (View(8, None, 2),))
    assert found["error"][0].startswith("UnidentifiedImageError: ")
    assert not found["view_0"].any()


VIT = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({**VIT, "size": {"height": 224, "width": 192}}, "not square"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}, "asks for other steps"),
    ],
)
def test_what_it_does_not_know_is_refused(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        load_view(str(tmp_path))


def test_a_size_may_be_one_number(tmp_path: Path) -> None:
    old = {**VIT, "size": 192, "feature_extractor_type": "ViTFeatureExtractor"}
    del old["image_processor_type"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert load_view(str(tmp_path))[0] == View(192, None, 2)
