"""Connect to Ray and see what the cluster has: nodes, CPUs, GPUs, memory, and the torch of its workers."""

from __future__ import annotations

# --8<-- [start:imports]
import os
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# --8<-- [end:imports]


# --8<-- [start:environment]
IMAGES = os.environ.get("IMAGES") or "s3://anonymous@air-example-data-2/imagenette2/val/"
MODEL = os.environ.get("MODEL") or "microsoft/resnet-50@34c2154c194f829b11125337b98c8f5f9965ff19"
# --8<-- [end:environment]


# --8<-- [start:checkpoint]
def split_revision(model: str) -> tuple[str, str | None]:
    """Return name and revision of `name@revision`; a folder has no revision.

    A revision pins a hub checkpoint to one commit, so that a rerun computes what the first run computed.
    """
    if Path(model).is_dir():
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


# --8<-- [end:checkpoint]


# --8<-- [start:data_context]
def configure_data_context(progress_bars: bool = True, no_progress_timeout_s: float = 120) -> None:
    """Set the switches that datasets copy when they are made: call it before the first read.

    `no_progress_timeout_s` ends a pipeline that waits for resources no node has, with an
    `ExecutionTimeoutError`; Ray's own default is 1800 seconds.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = progress_bars
    context.enable_operator_progress_bars = progress_bars
    context.execution_no_progress_timeout_s = no_progress_timeout_s


# --8<-- [end:data_context]


# --8<-- [start:describe_cluster]
def torch_of_this_process() -> dict[str, Any]:
    """Return what torch sees here: its version, its threads, and the names of the CUDA devices."""
    import torch

    devices = range(torch.cuda.device_count())
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(device) for device in devices],
    }


def describe_cluster(timeout_s: float = 120) -> list[dict[str, Any]]:
    """Return one row a live node: CPUs, GPUs, memory in bytes, and the torch of a worker on it.

    The worker that looks for CUDA reserves the node's GPUs, so that it sees those that Ray counts. Raises
    `ray.exceptions.GetTimeoutError` where a node has none free in time.
    """
    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        look = ray.remote(torch_of_this_process).options(
            num_cpus=0,
            num_gpus=has.get("GPU", 0),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        nodes.append((node, has, look.remote()))
    return [
        {
            "node": node["NodeManagerAddress"],
            "cpus": has.get("CPU", 0),
            "gpus": has.get("GPU", 0),
            "memory_bytes": int(has.get("memory", 0)),
            "object_store_bytes": int(has.get("object_store_memory", 0)),
            **ray.get(seen, timeout=timeout_s),
        }
        for node, has, seen in nodes
    ]


# --8<-- [end:describe_cluster]


def run(options: Any) -> list[dict[str, Any]]:
    """Return one row a node, as `describe_cluster` does."""
    return describe_cluster()[: options.limit]


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.fundamentals.setup")
