"""What a run takes: time with start-up and tail, retries on preemptible machines, cost, network, storage."""

from __future__ import annotations

from snippets.architecture.sizing import check, check_counts, check_positive

# isort: split
# --8<-- [start:imports]
import math

# --8<-- [end:imports]


# --8<-- [start:time]
def tail_seconds(actors: int, rows_a_block: int, actor_rate: float) -> float:
    """Return the longest wait for the last block after others have run out of work: (1 - 1/m) p.

    For m workers that each take the next task, a run takes at most W/m + (1 - 1/m) p, with W the work and p the
    longest task: Graham's bound (https://doi.org/10.1137/0117039).
    """
    check_counts(actors=actors, rows_a_block=rows_a_block)
    check_positive(actor_rate=actor_rate)
    return (1 - 1 / actors) * (rows_a_block / actor_rate)


def run_seconds(items: int, rate: float, start_up_s: float = 0, tail_s: float = 0) -> float:
    """Return the seconds of a run: start-up, the items at a steady rate, and the tail."""
    check_counts(items=items)
    check_positive(rate=rate)
    for name, value in (("start_up_s", start_up_s), ("tail_s", tail_s)):
        check(name, value, may_equal=True)
    return start_up_s + items / rate + tail_s


def nodes_for_deadline(
    items: int, node_rate: float, deadline_s: float, start_up_s: float = 0, tail_s: float = 0
) -> int:
    """Return the least nodes that end in time. Start-up and tail do not shrink with more of them."""
    check_counts(items=items)
    check_positive(node_rate=node_rate, deadline_s=deadline_s)
    for name, value in (("start_up_s", start_up_s), ("tail_s", tail_s)):
        check(name, value, may_equal=True)
    if deadline_s <= start_up_s + tail_s:
        raise ValueError("The deadline passes during start-up and the last block: no number of nodes meets it.")
    return math.ceil(items / (node_rate * (deadline_s - start_up_s - tail_s)))


# --8<-- [end:time]


# --8<-- [start:preemption]
def expected_retries(task_s: float, preemptions_an_hour: float) -> float:
    """Return how often a task is begun again until it ends, where its node is taken away at random: exp(t/M) - 1.

    M is a node's mean time between preemptions. A task survives its t seconds with the chance exp(-t / M)
    (https://doi.org/10.1016/j.future.2004.11.016). Raises `ValueError` where t is not below M: such tasks are
    begun again more often than they end.
    """
    check_positive(task_s=task_s)
    check("preemptions_an_hour", preemptions_an_hour, may_equal=True)
    expected = preemptions_an_hour / 3600 * task_s
    if expected >= 1:
        raise ValueError("A block takes longer than a node lives on average: make blocks smaller.")
    return math.expm1(expected)


def useful_share(task_s: float, preemptions_an_hour: float, recovery_s: float) -> float:
    """Return the share of a preemptible node's time that counts (0 to 1).

    A task of t seconds costs M (exp(t / M) - 1), lost attempts included, and each preemption costs the recovery:
    the share is t / (M (exp(t / M) - 1)) / (1 + recovery / M).
    """
    retries = expected_retries(task_s, preemptions_an_hour)
    check("recovery_s", recovery_s, may_equal=True)
    a_second = preemptions_an_hour / 3600
    return (a_second * task_s / retries if retries else 1.0) / (1 + a_second * recovery_s)


def cost(nodes: int, seconds: float, price_an_hour: float) -> float:
    """Return what the nodes cost, in the currency of the price of one of them."""
    check_counts(nodes=nodes)
    check_positive(seconds=seconds)
    check("price_an_hour", price_an_hour, may_equal=True)
    return nodes * (seconds / 3600) * price_an_hour


# --8<-- [end:preemption]


# --8<-- [start:storage]
GETS_A_PREFIX = 5500  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html


def network_rate(bytes_a_second: float, item_bytes: float) -> float:
    """Return the items a second that a node's network brings in."""
    check_positive(bytes_a_second=bytes_a_second, item_bytes=item_bytes)
    return bytes_a_second / item_bytes


def count_prefixes(requests_a_second: float, requests_a_prefix: float = GETS_A_PREFIX) -> int:
    """Return over how many prefixes of an S3 bucket the files must lie, with one request a file.

    S3 promises at least `requests_a_prefix` GETs a second for each. Reading shards instead of files divides the
    requests by the files in a shard.
    """
    check_positive(requests_a_second=requests_a_second, requests_a_prefix=requests_a_prefix)
    return math.ceil(requests_a_second / requests_a_prefix)


def start_bytes(actors: int, weights: float) -> float:
    """Return what all actors together load before the first batch: the weights, once each."""
    check_counts(actors=actors)
    check_positive(weights=weights)
    return actors * weights


# --8<-- [end:storage]
