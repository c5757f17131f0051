"""The same commands and the same page read from a real S3 server, and write to it, by environment alone."""

import json
from pathlib import Path

import pytest

from snippets.fundamentals.results import count_results
from snippets.samples import Samples
from tests.ray_cluster import RayCluster
from tests.s3.conftest import IN_MANIFEST, MANIFEST, MISSING, Bucket, Done, Refuse, Run, Written, run_alone

pytestmark = pytest.mark.cluster

CHECKSUM = "AWS_REQUEST_CHECKSUM_CALCULATION"


@pytest.mark.parametrize("module", ["dataset", "actor_pool"])
def test_a_command_reads_a_public_bucket_without_a_key_and_ones_own_with_it(
    bucket: Bucket, s3_cluster: RayCluster, run: Run, signed: Done, module: str
) -> None:
    anonymous = {**s3_cluster.client_environment, **bucket.server.anonymous_environment}
    public = run(module, "--limit", "8", "--json", IMAGES=bucket.anonymous, **anonymous)
    for report in (public.report, signed.report):  # signed, the pool writes results below
        assert (report["rows"], report["errors"]) == (8, 0)
        assert report["files_skipped"] == 1  # the manifest, which lies beside the images


def test_the_naive_command_gives_the_labels_of_the_same_files_here(
    bucket: Bucket, run: Run, variables: dict[str, str], labels_here: dict[str, str]
) -> None:
    shown = run("naive", "--limit", "3", IMAGES=bucket.images, **variables)
    assert shown.status == 0, shown.errors
    rows = [line.split("  ") for line in shown.output.splitlines() if line.startswith("id: ")]
    found = {row[0].removeprefix(f"id: {bucket.name}/images/"): row[1] for row in rows}
    assert len(found) == 3
    assert found == {name: f"label: {labels_here[name]}" for name in found}


def test_results_are_written_to_s3_read_back_and_counted(
    bucket: Bucket, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.server.environment.items():
        monkeypatch.setenv(name, value)
    counted = count_results(written.uri)
    assert (counted["rows"], counted["ids"], counted["errors"]) == (IN_MANIFEST, IN_MANIFEST, 1)
    assert sum(counted["labels"].values()) == IN_MANIFEST - 1


def test_labels_are_those_of_the_same_files_here(
    bucket: Bucket, written: Written, labels_here: dict[str, str]
) -> None:
    rows = zip(written.on_s3["id"].to_pylist(), written.on_s3["label"].to_pylist(), strict=True)
    found = {name.removeprefix(f"{bucket.name}/images/"): label for name, label in rows}
    assert len(found) == IN_MANIFEST
    assert found == {name: labels_here.get(name) for name in found}
    assert [name for name, label in found.items() if label is None] == [MISSING]


def test_an_object_that_is_missing_is_a_row_that_says_so(bucket: Bucket, written: Written) -> None:
    rows = [row for row in written.on_s3.to_pylist() if row["error"]]
    assert [row["id"] for row in rows] == [f"{bucket.name}/images/{MISSING}"]
    assert "No such file or directory" in rows[0]["error"]


def test_a_read_that_ends_at_a_missing_object_says_which(
    bucket: Bucket, variables: dict[str, str], refuse: Refuse
) -> None:
    sentence = refuse(f"{bucket.images}/{MANIFEST}", "--json", module="naive", **variables)
    assert f"{bucket.name}/images/{MISSING}" in sentence


def test_a_place_that_cannot_be_written_is_named_before_a_model_is_loaded(
    bucket: Bucket, variables: dict[str, str], refuse: Refuse, written: Written
) -> None:
    at = f"at {bucket.server.endpoint}"
    for output, sentence in (
        (written.uri, f"Results go to a new place, and there is something at {written.uri} {at}."),
        ("s3://anonymous@public/out", f"Cannot use s3://public/out {at}: access is denied,"),
        ("s3://nobody/out", f"Cannot use s3://nobody/out {at}: there is no such bucket (NO_SUCH_BUCKET)."),
        ("/proc/nobody/out", "Cannot create directory '/proc/nobody': No such file or directory."),
    ):
        options = ("--limit", "8", "--json", "--output", output)
        assert refuse(bucket.images, *options, module="results", **variables).startswith(sentence)


def test_a_server_that_is_not_amazons_may_need_the_checksum_variable(
    bucket: Bucket, sample_set: Samples, seen: list[str]
) -> None:
    variables = {name: value for name, value in bucket.server.environment.items() if name != CHECKSUM}
    options = ("--limit", "4", "--json", "--output", "s3://own/unwritten")
    # Writes images before a model is loaded, and starts Ray, whose workers lack the variable too.
    command = ["snippets.optimization.patterns", *options]
    done = run_alone(command, {**variables, "IMAGES": bucket.images, "MODEL": str(sample_set.model)})
    seen.extend((done.output, done.errors))
    assert (done.status, done.output) == (2, "")
    assert "Traceback" not in done.errors
    sentence = done.errors.splitlines()[-1]
    assert sentence.startswith("The job ended in ")
    assert f"the server wants writers to set {CHECKSUM}=when_required" in sentence


def test_workers_that_were_started_without_the_variables_are_refused(
    bucket: Bucket, ray_cluster: RayCluster, refuse: Refuse, run: Run
) -> None:
    variables = {**ray_cluster.client_environment, **bucket.server.environment}
    sentence = refuse(bucket.images, "--limit", "4", "--json", module="naive", **variables)
    assert sentence.startswith("The job ended in ")
    assert "Cannot use s3://own/images/" in sentence
    assert f"at {bucket.server.endpoint}: access is denied," in sentence
    done = run("actor_pool", "--limit", "4", "--json", IMAGES=bucket.images, **variables)
    report = json.loads(done.output)
    assert (done.status, report["rows"], report["errors"]) == (1, 4, 4)
    assert "Every row carries an error, as the first does: " in done.errors.splitlines()[-1]


def test_the_page_reads_from_s3(bucket: Bucket, sample_set: Samples, tmp_path: Path, seen: list[str]) -> None:
    report = tmp_path / "blocks.json"
    command = ["pytest", "-q", "--codeblocks", "docs/fundamentals/dataset.md", f"--codeblocks-report={report}"]
    command.append("--codeblocks-workers=0")  # one machine: on several, the commands above read
    variables = {**bucket.server.environment, "IMAGES": bucket.images, "MODEL": str(sample_set.model)}
    done = run_alone(command, variables)
    seen.extend((done.output, done.errors, report.read_text()))
    assert done.status == 0, done.output
    ran = json.loads(report.read_text())
    assert ran["images"] == bucket.images
    assert {block["outcome"] for block in ran["blocks"]} == {"passed"}
