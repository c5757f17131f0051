"""Predicted against measured: the pipeline's throughput and memory, from its stages alone."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from snippets.architecture.sizing import batches_per_block, separate_bound, shared_bound, store_bytes
from snippets.benchmark.formats import gigabytes, percent, rate
from snippets.benchmark.harness import say, spread_evenly
from snippets.benchmark.measuring import MeasuringParser
from snippets.benchmark.processes import ask
from snippets.benchmark.provenance import Hardware, read_hardware, read_provenance
from snippets.benchmark.results import FIELDS, FOLDER, SCHEMA, check_fields, load_json, write_json
from snippets.benchmark.tables import format_table, provenance_line
from snippets.checkpoint import check_checkpoint
from snippets.fundamentals.dataset import list_images
from snippets.samples import images_and_model

PREDICTIONS = FOLDER / "predictions.json"
LEAST = 12  # configurations
BATCH_SIZES = (16, 4, 32, 8, 64, 2, 1, 24, 12, 6, 48, 3)  # in the order in which they are taken
BATCHES_AN_ACTOR = 8  # so that there is a steady state
LEAST_IMAGES = 96
FORWARD_SECONDS = 4.0
DECODE_ROWS = 32  # a block, where decoding is measured alone
GPU_BATCHES, CPU_BATCHES = 8, 2  # that `classify` puts into a block at most
MINUS = "\u2212"

NUMBER = (int, float)
CONFIGURATION: dict[str, Any] = {
    "dtype": str,
    "batch_size": int,
    "actors": int,
    "cores": int,
    "gpus": int,
    "threads": int,
    "images": int,
    "forward_rate": NUMBER,
    "forward_bytes": int,
    "measured_rate": (*NUMBER, type(None)),
    "measured_bytes": int,
    "seconds": NUMBER,
    "start_up_seconds": (*NUMBER, type(None)),
}
DECODING: dict[str, Any] = {"decode_seconds": NUMBER, "image_bytes": int, "idle_bytes": int, "decode_bytes": int}

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Configuration:
    """What is varied: the dtype, the batch size and the size of the pool, and with them the number of images."""

    dtype: str
    batch_size: int
    actors: int

    @property
    def images(self) -> int:
        """Enough for a steady state of all actors."""
        return max(LEAST_IMAGES, BATCHES_AN_ACTOR * self.batch_size * self.actors)


def configurations_for(hardware: Hardware, gpus: int = 0) -> list[Configuration]:
    """Return at least a dozen configurations of dtypes that the hardware computes by itself.

    On a CPU with one actor for all cores and with one a core, on GPUs with one actor and with one each.
    """
    computes = {"float32": True, "bfloat16": hardware.has_bfloat16, "float16": hardware.gpu is not None}
    dtypes = [dtype for dtype, does in computes.items() if does]
    pools = sorted({1, gpus or hardware.cores})
    sizes = BATCH_SIZES[: max(1, -(-LEAST // (len(dtypes) * len(pools))))]
    return [Configuration(dtype, size, actors) for dtype in dtypes for actors in pools for size in sorted(sizes)]


@dataclass(frozen=True)
class Prediction:
    """What the stages say of a configuration: images a second, and bytes at the peak."""

    rate: float
    memory_bytes: float


def predict(found: dict[str, Any], decoding: dict[str, Any]) -> Prediction:
    """Return the bound of a configuration from its stages alone, and the memory that they add up to.

    Without a GPU both stages share the cores: 1 / (1/f + d/cores). With one the slower decides. Memory is that of
    forward passes alone and of decoding alone, Ray itself counted once, and of the blocks in flight.
    """
    decode_rate = found["cores"] / decoding["decode_seconds"]
    if found["gpus"]:
        bound = separate_bound(decode=decode_rate, forward=found["forward_rate"]).value
    else:
        bound = shared_bound(found["forward_rate"], decode_rate)
    most = GPU_BATCHES if found["gpus"] else CPU_BATCHES
    rows = batches_per_block(found["images"], found["actors"], found["batch_size"], most) * found["batch_size"]
    in_flight = min(
        store_bytes(found["actors"], rows, decoding["image_bytes"]), found["images"] * decoding["image_bytes"]
    )
    return Prediction(
        bound, found["forward_bytes"] + decoding["decode_bytes"] - decoding["idle_bytes"] + in_flight
    )


def measure_all(
    paths: list[str],
    model: str,
    configurations: list[Configuration],
    provenance: dict[str, Any],
    output: Path,
    seconds: float = FORWARD_SECONDS,
    asked: Ask | None = None,
) -> dict[str, Any]:
    """Measure decoding once and each configuration in turn, write the file after each, and return what is in it.

    Whatever ends the measuring early, what was finished is in the file, with `complete` false.
    """
    asked = asked or partial(ask, module="snippets.benchmark.prediction_runs")
    say("decoding alone")
    decoding = asked(
        {
            "kind": "decoding",
            "source": paths[: max(LEAST_IMAGES, 1)],
            "model": model,
            "rows_a_block": DECODE_ROWS,
            "seconds": seconds,
        }
    )
    measured: dict[str, Any] = {
        "schema": SCHEMA,
        "complete": False,
        "provenance": provenance,
        "decoding": decoding,
        "configurations": [],
    }
    for index, each in enumerate(configurations):
        place = f"{index + 1} of {len(configurations)}"
        say(f"{place}: {each.dtype}, batches of {each.batch_size}, {each.actors} actors")
        repeated = paths * -(-each.images // len(paths))
        answer = asked(
            {
                "kind": "configuration",
                "source": spread_evenly(repeated, each.images),
                "model": model,
                **asdict(each),
                "seconds": seconds,
            }
        )
        measured["configurations"].append({**asdict(each), **answer})
        measured["complete"] = index + 1 == len(configurations)
        check_predictions(measured)
        write_json(output, measured)
    return measured


def check_predictions(results: Any) -> None:
    """Raise ValueError, with what is wrong, unless all keys are there with values of their types."""
    fields = {
        **{key: FIELDS[key] for key in ("schema", "complete", "provenance")},
        "decoding": DECODING,
        "configurations": list,
    }
    check_fields("", results, fields)
    for index, each in enumerate(results["configurations"]):
        check_fields(f"configurations[{index}].", each, CONFIGURATION)


def load_predictions(path: Path = PREDICTIONS) -> dict[str, Any]:
    """Return the results in a file. Raises ValueError, with a sentence, where it is not what was measured."""
    return load_json(path, check_predictions)


def errors_of(results: dict[str, Any]) -> list[tuple[float | None, float]]:
    """Return (predicted - measured) / measured of each configuration, for throughput and for memory."""
    errors = []
    for found in results["configurations"]:
        expected = predict(found, results["decoding"])
        measured = found["measured_rate"]
        errors.append(
            (
                None if measured is None else expected.rate / measured - 1,
                expected.memory_bytes / found["measured_bytes"] - 1,
            )
        )
    return errors


def median_errors(results: dict[str, Any]) -> tuple[float, float]:
    """Return the median of the absolute errors of throughput and of memory (1 is all of it)."""
    errors = errors_of(results)
    rates = [abs(error) for error, _ in errors if error is not None]
    return statistics.median(rates), statistics.median(abs(error) for _, error in errors)


def _signed(error: float | None) -> str:
    if error is None:
        return "no steady state"
    return f"{MINUS if error < 0 else '+'}{percent(abs(error))} %"


def predictions_table(results: dict[str, Any]) -> str:
    """Return the configurations with what was predicted, what was measured, and by how much they differ."""
    rows = []
    for found, (rate_error, memory_error) in zip(results["configurations"], errors_of(results), strict=True):
        expected = predict(found, results["decoding"])
        measured = found["measured_rate"]
        rows.append(
            [
                f"{found['dtype']}, batches of {found['batch_size']}, actors: {found['actors']}",
                str(found["images"]),
                rate(expected.rate),
                "" if measured is None else rate(measured),
                _signed(rate_error),
                gigabytes(expected.memory_bytes),
                gigabytes(found["measured_bytes"]),
                _signed(memory_error),
            ]
        )
    head = ["configuration", "images", "images/s predicted", "measured", "error"]
    return format_table([*head, "memory predicted, GB", "measured", "error"], rows)


def prediction_sections(results: dict[str, Any]) -> dict[str, str]:
    """Return what a page includes: the table, its provenance, and the numbers that the text names."""
    rate_error, memory_error = median_errors(results)
    return {
        "table": predictions_table(results),
        "provenance": provenance_line({**results, "rounds": [0]}),
        "configurations": str(len(results["configurations"])),
        "rate-error": percent(rate_error),
        "memory-error": percent(memory_error),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the file; exit with 1 where a run failed, 2 for input that cannot be used."""
    import torch

    arguments = sys.argv[1:] if arguments is None else arguments
    quick = "two configurations, few images"
    parser = MeasuringParser("snippets.benchmark.predictions", __doc__, PREDICTIONS, quick)
    options = parser.read(arguments)
    hardware = read_hardware()
    configurations = configurations_for(hardware, torch.cuda.device_count())
    if options.quick:
        configurations = [Configuration("float32", 4, 1), Configuration("float32", 2, hardware.cores)]
    with parser.measuring(options.output):
        source, model = images_and_model()
        check_checkpoint(model)
        paths = list_images(source)[1]
        provenance = read_provenance(hardware, source, model, arguments, "snippets.benchmark.predictions")
        seconds = 1.0 if options.quick else FORWARD_SECONDS
        measure_all(paths, model, configurations, provenance, options.output, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
