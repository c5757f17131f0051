"""On S3 as on a disk: a production run that is killed three times leaves every row once, and no key."""

from pathlib import Path

import pytest
from pyarrow import fs

from tests.production_driver import BATCH, DRIVER_S, PART_ROWS, Output, Run, check_resume, write_inputs
from tests.ray_cluster import RayCluster
from tests.s3.conftest import Bucket
from tests.s3.test_traces import files_below, holders

pytestmark = pytest.mark.cluster

SEED = 20261


@pytest.mark.timeout(5 * DRIVER_S)
def test_a_driver_that_is_killed_three_times_leaves_every_row_once(
    bucket: Bucket, s3_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "gates").mkdir()
    (tmp_path / "inputs").mkdir()
    inputs = write_inputs(tmp_path / "inputs")
    fs.copy_files(str(inputs), f"{bucket.name}/production", destination_filesystem=bucket.filesystem)
    root = f"s3://{bucket.name}/production"
    options = ["--manifest", f"{root}/manifest.parquet", "--output", f"{root}/output", "--json"]
    settings = {"PART_ROWS": PART_ROWS, "BATCH_SIZE": BATCH, "ACTORS": 2, "MODEL": inputs / "checkpoint"}
    variables = {**s3_cluster.client_environment, **bucket.server.environment}
    variables |= {f"PRODUCTION_{name}": str(value) for name, value in settings.items()}
    output = Output(bucket.filesystem, f"{bucket.name}/production/output")
    check_resume(Run(variables, tmp_path / "gates", options), output, SEED)
    found = bucket.filesystem.get_file_info(fs.FileSelector(output.path, recursive=True))
    paths = [each.path for each in found if each.is_file]
    texts = [(path, bucket.filesystem.open_input_stream(path).readall()) for path in paths]
    logs = list(files_below(Path(s3_cluster.client_environment["RAY_TMPDIR"])))
    assert any("MapBatches(StandIn)" in text.decode(errors="replace") for _, text in logs)
    secrets = (bucket.server.access_key, bucket.server.secret_key)
    assert holders(iter(texts), "production/") != []
    assert holders(iter([*texts, *logs]), *secrets) == []
