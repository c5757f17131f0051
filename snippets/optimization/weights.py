"""Fetch a file of weights once a node: one process fetches, the others wait, and none reads half of it."""

from __future__ import annotations

from snippets.fundamentals.dataset import look_up, open_filesystem
from snippets.optimization.engines import Built, build_once

# isort: split
# --8<-- [start:imports]
import getpass
import posixpath
import tempfile
from pathlib import Path

from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:fetch_once]
def node_folder() -> str:
    """Return a folder of this user on the node's own disk, where later runs find what this one fetched."""
    return str(Path(tempfile.gettempdir()) / f"weights-{getpass.getuser()}")


def fetch_once(uri: str, folder: str | None = None) -> Built:
    """Return a copy, on this node, of a file at a path or s3:// URI; None of `seconds` where it was there.

    It is known by its place, size and time: weights that change are fetched again. Raises `FileNotFoundError`
    where there is no such file, and `OSError` where the disk is full.
    """
    source, path = open_filesystem(uri)
    info = look_up(source, path)
    if not info.is_file:
        raise FileNotFoundError(f"There are no weights at {uri}.")

    def fetch(target: Path) -> None:
        fs.copy_files(path, str(target), source_filesystem=source, destination_filesystem=fs.LocalFileSystem())

    key = {"uri": uri, "bytes": info.size, "modified": info.mtime_ns}
    return build_once(key, fetch, folder or node_folder(), posixpath.basename(path))


# --8<-- [end:fetch_once]
