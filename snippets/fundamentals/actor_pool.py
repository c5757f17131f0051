"""The optimized pipeline: decode in tasks, then a pool of actors that load the model once and batch."""

from __future__ import annotations

from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:preprocessing]
@dataclass(frozen=True)
class Preprocessing:
    """What the model expects of an image, as its checkpoint states it.

    `resize` is the shorter edge and `crop` the side of the centre crop, both in pixels;
    `mean` and `std` are for channels scaled to 0..1.
    """

    resize: int
    crop: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_preprocessing(model: str) -> Preprocessing:
    """Read a ConvNext-style `preprocessor_config.json`, as ResNet's, from a folder or the hub.

    Raises `ValueError` where it asks for anything but a shorter edge and a crop at the centre.
    """
    name, revision = split_revision(model)
    path = Path(name) / "preprocessor_config.json"
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(name, "preprocessor_config.json", revision=revision))
    config = json.loads(path.read_text())
    size = config["size"]  # a number, in checkpoints of before 2023
    crop = size if isinstance(size, int) else size.get("shortest_edge")
    if not crop or "crop_pct" not in config or crop >= 384:  # from there on, ConvNext's squeezes the whole image
        raise ValueError(f"{path} asks for other steps than a resize by crop_pct and a crop of shortest_edge.")
    return Preprocessing(
        resize=int(crop / config["crop_pct"]),
        crop=crop,
        resample=config["resample"],
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
    )


# --8<-- [end:preprocessing]


# --8<-- [start:decode]
def decode_image(encoded: bytes, to: Preprocessing) -> np.ndarray:
    """Return an image as uint8 (crop, crop, 3): shorter edge resized, then cropped at the centre.

    Only the pixels that the crop keeps are computed.
    """
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    resized_width, resized_height = to.resize * width // short, to.resize * height // short
    left, top = (resized_width - to.crop) // 2, (resized_height - to.crop) // 2
    x, y = width / resized_width, height / resized_height  # source pixels for one resized pixel
    box = (left * x, top * y, (left + to.crop) * x, (top + to.crop) * y)
    return np.asarray(image.resize((to.crop, to.crop), Image.Resampling(to.resample), box))


def decode(
    batch: dict[str, Any],
    filesystem: fs.FileSystem,
    to: Preprocessing,
    decode_one: Callable[[bytes, Preprocessing], np.ndarray] = decode_image,
) -> dict[str, Any]:
    """Read and decode files into `id`, `image` (uint8, n x crop x crop x 3) and `error`.

    A file that cannot be read or decoded keeps its row: `error` says why, its pixels are zero.
    """
    pixels = np.zeros((len(batch["id"]), to.crop, to.crop, 3), np.uint8)
    errors = []
    for image, path in zip(pixels, batch["id"], strict=True):
        try:
            with filesystem.open_input_stream(path) as stream:
                image[:] = decode_one(stream.readall(), to)
            errors.append("")
        except Exception as error:  # Pillow's decoders raise many types, and none may end the job
            errors.append(f"{type(error).__name__}: {error}")
    return {"id": batch["id"], "image": pixels, "error": errors}


# --8<-- [end:decode]


# --8<-- [start:classifier]
RESULT = pa.schema({"id": pa.string(), "label": pa.string(), "score": pa.float32(), "error": pa.string()})


class Classifier:
    """Label decoded images with a checkpoint that is loaded once, when the actor starts."""

    def __init__(
        self,
        model: str,
        to: Preprocessing,
        batch_size: int,
        dtype: str = "auto",
        threads: int = 1,
        use_gpu: bool = True,
    ) -> None:
        import torch
        from transformers import AutoModelForImageClassification

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
        if dtype == "auto":  # half precision on a GPU; a CPU may have to emulate it
            dtype = "float16" if self.device.type == "cuda" else "float32"
        self.dtype = getattr(torch, dtype)
        self.batch_size = batch_size
        name, revision = split_revision(model)
        network = AutoModelForImageClassification.from_pretrained(
            name,
            revision=revision,
            use_safetensors=True,  # pickled weights would run code
        ).eval()
        self.labels = np.array([network.config.id2label[index] for index in range(network.num_labels)])
        self.network = network.to(self.device, self.dtype, memory_format=torch.channels_last)
        self.mean, self.std = (
            torch.tensor(values, device=self.device).mul(255).view(1, 3, 1, 1) for values in (to.mean, to.std)
        )

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return `id`, `label`, `score` (softmax, float32) and `error`; null where there is none."""
        import torch

        decoded = batch["error"] == ""
        rows = int(decoded.sum())
        # Always the same shape: a partial batch is padded, so that no kernel is chosen or compiled twice.
        images = np.zeros((self.batch_size, *batch["image"].shape[1:]), np.uint8)
        images[:rows] = batch["image"][decoded]
        with torch.inference_mode():
            # Bytes cross to the device; an NHWC array seen as NCHW is already in channels-last order.
            pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
            pixels = pixels.float().sub_(self.mean).div_(self.std).to(self.dtype)
            best = self.network(pixels).logits[:rows].float().softmax(-1).max(-1)

        label, score = np.full(len(decoded), None), np.full(len(decoded), np.nan, np.float32)
        label[decoded], score[decoded] = self.labels[best.indices.cpu()], best.values.cpu()
        return pa.table(
            {
                "id": batch["id"],
                "label": label,
                "score": pa.array(score, mask=~decoded),
                "error": pa.array(batch["error"], pa.string(), mask=decoded),
            },
            RESULT,
        )


# --8<-- [end:classifier]


# --8<-- [start:plan_pool]
@dataclass(frozen=True)
class Pool:
    """What the stages reserve: `num_cpus` and `num_gpus` an actor, `decode_cpus` a decode task."""

    actors: int
    num_cpus: float
    num_gpus: float
    threads: int
    decode_cpus: float


def plan_pool(actors: int | None = None, num_gpus: float | None = None) -> Pool:
    """Return the largest pool that the cluster can schedule beside the tasks that decode.

    With GPUs: an actor for each, which reserves no CPU. Without: an actor with one thread for each
    CPU, which reserves half of it and leaves the rest for decoding. Raises `ValueError` where
    `actors` of `num_gpus` each do not fit.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
    if num_gpus is None:
        num_gpus = 1 if max(gpus) >= 1 else 0
    num_cpus = 0 if num_gpus else 0.5
    decode_cpus = 1 if max(cpus) >= 1 + num_cpus else max(cpus) - num_cpus
    if num_gpus:
        capacity = sum(int(node / num_gpus) for node in gpus)
    else:
        # Ray may place the actors so that each node is left with less than a task needs: one fewer cannot.
        full = [int((node - decode_cpus) / num_cpus) + 1 for node in cpus if node >= decode_cpus > 0]
        capacity = max(0, sum(full) - 1)
    wanted = actors or (capacity if num_gpus else min(capacity, int(sum(cpus))))
    if wanted > capacity or capacity == 0:
        raise ValueError(
            f"A pool of {wanted or 1} actors with {num_gpus:g} GPUs and {num_cpus:g} CPUs each, beside "
            f"decode tasks of {decode_cpus:g} CPU, does not fit into a cluster with {sum(gpus):g} GPUs "
            f"and {sum(cpus):g} CPUs: at most {capacity} fit."
        )
    threads = max(1, int(min(sum(cpus) // wanted, max(cpus))))
    return Pool(wanted, num_cpus, num_gpus, threads, decode_cpus)


# --8<-- [end:plan_pool]


# --8<-- [start:keep_freed_memory]
# glibc hands large arrays back to the kernel and takes them again, page by page, in every layer of every batch.
# These keep them (see mallopt(3)). Other C libraries ignore them; on a GPU the activations lie elsewhere.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
}


# --8<-- [end:keep_freed_memory]


# --8<-- [start:classify]
BLOCKS_IN_FLIGHT = 8  # of decoded images, for each actor


def classify(
    source: str | list[str],
    model: str,
    limit: int | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    actors: int | None = None,
    num_gpus: float | None = None,
) -> ray.data.Dataset:
    """Return `id`, `label`, `score` and `error` for each image of a source."""
    filesystem, paths, _ = list_images(source, limit)
    to = load_preprocessing(model)
    pool = plan_pool(actors, num_gpus)
    batch_size = batch_size or (64 if pool.num_gpus else 16)
    # A task takes a block. More batches in it share its cost, which a GPU feels, but four blocks an actor leave
    # none of them idle.
    batches_per_block = min(8 if pool.num_gpus else 2, max(1, len(paths) // (4 * pool.actors * batch_size)))
    rows = batches_per_block * batch_size
    blocks = math.ceil(len(paths) / rows)
    # --8<-- [start:pipeline]
    predictions = (
        ray.data.from_items([{"id": path} for path in paths], override_num_blocks=blocks)
        .map_batches(decode, fn_kwargs={"filesystem": filesystem, "to": to}, num_cpus=pool.decode_cpus)
        .map_batches(
            Classifier,
            # An actor that reserves no GPU sees them all, and must not use them.
            fn_constructor_args=(model, to, batch_size, dtype, pool.threads, pool.num_gpus > 0),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(pool.actors, blocks)),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )
    # --8<-- [end:pipeline]
    # Decoding, where it is the faster stage, would run ahead through much of the object store.
    options = predictions.context.execution_options
    in_flight = BLOCKS_IN_FLIGHT * pool.actors * rows * to.crop * to.crop * 3
    options.resource_limits = options.resource_limits.copy(object_store_memory=in_flight)
    return predictions


# --8<-- [end:classify]


def add_options(parser: Any) -> None:
    """Add what overrides the plan."""
    from snippets.command import gpus, positive

    parser.add_argument("--actors", type=positive, help="size of the pool")
    parser.add_argument("--num-gpus", type=gpus, help="GPUs that an actor reserves; 0 runs on the CPU")
    parser.add_argument("--batch-size", type=positive, help="images in a forward pass")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")


def run(options: Any) -> ray.data.Dataset:
    """Return the predictions that the command asks for."""
    return classify(
        options.images,
        options.model,
        options.limit,
        options.dtype,
        options.batch_size,
        options.actors,
        options.num_gpus,
    )


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.actor_pool")
