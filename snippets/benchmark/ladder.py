"""The ladder from naive to the limit of a processor or a GPU: its rungs round by round, beside their bounds."""

from __future__ import annotations

import importlib.metadata
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from snippets.benchmark.harness import (
    FORWARD_SECONDS,
    LIMITS,
    WARM_UP_IMAGES,
    Plan,
    agreement,
    rotate,
    say,
    spread_evenly,
)
from snippets.benchmark.ladder_runs import ALL_RUNGS, DECODERS, REFERENCE
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import Hardware, read_hardware, read_provenance
from snippets.benchmark.results import (
    FIELDS,
    FOLDER,
    NUMBER,
    SCHEMA,
    check_fields,
    check_rounds,
    load_json,
    write_json,
)
from snippets.benchmark.summary import MEASURED, Round, Spread, bound, ratio, spread
from snippets.checkpoint import check_checkpoint
from snippets.command import positive
from snippets.optimization.gpu import DEVICE_ENGINES, GPU_RUNGS
from snippets.optimization.ladder import RUNGS
from snippets.samples import images_and_model

LADDER = FOLDER / "ladder.json"
GPU_LADDER = FOLDER / "ladder-gpu.json"
LONG_IMAGES = 2000
LONG_RUNG = "openvino-int8"  # beside naive, and where it was not measured the last
CALIBRATION_IMAGES, DECODED_IMAGES = 64, 64
# How many times the limit a rung gets: fewer images for the slower ones, so that each is at work for seconds.
SHARES = {"naive": 1 / 8, "kept": 1 / 8, "batched": 1 / 4, "memory": 1 / 4, "decoded": 1 / 4, "pool": 2 / 3}
SHARES |= {"onnxruntime": 4 / 3, "openvino": 4 / 3, "openvino-bfloat16": 8 / 3}
SHARES |= {"openvino-int8": 4, "cheap-decode": 4}
SHARES |= {name: 64 for name in GPU_RUNGS if name != "naive"}
LADDER_FIELDS: dict[str, Any] = {
    **{key: FIELDS[key] for key in ("schema", "complete", "images", "provenance", "rounds")},
    "calibration": {"images": int},
    "builds": dict,
    "packages": dict,
    "reference": {"step": str, "images": int, "accuracy": (*NUMBER, type(None))},
    "long": (dict, type(None)),
}
LADDER_ROUND = {
    "order": list,
    "runs": {"naive": dict},
    "agreement": {"naive": dict},
    "score_error": dict,
    "limits": {"cores": int, "decode": {name: NUMBER for name in DECODERS}, "forward": {"eager": NUMBER}},
}
ask_ladder = partial(ask, module="snippets.benchmark.ladder_runs")


@dataclass
class LadderPlan(Plan):
    """What to measure: rungs in place of contenders, with the images that calibrate, which no rung gets.

    Without a `calibration_source`, every other image of the source calibrates, and the rest are measured.
    """

    ask: Callable[[dict[str, Any]], dict[str, Any]] = ask_ladder
    calibration_source: str | None = None
    folder: str = ""  # of the engines
    calibration: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """List the images once, and those that calibrate. Raises what `list_images` raises."""
        super().__post_init__()
        if self.calibration_source is None:
            others, self.paths = self.paths[1::2], self.paths[::2]
        else:
            others = Plan(self.calibration_source, self.model, [], 1, 1).paths
        self.calibration = spread_evenly(others, 8 if self.quick else CALIBRATION_IMAGES)

    def images(self, name: str) -> list[str]:
        """Return the images of a rung, spread evenly over the source; where it has too few, the same again."""
        count = self.limit if self.quick else max(1, round(self.limit * SHARES[name]))
        return repeat(spread_evenly(self.paths, count), count)

    def common(self) -> dict[str, Any]:
        """Return what all requests need: the checkpoint, where engines are, and what calibrates them."""
        return {"model": self.model, "calibration": self.calibration, "folder": self.folder}


def repeat(paths: list[str], count: int) -> list[str]:
    """Return `count` of the paths, from the first to the last and again."""
    return (paths * -(-count // len(paths)))[:count]


def rungs_for(hardware: Hardware) -> list[str]:
    """Return the names of the rungs for a GPU, or of those whose precision the processor computes by itself."""
    if hardware.gpu:
        return list(GPU_RUNGS)
    has_bfloat16 = hardware.has_bfloat16
    return [name for name, rung in RUNGS.items() if rung.precision != "bfloat16" or has_bfloat16]


def calibration_beside(source: str) -> str | None:
    """Return the folder of held-out images beside the samples, or None where there is none."""
    folder = Path(source).parent / "held_out"
    return str(folder) if "://" not in source and folder.is_dir() else None


def measure_ladder(
    plan: LadderPlan, provenance: dict[str, Any], output: Path, is_long: bool = False
) -> dict[str, Any]:
    """Run the rungs of a plan in turn, write the file after each round, and return what is in it.

    Whatever ends the measuring early, the rounds that were finished are in the file, with `complete` false.
    """
    builds, packages = {}, packages_of(plan.contenders)
    for artefact in ("float32", "int8") if packages else ():
        say(f"build: {artefact}")
        builds[artefact] = plan.ask({"kind": "build", "artefact": artefact, **plan.common()})
    say("reference")
    compared = sorted({path for name in plan.contenders for path in plan.images(name)})
    reference = plan.ask({"kind": "reference", "source": compared, "model": plan.model})
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "images": {name: len(plan.images(name)) for name in plan.contenders},
        "calibration": {"images": len(plan.calibration)},
        "builds": builds,
        "packages": {name: package_bytes(name) for name in packages},
        "reference": {"step": REFERENCE, "images": len(compared), "accuracy": reference["run"]["accuracy"]},
        "provenance": provenance,
        "rounds": [],
        "long": None,
    }
    if not plan.quick:
        for name in (plan.contenders[0], plan.contenders[-1]):
            say(f"warm-up: {name}")
            _ask_rung(plan, name, spread_evenly(plan.paths, WARM_UP_IMAGES))
    for index in range(plan.rounds):
        order = rotate([*plan.contenders, LIMITS], index)
        answers: dict[str, Any] = {}
        for name in order:
            say(f"round {index + 1} of {plan.rounds}: {name}")
            answers[name] = _ask_limits(plan) if name == LIMITS else _ask_rung(plan, name, plan.images(name))
        found = {name: answers[name] for name in plan.contenders}
        measured["rounds"].append(
            {
                "order": order,
                "runs": {name: answer["run"] for name, answer in found.items()},
                "limits": answers[LIMITS],
                "agreement": {
                    name: agreement(answer["labels"], reference["labels"]) for name, answer in found.items()
                },
                "score_error": {
                    name: score_error(answer["scores"], reference["scores"]) for name, answer in found.items()
                },
            }
        )
        measured["complete"] = index + 1 == plan.rounds and not is_long
        check_ladder(measured)
        write_json(output, measured)
    if is_long:
        measured["long"] = measure_long(plan)
        measured["complete"] = True
        write_json(output, measured)
    return measured


def measure_long(plan: LadderPlan) -> dict[str, Any]:
    """Return the runs of naive and of a fast rung over many images: the same again where there are not as many."""
    count = plan.limit if plan.quick else LONG_IMAGES
    paths = repeat(plan.paths, count)
    runs = {}
    for name in (plan.contenders[0], LONG_RUNG if LONG_RUNG in plan.contenders else plan.contenders[-1]):
        say(f"{count} images: {name}")
        runs[name] = _ask_rung(plan, name, paths)["run"]
    return {"images": count, "runs": runs}


def _ask_rung(plan: LadderPlan, name: str, paths: list[str]) -> dict[str, Any]:
    return plan.ask({"kind": "rung", "name": name, "source": paths, **plan.common()})


def _ask_limits(plan: LadderPlan) -> dict[str, Any]:
    return plan.ask(
        {
            "kind": LIMITS,
            "source": spread_evenly(plan.paths, 8 if plan.quick else DECODED_IMAGES),
            "engines": list(dict.fromkeys(ALL_RUNGS[name].engine for name in plan.contenders)),
            "seconds": 0 if plan.quick else FORWARD_SECONDS,
            **plan.common(),
        }
    )


def score_error(scores: dict[str, float | None], reference: dict[str, float | None]) -> dict[str, float] | None:
    """Return the `median` and the `max` of the differences of the best scores of images that both labelled."""
    both = [(score, reference.get(image)) for image, score in scores.items()]
    errors = [abs(score - other) for score, other in both if score is not None and other is not None]
    return {"median": statistics.median(errors), "max": max(errors)} if errors else None


def packages_of(names: Sequence[str]) -> list[str]:
    """Return the packages that rungs need to build and to run."""
    return sorted(
        {each for name in names for each in (*ALL_RUNGS[name].packages, *ALL_RUNGS[name].build_packages)}
    )


def package_bytes(name: str) -> int:
    """Return the bytes of a package's installed files."""
    files = importlib.metadata.files(name) or []
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def check_ladder(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there and each rung is one that there is."""
    check_rounds(results, LADDER_FIELDS, LADDER_ROUND)
    for index, one in enumerate(results["rounds"]):
        if not (one["runs"].keys() == one["agreement"].keys() == results["images"].keys() <= ALL_RUNGS.keys()):
            raise ValueError("has rounds of other rungs than there are.")
        needed = {ALL_RUNGS[name].engine: NUMBER for name in one["runs"]}
        check_fields(f"rounds[{index}].limits.forward.", one["limits"]["forward"], needed)


def load_ladder(path: Path = LADDER) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_ladder)


def bound_of(name: str, limits: dict[str, Any]) -> float:
    """Return the bound of a rung in images per second, from one round's limits: see `summary.bound`."""
    rung = ALL_RUNGS[name]
    decoder = next(key for key, decode in DECODERS.items() if decode is rung.decoder)
    on_gpu = rung.engine in DEVICE_ENGINES
    return bound(limits["forward"][rung.engine], limits["decode"][decoder], limits["cores"], on_gpu)


def summarize_ladder(results: dict[str, Any]) -> dict[str, dict[str, Spread | None]]:
    """Return the spreads of each rung over the rounds: what was measured, and the ratios within a round.

    `gain` is the rate in steady state over that of the rung before, `over_naive` over the first, `over_bound` over
    the rung's own `bound`. `end_to_end` is images per second with start-up. `agreement` is the share of images (0
    to 1) with the reference's label, `score_error` the median difference of their best scores.
    """
    rounds: list[Round] = results["rounds"]
    names = list(results["images"])
    key = "steady_rows_per_second"

    def over_rounds(value: Callable[[Round], float | None]) -> Spread | None:
        return spread([value(one) for one in rounds])

    def of_rung(name: str, before: str) -> dict[str, Spread | None]:
        found = {key: over_rounds(lambda one, key=key: one["runs"][name][key]) for key in MEASURED}  # type: ignore[misc]

        def over(other: Callable[[Round], float | None]) -> Spread | None:
            return over_rounds(lambda one: ratio(one["runs"][name][key], other(one)))

        found["gain"] = over(lambda one: one["runs"][before][key]) if name != before else None
        found["over_naive"] = over(lambda one: one["runs"]["naive"][key])
        found["bound"] = over_rounds(lambda one: bound_of(name, one["limits"]))
        found["over_bound"] = over(lambda one: bound_of(name, one["limits"]))
        found["end_to_end"] = over_rounds(lambda one: one["runs"][name]["rows"] / one["runs"][name]["seconds"])
        found["agreement"] = over_rounds(
            lambda one: one["agreement"][name]["equal"] / one["agreement"][name]["compared"]
        )
        errors = [one["score_error"].get(name) for one in rounds]
        found["score_error"] = spread([error and error["median"] for error in errors])
        found["score_error_max"] = spread([error and error["max"] for error in errors])
        return found

    return {name: of_rung(name, before) for before, name in zip([names[0], *names], names, strict=False)}


def long_ratio(results: dict[str, Any]) -> float | None:
    """Return how many times faster the fast rung was over many images with start-up; None where not measured."""
    if results["long"] is None:
        return None
    naive, fast = (run["seconds"] for run in results["long"]["runs"].values())
    return float(naive / fast)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rungs and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    arguments = sys.argv[1:] if arguments is None else arguments
    hardware = read_hardware()
    published = GPU_LADDER if hardware.gpu else LADDER
    parser = MeasuringParser("snippets.benchmark.ladder", __doc__, published, "few images, no warm-up")
    add = parser.add_argument
    add("--rounds", type=positive, help="default: 3, and 1 with --quick")
    add("--limit", type=positive, help="images of a run; slow rungs get fewer, fast ones more (default: 384)")
    add(
        "--long",
        action="store_true",
        help=f"naive and a fast rung over {LONG_IMAGES} images too: some minutes more",
    )
    add("--calibration", help="images for int8 (default: held_out beside the images, or every other image)")
    add("--folder", help="where engines are kept (default: a new one, so that building them is measured)")
    options, rungs = parser.read(arguments), rungs_for(hardware)
    limit, rounds = options.limit or (16 if options.quick else 384), options.rounds or (1 if options.quick else 3)
    try:
        engines = {name: importlib.metadata.version(name) for name in packages_of(rungs)}
    except importlib.metadata.PackageNotFoundError as error:
        parser.exit(2, f"There is no {error.name} here: pip install 'gpu-batch-inference[engines]' brings it.\n")
    with parser.measuring(options.output), tempfile.TemporaryDirectory(prefix="engines-") as empty:
        source, model = images_and_model()
        check_checkpoint(model)
        provenance = read_provenance(hardware, source, model, arguments, "snippets.benchmark.ladder")
        provenance["versions"] |= engines
        plan = LadderPlan(
            source,
            model,
            rungs,
            rounds,
            limit,
            options.quick,
            calibration_source=options.calibration or calibration_beside(source),
            folder=options.folder or empty,
        )
        measure_ladder(plan, provenance, options.output, options.long)
    return 0


if __name__ == "__main__":
    sys.exit(main())
