"""The pipelines that are compared: each takes images, a checkpoint and a limit, and returns predictions by id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from snippets.benchmark.provenance import Hardware
from snippets.fundamentals.actor_pool import classify
from snippets.fundamentals.dataset import read_images
from snippets.fundamentals.setup import split_revision
from snippets.fundamentals.stepwise import run_naive

Source = str | list[str]
Run = Callable[[Source, str, int | None], ray.data.Dataset]


class InferenceWorker:
    """The advice of older guides: the model is loaded once, but predicts image by image."""

    def __init__(self, model: str, revision: str | None) -> None:
        from transformers import pipeline

        self.classifier = pipeline("image-classification", model=model, revision=revision)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the columns ``id``, ``label`` and ``score`` of one batch of images."""
        best = [self.classifier(image)[0] for image in batch["image"]]
        return {
            "id": batch["path"],
            "label": [prediction["label"] for prediction in best],
            "score": [prediction["score"] for prediction in best],
        }


def run_usual(source: Source, model: str, limit: int | None = None) -> ray.data.Dataset:
    """Return the predictions of one `InferenceWorker`, given batches of 16."""
    return read_images(source, limit).map_batches(
        InferenceWorker,
        fn_constructor_args=split_revision(model),
        batch_size=16,
        compute=ray.data.ActorPoolStrategy(size=1),
    )


def run_pool(dtype: str, source: Source, model: str, limit: int | None = None) -> ray.data.Dataset:
    """Return the predictions of `snippets.fundamentals.actor_pool` in a precision."""
    return classify(source, model, limit, dtype=dtype)


@dataclass(frozen=True)
class Contender:
    """A pipeline under the name that people read, with the dtype of its forward passes."""

    title: str
    dtype: str
    run: Run
    is_pool: bool = False


CONTENDERS = {
    "naive": Contender("Naive", "float32", run_naive),
    "usual": Contender("One actor, image by image", "float32", run_usual),
    "pool": Contender("Actor pool, float32", "float32", partial(run_pool, "float32"), True),
    "pool-bfloat16": Contender("Actor pool, bfloat16", "bfloat16", partial(run_pool, "bfloat16"), True),
    "pool-float16": Contender("Actor pool, float16", "float16", partial(run_pool, "float16"), True),
}


def contenders_for(hardware: Hardware) -> list[str]:
    """Return the names of those whose precision the hardware computes by itself, not by emulation."""
    computes = {"float32": True, "bfloat16": hardware.has_bfloat16, "float16": hardware.gpu is not None}
    return [name for name, contender in CONTENDERS.items() if computes[contender.dtype]]
