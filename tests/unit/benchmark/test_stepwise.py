"""The steps take turns, each is compared to the one before within a round, and all of it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.benchmark import stepwise
from snippets.benchmark.figures import PAGE, draw_steps
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import read_hardware
from snippets.benchmark.stepwise import (
    STEPWISE,
    StepPlan,
    load_steps,
    measure_steps,
    steps_for,
    summarize_steps,
)
from snippets.benchmark.tables import steps_numbers, steps_table
from snippets.fundamentals.stepwise import STEPS
from tests.unit.benchmark.test_harness import RUN, provenance

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

NAMES = ["naive", "kept", "batched"]
RATES: dict[str, list[float | None]] = {"naive": [10.0, 20.0], "kept": [20.0, 20.0], "batched": [10.0, 10.0]}


class FakeRuns:
    """Answers as `snippets.benchmark.runs` does, with the rates of the rounds, and stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["kind"] == "step"
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        name, source = request["name"], request["source"]
        index = sum(before == name for before, _ in self.asked)
        self.asked.append((name, len(source)))
        labels = dict.fromkeys(source, "cat") | ({source[0]: "dog"} if name == "batched" else {})
        return {"run": {**RUN, "steady_rows_per_second": RATES[name][index % 2]}, "labels": labels}


def fake_plan(folder: Path, runs: FakeRuns, quick: bool = True) -> StepPlan:
    for index in range(12):
        (folder / f"{index:02}.jpg").touch()
    return StepPlan(str(folder), "model", NAMES, 2, 12, quick=quick, ask=runs)


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    """The results of two rounds of three steps."""
    return measure_steps(fake_plan(tmp_path, FakeRuns()), provenance(), tmp_path / "steps.json")


def test_steps_take_turns_and_the_file_holds_what_was_measured(tmp_path: Path, results: dict[str, Any]) -> None:
    assert [one["order"] for one in results["rounds"]] == [NAMES, ["kept", "batched", "naive"]]
    assert results["complete"] and load_steps(tmp_path / "steps.json") == results
    assert results["rounds"][0]["agreement"]["batched"] == {"compared": 12, "equal": 11}


def test_steps_in_batches_of_four_get_a_third_of_the_images_after_a_warm_up(tmp_path: Path) -> None:
    runs = FakeRuns()
    found = measure_steps(fake_plan(tmp_path, runs, quick=False), provenance(), tmp_path / "steps.json")
    assert found["images"] == {"naive": 4, "kept": 4, "batched": 12}
    assert runs.asked[:2] == [("naive", 12), ("batched", 12)]  # all there are, as a warm-up takes more
    assert runs.asked[2:5] == [("naive", 4), ("kept", 4), ("batched", 12)]


def test_an_interrupt_keeps_the_finished_rounds(tmp_path: Path) -> None:
    output = tmp_path / "steps.json"
    with pytest.raises(KeyboardInterrupt):
        measure_steps(fake_plan(tmp_path, FakeRuns(interrupt_at=4)), provenance(), output)
    kept = load_steps(output)
    assert len(kept["rounds"]) == 1 and kept["complete"] is False


def test_a_gain_is_over_the_step_before_within_a_round(results: dict[str, Any]) -> None:
    summary = summarize_steps(results)
    assert summary["naive"]["gain"] is None
    found = {name: {key: summary[name][key] for key in ("gain", "over_naive")} for name in NAMES[1:]}
    values = {name: {key: spread and spread["values"] for key, spread in of.items()} for name, of in found.items()}
    assert values == {
        "kept": {"gain": [2, 1], "over_naive": [2, 1]},
        "batched": {"gain": [0.5, 0.5], "over_naive": [1, 0.5]},
    }


def test_table_and_numbers_say_the_same_and_what_was_not_measured(results: dict[str, Any]) -> None:
    rows = steps_table(results).splitlines()[2:]
    assert rows == [
        "| Naive | 15.0 (10.0\u201320.0) |  | 1.00 | 5.0 | 1 | 0.00 | 100 |",
        "| Model kept | 20.0 | 1.50 (1.00\u20132.00) | 1.50 | 5.0 | 1 | 0.00 | 100 |",
        "| True batches | 10.0 | 0.50 | 0.75 | 5.0 | 1 | 0.00 | 91.7 |",
    ]
    numbers = steps_numbers(results)
    assert {f"{name}-gain" for name in STEPS} <= set(numbers)
    assert (numbers["kept-gain"], numbers["batched-agreement"]) == ("1.50", "91.7")
    assert numbers["bfloat16-gain"] == "not measured"


def test_the_figure_has_a_bar_a_step_and_marks_what_lost(results: dict[str, Any]) -> None:
    svg = draw_steps(results)
    bars = [line for line in svg.splitlines() if line.startswith("<rect")]
    fills = (PAGE.line, PAGE.a, PAGE.b)  # the start, a gain, a loss
    assert [fill in bar for fill, bar in zip(fills, bars, strict=True)] == [True] * 3
    assert svg.count("stroke-dasharray") == 3  # the step before, twice, and the legend
    said = (
        "Naive: 15.0 images/s. Model kept: 20.0 images/s, \u00d7 1.50. True batches: 10.0 images/s, \u00d7 0.50."
    )
    assert said in svg


def test_a_step_with_too_little_of_a_steady_state_is_shown_without_a_bar(results: dict[str, Any]) -> None:
    for one in results["rounds"]:
        one["runs"]["kept"]["steady_rows_per_second"] = None
    svg = draw_steps(results)
    assert sum(line.startswith("<rect") for line in svg.splitlines()) == 2
    assert "Model kept: not measured. True batches: 10.0 images/s." in svg


def test_bfloat16_is_left_out_where_the_processor_would_emulate_it() -> None:
    without = replace(read_hardware(), gpu=None, instruction_sets=["avx2"])
    assert steps_for(without) == [*STEPS][:-1]
    assert steps_for(replace(without, instruction_sets=["avx512_bf16"])) == [*STEPS]


@pytest.mark.parametrize("path", [("images",), ("rounds", 0, "runs", "kept", "seconds"), ("rounds", 0, "order")])
def test_a_missing_key_is_one_sentence(tmp_path: Path, results: dict[str, Any], path: tuple[Any, ...]) -> None:
    *parents, last = path
    place: Any = results
    for key in parents:
        place = place[key]
    del place[last]
    (tmp_path / "steps.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"^The results file \S+steps.json has no .*{last}\.$"):
        load_steps(tmp_path / "steps.json")


def test_a_step_that_there_is_none_of_is_refused(results: dict[str, Any], tmp_path: Path) -> None:
    for place in (results["images"], *(one[key] for one in results["rounds"] for key in ("runs", "agreement"))):
        place["other"] = place["kept"]
    (tmp_path / "steps.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="has rounds of other steps than there are"):
        load_steps(tmp_path / "steps.json")


def test_a_step_is_measured_in_a_process_of_its_own(
    one_machine: RayCluster, sample_set: Samples, spread_images: list[str]
) -> None:
    request = {"kind": "step", "name": "kept", "source": spread_images[:8], "model": str(sample_set.model)}
    answer = ask(request)
    assert (answer["run"]["rows"], answer["run"]["model_loads"]) == (8, 2)
    assert answer["run"]["batches"] >= 2
    assert sorted(answer["labels"]) == spread_images[:8]


@pytest.mark.parametrize("options", [[], ["--quick"]])
def test_bad_input_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.setenv("MODEL", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit) as ended:
        stepwise.main(options)
    assert ended.value.code == 2
    said = "--quick needs --output" if options else f"There is no checkpoint folder {tmp_path}/nothing."
    assert said in capsys.readouterr().err


def test_the_committed_steps_were_measured_in_full_on_committed_code() -> None:
    found = load_steps(STEPWISE)
    assert found["complete"] and len(found["rounds"]) >= 5
    assert found["provenance"]["uncommitted_changes"] is False
    assert {"naive", "sized"} < set(found["images"])
