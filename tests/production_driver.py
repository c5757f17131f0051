"""A production run with a stand-in for the model, as a process that can be killed at a chosen write.

`python -m tests.production_driver KILLS GATES OPTION...`: KILLS is `data:3` (SIGKILL before the third file of
rows), `record:2` (before the second record of a part, whose files are there) or `never`; GATES is a folder, where
`ID.closed` holds the batch with that row until it is removed, `ID.waiting` says which process waits, and
`ID.received` that the row came back to the driver. The options are those of the command.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from snippets.fundamentals.actor_pool import RESULT
from snippets.optimization import production, production_parts

ROOT = Path(__file__).resolve().parents[1]
ROWS, PART_ROWS, BATCH = 48, 4, 2
PARTS = ROWS // PART_ROWS
CORRUPT, MISSING = "corrupt.jpg", "missing.jpg"
SIDE = 16
DRIVER_S = 200.0  # in which a process ends on any machine
FOREIGN = ("AWS_", "RAY_", "IMAGES", "MODEL", "PYTEST_", "COV_", "PRODUCTION_")


def name(row: int) -> str:
    """Return the id of a row of the manifest."""
    return {5: CORRUPT, ROWS - 2: MISSING}.get(row, f"{row:02}.png")


IDS = [name(row) for row in range(ROWS)]
DEAD = {CORRUPT, MISSING}


def write_inputs(folder: Path) -> Path:
    """Write the images, one of them corrupt, their manifest with one more that is missing, and a checkpoint."""
    for row in range(ROWS):
        if name(row) not in DEAD:
            Image.new("RGB", (SIDE, SIDE), (row, row, row)).save(folder / name(row))
    (folder / CORRUPT).write_bytes(b"no image")
    pq.write_table(pa.table({"path": IDS, "taken": range(ROWS)}), folder / "manifest.parquet")
    write_checkpoint(folder / "checkpoint")
    return folder


def write_checkpoint(folder: Path) -> None:
    """Write a checkpoint that nothing loads: what the pipeline reads of one, and weights of one number."""
    from safetensors.numpy import save_file

    folder.mkdir()
    expected = {"size": {"shortest_edge": 8}, "crop_pct": 0.5, "resample": 2}
    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(expected | scale))
    (folder / "config.json").write_text("{}")
    save_file({"weight": np.zeros(1)}, folder / "model.safetensors")


def make_stand_in(gates: Path | None = None) -> type:
    """Return a class that stands in for `Classifier`: an image's label is its brightness."""

    class StandIn:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, batch: dict[str, Any]) -> pa.Table:
            for id in batch["id"]:
                while gates is not None and (gates / f"{id}.closed").exists():
                    (gates / f"{id}.waiting").write_text(str(os.getpid()))
                    time.sleep(0.02)
            errors = [error or None for error in batch["error"]]
            rows = zip(errors, batch["image"], strict=True)
            labels = [None if error else str(image[0, 0, 0]) for error, image in rows]
            scores = [None if error else 1.0 for error in errors]
            return pa.table({"id": batch["id"], "label": labels, "score": scores, "error": errors}, RESULT)

    return StandIn


def kill_before(kills: str) -> None:
    """Make this process kill itself before the chosen write."""
    kind, _, count = kills.partition(":")
    target = {"data": "put", "record": "put_json"}[kind]
    write, left = getattr(production_parts, target), int(count)

    def counted(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)

    setattr(production_parts, target, counted)


def tell_received(gates: Path) -> None:
    """Make this process tell which rows came back."""
    add = production_parts.Parts.add

    def told(parts: production_parts.Parts, rows: pa.Table) -> list[tuple[int, pa.Table]]:
        whole = add(parts, rows)
        for id in rows["id"].to_pylist():
            (gates / f"{id}.received").touch()
        return whole

    setattr(production_parts.Parts, "add", told)  # noqa: B010


@dataclass(frozen=True)
class Run:
    """Starts drivers that do one job."""

    variables: Mapping[str, str]
    gates: Path
    options: list[str]

    def start(self, kills: str = "never", **variables: str) -> subprocess.Popen[str]:
        """Start a driver, with more variables if given."""
        command = [sys.executable, "-m", "tests.production_driver", kills, str(self.gates), *self.options]
        outer = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        pipe = subprocess.PIPE
        environment = {**outer, "PRODUCTION_MAX_DEAD_SHARE": "0.1", **self.variables, **variables}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, driver: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait for a driver; return its exit status, output and errors."""
        output, errors = driver.communicate(timeout=DRIVER_S)
        return driver.returncode, output, errors

    def __call__(self, kills: str = "never") -> tuple[int, str, str]:
        """Run a driver to its end."""
        return self.finish(self.start(kills))


@dataclass(frozen=True)
class Output:
    """What a job wrote."""

    filesystem: fs.FileSystem
    path: str

    def parts(self, kind: str) -> set[str]:
        """Return the names of the parts of which there is a file."""
        found = self.filesystem.get_file_info(
            fs.FileSelector(f"{self.path}/{kind}", recursive=True, allow_not_found=True)
        )
        files = [file.path.removeprefix(f"{self.path}/{kind}/") for file in found if file.is_file]
        return {file.split("/")[0].removesuffix(".json") for file in files if "/." not in f"/{file}"}

    def ids(self, kind: str) -> list[str]:
        """Return the sorted ids in a table."""
        column = {"results": "id", "dead_letters": "path"}[kind]
        table = pads.dataset(f"{self.path}/{kind}", filesystem=self.filesystem, partitioning="hive").to_table()
        return sorted(table[column].to_pylist())

    def statuses(self) -> list[str]:
        """Return how the runs ended, by their begin."""
        found = self.filesystem.get_file_info(fs.FileSelector(f"{self.path}/runs"))
        records = [json.loads(self.filesystem.open_input_stream(file.path).readall()) for file in found]
        return [record["status"] for record in sorted(records, key=lambda record: str(record["began"]))]


def check_resume(run: Run, output: Output, seed: int, report: Callable[[str], None] = print) -> None:
    """Kill a driver at three moments, each time that it is started again, and then let it finish.

    Before the first file; between the files of a part and its record; past the half of the parts.
    """
    rng = random.Random(seed)
    between = rng.randint(1, 3)  # the record that is not written
    finished = rng.randint(PARTS // 2 + 1, PARTS - 2)  # when the last kill comes
    moments = ["data:1", f"record:{between}", f"data:{2 * (finished - (between - 1)) + 1}"]
    report(f"seed {seed}: SIGKILL before {', '.join(moments)}")

    for moment in moments:
        status, _, errors = run(moment)
        assert status == -signal.SIGKILL, errors
        records = output.parts("records")
        files = output.parts("results") & output.parts("dead_letters")
        if moment == moments[0]:
            assert not output.parts("results") | output.parts("dead_letters") | records
        elif moment == moments[1]:
            assert len(records) == between - 1
            assert len(files - records) == 1
        else:
            assert PARTS / 2 < len(records) == finished < PARTS

    status, printed, errors = run()
    assert status == 0, errors
    record = json.loads(printed)
    assert record["counts"] == {
        "rows": ROWS,
        "parts": PARTS,
        "parts_before": finished,
        "parts_written": PARTS - finished,
        "results": ROWS - len(DEAD),
        "dead_letters": len(DEAD),
    }
    assert output.ids("results") == sorted(set(IDS) - DEAD)
    assert output.ids("dead_letters") == sorted(DEAD)
    assert output.statuses() == ["running"] * 3 + ["complete"]


if __name__ == "__main__":
    if sys.argv[1] != "never":
        kill_before(sys.argv[1])
    tell_received(Path(sys.argv[2]))
    sys.exit(production.main(sys.argv[3:], make_stand_in(Path(sys.argv[2]))))
