"""The fusion table is what the installed Ray plans and runs, and says which of its rows an upgrade changed."""

import inspect
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.data._internal.logical.rules import operator_fusion
from ray.data._internal.logical.rules.operator_fusion import FuseOperators

from snippets.architecture import plans
from snippets.architecture.plans import (
    Pair,
    chains,
    changed_pairs,
    draw_and_look,
    evaluator,
    executed_operators,
    fusion_pairs,
    fusion_table,
    main,
    passed_on,
    planned_operators,
)
from snippets.reference.generated import FOLDER
from tests.ray_cluster import RayCluster

COMMITTED = (FOLDER / "fusion.md").read_text("utf-8") if (FOLDER / "fusion.md").is_file() else ""


@pytest.fixture(autouse=True)
def _driver(connected: RayCluster) -> None:
    """Be connected to the cluster, with two logical GPUs."""


@pytest.fixture(scope="module")
def planned() -> list[Pair]:
    """The table's rows, as the installed Ray plans them."""
    return []


@pytest.fixture
def pairs(planned: list[Pair]) -> list[Pair]:
    """The same, planned once."""
    planned.extend([] if planned else fusion_pairs())
    return planned


def test_no_row_of_the_committed_table_changed(pairs: list[Pair]) -> None:
    assert changed_pairs(COMMITTED, fusion_table(pairs)) == []
    assert fusion_table(pairs) == COMMITTED  # the version and the rules too


def test_there_are_pairs_of_every_kind(pairs: list[Pair]) -> None:
    assert len({pair.code for pair in pairs}) == len(pairs) >= 15
    assert {pair.rule for pair in pairs} == {*plans.RULES}
    for word in ("map(", "filter(", "read_parquet(", "num_gpus", "num_cpus", "limit(", "write_parquet(", "pool"):
        assert any(word in pair.code for pair in pairs), word


def test_a_pair_is_one_operator_exactly_where_no_rule_parts_it(pairs: list[Pair]) -> None:
    assert [pair.code for pair in pairs if pair.fused != (pair.rule in ("fits", "sort"))] == []


def test_the_planned_operators_are_those_that_run(pairs: list[Pair]) -> None:
    with evaluator() as evaluate, ThreadPoolExecutor(2) as pool:  # while one waits for its actors, another runs
        codes = [code for _, code in chains() if "write_parquet" not in code]  # planned and run in one call
        datasets = [evaluate(code) for code in codes]
        executed = pool.map(lambda dataset: executed_operators(dataset.materialize()), datasets)
        for code, dataset, ran in zip(codes, datasets, executed, strict=True):
            expected = planned_operators(dataset)
            assert ran[-len(expected) :] == expected, code  # before them: what had run already


@pytest.fixture
def _rows_are_ignored(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray without the third rule, and of the table the rows that it decides."""

    def may_fuse(rule: type[FuseOperators], up: object, down: object) -> bool:
        return rule._fuse_compute_strategy(up.compute, down.compute) is not None  # type: ignore[attr-defined]

    monkeypatch.setattr(FuseOperators, "_can_fuse_map_ops", classmethod(may_fuse))
    decided = [line for line in plans.CHAINS.splitlines() if line.startswith("rows ")]
    monkeypatch.setattr(plans, "CHAINS", "\n".join(decided))
    yield


@pytest.mark.usefixtures("_rows_are_ignored")
def test_a_ray_with_another_rule_changes_the_rows_that_it_decided(pairs: list[Pair]) -> None:
    ruled = [pair for pair in pairs if pair.rule == "rows"]
    changed = changed_pairs(fusion_table(ruled), fusion_table(fusion_pairs()))
    assert len(changed) == len(ruled) > 0
    assert (
        "`rows.map_batches(by_batch, batch_size=16)`: `ReadRange`, then `MapBatches(by_batch)` became "
        in "".join(changed)
    )


def test_there_are_four_plans_and_nothing_runs() -> None:
    def fail(batch: object) -> object:
        raise AssertionError("executed")

    dataset = ray.data.range(8, override_num_blocks=2).map_batches(fail, batch_size=4)
    found = plans.plans(dataset)
    assert [*found] == [
        "Logical Plan",
        "Logical Plan (Optimized)",
        "Physical Plan",
        "Physical Plan (Optimized)",
    ]
    assert all(found.values())
    assert dataset.stats() == ""


def test_decoding_and_a_model_are_parted_by_a_gpu_or_by_their_cpus() -> None:
    drawn = ray.data.range(8, override_num_blocks=2).map_batches(plans.draw)
    options = {"compute": ray.data.ActorPoolStrategy(size=1), "batch_size": 4}
    assert planned_operators(drawn.map_batches(plans.Look, **options)) == [
        "ReadRange",
        "MapBatches(draw)->MapBatches(Look)",
    ]
    for different in ({"num_gpus": 1}, {"num_gpus": 1, "num_cpus": 0}, {"num_cpus": 0.5}):
        assert planned_operators(drawn.map_batches(plans.Look, **options, **different)) == [
            "ReadRange->MapBatches(draw)",
            "MapBatches(Look)",
        ]


def test_rows_that_come_and_go_are_named() -> None:
    old = fusion_table([Pair("a", "fits", ("x->y",)), Pair("b", "fits", ("x->y",))])
    new = fusion_table([Pair("b", "fits", ("x", "y")), Pair("c", "kind", ("x",))])
    assert changed_pairs(old, new) == [
        "`a`: `x->y` became not there",
        "`b`: `x->y` became `x`, then `y`",
        "`c`: not there became `x`",
    ]


def test_the_rule_stands_where_the_page_says() -> None:
    for name in (
        "apply",
        "_can_fuse",
        "_can_fuse_map_into_shuffle_reduce",
        "_can_fuse_map_ops",
        "_fuse_compute_strategy",
        "_can_merge_target_max_block_size",
    ):
        assert callable(getattr(FuseOperators, name))
    passes = re.findall(r"self\.(_fuse_\w+)\(", inspect.getsource(FuseOperators.apply))
    assert len(passes) == 4, passes
    assert callable(operator_fusion.are_op_remote_args_compatible)


def test_fused_images_do_not_pass_the_object_store_and_one_process_does_both() -> None:
    fused, apart = draw_and_look(look_cpus=1).materialize(), draw_and_look(look_cpus=0.5).materialize()
    assert [name for name, _, _ in passed_on(fused)] == ["ReadRange", "MapBatches(draw)->MapBatches(Look)"]
    assert [name for name, _, _ in passed_on(apart)] == ["ReadRange->MapBatches(draw)", "MapBatches(Look)"]
    images = 64 * 64 * 64 * 3
    assert sum(size for _, _, size in passed_on(fused)) < images / 100
    assert passed_on(apart)[0][2] >= images
    rows = fused.take_all()
    assert len(rows) == 64
    assert len({row["drawn_by"] for row in rows} | {row["seen_by"] for row in rows}) == 1
    rows = apart.take_all()
    assert not {row["drawn_by"] for row in rows} & {row["seen_by"] for row in rows}


def test_a_materialized_dataset_and_a_limit_part_what_would_fuse() -> None:
    rows = ray.data.range(8, override_num_blocks=2)
    assert planned_operators(rows.map(plans.by_row).map_batches(plans.by_batch)) == [
        "ReadRange->Map(by_row)->MapBatches(by_batch)"
    ]
    parted = rows.map(plans.by_row).materialize().map_batches(plans.by_batch)
    assert planned_operators(parted) == ["MapBatches(by_batch)"]
    limited = rows.map_batches(plans.by_batch).limit(4).map_batches(plans.by_batch)
    assert planned_operators(limited) == ["ReadRange->MapBatches(by_batch)", "limit=4", "MapBatches(by_batch)"]


def test_behind_a_sort_a_size_or_a_limit_parts_what_would_fuse() -> None:
    ordered = ray.data.range(8, override_num_blocks=2).sort("id")
    assert planned_operators(ordered.map_batches(plans.by_batch))[-1].endswith("->MapBatches(by_batch)")
    sized = ordered.map_batches(plans.by_batch, compute=ray.data.TaskPoolStrategy(size=1))
    assert planned_operators(sized)[-1] == "MapBatches(by_batch)"
    limited = ordered.map_batches(plans.by_batch).limit(4)
    assert planned_operators(limited)[-2:] == ["MapBatches(by_batch)", "limit=4"]
    in_actors = ordered.map_batches(plans.Model, compute=ray.data.ActorPoolStrategy(size=1))
    assert planned_operators(in_actors)[-1] == "MapBatches(Model)"


def test_resources_from_a_function_part_two_steps() -> None:
    rows = ray.data.range(8, override_num_blocks=2).map_batches(plans.by_batch)
    assert planned_operators(rows.map_batches(plans.by_batch, ray_remote_args_fn=dict)) == [
        "ReadRange->MapBatches(by_batch)",
        "MapBatches(by_batch)",
    ]


def test_the_command_prints_the_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--limit", "1"]) == 0
    assert "| `rows.map(by_row)` | yes | fits | `ReadRange->Map(by_row)` |" in capsys.readouterr().out
    assert main(["--limit", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == [
        {"pipeline": "rows.map(by_row)", "fused": True, "operators": ["ReadRange->Map(by_row)"]}
    ]
    with pytest.raises(SystemExit) as exited:
        main(["--limit", "0"])
    assert exited.value.code == 2
    assert "must be a whole number of at least 1, not 0" in capsys.readouterr().err
