"""A network is compiled once a machine, found by what it was made of, and computes what PyTorch does."""

from __future__ import annotations

import fcntl
import importlib.metadata
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx
import openvino
import pytest
import ray
from pyarrow import fs

from snippets.benchmark.provenance import read_hardware
from snippets.command import build_parser
from snippets.fundamentals.actor_pool import Classifier, decode, load_preprocessing
from snippets.optimization import engines
from snippets.optimization.engines import (
    ENGINES,
    Calibration,
    build_engine,
    build_once,
    choose_calibration,
    decode_calibration,
    engine_key,
    open_engine,
    read_labels,
)
from snippets.samples import DEFAULT_ROOT

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

FOLDER = str(DEFAULT_ROOT.parent / "engines")  # kept between runs, as the samples are


@pytest.fixture(scope="module")
def calibration(sample_set: Samples) -> Calibration:
    """The images with which the page calibrates, so that both use one artefact."""
    return choose_calibration(str(sample_set.images), skip=16, count=32)


@pytest.fixture(scope="module")
def images(sample_set: Samples, spread_images: list[str]) -> np.ndarray:
    """Sixteen decoded images over all classes, none of which calibrates."""
    to = load_preprocessing(str(sample_set.model))
    return np.asarray(decode({"id": spread_images[::4]}, fs.LocalFileSystem(), to)["image"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the files that make an artefact, and one that does not."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "README.md"):
        (folder / name).write_text(name)
    return folder


# Once a machine


def test_of_two_processes_that_ask_at_once_one_builds_and_the_other_waits(
    connected: RayCluster, tmp_path: Path
) -> None:
    def ask(name: str) -> bool:
        def build(path: Path) -> None:
            (tmp_path / f"built-by-{name}").touch()
            deadline = time.monotonic() + 120
            while len([*tmp_path.glob("locks-*")]) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            path.write_text(name)

        def tell(*given: Any) -> None:
            (tmp_path / f"locks-{name}").touch()
            lock(*given)

        lock = fcntl.flock
        with mock.patch.object(fcntl, "flock", tell):
            built = build_once({"of": "a test"}, build, str(tmp_path / "engines"))
        assert built.path.read_text() in ("a", "b")
        return built.seconds is not None

    task = ray.remote(num_cpus=0)(ask)
    assert sorted(ray.get([task.remote("a"), task.remote("b")])) == [False, True]
    assert len([*tmp_path.glob("built-by-*")]) == 1


def test_a_build_that_ends_halfway_leaves_nothing_to_be_used(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("ended")

    with pytest.raises(RuntimeError):
        build_once({}, fail, str(tmp_path))

    def succeed(path: Path) -> None:
        path.write_text("whole")

    built = build_once({}, succeed, str(tmp_path))
    assert (built.path.read_text(), built.seconds is None) == ("whole", False)
    assert sorted(path.name for path in built.path.parent.iterdir()) == ["key.json", "lock", "model.onnx"]


# The key


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_checkpoint_that_changes_gets_another_key(checkpoint: Path, name: str) -> None:
    before = engine_key(str(checkpoint), "float32")
    assert engine_key(str(checkpoint), "float32") == before
    (checkpoint / "README.md").write_text("says nothing of the weights")
    assert engine_key(str(checkpoint), "float32") == before
    (checkpoint / name).write_text("changed")
    assert engine_key(str(checkpoint), "float32") != before


def test_the_same_checkpoint_elsewhere_has_the_same_key(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert engine_key(str(copy), "float32") == engine_key(str(checkpoint), "float32")


def test_other_versions_get_another_key(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_key(str(checkpoint), "float32")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"newer {name}")
    assert engine_key(str(checkpoint), "float32") != before


def test_int8_depends_on_the_images_that_calibrate_and_float32_does_not(checkpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_text("one")
    calibration = Calibration(fs.LocalFileSystem(), (str(image),))
    before = {artefact: engine_key(str(checkpoint), artefact, calibration) for artefact in ("float32", "int8")}
    image.write_text("other")
    after = {artefact: engine_key(str(checkpoint), artefact, calibration) for artefact in ("float32", "int8")}
    assert {name for name in before if before[name] != after[name]} == {"int8"}
    with pytest.raises(ValueError, match=r"^An int8 engine needs images to calibrate with\.$"):
        engine_key(str(checkpoint), "int8")


# Calibration


def test_images_that_are_compared_do_not_calibrate(tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / f"{index:02}.jpg").touch()
    found = choose_calibration(str(tmp_path), skip=4, count=4)
    assert [Path(path).stem for path in found.paths] == ["04", "06", "08", "10"]
    assert len(choose_calibration(str(tmp_path), skip=4).paths) == 8
    with pytest.raises(ValueError, match=r"^There is no image to calibrate with beyond the first 12\.$"):
        choose_calibration(str(tmp_path), skip=12)


def test_a_file_that_cannot_be_decoded_does_not_calibrate(sample_set: Samples, tmp_path: Path) -> None:
    corrupt, whole = tmp_path / "corrupt.jpg", str(next(sample_set.images.rglob("*.jpg")))
    corrupt.write_text("no image")
    model = str(sample_set.model)
    pixels = decode_calibration(model, Calibration(fs.LocalFileSystem(), (str(corrupt), whole)))
    assert pixels.shape == (1, 224, 224, 3) and pixels.dtype == np.uint8
    with pytest.raises(ValueError, match=r"^None of the images to calibrate with can be decoded\.$"):
        decode_calibration(model, Calibration(fs.LocalFileSystem(), (str(corrupt),)))


# What is built


def test_the_file_takes_bytes_and_returns_probabilities(sample_set: Samples, images: np.ndarray) -> None:
    path = build_engine(str(sample_set.model), folder=FOLDER).path
    graph = onnx.load(path).graph
    [given] = graph.input
    size = [dimension.dim_value or dimension.dim_param for dimension in given.type.tensor_type.shape.dim]
    assert (given.type.tensor_type.elem_type, size) == (onnx.TensorProto.UINT8, ["batch", 224, 224, 3])
    probabilities = open_engine(path, ENGINES["onnxruntime-float32"], 224)(images)
    assert probabilities.shape == (16, len(read_labels(str(sample_set.model))))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_weights_are_quantized_with_a_scale_a_channel(sample_set: Samples, calibration: Calibration) -> None:
    graph = onnx.load(build_engine(str(sample_set.model), "int8", calibration, FOLDER).path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 53
    for node in convolutions:
        weights, scale, zero = made_by[node.input[1]].input
        assert made_by[node.input[0]].op_type == "DequantizeLinear"
        assert tensors[weights].data_type == onnx.TensorProto.INT8
        assert list(tensors[scale].dims) == [tensors[weights].dims[0]]
        assert not onnx.numpy_helper.to_array(tensors[zero]).any()


@pytest.fixture(scope="module")
def expected(sample_set: Samples, images: np.ndarray) -> dict[str, list[Any]]:
    """PyTorch's labels and scores of the images, in float32."""
    model = str(sample_set.model)
    batch = {"id": np.arange(16).astype(str), "image": images, "error": np.full(16, "")}
    found: dict[str, list[Any]] = Classifier(model, load_preprocessing(model), 16, "float32", 2)(batch).to_pydict()
    return found


@pytest.mark.parametrize(
    ("name", "least", "error"),
    [
        ("onnxruntime-float32", 16, 1e-4),
        ("openvino-float32", 16, 1e-4),
        ("openvino-bfloat16", 14, 0.1),
        ("openvino-int8", 13, 0.3),
    ],
)
def test_engines_compute_what_pytorch_does(
    sample_set: Samples,
    images: np.ndarray,
    expected: dict[str, list[Any]],
    calibration: Calibration,
    name: str,
    least: int,
    error: float,
) -> None:
    model, engine = str(sample_set.model), ENGINES[name]
    forward = open_engine(build_engine(model, engine.artefact, calibration, FOLDER).path, engine, 224, threads=2)
    probabilities = forward(images)
    kept = probabilities.copy()
    forward(np.zeros_like(images))
    np.testing.assert_array_equal(probabilities, kept)  # the next batch writes elsewhere
    labels = read_labels(model)[probabilities.argmax(-1)]
    assert sum(labels == expected["label"]) >= least
    assert np.abs(probabilities.max(-1) - expected["score"]).max() < error


def test_openvino_takes_bfloat16_where_the_processor_has_it_unless_told_not_to(sample_set: Samples) -> None:
    path = build_engine(str(sample_set.model), folder=FOLDER).path
    found = set(read_hardware().instruction_sets)
    if "avx2" not in found:
        pytest.skip("OpenVINO's choice on ARM is float16")
    left_alone = openvino.compile_model(path, "CPU").get_property("INFERENCE_PRECISION_HINT")
    has_bfloat16 = not found.isdisjoint({"avx512_bf16", "amx_bf16"})
    assert left_alone == (openvino.Type.bf16 if has_bfloat16 else openvino.Type.f32)


@pytest.mark.parametrize(("name", "hint"), [("openvino-float32", "f32"), ("openvino-bfloat16", "bf16")])
def test_the_precision_and_the_threads_are_said_and_not_left_to_openvino(
    sample_set: Samples, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    given: list[Any] = []
    compile_model = openvino.compile_model

    def watch(network: Any, device: str, config: dict[str, Any]) -> Any:
        given.append(config)
        return compile_model(network, device, config)

    monkeypatch.setattr(openvino, "compile_model", watch)
    open_engine(build_engine(str(sample_set.model), folder=FOLDER).path, ENGINES[name], 224, threads=1)
    assert given == [
        {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": hint,
        }
    ]


NO_TORCH = """
import sys
import numpy as np
from snippets.fundamentals.actor_pool import load_preprocessing
from snippets.optimization.engines import ENGINES
from snippets.optimization.ladder import CompiledClassifier

_, model, folder = sys.argv
batch = {"id": np.array(["a"]), "image": np.zeros((1, 224, 224, 3), np.uint8), "error": np.array([""])}
for name in ("onnxruntime-float32", "openvino-float32"):
    classifier = CompiledClassifier(model, ENGINES[name], load_preprocessing(model), folder=folder)
    assert classifier(batch)["label"].null_count == 0
print(sorted({"torch", "transformers"} & sys.modules.keys()))
"""


def test_neither_pytorch_nor_transformers_is_imported_where_the_file_is_there(sample_set: Samples) -> None:
    build_engine(str(sample_set.model), folder=FOLDER)
    command = [sys.executable, "-c", NO_TORCH, str(sample_set.model), FOLDER]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_command_says_what_was_built(sample_set: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build(model: str, artefact: str, calibration: Calibration, folder: str) -> engines.Built:
        asked.append((model, artefact, len(calibration.paths), folder))
        return engines.Built(Path(__file__), 2.0)

    monkeypatch.setattr(engines, "build_engine", build)
    common = ["--images", str(sample_set.images), "--model", "m", "--folder", "f", "--limit", "8"]
    rows = engines.run(build_parser(engines).parse_args(common))
    assert asked == [("m", "float32", 8, "f"), ("m", "int8", 8, "f")]
    assert [(row["artefact"], row["seconds"]) for row in rows] == [("float32", 2.0), ("int8", 2.0)]
