"""Parts follow from the manifest, are written as a whole or not at all, and what was unfinished is replaced."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from snippets.fundamentals.actor_pool import RESULT
from snippets.optimization import production_parts
from snippets.optimization.production_parts import (
    Job,
    Parts,
    account,
    plan_job,
    read_manifest,
    write_manifest,
    write_part,
)
from snippets.optimization.production_settings import Settings
from snippets.optimization.run_record import put_json
from tests.production_driver import make_stand_in, write_checkpoint


def rows_of(ids: list[str], dead: tuple[str, ...] = ()) -> pa.Table:
    errors = ["OSError: broken" if id in dead else None for id in ids]
    labels = [None if error else "dunes" for error in errors]
    scores = [None if error else 0.5 for error in errors]
    return pa.table({"id": ids, "label": labels, "score": scores, "error": errors}, RESULT)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of two parts."""
    write_checkpoint(tmp_path / "checkpoint")
    pq.write_table(pa.table({"path": ["d", "a", "c", "b"]}), tmp_path / "manifest.parquet")
    return plan_job(settings_for(tmp_path), make_stand_in())


def settings_for(folder: Path, **more: Any) -> Settings:
    places = {
        "manifest": f"{folder}/manifest.parquet",
        "output": f"{folder}/output",
        "model": f"{folder}/checkpoint",
    }
    return Settings(**{"part_rows": 3, **places, **more})


def test_parts_are_cut_in_the_order_of_the_manifest(job: Job) -> None:
    assert job.parts == [["d", "a", "c"], ["b"]]
    assert job.rows == 4


def test_rows_in_any_order_become_whole_parts() -> None:
    parts = Parts({0: ["d", "a", "c"], 7: ["b", "e"]})
    assert parts.add(rows_of(["c", "b"])) == []
    assert set(parts.held) == {0, 7}
    (first,) = parts.add(rows_of(["a", "d"]))
    assert (first[0], first[1]["id"].to_pylist()) == (0, ["a", "c", "d"])
    assert set(parts.held) == {7}
    with pytest.raises(RuntimeError, match=r"1 rows did not come back, such as e\."):
        parts.check()
    assert [number for number, _ in parts.add(rows_of(["e"]))] == [7]
    parts.check()


def test_each_row_is_a_result_or_a_dead_letter(job: Job) -> None:
    assert write_part(job, 0, rows_of(job.parts[0], dead=("a",)), "run") == (2, 1)
    assert write_part(job, 1, rows_of(job.parts[1]), "run") == (1, 0)
    assert job.finished() == {0, 1}
    assert account(job) == {"results": 3, "dead_letters": 1}
    results, dead = (pq.read_table(f"{job.path}/{kind}") for kind in ("results", "dead_letters"))
    assert results.schema.names == ["id", "label", "score", "part"]
    assert sorted(results["id"].to_pylist()) == ["b", "c", "d"]
    assert dead.drop_columns("part").to_pylist() == [{"path": "a", "error": "OSError: broken"}]


def test_a_part_that_is_done_again_leaves_nothing_of_the_first_try(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(production_parts, "put_json", crash)
        with pytest.raises(KeyboardInterrupt):
            write_part(job, 0, rows_of(job.parts[0], dead=("a", "c")), "first")
    assert job.finished() == set()
    write_part(job, 0, rows_of(job.parts[0], dead=("d",)), "second")
    write_part(job, 1, rows_of(job.parts[1]), "second")
    assert account(job) == {"results": 3, "dead_letters": 1}


def test_an_id_that_is_in_both_tables_or_unknown_fails_the_count(job: Job) -> None:
    write_part(job, 0, rows_of(job.parts[0]), "run")
    write_part(job, 1, rows_of(["z", "d"], dead=("d",)), "run")
    sentence = (
        "1 ids missing, 1 ids more than once, 1 ids not in the manifest, such as d of part 0; "
        "remove records/part=00000.json, records/part=00001.json to do it again."
    )
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        account(job)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"limit": 2}, "manifest"),
        ({"part_rows": 2}, "part_rows"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"max_pixels": 5}, "max_pixels"),
        ({"images": "/"}, "images"),
    ],
)
def test_an_output_is_of_one_job(job: Job, tmp_path: Path, changed: dict[str, Any], name: str) -> None:
    put_json(job.output, f"{job.path}/job.json", job.identity)
    assert plan_job(settings_for(tmp_path), make_stand_in()).identity == job.identity
    with pytest.raises(ValueError, match=f"is of a job with another {name}: use a new one"):
        plan_job(settings_for(tmp_path, **changed), make_stand_in())


def test_what_is_not_pinned_changes_no_identity(job: Job, tmp_path: Path) -> None:
    put_json(job.output, f"{job.path}/job.json", job.identity)
    other = plan_job(settings_for(tmp_path, batch_size=7), make_stand_in())
    assert other.settings.batch_size != job.settings.batch_size
    assert other.identity == job.identity
    assert not [name for name in job.identity if "version" in name]


def test_other_weights_are_another_job(job: Job, tmp_path: Path) -> None:
    put_json(job.output, f"{job.path}/job.json", job.identity)
    weights = tmp_path / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="another checkpoint: use a new one"):
        plan_job(settings_for(tmp_path), make_stand_in())


def test_an_output_that_no_job_wrote_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / ".job.json.17").touch()  # of a driver that was killed
    plan_job(settings_for(tmp_path), make_stand_in())
    (tmp_path / "output" / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"There is something at .* that no job of this pipeline wrote"):
        plan_job(settings_for(tmp_path), make_stand_in())


def test_where_there_are_no_images_no_job_is_planned(job: Job, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There are no images at /nowhere"):
        plan_job(settings_for(tmp_path, images="/nowhere"), make_stand_in())


def test_a_checkpoint_with_other_steps_is_refused_when_the_job_is_planned(job: Job, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint" / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 8, "width": 8}}))
    with pytest.raises(ValueError, match="asks for other steps than a resize by crop_pct"):
        plan_job(settings_for(tmp_path), make_stand_in())


# Manifests


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"path": ["a", "b", "a"]}, "lists a more than once"),
        ({"path": ["a", None]}, "has rows without a path"),
        ({"path": pa.array([], pa.string())}, "has no rows"),
        ({"file": ["a"]}, "has no column path"),
    ],
)
def test_a_manifest_whose_rows_cannot_be_counted_is_refused(
    tmp_path: Path, table: dict[str, Any], sentence: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match=sentence):
        read_manifest(f"{tmp_path}/manifest.parquet")


def test_of_a_manifest_only_the_ids_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"path": ["b", "a"], "caption": ["x" * 1000] * 2}), path)
    assert read_manifest(str(path)) == ["b", "a"]
    assert read_manifest(str(path), limit=1) == ["b"]
    with pytest.raises(FileNotFoundError, match="There is no manifest"):
        read_manifest(f"{tmp_path}/other.parquet")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_manifest_of_a_folder_names_its_images_and_where_they_begin(tmp_path: Path, scheme: str) -> None:
    for name in ("x/1.png", "x/2.png", "y/3.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    root = write_manifest(f"{scheme}{tmp_path}/images", f"{tmp_path}/manifest.parquet")
    assert root == f"{scheme}{tmp_path}/images"
    assert read_manifest(f"{tmp_path}/manifest.parquet") == ["x/1.png", "x/2.png", "y/3.png"]
