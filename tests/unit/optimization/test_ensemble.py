"""Whatever the layout: each row has one answer, files are decoded once, and no model takes another along."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray

from snippets.command import build_parser
from snippets.fundamentals.actor_pool import Classifier, Preprocessing
from snippets.optimization import ensemble
from snippets.optimization.ensemble import (
    LAYOUTS,
    Branch,
    Each,
    Ensemble,
    LoadedModel,
    Member,
    Rule,
    Stage,
    Together,
    classify_in_branches,
    join_by_id,
    load_ensemble,
    plan_pools,
)
from snippets.optimization.ensemble_models import build_small_models
from snippets.optimization.ensemble_scores import answered, stop_when_sure
from snippets.optimization.ensemble_views import View, load_view
from snippets.recording import Event, recording

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


@pytest.fixture(scope="module")
def models(sample_set: Samples) -> list[str]:
    """The small checkpoints and the samples', the cheapest first."""
    small = build_small_models()
    return [str(small.resnet), str(small.vit), str(sample_set.model)]


# What the checkpoints say


def test_models_share_labels_and_views(models: list[str]) -> None:
    found = load_ensemble(models)
    assert [(member.name, member.place, member.view) for member in found.members] == [
        ("small-resnet", 0, 0),
        ("small-vit", 1, 1),
        ("model", 2, 0),
    ]
    assert found.views == (View(224, 256, 3), View(224, None, 2))
    assert found.bytes_per_image == 2 * 224 * 224 * 3


def relabel(model: str, folder: Path, labels: list[str]) -> str:
    """Copy what is small of a checkpoint, with other labels."""
    folder.mkdir()
    config = json.loads((Path(model) / "config.json").read_text())
    config["id2label"] = dict(enumerate(labels))
    config["label2id"] = {label: index for index, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(Path(model) / "preprocessor_config.json", folder)
    return str(folder)


def test_another_order_of_labels_is_put_right_and_other_labels_are_refused(
    models: list[str], tmp_path: Path
) -> None:
    labels = list(load_ensemble(models[:1]).labels)
    turned = relabel(models[0], tmp_path / "turned", labels[::-1])
    found = load_ensemble([models[0], turned])
    assert found.members[1].order == tuple(range(len(labels)))[::-1]
    assert found.labels == tuple(labels)
    other = relabel(models[0], tmp_path / "other", [*labels[:-1], "other"])
    with pytest.raises(ValueError, match="other labels than"):
        load_ensemble([models[0], other])
    twice = relabel(models[0], tmp_path / "twice", [labels[0], *labels[:-1]])
    assert load_ensemble([twice, twice]).members[1].order == tuple(range(len(labels)))
    with pytest.raises(ValueError, match="other labels than"):
        load_ensemble([models[0], twice])
    assert [member.name for member in load_ensemble([models[0], models[0]]).members] == [
        "small-resnet-0",
        "small-resnet-1",
    ]


# One model


def test_its_probabilities_are_those_of_part_1s_classifier(models: list[str]) -> None:
    found = load_ensemble(models[:1])
    [member] = found.members
    images = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    probabilities, reasons = LoadedModel(member, 4, 2, False).answer(images)
    rows = Classifier(models[0], load_view(models[0])[1], 5, "float32", 2)(
        {"id": np.arange(5).astype(str), "image": images, "error": np.full(5, "")}
    ).to_pylist()
    assert reasons == [""] * 5
    assert [found.labels[best] for best in probabilities.argmax(-1)] == [row["label"] for row in rows]
    assert probabilities.max(-1) == pytest.approx([row["score"] for row in rows], abs=1e-5)

    turned = Member(models[0], "turned", 0, 0, member.to, member.order[::-1])
    other, _ = LoadedModel(turned, 4, 2, False).answer(images)
    assert other[:, ::-1] == pytest.approx(probabilities, abs=1e-6)


class Canned(LoadedModel):
    """Has no network: a pixel's value says what it answers, and from 200 that it fails. It keeps its batches."""

    def __init__(self, member: Member, batch_size: int, threads: int, use_gpu: bool) -> None:
        self.member, self.batch_size, self.labels = member, batch_size, np.array(["ant", "bee"])
        self.batches: list[list[int]] = []

    def forward(self, images: np.ndarray) -> np.ndarray:
        values = images[:, 0, 0, 0].astype(int)
        self.batches.append(values.tolist())
        if (values == 200 + self.member.place).any():
            raise RuntimeError("this image is too much")
        first = np.where(values == 210 + self.member.place, np.nan, values / 100)
        return np.stack([first, 1 - first], axis=1).astype(np.float32)


def plan(members: int = 3) -> Ensemble:
    to = Preprocessing(1, 1, 2, (0.5,) * 3, (0.5,) * 3)
    found = tuple(Member("", f"m{place}", place, place % 2, to, (0, 1)) for place in range(members))
    return Ensemble(found, (View(1, None, 2), View(1, None, 3))[:members], ("ant", "bee"))


def batch_of(values: list[int], errors: list[str] | None = None) -> dict[str, Any]:
    images = np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 1, 1, 3))
    ids = np.array([f"id-{row}" for row in range(len(values))])
    return {"id": ids, "view_0": images, "view_1": images, "error": np.array(errors or [""] * len(values))}


SETTINGS = (Canned, 4, 1, False)


def test_a_batch_that_fails_is_halved_until_the_row_is_alone() -> None:
    model = Canned(plan().members[0], 4, 1, False)
    images = batch_of([90, 200, 80, 70, 60])["view_0"]
    probabilities, reasons = model.answer(images)
    assert model.batches == [[90, 200, 80, 70], [90, 200], [90], [200], [80, 70], [60]]
    assert reasons == ["", "RuntimeError: this image is too much", "", "", ""]
    assert probabilities[[0, 2, 3, 4], 0] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert np.isnan(probabilities[1]).all()


def test_what_is_no_number_is_a_failure() -> None:
    probabilities, reasons = Canned(plan().members[0], 4, 1, False).answer(batch_of([90, 210])["view_0"])
    assert reasons == ["", "FloatingPointError: the probabilities are not finite"]
    assert np.isnan(probabilities[1]).all()


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 15, 16])
def test_a_forward_pass_sees_a_power_of_two(models: list[str], images: int) -> None:
    import torch

    seen: list[int] = []

    class Watched(LoadedModel):
        def __init__(self) -> None:
            self.member = load_ensemble(models[:1]).members[0]
            self.device, self.dtype, self.batch_size = torch.device("cpu"), torch.float32, 16
            self.mean = self.std = torch.ones(1, 3, 1, 1)

        def network(self, pixels: torch.Tensor) -> Any:
            seen.append(len(pixels))
            return type("Output", (), {"logits": pixels.mean(dim=(1, 2, 3))[:, None].repeat(1, 10)})

    given = np.zeros((images, 4, 4, 3), np.uint8)
    assert Watched().forward(given).shape == (images, 10)
    [size] = seen
    assert size & (size - 1) == 0 and images <= size < 2 * images


# The layouts, in this process


def in_a_row(batch: dict[str, Any], rule: Rule, members: int = 3) -> Any:
    """Pass a batch through the stages, as the pools do."""
    found: Any = batch
    for place in range(members):
        found = Stage(place, plan(members), rule, *SETTINGS)(found)
    return found


def beside(batch: dict[str, Any], rule: Rule, members: int = 3) -> Any:
    """Give a batch to the branches and join what they answer."""
    branches = [Branch(place, plan(members), rule, *SETTINGS)(batch) for place in range(members)]
    [joined] = join_by_id(branches[::-1], batch["id"], members)
    return ensemble.conclude(joined, plan(members), rule)


def together(batch: dict[str, Any], rule: Rule, members: int = 3) -> Any:
    return Together(plan(members), rule, *SETTINGS)(batch)


@pytest.mark.parametrize("layout", [together, in_a_row, beside])
def test_where_one_model_fails_the_others_answer_and_the_row_says_so(layout: Any) -> None:
    batch = batch_of([90, 201, 202, 20, 0], ["", "", "", "", "OSError: broken"])
    rows = layout(batch, Rule()).to_pylist()
    assert [row["id"] for row in rows] == [f"id-{row}" for row in range(5)]
    assert [row["models"] for row in rows] == [
        ["m0", "m1", "m2"],
        ["m0", "m2"],
        ["m0", "m1"],
        ["m0", "m1", "m2"],
        [],
    ]
    assert [row["error"] for row in rows] == [
        None,
        "m1: RuntimeError: this image is too much",
        "m2: RuntimeError: this image is too much",
        None,
        "OSError: broken",
    ]
    assert [row["label"] for row in rows] == ["ant", "ant", "ant", "bee", None]
    assert rows[4]["score"] is None


@pytest.mark.parametrize("layout", [together, in_a_row, beside])
def test_a_row_that_every_model_fails_on_has_the_reasons_and_no_label(
    layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Canned, images: np.ndarray) -> np.ndarray:
        raise RuntimeError("no")

    monkeypatch.setattr(Canned, "forward", fail)
    [row] = layout(batch_of([90]), Rule()).to_pylist()
    assert row["label"] is None and row["models"] == []
    assert row["error"] == "m0: RuntimeError: no; m1: RuntimeError: no; m2: RuntimeError: no"


@pytest.mark.parametrize("layout", [together, in_a_row])
def test_a_cascade_asks_the_next_model_only_about_rows_that_are_not_sure(layout: Any) -> None:
    rows = layout(batch_of([95, 60, 5, 200, 50]), Rule(sure=0.9)).to_pylist()
    assert [row["models"] for row in rows] == [
        ["m0"],
        ["m0", "m1", "m2"],
        ["m0"],
        ["m1"],  # the first one failed, and the second was sure of 2
        ["m0", "m1", "m2"],
    ]
    assert [row["label"] for row in rows][:3] == ["ant", "ant", "bee"]


@pytest.mark.parametrize("sure", [0.55, 0.7, 0.85])
def test_a_cascade_asks_whom_it_was_planned_to_ask_where_models_disagree(sure: float) -> None:
    said = np.random.default_rng(0).random((40, 3)).astype(np.float32)  # of each image, by each model: an ant
    probabilities = np.stack([said, 1 - said], axis=-1)

    class Arguing(Canned):
        def forward(self, images: np.ndarray) -> np.ndarray:
            return np.asarray(probabilities[images[:, 0, 0, 0], self.member.place])

    found = Each(plan(), Rule(sure=sure), Arguing, 4, 1, False)(batch_of([*range(40)]))["probabilities"]
    planned = stop_when_sure(probabilities, sure)
    assert 40 < answered(planned).sum() < 120
    np.testing.assert_allclose(found, planned)


def test_a_cascade_of_one_actor_makes_one_batch_of_all_rows_that_are_left() -> None:
    actor = Together(plan(), Rule(sure=0.9), *SETTINGS)
    actor(batch_of([95, 60, 95, 95, 61, 95, 95, 62]))
    assert [model.batches for model in actor.models] == [  # type: ignore[attr-defined]
        [[95, 60, 95, 95], [61, 95, 95, 62]],
        [[60, 61, 62]],
        [[60, 61, 62]],
    ]


def test_each_models_probabilities_are_kept_for_fitting() -> None:
    found = Each(plan(), Rule(), *SETTINGS)(batch_of([90, 201]))
    assert found.keys() == {"id", "probabilities", "error"}
    assert found["probabilities"].shape == (2, 3, 2)
    assert answered(found["probabilities"]).tolist() == [[True] * 3, [True, False, True]]


def test_pools_pass_on_the_views_that_are_still_wanted() -> None:
    batch = batch_of([90])
    for place, left in enumerate([{"view_0", "view_1"}, {"view_0"}]):
        batch = Stage(place, plan(), Rule(), *SETTINGS)(batch)
        assert {name for name in batch if name.startswith("view_")} == left


# The join


def branches_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [Branch(place, plan(2), Rule(), *SETTINGS)(batch) for place in range(2)]


def part(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {name: column[rows] for name, column in batch.items()}


def test_answers_are_joined_whatever_their_order_and_batches() -> None:
    batch = batch_of([90, 10, 80])
    first, second = branches_of(batch)
    pieces = [part(second, [2]), part(first, [1, 0]), part(second, [0, 1]), part(first, [2])]
    joined = [*join_by_id(pieces, batch["id"], 2)]
    assert [list(each["id"]) for each in joined] == [["id-0", "id-1"], ["id-2"]]
    assert joined[0]["probabilities"][:, :, 0] == pytest.approx(np.array([[0.9, 0.9], [0.1, 0.1]]))
    assert joined[1]["probabilities"].shape == (1, 2, 2)


@pytest.mark.parametrize("again", [[0], [1]])
def test_an_answer_that_comes_twice_ends_the_run(again: list[int]) -> None:
    batch = batch_of([90, 10])
    first, second = branches_of(batch)
    pieces = [first, part(second, [0]), part(first, again)]  # of a row that is whole, and of one that is not
    with pytest.raises(RuntimeError, match=f"for id-{again[0]} came twice, or nobody asked for it"):
        [*join_by_id(pieces, batch["id"], 2)]


def test_an_unknown_id_and_a_missing_answer_end_the_run() -> None:
    batch = batch_of([90, 10])
    first, second = branches_of(batch)
    with pytest.raises(RuntimeError, match="An answer for id-1 came twice, or nobody asked for it"):
        [*join_by_id([first, second], ["id-0"], 2)]
    with pytest.raises(RuntimeError, match=r"1 rows lack an answer, such as id-1\."):
        [*join_by_id([first, part(second, [0])], batch["id"], 2)]


def test_branches_make_no_cascade() -> None:
    with pytest.raises(ValueError, match="A cascade asks one model after another"):
        classify_in_branches("images", ["model"], rule=Rule(sure=0.5))


# The layouts, on a cluster


class Run:
    """What a layout did: its rows, the models loaded, and the images decoded."""

    def __init__(self, rows: list[dict[str, Any]], began: float, ended: float) -> None:
        self.rows, self.began, self.ended = rows, began, ended
        self.events: list[Event] = []

    def loads(self) -> list[int]:
        """Return how many models each worker that answered something has loaded.

        One that starts late may have nothing left to answer, and is ended while it loads.
        """
        workers = {event.worker for event in self.events if event.kind == "batch"}
        loaded = [event.worker for event in self.events if event.kind == "load"]
        return [loaded.count(worker) for worker in workers]

    def images(self, kind: str) -> int:
        return sum(event.rows for event in self.events if event.kind == kind)


@pytest.fixture(scope="module")
def source(spread_images: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """32 files, one of which is no image: two blocks."""
    corrupt = tmp_path_factory.mktemp("corrupt") / "corrupt.jpg"
    corrupt.write_text("no image")
    return [*spread_images[1::2][:31], str(corrupt)]


@pytest.fixture(scope="module")
def runs(ray_cluster: RayCluster, models: list[str], source: list[str]) -> dict[str, Run]:
    """Each layout of the small models over the same files, on the CPUs of a cluster, five in three nodes."""
    from snippets.fundamentals.setup import configure_data_context

    ray.shutdown()
    found = {}
    with recording(log_to_driver=False, logging_level=logging.ERROR) as record:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        configure_data_context(progress_bars=False)
        for name, classify in LAYOUTS.items():
            sizes = {} if name == "together" else {"sizes": [1, 1]}
            began = time.time()
            found[name] = Run(classify(source, models[:2], num_gpus=0, **sizes).take_all(), began, time.time())
    ray.shutdown()
    for run in found.values():
        run.events = [event for event in record.events if run.began <= event.start < run.ended]
    return found


@pytest.mark.cluster
def test_each_row_has_one_answer_and_all_layouts_give_the_same(
    runs: dict[str, Run], source: list[str], models: list[str]
) -> None:
    names = [member.name for member in load_ensemble(models[:2]).members]
    expected = {row["id"]: row for row in runs["together"].rows}
    for run in runs.values():
        assert sorted(row["id"] for row in run.rows) == sorted(source)
        for row in run.rows:
            assert row["label"] == expected[row["id"]]["label"]
            if row["id"].endswith("corrupt.jpg"):
                assert row["label"] is None and list(row["models"]) == []
                assert row["error"].startswith("UnidentifiedImageError")
            else:
                assert row["score"] == pytest.approx(expected[row["id"]]["score"], abs=1e-5)
                assert list(row["models"]) == names and row["error"] is None


@pytest.mark.cluster
def test_files_are_decoded_once_whatever_the_layout(runs: dict[str, Run]) -> None:
    assert {name: run.images("decode") for name, run in runs.items()} == dict.fromkeys(LAYOUTS, 32)


@pytest.mark.cluster
def test_one_actor_holds_all_models_and_a_pools_actor_one(runs: dict[str, Run]) -> None:
    assert set(runs["together"].loads()) == {2}
    assert runs["pools"].loads() == runs["branches"].loads() == [1, 1]  # a pool's only actor answers all


@pytest.mark.cluster
def test_one_model_is_an_ensemble_too(connected: RayCluster, models: list[str], spread_images: list[str]) -> None:
    rows = classify_in_branches(spread_images[:4], models[:1], num_gpus=0).take_all()
    assert sorted((row["id"], len(row["models"])) for row in rows) == [(path, 1) for path in spread_images[:4]]


@pytest.mark.cluster
def test_pools_share_what_one_pool_would_reserve(connected: RayCluster) -> None:
    sizes, pool = plan_pools(3)
    assert sizes == [1, 1, 1] and pool.num_gpus == 0.5  # two fit on each of two GPUs, three on none
    sizes, pool = plan_pools(3, sizes=[1, 1, 4])
    assert sizes == [1, 1, 4] and pool.num_gpus == pytest.approx(1 / 3)


@pytest.mark.parametrize("members", [1, 2, 3, 7])
@pytest.mark.parametrize("cpus", [[2], [1, 2, 2], [2, 2, 2], [4], [16, 2], [1, 1, 1, 1]])
def test_pools_leave_a_decode_task_its_cpus_wherever_ray_places_them(
    monkeypatch: pytest.MonkeyPatch, cpus: list[int], members: int
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    sizes, pool = plan_pools(members)
    assert len(sizes) == members and min(sizes) >= 1
    assert pool.actors == sum(sizes) and 1 <= pool.threads <= max(cpus)
    # As many as fit on each node, and no node left with enough: more actors than there are.
    to_fill = [int((node - pool.decode_cpus) / pool.num_cpus) + 1 for node in cpus if node >= pool.decode_cpus]
    assert sum(to_fill) > pool.actors
    assert plan_pools(members, sizes=[2] * members)[0] == [2] * members


# The command


def test_the_command_takes_models_layout_and_cascade(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for name in LAYOUTS:
        monkeypatch.setitem(LAYOUTS, name, lambda *given, name=name: asked.append((name, *given)))
    monkeypatch.setattr("snippets.checkpoint.check_checkpoint", lambda model: asked.append(model))
    text = [
        "--images",
        "i",
        "--models",
        "a,b",
        "--layout",
        "pools",
        "--by",
        "vote",
        "--sure",
        "0.7",
        "--limit",
        "5",
    ]
    ensemble.run(build_parser(ensemble).parse_args(text))
    assert asked == ["a", "b", ("pools", "i", ["a", "b"], 5, Rule("vote", None, 0.7), None)]


@pytest.mark.parametrize("sure", ["1.5", "-1", "x"])
def test_sure_is_a_share(sure: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_parser(ensemble).parse_args(["--sure", sure])
    assert f"must be a number from 0 to 1, not {sure}" in capsys.readouterr().err
