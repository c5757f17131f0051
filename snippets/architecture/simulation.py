"""A cluster of a thousand nodes, simulated: who waits for whom, where each design stops scaling, what it costs."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

from snippets.architecture.running import cost
from snippets.architecture.sizing import check, check_counts
from snippets.command import Parser, fail, format_report, positive

# isort: split
# --8<-- [start:imports]
import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

# --8<-- [end:imports]

ASSUMPTIONS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("simulation.toml").read_text("utf-8"))[
    "assumption"
]
DEFAULTS: dict[str, float] = {given["name"]: given["value"] for given in ASSUMPTIONS}
MEASURED = Path(__file__).resolve().parents[2] / "docs" / "assets" / "results" / "scaling.json"
CALIBRATED = ("driver_task_s", "handover_s")


# --8<-- [start:machine]
@dataclass(frozen=True)
class Machine:
    """A node: seconds a block to fetch and decode it, and in its actor; when it joins, and when it goes away."""

    forward_s: float
    fetch_s: float = 0
    joins_s: float = 0
    leaves_s: float = math.inf


@dataclass(frozen=True)
class Cluster:
    """Nodes, and what they share: the seconds a block of their driver and of the storage.

    Node i belongs to job i modulo `jobs`, each of which has a driver and its share of the blocks. A node has at
    most `in_flight` blocks, that at work among them: Ray gives an actor two tasks. `spread` is the standard
    deviation of an actor's time over its mean. A node is taken away `preemptions` times an hour, at random, with
    the block at work; `recovery_s` later another takes its place.
    """

    machines: Sequence[Machine]
    driver_s: float
    storage_s: float = 0
    jobs: int = 1
    in_flight: int = 2
    spread: float = 0
    preemptions: float = 0
    recovery_s: float = 0


@dataclass
class Outcome:
    """What came out: seconds until the last block, blocks done, preemptions, and seconds that are worked."""

    seconds: float = 0
    blocks: int = 0
    preemptions: int = 0
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("driver", "storage"), 0.0))


# --8<-- [end:machine]


# --8<-- [start:simulate]
PIECES = 64  # at the least, into which a node's share is cut
Steps = Generator[simpy.Event, Any, None]


@dataclass
class Job:
    """Blocks that nobody has taken, and the driver that hands them out one after the other."""

    left: int
    nodes: int
    driver: simpy.Resource
    given_back: simpy.Event


@dataclass
class Node:
    """A node's room for blocks, and its two queues: what it fetches next, and what its actor takes next."""

    machine: Machine
    job: Job
    room: simpy.Container
    handed: simpy.Store
    fetched: simpy.Store
    is_gone: bool = False
    size: int = 1  # of what it took last


class Simulation:
    """Three processes a node: blocks are handed out, fetched, and put through the model, each while others wait.

    A billion images are too many to follow one by one. So a node takes several blocks at a time: one at first,
    twice as many each time, never more than a part of its share, and fewer again towards the end, down to one.
    Their times are those of as many single blocks, so that rates, queues and the tail stay what they are.
    """

    def __init__(self, cluster: Cluster, blocks: int, seed: int = 0) -> None:
        check_counts(blocks=blocks, jobs=cluster.jobs, nodes=len(cluster.machines))
        self.cluster, self.blocks, self.chance = cluster, blocks, random.Random(seed)
        self.env = simpy.Environment()
        self.storage, self.done, self.outcome = simpy.Resource(self.env), self.env.event(), Outcome()
        jobs = [
            Job(
                left=len(range(index, blocks, cluster.jobs)),
                nodes=len(range(index, len(cluster.machines), cluster.jobs)),
                driver=simpy.Resource(self.env),
                given_back=self.env.event(),
            )
            for index in range(cluster.jobs)
        ]
        self.most = max(1, blocks // (PIECES * len(cluster.machines)))
        for index, machine in enumerate(cluster.machines):
            room = simpy.Container(self.env, init=cluster.in_flight)
            handed, fetched = simpy.Store(self.env), simpy.Store(self.env)
            node = Node(machine, jobs[index % cluster.jobs], room, handed, fetched)
            for process in (self.hand_out, self.fetch, self.forward):
                self.env.process(process(node))

    def run(self) -> Outcome:
        """Return what came out. Raises `RuntimeError` where no node is left and blocks are."""
        try:
            self.env.run(until=self.done)
        except RuntimeError:
            raise RuntimeError(f"{self.blocks - self.outcome.blocks} blocks are left, and no node.") from None
        self.outcome.seconds = self.env.now
        return self.outcome

    def hand_out(self, node: Node) -> Steps:
        """Take blocks as long as there are any, wait for the driver's turn, and queue them at the node."""
        yield self.env.timeout(node.machine.joins_s)
        while not node.is_gone:
            yield node.room.get(1)
            while not node.job.left:
                yield node.job.given_back
            even = node.job.left // (4 * node.job.nodes)
            count = max(1, min(even, node.size, self.most))
            node.size, node.job.left = 2 * count, node.job.left - count
            yield from self.serve(node.job.driver, "driver", count * self.cluster.driver_s)
            node.handed.put(count)

    def fetch(self, node: Node) -> Steps:
        """Read from the storage that all share, then over the node's network and through its CPUs."""
        while True:
            count = yield node.handed.get()
            yield from self.serve(self.storage, "storage", count * self.cluster.storage_s)
            if node.machine.fetch_s:
                yield self.env.timeout(count * node.machine.fetch_s)
            node.fetched.put(count)

    def serve(self, resource: simpy.Resource, name: str, seconds: float) -> Steps:
        """Wait for a turn, and take it for so long."""
        if seconds:
            with resource.request() as turn:
                yield turn
                yield self.env.timeout(seconds)
            self.outcome.busy_s[name] += seconds

    def forward(self, node: Node) -> Steps:
        """Put blocks through the model. What a node that goes had begun is begun again."""
        goes_s = self.env.now + self.lifetime()
        while True:
            left = yield node.fetched.get()
            while left:
                seconds = left * node.machine.forward_s * self.noise(left)
                ends_s = self.env.now + seconds
                stop_s = max(self.env.now, min(goes_s, node.machine.leaves_s))
                if ends_s <= stop_s:
                    yield self.env.timeout(seconds)
                    self.count(left)
                    break
                done = int(left * (stop_s - self.env.now) / seconds)  # whole blocks: the last one is lost
                yield self.env.timeout(stop_s - self.env.now)
                self.count(done)
                left -= done
                if stop_s == node.machine.leaves_s:
                    node.is_gone = True
                    yield from self.give_back(node, left)
                self.outcome.preemptions += 1
                yield self.env.timeout(self.cluster.recovery_s)
                goes_s = self.env.now + self.lifetime()
            node.room.put(1)

    def give_back(self, node: Node, left: int) -> Steps:
        """Return what a node that is gone had, and whatever still reaches it, to those that wait for blocks."""
        while True:
            node.job.left += left
            node.job.given_back.succeed()
            node.job.given_back = self.env.event()
            left = yield node.fetched.get()

    def count(self, blocks: int) -> None:
        """Note that blocks are done."""
        self.outcome.blocks += blocks
        if self.outcome.blocks == self.blocks and not self.done.triggered:
            self.done.succeed()

    def noise(self, blocks: int) -> float:
        """Return the mean of as many gamma-distributed times of mean 1, whose sum is gamma-distributed too."""
        if not self.cluster.spread:
            return 1.0
        shape = blocks / self.cluster.spread**2
        return self.chance.gammavariate(shape, 1 / shape)

    def lifetime(self) -> float:
        """Return the seconds until a node is taken away: exponential, as nothing wears out."""
        return self.chance.expovariate(self.cluster.preemptions / 3600) if self.cluster.preemptions else math.inf


def simulate(cluster: Cluster, blocks: int, seed: int = 0) -> Outcome:
    """Return what comes out when a cluster works through so many blocks; the same for the same seed."""
    return Simulation(cluster, blocks, seed).run()


# --8<-- [end:simulate]


# --8<-- [start:designs]
DESIGNS: dict[str, dict[str, float]] = {  # each with what those before it have
    "files, listed by the driver": {},
    "a manifest": {"listed": 0},
    "larger blocks": {"batches_a_block": 8},
    "shards": {"images_a_get": 1000},
    "several jobs": {"jobs": 16},
    "more CPUs a GPU": {"cpus": 8},
}


def design(name: str) -> dict[str, float]:
    """Return what a design and those before it change. Raises `ValueError` for a name that is none."""
    if name not in DESIGNS:
        raise ValueError(f"There is no design {name!r}, only: {', '.join(DESIGNS)}.")
    changes: dict[str, float] = {}
    for each, change in DESIGNS.items():
        changes |= change
        if each == name:
            break
    return changes


# --8<-- [end:designs]


@dataclass(frozen=True)
class Answer:
    """A run at scale: `seconds` with listing and start-up, `limit` that decided it, and what it costs."""

    nodes: int
    seconds: float
    cost: float
    limit: str
    preemptions: int
    shares: dict[str, float]  # of the time in which listing, driver, storage, decoding and GPUs are busy


def accept(changes: Mapping[str, float], calibration: Mapping[str, float]) -> dict[str, float]:
    """Return all quantities by name. Raises `ValueError` for a name that there is not, or an impossible value."""
    known = {**DEFAULTS, **calibration}
    for name in changes:
        if name not in {*known, *CALIBRATED}:
            raise ValueError(f"There is no assumption {name!r}, only: {', '.join(known)}.")
    values = {**known, **changes}
    if missing := [name for name in CALIBRATED if name not in values]:
        raise ValueError(f"Not measured yet: {', '.join(missing)}. Measure or --set each.")
    may_be_zero = {"listed", "spread", "slow_nodes", "preemptions", "recovery_s", "start_up_s", *CALIBRATED}
    for name, value in values.items():
        check(name, value, may_equal=name in may_be_zero)
    check_counts(
        **{name: values[name] for name in ("images", "batch_size", "batches_a_block", "jobs", "prefixes")}
    )
    if values["slow_nodes"] > 1 or values["listed"] not in (0, 1):
        raise ValueError("slow_nodes is a share of at most 1, and listed is 0 or 1.")
    return values


def build(nodes: int, of: Mapping[str, float]) -> tuple[Cluster, int]:
    """Return the cluster, and the number of blocks, of quantities by name (see simulation.toml)."""
    check_counts(nodes=nodes)
    if of["jobs"] > nodes:
        raise ValueError(f"{of['jobs']:g} jobs need as many nodes, and there are {nodes}.")
    rows = of["batch_size"] * of["batches_a_block"]
    blocks = math.ceil(of["images"] / rows)
    image_s = max(of["decode_ms"] / 1e3 / of["cpus"], of["image_kb"] * 1e3 * 8 / (of["network_gbit"] * 1e9))
    forward_s = rows / of["forward_rate"] + of["handover_s"]
    slow = {index for index in range(nodes) if (index + 1) * of["slow_nodes"] % 1 < of["slow_nodes"]}
    machines = [
        Machine(forward_s * factor, rows * image_s * factor, of["start_up_s"])
        for factor in (2 if index in slow else 1 for index in range(nodes))
    ]
    cluster = Cluster(
        machines,
        driver_s=of["tasks_a_block"] * of["driver_task_s"],
        storage_s=rows / of["images_a_get"] / (of["gets_a_prefix"] * of["prefixes"]),
        jobs=int(of["jobs"]),
        in_flight=4,  # two of the actor, and as many that are read and decoded meanwhile
        spread=of["spread"],
        preemptions=of["preemptions"],
        recovery_s=of["recovery_s"],
    )
    return cluster, blocks


def answer(nodes: int, changes: Mapping[str, float], calibration: Mapping[str, float], seed: int = 0) -> Answer:
    """Return what so many nodes take for all images, with changes of the assumptions, by name.

    The nodes are paid for while the driver lists, as it does in one job with them.
    """
    of = accept(changes, calibration)
    cluster, blocks = build(nodes, of)
    found = simulate(cluster, blocks, seed)
    listing_s = of["listed"] * of["listing_ms"] / 1e3 * math.ceil(of["images"] / of["keys_a_listing"])
    seconds = listing_s + found.seconds
    shares = {
        "listing": listing_s / seconds,
        "driver": found.busy_s["driver"] / cluster.jobs / seconds,
        "storage": found.busy_s["storage"] / seconds,
        "decode": blocks / sum(1 / machine.fetch_s for machine in cluster.machines) / seconds,
        "forward": blocks / sum(1 / machine.forward_s for machine in cluster.machines) / seconds,
    }
    price = of["gpu_price"] + of["cpu_price"] * of["cpus"]
    limit = max(shares, key=lambda name: shares[name])
    return Answer(nodes, seconds, cost(nodes, seconds, price), limit, found.preemptions, shares)


def sweep(
    changes: Mapping[str, float], calibration: Mapping[str, float], most: int = 1024, seed: int = 0
) -> list[Answer]:
    """Return the answers for 1, 2, 4 ... nodes, from as many as there are jobs."""
    of = accept(changes, calibration)
    counts = [2**power for power in range(most.bit_length()) if of["jobs"] <= 2**power <= most]
    return [answer(nodes, changes, calibration, seed) for nodes in counts]


def efficiency(of: Answer, first: Answer) -> float:
    """Return the speed against the smallest cluster, over how many times as many nodes there are."""
    return first.seconds * first.nodes / (of.seconds * of.nodes)


def stops_at(answers: Sequence[Answer], least: float = 0.9) -> Answer | None:
    """Return the first answer whose efficiency is below `least`; None where all scale."""
    return next((each for each in answers if efficiency(each, answers[0]) < least), None)


def load_calibration(path: Path = MEASURED) -> dict[str, float]:
    """Return what was measured of the driver and of handing over; nothing where there is no results file."""
    if not path.exists():
        return {}
    calibration: dict[str, float] = json.loads(path.read_text("utf-8"))["calibration"]
    return {name: calibration[name] for name in CALIBRATED}


def parse_change(text: str) -> tuple[str, float]:
    """Parse `name=value`. Raises `ValueError`."""
    name, _, value = text.partition("=")
    return name, float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print a row for each number of nodes; return 0, or 2 for input that cannot be used."""
    parser = Parser(prog="python -m snippets.architecture.simulation", description=__doc__)
    add = parser.add_argument
    add("--nodes", type=positive, nargs="+", default=[1, 10, 100, 1000], help="default: 1 10 100 1000")
    add("--design", default=next(iter(DESIGNS)), help=f"one of: {'; '.join(DESIGNS)} (default: the first)")
    add("--set", type=parse_change, action="append", default=[], metavar="NAME=VALUE", help="of simulation.toml")
    add("--seed", type=positive, default=1, help="of what happens at random (default: 1)")
    add("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args(arguments)
    try:
        changes = {**design(options.design), **dict(options.set)}
        found = [answer(nodes, changes, load_calibration(), options.seed) for nodes in options.nodes]
    except ValueError as error:
        return fail(str(error))
    rows = [
        {
            "nodes": each.nodes,
            "hours": each.seconds / 3600,
            "dollars": each.cost,
            "limit": each.limit,
            "efficiency": efficiency(each, found[0]),
            **{f"{name} busy": share for name, share in each.shares.items()},
        }
        for each in found
    ]
    sys.stdout.write(json.dumps(rows) + "\n" if options.json else format_report({}, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
