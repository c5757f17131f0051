"""The small checkpoints are real ones: the library loads them, they know the samples, a seed decides them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from snippets.checkpoint import check_checkpoint
from snippets.fundamentals.actor_pool import Classifier
from snippets.optimization import ensemble_models
from snippets.optimization.ensemble_models import (
    SmallModels,
    build_small_models,
    labels_of,
    make_vit_backbone,
    models_for,
)
from snippets.optimization.ensemble_views import cut, load_view
from snippets.samples import LABELS

if TYPE_CHECKING:
    from snippets.samples import Samples


@pytest.fixture(scope="module")
def small() -> SmallModels:
    return build_small_models()


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_part_1s_classifier_loads_them_and_they_know_what_they_see(
    small: SmallModels, sample_set: Samples, name: str
) -> None:
    folder = getattr(small, name)
    check_checkpoint(str(folder))
    view, to = load_view(str(folder))
    paths = sorted(sample_set.held_out.rglob("*.jpg"))[::6]
    classifier = Classifier(str(folder), to, 16, "float32", 2)
    right = 0
    for start in range(0, len(paths), 16):
        part = paths[start : start + 16]
        images = np.stack([cut(Image.open(path).convert("RGB"), view) for path in part])
        rows = classifier({"id": np.array([*map(str, part)]), "image": images, "error": np.full(len(part), "")})
        right += sum(row["label"] == path.parent.name for row, path in zip(rows.to_pylist(), part, strict=True))
    assert right / len(paths) > 0.5  # chance is 0.1


def test_they_are_small(small: SmallModels, sample_set: Samples) -> None:
    def weight(folder: Path) -> int:
        return (folder / "model.safetensors").stat().st_size

    assert weight(small.resnet) < weight(small.vit) < weight(sample_set.model) / 5


def test_what_is_there_is_not_built_again(small: SmallModels, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(ensemble_models, "make_jpegs", build)
    assert build_small_models() == small
    with pytest.raises(AssertionError, match="built again"):
        build_small_models(labels=LABELS[:2])


def test_a_build_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(folder: Path, *_: Any) -> None:
        (folder / "half").parent.mkdir(parents=True, exist_ok=True)
        (folder / "half").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(ensemble_models, "make_jpegs", lambda *_: [])
    monkeypatch.setattr(ensemble_models, "_build_resnet", die)
    with pytest.raises(OSError, match="No space left"):
        build_small_models(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whoever_is_second_keeps_what_the_first_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble_models, "make_jpegs", lambda *_: [])
    monkeypatch.setattr(ensemble_models, "_build_resnet", lambda folder, *_: folder.mkdir())

    def build(folder: Path, *_: Any) -> None:  # the other process is done while this one builds
        folder.mkdir()
        first = tmp_path / ensemble_models._key(0, LABELS)
        (first / "small-vit").mkdir(parents=True)
        (first / "small-vit" / "config.json").touch()

    monkeypatch.setattr(ensemble_models, "_build_vit", build)
    found = build_small_models(tmp_path)
    assert (found.vit / "config.json").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_seed_decides_the_weights() -> None:
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "layernorm.weight": (4,), "embeddings.cls_token": (1, 1, 4)}
    first, again, other = (make_vit_backbone(shapes, seed) for seed in (0, 0, 1))
    for name in shapes:
        assert first[name].dtype == np.float32 and first[name].shape == shapes[name]
        assert (first[name] == again[name]).all()
    assert (first["a.weight"] != other["a.weight"]).any()
    assert first["layernorm.weight"].tolist() == [1, 1, 1, 1]


def test_the_environment_names_the_models_or_the_small_ones_are_built(
    small: SmallModels, sample_set: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELS", "a@1,b@2")
    assert models_for("model") == "a@1,b@2"
    monkeypatch.delenv("MODELS")
    assert models_for(str(sample_set.model)) == f"{small.resnet},{small.vit},{sample_set.model}"
    assert labels_of(small.vit) == labels_of(sample_set.model) == [*LABELS]
    assert models_for("name/on-the-hub@1") == "name/on-the-hub@1"
    (tmp_path / "config.json").write_text(
        json.dumps({"id2label": {str(index): f"{index}" for index in range(11)}})
    )
    assert models_for(str(tmp_path)) == str(tmp_path)
    assert labels_of(tmp_path)[9:] == ["9", "10"]
