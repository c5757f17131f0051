"""On S3 as on a disk: a preflight lists, looks, and writes nothing that stays."""

import pickle

import pytest
from pyarrow import fs

from snippets.optimization.preflight import check_plan
from snippets.optimization.preflight_checks import Report, look
from snippets.samples import Samples
from tests.s3.conftest import IN_MANIFEST, MANIFEST, MISSING, Bucket


def test_a_bucket_is_listed_looked_at_and_left_as_it_was(
    bucket: Bucket, sample_set: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    written = str(tmp_path_factory.mktemp("preflight") / "manifest.parquet")

    def plan(source: str, output: str) -> tuple[Report, object]:
        report = Report()
        given = {"model": str(sample_set.model), "output": output}
        return report, check_plan(report, source, written, type("Model", (), {}), given)

    def keys() -> list[str]:
        return sorted(
            file.path for file in bucket.filesystem.get_file_info(fs.FileSelector("own", recursive=True))
        )

    before = keys()
    report, job = plan(bucket.images, "s3://own/images")  # a place that no job wrote
    assert report.found("input")["rows"] == 64
    assert report.refusals == ["There is something at own/images that no job of this pipeline wrote."]
    report, job = plan(f"{bucket.images}/{MANIFEST}", "s3://own/new/output")
    assert report.refusals == []
    assert report.found("job")["rows"] == IN_MANIFEST
    assert [key for key in keys() if key not in before and ".preflight" in key] == []

    images, root, to, ids = pickle.loads(pickle.dumps((job.images, job.root, job.to, job.parts[0])))  # type: ignore[attr-defined]
    rows = look(ids[-2:], images, root, to, 10**7, 10**8)  # as on a node
    assert [row["mode"] for row in rows] == ["RGB", None]
    assert rows[1]["id"] == MISSING and rows[1]["error"].startswith("FileNotFoundError")
    size = (bucket.local / rows[0]["id"]).stat().st_size
    assert rows[0]["bytes"] == size


def test_an_output_that_may_not_be_written_is_refused(
    bucket: Bucket, sample_set: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    report = Report()
    given = {"model": str(sample_set.model), "output": "s3://anonymous@public/output"}
    check_plan(report, f"{bucket.images}/{MANIFEST}", "", type("Model", (), {}), given)
    assert [check.name for check in report.checks if check.refusals] == ["output"]
    assert "ACCESS_DENIED" in report.refusals[0]
