"""Each step differs from the one before by one thing, and what that thing causes is seen in the workers."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import ray

from snippets.command import build_parser
from snippets.fundamentals import stepwise
from snippets.fundamentals.actor_pool import KEEP_FREED_MEMORY, Classifier, load_preprocessing
from snippets.fundamentals.dataset import read_images
from snippets.fundamentals.stepwise import (
    KEPT_MEMORY,
    STEPS,
    BatchingModel,
    DecodedModel,
    KeptModel,
    classify_in_two_actors,
    decode_images,
)
from snippets.recording import Event, recording

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.conftest import RecordedRun
    from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.timeout(600)  # the first to need them waits for five pipelines

OWN = ("kept", "batched", "memory", "decoded", "arrays")  # those between the two modules
RUN = ("kept", "batched", "decoded", "arrays")  # "memory" is "batched" with the variables that the last two have
IMAGES = 32


class Run(NamedTuple):
    """What a step did in the workers, and its rows by id."""

    events: list[Event]
    rows: dict[str, dict[str, Any]]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


@pytest.fixture(scope="module")
def runs(ray_cluster: RayCluster, sample_set: Samples, spread_images: list[str]) -> dict[str, Run]:
    """The steps between the two modules on half of `spread_images`, one after another."""
    from snippets.fundamentals.setup import configure_data_context

    ray.shutdown()
    ended: dict[str, float] = {}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    with recording(log_to_driver=False, logging_level=logging.ERROR) as record:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        configure_data_context(progress_bars=False)
        for name in RUN:
            found = STEPS[name].run(spread_images[::2], str(sample_set.model), None).take_all()
            rows[name], ended[name] = {row["id"]: row for row in found}, time.time()
    ray.shutdown()
    began = dict(zip(RUN, [0.0, *ended.values()], strict=False))
    return {
        name: Run([event for event in record.events if began[name] <= event.start < ended[name]], rows[name])
        for name in RUN
    }


# The way


def test_the_steps_lead_from_the_naive_pipeline_itself_to_the_optimized_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[Any] = []

    def call(name: str, *given: Any, **named: Any) -> str:
        called.append((name, given, named))
        return name

    for name in ("read_images", "classify_naively", "classify"):
        monkeypatch.setattr(stepwise, name, partial(call, name))
    names = [*STEPS]
    for name in (names[0], *names[-2:]):
        STEPS[name].run("images", "model", 7)
    assert called == [
        ("read_images", ("images", 7), {}),
        ("classify_naively", ("read_images", "model"), {}),
        ("classify", ("images", "model", 7), {"dtype": "float32"}),
        ("classify", ("images", "model", 7), {"dtype": "bfloat16"}),
    ]
    assert [step.dtype for step in STEPS.values()] == ["float32"] * 7 + ["bfloat16"]


def test_each_step_between_changes_one_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepwise, "read_images", lambda *given: ("read", *given))
    monkeypatch.setattr(stepwise, "decode_images", lambda *given: ("decoded", *given))
    monkeypatch.setattr(stepwise, "load_preprocessing", lambda model: f"of {model}")
    monkeypatch.setattr(stepwise, "classify_in_two_actors", lambda *given, **named: (given, named))
    read, decoded = ("read", "images", 7), ("decoded", "images", "model", 7)
    kept_memory = {"runtime_env": KEPT_MEMORY}
    assert {name: STEPS[name].run("images", "model", 7) for name in OWN} == {
        "kept": ((read, KeptModel, ("model", None)), {"batch_size": 4}),
        "batched": ((read, BatchingModel, ("model", None)), {}),
        "memory": ((read, BatchingModel, ("model", None)), kept_memory),
        "decoded": ((decoded, DecodedModel, ("model", None)), kept_memory),
        "arrays": ((decoded, Classifier, ("model", "of model", 16, "float32")), kept_memory),
    }


def test_the_command_runs_the_last_step_unless_told_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser, ran = build_parser(stepwise), []
    for name, step in STEPS.items():
        watched = replace(step, run=lambda *given, name=name: ran.append((name, *given)))
        monkeypatch.setitem(STEPS, name, watched)
    common = ["--images", "i", "--model", "m", "--limit", "3"]
    stepwise.run(parser.parse_args(common))
    stepwise.run(parser.parse_args([*common, "--step", "kept"]))
    assert ran == [("bfloat16", "i", "m", 3), ("kept", "i", "m", 3)]
    with pytest.raises(SystemExit):
        parser.parse_args(["--step", "last"])
    assert "argument --step: invalid choice: 'last'" in capsys.readouterr().err


# What each of them causes


def test_the_model_is_loaded_once_a_batch_at_first_and_then_once_an_actor(
    runs: dict[str, Run], naive_run: RecordedRun
) -> None:
    assert len(naive_run[0].of("load")) == len(naive_run[0].of("batch")) > 2
    for name in RUN:
        loads = runs[name].of("load")
        assert len(loads) == len({load.worker for load in loads}) == 2, name
    assert len(runs["kept"].of("batch")) > 2


def test_batches_of_four_become_batches_of_sixteen(runs: dict[str, Run]) -> None:
    sizes = {name: [batch.rows for batch in runs[name].of("batch")] for name in RUN}
    assert {name: sum(found) for name, found in sizes.items()} == dict.fromkeys(RUN, IMAGES)
    assert max(sizes["kept"]) == 4
    assert all(4 < max(sizes[name]) <= 16 for name in RUN[1:])
    assert sizes["decoded"] == sizes["arrays"] == [16, 16]


def test_a_true_batch_is_one_forward_pass(runs: dict[str, Run]) -> None:
    assert len(runs["kept"].of("forward")) == IMAGES
    for name in ("batched", "decoded"):
        assert len(runs[name].of("forward")) == len(runs[name].of("batch")) < IMAGES / 4, name


def test_decoding_moves_out_of_the_read_into_tasks_beside_the_actors(runs: dict[str, Run]) -> None:
    assert not runs["batched"].of("decode")
    for name in ("decoded", "arrays"):
        decoding = runs[name].of("decode")
        assert [event.rows for event in decoding] == [16, 16]
        assert not {event.worker for event in decoding} & {event.worker for event in runs[name].of("batch")}


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("kept", ["ActorPoolMapOperator[MapBatches(KeptModel)]", "[ReadImage"]),
        (
            "decoded",
            ["ActorPoolMapOperator[MapBatches(DecodedModel)]", "TaskPoolMapOperator[MapBatches(decode)]"],
        ),
        ("arrays", ["ActorPoolMapOperator[MapBatches(Classifier)]", "TaskPoolMapOperator[MapBatches(decode)]"]),
    ],
)
def test_reading_and_the_model_are_operators_of_their_own(
    connected: RayCluster,
    sample_set: Samples,
    capsys: pytest.CaptureFixture[str],
    name: str,
    operators: list[str],
) -> None:
    STEPS[name].run(str(sample_set.images), str(sample_set.model), 8).explain()
    plan = capsys.readouterr().out
    assert [operator for operator in operators if operator not in plan] == [], plan


def test_bytes_of_one_size_cross_the_object_store(
    connected: RayCluster, sample_set: Samples, spread_images: list[str]
) -> None:
    before = read_images(spread_images[:2]).take_batch()["image"]
    after = decode_images(spread_images[:2], str(sample_set.model)).take_batch()["image"]
    assert before.dtype == object
    assert (after.dtype, after.shape) == (np.uint8, (2, 224, 224, 3))


def test_the_variables_are_set_in_the_actors_that_keep_memory_and_in_no_others(connected: RayCluster) -> None:
    class Environment:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"found": [{name: os.environ.get(name, "") for name in KEEP_FREED_MEMORY}] * len(batch["id"])}

    def found(**options: Any) -> list[dict[str, str]]:
        rows = classify_in_two_actors(ray.data.range(2), Environment, (), **options).take_all()
        return [row["found"] for row in rows]

    assert found(runtime_env=KEPT_MEMORY) == [KEEP_FREED_MEMORY] * 2
    assert found() == [dict.fromkeys(KEEP_FREED_MEMORY, "")] * 2


# What comes out


def differences(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> tuple[int, float]:
    """Return how many labels differ, and the largest difference of a score."""
    labels = sum(found[image]["label"] != expected[image]["label"] for image in found)
    return labels, max(abs(found[image]["score"] - expected[image]["score"]) for image in found)


@pytest.mark.parametrize("name", RUN)
def test_labels_equal_naives_in_every_step_in_float32(
    runs: dict[str, Run], naive_run: RecordedRun, spread_images: list[str], name: str
) -> None:
    naive = {row["id"]: row for row in naive_run[1]}
    assert sorted(runs[name].rows) == spread_images[::2]
    labels, score = differences(runs[name].rows, naive)
    assert labels == 0
    leaves_pixels_alone = name in ("kept", "batched")
    assert score < (1e-4 if leaves_pixels_alone else 0.02)  # `decode` may differ by two of 255 levels
    assert leaves_pixels_alone is (score < 1e-4)


def test_one_array_computes_what_the_list_of_images_does(runs: dict[str, Run]) -> None:
    labels, score = differences(runs["arrays"].rows, runs["decoded"].rows)
    assert (labels, score < 1e-4) == (0, True)


def test_a_row_with_an_error_is_labelled_by_the_list_and_left_out_by_the_array(sample_set: Samples) -> None:
    model, pixels = str(sample_set.model), np.zeros((2, 224, 224, 3), np.uint8)
    batch = {"id": np.array(["a", "b"]), "image": pixels, "error": np.array(["", "OSError: broken"])}
    listed = DecodedModel(model, None)(batch)
    array = Classifier(model, load_preprocessing(model), 2, "float32")(batch)
    assert listed["label"][0] == listed["label"][1]
    assert list(listed["error"]) == ["", "OSError: broken"]
    assert array["label"].to_pylist() == [listed["label"][0], None]
