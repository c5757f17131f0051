"""A production run computes with the engine that its settings name, and an output is of one engine."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from snippets.fundamentals.actor_pool import Classifier, decode, load_preprocessing
from snippets.optimization import production, production_engine
from snippets.optimization.engines import ENGINES, choose_calibration
from snippets.optimization.production_engine import choose_classifier
from snippets.optimization.production_parts import plan_job
from snippets.optimization.production_settings import Settings
from snippets.optimization.run_record import put_json
from tests.unit.optimization.test_engines import FOLDER

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


@pytest.fixture
def place(sample_set: Samples, spread_images: list[str], tmp_path: Path) -> dict[str, Any]:
    """Settings of a job of five images and one that is none, and images that calibrate."""
    corrupt = tmp_path / "corrupt.jpg"
    corrupt.write_bytes(b"no image")
    pq.write_table(pa.table({"path": [*spread_images[:5], str(corrupt)]}), tmp_path / "manifest.parquet")
    # The images of the page on engines, whose artefact is there then.
    calibrates = choose_calibration(str(sample_set.images), skip=16, count=32).paths
    pq.write_table(pa.table({"path": calibrates}), tmp_path / "calibration.parquet")
    return {
        "manifest": f"{tmp_path}/manifest.parquet",
        "model": str(sample_set.model),
        "output": f"{tmp_path}/output",
        "part_rows": 4,
        "max_dead_share": 0.5,
    }


@pytest.mark.cluster
def test_a_run_with_an_engine_labels_the_rows_on_the_cpus(
    connected: RayCluster, place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(production_engine, "ENGINE_FOLDER", FOLDER)
    pools: list[Any] = []
    build_pipeline = production.build_pipeline

    def watch(job: Any, ids: Any, pool: Any) -> ray.data.Dataset:
        pools.append(pool)
        return build_pipeline(job, ids, pool)

    monkeypatch.setattr(production, "build_pipeline", watch)
    settings = Settings(**place, engine="openvino-int8", calibration=f"{tmp_path}/calibration.parquet", actors=1)
    classifier = choose_classifier(settings)
    record = production.run_job(plan_job(settings, classifier))
    assert (record["counts"]["results"], record["counts"]["dead_letters"]) == (5, 1)
    assert [pool.num_gpus for pool in pools] == [0]  # on a cluster that has some
    assert record["job"]["classifier"] == classifier.__name__
    assert record["versions"].keys() >= {"openvino", "onnxruntime"}

    rows = pq.read_table(f"{tmp_path}/output/results").sort_by("id")
    to = load_preprocessing(place["model"])
    decoded = decode({"id": rows["id"].to_pylist()}, fs.LocalFileSystem(), to)
    same = Classifier(place["model"], to, 8, "float32", 2, use_gpu=False)
    expected = same({name: np.asarray(column) for name, column in decoded.items()})
    assert sum(map(operator.eq, rows["label"].to_pylist(), expected["label"].to_pylist())) >= 4


def test_without_an_engine_it_is_the_classifier_of_part_1(place: dict[str, Any]) -> None:
    assert choose_classifier(Settings(**place)) is Classifier


def test_an_output_is_of_one_engine_and_of_the_images_that_calibrated_it(
    place: dict[str, Any], tmp_path: Path
) -> None:
    def name(**more: Any) -> str:
        return choose_classifier(Settings(**place, **more)).__name__

    calibration = f"{tmp_path}/calibration.parquet"
    first = name(engine="openvino-int8", calibration=calibration)
    assert first == name(engine="openvino-int8", calibration=calibration)
    others = {name(engine="openvino-float32"), name(engine="onnxruntime-float32")}
    others.add(name(engine="openvino-int8", calibration=str(Path(place["model"]).with_name("held_out"))))
    assert len({first, "Classifier"} | others) == 5
    assert "openvino-float32" in others

    settings = Settings(**place, engine="openvino-float32")
    job = plan_job(settings, choose_classifier(settings))
    put_json(job.output, f"{job.path}/job.json", job.identity)
    with pytest.raises(ValueError, match="is of a job with another classifier: use a new one"):
        plan_job(Settings(**place), choose_classifier(Settings(**place)))


def test_a_package_that_is_missing_is_named(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production_engine, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(ValueError, match=r"^The engine openvino-float32 needs the packages openvino\.$"):
        choose_classifier(Settings(**place, engine="openvino-float32"))
    assert choose_classifier(Settings(**place, engine="onnxruntime-float32")) is not Classifier


def test_the_command_takes_the_engine_of_its_settings(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    for name, value in {**place, "engine": "openvino-float32"}.items():
        monkeypatch.setenv(f"PRODUCTION_{name.upper()}", str(value))
    assert production.main(["--dry-run", "--json"]) == 0
    assert '"classifier": "openvino-float32"' in capsys.readouterr().out


def test_every_engine_can_be_named(place: dict[str, Any], tmp_path: Path) -> None:
    for engine in ENGINES:
        calibration = f"{tmp_path}/calibration.parquet" if "int8" in engine else None
        assert Settings(**place, engine=engine, calibration=calibration).gpus == 0
    assert Settings(**place, num_gpus=0.5).gpus == 0.5
