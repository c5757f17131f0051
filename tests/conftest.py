"""Fixtures for tests that need a Ray cluster of several nodes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # most tests need no Ray
    import ray

    from snippets.recording import Recording
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

    RecordedRun = tuple[Recording, list[dict[str, Any]]]

OTHER_LABELS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


@pytest.fixture(scope="session", autouse=True)
def _state_of_the_sources(record_testsuite_property: Callable[[str, object], None]) -> None:
    """Say in the report of a run (`--junitxml`) which sources it was of."""
    from tests.sources import digest_sources

    record_testsuite_property("sources", digest_sources())


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["RayCluster"]:
    """A cluster with two logical GPUs and the state API, which a bare `ray.init()` joins."""
    with _joined(gpus_per_worker=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ray_cluster_without_gpus() -> Iterator["RayCluster"]:
    """A cluster as most readers have it, with the state API, which a bare `ray.init()` joins."""
    with _joined(gpus_per_worker=0) as cluster:
        yield cluster


@contextmanager
def _joined(gpus_per_worker: int) -> Iterator["RayCluster"]:
    import ray

    from tests.ray_cluster import RayCluster

    ray.shutdown()  # a driver that is connected stays where it is
    with RayCluster(gpus_per_worker, dashboard=True) as cluster, pytest.MonkeyPatch.context() as environment:
        for name, value in cluster.client_environment.items():
            environment.setenv(name, value)
        yield cluster
        ray.shutdown()


@pytest.fixture(scope="session")
def sample_set() -> "Samples":
    """The sample images, checkpoint and manifest of this repository."""
    from snippets.samples import DEFAULT_ROOT, build_samples

    return build_samples(DEFAULT_ROOT)


@pytest.fixture(scope="session")
def other_sample_set() -> "Samples":
    """Other images and a checkpoint with other labels."""
    from snippets.samples import DEFAULT_ROOT, build_samples

    return build_samples(DEFAULT_ROOT.parent / "other-samples", count=64, seed=1, labels=OTHER_LABELS)


@pytest.fixture(scope="session")
def spread_images(sample_set: "Samples") -> list[str]:
    """64 sample images over all classes, greyscale and CMYK among them."""
    return [str(path) for path in sorted(sample_set.images.rglob("*.jpg"))[::8]]


@pytest.fixture
def connected(ray_cluster: "RayCluster", _disconnected_after: None) -> "RayCluster":
    """A driver on the cluster with two logical GPUs, which a module's tests share."""
    import ray.data

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        _quiet()
    return ray_cluster


@pytest.fixture(scope="module")
def _disconnected_after() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


def _quiet() -> None:

    from snippets.fundamentals.setup import configure_data_context

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    configure_data_context(progress_bars=False)


@pytest.fixture(scope="session")
def naive_run(ray_cluster: "RayCluster", sample_set: "Samples", spread_images: list[str]) -> "RecordedRun":
    """The naive pipeline over `spread_images`: what was recorded, and the rows."""
    from snippets.fundamentals.dataset import read_images
    from snippets.fundamentals.naive import classify_naively

    return _recorded(lambda: classify_naively(read_images(spread_images), str(sample_set.model)))


@pytest.fixture(scope="session")
def pool_run(ray_cluster: "RayCluster", sample_set: "Samples", spread_images: list[str]) -> "RecordedRun":
    """The optimized pipeline over `spread_images` in float32 and batches of 12: records and rows."""
    from snippets.fundamentals.actor_pool import classify

    return _recorded(lambda: classify(spread_images, str(sample_set.model), dtype="float32", batch_size=12))


def _recorded(build: Callable[[], "ray.data.Dataset"]) -> "RecordedRun":
    import ray

    from snippets.recording import recording

    ray.shutdown()
    with recording(log_to_driver=False, logging_level=logging.ERROR) as record:
        _quiet()
        rows = build().take_all()
    ray.shutdown()
    return record, rows
