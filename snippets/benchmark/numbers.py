"""The numbers of a results file by the names under which the pages include them."""

from __future__ import annotations

from typing import Any

from snippets.benchmark.formats import (
    MISSING,
    count,
    either,
    factor,
    gigabytes,
    median,
    percent,
    rate,
    seconds,
)

PAGES_NAME = ("naive", "usual", "pool", "pool-bfloat16")  # always there, measured or not
DTYPES = ("float32", "bfloat16")
OF_CONTENDER = {
    "steady": ("steady_rows_per_second", rate),
    "over-naive": ("over_naive", factor),
    "over-bound": ("over_bound", factor),
    "over-other-bound": ("over_other_bound", factor),
    "start-up": ("start_up_seconds", seconds),
    "ray-init": ("ray_init_seconds", seconds),
    "seconds": ("seconds", seconds),
    "loads": ("model_loads", count),
    "batches": ("batches", count),
    "peak-memory": ("peak_memory_bytes", gigabytes),
    "agreement": ("agreement", percent),
    "accuracy": ("accuracy", percent),
}
# Rows of `costs.measure` whose factor has a name.
FACTORS = {
    **{f"load-factor-{size}": f"load for each batch of {size}" for size in (1, 4, 16, 64)},
    **{f"one-at-a-time-factor-{size}": f"one at a time instead of batches of {size}" for size in (4, 16, 64)},
    "idle-actors-factor": "one actor at work instead of one a core",
    "threads-against-actors": "threads instead of actors",
    "kept-memory-factor": "memory given back to the kernel",
}


def numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return each number as the pages show it, by name; `not measured` where there is none."""
    summary, costs = results["summary"], costs_by_name(results)
    found: dict[str, str] = {}
    for name in dict.fromkeys([*PAGES_NAME, *summary["contenders"]]):
        of = summary["contenders"].get(name, {})
        for suffix, (key, write) in OF_CONTENDER.items():
            found[f"{name}-{suffix}"] = median(of.get(key), write)
        found[f"{name}-images"] = either(results["images"].get(name), count)
    for dtype in dict.fromkeys([*DTYPES, *summary["forward"]]):
        for title in ("forward", "bound"):
            of = summary[title].get(dtype, {})
            found[f"{title}-{dtype}"] = median(of.get("one_process"), rate)
            found[f"other-{title}-{dtype}"] = median(of.get("process_per_core"), rate)
    found["decode-per-core"] = median(summary["decode_per_core"], rate)
    found["memory-at-4x"] = either(summary["memory_ratio"], factor)
    for name, cost in FACTORS.items():
        found[name] = factor(costs[cost]["factor"]) if cost in costs else MISSING
    found["small-batches-factor"] = either(small_batches_factor(costs), factor)
    load, decode = costs.get("load for each batch of 1"), costs.get("decode against forward")
    threads, kept = costs.get("threads instead of actors"), costs.get("memory given back to the kernel")
    found["threads-rate"] = rate(threads["less"]) if threads else MISSING
    found["actors-rate"] = rate(threads["more"]) if threads else MISSING
    found["kept-rate"] = rate(kept["more"]) if kept else MISSING
    found["load-seconds"] = seconds(load["more"] - load["less"]) if load else MISSING
    found["decode-share"] = percent(decode["less"] / (decode["less"] + decode["more"])) if decode else MISSING
    found["naive-explained"] = percent(summary["explained"])
    for kind, share in summary["breakdown"].items():
        found[f"breakdown-{kind}"] = percent(share)
    found["images"] = count(max(results["images"].values()))
    found["rounds"] = count(len(results["rounds"]))
    return found


def costs_by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of `costs.measure` by what they compare; empty where none was measured."""
    return {row["cost"]: row for row in results["costs"] or []}


def small_batches_factor(costs: dict[str, dict[str, Any]]) -> float | None:
    """Return the time of an image in batches of 4 over that in batches of 64, forward pass only."""
    four, many = (costs.get(f"one at a time instead of batches of {size}") for size in (4, 64))
    return float(four["less"] / many["less"]) if four and many else None


def format_numbers(results: dict[str, Any]) -> str:
    """Return a file with one section a number, as `--8<-- "FILE:NAME"` includes it."""
    sections = [
        f"<!-- --8<-- [start:{name}] -->\n{number}\n<!-- --8<-- [end:{name}] -->"
        for name, number in numbers(results).items()
    ]
    return "\n".join(sections) + "\n"
