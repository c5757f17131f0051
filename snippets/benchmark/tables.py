"""The tables of a results file in Markdown, by the names under which the pages include them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snippets.benchmark.breakdown import EXPLAINED, KINDS
from snippets.benchmark.code_lines import lines_of
from snippets.benchmark.contenders import CONTENDERS
from snippets.benchmark.formats import (
    MISSING,
    count,
    either,
    factor,
    gigabytes,
    median,
    percent,
    rate,
    seconds,
    with_range,
)
from snippets.benchmark.ladder import long_ratio, summarize_ladder
from snippets.benchmark.ladder_runs import ALL_RUNGS
from snippets.benchmark.numbers import costs_by_name, small_batches_factor
from snippets.benchmark.stepwise import summarize_steps
from snippets.benchmark.summary import spread
from snippets.benchmark.timeline import KINDS as SPANS
from snippets.benchmark.timeline import RUNS, busy_seconds
from snippets.fundamentals.stepwise import STEPS
from snippets.optimization.ladder import RUNGS

# What the two values of a row of `costs.measure` are.
COMPARED = {
    "load for": ("without", "with"),
    "one at a time": ("batched", "one at a time"),
    "one block": ("one block", "eight blocks"),
    "one actor": ("one actor", "an actor a core"),
    "threads": ("one process of all threads", "a process a core"),
    "memory": ("given back", "kept"),
    "decode": ("decode", "forward"),
}


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table; all columns but the first, of `words`, are aligned to the right."""
    lines = [head, [*["---"] * words, *["---:"] * (len(head) - words)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def summary_table(results: dict[str, Any]) -> str:
    """Return the contenders: speed, over naive and over the bound, start-up, loads and memory."""
    rows = [
        [
            CONTENDERS[name].title,
            with_range(found["steady_rows_per_second"], rate),
            median(found["over_naive"], factor),
            *(_of_pool(name, found[key]) for key in ("over_bound", "over_other_bound")),
            median(found["start_up_seconds"], seconds),
            median(found["model_loads"], count),
            median(found["peak_memory_bytes"], gigabytes),
        ]
        for name, found in results["summary"]["contenders"].items()
    ]
    bounds = ["over its bound, one process", "over its bound, a process a core"]
    head = ["pipeline", "images/s in steady state", "over naive", *bounds]
    return format_table([*head, "start-up, s", "model loads", "peak memory, GB"], rows)


def _of_pool(name: str, ratio: dict[str, Any] | None) -> str:
    return median(ratio, factor) if CONTENDERS[name].is_pool else ""


def short_table(results: dict[str, Any]) -> str:
    """Return the contenders with their speed alone, as the README shows them."""
    rows = [
        [
            CONTENDERS[name].title,
            median(found["steady_rows_per_second"], rate),
            median(found["over_naive"], factor),
        ]
        for name, found in results["summary"]["contenders"].items()
    ]
    return format_table(["pipeline", "images/s in steady state", "over naive"], rows)


def naive_table(results: dict[str, Any]) -> str:
    """Return what was counted in the naive run."""
    found = results["summary"]["contenders"]["naive"]
    keys = {
        "batches": count,
        "model_loads": count,
        "seconds": seconds,
        "start_up_seconds": seconds,
        "steady_rows_per_second": rate,
    }
    row = [count(results["images"]["naive"]), *(median(found[key], write) for key, write in keys.items())]
    head = ["images", "batches", "model loads", "seconds", "of them start-up", "images/s in steady state"]
    return format_table(head, [row])


def limits_table(results: dict[str, Any]) -> str:
    """Return the bare forward rates, the rate of decoding, and the bounds that follow."""
    summary = results["summary"]
    dtypes = list(summary["forward"])
    rows = []
    for key, title in (("forward", "bare forward passes"), ("bound", "bound 1 / (1/f + d/cores)")):
        for arrangement, how in (
            ("one_process", "one process, all cores"),
            ("process_per_core", "a process a core"),
        ):
            cells = [with_range(summary[key][dtype][arrangement], rate) for dtype in dtypes]
            rows.append([f"{title}, {how}", *cells])
    decode = with_range(summary["decode_per_core"], rate)
    rows.insert(2, ["decode and resize, one core", *[decode] * len(dtypes)])
    return format_table(["images/s", *dtypes], rows)


def costs_table(results: dict[str, Any]) -> str:
    """Return the costs, each measured alone."""
    rows = []
    for cost, row in costs_by_name(results).items():
        names = next((names for start, names in COMPARED.items() if cost.startswith(start)), ("less", "more"))
        pair = [
            f"{name}: {_value(row[key], row['unit'])} {row['unit']}"
            for name, key in zip(names, ("less", "more"), strict=True)
        ]
        rows.append([cost, *pair, with_range(spread(row["factors"]), factor)])
    return format_table(["what is compared", "first", "second", "second over first"], rows)


def _value(value: float, unit: str) -> str:
    if unit == "images/s":
        return rate(value)
    return f"{value:.3g}"


def anti_patterns_table(results: dict[str, Any]) -> str:
    """Return the four habits that older guides name, with the factors measured here."""
    costs = costs_by_name(results)

    def of(cost: str) -> str:
        return factor(costs[cost]["factor"]) if cost in costs else MISSING

    on_cpu = results["provenance"]["hardware"]["gpu"] is None
    rows = [
        [
            "Model loading per batch",
            "the load is paid with every batch",
            "a load before each batch of 4",
            of("load for each batch of 4"),
        ],
        [
            "Small batch sizes",
            "few images share the cost of a call",
            "batches of 4 instead of 64",
            either(small_batches_factor(costs), factor),
        ],
        [
            "Sequential processing",
            "the device waits between images",
            "one image instead of 16",
            of("one at a time instead of batches of 16"),
        ],
        [
            "Low concurrency",
            "other cores or cards have no work",
            "one actor at work instead of one a core",
            of("one actor at work instead of one a core"),
        ],
    ]
    head = ["anti-pattern", "what it does", "compared here"]
    if on_cpu:
        unknown = "not measured on this hardware"
        rows = [[*row, unknown] for row in rows]
        return format_table([*head, "factor on this CPU", "on a GPU"], rows, words=3)
    return format_table([*head, "factor on this GPU"], rows, words=3)


def breakdown_table(results: dict[str, Any]) -> str:
    """Return the shares of the naive run's time."""
    shares = results["summary"]["breakdown"]
    rows = [[title, f"{percent(shares[kind])} %"] for kind, title in KINDS.items()]
    explained = ", ".join(KINDS[kind].split(",")[0].lower() for kind in EXPLAINED)
    rows.append([f"**Explained** ({explained})", f"**{percent(results['summary']['explained'])} %**"])
    return format_table(["time of both lanes", "share"], rows)


def provenance_table(results: dict[str, Any], name: str, digest: str) -> str:
    """Return where the numbers come from; `name` and `digest` are those of the results file."""
    found = results["provenance"]
    hardware = found["hardware"]
    again = results.get("costs_provenance")
    titles = {name: rung.title for name, rung in ALL_RUNGS.items()}
    titles |= {name: step.title for name, step in STEPS.items()}
    titles |= {name: contender.title for name, contender in CONTENDERS.items()}
    images = "; ".join(f"{titles[name]}: {number}" for name, number in results["images"].items())
    rows = [
        ["date", found["date"]],
        ["commit", _commit(found)],
        ["command", f"`{found['command']}`"],
        *(
            [["costs measured again", f"{again['date']}, commit {_commit(again)}, `{again['command']}`"]]
            if again
            else []
        ),
        ["rounds", count(len(results["rounds"])) + ("" if results["complete"] else ", then interrupted")],
        ["images a run", images],
        ["images, checkpoint", f"`{found['images']}`, `{found['model']}`"],
        ["processor", f"{hardware['processor']}, {hardware['cores']} cores"],
        ["instruction sets", ", ".join(hardware["instruction_sets"]) or "none that matter"],
        ["GPU", hardware["gpu"] or "none"],
        ["memory", f"{hardware['memory_bytes'] / 2**30:.1f} GiB"],
        ["system", found["system"]],
        ["versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())],
        ["results file", f"`{name}`, SHA-256 `{digest[:16]}\u2026`"],
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [["", ""], ["---", "---"], *rows])


def provenance_line(results: dict[str, Any]) -> str:
    """Return where the numbers come from in a sentence."""
    found, rounds = results["provenance"], len(results["rounds"])
    hardware, versions = found["hardware"], found["versions"]
    times = "One round" if rounds == 1 else f"Medians of {rounds} rounds"
    stacks = f"Ray {versions['ray']}, PyTorch {versions['torch']}, transformers {versions['transformers']}"
    return f"{times} on {_device(hardware)}, {found['date'][:10]}, commit {_commit(found)}, {stacks}."


def _device(hardware: dict[str, Any]) -> str:
    return hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores, no GPU"


def _commit(found: dict[str, Any]) -> str:
    if found["commit"] is None:
        return "unknown"
    return f"`{found['commit'][:12]}`" + (" with uncommitted changes" if found["uncommitted_changes"] else "")


def timeline_table(timeline: dict[str, Any]) -> str:
    """Return the seconds that each worker of the timeline was busy, by kind, and those in which it was not."""
    head = ["worker", *SPANS.values(), "Waiting"]
    rows = []
    for name, run in timeline["runs"].items():
        for number, lane in enumerate(run["lanes"], 1):
            busy = busy_seconds(lane)
            waiting = run["seconds"] - sum(busy.values())
            cells = [f"{found:.1f} s" if found else "" for found in (*busy.values(), waiting)]
            rows.append([f"{RUNS[name]}, {number}", *cells])
    return format_table(head, rows)


def timeline_line(timeline: dict[str, Any]) -> str:
    """Return where the timeline comes from, as a sentence."""
    found = timeline["provenance"]
    device, images = _device(found["hardware"]), timeline["images"]
    return f"Both runs took the same {images} images on {device}, {found['date'][:10]}, commit {_commit(found)}."


def steps_table(results: dict[str, Any]) -> str:
    """Return the steps: speed, over the step before and over naive, start-up, loads, memory and agreement."""
    rows = [
        [
            STEPS[name].title,
            with_range(found["steady_rows_per_second"], rate),
            with_range(found["gain"], factor) if name != "naive" else "",
            median(found["over_naive"], factor),
            median(found["start_up_seconds"], seconds),
            median(found["model_loads"], count),
            median(found["peak_memory_bytes"], gigabytes),
            median(found["agreement"], percent),
        ]
        for name, found in summarize_steps(results).items()
    ]
    head = ["step", "images/s in steady state", "over the step before", "over naive", "start-up, s", "model loads"]
    return format_table([*head, "peak memory, GB", "labels equal to naive's, %"], rows)


def steps_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers of the steps as the pages show them, by name; `not measured` where there is none."""
    summary, found = summarize_steps(results), {}
    for name in STEPS:
        of = summary.get(name, {})
        found[f"{name}-gain"] = median(of.get("gain"), factor)
        found[f"{name}-over-naive"] = median(of.get("over_naive"), factor)
        found[f"{name}-agreement"] = median(of.get("agreement"), percent)
    return found


def ladder_table(results: dict[str, Any]) -> str:
    """Return the rungs: speed, over the rung before, over naive and over the bound, start-up and memory."""
    rows = [
        [
            ALL_RUNGS[name].title,
            with_range(found["steady_rows_per_second"], rate),
            median(found["end_to_end"], rate),
            with_range(found["gain"], factor) if name != "naive" else "",
            median(found["over_naive"], factor),
            with_range(found["over_bound"], factor),
            median(found["start_up_seconds"], seconds),
            median(found["peak_memory_bytes"], gigabytes),
        ]
        for name, found in summarize_ladder(results).items()
    ]
    head = ["rung", "images/s in steady state", "images/s end to end", "over the rung before", "over naive"]
    return format_table([*head, "over its bound", "start-up, s", "peak memory, GB"], rows)


def ladder_quality_table(results: dict[str, Any]) -> str:
    """Return what the rungs answer, against the reference, their code, and the packages beyond Part 1's."""
    rows = []
    for name, found in summarize_ladder(results).items():
        errors = [median(found[key], lambda value: f"{value:.4f}") for key in ("score_error", "score_error_max")]
        accuracy = f"{median(found['accuracy'], percent)}" if found["accuracy"] else MISSING
        rung = ALL_RUNGS[name]
        cells = [rung.title, median(found["agreement"], percent), *errors, accuracy]
        rows.append([*cells, str(lines_of(name)), ", ".join(rung.packages), ", ".join(rung.build_packages)])
    head = ["rung", "labels equal to the reference's, %", "score error, median", "score error, largest"]
    return format_table([*head, "accuracy, %", "lines of code", "packages to run", "and to build"], rows)


def ladder_limits_table(results: dict[str, Any]) -> str:
    """Return the bare rates of the engines, and of decoding on one core."""
    rounds = results["rounds"]
    rows = [
        [f"forward passes, {name}", with_range(spread([one["limits"]["forward"][name] for one in rounds]), rate)]
        for name in rounds[0]["limits"]["forward"]
    ]
    rows += [
        [
            f"decoding on one core, {name}",
            with_range(spread([1 / one["limits"]["decode"][name] for one in rounds]), rate),
        ]
        for name in rounds[0]["limits"]["decode"]
    ]
    return format_table(["alone", "images/s"], rows)


def gpu_ladder(results: dict[str, Any] | None) -> str:
    """Return what a GPU's rungs reached, answered and were held against; without results, who can measure them."""
    if results is None:
        command = "python -m snippets.benchmark.ladder --long"
        return f"Never by us: no machine with a GPU has measured these rungs yet. `{command}` does, on one."
    parts = (ladder_table(results), ladder_quality_table(results), ladder_limits_table(results))
    return "\n\n".join([*parts, provenance_line(results)])


def ladder_numbers(results: dict[str, Any]) -> dict[str, str]:
    """Return the numbers of the rungs as the pages show them, by name; `not measured` where there is none."""
    summary, found = summarize_ladder(results), {}
    for name in RUNGS:
        of = summary.get(name, {})
        for key in ("gain", "over_naive", "over_bound"):
            found[f"{name}-{key.replace('_', '-')}"] = median(of.get(key), factor)
        for key in ("agreement", "accuracy"):
            found[f"{name}-{key}"] = median(of.get(key), percent)
        found[f"{name}-start-up"] = median(of.get("start_up_seconds"), seconds)
        found[f"{name}-steady"] = median(of.get("steady_rows_per_second"), rate)
    for name, built in results["builds"].items():
        found[f"{name}-build"] = either(built["seconds"], seconds)
        found[f"{name}-megabytes"] = f"{built['bytes'] / 1e6:.0f}"
    for name, size in results["packages"].items():
        found[f"{name}-package-megabytes"] = f"{size / 1e6:.0f}"
    found["long-images"] = count(results["long"]["images"]) if results["long"] else MISSING
    found["long-over-naive"] = either(long_ratio(results), factor)
    found["reference-accuracy"] = either(results["reference"]["accuracy"], percent)
    found["calibration-images"] = count(results["calibration"]["images"])
    found["rounds"] = count(len(results["rounds"]))
    return found


def parts_rows(docs: Path) -> str:
    """Return the rows of the overview's table of parts, with the reading time of those that there are."""
    parts = {
        "fundamentals": ("Part 1: Fundamentals", "from the naive pipeline to a pool near the limit"),
        "optimization": ("Part 2: Optimization", "how to make it faster, and safe to leave alone"),
        "architecture": ("Part 3: Architecture", "why Ray Data behaves as it does"),
    }
    reading = (docs / "assets" / "reference" / "reading.md").read_text("utf-8")
    rows = []
    for folder, (title, covers) in parts.items():
        if minutes := [int(found) for found in re.findall(rf"start:{folder}-.*\n(\d+) min", reading)]:
            rows.append(f"| [{title}]({folder}/index.md) | {covers} | {sum(minutes)} min |")
        else:
            rows.append(f"| {title} | {covers} | being written |")
    return "\n".join(rows)
