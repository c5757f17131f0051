"""Cut a manifest into parts, and write each part as a whole: results, dead letters, and last its record."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import Preprocessing, load_preprocessing
from snippets.fundamentals.dataset import list_images, look_up, open_filesystem
from snippets.optimization.production_settings import Settings
from snippets.optimization.run_record import check_output, digest_ids, pin_checkpoint, put, put_json

# isort: split
# --8<-- [start:imports]
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:manifest]
def scheme_of(source: str | list[str]) -> str:
    """Return what stands before the path in a URI, such as `s3://anonymous@`; of a list, in its first."""
    return re.sub(r"^(\w+://(anonymous@)?)?.*", r"\1", source if isinstance(source, str) else source[0])


def write_manifest(source: str | list[str], manifest: str, limit: int | None = None) -> str:
    """Write a manifest of the images of a folder or list; return where its paths begin, the setting `images`."""
    _, paths, _ = list_images(source, limit)
    root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    filesystem, path = open_filesystem(manifest)
    table = pa.table({"path": [posixpath.relpath(path, root) for path in paths]})
    pq.write_table(table, path, filesystem=filesystem)
    return scheme_of(source) + root


def read_manifest(manifest: str, limit: int | None = None) -> list[str]:
    """Return the ids of a manifest, a file or a folder of files, in its order: its column `path` alone.

    Raises `ValueError` where an id is missing or comes twice, as then nothing could be counted.
    """
    filesystem, path = open_filesystem(manifest)
    if look_up(filesystem, path).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There is no manifest {manifest}.")
    table = pads.dataset(path, filesystem=filesystem, format="parquet")
    if "path" not in table.schema.names:
        raise ValueError(f"The manifest {manifest} has no column path.")
    ids: list[str] = table.to_table(columns=["path"])["path"].to_pylist()[:limit]
    if not ids or None in ids:
        raise ValueError(f"The manifest {manifest} has {'rows without a path' if ids else 'no rows'}.")
    twice = next((id for id, rows in Counter(ids).items() if rows > 1), None)
    if twice is not None:
        raise ValueError(f"The manifest {manifest} lists {twice} more than once.")
    return ids


# --8<-- [end:manifest]


# --8<-- [start:plan_job]
@dataclass(frozen=True)
class Job:
    """What there is to do: the same, with the same parts, each time that it is started."""

    settings: Settings
    classifier: type
    model: str  # pinned to a commit
    to: Preprocessing  # what its checkpoint asks for
    images: fs.FileSystem
    root: str  # of the ids, in `images`
    output: fs.FileSystem
    path: str  # in `output`
    parts: list[list[str]]  # ids
    identity: dict[str, Any]  # what decides about the rows that come out

    @property
    def rows(self) -> int:
        """The rows of the manifest."""
        return sum(map(len, self.parts))

    def finished(self) -> set[int]:
        """Return the parts that have a record, which is written after their rows."""
        records = fs.FileSelector(f"{self.path}/records", allow_not_found=True)
        names = [re.fullmatch(r"part=(\d+)\.json", file.base_name) for file in self.output.get_file_info(records)]
        return {int(name[1]) for name in names if name}

    def dead_letters(self, finished: Iterable[int]) -> int:
        """Return how many dead letters the records of these parts count."""

        def read(number: int) -> int:
            with self.output.open_input_stream(f"{self.path}/records/part={number:05}.json") as stream:
                return int(json.loads(stream.readall())["dead_letters"])

        with ThreadPoolExecutor(16) as threads:
            return sum(threads.map(read, finished))


def plan_job(settings: Settings, classifier: type) -> Job:
    """Read the manifest, pin the checkpoint, cut parts. Nothing is written, and Ray is not needed.

    Raises `ValueError` or `OSError` with a sentence for what cannot begin, or cannot go on in this output.
    """
    ids = read_manifest(settings.manifest, settings.limit)
    images, root = open_filesystem(settings.images or settings.manifest.rpartition("/")[0])
    if look_up(images, root).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There are no images at {root}.")
    output, path = open_filesystem(settings.output)
    checkpoint = pin_checkpoint(settings.model)
    to = load_preprocessing(checkpoint.pinned)
    identity = {
        "manifest": digest_ids(ids),
        "images": root,
        "checkpoint": asdict(checkpoint),
        "classifier": classifier.__name__,
        **settings.model_dump(include={"part_rows", "max_bytes", "max_pixels", "dtype"}),
    }
    check_output(output, path, identity)
    parts = [ids[start : start + settings.part_rows] for start in range(0, len(ids), settings.part_rows)]
    return Job(settings, classifier, checkpoint.pinned, to, images, root, output, path, parts, identity)


# --8<-- [end:plan_job]


# --8<-- [start:parts]
class Parts:
    """Collects rows, which come in any order, into parts. `held` has the parts of which some rows are here."""

    def __init__(self, parts: dict[int, list[str]]) -> None:
        self.sizes = {number: len(ids) for number, ids in parts.items()}
        self.awaited = {id: number for number, ids in parts.items() for id in ids}
        self.held: dict[int, list[pa.Table]] = {}

    def add(self, rows: pa.Table) -> list[tuple[int, pa.Table]]:
        """Take rows; return the parts that are whole with them. Raises `RuntimeError` for one not awaited."""
        numbers = []
        for id in rows["id"].to_pylist():
            if id not in self.awaited:
                raise RuntimeError(f"The row {id} came twice, or is not in the manifest.")
            numbers.append(self.awaited.pop(id))
        whole = []
        for number in sorted(set(numbers)):
            held = self.held.setdefault(number, [])
            held.append(rows.filter(pc.equal(pa.array(numbers), number)))
            if sum(map(len, held)) == self.sizes[number]:
                whole.append((number, pa.concat_tables(self.held.pop(number)).sort_by("id")))
        return whole

    def check(self) -> None:
        """Raise `RuntimeError` where rows went in and did not come out."""
        if self.awaited:
            raise RuntimeError(f"{len(self.awaited)} rows did not come back, such as {next(iter(self.awaited))}.")


def to_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def write_part(job: Job, number: int, rows: pa.Table, run_id: str) -> tuple[int, int]:
    """Write a part: results, dead letters, and last its record. Return how many of each.

    Both files are written even if empty, so that one of an earlier, unfinished try never stays.
    """
    is_dead = pc.is_valid(rows["error"])
    dead = rows.filter(is_dead).select(["id", "error"]).rename_columns(["path", "error"])
    results = rows.filter(pc.invert(is_dead)).drop_columns("error")
    for kind, table in (("results", results), ("dead_letters", dead)):
        put(job.output, f"{job.path}/{kind}/part={number:05}/rows.parquet", to_parquet(table))
    record = {"rows": len(rows), "results": len(results), "dead_letters": len(dead), "run_id": run_id}
    put_json(job.output, f"{job.path}/records/part={number:05}.json", record)
    return len(results), len(dead)


# --8<-- [end:parts]


# --8<-- [start:account]
def account(job: Job) -> dict[str, int]:
    """Count `results` and `dead_letters` in the files. Raises `RuntimeError` unless each id is there once.

    Its sentence names an id, and what to remove so that the next run ends well: records, so that their parts are
    written anew, and files that no part has.
    """
    found: Counter[str] = Counter()
    counts, strays = {}, list[str]()
    for kind, column in (("results", "id"), ("dead_letters", "path")):
        files = pads.dataset(f"{job.path}/{kind}", filesystem=job.output, format="parquet", partitioning="hive")
        ids = files.to_table(columns=[column])[column].to_pylist()
        found.update(ids)
        counts[kind] = len(ids)
        own = {f"{job.path}/{kind}/part={number:05}/rows.parquet" for number in range(len(job.parts))}
        strays += [file.removeprefix(f"{job.path}/") for file in files.files if file not in own]
    wanted = {id: number for number, ids in enumerate(job.parts) for id in ids}
    wrong = {
        "missing": wanted.keys() - found.keys(),
        "more than once": {id for id, rows in found.items() if rows > 1},
        "not in the manifest": found.keys() - wanted.keys(),
    }
    if any(wrong.values()):
        text = ", ".join(f"{len(ids)} ids {what}" for what, ids in wrong.items())
        if strays:
            text += f"; remove {', '.join(sorted(strays))}, of which this job knows nothing"
        if mine := sorted({(wanted[id], id) for ids in wrong.values() for id in ids if id in wanted}):
            records = dict.fromkeys(f"records/part={number:05}.json" for number, _ in mine)
            text += f", such as {mine[0][1]} of part {mine[0][0]}; remove {', '.join(records)} to do it again"
        raise RuntimeError(f"The counts of {job.path} do not add up: {text}.")
    return counts


# --8<-- [end:account]
