"""Each rung is a pipeline that runs, keeps every row, and differs from the one before by what it says."""

from __future__ import annotations

import importlib.metadata
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from snippets.command import build_parser
from snippets.fundamentals import stepwise
from snippets.fundamentals.actor_pool import Classifier, decode, decode_image, load_preprocessing
from snippets.optimization import engines, ladder
from snippets.optimization.engines import BATCH_SIZE, ENGINES, Calibration, build_engine, engine_key
from snippets.optimization.ladder import (
    RUNGS,
    CompiledClassifier,
    classify_compiled,
    decode_cheaply,
    decode_image_cheaply,
)
from tests.unit.optimization.test_engines import FOLDER

if TYPE_CHECKING:
    from pathlib import Path

    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster


# The way


def test_the_first_rungs_are_steps_of_part_1(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for name in stepwise.STEPS:
        watched = stepwise.Step("", "", lambda *given, name=name: asked.append((name, *given)))
        monkeypatch.setitem(stepwise.STEPS, name, watched)
    eager = [name for name, rung in RUNGS.items() if rung.engine == "eager"]
    for name in eager:
        RUNGS[name].run("images", "model", limit=7, calibration=None, folder="f")
    steps = ["naive", "kept", "batched", "memory", "decoded", "sized"]
    assert asked == [(name, "images", "model", 7) for name in steps]
    assert eager == [*RUNGS][: len(steps)]


def test_each_compiled_rung_changes_the_engine_or_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(rung.engine, rung.decoder) for rung in RUNGS.values() if rung.engine != "eager"]
    assert found == [
        ("onnxruntime-float32", decode),
        ("openvino-float32", decode),
        ("openvino-bfloat16", decode),
        ("openvino-int8", decode),
        ("openvino-int8", decode_cheaply),
    ]
    for rung in RUNGS.values():
        if rung.engine in ENGINES:
            assert rung.run.keywords == {"engine": rung.engine, "decoder": rung.decoder}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "calibrates"),
    [
        (["--rung", "openvino"], None),
        (["--limit", "4"], ["4", "5"]),
        (["--limit", "6"], ["0", "1", "2", "3", "4", "5"]),  # all there are
        ([], ["0", "1", "2", "3", "4", "5"]),
        (["--limit", "4", "--calibration", "SOURCE"], ["0", "1", "2", "3", "4", "5"]),
    ],
)
def test_the_command_calibrates_with_images_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], calibrates: list[str] | None
) -> None:
    for index in range(6):
        (tmp_path / f"{index}.jpg").touch()
    given: dict[str, Any] = {}
    for name, rung in RUNGS.items():
        watched = ladder.Rung("", "", rung.engine, lambda *_, name=name, **named: given.update(named, name=name))
        monkeypatch.setitem(RUNGS, name, watched)
    text = [str(tmp_path) if argument == "SOURCE" else argument for argument in arguments]
    ladder.run(build_parser(ladder).parse_args(["--images", str(tmp_path), "--model", "m", *text]))
    assert given["name"] == ("openvino" if calibrates is None else "cheap-decode")
    found = given["calibration"]
    assert (None if found is None else [path[-5] for path in found.paths]) == calibrates


# The class


class Fake(CompiledClassifier):
    """A classifier whose engine says label 1 of everything, and keeps what it was given."""

    def __init__(self) -> None:
        self.labels = np.array(["ant", "bee"])
        self.given: list[np.ndarray] = []

    def forward(self, images: np.ndarray) -> np.ndarray:
        self.given.append(images.copy())
        return np.tile(np.array([0.25, 0.75], np.float32), (len(images), 1))


def batch_of(errors: list[str]) -> dict[str, Any]:
    images = np.zeros((len(errors), 2, 2, 3), np.uint8)
    images += np.arange(1, len(errors) + 1, dtype=np.uint8)[:, None, None, None]
    return {"id": np.array([*map(str, range(len(errors)))]), "image": images, "error": np.array(errors)}


@pytest.mark.parametrize("errors", [[""] * 16, ["", "", ""], ["", "broken", ""], ["broken"]])
def test_the_engine_always_sees_one_shape(errors: list[str]) -> None:
    classifier = Fake()
    classifier(batch_of(errors))
    [given] = classifier.given
    assert given.shape == (BATCH_SIZE, 2, 2, 3)
    whole = [index + 1 for index, error in enumerate(errors) if not error]
    assert given[:, 0, 0, 0].tolist() == whole + [0] * (BATCH_SIZE - len(whole))


def test_a_row_with_an_error_keeps_it_and_has_no_label() -> None:
    rows = Fake()(batch_of(["", "OSError: broken", ""])).to_pylist()
    assert [row["label"] for row in rows] == ["bee", None, "bee"]
    assert [row["score"] for row in rows] == [0.75, None, 0.75]
    assert [row["error"] for row in rows] == [None, "OSError: broken", None]
    assert Fake()(batch_of(["broken"])).to_pylist()[0]["label"] is None


# The decoder


def encode(width: int, height: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Return an image with a gradient."""
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    pixels = np.broadcast_to(ramp, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "kind", "resized_from"),
    [
        ((500, 375), "JPEG", (500, 375)),  # half of it would be less than the model's
        ((512, 512), "JPEG", (256, 256)),
        ((2400, 1800), "JPEG", (600, 450)),
        ((2400, 1800), "PNG", (2400, 1800)),  # has no smaller form within
    ],
)
def test_draft_mode_decodes_at_a_part_of_the_size_where_that_is_enough(
    sample_set: Samples,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    kind: str,
    resized_from: tuple[int, int],
) -> None:
    seen: list[Any] = []
    resize = Image.Image.resize

    def watch(self: Image.Image, *given: Any) -> Image.Image:
        seen.append((self.size, given[1]))
        return resize(self, *given)

    monkeypatch.setattr(Image.Image, "resize", watch)
    to = load_preprocessing(str(sample_set.model))
    pixels = decode_image_cheaply(encode(*size, kind), to)
    assert pixels.shape == (224, 224, 3) and pixels.dtype == np.uint8
    assert seen == [(resized_from, Image.Resampling.BILINEAR)]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(500, 375), (2400, 1800), (375, 500), (180, 135)])
def test_the_cheap_decode_shows_the_same_part_of_the_image(
    sample_set: Samples, size: tuple[int, int], mode: str
) -> None:
    to, encoded = load_preprocessing(str(sample_set.model)), encode(*size, mode=mode)
    cheap, full = (read(encoded, to).astype(int) for read in (decode_image_cheaply, decode_image))
    assert np.abs(cheap - full).max() <= 8  # of 255 levels: a shift by two pixels would be more


def test_a_file_that_cannot_be_decoded_cheaply_keeps_its_row(sample_set: Samples, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(500, 375))
    (tmp_path / "b.jpg").write_text("no image")
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    found = decode_cheaply({"id": paths}, fs.LocalFileSystem(), load_preprocessing(str(sample_set.model)))
    assert [error.partition(":")[0] for error in found["error"]] == [
        "",
        "UnidentifiedImageError",
        "FileNotFoundError",
    ]
    assert found["image"][0].any() and not found["image"][1:].any()


# The pipeline


def test_the_pipeline_keeps_every_row_and_pytorchs_labels(
    connected: RayCluster,
    sample_set: Samples,
    spread_images: list[str],
    tmp_path: Path,
) -> None:
    corrupt = tmp_path / "corrupt.jpg"
    corrupt.write_text("no image")
    model, source = str(sample_set.model), [*spread_images[::4], str(corrupt)]
    rows = {
        row["id"]: row
        for row in classify_compiled(source, model, engine="openvino-float32", folder=FOLDER).take_all()
    }
    assert rows.keys() == {*source}
    assert rows[str(corrupt)]["label"] is None and rows[str(corrupt)]["error"]
    to = load_preprocessing(model)
    decoded = decode({"id": np.array(source[:-1])}, fs.LocalFileSystem(), to)
    expected = Classifier(model, to, 16, "float32", 2)(
        {**decoded, "error": np.array(decoded["error"])}
    ).to_pylist()
    assert {row["id"]: row["label"] for row in expected} == {path: rows[path]["label"] for path in source[:-1]}


def test_a_worker_finds_the_file_by_the_drivers_key_without_what_builds_it(
    connected: RayCluster, sample_set: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(sample_set.model)
    there = build_engine(model, folder=FOLDER)
    key = engine_key(model, "float32")

    class Told(CompiledClassifier):
        def __init__(self, *given: Any) -> None:
            self.key = given[-1]

        def __call__(self, batch: dict[str, Any]) -> Any:
            return {"key": [json.dumps(self.key)] * len(batch["id"])}

    monkeypatch.setattr(ladder, "CompiledClassifier", Told)
    [row] = classify_compiled(str(sample_set.images), model, 1, "openvino-float32", folder=FOLDER).take_all()
    assert json.loads(row["key"]) == key

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert build_engine(model, folder=FOLDER, key=key) == engines.Built(there.path, None)
    asked: list[Any] = []

    def find(*given: Any) -> engines.Built:
        asked.append(given)
        return there

    monkeypatch.setattr(ladder, "build_engine", find)
    monkeypatch.setattr(ladder, "open_engine", lambda *_, **__: None)
    CompiledClassifier(model, ENGINES["openvino-float32"], load_preprocessing(model), folder=FOLDER, key=key)
    assert asked == [(model, "float32", None, FOLDER, key)]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        build_engine(model, folder=FOLDER)


def test_the_pipeline_is_the_pools_with_another_class(
    connected: RayCluster, sample_set: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = Calibration(fs.LocalFileSystem(), ())
    predictions = classify_compiled(
        str(sample_set.images), str(sample_set.model), 64, "openvino-int8", decode_cheaply, calibration
    )
    predictions.explain()
    plan = capsys.readouterr().out
    for operator in (
        "ActorPoolMapOperator[MapBatches(CompiledClassifier)]",
        "TaskPoolMapOperator[MapBatches(decode_cheaply)]",
    ):
        assert operator in plan
