"""The way from the naive pipeline to the limit of the processor: one change a rung, and each rung runs."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import (
    BLOCKS_IN_FLIGHT,
    KEEP_FREED_MEMORY,
    RESULT,
    Pool,
    Preprocessing,
    decode,
    load_preprocessing,
    plan_pool,
)
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.stepwise import STEPS
from snippets.optimization.engines import (
    BATCH_SIZE,
    ENGINE_FOLDER,
    ENGINES,
    Calibration,
    Engine,
    build_engine,
    choose_calibration,
    engine_key,
    open_engine,
    read_labels,
)

# isort: split
# --8<-- [start:imports]
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:classifier]
class CompiledClassifier:
    """Label decoded images with an engine that is opened once, when the actor starts."""

    def __init__(
        self,
        model: str,
        engine: Engine,
        to: Preprocessing,
        threads: int = 1,
        calibration: Calibration | None = None,
        folder: str = ENGINE_FOLDER,
        key: dict[str, Any] | None = None,
    ) -> None:
        artefact = build_engine(model, engine.artefact, calibration, folder, key)  # or finds it
        self.forward = open_engine(artefact.path, engine, to.crop, threads=threads)
        self.labels = read_labels(model)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return `id`, `label`, `score` (softmax, float32) and `error`; null where there is none."""
        decoded = batch["error"] == ""
        probabilities = self.predict(batch["image"][decoded])

        label, score = np.full(len(decoded), None), np.full(len(decoded), np.nan, np.float32)
        label[decoded], score[decoded] = self.labels[probabilities.argmax(-1)], probabilities.max(-1, initial=0)
        return pa.table(
            {
                "id": batch["id"],
                "label": label,
                "score": pa.array(score, mask=~decoded),
                "error": pa.array(batch["error"], pa.string(), mask=decoded),
            },
            RESULT,
        )

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of uint8 images, which are padded: one shape, always."""
        padded = np.zeros((BATCH_SIZE, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        return self.forward(padded)[: len(images)]


# --8<-- [end:classifier]


# --8<-- [start:decode_cheaply]
def decode_image_cheaply(encoded: bytes, to: Preprocessing) -> np.ndarray:
    """Return an image as `decode_image` does, with fewer operations a pixel, and so with other values.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves enough pixels, and resized
    with bilinear, which reads half as many pixels in each direction as bicubic.
    """
    file = Image.open(io.BytesIO(encoded))
    scale = to.resize / min(file.size)
    file.draft("RGB", (math.ceil(file.width * scale), math.ceil(file.height * scale)))
    image = file.convert("RGB")
    width, height = image.size
    side = min(width, height) * to.crop / to.resize  # of the centre crop, in source pixels
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((to.crop, to.crop), Image.Resampling.BILINEAR, box))


def decode_cheaply(batch: dict[str, Any], filesystem: fs.FileSystem, to: Preprocessing) -> dict[str, Any]:
    """Read and decode files into the columns of `decode`, errors included, with `decode_image_cheaply`."""
    return decode(batch, filesystem, to, decode_image_cheaply)


# --8<-- [end:decode_cheaply]


# --8<-- [start:run_in_pool]
Decoder = Callable[[dict[str, Any], fs.FileSystem, Preprocessing], dict[str, Any]]


def run_in_pool(
    paths: list[str],
    filesystem: fs.FileSystem,
    to: Preprocessing,
    pool: Pool,
    decoder: Decoder,
    classifier: type,
    arguments: tuple[Any, ...],
    batch_size: int,
    most_batches: int,
) -> ray.data.Dataset:
    """Return the rows of `classify` from another class, with at most so many batches in a block."""
    batches_per_block = min(most_batches, max(1, len(paths) // (4 * pool.actors * batch_size)))
    rows = batches_per_block * batch_size
    blocks = math.ceil(len(paths) / rows)
    predictions = (
        ray.data.from_items([{"id": path} for path in paths], override_num_blocks=blocks)
        .map_batches(decoder, fn_kwargs={"filesystem": filesystem, "to": to}, num_cpus=pool.decode_cpus)
        .map_batches(
            classifier,
            fn_constructor_args=arguments,
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(pool.actors, blocks)),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )
    options = predictions.context.execution_options
    in_flight = BLOCKS_IN_FLIGHT * pool.actors * rows * to.crop * to.crop * 3
    options.resource_limits = options.resource_limits.copy(object_store_memory=in_flight)
    return predictions


# --8<-- [end:run_in_pool]


# --8<-- [start:classify_compiled]
# The next decode task begins some tenths of a second after the last, whatever their size: where a batch takes less
# time, a block needs more of them, or actors wait for it.
BATCHES_PER_BLOCK = {"float32": 2, "bfloat16": 4, "int8": 8}


def classify_compiled(
    source: str | list[str],
    model: str,
    limit: int | None = None,
    engine: str = "openvino-float32",
    decoder: Decoder = decode,
    calibration: Calibration | None = None,
    folder: str = ENGINE_FOLDER,
) -> ray.data.Dataset:
    """Return `id`, `label`, `score` and `error` for each image of a source, from an engine on the CPUs.

    It is `classify` with another class in the pool. `calibration` is for `int8` alone.
    """
    filesystem, paths, _ = list_images(source, limit)
    to, pool = load_preprocessing(model), plan_pool(num_gpus=0)
    key = engine_key(model, ENGINES[engine].artefact, calibration)
    arguments = (model, ENGINES[engine], to, pool.threads, calibration, folder, key)
    batches = BATCHES_PER_BLOCK[ENGINES[engine].precision]
    return run_in_pool(paths, filesystem, to, pool, decoder, CompiledClassifier, arguments, BATCH_SIZE, batches)


# --8<-- [end:classify_compiled]


Run = Callable[..., ray.data.Dataset]  # (source, model, limit=, calibration=, folder=)


@dataclass(frozen=True)
class Rung:
    """One pipeline on the way: its title, what differs from the rung before, and what that brings in.

    `engine` names what does its forward passes: a key of `ENGINES`, or `eager` for PyTorch as it comes.
    `run(source, model, limit=, calibration=, folder=)` returns the predictions. `packages` are those that it
    needs beyond Part 1's, `build_packages` those that building its artefact needs besides.
    """

    title: str
    change: str
    engine: str
    run: Run
    decoder: Decoder = decode
    packages: tuple[str, ...] = ()
    build_packages: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """The precision of its forward passes."""
        return ENGINES[self.engine].precision if self.engine in ENGINES else "float32"


def of_step(name: str, title: str = "") -> Rung:
    """Return a step of Part 1 as a rung."""

    def run(source: str | list[str], model: str, limit: int | None = None, **_: Any) -> ray.data.Dataset:
        return STEPS[name].run(source, model, limit)

    return Rung(title or STEPS[name].title, STEPS[name].change, "eager", run)


def compiled(
    title: str, change: str, engine: str, decoder: Decoder = decode, build_packages: tuple[str, ...] = ("onnx",)
) -> Rung:
    """Return `classify_compiled` with an engine and a decoder as a rung."""
    run = partial(classify_compiled, engine=engine, decoder=decoder)
    return Rung(title, change, engine, run, decoder, (ENGINES[engine].runtime,), build_packages)


QUANTIZED_WITH = ("onnx", "onnxruntime")
RUNGS = {
    "naive": of_step("naive"),
    "kept": of_step("kept"),
    "batched": of_step("batched"),
    "memory": of_step("memory"),
    "decoded": of_step("decoded"),
    "pool": of_step("sized", "Actor pool, float32"),
    "onnxruntime": compiled(
        "ONNX Runtime, float32", "The network is compiled; no PyTorch in the actors.", "onnxruntime-float32"
    ),
    "openvino": compiled("OpenVINO, float32", "Another compiler for the same file.", "openvino-float32"),
    "openvino-bfloat16": compiled("OpenVINO, bfloat16", "Half the bytes for each number.", "openvino-bfloat16"),
    "openvino-int8": compiled(
        "OpenVINO, int8", "A quarter, with ranges from images.", "openvino-int8", build_packages=QUANTIZED_WITH
    ),
    "cheap-decode": compiled(
        "Cheaper decode, int8",
        "Draft mode and bilinear.",
        "openvino-int8",
        decode_cheaply,
        QUANTIZED_WITH,
    ),
}


def add_options(parser: Any) -> None:
    """Add which rung to run, and where engines come from."""
    add = parser.add_argument
    add("--rung", choices=tuple(RUNGS), default=[*RUNGS][-1], help="default: the last")
    add("--calibration", help="images to calibrate int8 with (default: those of --images beyond --limit, or all)")
    add("--folder", default=ENGINE_FOLDER, help="where engines are kept (default: %(default)s)")


def run(options: Any) -> ray.data.Dataset:
    """Return the predictions of the rung that the command asks for."""
    calibration = None
    if RUNGS[options.rung].precision == "int8":
        skip = 0 if options.calibration else options.limit or 0
        try:
            calibration = choose_calibration(options.calibration or options.images, skip)
        except ValueError:  # the limit is all there are: labels are not compared here
            calibration = choose_calibration(options.images)
    return RUNGS[options.rung].run(
        options.images, options.model, limit=options.limit, calibration=calibration, folder=options.folder
    )


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.ladder")
