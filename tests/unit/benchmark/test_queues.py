"""What waits before a slow model is read from the executor, is less with a limit, and is drawn as it was."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import ray

from snippets.architecture.streaming import BLOCK_BYTES, ROWS
from snippets.benchmark import queues
from snippets.benchmark.queue_runs import KINDS, build_pipeline
from snippets.benchmark.queues import (
    QUEUED,
    QueuePlan,
    draw_queues,
    load_queues,
    measure_queues,
    most_waiting,
    queue_sections,
    queues_table,
)
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.ray_cluster import RayCluster


class FakeRuns:
    """Answers as `snippets.benchmark.queue_runs` does: twelve blocks at most, and with a limit three."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        most = 3 if request["in_flight"] else 12
        budgets = {"read": [4, 0, 1, 8.0], "flip": [2, 1, 1, 8.0], "model": [2, 2, 2, 8.0]}
        return {
            "rows": request["blocks"] * 4,
            "seconds": 4.4 if request["in_flight"] else 4.0,
            "at_s": [0.5, 1.0, 2.0, 4.0],
            "queued": {"read": [1, 2, 1, 0], "flip": [0, most - 2, most - 1, 0], "model": [0, 0, 1, 0]},
            "budget_blocks": budgets,
            "used_blocks": [1, most + 2.5, most, 0],
        }


def measured(folder: Path) -> tuple[FakeRuns, dict[str, Any]]:
    runs = FakeRuns()
    return runs, measure_queues(QueuePlan(24, 8, 0.01, runs), provenance(), folder / "queues.json")


def test_both_runs_are_measured_and_written(tmp_path: Path) -> None:
    runs, results = measured(tmp_path)
    assert [(request["blocks"], request["in_flight"]) for request in runs.asked] == [(24, None), (24, 8)]
    assert results["complete"]
    assert load_queues(tmp_path / "queues.json") == results


def test_what_waits_is_added_at_each_moment(tmp_path: Path) -> None:
    runs = measured(tmp_path)[1]["runs"]
    assert [most_waiting(runs[name]) for name in ("unlimited", "limited")] == [12, 3]  # not 2 and 11, at two times


def test_the_table_and_the_numbers_are_those_of_the_runs(tmp_path: Path) -> None:
    results = measured(tmp_path)[1]
    assert queues_table(results).splitlines()[2:] == [
        "| no limit | 2 | 11 | 14.5 | 4.0 |",
        "| a limit of 8 blocks | 2 | 2 | 5.5 | 4.4 |",
    ]
    sections = queue_sections(results)
    names = ("most-unlimited", "most-limited", "seconds-limited")
    assert [sections[name] for name in names] == ["12", "3", "1.10"]
    assert sections["provenance-line"].startswith("One round on P, 2 cores, no GPU")


def test_the_figure_has_a_curve_an_operator_on_one_scale(tmp_path: Path) -> None:
    svg = draw_queues(measured(tmp_path)[1])
    curves = re.findall(r'<path d="(M[^"]+)" fill="none" stroke="var\(--figure-(\w)', svg)
    assert [ink for _, ink in curves] == [
        "c",
        "a",
        "c",
        "a",
        "c",
        "a",
        "d",
    ]  # what waits, twice, and three budgets
    tops = [min(float(y) for y in re.findall(r"(?:[V ])([\d.]+)", path)) for path, _ in curves]
    bottom = 26 + queues.PANEL
    assert tops[1] == pytest.approx(bottom - (queues.PANEL - 4))  # the most of both runs fills its panel
    assert 100 + bottom < tops[3] < 2 * bottom + 12  # a fifth of it stays low
    assert "No limit: blocks that wait: at most 11. A limit: blocks that wait: at most 2." in svg
    assert all(path.count("H") >= 2 for path, _ in curves)


def cut_series(results: dict[str, Any]) -> None:
    results["runs"]["limited"]["queued"]["flip"].pop()


def drop_run(results: dict[str, Any]) -> None:
    del results["runs"]["limited"]


def raise_schema(results: dict[str, Any]) -> None:
    results["schema"] = 99


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut_series, r"series of different lengths, or none, in runs\.limited"),
        (drop_run, r"has no runs\.limited"),
        (raise_schema, "has the schema 99"),
    ],
)
def test_results_that_lack_something_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    spoil(results := measured(tmp_path)[1])
    (tmp_path / "spoilt.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=sentence):
        load_queues(tmp_path / "spoilt.json")


@pytest.mark.parametrize(("blocks", "in_flight"), [(24, 5), (8, 8)])
def test_a_limit_holds_a_block_of_each_operator_and_not_all(blocks: int, in_flight: int) -> None:
    with pytest.raises(ValueError, match="must be at least 6 blocks, and less than"):
        QueuePlan(blocks, in_flight, 0.01)


def test_a_quick_run_writes_nothing_to_publish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        queues.main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


def test_a_run_that_fails_ends_in_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("The measurement of queues ended with status 1")

    monkeypatch.setattr(QueuePlan.__init__, "__defaults__", (fail,))
    with pytest.raises(SystemExit, match="1"):
        queues.main(["--quick", "--output", str(tmp_path / "out.json")])
    assert "ended with status 1" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def run_here(request: dict[str, Any]) -> dict[str, Any]:
    """Answer in this process, with its cluster."""
    ray.shutdown()
    return KINDS[request.pop("kind")](**request)


def test_the_quick_command_measures_what_the_executor_saw(
    one_machine: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QueuePlan.__init__, "__defaults__", (run_here,))
    assert queues.main(["--quick", "--output", str(tmp_path / "out.json")]) == 0
    results = load_queues(tmp_path / "out.json")
    for run in results["runs"].values():
        assert run["rows"] == results["blocks"] * ROWS
        assert run["at_s"] == sorted(run["at_s"])
        assert [run["queued"][name][-1] for name in QUEUED] == [0, 0]
    unlimited, limited = (results["runs"][name] for name in ("unlimited", "limited"))
    beyond = len(queues.OPERATORS)  # each may begin a task when it has none
    assert max(limited["used_blocks"]) <= results["in_flight"] + beyond
    assert most_waiting(limited) <= results["in_flight"]
    assert max(limited["budget_blocks"]["read"]) <= results["in_flight"] < max(unlimited["budget_blocks"]["read"])


def test_three_operators_pass_blocks_of_the_same_size(connected: RayCluster) -> None:
    blocks = build_pipeline(4, float("inf"), 0).materialize()
    summaries = [blocks.get_stats_summary()]
    for summary in summaries:
        summaries += summary.parents
    names = {operator.operator_name for summary in summaries for operator in summary.operators_stats}
    assert names == {"ReadRange->MapBatches(read)", "MapBatches(flip)", "MapBatches(SlowModel)"}
    passed = [
        operator.output_size_bytes.sum / 4
        for summary in summaries
        for operator in summary.operators_stats
        if operator.operator_name != "MapBatches(SlowModel)"
    ]
    assert passed == pytest.approx([BLOCK_BYTES] * 2, rel=0.01)


def test_the_published_runs_are_what_the_page_says_of_them() -> None:
    results = load_queues()
    unlimited, limited = (results["runs"][name] for name in ("unlimited", "limited"))
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    assert most_waiting(limited) <= results["in_flight"] < most_waiting(unlimited)
    assert limited["seconds"] <= 1.05 * unlimited["seconds"]
