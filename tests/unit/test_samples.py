"""The samples are the same bytes in every build, and the model is worth agreeing on."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from safetensors.numpy import save_file

from snippets import samples
from snippets.samples import LABELS, Samples, build_samples
from tests.conftest import OTHER_LABELS


@pytest.fixture(scope="module")
def default() -> Samples:
    return build_samples(samples.DEFAULT_ROOT)


@pytest.fixture
def stub_model(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the training by two tensors, for tests of what surrounds it; return the calls."""
    calls = []

    def build_model(folder: Path, *_: object, **__: object) -> float:
        calls.append(folder)
        folder.mkdir()
        save_file({"resnet.a": np.zeros(4), "classifier.1.bias": np.zeros(2)}, folder / "model.safetensors")
        return 0.8

    monkeypatch.setattr(samples, "build_model", build_model)
    return calls


def build_small(root: Path, count: int = 12, labels: Sequence[str] = ("ant", "bee")) -> Samples:
    return build_samples(root, count, seed=1, labels=labels)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        samples.build_images(tmp_path / name / "images", 30)
        samples.build_images(tmp_path / name / "held_out", 10, split=samples.HELD_OUT)
        samples.build_hostile(tmp_path / name / "hostile")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_no_two_images_are_equal_and_seeds_differ() -> None:
    first = [samples.make_jpegs(split, 20, 0, 10) for split in (samples.TRAIN, samples.HELD_OUT, samples.IMAGES)]
    other_seed = samples.make_jpegs(samples.IMAGES, 20, 1, 10)
    assert len({data for jpegs in [*first, other_seed] for data in jpegs}) == 80


def test_backbone_is_a_function_of_seed_and_name() -> None:
    shapes = {"a.convolution.weight": (8, 4, 3, 3), "a.normalization.running_var": (8,)}
    one, two, other = (samples.make_backbone(shapes, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], two[name]) for name in shapes)
    assert not np.array_equal(one["a.convolution.weight"], other["a.convolution.weight"])
    # Each filter sums to about zero: to within one step of the integers that it was made from.
    filters = one["a.convolution.weight"]
    assert abs(filters.sum(axis=(1, 2, 3))).max() < 36 * abs(filters).max() / 32768 * 2


def test_default_images_are_spread_like_photographs(default: Samples) -> None:
    paths = sorted(default.images.rglob("*.jpg"))
    assert len(paths) == 512
    assert {path.parent.name for path in paths} == set(LABELS)
    assert len({path.name for path in [*paths, *default.held_out.rglob("*.jpg")]}) == 662
    images = [Image.open(path) for path in paths]
    modes = Counter(image.mode for image in images)
    assert set(modes) == {"RGB", "L", "CMYK"}
    assert 5 <= modes["CMYK"] < modes["L"] <= 40
    assert 95_000 <= statistics.mean(path.stat().st_size for path in paths) <= 125_000
    assert 430 <= statistics.median(max(image.size) for image in images) <= 500
    assert min(max(image.size) for image in images) < 250
    assert 1000 < max(max(image.size) for image in images) <= 1200
    portrait = sum(image.height > image.width for image in images)
    assert 0.15 < portrait / len(images) < 0.4


def test_manifest_describes_every_image(default: Samples) -> None:
    import hashlib

    import pyarrow.parquet as pq

    rows = pq.read_table(default.manifest).to_pylist()
    assert list(rows[0]) == ["path", "label", "width", "height", "bytes", "sha256"]
    assert len(rows) == 512
    for row in rows[::40]:
        path = default.manifest.parent / row["path"]
        data = path.read_bytes()
        assert (row["label"], row["bytes"]) == (path.parent.name, len(data))
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert Image.open(path).size == (row["width"], row["height"])


def test_default_build_matches_the_committed_hashes(default: Samples) -> None:
    samples.verify_hashes(default.manifest.parent)


def test_each_hostile_file_is_what_it_claims(tmp_path: Path) -> None:
    samples.build_hostile(tmp_path)
    with pytest.raises(OSError, match="truncated"):
        Image.open(tmp_path / "truncated.jpg").load()
    assert (tmp_path / "zero_bytes.jpg").stat().st_size == 0
    for name in ("zero_bytes.jpg", "text.jpg", "README.txt"):
        with pytest.raises(UnidentifiedImageError):
            Image.open(tmp_path / name)
    bomb = tmp_path / "claims_20000x20000.jpg"
    assert bomb.stat().st_size < 2000
    with pytest.raises(Image.DecompressionBombError, match="400000000 pixels"):
        Image.open(bomb)  # refused before anything is allocated: not even `load` is reached
    assert Image.open(tmp_path / "one_pixel.jpg").size == (1, 1)
    assert Image.open(tmp_path / "png_inside.jpg").format == "PNG"
    animation = Image.open(tmp_path / "animated.gif")
    assert (animation.format, getattr(animation, "n_frames", 1)) == ("GIF", 3)
    odd = [path for path in tmp_path.iterdir() if not path.name.isascii() and " " in path.name]
    assert len(odd) == 1
    Image.open(odd[0]).load()
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".jpg", ".gif")] == ["README.txt"]


@pytest.mark.parametrize("count", [5, 30])
def test_another_count_links_the_images_under_unique_ids(tmp_path: Path, count: int) -> None:
    labels = ("ant", "bee", "cat")
    samples.build_images(tmp_path / "images", 12, labels=labels)
    samples.link_images(tmp_path / "images", tmp_path / "linked", count, 12, labels)
    links = list((tmp_path / "linked").rglob("*.jpg"))
    assert len({path.name for path in links}) == len(links) == count
    inodes = {path.stat().st_ino for path in links}
    assert inodes <= {path.stat().st_ino for path in (tmp_path / "images").rglob("*.jpg")}
    assert len(inodes) == min(count, 12)


def test_links_fall_back_to_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    samples.build_images(tmp_path / "images", 4, labels=("ant", "bee"))
    monkeypatch.setattr(os, "link", refuse)
    samples.link_images(tmp_path / "images", tmp_path / "linked", 4, 4, ("ant", "bee"))
    assert contents(tmp_path / "images") == contents(tmp_path / "linked")


def test_a_larger_default_set_lies_beside_the_base_set(
    tmp_path: Path, stub_model: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "BASE_COUNT", 20)
    built = build_samples(tmp_path, 50, verify=False)
    assert built.images == tmp_path / "images-50"
    assert len(list(built.images.rglob("*.jpg"))) == 50
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 20
    next(built.images.rglob("*.jpg")).unlink()
    build_samples(tmp_path, 50, verify=False)
    assert len(list(built.images.rglob("*.jpg"))) == 50
    assert len(stub_model) == 1  # the base set was not built again


def test_a_valid_stamp_is_respected(tmp_path: Path, stub_model: list[Path]) -> None:
    first = build_small(tmp_path)
    before = (tmp_path / "samples.json").read_bytes()
    assert build_small(tmp_path) == first
    assert len(stub_model) == 1
    assert (tmp_path / "samples.json").read_bytes() == before
    stamp = json.loads(before)
    assert (stamp["key"]["seed"], stamp["key"]["count"], stamp["held_out_accuracy"]) == (1, 12, 0.8)
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("damage", ["delete an image", "shorten an image", "spoil the stamp"])
def test_what_was_damaged_is_built_again(tmp_path: Path, stub_model: list[Path], damage: str) -> None:
    built = build_small(tmp_path)
    expected = contents(built.images)
    image = next(built.images.rglob("*.jpg"))
    if damage == "delete an image":
        image.unlink()
    elif damage == "shorten an image":
        image.write_bytes(image.read_bytes()[:-1])
    else:
        (tmp_path / "samples.json").write_text("{")
    build_small(tmp_path)
    assert len(stub_model) == 2
    assert contents(built.images) == expected


def test_another_seed_or_label_set_replaces_the_samples(tmp_path: Path, stub_model: list[Path]) -> None:
    build_small(tmp_path)
    built = build_small(tmp_path, labels=("cat", "dog"))
    assert sorted(path.name for path in built.images.iterdir()) == ["cat", "dog"]
    assert len(stub_model) == 2


def test_an_interrupted_build_is_redone(
    tmp_path: Path, stub_model: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(samples, "build_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_small(tmp_path)
    assert not (tmp_path / "samples.json").exists()
    assert not (tmp_path / "images").exists()
    (tmp_path / ".partial" / "left_by_a_killed_process").mkdir(parents=True)
    assert len(list(build_small(tmp_path).images.rglob("*.jpg"))) == 12
    assert not (tmp_path / ".partial").exists()


def test_a_changed_byte_fails_the_verification(tmp_path: Path, stub_model: list[Path]) -> None:
    built = build_small(tmp_path)
    committed = tmp_path / "hashes.json"
    samples.write_hashes(tmp_path, committed)
    samples.verify_hashes(tmp_path, committed)
    image = next((built.images / "bee").rglob("*.jpg"))
    data = image.read_bytes()
    image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(samples.HashMismatchError, match=r"^images/bee under .*numpy.*pillow"):
        samples.verify_hashes(tmp_path, committed)

    record = json.loads(committed.read_text())
    record["versions"]["pillow"] = "0.0.1"
    committed.write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"images/bee .* made with .*0\.0\.1"):
        samples.verify_hashes(tmp_path, committed)
    image.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples.verify_hashes(tmp_path, committed)


def test_the_trained_head_is_no_part_of_the_backbone_hash(tmp_path: Path, stub_model: list[Path]) -> None:
    build_small(tmp_path)
    before = samples.current_hashes(tmp_path)["backbone"]
    weights = tmp_path / "model" / "model.safetensors"
    save_file({"resnet.a": np.zeros(4), "classifier.1.bias": np.ones(2)}, weights)
    assert samples.current_hashes(tmp_path)["backbone"] == before
    save_file({"resnet.a": np.ones(4), "classifier.1.bias": np.ones(2)}, weights)
    assert samples.current_hashes(tmp_path)["backbone"] != before


def test_head_separates_what_can_be_separated() -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(90) % 3
    features = rng.normal(size=(90, 40)) + 3 * np.eye(40)[classes]
    weight, bias = samples.fit_head(features, classes, 3)
    assert (weight.shape, bias.shape) == ((3, 40), (3,))
    assert weight.dtype == bias.dtype == np.float32
    assert ((features @ weight.T + bias).argmax(axis=1) == classes).mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 0}, r"^The count of images must be at least 1, not 0\.$"),
        ({"count": -3}, r"^The count of images must be at least 1, not -3\.$"),
        ({"seed": -1}, r"^The seed must be 0 or greater, not -1\.$"),
        ({"labels": ("ant",)}, r"^There must be 2 to 10 labels, all different, not \['ant'\]\.$"),
        ({"labels": ("ant", "ant")}, r"all different"),
        ({"labels": ("ant", "../bee")}, r"^A label names a folder, which '\.\./bee' cannot\.$"),
    ],
)
def test_bad_arguments_end_in_one_sentence(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_samples(tmp_path / "root", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "root").exists()


def test_a_folder_of_someone_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="was not built by this command"):
        build_small(tmp_path)
    assert (tmp_path / "images" / "holiday.jpg").read_bytes() == b"mine"


def test_command_prints_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert samples.main(["--root", str(file)]) == 2
    assert capsys.readouterr().err == f"The root of the samples must be a folder, and {file} is a file.\n"
    assert samples.main(["--root", str(file / "below")]) == 2
    assert samples.main(["--root", str(tmp_path / "new"), "--count", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_second_run_of_the_command_rebuilds_nothing_and_imports_no_torch(default: Samples) -> None:
    code = (
        "import sys; from snippets import samples; status = samples.main(['--json']); "
        "sys.exit(status or 3 * any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    stamp = (default.manifest.parent / "samples.json").read_bytes()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (default.manifest.parent / "samples.json").read_bytes() == stamp
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["images"] == str(default.images)
    assert report["held_out_accuracy"] == default.held_out_accuracy


def accuracy_and_scores(built: Samples, paths: Sequence[Path]) -> tuple[float, np.ndarray]:
    """Label images as a reader would, with the public pipeline."""
    import torch
    from transformers import pipeline

    with torch.inference_mode():
        classify = pipeline("image-classification", model=str(built.model), device="cpu", top_k=1)
        outputs = [classify(str(path))[0] for path in paths]
    right = [output["label"] == path.parent.name for output, path in zip(outputs, paths, strict=True)]
    return statistics.mean(right), np.array([output["score"] for output in outputs])


def test_held_out_accuracy_is_worth_agreeing_on(default: Samples) -> None:
    assert 0.70 <= default.held_out_accuracy <= 0.95
    paths = sorted(default.held_out.rglob("*.jpg"))[::4]
    accuracy, scores = accuracy_and_scores(default, paths)
    assert 0.65 <= accuracy <= 1.0
    assert scores.min() < 0.7 < scores.max()
    assert f"{default.held_out_accuracy:.1%}" in (default.model / "README.md").read_text()


def test_checkpoint_has_the_public_architecture_and_processor(default: Samples) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(default.model)
    backbone = sum(tensor.numel() for tensor in model.resnet.parameters())
    assert backbone == 23_508_032  # ResNet-50 without its last layer
    assert model.config.architectures == ["ResNetForImageClassification"]
    assert tuple(model.config.id2label.values()) == LABELS
    processor = AutoImageProcessor.from_pretrained(default.model)
    assert type(processor).__name__.startswith("ConvNextImageProcessor")
    pixels = processor(Image.new("RGB", (500, 375), "white"), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert np.allclose(pixels[0, :, 0, 0], expected, atol=1e-4)


def test_bfloat16_agrees_with_float32(default: Samples) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(default.model)
    images = [Image.open(path).convert("RGB") for path in sorted(default.images.rglob("*.jpg"))[::16]]
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    labels = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForImageClassification.from_pretrained(default.model, dtype=dtype).eval()
        with torch.inference_mode():
            labels.append(model(pixels.to(dtype)).logits.argmax(dim=1))
    assert (labels[0] == labels[1]).float().mean() >= 0.95


def test_another_set_with_other_labels(other_sample_set: Samples) -> None:
    built = other_sample_set
    paths = sorted(built.images.rglob("*.jpg"))
    assert len(paths) == 64
    assert {path.parent.name for path in paths} == set(OTHER_LABELS)
    assert {Image.open(path).mode for path in paths} == {"RGB", "L", "CMYK"}
    accuracy, _ = accuracy_and_scores(built, paths[::4])
    assert accuracy > 0.5
    assert built.held_out_accuracy > 0.6
