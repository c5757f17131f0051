"""How figures are written: as many digits as say something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MISSING = "not measured"


def rate(value: float) -> str:
    """Return images per second with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def factor(value: float) -> str:
    """Return a ratio with two decimals, or one from 10 on."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def seconds(value: float) -> str:
    """Return seconds with one decimal, or two significant digits below 1."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def percent(share: float) -> str:
    """Return a share of 1 in percent with one decimal; all of it is 100, and nothing less is."""
    return "100" if share == 1 else f"{min(100 * share, 99.9):.1f}"


def gigabytes(value: float) -> str:
    """Return bytes in GB (10**9)."""
    return f"{value / 1e9:.2f}"


def kilobytes(value: float) -> str:
    """Return bytes in kB (10**3)."""
    return f"{value / 1e3:.1f}"


def count(value: float) -> str:
    """Return a whole number, or the half that a median may be."""
    return f"{value:g}"


def median(spread: dict[str, Any] | None, write: Callable[[float], str]) -> str:
    """Return the median of a spread, or `not measured`."""
    return MISSING if spread is None else write(spread["median"])


def with_range(spread: dict[str, Any] | None, write: Callable[[float], str]) -> str:
    """Return the median and, in brackets, the lowest and the highest value where they differ."""
    if spread is None or spread["min"] == spread["max"]:
        return median(spread, write)
    return f"{write(spread['median'])} ({write(spread['min'])}\u2013{write(spread['max'])})"


def either(value: float | None, write: Callable[[float], str]) -> str:
    """Return a value, or `not measured`."""
    return MISSING if value is None else write(value)
