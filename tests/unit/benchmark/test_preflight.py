"""Each run follows its preflight, both over the same images, and all of it is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.benchmark import preflight
from snippets.benchmark.preflight import (
    GOAL,
    PREFLIGHT,
    FlightPlan,
    dtypes_for,
    flights_numbers,
    flights_table,
    link_images,
    load_flights,
    measure_flights,
    summarize_flights,
)
from snippets.benchmark.provenance import Hardware
from snippets.benchmark.render import MEASURED
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

IMAGES = 8


class FakeRuns:
    """Answers as `snippets.benchmark.preflight_runs` does: what is foretold is 10 % too much, then 30 %."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        times = 1 if request["dtype"] == "float32" else 0.5
        if request["kind"] == "production":
            return {"seconds": 100.0 * times, "rows": IMAGES}
        wrong = 1.1 if len(self.asked) <= 4 else 1.3
        return {"seconds": 100 * times * wrong, "low_s": 90 * times * wrong, "high_s": 120 * times * wrong}


def measured(folder: Path, rounds: int = 2, **arguments: Any) -> tuple[FakeRuns, dict[str, Any]]:
    runs = FakeRuns(**arguments)
    (folder / "source").mkdir(exist_ok=True)
    for name in ("a.jpg", "b.png", "c.jpg"):
        (folder / "source" / name).touch()
    plan = FlightPlan(
        str(folder / "source"), "model", IMAGES, ["float32", "bfloat16"], rounds, {"windows": 2}, runs
    )
    return runs, measure_flights(plan, provenance(), folder / "preflight.json")


def test_each_run_follows_its_preflight_over_the_same_images(tmp_path: Path) -> None:
    runs, results = measured(tmp_path)
    assert [(request["kind"], request["dtype"]) for request in runs.asked[:4]] == [
        ("preflight", "float32"),
        ("production", "float32"),
        ("preflight", "bfloat16"),
        ("production", "bfloat16"),
    ]
    assert [one["order"][0] for one in results["rounds"]] == ["float32", "bfloat16"]
    for before, after in zip(runs.asked[::2], runs.asked[1::2], strict=True):
        assert {**before, "kind": "production"} == {**after, "extent": {"windows": 2}}
    assert results["complete"]
    assert load_flights(tmp_path / "preflight.json") == results


def test_images_are_linked_under_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "links").mkdir()
    link_images(str(tmp_path), tmp_path / "links", 3)
    assert {link.name: link.read_text() for link in (tmp_path / "links").iterdir()} == {
        "00000.jpg": "a.jpg",
        "00001.png": "b.png",
        "00002.jpg": "a.jpg",
    }
    with pytest.raises(ValueError, match="have to be on a disk of this machine"):
        link_images("s3://bucket/key", tmp_path, 3)


def test_an_interrupt_keeps_the_rounds_before_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, interrupt_at=5)
    kept = load_flights(tmp_path / "preflight.json")
    assert (len(kept["rounds"]), kept["complete"]) == (1, False)


def test_the_ratio_is_of_a_preflight_and_the_run_after_it(tmp_path: Path) -> None:
    found = summarize_flights(measured(tmp_path)[1])["bfloat16"]
    assert found["ratio"]["values"] == [pytest.approx(1.1), pytest.approx(1.3)]
    assert found["error"] == pytest.approx(0.2)
    assert found["held"] == 0.5  # 1.3 times 90 is more than the run took
    assert (found["estimate"]["median"], found["run"]["median"]) == (pytest.approx(60), 50)


def test_the_numbers_and_the_table_are_those_of_the_summary(tmp_path: Path) -> None:
    results = measured(tmp_path)[1]
    assert flights_numbers(results) == {"error-percent": "20.0", "ratio-float32": "1.20", "ratio-bfloat16": "1.20"}
    lines = flights_table(results).splitlines()
    assert (
        lines[3].replace("\u2013", "-") == "| `bfloat16` | 8 | 60.0 (55.0-65.0) | 50.0 | 1.20 (1.10-1.30) | 50.0 |"
    )
    sections = next(each for each in MEASURED if each.path == PREFLIGHT).sections(results)
    assert {"table", "provenance-line", "error-percent", "ratio-float32"} <= sections.keys()


def drop_rounds(results: dict[str, Any]) -> None:
    results["rounds"] = []


def drop_run(results: dict[str, Any]) -> None:
    del results["rounds"][1]["runs"]["bfloat16"]["run"]


def drop_row(results: dict[str, Any]) -> None:
    results["rounds"][0]["runs"]["float32"]["run"]["rows"] -= 1


def raise_schema(results: dict[str, Any]) -> None:
    results["schema"] = 99


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_rounds, "has no rounds"),
        (drop_run, r"has no rounds\[1\]\.runs\.bfloat16\.run"),
        (drop_row, r"has a rounds\[0\]\.runs\.float32 that is not of all images"),
        (raise_schema, "has the schema 99"),
    ],
)
def test_results_that_lack_something_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    spoil(results := measured(tmp_path)[1])
    (tmp_path / "spoilt.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=sentence):
        load_flights(tmp_path / "spoilt.json")


def test_bfloat16_is_measured_where_the_processor_has_it() -> None:
    def hardware(*sets: str) -> Hardware:
        return Hardware("P", 2, 1, list(sets), None)

    assert dtypes_for(hardware("avx2")) == ["float32"]
    assert dtypes_for(hardware("avx512_bf16")) == ["float32", "bfloat16"]


def test_a_quick_run_writes_nothing_to_publish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        preflight.main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


def test_a_run_that_fails_ends_in_its_message(
    tmp_path: Path, sample_set: Samples, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError(f"The measurement of {request['kind']} ended with status 1")

    monkeypatch.setattr(FlightPlan.__init__, "__defaults__", (*FlightPlan.__init__.__defaults__[:-1], fail))  # type: ignore[index]
    monkeypatch.setenv("IMAGES", str(sample_set.images))
    monkeypatch.setenv("MODEL", str(sample_set.model))
    with pytest.raises(SystemExit, match="1"):
        preflight.main(["--quick", "--output", str(tmp_path / "out.json")])
    assert "preflight ended with status 1" in capsys.readouterr().err


def test_the_command_measures_in_processes_of_their_own(
    one_machine: RayCluster, tmp_path: Path, sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES", str(sample_set.images))
    monkeypatch.setenv("MODEL", str(sample_set.model))
    assert preflight.main(["--quick", "--output", str(tmp_path / "out.json")]) == 0
    results = load_flights(tmp_path / "out.json")
    assert (results["images"], results["dtypes"], len(results["rounds"])) == (16, ["float32"], 1)
    assert summarize_flights(results)["float32"]["ratio"]["median"] > 0


@pytest.mark.skipif(not PREFLIGHT.exists(), reason="nothing is published yet")
def test_the_published_estimates_are_within_the_goal() -> None:
    assert all(found["error"] <= GOAL for found in summarize_flights(load_flights()).values())
