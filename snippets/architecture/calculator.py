"""The calculator's answers: all of `sizing` and `running` for one model, one kind of machine and one deadline."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snippets.architecture import running, sizing

QUANTITIES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("quantities.toml").read_text("utf-8"))
INPUTS: list[dict[str, Any]] = QUANTITIES["input"]
DEFAULTS: dict[str, float] = {given["name"]: given["default"] for given in INPUTS}

CONSTANTS: dict[str, float] = QUANTITIES["constants"]


@dataclass(frozen=True)
class Plan:
    """The answers by name, the limit that decided some of them, and the code with the answers in it."""

    answers: dict[str, float]
    limits: dict[str, str]
    code: str


def refusals(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the sentences that refuse a value of an input: no number, too low, too high, no whole number."""
    subject = f"{given['label']} ({given['unit']})"
    low = f"more than {given['above']}" if "above" in given else f"at least {given['least']}"
    return {
        "number": f"{subject} must be a number.",
        "low": f"{subject} must be {low}.",
        "high": f"{subject} must be at most {given['most']}.",
        "whole": f"{subject} must be a whole number.",
    }


def accept(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the inputs. Raises `ValueError` for the first that is missing, no number or outside of its limits."""
    for given in INPUTS:
        value, says = values.get(given["name"]), refusals(given)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise ValueError(says["number"])
        if value < given.get("least", -math.inf) or value <= given.get("above", -math.inf):
            raise ValueError(says["low"])
        if value > given["most"]:
            raise ValueError(says["high"])
        if given.get("whole") and value != math.floor(value):
            raise ValueError(says["whole"])
    return {given["name"]: values[given["name"]] for given in INPUTS}


def plan(values: Mapping[str, Any]) -> Plan:
    """Return what the inputs ask for, which are those of quantities.toml, by name and in its units.

    Raises `ValueError` with one sentence where an input is outside of its limits, or where they contradict each
    other: the model does not fit, a node cannot hold an actor, the deadline passes during start-up.
    """
    of = accept(values)
    cpus, gpus, items = int(of["cpus"]), int(of["gpus"]), int(of["items"])
    devices = int(of["gpus_a_model"]) if gpus else 1
    weights = sizing.weight_bytes(of["parameters_m"] * 1e6, of["parameter_bytes"])
    activations, process, workspace = of["activation_mb"] * 1e6, of["process_gb"] * 1e9, of["workspace_gb"] * 1e9
    encoded, decoded = of["encoded_kb"] * 1e3, of["decoded_kb"] * 1e3
    memory, device = of["memory_gib"] * 2**30, of["device_gb"] * 1e9
    fixed_s, item_s, decode_s = of["overhead_ms"] / 1e3, 1 / of["rate"], of["decode_ms"] / 1e3

    # The pool, as far as hardware decides it.
    if gpus and gpus < devices:
        raise ValueError("A node has fewer GPUs than a model is split over.")
    if gpus:
        fits = sizing.batch_that_fits(weights, activations, device, workspace, devices)
    pool = (
        {"gpus": sizing.actors_by_gpus([gpus], devices)}
        if gpus
        else {"cpus": sizing.actors_by_cpus([cpus], CONSTANTS["actor_cpus"])}
    )
    store = min(memory * CONSTANTS["store_share"], CONSTANTS["store_most_gb"] * 1e9)
    reserved = store + cpus * process
    pool["memory"] = sizing.actors_by_memory(memory, reserved, process + weights + (0 if gpus else activations))
    most_actors = int(sizing.tightest(**pool).value)
    if most_actors < 1:
        raise ValueError(
            "The memory of a node holds no actor beside the object store and the workers that decode."
        )

    # The batch.
    if not gpus:
        fits = sizing.batch_that_fits(weights, activations, (memory - reserved) / most_actors, process)
    for_blocks, in_flight = store * CONSTANTS["data_share"], int(CONSTANTS["blocks_in_flight"])
    in_store = math.floor(for_blocks / (in_flight * most_actors * decoded))
    if in_store < 1:
        raise ValueError("The object store of a node holds no block of one item for each place in flight.")
    batch = sizing.tightest(
        memory=fits,
        knee=sizing.knee_batch_size(fixed_s, item_s, CONSTANTS["overhead"]),
        store=in_store,
        items=items,
    )
    batch_size = int(batch.value)

    # The rates of a node.
    actor_rate = sizing.pass_rate(batch_size, fixed_s, item_s)
    decode_rate = cpus / decode_s
    network_rate = running.network_rate(of["network_gbit"] * 1e9 / 8, encoded)
    if gpus:
        pool["reading"] = sizing.actors_by_reading(min(decode_rate, network_rate), actor_rate)
    actors = sizing.tightest(**pool)
    actors_a_node = int(actors.value)
    threads = max(1, cpus // actors_a_node)
    actor_rate *= 1 if gpus else threads
    forward_rate = actors_a_node * actor_rate
    if gpus:
        node = sizing.separate_bound(decode=decode_rate, forward=forward_rate, network=network_rate)
    else:
        node = sizing.separate_bound(cores=sizing.shared_bound(decode_rate, forward_rate), network=network_rate)

    # The cluster.
    batches = {"task": CONSTANTS["most_batches" if gpus else "most_batches_on_cpus"]}
    batches["store"] = math.floor(for_blocks / (in_flight * actors_a_node * batch_size * decoded))
    most = max(1, int(min(batches.values())))
    longest_s = most * batch_size / actor_rate
    useful = running.useful_share(longest_s, of["preemptions"], of["recovery_s"])
    nodes = running.nodes_for_deadline(
        items, node.value * useful, of["deadline_h"] * 3600, of["start_up_s"], longest_s
    )
    all_actors = nodes * actors_a_node
    batches["four"] = sizing.batches_per_block(items, all_actors, batch_size, most)
    in_block = sizing.tightest(**batches)
    rows = int(in_block.value) * batch_size
    blocks = sizing.count_blocks(items, rows)
    stored = sizing.store_bytes(all_actors, rows, decoded, in_flight)

    # The run.
    tail_s = running.tail_seconds(all_actors, rows, actor_rate)
    rate = nodes * node.value * useful
    run_s = running.run_seconds(items, rate, of["start_up_s"], tail_s)
    hours = run_s / 3600
    on_cpus = 0 if gpus else batch_size * activations
    answers: dict[str, float] = {
        "batch_size": batch_size,
        "actors_a_node": actors_a_node,
        "threads": threads,
        "decode_rate": decode_rate,
        "forward_rate": forward_rate,
        "network_rate": network_rate,
        "node_rate": node.value,
        "useful": useful,
        "nodes": nodes,
        "actors": all_actors,
        "batches_a_block": in_block.value,
        "blocks": blocks,
        "store_gb": stored / 1e9,
        "device_gb_used": (workspace + (weights + batch_size * activations) / devices) / 1e9 if gpus else 0,
        "memory_gb_used": (cpus * process + actors_a_node * (process + weights + on_cpus) + stored / nodes) / 1e9,
        "load_factor": sizing.load_factor(of["load_s"], batch_size / actor_rate),
        "tail_s": tail_s,
        "run_h": hours,
        "cost": running.cost(nodes, run_s, of["price"]),
        "expected_preemptions": nodes * hours * of["preemptions"],
        "retried_blocks": blocks * running.expected_retries(rows / actor_rate, of["preemptions"]),
        "read_gb": (items * encoded + running.start_bytes(all_actors, weights)) / 1e9,
        "requests": rate,
        "prefixes": running.count_prefixes(rate, CONSTANTS["requests_a_prefix"]),
    }
    limits = {
        "batch_size": batch.limit,
        "actors_a_node": actors.limit,
        "node_rate": node.limit,
        "nodes": "deadline",
        "batches_a_block": in_block.limit,
    }
    actor_cpus = 0 if gpus else CONSTANTS["actor_cpus"]
    code = fill_code(
        {
            **answers,
            "items": items,
            "pool": min(all_actors, blocks),
            "decode_cpus": sizing.decode_cpus([cpus], actor_cpus),
            "num_cpus": actor_cpus,
            "num_gpus": devices if gpus else 0,
            "use_gpu": "True" if gpus else "False",
            "store_bytes": math.ceil(stored),
        }
    )
    return Plan(answers, limits, code)


def fill_code(values: Mapping[str, Any]) -> str:
    """Return the code of quantities.toml with the values in place of their names in braces."""

    def write(match: re.Match[str]) -> str:
        value = values[match[1]]
        return f"{int(value)}" if isinstance(value, float) and value == math.floor(value) else str(value)

    return re.sub(r"\{(\w+)\}", write, QUANTITIES["code"]["text"]).strip() + "\n"
