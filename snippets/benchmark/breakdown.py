"""Where the time of the naive pipeline goes, from the calls that were recorded in its workers."""

from __future__ import annotations

from snippets.recording import Event, most_at_once

# What each kind is called, in the order in which a batch meets them. The last two have no cause of their own.
KINDS = {
    "start-up": "Start-up, until the first batch",
    "import": "Importing transformers",
    "load": "Loading the model",
    "preprocess": "Resizing and normalizing",
    "forward": "Forward passes",
    "function": "Rest of the function",
    "between": "Between batches",
}
EXPLAINED = ("start-up", "import", "load", "preprocess", "forward")


def break_down(events: list[Event], started: float, ended: float) -> dict[str, float]:
    """Return the seconds by kind (see `KINDS`) of all lanes from `started` to `ended`, in seconds since the epoch.

    A lane is a place for one task: there are as many as batches were at work at once, and the seconds add up
    to lanes x (ended - started). A batch's time until it calls `pipeline()` is the import, that call is the
    load; `preprocess` and `forward` are the calls of those names. What lies between a lane's batches and after
    its last one is reading and decoding images, scheduling, and waiting.
    """
    of = {kind: [event for event in events if event.kind == kind] for kind in ("batch", "pipeline")}
    lanes = most_at_once(of["batch"])
    first: dict[str, float] = {}
    for batch in of["batch"]:
        first[batch.worker] = min(batch.start, first.get(batch.worker, batch.start))
    seconds = {
        "start-up": sum(start - started for start in sorted(first.values())[:lanes]),
        "import": sum(until_pipeline(batch, of["pipeline"]) for batch in of["batch"]),
        "load": _total(events, "pipeline"),
        "preprocess": _total(events, "preprocess"),
        "forward": _total(events, "forward"),
    }
    within = _total(events, "batch")
    seconds["function"] = within + seconds["start-up"] - sum(seconds.values())
    seconds["between"] = lanes * (ended - started) - within - seconds["start-up"]
    return seconds


def shares(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the share of each kind in the time of all rounds together; they add up to 1."""
    total = sum(sum(seconds.values()) for seconds in rounds)
    return {kind: sum(seconds[kind] for seconds in rounds) / total for kind in KINDS}


def _total(events: list[Event], kind: str) -> float:
    return sum(event.end - event.start for event in events if event.kind == kind)


def until_pipeline(batch: Event, pipelines: list[Event]) -> float:
    """Return the seconds from the begin of a batch to its call of `pipeline()`, or 0 where there is none."""
    calls = [
        call.start for call in pipelines if call.worker == batch.worker and batch.start <= call.start <= batch.end
    ]
    return min(calls) - batch.start if calls else 0.0
