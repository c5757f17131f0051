"""Files are whole or absent, a checkpoint is pinned to what it is now, and a record says how a run ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
from pyarrow import fs

from snippets.optimization.run_record import Checkpoint, RunRecord, check_output, pin_checkpoint, put
from tests.page_rendering import ROOT
from tests.production_driver import write_checkpoint

LOCAL = fs.LocalFileSystem()


def test_a_write_that_is_interrupted_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "file.json"
    put(LOCAL, str(path), b"first")

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        put(LOCAL, str(path), b"second")
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    put(LOCAL, str(path), b"third")
    assert path.read_bytes() == b"third"


KILLED = """
import os, signal, sys
from pyarrow import fs
from snippets.optimization.run_record import put
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
put(fs.LocalFileSystem(), sys.argv[1], b"half")
"""


def test_a_process_that_is_killed_in_a_write_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, f"{tmp_path}/rows.parquet"], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".rows.parquet.")
    assert pads.dataset(str(tmp_path), format="parquet").files == []


def test_half_of_an_identity_belongs_to_nobody_unless_something_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"manif')
    assert not check_output(LOCAL, str(tmp_path), {"manifest": "0123"})
    (tmp_path / "records").mkdir()
    with pytest.raises(ValueError, match=r"There is something at .* that no job of this pipeline wrote"):
        check_output(LOCAL, str(tmp_path), {"manifest": "0123"})


def test_readers_skip_what_an_interrupted_write_left(tmp_path: Path) -> None:
    (tmp_path / ".rows.parquet.17").write_bytes(b"half")
    assert pads.dataset(str(tmp_path), format="parquet").files == []


def test_another_filesystem_is_written_in_one_piece(tmp_path: Path) -> None:
    put(fs.SubTreeFileSystem(str(tmp_path), LOCAL), "file.json", b"whole")
    assert (tmp_path / "file.json").read_bytes() == b"whole"


def test_a_folder_is_pinned_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name)
    one, two = (pin_checkpoint(f"{tmp_path}/{name}") for name in ("one", "two"))
    assert (one.sha256, one.revision, one.pinned) == (two.sha256, None, f"{tmp_path}/one")
    (tmp_path / "two" / "config.json").write_text('{"changed": true}')
    assert pin_checkpoint(f"{tmp_path}/two").sha256 != one.sha256


def test_a_name_on_the_hub_is_pinned_to_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return f"{tmp_path}/snapshots/0123abc"

    (tmp_path / "snapshots").mkdir()
    write_checkpoint(tmp_path / "snapshots" / "0123abc")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = pin_checkpoint("owner/name@main")
    assert asked == [("owner/name", "main")]
    assert found == Checkpoint("owner/name", "0123abc", found.sha256)
    assert found.pinned == "owner/name@0123abc"


def test_a_record_says_what_was_asked_and_how_it_ended(tmp_path: Path) -> None:
    record = RunRecord(LOCAL, str(tmp_path), {"settings": {"part_rows": 8}})
    (file,) = (tmp_path / "runs").iterdir()
    assert file.stem == record.run_id
    begun = json.loads(file.read_text())
    assert (begun["status"], begun["ended"], begun["settings"]) == ("running", None, {"part_rows": 8})
    assert {"python", "ray", "torch", "transformers", "pyarrow"} <= set(begun["versions"])
    ended = record.end("failed", {"rows": 4}, "RuntimeError: no")
    assert json.loads(file.read_text()) == ended
    assert (ended["status"], ended["exit_status"], ended["reason"]) == ("failed", 1, "RuntimeError: no")
    assert ended["run_id"] == begun["run_id"]
