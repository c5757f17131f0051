"""The obvious pipeline, kept as people write it: it loads the model again for every batch."""

from __future__ import annotations

from snippets.fundamentals.dataset import read_images
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
from typing import Any

import ray

# --8<-- [end:imports]


# --8<-- [start:classify_batch]
def classify_batch(batch: dict[str, Any], model: str, revision: str | None) -> dict[str, Any]:
    """Label one batch of images, one at a time, with a model loaded for this batch alone."""
    from transformers import pipeline

    classifier = pipeline("image-classification", model=model, revision=revision)
    best = [classifier(image)[0] for image in batch["image"]]
    return {
        "id": batch["path"],
        "label": [prediction["label"] for prediction in best],
        "score": [prediction["score"] for prediction in best],
    }


# --8<-- [end:classify_batch]


# --8<-- [start:classify_naively]
def classify_naively(images: ray.data.Dataset, model: str, batch_size: int = 4) -> ray.data.Dataset:
    """Return `id`, `label` and `score` for each image, from two tasks at a time."""
    name, revision = split_revision(model)
    return images.map_batches(
        classify_batch,
        fn_kwargs={"model": name, "revision": revision},
        batch_size=batch_size,
        compute=ray.data.TaskPoolStrategy(size=2),
    )


# --8<-- [end:classify_naively]


def run(options: Any) -> ray.data.Dataset:
    """Return the predictions that the command asks for."""
    return classify_naively(read_images(options.images, options.limit), options.model)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.naive")
