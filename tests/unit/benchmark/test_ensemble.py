"""The layouts take turns, each is compared to one actor within a round, and what is shown is what was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from snippets.benchmark import ensemble
from snippets.benchmark.ensemble import (
    RUNS,
    EnsemblePlan,
    ask_for_ensemble,
    cascades_table,
    ensemble_numbers,
    ensemble_sections,
    layouts_table,
    load_measured_ensemble,
    measure_ensemble,
    members_table,
    quality_table,
    summarize_ensemble,
)
from snippets.benchmark.ensemble_runs import Alone, describe_quality, measure_quality
from snippets.benchmark.render import format_sections
from snippets.optimization.ensemble import load_ensemble
from snippets.optimization.ensemble_models import build_small_models
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

MODELS = ("a/small", "a/large")
QUALITY = {
    "images": 40,
    "held_out": 10,
    "alone": {"small": 0.5, "large": 0.9},
    "combined": {"mean": 0.8, "vote": 0.75, "weights": 0.925},
    "weights": {"small": 0.1, "large": 0.9},
    "sure": 0.7,
    "cascades": [{"sure": 0.5, "accuracy": 0.85, "asked": {"small": 1.0, "large": 0.25}}],
}
WITHOUT_TRUTH = {"images": 0, "held_out": 0, "alone": None, "combined": None, "weights": None, "cascades": None}


class FakeRuns:
    """Answers as `ensemble_runs` does; stops where it is told to."""

    def __init__(self, quality: dict[str, Any] | None = None, interrupt_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.quality, self.interrupt_at = quality or QUALITY, interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["kind"] == "members":
            member = {"rows_per_second": 10.0, "load_seconds": 0.5, "load_bytes": 2e8, "weight_bytes": 1e8}
            return {
                "members": {"small": member, "large": member},
                "decode": 0.006,
                "decode_one": 0.004,
                "views": 2,
            }
        if request["kind"] == "quality":
            return self.quality
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        is_slow = request["layout"] != "together"
        return {
            "rows": 64,
            "errors": 0,
            "seconds": 8.0 if is_slow else 4.0,
            "start_up_seconds": 1.0,
            "steady_rows_per_second": None if is_slow else 20.0,
            "model_loads": 2 if is_slow else 4,
            "peak_memory_bytes": 1_500_000_000 if is_slow else 3_000_000_000,
            "peak_store_bytes": 10_000_000,
            "asked": {"small": 64, "large": 16 if request["sure"] else 64},
        }


def measured(folder: Path, rounds: int = 2, **arguments: Any) -> tuple[FakeRuns, dict[str, Any]]:
    runs = FakeRuns(**arguments)
    plan = EnsemblePlan("images", "held_out", MODELS, rounds, 64, ask=runs)
    return runs, measure_ensemble(plan, provenance(), folder / "ensemble.json")


def test_the_layouts_take_turns_and_are_written(tmp_path: Path) -> None:
    runs, results = measured(tmp_path)
    assert [one["order"][0] for one in results["rounds"]] == [*RUNS][:2]
    assert [(each["layout"], each["models"], each["sure"]) for each in runs.asked[: len(RUNS)]] == [
        ("together", ["a/large"], None),
        ("together", ["a/small", "a/large"], None),
        ("pools", ["a/small", "a/large"], None),
        ("branches", ["a/small", "a/large"], None),
        ("together", ["a/small", "a/large"], 0.7),
        ("pools", ["a/small", "a/large"], 0.7),
    ]
    assert results["complete"]
    assert load_measured_ensemble(tmp_path / "ensemble.json") == results


def test_an_interrupt_keeps_the_rounds_before_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, interrupt_at=len(RUNS) + 1)
    kept = load_measured_ensemble(tmp_path / "ensemble.json")
    assert (len(kept["rounds"]), kept["complete"]) == (1, False)


def test_a_layout_is_compared_to_one_actor_of_its_round(tmp_path: Path) -> None:
    summary = summarize_ensemble(measured(tmp_path)[1])

    def values(name: str, key: str) -> list[float]:
        found = summary[name][key]
        assert found is not None
        return list(found["values"])

    assert values("pools", "over_together") == values("pools", "memory_over_together") == [0.5, 0.5]
    assert values("together", "end_to_end") == [16, 16]
    assert values("cascade", "over_together") == [1, 1]


def test_the_tables_say_what_was_measured(tmp_path: Path) -> None:
    results = measured(tmp_path)[1]
    layouts = [line.strip("| ").split(" | ") for line in layouts_table(results).splitlines()[2:]]
    assert [row[0] for row in layouts] == [title for title, *_ in RUNS.values()]
    assert layouts[1] == ["all in each actor", "16.0", "1.00", "1.0", "4", "3.00", "0.01", "64"]
    assert layouts[3][1:3] == ["8.00", "0.50"]
    assert layouts[4][-1] == "16"
    members = members_table(results).splitlines()[2:]
    assert members[1] == "| large | 100.0 | 200 | 0.5 | 10.0 | 90.0 |"
    assert quality_table(results).splitlines()[-1] == "| fitted weights | 92.5 |"
    assert cascades_table(results).splitlines()[-1] == "| 0.5 | 25.0 | 85.0 |"


def test_the_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    numbers = ensemble_numbers(measured(tmp_path)[1])
    assert numbers["pools-over-together"] == numbers["pools-memory-over-together"] == "0.50"
    assert numbers["together-loads"] == "4"
    assert numbers["views-over-one"] == "1.50"
    assert numbers["weights"] == "small 0.10, large 0.90"
    assert (numbers["sure"], numbers["images"], numbers["held-out"]) == ("0.7", "64", "10")


def test_images_that_do_not_say_what_they_show_leave_the_quality_out(tmp_path: Path) -> None:
    runs, results = measured(tmp_path, quality=WITHOUT_TRUTH)
    assert {each["sure"] for each in runs.asked} == {None, 0.6}
    assert members_table(results).splitlines()[-1].endswith("| not measured |")
    assert quality_table(results).count("not measured") == 3
    assert len(cascades_table(results).splitlines()) == 2
    assert ensemble_numbers(results)["weights"] == "not measured"


def test_the_rendered_file_has_a_section_a_table(tmp_path: Path) -> None:
    text = format_sections(ensemble_sections(measured(tmp_path)[1]))
    for name in ("layouts", "members", "quality", "cascades", "provenance-line", "cascade-over-together"):
        assert f"[start:{name}]" in text
    assert "Medians of 2 rounds" in text


def drop_rounds(results: dict[str, Any]) -> None:
    results["rounds"] = []


def drop_run(results: dict[str, Any]) -> None:
    del results["rounds"][0]["runs"]["cascade"]


def drop_asked(results: dict[str, Any]) -> None:
    del results["rounds"][1]["runs"]["pools"]["asked"]


def raise_schema(results: dict[str, Any]) -> None:
    results["schema"] = 99


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_rounds, "has no rounds"),
        (drop_run, r"has no rounds\[0\]\.runs\.cascade"),
        (drop_asked, r"has no rounds\[1\]\.runs\.pools\.asked"),
        (raise_schema, "has the schema 99"),
    ],
)
def test_results_that_lack_something_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    spoil(results := measured(tmp_path)[1])
    (tmp_path / "spoilt.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=sentence):
        load_measured_ensemble(tmp_path / "spoilt.json")


def test_a_quick_run_writes_nothing_to_publish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ensemble.main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


def test_the_command_measures_the_models_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_set: Samples
) -> None:
    small, runs = build_small_models(), FakeRuns()
    monkeypatch.setenv("MODELS", f"{small.resnet},{small.vit}")
    monkeypatch.setenv("IMAGES", str(sample_set.images))
    monkeypatch.setenv("MODEL", str(sample_set.model))
    monkeypatch.setattr(EnsemblePlan.__init__, "__defaults__", (8, 0.6, runs))
    assert ensemble.main(["--quick", "--output", str(tmp_path / "out.json")]) == 0
    found = load_measured_ensemble(tmp_path / "out.json")
    assert found["images"] == 32 and found["complete"]
    assert runs.asked[1]["models"] == [str(small.resnet), str(small.vit)]
    assert str(tmp_path) not in found["provenance"]["model"] and "small-vit" in found["provenance"]["model"]


def test_a_run_that_fails_ends_in_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_set: Samples
) -> None:
    def fail(request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("The measurement of layout ended with status 1")

    monkeypatch.setenv("MODELS", str(build_small_models().resnet))
    monkeypatch.setattr(EnsemblePlan.__init__, "__defaults__", (8, 0.6, fail))
    with pytest.raises(SystemExit, match="1"):
        ensemble.main(["--quick", "--output", str(tmp_path / "out.json")])


@pytest.fixture(scope="module")
def quick(sample_set: Samples) -> list[str]:
    small = build_small_models()
    return [str(small.resnet), str(small.vit)]


def test_a_cascade_is_measured_in_a_process_of_its_own(
    one_machine: RayCluster, quick: list[str], sample_set: Samples
) -> None:
    images = str(sample_set.held_out)
    request = {"kind": "layout", "layout": "together", "source": images, "models": quick, "limit": 16, "sure": 0.6}
    found = ask_for_ensemble(request)
    assert found["rows"] == found["asked"]["small-resnet"] == 16
    assert 0 < found["asked"]["small-vit"] < 16
    assert found["model_loads"] >= 2 and found["errors"] == 0
    assert found["peak_memory_bytes"] > found["peak_store_bytes"] > 0
    assert found["seconds"] > found["start_up_seconds"] > 0


def test_what_a_model_takes_alone_is_measured(quick: list[str]) -> None:
    small, vit = (Alone(member, 4, 2).run(0.01, 224) for member in load_ensemble(quick).members)
    for found in (small, vit):
        assert found["rows_per_second"] > 0 and found["load_seconds"] > 0
    assert 0 < small["weight_bytes"] < vit["weight_bytes"] < 20e6


def test_weights_and_cascades_are_chosen_on_held_out_images() -> None:
    # `cheap` is right where it is sure; `dear` always; on the held-out images and on the others alike.
    answers = np.array([[[0.95, 0.05], [0.9, 0.1]]] * 3 + [[[0.45, 0.55], [0.9, 0.1]]], np.float32)
    truth = np.zeros(4, int)
    found = describe_quality(["cheap", "dear"], (answers, truth), (answers[1:], truth[1:]))
    assert (found["images"], found["held_out"]) == (3, 4)
    assert found["alone"] == {"cheap": pytest.approx(2 / 3), "dear": 1}
    assert found["combined"] == {"mean": 1, "vote": 1, "weights": 1}
    assert found["weights"]["dear"] > found["weights"]["cheap"]
    assert 0.55 < found["sure"] <= 0.57
    by_sure = {each["sure"]: each for each in found["cascades"]}
    assert by_sure[0.5]["accuracy"] == pytest.approx(2 / 3) and by_sure[0.5]["asked"] == {"cheap": 1, "dear": 0}
    assert by_sure[0.6]["accuracy"] == 1 and by_sure[0.6]["asked"]["dear"] == pytest.approx(1 / 3)


def test_without_a_truth_there_is_no_quality() -> None:
    none = (np.zeros((0, 2, 2), np.float32), np.zeros(0, int))
    assert describe_quality(["a", "b"], none, none) == WITHOUT_TRUTH


def test_answers_of_real_models_are_described(
    one_machine: RayCluster, quick: list[str], sample_set: Samples
) -> None:
    source, held_out = (str(sample_set.held_out / name) for name in ("ocean", "snow"))
    found = measure_quality(source, held_out, quick)
    assert (found["images"], found["held_out"]) == (15, 15)
    assert found["alone"].keys() == found["weights"].keys() == {"small-resnet", "small-vit"}
    shares = [each["asked"]["small-vit"] for each in found["cascades"]]
    assert shares == sorted(shares) and shares[-1] > 0


def test_the_published_layouts_are_what_the_page_says_of_them() -> None:
    results = load_measured_ensemble()
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    found = summarize_ensemble(results)

    def median(run: str, key: str) -> float:
        spread = found[run][key]
        assert spread is not None
        return float(spread["median"])

    assert median("pools", "over_together") < 1 < median("cascade", "over_together")
    assert median("pools", "start_up_seconds") > median("together", "start_up_seconds")
    for taken in results["rounds"]:
        assert taken["runs"]["together"]["model_loads"] == 2 * 3  # two actors
        after = {name: run["seconds"] - run["start_up_seconds"] for name, run in taken["runs"].items()}
        assert after["pools"] > after["together"]
