"""Fixtures for tests that need a Ray cluster of several nodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # most tests need no Ray
    from tests.ray_cluster import RayCluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["RayCluster"]:
    """A cluster with two logical GPUs, which a bare `ray.init()` joins."""
    with _joined(gpus_per_worker=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ray_cluster_without_gpus() -> Iterator["RayCluster"]:
    """A cluster as most readers have it, which a bare `ray.init()` joins."""
    with _joined(gpus_per_worker=0) as cluster:
        yield cluster


@contextmanager
def _joined(gpus_per_worker: int) -> Iterator["RayCluster"]:
    import ray

    from tests.ray_cluster import RayCluster

    ray.shutdown()  # a driver that is connected stays where it is
    with RayCluster(gpus_per_worker) as cluster, pytest.MonkeyPatch.context() as environment:
        for name, value in cluster.client_environment.items():
            environment.setenv(name, value)
        yield cluster
        ray.shutdown()
