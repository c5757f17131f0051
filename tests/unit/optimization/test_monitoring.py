"""What is read of batches and errors, and where Ray's progress goes in a terminal, a notebook and a CI log."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import nbformat
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
from nbclient import NotebookClient

from snippets.optimization.monitoring import (
    cause_of,
    column,
    count_bytes,
    count_rows,
    monitored,
    torch_parameters,
)

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

BATCH = {"id": np.arange(3), "image": np.zeros((3, 2, 2), np.uint8)}
FORMS = [
    {"id": np.arange(3), "error": np.array(["", "", "x"], object)},
    pa.table({"id": [0, 1, 2], "error": ["", "", "x"]}),
    pd.DataFrame({"id": [0, 1, 2], "error": ["", "", "x"]}),
]


@pytest.mark.parametrize("batch", FORMS, ids=lambda batch: type(batch).__name__)
def test_rows_and_columns_are_read_of_each_form_of_a_batch(batch: Any) -> None:
    assert count_rows(batch) == 3
    assert column(batch, "id") == [0, 1, 2]
    assert column(batch, "error") == ["", "", "x"]
    assert column(batch, "label") == []
    assert count_bytes(batch) >= 3 * 8


def test_bytes_are_those_of_the_columns() -> None:
    assert count_bytes(BATCH) == 3 * 8 + 12
    assert count_bytes(pa.table({"id": pa.array([1, 2], pa.int64())})) == 16
    assert count_rows({}) == 0


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("UnidentifiedImageError: cannot identify /a/b.jpg", "UnidentifiedImageError"),
        ("pyarrow.lib.ArrowInvalid: x", "pyarrow.lib.ArrowInvalid"),
        ("OSError", "OSError"),
        ("/images/a.jpg: gone", "other"),
        ("no image at 12", "other"),
        ("photo.jpg: cannot be read", "other"),
        ("IMG_0001.jpg", "other"),
        ("IMG_0001: gone", "other"),
    ],
)
def test_a_cause_is_a_type_and_never_a_path(error: str, cause: str) -> None:
    assert cause_of(error) == cause


def test_what_yields_is_refused_with_a_sentence() -> None:
    class Model:
        def __call__(self, batch: Any) -> Any:
            yield batch

    def decode(batch: Any) -> Any:
        yield batch

    for udf in (Model, decode):
        with pytest.raises(TypeError, match=rf"^{udf.__name__} yields its batches, and only what returns"):
            monitored(udf, "run")


def test_parameters_that_torch_makes_are_seen_until_the_end_of_the_block() -> None:
    import torch

    with torch_parameters() as made:
        torch.nn.Linear(2, 3)
    torch.nn.Linear(2, 3)
    assert made == ["weight", "bias"]


# Progress

PROGRAM = """
import logging, time, ray
ray.init(log_to_driver=False, logging_level=logging.ERROR)
def wait(batch):
    time.sleep(0.4)
    return batch
rows = ray.data.range(24, override_num_blocks=8).map_batches(wait, batch_size=3, num_cpus=1)
rows.set_name("photos")
print(len(rows.take_all()))
"""


def run_in_a_log() -> str:
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout


def run_in_a_terminal() -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=theirs) as program:
        os.close(theirs)
        text = b""
        with suppress(OSError):  # when the other end has closed
            while part := os.read(ours, 65536):
                text += part
        assert program.wait() == 0
    os.close(ours)
    return text.decode(errors="replace")


def run_in_a_notebook() -> str:
    cell = nbformat.v4.new_code_cell(PROGRAM)
    NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120, kernel_name="python3").execute()
    return "".join(output.get("text", "") for output in cell.outputs)


def test_a_terminal_gets_bars_and_a_log_and_a_notebook_lines(
    ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_DATA_NON_TTY_PROGRESS_LOG_INTERVAL", "1")
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(run) for run in (run_in_a_terminal, run_in_a_log, run_in_a_notebook)]
        terminal, log, notebook = (run.result() for run in runs)
    for text in (log, notebook):
        assert "======= Running Dataset: photos_" in text
        assert "MapBatches(wait): " in text
        assert "\r" not in text.replace("\r\n", "")
    assert "=======" not in terminal
    assert terminal.replace("\r\n", "").count("\r") > 3, terminal
    assert "- MapBatches(wait)" in terminal, terminal


def test_the_lines_of_a_log_are_info_of_ray_data() -> None:
    importlib.import_module("ray.data")  # which sets its loggers up
    logger = logging.getLogger("ray.data")
    assert [handler.level for handler in logger.handlers if type(handler).__name__ == "PlainRayHandler"] == [
        logging.INFO
    ]
