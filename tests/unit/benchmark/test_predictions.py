"""Predictions follow from stages that were measured alone, and the table says by how much they missed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.benchmark import predictions
from snippets.benchmark.predictions import (
    LEAST_IMAGES,
    MINUS,
    Configuration,
    configurations_for,
    errors_of,
    load_predictions,
    main,
    measure_all,
    median_errors,
    predict,
    prediction_sections,
)
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import Hardware
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

DECODING = {"decode_seconds": 0.004, "image_bytes": 150_528, "idle_bytes": 400, "decode_bytes": 900}
FOUND = {
    "dtype": "float32",
    "batch_size": 4,
    "actors": 2,
    "cores": 2,
    "gpus": 0,
    "threads": 1,
    "images": 96,
    "forward_rate": 22.0,
    "forward_bytes": 2000,
    "measured_rate": 20.0,
    "measured_bytes": 20_000_000,
    "seconds": 15.0,
    "start_up_seconds": 9.0,
}
PAIR = [Configuration("float32", 4, 1), Configuration("float32", 2, 2)]


class FakeRuns:
    """Answers as `prediction_runs` does, and stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        if request["kind"] == "decoding":
            return DECODING
        asked = ("dtype", "batch_size", "actors")
        return {key: value for key, value in FOUND.items() if key not in asked} | {
            "images": len(request["source"])
        }


def measured(output: Path, runs: FakeRuns) -> dict[str, Any]:
    return measure_all([f"{index}.jpg" for index in range(100)], "model", PAIR, provenance(), output, 0, runs)


def hardware(cores: int = 2, sets: tuple[str, ...] = (), gpu: str | None = None) -> Hardware:
    return Hardware("a processor", cores, 2**34, list(sets), gpu)


@pytest.mark.parametrize(
    ("machine", "gpus", "dtypes"),
    [
        (hardware(sets=("avx512_bf16",)), 0, {"float32", "bfloat16"}),
        (hardware(), 0, {"float32"}),
        (hardware(cores=1), 0, {"float32"}),
        (hardware(gpu="NVIDIA H100"), 1, {"float32", "bfloat16", "float16"}),
        (hardware(gpu="NVIDIA H100"), 8, {"float32", "bfloat16", "float16"}),
    ],
)
def test_there_are_ten_configurations_whatever_the_hardware(
    machine: Hardware, gpus: int, dtypes: set[str]
) -> None:
    found = configurations_for(machine, gpus)
    assert 10 <= len(set(found)) == len(found) <= 18
    assert {each.dtype for each in found} == dtypes
    assert all(each.images >= max(LEAST_IMAGES, 8 * each.batch_size * each.actors) for each in found)


def test_cores_that_do_both_and_a_gpu_that_does_one_have_other_bounds() -> None:
    on_cpu = predict(FOUND, DECODING)
    assert on_cpu.rate == pytest.approx(1 / (1 / 22 + 0.004 / 2))
    assert predict({**FOUND, "gpus": 1}, DECODING).rate == 22
    assert predict({**FOUND, "gpus": 1, "forward_rate": 9000.0}, DECODING).rate == 2 / 0.004


def test_memory_is_that_of_the_stages_and_of_blocks_in_flight() -> None:
    # Blocks of two batches of four, and eight of them for each of two actors, are more than there are images.
    assert predict(FOUND, DECODING).memory_bytes == 2000 + 900 - 400 + 96 * 150_528
    in_flight = 8 * 2 * 8 * 150_528
    assert predict({**FOUND, "images": 1000}, DECODING).memory_bytes == 2000 + 900 - 400 + in_flight


def test_decoding_is_measured_once_and_each_configuration_on_its_own(tmp_path: Path) -> None:
    runs = FakeRuns()
    results = measured(tmp_path / "out.json", runs)
    assert [request["kind"] for request in runs.asked] == ["decoding", "configuration", "configuration"]
    assert [len(request["source"]) for request in runs.asked] == [96, 96, 96]
    assert [(each["batch_size"], each["actors"]) for each in results["configurations"]] == [(4, 1), (2, 2)]
    assert results["complete"] and load_predictions(tmp_path / "out.json") == results


def test_images_are_taken_again_where_there_are_too_few(tmp_path: Path) -> None:
    runs = FakeRuns()
    measure_all(["a.jpg", "b.jpg"], "model", PAIR[:1], provenance(), tmp_path / "out.json", 0, runs)
    assert sorted(runs.asked[1]["source"]) == ["a.jpg"] * 48 + ["b.jpg"] * 48


def test_an_interrupt_leaves_what_was_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "out.json", FakeRuns(interrupt_at=2))
    kept = load_predictions(tmp_path / "out.json")
    assert not kept["complete"]
    assert len(kept["configurations"]) == 1


def test_the_table_says_what_was_predicted_and_by_how_much_it_missed(tmp_path: Path) -> None:
    results = measured(tmp_path / "out.json", FakeRuns())
    results["configurations"][1] |= {"measured_rate": 25.0, "measured_bytes": 2 * 14_452_688}
    (rate_error, memory_error), (other_rate, other_memory) = errors_of(results)
    expected = 1 / (1 / 22 + 0.002)
    assert rate_error == pytest.approx(expected / 20 - 1) and other_rate == pytest.approx(expected / 25 - 1)
    assert math.copysign(1, memory_error) == -1 and other_memory < 0
    found = prediction_sections(results)
    assert f"| 21.1 | 20.0 | +{100 * (expected / 20 - 1):.1f} % |" in found["table"]
    assert f"| 21.1 | 25.0 | {MINUS}{100 * (1 - expected / 25):.1f} % |" in found["table"]
    half = 50 * (expected / 20 - 1 + 1 - expected / 25)
    assert found["rate-error"] == f"{half:.1f}"
    assert found["configurations"] == "2"


def test_a_run_without_a_steady_state_is_shown_and_counts_for_memory_alone(tmp_path: Path) -> None:
    results = measured(tmp_path / "out.json", FakeRuns())
    results["configurations"][0]["measured_rate"] = None
    assert "| no steady state |" in prediction_sections(results)["table"]
    [only] = [error for error, _ in errors_of(results) if error is not None]
    assert median_errors(results)[0] == abs(only)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda results: results.pop("decoding"), "has no decoding"),
        (lambda results: results["configurations"][0].pop("forward_rate"), r"has no configurations\[0\]\.forward"),
        (lambda results: results["configurations"][1].update(images="96"), "images of the wrong type: str"),
    ],
)
def test_a_file_that_is_not_what_was_measured_is_refused(tmp_path: Path, spoil: Any, sentence: str) -> None:
    path = tmp_path / "out.json"
    results = measured(path, FakeRuns())
    spoil(results)
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=sentence):
        load_predictions(path)


def test_quick_results_are_not_published(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_one_configuration_is_measured_stage_by_stage(one_machine: RayCluster, sample_set: Samples) -> None:
    paths = sorted(str(path) for path in sample_set.images.rglob("*.jpg"))[:8]
    found = ask(
        {
            "kind": "configuration",
            "source": paths,
            "model": str(sample_set.model),
            "dtype": "float32",
            "batch_size": 2,
            "actors": 1,
            "seconds": 0,
        },
        "snippets.benchmark.prediction_runs",
    )
    assert found["images"] == 8
    assert found["forward_rate"] > 0 and found["forward_bytes"] > 100e6
    assert found["measured_bytes"] > found["forward_bytes"] / 2
    assert predictions.CONFIGURATION.keys() - found.keys() == {"dtype", "batch_size", "actors"}


def test_the_published_errors_are_within_what_was_asked() -> None:
    results = load_predictions()
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    assert len(results["configurations"]) >= 10
    assert max(median_errors(results)) <= 0.15
    assert min(error for error, _ in errors_of(results) if error is not None) < 0  # faster than its bound
    rates = [abs(error) if error is not None else 0 for error, _ in errors_of(results)]
    worst = results["configurations"][rates.index(max(rates))]
    smallest = min(each["batch_size"] for each in results["configurations"])
    assert (worst["batch_size"], worst["actors"]) == (smallest, 1)
