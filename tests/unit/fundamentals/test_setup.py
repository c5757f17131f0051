"""The cluster is described by its workers, and the context's switches exist."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray
import torch
from ray.data import DataContext

from snippets.fundamentals import setup
from snippets.fundamentals.setup import configure_data_context, describe_cluster, split_revision

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster


@pytest.fixture
def context() -> Iterator[DataContext]:
    """The context as Ray makes it; afterwards the one there was."""
    before = copy.deepcopy(DataContext.get_current())
    fresh = DataContext()
    DataContext._set_current(fresh)
    yield fresh
    DataContext._set_current(before)


def test_every_node_is_described_by_a_worker_on_it(connected: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    version = torch.__version__
    monkeypatch.setattr(torch, "__version__", "the driver's")
    dead = {**ray.nodes()[0], "Alive": False}
    monkeypatch.setattr(ray, "nodes", lambda nodes=ray.nodes: [*nodes(), dead])
    rows = describe_cluster()
    assert sorted((row["cpus"], row["gpus"]) for row in rows) == [(1, 0), (2, 1), (2, 1)]
    assert {row["torch"] for row in rows} == {version}
    assert all(row["memory_bytes"] > 1e8 and row["object_store_bytes"] == 300_000_000 for row in rows)
    assert all(row["threads"] >= 1 and row["cuda_devices"] == [] for row in rows if not row["gpus"])


def test_torch_is_looked_at_in_the_process_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "card {}".format)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    seen = setup.torch_of_this_process()
    assert seen == {"torch": torch.__version__, "threads": 3, "cuda_devices": ["card 0", "card 1"]}


@pytest.mark.parametrize("bars", [True, False])
def test_switches_reach_the_context_under_names_that_it_has(context: DataContext, bars: bool) -> None:
    names = set(vars(context))  # Ray accepts a misspelt one without a word
    configure_data_context(progress_bars=bars, no_progress_timeout_s=77)
    assert set(vars(context)) == names
    assert (context.enable_progress_bars, context.enable_operator_progress_bars) == (bars, bars)
    assert context.execution_no_progress_timeout_s == 77


def test_without_the_switch_a_pipeline_waits_half_an_hour(context: DataContext) -> None:
    assert context.execution_no_progress_timeout_s == 1800
    configure_data_context()
    assert context.execution_no_progress_timeout_s == 120


def test_a_dataset_keeps_the_switches_of_the_time_when_it_was_made(
    connected: RayCluster, context: DataContext
) -> None:
    configure_data_context(no_progress_timeout_s=50)
    dataset = ray.data.range(1)
    configure_data_context(no_progress_timeout_s=60)
    assert dataset.context.execution_no_progress_timeout_s == 50


@pytest.mark.parametrize(
    ("model", "expected"),
    [("who/what@abc", ("who/what", "abc")), ("who/what", ("who/what", None)), ("who/what@", ("who/what", None))],
)
def test_a_revision_is_split_off_a_name(model: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(model) == expected


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    folder = tmp_path / "model@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


@pytest.mark.parametrize(
    ("environment", "images", "model"),
    [
        ({"IMAGES": "/here", "MODEL": "/there"}, "/here", "/there"),
        ({"IMAGES": "", "MODEL": ""}, r"s3://anonymous@.+", r"microsoft/resnet-50@[0-9a-f]{40}"),
    ],
)
def test_the_environment_names_images_and_model_and_public_ones_stand_in(
    environment: dict[str, str], images: str, model: str
) -> None:
    code = "from snippets.fundamentals.setup import IMAGES, MODEL; print(IMAGES, MODEL)"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert re.fullmatch(f"{images} {model}\n", output.stdout)
