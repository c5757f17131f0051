"""Say what limits a run, and by which evidence: counts, configured facts, and ratios far from one."""

from __future__ import annotations

from snippets.optimization.evidence import Call, Evidence, Execution, Node, Stage, observing

# isort: split
# --8<-- [start:imports]
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# --8<-- [end:imports]


# --8<-- [start:finding]
FAR = 3  # a ratio of two times says nothing below: machines differ, and so do two runs on one


@dataclass(frozen=True)
class Finding:
    """A limit of a run: its name, where it is, what shows it, and what lifts it."""

    verdict: str
    where: str
    evidence: str
    change: str


def diagnose(evidence: Evidence) -> list[Finding]:
    """Return what limits the runs that were observed; nothing where no limit stands out."""
    found = list(find_in_calls(evidence))
    for execution in whole_runs(evidence.executions):
        if stuck := list(find_unschedulable(execution)):
            found += stuck
        else:
            found += [*find_idle(execution), *find_skew(execution), *find_spilling(execution)]
            found += find_bound(execution, [finding.where for finding in found])
    found += find_reruns(evidence.executions)
    return found


def report(findings: Iterable[Finding]) -> str:
    """Return the findings as a person reads them."""
    lines = [f"{each.verdict}: {each.where}\n  {each.evidence}\n  -> {each.change}" for each in findings]
    return "\n".join(lines) or "No limit stands out."


# --8<-- [end:finding]


# --8<-- [start:reruns]
def most_rows(execution: Execution) -> int:
    """Return the rows of the stage that had most of them."""
    return max((stage.rows_in for stage in execution.stages), default=0)


def whole_runs(executions: Iterable[Execution]) -> list[Execution]:
    """Return of the runs of the same functions the one with the most rows."""
    seen: set[int] = set()
    chosen = []
    for execution in sorted(executions, key=most_rows, reverse=True):
        functions = {function for stage in execution.stages for function in stage.functions}
        if functions - seen or not functions:
            chosen.append(execution)
        seen |= functions
    return chosen


def find_reruns(executions: Iterable[Execution]) -> Iterator[Finding]:
    """Find functions that ran again over rows that they had processed in another run."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    names: dict[int, str] = {}
    for stage in [stage for execution in executions for stage in execution.stages]:
        for function in stage.functions:
            rows[function].append(stage.rows_in)
            names.setdefault(function, stage.name)
    again = {function: each for function, each in rows.items() if sum(each) >= 1.5 * max(each) > 0}
    if again:
        most = max(again, key=lambda function: sum(again[function]))
        yield Finding(
            "run several times",
            names[most],
            f"It ran {len(again[most])} times over {sum(again[most])} rows, where a run has {max(again[most])}.",
            "materialize() once, or write, and look at what was kept.",
        )


# --8<-- [end:reruns]


# --8<-- [start:calls]
def find_in_calls(evidence: Evidence) -> Iterator[Finding]:
    """Find what probed functions did inside: loads, compilations, threads."""
    by_function: defaultdict[str, defaultdict[int, list[Call]]] = defaultdict(lambda: defaultdict(list))
    for call in sorted(evidence.calls, key=lambda call: call.start):
        by_function[call.function][call.worker].append(call)
    nodes = {name: node for execution in evidence.executions for name, node in execution.nodes.items()}
    for function, workers in by_function.items():
        calls = [call for each in workers.values() for call in each]
        later = [(call, each[:index]) for each in workers.values() for index, call in enumerate(each) if index]
        loads = [call for call, before in later if loads_again(call, before)]
        if len(loads) >= 2 and 2 * len(loads) >= len(later):
            what = ", ".join(sorted({file.rpartition("/")[2] for call in loads for file in call.files}))
            yield Finding(
                "model loaded per batch",
                function,
                f"{len(loads)} of {len(later)} later calls loaded what was there: {what or 'a torch model'}.",
                "Load in __init__ of a class, and give map_batches the class.",
            )
        compiled = [sum(call.graphs > 0 for call in each) for each in workers.values()]
        if max(compiled) > 2:  # torch compiles once for the first shape, and once for any other
            yield Finding(
                "recompilation",
                function,
                f"{max(compiled)} of {len(max(workers.values(), key=len))} calls of a worker compiled.",
                "Pad each batch to one shape.",
            )
        yield from find_threads(function, calls, nodes)


def loads_again(call: Call, before: Iterable[Call]) -> bool:
    """Say whether a call made a model or opened a file that its worker had already."""
    had = [earlier for earlier in before if earlier.files or earlier.parameters]
    files = {file for earlier in had for file in earlier.files}
    return not files.isdisjoint(call.files) or bool(call.parameters)


def find_threads(function: str, calls: list[Call], nodes: dict[str, Node]) -> Iterator[Finding]:
    """Find a node on which the calls at work at once may use more than twice its CPUs."""
    for name in sorted({call.node for call in calls} & set(nodes)):
        here = [call for call in calls if call.node == name]
        steps = sorted([(c.start, c.threads) for c in here] + [(c.end, -c.threads) for c in here])
        running = most = 0
        for _, step in steps:
            running += step
            most = max(most, running)
        if most > 2 * nodes[name].cpus:
            yield Finding(
                "thread over-subscription",
                function,
                f"{most} threads at once on a node of {nodes[name].cpus:g} CPUs.",
                "torch.set_num_threads() to the node's CPUs divided by the workers there.",
            )
            return


# --8<-- [end:calls]


# --8<-- [start:pool]
def capacity(stage: Stage, nodes: Iterable[Node]) -> int:
    """Return how many actors of a pool all nodes together can hold, were they empty."""
    fit = 0
    for node in nodes:
        asked = [(node.cpus, stage.num_cpus), (node.gpus, stage.num_gpus)]
        fit += min((int(has / needs) for has, needs in asked if needs), default=stage.actors)
    return fit


def free_cpus(execution: Execution) -> float:
    """Return the CPUs that the pools leave to tasks."""
    held = sum(
        min(stage.actors, capacity(stage, execution.nodes.values())) * stage.num_cpus for stage in execution.stages
    )
    return sum(node.cpus for node in execution.nodes.values()) - held


def find_unschedulable(execution: Execution) -> Iterator[Finding]:
    """Find a pool that is larger than the cluster, or leaves no CPU to the tasks that feed it."""
    for index, stage in enumerate(execution.stages):
        fit = capacity(stage, execution.nodes.values())
        asks = f"{stage.actors} actors of {stage.num_cpus:g} CPUs and {stage.num_gpus:g} GPUs"
        needs = min((each.num_cpus for each in execution.stages[:index] if not each.actors), default=0)
        if stage.actors > fit:
            yield Finding(
                "pool cannot be scheduled", stage.name, f"{asks}: {fit} fit.", f"A pool of {fit} at the most."
            )
        elif stage.actors and free_cpus(execution) < needs:
            yield Finding(
                "pool cannot be scheduled",
                stage.name,
                f"{asks} leave {free_cpus(execution):g} CPUs to tasks that need {needs:g} each.",
                "One actor fewer, or fewer CPUs an actor.",
            )


def find_idle(execution: Execution) -> Iterator[Finding]:
    """Find pools in which actors got no work, though there is enough time: an actor takes two tasks in advance."""
    for stage in execution.stages:
        actors = max(stage.actors, stage.placed)
        if execution.state != "finished" or actors < 2 or stage.tasks >= 2 * actors:
            continue
        batches = math.ceil(stage.rows_in / (stage.batch_size or 1))
        if batches < 2 * actors:
            yield Finding(
                "too few batches",
                stage.name,
                f"{stage.rows_in} rows make {batches} batches of {stage.batch_size} for {actors} actors.",
                "A smaller batch size or a smaller pool.",
            )
        else:
            yield Finding(
                "too few blocks",
                stage.name,
                f"{stage.blocks_in} blocks made {stage.tasks} tasks for {actors} actors, which take two each.",
                f"repartition() or override_num_blocks: {4 * actors} blocks.",
            )


# --8<-- [end:pool]


# --8<-- [start:skew]
def find_skew(execution: Execution) -> Iterator[Finding]:
    """Find a stage in which one task has more than an even share of a worker, and far more than others."""
    for stage in execution.stages:
        workers = max(stage.actors, stage.placed) or width(stage, execution)
        for unit, sizes in (("rows", stage.task_rows), ("bytes", stage.task_bytes)):
            mean = sum(sizes) / max(len(sizes), 1)
            if len(sizes) >= 2 * workers and max(sizes) >= FAR * mean and max(sizes) * workers > sum(sizes):
                yield Finding(
                    "skew",
                    stage.name,
                    f"One task of {len(sizes)} has {max(sizes)} of {sum(sizes)} {unit}, for {workers:g} workers.",
                    "repartition() to blocks of one size.",
                )
                return


def find_spilling(execution: Execution) -> Iterator[Finding]:
    """Find bytes that the object store had to write to disk during the run."""
    if execution.spilled_bytes and execution.stages:
        largest = max(execution.stages, key=lambda stage: sum(stage.task_bytes))
        yield Finding(
            "spilling",
            largest.name,
            f"{execution.spilled_bytes} bytes went to disk; this stage made {sum(largest.task_bytes)}.",
            "Write instead of materialize(), keep bytes not floats, or set resource_limits.",
        )


# --8<-- [end:skew]


# --8<-- [start:bound]
def width(stage: Stage, execution: Execution) -> float:
    """Return how many of a stage's workers the plan lets run at once."""
    if stage.actors:
        return max(1, min(stage.actors, capacity(stage, execution.nodes.values())))
    cpus = free_cpus(execution)  # a task computes on one, however little of it is reserved
    return max(1, min(cpus, cpus / (stage.num_cpus or 1), stage.max_tasks or cpus, stage.tasks))


def find_bound(execution: Execution, explained: list[str]) -> Iterator[Finding]:
    """Compare what each stage needs alone: its seconds, divided by its workers.

    The model's stage is the last pool, or the one with GPUs. Where a finding names a stage already, its time is
    explained, and nothing is said of it.
    """
    pools = [index for index, stage in enumerate(execution.stages) if stage.actors]
    if not pools:
        return
    at = max(pools, key=lambda index: (execution.stages[index].num_gpus > 0, index))
    model, before = execution.stages[at], execution.stages[:at]
    if not before or not all(stage.tasks for stage in (model, *before)):
        return
    needs = {stage: stage.seconds / width(stage, execution) for stage in (model, *before)}
    slowest = max(before, key=lambda stage: needs[stage])
    free = free_cpus(execution)

    def is_explained(stage: Stage) -> bool:
        return any(where in stage.name for where in explained)

    ratio = needs[slowest] / max(needs[model], 1e-9)
    shown = f"Alone, {slowest.name} needs {{:.0f}} times as long as {model.name}"
    if ratio >= FAR and not is_explained(slowest):
        if not slowest.actors and min(free, slowest.tasks) >= 2 * width(slowest, execution):
            yield Finding(
                "starved actors",
                model.name,
                f"{shown.format(ratio)}: the plan lets {width(slowest, execution):g} of its tasks run at once, "
                f"and {free:g} CPUs are free.",
                "Lift the limit of its tasks: size, or num_cpus.",
            )
        else:
            yield Finding(
                "decode-bound",
                slowest.name,
                f"{shown.format(ratio)}, on {width(slowest, execution):g} CPUs.",
                "A cheaper decode, or more CPUs for the same actors.",
            )
    elif ratio <= 1 / FAR and slowest.seconds and not is_explained(model):
        yield Finding(
            "forward-bound",
            model.name,
            f"Alone, it needs {1 / ratio:.0f} times as long as {slowest.name}.",
            "A cheaper forward pass, or more actors where it has room.",
        )


# --8<-- [end:bound]


def add_options(parser: Any) -> None:
    """Add which pipeline is examined."""
    parser.add_argument("--naive", action="store_true", help="examine the naive pipeline, not the optimized one")


def run(options: Any) -> list[dict[str, Any]]:
    """Return what limits a pipeline of this course, after a run of it."""
    from snippets.fundamentals.actor_pool import classify
    from snippets.fundamentals.dataset import read_images
    from snippets.fundamentals.naive import classify_batch
    from snippets.fundamentals.setup import split_revision

    with observing() as seen:
        if options.naive:
            name, revision = split_revision(options.model)
            images = read_images(options.images, options.limit)
            given = {"model": name, "revision": revision}
            images.map_batches(seen.probe(classify_batch), fn_kwargs=given, batch_size=4).materialize()
        else:
            classify(options.images, options.model, options.limit).materialize()
    return [vars(finding) for finding in diagnose(seen.evidence())]


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.diagnose")
