"""The timeline has a lane for each worker, and in it what that worker did."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray

from snippets.benchmark import timeline
from snippets.benchmark.figures import draw_timeline
from snippets.benchmark.tables import timeline_table
from snippets.benchmark.timeline import KINDS, TIMELINE, busy_seconds, lanes_of
from snippets.recording import Event, recording

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.conftest import RecordedRun
    from tests.ray_cluster import RayCluster


def event(kind: str, worker: str, start: float, end: float) -> Event:
    return Event(kind, worker, start, end, 1, "cpu")


NAIVE = [
    event("preprocess", "a", 104, 104.5),
    event("pipeline", "a", 102, 104),
    event("load", "a", 102.5, 104),  # within the pipeline: not drawn a second time
    event("forward", "a", 104.5, 106),
    event("batch", "a", 101, 106),
    event("batch", "b", 100.5, 103),
]
POOL = [event("load", "c", 102, 103), event("batch", "c", 103, 105), event("decode", "d", 101, 101.5)]


def test_a_naive_batch_is_taken_apart_into_what_it_calls() -> None:
    assert lanes_of(NAIVE, started=100) == [
        [
            {"kind": "import", "start": 1, "end": 2},
            {"kind": "load", "start": 2, "end": 4},
            {"kind": "decode", "start": 4, "end": 4.5},
            {"kind": "forward", "start": 4.5, "end": 6},
        ]
    ]


def test_a_pools_lanes_come_by_their_first_span() -> None:
    decoding, actor = lanes_of(POOL, started=100)
    assert decoding == [{"kind": "decode", "start": 1, "end": 1.5}]
    assert actor == [{"kind": "load", "start": 2, "end": 3}, {"kind": "forward", "start": 3, "end": 5}]
    assert busy_seconds(actor) == {"import": 0, "load": 1, "decode": 0, "forward": 2}


def actors_in(record: Any) -> list[Any]:
    """Return the lanes in which a model ran."""
    lanes = lanes_of(record.events, record.connected)
    return [lane for lane in lanes if any(span["kind"] == "forward" for span in lane)]


def test_doubling_the_pool_doubles_the_lanes(
    ray_cluster: RayCluster, pool_run: RecordedRun, sample_set: Samples, spread_images: list[str]
) -> None:
    from snippets.fundamentals.actor_pool import classify

    ray.shutdown()
    with recording(log_to_driver=False, logging_level=logging.ERROR) as one_actor:
        classify(spread_images[:8], str(sample_set.model), actors=1, batch_size=4).take_all()
    ray.shutdown()
    assert (len(actors_in(one_actor)), len(actors_in(pool_run[0]))) == (1, 2)


def test_naive_lanes_load_before_every_batch_and_a_pools_once(
    naive_run: RecordedRun, pool_run: RecordedRun
) -> None:
    batches, lanes = naive_run[0].of("batch"), actors_in(naive_run[0])
    assert sum(span["kind"] == "load" for lane in lanes for span in lane) == len(batches) > len(lanes)
    actors = actors_in(pool_run[0])
    assert [[span["kind"] for span in lane].count("load") for lane in actors] == [1, 1]
    assert all(span["kind"] != "decode" for lane in actors for span in lane)


@pytest.fixture
def drawn() -> dict[str, Any]:
    """A timeline of two small runs."""
    runs = {"naive": lanes_of(NAIVE, 100), "pool": lanes_of(POOL, 100)}
    return {"images": 2, "runs": {name: {"seconds": 8, "lanes": lanes} for name, lanes in runs.items()}}


def test_the_figure_has_a_row_for_each_lane_and_the_table_too(drawn: dict[str, Any]) -> None:
    svg = draw_timeline(drawn)
    assert svg.count('height="16" fill="var(--figure-fill') == 3
    assert "Naive: 1 workers, 8.0 s. Actor pool, float32: 2 workers, 8.0 s." in svg
    assert all(title in svg for title in KINDS.values())
    rows = timeline_table(drawn).splitlines()[2:]
    assert rows == [
        "| Naive, 1 | 1.0 s | 2.0 s | 0.5 s | 1.5 s | 3.0 s |",
        "| Actor pool, float32, 1 |  |  | 0.5 s |  | 7.5 s |",
        "| Actor pool, float32, 2 |  | 1.0 s |  | 2.0 s | 5.0 s |",
    ]


def test_the_committed_timeline_was_recorded_on_committed_code() -> None:
    found = json.loads(TIMELINE.read_text())
    assert found["provenance"]["uncommitted_changes"] is False
    assert found["images"] == 128 and set(found["runs"]) == {"naive", "pool"}


def test_bad_input_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODEL", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit) as ended:
        timeline.main(["--output", str(tmp_path / "timeline.json")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"There is no checkpoint folder {tmp_path}/nothing.\n"
