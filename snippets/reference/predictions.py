"""What the optimized pipeline answers for a few of the samples, with their pictures: a table for a page."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow import fs

from snippets.fundamentals.actor_pool import Classifier, decode, load_preprocessing
from snippets.reference.generated import FOLDER, update
from snippets.samples import DEFAULT_ROOT, Samples, build_samples

SHOWN = ("images/ocean/*", "images/forest/*", "images/desert/*", "hostile/truncated.jpg")  # the first of each
WIDTH = 120  # pixels of a picture; a phone shows the table too
PICTURES = FOLDER / "predictions"


def shown_files(samples: Samples) -> list[Path]:
    """Return the files whose rows the table has."""
    return [min(samples.images.parent.glob(pattern)) for pattern in SHOWN]


def predict(samples: Samples) -> list[dict[str, object]]:
    """Return `id`, `label`, `score` and `error` of the files, from the pipeline's two steps in this process."""
    to = load_preprocessing(str(samples.model))
    paths = np.array([str(path) for path in shown_files(samples)])
    decoded = decode({"id": paths}, fs.LocalFileSystem(), to)
    batch = {name: np.asarray(column) for name, column in decoded.items()}  # as Ray Data makes of it
    rows: list[dict[str, object]] = Classifier(str(samples.model), to, len(paths))(batch).to_pylist()
    return rows


def render(samples: Samples | None = None) -> str:
    """Return the table in Markdown."""
    samples = samples or build_samples(DEFAULT_ROOT)
    # A figure, which a notebook made from the page leaves out.
    lines = ['<figure markdown="block">', "", "| file | image | label | score | error |"]
    lines.append("| --- | --- | --- | ---: | --- |")
    for path, row in zip(shown_files(samples), predict(samples), strict=True):
        has_label = row["error"] is None
        picture = f"![{path.parent.name}](../assets/reference/predictions/{path.stem}.jpg)" if has_label else ""
        answer = f"{row['label']} | {row['score']:.2f} | " if has_label else f" | | {row['error']}"
        lines.append(f"| `{path.parent.name}/{path.name}` | {picture} | {answer} |")
    return "\n".join([*lines, "", "</figure>"]) + "\n"


def write_pictures(samples: Samples, folder: Path = PICTURES) -> None:
    """Write a small copy of each image that has a label."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, row in zip(shown_files(samples), predict(samples), strict=True):
        if row["error"] is None:
            with Image.open(path) as image:
                small = image.convert("RGB")
                small.thumbnail((WIDTH, WIDTH))
                small.save(folder / f"{path.stem}.jpg", quality=80)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        write_pictures(build_samples(DEFAULT_ROOT))
    sys.exit(update("predictions", render))
