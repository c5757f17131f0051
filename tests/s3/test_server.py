"""The S3 server of these tests is installed by a script, stays on loopback, and leaves nothing behind."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.page_rendering import ROOT
from tests.s3_server import S3Error, S3Server

SCRIPT = ROOT / "scripts" / "install-s3"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a server puts its files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if "ceph.conf" in " ".join(child.cmdline())
    ]


def test_nothing_listens_beyond_this_machine_and_nothing_is_left_after_an_error(folder: Path) -> None:
    before = set(children())
    with pytest.raises(ZeroDivisionError), S3Server():
        started = set(children()) - before
        assert {process.name() for process in started} == {"ceph-mon", "ceph-osd", "radosgw"}
        for process in started:
            listening = [each.laddr.ip for each in process.net_connections("inet") if each.status == "LISTEN"]
            assert set(listening) == {"127.0.0.1"}
        raise ZeroDivisionError
    assert not any(process.is_running() for process in started)
    assert list(folder.iterdir()) == []


def test_a_server_that_is_not_installed_is_named_and_what_was_started_is_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, find = set(children()), shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "radosgw" else find(name))
    with pytest.raises(S3Error, match=r"^There is no radosgw on this machine: run scripts/install-s3\.$"):
        S3Server()
    assert set(children()) == before
    assert list(folder.iterdir()) == []


def test_each_server_has_a_key_of_its_own(folder: Path) -> None:
    with S3Server() as one, S3Server() as other:
        assert one.access_key != other.access_key
        assert one.secret_key != other.secret_key
        assert min(len(one.secret_key), len(other.secret_key)) >= 40


def install(**variables: str) -> tuple[int, str]:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [shutil.which("bash") or "bash", SCRIPT], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_the_script_does_nothing_where_the_server_is_installed() -> None:
    assert install(OS_RELEASE="/nowhere") == (0, "")


def test_the_script_says_where_it_cannot_install(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text("ID=fedora\n")
    for place in (release, tmp_path / "missing"):
        status, text = install(PATH=str(tmp_path), OS_RELEASE=str(place))
        assert status == 2
        assert text.startswith("This installs Ceph's S3 gateway on Debian and Ubuntu only: ")
        assert text.count("\n") == 1
