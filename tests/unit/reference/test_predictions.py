"""The predictions that a page shows are those of the pipeline's steps for the samples, beside their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from snippets.reference.generated import update
from snippets.reference.predictions import PICTURES, SHOWN, WIDTH, render, shown_files, write_pictures

if TYPE_CHECKING:
    import pytest

    from snippets.samples import Samples


def test_the_committed_table_is_what_the_steps_answer(
    sample_set: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update("predictions", lambda: render(sample_set), ["--check"]) == 0, capsys.readouterr().out


def test_each_row_is_of_a_file_and_has_a_label_or_an_error(sample_set: Samples) -> None:
    _, _, *rows = render(sample_set).strip("\n").splitlines()[2:-2]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [cell[0].strip("`").partition("/")[2] for cell in cells] == [
        path.name for path in shown_files(sample_set)
    ]
    assert [bool(cell[2]) for cell in cells] == [True] * (len(SHOWN) - 1) + [False]
    assert cells[-1][4].startswith("OSError: ")
    assert all(0 < float(cell[3]) <= 1 and not cell[4] for cell in cells[:-1])


def test_the_committed_pictures_are_small_copies_of_the_samples(sample_set: Samples, tmp_path: Path) -> None:
    write_pictures(sample_set, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in PICTURES.iterdir()} == names
    assert len(names) == len(SHOWN) - 1
    for name in names:
        with Image.open(PICTURES / name) as committed, Image.open(tmp_path / name) as made:
            assert committed.size == made.size and max(made.size) == WIDTH
            assert np.abs(np.asarray(committed, int) - np.asarray(made, int)).mean() < 2
