"""A real Ray cluster of several nodes on this machine, which leaves nothing behind."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
from ray._private import ray_constants
from ray.cluster_utils import Cluster

WORKERS = 2
CPUS_PER_WORKER = 2
OBJECT_STORE_BYTES = 300_000_000
STOP_S = 5.0  # for processes to end

CLIENT_ENVIRONMENT = {
    # Ray's switch for staying on 127.0.0.1. Without it Ray takes the machine's own address, except on macOS
    # and Windows, and anyone on the network could run code there.
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    # Ray 2.60 asks for a token by default; a cluster on loopback that lives for one test run needs none.
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # To look into a Parquet file Ray starts 32 actors unless told otherwise, which takes two cores seconds a time.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
}
ray_constants.ENABLE_RAY_CLUSTER = False  # the same for this process, as Ray reads the variable when imported


class RayCluster:
    """A head with one CPU and two workers with two CPUs each: real raylets with ports of their own.

    The workers' GPUs are *logical*, so that `num_gpus=1` is scheduled as in production on a machine without
    one. A driver joins with `client_environment`. With `dashboard`, which takes seconds and 200 MB, there is the
    state API too. Without workers, the head is one machine as they are.
    """

    def __init__(self, gpus_per_worker: int = 1, dashboard: bool = False, workers: int = WORKERS) -> None:
        head = {"num_cpus": 1} if workers else {"num_cpus": CPUS_PER_WORKER, "num_gpus": gpus_per_worker}
        self.resources = {
            "nodes": 1 + workers,
            "cpus": head["num_cpus"] + workers * CPUS_PER_WORKER,
            "gpus": head.get("num_gpus", 0) + workers * gpus_per_worker,
        }
        # Not in TMPDIR: sockets lie in here, and their paths are limited to about 100 characters.
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        self.client_environment = {**CLIENT_ENVIRONMENT, "RAY_TMPDIR": self._folder}
        self._cluster: Cluster | None = None
        try:
            # In TMPDIR the dashboard's processes leave folders of their own, when they are killed.
            # Where OMP_NUM_THREADS is set, Ray leaves it alone.
            # A submitted job starts `python`, which is this one, as in an environment that is activated.
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
            own = {"TMPDIR": self._folder, "OMP_NUM_THREADS": None, "PATH": path}
            environment = {**self.client_environment, **own}
            with _environment(environment), _folder(self._folder), _signal_handler():
                self.address = self._start(head, workers, gpus_per_worker, dashboard)
        except BaseException:
            self.close()
            raise
        self.client_environment["RAY_ADDRESS"] = self.address

    def _start(self, head: dict[str, int], workers: int, gpus_per_worker: int, dashboard: bool) -> str:
        self._cluster = Cluster()
        node: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": dashboard}
        # Ports are free ones: another cluster may be running.
        ports = {"dashboard_host": "127.0.0.1", "dashboard_port": 0, "dashboard_agent_listen_port": None}
        self._cluster.add_node(**head, **ports, **node)
        for _ in range(workers):
            self._cluster.add_node(num_cpus=CPUS_PER_WORKER, num_gpus=gpus_per_worker, **node)
        return str(self._cluster.address)

    def close(self) -> None:
        """Stop every process of the cluster and remove its files; closing twice does no harm."""
        # Ray's workers change their command line: they are told by their parents, before these end.
        ours = [child for child in _children(psutil.Process()) if self._folder in _command(child)]
        ours += [descendant for child in ours for descendant in _children(child)]
        # All at once: nothing is left to be done in order, and one after the other takes ten seconds.
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=STOP_S)
        if self._cluster is not None:
            with suppress(Exception):  # of a start that was interrupted
                self._cluster.shutdown()  # what Ray keeps of it in this process
            self._cluster = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _environment(variables: dict[str, str | None]) -> Iterator[None]:
    outer = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(outer)


def _set(variables: dict[str, str | None]) -> None:
    """Set environment variables, or take away those without a value."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _folder(folder: str) -> Iterator[None]:
    """Start in `folder`: a raylet stays where it starts, and its workers' relative paths end there."""
    outer = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(outer)


@contextmanager
def _signal_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray sets one that ends the process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []
