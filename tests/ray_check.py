"""Ask the Ray cluster at RAY_ADDRESS what it has, or which of its nodes cannot read images or checkpoint.

A script for `page_environment.py`: the answer is a line of JSON.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from snippets.fundamentals import dataset

ray.cloudpickle.register_pickle_by_value(dataset)  # a reader's workers cannot import it


def resources() -> dict[str, int]:
    """Return the cluster's nodes, CPUs and GPUs."""
    total = ray.cluster_resources()
    return {"nodes": len(living_nodes()), "cpus": int(total.get("CPU", 0)), "gpus": int(total.get("GPU", 0))}


def unreadable(images: str, model: str) -> list[tuple[str, str, str]]:
    """Return node, variable and reason for each node that cannot read the images or the checkpoint."""
    task = ray.remote(num_cpus=0, max_retries=0)(reasons)
    answers = {
        node["NodeManagerAddress"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(images, model)
        for node in living_nodes()
    }
    return [(node, name, reason) for node, answer in answers.items() for name, reason in ray.get(answer)]


def living_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the nodes that are alive."""
    nodes = ray.nodes()
    return [node for node in nodes if node["Alive"]]


def reasons(images: str, model: str) -> list[tuple[str, str]]:
    """Return why this node cannot read the images or the checkpoint."""
    found = []
    for name, read, place in (("IMAGES", read_images, images), ("MODEL", read_model, model)):
        try:
            read(place)
        except Exception as error:
            found.append((name, f"{type(error).__name__}: {error}".splitlines()[0]))
    return found


def read_images(place: str) -> None:
    """List a folder, or open a file, as the pages do."""
    from pyarrow import fs

    system, path = dataset.open_filesystem(place)
    entry = dataset.look_up(system, path.rstrip("/"))
    if entry.type == fs.FileType.NotFound:
        raise FileNotFoundError("there is no such file or folder")
    if entry.is_file:
        system.open_input_file(entry.path).close()
    elif not system.get_file_info(fs.FileSelector(entry.path)):
        raise FileNotFoundError("the folder is empty")


def read_model(place: str) -> None:
    """Open the configuration of a checkpoint in a folder, or on the Hugging Face hub at a revision."""
    if place.startswith(("/", ".", "~")) or Path(place).is_dir():
        (Path(place) / "config.json").read_bytes()
    else:
        from huggingface_hub import hf_hub_download

        name, _, revision = place.partition("@")
        hf_hub_download(name, "config.json", revision=revision or None)


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    question, *arguments = sys.argv[1:]
    print(json.dumps(resources() if question == "resources" else unreadable(*arguments)))
