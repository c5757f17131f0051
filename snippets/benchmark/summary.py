"""Medians, spreads, bounds and ratios: all that follows from the rounds of a results file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from snippets.benchmark.breakdown import EXPLAINED, shares
from snippets.benchmark.contenders import CONTENDERS

Spread = dict[str, Any]
Round = dict[str, Any]
MEASURED = (  # of each run, as `runs.run_contender` describes it
    "steady_rows_per_second",
    "start_up_seconds",
    "ray_init_seconds",
    "seconds",
    "model_loads",
    "batches",
    "peak_memory_bytes",
    "accuracy",
)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return `median`, `min`, `max` and all `values`, or None where every value is missing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": statistics.median(known), "min": min(known), "max": max(known), "values": list(values)}


def bound(forward_rate: float, decode_seconds: float, cores: int, on_gpu: bool = False) -> float:
    """Return the images per second of cores that do nothing but decode and classify: 1 / (1/f + d/cores).

    f is the bare forward rate on all cores in images per second and d the seconds to decode an image on one
    core: both need the same cores, so that their times add up. On a GPU they do not: the slower one decides.
    """
    decode_share = decode_seconds / cores
    return min(forward_rate, 1 / decode_share) if on_gpu else 1 / (1 / forward_rate + decode_share)


def bounds_of(limits: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the bound in images per second for each dtype and arrangement of one round's limits."""
    return {
        dtype: {
            name: rate and bound(rate, limits["decode_seconds"], limits["cores"], limits["on_gpu"])
            for name, rate in rates.items()
        }
        for dtype, rates in limits["forward"].items()
    }


def ratio(value: float | None, over: float | None) -> float | None:
    """Return value / over, or None where one of them is missing."""
    return None if value is None or over is None else value / over


def summarize(measured: dict[str, Any]) -> dict[str, Any]:
    """Return all that is derived from a results file without its summary; ratios are taken within a round."""
    rounds: list[Round] = measured["rounds"]
    names = list(rounds[0]["runs"])

    def over_rounds(value: Callable[[Round], float | None]) -> Spread | None:
        return spread([value(one) for one in rounds])

    def steady(one: Round, name: str) -> float | None:
        rate: float | None = one["runs"][name]["steady_rows_per_second"]
        return rate

    def of_contender(name: str) -> dict[str, Spread | None]:
        dtype = CONTENDERS[name].dtype
        found = {key: over_rounds(lambda one, key=key: one["runs"][name][key]) for key in MEASURED}  # type: ignore[misc]
        found["over_naive"] = over_rounds(lambda one: ratio(steady(one, name), steady(one, "naive")))
        for key, arrangement in (("over_bound", "one_process"), ("over_other_bound", "process_per_core")):
            found[key] = over_rounds(
                lambda one, arrangement=arrangement: ratio(  # type: ignore[misc]
                    steady(one, name), bounds_of(one["limits"])[dtype][arrangement]
                )
            )
        found["agreement"] = over_rounds(
            lambda one: one["agreement"][name]["equal"] / one["agreement"][name]["compared"]
        )
        return found

    def of_dtype(of: Callable[[Round], Any], dtype: str) -> dict[str, Spread | None]:
        first = of(rounds[0])[dtype]
        return {name: over_rounds(lambda one, name=name: of(one)[dtype][name]) for name in first}  # type: ignore[misc]

    dtypes = list(rounds[0]["limits"]["forward"])
    breakdown = shares([one["breakdown"] for one in rounds])
    return {
        "contenders": {name: of_contender(name) for name in names},
        "forward": {dtype: of_dtype(lambda one: one["limits"]["forward"], dtype) for dtype in dtypes},
        "bound": {dtype: of_dtype(lambda one: bounds_of(one["limits"]), dtype) for dtype in dtypes},
        "decode_per_core": over_rounds(lambda one: 1 / one["limits"]["decode_seconds"]),
        "breakdown": breakdown,
        "explained": sum(breakdown[kind] for kind in EXPLAINED),
        "memory_ratio": _memory_ratio(measured["memory"], rounds),
    }


def _memory_ratio(memory: dict[str, Any] | None, rounds: list[Round]) -> float | None:
    """Return the peak memory at many images over that at `images`, the median of the rounds."""
    if memory is None:
        return None
    few = statistics.median(one["runs"][memory["contender"]]["peak_memory_bytes"] for one in rounds)
    return float(memory["peak_memory_bytes"] / few)
