"""The pictures of the Dashboard are small, and what stands beside them is what their run showed."""

import io
import json
import re

import pytest
from PIL import Image

from tests.dashboard_picture import ASSETS, LIMIT_BYTES, PICTURES, SCALE, table

RESULTS = ASSETS / "results"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_has_the_size_that_its_page_reserves(name: str) -> None:
    encoded = (ASSETS / "figures" / f"dashboard-{name}.webp").read_bytes()
    assert len(encoded) <= LIMIT_BYTES
    width, height = Image.open(io.BytesIO(encoded)).size
    size = rf'dashboard-{name}\.webp\){{ width="{width // SCALE}" height="{height // SCALE}" loading="lazy" }}'
    assert re.search(size, (RESULTS / "dashboard.md").read_text("utf-8"))


def test_the_table_is_of_the_run_in_the_pictures() -> None:
    found = json.loads((RESULTS / "dashboard.json").read_text("utf-8"))
    shown = (RESULTS / "dashboard.md").read_text("utf-8")
    assert table(found["runs"]) in shown
    assert shown.count(f"Ray {found['ray']}") == len(PICTURES) + 1
    naive, pool = found["runs"]["naive"], found["runs"]["optimized"]
    assert naive["loads, counted"] > naive["tasks of the last"]
    assert pool["loads, counted"] == pool["actors alive at once"] > 0 == naive["actors alive at once"]
