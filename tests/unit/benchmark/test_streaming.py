"""The streams take turns, each is compared to the smallest within a round, and all of it is shown."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.architecture.streaming import ROWS
from snippets.benchmark import streaming
from snippets.benchmark.render import format_sections
from snippets.benchmark.streaming import (
    BLOCK_BYTES,
    RUNS,
    SIDE,
    STREAMING,
    StreamPlan,
    ask_for_stream,
    draw_stream,
    load_streams,
    measure_streams,
    stream_sections,
    streams_numbers,
    streams_table,
    summarize_streams,
)
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ray_cluster import RayCluster

TIMELINE = [
    {"worker": worker, "operator": operator, "block": 0, "began_s": began, "ended_s": began + 1}
    for worker, operator, began in (("a", "read", 0.0), ("b", "read", 0.5), ("c", "model", 1.5))
]


class FakeRuns:
    """Answers as `snippets.benchmark.streaming_runs` does; stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        times, freed = request["blocks"] // 8, "free_objects_ms" in request
        return {
            "rows": request["blocks"] * 4,
            "seconds": 1.0 * times,
            "first_row_seconds": 9.0 if "materialize" in request else 0.5,
            "reads_before_first": request["blocks"] if "materialize" in request else 2,
            "peak_memory_bytes": 1_000_000_000 + 2_000_000 * times,
            "peak_store_bytes": 8_000_000 if "materialize" in request else 6_000_000 // (1 + 2 * freed),
            "read_tasks_bytes": 4_200 * request["blocks"],
            "timeline": TIMELINE if request["with_timeline"] else [],
        }


def measured(folder: Path, rounds: int = 2, **arguments: Any) -> tuple[FakeRuns, dict[str, Any]]:
    runs = FakeRuns(**arguments)
    return runs, measure_streams(StreamPlan(8, 2, 0.01, rounds, runs), provenance(), folder / "streaming.json")


def test_the_runs_take_turns_and_are_written(tmp_path: Path) -> None:
    runs, results = measured(tmp_path)
    assert [one["order"][0] for one in results["rounds"]] == ["1x", "4x"]
    assert sorted(request["blocks"] for request in runs.asked) == [8] * 4 + [32] * 2 + [128] * 4
    assert results["complete"]
    assert results["timeline"] == TIMELINE
    assert load_streams(tmp_path / "streaming.json") == results


def test_an_interrupt_keeps_the_rounds_before_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, interrupt_at=len(RUNS) + 1)
    kept = load_streams(tmp_path / "streaming.json")
    assert (len(kept["rounds"]), kept["complete"]) == (1, False)


def test_each_run_is_compared_to_the_smallest_of_its_round(tmp_path: Path) -> None:
    summary = summarize_streams(measured(tmp_path)[1])

    def values(name: str, key: str) -> list[float]:
        found = summary[name][key]
        assert found is not None
        return list(found["values"])

    assert values("16x", "memory_over_1x") == pytest.approx([1032 / 1002] * 2)
    assert values("materialized", "store_over_1x") == [4, 4]
    assert values("1x", "memory_over_1x") == values("16x", "store_over_1x") == [1, 1]


def test_the_numbers_and_the_table_are_those_of_the_summary(tmp_path: Path) -> None:
    results = measured(tmp_path)[1]
    assert streams_numbers(results) == {
        "memory-16x": "1.03",
        "store-blocks-1x": "0",
        "store-blocks-16x": "0",
        "in-flight": "2",
        "store-default": "3.00",
        "read-task": "4.2",
        "first-row-materialized": "18.0",
    }
    lines = streams_table(results).splitlines()
    assert len(lines) == 2 + len(RUNS)
    assert lines[4].split(" | ")[1:4] == ["128", "1.03", "1.03"]


def test_the_figure_has_a_lane_a_worker(tmp_path: Path) -> None:
    svg = draw_stream(measured(tmp_path)[1])
    assert svg.count('height="16" fill="var(--figure-fill') == 3
    assert "2 workers read and 1 are the model, for 2.5 s." in svg


def test_the_rendered_file_has_a_section_a_number(tmp_path: Path) -> None:
    text = format_sections(stream_sections(measured(tmp_path)[1]))
    for name in (
        "table",
        "provenance-line",
        "memory-16x",
        "store-blocks-1x",
        "store-blocks-16x",
        "in-flight",
        "store-default",
        "read-task",
        "first-row-materialized",
    ):
        assert f"[start:{name}]" in text
    assert "Medians of 2 rounds" in text


def drop_rounds(results: dict[str, Any]) -> None:
    results["rounds"] = []


def drop_run(results: dict[str, Any]) -> None:
    del results["rounds"][0]["runs"]["16x"]


def drop_store(results: dict[str, Any]) -> None:
    del results["rounds"][1]["runs"]["4x"]["peak_store_bytes"]


def raise_schema(results: dict[str, Any]) -> None:
    results["schema"] = 99


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_rounds, "has no rounds"),
        (drop_run, r"has no rounds\[0\]\.runs\.16x"),
        (drop_store, r"has no rounds\[1\]\.runs\.4x\.peak_store_bytes"),
        (raise_schema, "has the schema 99"),
    ],
)
def test_results_that_lack_something_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    spoil(results := measured(tmp_path)[1])
    (tmp_path / "spoilt.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=sentence):
        load_streams(tmp_path / "spoilt.json")


def test_the_smallest_run_fills_what_may_be_in_flight() -> None:
    with pytest.raises(ValueError, match="needs at least 8 blocks"):
        StreamPlan(7, 2, 0.01, 1)


def test_a_quick_run_writes_nothing_to_publish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        streaming.main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


def test_the_command_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamPlan.__init__, "__defaults__", (FakeRuns(),))
    assert streaming.main(["--quick", "--output", str(tmp_path / "out.json")]) == 0
    assert load_streams(tmp_path / "out.json")["blocks"] == {
        "1x": 8,
        "4x": 32,
        "16x": 128,
        "default": 128,
        "materialized": 8,
    }


def test_a_run_that_fails_ends_in_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(request: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("The measurement of stream ended with status 1")

    monkeypatch.setattr(StreamPlan.__init__, "__defaults__", (fail,))
    with pytest.raises(SystemExit, match="1"):
        streaming.main(["--quick", "--output", str(tmp_path / "out.json")])
    assert "ended with status 1" in capsys.readouterr().err


def test_a_stream_is_measured_in_a_process_of_its_own(one_machine: RayCluster) -> None:
    request = {"kind": "stream", "blocks": 16, "in_flight": 3, "wait_s": 0.01, "with_timeline": True}
    found = ask_for_stream(request)
    assert found["rows"] == 64
    assert 1 <= found["reads_before_first"] <= 16
    assert 0 < found["first_row_seconds"] < found["seconds"]
    assert found["peak_memory_bytes"] > found["peak_store_bytes"] > found["read_tasks_bytes"] > 16 * 1000
    assert sorted((row["operator"], row["block"]) for row in found["timeline"]) == sorted(
        (operator, block) for operator in ("read", "model") for block in range(16)
    )
    starts = [row["began_s"] for row in found["timeline"]]
    assert all(before <= after for before, after in pairwise(starts))


def published(run: str, key: str) -> float:
    found = summarize_streams(load_streams(STREAMING))[run][key]
    assert found is not None
    return float(found["median"])


def test_memory_over_sixteen_times_the_data_stays_and_the_store_within_what_may_be_in_flight() -> None:
    results = load_streams(STREAMING)
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    assert published("16x", "memory_over_1x") <= 1.1
    assert BLOCK_BYTES == ROWS * SIDE**2
    for one in results["rounds"]:
        for name in ("1x", "4x", "16x"):
            run = one["runs"][name]
            assert run["peak_store_bytes"] - run["read_tasks_bytes"] <= results["in_flight"] * BLOCK_BYTES
    assert published("16x", "store_blocks") - published("1x", "store_blocks") <= 1


def test_part_of_the_store_is_what_nobody_has_freed_yet() -> None:
    assert published("default", "store_over_16x") > 1.5
