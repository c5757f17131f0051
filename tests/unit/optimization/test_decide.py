"""Each fault is recommended against, the recommendation is applied, and the counts that named it are gone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray

from snippets.optimization import decide
from snippets.optimization.decide import (
    CHANGES,
    Costs,
    Pipeline,
    Recommendation,
    Recorder,
    Run,
    apply,
    execute,
    recommend,
    seconds,
)

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

COSTS = Costs(load_s=0.01, pass_s=0.001, item_s=0.002, decode_s=0.0005)
HEALTHY = Run(
    rows=64,
    batch_size=8,
    blocks=8,
    seen=64,
    calls=8,
    loads=1,
    workers=1,
    at_work=1,
    decode_tasks=2,
    row_bytes=200,
    needed_bytes=200,
    cpus=5,
    worker_cpus=0.1,
    task_cpus=1,
)


# What a run should take


def test_the_slower_of_two_stages_or_their_sum_where_the_same_workers_do_both() -> None:
    costs = Costs(load_s=3, pass_s=1, item_s=0.5, decode_s=0.25, store_s=0.01)
    model = 1 * 3 + 8 * (1 + 8 * 0.5) + 64 * 200 * 0.01
    assert seconds(HEALTHY, costs) == model
    assert seconds(HEALTHY, replace(costs, decode_s=10)) == 64 * 10 / 2
    assert seconds(replace(HEALTHY, decode_tasks=None), costs) == model + 64 * 0.25
    assert seconds(replace(HEALTHY, workers=2, at_work=2), costs) == 3 + (model - 3) / 2


def test_a_pool_loads_at_the_same_time_and_calls_load_again() -> None:
    slow, passes = replace(COSTS, load_s=10.0), 8 * 0.017
    idle = replace(HEALTHY, workers=2, loads=2, blocks=1)
    assert seconds(idle, slow) == pytest.approx(10 + passes)
    assert recommend(idle, slow).change != "more_blocks"  # which halves the passes, and they are a hundredth
    in_calls = replace(HEALTHY, workers=2, at_work=2, loads=8)
    assert seconds(in_calls, slow) == pytest.approx((8 * 10 + passes) / 2)


def test_a_partial_batch_costs_as_much_as_a_whole_one() -> None:
    assert seconds(replace(HEALTHY, calls=16), COSTS) - 0.01 == pytest.approx(2 * (seconds(HEALTHY, COSTS) - 0.01))


def test_what_cannot_be_scheduled_never_ends() -> None:
    assert seconds(replace(HEALTHY, workers=5, worker_cpus=1), COSTS) == math.inf
    assert seconds(replace(HEALTHY, workers=4, worker_cpus=1), COSTS) < math.inf


# What is recommended


def test_a_healthy_run_is_left_alone_and_the_slower_stage_named() -> None:
    found = recommend(HEALTHY, COSTS)
    assert (found.change, found.expected) == ("faster_model", HEALTHY)
    now, decode_alone = 0.01 + 8 * 0.017, 64 * 0.0005 / 2
    assert found.gain == pytest.approx(now / decode_alone)
    all_cores = replace(HEALTHY, decode_tasks=4)
    found = recommend(all_cores, replace(COSTS, decode_s=0.02))
    assert found.change == "cheaper_decode"
    assert found.gain == pytest.approx(64 * 0.02 / 4 / now)
    balanced = replace(COSTS, decode_s=now * 4 / 64)
    assert recommend(all_cores, balanced).change == "add_hardware"


def test_of_several_faults_the_one_that_costs_most_comes_first() -> None:
    both = replace(HEALTHY, loads=8, seen=128, calls=16)  # run twice, and a load for every second batch
    assert recommend(both, replace(COSTS, load_s=0.01)).change == "run_once"
    assert recommend(both, replace(COSTS, load_s=9.0)).change == "load_once"


def test_what_gains_too_little_is_not_recommended() -> None:
    assert recommend(replace(HEALTHY, loads=2), COSTS).change == "faster_model"
    assert recommend(replace(HEALTHY, loads=4), COSTS).change == "load_once"


def test_no_change_makes_a_healthy_run_slower_by_its_own_account() -> None:
    for change in CHANGES:
        assert seconds(change(HEALTHY, COSTS), COSTS) <= seconds(HEALTHY, COSTS)


def test_nothing_is_decided_from_nothing() -> None:
    with pytest.raises(ValueError, match=r"^A run that has seen no row has nothing to decide from"):
        recommend(replace(HEALTHY, seen=0, calls=0), COSTS)


@pytest.mark.parametrize(
    ("cpus", "task_cpus", "workers", "worker_cpus", "expected"),
    [(5, 1, 1, 5, (1, 4)), (5, 2, 2, 2, (1, 2)), (0.3, 0, 4, 0.1, (3, 0.1)), (2, 2, 2, 1, (1, 0))],
)
def test_a_pool_that_leaves_no_cpu_keeps_at_least_one_worker(
    cpus: float, task_cpus: float, workers: int, worker_cpus: float, expected: tuple[int, float]
) -> None:
    stuck = replace(HEALTHY, cpus=cpus, task_cpus=task_cpus, workers=workers, worker_cpus=worker_cpus, at_work=0)
    found = recommend(replace(stuck, seen=0, calls=0, loads=0), COSTS)
    assert (found.change, found.gain) == ("leave_a_cpu", math.inf)
    assert (found.expected.workers, found.expected.worker_cpus) == expected
    assert seconds(found.expected, COSTS) < math.inf
    cured = apply(Pipeline(workers=workers, worker_cpus=worker_cpus), found)
    assert (cured.workers, cured.worker_cpus) == expected


def test_a_task_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^A decode task reserves 6 CPUs, and there are 5\.$"):
        recommend(replace(HEALTHY, task_cpus=6), COSTS)


# Each fault in a pipeline that runs


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)
    shared_recorder.cache_clear()


@cache
def shared_recorder() -> Any:
    """Of a process for each run, a second would be spent on starting it."""
    return ray.remote(num_cpus=0)(Recorder).remote()


def cure(
    sick: Pipeline, costs: Costs = COSTS, load: Any = None, **gate: Any
) -> tuple[Run, Recommendation, Run, Recommendation]:
    """Run a pipeline, apply what is recommended, and run it again."""
    recorder = shared_recorder()
    before = execute(sick, costs, load, recorder)
    found = recommend(before, costs)
    after = execute(replace(apply(sick, found), **gate), costs, load, recorder)
    return before, found, after, recommend(after, costs)


def test_a_result_that_is_computed_at_each_look_is_kept(connected: RayCluster) -> None:
    before, found, after, then = cure(Pipeline(looks=2))
    assert (before.seen, found.change) == (2 * 64, "run_once")
    assert found.gain == pytest.approx(2)
    assert (after.seen, after.loads, after.calls) == (64, 1, found.expected.calls)
    assert then.change == "faster_model"


def test_a_checkpoint_that_is_loaded_in_each_call_is_loaded_once_a_worker(
    connected: RayCluster, sample_set: Samples
) -> None:
    model = str(sample_set.model)

    def load() -> Any:
        import torch
        from transformers import AutoModelForImageClassification

        network = AutoModelForImageClassification.from_pretrained(model).eval()
        pixels = torch.zeros(1, 3, 32, 32)
        return lambda batch: network(pixels).logits.shape

    costs = Costs(load_s=0.5, pass_s=0.01, item_s=0.01)
    before, found, after, then = cure(Pipeline(rows=8, blocks=1, batch_size=2, load_in_call=True), costs, load)
    assert (before.loads, before.calls, found.change) == (4, 4, "load_once")
    assert found.gain == pytest.approx((4 * 0.5 + 4 * 0.03) / (0.5 + 4 * 0.03))
    assert (after.loads, after.calls, after.seen) == (1, 4, 8)
    assert then.change == "faster_model"


def test_fewer_batches_than_workers_become_more(connected: RayCluster) -> None:
    before, found, after, then = cure(Pipeline(batch_size=64, workers=2), meet=2)
    assert (before.calls, before.at_work, found.change) == (1, 1, "smaller_batches")
    assert (after.batch_size, after.calls, after.at_work) == (8, 8, 2)
    assert then.change == "faster_model"


def test_one_block_for_two_workers_becomes_four_for_each(connected: RayCluster) -> None:
    before, found, after, then = cure(Pipeline(blocks=1, workers=2), meet=2)
    assert (before.blocks, before.calls, before.at_work, found.change) == (1, 8, 1, "more_blocks")
    assert found.gain == pytest.approx((0.01 + 8 * 0.017) / (0.01 + 8 * 0.017 / 2))
    assert (after.blocks, after.calls, after.at_work) == (8, 8, 2)
    assert then.change == "faster_model"


def test_blocks_that_end_in_the_middle_of_a_batch_are_cut_elsewhere(connected: RayCluster) -> None:
    before, found, after, then = cure(Pipeline(rows=72, batch_size=6))
    assert (before.calls, found.change) == (16, "whole_batches")  # 6 and 3 of each 9
    assert (after.calls, after.blocks) == (12, 6)
    assert then.change == "faster_model"


def test_batches_of_which_the_fixed_part_weighs_most_become_larger(connected: RayCluster) -> None:
    costs = Costs(load_s=0.01, pass_s=0.02, item_s=0.001)
    before, found, after, then = cure(Pipeline(batch_size=2), costs)
    assert (before.calls, found.change) == (32, "larger_batches")
    assert (after.batch_size, after.calls) == (16, 4)
    assert found.gain == pytest.approx((0.01 + 32 * 0.022) / (0.01 + 4 * 0.036))
    assert then.change == "faster_model"


def test_decoding_that_is_fused_into_the_worker_gets_tasks_of_its_own(connected: RayCluster) -> None:
    costs = replace(COSTS, decode_s=0.002)
    before, found, after, then = cure(Pipeline(decode_tasks=None), costs, meet_decoding=2)
    assert (before.decode_tasks, found.change) == (None, "decode_apart")
    assert after.decode_tasks is not None
    assert 2 <= after.decode_tasks <= 4
    assert then.change == "faster_model"


def test_decoding_one_block_at_a_time_beside_free_cpus_gets_more_tasks(connected: RayCluster) -> None:
    costs = replace(COSTS, decode_s=0.006)
    before, found, after, _ = cure(Pipeline(decode_tasks=1), costs, meet_decoding=2)
    assert (before.decode_tasks, found.change, found.expected.decode_tasks) == (1, "more_decode_tasks", 4)
    assert after.decode_tasks is not None
    assert 2 <= after.decode_tasks <= 4


def test_decoding_that_has_all_the_cpus_left_must_become_cheaper(connected: RayCluster) -> None:
    sick = Pipeline(workers=2, worker_cpus=2, decode_tasks=1)  # one CPU is left
    slow = replace(COSTS, decode_s=0.02)
    run = execute(sick, slow, recorder=shared_recorder())
    assert (run.decode_tasks, run.seen) == (1, 64)
    assert recommend(run, slow).change == "cheaper_decode"
    cheap = replace(COSTS, decode_s=0.0001)
    assert recommend(execute(sick, cheap, recorder=shared_recorder()), cheap).change == "faster_model"


def test_a_decode_task_needs_a_block_of_its_own() -> None:
    few = replace(HEALTHY, blocks=2, decode_tasks=1)
    found = recommend(few, replace(COSTS, decode_s=1))
    assert (found.change, found.expected.decode_tasks, found.expected.blocks) == ("more_decode_tasks", 4, 4)


def test_floats_across_the_object_store_become_bytes(connected: RayCluster) -> None:
    costs = replace(COSTS, store_s=1e-5)
    before, found, after, then = cure(Pipeline(dtype="float32"), costs)
    assert (before.row_bytes, found.change) == (8 + 4 * 192, "send_bytes")
    assert after.row_bytes == after.needed_bytes == 200
    assert then.change == "faster_model"


def test_a_pool_that_holds_every_cpu_is_made_smaller(connected: RayCluster) -> None:
    sick = Pipeline(workers=2, worker_cpus=2, task_cpus=2, decode_tasks=1, no_progress_timeout_s=3)
    before = execute(sick, COSTS, recorder=shared_recorder())
    found = recommend(before, COSTS)
    assert (before.seen, found.change, found.gain) == (0, "leave_a_cpu", math.inf)
    after = execute(replace(apply(sick, found), no_progress_timeout_s=120), COSTS, recorder=shared_recorder())
    assert (after.workers, after.seen, after.loads) == (1, 64, 1)
    assert recommend(after, COSTS).change != "leave_a_cpu"


def test_every_change_has_its_fault_above() -> None:
    above = re.findall(r'assert \(before\..*found\.change.*"(\w+)"', Path(__file__).read_text())
    assert sorted(change.__name__ for change in CHANGES) == sorted(above)


# The command


def given(tmp_path: Path, run: dict[str, Any], costs: dict[str, Any]) -> str:
    (tmp_path / "run.json").write_text(json.dumps({"run": run, "costs": costs}))
    return str(tmp_path / "run.json")


def test_the_command_recommends_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = given(tmp_path, vars(replace(HEALTHY, workers=2, blocks=1)), vars(COSTS))
    assert decide.main([path]) == 0
    assert capsys.readouterr().out.startswith("more_blocks: Workers got nothing")
    assert decide.main([path, "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["change"], reported["expected"]["blocks"]) == ("more_blocks", 8)
    assert reported["gain"] == pytest.approx((0.01 + 8 * 0.017) / (0.01 + 8 * 0.017 / 2))
    path = given(tmp_path, vars(replace(HEALTHY, worker_cpus=5)), vars(COSTS))
    assert decide.main([path, "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["change"], reported["gain"], reported["expected"]["workers"]) == ("leave_a_cpu", None, 1)


@pytest.mark.parametrize(
    ("run", "costs", "sentence"),
    [
        ({"rows": 1}, vars(COSTS), "does not hold the counts and costs of a run: .* missing"),
        (vars(HEALTHY) | {"rows": "many"}, vars(COSTS), "rows must be a number that is not negative, not 'many'"),
        (vars(HEALTHY), vars(COSTS) | {"load_s": -1}, "load_s must be a number that is not negative, not -1"),
        (vars(HEALTHY) | {"seen": 0}, vars(COSTS), "has seen no row"),
        (vars(HEALTHY) | {"batch_size": 0}, vars(COSTS), "batch_size must be at least 1, not 0"),
        (vars(HEALTHY), vars(COSTS) | {"item_s": 0}, "item_s must be more than 0, not 0"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Any, costs: Any, sentence: str
) -> None:
    assert decide.main([given(tmp_path, run, costs)]) == 2
    said = capsys.readouterr().err
    assert re.search(sentence, said)
    assert said.count("\n") == 1


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert decide.main(["nowhere.json"]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_what_comes_late_from_an_earlier_run_is_not_counted() -> None:
    recorder = Recorder()
    first, second = recorder.begin(), recorder.begin()
    recorder.tell(first, "load")
    for event in (("load",), ("decode", 1), ("decode", 1), ("decode", -1), ("decode", 1), ("call", "a", 4, 80)):
        recorder.tell(second, *event)
    assert recorder.counts() == {
        "seen": 4,
        "calls": 1,
        "loads": 1,
        "at_work": 1,
        "row_bytes": 20,
        "decoded_blocks": 3,
        "decode_tasks": 2,
    }
