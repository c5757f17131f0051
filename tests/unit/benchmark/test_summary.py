"""Bounds, ratios and shares follow from what was measured, on values that can be worked out by hand."""

import pytest

from snippets.benchmark.breakdown import EXPLAINED, KINDS, break_down, shares
from snippets.benchmark.contenders import CONTENDERS, contenders_for
from snippets.benchmark.provenance import ROOT, Hardware, public_name
from snippets.benchmark.summary import bound, bounds_of, ratio, spread, summarize
from snippets.recording import Event
from tests.unit.benchmark.test_harness import RUN


def test_on_one_device_the_times_of_forward_and_decode_add_up() -> None:
    # 20 images/s are 50 ms an image; 10 ms of decoding on each of 2 cores are 5 ms more.
    assert bound(20, 0.010, cores=2) == pytest.approx(1000 / 55)


def test_on_a_gpu_the_slower_of_the_two_decides() -> None:
    assert bound(1000, 0.004, cores=2, on_gpu=True) == 500
    assert bound(100, 0.004, cores=2, on_gpu=True) == 100


def test_each_arrangement_has_its_bound() -> None:
    forward = {"float32": {"one_process": 20.0, "process_per_core": None}}
    limits = {"cores": 2, "on_gpu": False, "decode_seconds": 0.010, "forward": forward}
    assert bounds_of(limits) == {"float32": {"one_process": pytest.approx(1000 / 55), "process_per_core": None}}


def test_spread_keeps_all_values_and_leaves_out_missing_ones() -> None:
    assert spread([3, None, 1, 2]) == {"median": 2, "min": 1, "max": 3, "values": [3, None, 1, 2]}
    assert spread([None, None]) is None
    assert ratio(None, 2) is None and ratio(3, 2) == 1.5


def test_ratios_are_taken_within_a_round_and_only_then_the_median() -> None:
    # Round 2 ran on a machine twice as slow: a ratio of the medians would say 2.5, each round says 2 or 3.
    steady = [(10.0, 20.0), (5.0, 15.0), (10.0, 20.0)]
    rounds = []
    for naive, pool in steady:
        runs = {
            "naive": {**RUN, "steady_rows_per_second": naive},
            "pool": {**RUN, "steady_rows_per_second": pool},
        }
        limits = {
            "cores": 2,
            "on_gpu": False,
            "decode_seconds": 0.010,
            "forward": {"float32": {"one_process": pool * 2, "process_per_core": None}},
        }
        same = {"compared": 4, "equal": 3}
        rounds.append(
            {
                "runs": runs,
                "limits": limits,
                "agreement": {"naive": same, "pool": same},
                "breakdown": dict.fromkeys(KINDS, 1.0),
            }
        )
    memory = {"contender": "pool", "images": 16, "peak_memory_bytes": 1100}
    found = summarize({"rounds": rounds, "memory": memory})
    pool_found = found["contenders"]["pool"]
    assert pool_found["over_naive"]["values"] == [2, 3, 2] and pool_found["over_naive"]["median"] == 2
    assert pool_found["over_bound"]["values"][0] == pytest.approx(20 * (1 / 40 + 0.005))
    assert pool_found["over_other_bound"] is None
    assert pool_found["agreement"]["median"] == 0.75
    assert found["memory_ratio"] == 1.1
    assert found["explained"] == pytest.approx(len(EXPLAINED) / len(KINDS))


def test_the_breakdown_of_two_lanes_adds_up_to_all_of_their_time() -> None:
    def event(kind: str, worker: str, start: float, end: float) -> Event:
        return Event(kind, worker, start, end, 4, "cpu")

    events = [
        event("batch", "a", 102, 108),  # imports for 3, loads for 1, then computes
        event("pipeline", "a", 105, 106),
        event("load", "a", 105.2, 105.8),  # within pipeline(), and not counted twice
        event("preprocess", "a", 106, 106.2),
        event("forward", "a", 106.2, 107.8),
        event("batch", "b", 104, 108.5),
        event("pipeline", "b", 105, 106),
        event("forward", "b", 106, 108),
        event("batch", "a", 108.5, 109.5),  # nothing to import any more
        event("pipeline", "a", 108.5, 109),
    ]
    seconds = break_down(events, started=100, ended=110)
    assert seconds == {
        "start-up": pytest.approx(2 + 4),
        "import": pytest.approx(3 + 1),
        "load": pytest.approx(1 + 1 + 0.5),
        "preprocess": pytest.approx(0.2),
        "forward": pytest.approx(1.6 + 2),
        "function": pytest.approx(0.2 + 0.5 + 0.5),
        "between": pytest.approx(20 - 6 - 11.5),
    }
    assert sum(seconds.values()) == pytest.approx(2 * 10)
    assert sum(shares([seconds, seconds]).values()) == pytest.approx(1)
    assert list(seconds) == list(KINDS)


def test_a_precision_competes_only_where_the_hardware_has_it() -> None:
    plain = Hardware("P", 2, 1, ["avx2"], None)
    assert contenders_for(plain) == ["naive", "usual", "pool"]
    assert contenders_for(Hardware("P", 2, 1, ["avx512_bf16"], None)) == [
        "naive",
        "usual",
        "pool",
        "pool-bfloat16",
    ]
    assert contenders_for(Hardware("P", 2, 1, [], "H100")) == list(CONTENDERS)
    assert plain.slug == "cpu-2-cores"
    assert Hardware("P", 2, 1, [], "NVIDIA H100 80GB HBM3").slug == "nvidia-h100-80gb-hbm3"


def test_provenance_names_no_folder_outside_the_repository() -> None:
    assert public_name("/home/someone/images") == "images"
    assert public_name("--output=/home/someone/results.json") == "--output=results.json"
    assert public_name(str(ROOT / "docs" / "x.json")) == "docs/x.json"
    assert public_name("s3://anonymous@bucket/val/") == "s3://anonymous@bucket/val/"
