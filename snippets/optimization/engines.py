"""Compile a checkpoint once a machine, quantize it if asked, and run it without PyTorch."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import Preprocessing, decode, load_preprocessing
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:engine]
ENGINE_FOLDER = os.environ.get("ENGINE_FOLDER") or str(Path.home() / ".cache" / "batch-inference-engines")
BATCH_SIZE = 16


@dataclass(frozen=True)
class Engine:
    """What runs the compiled network, `onnxruntime` or `openvino`, and in which precision."""

    runtime: str
    precision: str

    @property
    def artefact(self) -> str:
        """The file that it reads: OpenVINO makes bfloat16 of the float32 weights when it opens them."""
        return "int8" if self.precision == "int8" else "float32"


ENGINES = {
    "onnxruntime-float32": Engine("onnxruntime", "float32"),
    "openvino-float32": Engine("openvino", "float32"),
    "openvino-bfloat16": Engine("openvino", "bfloat16"),
    "openvino-int8": Engine("openvino", "int8"),
}
# --8<-- [end:engine]


# --8<-- [start:calibration]
@dataclass(frozen=True)
class Calibration:
    """The images whose activations say which range each layer's eight bits must cover."""

    filesystem: fs.FileSystem
    paths: tuple[str, ...]


def choose_calibration(source: str | Sequence[str], skip: int = 0, count: int = 64) -> Calibration:
    """Return `count` images of a source, at equal distances, without its first `skip`, which you compare.

    Raises `ValueError` where nothing is left.
    """
    filesystem, paths, _ = list_images(source)
    paths = paths[skip:]
    if not paths:
        raise ValueError(f"There is no image to calibrate with beyond the first {skip}.")
    count = min(count, len(paths))
    return Calibration(filesystem, tuple(paths[index * len(paths) // count] for index in range(count)))


# --8<-- [end:calibration]


# --8<-- [start:key]
BUILT_WITH = ("torch", "transformers", "onnx", "onnxruntime")


def checkpoint_folder(model: str) -> Path:
    """Return the folder of a checkpoint; one on the hub is downloaded into its cache."""
    name, revision = split_revision(model)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def engine_key(model: str, artefact: str, calibration: Calibration | None = None) -> dict[str, Any]:
    """Return what an artefact depends on: another value of any of it makes another artefact."""
    digests = {}
    for path in sorted(checkpoint_folder(model).iterdir()):
        if path.suffix == ".safetensors" or path.name in ("config.json", "preprocessor_config.json"):
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    key: dict[str, Any] = {
        "artefact": artefact,
        "checkpoint": digests,
        "versions": {name: importlib.metadata.version(name) for name in BUILT_WITH},
    }
    if artefact == "int8":
        if calibration is None:
            raise ValueError("An int8 engine needs images to calibrate with.")
        files = calibration.filesystem.get_file_info(list(calibration.paths))
        key["calibration"] = [[file.path, file.size, file.mtime_ns] for file in files]
    return key


# --8<-- [end:key]


# --8<-- [start:build_once]
# --8<-- [start:once]
@dataclass(frozen=True)
class Built:
    """Where an artefact is, and the seconds that this call took to build it: none where it was there."""

    path: Path
    seconds: float | None


def build_once(
    key: dict[str, Any], build: Callable[[Path], None], folder: str = ENGINE_FOLDER, name: str = "model.onnx"
) -> Built:
    """Return the artefact of a key. The first process on the machine that asks builds it; others wait for it.

    `build` writes the file that it is given. One that ends halfway leaves nothing that another would use.
    """
    text = json.dumps(key, sort_keys=True)
    home = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
    path = home / name
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a process that dies
        if path.exists():
            return Built(path, None)
        start = time.perf_counter()
        partial = home / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build(partial / path.name)
        (home / "key.json").write_text(text)
        (partial / path.name).replace(path)
        shutil.rmtree(partial)
        return Built(path, time.perf_counter() - start)


# --8<-- [end:once]
def build_engine(
    model: str,
    artefact: str = "float32",
    calibration: Calibration | None = None,
    folder: str = ENGINE_FOLDER,
    key: dict[str, Any] | None = None,
) -> Built:
    """Return the `float32` or the `int8` artefact of a checkpoint, built if this machine has none yet.

    With a `key` that was computed elsewhere, what builds need not be installed where the artefact is there.
    """
    key = key or engine_key(model, artefact, calibration)
    if artefact == "float32":
        return build_once(key, lambda path: export_network(model, path), folder)
    assert calibration is not None  # or there were no key

    def quantize(path: Path) -> None:
        exported = build_engine(model, "float32", folder=folder).path
        quantize_network(exported, decode_calibration(model, calibration), path)

    return build_once(key, quantize, folder)


# --8<-- [end:build_once]


# --8<-- [start:export]
def export_network(model: str, path: Path) -> None:
    """Write a checkpoint as ONNX: uint8 images (batch, crop, crop, 3) in, probabilities (batch, labels) out.

    Normalization and softmax are part of the graph, so that nothing else runs before or after it.
    """
    import torch
    from transformers import AutoModelForImageClassification

    to = load_preprocessing(model)

    class FromBytes(torch.nn.Module):
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network
            self.mean, self.std = (torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in (to.mean, to.std))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.permute(0, 3, 1, 2).float().sub(self.mean).div(self.std)
            probabilities: torch.Tensor = self.network(pixels).logits.softmax(-1)
            return probabilities

    network = AutoModelForImageClassification.from_pretrained(checkpoint_folder(model), use_safetensors=True)
    images = torch.zeros(1, to.crop, to.crop, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter, which needs no further package, is the older one
        torch.onnx.export(
            FromBytes(network.eval()),
            (images,),
            path,
            dynamo=False,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_axes={"images": {0: "batch"}, "probabilities": {0: "batch"}},
        )


# --8<-- [end:export]


# --8<-- [start:quantize]
def decode_calibration(model: str, calibration: Calibration) -> np.ndarray:
    """Return the images that can be decoded, as uint8 (images, crop, crop, 3)."""
    to: Preprocessing = load_preprocessing(model)
    decoded = decode({"id": calibration.paths}, calibration.filesystem, to)
    pixels: np.ndarray = decoded["image"][np.array(decoded["error"]) == ""]
    if not len(pixels):
        raise ValueError("None of the images to calibrate with can be decoded.")
    return pixels


def quantize_network(exported: Path, pixels: np.ndarray, path: Path) -> None:
    """Write an ONNX network in int8: weights with a scale a channel, activations in the range of `pixels`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.array_split(pixels, -(-len(pixels) // 8)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(exported, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        path,
        Batches(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # what follows a ReLU is never negative: all 256 steps serve it
        weight_type=QuantType.QInt8,
        # The range is an average over batches, from which one odd image does not take the steps of all others.
        extra_options={"WeightSymmetric": True, "CalibMovingAverage": True, "CalibMovingAverageConstant": 0.1},
    )


# --8<-- [end:quantize]


# --8<-- [start:open]
Forward = Callable[[np.ndarray], np.ndarray]


def open_engine(path: Path, engine: Engine, crop: int, batch_size: int = BATCH_SIZE, threads: int = 1) -> Forward:
    """Return a function from uint8 (batch_size, crop, crop, 3) to float32 probabilities (batch_size, labels).

    Neither runtime imports PyTorch. What the function returns is its own to keep.
    """
    if engine.runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others want the core
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(None, {"images": images})[0])

    import openvino

    network = openvino.Core().read_model(path)
    network.reshape([batch_size, crop, crop, 3])  # one shape, for which the kernels are chosen
    compiled = openvino.compile_model(
        network,
        "CPU",
        {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # two actors would be pinned to the same core
            # Without it, OpenVINO takes bfloat16 wherever the processor has it.
            "INFERENCE_PRECISION_HINT": "bf16" if engine.precision == "bfloat16" else "f32",
        },
    )
    request = compiled.create_infer_request()

    def forward(images: np.ndarray) -> np.ndarray:
        request.infer([images], share_inputs=True)
        return np.array(request.get_output_tensor(0).data)  # the next batch is written over it

    return forward


def read_labels(model: str) -> np.ndarray:
    """Return the labels of a checkpoint in the order of its probabilities."""
    names = json.loads((checkpoint_folder(model) / "config.json").read_text())["id2label"]
    return np.array([names[str(index)] for index in range(len(names))])


# --8<-- [end:open]


def add_options(parser: Any) -> None:
    """Add where artefacts are kept."""
    parser.add_argument("--folder", default=ENGINE_FOLDER, help="where artefacts are kept (default: %(default)s)")


def run(options: Any) -> list[dict[str, Any]]:
    """Return a row an artefact: its file, its bytes, and the seconds if this run built it.

    `limit` images calibrate int8.
    """
    calibration = choose_calibration(options.images, count=options.limit or 64)
    rows = []
    for artefact in ("float32", "int8"):
        built = build_engine(options.model, artefact, calibration, options.folder)
        size = built.path.stat().st_size
        rows.append({"artefact": artefact, "path": str(built.path), "bytes": size, "seconds": built.seconds})
    return rows


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.engines")
