"""Rounds on a real cluster calibrate the simulation, which is held against runs that it was not calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.architecture.simulation import DESIGNS, Cluster, Machine, simulate
from snippets.benchmark import scaling
from snippets.benchmark.render import format_sections
from snippets.benchmark.scaling import (
    NODES,
    PLAN,
    ScalingPlan,
    answers_of,
    ask_for_round,
    calibrate,
    check_scaling,
    draw_designs,
    driver_table,
    efficiency,
    efficiency_table,
    load_scaling,
    measure_scaling,
    median_error,
    membership_table,
    predict,
    predictions,
    rate_around,
    samples_table,
    scaling_numbers,
    scaling_sections,
    uneven_table,
    validation_table,
)
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from collections.abc import Callable

HANDOVER_S, DRIVER_S = 0.01, 0.002


def fake_run(name: str, scale: float) -> dict[str, Any]:
    """Return what a run answers on a cluster that behaves as the simulation says."""
    planned = PLAN[name]
    batches, wait_s = max(1, round(planned.batches * scale)), planned.wait_s * scale
    actors = planned.nodes * planned.actors_a_node
    forward_s = wait_s + HANDOVER_S
    machines = [Machine(forward_s + (wait_s if index < planned.slow else 0)) for index in range(actors)]
    changed_s = 2.0 * scale if planned.change else None
    if planned.change == "join":
        machines.append(Machine(forward_s, joins_s=3.0 * scale))
    elif planned.change == "leave":
        machines[-1] = Machine(forward_s, leaves_s=2.0 * scale)
    seconds = simulate(Cluster(machines, DRIVER_S), batches).seconds
    nodes = [
        {
            "batches": batches // len(machines),
            "began_s": machine.joins_s,
            "ended_s": seconds,
            "is_slow": index < planned.slow,
        }
        for index, machine in enumerate(machines)
    ]
    ends_s = [seconds * (index + 1) / batches for index in range(batches)]
    return {
        **{"batches": batches, "ids": batches, "rows": batches, "wait_s": wait_s, "seconds": seconds},
        **{"changed_s": changed_s, "nodes": nodes, "ends_s": ends_s if planned.change else []},
        **{"tasks": batches, "steps": 2 * batches, "executor_s": 0.001 * batches, "process_s": 0.003 * batches},
        "samples": {"wait": 3, "dispatch_next_task": 1},
    }


class FakeRounds:
    """Answers as `snippets.benchmark.scaling_runs` does; stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        return {"runs": {name: fake_run(name, request["scale"]) for name in request["names"]}}


def plan(rounds: int = 2, **arguments: Any) -> ScalingPlan:
    return ScalingPlan(rounds, most=16, images=1e5, ask=FakeRounds(**arguments))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is in the file after two rounds."""
    return measure_scaling(plan(), provenance(), tmp_path_factory.mktemp("scaling") / "scaling.json")


def test_the_rounds_are_written_with_calibration_and_simulation(tmp_path: Path) -> None:
    measured = measure_scaling(plan(1), provenance(), tmp_path / "scaling.json")
    assert measured["complete"]
    assert list(measured["simulated"]["designs"]) == list(DESIGNS)
    assert load_scaling(tmp_path / "scaling.json") == measured


def test_an_interrupt_keeps_the_rounds_before_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_scaling(plan(2, interrupt_at=1), provenance(), tmp_path / "scaling.json")
    kept = load_scaling(tmp_path / "scaling.json")
    assert (len(kept["rounds"]), kept["complete"], kept["simulated"]["designs"]) == (1, False, {})


def test_what_is_calibrated_is_what_the_cluster_had(results: dict[str, Any]) -> None:
    found = calibrate(results["rounds"])
    assert found["handover_s"] == pytest.approx(HANDOVER_S, rel=0.05)
    assert found["driver_task_s"] == pytest.approx(DRIVER_S, rel=0.05)


def test_nothing_is_validated_on_what_it_was_calibrated_on(results: dict[str, Any]) -> None:
    found = predictions(results)
    assert found.keys() == {name for name, planned in PLAN.items() if not planned.calibrates}
    assert {"weak-1", "busy-8"}.isdisjoint(found)
    assert median_error(results) < 0.01


def test_a_cluster_that_behaves_otherwise_shows_as_an_error(results: dict[str, Any]) -> None:
    run = {**results["rounds"][0]["runs"]["strong-8"]}
    calibration = {"handover_s": 0.25, "driver_task_s": DRIVER_S}  # twice as long as it was
    assert predict(PLAN["strong-8"], run, calibration) > 1.8 * run["seconds"]


def test_efficiency_is_of_a_node_against_one_alone(results: dict[str, Any]) -> None:
    runs = results["rounds"][0]["runs"]
    found = efficiency(results, "weak", 8)
    assert found is not None
    assert found["median"] == pytest.approx(runs["weak-1"]["seconds"] / runs["weak-8"]["seconds"])
    strong = efficiency(results, "strong", 8)
    assert strong is not None
    assert strong["median"] == pytest.approx(runs["strong-1"]["seconds"] / runs["strong-8"]["seconds"] / 8)


def test_rates_before_and_after_are_counted_from_the_ends() -> None:
    nodes = [{"began_s": 0.0}, {"began_s": 4.0}]
    run = {"ends_s": [1.0, 2.0, 3.0, 4.5, 5.0, 5.5, 6.0], "changed_s": 2.0, "nodes": nodes}
    assert rate_around(run, is_after=False) == 1
    assert rate_around(run, is_after=True) == 2  # from when the node that joined was at work


def test_the_tables_have_a_row_for_each_of_what_they_show(results: dict[str, Any]) -> None:
    assert len(efficiency_table(results).splitlines()) == 2 + len(NODES)
    assert efficiency_table(results).splitlines()[2].startswith("| 1 | ")
    assert [line.split(" | ")[2:4] for line in membership_table(results).splitlines()[2:]] == [
        ["120", "0"],
        ["280", "0"],
    ]
    assert len(uneven_table(results).splitlines()) == 4
    assert "| 1.00 | 3.00 |" in driver_table(results)
    assert "| `wait` | 75.0 |" in samples_table(results)
    assert len(validation_table(results).splitlines()) == 2 + len(predictions(results))


def test_the_rendered_file_has_what_the_page_includes(results: dict[str, Any]) -> None:
    text = format_sections(scaling_sections(results))
    for name in (
        "efficiency",
        "validation",
        "designs",
        "assumptions",
        "provenance-line",
        "driver-ms",
        "shards-stops",
    ):
        assert f"[start:{name}]" in text
    assert "[source](https://docs.aws.amazon.com/" in text
    assert float(scaling_numbers(results)["driver-ms"]) == pytest.approx(1e3 * DRIVER_S, rel=0.02)


def test_the_figure_has_a_line_a_design(results: dict[str, Any]) -> None:
    svg = draw_designs(results)
    assert svg.count("<polyline") == len(DESIGNS)
    assert "files, listed by the driver: below 0.9 at" in svg


def drop_rounds(results: dict[str, Any]) -> None:
    results["rounds"] = []


def drop_run(results: dict[str, Any]) -> None:
    del results["rounds"][0]["runs"]["weak-8"]


def edit_calibration(results: dict[str, Any]) -> None:
    results["calibration"]["driver_task_s"] *= 2


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_rounds, "has no rounds"),
        (drop_run, r"has no rounds\[0\]\.runs\.weak-8"),
        (edit_calibration, "does not follow from its rounds"),
    ],
)
def test_results_that_lack_something_are_refused(
    results: dict[str, Any], spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    spoilt = json.loads(json.dumps(results))
    spoil(spoilt)
    with pytest.raises(ValueError, match=sentence):
        check_scaling(spoilt)


def test_the_command_measures_and_simulates_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRounds()
    others = (ScalingPlan.__init__.__defaults__ or ())[:-1]
    monkeypatch.setattr(ScalingPlan.__init__, "__defaults__", (*others, fake))
    output = tmp_path / "out.json"
    assert scaling.main(["--quick", "--output", str(output)]) == 0
    first = output.read_text()
    assert scaling.main(["--quick", "--simulate", "--output", str(output)]) == 0
    assert (output.read_text(), len(fake.asked)) == (first, 1)


def test_a_quick_run_writes_nothing_to_publish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


def test_a_file_that_is_not_there_ends_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--simulate", "--output", str(tmp_path / "none.json")])
    assert "There is no results file" in capsys.readouterr().err


def test_a_round_is_run_on_a_real_cluster_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    found = ask_for_round({"kind": "round", "names": ["weak-1", "uneven"], "scale": 0.1})["runs"]
    assert [(run["batches"], run["ids"], run["rows"]) for run in found.values()] == [(6, 6, 6), (12, 12, 12)]
    assert sum(node["is_slow"] for node in found["uneven"]["nodes"]) == 1
    assert [len(run["nodes"]) for run in found.values()] == [1, 3]
    for run in found.values():
        assert run["seconds"] >= run["batches"] * run["wait_s"] / len(run["nodes"])
        assert run["tasks"] == run["batches"]
        assert 0 < run["executor_s"] < run["process_s"]


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The results that the page shows."""
    results = load_scaling()
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    return results


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_eight_nodes_keep_the_speed_that_was_asked(published: dict[str, Any], kind: str) -> None:
    found = efficiency(published, kind, 8)
    assert found is not None
    assert found["median"] >= 0.95


def test_the_simulation_is_as_close_as_was_asked_and_off_most_where_batches_are_short(
    published: dict[str, Any],
) -> None:
    assert median_error(published) <= 0.1
    errors = {name: error["median"] for name, (_, _, error) in predictions(published).items()}
    assert max(errors, key=errors.__getitem__) in {"short-8", "busy-4", "busy-8"}


def test_shards_gain_nothing_with_the_driver_that_was_measured(published: dict[str, Any]) -> None:
    blocks, shards = (answers_of(published, name)[-1] for name in ("larger blocks", "shards"))
    assert blocks.limit == shards.limit == "driver"
    assert shards.seconds == pytest.approx(blocks.seconds, rel=0.02)
