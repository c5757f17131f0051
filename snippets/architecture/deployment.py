"""Ask every node of a cluster which versions its workers import, and name what is not the same everywhere."""

from __future__ import annotations

# --8<-- [start:imports]
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:compare_nodes]
def versions_of_this_process() -> dict[str, str]:
    """Return the versions of Python and of what a worker imports; of a package that is not there, `absent`."""
    versions = {"python": platform.python_version()}
    for package in ("ray", "torch", "transformers", "pyarrow"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def compare_nodes(timeout_s: float = 120) -> list[dict[str, str]]:
    """Return one row for the driver and one a live node: where, and the versions there.

    Raises `ray.exceptions.GetTimeoutError` where a node starts no worker in time.
    """
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(versions_of_this_process).options(num_cpus=0, scheduling_strategy=here)
            asked.append((node["NodeManagerAddress"], look.remote()))
    rows = [{"where": where, **ray.get(seen, timeout=timeout_s)} for where, seen in asked]
    return [{"where": "driver", **versions_of_this_process()}, *rows]


def find_differences(rows: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Return the packages that are not the same everywhere, each with the versions that there are."""
    found = {name: sorted({row[name] for row in rows}) for name in rows[0] if name != "where"}
    return {name: versions for name, versions in found.items() if len(versions) > 1}


# --8<-- [end:compare_nodes]


def run(options: Any) -> list[dict[str, str]]:
    """Return one row for the driver and one a node. Raises `ValueError` where they differ."""
    rows = compare_nodes()
    if differences := find_differences(rows):
        named = "; ".join(f"{name}: {', '.join(versions)}" for name, versions in differences.items())
        raise ValueError(f"The nodes have different versions: {named}.")
    return rows[: options.limit]


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.architecture.deployment")
