"""Fixtures for tests that need a Ray cluster of several nodes, and which tests run side by side (`-n`)."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.junitxml import xml_key  # pytest's own fixture for it does nothing where tests run side by side

if TYPE_CHECKING:  # most tests need no Ray
    import ray

    from snippets.recording import Recording
    from snippets.samples import Samples
    from tests.ray_cluster import RayCluster

    RecordedRun = tuple[Recording, list[dict[str, Any]]]

OTHER_LABELS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
# Tests of these run one after another: they share a server, a site that is built, or pipelines that are recorded.
TOGETHER = {
    "server": ("tests/s3/",),
    "site": ("tests/site/", "tests/contract/test_console_lines.py", "tests/contract/test_publishing.py"),
    "pipelines": (
        "tests/unit/benchmark/test_timeline.py",
        "tests/unit/fundamentals/test_actor_pool.py",
        "tests/unit/fundamentals/test_naive.py",
        "tests/unit/fundamentals/test_stepwise.py",
        "tests/unit/optimization/test_patterns.py",
        "tests/unit/test_recording.py",
    ),
}


@pytest.hookimpl(trylast=True)  # after the plugin that makes the report
def pytest_configure(config: pytest.Config) -> None:
    """Say in the report of a run (`--junitxml`) which sources it was of."""
    from tests.sources import digest_sources

    if report := config.stash.get(xml_key, None):
        report.add_global_property("sources", digest_sources())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each of the processes (`-n`) a file at a time, or files whose tests share something."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class ByGroupOrFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    # As collected, the longest files early: xdist leaves those of few tests for the end, as if they were short.
    config.option.loadscopereorder = False
    return ByGroupOrFile(config, log)


def group_of(nodeid: str) -> str:
    """Return the file of a test, or the group that stays together."""
    file = nodeid.partition("::")[0]
    return next((group for group, begins in TOGETHER.items() if file.startswith(begins)), file)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator["RayCluster"]:
    """A cluster with two logical GPUs and the state API, which a bare `ray.init()` joins."""
    with _started(gpus_per_worker=1) as cluster, _joined(cluster):
        yield cluster


@pytest.fixture(scope="module")
def ray_cluster_without_gpus(_cluster_without_gpus: "RayCluster") -> Iterator["RayCluster"]:
    """A cluster as most readers have it, with the state API, which a bare `ray.init()` joins."""
    with _joined(_cluster_without_gpus):
        yield _cluster_without_gpus


@pytest.fixture(scope="session")
def _cluster_without_gpus() -> Iterator["RayCluster"]:
    with _started(gpus_per_worker=0) as cluster:
        yield cluster


@pytest.fixture
def one_machine(_one_machine: "RayCluster") -> Iterator["RayCluster"]:
    """One machine with two CPUs and no GPU, which a bare `ray.init()`, or a process of its own, joins."""
    with _joined(_one_machine):
        yield _one_machine


@pytest.fixture(scope="session")
def _one_machine() -> Iterator["RayCluster"]:
    with _started(gpus_per_worker=0, dashboard=False, workers=0) as cluster:
        yield cluster


@contextmanager
def _started(gpus_per_worker: int, dashboard: bool = True, **options: int) -> Iterator["RayCluster"]:
    import ray

    from tests.ray_cluster import RayCluster

    ray.shutdown()  # a driver that is connected stays where it is
    with RayCluster(gpus_per_worker, dashboard, **options) as cluster:
        yield cluster


@contextmanager
def _joined(cluster: "RayCluster") -> Iterator[None]:
    import ray

    ray.shutdown()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in cluster.client_environment.items():
            environment.setenv(name, value)
        yield
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
def pool_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the actor pools of a fixed size that a test plans."""
    import ray.data

    sizes: list[int] = []
    strategy = ray.data.ActorPoolStrategy

    def watch(size: int) -> "ray.data.ActorPoolStrategy":
        sizes.append(size)
        return strategy(size=size)

    monkeypatch.setattr(ray.data, "ActorPoolStrategy", watch)
    return sizes


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
    """The naive pipeline over half of `spread_images`: what was recorded, and the rows."""
    from snippets.fundamentals.dataset import read_images
    from snippets.fundamentals.naive import classify_naively

    return _recorded(lambda: classify_naively(read_images(spread_images[::2]), str(sample_set.model)))


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
