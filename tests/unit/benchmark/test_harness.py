"""The benchmark takes turns, keeps what it has when it is interrupted, and leaves nothing running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from snippets.benchmark import __main__ as benchmark
from snippets.benchmark.harness import Plan, agreement, measure, remeasure_costs, rotate, spread_evenly
from snippets.benchmark.processes import MARK, ask
from snippets.benchmark.provenance import ROOT
from snippets.benchmark.results import check_results, load_results
from snippets.samples import DEFAULT_ROOT, Samples, build_samples

RUN = {
    "rows": 4,
    "errors": 0,
    "seconds": 10.0,
    "ray_init_seconds": 3.0,
    "start_up_seconds": 5.0,
    "steady_rows_per_second": 8.0,
    "model_loads": 1,
    "batches": 1,
    "peak_memory_bytes": 1000,
    "device": "cpu",
    "accuracy": None,
}
OURS = "TESTED_OUTPUT"  # a variable, by which a test knows its processes
KINDS = ("start-up", "import", "load", "preprocess", "forward", "function", "between")


class FakeRuns:
    """Answers as `snippets.benchmark.runs` does, and stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request.get("name", request["kind"]))
        if request["kind"] == "limits":
            forward = {dtype: {"one_process": 20.0, "process_per_core": 24.0} for dtype in request["dtypes"]}
            return {"cores": 2, "on_gpu": False, "decode_seconds": 0.004, "forward": forward}
        breakdown = dict.fromkeys(KINDS, 1.0)
        return {"run": RUN, "labels": dict.fromkeys(request["source"], "cat"), "breakdown": breakdown}


def provenance() -> dict[str, Any]:
    versions = dict.fromkeys(("python", "ray", "torch", "transformers", "pillow", "numpy"), "1")
    hardware = {"processor": "P", "cores": 2, "memory_bytes": 1, "instruction_sets": [], "gpu": None}
    texts = dict.fromkeys(("date", "commit", "command", "images", "model", "system"), "x")
    return {**texts, "uncommitted_changes": False, "versions": versions, "hardware": hardware}


def fake_plan(folder: Path, runs: FakeRuns, rounds: int) -> Plan:
    for index in range(8):
        (folder / f"{index}.jpg").touch()
    return Plan(str(folder), "model", ["naive", "usual", "pool"], rounds, 8, quick=True, ask=runs)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return build_samples(DEFAULT_ROOT)


def test_each_round_starts_with_another_contender_and_limits_take_their_turn(tmp_path: Path) -> None:
    runs, output = FakeRuns(), tmp_path / "results.json"
    results, is_complete = measure(fake_plan(tmp_path, runs, 4), provenance(), output)
    assert results is not None and is_complete and results["complete"]
    places: list[list[str]] = [runs.asked[start : start + 4] for start in range(0, 16, 4)]
    assert [one["order"] for one in results["rounds"]] == places
    for column in zip(*places, strict=True):
        assert sorted(column) == ["limits", "naive", "pool", "usual"]
    assert load_results(output) == results


def test_rotation_keeps_the_cyclic_order() -> None:
    assert [rotate(["a", "b", "c"], by) for by in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_images_are_spread_over_the_whole_source() -> None:
    assert spread_evenly(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread_evenly(["a", "b"], 4) == ["a", "b"]


def test_agreement_counts_equal_labels_of_the_images_that_both_saw() -> None:
    assert agreement({"a": "cat", "b": "dog", "c": "cat"}, {"a": "cat", "b": "cat"}) == {"compared": 2, "equal": 1}


def test_an_interrupt_keeps_the_finished_rounds_and_says_that_they_are_not_all(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    results, is_complete = measure(fake_plan(tmp_path, FakeRuns(interrupt_at=10), 5), provenance(), output)
    assert results is not None and not is_complete
    kept = load_results(output)
    assert len(kept["rounds"]) == 2 and kept["complete"] is False


def test_an_interrupt_in_the_first_round_leaves_the_results_file_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    output.write_text("before")
    assert measure(fake_plan(tmp_path, FakeRuns(interrupt_at=2), 5), provenance(), output) == (None, False)
    assert output.read_text() == "before"


def test_costs_measured_again_are_medians_say_when_and_leave_the_rounds(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    before, _ = measure(fake_plan(tmp_path, FakeRuns(), 1), provenance(), output)
    plan = fake_plan(tmp_path, FakeRuns(), 3)
    factors = iter([2.0, 9.0, 4.0])
    row = {"cost": "a", "unit": "s", "less": 1.0}
    plan.ask = lambda request: {"costs": [row | dict.fromkeys(("more", "factor"), next(factors))]}
    after = remeasure_costs(plan, {**provenance(), "commit": "later"}, output)
    assert before is not None and after["rounds"] == before["rounds"]
    assert after["costs"] == [{**row, "more": 4.0, "factor": 4.0, "factors": [2.0, 9.0, 4.0]}]
    assert after["costs_provenance"]["commit"] == "later"
    assert load_results(output) == after


def test_a_failed_measurement_says_which_and_why() -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)^The measurement of speed ended with status 1:.*KeyError: 'speed'"
    ):
        ask({"kind": "speed"})


def start(samples: Samples, output: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "snippets.benchmark", "--quick", "--output", str(output), *options],
        cwd=ROOT,
        env={
            **environment,
            "RAY_AUTH_MODE": "disabled",
            "IMAGES": str(samples.images),
            "MODEL": str(samples.model),
            OURS: str(output),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def marked_processes(output: Path) -> set[int]:
    """Return those that measure for this file, whatever else measures on this machine."""
    found = set()
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get(OURS) == str(output) and MARK in process.environ()
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.timeout(400)
def test_ctrl_c_leaves_the_finished_rounds_and_no_process(tmp_path: Path, samples: Samples) -> None:
    output = tmp_path / "quick.json"
    process = start(samples, output, "--contenders", "pool", "--limit", "18", "--rounds", "2")
    assert process.stderr is not None
    for line in process.stderr:
        if "round 2 of 2: pool" in line:
            break
    while len(marked_processes(output)) < 5 and process.poll() is None:  # Ray's are there
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    table, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "1 of 2 rounds are kept" in errors and "Traceback" not in errors
    assert marked_processes(output) == set()
    assert table.startswith("| pipeline |")

    results = load_results(output)
    check_results(results)
    assert results["complete"] is False and len(results["rounds"]) == 1
    runs = results["rounds"][0]["runs"]
    assert {name: run["rows"] for name, run in runs.items()} == {"naive": 18, "pool": 18}
    assert runs["naive"]["model_loads"] == runs["naive"]["batches"] >= 5
    assert runs["pool"]["model_loads"] == 2 == runs["pool"]["batches"]
    assert results["rounds"][0]["agreement"]["pool"] == {"compared": 18, "equal": 18}
    assert sum(results["summary"]["breakdown"].values()) == pytest.approx(1)

    origin = results["provenance"]
    assert origin["command"] == (
        "python -m snippets.benchmark --quick --output quick.json --contenders pool --limit 18 --rounds 2"
    )
    assert origin["versions"]["ray"].startswith("2.") and origin["hardware"]["cores"] >= 1
    text = output.read_text()
    assert os.uname().nodename not in text and str(Path.home()) + "/" not in text and str(ROOT) not in text


def test_a_command_that_was_not_interrupted_says_where_the_results_are(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[Plan] = []

    def run_fakes(plan: Plan, *arguments: Any) -> Any:
        plans.append(plan)
        return measure(fake_plan(tmp_path, FakeRuns(), plan.rounds), *arguments)

    monkeypatch.setattr(benchmark, "measure", run_fakes)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    output = tmp_path / "results.json"
    options = ["--quick", "--output", str(output), "--images", str(samples.images), "--model", str(samples.model)]
    assert benchmark.main(options) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("| pipeline |") and printed.err.endswith(f"Written: {output}\n")
    assert load_results(output)["complete"]
    assert (plans[0].rounds, plans[0].quick, plans[0].limit) == (1, True, 32)
