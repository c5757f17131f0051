"""Whatever is killed on the way, each row of a manifest ends in exactly one place, or the run fails."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from snippets.fundamentals.actor_pool import RESULT, Classifier, load_preprocessing, plan_pool
from snippets.fundamentals.setup import configure_data_context
from snippets.optimization import production
from snippets.optimization.production import decode_within, run_job
from snippets.optimization.production_parts import Job, plan_job, read_manifest
from snippets.optimization.production_settings import Settings
from snippets.optimization.run_record import RunRecord
from tests.production_driver import (
    CORRUPT,
    DEAD,
    DRIVER_S,
    IDS,
    PART_ROWS,
    PARTS,
    ROWS,
    SIDE,
    Output,
    Run,
    check_resume,
    make_stand_in,
    write_inputs,
)

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

SEED = 20260


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of three nodes, one of which the last test kills."""
    from tests.ray_cluster import RayCluster

    ray.shutdown()
    with pytest.MonkeyPatch.context() as environment:
        # A node that does not answer is dead after a second, and not after a quarter of a minute.
        environment.setenv("RAY_health_check_period_ms", "300")
        environment.setenv("RAY_health_check_failure_threshold", "3")
        started = RayCluster(gpus_per_worker=0)
    with started as made:
        yield made
        ray.shutdown()


@pytest.fixture
def connected_here(cluster: RayCluster) -> None:
    """A driver on that cluster."""
    if not ray.is_initialized():
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    configure_data_context(progress_bars=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images, of which one is corrupt and one missing, their manifest and a checkpoint."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def run(cluster: RayCluster, inputs: Path, tmp_path: Path) -> Run:
    """Start drivers of a job of twelve parts."""
    settings = tmp_path / "settings.toml"
    settings.write_text(f"part_rows = {PART_ROWS}\nbatch_size = 2\nactors = 2\n")
    options = ["--settings", str(settings), "--manifest", f"{inputs}/manifest.parquet"]
    options += ["--model", f"{inputs}/checkpoint", "--output", f"{tmp_path}/output", "--json"]
    (tmp_path / "gates").mkdir()
    return Run(cluster.client_environment, tmp_path / "gates", options)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """What the job wrote."""
    return Output(fs.LocalFileSystem(), f"{tmp_path}/output")


def settings_for(inputs: Path, output: object, **more: Any) -> Settings:
    given = {"part_rows": PART_ROWS, "batch_size": 2, "actors": 2, "max_dead_share": 0.1, **more}
    return Settings(
        manifest=f"{inputs}/manifest.parquet", model=f"{inputs}/checkpoint", output=str(output), **given
    )


def wait_until(there: Callable[[], bool], driver: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + DRIVER_S
    while not there():
        assert driver is None or driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.cluster
@pytest.mark.timeout(5 * DRIVER_S)
def test_a_driver_that_is_killed_three_times_leaves_every_row_once(run: Run, output: Output) -> None:
    check_resume(run, output, SEED)


def close(gates: Path, rows: Iterable[int]) -> None:
    for row in rows:
        (gates / f"{IDS[row]}.closed").touch()


def waiting(gates: Path) -> dict[str, int]:
    """Return the ids that wait, and the process in which each does."""
    found = {
        path.stem: path.read_text() for path in gates.glob("*.waiting") if path.with_suffix(".closed").exists()
    }
    return {id: int(pid) for id, pid in found.items() if pid}


@pytest.mark.cluster
@pytest.mark.timeout(5 * DRIVER_S)
def test_sigterm_ends_a_run_after_the_parts_in_hand_or_in_time_without_them(
    run: Run, output: Output, inputs: Path, tmp_path: Path, connected_here: None
) -> None:
    # A block of four rows is half a part, and each waits for the test.
    variables = {"PRODUCTION_PART_ROWS": "8", "PRODUCTION_ACTORS": "1"}

    def half_a_part(driver: subprocess.Popen[str]) -> int:
        """Let one half of a part come back; return the part."""
        wait_until(lambda: bool(waiting(run.gates)), driver)
        first = next(iter(waiting(run.gates)))
        (run.gates / f"{first}.closed").unlink()
        wait_until((run.gates / f"{first}.received").exists, driver)
        return IDS.index(first) // 8

    close(run.gates, range(0, ROWS, 4))
    hung = run.start(PRODUCTION_STOP_WITHIN_S="0.1", **variables)
    half_a_part(hung)
    hung.send_signal(signal.SIGTERM)
    status, printed, errors = run.finish(hung)
    assert (status, json.loads(printed)["exit_status"]) == (75, 75), errors
    assert not output.parts("results") | output.parts("records")

    for path in run.gates.iterdir():
        path.unlink()
    close(run.gates, range(0, ROWS, 4))
    driver = run.start(**variables)
    in_hand = half_a_part(driver)
    driver.send_signal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(run.finish, driver)

        def has_ended() -> bool:
            for id in waiting(run.gates):  # the other half comes when it comes
                (run.gates / f"{id}.closed").unlink()
            return ending.done()

        wait_until(has_ended)
        status, printed, errors = ending.result()
    record = json.loads(printed)
    assert (status, record["status"]) == (75, "stopped"), errors
    assert f"part={in_hand:05}" in output.parts("records")
    assert output.parts("records") == output.parts("results") == output.parts("dead_letters")
    assert record["counts"]["parts_written"] == len(output.parts("records"))

    job = plan_job(settings_for(inputs, f"{tmp_path}/output", part_rows=8), make_stand_in())
    counts = run_job(job)["counts"]
    assert counts["parts_before"] == record["counts"]["parts_written"]
    assert output.ids("results") == sorted(set(IDS) - DEAD)
    assert output.ids("dead_letters") == sorted(DEAD)
    assert output.statuses() == ["stopped", "stopped", "complete"]


# Rows as they might come back, without a cluster


def came(rows: Iterable[int], dead: Collection[int] = ()) -> pa.Table:
    """Return rows as they come back, some with an error."""
    rows = list(rows)
    nothing = [None] * len(rows)
    errors = ["OSError: broken" if row in dead else None for row in rows]
    ids = [IDS[row] for row in rows]
    return pa.table({"id": ids, "label": nothing, "score": nothing, "error": errors}, RESULT)


@pytest.fixture
def scripted(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Finish a job of six parts whose rows come back as told; an event is what happens then, such as SIGTERM."""
    monkeypatch.setattr(production, "plan_pool", lambda *_: None)
    monkeypatch.setattr(production, "build_pipeline", lambda *_: None)

    def finish(events: list[list[int] | str], dead: Collection[int] = (), **more: Any) -> dict[str, Any]:
        def arrivals(_: object) -> Iterator[pa.Table | None]:
            for event in events:
                if event == "SIGTERM":
                    os.kill(os.getpid(), signal.SIGTERM)
                yield None if isinstance(event, str) else came(event, dead)

        monkeypatch.setattr(production, "arrivals", arrivals)
        return run_job(plan_job(settings_for(inputs, tmp_path / "output", limit=24, **more), Classifier))

    return finish


def test_after_sigterm_only_parts_in_hand_are_waited_for(scripted: Callable[..., Any], output: Output) -> None:
    first, second = list(range(4)), list(range(4, 8))
    record = scripted([first, second[:2], "SIGTERM", [8, 9], second[2:], [10, 11]])
    assert record["status"] == "stopped"
    assert output.parts("records") == {"part=00000", "part=00001"}
    assert output.ids("results") == sorted(IDS[:8])


def test_with_nothing_in_hand_sigterm_ends_it_at_once(scripted: Callable[..., Any], output: Output) -> None:
    assert scripted([list(range(4)), "SIGTERM", [4, 5, 6, 7]])["counts"]["parts_written"] == 1
    assert output.parts("records") == {"part=00000"}


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([[*range(8), *range(12, 24)]], "4 rows did not come back, such as 08.png."),
        ([list(range(24)), [3]], "The row 03.png came twice, or is not in the manifest."),
        ([[1, 1]], "The row 01.png came twice, or is not in the manifest."),
        ([[30]], "The row 30.png came twice, or is not in the manifest."),
    ],
)
def test_rows_that_are_lost_or_come_twice_fail_the_run(
    scripted: Callable[..., Any], output: Output, events: list[list[int]], sentence: str
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        scripted(events)
    assert output.statuses() == ["failed"]


def test_a_finished_job_does_nothing_when_it_is_started_again(
    scripted: Callable[..., Any], output: Output, tmp_path: Path
) -> None:
    def files() -> dict[str, int]:
        tables = [*tmp_path.rglob("*.parquet"), *tmp_path.rglob("part=*.json")]
        return {str(path): path.stat().st_mtime_ns for path in tables}

    scripted([list(range(24))])
    before = files()
    assert len(before) == 3 * 6
    counts = scripted([])["counts"]
    assert (counts["parts_written"], counts["parts_before"], counts["results"]) == (0, 6, 24)
    assert files() == before


def test_a_file_that_someone_removed_or_doubled_fails_the_run(
    scripted: Callable[..., Any], output: Output, tmp_path: Path
) -> None:
    scripted([list(range(24))])
    file = tmp_path / "output" / "results" / "part=00002" / "rows.parquet"
    (file.parent / "copy.parquet").write_bytes(file.read_bytes())
    counts = "0 ids missing, 4 ids more than once, 0 ids not in the manifest"
    with pytest.raises(RuntimeError, match=counts) as raised:
        scripted([])
    assert "; remove results/part=00002/copy.parquet, of which this job knows nothing, such as" in str(
        raised.value
    )
    (file.parent / "copy.parquet").unlink()
    file.unlink()
    counts = "4 ids missing, 0 ids more than once, 0 ids not in the manifest"
    with pytest.raises(RuntimeError, match=counts) as raised:
        scripted([])
    advice = ", such as 08.png of part 2; remove records/part=00002.json to do it again."
    assert str(raised.value).endswith(advice)
    (tmp_path / "output" / "records" / "part=00002.json").unlink()
    assert scripted([list(range(8, 12))])["counts"]["results"] == 24
    assert output.statuses() == ["complete", "failed", "failed", "complete"]


def test_dead_letters_of_earlier_runs_count(scripted: Callable[..., Any], output: Output) -> None:
    too_many = r"3 of 24 rows have an error, and max_dead_share allows 2\."
    with pytest.raises(RuntimeError, match=too_many):
        scripted([list(range(4)), list(range(4, 8))], dead={0, 1, 4})
    with pytest.raises(RuntimeError, match=too_many):
        scripted([list(range(4, 8))], dead={4})
    with pytest.raises(RuntimeError, match=r"2 of 24 rows have an error, and max_dead_share allows 1\."):
        scripted([], max_dead_share=0.05)
    assert output.parts("records") == output.parts("results") == {"part=00000"}


def test_a_record_that_cannot_be_written_does_not_hide_what_ended_the_run(
    scripted: Callable[..., Any], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(RunRecord, "end", end)
    with pytest.raises(RuntimeError, match=r"01\.png came twice"):
        scripted([[1, 1]])
    assert output.statuses() == ["running"]


def test_a_run_that_cannot_list_what_is_finished_has_failed(
    scripted: Callable[..., Any], output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished(_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(Job, "finished", finished)
    with pytest.raises(OSError, match="gone"):
        scripted([])
    assert output.statuses() == ["failed"]


def test_rows_wait_where_parts_are_written_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    waits = threading.Event()

    class Watched(Queue[Any]):
        def put(self, *arguments: Any, **options: Any) -> None:
            try:
                super().put(*arguments, **options)
            except Full:
                waits.set()
                raise

    class Results:
        def iter_batches(self, **_: object) -> Iterator[int]:
            for number in range(50):
                made.append(number)
                yield number
            waits.set()

    monkeypatch.setattr(production, "Queue", Watched)
    others = set(threading.enumerate())
    results: Any = Results()
    rows: Any = production.arrivals(results, look_every_s=0.01)
    while next(rows) is None:
        pass
    assert waits.wait(DRIVER_S)
    assert len(made) <= 10  # one taken, eight in the queue, one in hand
    rows.close()
    for thread in set(threading.enumerate()) - others:
        if thread.name == "arrivals":
            thread.join(DRIVER_S)
            assert not thread.is_alive()


# Limits of an image


class Counted(io.BytesIO):
    """A file, and the filesystem that has it alone, which keeps what it is asked for."""

    asked: list[int | None]

    def open_input_stream(self, _: str) -> Counted:
        self.asked = []
        return self

    def read(self, size: int | None = -1) -> bytes:
        self.asked.append(size)
        return super().read(size)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_bytes": 20}, "ValueError: the file has more than 20 bytes"),
        ({"max_pixels": SIDE * SIDE - 1}, f"ValueError: {SIDE} x {SIDE} are more than {SIDE * SIDE - 1} pixels"),
        ({"max_pixels": SIDE * SIDE}, ""),
    ],
)
def test_a_file_beyond_a_limit_is_an_error_before_it_is_decoded(
    inputs: Path, limits: dict[str, int], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def decode_image(encoded: bytes, to: Any) -> int:
        decoded.append(encoded)
        return 7

    monkeypatch.setattr(production, "decode_image", decode_image)
    filesystem = Counted((inputs / "07.png").read_bytes())
    allowed = {"max_bytes": 10_000, "max_pixels": 10_000, **limits}
    to = load_preprocessing(f"{inputs}/checkpoint")
    rows = decode_within({"id": np.array(["07.png"])}, filesystem, str(inputs), to, **allowed)
    assert rows["error"] == [error]
    assert filesystem.asked == [allowed["max_bytes"] + 1]
    assert len(decoded) == (error == "")
    assert (rows["image"] == (0 if error else 7)).all()


# The command


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    assert production.main([*run.options, "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rows"], plan["parts"], plan["parts_to_do"]) == (ROWS, PARTS, PARTS)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--manifest", "/nowhere.parquet"], "There is no manifest /nowhere.parquet."),
        (["--model", "/nowhere"], "There is no checkpoint folder /nowhere."),
        (["--images", "/nowhere"], "There are no images at /nowhere."),
        (["--settings", "/nowhere.toml"], "The settings file /nowhere.toml cannot be read: No such file"),
        (["--limit", "0"], "argument --limit: must be a whole number of at least 1, not 0."),
    ],
)
def test_what_cannot_begin_is_refused_with_status_2_before_ray_starts(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    try:
        status: Any = production.main([*run.options, *options])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    output, errors = capsys.readouterr()
    assert (output, len(errors.splitlines())) == ("", 1)
    assert sentence in errors


def test_a_pool_that_does_not_fit_is_refused_with_status_2_and_nothing_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: sys.stdout.write("(raylet) A node died.\n"))
    monkeypatch.setattr(ray, "shutdown", lambda: sys.stdout.write("(raylet) A node died.\n"))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setenv("PRODUCTION_ACTORS", "9")
    assert production.main(run.options) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("A node died"), len(errors.splitlines())) == ("", 2, 3)
    assert "does not fit into a cluster with 0 GPUs and 1 CPUs" in errors
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("moment", "status", "recorded"),
    [
        ("plan_job", 75, ["stopped"]),
        ("init", 75, None),
        ("plan_pool", 75, ["stopped"]),
        ("shutdown", 0, ["complete"]),
    ],
)
def test_sigterm_is_taken_from_the_first_line_to_the_last(
    run: Run, output: Output, monkeypatch: pytest.MonkeyPatch, moment: str, status: int, recorded: list[str] | None
) -> None:
    def send(now: str) -> None:
        if now == moment:
            signal.raise_signal(signal.SIGTERM)

    def init(**_: object) -> None:  # as Ray's
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        send("init")

    def plan(*arguments: Any) -> Job:
        send("plan_job")
        return plan_job(*arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: send("shutdown"))
    monkeypatch.setattr(production, "plan_job", plan)
    monkeypatch.setattr(production, "plan_pool", lambda *_: send("plan_pool"))
    monkeypatch.setattr(production, "build_pipeline", lambda *_: None)
    monkeypatch.setattr(production, "arrivals", lambda _: iter([came(range(ROWS))]))
    assert production.main(run.options) == status
    assert signal.getsignal(signal.SIGTERM) == before
    if recorded is None:
        assert not output.parts("runs")
    else:
        assert output.statuses() == recorded


# On the cluster, in this process


@pytest.mark.cluster
def test_how_long_a_run_may_make_no_progress_is_a_setting(
    connected_here: None, inputs: Path, tmp_path: Path
) -> None:
    job = plan_job(settings_for(inputs, f"{tmp_path}/output", no_progress_timeout_s=7), make_stand_in())
    results = production.build_pipeline(job, IDS, plan_pool(1))
    assert results.context.execution_no_progress_timeout_s == 7


@pytest.mark.cluster
def test_rows_that_ray_drops_silently_fail_the_run(
    connected_here: None, inputs: Path, output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(make_stand_in()):  # type: ignore[misc]
        def __call__(self, batch: dict[str, Any]) -> pa.Table:
            if IDS[20] in batch["id"]:
                raise ValueError("not this one")
            return super().__call__(batch)

    monkeypatch.setattr(ray.data.DataContext.get_current(), "max_errored_blocks", -1)
    with pytest.raises(RuntimeError, match=r"\d+ rows did not come back, such as "):
        run_job(plan_job(settings_for(inputs, f"{tmp_path}/output"), Picky))
    assert output.statuses() == ["failed"]
    assert "part=00005" not in output.parts("results") | output.parts("records")


@pytest.mark.cluster
def test_more_dead_letters_than_allowed_end_the_run_unwritten(
    connected_here: None, inputs: Path, output: Output, tmp_path: Path
) -> None:
    settings = settings_for(inputs, f"{tmp_path}/output", images=f"{inputs}/checkpoint", max_dead_share=0.05)
    with pytest.raises(RuntimeError, match=r"4 of 48 rows have an error, and max_dead_share allows 2\."):
        run_job(plan_job(settings, make_stand_in()))
    assert not output.parts("results") | output.parts("records")
    assert output.statuses() == ["failed"]


@pytest.mark.cluster
def test_without_parts_a_crash_and_a_rerun_write_rows_twice(connected_here: None, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"

    def crash(batch: dict[str, Any]) -> dict[str, Any]:
        while 3 in batch["id"]:
            if any(folder.glob("*.parquet")):
                raise RuntimeError("crash")
            time.sleep(0.02)
        return batch

    rows = ray.data.range(4, override_num_blocks=4)
    with pytest.raises(ray.exceptions.RayError, match="crash"):
        rows.map_batches(crash).write_parquet(str(folder))
    rows.write_parquet(str(folder))
    ids = pq.read_table(folder)["id"].to_pylist()
    assert set(ids) == set(range(4))
    assert len(ids) > 4


@pytest.mark.cluster
def test_without_an_error_column_one_bad_row_takes_its_block_along(
    connected_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_one(batch: dict[str, Any]) -> dict[str, Any]:
        if 7 in batch["id"]:
            raise ValueError("corrupt")
        return batch

    monkeypatch.setattr(ray.data.DataContext.get_current(), "max_errored_blocks", -1)
    rows = ray.data.range(100, override_num_blocks=4).map_batches(refuse_one, batch_size=5).take_all()
    assert sorted(row["id"] for row in rows) == list(range(25, 100))


@pytest.mark.cluster
def test_the_real_classifier_labels_the_rows_and_its_dead_letters_are_a_manifest(
    connected_here: None,
    inputs: Path,
    sample_set: Samples,
    spread_images: list[str],
    output: Output,
    tmp_path: Path,
) -> None:
    manifest = f"{tmp_path}/manifest.parquet"
    pq.write_table(pa.table({"path": [*spread_images[:5], f"{inputs}/{CORRUPT}"]}), manifest)
    settings = Settings(
        manifest=manifest,
        model=str(sample_set.model),
        output=f"{tmp_path}/output",
        part_rows=4,
        batch_size=4,
        actors=1,
        max_dead_share=0.5,
    )
    job = plan_job(settings, Classifier)
    record = run_job(job)
    assert (record["counts"]["results"], record["counts"]["dead_letters"]) == (5, 1)
    table = pq.read_table(f"{tmp_path}/output/results")
    assert table.schema.names == ["id", "label", "score", "part"]
    assert sorted(table["id"].to_pylist()) == sorted(spread_images[:5])
    assert set(table["label"].to_pylist()) <= {folder.name for folder in sample_set.images.iterdir()}
    assert read_manifest(f"{tmp_path}/output/dead_letters") == [f"{inputs}/{CORRUPT}"]


def kill_node(cluster: RayCluster, raylets: set[int]) -> None:
    """Kill a worker node with one of these processes."""
    whole: Any = cluster._cluster
    for node in list(whole.worker_nodes):
        if node.all_processes["raylet"][0].process.pid in raylets:
            whole.remove_node(node, allow_graceful=False)
            return
    raise AssertionError("no actor on a worker node")


@pytest.mark.cluster
@pytest.mark.timeout(5 * DRIVER_S)
def test_killing_an_actor_and_a_node_changes_no_row(
    cluster: RayCluster, connected_here: None, inputs: Path, output: Output, tmp_path: Path
) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    close(gates, range(0, ROWS, 4))  # one row of each block, so that every actor waits for the test

    def kill() -> None:
        try:
            # Of three actors at most two are on the head, which has to stay.
            wait_until(lambda: len(set(waiting(gates).values())) == 3)
            first = set(waiting(gates).values())
            os.kill(min(first), signal.SIGKILL)
            wait_until(lambda: bool(set(waiting(gates).values()) - first))
            raylets = set()
            for pid in set(waiting(gates).values()) - {min(first)}:
                with suppress(psutil.NoSuchProcess):
                    raylets.add(psutil.Process(pid).ppid())
            kill_node(cluster, raylets)
            wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
        finally:
            for path in gates.glob("*.closed"):
                path.unlink()

    stand_in = make_stand_in(gates)
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill)
        record = run_job(plan_job(settings_for(inputs, f"{tmp_path}/output", actors=3), stand_in))
        killing.result()
    assert record["status"] == "complete"
    table = pq.read_table(f"{tmp_path}/output/results")
    rows = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert rows == {id: str(row) for row, id in enumerate(IDS) if id not in DEAD}
    assert len(table) == len(rows)
    assert output.ids("dead_letters") == sorted(DEAD)
