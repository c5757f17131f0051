"""What the pages say of the published results in words is what the results say in numbers."""

from typing import Any

import pytest

from snippets.benchmark.numbers import costs_by_name
from snippets.benchmark.results import PUBLISHED, load_results


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    """The summary of the results file that the pages show."""
    found: dict[str, Any] = load_results(PUBLISHED)["summary"]
    return found


def median(summary: dict[str, Any], contender: str, key: str) -> float:
    """Return the median of one of a contender's figures."""
    return float(summary["contenders"][contender][key]["median"])


@pytest.mark.parametrize(("contender", "times"), [("pool", 1.5), ("pool-bfloat16", 2.7)])
def test_the_pool_is_as_much_faster_than_the_naive_pipeline_as_was_asked(
    summary: dict[str, Any], contender: str, times: float
) -> None:
    assert median(summary, contender, "over_naive") >= times


@pytest.mark.parametrize("contender", ["pool", "pool-bfloat16"])
def test_the_pool_reaches_the_bound_of_one_process(summary: dict[str, Any], contender: str) -> None:
    assert median(summary, contender, "over_bound") >= 0.95


def test_memory_does_not_grow_with_the_images(summary: dict[str, Any]) -> None:
    assert summary["memory_ratio"] <= 1.1


def test_the_named_parts_explain_the_naive_run(summary: dict[str, Any]) -> None:
    assert summary["explained"] >= 0.9


def test_labels_in_float32_equal_those_of_the_naive_pipeline(summary: dict[str, Any]) -> None:
    assert median(summary, "pool", "agreement") == 1
    assert median(summary, "usual", "agreement") == 1
    assert median(summary, "pool-bfloat16", "agreement") >= 0.95


def test_the_usual_advice_was_slower_than_the_naive_pipeline(summary: dict[str, Any]) -> None:
    assert median(summary, "usual", "over_naive") < 1


def test_a_pools_start_up_is_longer_than_the_naive_one(summary: dict[str, Any]) -> None:
    assert median(summary, "pool", "start_up_seconds") > median(summary, "naive", "start_up_seconds")


def test_precision_gains_more_than_saved_loads(summary: dict[str, Any]) -> None:
    loads = costs_by_name(load_results(PUBLISHED))["load for each batch of 4"]["factor"]
    rates = [median(summary, name, "steady_rows_per_second") for name in ("pool", "pool-bfloat16")]
    assert rates[1] > loads * rates[0]
