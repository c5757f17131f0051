"""The way from the naive to the optimized pipeline, one change at a time: each step is a pipeline that runs."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import (
    KEEP_FREED_MEMORY,
    Classifier,
    classify,
    decode,
    load_preprocessing,
)
from snippets.fundamentals.dataset import list_images, read_images
from snippets.fundamentals.naive import classify_naively
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

# --8<-- [end:imports]


# --8<-- [start:kept]
class KeptModel:
    """Label images as the naive function does, with a pipeline that is loaded once, when the actor starts."""

    def __init__(self, model: str, revision: str | None) -> None:
        from transformers import pipeline

        self.classifier: Any = pipeline("image-classification", model=model, revision=revision)

    def predict(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the best `label` and `score` of each image, one image at a time."""
        return [self.classifier(image)[0] for image in images]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the columns `id`, `label` and `score` of one batch."""
        best = self.predict(batch["image"])
        return {
            "id": batch["path"],
            "label": [prediction["label"] for prediction in best],
            "score": [prediction["score"] for prediction in best],
        }


def classify_in_two_actors(
    images: ray.data.Dataset, worker: type, arguments: Sequence[Any], batch_size: int = 16, **options: Any
) -> ray.data.Dataset:
    """Return the predictions of a class, from as many actors as the naive pipeline has tasks.

    They reserve no CPU, so that the tasks that read never wait for one.
    """
    return images.map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0,
        **options,
    )


def classify_kept(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Load the model once an actor, not once a batch."""
    images = read_images(source, limit)
    return classify_in_two_actors(images, KeptModel, split_revision(model), batch_size=4)


# --8<-- [end:kept]


# --8<-- [start:batched]
class BatchingModel(KeptModel):
    """The same, with one forward pass for all images of a batch."""

    def predict(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the best `label` and `score` of each image, all images at once."""
        return [found[0] for found in self.classifier([*images], batch_size=len(images))]


def classify_batched(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Give the model sixteen images at once, not one."""
    return classify_in_two_actors(read_images(source, limit), BatchingModel, split_revision(model))


# --8<-- [end:batched]


# --8<-- [start:memory]
KEPT_MEMORY = {"env_vars": KEEP_FREED_MEMORY}


def classify_with_kept_memory(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Let the actors keep the memory that they free."""
    images = read_images(source, limit)
    return classify_in_two_actors(images, BatchingModel, split_revision(model), runtime_env=KEPT_MEMORY)


# --8<-- [end:memory]


# --8<-- [start:decoded]
class DecodedModel(BatchingModel):
    """The same for images that are resized already: the pipeline only normalizes them."""

    def __init__(self, model: str, revision: str | None) -> None:
        super().__init__(model, revision)
        self.classifier.image_processor.do_resize = False  # nor crop

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return `id`, `label`, `score` and `error`; a row with an error gets the label of its zeros."""
        labelled = super().__call__({"path": batch["id"], "image": batch["image"]})
        return {**labelled, "error": batch["error"]}


def decode_images(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Return what `decode` makes of the files, in tasks of sixteen."""
    filesystem, paths, _ = list_images(source, limit)
    files = ray.data.from_items([{"id": path} for path in paths], override_num_blocks=math.ceil(len(paths) / 16))
    return files.map_batches(decode, fn_kwargs={"filesystem": filesystem, "to": load_preprocessing(model)})


def classify_decoded(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Decode and resize in tasks, and send the actors bytes of one size."""
    images = decode_images(source, model, limit)
    return classify_in_two_actors(images, DecodedModel, split_revision(model), runtime_env=KEPT_MEMORY)


# --8<-- [end:decoded]


# --8<-- [start:arrays]
def classify_arrays(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Keep a batch one array, in the order in which it lies in memory, instead of a list of images."""
    images, arguments = decode_images(source, model, limit), (model, load_preprocessing(model), 16, "float32")
    return classify_in_two_actors(images, Classifier, arguments, runtime_env=KEPT_MEMORY)


# --8<-- [end:arrays]


@dataclass(frozen=True)
class Step:
    """One pipeline on the way: its title, what differs from the step before, and the dtype of its forward passes.

    `run(source, model, limit)` returns the predictions by `id`.
    """

    title: str
    change: str
    run: Callable[[str | list[str], str, int | None], ray.data.Dataset]
    dtype: str = "float32"


def run_naive(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Return the predictions of the naive pipeline as it is."""
    return classify_naively(read_images(source, limit), model)


def run_pool(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Return the predictions of the optimized pipeline in float32."""
    return classify(source, model, limit, dtype="float32")


def run_pool_in_bfloat16(source: str | list[str], model: str, limit: int | None = None) -> ray.data.Dataset:
    """Return the predictions of the optimized pipeline in bfloat16."""
    return classify(source, model, limit, dtype="bfloat16")


STEPS = {
    "naive": Step("Naive", "The obvious pipeline, as it is.", run_naive),
    "kept": Step("Model kept", "The model is loaded once an actor, not once a batch.", classify_kept),
    "batched": Step("True batches", "The model gets sixteen images at once, not one.", classify_batched),
    "memory": Step("Freed memory kept", "The actors keep the memory that they free.", classify_with_kept_memory),
    "decoded": Step("Decoded in tasks", "Tasks decode and resize, and send bytes of one size.", classify_decoded),
    "arrays": Step("One array, channels last", "A batch is one array, no list of images.", classify_arrays),
    "sized": Step("Sized from the cluster", "The pool and the blocks follow from the cluster.", run_pool),
    "bfloat16": Step("bfloat16", "Half the bytes for each number.", run_pool_in_bfloat16, "bfloat16"),
}


def add_options(parser: Any) -> None:
    """Add which step to run."""
    parser.add_argument("--step", choices=tuple(STEPS), default=[*STEPS][-1], help="default: the last")


def run(options: Any) -> ray.data.Dataset:
    """Return the predictions of the step that the command asks for."""
    return STEPS[options.step].run(options.images, options.model, options.limit)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.stepwise")
