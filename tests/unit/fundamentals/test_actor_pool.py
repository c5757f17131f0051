"""The optimized pipeline loads once per actor, agrees with the naive one, and fits the cluster that it finds."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

from snippets.command import build_parser
from snippets.fundamentals import actor_pool
from snippets.fundamentals.actor_pool import (
    RESULT,
    Classifier,
    Pool,
    classify,
    decode_image,
    load_preprocessing,
    plan_pool,
)

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.conftest import RecordedRun
    from tests.ray_cluster import RayCluster

Nodes = Sequence[tuple[float, float]]  # CPUs and GPUs of each


# What ran in the workers


def test_each_actor_loads_the_model_once(pool_run: RecordedRun) -> None:
    record, _ = pool_run
    loads = record.of("load")
    assert len(loads) == len({load.worker for load in loads}) == 2  # an actor for each logical GPU
    assert {batch.worker for batch in record.of("batch")} <= {load.worker for load in loads}
    assert len(record.of("batch")) > len(loads)


def test_decoding_runs_in_other_workers_than_the_model(pool_run: RecordedRun) -> None:
    record, _ = pool_run
    decoding = record.of("decode")
    assert sum(event.rows for event in decoding) == 64
    assert not {event.worker for event in decoding} & {event.worker for event in record.of("batch")}


def test_no_more_batches_run_than_hold_the_images(pool_run: RecordedRun) -> None:
    rows = [batch.rows for batch in pool_run[0].of("batch")]
    assert (len(rows), sum(rows)) == (6, 64)  # of 12 at the most: five hold 60


def test_every_image_comes_out_exactly_once(pool_run: RecordedRun, spread_images: list[str]) -> None:
    _, rows = pool_run
    assert sorted(row["id"] for row in rows) == spread_images
    assert all(row["error"] is None for row in rows)


def test_labels_equal_those_of_the_naive_pipeline(pool_run: RecordedRun, naive_run: RecordedRun) -> None:
    ours, naive = ({row["id"]: row for row in rows} for _, rows in (pool_run, naive_run))
    assert len({row["label"] for row in naive.values()}) > 5
    assert [ours[name]["label"] for name in naive] == [row["label"] for row in naive.values()]
    differences = [abs(ours[name]["score"] - naive[name]["score"]) for name in naive]
    assert max(differences) < 0.02


def test_bfloat16_computes_in_bfloat16_and_agrees_on_most_labels(
    connected: RayCluster, pool_run: RecordedRun, sample_set: Samples, spread_images: list[str]
) -> None:
    expected = {row["id"]: row for row in pool_run[1]}
    model, images = str(sample_set.model), spread_images[::2]
    rows = classify(images, model, dtype="bfloat16", batch_size=16, actors=1).take_all()
    assert len(rows) == 32
    agree = [row["label"] == expected[row["id"]]["label"] for row in rows]
    assert np.mean(agree) >= 0.9
    assert any(row["score"] != expected[row["id"]]["score"] for row in rows)


def test_decoding_and_the_model_are_operators_of_their_own(
    connected: RayCluster, sample_set: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    classify(str(sample_set.images), str(sample_set.model), 8).explain()
    plan = capsys.readouterr().out
    assert "TaskPoolMapOperator[MapBatches(decode)]" in plan
    assert "ActorPoolMapOperator[MapBatches(Classifier)]" in plan


# The classifier, in this process


@pytest.fixture(scope="module")
def classifier(sample_set: Samples) -> Classifier:
    return Classifier(str(sample_set.model), load_preprocessing(str(sample_set.model)), 4, "float32", threads=2)


@pytest.fixture(scope="module")
def decoded(sample_set: Samples, spread_images: list[str]) -> dict[str, Any]:
    from pyarrow import fs

    batch = {"id": np.array(spread_images[::16])}
    columns = actor_pool.decode(batch, fs.LocalFileSystem(), load_preprocessing(str(sample_set.model)))
    return {name: np.asarray(column) for name, column in columns.items()}


def test_a_padded_batch_gives_what_a_full_one_gives(classifier: Classifier, decoded: dict[str, Any]) -> None:
    full = classifier(decoded)
    part = classifier({name: column[:3] for name, column in decoded.items()})
    assert full.schema == part.schema == RESULT
    assert part["label"].to_pylist() == full["label"].to_pylist()[:3]
    assert np.allclose(part["score"].to_numpy(), full["score"].to_numpy()[:3], atol=1e-5)


def test_the_model_is_given_the_same_shape_whatever_the_batch_holds(
    classifier: Classifier, decoded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, network = [], classifier.network

    def watch(pixels: Any) -> Any:
        import torch

        shapes.append((tuple(pixels.shape), pixels.is_contiguous(memory_format=torch.channels_last)))
        return network(pixels)

    monkeypatch.setattr(classifier, "network", watch)
    for rows in (4, 1):
        classifier({name: column[:rows] for name, column in decoded.items()})
    assert shapes == [((4, 3, 224, 224), True)] * 2


def test_the_weights_lie_in_the_memory_format_of_the_batches(classifier: Classifier) -> None:
    import torch

    kernels = [weight for weight in classifier.network.parameters() if weight.dim() == 4 and weight.shape[-1] > 1]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_an_undecoded_image_between_others_moves_no_label(classifier: Classifier, decoded: dict[str, Any]) -> None:
    labels = classifier(decoded)["label"].to_pylist()
    broken = {**decoded, "error": np.array(["", "OSError: broken", "", ""])}
    result = classifier(broken).to_pydict()
    assert result["label"] == [labels[0], None, *labels[2:]]
    assert result["error"] == [None, "OSError: broken", None, None]
    assert [score is None for score in result["score"]] == [False, True, False, False]


def test_read_only_batches_are_left_as_they_are(classifier: Classifier, decoded: dict[str, Any]) -> None:
    image = decoded["image"].copy()
    image.flags.writeable = False
    classifier({**decoded, "image": image})
    assert np.array_equal(image, decoded["image"])


def test_an_actor_that_reserved_no_gpu_uses_none(sample_set: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as in a worker on a machine with a GPU
    model = str(sample_set.model)
    classifier = Classifier(model, load_preprocessing(model), 4, use_gpu=False)
    assert (classifier.device.type, classifier.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_the_precision_is_the_one_asked_for(sample_set: Samples, decoded: dict[str, Any], dtype: str) -> None:
    import torch

    model = str(sample_set.model)
    classifier = Classifier(model, load_preprocessing(model), 4, dtype)
    automatic = torch.float16 if torch.cuda.is_available() else torch.float32
    assert classifier.dtype == (automatic if dtype == "auto" else getattr(torch, dtype))
    assert {parameter.dtype for parameter in classifier.network.parameters()} == {classifier.dtype}
    assert classifier(decoded)["score"].type == pa.float32()


# Decoding


def make_image(size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A PNG of smooth colours with some texture, so that a shifted crop would show."""
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (300, 300), (1023, 301), (97, 640), (256, 256), (40, 30), (3, 2), (1, 1)]
)
def test_decode_equals_resize_and_crop_of_the_checkpoints_processor(
    sample_set: Samples, size: tuple[int, int]
) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(sample_set.model)
    encoded = make_image(size)
    expected = processor(
        Image.open(io.BytesIO(encoded)), do_rescale=False, do_normalize=False, return_tensors="np"
    )
    ours = decode_image(encoded, load_preprocessing(str(sample_set.model)))
    assert (ours.shape, str(ours.dtype)) == ((224, 224, 3), "uint8")
    difference = abs(expected["pixel_values"][0].transpose(1, 2, 0) - ours.astype(np.float32))
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_a_ten_thousand_pixel_strip_costs_only_its_crop(sample_set: Samples) -> None:
    decoded = decode_image(make_image((10_000, 1)), load_preprocessing(str(sample_set.model)))
    assert decoded.shape == (224, 224, 3)  # resized whole, it would have 2,240,000 x 224 pixels


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_every_mode_becomes_three_channels(sample_set: Samples, mode: str) -> None:
    decoded = decode_image(make_image((60, 40), mode), load_preprocessing(str(sample_set.model)))
    assert decoded.shape == (224, 224, 3)


def test_of_an_animation_the_first_frame_is_decoded(sample_set: Samples) -> None:
    first, second = (Image.new("P", (60, 40), colour) for colour in (1, 2))
    first.putpalette([0, 0, 0, 250, 10, 10, 10, 10, 250])
    second.putpalette(first.getpalette() or [])
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    assert getattr(Image.open(io.BytesIO(buffer.getvalue())), "n_frames", 1) == 2
    decoded = decode_image(buffer.getvalue(), load_preprocessing(str(sample_set.model)))
    assert (decoded == (250, 10, 10)).all()


def test_preprocessing_is_what_the_checkpoint_states(sample_set: Samples) -> None:
    from transformers import AutoImageProcessor

    processor, ours = (
        AutoImageProcessor.from_pretrained(sample_set.model),
        load_preprocessing(str(sample_set.model)),
    )
    assert ours.crop == processor.size["shortest_edge"]
    assert ours.resize == int(ours.crop / processor.crop_pct)
    assert ours.resample == processor.resample
    assert (list(ours.mean), list(ours.std)) == (list(processor.image_mean), list(processor.image_std))


@pytest.mark.parametrize(
    "changed",
    [
        {"crop_pct": None},  # a vision transformer resizes to a square and crops nothing
        {"size": {"height": 224, "width": 224}},
        {"size": {"shortest_edge": 384}},  # from there on, the processor squeezes the whole image
    ],
)
def test_other_steps_than_the_functions_are_refused(
    sample_set: Samples, tmp_path: Path, changed: dict[str, Any]
) -> None:
    stated = json.loads((sample_set.model / "preprocessor_config.json").read_text()) | changed
    stated = {name: value for name, value in stated.items() if value is not None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json asks for other steps than a resize"):
        load_preprocessing(str(tmp_path))


def test_a_size_that_is_a_number_is_the_shorter_edge(sample_set: Samples, tmp_path: Path) -> None:
    stated = json.loads((sample_set.model / "preprocessor_config.json").read_text()) | {"size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    assert load_preprocessing(str(tmp_path)) == load_preprocessing(str(sample_set.model))


def test_preprocessing_of_a_hub_checkpoint_is_read_at_its_revision(
    sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(sample_set.model / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_preprocessing("who/what@abc") == load_preprocessing(str(sample_set.model))
    assert asked == [("who/what", "preprocessor_config.json", "abc")]


# The pool that fits


def actors_that_block(nodes: Nodes, pool: Pool) -> int:
    """How few actors, placed as badly as can be, leave no node with the CPUs of a decode task."""
    actors = 0
    for cpus, _ in nodes:
        while cpus >= pool.decode_cpus:
            cpus -= pool.num_cpus
            actors += 1
    return actors


def set_nodes(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> None:
    """Make Ray report these nodes, and a dead one with 64 CPUs and 8 GPUs."""
    alive = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in nodes]
    for node in alive:  # Ray leaves out what a node has none of
        node["Resources"] = {kind: amount for kind, amount in node["Resources"].items() if amount}  # type: ignore[attr-defined]
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead])


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([(1, 0)], Pool(1, 0.5, 0, 1, 0.5)),
        ([(2, 0)], Pool(2, 0.5, 0, 1, 1)),
        ([(3, 0)], Pool(3, 0.5, 0, 1, 1)),
        ([(16, 0)], Pool(16, 0.5, 0, 1, 1)),
        ([(1, 0), (2, 0), (2, 0)], Pool(5, 0.5, 0, 1, 1)),
        ([(0, 0), (4, 0), (4, 0)], Pool(8, 0.5, 0, 1, 1)),
        ([(1, 0)] * 8, Pool(8, 0.5, 0, 1, 0.5)),
        ([(2, 0)] * 8, Pool(16, 0.5, 0, 1, 1)),
        ([(2, 1)], Pool(1, 0, 1, 2, 1)),
        ([(1, 1)], Pool(1, 0, 1, 1, 1)),
        ([(1, 0), (2, 1), (2, 1)], Pool(2, 0, 1, 2, 1)),
        ([(32, 4), (32, 4)], Pool(8, 0, 1, 8, 1)),
        ([(0, 0), (8, 1), (8, 1)], Pool(2, 0, 1, 8, 1)),
        ([(16, 0), (4, 2)], Pool(2, 0, 1, 10, 1)),
    ],
)
def test_the_default_pool_fits_beside_decoding(
    monkeypatch: pytest.MonkeyPatch, nodes: Nodes, expected: Pool
) -> None:
    set_nodes(monkeypatch, nodes)
    pool = plan_pool()
    assert pool == expected
    if pool.num_gpus:
        assert pool.num_cpus == 0  # so that all CPUs are left for decoding
        assert pool.actors == sum(int(gpus) for _, gpus in nodes)
    else:
        assert pool.actors < actors_that_block(nodes, pool)


@pytest.mark.parametrize(
    "nodes", [[(1, 0)], [(2, 0)], [(16, 0)], [(1, 0), (2, 0), (2, 0)], [(0, 0), (3, 0), (1, 0)]]
)
def test_the_largest_pool_is_one_less_than_could_block_decoding(
    monkeypatch: pytest.MonkeyPatch, nodes: Nodes
) -> None:
    set_nodes(monkeypatch, nodes)
    largest = actors_that_block(nodes, plan_pool()) - 1
    assert plan_pool(actors=largest).actors == largest
    with pytest.raises(ValueError, match=f"^A pool of {largest + 1} actors .* at most {largest} fit"):
        plan_pool(actors=largest + 1)


@pytest.mark.parametrize(
    ("nodes", "num_gpus", "actors"),
    [
        ([(2, 1)], 0.5, 2),
        ([(2, 1)], 0.2, 5),  # 1 // 0.2 is 4
        ([(2, 1), (2, 1)], 0.6, 2),  # no actor lies on two nodes
        ([(8, 4), (8, 3)], 2, 3),
        ([(8, 4)], 0, 8),  # on the CPU, though there are GPUs
    ],
)
def test_gpus_an_actor_override_the_plan(
    monkeypatch: pytest.MonkeyPatch, nodes: Nodes, num_gpus: float, actors: int
) -> None:
    set_nodes(monkeypatch, nodes)
    pool = plan_pool(num_gpus=num_gpus)
    assert (pool.actors, pool.num_gpus) == (actors, num_gpus)


def test_fewer_actors_than_fit_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, [(16, 0)])
    assert plan_pool(actors=4) == Pool(4, 0.5, 0, 4, 1)


def test_an_actor_has_no_more_threads_than_its_node_has_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_nodes(monkeypatch, [(4, 0), (4, 0)])
    assert plan_pool(actors=1) == Pool(1, 0.5, 0, 4, 1)


@pytest.mark.parametrize(
    ("nodes", "arguments", "sentence"),
    [
        ([(2, 0)], {"num_gpus": 1}, r"with 1 GPUs .* with 0 GPUs and 2 CPUs: at most 0 fit\.$"),
        ([(2, 1), (2, 1)], {"num_gpus": 2}, r"with 2 GPUs .* at most 0 fit\.$"),
        ([(2, 1), (2, 1)], {"actors": 3}, r"^A pool of 3 actors .* with 2 GPUs .* at most 2 fit\.$"),
        ([(2, 0)], {"actors": 99}, r"^A pool of 99 actors .* at most 2 fit\.$"),
        ([(0, 0)], {}, r"^A pool of 1 actors .* 0 CPUs: at most 0 fit\.$"),  # a head whose workers are not up yet
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, nodes: Nodes, arguments: dict[str, Any], sentence: str
) -> None:
    set_nodes(monkeypatch, nodes)
    with pytest.raises(ValueError, match=sentence):
        plan_pool(**arguments)


def test_options_of_the_command_override_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(actor_pool, "classify", lambda *arguments: asked.append(arguments))
    parser = build_parser(actor_pool)
    command = "--images i --model m --limit 7 --dtype bfloat16 --batch-size 3 --actors 2 --num-gpus 0.5"
    actor_pool.run(parser.parse_args(command.split()))
    actor_pool.run(parser.parse_args(["--images", "i", "--model", "m"]))
    assert asked == [("i", "m", 7, "bfloat16", 3, 2, 0.5), ("i", "m", None, "auto", None, None, None)]


def test_no_more_actors_start_than_there_are_blocks(
    connected: RayCluster, sample_set: Samples, pool_sizes: list[int]
) -> None:
    for limit in (4, 5, 60):
        classify(str(sample_set.images), str(sample_set.model), limit, batch_size=4)
    assert pool_sizes == [1, 2, 2]


@pytest.mark.parametrize(
    ("blocks_in_flight", "is_held_back"), [(actor_pool.BLOCKS_IN_FLIGHT, True), (9999, False)]
)
def test_decoding_is_held_back_while_the_model_is_busy(
    connected: RayCluster,
    sample_set: Samples,
    monkeypatch: pytest.MonkeyPatch,
    blocks_in_flight: int,
    is_held_back: bool,
) -> None:
    def decode(batch: dict[str, Any], filesystem: object, to: actor_pool.Preprocessing) -> dict[str, Any]:
        images = np.zeros((len(batch["id"]), to.crop, to.crop, 3), np.uint8)
        return {"id": batch["id"], "image": images, "decoded": np.full(len(images), time.time())}

    class Busy:
        def __init__(self, *_: object) -> None:
            pass

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            time.sleep(0.02)
            return {"decoded": batch["decoded"], "classified": np.full(len(batch["id"]), time.time())}

    monkeypatch.setattr(actor_pool, "decode", decode)
    monkeypatch.setattr(actor_pool, "Classifier", Busy)
    monkeypatch.setattr(actor_pool, "BLOCKS_IN_FLIGHT", blocks_in_flight)
    paths = sorted(str(path) for path in sample_set.images.rglob("*.jpg"))[:192]
    rows = classify(paths, str(sample_set.model), actors=1, batch_size=1).take_all()
    waiting = [
        sum(row["decoded"] <= now < row["classified"] for row in rows) for now in {row["decoded"] for row in rows}
    ]
    assert len(rows) == len(paths)
    assert (max(waiting) <= 8 * 8) is is_held_back  # eight blocks of eight images


def test_with_two_logical_gpus_the_pool_has_two_actors(connected: RayCluster) -> None:
    assert plan_pool() == Pool(2, 0, 1, 2, 1)


def test_without_gpus_the_largest_pool_leaves_decoding_its_cpus(connected: RayCluster) -> None:
    class Count:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return batch

    assert plan_pool(num_gpus=0) == Pool(5, 0.5, 0, 1, 1)
    pool = plan_pool(actors=6, num_gpus=0)
    with pytest.raises(ValueError, match="at most 6 fit"):  # 7 could leave half a CPU on each node: no progress
        plan_pool(actors=7, num_gpus=0)
    blocks = [pa.table({"id": [index]}) for index in range(24)]
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(lambda batch: batch, num_cpus=pool.decode_cpus)
        .map_batches(
            Count,
            batch_size=1,
            num_cpus=pool.num_cpus,
            compute=ray.data.ActorPoolStrategy(size=pool.actors),
        )
    )
    dataset.context.execution_no_progress_timeout_s = 60
    assert sorted(row["id"] for row in dataset.take_all()) == list(range(24))
