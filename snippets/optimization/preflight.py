"""Before a million images: check what a run needs, rehearse it, and say how long it takes, or what is wrong."""

from __future__ import annotations

from snippets.checkpoint import check_checkpoint
from snippets.fundamentals.actor_pool import Pool, plan_pool
from snippets.optimization.preflight_checks import (
    Check,
    Report,
    judge_images,
    judge_nodes,
    look_at_input,
    look_everywhere,
    manifest_of,
    sentence_of,
    try_on_nodes,
    write_and_remove,
)
from snippets.optimization.preflight_estimate import Estimate, Prices, Rehearsal, estimate, rehearse
from snippets.optimization.production import check_share, classifier_arguments, describe_plan
from snippets.optimization.production_engine import choose_classifier
from snippets.optimization.production_parts import Job, plan_job
from snippets.optimization.production_settings import load_settings

# isort: split
# --8<-- [start:imports]
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray

# --8<-- [end:imports]


# --8<-- [start:preflight]
@dataclass(frozen=True)
class Extent:
    """How much to look at: images, windows of the rehearsal, seconds for it and for what may never answer."""

    sample: int = 100
    windows: int = 8
    budget_s: float = 300
    timeout_s: float = 300
    seed: int = 0


FREE = Prices()
FILES_A_PART = 3  # results, dead letters, record


def preflight(
    source: str | list[str] | None,
    model: str | None,
    output: str | None,
    classifier: type | None = None,
    prices: Prices = FREE,
    deadline_s: float | None = None,
    extent: Extent = Extent(),
    report: Report | None = None,
    connect: Callable[[], Any] = ray.init,
    **settings: Any,
) -> Report:
    """Check a production run in three steps, each only where nothing was refused before, and return the findings.

    The source is a folder, a list of files, an `s3://` URI or a manifest; where it, the model or the output is
    None, it is that of the settings, which are those of `load_settings`; without a classifier it is that of their
    engine. The first step needs no cluster.
    """
    report = report or Report()
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": model, "output": output, **settings}
        job = check_plan(report, source, f"{folder}/manifest.parquet", classifier, given)
    if job and not report.refusals:
        if not ray.is_initialized():
            connect()
        pool = check_cluster(report, job, extent)
        if pool and not report.refusals:
            check_time(report, job, pool, prices, deadline_s, extent)
    return report


def check_plan(
    report: Report, source: str | list[str] | None, written: str, classifier: type | None, given: dict[str, Any]
) -> Job | None:
    """Check what needs no cluster; return the job, or None where it cannot be planned.

    Of a folder or a list the manifest that a run needs is written to `written`.
    """
    settings = job = None
    with report.check("settings") as check:
        if isinstance(source, str) and source.endswith(".parquet"):
            given["manifest"] = source
        elif source is not None:
            listed = manifest_of(source, written, given.get("limit"))
            if left_out := listed.pop("left_out"):
                check.notes.append(f"{left_out} files have no suffix of an image, and are left out.")
            given |= listed
        file = given.pop("file", None)
        settings = load_settings(file, **given)
    if settings is None:
        return None
    with report.check("input") as check:
        check.found |= look_at_input(settings)
    with report.check("checkpoint"):
        check_checkpoint(settings.model)
    with report.check("output") as check:
        check.found |= write_and_remove(settings.output)
    if not report.refusals:
        with report.check("job") as check:
            job = plan_job(settings, classifier or choose_classifier(settings))
            check.found |= {name: value for name, value in describe_plan(job).items() if name != "job"}
            check_share(job, job.dead_letters(job.finished()))
    return job


def check_cluster(report: Report, job: Job, extent: Extent) -> Pool | None:
    """Check the pool, the images and the model from where the workers are; return the pool, None if none fits."""
    pool = None
    with report.check("pool") as check:
        pool = plan_pool(job.settings.actors, job.settings.gpus)
        check.found |= asdict(pool)
    with report.check("images") as check:
        rows = look_everywhere(job, pool, extent.sample, extent.timeout_s, extent.seed)
        judge_images(check, rows, job.rows, job.settings.max_dead_share)
    if pool:
        with report.check("model") as check:
            tried = try_on_nodes(job, pool, extent.timeout_s)
            batch_size = classifier_arguments(job, pool)[2]
            judge_nodes(check, tried, batch_size, job.settings.no_progress_timeout_s)
    return pool


def check_time(
    report: Report, job: Job, pool: Pool, prices: Prices, deadline_s: float | None, extent: Extent
) -> None:
    """Rehearse what is left to do, and say how long it takes and what it costs."""
    finished = job.finished()
    ids = [id for number, part in enumerate(job.parts) if number not in finished for id in part]
    if not ids:
        return
    with report.check("time") as check:
        rehearsal = rehearse(job, ids, pool, extent.windows, extent.budget_s, extent.timeout_s, extent.seed)
        write_s = (len(job.parts) - len(finished)) * FILES_A_PART * report.found("output")["seconds"]
        found = estimate(rehearsal, len(ids), write_s)
        mean_bytes = report.found("images")["mean_bytes"] or 0
        spans = (found.seconds, found.low_s, found.high_s)
        check.found |= {**asdict(found), "cost": [prices.cost(span, len(ids), mean_bytes) for span in spans]}
        judge_time(check, rehearsal, found, deadline_s)


def judge_time(check: Check, rehearsal: Rehearsal, found: Estimate, deadline_s: float | None) -> None:
    """Refuse what takes too long at the least, and say what makes the estimate worth less."""
    if deadline_s is not None and found.low_s > deadline_s:
        check.refusals.append(
            f"It takes at least {found.low_s:.0f} s, and the deadline is in {deadline_s:.0f} s: "
            f"{found.rows} rows at {found.rows_per_second:.3g} a second."
        )
    if rehearsal.came[-1].rows >= found.rows:  # all of it was rehearsed
        return
    if rehearsal.placed < rehearsal.actors:
        check.notes.append(f"Of {rehearsal.actors} actors {rehearsal.placed} were there: others hold the rest.")
    if not rehearsal.steady:
        check.notes.append("The rate was not steady yet when the rehearsal ended: give it a larger budget.")


# --8<-- [end:preflight]


# --8<-- [start:describe]
def describe(report: Report) -> str:
    """Return a line a check, and what is worth knowing below it."""
    lines = []
    for check in report.checks:
        found = ", ".join(f"{name} {show(value)}" for name, value in check.found.items())
        lines.append(f"{check.name:11}{'refused' if check.refusals else 'ok':9}{found}".rstrip())
        lines += [f"{'':20}{note}" for note in check.notes]
    return "\n".join(lines)


def show(value: Any) -> str:
    """Return a value with the digits that say something."""
    if isinstance(value, list):
        return " to ".join(map(show, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --8<-- [end:describe]


def amount(text: str) -> float:
    """Parse a finite number of at least 0."""
    import argparse

    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 0, or 2 after a sentence for each thing that cannot end well."""
    from tqdm import tqdm

    from snippets.command import Parser, explain, fail, positive, ray_options, stdout_for_the_answer
    from snippets.fundamentals.setup import configure_data_context

    parser = Parser(prog="python -m snippets.optimization.preflight", description=__doc__)
    add = parser.add_argument
    add("--settings", dest="file", help="TOML file of the run, as production takes it")
    add("--source", help="folder, s3:// URI or file without a manifest (default: the settings' manifest)")
    add("--manifest", help="Parquet file with a column path")
    add("--images", help="folder or s3:// URI where the manifest's paths begin (default: its folder)")
    add("--model", help="folder, or name@revision on the hub")
    add("--output", help="folder or s3:// URI, new or of the same job")
    add("--limit", type=positive, help="rows at the most (default: all)")
    add("--sample", type=positive, default=Extent.sample, help="images to look at (default: %(default)s)")
    add("--budget", type=positive, default=Extent.budget_s, help="seconds of rehearsal (default: %(default)s)")
    add("--deadline", type=amount, help="hours that the run may take (default: any)")
    add("--price-an-hour", type=amount, default=0, help="of all nodes, in your currency")
    add("--price-a-thousand-reads", type=amount, default=0, help="of the storage")
    add("--price-a-gigabyte", type=amount, default=0, help="that is read")
    add("--json", action="store_true", help="print one line of JSON, and no progress bar")
    given = vars(parser.parse_args(arguments))
    take, as_json, hours = given.pop, given.pop("json"), given.pop("deadline")
    prices = Prices(take("price_an_hour"), take("price_a_thousand_reads"), take("price_a_gigabyte"))
    extent = Extent(sample=take("sample"), budget_s=take("budget"))
    was_connected = ray.is_initialized()

    def connect() -> None:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray.init(**ray_options())
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failure ends in a sentence
        configure_data_context(progress_bars=False)

    if as_json:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with stdout_for_the_answer():
        try:
            with tqdm(desc="preflight", disable=as_json) as bar:

                def progress(name: str) -> None:
                    bar.set_postfix_str(name)
                    bar.update()

                report = Report(lambda error: explain(error) or sentence_of(error), progress)
                deadline_s = None if hours is None else 3600 * hours
                source, model, output = take("source"), take("model"), take("output")
                preflight(source, model, output, None, prices, deadline_s, extent, report, connect, **given)
        finally:
            if not was_connected:
                ray.shutdown()
    if as_json:
        found = {check.name: check.found for check in report.checks}
        sys.stdout.write(json.dumps({"refusals": report.refusals, "notes": report.notes, **found}) + "\n")
    else:
        sys.stdout.write(describe(report) + "\n")
    return fail("\n".join(report.refusals)) if report.refusals else 0


if __name__ == "__main__":
    sys.exit(main())
