"""A preflight, or the run that it foretells, in a process of its own with a fresh Ray.

`python -m snippets.benchmark.preflight_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime
from typing import Any

import ray

from snippets.benchmark.processes import answer_request
from snippets.command import ray_options
from snippets.fundamentals.actor_pool import Classifier
from snippets.fundamentals.setup import configure_data_context
from snippets.optimization.preflight import Extent, preflight
from snippets.optimization.production import run_job
from snippets.optimization.production_parts import plan_job
from snippets.optimization.production_settings import Settings


def connect() -> None:
    """Start Ray on this machine."""
    ray.init(**ray_options())
    configure_data_context(progress_bars=False)


def run_preflight(manifest: str, images: str, model: str, dtype: str, extent: dict[str, Any]) -> dict[str, Any]:
    """Return the estimate of a preflight: `seconds`, `low_s`, `high_s`. Raises `RuntimeError` where it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"images": images, "dtype": dtype}
        report = preflight(
            manifest, model, f"{folder}/output", extent=Extent(**extent), connect=connect, **settings
        )
    ray.shutdown()
    if report.refusals:
        raise RuntimeError(" ".join(report.refusals))
    return {name: report.found("time")[name] for name in ("seconds", "low_s", "high_s")}


def run_production(manifest: str, images: str, model: str, dtype: str) -> dict[str, Any]:
    """Return the `seconds` of a run from its begin to its end, as its record has them, and its `rows`."""
    connect()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(manifest=manifest, images=images, model=model, output=f"{folder}/output", dtype=dtype)
        record = run_job(plan_job(settings, Classifier))
    ray.shutdown()
    began, ended = (datetime.fromisoformat(record[name]) for name in ("began", "ended"))
    return {"seconds": (ended - began).total_seconds(), "rows": record["counts"]["results"]}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"preflight": run_preflight, "production": run_production}


if __name__ == "__main__":
    answer_request(KINDS)
