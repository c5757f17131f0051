"""One run over blocks of a size, a form, a layout or a plan, in a process of its own.

`python -m snippets.benchmark.block_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does. Each answer has `rows`, `blocks`, `seconds`,
`rows_per_second`, `peak_memory_bytes` (see `recording`), `passed_bytes` (that operators put into the object
store), `actors` (that classified) and `operators`; null is what a kind of run has none of.
"""

from __future__ import annotations

import io
import itertools
import math
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image
from pyarrow import fs

from snippets.architecture.plans import passed_on, planned_operators
from snippets.benchmark.processes import answer_request
from snippets.command import ray_options
from snippets.fundamentals.actor_pool import (
    KEEP_FREED_MEMORY,
    Classifier,
    Preprocessing,
    decode,
    decode_image,
    load_preprocessing,
    plan_pool,
)
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import configure_data_context
from snippets.recording import MemorySampler, recording

Batch = dict[str, Any]
BATCH_SIZE, GPU_BATCH_SIZE = 16, 64  # what `classify` chooses
FORM_ROWS = 32  # in a block whose form is varied
FORMS = {"encoded": 1, "uint8": 2, "float32": 3}  # -> how many of the steps are before the object store
PLANS = ("course", "parted", "cheap", "all")
THUMBNAIL, THUMBNAILS = 64, 64  # pixels along the longer edge, and how many different files


@contextmanager
def started() -> Iterator[MemorySampler]:
    """Connect to Ray, and yield what samples the memory of this process and of all that it starts."""
    ray.init(**ray_options())
    configure_data_context(progress_bars=False)
    sampler = MemorySampler([psutil.Process()], with_children=True)
    try:
        yield sampler
    finally:
        sampler.stop()
        ray.shutdown()


def warm_up(build: Callable[[int], ray.data.Dataset]) -> None:
    """Run a dataset of a few blocks, so that a worker for each CPU has imported what it needs."""
    for _ in range(2):
        build(int(ray.cluster_resources()["CPU"])).materialize()


def answer(rows: int, blocks: int, seconds: float, peak_memory_bytes: int, passed_bytes: int) -> dict[str, Any]:
    """Return what a run without a model answers."""
    return {
        "rows": rows,
        "blocks": blocks,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "passed_bytes": passed_bytes,
        "actors": None,
        "operators": None,
    }


def decode_in_blocks(source: list[str], model: str, rows_a_block: int) -> dict[str, Any]:
    """Read and decode images in blocks of a size on all CPUs, and drop them: what a block costs by itself."""
    filesystem, paths, _ = list_images(source)
    settings = {"filesystem": filesystem, "to": load_preprocessing(model)}
    blocks, rows, passed = math.ceil(len(paths) / rows_a_block), 0, 0

    def decoded(some: list[str], blocks: int) -> ray.data.Dataset:
        items = [{"id": path} for path in some]
        return ray.data.from_items(items, override_num_blocks=blocks).map_batches(decode, fn_kwargs=settings)

    with started() as sampler:
        warm_up(lambda cpus: decoded(paths[:cpus], cpus))
        began = time.monotonic()
        for table in decoded(paths, blocks).iter_batches(batch_size=None, batch_format="pyarrow"):
            rows, passed = rows + len(table), passed + table.nbytes
        return answer(rows, blocks, time.monotonic() - began, sampler.stop(), passed)


def classify_in_blocks(source: list[str], model: str, rows_a_block: int, plan: str) -> dict[str, Any]:
    """Run the course's pipeline in float32, in blocks of a size, with one of `PLANS`; see `build_pipeline`.

    `rows_per_second` is that of the steady state, null where there is too little of it.
    """
    with recording(**ray_options()) as record:
        configure_data_context(progress_bars=False)
        predictions, blocks = build_pipeline(source, model, rows_a_block, plan)
        operators = planned_operators(predictions)
        executed = predictions.materialize()  # labels and scores alone
        rows, passed = executed.count(), sum(size for _, _, size in passed_on(executed))
    ray.shutdown()
    report = record.report()
    return {
        "rows": rows,
        "blocks": blocks,
        "seconds": report["seconds"],
        "rows_per_second": report["steady_rows_per_second"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "passed_bytes": int(passed),
        "actors": len({event.worker for event in record.of("batch")}),
        "operators": operators,
    }


def drop_failed(batch: Batch) -> Batch:
    """Return the rows without an error: a cheap step, for which pixels are copied."""
    is_good = batch["error"] == ""
    return {name: column[is_good] for name, column in batch.items()}


def build_pipeline(source: list[str], model: str, rows_a_block: int, plan: str) -> tuple[ray.data.Dataset, int]:
    """Return the predictions, and the number of blocks.

    `course` is the pipeline of `actor_pool`. The others drop failed rows after decoding: `parted` in an operator
    of its own, `cheap` fused with decoding, `all` both fused with the model, in its actors. Every pool has as many
    actors as `plan_pool` says, and idle ones where there are too few blocks.
    """
    filesystem, paths, _ = list_images(source)
    to, pool = load_preprocessing(model), plan_pool()
    batch_size = GPU_BATCH_SIZE if pool.num_gpus else BATCH_SIZE
    blocks = math.ceil(len(paths) / rows_a_block)
    actor: dict[str, Any] = {
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
        "runtime_env": {"env_vars": KEEP_FREED_MEMORY},
    }
    decoding: dict[str, Any] = {"num_cpus": pool.decode_cpus}
    dropping = {"parted": {"num_cpus": pool.decode_cpus / 2}, "cheap": decoding, "all": actor}
    if plan == "all":
        decoding = {**actor, "batch_size": batch_size}
    images = ray.data.from_items([{"id": path} for path in paths], override_num_blocks=blocks).map_batches(
        decode, fn_kwargs={"filesystem": filesystem, "to": to}, **decoding
    )
    if plan in dropping:
        images = images.map_batches(drop_failed, batch_size=batch_size, **dropping[plan])
    predictions = images.map_batches(
        Classifier,
        fn_constructor_args=(model, to, batch_size, "float32", pool.threads, pool.num_gpus > 0),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        **actor,
    )
    return predictions, blocks


def read_files(batch: Batch, filesystem: fs.FileSystem, to: Preprocessing) -> Batch:
    """Return the column `file`: bytes."""
    files = []
    for path in batch["id"]:
        with filesystem.open_input_stream(path) as stream:
            files.append(stream.readall())
    return {"file": files}


def decode_files(batch: Batch, filesystem: fs.FileSystem, to: Preprocessing) -> Batch:
    """Return the column `image` (uint8, n x crop x crop x 3) of the files."""
    return {"image": np.stack([decode_image(file, to) for file in batch["file"]])}


def normalize(batch: Batch, filesystem: fs.FileSystem, to: Preprocessing) -> Batch:
    """Return the column `image` as float32, with the mean and the deviation that the model expects."""
    mean, std = (np.array(values, np.float32) * 255 for values in (to.mean, to.std))
    return {"image": (batch["image"].astype(np.float32) - mean) / std}


def average(batch: Batch, filesystem: fs.FileSystem, to: Preprocessing) -> Batch:
    """Return the mean of each image: every value is looked at, and none is passed on."""
    return {"mean": batch["image"].mean(axis=(1, 2, 3))}


STEPS = (read_files, decode_files, normalize, average)


def run_steps(batch: Batch, begin: int, end: int, **settings: Any) -> Batch:
    """Return what some of the steps make of a batch, one after the other."""
    for step in STEPS[begin:end]:
        batch = step(batch, **settings)
    return batch


def pass_in_form(source: list[str], model: str, form: str) -> dict[str, Any]:
    """Read, decode, normalize and average images, the same work in every form, in two operators.

    What passes between them through the object store is `encoded` files, pixels in `uint8`, or in `float32`.
    """
    filesystem, paths, _ = list_images(source)
    settings = {"filesystem": filesystem, "to": load_preprocessing(model)}
    cut = FORMS[form]

    def averaged(some: list[str], blocks: int) -> ray.data.Dataset:
        return (
            ray.data.from_items([{"id": path} for path in some], override_num_blocks=blocks)
            .map_batches(run_steps, batch_size=None, fn_kwargs={"begin": 0, "end": cut, **settings})
            .map_batches(
                run_steps, batch_size=None, num_cpus=0.5, fn_kwargs={"begin": cut, "end": len(STEPS), **settings}
            )
        )

    blocks = math.ceil(len(paths) / FORM_ROWS)
    with started() as sampler:
        warm_up(lambda cpus: averaged(paths[:cpus], cpus))
        began = time.monotonic()
        executed = averaged(paths, blocks).materialize()  # a number an image
        seconds = time.monotonic() - began
        passed = int(sum(size for _, _, size in passed_on(executed)))
        return answer(executed.count(), blocks, seconds, sampler.stop(), passed)


def write_layouts(folder: Path, source: Sequence[str], files: int, shards: int) -> None:
    """Write the same files, thumbnails of the source's images, as they are, as Parquet and as tar shards.

    `small/` has a file each, `parquet/` the columns `path` and `bytes`, `tar/` the files as WebDataset has them.
    """
    filesystem, paths, _ = list_images(list(source))
    contents = list(itertools.islice(itertools.cycle(_thumbnails(filesystem, paths)), files))
    for name in ("small", "parquet", "tar"):
        (folder / name).mkdir(parents=True)
    for number, content in enumerate(contents):
        (folder / "small" / f"{number:06}.jpg").write_bytes(content)
    rows = math.ceil(files / shards)
    for shard, first in enumerate(range(0, files, rows)):
        of_shard = [(f"{number:06}", contents[number]) for number in range(first, min(first + rows, files))]
        table = pa.table({"path": [name for name, _ in of_shard], "bytes": [content for _, content in of_shard]})
        pq.write_table(table, folder / "parquet" / f"{shard:03}.parquet")
        with tarfile.open(folder / "tar" / f"{shard:03}.tar", "w") as archive:
            for name, content in of_shard:
                entry = tarfile.TarInfo(f"{name}.jpg")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def _thumbnails(filesystem: fs.FileSystem, paths: list[str]) -> list[bytes]:
    found = []
    for path in paths[:THUMBNAILS]:
        with filesystem.open_input_stream(path) as stream:
            image = Image.open(io.BytesIO(stream.readall())).convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG")
        found.append(file.getvalue())
    return found


def count_bytes(batch: Batch, column: str) -> Batch:
    """Return how many files a batch has, and how many bytes these are."""
    return {"files": [len(batch[column])], "bytes": [sum(map(len, batch[column]))]}


LAYOUTS: dict[str, tuple[str, Callable[[str], ray.data.Dataset]]] = {  # -> the column of bytes, and the read
    "small": ("bytes", ray.data.read_binary_files),
    "parquet": ("bytes", ray.data.read_parquet),
    "tar": ("jpg", partial(ray.data.read_webdataset, decoder=None)),
}


def read_layout(folder: str, layout: str) -> dict[str, Any]:
    """List and read a folder that `write_layouts` wrote, in its layout, and count the bytes of each file.

    `blocks` are those that the read made; `passed_bytes` are those of the files.
    """
    column, read = LAYOUTS[layout]
    with started() as sampler:
        warm_up(lambda cpus: ray.data.range(cpus, override_num_blocks=cpus).map_batches(lambda batch: batch))
        began = time.monotonic()
        files = read(str(Path(folder, layout)))
        executed = files.map_batches(count_bytes, batch_size=None, fn_kwargs={"column": column}).materialize()
        seconds = time.monotonic() - began
        counts = executed.take_all()
        rows, size = (sum(count[name] for count in counts) for name in ("files", "bytes"))
        return answer(rows, executed.num_blocks(), seconds, sampler.stop(), size)


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "decoding": decode_in_blocks,
    "pipeline": classify_in_blocks,
    "form": pass_in_form,
    "files": read_layout,
}


if __name__ == "__main__":
    answer_request(KINDS)
