"""Each formula gives what it says for any input, refuses what cannot be, and agrees with the course's pipeline."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import ray
import ray.data
from hypothesis import assume, given
from hypothesis import strategies as st
from ray._private import ray_constants
from ray.data._internal.execution.resource_manager import ResourceManager

from snippets.architecture import running, sizing
from snippets.architecture.calculator import CONSTANTS
from snippets.architecture.sizing import (
    Limited,
    actors_by_cpus,
    actors_by_gpus,
    actors_by_memory,
    actors_by_reading,
    batch_that_fits,
    batches_per_block,
    check,
    check_counts,
    count_blocks,
    decode_cpus,
    devices_for_model,
    fit_pass,
    knee_batch_size,
    load_factor,
    pass_rate,
    separate_bound,
    shared_bound,
    store_bytes,
    tensor_parallel_size,
    tightest,
    weight_bytes,
)
from snippets.fundamentals import actor_pool, costs
from snippets.fundamentals.actor_pool import classify, load_preprocessing, plan_pool

if TYPE_CHECKING:
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

amounts = st.floats(1e-3, 1e12)
counts = st.integers(1, 10**6)
shares = st.floats(0.01, 0.99)
ROOM = 1 + 1e-9  # for rounding


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions of both modules that take quantities."""
    for module in (sizing, running):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("check") and name != "tightest":
                yield name, function


# One true call of each function: below, each of its arguments is spoilt in turn.
TRUE: dict[str, dict[str, Any]] = {
    "load_factor": {"load_s": 1, "compute_s": 1},
    "weight_bytes": {"parameters": 1e6, "bytes_a_parameter": 2},
    "devices_for_model": {"weights": 10, "item_bytes": 1, "device_bytes": 8, "workspace_bytes": 1},
    "tensor_parallel_size": {"least": 2, "heads": 8},
    "batch_that_fits": {"weights": 10, "item_bytes": 1, "device_bytes": 80, "workspace_bytes": 1, "devices": 1},
    "fit_pass": {"batch_sizes": [1, 2], "seconds": [1, 2]},
    "pass_rate": {"batch_size": 4, "fixed_s": 1, "item_s": 1},
    "knee_batch_size": {"fixed_s": 1, "item_s": 1, "overhead": 0.1},
    "decode_cpus": {"node_cpus": [4], "actor_cpus": 0.5},
    "actors_by_gpus": {"node_gpus": [4], "gpus_an_actor": 1},
    "actors_by_cpus": {"node_cpus": [4], "actor_cpus": 0.5},
    "actors_by_memory": {"memory_bytes": 10, "reserved_bytes": 1, "actor_bytes": 2},
    "actors_by_reading": {"read_rate": 10, "actor_rate": 3},
    "batches_per_block": {"items": 10, "actors": 2, "batch_size": 1, "most": 8},
    "count_blocks": {"items": 10, "rows_a_block": 3},
    "store_bytes": {"actors": 2, "rows_a_block": 3, "item_bytes": 4, "blocks_in_flight": 8},
    "separate_bound": {"decode": 1, "forward": 2},
    "shared_bound": {"rates": (1, 2)},
    "tail_seconds": {"actors": 2, "rows_a_block": 3, "actor_rate": 4},
    "run_seconds": {"items": 10, "rate": 2, "start_up_s": 1, "tail_s": 1},
    "nodes_for_deadline": {"items": 10, "node_rate": 2, "deadline_s": 9, "start_up_s": 1, "tail_s": 1},
    "expected_retries": {"task_s": 1, "preemptions_an_hour": 1},
    "useful_share": {"task_s": 1, "preemptions_an_hour": 1, "recovery_s": 1},
    "cost": {"nodes": 2, "seconds": 10, "price_an_hour": 1},
    "network_rate": {"bytes_a_second": 10, "item_bytes": 1},
    "count_prefixes": {"requests_a_second": 10, "requests_a_prefix": 5},
    "start_bytes": {"actors": 2, "weights": 3},
}
NOTHING_IS_FINE = {
    "load_s",
    "workspace_bytes",
    "fixed_s",
    "actor_cpus",
    "node_gpus",
    "reserved_bytes",
    "start_up_s",
    "tail_s",
    "preemptions_an_hour",
    "recovery_s",
    "price_an_hour",
}
NO_QUANTITY = [-1, math.nan, math.inf, -math.inf, "4", None, True]


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a function; `rates` are positional arguments."""
    return function(*arguments["rates"]) if "rates" in arguments else function(**arguments)


@pytest.mark.parametrize(("name", "function"), [*functions()])
def test_what_cannot_be_is_refused_with_its_name_and_reason(name: str, function: Callable[..., Any]) -> None:
    true = TRUE[name]
    call(function, true)
    for argument, value in true.items():
        for wrong in [*NO_QUANTITY, *([] if argument in NOTHING_IS_FINE else [0])]:
            spoilt = [wrong, *value[1:]] if isinstance(value, list | tuple) else wrong
            with pytest.raises(ValueError, match=r"must be (a finite number|more than|at least|a whole)"):
                call(function, {**true, argument: spoilt})


def test_a_cpu_actor_that_reserves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^actor_cpus must be more than 0"):
        actors_by_cpus([4], 0)


def test_a_refusal_says_which_quantity_and_why() -> None:
    with pytest.raises(ValueError, match=r"^item_bytes must be a finite number, not nan\.$"):
        batch_that_fits(1, math.nan, 2)
    with pytest.raises(ValueError, match=r"^actors must be a whole number, not 2\.5\.$"):
        store_bytes(2.5, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x must be a finite number, not 1000"):
        check("x", 10**400)


@given(counts, counts)
def test_whole_numbers_may_be_written_as_floats(one: int, other: int) -> None:
    check_counts(one=float(one), other=other)


@given(st.dictionaries(st.sampled_from("abcde"), amounts, min_size=1))
def test_the_tightest_limit_is_the_smallest_and_named(limits: dict[str, float]) -> None:
    found = tightest(**limits)
    assert found.value == min(limits.values()) == limits[found.limit]


@given(st.floats(0, 1e6), amounts)
def test_the_load_factor_is_that_of_part_1(load_s: float, compute_s: float) -> None:
    assert load_factor(load_s, compute_s) == costs.load_factor(load_s, compute_s) >= 1


# Memory


@given(amounts, amounts, amounts, shares, st.integers(1, 64))
def test_the_batch_fits_and_one_item_more_does_not(
    weights: float, item: float, device: float, workspace_share: float, devices: int
) -> None:
    workspace = device * workspace_share
    room = devices * (device - workspace) - weights
    if devices_for_model(weights, item, device, workspace) > devices:
        assert room < item * ROOM
        with pytest.raises(ValueError, match=r"^The model does not fit: with one item it takes \d+ such devices"):
            batch_that_fits(weights, item, device, workspace, devices)
    else:
        batch = batch_that_fits(weights, item, device, workspace, devices)
        # Sums of very unlike numbers lose the digits of the smaller.
        slack = 1e-9 * (devices * device + weights)
        assert batch * item <= room + slack
        assert (batch + 1) * item > room - slack


@given(amounts, amounts, amounts, shares)
def test_as_many_devices_as_needed_hold_the_model_and_one_fewer_does_not(
    weights: float, item: float, device: float, workspace_share: float
) -> None:
    workspace = device * workspace_share
    needed = devices_for_model(weights, item, device, workspace)
    assert needed * (device - workspace) * ROOM >= weights + item
    assert (needed - 1) * (device - workspace) <= (weights + item) * ROOM


def test_a_workspace_that_fills_the_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^The workspace alone fills the device"):
        devices_for_model(1, 1, 8, 8)


@given(st.integers(1, 128), st.integers(1, 128))
def test_a_split_gives_each_device_the_same_heads(least: int, heads: int) -> None:
    if least > heads:
        with pytest.raises(ValueError, match=rf"^{least} devices cannot share {heads} heads"):
            tensor_parallel_size(least, heads)
    else:
        size = tensor_parallel_size(least, heads)
        assert size >= least and heads % size == 0
        assert not any(heads % smaller == 0 for smaller in range(least, size))


def test_the_bytes_of_weights_are_those_of_their_precision(sample_set: "Samples") -> None:
    import torch
    from transformers import AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(str(sample_set.model))
    for dtype, bytes_each in ((torch.float32, 4), (torch.bfloat16, 2)):
        held = sum(parameter.nbytes for parameter in network.to(dtype).parameters())
        assert held == weight_bytes(sum(parameter.numel() for parameter in network.parameters()), bytes_each)


# The knee


@given(st.floats(0, 1), st.floats(1e-6, 1), st.lists(st.integers(1, 4096), min_size=2, unique=True))
def test_a_line_is_found_again_from_its_points(fixed: float, item: float, sizes: list[int]) -> None:
    found = fit_pass(sizes, [fixed + item * size for size in sizes])
    scale = fixed + item * max(sizes)
    assert found == pytest.approx((fixed, item), rel=1e-6, abs=1e-9 * scale)


@given(st.floats(0, 10), st.floats(1e-6, 1), shares)
def test_at_the_knee_the_fixed_part_takes_its_share_and_below_it_more(
    fixed: float, item: float, overhead: float
) -> None:
    knee = knee_batch_size(fixed, item, overhead)
    assert fixed <= overhead * (fixed + item * knee) * ROOM
    if knee > 1:
        assert fixed * ROOM >= overhead * (fixed + item * (knee - 1))
    assert pass_rate(knee, fixed, item) * ROOM >= (1 - overhead) / item


@pytest.mark.parametrize(
    ("sizes", "seconds", "sentence"),
    [
        ([4, 4], [1, 2], "at least two batch sizes"),
        ([4], [1], "at least two batch sizes"),
        ([4, 8], [1], "one value each"),
        ([4, 8], [2, 1], "Larger batches took no longer"),
    ],
)
def test_points_that_make_no_line_are_refused(sizes: list[int], seconds: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit_pass(sizes, seconds)


def test_an_overhead_of_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^overhead must be a share below 1, not 1\.$"):
        knee_batch_size(1, 1, 1)


# The pool and the blocks, as the pipeline of Part 1 has them


nodes = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=5)


@given(nodes, st.sampled_from([None, 0, 0.25, 0.5, 1, 2]))
def test_the_pool_is_the_one_that_part_1_plans(machines: list[tuple[int, int]], num_gpus: float | None) -> None:
    alive = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}} for cpus, gpus in machines]
    cpus, gpus = zip(*machines, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: alive)
        try:
            pool = plan_pool(num_gpus=num_gpus)
        except ValueError:
            pool = None
    gpus_an_actor = num_gpus if num_gpus is not None else (1 if max(gpus) >= 1 else 0)
    if gpus_an_actor:
        found = actors_by_gpus(gpus, gpus_an_actor)
        assert found == (pool.actors if pool else 0)
    elif max(cpus) == 0:
        assert pool is None
    else:
        found = actors_by_cpus(cpus, CONSTANTS["actor_cpus"])
        assert found == (pool.actors if pool else 0)
        if pool:
            assert (pool.num_cpus, pool.decode_cpus) == (CONSTANTS["actor_cpus"], decode_cpus(cpus, pool.num_cpus))


@given(st.lists(st.integers(0, 16), min_size=1, max_size=5), st.sampled_from([0.25, 0.5, 1, 2]))
def test_the_pool_leaves_room_for_a_task_wherever_its_actors_lie(node_cpus: list[int], actor_cpus: float) -> None:
    assume(max(node_cpus) > actor_cpus)
    actors, task = actors_by_cpus(node_cpus, actor_cpus), decode_cpus(node_cpus, actor_cpus)
    blocking = 0  # the fewest actors that leave no node the CPUs of a task
    for cpus in node_cpus:
        while cpus >= task:
            cpus, blocking = cpus - actor_cpus, blocking + 1  # type: ignore[assignment]
    assert actors < blocking
    assert actors == min(blocking - 1, sum(node_cpus))


@pytest.mark.cluster
@pytest.mark.parametrize(("limit", "batch_size", "num_gpus"), [(64, None, 1), (64, 4, 1), (7, 2, 1), (64, 4, 0)])
def test_blocks_and_object_store_are_those_of_part_1(
    connected: "RayCluster",
    sample_set: "Samples",
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    batch_size: int | None,
    num_gpus: float,
) -> None:
    asked: list[dict[str, Any]] = []
    from_items = ray.data.from_items

    def watch(items: list[Any], **options: Any) -> ray.data.Dataset:
        asked.append(options)
        return from_items(items, **options)

    monkeypatch.setattr(ray.data, "from_items", watch)
    predictions = classify(
        str(sample_set.images), str(sample_set.model), limit, batch_size=batch_size, num_gpus=num_gpus
    )
    pool, batch_size = plan_pool(num_gpus=num_gpus), batch_size or 64
    most = CONSTANTS["most_batches" if num_gpus else "most_batches_on_cpus"]
    rows = batches_per_block(limit, pool.actors, batch_size, int(most)) * batch_size
    crop = load_preprocessing(str(sample_set.model)).crop
    assert asked == [{"override_num_blocks": count_blocks(limit, rows)}]
    allowed = predictions.context.execution_options.resource_limits.object_store_memory
    assert allowed == store_bytes(pool.actors, rows, crop * crop * 3, int(CONSTANTS["blocks_in_flight"]))


def test_what_is_taken_as_given_is_what_ray_and_part_1_have() -> None:
    assert CONSTANTS["store_share"] == ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
    assert CONSTANTS["store_most_gb"] * 1e9 == ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES
    assert CONSTANTS["data_share"] == ResourceManager.DEFAULT_OBJECT_STORE_MEMORY_LIMIT_FRACTION
    assert CONSTANTS["blocks_in_flight"] == actor_pool.BLOCKS_IN_FLIGHT
    assert inspect.signature(store_bytes).parameters["blocks_in_flight"].default == actor_pool.BLOCKS_IN_FLIGHT
    assert CONSTANTS["overhead"] == inspect.signature(knee_batch_size).parameters["overhead"].default
    assert CONSTANTS["requests_a_prefix"] == running.GETS_A_PREFIX


@given(amounts, shares, amounts)
def test_as_many_actors_as_the_memory_holds(memory: float, reserved_share: float, actor: float) -> None:
    assume(memory / actor < 1e9)
    actors = actors_by_memory(memory, memory * reserved_share, actor)
    free = memory * (1 - reserved_share)
    assert actors * actor <= free * ROOM
    assert (actors + 1) * actor * ROOM >= free


@given(amounts, amounts)
def test_reading_feeds_so_many_actors_and_no_more(read_rate: float, actor_rate: float) -> None:
    assume(read_rate / actor_rate < 1e9)
    actors = actors_by_reading(read_rate, actor_rate)
    assert actors * actor_rate * ROOM >= read_rate  # they take all that is read,
    assert (actors - 1) * actor_rate <= read_rate * ROOM  # and one fewer would not


@given(counts, st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 16))
def test_an_actor_has_four_blocks_where_there_are_enough_batches(
    items: int, actors: int, batch_size: int, most: int
) -> None:
    in_block = batches_per_block(items, actors, batch_size, most)
    assert 1 <= in_block <= most
    if in_block > 1:
        assert count_blocks(items, in_block * batch_size) >= 4 * actors
    if in_block < most:
        assert (in_block + 1) * batch_size * 4 * actors > items


# The bound


@given(st.lists(amounts, min_size=1, max_size=5))
def test_sharing_cores_is_slower_than_having_them_and_never_below_the_harmonic_part(rates: list[float]) -> None:
    separate = separate_bound(**{f"stage_{index}": rate for index, rate in enumerate(rates)})
    shared = shared_bound(*rates)
    assert separate.value == min(rates)
    assert min(rates) / len(rates) <= shared * ROOM
    assert shared <= min(rates) * ROOM


def test_the_shared_bound_is_that_of_the_benchmark() -> None:
    forward, decode_s, cores = 22.0, 0.004, 2
    assert shared_bound(forward, cores / decode_s) == pytest.approx(1 / (1 / forward + decode_s / cores))
    assert separate_bound(decode=3.0, forward=2.0) == Limited(2.0, "forward")


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(1, 200))
def test_a_pipeline_of_two_stages_never_beats_its_bound(decode: float, forward: float, items: int) -> None:
    decoded = finished = 0.0
    for _ in range(items):
        decoded += 1 / decode
        finished = max(finished, decoded) + 1 / forward
    assert items / finished <= separate_bound(decode=decode, forward=forward).value * ROOM
