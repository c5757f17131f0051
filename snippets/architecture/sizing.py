"""Parameters from principles: what fits into memory, how many actors there is work for, what bounds a pipeline."""

from __future__ import annotations

# --8<-- [start:imports]
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

# --8<-- [end:imports]


# --8<-- [start:checks]
def check(name: str, value: float, least: float = 0, may_equal: bool = False) -> None:
    """Raise `ValueError` where a quantity is no finite number, or not more than `least`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # a comparison with NaN is false
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
    if value < least or (value == least and not may_equal):
        raise ValueError(f"{name} must be {'at least' if may_equal else 'more than'} {least:g}, not {value:g}.")


def check_positive(**quantities: float) -> None:
    """Raise `ValueError` for the first quantity that is no finite number above zero."""
    for name, value in quantities.items():
        check(name, value)


def check_counts(**counts: float) -> None:
    """Raise `ValueError` for the first that is no whole number of at least one."""
    for name, value in counts.items():
        check(name, value, least=1, may_equal=True)
        if value != int(value):
            raise ValueError(f"{name} must be a whole number, not {value:g}.")


# --8<-- [end:checks]


# --8<-- [start:tightest]
@dataclass(frozen=True)
class Limited:
    """A value, and the name of the limit that decided it."""

    value: float
    limit: str


def tightest(**limits: float) -> Limited:
    """Return the smallest of the limits, the first where several are equal."""
    name = min(limits, key=limits.__getitem__)
    return Limited(limits[name], name)


# --8<-- [end:tightest]


# --8<-- [start:load_factor]
def load_factor(load_s: float, compute_s: float) -> float:
    """Return how many times longer a batch takes that loads the model first: (L + C) / C."""
    check("load_s", load_s, may_equal=True)
    check_positive(compute_s=compute_s)
    return (load_s + compute_s) / compute_s


# --8<-- [end:load_factor]


# --8<-- [start:device_memory]
def weight_bytes(parameters: float, bytes_a_parameter: float) -> float:
    """Return what the weights take: 4 bytes a parameter in float32, 2 in half precision, 0.5 in four bits."""
    check_positive(parameters=parameters, bytes_a_parameter=bytes_a_parameter)
    return parameters * bytes_a_parameter


def devices_for_model(weights: float, item_bytes: float, device_bytes: float, workspace_bytes: float) -> int:
    """Return the least devices that hold a model and one item, with weights and activations split evenly.

    Each device keeps a workspace of its own: what the CUDA context, the kernels and the caching allocator take.
    Tensor parallelism splits each layer's matrices so (https://arxiv.org/abs/1909.08053); it needs a number that
    divides the attention heads, see `tensor_parallel_size`.
    """
    check_positive(weights=weights, item_bytes=item_bytes, device_bytes=device_bytes)
    check("workspace_bytes", workspace_bytes, may_equal=True)
    if workspace_bytes >= device_bytes:
        raise ValueError("The workspace alone fills the device: no number of devices holds the model.")
    return math.ceil((weights + item_bytes) / (device_bytes - workspace_bytes))


def tensor_parallel_size(least: int, heads: int) -> int:
    """Return the smallest divisor of the (key and value) heads that is not below `least`."""
    check_counts(least=least, heads=heads)
    sizes = [size for size in range(least, heads + 1) if heads % size == 0]
    if not sizes:
        raise ValueError(f"{least} devices cannot share {heads} heads: each needs a whole one.")
    return sizes[0]


def batch_that_fits(
    weights: float, item_bytes: float, device_bytes: float, workspace_bytes: float = 0, devices: int = 1
) -> int:
    """Return the largest batch that fits beside the weights: (n (D - W) - M) / A, rounded down.

    D and W are a device's memory and its workspace, M the weights, A the activations of an item at their peak,
    all in bytes, and n the devices that share the model (https://docs.pytorch.org/docs/stable/notes/cuda.html).
    Raises `ValueError` where not even one item fits.
    """
    check_counts(devices=devices)
    needed = devices_for_model(weights, item_bytes, device_bytes, workspace_bytes)
    if needed > devices:
        raise ValueError(
            f"The model does not fit: with one item it takes {needed} such devices, and there are {devices}."
        )
    # At least 1, where rounding the division says otherwise.
    return max(1, math.floor((devices * (device_bytes - workspace_bytes) - weights) / item_bytes))


# --8<-- [end:device_memory]


# --8<-- [start:knee]
def fit_pass(batch_sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return `fixed_s` and `item_s` of t(b) = fixed + item * b, by least squares through measured passes."""
    for value in (*batch_sizes, *seconds):
        check_positive(measured=value)
    count = len(batch_sizes)
    if count != len(seconds) or len(set(batch_sizes)) < 2:
        raise ValueError("A line needs the seconds of at least two batch sizes, one value each.")
    mean_b, mean_t = sum(batch_sizes) / count, sum(seconds) / count
    covariance = sum((b - mean_b) * (t - mean_t) for b, t in zip(batch_sizes, seconds, strict=True))
    item_s = covariance / sum((b - mean_b) ** 2 for b in batch_sizes)
    if item_s <= 0:
        raise ValueError("Larger batches took no longer: measure larger ones, until the time grows.")
    return max(0.0, mean_t - item_s * mean_b), item_s


def pass_rate(batch_size: float, fixed_s: float, item_s: float) -> float:
    """Return items a second in batches of a size: b / (fixed + item * b), which nears 1 / item."""
    check_positive(batch_size=batch_size, item_s=item_s)
    check("fixed_s", fixed_s, may_equal=True)
    return batch_size / (fixed_s + item_s * batch_size)


def knee_batch_size(fixed_s: float, item_s: float, overhead: float = 0.1) -> int:
    """Return the smallest batch of which the fixed part takes at most a share: b = F (1 - o) / (o I), rounded up.

    Beyond the knee a larger batch gains less than `overhead` and costs memory all the same. It is the roofline's
    ridge (https://doi.org/10.1145/1498765.1498785), measured and not computed from data sheets.
    """
    check("fixed_s", fixed_s, may_equal=True)
    check_positive(item_s=item_s, overhead=overhead)
    if overhead >= 1:
        raise ValueError(f"overhead must be a share below 1, not {overhead:g}.")
    return max(1, math.ceil((1 - overhead) / overhead * fixed_s / item_s))


# --8<-- [end:knee]


# --8<-- [start:actors]
def decode_cpus(node_cpus: Sequence[float], actor_cpus: float) -> float:
    """Return what a decode task may reserve, so that one fits beside an actor on the largest node."""
    check("actor_cpus", actor_cpus, may_equal=True)
    largest = max(node_cpus, default=0)
    check("The CPUs of the largest node", largest, least=actor_cpus)
    return 1 if largest >= 1 + actor_cpus else largest - actor_cpus


def actors_by_gpus(node_gpus: Sequence[float], gpus_an_actor: float) -> int:
    """Return how many actors the GPUs hold. No actor lies on two nodes."""
    check_positive(gpus_an_actor=gpus_an_actor)
    for gpus in node_gpus:
        check("gpus", gpus, may_equal=True)
    return sum(int(gpus / gpus_an_actor) for gpus in node_gpus)


def actors_by_cpus(node_cpus: Sequence[float], actor_cpus: float = 0.5) -> int:
    """Return the largest pool that can never hold every CPU, and no more than one actor a CPU.

    Ray may place actors so that each node is left with less than a decode task needs. That takes
    (cpus - task) / actor + 1 actors on each node, rounded down; one fewer cannot.
    """
    check_positive(actor_cpus=actor_cpus)
    for cpus in node_cpus:
        check("cpus", cpus, may_equal=True)
    task = decode_cpus(node_cpus, actor_cpus)
    blocking = sum(int((cpus - task) / actor_cpus) + 1 for cpus in node_cpus if cpus >= task)
    return max(0, min(blocking - 1, int(sum(node_cpus))))


def actors_by_memory(memory_bytes: float, reserved_bytes: float, actor_bytes: float) -> int:
    """Return how many actors fit into a node's memory beside what others reserve."""
    check_positive(memory_bytes=memory_bytes, actor_bytes=actor_bytes)
    check("reserved_bytes", reserved_bytes, may_equal=True)
    return max(0, math.floor((memory_bytes - reserved_bytes) / actor_bytes))


def actors_by_reading(read_rate: float, actor_rate: float) -> int:
    """Return how many actors reading and decoding keep busy, rounded up: any more would only share the work."""
    check_positive(read_rate=read_rate, actor_rate=actor_rate)
    return math.ceil(read_rate / actor_rate)


# --8<-- [end:actors]


# --8<-- [start:blocks]
def batches_per_block(items: int, actors: int, batch_size: int, most: int) -> int:
    """Return how many batches a block holds: at most `most`, and few enough for four blocks an actor.

    A task takes a block, so more batches share its cost. An actor takes two tasks in advance, so that fewer
    than four blocks an actor may leave one idle.
    """
    check_counts(items=items, actors=actors, batch_size=batch_size, most=most)
    return min(most, max(1, math.floor(items / (4 * actors * batch_size))))


def count_blocks(items: int, rows_a_block: int) -> int:
    """Return the blocks that hold the items, the last one partly filled."""
    check_counts(items=items, rows_a_block=rows_a_block)
    return math.ceil(items / rows_a_block)


def store_bytes(actors: int, rows_a_block: int, item_bytes: float, blocks_in_flight: int = 8) -> float:
    """Return what decoded blocks take of the object store where each actor has some in flight."""
    check_counts(actors=actors, rows_a_block=rows_a_block, blocks_in_flight=blocks_in_flight)
    check_positive(item_bytes=item_bytes)
    return blocks_in_flight * actors * rows_a_block * item_bytes


# --8<-- [end:blocks]


# --8<-- [start:bound]
def separate_bound(**rates: float) -> Limited:
    """Return the bound of stages that have hardware of their own: the slowest rate, and its stage.

    The bottleneck law, X <= 1 / max D (https://doi.org/10.1145/356733.356735).
    """
    check_positive(**rates)
    return tightest(**rates)


def shared_bound(*rates: float) -> float:
    """Return the bound of stages that share the same cores: 1 / (1/a + 1/b + ...), for an item's times add up."""
    for rate in rates:
        check_positive(rate=rate)
    return 1 / sum(1 / rate for rate in rates)


# --8<-- [end:bound]
