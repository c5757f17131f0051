"""Bad input ends in one clear sentence on stderr, status 2 and no traceback, and the cheap checks start no Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

from snippets.command import run_module
from snippets.optimization import preflight

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

POOL, NAIVE = "snippets.fundamentals.actor_pool", "snippets.fundamentals.naive"
ALL = [
    f"snippets.fundamentals.{name}"
    for name in ["setup", "dataset", "naive", "costs", "actor_pool", "preprocessing", "results"]
]
Refuse = Callable[..., str]


@pytest.fixture
def refuse(capfd: pytest.CaptureFixture[str], sample_set: Samples) -> Refuse:
    """Run a module on good images and checkpoint unless told otherwise; return the sentence it ends with."""

    def run(module: str, *options: str, **replaced: object) -> str:
        given = {"images": sample_set.images, "model": sample_set.model, **replaced}
        arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_module(module, [*arguments, *options])
        output, errors = capfd.readouterr()
        assert ended.value.code == 2
        assert output == ""
        assert "Traceback" not in errors
        lines = [
            line for line in errors.splitlines() if "RAY_BACKEND_LOG_LEVEL" not in line
        ]  # Ray's own, if started
        assert len(lines) == 1, errors
        assert lines[0].endswith(".")
        return lines[0]

    return run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a start of Ray a failure."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", start)


@pytest.fixture
def checkpoint(sample_set: Samples, tmp_path: Path) -> Path:
    """A copy of the sample checkpoint, to spoil."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in sample_set.model.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("limit", ["0", "-3", "some"])
def test_a_limit_below_one_is_refused(no_ray: None, refuse: Refuse, module: str, limit: str) -> None:
    sentence = refuse(module, f"--limit={limit}")
    assert sentence.endswith(f"{module}: argument --limit: must be a whole number of at least 1, not {limit}.")


@pytest.mark.parametrize("module", ALL)
def test_a_missing_folder_of_images_is_named(no_ray: None, refuse: Refuse, module: str, tmp_path: Path) -> None:
    assert refuse(module, images=tmp_path / "no") == f"There is no file or folder {tmp_path}/no."


def test_a_missing_manifest_is_named(no_ray: None, refuse: Refuse, tmp_path: Path) -> None:
    sentence = refuse(POOL, images=tmp_path / "no.parquet")
    assert sentence == f"There is no file or folder {tmp_path}/no.parquet."


def test_an_empty_folder_and_one_without_images_are_named(no_ray: None, refuse: Refuse, tmp_path: Path) -> None:
    assert refuse(POOL, images=tmp_path) == f"There is no image among the 0 files of {tmp_path}."
    (tmp_path / "notes.txt").write_text("no image")
    assert refuse(POOL, images=tmp_path) == f"There is no image among the 1 files of {tmp_path}."


@pytest.mark.parametrize("module", ALL)
def test_an_unknown_checkpoint_folder_is_named(no_ray: None, refuse: Refuse, module: str) -> None:
    assert refuse(module, model="/nowhere/model") == "There is no checkpoint folder /nowhere/model."


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_an_incomplete_checkpoint_is_refused(no_ray: None, refuse: Refuse, checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    what = "weights in safetensors: none" if file.endswith("safetensors") else file
    assert refuse(POOL, model=checkpoint) == f"The checkpoint folder {checkpoint} has no {what}."


def test_pickled_weights_are_refused(no_ray: None, refuse: Refuse, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    sentence = refuse(NAIVE, model=checkpoint)
    assert sentence.endswith("only pickled ones (pytorch_model.bin), and loading those runs code.")
    assert str(checkpoint) in sentence


def test_code_in_a_checkpoint_is_refused_and_not_run(no_ray: None, refuse: Refuse, checkpoint: Path) -> None:
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoConfig": "evil.Config"},', 1))
    (checkpoint / "evil.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w')")
    sentence = refuse(NAIVE, model=checkpoint)
    assert sentence == f"The checkpoint {checkpoint} brings code of its own (auto_map), which is not run here."
    assert not (checkpoint / "ran").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--actors", "0"], "argument --actors: must be a whole number of at least 1, not 0."),
        (["--batch-size", "none"], "argument --batch-size: must be a whole number of at least 1, not none."),
        (["--num-gpus=-1"], "argument --num-gpus: must be 0 to 1 or a whole number, not -1."),
        (["--num-gpus", "nan"], "argument --num-gpus: must be 0 to 1 or a whole number, not nan."),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--colour"], "unrecognized arguments: --colour."),
    ],
)
def test_an_option_that_cannot_be_is_named(
    no_ray: None, refuse: Refuse, options: list[str], sentence: str
) -> None:
    assert sentence in refuse(POOL, *options)


# In a process of its own, as a reader runs it


def run_alone(module: str, *options: str, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", module, *options]
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", **environment}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr


def test_a_missing_folder_ends_a_command_of_its_own_in_one_sentence() -> None:
    assert run_alone(POOL, "--images", "/nowhere") == (2, "", "There is no file or folder /nowhere.\n")


def test_an_unknown_name_ends_within_a_minute_with_or_without_a_network(sample_set: Samples) -> None:
    status, output, errors = run_alone(POOL, "--model", "nobody/no-such-model", IMAGES=str(sample_set.images))
    assert (status, output) == (2, "")
    assert errors.startswith("There is no folder nobody/no-such-model, and the Hugging Face hub gives no such ")
    assert errors.count("\n") == 1


def test_a_preflight_says_each_thing_that_is_wrong_and_prints_what_it_found(tmp_path: Path) -> None:
    wrong = ("--manifest", "/nowhere.parquet", "--model", "/nowhere", "--output", f"{tmp_path}/output", "--json")
    status, output, errors = run_alone("snippets.optimization.preflight", *wrong)
    assert status == 2
    assert errors.splitlines() == [
        "There is no manifest /nowhere.parquet.",
        "There is no checkpoint folder /nowhere.",
    ]
    assert json.loads(output)["refusals"] == errors.splitlines()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--price-an-hour=-1", "argument --price-an-hour: must be a number of at least 0, not -1."),
        ("--deadline=nan", "argument --deadline: must be a number of at least 0, not nan."),
        ("--deadline=soon", "argument --deadline: must be a number of at least 0, not soon."),
        ("--sample=0", "argument --sample: must be a whole number of at least 1, not 0."),
    ],
)
def test_an_option_of_a_preflight_that_cannot_be_is_named(
    no_ray: None, capsys: pytest.CaptureFixture[str], option: str, sentence: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        preflight.main([option])
    assert capsys.readouterr() == ("", f"python -m snippets.optimization.preflight: {sentence}\n")


# What only the cluster can tell


@pytest.fixture
def cluster(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster with two logical GPUs, which the command under test joins and leaves."""
    ray.shutdown()
    yield ray_cluster
    ray.shutdown()


def test_more_gpus_than_the_cluster_has_are_refused(cluster: RayCluster, refuse: Refuse) -> None:
    sentence = refuse(POOL, "--num-gpus", "3", "--json")
    assert sentence.startswith("A pool of 1 actors with 3 GPUs")
    assert sentence.endswith("does not fit into a cluster with 2 GPUs and 5 CPUs: at most 0 fit.")


def test_a_pool_that_leaves_no_cpu_for_reading_is_refused(cluster: RayCluster, refuse: Refuse) -> None:
    sentence = refuse("snippets.fundamentals.results", "--actors", "99", "--num-gpus", "0", "--json")
    assert sentence.startswith("A pool of 99 actors with 0 GPUs and 0.5 CPUs each, beside decode tasks of 1 CPU,")
    assert sentence.endswith("with 2 GPUs and 5 CPUs: at most 6 fit.")


def test_naive_ends_on_a_corrupt_image_with_a_sentence(
    ray_cluster: RayCluster, sample_set: Samples, tmp_path: Path
) -> None:
    for path in (*sorted(sample_set.images.rglob("*.jpg"))[:2], sample_set.hostile / "truncated.jpg"):
        shutil.copy(path, tmp_path)
    status, output, errors = run_alone(NAIVE, "--images", str(tmp_path), "--json", MODEL=str(sample_set.model))
    assert (status, output) == (2, "")
    assert "Traceback" not in errors
    sentence = errors.splitlines()[-1]
    assert sentence.startswith("The job ended in ReadImage")
    assert "OSError: image file is truncated" in sentence
    assert len(errors.splitlines()) <= 2  # Ray's notice about the log level
