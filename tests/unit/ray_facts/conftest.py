"""What the tests of Ray's own behaviour share: one cluster, and settings that do not outlive a test."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from tests.ray_cluster import RayCluster


@pytest.fixture(autouse=True)
def driver(connected: RayCluster) -> None:
    """Be connected to the cluster: one CPU on the head, two workers with two CPUs and a logical GPU each."""


@pytest.fixture(autouse=True)
def context(driver: None) -> Iterator[Any]:
    """Ray Data's settings, as they are by default; a test may change them."""
    before, context = ray.data.DataContext.get_current(), ray.data.DataContext()
    context.enable_progress_bars = False
    ray.data.DataContext._set_current(context)
    yield context
    ray.data.DataContext._set_current(before)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """The warnings that Ray Data logs, which go neither to `caplog` nor to Python's `warnings`."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield messages
    logger.setLevel(level)
    logger.removeHandler(handler)


class Counter:
    """Count calls, and how many are inside at the same time."""

    def __init__(self) -> None:
        self.calls = self.inside = self.most = 0

    def add(self) -> None:
        """Count a call."""
        self.calls += 1

    def total(self) -> int:
        """Return the calls."""
        return self.calls

    def enter(self) -> int:
        """Count a task that begins; return how many are inside with it."""
        self.inside += 1
        self.most = max(self.most, self.inside)
        return self.inside

    def leave(self) -> None:
        """Count a task that ends."""
        self.inside -= 1

    def most_inside(self) -> int:
        """Return how many tasks were inside at the same time."""
        return self.most


@pytest.fixture
def counter() -> Iterator[Any]:
    """An actor that counts, from any process."""
    counter = ray.remote(num_cpus=0)(Counter).remote()
    yield counter
    ray.kill(counter)


@pytest.fixture
def leave_cpus() -> Iterator[Callable[[int], None]]:
    """Reserve every CPU of the cluster but one or two, which lie on one node, with a GPU."""
    reserved: list[Any] = []

    def hold(spare: int) -> None:
        for node in ray.nodes():
            cpus, has_gpu = node["Resources"].get("CPU", 0), "GPU" in node["Resources"]
            free, spare = (spare, 0) if has_gpu else (0, spare)
            if cpus > free:
                place = [{"ray.io/node-id": node["NodeID"]}]
                reserved.append(placement_group([{"CPU": cpus - free}], bundle_label_selector=place))
        assert all(group.wait(60) for group in reserved)

    yield hold
    for group in reserved:
        remove_placement_group(group)
