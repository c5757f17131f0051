"""Every module runs as a command, and what it reports was counted in the run itself."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray._private.utils import get_num_cpus, publish_error_to_driver

from snippets import command
from snippets.command import build_parser, count, explain, format_report, gpus, positive, run_module

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

MODULES = {  # name -> options, and whether it joins the tests' cluster or starts Ray as a newcomer's run does
    "setup": ("--limit 2", True),
    "dataset": ("--limit 6", True),
    "naive": ("--limit 8", True),
    "costs": ("--limit 1", False),
    "actor_pool": ("--limit 10 --batch-size 4", False),
    "stepwise": ("--limit 8 --step kept", True),
    "preprocessing": ("--limit 6", True),
    "results": ("--limit 6 --batch-size 4 --actors 1 --num-gpus 0.5 --dtype bfloat16", True),
}
Ended = subprocess.CompletedProcess[str]
KEYS = {
    *("rows", "errors", "files_skipped", "seconds", "ray_init_seconds", "start_up_seconds"),
    *("steady_rows_per_second", "model_loads", "batches", "peak_memory_bytes", "device", "versions"),
}
PROGRESS = ("%|", "Running Dataset", "Total Progress")


def command_of(samples: Samples, name: str, options: str, joins: bool) -> Callable[[], Ended]:
    """Return what runs a module's command in the environment as it is now."""
    found_by = () if joins else ("RAY_ADDRESS", "RAY_TMPDIR")  # in the latter Ray looks for a cluster, too
    environment = {name: value for name, value in os.environ.items() if name not in found_by}
    environment |= {"IMAGES": str(samples.images), "MODEL": str(samples.model), "RAY_AUTH_MODE": "disabled"}
    arguments = [sys.executable, "-m", f"snippets.fundamentals.{name}", *options.split()]
    return partial(subprocess.run, arguments, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def runs(ray_cluster: RayCluster, sample_set: Samples) -> Iterator[dict[str, Future[Ended]]]:
    """Each module's one run in these tests, two at a time: much of a run is waiting for processes to start."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(command_of(sample_set, name, f"{options} --json", joins))
            for name, (options, joins) in MODULES.items()
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def reports(runs: dict[str, Future[Ended]]) -> Callable[[str], dict[str, Any]]:
    """The report of a module's run, after what is the same for all has been checked."""

    def get(name: str) -> dict[str, Any]:
        result = runs[name].result()
        assert result.returncode == 0, result.stderr
        assert not [mark for mark in PROGRESS if mark in result.stderr + result.stdout]
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    return get


@pytest.mark.parametrize("name", MODULES)
def test_every_module_ends_with_one_line_of_json(reports: Callable[[str], dict[str, Any]], name: str) -> None:
    report = reports(name)
    assert set(report) == KEYS | ({"found"} if name in ("setup", "costs") else set())
    assert report["rows"] > 0
    assert len(report.get("found", [])) in (0, report["rows"])
    assert report["errors"] == report["files_skipped"] == 0
    assert report["seconds"] > 0
    assert report["peak_memory_bytes"] > 1e8
    assert set(report["versions"]) == {"python", "ray", "torch", "transformers"}
    assert report["versions"]["ray"] == ray.__version__


@pytest.mark.parametrize(
    ("name", "rows", "loads", "batches"),
    [
        ("setup", 2, 0, 0),  # as many nodes as the limit
        ("dataset", 6, 0, 0),
        ("preprocessing", 6, 0, 1),
        ("results", 6, 1, 2),  # one actor, as asked for
    ],
)
def test_rows_loads_and_batches_are_those_of_the_run(
    reports: Callable[[str], dict[str, Any]], name: str, rows: int, loads: int, batches: int
) -> None:
    report = reports(name)
    assert (report["rows"], report["model_loads"], report["batches"]) == (rows, loads, batches)


def test_the_naive_command_loads_for_every_batch(reports: Callable[[str], dict[str, Any]]) -> None:
    report = reports("naive")
    assert report["rows"] == 8
    assert report["model_loads"] == report["batches"] >= 2


def test_the_pool_command_loads_for_an_actor_and_not_for_a_batch(reports: Callable[[str], dict[str, Any]]) -> None:
    report = reports("actor_pool")
    assert (report["rows"], report["batches"]) == (10, 3)
    # An actor that is still loading when the others have done all of it counts no load.
    assert 1 <= report["model_loads"] <= min(3, get_num_cpus())
    assert 0 < report["start_up_seconds"] < report["seconds"]


def test_the_costs_command_measures_within_its_limit(reports: Callable[[str], dict[str, Any]]) -> None:
    report = reports("costs")
    is_on_a_gpu = report["device"] != "cpu"
    assert report["rows"] == (3 if is_on_a_gpu else 6)  # with one batch size nothing is compared to one at a time
    if not is_on_a_gpu:
        assert report["model_loads"] == 2 * get_num_cpus()


def test_without_json_a_person_sees_progress_rows_and_the_report(
    ray_cluster: RayCluster, sample_set: Samples
) -> None:
    result = command_of(sample_set, "preprocessing", "--limit 6", joins=True)()
    assert result.returncode == 0
    assert [mark for mark in PROGRESS if mark in result.stderr + result.stdout]
    lines = result.stdout.splitlines()
    assert sum(line.startswith("id: ") for line in lines) == command.SHOWN_ROWS
    assert any(line.split() == ["rows", "6"] for line in lines)


@pytest.mark.parametrize("name", MODULES)
def test_help_says_what_the_reader_will_see_and_names_every_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"snippets.fundamentals.{name}")
    with pytest.raises(SystemExit) as ended:
        run_module(module.__name__, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert " ".join(str(module.__doc__).split()) in text.replace("- ", "-")
    assert {"--images", "--model", "--limit", "--json"} <= set(text.replace(",", " ").split())
    own = {"--actors", "--num-gpus", "--batch-size", "--dtype", "--output"} & set(text.replace(",", " ").split())
    assert len(own) == {"actor_pool": 4, "results": 5}.get(name, 0)


@pytest.mark.parametrize("text", ["0", "-3", "abc", "1.5", "", "1e3"])
def test_only_whole_numbers_from_one_are_positive(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^must be a whole number of at least 1, not {text}$"):
        positive(text)
    assert [positive("1"), positive("0012")] == [1, 12]


@pytest.mark.parametrize("text", ["-1", "1.5", "nan", "inf", "two"])
def test_gpus_are_a_part_of_one_or_a_whole_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^must be 0 to 1 or a whole number, not {text}$"):
        gpus(text)
    assert [gpus("0"), gpus("0.25"), gpus("1"), gpus("8")] == [0, 0.25, 1, 8]


def test_environment_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from snippets.fundamentals import setup

    monkeypatch.setattr(setup, "IMAGES", "/images")
    monkeypatch.setattr(setup, "MODEL", "/model")
    options = build_parser(setup).parse_args([])
    assert (options.images, options.model, options.limit, options.json) == ("/images", "/model", None, False)


# What becomes of an error


def task_error(cause: Exception) -> Exception:
    """The error that a task's exception becomes at the driver."""

    def fail() -> None:
        raise cause

    try:
        fail()
    except Exception as error:
        import traceback

        text = "\x1b[36mray::Read->Map()\x1b[39m (pid=1, ip=127.0.0.1)\n" + traceback.format_exc()
        wrapped: Exception = ray.exceptions.RayTaskError("fail", text, error).as_instanceof_cause()
        return wrapped
    raise AssertionError


ADVICE = "Failed to read after 1/10 attempts.\nTo change retry attempts, configure `ray.data` (`x` for I/O)."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("There is no file x."), "There is no file x."),
        (FileNotFoundError("There is no folder y."), "There is no folder y."),
        (
            task_error(OSError(f"image is truncated\n{ADVICE}")),
            "The job ended in Read->Map: OSError: image is truncated",
        ),
        (task_error(KeyError("no such key")), "The job ended in Read->Map: KeyError: 'no such key'"),
        (
            ray.data.exceptions.ExecutionTimeoutError("Dataset execution made no progress.\nOperators: \n - a: b"),
            "Dataset execution made no progress.",
        ),
        (ray.exceptions.ActorDiedError(), "The job ended in a worker: The actor died unexpectedly"),
    ],
)
def test_what_the_caller_can_mend_becomes_one_sentence(error: Exception, sentence: str) -> None:
    explained = explain(error)
    assert explained is not None
    assert explained.startswith(sentence)
    assert "\n" not in explained
    assert "\x1b" not in explained


def test_user_code_that_fails_is_named_by_its_cause_not_by_rays_wrapper() -> None:
    text = (
        "ray::Map()  (pid=1)\nKeyError: 'cause'\n\nThe above exception was the direct cause of the following:\n\n"
        f"ray::Map()\nray.exceptions.UserCodeException: UDF failed to process a data block.\n{ADVICE}"
    )
    error = ray.exceptions.RayTaskError("map", text, KeyError("cause"))
    assert explain(error) == "The job ended in Map: KeyError: 'cause'"


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(ZeroDivisionError()) is None

    def fail(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        run_module("snippets.fundamentals.setup", [])


@pytest.mark.parametrize(
    ("rows", "errors", "status", "said"),
    [
        (2, 0, 0, ""),
        (2, 1, 0, ""),
        (0, 0, 0, ""),
        (2, 2, 1, "Every row carries an error, as the first does: OSError: broken\n"),
    ],
)
def test_a_run_of_which_every_row_carries_an_error_ends_with_1_after_its_report(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: int,
    errors: int,
    status: int,
    said: str,
) -> None:
    report = {"rows": rows, "errors": errors, "seconds": 1.23456}
    monkeypatch.setattr(command, "run", lambda *_: (report, [{"a": 1, "error": "OSError: broken"}]))
    with pytest.raises(SystemExit) as ended:
        run_module("snippets.fundamentals.setup", ["--json"])
    assert (ended.value.code, *capsys.readouterr()) == (status, json.dumps(report) + "\n", said)


# Counting and showing what came out


def test_rows_and_errors_are_counted_over_all_blocks() -> None:
    blocks = [
        pa.table({"id": ["a", "b"], "error": pa.array([None, "broken"], pa.string())}),
        pa.table({"id": ["c", "d", "e"], "error": ["", "broken", ""]}),
    ]
    result = SimpleNamespace(iter_batches=lambda batch_size, batch_format: iter(blocks))
    rows, errors, first = count(result)
    assert (rows, errors) == (5, 2)
    assert first == [{"id": "a", "error": None}, {"id": "b", "error": "broken"}, {"id": "c", "error": ""}]


@pytest.mark.parametrize("sizes", [[(5, 7), (5, 7)], [(5, 7), (9, 2)]])
def test_of_an_image_its_dtype_and_shape_are_shown(sizes: list[tuple[int, int]]) -> None:
    from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    is_ragged = len({*sizes}) > 1
    column = (ArrowVariableShapedTensorArray if is_ragged else ArrowTensorArray).from_numpy(images)
    table = pa.table({"path": ["a", "b"], "image": column})
    result = SimpleNamespace(iter_batches=lambda **_: [table, table])
    rows, errors, first = command.count(result)
    assert (rows, errors, len(first)) == (4, 0, command.SHOWN_ROWS)
    shown = [{"path": path, "image": f"uint8 {(*size, 3)}"} for path, size in zip("ab", sizes, strict=True)]
    assert first == [*shown, shown[0]]


def test_a_list_of_rows_is_its_own_count() -> None:
    assert count([{"a": 1}, {"a": 2}]) == (2, 0, [{"a": 1}, {"a": 2}])


def test_a_report_shows_numbers_to_four_places() -> None:
    text = format_report({"rows": 2, "seconds": 1.23456}, [{"label": "sea", "score": 0.987654}])
    assert text.splitlines() == ["label: sea  score: 0.9877", "", f"{'rows':24}2", f"{'seconds':24}1.235"]


def test_nothing_listens_beyond_this_machine_unless_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert "_node_ip_address" not in command.ray_options()
    monkeypatch.delenv("RAY_ADDRESS")
    assert command.ray_options()["_node_ip_address"] == "127.0.0.1"


@pytest.mark.parametrize("during", [command.stdout_for_the_answer, command.connection])
def test_what_ray_tells_every_driver_is_not_in_the_answer(
    connected: RayCluster, capsys: pytest.CaptureFixture[str], during: Callable[[], Any]
) -> None:
    told, error = "", f"The disk is nearly full ({during.__name__})."  # what is the same Ray prints once
    with during():
        publish_error_to_driver("disk", error, ray._private.worker.global_worker.gcs_client)
        until = time.monotonic() + 30
        while error not in told and time.monotonic() < until:
            time.sleep(0.05)
            captured = capsys.readouterr()
            assert captured.out == ""
            told += captured.err
    assert error in told


def test_nor_is_what_a_run_prints(ray_cluster: RayCluster, sample_set: Samples, tmp_path: Path) -> None:
    module = "def run(options):\n    print('(raylet) A node died.')\n    return [{'id': 1}]\n"
    (tmp_path / "printing.py").write_text(module)
    code = "from snippets.command import run_module; run_module('printing', ['--limit', '1', '--json'])"
    data = {"IMAGES": str(sample_set.images), "MODEL": str(sample_set.model), "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **data}, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["found"] == [{"id": 1}]
    assert "(raylet) A node died." in ended.stderr


def test_rays_tracebacks_stay_in_its_log_file() -> None:
    error, warning = (
        logging.LogRecord("ray.data", level, "", 0, "", None, None) for level in (logging.ERROR, logging.WARNING)
    )
    assert not command._is_no_error(error)
    assert command._is_no_error(warning)
