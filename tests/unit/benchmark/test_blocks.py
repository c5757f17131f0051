"""Blocks, forms, layouts and plans are run in turn, compared within a round, and shown; each does what it says."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from snippets.architecture.plans import planned_operators
from snippets.benchmark import block_runs, blocks
from snippets.benchmark.block_runs import (
    FORMS,
    KINDS,
    STEPS,
    build_pipeline,
    drop_failed,
    read_layout,
    run_steps,
    write_layouts,
)
from snippets.benchmark.blocks import (
    QUICK,
    RUNS,
    BlockPlan,
    block_numbers,
    block_sections,
    draw_blocks,
    load_blocks,
    measure_blocks,
)
from snippets.fundamentals.actor_pool import load_preprocessing
from snippets.recording import MemorySampler
from tests.unit.benchmark.test_harness import provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

IMAGES = {"decoding": 64, "pipeline": 32, "form": 16, "files": 20, "fusion": 32}


class FakeRuns:
    """Answers as `snippets.benchmark.block_runs` does; stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(request)
        is_pipeline, is_float = request["kind"] == "pipeline", request.get("form") == "float32"
        return {
            "rows": 32,
            "blocks": 2,
            "seconds": 4.0,
            "rows_per_second": 20.0 if request.get("rows_a_block") == 1 or is_float else 80.0,
            "peak_memory_bytes": 2_000_000_000 if is_float else 1_000_000_000,
            "passed_bytes": 8_000_000 if is_float else 2_000_000,
            "actors": 2 if is_pipeline else None,
            "operators": ["MapBatches(decode)"] if is_pipeline else None,
        }


def measured(folder: Path, source: Samples, rounds: int = 2, **arguments: Any) -> tuple[FakeRuns, dict[str, Any]]:
    runs = FakeRuns(**arguments)
    plan = BlockPlan(str(source.images), str(source.model), list(RUNS), IMAGES, rounds, runs)
    return runs, measure_blocks(plan, provenance(), folder / "blocks.json")


def test_the_runs_take_turns_and_are_written(tmp_path: Path, sample_set: Samples) -> None:
    runs, results = measured(tmp_path, sample_set)
    assert [one["order"][0] for one in results["rounds"]] == list(RUNS)[:2]
    assert results["complete"]
    assert load_blocks(tmp_path / "blocks.json") == results
    first = dict(zip(results["rounds"][0]["order"], runs.asked, strict=False))
    assert {name: len(first[name]["source"]) for name in ("decoding-1", "pipeline-1", "form-uint8")} == {
        "decoding-1": 64,
        "pipeline-1": 32,
        "form-uint8": 16,
    }
    sizes = [first[name]["rows_a_block"] for name in RUNS if RUNS[name].kind in ("decoding", "pipeline")]
    assert sizes == [1, 16, 64, 64, 64, 1, 16, 32, 32]  # never more than there are
    assert {first[name]["kind"] for name in RUNS if RUNS[name].kind == "fusion"} == {"pipeline"}


def test_an_interrupt_keeps_the_rounds_before_it(tmp_path: Path, sample_set: Samples) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, sample_set, interrupt_at=len(RUNS) + 1)
    kept = load_blocks(tmp_path / "blocks.json")
    assert (len(kept["rounds"]), kept["complete"]) == (1, False)


def test_the_numbers_compare_within_a_round_and_name_what_is_missing(tmp_path: Path, sample_set: Samples) -> None:
    results = measured(tmp_path, sample_set)[1]
    numbers = block_numbers(results)
    assert (numbers["one-row-rate"], numbers["float32-rate"]) == ("0.25", "0.25")
    assert (numbers["float32-bytes"], numbers["float32-memory"]) == ("4.00", "2.00")
    assert (numbers["files-count"], numbers["decoding-count"]) == ("20", "64")
    for one in results["rounds"]:
        del one["runs"]["form-float32"]
    assert block_numbers(results)["float32-rate"] == "not measured"


def test_each_question_has_a_table_and_each_size_a_bar(tmp_path: Path, sample_set: Samples) -> None:
    results = measured(tmp_path, sample_set)[1]
    sections = block_sections(results)
    rows = {"sizes": 5, "pipeline": 4, "forms": 3, "files": 3, "fusion": 3}
    assert {name: len(sections[name].splitlines()) - 2 for name in rows} == rows
    assert sections["forms"].splitlines()[-1] == "| pixels, float32 | 8 | 20.0 | 2.00 |"
    assert "Medians of 2 rounds" in sections["provenance-line"]
    svg = draw_blocks(results)
    assert svg.count("<rect") == 5
    assert "1 image in a block: 20.0 images/s, 1.00 GB. 16 images in a block: 80.0 images/s" in svg


def drop_rounds(results: dict[str, Any]) -> None:
    results["rounds"] = []


def drop_bytes(results: dict[str, Any]) -> None:
    del results["rounds"][1]["runs"]["form-uint8"]["passed_bytes"]


def rename_run(results: dict[str, Any]) -> None:
    results["rounds"][0]["runs"]["guessed"] = results["rounds"][0]["runs"].pop("form-uint8")


def raise_schema(results: dict[str, Any]) -> None:
    results["schema"] = 99


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (drop_rounds, "has no rounds"),
        (drop_bytes, r"has no rounds\[1\]\.runs\.form-uint8\.passed_bytes"),
        (rename_run, "has runs that there are not: guessed"),
        (raise_schema, "has the schema 99"),
    ],
)
def test_results_that_lack_something_are_refused(
    tmp_path: Path, sample_set: Samples, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    spoil(results := measured(tmp_path, sample_set)[1])
    (tmp_path / "spoilt.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=sentence):
        load_blocks(tmp_path / "spoilt.json")


def test_a_quick_run_writes_nothing_to_publish(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        blocks.main(["--quick"])
    assert "--quick needs --output" in capsys.readouterr().err


def test_images_that_are_not_there_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGES", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="2"):
        blocks.main(["--quick", "--output", str(tmp_path / "out.json")])
    assert "There is no file or folder" in capsys.readouterr().err


def run_here(request: dict[str, Any]) -> dict[str, Any]:
    """Answer in this process, with its cluster."""
    ray.shutdown()
    return KINDS[request.pop("kind")](**request)


def test_the_quick_command_measures_one_run_of_each_kind(
    one_machine: RayCluster, sample_set: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES", str(sample_set.images))
    monkeypatch.setenv("MODEL", str(sample_set.model))
    monkeypatch.setattr(BlockPlan.__init__, "__defaults__", (run_here,))
    assert blocks.main(["--quick", "--output", str(tmp_path / "out.json")]) == 0
    [one] = load_blocks(tmp_path / "out.json")["rounds"]
    runs = one["runs"]
    assert list(runs) == list(QUICK)
    pixels = 16 * 224 * 224 * 3
    assert runs["decoding-1"]["blocks"] == 16
    assert pixels < runs["decoding-1"]["passed_bytes"] < 1.02 * pixels
    assert pixels < runs["form-uint8"]["passed_bytes"] < 1.02 * pixels
    assert runs["files-tar"]["rows"] == 40
    assert runs["pipeline-all"]["actors"] == 1  # of one block
    assert pixels < runs["pipeline-all"]["passed_bytes"] < 1.02 * pixels
    assert len(runs["pipeline-all"]["operators"]) == 2
    assert all(run["rows"] == 16 for name, run in runs.items() if name != "files-tar")


def test_the_plans_differ_by_what_is_fused(
    connected: RayCluster, sample_set: Samples, spread_images: list[str]
) -> None:
    def operators(plan: str) -> list[str]:
        return planned_operators(build_pipeline(spread_images[:8], str(sample_set.model), 4, plan)[0])

    decode, drop, model = (f"MapBatches({name})" for name in ("decode", "drop_failed", "Classifier"))
    assert operators("course") == [decode, model]
    assert operators("parted") == [decode, drop, model]
    assert operators("cheap") == [f"{decode}->{drop}", model]
    assert operators("all") == [f"{decode}->{drop}->{model}"]


def test_only_rows_without_an_error_are_kept() -> None:
    batch = {"id": np.array(["a", "b", "c"]), "error": np.array(["", "OSError", ""]), "image": np.arange(3)}
    assert {name: column.tolist() for name, column in drop_failed(batch).items()} == {
        "id": ["a", "c"],
        "error": ["", ""],
        "image": [0, 2],
    }


def test_every_layout_has_the_same_bytes(
    connected: RayCluster, spread_images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layouts(tmp_path, spread_images[:5], files=12, shards=3)
    sampler = MemorySampler([psutil.Process()], with_children=False)
    monkeypatch.setattr(block_runs, "started", lambda: nullcontext(sampler))  # the cluster that is there
    found = {layout: read_layout(str(tmp_path), layout) for layout in ("small", "parquet", "tar")}
    assert {answer["rows"] for answer in found.values()} == {12}
    assert len({answer["passed_bytes"] for answer in found.values()}) == 1
    assert found["tar"]["blocks"] % 3 == 0  # Ray may cut what a file gives, to have work for all CPUs
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "parquet").iterdir()) == 12


def test_every_form_is_the_same_work_cut_elsewhere(sample_set: Samples, spread_images: list[str]) -> None:
    settings = {"filesystem": fs.LocalFileSystem(), "to": load_preprocessing(str(sample_set.model))}
    batch = {"id": np.array(spread_images[:2])}
    means = []
    for form, cut in FORMS.items():
        passed = run_steps(batch, 0, cut, **settings)
        [column] = passed.values()
        assert (isinstance(column[0], bytes) and form == "encoded") or str(column.dtype) == form
        means.append(run_steps(passed, cut, len(STEPS), **settings)["mean"].tolist())
    assert means[0] == means[1] == means[2]


def test_the_published_pools_had_as_many_actors_at_work_as_the_page_says() -> None:
    results = load_blocks()
    assert results["complete"] and not results["provenance"]["uncommitted_changes"]
    for one in results["rounds"]:
        at_work = {name: one["runs"][f"pipeline-{name}"]["actors"] for name in ("1", "16", "48", "all")}
        assert at_work == {"1": 1, "16": 2, "48": 1, "all": 1}


def test_the_published_blocks_of_256_images_were_the_fastest() -> None:
    for one in load_blocks()["rounds"]:
        rates = {name: run["rows_per_second"] for name, run in one["runs"].items() if name.startswith("decoding-")}
        assert max(rates, key=rates.__getitem__) == "decoding-256"
