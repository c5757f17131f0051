"""The rungs take turns beside their limits, each is held against its own bound, and all of it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from snippets.benchmark import ladder
from snippets.benchmark.code_lines import lines_of
from snippets.benchmark.figures import PAGE, draw_ladder
from snippets.benchmark.ladder import (
    LADDER,
    LadderPlan,
    ask_ladder,
    bound_of,
    calibration_beside,
    load_ladder,
    long_ratio,
    measure_ladder,
    package_bytes,
    packages_of,
    rungs_for,
    score_error,
    summarize_ladder,
)
from snippets.benchmark.ladder_runs import ALL_RUNGS, DECODERS
from snippets.benchmark.provenance import ROOT, read_hardware
from snippets.benchmark.tables import (
    gpu_ladder,
    ladder_limits_table,
    ladder_numbers,
    ladder_quality_table,
    ladder_table,
)
from snippets.optimization.engines import ENGINES, build_engine
from snippets.optimization.gpu import DEVICE_ENGINES, GPU_RUNGS
from snippets.optimization.ladder import RUNGS
from tests.unit.benchmark.test_harness import RUN, provenance
from tests.unit.optimization.test_engines import FOLDER

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

NAMES = ["naive", "openvino", "openvino-int8", "cheap-decode"]
RATES: dict[str, list[float | None]] = {
    "naive": [10.0, 20.0],
    "openvino": [20.0, 20.0],
    "openvino-int8": [40.0, 80.0],
    "cheap-decode": [60.0, 80.0],
}
RATES |= {name: [100.0, 100.0] for name in GPU_RUNGS if name != "naive"}
FORWARD = {"eager": 15.0, "openvino-float32": 25.0, "openvino-int8": 100.0}
FORWARD_ON_GPU = {name: 300.0 for name in DEVICE_ENGINES}


class FakeRuns:
    """Answers as `snippets.benchmark.ladder_runs` does, and stops where it is told to."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        kind = request["kind"]
        name = request.get("name", kind)
        if len(self.asked) == self.interrupt_at:
            raise KeyboardInterrupt
        index = sum(before == name for before, _ in self.asked)
        self.asked.append((name, len(request.get("source", ()))))
        if kind == "build":
            return {"seconds": 3.0, "bytes": 100_000_000}
        if kind == "limits":
            return {"cores": 2, "decode": {"full": 0.01, "cheap": 0.005}, "forward": FORWARD | FORWARD_ON_GPU}
        source = request["source"]
        answer: dict[str, Any] = {
            "run": {**RUN, "accuracy": 0.75},
            "labels": dict.fromkeys(source, "cat"),
            "scores": dict.fromkeys(source, 0.5),
        }
        if kind == "rung":
            assert not {*source} & {*request["calibration"]}
            answer["run"]["steady_rows_per_second"] = RATES[name][index % 2]
            if name == "openvino-int8":
                answer["labels"][source[0]], answer["scores"][source[0]] = "dog", 0.25
        return answer


def fake_plan(folder: Path, runs: FakeRuns, quick: bool = True) -> LadderPlan:
    for index in range(24):
        (folder / f"{index:02}.jpg").touch()
    return LadderPlan(str(folder), "model", NAMES, 2, 12, quick=quick, ask=runs)


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    """The results of two rounds of four rungs."""
    return measure_ladder(fake_plan(tmp_path, FakeRuns()), provenance(), tmp_path / "ladder.json")


def test_rungs_and_limits_take_turns_and_the_file_holds_what_was_measured(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    names = [*NAMES, "limits"]
    assert [one["order"] for one in results["rounds"]] == [names, [*names[1:], names[0]]]
    assert results["complete"] and load_ladder(tmp_path / "ladder.json") == results
    assert results["rounds"][0]["agreement"]["openvino-int8"] == {"compared": 12, "equal": 11}
    assert results["rounds"][0]["score_error"]["openvino-int8"] == {"median": 0, "max": 0.25}
    assert results["builds"] == {name: {"seconds": 3.0, "bytes": 100_000_000} for name in ("float32", "int8")}


def test_slow_rungs_get_fewer_images_and_fast_ones_more(tmp_path: Path) -> None:
    runs = FakeRuns()
    plan = fake_plan(tmp_path, runs, quick=False)
    found = measure_ladder(plan, provenance(), tmp_path / "ladder.json", is_long=True)
    assert found["images"] == {"naive": 2, "openvino": 16, "openvino-int8": 48, "cheap-decode": 48}
    first = [("build", 0), ("build", 0), ("reference", 12), ("naive", 12), ("cheap-decode", 12)]
    assert runs.asked[:5] == first
    assert runs.asked[-2:] == [("naive", 2000), ("openvino-int8", 2000)]
    assert found["complete"] and long_ratio(found) == 1


def test_every_other_image_calibrates_where_no_others_are_given(tmp_path: Path) -> None:
    plan = fake_plan(tmp_path, FakeRuns(), quick=False)
    assert [Path(path).stem for path in plan.calibration] == [f"{index:02}" for index in range(1, 24, 2)]
    assert [Path(path).stem for path in plan.paths] == [f"{index:02}" for index in range(0, 24, 2)]
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "x.jpg").touch()
    (tmp_path / "images").mkdir()
    assert calibration_beside(str(tmp_path / "images")) == str(tmp_path / "held_out")
    assert calibration_beside("s3://bucket/images") is None
    other = LadderPlan(
        str(tmp_path), "m", NAMES, 1, 12, ask=FakeRuns(), calibration_source=str(tmp_path / "held_out")
    )
    assert [Path(path).stem for path in other.calibration] == ["x"]


def test_an_interrupt_keeps_the_finished_rounds(tmp_path: Path) -> None:
    output = tmp_path / "ladder.json"
    with pytest.raises(KeyboardInterrupt):
        measure_ladder(fake_plan(tmp_path, FakeRuns(interrupt_at=10)), provenance(), output)
    kept = load_ladder(output)
    assert len(kept["rounds"]) == 1 and kept["complete"] is False


def test_a_rung_is_held_against_its_own_engine_and_decoder(results: dict[str, Any]) -> None:
    summary = summarize_ladder(results)
    bounds = {name: found["bound"]["median"] for name, found in summary.items() if found["bound"]}
    expected = {"naive": 1 / (1 / 15 + 0.005), "openvino": 1 / (1 / 25 + 0.005)}
    expected |= {"openvino-int8": 1 / (1 / 100 + 0.005), "cheap-decode": 1 / (1 / 100 + 0.0025)}
    assert bounds == pytest.approx(expected)
    over = summary["cheap-decode"]["over_bound"]
    assert over and over["values"] == pytest.approx([0.75, 1.0])


def test_a_gain_is_over_the_rung_before_within_a_round(results: dict[str, Any]) -> None:
    summary = summarize_ladder(results)
    assert summary["naive"]["gain"] is None
    found = {name: (summary[name]["gain"], summary[name]["over_naive"]) for name in NAMES[1:]}
    assert {name: [spread and spread["values"] for spread in both] for name, both in found.items()} == {
        "openvino": [[2, 1], [2, 1]],
        "openvino-int8": [[2, 4], [4, 4]],
        "cheap-decode": [[1.5, 1], [6, 4]],
    }


def test_tables_and_numbers_say_the_same_and_what_was_not_measured(results: dict[str, Any]) -> None:
    rows = ladder_table(results).splitlines()[2:]
    assert rows[0] == "| Naive | 15.0 (10.0\u201320.0) | 0.40 |  | 1.00 | 1.07 (0.72\u20131.43) | 5.0 | 0.00 |"
    assert len(rows) == 4
    quality = ladder_quality_table(results).splitlines()[2:]
    code = lines_of("openvino-int8")
    assert (
        quality[2] == f"| OpenVINO, int8 | 91.7 | 0.0000 | 0.2500 | 75.0 | {code} | openvino | onnx, onnxruntime |"
    )
    assert "| decoding on one core, cheap | 200 |" in ladder_limits_table(results)
    numbers = ladder_numbers(results)
    assert {f"{name}-gain" for name in RUNGS} <= set(numbers)
    assert (numbers["openvino-gain"], numbers["openvino-int8-agreement"]) == ("1.50", "91.7")
    assert (numbers["int8-build"], numbers["int8-megabytes"]) == ("3.0", "100")
    assert numbers["kept-gain"] == numbers["long-over-naive"] == "not measured"


def test_the_figure_has_a_bar_and_a_bound_a_rung_in_the_colour_of_its_precision(results: dict[str, Any]) -> None:
    svg = draw_ladder(results)
    bars = [line for line in svg.splitlines() if line.startswith("<rect")]
    fills = (PAGE.line, PAGE.a, PAGE.c, PAGE.c)
    assert [fill in bar for fill, bar in zip(fills, bars, strict=True)] == [True] * 4
    assert svg.count("stroke-dasharray") == 5  # each bound, and the legend
    assert "OpenVINO, float32: 20.0 images/s, \u00d7 1.50, bound 22.2" in svg


def test_a_rung_with_too_little_of_a_steady_state_is_shown_without_a_bar(results: dict[str, Any]) -> None:
    for one in results["rounds"]:
        one["runs"]["openvino"]["steady_rows_per_second"] = None
    svg = draw_ladder(results)
    assert sum(line.startswith("<rect") for line in svg.splitlines()) == 3
    assert "OpenVINO, float32: not measured, bound 22.2" in svg


def test_bfloat16_is_left_out_where_the_processor_would_emulate_it() -> None:
    without = replace(read_hardware(), gpu=None, instruction_sets=["avx2"])
    assert rungs_for(without) == [name for name in RUNGS if name != "openvino-bfloat16"]
    assert rungs_for(replace(without, instruction_sets=["avx512_bf16"])) == [*RUNGS]


def test_a_machine_with_a_gpu_measures_the_rungs_for_it() -> None:
    rungs = rungs_for(replace(read_hardware(), gpu="NVIDIA H200"))
    assert rungs == [*GPU_RUNGS]
    assert packages_of(rungs) == []
    assert packages_of([*RUNGS]) == ["onnx", "onnxruntime", "openvino"]


def test_every_decoder_and_every_engine_has_its_limit() -> None:
    assert {rung.decoder for rung in ALL_RUNGS.values()} == {*DECODERS.values()}
    assert {rung.engine for rung in ALL_RUNGS.values()} == {"eager", *ENGINES, *DEVICE_ENGINES}


def test_on_a_gpu_the_slower_stage_decides() -> None:
    limits = {"forward": {"gpu-float16": 9000}, "decode": {"full": 0.002, "cheap": 0.001}, "cores": 16}
    assert bound_of("gpu-float16", limits) == 8000
    limits["forward"] = {"gpu-compiled": 9000}
    assert bound_of("gpu-cheap-decode", limits) == 9000


def test_rungs_for_a_gpu_are_measured_by_the_same_code(tmp_path: Path) -> None:
    runs = FakeRuns()
    plan = replace(fake_plan(tmp_path, runs), contenders=[*GPU_RUNGS])
    measured = measure_ladder(plan, provenance(), tmp_path / "ladder-gpu.json", is_long=True)
    assert {name for name, _ in runs.asked} == {"reference", "limits", *GPU_RUNGS}  # nothing is built
    assert [*measured["long"]["runs"]] == ["naive", "gpu-cheap-decode"]
    shown = gpu_ladder(load_ladder(tmp_path / "ladder-gpu.json"))
    assert [rung.title for rung in GPU_RUNGS.values() if f"| {rung.title} |" not in shown] == []
    [row] = [line for line in shown.splitlines() if line.startswith("| Cheaper decode | 100 | ")][:1]
    assert " | 1.00 | 7.50 | 0.33 | " in row  # over naive's 10 and 20, over the 300 of the GPU


def test_without_a_gpus_results_the_page_says_so() -> None:
    assert gpu_ladder(None).startswith("Never by us: ")


def test_scores_are_compared_where_both_have_one() -> None:
    found = score_error({"a": 0.5, "b": 0.25, "c": None, "d": 1.0}, {"a": 0.5, "b": 0.75, "c": 0.5})
    assert found == {"median": 0.25, "max": 0.5}
    assert score_error({"a": None}, {"a": 0.5}) is None


def test_the_bytes_of_a_package_are_those_of_its_files() -> None:
    assert package_bytes("openvino") > 10 * package_bytes("openvino-telemetry") > 0


@pytest.mark.parametrize(
    "path",
    [("images",), ("builds",), ("rounds", 0, "runs", "openvino", "seconds"), ("rounds", 0, "limits", "cores")],
)
def test_a_missing_key_is_one_sentence(tmp_path: Path, results: dict[str, Any], path: tuple[Any, ...]) -> None:
    *parents, last = path
    place: Any = results
    for key in parents:
        place = place[key]
    del place[last]
    (tmp_path / "ladder.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=rf"^The results file \S+ladder.json has no .*{last}\.$"):
        load_ladder(tmp_path / "ladder.json")


def test_a_rung_whose_engine_has_no_limit_is_refused(results: dict[str, Any], tmp_path: Path) -> None:
    del results["rounds"][0]["limits"]["forward"]["openvino-int8"]
    (tmp_path / "ladder.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"has no rounds\[0\]\.limits\.forward\.openvino-int8\.$"):
        load_ladder(tmp_path / "ladder.json")


def test_a_rung_that_there_is_none_of_is_refused(results: dict[str, Any], tmp_path: Path) -> None:
    for place in (results["images"], *(one[key] for one in results["rounds"] for key in ("runs", "agreement"))):
        place["other"] = place["openvino"]
    (tmp_path / "ladder.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="has rounds of other rungs than there are"):
        load_ladder(tmp_path / "ladder.json")


def test_a_rung_is_measured_in_a_process_of_its_own(
    one_machine: RayCluster, sample_set: Samples, spread_images: list[str]
) -> None:
    build_engine(str(sample_set.model), folder=FOLDER)  # as a measurement does before: building loads too
    request = {"kind": "rung", "name": "openvino", "source": spread_images[::2], "model": str(sample_set.model)}
    answer = ask_ladder({**request, "calibration": spread_images[1:2], "folder": FOLDER})
    run = answer["run"]
    assert (run["rows"], run["errors"], run["batches"], run["model_loads"]) == (32, 0, 2, 2)
    assert sorted(answer["labels"]) == sorted(answer["scores"]) == spread_images[::2]


@pytest.mark.parametrize("options", [[], ["--quick"]])
def test_bad_input_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    monkeypatch.setenv("IMAGES", str(tmp_path))
    monkeypatch.setenv("MODEL", str(tmp_path / "nothing"))
    with pytest.raises(SystemExit) as ended:
        ladder.main(options)
    assert ended.value.code == 2
    said = "--quick needs --output" if options else f"There is no checkpoint folder {tmp_path}/nothing."
    assert said in capsys.readouterr().err


# What was published


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The results that the page shows."""
    return load_ladder(LADDER)


def median(published: dict[str, Any], name: str, key: str) -> float:
    """Return the median of one of a rung's figures."""
    found = summarize_ladder(published)[name][key]
    assert found is not None
    return float(found["median"])


def test_the_committed_rungs_were_measured_in_full_on_committed_code(published: dict[str, Any]) -> None:
    assert published["complete"] and len(published["rounds"]) >= 3
    assert published["provenance"]["uncommitted_changes"] is False
    assert {*rungs_for(replace(read_hardware(), gpu=None))} <= {*published["images"]} | {"openvino-bfloat16"}


@pytest.mark.parametrize("name", [*RUNGS][[*RUNGS].index("pool") :])
def test_each_rung_from_the_pool_on_reaches_its_bound_or_the_page_shows_how_far_it_is(
    published: dict[str, Any], name: str
) -> None:
    page = (ROOT / "docs" / "optimization" / "ladder.md").read_text("utf-8")
    is_shown = f'ladder.md:{name}-over-bound"' in page
    assert is_shown == (median(published, name, "over_bound") < 0.95)


@pytest.mark.parametrize(
    ("names", "times"),
    [(("onnxruntime", "openvino"), 2.3), (("openvino-bfloat16",), 4.3), (("openvino-int8", "cheap-decode"), 7.5)],
)
def test_each_precision_gains_over_naive_what_was_asked(
    published: dict[str, Any], names: tuple[str, ...], times: float
) -> None:
    assert max(median(published, name, "over_naive") for name in names) >= times


def test_int8_gains_over_many_images_start_up_included(published: dict[str, Any]) -> None:
    found = long_ratio(published)
    assert found is not None and found >= 6


@pytest.mark.parametrize("name", [*RUNGS])
def test_labels_agree_with_the_reference(published: dict[str, Any], name: str) -> None:
    rung = RUNGS[name]
    leaves_pixels_alone = rung.precision == "float32"  # `decode` too, up to two of 255 levels
    assert median(published, name, "agreement") >= (0.995 if leaves_pixels_alone else 0.98)


@pytest.mark.parametrize("name", ["openvino-bfloat16", "openvino-int8", "cheap-decode"])
def test_accuracy_stays_within_a_point_of_the_references(published: dict[str, Any], name: str) -> None:
    assert abs(median(published, name, "accuracy") - published["reference"]["accuracy"]) <= 0.01
