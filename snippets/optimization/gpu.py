"""The rungs for a GPU: half precision, one launch for all kernels, copies that overlap, two actors on a device."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import Preprocessing, decode, load_preprocessing, plan_pool
from snippets.fundamentals.dataset import list_images
from snippets.optimization.engines import Forward, checkpoint_folder, read_labels
from snippets.optimization.ladder import (
    CompiledClassifier,
    Decoder,
    Rung,
    decode_cheaply,
    of_step,
    run_in_pool,
)

# isort: split
# --8<-- [start:imports]
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

# --8<-- [end:imports]


# --8<-- [start:engine]
@dataclass(frozen=True)
class DeviceEngine:
    """How a network runs on a device: the `dtype` of its numbers, and what launches its kernels.

    `compile_mode` is one of `torch.compile`, which needs a C compiler on every worker, or None for PyTorch as it
    comes. `recorded` replays all kernels of a forward pass as one CUDA graph.
    """

    dtype: str = "float16"
    compile_mode: str | None = None
    recorded: bool = False


# --8<-- [end:engine]


# --8<-- [start:network]
OnDevice = Callable[[torch.Tensor], torch.Tensor]  # uint8 (n, crop, crop, 3) to float32 (n, labels)


def load_network(model: str, to: Preprocessing, dtype: str, device: torch.device) -> OnDevice:
    """Return a function from bytes on the device to probabilities: a GPU gets bytes, and normalizes them."""
    from transformers import AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(
        checkpoint_folder(model), use_safetensors=True
    ).eval()
    network.to(device, getattr(torch, dtype), memory_format=torch.channels_last)
    mean, std = (torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1) for values in (to.mean, to.std))

    def forward(images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).float().sub(mean).div(std).to(network.dtype)
        probabilities: torch.Tensor = network(pixels).logits.float().softmax(-1)
        return probabilities

    return forward


# --8<-- [end:network]


# --8<-- [start:record]
def record_graph(forward: OnDevice, images: torch.Tensor) -> OnDevice:
    """Return `forward` as a CUDA graph: one launch for all its kernels, for batches shaped as `images`."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # kernels are chosen and memory is taken before the recording
            forward(images)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        probabilities = forward(images)

    def replay(batch: torch.Tensor) -> torch.Tensor:
        images.copy_(batch)  # a graph reads and writes where it did when it was recorded
        graph.replay()
        return probabilities.clone()

    return replay


# --8<-- [end:record]


# --8<-- [start:overlap]
class Overlapped:
    """Forward passes over the chunks of a batch. The next chunk is copied to the device while one is computed."""

    def __init__(self, forward: OnDevice, shape: tuple[int, ...], device: torch.device) -> None:
        self.forward, self.chunk, self.device = forward, shape[0], device
        on_gpu = device.type == "cuda"
        # One is filled while the other is copied. Only from pinned memory does a copy leave the CPU free.
        self.buffers = [torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
        self.copied = [torch.cuda.Event() for _ in range(2)] if on_gpu else []
        self.copies = torch.cuda.Stream() if on_gpu else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of so many images as there are; the last chunk is padded."""
        found = []
        with torch.inference_mode():
            for number, start in enumerate(range(0, max(1, len(images)), self.chunk)):
                part = images[start : start + self.chunk]
                found.append(self.forward(self.copy(part, number % 2))[: len(part)])
            probabilities: np.ndarray = torch.cat(found).cpu().numpy()  # waits once, for all chunks
        return probabilities

    def copy(self, images: np.ndarray, which: int) -> torch.Tensor:
        """Return a chunk on the device; what is computed next waits for it, and this process does not."""
        buffer = self.buffers[which]
        if self.copies is None:
            buffer[: len(images)] = torch.from_numpy(images)
            return buffer
        self.copied[which].synchronize()  # the copy before from this buffer
        buffer[: len(images)] = torch.from_numpy(images)
        with torch.cuda.stream(self.copies):
            on_device = buffer.to(self.device, non_blocking=True)
            self.copied[which].record()
        compute = torch.cuda.current_stream()
        compute.wait_event(self.copied[which])
        on_device.record_stream(compute)  # not to be reused before that has read it
        return on_device


# --8<-- [end:overlap]


# --8<-- [start:open]
def open_on_device(
    model: str, to: Preprocessing, engine: DeviceEngine, chunk: int = 64, use_gpu: bool = True
) -> Overlapped:
    """Return a function from uint8 images (n, crop, crop, 3) to float32 probabilities (n, labels), in chunks.

    Without a GPU nothing is recorded or copied, and the rest is the same.
    """
    device, shape = torch.device("cuda" if use_gpu else "cpu"), (chunk, to.crop, to.crop, 3)
    with torch.inference_mode():
        forward = load_network(model, to, engine.dtype, device)
        if engine.compile_mode:
            forward = torch.compile(forward, mode=engine.compile_mode, dynamic=False)
        if engine.recorded and use_gpu:
            forward = record_graph(forward, torch.zeros(shape, dtype=torch.uint8, device=device))
    return Overlapped(forward, shape, device)


class DeviceClassifier(CompiledClassifier):
    """`CompiledClassifier` with a device in place of an engine: it pads by itself, to a chunk."""

    def __init__(self, model: str, to: Preprocessing, engine: DeviceEngine, chunk: int, use_gpu: bool) -> None:
        self.forward: Forward = open_on_device(model, to, engine, chunk, use_gpu)
        self.labels = read_labels(model)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of uint8 images."""
        return self.forward(images)


# --8<-- [end:open]


# --8<-- [start:classify_on_gpu]
def classify_on_gpu(
    source: str | list[str],
    model: str,
    limit: int | None = None,
    engine: DeviceEngine = DeviceEngine(),
    decoder: Decoder = decode,
    chunk: int = 64,
    chunks: int = 1,
    num_gpus: float = 1,
) -> ray.data.Dataset:
    """Return `id`, `label`, `score` and `error` for each image of a source, from a pool on all GPUs.

    An actor gets `chunks` times `chunk` images at a time, and a share of `num_gpus` of a device: with 0.5 two
    actors take turns on it, and with 0 all run on the CPU.
    """
    filesystem, paths, _ = list_images(source, limit)
    to, pool = load_preprocessing(model), plan_pool(num_gpus=num_gpus)
    arguments = (model, to, engine, chunk, num_gpus > 0)
    return run_in_pool(
        paths, filesystem, to, pool, decoder, DeviceClassifier, arguments, chunk * chunks, max(1, 8 // chunks)
    )


# --8<-- [end:classify_on_gpu]


def on_gpu(title: str, change: str, engine: str, decoder: Decoder = decode, **named: Any) -> Rung:
    """Return `classify_on_gpu` with an engine as a rung."""

    def run(source: str | list[str], model: str, limit: int | None = None, **_: Any) -> ray.data.Dataset:
        return classify_on_gpu(source, model, limit, DEVICE_ENGINES[engine], decoder, **named)

    return Rung(title, change, engine, run, decoder)


DEVICE_ENGINES = {
    "gpu-float32": DeviceEngine("float32"),
    "gpu-float16": DeviceEngine("float16"),
    "gpu-recorded": DeviceEngine("float16", recorded=True),
    "gpu-compiled": DeviceEngine("float16", "max-autotune-no-cudagraphs", recorded=True),
}
GPU_RUNGS = {
    "naive": of_step("naive"),
    "gpu-float32": on_gpu("Actor pool, float32", "The pool of Part 1.", "gpu-float32"),
    "gpu-float16": on_gpu("float16", "Half the bytes for each number.", "gpu-float16"),
    "gpu-recorded": on_gpu("CUDA graph", "One launch for all kernels.", "gpu-recorded"),
    "gpu-overlapped": on_gpu(
        "Copies overlap", "Eight chunks a call; the next is copied meanwhile.", "gpu-recorded", chunks=8
    ),
    "gpu-compiled": on_gpu("Compiled", "Kernels are joined and chosen by timing.", "gpu-compiled", chunks=8),
    "gpu-shared": on_gpu(
        "Two actors a GPU", "One prepares while the other computes.", "gpu-compiled", chunks=8, num_gpus=0.5
    ),
    "gpu-cheap-decode": on_gpu(
        "Cheaper decode", "Draft mode and bilinear.", "gpu-compiled", decode_cheaply, chunks=8, num_gpus=0.5
    ),
}


def add_options(parser: Any) -> None:
    """Add which rung to run, or the network alone where there is no GPU."""
    names = list(GPU_RUNGS)
    parser.add_argument("--rung", choices=names, default=names[-1], help="default: the last")
    parser.add_argument("--on-cpu", action="store_true", help="the same pipeline in float32 without a GPU")


def run(options: Any) -> ray.data.Dataset:
    """Return the predictions of the rung that the command asks for."""
    if options.on_cpu:
        return classify_on_gpu(options.images, options.model, options.limit, DeviceEngine("float32"), num_gpus=0)
    return GPU_RUNGS[options.rung].run(options.images, options.model, options.limit)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.gpu")
