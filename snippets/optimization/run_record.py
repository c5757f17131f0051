"""What a run leaves beside its rows: files that are whole or absent, the job's identity, a record of each run."""

from __future__ import annotations

from snippets.fundamentals.dataset import look_up
from snippets.fundamentals.setup import split_revision

# isort: split
# --8<-- [start:imports]
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:put]
def put(filesystem: fs.FileSystem, path: str, content: bytes) -> None:
    """Write a file as a whole or not at all, in place of one that is there.

    On a disk it gets its name when it is complete and on the disk. In an object store it appears when the
    upload ends; other filesystems may show half of it.
    """
    if isinstance(filesystem, fs.LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Readers skip names with a dot in front. Two containers may have processes of one number.
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)


def put_json(filesystem: fs.FileSystem, path: str, content: dict[str, Any]) -> None:
    """Write a dictionary as `put` does."""
    put(filesystem, path, json.dumps(content, indent=2).encode())


# --8<-- [end:put]


# --8<-- [start:checkpoint]
@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that cannot change under a job: `revision` is a commit on the hub, None for a folder."""

    name: str
    revision: str | None
    sha256: str  # of the names and contents of its files

    @property
    def pinned(self) -> str:
        """What loads these weights, and no later ones."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


def pin_checkpoint(model: str) -> Checkpoint:
    """Return what a folder, or `name@revision` on the hub, is now; what is not in the cache is downloaded."""
    name, revision = split_revision(model)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
        revision = folder.name  # a cache keeps each commit in a folder of that name
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return Checkpoint(name, revision, digest.hexdigest())


# --8<-- [end:checkpoint]


# --8<-- [start:claim_output]
def digest_ids(ids: Sequence[str]) -> str:
    """Return the SHA-256 of ids and their order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def check_output(filesystem: fs.FileSystem, path: str, identity: dict[str, Any]) -> bool:
    """Return whether an output belongs to this job already. Raises `ValueError` where it is another's.

    Half of a `job.json` with nothing beside it, of an upload that was cut, belongs to nobody.
    """
    written = None
    if look_up(filesystem, f"{path}/job.json").type != fs.FileType.NotFound:
        with filesystem.open_input_stream(f"{path}/job.json") as stream, suppress(ValueError):
            written = json.loads(stream.readall())
    if written is None:
        there = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        if any(not file.base_name.startswith(".") and file.base_name != "job.json" for file in there):
            raise ValueError(f"There is something at {path} that no job of this pipeline wrote.")
        return False
    changed = sorted(name for name in identity if written.get(name) != identity[name])
    if changed:
        raise ValueError(f"The output {path} is of a job with another {', '.join(changed)}: use a new one.")
    return True


# --8<-- [end:claim_output]


# --8<-- [start:run_record]
EXIT_STATUS = {"complete": 0, "failed": 1, "stopped": 75}  # 2: refused, nothing begun; 75: start it again


class RunRecord:
    """What a run did, in `runs/ID.json`. One that was killed, or could not write, says `running` for ever."""

    def __init__(self, filesystem: fs.FileSystem, path: str, asked: dict[str, Any]) -> None:
        began = datetime.now(UTC)
        self.run_id = f"{began:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.filesystem, self.path = filesystem, f"{path}/runs/{self.run_id}.json"
        versions = {}
        for name in ("ray", "torch", "transformers", "pyarrow", "pillow", "onnxruntime", "openvino"):
            with suppress(importlib.metadata.PackageNotFoundError):  # the last two, where no engine runs
                versions[name] = importlib.metadata.version(name)
        self.content: dict[str, Any] = {
            "run_id": self.run_id,
            "status": "running",
            "exit_status": None,
            "reason": None,
            "began": began.isoformat(),
            "ended": None,
            "counts": {},
            **asked,
            "versions": {"python": platform.python_version(), **versions},
        }
        put_json(filesystem, self.path, self.content)

    def end(self, status: str, counts: dict[str, int], reason: str | None = None) -> dict[str, Any]:
        """Write how it ended; return the record."""
        self.content |= {"status": status, "exit_status": EXIT_STATUS[status], "reason": reason}
        self.content |= {"ended": datetime.now(UTC).isoformat(), "counts": counts}
        put_json(self.filesystem, self.path, self.content)
        return self.content


# --8<-- [end:run_record]
