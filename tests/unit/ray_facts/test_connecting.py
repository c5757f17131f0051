"""What `ray.init()` joins or starts, what it asks of clients, and what workers see."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.ray_cluster import RayCluster

STARTED = """
import json, os, sys
import psutil, ray
ray.init()
nodes, mode = len(ray.nodes()), os.environ.get("RAY_AUTH_MODE")
alive = [child for child in psutil.Process().children(recursive=True) if "gcs_server" in child.name()]
ray.shutdown()
gone, left = psutil.wait_procs(alive, timeout=20)
print(json.dumps({"nodes": nodes, "mode": mode, "servers": len(alive), "left": len(left)}))
"""


class Started:
    """A process of its own that starts Ray by a bare `ray.init()`, as a user with an empty home folder."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.home = home
        self.home.mkdir()
        self._folder = tempfile.mkdtemp(
            prefix="ray-", dir="/tmp"
        )  # sockets lie in here: their paths must be short
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"HOME": str(home), "RAY_TMPDIR": self._folder, "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTED],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[dict[str, Any], str]:
        """Return what it saw, and its log."""
        try:
            output, log = self._process.communicate(timeout=120)
        finally:
            self._process.kill()
            shutil.rmtree(self._folder, ignore_errors=True)
        assert self._process.returncode == 0, log
        return json.loads(output.splitlines()[-1]), log

    @property
    def token(self) -> Path:
        """Where Ray writes a token."""
        return self.home / ".ray" / "auth_token"


def test_a_bare_init_joins_the_cluster_that_ray_address_names(ray_cluster: RayCluster) -> None:
    assert os.environ["RAY_ADDRESS"] == ray_cluster.address
    assert len(ray.nodes()) == ray_cluster.resources["nodes"]


def test_the_size_of_a_running_cluster_is_not_the_drivers_to_choose() -> None:
    ray.shutdown()
    with pytest.raises(ValueError, match="num_cpus"):
        ray.init(num_cpus=2)


def test_shutdown_only_leaves_a_cluster_that_was_joined() -> None:
    before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    ray.shutdown()
    ray.init(log_to_driver=False)
    assert {node["NodeID"] for node in ray.nodes() if node["Alive"]} == before


def test_a_started_ray_asks_for_a_token_unless_disabled_and_ends_with_shutdown(tmp_path: Path) -> None:
    by_default = Started(tmp_path / "default")
    disabled = Started(tmp_path / "disabled", RAY_AUTH_MODE="disabled")
    seen, log = by_default.end()
    assert seen == {"nodes": 1, "mode": "token", "servers": 1, "left": 0}
    assert by_default.token.read_text().strip()
    assert "Token authentication is enabled" in log

    seen, log = disabled.end()
    assert seen == {"nodes": 1, "mode": "disabled", "servers": 1, "left": 0}
    assert not disabled.token.exists()
    assert "Token authentication is enabled" not in log


def test_a_misspelt_switch_is_accepted_without_a_word(context: Any, recwarn: pytest.WarningsRecorder) -> None:
    context.enable_progres_bars = False
    assert context.enable_progres_bars is False
    assert not recwarn.list


def test_both_progress_bars_are_on_by_default() -> None:
    defaults = ray.data.DataContext()
    assert defaults.enable_progress_bars
    assert defaults.enable_operator_progress_bars


@pytest.mark.parametrize(("num_gpus", "devices"), [(0, None), (1, "0")])
def test_ray_chooses_a_device_only_for_a_worker_that_asked_for_one(num_gpus: int, devices: str | None) -> None:
    def look() -> tuple[str | None, int]:
        return os.environ.get("CUDA_VISIBLE_DEVICES"), len(ray.get_gpu_ids())

    assert ray.get(ray.remote(num_cpus=0, num_gpus=num_gpus)(look).remote()) == (devices, num_gpus)
