"""What the pages find: a Ray cluster, images and a checkpoint; the reader's own, or those made here."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.page_rendering import ROOT
from tests.ray_cluster import WORKERS, RayCluster

CHECK = Path(__file__).with_name("ray_check.py")
CONNECT_S = 20.0
READ_S = 120.0
# What the pages fall back to.
PUBLIC = {
    "IMAGES": "s3://anonymous@air-example-data-2/imagenette2/val/",
    "MODEL": "microsoft/resnet-50@34c2154c194f829b11125337b98c8f5f9965ff19",
}


class UnusableError(Exception):
    """A sentence on why the pages cannot run on the reader's cluster, images or checkpoint."""


class PageEnvironment:
    """Prepared when a page needs it, and kept for the session."""

    def __init__(self, gpus_per_worker: int, workers: int = WORKERS) -> None:
        self.gpus_per_worker, self.workers = gpus_per_worker, workers
        self.address = os.environ.get("RAY_ADDRESS")  # a cluster that is not ours
        self.cluster: RayCluster | None = None
        self.resources: dict[str, int] | None = None
        self.samples: dict[str, str] = {}

    @property
    def data(self) -> dict[str, str]:
        """The images and the checkpoint that pages read."""
        return {name: os.environ.get(name) or self.samples.get(name) or PUBLIC[name] for name in PUBLIC}

    def prepare(self, needs_ray: bool, needs_data: bool, needs_models: bool = False) -> dict[str, str]:
        """Return the variables to set for a page; raise `UnusableError` if it cannot run."""
        if self.address:
            if needs_ray and self.resources is None:
                self.resources = self._check(self.address)
            return {}
        variables: dict[str, str] = {}
        if needs_ray:
            self.cluster = self.cluster or RayCluster(self.gpus_per_worker, True, self.workers)
            self.resources = self.cluster.resources
            variables |= self.cluster.client_environment
        if needs_data:
            self.samples = self.samples or self._build_samples()
            variables |= self.data
        if needs_models:
            from snippets.optimization.ensemble_models import models_for

            variables["MODELS"] = models_for(variables["MODEL"])
        return variables

    def close(self) -> None:
        """Stop the cluster, if one was started."""
        if self.cluster:
            self.cluster.close()

    def _build_samples(self) -> dict[str, str]:
        if all(os.environ.get(name) for name in PUBLIC):
            return {}
        from snippets.samples import build_samples

        samples = build_samples(ROOT / ".cache" / "samples")
        return {"IMAGES": str(samples.images.absolute()), "MODEL": str(samples.model.absolute())}

    def _check(self, address: str) -> dict[str, int]:
        """Ask the reader's cluster what it has, and each node whether it can read images and checkpoint."""
        if host := re.search(r"([^/@]+):(\d+)$", address):
            try:
                socket.create_connection((host[1], int(host[2])), timeout=5).close()
            except OSError as error:
                raise UnusableError(f"No Ray cluster answers at RAY_ADDRESS={address} ({error}).") from None
        resources: dict[str, int] = self._ask(address, CONNECT_S, "resources")
        for node, name, reason in self._ask(address, READ_S, "unreadable", *self.data.values()):
            place = f"{name}={self.data[name]}"
            raise UnusableError(f"Node {node} of the Ray cluster at {address} cannot read {place} ({reason}).")
        return resources

    @staticmethod
    def _ask(address: str, limit_s: float, *question: str) -> Any:
        """Ask the cluster from a process of its own: Ray may wait there for ever, or end it."""
        cluster = f"the Ray cluster at RAY_ADDRESS={address}"
        try:
            asked = subprocess.run(
                [sys.executable, str(CHECK), *question],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as waiting:
            reason = _last_words((waiting.stderr or b"").decode(errors="replace"))
            raise UnusableError(f"No answer within {limit_s:g} s from {cluster} ({reason}).") from None
        if asked.returncode:
            raise UnusableError(f"Cannot use {cluster} ({_last_words(asked.stderr)}).")
        return json.loads(asked.stdout.splitlines()[-1])


def _last_words(log: str) -> str:
    """Return the last line of Ray's log, without time and place."""
    lines = log.strip().splitlines() or ["without a word"]
    return re.sub(r"^\[.*?\] \S+: ", "", lines[-1]).rstrip(".")
