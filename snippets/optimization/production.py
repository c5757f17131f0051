"""A pipeline for production: each row of a manifest ends in exactly one place, whatever is killed on the way."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import (
    BLOCKS_IN_FLIGHT,
    KEEP_FREED_MEMORY,
    Pool,
    Preprocessing,
    decode_image,
    plan_pool,
)
from snippets.optimization.production_engine import choose_classifier
from snippets.optimization.production_parts import Job, Parts, account, plan_job, write_part
from snippets.optimization.production_settings import load_settings
from snippets.optimization.run_record import EXIT_STATUS, RunRecord, check_output, put_json

# isort: split
# --8<-- [start:imports]
import io
import math
import posixpath
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from pyarrow import fs

# --8<-- [end:imports]


# --8<-- [start:decode_within]
def decode_within(
    batch: dict[str, Any],
    filesystem: fs.FileSystem,
    root: str,
    to: Preprocessing,
    max_bytes: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Decode as part 1's `decode` does, but no file of more bytes, and no image of more pixels, than allowed.

    No more of a file is read than that, and the pixels are counted in its header, before any is decoded.
    """
    pixels = np.zeros((len(batch["id"]), to.crop, to.crop, 3), np.uint8)
    errors = []
    for image, id in zip(pixels, batch["id"], strict=True):
        try:
            with filesystem.open_input_stream(posixpath.join(root, id)) as stream:
                encoded = stream.read(max_bytes + 1)
            if len(encoded) > max_bytes:
                raise ValueError(f"the file has more than {max_bytes} bytes")
            width, height = Image.open(io.BytesIO(encoded)).size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} are more than {max_pixels} pixels")
            image[:] = decode_image(encoded, to)
            errors.append("")
        except Exception as error:  # Pillow's decoders raise many types, and none may end the job
            errors.append(f"{type(error).__name__}: {error}")
    return {"id": batch["id"], "image": pixels, "error": errors}


# --8<-- [end:decode_within]


# --8<-- [start:build_pipeline]
def classifier_arguments(job: Job, pool: Pool) -> tuple[Any, ...]:
    """Return what each actor is made with: the arguments of part 1's `Classifier`, the batch size the third."""
    use_gpu = pool.num_gpus > 0
    batch_size = job.settings.batch_size or (64 if use_gpu else 16)
    return job.model, job.to, batch_size, job.settings.dtype, pool.threads, use_gpu


def build_pipeline(job: Job, ids: Sequence[str], pool: Pool) -> ray.data.Dataset:
    """Return `id`, `label`, `score` and `error` for each id, in any order.

    The job's classifier takes the arguments of part 1's `Classifier`, and returns the table that it returns.
    """
    settings, to, arguments = job.settings, job.to, classifier_arguments(job, pool)
    batch_size = arguments[2]
    batches = min(8 if pool.num_gpus else 2, max(1, len(ids) // (4 * pool.actors * batch_size)))
    blocks = math.ceil(len(ids) / (batches * batch_size))
    limits = {"max_bytes": settings.max_bytes, "max_pixels": settings.max_pixels}
    results = (
        ray.data.from_items([{"id": id} for id in ids], override_num_blocks=blocks)
        .map_batches(
            decode_within,
            fn_kwargs={"filesystem": job.images, "root": job.root, "to": to, **limits},
            num_cpus=pool.decode_cpus,
        )
        .map_batches(
            job.classifier,
            fn_constructor_args=arguments,
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(pool.actors, blocks)),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )
    results.context.execution_no_progress_timeout_s = settings.no_progress_timeout_s
    options = results.context.execution_options
    in_flight = BLOCKS_IN_FLIGHT * pool.actors * batches * batch_size * to.crop * to.crop * 3
    options.resource_limits = options.resource_limits.copy(object_store_memory=in_flight)
    return results


# --8<-- [end:build_pipeline]


# --8<-- [start:stop]
@contextmanager
def on_sigterm(stop: threading.Event | None = None) -> Iterator[threading.Event]:
    """Yield an event, a new one or the one given, that SIGTERM sets, instead of ending the process.

    Call it after `ray.init()`, which sets a handler of its own.
    """
    stop = stop or threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


LEAVE_S = 5


def arrivals(results: ray.data.Dataset, look_every_s: float = 0.2) -> Iterator[pa.Table | None]:
    """Yield tables of rows as they come, and None where none does, so that nobody waits who should stop."""
    queue: Queue[pa.Table | BaseException | None] = Queue(maxsize=8)
    gone = threading.Event()

    def give(came: pa.Table | BaseException | None) -> None:
        while not gone.is_set():
            with suppress(Full):
                queue.put(came, timeout=look_every_s)
                return

    def take() -> None:
        try:
            # To prefetch would hold rows back until there are more.
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                give(table)
                if gone.is_set():
                    return
            give(None)
        except BaseException as error:
            give(error)

    taker = threading.Thread(target=take, name="arrivals", daemon=True)
    taker.start()
    try:
        while True:
            try:
                came = queue.get(timeout=look_every_s)
            except Empty:
                yield None
                continue
            if came is None:
                return
            if isinstance(came, BaseException):
                raise came
            yield came
    finally:
        gone.set()
        taker.join(LEAVE_S)  # it ends the run: to call Ray after its shutdown would start Ray again


# --8<-- [end:stop]


# --8<-- [start:run_job]
def run_job(job: Job, stop: threading.Event | None = None) -> dict[str, Any]:
    """Do what is not done yet; return the run's record, whose `status` is `complete`, or `stopped` after `stop`.

    Raises what ended the run otherwise, after the record says so; what is finished then stays finished.
    """
    if not check_output(job.output, job.path, job.identity):
        put_json(job.output, f"{job.path}/job.json", job.identity)
    asked = {"settings": job.settings.model_dump(), "job": job.identity}
    record = RunRecord(job.output, job.path, asked)
    counts = {"rows": job.rows, "parts": len(job.parts), "parts_before": 0, "parts_written": 0}
    try:
        with on_sigterm(stop) as stop:
            before = job.finished()
            counts["parts_before"] = len(before)
            todo = {number: ids for number, ids in enumerate(job.parts) if number not in before}
            if not todo or finish(job, todo, job.dead_letters(before), record.run_id, counts, stop):
                counts |= account(job)
                check_share(job, counts["dead_letters"])
                return record.end("complete", counts)
            return record.end("stopped", counts)
    except BaseException as error:
        with suppress(Exception):  # where no record can be written, raise what came first
            record.end("failed", counts, f"{type(error).__name__}: {error}")
        raise


def finish(
    job: Job,
    todo: dict[int, list[str]],
    dead: int,
    run_id: str,
    counts: dict[str, int],
    stop: threading.Event,
) -> bool:
    """Write the parts that are left. Return False where `stop` came first; the parts in hand are then written.

    `dead` counts the dead letters of the parts before, so that a job does not begin anew with its share.
    """
    check_share(job, dead)
    if stop.is_set():
        return False
    ids = [id for part in todo.values() for id in part]
    pool = plan_pool(job.settings.actors, job.settings.gpus)
    results = build_pipeline(job, ids, pool)
    parts = Parts(todo)
    in_hand: set[int] | None = None
    deadline = math.inf
    for table in arrivals(results):
        for number, rows in parts.add(table) if table is not None else ():
            dead += len(rows) - rows["error"].null_count
            check_share(job, dead)
            write_part(job, number, rows, run_id)
            counts["parts_written"] += 1
        if stop.is_set():
            if in_hand is None:
                in_hand, deadline = set(parts.held), time.monotonic() + job.settings.stop_within_s
            if in_hand.isdisjoint(parts.held) or time.monotonic() > deadline:
                return False
    parts.check()
    return True


def check_share(job: Job, dead: int) -> None:
    """Raise `RuntimeError` where there are more dead letters than the settings allow."""
    allowed = int(job.settings.max_dead_share * job.rows)
    if dead > allowed:
        raise RuntimeError(f"{dead} of {job.rows} rows have an error, and max_dead_share allows {allowed}.")


# --8<-- [end:run_job]


# --8<-- [start:describe_plan]
def describe_plan(job: Job) -> dict[str, Any]:
    """Return what a run would do."""
    finished = len(job.finished())
    return {
        "rows": job.rows,
        "parts": len(job.parts),
        "parts_before": finished,
        "parts_to_do": len(job.parts) - finished,
        "job": job.identity,
    }


# --8<-- [end:describe_plan]


def main(arguments: Sequence[str] | None = None, classifier: type | None = None) -> int:
    """Run the command; return its exit status: 0 complete, 1 failed, 2 refused, 75 stopped by SIGTERM.

    Without a classifier it takes the one that the setting `engine` names.
    """
    with on_sigterm() as stop:  # from here to the end, also while Ray starts and ends
        return _main(arguments, classifier, stop)


def build_parser() -> Any:
    """Return the parser of the command."""
    from snippets.command import Parser, positive

    parser = Parser(prog="python -m snippets.optimization.production", description=__doc__)
    add = parser.add_argument
    add("--settings", help="TOML file; PRODUCTION_* in the environment and the options below override it")
    add("--manifest", help="Parquet file with a column path")
    add("--images", help="folder or s3:// URI where the paths begin (default: the manifest's folder)")
    add("--model", help="folder, or name@revision on the hub")
    add("--output", help="folder or s3:// URI, new or of the same job")
    add("--limit", type=positive, help="rows at the most (default: all)")
    add("--dry-run", action="store_true", help="check everything, say what would be done, and write nothing")
    add("--json", action="store_true", help="print one line of JSON, and no progress bar")
    return parser


def _main(arguments: Sequence[str] | None, classifier: type | None, stop: threading.Event) -> int:
    import json

    from snippets.checkpoint import check_checkpoint
    from snippets.command import explain, fail, format_report, ray_options, stdout_for_the_answer
    from snippets.fundamentals.setup import configure_data_context

    options = vars(build_parser().parse_args(arguments))
    file, is_dry, as_json = (options.pop(name) for name in ("settings", "dry_run", "json"))
    try:
        settings = load_settings(file, **options)
        check_checkpoint(settings.model)
        job = plan_job(settings, classifier or choose_classifier(settings))
    except (ValueError, OSError) as error:
        return fail(explain(error) or str(error))
    if is_dry:
        report = describe_plan(job)
    else:
        handler = signal.getsignal(signal.SIGTERM)
        with stdout_for_the_answer():
            try:
                ray.init(**ray_options())
                signal.signal(signal.SIGTERM, handler)
                configure_data_context(progress_bars=not as_json)
                try:
                    plan_pool(settings.actors, settings.gpus)
                except ValueError as error:
                    return fail(str(error))
                report = run_job(job, stop)
            except SystemExit:  # what Ray's own handler makes of SIGTERM while Ray starts
                return EXIT_STATUS["stopped"]
            except Exception as error:
                sys.stderr.write((explain(error) or str(error)).rstrip() + "\n")
                return 1
            finally:
                signal.signal(signal.SIGTERM, handler)
                ray.shutdown()
    sys.stdout.write(json.dumps(report) + "\n" if as_json else format_report(report, []))
    return int(report.get("exit_status", 0))


if __name__ == "__main__":
    sys.exit(main())
