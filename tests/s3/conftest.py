"""A real S3 server with some of the sample images in it, and the commands that read them by environment alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from snippets.command import run_module
from snippets.recording import Recording
from snippets.samples import Samples
from tests.page_rendering import ROOT
from tests.ray_cluster import RayCluster
from tests.s3_server import REGION, S3Server

POOL = ("--actors", "1", "--batch-size", "4")
IN_MANIFEST = 17
MANIFEST, MISSING = "manifest.parquet", "nowhere/missing.jpg"
# Without these of whoever runs the tests, as what is tested is what they say.
FOREIGN = ("AWS_", "RAY_", "IMAGES", "MODEL", "PYTEST_", "COV_")


@dataclass(frozen=True)
class Bucket:
    """The same images and the same manifest in a bucket, and on this machine."""

    server: S3Server
    local: Path
    name: str = "own"
    public: str = "public"

    @property
    def images(self) -> str:
        return f"s3://{self.name}/images"

    @property
    def filesystem(self) -> fs.S3FileSystem:
        """What reads and writes it, whatever the environment is."""
        server = self.server
        return fs.S3FileSystem(
            access_key=server.access_key,
            secret_key=server.secret_key,
            endpoint_override=server.endpoint,
            region=REGION,
        )

    @property
    def anonymous(self) -> str:
        return f"s3://anonymous@{self.public}/images"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    output: str
    errors: str

    @property
    def report(self) -> dict[str, Any]:
        """What `--json` printed."""
        assert self.status == 0, self.errors
        report: dict[str, Any] = json.loads(self.output)
        return report


@dataclass(frozen=True)
class Written:
    """What a run of `results` over the manifest on S3 wrote there."""

    uri: str
    on_s3: pa.Table


Run = Callable[..., Done]
Refuse = Callable[..., str]


@pytest.fixture(scope="session")
def bucket(
    spread_images: list[str], sample_set: Samples, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bucket]:
    """64 sample images, and a manifest of some and of one that is not there, in two buckets."""
    local = tmp_path_factory.mktemp("images")
    names = [str(Path(path).relative_to(sample_set.images)) for path in spread_images]
    for name in names:
        (local / name).parent.mkdir(exist_ok=True)
        (local / name).symlink_to(sample_set.images / name)
    pq.write_table(pa.table({"path": [*names[: IN_MANIFEST - 1], MISSING]}), local / MANIFEST)
    with S3Server() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        made = Bucket(server, local)
        for name, is_public in ((made.name, False), (made.public, True)):
            server.make_bucket(name, is_public)
            fs.copy_files(str(local), f"{name}/images", destination_filesystem=made.filesystem)
        environment.undo()
        yield made


@pytest.fixture(scope="session")
def s3_cluster(bucket: Bucket) -> Iterator[RayCluster]:
    """A cluster of two nodes that were started with the variables, and so their workers have them."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in bucket.server.environment.items():
            environment.setenv(name, value)
        cluster = RayCluster(gpus_per_worker=0, workers=1)
    with cluster:
        yield cluster


def run_alone(command: list[str], variables: Mapping[str, str], timeout_s: float = 240) -> Done:
    """Run a command with no other variables of ours than these."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**outer, "RAY_AUTH_MODE": "disabled", **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def seen() -> list[str]:
    """Everything that the commands of these tests printed, for the search for credentials."""
    return []


@pytest.fixture(scope="session")
def run(bucket: Bucket, sample_set: Samples, seen: list[str]) -> Run:
    """Run a module of part 1 with its images named by the environment alone."""

    def run(module: str, *options: str, **variables: str) -> Done:
        model = {"MODEL": str(sample_set.model)}
        done = run_alone([f"snippets.fundamentals.{module}", *options], model | variables)
        seen.extend((done.output, done.errors))
        return done

    return run


@pytest.fixture(scope="session")
def variables(bucket: Bucket, s3_cluster: RayCluster) -> dict[str, str]:
    """What a driver on that cluster has, who reads and writes with the key."""
    return {**s3_cluster.client_environment, **bucket.server.environment}


@pytest.fixture(scope="session")
def signed(bucket: Bucket, run: Run, variables: dict[str, str]) -> Done:
    """How a command ended that read some images with the key."""
    return run("dataset", "--limit", "8", "--json", IMAGES=bucket.images, **variables)


@pytest.fixture(scope="session")
def written(bucket: Bucket, run: Run, variables: dict[str, str]) -> Written:
    """Results over the manifest, on S3 and from S3."""
    uri = "s3://own/results"
    done = run("results", "--output", uri, *POOL, **variables, IMAGES=f"{bucket.images}/{MANIFEST}")
    assert done.status == 0, done.errors
    return Written(uri, pq.read_table("own/results", filesystem=bucket.filesystem))


@pytest.fixture(scope="session")
def labels_here(pool_run: tuple[Recording, list[dict[str, Any]]], sample_set: Samples) -> dict[str, str]:
    """The labels of the same images, from the files on this machine, by the names that they have in the bucket."""
    return {str(Path(row["id"]).relative_to(sample_set.images)): row["label"] for row in pool_run[1]}


@pytest.fixture
def refuse(
    bucket: Bucket,
    sample_set: Samples,
    seen: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refuse:
    """Run a module that is refused; return the sentence that it ends with."""

    def refuse(images: str, *options: str, module: str = "dataset", **variables: str) -> str:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ray.shutdown()  # a driver that is connected stays where it is
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            arguments = ["--images", images, "--model", str(sample_set.model), *options]
            run_module(f"snippets.fundamentals.{module}", arguments)
        ray.shutdown()  # as the end of the command's process does
        output, errors = capfd.readouterr()
        seen.extend((output, errors))
        assert (ended.value.code, output) == (2, "")
        assert "Traceback" not in errors
        # Where Ray was started, it says something of its own.
        lines = [line for line in errors.splitlines() if "RAY_BACKEND_LOG_LEVEL" not in line]
        assert len(lines) == 1, errors
        return lines[0]

    return refuse
