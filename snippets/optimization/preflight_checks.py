"""What a preflight looks at: the input, a sample of its images, the output, the model where the workers are."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, Pool, Preprocessing
from snippets.fundamentals.dataset import list_images, look_up, open_filesystem
from snippets.optimization.production import classifier_arguments, decode_within
from snippets.optimization.production_parts import Job, read_manifest, scheme_of, write_manifest
from snippets.optimization.production_settings import Settings
from snippets.optimization.run_record import pin_checkpoint, put
from snippets.optimization.trial import Repeat, measure_in_processes
from snippets.optimization.tuners import peak_memory_bytes

# isort: split
# --8<-- [start:imports]
import math
import random
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import ray
from PIL import Image
from pyarrow import fs
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:report]
@dataclass
class Check:
    """One look: what it found, a sentence for each thing that cannot end well, and for what is worth knowing."""

    name: str
    found: dict[str, Any] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sentence_of(error: Exception) -> str:
    """Return what an error says, of one that Ray brings from a worker what it was there."""
    if isinstance(error, ray.exceptions.RayError):
        cause = getattr(error, "cause", None)
        return f"{type(cause).__name__}: {cause}" if cause else str(error).splitlines()[0]
    return str(error)


@dataclass
class Report:
    """The checks that were made. `explain` makes of an error a sentence, or several; `progress` is told names."""

    explain: Callable[[Exception], str] = sentence_of
    progress: Callable[[str], None] = lambda name: None
    checks: list[Check] = field(default_factory=list)

    @property
    def refusals(self) -> list[str]:
        """What cannot end well."""
        return [sentence for check in self.checks for sentence in check.refusals]

    @property
    def notes(self) -> list[str]:
        """What is worth knowing."""
        return [sentence for check in self.checks for sentence in check.notes]

    def found(self, name: str) -> dict[str, Any]:
        """Return what a check found, nothing where it was not made."""
        return next((check.found for check in self.checks if check.name == name), {})

    @contextmanager
    def check(self, name: str) -> Iterator[Check]:
        """Yield a check to fill. An error that the input causes ends it, and refuses with its sentence."""
        check = Check(name)
        self.checks.append(check)
        self.progress(name)
        try:
            yield check
        except (ValueError, OSError, RuntimeError, ray.exceptions.RayError) as error:
            check.refusals += self.explain(error).splitlines()


# --8<-- [end:report]


# --8<-- [start:input]
def manifest_of(source: str | list[str], manifest: str, limit: int | None) -> dict[str, Any]:
    """Write the manifest of a folder or list; return the settings `manifest` and `images`, and `left_out`.

    `left_out` counts the files without the suffix of an image, which the manifest does not list.
    """
    _, paths, others = list_images(source, limit)
    images = write_manifest([scheme_of(source) + path for path in paths], manifest)
    return {"manifest": manifest, "images": images, "left_out": len(others)}


def look_at_input(settings: Settings) -> dict[str, Any]:
    """Return how many `rows` the manifest has, and the `seconds` to read it. Raises what a run would raise."""
    began = time.monotonic()
    ids = read_manifest(settings.manifest, settings.limit)
    images, root = open_filesystem(settings.images or settings.manifest.rpartition("/")[0])
    if look_up(images, root).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There are no images at {root}.")
    return {"rows": len(ids), "seconds": time.monotonic() - began}


# --8<-- [end:input]


# --8<-- [start:output]
def write_and_remove(output: str) -> dict[str, Any]:
    """Write an empty file where the output will be, and remove it; return the `seconds` that writing took.

    Where a folder does not exist yet, the nearest above it is written to, so that nothing is left. `free_bytes`
    are those of a local disk. Raises `OSError` where it cannot be written.
    """
    filesystem, path = open_filesystem(output)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    if is_local:
        there = next(place for place in [Path(path), *Path(path).parents] if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"The output {path} needs a folder where there is a file, {there}.")
        path = str(there)
    file = f"{path}/.preflight-{secrets.token_hex(8)}"
    began = time.monotonic()
    put(filesystem, file, b"")
    seconds = time.monotonic() - began
    filesystem.delete_file(file)
    return {"seconds": seconds, "free_bytes": shutil.disk_usage(path).free if is_local else None}


# --8<-- [end:output]


# --8<-- [start:share]
def share_between(hits: int, seen: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return between which shares of all rows the hits lie, where a random sample of them was seen.

    Wilson's score interval (https://doi.org/10.1080/01621459.1927.10502953), which holds for few hits and for
    none. Where all rows were seen, the share is known.
    """
    share = hits / seen
    if seen >= rows:
        return share, share
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z**2 / (2 * seen)
    half = z * math.sqrt(share * (1 - share) / seen + z**2 / (4 * seen**2))
    low, high = ((centre + side * half) / (1 + z**2 / seen) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def enough_to_see(share: float, confidence: float = 0.95) -> int:
    """Return how many rows without a hit show that no more than a share has one: z2 (1 - s) / s."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return math.ceil(z**2 * (1 - share) / share)


# --8<-- [end:share]


# --8<-- [start:images]
def read_header(filesystem: fs.FileSystem, path: str) -> dict[str, Any]:
    """Return an image's `bytes`, `width`, `height` and `mode`, as far as the file says."""
    seen: dict[str, Any] = dict.fromkeys(("bytes", "width", "height", "mode"))
    try:
        with filesystem.open_input_file(path) as file:
            seen["bytes"] = file.size()
            image = Image.open(file)
            seen |= {"width": image.width, "height": image.height, "mode": image.mode}
    except Exception:  # what is wrong is said by whoever decodes it
        return seen
    return seen


def look(
    ids: Sequence[str],
    filesystem: fs.FileSystem,
    root: str,
    to: Preprocessing,
    max_bytes: int,
    max_pixels: int,
) -> list[dict[str, Any]]:
    """Return a row an image: its header, and the `error` that a run would keep, empty where it decodes."""

    def error(id: str) -> str:  # one at a time, as decoded images are large
        return str(decode_within({"id": [id]}, filesystem, root, to, max_bytes, max_pixels)["error"][0])

    return [{"id": id, "error": error(id), **read_header(filesystem, f"{root}/{id}")} for id in ids]


def look_everywhere(job: Job, pool: Pool | None, sample: int, timeout_s: float, seed: int) -> list[dict[str, Any]]:
    """Look at a random sample, a share of it on each node that may decode.

    Rows have the `node` too, and whether it is `blind`: it reads nothing of its share, and another node reads the
    first of it. Raises `RuntimeError` where a node does not answer in time.
    """
    ids = [id for part in job.parts for id in part]
    ids = random.Random(seed).sample(ids, min(sample, len(ids)))
    least = pool.decode_cpus if pool else 0
    nodes = [node for node in live_nodes() if node["Resources"].get("CPU", 0) >= least][: len(ids)]
    shares = [ids[index :: len(nodes)] for index in range(len(nodes))]
    limits = (job.settings.max_bytes, job.settings.max_pixels)

    def look_on(places: Sequence[tuple[dict[str, Any], list[str]]]) -> list[list[dict[str, Any]]]:
        tasks = []
        for node, share in places:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, scheduling_strategy=place)  # waits for no busy CPU
            tasks.append(task.remote(share, job.images, job.root, job.to, *limits))
        try:
            return list(ray.get(tasks, timeout=timeout_s))
        except ray.exceptions.GetTimeoutError:
            raise RuntimeError(f"Not all nodes could look at images within {timeout_s:g} s.") from None

    def sees(rows: list[dict[str, Any]]) -> bool:
        return any(not row["error"] for row in rows)

    seen = look_on(list(zip(nodes, shares, strict=True)))
    sighted = next((node for node, rows in zip(nodes, seen, strict=True) if sees(rows)), None)
    dark = [index for index, rows in enumerate(seen) if sighted and not sees(rows)]
    again = look_on([(sighted, shares[index][:1]) for index in dark]) if sighted else []
    blind = {index for index, rows in zip(dark, again, strict=True) if sees(rows)}
    return [
        {**row, "node": name_of(node), "blind": index in blind}
        for index, (node, rows) in enumerate(zip(nodes, seen, strict=True))
        for row in rows
    ]


def live_nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def name_of(node: dict[str, Any]) -> str:
    """Return a node's address and the begin of its id, as several may be on one machine."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def judge_images(check: Check, rows: Sequence[dict[str, Any]], everything: int, max_dead_share: float) -> None:
    """Say what the images look like, refuse nodes that read none of them, and too many that cannot be used."""
    dead, seen = [row for row in rows if row["error"]], [row for row in rows if row["mode"]]
    low, high = share_between(len(dead), len(rows), everything)
    sizes = {name: [row[name] for row in seen] for name in ("width", "height", "bytes")}
    check.found |= {
        "looked_at": len(rows),
        "unusable": len(dead),
        "unusable_share": [low, high],
        "modes": dict(Counter(row["mode"] for row in seen).most_common()),
        **{name: [min(values), max(values)] for name, values in sizes.items() if values},
        "mean_bytes": sum(sizes["bytes"]) / len(seen) if seen else None,
    }
    for node in dict.fromkeys(row["node"] for row in rows if row["blind"]):
        first = next(row for row in rows if row["node"] == node)
        check.refusals.append(f"Node {node} reads no image, and others do: {first['error']} ({first['id']}).")
    allowed = int(max_dead_share * everything)
    if check.refusals:
        return
    if round(low * everything) > allowed:
        check.refusals.append(
            f"{len(dead)} of {len(rows)} images cannot be used, so {low:.1%} to {high:.1%} of all, and "
            f"max_dead_share allows {max_dead_share:.1%}: {dead[0]['id']}, {dead[0]['error']}."
        )
    elif len(rows) < everything and high * everything > allowed > 0:
        check.notes.append(
            f"Up to {high:.1%} of the images may be unusable, and max_dead_share allows {max_dead_share:.1%}: a "
            f"sample of {min(everything, enough_to_see(max_dead_share))} with none would show that it holds."
        )


# --8<-- [end:images]


# --8<-- [start:nodes]
def build_batch(classifier: type, sha256: str, arguments: tuple[Any, ...]) -> Callable[[], Repeat]:
    """Load the model, and return a call that passes a batch of black images through it.

    Raises `ValueError` where the weights in this place are not those with the digest.
    """
    model, to, batch_size, *_ = arguments
    if pin_checkpoint(model).sha256 != sha256:
        raise ValueError(f"{model} has other weights here than where the preflight was started")
    made = classifier(*arguments)
    images = np.zeros((batch_size, to.crop, to.crop, 3), np.uint8)
    batch = {"id": [""] * batch_size, "image": images, "error": np.full(batch_size, "")}

    def call() -> Repeat:
        began = time.perf_counter()
        made(batch)
        return batch_size, time.perf_counter() - began, peak_memory_bytes()

    return call


def try_on_nodes(job: Job, pool: Pool, timeout_s: float) -> list[dict[str, Any]]:
    """Load the model and run a batch, in a process that may die, on each node that may hold an actor.

    A row a node: its `load_s`, from the start of a process to the end of the load, the `batch_s` of its first
    batch, its `peak_bytes` of memory, and the `failure`, empty where there is none.
    """
    arguments = classifier_arguments(job, pool)
    build = partial(build_batch, job.classifier, job.identity["checkpoint"]["sha256"], arguments)

    def try_on(node: dict[str, Any]) -> dict[str, Any]:
        began, row = time.monotonic(), {"node": name_of(node), "load_s": None, "batch_s": None, "peak_bytes": 0}
        try:
            outcome = measure_in_processes(
                arguments[2],
                build,
                timeout_s,
                repeats=1,
                warm_ups=0,
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus,
                runtime_env={"env_vars": KEEP_FREED_MEMORY},
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
        except ray.exceptions.RayError as error:
            return {**row, "failure": sentence_of(error)}
        if outcome.failure:
            return {**row, "failure": outcome.failure}
        batch_s = outcome.candidate / outcome.rates[0]
        load_s = time.monotonic() - began - batch_s
        return {**row, "load_s": load_s, "batch_s": batch_s, "peak_bytes": outcome.peak_bytes, "failure": ""}

    needs = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
    nodes = [
        node
        for node in live_nodes()
        if all(node["Resources"].get(kind, 0) >= need for kind, need in needs.items())
    ]
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(try_on, nodes))


def judge_nodes(
    check: Check, rows: Sequence[dict[str, Any]], batch_size: int, no_progress_timeout_s: float
) -> None:
    """Refuse nodes where the model did not get through a batch, and a model that loads longer than a run waits."""
    check.refusals += [
        f"Node {row['node']} did not load the model and run a batch of {batch_size}: {row['failure']}."
        for row in rows
        if row["failure"]
    ]
    if fit := [row for row in rows if not row["failure"]]:
        slowest = max(row["load_s"] for row in fit)
        check.found |= {
            "nodes": len(rows),
            "batch_size": batch_size,
            "load_s": slowest,
            "peak_bytes": max(row["peak_bytes"] for row in fit),
        }
        if slowest > no_progress_timeout_s:
            check.refusals.append(
                f"The model takes {slowest:.0f} s to load, and no_progress_timeout_s ends a run that shows no row "
                f"for {no_progress_timeout_s:g} s."
            )


# --8<-- [end:nodes]
