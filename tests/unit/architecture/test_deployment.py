"""Every node says which versions its workers import, and a node that differs is named."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pytest
import ray
from ray._private.utils import check_version_info, compute_version_info

from snippets.architecture import deployment
from snippets.architecture.deployment import compare_nodes, find_differences, run, versions_of_this_process

if TYPE_CHECKING:
    from tests.ray_cluster import RayCluster

PACKAGES = ("ray", "torch", "transformers", "pyarrow")


def test_every_node_is_asked_in_a_worker_on_it(connected: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {**ray.nodes()[0], "Alive": False}
    monkeypatch.setattr(ray, "nodes", lambda nodes=ray.nodes: [*nodes(), dead])
    here = versions_of_this_process()
    monkeypatch.setattr(platform, "python_version", lambda: "the driver's")
    rows = compare_nodes()
    assert [row["where"] == "driver" for row in rows] == [True, False, False, False]
    assert [row["python"] for row in rows] == ["the driver's", *[platform_version()] * 3]
    assert all({**row, "where": "", "python": ""} == {**here, "where": "", "python": ""} for row in rows)


def platform_version() -> str:
    """Return the version of this Python, which the test above hides from the driver."""
    return ".".join(map(str, platform.python_version_tuple()))


def test_the_versions_are_those_of_the_packages() -> None:
    expected = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    assert versions_of_this_process() == expected


def test_a_package_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", look_up)
    assert versions_of_this_process()["torch"] == "absent"
    assert versions_of_this_process()["ray"] == "1"


def test_what_differs_is_named_with_its_versions() -> None:
    rows = [{"where": "driver", "ray": "2", "torch": "1"}, {"where": "a", "ray": "2", "torch": "3"}]
    assert find_differences(rows) == {"torch": ["1", "3"]}
    assert find_differences(rows[:1]) == {}


def test_the_command_ends_in_a_sentence_where_nodes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"where": "driver", "torch": "1"}, {"where": "a", "torch": "3"}]
    monkeypatch.setattr(deployment, "compare_nodes", lambda: rows)
    with pytest.raises(ValueError, match=r"^The nodes have different versions: torch: 1, 3\.$"):
        run(argparse.Namespace(limit=None))
    rows[1]["torch"] = "1"
    assert run(argparse.Namespace(limit=1)) == rows[:1]


def test_ray_compares_its_own_version_and_pythons_and_no_other() -> None:
    own = ray.__version__, platform.python_version()
    assert tuple(compute_version_info()) == own
    check_version_info({"ray_version": own[0], "python_version": own[1]}, "a node")
    for other in ({"ray_version": "2.0.0"}, {"python_version": "3.10.0"}):
        with pytest.raises(RuntimeError, match="Version mismatch"):
            check_version_info({"ray_version": own[0], "python_version": own[1], **other}, "a node")
