"""A model of one's own runs in the pipeline of part 1: its loads, its rows, its errors and its columns."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import transformers
from PIL import Image
from pyarrow import fs

from snippets.command import build_parser
from snippets.fundamentals.actor_pool import RESULT, decode, load_preprocessing
from snippets.optimization import own_model
from snippets.optimization.ensemble_models import build_small_models
from snippets.optimization.own_model import MODELS, Worker, infer, to_column
from snippets.optimization.own_model_examples import (
    EmbeddingModel,
    StateDictModel,
    TextModel,
    TransformerModel,
    load_squeezing,
    normalize,
    squeeze,
    tokenize,
    tokenizing,
)
from snippets.optimization.own_model_samples import build_state_dict, build_text_encoder

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

LABELS = ("low", "middle", "high")
ACTORS = 4  # on three nodes
hub: Any = transformers


@pytest.fixture(scope="module")
def rows(spread_images: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Eight images, and one file that cannot be decoded."""
    corrupt = tmp_path_factory.mktemp("images") / "corrupt.jpg"
    corrupt.write_bytes(b"no image")
    return [{"id": path} for path in [*spread_images[::8], str(corrupt)]]


@pytest.fixture(scope="module")
def decoding(sample_set: Samples) -> dict[str, Any]:
    """What `decode` needs for part 1's checkpoint."""
    return {"filesystem": fs.LocalFileSystem(), "to": load_preprocessing(str(sample_set.model))}


def decoded(rows: list[dict[str, Any]], decoding: dict[str, Any]) -> dict[str, Any]:
    """Return the batch of all rows, decoded here."""
    columns = decode({"id": np.array([row["id"] for row in rows])}, **decoding)
    return {name: np.asarray(column) for name, column in columns.items()}


# The worker, in this process


class Sums:
    """Sums the inputs of a row, and keeps the shapes that it was given."""

    def load(self, device: torch.device) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, inputs: torch.Tensor) -> dict[str, Any]:
        self.shapes.append(tuple(inputs.shape))
        total = inputs.sum(1)
        return {"total": total, "name": np.array([f"n{value}" for value in total]), "pair": inputs.float()}


def batch_of(errors: list[str]) -> dict[str, Any]:
    inputs = np.array([[row, row] for row in range(1, len(errors) + 1)], np.int64)
    return {"id": np.array([str(row) for row in range(len(errors))]), "inputs": inputs, "error": np.array(errors)}


def test_a_model_meets_one_shape_and_rows_with_errors_keep_their_place_without_values() -> None:
    model = Sums()
    worker = Worker(model, "inputs", 4)
    tables = [worker(batch_of(errors)) for errors in (["", "broken", ""], [""] * 4, ["broken"])]
    assert model.shapes == [(4, 2)] * 3
    assert tables[0].to_pylist() == [
        {"id": "0", "total": 2, "name": "n2", "pair": [1.0, 1.0], "error": None},
        {"id": "1", "total": None, "name": None, "pair": None, "error": "broken"},
        {"id": "2", "total": 6, "name": "n6", "pair": [3.0, 3.0], "error": None},
    ]
    assert tables[2].to_pylist() == [{"id": "0", "total": None, "name": None, "pair": None, "error": "broken"}]
    assert tables[0].schema == tables[1].schema == tables[2].schema


def test_a_vector_or_a_matrix_a_row_is_a_list_of_fixed_size() -> None:
    prepared = np.array([True, False, True])
    column = to_column(np.arange(12, dtype=np.float32).reshape(2, 2, 3), prepared)
    assert column.type == pa.list_(pa.float32(), 6)
    assert column.to_pylist() == [[0, 1, 2, 3, 4, 5], None, [6, 7, 8, 9, 10, 11]]


# Four models, in the pipeline


@pytest.mark.cluster
def test_a_state_dict_labels_rows_is_loaded_once_an_actor_and_fetched_once_a_node(
    connected: RayCluster, rows: list[dict[str, Any]], decoding: dict[str, Any], tmp_path: Path
) -> None:
    class Told(StateDictModel):
        """Notes who loads, and who fetches: a line a call, from outside the code that is shown."""

        def load(self, device: torch.device) -> None:
            context = ray.get_runtime_context()
            node, actor = context.get_node_id(), context.get_actor_id()
            copy_files = fs.copy_files

            def copy(*given: Any, **named: Any) -> None:
                (tmp_path / f"fetch-{node}-{actor}").touch()
                copy_files(*given, **named)

            patched = pytest.MonkeyPatch()
            patched.setattr(fs, "copy_files", copy)
            # The nodes are on one machine: a folder each is in the place of a disk each.
            patched.setattr("snippets.optimization.weights.node_folder", lambda: str(tmp_path / node))
            super().load(device)
            patched.undo()
            assert not (tmp_path / f"load-{node}-{actor}").exists()
            (tmp_path / f"load-{node}-{actor}").touch()
            deadline = time.monotonic() + 100  # the rows are done before the last actor is there
            while len([*tmp_path.glob("load-*")]) < ACTORS and time.monotonic() < deadline:
                time.sleep(0.05)

    weights = build_state_dict(tmp_path / "network.pt", len(LABELS))
    results = infer(Told(weights, LABELS, decoding["to"]), rows, decode, decoding, 1, actors=ACTORS, num_gpus=0)
    table = pa.concat_tables(results.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("id")

    loads = [path.name.split("-")[1:] for path in tmp_path.glob("load-*")]
    fetches = [path.name.split("-")[1] for path in tmp_path.glob("fetch-*")]
    nodes = {node for node, _ in loads}
    assert len(loads) == ACTORS > len(nodes)
    assert sorted(fetches) == sorted(nodes)

    assert table.schema == RESULT
    batch = decoded(rows, decoding)
    own = StateDictModel(weights, LABELS, decoding["to"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("snippets.optimization.weights.node_folder", lambda: str(tmp_path / "here"))
        expected = Worker(own, "image", len(rows))(batch).sort_by("id")
    assert table.select(["id", "label"]) == expected.select(["id", "label"])
    np.testing.assert_allclose(table["score"].to_numpy(), expected["score"].to_numpy(), atol=1e-5)
    assert table["error"].null_count == 8


@pytest.mark.cluster
def test_a_vision_transformer_gives_the_labels_of_its_own_processor(
    connected: RayCluster, rows: list[dict[str, Any]], decoding: dict[str, Any]
) -> None:
    checkpoint = str(build_small_models().vit)
    to = load_squeezing(checkpoint)
    own = {**decoding, "to": to, "decode_one": squeeze}
    found = infer(TransformerModel(checkpoint, to), rows, decode, own, actors=1).take_all()
    reference = hub.pipeline("image-classification", model=checkpoint, top_k=1)
    expected = {row["id"]: reference(Image.open(row["id"]).convert("RGB"))[0] for row in rows[:-1]}
    assert len({best["label"] for best in expected.values()}) > 2
    assert {row["id"]: row["label"] for row in found if not row["error"]} == {
        id: best["label"] for id, best in expected.items()
    }
    for row in found:
        if not row["error"]:
            assert abs(row["score"] - expected[row["id"]]["score"]) < 1e-3


@pytest.mark.cluster
def test_embeddings_come_back_from_parquet_as_they_were(
    connected: RayCluster,
    rows: list[dict[str, Any]],
    decoding: dict[str, Any],
    sample_set: Samples,
    tmp_path: Path,
) -> None:
    model = EmbeddingModel(str(sample_set.model), decoding["to"])
    infer(model, rows, decode, decoding, actors=1).write_parquet(str(tmp_path / "embeddings"))
    table = pq.read_table(tmp_path / "embeddings").sort_by("id")
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)
    vectors = table["embedding"].combine_chunks()
    matrix = vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)
    assert (matrix.shape, matrix.dtype) == ((8, 2048), np.float32)
    assert [row["id"] for row in table.to_pylist() if row["embedding"] is None] == [rows[-1]["id"]]

    network = hub.ResNetForImageClassification.from_pretrained(sample_set.model).eval()
    batch = decoded([{"id": row["id"]} for row in table.to_pylist() if not row["error"]], decoding)
    with torch.inference_mode():
        pixels = normalize(torch.from_numpy(batch["image"]), decoding["to"])
        logits = network(pixels).logits
        pooled = network.resnet(pixels).pooler_output.flatten(1)
    np.testing.assert_allclose(matrix, torch.nn.functional.normalize(pooled).numpy(), atol=1e-5)
    # They are what the head makes its logits of.
    lengths = pooled.norm(dim=1, keepdim=True)
    with torch.inference_mode():
        again = network.classifier[1](torch.from_numpy(matrix.copy()) * lengths)
    np.testing.assert_allclose(again.numpy(), logits.numpy(), atol=1e-3)


@pytest.mark.cluster
def test_texts_become_vectors_and_a_row_without_one_keeps_its_place(connected: RayCluster, tmp_path: Path) -> None:
    encoder = build_text_encoder(tmp_path / "encoder")
    texts = ["red flowers", "Red  FLOWERS", "a flower, very long: " + "red " * 40, None, ""]
    rows = [{"id": str(index), "text": text} for index, text in enumerate(texts)]
    found = infer(TextModel(encoder), rows, tokenize, tokenizing(encoder), actors=1).take_all()
    vectors = {row["id"]: row["embedding"] for row in found}
    assert sorted(vectors) == ["0", "1", "2", "3", "4"]
    assert vectors["3"] is None and next(row["error"] for row in found if row["id"] == "3")
    np.testing.assert_allclose(vectors["0"], vectors["1"], atol=1e-6)
    assert np.abs(np.subtract(vectors["0"], vectors["2"])).max() > 0.01
    # What is beyond the length is cut, and no error says so.
    cut = tokenize({"id": ["5", "6"], "text": [texts[2], f"{texts[2]} blue"]}, **tokenizing(encoder))
    assert (cut["tokens"][0] == cut["tokens"][1]).all() and cut["error"] == ["", ""]

    # Without padding, one text at a time, it says the same.
    tokenizer, network = hub.AutoTokenizer.from_pretrained(encoder), hub.AutoModel.from_pretrained(encoder).eval()
    with torch.inference_mode():
        hidden = network(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(vectors["0"], torch.nn.functional.normalize(hidden, dim=0), atol=1e-5)


# What their input is


def test_squeezed_pixels_are_those_of_the_checkpoints_own_processor(rows: list[dict[str, Any]]) -> None:
    checkpoint = str(build_small_models().vit)
    processor, to = hub.AutoImageProcessor.from_pretrained(checkpoint), load_squeezing(checkpoint)
    for row in rows[:-1]:
        expected = processor(Image.open(row["id"]).convert("RGB"), return_tensors="pt")["pixel_values"]
        pixels = squeeze(Path(row["id"]).read_bytes(), to)
        found = normalize(torch.from_numpy(pixels[None].copy()), to)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


def test_pixels_of_another_processor_raise_nothing_and_give_other_scores(
    rows: list[dict[str, Any]], decoding: dict[str, Any]
) -> None:
    checkpoint = str(build_small_models().vit)
    to = load_squeezing(checkpoint)
    right = decoded(rows[:-1], {**decoding, "to": to, "decode_one": squeeze})
    wrong = decoded(rows[:-1], decoding)  # cropped, as part 1's checkpoint wants it
    worker = Worker(TransformerModel(checkpoint, to), "image", len(rows))
    scores = [worker(batch)["score"].to_numpy() for batch in (right, wrong)]
    assert np.abs(scores[0] - scores[1]).max() > 0.01


def test_each_processor_is_refused_where_the_other_is_asked_for(sample_set: Samples) -> None:
    with pytest.raises(ValueError, match="asks for other steps than a resize by crop_pct"):
        load_preprocessing(str(build_small_models().vit))
    with pytest.raises(ValueError, match="asks for other steps than squeezing"):
        load_squeezing(str(sample_set.model))


# What weights may hold


class Harmful:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder for weights without Ray."""
    monkeypatch.setattr("snippets.optimization.weights.node_folder", lambda: str(tmp_path / "node"))


def test_weights_that_would_run_code_are_refused(alone: None, tmp_path: Path, decoding: dict[str, Any]) -> None:
    harmed = tmp_path / "harmed"
    torch.save({"head.weight": Harmful(harmed)}, tmp_path / "network.pt")
    model = StateDictModel(str(tmp_path / "network.pt"), LABELS, decoding["to"])
    with pytest.raises(Exception, match="Weights only load failed") as refused:
        model.load(torch.device("cpu"))
    assert type(refused.value).__name__ == "UnpicklingError"
    assert not harmed.exists()
    torch.load(tmp_path / "network.pt", weights_only=False)
    assert harmed.exists()


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_tensor_too_many_or_too_few_is_refused(
    alone: None, tmp_path: Path, decoding: dict[str, Any], change: str
) -> None:
    weights = build_state_dict(tmp_path / "network.pt", len(LABELS))
    state = torch.load(weights, weights_only=True)
    if change == "missing":
        del state["head.bias"]
    else:
        state["tail.bias"] = torch.zeros(1)
    torch.save(state, weights)
    with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key\(s\) in state_dict"):
        StateDictModel(weights, LABELS, decoding["to"]).load(torch.device("cpu"))


# How code reaches the workers

MODULE = """
import os
import torch


class Lengths:
    def load(self, device):
        self.arena = os.environ["MALLOC_ARENA_MAX"]

    def forward(self, inputs):
        return {"length": (inputs != 0).sum(1), "arena": [self.arena] * len(inputs)}


def prepare(batch):
    import numpy as np

    lengths = [[1] * len(text) + [0] * (8 - len(text)) for text in batch["text"]]
    return {"id": batch["id"], "inputs": np.array(lengths), "error": [""] * len(lengths)}
"""
MAIN = """
import ray
from MODULE import prepare

ray.init(log_to_driver=False)
rows = ray.data.from_items([{"id": "a", "text": "one"}, {"id": "b", "text": "three"}])
print("lengths:", sorted(int(row["inputs"].sum()) for row in rows.map_batches(prepare).take_all()))
raise SystemExit("which ends it")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a module of a name that no other test has, and a script that uses it."""
    folder = tmp_path / "project"
    folder.mkdir()
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(MODULE)
    (folder / "main.py").write_text(MAIN.replace("MODULE", name))
    return folder


@pytest.mark.cluster
def test_a_module_is_found_where_its_file_is_and_on_other_nodes_where_it_is_sent_along(
    ray_cluster: RayCluster, project: Path, monkeypatch: pytest.MonkeyPatch, _disconnected_after: None
) -> None:
    ray.shutdown()
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.chdir(project)  # where workers look, too
    mine = importlib.import_module(name := next(project.glob("mine_*.py")).stem)
    (project / f"also_{name}.py").write_text("def double(number):\n    return 2 * number\n")
    also = importlib.import_module(f"also_{name}")
    ray.init(log_to_driver=False, logging_level="ERROR")
    assert ray.get(ray.remote(num_cpus=0)(also.double).remote(2)) == 4
    project.rename(elsewhere := project.with_name("elsewhere"))  # as on another machine
    with pytest.raises(ray.exceptions.RayError, match=f"No module named '{name}'"):
        ray.get(ray.remote(num_cpus=0)(mine.prepare).remote({"id": ["a"], "text": ["one"]}))
    elsewhere.rename(project)

    ray.shutdown()
    ray.init(runtime_env={"working_dir": str(project)}, log_to_driver=False, logging_level="ERROR")
    project.rename(elsewhere)
    rows = [{"id": "a", "text": "one"}, {"id": "b", "text": "three"}]
    found = infer(mine.Lengths(), rows, mine.prepare, actors=1, num_gpus=0).take_all()
    ray.shutdown()
    assert sorted((row["id"], row["length"], row["arena"]) for row in found) == [("a", 3, "1"), ("b", 5, "1")]


@pytest.mark.cluster
def test_what_is_imported_from_a_file_travels_as_a_name_and_what_the_script_defines_with_its_code(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(project))
    mine = importlib.import_module(next(project.glob("mine_*.py")).stem)
    script: dict[str, Any] = {"__name__": "__main__"}
    exec(MODULE, script)
    by_name, by_value = (ray.cloudpickle.dumps(made) for made in (mine.Lengths, script["Lengths"]))
    assert b"MALLOC_ARENA_MAX" not in by_name and mine.__name__.encode() in by_name
    assert b"MALLOC_ARENA_MAX" in by_value


@pytest.mark.cluster
def test_a_submitted_job_brings_its_folder_prints_what_it_prints_and_fails_where_it_fails(
    ray_cluster: RayCluster, project: Path
) -> None:
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", str(project)]
    environment = {**os.environ, **ray_cluster.client_environment}
    done = subprocess.run(
        [*command, "--", "python", "main.py"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1, done.stderr
    assert "lengths: [3, 5]" in done.stdout
    assert "which ends it" in done.stdout


@pytest.mark.cluster
def test_a_job_that_is_stopped_ends_with_0(ray_cluster: RayCluster, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--submission-id", "stopped"]
    started, script = tmp_path / "started", tmp_path / "wait.py"
    script.write_text(f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n")
    environment = {**os.environ, **ray_cluster.client_environment}
    submitted = subprocess.Popen(
        [*command, "--", "python", str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not started.exists():
            assert submitted.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as here:
            for name, value in ray_cluster.client_environment.items():
                here.setenv(name, value)
            client = JobSubmissionClient()
            assert client.stop_job("stopped")
            shown, _ = submitted.communicate(timeout=120)
            assert client.get_job_status("stopped") == "STOPPED"
        assert submitted.returncode == 0, shown
    finally:
        submitted.kill()


# The command


@pytest.mark.parametrize("own", MODELS)
def test_the_command_runs_the_model_that_is_asked_for(
    sample_set: Samples, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    asked: list[Any] = []

    class Results:
        def materialize(self) -> str:
            return "rows"

    def watch(model: Any, rows: Any, prepare: Any, fn_kwargs: Any, **pool: Any) -> Results:
        asked.append((type(model).__name__, len(rows), prepare.__name__, pool))
        first = prepare({name: np.array([value]) for name, value in rows[0].items()}, **fn_kwargs)
        assert first["error"] == [""]
        return Results()

    monkeypatch.setattr(own_model, "infer", watch)
    common = ["--images", str(sample_set.images), "--model", str(sample_set.model), "--limit", "3"]
    options = build_parser(own_model).parse_args([*common, "--own", own, "--actors", "2", "--num-gpus", "0"])
    found: Any = own_model.run(options)
    assert found == "rows"
    names = {"state-dict": "StateDict", "transformer": "Transformer", "embeddings": "Embedding", "text": "Text"}
    prepare = "tokenize" if own == "text" else "decode"
    assert asked == [(f"{names[own]}Model", 3, prepare, {"actors": 2, "num_gpus": 0.0})]
