"""Credentials are nowhere: not in what commands print, nor in results, reports, Ray's logs or the repository."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page_rendering import ROOT
from tests.ray_cluster import RayCluster
from tests.s3.conftest import Bucket, Done, Run, Written

pytestmark = pytest.mark.cluster

# What Amazon's keys look like, and a secret that is set to one.
KEY = re.compile(
    rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|(?i:secret_access_key|secret_key)['\"]?\s*[=:]\s*['\"]?[\w/+]{40}\b"
)


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Return name and content of each file, of those that can be read as files."""
    return ((str(path), path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def holders(texts: Iterator[tuple[str, bytes]], *credentials: str) -> list[str]:
    """Return the names of the texts that hold a credential."""
    return [name for name, text in texts if any(each.encode() in text for each in credentials)]


def test_neither_output_nor_reports_hold_the_key(
    bucket: Bucket, run: Run, variables: dict[str, str], written: Written, signed: Done, seen: list[str]
) -> None:
    server = bucket.server
    uri = f"s3://{server.access_key}:{server.secret_key}@own/images"
    assert run("dataset", "--limit", "1", "--json", IMAGES=uri, **variables).status == 2
    assert signed.status == 0
    assert len(seen) > 4  # what all tests before this one saw, too
    texts = ((f"text {number}", text.encode()) for number, text in enumerate(seen))
    assert holders(texts, server.access_key, server.secret_key) == []


def test_results_on_s3_do_not_hold_the_key(bucket: Bucket, written: Written) -> None:
    from pyarrow import fs

    infos = bucket.filesystem.get_file_info(fs.FileSelector("own/results", recursive=True))
    files = [info.path for info in infos if info.is_file]
    assert files
    texts = [(path, bucket.filesystem.open_input_stream(path).readall()) for path in files]
    assert holders(iter(texts), "own/images/") != []  # not compressed beyond reading
    assert holders(iter(texts), bucket.server.access_key, bucket.server.secret_key) == []
    rows = str(written.on_s3.to_pylist())
    assert bucket.server.access_key not in rows
    assert bucket.server.secret_key not in rows


def test_rays_logs_do_not_hold_the_key(bucket: Bucket, s3_cluster: RayCluster, written: Written) -> None:
    folder = Path(s3_cluster.client_environment["RAY_TMPDIR"])
    logs = dict(files_below(folder))
    assert any("MapBatches(Classifier)" in text.decode(errors="replace") for text in logs.values())
    assert holders(iter(logs.items()), bucket.server.access_key, bucket.server.secret_key) == []


def test_no_file_of_the_repository_holds_a_key(bucket: Bucket) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 100
    texts = {name: (ROOT / name).read_bytes() for name in names}
    assert [name for name, text in texts.items() if KEY.search(text)] == []
    assert holders(iter(texts.items()), bucket.server.access_key, bucket.server.secret_key) == []


@pytest.mark.parametrize("text", ["key = " + "AKIA" + 16 * "A", "AWS_SECRET_ACCESS_KEY=" + 40 * "a"])
def test_a_key_would_be_found(text: str) -> None:
    assert KEY.search(text.encode())
