"""Weights are fetched once, as a whole, and again where they change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snippets.optimization.weights import fetch_once

KILLED = """
import os, signal, sys
from pyarrow import fs
from snippets.optimization import weights


def half(source, target, **_):
    with open(target, "wb") as file:
        file.write(b"ha")
    os.kill(os.getpid(), signal.SIGKILL)


fs.copy_files = half
weights.fetch_once(*sys.argv[1:])
"""


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_to_be_read(tmp_path: Path) -> None:
    source, folder = tmp_path / "network.pt", tmp_path / "node"
    source.write_bytes(b"whole")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(folder)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.read_bytes() for path in folder.rglob("partial/network.pt")] == [b"ha"]
    assert not list(folder.glob("*/network.pt"))
    found = fetch_once(str(source), str(folder))
    assert (found.path.read_bytes(), found.seconds is None) == (b"whole", False)
    assert not list(folder.rglob("partial"))
    assert fetch_once(str(source), str(folder)).seconds is None


def test_weights_that_change_are_fetched_again(tmp_path: Path) -> None:
    source, folder = tmp_path / "network.pt", str(tmp_path / "node")
    source.write_bytes(b"first")
    first = fetch_once(str(source), folder)
    source.write_bytes(b"other")
    os.utime(source, ns=(0, 0))  # a clock may not tell two writes apart
    other = fetch_once(str(source), folder)
    assert (first.path.read_bytes(), other.path.read_bytes()) == (b"first", b"other")
    assert other.path.name == "network.pt"


def test_weights_that_are_not_there_end_in_a_sentence(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "network.pt"):
        with pytest.raises(FileNotFoundError, match=f"^There are no weights at {place}\\.$"):
            fetch_once(str(place), str(tmp_path / "node"))
