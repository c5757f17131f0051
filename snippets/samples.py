"""Build the sample images and the sample ResNet-50 from a seed: no download, the same bytes on every machine.

The images are colour fields under noise, named for what their colours suggest. Each also carries patches of
one other class, which makes some of them hard. Only integers from numpy's generators and Pillow's fixed-point
operations touch a pixel, so that the bytes do not depend on the processor.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import sys
import time
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# Five colours a class: the far field (sky), three near fields, and one that only the round shapes have.
PALETTES = {
    "blossom": ((222, 226, 236), (246, 200, 214), (240, 164, 188), (178, 128, 128), (252, 232, 238)),
    "desert": ((150, 186, 214), (222, 190, 140), (204, 160, 104), (170, 120, 76), (236, 212, 170)),
    "forest": ((120, 150, 130), (52, 94, 50), (34, 68, 36), (84, 66, 44), (96, 138, 66)),
    "lavender": ((196, 200, 226), (150, 120, 190), (112, 84, 160), (92, 116, 84), (182, 152, 216)),
    "night": ((14, 18, 44), (20, 26, 58), (10, 12, 26), (34, 38, 72), (196, 200, 210)),
    "ocean": ((150, 196, 226), (48, 128, 178), (22, 88, 142), (16, 64, 112), (206, 228, 236)),
    "poppies": ((164, 186, 206), (204, 44, 36), (172, 28, 28), (70, 100, 48), (230, 84, 62)),
    "snow": ((188, 206, 226), (236, 240, 246), (222, 230, 240), (150, 164, 184), (250, 252, 254)),
    "sunflowers": ((138, 178, 216), (242, 196, 40), (226, 168, 22), (88, 112, 40), (112, 70, 26)),
    "sunset": ((108, 70, 110), (232, 120, 60), (250, 168, 74), (90, 44, 58), (254, 210, 130)),
}
LABELS = tuple(PALETTES)
COLOURS = np.array(list(PALETTES.values()), dtype=np.int16)  # (10, 5, 3)

# Width and height in pixels, and in how many of 30 images they occur.
SIZES: list[tuple[int, int]] = []
for _size, _times in {(500, 375): 10, (375, 500): 4, (500, 333): 4, (333, 500): 2}.items():
    SIZES += [_size] * _times
SIZES += [(500, 400), (500, 500), (640, 480), (480, 640), (300, 225), (240, 320), (180, 135)]
SIZES += [(800, 600), (1200, 900), (1024, 683)]

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / ".cache" / "samples"
HASHES = Path(__file__).with_name("samples_hashes.json")
BASE_COUNT = 512
RESNET_50 = (3, 4, 6, 3)
SHALLOW = (1, 1, 1, 1)
TRAIN, HELD_OUT, IMAGES = 0, 1, 2  # splits: part of each image's seed, so that no image is in two of them
PACKAGES = ("numpy", "pillow", "torch", "transformers")
PARTS = ("images", "held_out", "hostile", "model", "manifest.parquet")
RELU_VARIANCE = 0.5 - 0.5 / np.pi  # of max(0, x) for x from a standard normal distribution


@dataclass(frozen=True)
class Samples:
    """Where the samples lie, and the share of the held-out images that the model labels right (0 to 1)."""

    images: Path
    held_out: Path
    hostile: Path
    manifest: Path
    model: Path
    held_out_accuracy: float


class HashMismatchError(RuntimeError):
    """The built files are not the committed ones although the versions are."""


def make_image(rng: np.random.Generator, label: int, labels: int) -> Image.Image:
    """Draw one RGB image of class `label` (an index below `labels`), with patches of one other class."""
    width, height = SIZES[rng.integers(len(SIZES))]
    width -= int(rng.integers(0, width // 12))
    height -= int(rng.integers(0, height // 12))
    rows, columns = int(rng.integers(6, 10)), int(rng.integers(6, 10))
    other = (label + int(rng.integers(1, labels))) % labels
    other_percent = int(rng.integers(0, 54))  # above 50 the picture shows more of the other class: an honest error
    horizon = int(rng.integers(1, rows // 2))

    tone = np.where(np.arange(rows)[:, None] < horizon, 0, rng.integers(1, 4, (rows, columns)))
    owner = np.where(rng.integers(0, 100, (rows, columns)) < other_percent, other, label)
    # One cast for the whole image and one shift a cell: the colours of neighbouring classes overlap.
    cells = COLOURS[owner, tone] + rng.integers(-18, 19, (rows, columns, 3)) + rng.integers(-24, 25, 3)
    image = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
    image = image.resize((width, height), Image.Resampling.BICUBIC)

    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(15, 60))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        radius = int(rng.integers(2, 4 + min(width, height) // 14))
        owner_of_shape = other if rng.integers(100) < other_percent else label
        red, green, blue = COLOURS[owner_of_shape, rng.integers(1, 5)].tolist()
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))
    return _add_texture(rng, image)


def _add_texture(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Add coarse, fine and coloured noise: it gives the files the bytes per pixel of a photograph."""
    width, height = image.size
    amplitude = int(rng.integers(10, 34))
    coarse = Image.fromarray(rng.integers(0, 256, (height // 6 + 1, width // 6 + 1), dtype=np.uint8))
    coarse = coarse.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int16)
    pixels += ((np.asarray(coarse).astype(np.int16) - 128) * amplitude // 96)[:, :, None]
    pixels += rng.integers(-amplitude, amplitude + 1, (height, width, 1), dtype=np.int16)
    pixels += rng.integers(-amplitude // 3, amplitude // 3 + 1, (height, width, 3), dtype=np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_jpeg(split: int, index: int, seed: int, labels: int) -> bytes:
    """Return image `index` of a split as a JPEG file; its class is `index % labels`.

    Of the images every 23rd is greyscale and every 53rd CMYK: primes, so that they fall into all classes.
    """
    rng = np.random.default_rng([seed, split, index])
    image = make_image(rng, index % labels, labels)
    if index % 23 == 7:
        image = image.convert("L")
    elif index % 53 == 11:
        image = image.convert("CMYK")
    return _jpeg(image, quality=int(rng.integers(85, 96)))


def _jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_jpegs(split: int, count: int, seed: int, labels: int) -> list[bytes]:
    """Return the first `count` images of a split. Threads suffice: numpy and Pillow release the lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda index: make_jpeg(split, index, seed, labels), range(count)))


def build_images(
    folder: Path, count: int, seed: int = 0, labels: Sequence[str] = LABELS, split: int = IMAGES
) -> None:
    """Write `count` JPEGs to `folder/<class>/<id>.jpg`, the classes in turn."""
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
    prefix = "held_out_" if split == HELD_OUT else ""
    for index, data in enumerate(make_jpegs(split, count, seed, len(labels))):
        label = labels[index % len(labels)]
        (folder / label / f"{prefix}{label}_{index:05d}.jpg").write_bytes(data)


def link_images(source: Path, folder: Path, count: int, base_count: int, labels: Sequence[str]) -> None:
    """Fill `folder` with `count` images, those of `source` again and again under new ids, as hard links."""
    for label in labels:
        (folder / label).mkdir(parents=True)
    for index in range(count):
        base = index % base_count
        label = labels[base % len(labels)]
        original = source / label / f"{label}_{base:05d}.jpg"
        link = folder / label / f"{label}_{index:05d}.jpg"
        try:
            os.link(original, link)
        except OSError:  # a file system without hard links, or the limit of links to one file
            shutil.copyfile(original, link)


def build_hostile(folder: Path, seed: int = 0, labels: int = len(LABELS)) -> None:
    """Write the files that break careless pipelines: five that no decoder accepts, and odd valid ones."""
    folder.mkdir(parents=True, exist_ok=True)
    jpeg = make_jpeg(TRAIN, 0, seed, labels)
    pixel = _jpeg(Image.new("RGB", (1, 1), (200, 100, 50)))
    height_at = pixel.index(b"\xff\xc0") + 5  # frame header: marker, length, precision, height, width
    claim = (20_000).to_bytes(2, "big") * 2
    png, gif = io.BytesIO(), io.BytesIO()
    # Stored, not compressed: what a deflate library makes of the same bytes differs between processors.
    Image.new("RGB", (64, 48), (48, 128, 178)).save(png, "PNG", compress_level=0)
    frames = [Image.new("L", (64, 48), shade) for shade in (40, 120, 200)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    files = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "zero_bytes.jpg": b"",
        "text.jpg": b"This is text, not an image.\n",
        "claims_20000x20000.jpg": pixel[:height_at] + claim + pixel[height_at + 4 :],
        "one_pixel.jpg": pixel,
        "png_inside.jpg": png.getvalue(),
        "animated.gif": gif.getvalue(),
        "d\u00e9j\u00e0 vu \u5c71.jpg": jpeg,
        "README.txt": b"Files that a pipeline must survive. This one has no image suffix.\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)


def write_manifest(images: Path, manifest: Path) -> None:
    """Write one row an image: path (relative to the manifest), label, width, height, bytes, sha256."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for path in sorted(images.rglob("*.jpg")):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        relative = path.relative_to(manifest.parent).as_posix()
        digest = hashlib.sha256(data).hexdigest()
        rows.append((relative, path.parent.name, width, height, len(data), digest))
    names = ("path", "label", "width", "height", "bytes", "sha256")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), manifest)


def make_backbone(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Return the backbone's tensors (float32; counters int64) by name, from their shapes.

    He's initialisation with three changes that keep random features informative through 50 layers: a filter
    sums to about zero, which removes the mean that ReLU adds; biases are random; residual branches count 0.2.
    """
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        kind = name.rsplit(".", 2)[-2] + "." + name.rsplit(".", 1)[-1]
        ends_a_branch = ".layer.2." in name
        if kind == "convolution.weight":
            integers = rng.integers(-32768, 32768, shape, dtype=np.int16).astype(np.int32)
            fan_in = int(np.prod(shape[1:]))
            variance = 1 / fan_in
            if "embedder" not in name:
                integers -= integers.sum(axis=(1, 2, 3), keepdims=True) // fan_in
                variance /= RELU_VARIANCE
            tensors[name] = integers.astype(np.float32) * np.float32(np.sqrt(3 * variance) / 32768)
        elif kind == "normalization.bias" and not ends_a_branch:
            tensors[name] = rng.integers(-128, 129, shape).astype(np.float32) / np.float32(128)
        elif kind == "normalization.weight":
            tensors[name] = np.full(shape, 0.2 if ends_a_branch else 1.0, np.float32)
        else:
            dtype = np.int64 if kind.endswith("num_batches_tracked") else np.float32
            tensors[name] = np.full(shape, 1 if kind.endswith("running_var") else 0, dtype)
    return tensors


def fit_head(features: np.ndarray, classes: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (labels, features) and bias (labels,), float32, by ridge regression on one-hot targets.

    `features` is (n, features) float, `classes` is (n,) int. The logits are scaled by the whole number that
    makes the leave-one-out predictions most likely: a score then says about how often such a label is right.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features.astype(np.float64) - mean
    kernel = centred @ centred.T
    penalty = 0.1 * np.trace(kernel) / len(kernel)  # strong: wide margins survive bfloat16
    targets = np.eye(labels)[classes]
    prior = targets.mean(axis=0)
    inverse = np.linalg.inv(kernel + penalty * np.eye(len(kernel)))
    weight = centred.T @ (inverse @ (targets - prior))
    hat = kernel @ inverse
    leverage = np.diag(hat)[:, None]
    left_out = prior + (hat @ (targets - prior) - leverage * (targets - prior)) / (1 - leverage)

    def loss(scale: int) -> float:
        logits = scale * left_out
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(classes)), classes]))

    scale = min(range(1, 31), key=loss)
    return (scale * weight.T).astype(np.float32), (scale * (prior - mean @ weight)).astype(np.float32)


def build_model(
    folder: Path,
    held_out: Path,
    seed: int = 0,
    labels: Sequence[str] = LABELS,
    depths: Sequence[int] = RESNET_50,
    train_per_label: int = 30,
) -> float:
    """Write the checkpoint and its card; return its accuracy (0 to 1) on the images under `held_out`."""
    import torch
    import transformers

    hub: Any = transformers  # half of its functions have no types
    names = dict(enumerate(labels))
    config = hub.ResNetConfig(depths=list(depths), id2label=names, label2id={v: k for k, v in names.items()})
    model = hub.ResNetForImageClassification(config).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.resnet.state_dict().items()}
    backbone = {name: torch.from_numpy(np.array(t)) for name, t in make_backbone(shapes, seed).items()}
    model.resnet.load_state_dict(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")
    processor = hub.AutoImageProcessor.from_pretrained(folder)

    def run(module: Any, jpegs: Sequence[bytes]) -> np.ndarray:
        def preprocess(data: bytes) -> Any:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            return processor(images=image, return_tensors="pt")["pixel_values"]

        outputs = []
        with ThreadPoolExecutor(2) as pool, torch.inference_mode():
            for start in range(0, len(jpegs), 32):
                pixels = torch.cat(list(pool.map(preprocess, jpegs[start : start + 32])))
                outputs.append(module(pixels.to(memory_format=torch.channels_last)))
        return np.concatenate([output.numpy() for output in outputs])

    train_count = train_per_label * len(labels)
    model.to(memory_format=torch.channels_last)
    features = run(
        lambda pixels: model.resnet(pixels).pooler_output.flatten(1),
        make_jpegs(TRAIN, train_count, seed, len(labels)),
    )
    weight, bias = fit_head(features, np.arange(train_count) % len(labels), len(labels))
    model.classifier[1].load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    with _quiet_transformers():
        model.to(memory_format=torch.contiguous_format).save_pretrained(folder)
        # Measured on what a reader loads, not on what is in memory here.
        loaded = hub.AutoModelForImageClassification.from_pretrained(folder).eval()
    paths = sorted(held_out.rglob("*.jpg"))
    truth = np.array([labels.index(path.parent.name) for path in paths])
    loaded.to(memory_format=torch.channels_last)
    logits = run(lambda pixels: loaded(pixels).logits, [path.read_bytes() for path in paths])
    accuracy = round(float((logits.argmax(axis=1) == truth).mean()), 4)
    (folder / "README.md").write_text(_model_card(labels, depths, train_count, len(paths), accuracy, seed))
    return accuracy


# What microsoft/resnet-50 does to an image.
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True, "size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3,
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide the library's progress bars: whoever calls this shows their own."""
    import transformers

    logging: Any = transformers.utils.logging
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _model_card(
    labels: Sequence[str], depths: Sequence[int], trained_on: int, held_out: int, accuracy: float, seed: int
) -> str:
    name = "ResNet-50" if tuple(depths) == RESNET_50 else f"a bottleneck ResNet of depths {tuple(depths)}"
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
---

# Sample model

**What it is.** The public architecture of {name}, and so its cost in time and memory, for the sample
images of this course. The backbone's weights are random (seed {seed}); only the last layer is trained.

**What it is not.** It knows nothing about photographs: its answer for any real image is worthless.

**How it was made.** By `snippets/samples.py`: random filters that sum to about zero, then a ridge regression
from the pooled features of {trained_on} generated images, none of them a sample or a held-out image.

**Accuracy.** {accuracy:.1%} of {held_out} held-out generated images, measured when it was built, through this
folder's own image processor, in float32.

**Labels.** {", ".join(labels)}.
"""


def _digest(named: Iterator[tuple[str, bytes]]) -> str:
    """Return a SHA-256 over names and contents. Names are composed: some file systems decompose them."""
    digest = hashlib.sha256()
    for name, data in named:
        digest.update(f"{unicodedata.normalize('NFC', name)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def current_hashes(root: Path) -> dict[str, str]:
    """Return the digests of the class folders, the held-out and hostile sets and the backbone's tensors."""
    from safetensors.numpy import load_file

    folders = {f"images/{path.name}": path for path in sorted((root / "images").iterdir())}
    folders |= {"held_out": root / "held_out", "hostile": root / "hostile"}
    hashes = {}
    for group, folder in folders.items():
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        by_name = sorted((unicodedata.normalize("NFC", name), path) for name, path in files.items())
        hashes[group] = _digest((name, path.read_bytes()) for name, path in by_name)
    tensors = load_file(root / "model" / "model.safetensors")
    backbone = sorted(name for name in tensors if not name.startswith("classifier"))
    hashes["backbone"] = _digest((name, tensors[name].tobytes()) for name in backbone)
    return hashes


def verify_hashes(root: Path, committed: Path = HASHES) -> None:
    """Compare what is under `root` with the committed digests.

    Raises HashMismatchError naming the groups that differ. Where the installed Pillow or numpy is not the one
    that the digests were made with, it warns instead.
    """
    record = json.loads(committed.read_text())
    found, expected = current_hashes(root), record["sha256"]
    differing = sorted(
        group for group in found.keys() | expected.keys() if found.get(group) != expected.get(group)
    )
    if not differing:
        return
    sentence = f"{', '.join(differing)} under {root} differ from the hashes in {committed.name}"
    installed = {name: importlib.metadata.version(name) for name in record["versions"]}
    if installed != record["versions"]:
        warnings.warn(
            f"{sentence}, which were made with {record['versions']}; installed: {installed}.", stacklevel=2
        )
        return
    raise HashMismatchError(f"{sentence}, although the versions that decide the bytes are the same ({installed}).")


def write_hashes(root: Path, committed: Path = HASHES) -> None:
    """Record the digests of what is under `root`, with the versions that decide the bytes."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}
    committed.write_text(json.dumps({"versions": versions, "sha256": current_hashes(root)}, indent=2) + "\n")


def build_samples(
    root: Path,
    count: int = BASE_COUNT,
    seed: int = 0,
    labels: Sequence[str] = LABELS,
    depths: Sequence[int] | None = None,
    verify: bool = True,
) -> Samples:
    """Build what is missing under `root` and return where everything lies.

    With the default seed and labels there are always 512 images and a ResNet-50, checked against the
    committed hashes; another `count` gets a folder of links beside them. With others there are `count` images
    and, unless `depths` says otherwise, a shallow ResNet; labels take the default ones' colours in order.

    Raises ValueError for a bad argument, OSError if the disk is full, HashMismatchError if bytes differ.
    """
    root, labels = Path(root), tuple(labels)
    _check_arguments(root, count, seed, labels)
    default = seed == 0 and labels == LABELS
    base_count = BASE_COUNT if default else count
    depths = tuple(depths or (RESNET_50 if default else SHALLOW))
    key = _key(base_count, seed, labels, depths)
    linked = root / f"images-{count}" if count != base_count else None

    if not _is_complete(root, key, linked, count):
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds everything built
            with _partial_folder(root) as partial:
                if not _is_complete(root, key, None, count):
                    _build_base(root, partial, key, verify and default)
                if linked is not None and not _is_complete(root, key, linked, count):
                    link_images(root / "images", partial / linked.name, count, base_count, labels)
                    _replace(partial / linked.name, linked)
    accuracy = json.loads((root / "samples.json").read_text())["held_out_accuracy"]
    images, held_out, hostile, model, manifest = (root / part for part in PARTS)
    return Samples(linked or images, held_out, hostile, manifest, model, accuracy)


def images_and_model() -> tuple[str, str]:
    """Return the environment's IMAGES and MODEL, and for one that is not set the sample, which is built here."""
    images, model = os.environ.get("IMAGES"), os.environ.get("MODEL")
    if images and model:
        return images, model
    samples = build_samples(DEFAULT_ROOT)
    return images or str(samples.images), model or str(samples.model)


def _check_arguments(root: Path, count: int, seed: int, labels: tuple[str, ...]) -> None:
    if count < 1:
        raise ValueError(f"The count of images must be at least 1, not {count}.")
    if seed < 0:
        raise ValueError(f"The seed must be 0 or greater, not {seed}.")
    if not 2 <= len(labels) <= len(LABELS) or len(set(labels)) < len(labels):
        raise ValueError(f"There must be 2 to {len(LABELS)} labels, all different, not {list(labels)}.")
    for label in labels:
        if not label or label.startswith(".") or "/" in label or "\\" in label:
            raise ValueError(f"A label names a folder, which {label!r} cannot.")
    if root.exists() and not root.is_dir():
        raise ValueError(f"The root of the samples must be a folder, and {root} is a file.")
    ours = (root / ".lock").exists() or (root / "samples.json").exists()
    taken = [part for part in PARTS if (root / part).exists()]
    if taken and not ours:
        raise ValueError(
            f"{root / taken[0]} was not built by this command, which would replace it: choose another root."
        )


def _key(base_count: int, seed: int, labels: Sequence[str], depths: Sequence[int]) -> dict[str, Any]:
    """Return all that the built files depend on: a stamp with another key is out of date."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    key = {"source_sha256": source, "versions": versions, "seed": seed, "count": base_count}
    return key | {"labels": list(labels), "depths": list(depths)}


def _inventory(root: Path) -> dict[str, int]:
    """Count files and bytes: cheap, and enough to see that something was deleted or cut short."""
    sizes = [
        path.stat().st_size
        for part in PARTS
        for path in (root / part, *(root / part).rglob("*"))
        if path.is_file()
    ]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _is_complete(root: Path, key: dict[str, Any], linked: Path | None, count: int) -> bool:
    try:
        stamp = json.loads((root / "samples.json").read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(stamp, dict) or stamp.get("key") != key or stamp.get("inventory") != _inventory(root):
        return False
    return linked is None or sum(1 for _ in linked.rglob("*.jpg")) == count


def _build_base(root: Path, partial: Path, key: dict[str, Any], verify: bool) -> None:
    """Build in `partial`, move the parts into place, and write the stamp last: no stamp, no samples."""
    started = time.perf_counter()
    (root / "samples.json").unlink(missing_ok=True)
    images, held_out, hostile, model, manifest = (partial / part for part in PARTS)
    seed, labels, full_size = key["seed"], key["labels"], key["depths"] == list(RESNET_50)
    build_images(images, key["count"], seed, labels)
    build_images(held_out, (15 if full_size else 10) * len(labels), seed, labels, split=HELD_OUT)
    build_hostile(hostile, seed, len(labels))
    write_manifest(images, manifest)
    accuracy = build_model(model, held_out, seed, labels, key["depths"], train_per_label=30 if full_size else 20)
    if verify:
        verify_hashes(partial)
    for stale in root.glob("images-*"):
        shutil.rmtree(stale)
    for part in PARTS:
        _replace(partial / part, root / part)
    stamp = {"key": key, "inventory": _inventory(root), "held_out_accuracy": accuracy}
    stamp["seconds"] = round(time.perf_counter() - started, 1)
    (partial / "samples.json").write_text(json.dumps(stamp, indent=2) + "\n")
    (partial / "samples.json").replace(root / "samples.json")


@contextlib.contextmanager
def _partial_folder(root: Path) -> Iterator[Path]:
    """Yield an empty hidden folder to build in, and leave none behind, not even a killed process's."""
    partial = root / ".partial"
    _remove(partial)
    partial.mkdir()
    try:
        yield partial
    finally:
        _remove(partial)


def _replace(source: Path, target: Path) -> None:
    _remove(target)
    source.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the samples, print where they lie, and return the exit status: 2 for what the caller can mend."""
    parser = argparse.ArgumentParser(prog="python -m snippets.samples", description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=DEFAULT_ROOT, help="folder to build in (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=BASE_COUNT, help="images to have (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing where nothing had to be built")
    parser.add_argument(
        "--write-hashes", action="store_true", help="record this build's hashes instead of checking"
    )
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    stamp = options.root / "samples.json"
    before = stamp.read_bytes() if stamp.is_file() else None
    try:
        samples = build_samples(options.root, options.count, verify=not options.write_hashes)
        if options.write_hashes:
            write_hashes(options.root)
    except (ValueError, OSError, HashMismatchError) as error:
        sys.stderr.write(f"{error}\n")
        return 1 if isinstance(error, HashMismatchError) else 2
    if options.quiet and stamp.read_bytes() == before:
        return 0
    report: dict[str, Any] = {
        name: value if isinstance(value, float) else str(value) for name, value in asdict(samples).items()
    }
    report |= {"count": options.count, "seconds": round(time.perf_counter() - started, 2)}
    lines = [f"{name:18}{value}" for name, value in report.items()]
    sys.stdout.write((json.dumps(report) if options.json else "\n".join(lines)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
