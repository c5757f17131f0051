"""Build two small checkpoints beside the samples' ResNet-50, from a seed: a small ResNet and a vision transformer.

Like the sample checkpoint they are architectures of the field with random features, of which only the last layer
is trained, by ridge regression. Each lies in the hub's layout: weights in safetensors, config, image processor.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from snippets import samples
from snippets.samples import DEFAULT_ROOT, LABELS, PACKAGES, TRAIN, fit_head, make_backbone, make_jpegs

ROOT = DEFAULT_ROOT.parent / "small-models"
TRAIN_PER_LABEL = 30

# A bottleneck ResNet of four layers. The names of its tensors are ResNet-50's, and so is its preprocessing.
SMALL_RESNET = {"depths": [1, 1, 1, 1], "embedding_size": 32, "hidden_sizes": [64, 128, 256, 512]}
# The width and heads of ViT-Tiny, half as deep.
SMALL_VIT = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
# What google/vit-base-patch16-224 does to an image: the whole of it is squeezed into the square.
VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2,
    "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip


@dataclass(frozen=True)
class SmallModels:
    """The folders of the two checkpoints, cheaper one first."""

    resnet: Path
    vit: Path


def build_small_models(root: Path = ROOT, seed: int = 0, labels: Sequence[str] = LABELS) -> SmallModels:
    """Build what is missing under `root` and return where it lies.

    The folder's name is a digest of all that the weights depend on, so that one of other labels, or of another
    version of this code, never answers. It gets its name when it is whole: a process that dies leaves none.
    Raises OSError where the disk is full.
    """
    folder = root / _key(seed, labels)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
        try:
            jpegs = make_jpegs(TRAIN, TRAIN_PER_LABEL * len(labels), seed, len(labels))
            _build_resnet(partial / "small-resnet", jpegs, seed, labels)
            _build_vit(partial / "small-vit", jpegs, seed, labels)
            partial.chmod(0o755)
            try:
                partial.rename(folder)
            except OSError:  # another process was first, with the same bytes
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return SmallModels(folder / "small-resnet", folder / "small-vit")


def models_for(model: str, root: Path = ROOT) -> str:
    """Return the environment's MODELS, or small checkpoints for the labels of `model` and it, in its form.

    Where `model` is no folder, or has more labels than the samples have colours for, it is alone.
    """
    if given := os.environ.get("MODELS"):
        return given
    if not Path(model).is_dir() or len(labels := labels_of(model)) > len(LABELS):
        return model
    small = build_small_models(root, labels=labels)
    return f"{small.resnet},{small.vit},{model}"


def labels_of(model: str | Path) -> list[str]:
    """Return the labels of a checkpoint in a folder, in the order of its outputs."""
    names = json.loads((Path(model) / "config.json").read_text())["id2label"]
    return [names[index] for index in sorted(names, key=int)]


def _key(seed: int, labels: Sequence[str]) -> str:
    sources = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in (__file__, samples.__file__)]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return hashlib.sha256(json.dumps([sources, versions, seed, list(labels)]).encode()).hexdigest()[:16]


def _build_resnet(folder: Path, jpegs: Sequence[bytes], seed: int, labels: Sequence[str]) -> None:
    import torch
    import transformers

    hub: Any = transformers
    model = hub.ResNetForImageClassification(hub.ResNetConfig(**SMALL_RESNET, **_names(labels))).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.resnet.state_dict().items()}
    backbone = {name: torch.from_numpy(np.array(t)) for name, t in make_backbone(shapes, seed).items()}
    model.resnet.load_state_dict(backbone)
    _save(
        folder,
        model,
        samples.PROCESSOR,
        lambda pixels: model.resnet(pixels).pooler_output.flatten(1),
        model.classifier[1],
        jpegs,
        labels,
    )


def _build_vit(folder: Path, jpegs: Sequence[bytes], seed: int, labels: Sequence[str]) -> None:
    import torch
    import transformers

    hub: Any = transformers
    model = hub.ViTForImageClassification(hub.ViTConfig(**SMALL_VIT, **_names(labels))).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.vit.state_dict().items()}
    backbone = {name: torch.from_numpy(t) for name, t in make_vit_backbone(shapes, seed).items()}
    model.vit.load_state_dict(backbone)
    _save(
        folder,
        model,
        VIT_PROCESSOR,
        lambda pixels: model.vit(pixels).last_hidden_state[:, 0],
        model.classifier,
        jpegs,
        labels,
    )


def make_vit_backbone(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Return a vision transformer's tensors (float32) by name, from their shapes.

    Weights are uniform with variance 1/fan-in, which keeps the size of what passes through. The class token and
    the positions are small, so that after the first layer the class token holds mostly what it attends to.
    """
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        uniform = rng.integers(-32768, 32768, shape, dtype=np.int16).astype(np.float32) / np.float32(32768)
        if name.endswith(("cls_token", "position_embeddings")):
            tensors[name] = uniform * np.float32(0.1)
        elif "layernorm" in name:
            tensors[name] = np.full(shape, 1 if name.endswith("weight") else 0, np.float32)
        elif name.endswith("weight"):
            tensors[name] = uniform * np.float32(np.sqrt(3 / np.prod(shape[1:])))
        else:
            tensors[name] = uniform * np.float32(0.1)
    return tensors


def _names(labels: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(labels))
    return {"id2label": names, "label2id": {label: index for index, label in names.items()}}


def _save(
    folder: Path,
    model: Any,
    processor: dict[str, Any],
    features_of: Callable[[Any], Any],
    head: Any,
    jpegs: Sequence[bytes],
    labels: Sequence[str],
) -> None:
    """Train the head on `jpegs`, whose classes come in turn, and write the checkpoint."""
    import torch

    folder.mkdir(parents=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    features = compute_features(folder, features_of, jpegs)
    weight, bias = fit_head(features, np.arange(len(jpegs)) % len(labels), len(labels))
    head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    with samples._quiet_transformers():
        model.save_pretrained(folder)
    (folder / "README.md").write_text(MODEL_CARD.format(name=type(model).__name__, images=len(jpegs)))


def compute_features(folder: Path, forward: Callable[[Any], Any], jpegs: Sequence[bytes]) -> np.ndarray:
    """Return what `forward` makes of the images (float32, a row an image), through the folder's own processor."""
    import torch
    import transformers

    hub: Any = transformers
    processor = hub.AutoImageProcessor.from_pretrained(folder)

    def preprocess(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return processor(images=image, return_tensors="pt")["pixel_values"]

    outputs = []
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for start in range(0, len(jpegs), 32):
            outputs.append(forward(torch.cat(list(pool.map(preprocess, jpegs[start : start + 32])))))
    return np.concatenate([output.numpy() for output in outputs])


MODEL_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
---

# Small sample model

**What it is.** A small {name} for the sample images of this course. The weights are random, from a seed; only the
last layer is trained, by ridge regression on {images} generated images.

**What it is not.** It knows nothing about photographs: its answer for any real image is worthless.

**How it was made.** By `snippets/optimization/ensemble_models.py`.
"""
