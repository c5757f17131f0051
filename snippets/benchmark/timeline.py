"""What each worker does when: the naive and the optimized pipeline on the same images, recorded as lanes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snippets.benchmark.breakdown import until_pipeline
from snippets.benchmark.harness import spread_evenly
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import read_hardware, read_provenance
from snippets.benchmark.results import FOLDER
from snippets.checkpoint import check_checkpoint
from snippets.command import Parser, positive
from snippets.fundamentals.dataset import list_images
from snippets.recording import Event
from snippets.samples import images_and_model

TIMELINE = FOLDER / "timeline.json"
RUNS = {"naive": "Naive", "pool": "Actor pool, float32"}
# What a lane can be busy with, in the order of the legend. All else is waiting, or Ray's own work.
KINDS = {
    "import": "Importing transformers",
    "load": "Loading the model",
    "decode": "Decoding, resizing",
    "forward": "Forward pass",
}
Lane = list[dict[str, Any]]


def lanes_of(events: list[Event], started: float) -> list[Lane]:
    """Return the spans of each worker by their begin, workers by their first span.

    A span has a `kind` of `KINDS`, and `start` and `end` in seconds after `started`. A naive batch is taken apart
    into what it calls, an actor's is one forward pass; images that Ray itself decodes are in no lane.
    """
    calls = [event for event in events if event.kind == "pipeline"]
    spans: dict[str, Lane] = {}

    def add(kind: str, event: Event, start: float, end: float) -> None:
        span = {"kind": kind, "start": round(start - started, 3), "end": round(end - started, 3)}
        spans.setdefault(event.worker, []).append(span)

    for event in events:
        if event.kind == "batch" and calls:
            if seconds := until_pipeline(event, calls):
                add("import", event, event.start, event.start + seconds)
        elif event.kind in ("batch", "forward"):
            add("forward", event, event.start, event.end)
        elif event.kind == "pipeline" or (event.kind == "load" and not calls):
            add("load", event, event.start, event.end)
        elif event.kind in ("decode", "preprocess"):
            add("decode", event, event.start, event.end)
    lanes = [sorted(lane, key=lambda span: float(span["start"])) for lane in spans.values()]
    return sorted(lanes, key=lambda lane: float(lane[0]["start"]))


def record_timeline(source: str, model: str, limit: int) -> dict[str, Any]:
    """Return the `seconds` and `lanes` of both pipelines on `limit` images, each run in a process of its own."""
    paths = spread_evenly(list_images(source)[1], limit)
    runs = {}
    for name in RUNS:
        answer = ask({"kind": "events", "name": name, "source": paths, "model": model})
        events = [Event(*event) for event in answer["events"]]
        runs[name] = {"seconds": answer["seconds"], "lanes": lanes_of(events, answer["started"])}
    return {"images": len(paths), "runs": runs}


def busy_seconds(lane: Lane) -> dict[str, float]:
    """Return the seconds of a lane by kind."""
    return {kind: sum(span["end"] - span["start"] for span in lane if span["kind"] == kind) for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record both runs and write the file; return 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="python -m snippets.benchmark.timeline", description=__doc__)
    parser.add_argument("--limit", type=positive, default=128, help="images (default: 128)")
    parser.add_argument("--output", type=Path, default=TIMELINE, help="default: docs/assets/results/timeline.json")
    options = parser.parse_args(arguments)
    source, model = images_and_model()
    try:
        check_checkpoint(model)
        recorded = record_timeline(source, model, options.limit)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    provenance = read_provenance(read_hardware(), source, model, arguments, "snippets.benchmark.timeline")
    options.output.write_text(json.dumps({"provenance": provenance, **recorded}) + "\n")
    sys.stderr.write(f"Written: {options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
