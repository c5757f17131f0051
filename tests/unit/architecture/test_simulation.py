"""The simulation keeps to the formulas where only one thing limits, follows a seed, and refuses what cannot be."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snippets.architecture import calculator, running, simulation
from snippets.architecture.simulation import (
    ASSUMPTIONS,
    CALIBRATED,
    DEFAULTS,
    DESIGNS,
    Answer,
    Cluster,
    Machine,
    accept,
    answer,
    build,
    design,
    efficiency,
    load_calibration,
    simulate,
    stops_at,
    sweep,
)

CALIBRATION = {"driver_task_s": 0.001, "handover_s": 0.0}
FREE = {"driver_task_s": 0.0, "handover_s": 0.0}
EVEN = {"spread": 0.0, "slow_nodes": 0.0, "start_up_s": 0.0, "listed": 0.0}


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 400), st.floats(0.01, 10))
def test_a_run_takes_its_work_and_at_most_the_tail(nodes: int, blocks: int, forward_s: float) -> None:
    found = simulate(Cluster([Machine(forward_s)] * nodes, driver_s=0), blocks)
    assert found.blocks == blocks
    assert found.seconds >= blocks * forward_s / nodes * (1 - 1e-9)
    bound = running.run_seconds(blocks, nodes / forward_s, tail_s=running.tail_seconds(nodes, 1, 1 / forward_s))
    assert found.seconds <= bound * (1 + 1e-9)


@pytest.mark.parametrize("nodes", [1, 5, 40])
def test_a_driver_hands_out_one_block_after_the_other(nodes: int) -> None:
    found = simulate(Cluster([Machine(0.2)] * nodes, driver_s=0.01), 4000)
    assert found.seconds == pytest.approx(4000 * max(0.2 / nodes, 0.01), rel=0.02)
    assert found.busy_s["driver"] == pytest.approx(40)


def test_two_jobs_have_two_drivers() -> None:
    one, two = (simulate(Cluster([Machine(0.1)] * 40, driver_s=0.02, jobs=jobs), 4000) for jobs in (1, 2))
    assert (one.blocks, two.blocks) == (4000, 4000)
    assert one.seconds / two.seconds == pytest.approx(2, rel=0.02)


def test_a_node_is_as_fast_as_the_slower_of_fetching_and_its_model() -> None:
    for fetch_s, forward_s in ((0.1, 0.3), (0.3, 0.1), (0.2, 0.2)):
        found = simulate(Cluster([Machine(forward_s, fetch_s)] * 3, driver_s=0, in_flight=4), 3000)
        assert found.seconds == pytest.approx(1000 * max(fetch_s, forward_s), rel=0.03)


def test_a_slow_node_takes_fewer_blocks() -> None:
    uneven = Cluster([Machine(0.1), Machine(0.1), Machine(0.2)], driver_s=0)
    assert simulate(uneven, 2500).seconds == pytest.approx(2500 / (10 + 10 + 5), rel=0.01)


def test_taking_several_blocks_at_a_time_changes_nothing_but_the_count_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clusters = [
        Cluster([Machine(0.2, 0.15)] * 6, driver_s=0.03, storage_s=0.01, in_flight=4),
        Cluster([Machine(0.2, 0.15)] * 6, driver_s=0.04, storage_s=0.01, in_flight=4),
        Cluster([Machine(0.2, 0.3)] * 6, driver_s=0.01, spread=0.5, in_flight=4),
    ]
    several = [simulate(cluster, 3000).seconds for cluster in clusters]
    monkeypatch.setattr(simulation, "PIECES", 10**9)  # so that each takes one
    single = [simulate(cluster, 3000).seconds for cluster in clusters]
    assert several == pytest.approx(single, rel=0.03)


def test_nodes_that_join_and_go_leave_no_block_undone() -> None:
    stays, joins, goes = Machine(1.0), Machine(1.0, joins_s=50), Machine(1.0, leaves_s=20.5)
    found = simulate(Cluster([stays, joins, goes], driver_s=0), 200)
    assert found.blocks == 200
    # 20 blocks of the one that goes, 50 of the one that stays alone, and then two at a time.
    assert found.seconds == pytest.approx(50 + (200 - 50 - 20) / 2, abs=3)


def test_without_a_node_the_run_cannot_end() -> None:
    with pytest.raises(RuntimeError, match="8 blocks are left, and no node"):
        simulate(Cluster([Machine(1.0, leaves_s=2.5)], driver_s=0), 10)


@pytest.mark.parametrize(("forward_s", "an_hour", "recovery_s"), [(60, 1, 0), (300, 2, 120), (5, 1, 600)])
def test_preemptions_cost_what_the_formula_says(forward_s: float, an_hour: float, recovery_s: float) -> None:
    cluster = Cluster([Machine(forward_s)] * 20, driver_s=0, preemptions=an_hour, recovery_s=recovery_s)
    blocks = int(20 * 400 * 3600 / forward_s)  # 400 hours of each
    found = simulate(cluster, blocks)
    share = blocks * forward_s / 20 / found.seconds
    assert found.preemptions > 20 * 400 * an_hour * 0.9
    assert share == pytest.approx(running.useful_share(forward_s, an_hour, recovery_s), rel=0.02)


def test_the_blocks_of_a_machine_that_is_taken_away_wait_and_those_of_one_that_leaves_do_not() -> None:
    taken = Cluster([Machine(1.0)] * 2, driver_s=0, preemptions=360, recovery_s=300)  # each 10 s on average
    runs = [simulate(taken, 4, seed) for seed in range(50)]
    assert {run.preemptions > 0 for run in runs} == {True, False}
    assert all((run.seconds > 300) == (run.preemptions > 0) for run in runs)
    leaves = Cluster([Machine(1.0), Machine(1.0, leaves_s=0.5)], driver_s=0, recovery_s=300)
    assert simulate(leaves, 4).seconds < 10


def test_a_seed_gives_the_same_answer_and_another_seed_another() -> None:
    cluster = Cluster([Machine(1.0)] * 4, driver_s=0, spread=0.3)
    first, again, other = (simulate(cluster, 200, seed).seconds for seed in (1, 1, 2))
    assert first == again != other


def test_storage_limits_what_all_nodes_together_read() -> None:
    changes = {**EVEN, "images": 1e7, "cpus": 64, "network_gbit": 1000}
    found = answer(64, changes, FREE)
    assert found.limit == "storage"
    promised = DEFAULTS["prefixes"] * running.GETS_A_PREFIX
    assert 1e7 / found.seconds == pytest.approx(promised, rel=0.01)
    assert running.count_prefixes(1e7 / found.seconds - 1000) == DEFAULTS["prefixes"]


def test_the_network_limits_a_node() -> None:
    changes = {**EVEN, "images": 1e6, "network_gbit": 0.5, "cpus": 64, "prefixes": 1000}
    found = answer(4, changes, FREE)
    assert 1e6 / found.seconds / 4 == pytest.approx(running.network_rate(0.5e9 / 8, 110e3), rel=0.02)


def test_listing_takes_as_long_on_any_number_of_nodes() -> None:
    changes = {**EVEN, "images": 1e7}
    for nodes in (1, 16):
        with_it, without = (answer(nodes, {**changes, "listed": listed}, FREE).seconds for listed in (1, 0))
        assert with_it - without == pytest.approx(1e7 / 1000 * 0.15)


def test_what_a_node_costs_is_what_it_is_made_of() -> None:
    four, sixteen = (DEFAULTS["gpu_price"] + cpus * DEFAULTS["cpu_price"] for cpus in (4, 16))
    assert [four, sixteen] == pytest.approx([0.8048, 1.3232], rel=1e-3)
    found = answer(2, {**EVEN, "images": 1e6}, FREE)
    assert found.cost == pytest.approx(2 * found.seconds / 3600 * 0.8048, rel=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "nodes", "limit"),
    [
        ("files, listed by the driver", "a manifest", 8, "listing"),
        ("a manifest", "larger blocks", 32, "driver"),
        ("larger blocks", "shards", 80, "storage"),
        ("shards", "several jobs", 160, "driver"),
    ],
)
def test_each_design_scales_where_the_one_before_does_not(
    before: str, after: str, nodes: int, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "PIECES", 16)
    measured = {"driver_task_s": 0.002, "handover_s": 0.0}
    common = {**EVEN, "listed": 1, "images": 1e7}

    def run(name: str, nodes: int) -> Answer:
        return answer(nodes, {**common, **design(name), "jobs": min(nodes, design(name).get("jobs", 1))}, measured)

    assert efficiency(run(before, nodes), run(before, 1)) < 0.9
    assert efficiency(run(after, nodes), run(after, 1)) > 0.9
    if limit != "listing":  # which takes its time and nothing else, so that the nodes are busier
        assert run(before, nodes).limit == limit


def test_a_sweep_doubles_the_nodes_from_as_many_as_there_are_jobs() -> None:
    answers = sweep({**EVEN, "images": 1e5, "jobs": 2}, CALIBRATION, most=8)
    assert [each.nodes for each in answers] == [2, 4, 8]


def test_larger_blocks_are_fewer_tasks_of_the_driver() -> None:
    changes = {**EVEN, "images": 5e6, "images_a_get": 1000}
    limited = [
        answer(64, {**changes, "batches_a_block": batches}, {**FREE, "driver_task_s": 0.002}) for batches in (1, 2)
    ]
    assert [each.limit for each in limited] == ["driver", "driver"]
    assert limited[0].seconds / limited[1].seconds == pytest.approx(2, rel=0.02)


def test_more_cpus_make_a_node_faster_until_the_gpu_limits() -> None:
    four, eight, many = (answer(4, {**EVEN, "images": 1e6, "cpus": cpus}, FREE) for cpus in (4, 8, 64))
    assert [each.limit for each in (four, eight, many)] == ["decode", "forward", "forward"]
    assert four.seconds / eight.seconds == pytest.approx(1.8, rel=0.02)
    assert eight.cost < four.cost < many.cost


def test_one_in_fifty_nodes_is_slow() -> None:
    cluster, _ = build(100, accept({}, CALIBRATION))
    slowest = max(machine.forward_s for machine in cluster.machines)
    assert sum(machine.forward_s == slowest for machine in cluster.machines) == 2
    assert slowest == 2 * min(machine.forward_s for machine in cluster.machines)


def test_the_dip_at_64_nodes_is_the_slow_one() -> None:
    def kept(slow_nodes: float) -> float:
        changes = {**design("several jobs"), "images": 1e8, "slow_nodes": slow_nodes}
        first, found = (answer(nodes, changes, CALIBRATION) for nodes in (16, 64))
        return efficiency(found, first)

    assert kept(slow_nodes=0.02) < 0.9 < kept(slow_nodes=0)


def test_efficiency_is_against_the_smallest_cluster() -> None:
    def found(nodes: int, seconds: float) -> Answer:
        return Answer(nodes, seconds, 0, "forward", 0, {})

    answers = [found(2, 100), found(4, 50), found(8, 40)]
    assert [efficiency(each, answers[0]) for each in answers] == [1, 1, pytest.approx(0.625)]
    assert stops_at(answers) == answers[2]
    assert stops_at(answers[:2]) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decode_s": 1}, "no assumption 'decode_s'"),
        ({"decode_ms": 0}, "decode_ms must be more than 0"),
        ({"images": math.nan}, "images must be a finite number"),
        ({"jobs": 1.5}, "jobs must be a whole number"),
        ({"jobs": 8}, "8 jobs need as many nodes, and there are 4"),
        ({"slow_nodes": 2}, "slow_nodes is a share"),
        ({"listed": 0.5}, "listed is 0 or 1"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        answer(4, changes, CALIBRATION)


def test_what_was_not_measured_is_asked_for() -> None:
    with pytest.raises(ValueError, match="Not measured yet: driver_task_s, handover_s"):
        accept({}, {})
    assert accept(CALIBRATION, {})["driver_task_s"] == 0.001


def test_the_calibration_is_read_from_the_results(tmp_path: Path) -> None:
    (tmp_path / "scaling.json").write_text(json.dumps({"calibration": {**CALIBRATION, "other": 1}}))
    assert load_calibration(tmp_path / "scaling.json") == CALIBRATION
    assert load_calibration(tmp_path / "none.json") == {}


def test_every_assumption_says_what_it_is_and_where_it_is_from() -> None:
    for given_value in ASSUMPTIONS:
        assert set(given_value) == {"name", "value", "unit", "meaning", "source"}, given_value
        assert all(given_value.values()) or given_value["value"] == 0
    assert len(DEFAULTS) == len(ASSUMPTIONS)
    assert DEFAULTS.keys().isdisjoint(CALIBRATED)


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_every_assumption_can_be_set(name: str) -> None:
    other = {"listed": 0.0, "slow_nodes": 0.5, "preemptions": 100.0, "prefixes": 1.0, "batches_a_block": 4.0}
    base = {"images": 2e5, "driver_task_s": 0.01, "preemptions": 10.0, "images_a_get": 10.0, "cpus": 64.0}
    changed = {**base, name: other.get(name, 2 * base.get(name, DEFAULTS[name]))}
    before, after = (answer(4, changes, {"handover_s": 0.0}) for changes in (base, changed))
    assert (before.seconds, before.cost) != (after.seconds, after.cost)


def test_the_assumptions_are_those_of_the_calculator() -> None:
    names = {
        "decode_ms": "decode_ms",
        "image_kb": "encoded_kb",
        "start_up_s": "start_up_s",
        "recovery_s": "recovery_s",
    }
    for ours, theirs in names.items():
        assert DEFAULTS[ours] == calculator.DEFAULTS[theirs]
    assert DEFAULTS["gets_a_prefix"] == running.GETS_A_PREFIX
    small = next(preset for preset in calculator.QUANTITIES["preset"] if preset["name"] == "g6.xlarge")["values"]
    assert (DEFAULTS["cpus"], DEFAULTS["network_gbit"]) == (small["cpus"], small["network_gbit"])


def test_designs_add_up_and_change_what_there_is() -> None:
    names = list(DESIGNS)
    assert design(names[0]) == {}
    assert design(names[-1]) == {name: value for change in DESIGNS.values() for name, value in change.items()}
    assert set(design(names[-1])) <= set(DEFAULTS)
    with pytest.raises(ValueError, match="no design 'magic'"):
        design("magic")


def test_the_command_prints_a_row_for_each_number_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    given_values = ["--set", "images=1e6", "--set", "driver_task_s=0.001", "--set", "handover_s=0"]
    assert simulation.main(["--nodes", "1", "4", "--design", "shards", *given_values, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["nodes"] for row in rows] == [1, 4]
    assert rows[1]["hours"] < rows[0]["hours"]
    assert simulation.main(["--nodes", "2", "--set", "speed=2"]) == 2
    assert "There is no assumption 'speed'" in capsys.readouterr().err


def test_a_change_that_is_no_number_ends_in_a_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snippets.architecture.simulation", "--set", "images=many"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "invalid parse_change value: 'images=many'" in done.stderr
