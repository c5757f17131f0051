"""A checkpoint that cannot be loaded, or would run code, is refused before any worker tries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from snippets.checkpoint import check_checkpoint

if TYPE_CHECKING:
    from snippets.samples import Samples


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The files that a checkpoint needs, as small as can be."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    save_file({"weight": np.zeros(1000, np.float32)}, folder / "model.safetensors")
    return folder


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_the_sample_checkpoint_passes(sample_set: Samples, checkpoint: Path) -> None:
    check_checkpoint(str(sample_set.model))
    check_checkpoint(str(checkpoint))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "The weights {folder}/model.safetensors are not whole (Error while deserializing header: "),
        (remove("config.json"), "The checkpoint folder {folder} has no config.json."),
        (remove("preprocessor_config.json"), "The checkpoint folder {folder} has no preprocessor_config.json."),
        (remove("model.safetensors"), "The checkpoint folder {folder} has no weights in safetensors: none."),
        (
            pickle_weights,
            "The checkpoint folder {folder} has no weights in safetensors: only pickled ones (pytorch_model.bin), "
            "and loading those runs code.",
        ),
        (shard, "The checkpoint folder {folder} lacks model-00002-of-00002.safetensors of its weights."),
        (
            write("config.json", '{"auto_map": {"AutoModel": "evil.Model"}}'),
            "The checkpoint {folder} brings code of its own (auto_map), which is not run here.",
        ),
        (write("config.json", "{"), "The config.json of {folder} is not JSON (Expecting property name"),
    ],
)
def test_each_refusal_names_the_folder_and_what_is_wrong(
    checkpoint: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError) as caught:
        check_checkpoint(str(checkpoint))
    assert str(caught.value).startswith(sentence.format(folder=checkpoint))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/model", "a/b/c"])
def test_what_can_only_be_a_folder_is_not_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    with pytest.raises(ValueError, match=f"^There is no checkpoint folder {name}\\.$"):
        check_checkpoint(name)


class Hub:
    """A hub with one checkpoint of some files, which are all downloaded from a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, files: list[str] | Exception) -> None:
        self.asked: list[Any] = []

        def model_info(_: Any, name: str, revision: str | None, timeout: float) -> Any:
            self.asked.append((name, revision))
            if isinstance(files, Exception):
                raise files
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

        def download(name: str, file: str, revision: str | None, local_files_only: bool) -> str:
            self.asked.append((file, revision, local_files_only))
            if not (folder / file).is_file():
                raise FileNotFoundError(file)
            return str(folder / file)

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


def test_a_hub_checkpoint_is_checked_at_its_revision(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, checkpoint, FILES)
    check_checkpoint("who/what@abc")
    assert hub.asked == [("who/what", "abc"), ("config.json", "abc", False)]


def test_a_hub_checkpoint_with_pickled_weights_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(monkeypatch, checkpoint, [*FILES[:2], "pytorch_model.bin"])
    with pytest.raises(ValueError, match=r"^The checkpoint who/what has no weights in safetensors: only pickled"):
        check_checkpoint("who/what")


def test_a_hub_checkpoint_with_code_of_its_own_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "config.json").write_text('{"auto_map": {}}')
    Hub(monkeypatch, checkpoint, FILES)
    with pytest.raises(ValueError, match=r"^The checkpoint who/what brings code of its own"):
        check_checkpoint("who/what")


def test_without_a_network_the_cache_is_asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, checkpoint, ConnectionError("no network"))
    check_checkpoint("who/what")
    assert hub.asked[-1] == ("config.json", None, True)  # which never waits for a network


@pytest.mark.parametrize("name", ["nobody/no-such-checkpoint@v1", "no such name"])
def test_an_unknown_name_ends_in_one_sentence_whether_there_is_a_network_or_none(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_checkpoint(name)
    revision = " at revision v1" if "@" in name else ""
    sentence = f"There is no folder {name.removesuffix('@v1')}, and the Hugging Face hub gives no such checkpoint"
    assert str(caught.value).startswith(f"{sentence}{revision} (")
    assert str(caught.value).count("\n") == 0
