"""The rungs for a GPU answer as the pool of Part 1 does; what needs no device is shown on the CPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from snippets.fundamentals.actor_pool import Classifier, decode, load_preprocessing
from snippets.optimization import gpu
from snippets.optimization.gpu import (
    DEVICE_ENGINES,
    GPU_RUNGS,
    DeviceClassifier,
    DeviceEngine,
    Overlapped,
    classify_on_gpu,
    load_network,
    open_on_device,
    record_graph,
)

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

CPU = torch.device("cpu")


def batch_of(sample_set: Samples, paths: list[str]) -> dict[str, np.ndarray]:
    """Return images as the decode stage hands them on."""
    from pyarrow import fs

    decoded = decode({"id": paths}, fs.LocalFileSystem(), load_preprocessing(str(sample_set.model)))
    return {name: np.asarray(column) for name, column in decoded.items()}


@pytest.mark.parametrize("images", [0, 1, 4, 5, 11, 12])
def test_each_chunk_has_one_shape_and_each_image_comes_back_in_its_place(images: int) -> None:
    shapes = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(batch.shape))
        return batch[:, 0, 0, :1].float()

    given = np.zeros((images, 2, 2, 3), np.uint8)
    given[:, 0, 0, 0] = np.arange(images) + 1
    found = Overlapped(forward, (4, 2, 2, 3), CPU)(given)
    assert found.ravel().tolist() == [*range(1, images + 1)]
    assert shapes == [(4, 2, 2, 3)] * max(1, -(-images // 4))


def test_the_network_takes_bytes_a_quarter_of_the_floats(sample_set: Samples) -> None:
    model, to = str(sample_set.model), load_preprocessing(str(sample_set.model))
    given: list[torch.Tensor] = []
    opened = open_on_device(model, to, DeviceEngine("float32"), chunk=1, use_gpu=False)
    forward = opened.forward
    opened.forward = lambda images: given.append(images) or forward(images)  # type: ignore[func-returns-value]
    opened(np.zeros((1, to.crop, to.crop, 3), np.uint8))
    assert (given[0].dtype, given[0].nbytes * 4) == (torch.uint8, given[0].float().nbytes)


def test_a_broken_image_keeps_its_row_and_the_others_the_labels_of_the_pool(
    sample_set: Samples, spread_images: list[str], other_file: str
) -> None:
    model, to = str(sample_set.model), load_preprocessing(str(sample_set.model))
    batch = batch_of(sample_set, [*spread_images[:5], other_file, *spread_images[5:8]])
    here = DeviceClassifier(model, to, DeviceEngine("float32"), chunk=4, use_gpu=False)(batch).to_pylist()
    pool = Classifier(model, to, 16, "float32", use_gpu=False)(batch).to_pylist()
    assert [row["label"] for row in here] == [row["label"] for row in pool]
    assert [row["id"] for row in here if row["error"]] == [other_file]
    for row, other in zip(here, pool, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.fixture
def other_file(sample_set: Samples) -> str:
    """A file that is no image."""
    return str(sample_set.hostile / "text.jpg")


def test_a_compiled_network_is_compiled_once_for_all_batches(
    sample_set: Samples, spread_images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    real = torch.compile  # whose own backend needs a C compiler; what is traced, and how often, is the same
    monkeypatch.setattr(
        torch, "compile", lambda forward, mode, dynamic: real(forward, backend=backend, dynamic=dynamic)
    )
    model, to = str(sample_set.model), load_preprocessing(str(sample_set.model))
    images = batch_of(sample_set, spread_images[:7])["image"]
    engine = DeviceEngine("float32", "max-autotune-no-cudagraphs")
    forward = open_on_device(model, to, engine, chunk=4, use_gpu=False)
    expected = open_on_device(model, to, DeviceEngine("float32"), chunk=4, use_gpu=False)(images)
    np.testing.assert_allclose(forward(images), expected, atol=1e-4)
    forward(images[:3])
    assert len(compiled) == 1
    with torch.inference_mode():
        forward.forward(torch.zeros(5, to.crop, to.crop, 3, dtype=torch.uint8))
    assert len(compiled) == 2


def test_each_rung_differs_from_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gpu, "classify_on_gpu", lambda *given, **named: asked.append((given[3:], named)))
    for rung in [*GPU_RUNGS.values()][1:]:
        rung.run("images", "model", limit=3, calibration=None, folder="f")
    assert len(asked) == len(GPU_RUNGS) - 1
    assert all(before != after for before, after in itertools.pairwise(asked))
    assert {rung.engine for rung in GPU_RUNGS.values()} == {"eager", *DEVICE_ENGINES}


def test_the_pipeline_keeps_every_row_and_reserves_what_it_says(
    connected: RayCluster, sample_set: Samples, spread_images: list[str], other_file: str
) -> None:
    predictions = classify_on_gpu(
        [*spread_images[:9], other_file],
        str(sample_set.model),
        engine=DeviceEngine("float32"),
        chunk=2,
        chunks=2,
        num_gpus=0,
    )
    rows = {row["id"]: row for row in predictions.take_all()}
    assert rows.keys() == {*spread_images[:9], other_file}
    assert [row["id"] for row in rows.values() if row["error"]] == [other_file]


def test_half_a_gpu_an_actor_is_two_actors_on_each(
    connected: RayCluster, sample_set: Samples, spread_images: list[str], pool_sizes: list[int]
) -> None:
    for share in (0.5, 1):
        classify_on_gpu(spread_images, str(sample_set.model), chunk=2, chunks=2, num_gpus=share)
    assert pool_sizes == [4, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", DEVICE_ENGINES)
def test_each_engine_gives_the_labels_of_float32(sample_set: Samples, spread_images: list[str], name: str) -> None:
    model, to = str(sample_set.model), load_preprocessing(str(sample_set.model))
    images = batch_of(sample_set, spread_images)["image"]
    expected = open_on_device(model, to, DeviceEngine("float32"), use_gpu=False)(images)
    forward = open_on_device(model, to, DEVICE_ENGINES[name], chunk=16)
    for found in (forward(images), forward(images)):  # a second time through the same buffers
        np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_recorded_pass_does_not_keep_what_it_was_recorded_with(
    sample_set: Samples, spread_images: list[str]
) -> None:
    model, to, device = str(sample_set.model), load_preprocessing(str(sample_set.model)), torch.device("cuda")
    images = torch.from_numpy(batch_of(sample_set, spread_images[:8])["image"]).to(device)
    with torch.inference_mode():
        forward = load_network(model, to, "float16", device)
        replay = record_graph(forward, torch.zeros_like(images))
        first, expected = replay(images), forward(images)
        replay(torch.zeros_like(images))
        torch.testing.assert_close(first, expected, atol=1e-3, rtol=0)
