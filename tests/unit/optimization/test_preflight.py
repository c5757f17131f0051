"""A preflight refuses what cannot end well, each with its sentence, and says how long the rest takes."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs

from snippets.fundamentals.actor_pool import Pool, load_preprocessing, plan_pool
from snippets.optimization import preflight as module
from snippets.optimization import preflight_estimate
from snippets.optimization.preflight import Extent, check_plan, describe, judge_time, main, preflight
from snippets.optimization.preflight_checks import (
    Check,
    Report,
    enough_to_see,
    judge_images,
    judge_nodes,
    look,
    look_everywhere,
    name_of,
    share_between,
    try_on_nodes,
    write_and_remove,
)
from snippets.optimization.preflight_estimate import Arrival, Estimate, Prices, Rehearsal, estimate, rehearse
from snippets.optimization.production import describe_plan, run_job
from snippets.optimization.production_parts import Job, plan_job, write_manifest
from snippets.optimization.production_settings import Settings
from snippets.optimization.trial import DIED, OUT_OF_MEMORY
from tests.production_driver import CORRUPT, DEAD, IDS, PART_ROWS, PARTS, ROWS, make_stand_in, write_inputs

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

SMALL: dict[str, Any] = {
    "part_rows": PART_ROWS,
    "batch_size": 2,
    "actors": 2,
    "num_gpus": 0,
    "max_dead_share": 0.1,
}
QUICK = Extent(windows=5, timeout_s=120)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images, of which one is corrupt and one missing, their manifest and a checkpoint."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def job_for(inputs: Path, output: object, classifier: type | None = None, **more: Any) -> Job:
    settings = Settings(
        manifest=f"{inputs}/manifest.parquet",
        model=f"{inputs}/checkpoint",
        output=str(output),
        **{**SMALL, **more},
    )
    return plan_job(settings, classifier or make_stand_in())


def planned(inputs: Path, output: object, source: Any = None, **more: Any) -> tuple[Report, Job | None]:
    """Make the checks that need no cluster."""
    report = Report()
    source = source or f"{inputs}/manifest.parquet"
    given = {"model": f"{inputs}/checkpoint", "output": str(output), **SMALL, **more}
    written = Path(str(output)).with_suffix(".parquet")
    return report, check_plan(report, source, str(written), make_stand_in(), given)


# The whole


@pytest.mark.cluster
def test_a_job_that_can_run_is_refused_nothing_and_of_a_finished_one_nothing_is_left(
    connected: RayCluster, inputs: Path, tmp_path: Path
) -> None:
    output, classifier = tmp_path / "output", make_stand_in()

    def fly() -> Report:
        of = (f"{inputs}/manifest.parquet", f"{inputs}/checkpoint", str(output), classifier)
        return preflight(*of, prices=Prices(an_hour=3600), extent=QUICK, **SMALL)

    report = fly()
    assert report.refusals == []
    names = ["settings", "input", "checkpoint", "output", "job", "pool", "images", "model", "time"]
    assert [check.name for check in report.checks] == names
    assert report.found("input")["rows"] == report.found("time")["rows"] == ROWS
    assert report.found("model")["nodes"] == 3
    images = report.found("images")
    assert (images["looked_at"], images["unusable"], images["modes"]) == (
        ROWS,
        len(DEAD),
        {"RGB": ROWS - len(DEAD)},
    )
    assert images["unusable_share"] == [len(DEAD) / ROWS] * 2
    assert report.found("time")["cost"] == pytest.approx([report.found("time")["seconds"]] * 3)
    assert not output.exists()

    assert run_job(job_for(inputs, output, classifier))["status"] == "complete"
    last = fly()
    assert (last.refusals, last.checks[-1].name) == ([], "model")  # there is no time to estimate
    assert "time" not in describe(last)
    (output / "records" / "part=00003.json").unlink()
    again = fly()
    assert (again.refusals, again.found("job")["parts_before"]) == ([], PARTS - 1)
    assert again.found("time")["rows"] == PART_ROWS
    assert "looked_at 48" in describe(again)


# Without a cluster


def test_everything_that_is_wrong_without_a_cluster_is_said_at_once_and_no_cluster_is_asked(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    report = preflight(
        "/nowhere.parquet",
        "/nowhere",
        f"{tmp_path}/file/output",
        connect=lambda: pytest.fail("Ray was started"),
    )
    assert report.refusals[:2] == [
        "There is no manifest /nowhere.parquet.",
        "There is no checkpoint folder /nowhere.",
    ]
    assert report.refusals[2:] == [
        f"The output {tmp_path}/file/output needs a folder where there is a file, {tmp_path}/file."
    ]


def test_each_setting_that_is_wrong_is_a_sentence_and_nothing_else_is_checked(
    inputs: Path, tmp_path: Path
) -> None:
    report, job = planned(inputs, tmp_path / "output", part_rows=0, batch_sise=4)
    assert job is None
    assert [check.name for check in report.checks] == ["settings"]
    assert [sentence.split(" ")[0] for sentence in report.refusals] == ["part_rows", "There"]


def test_a_folder_and_a_list_are_the_job_of_their_manifest(inputs: Path, tmp_path: Path) -> None:
    images = write_manifest(str(inputs), f"{tmp_path}/own.parquet")
    own = Settings(
        manifest=f"{tmp_path}/own.parquet", images=images, model=f"{inputs}/checkpoint", output="o", **SMALL
    )
    expected = plan_job(own, make_stand_in()).identity
    paths = sorted(str(path) for path in inputs.iterdir() if path.suffix in (".png", ".jpg"))
    report, of_folder = planned(inputs, tmp_path / "output", str(inputs))
    assert report.notes == ["4 files have no suffix of an image, and are left out."]  # manifest and checkpoint
    _, of_list = planned(inputs, tmp_path / "output", paths)
    assert of_folder is not None and of_list is not None
    assert of_folder.identity == of_list.identity == expected


@pytest.mark.parametrize("source", ["/nowhere", []])
def test_a_source_without_images_is_refused(inputs: Path, tmp_path: Path, source: Any) -> None:
    report = preflight(source, f"{inputs}/checkpoint", f"{tmp_path}/output")
    assert len(report.refusals) == 1
    assert report.refusals[0].startswith("There is no ")


def test_an_output_of_another_job_and_one_with_too_many_dead_letters_are_refused(
    inputs: Path, tmp_path: Path
) -> None:
    job = job_for(inputs, tmp_path / "output")
    (tmp_path / "output" / "records").mkdir(parents=True)
    (tmp_path / "output" / "job.json").write_text(json.dumps(job.identity))
    (tmp_path / "output" / "records" / "part=00001.json").write_text(json.dumps({"dead_letters": 2}))
    assert planned(inputs, tmp_path / "output")[0].refusals == []
    report, _ = planned(inputs, tmp_path / "output", max_dead_share=0.03)
    assert report.refusals == ["2 of 48 rows have an error, and max_dead_share allows 1."]
    report, _ = planned(inputs, tmp_path / "output", part_rows=5)
    assert report.refusals[0].endswith("is of a job with another part_rows: use a new one.")


def test_the_output_is_written_to_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write_and_remove(f"{tmp_path}/new/output")
    assert found["seconds"] > 0 and found["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", f"{tmp_path}/.preflight")

    monkeypatch.setattr("snippets.optimization.preflight_checks.put", refuse)
    with pytest.raises(PermissionError):
        write_and_remove(f"{tmp_path}/new/output")


# Images


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert list(share_between(5, 100, 10_000)) == pytest.approx([0.0215, 0.1118], abs=5e-5)
    assert list(share_between(0, 100, 10_000)) == pytest.approx([0, 0.0370], abs=5e-5)
    assert share_between(2, 48, 48) == (2 / 48, 2 / 48)


def test_the_interval_holds_the_share_about_as_often_as_it_says() -> None:
    for share in (0.01, 0.05, 0.3):
        hits = np.random.default_rng(0).binomial(100, share, 2000)
        ends = [share_between(int(each), 100, 10**6) for each in hits]
        assert np.mean([low <= share <= high for low, high in ends]) > 0.92


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
def test_so_many_good_images_show_that_a_share_holds_and_one_fewer_does_not(share: float) -> None:
    enough = enough_to_see(share)
    assert share_between(0, enough, 10**9)[1] <= share < share_between(0, enough - 1, 10**9)[1]


def test_what_images_look_like_is_read_from_their_headers(inputs: Path, tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        Image.new(mode, (30, 20)).save(tmp_path / f"{mode}.jpg")
    Image.new("P", (30, 20)).save(tmp_path / "P.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    to = load_preprocessing(f"{inputs}/checkpoint")
    ids = ["L.jpg", "CMYK.jpg", "P.png", "broken.jpg", "gone.jpg"]
    rows = look(ids, fs.LocalFileSystem(), str(tmp_path), to, 10**6, 10**6)
    assert [row["mode"] for row in rows] == ["L", "CMYK", "P", None, None]
    assert [row["error"].split(":")[0] for row in rows] == [
        "",
        "",
        "",
        "UnidentifiedImageError",
        "FileNotFoundError",
    ]
    assert (rows[0]["width"], rows[0]["height"]) == (30, 20)
    assert rows[3]["bytes"] == 8
    assert "more than 7 bytes" in look(["L.jpg"], fs.LocalFileSystem(), str(tmp_path), to, 7, 10**6)[0]["error"]


def rows_of(dead: int, of: int, **more: Any) -> list[dict[str, Any]]:
    row = {"node": "a", "blind": False, "mode": "RGB", "width": 4, "height": 2, "bytes": 10, **more}
    return [{**row, "id": f"{n}.jpg", "error": "OSError: broken" if n < dead else ""} for n in range(of)]


def test_so_many_unusable_images_that_the_run_would_fail_are_refused_with_the_first() -> None:
    check = Check("images")
    judge_images(check, rows_of(10, 100), 10_000, 0.05)
    assert check.refusals == [
        "10 of 100 images cannot be used, so 5.5% to 17.4% of all, and max_dead_share allows 5.0%: "
        "0.jpg, OSError: broken."
    ]
    assert check.found["width"] == [4, 4] and check.found["mean_bytes"] == 10


def test_where_the_sample_does_not_decide_the_note_says_how_many_would() -> None:
    check = Check("images")
    judge_images(check, rows_of(1, 100), 10_000, 0.01)
    assert check.refusals == []
    assert check.notes[0].endswith("a sample of 381 with none would show that it holds.")
    for rows, everything, share in ((rows_of(0, 100), 100, 0.01), (rows_of(0, 100), 10_000, 0.0)):
        settled = Check("images")
        judge_images(settled, rows, everything, share)
        assert settled.refusals == settled.notes == []


@pytest.mark.cluster
def test_a_node_that_does_not_see_the_images_is_named_and_a_corrupt_image_blames_no_node(
    connected: RayCluster, inputs: Path, tmp_path: Path
) -> None:
    job, blind = job_for(inputs, tmp_path / "output"), ray.nodes()[0]

    class Elsewhere:
        """The local disk, but on one node without the images."""

        def open_input_stream(self, path: str) -> Any:
            if ray.get_runtime_context().get_node_id() == blind["NodeID"]:
                raise FileNotFoundError(f"no {path}")
            return fs.LocalFileSystem().open_input_stream(path)

        open_input_file = open_input_stream

    object.__setattr__(job, "images", Elsewhere())
    check = Check("images")
    judge_images(check, look_everywhere(job, None, ROWS, 60, seed=0), ROWS, 0.1)
    assert len(check.refusals) == 1
    assert check.refusals[0].startswith(f"Node {name_of(blind)} reads no image, and others do: FileNotFoundError")

    object.__setattr__(job, "images", fs.LocalFileSystem())
    object.__setattr__(job, "parts", [[CORRUPT, *IDS[:2]]])  # an image a node
    rows = look_everywhere(job, None, 3, 60, seed=0)
    assert len({row["node"] for row in rows}) == 3
    assert [row["blind"] for row in rows] == [False] * 3
    assert [row["id"] for row in rows if row["error"]] == [CORRUPT]


# The model, where the workers are


@pytest.mark.cluster
def test_a_model_that_dies_lacks_memory_or_has_other_weights_is_refused_on_its_node(
    connected: RayCluster, inputs: Path, tmp_path: Path
) -> None:
    class Dies:
        def __init__(self, *_: object) -> None:
            os._exit(1)

    class Large:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, batch: dict[str, Any]) -> pa.Table:
            raise MemoryError(len(batch["id"]))

    pool = plan_pool(2, 0)
    for classifier, failure in ((Dies, DIED), (Large, OUT_OF_MEMORY)):
        rows = try_on_nodes(job_for(inputs, tmp_path / "output", classifier), pool, 60)
        assert [row["failure"] for row in rows] == [failure] * 3
        check = Check("model")
        judge_nodes(check, rows, 2, 60)
        assert (
            check.refusals[0] == f"Node {rows[0]['node']} did not load the model and run a batch of 2: {failure}."
        )
    job = job_for(inputs, tmp_path / "output")
    job.identity["checkpoint"]["sha256"] = "0"
    rows = try_on_nodes(job, Pool(1, 0, 1, 1, 1), 60)
    assert len(rows) == 2  # those with a GPU
    assert "has other weights here than where the preflight was started" in rows[0]["failure"]


def test_a_model_that_loads_longer_than_a_run_waits_is_refused() -> None:
    rows = [{"node": name, "load_s": s, "peak_bytes": 5, "failure": ""} for name, s in (("a", 3.0), ("b", 70.0))]
    check = Check("model")
    judge_nodes(check, rows, 4, 60)
    assert check.refusals == [
        "The model takes 70 s to load, and no_progress_timeout_s ends a run that shows no row for 60 s."
    ]
    assert check.found == {"nodes": 2, "batch_size": 4, "load_s": 70.0, "peak_bytes": 5}


@pytest.mark.cluster
def test_a_pool_that_does_not_fit_is_refused_beside_the_images(
    connected: RayCluster, inputs: Path, tmp_path: Path
) -> None:
    given = {**SMALL, "actors": 99, "max_dead_share": 0.0}
    of = (f"{inputs}/manifest.parquet", f"{inputs}/checkpoint", f"{tmp_path}/output", make_stand_in())
    report = preflight(*of, extent=QUICK, **given)
    assert [check.name for check in report.checks if check.refusals] == ["pool", "images"]
    assert report.refusals[0].startswith("A pool of 99 actors")
    assert report.checks[-1].name == "images"


@pytest.mark.cluster
def test_a_pool_for_which_others_leave_no_room_is_refused_with_what_was_there(
    connected: RayCluster, inputs: Path, tmp_path: Path
) -> None:
    class Other:
        def ready(self) -> None: ...

    others = [ray.remote(Other).options(num_cpus=1).remote() for _ in range(5)]
    try:
        ray.get([other.ready.remote() for other in others])
        sentence = (
            r"^No row came for 2 s: 0 of 2 actors with 0\.5 CPUs and 0 GPUs each were there, beside decode tasks "
            r"of 1 CPU, and the cluster has 0 CPUs and 2 GPUs that nobody holds\.$"
        )
        with pytest.raises(RuntimeError, match=sentence):
            rehearse(job_for(inputs, tmp_path / "output"), IDS, plan_pool(2, 0), 5, 60, 2, seed=0)
    finally:
        for other in others:
            ray.kill(other)
    found = rehearse(job_for(inputs, tmp_path / "output"), IDS, plan_pool(2, 0), 5, 60, 60, seed=0)
    assert (found.came[-1].rows, found.actors, found.placed) == (ROWS, 2, 2)
    assert all(0 <= came.ahead <= ROWS - came.rows for came in found.came)


# The time


def simulate(
    actors: int, tables: int, rows: int, start_s: float, block_s: float, gap_s: float, ahead: Callable[[int], int]
) -> list[Arrival]:
    """Return when tables of actors come that begin one after another, and then take turns."""
    times = sorted(
        start_s + actor * gap_s + block_s * (turn + 1)
        for actor in range(actors)
        for turn in range(-(-tables // actors))
    )[:tables]
    return [Arrival(time, rows * (index + 1), ahead(index)) for index, time in enumerate(times)]


@given(st.integers(1, 6), st.integers(6, 40), st.integers(1, 64), st.floats(0, 30), st.floats(0.1, 9))
def test_the_time_of_a_run_follows_from_its_begin(
    actors: int, rounds: int, rows: int, start_s: float, block_s: float
) -> None:
    whole = simulate(actors, rounds * actors * 4, rows, start_s, block_s, block_s / actors / 2, lambda _: 0)
    few = Rehearsal(whole[: rounds * actors], actors, 5, actors)
    assert few.steady
    found = estimate(few, whole[-1].rows)
    assert found.seconds == pytest.approx(whole[-1].seconds)
    assert found.low_s <= found.seconds <= found.high_s
    assert found.confidence >= 0.9


def test_the_slowest_and_the_fastest_windows_are_the_interval() -> None:
    times = [0.0, 1, 2, 3, 4, 6]  # a row each, with one that took twice as long
    found = estimate(Rehearsal([Arrival(10 + t, n + 1, 0) for n, t in enumerate(times)], 1, 5, 1), 101)
    assert (found.first_rows_s, found.rows_per_second) == (10, 1)
    assert (found.seconds, found.low_s, found.high_s) == (110, 110, 210)
    assert found.confidence == 0.9375


def test_what_was_rehearsed_as_a_whole_takes_what_it_took_and_writing_may_take_longer() -> None:
    came = [Arrival(2, 4, 0), Arrival(3, 8, 0)]
    found = estimate(Rehearsal(came, 4, 5, 4), 8)
    assert (found.seconds, found.low_s, found.high_s, found.confidence) == (3, 3, 3, 0)
    assert estimate(Rehearsal(came, 4, 5, 4), 8, write_s=30).seconds == 32
    for too_few in (Rehearsal(came, 4, 5, 4), Rehearsal([], 1, 5, 1)):
        with pytest.raises(ValueError, match=r"are too few to say how long 9 take\.$"):
            estimate(too_few, 9)


class Scripted:
    """A pipeline that decodes and classifies at set seconds a table, with 16 tables decoded before the first."""

    def __init__(self, decode_s: float, model_s: float) -> None:
        self.decode_s, self.model_s = decode_s, model_s
        self.context = SimpleNamespace(execution_no_progress_timeout_s=0)
        self.decoded, self.now = [50.0] * 16, 0.0

    def arrivals(self, _: object) -> Iterator[pa.Table]:
        for index in itertools.count():
            self.now = max(self.now, self.decoded[index]) + self.model_s
            yield pa.table({"id": [""] * 4})
            self.decoded.append(max(self.decoded[-1], self.now) + self.decode_s)  # once there is room

    def rows_out(self) -> list[int]:
        return [4 * bisect(self.decoded, self.now), 0]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rehearsal]:
    """Rehearse a scripted pipeline, of two actors."""

    def run(decode_s: float, model_s: float, budget_s: float = 1e9) -> Rehearsal:
        results = Scripted(decode_s, model_s)
        seen = SimpleNamespace(runs=[results])
        monkeypatch.setattr(preflight_estimate, "build_pipeline", lambda *_: results)
        monkeypatch.setattr(preflight_estimate, "arrivals", results.arrivals)
        monkeypatch.setattr(preflight_estimate, "observing", lambda: nullcontext(seen))
        monkeypatch.setattr(preflight_estimate, "pool_of", lambda _: (2, 2))
        monkeypatch.setattr(preflight_estimate, "time", SimpleNamespace(monotonic=lambda: results.now))
        settings = Settings(manifest="m", output="o", model="m", batch_size=4)
        job: Any = SimpleNamespace(settings=settings, model="m", to=None)
        ids: Any = range(10**6)
        return rehearse(job, ids, Pool(2, 0.5, 0, 1, 1), 5, budget_s, 60, seed=0)

    return run


def test_a_model_that_is_slower_than_decoding_is_steady_once_each_actor_had_a_block(
    scripted: Callable[..., Rehearsal],
) -> None:
    found = scripted(decode_s=0.5, model_s=2)
    assert found.steady and len(found.came) == 12
    assert estimate(found, 10**6).rows_per_second == pytest.approx(2)


def test_blocks_that_were_decoded_while_the_model_loaded_have_to_pass_first(
    scripted: Callable[..., Rehearsal],
) -> None:
    found = scripted(decode_s=2, model_s=0.5)
    assert found.steady and len(found.came) > 20
    assert estimate(found, 10**6).rows_per_second == pytest.approx(2, rel=0.05)
    too_early = scripted(decode_s=2, model_s=0.5, budget_s=53)
    assert not too_early.steady and too_early.begin >= 0
    assert estimate(too_early, 10**6).rows_per_second == pytest.approx(8)


def time_of(**more: Any) -> Estimate:
    given = {"first_rows_s": 1.0, "low_s": 90.0, "high_s": 110.0, "confidence": 0.9, **more}
    return Estimate(rows=100, rows_per_second=1.0, seconds=100.0, **given)


def test_a_run_that_takes_longer_than_the_deadline_at_the_least_is_refused() -> None:
    came = [Arrival(n, n, 0) for n in range(1, 8)]
    for deadline_s, refusals in (
        (80.0, ["It takes at least 90 s, and the deadline is in 80 s: 100 rows at 1 a second."]),
        (95.0, []),
        (None, []),
    ):
        check = Check("time")
        judge_time(check, Rehearsal(came, 1, 5, 1), time_of(), deadline_s)
        assert (check.refusals, check.notes) == (refusals, [])


def test_what_makes_an_estimate_worth_less_is_said() -> None:
    check = Check("time")
    judge_time(check, Rehearsal([Arrival(n, n, -9 * n) for n in range(1, 8)], 1, 5, 0), time_of(), None)
    assert check.refusals == []
    assert check.notes == [
        "Of 1 actors 0 were there: others hold the rest.",
        "The rate was not steady yet when the rehearsal ended: give it a larger budget.",
    ]


def test_a_cost_is_that_of_hours_reads_and_bytes() -> None:
    prices = Prices(an_hour=6, a_thousand_reads=0.5, a_gigabyte=2)
    assert prices.cost(1800, 4000, 250_000) == 3 + 2 + 2
    with pytest.raises(ValueError, match="The price of an hour must be at least 0, not -1"):
        Prices(an_hour=-1)


# The command


@pytest.fixture
def options(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a job that can run, whose pipeline is not; Ray says something at its beginning and end."""
    monkeypatch.setattr(ray, "init", lambda **_: sys.stdout.write("(raylet) A node died.\n"))
    monkeypatch.setattr(ray, "shutdown", lambda: sys.stdout.write("(raylet) A node died.\n"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(module, "check_cluster", lambda *_: None)
    settings = tmp_path / "settings.toml"
    settings.write_text(f"part_rows = {PART_ROWS}\nmodel = '{inputs}/checkpoint'\n")
    return ["--settings", str(settings), "--manifest", f"{inputs}/manifest.parquet", "--output", f"{tmp_path}/out"]


def test_the_command_says_what_was_found(
    options: list[str], inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["refusals"], found["job"]["parts"]) == ([], PARTS)
    assert main(options) == 0
    assert "job        ok       rows 48, parts 12, parts_before 0, parts_to_do 12" in capsys.readouterr().out
    assert main([*options[:2], *options[4:], "--source", str(inputs)]) == 0
    assert re.search(r"input +ok +rows 47", capsys.readouterr().out)  # a folder has no missing file


def test_the_command_refuses_with_status_2_and_a_sentence_each(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--model", "/nowhere", "--manifest", "/nowhere.parquet", "--json"]) == 2
    output, errors = capsys.readouterr()
    said = [line for line in errors.splitlines() if not line.startswith("(raylet)")]
    assert said == ["There is no manifest /nowhere.parquet.", "There is no checkpoint folder /nowhere."]
    assert json.loads(output)["refusals"] == said


def test_what_a_dry_run_says_a_preflight_says(inputs: Path, tmp_path: Path) -> None:
    report, job = planned(inputs, tmp_path / "output")
    assert job is not None
    assert {**describe_plan(job), "job": 0} == {**report.found("job"), "job": 0}
