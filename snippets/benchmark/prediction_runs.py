"""One configuration in a process of its own: its stages, each measured alone, and then the pipeline.

`python -m snippets.benchmark.prediction_runs ANSWER` reads a request as JSON from standard input and writes its
answer to the file ANSWER, as `snippets.benchmark.runs` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from snippets.benchmark.processes import answer_request
from snippets.command import ray_options
from snippets.fundamentals import costs
from snippets.fundamentals.actor_pool import classify, decode, load_preprocessing, plan_pool
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import configure_data_context
from snippets.recording import recording

Source = list[str]
IDLE_S = 3


def measure_decoding(source: Source, model: str, rows_a_block: int, seconds: float) -> dict[str, Any]:
    """Return the seconds to decode an image on one core, and the memory of Ray alone and of decoding alone.

    `idle_bytes` is the peak memory of a cluster that does nothing, `decode_bytes` of one that decodes the images,
    in blocks of a size, on all its CPUs and drops them.
    """
    with recording(**ray_options()) as idle:
        time.sleep(min(seconds, IDLE_S))
    ray.shutdown()
    filesystem, paths, _ = list_images(source)
    to = load_preprocessing(model)
    with recording(**ray_options()) as decoding:
        configure_data_context(progress_bars=False)
        blocks = -(-len(paths) // rows_a_block)
        decoded = ray.data.from_items([{"id": path} for path in paths], override_num_blocks=blocks).map_batches(
            decode, fn_kwargs={"filesystem": filesystem, "to": to}, num_cpus=1
        )
        for _ in decoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass
    ray.shutdown()
    return {
        "decode_seconds": costs.decode_seconds(source, model),
        "image_bytes": to.crop * to.crop * 3,
        "idle_bytes": idle.peak_memory_bytes,
        "decode_bytes": decoding.peak_memory_bytes,
    }


def measure_configuration(
    source: Source, model: str, dtype: str, batch_size: int, actors: int, seconds: float
) -> dict[str, Any]:
    """Return what forward passes alone reach and hold, and what the pipeline does, with the same actors.

    `forward_rate` is of all actors together, in images a second, `forward_bytes` the peak memory of that cluster;
    `measured_rate` is the pipeline's in steady state, null where it had too little of it, `measured_bytes` its
    peak memory. `threads` are those of an actor.
    """
    with recording(**ray_options()) as forward:
        pool = plan_pool(actors)
        cores, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        loops = costs.start_loops(model, actors, dtype, batch_size)
        forward_rate = costs.forward_rate(loops, pool.threads, seconds)
        del loops
    ray.shutdown()
    with recording(**ray_options()) as run:
        configure_data_context(progress_bars=False)
        rows = sum(
            len(table)
            for table in classify(source, model, dtype=dtype, batch_size=batch_size, actors=actors).iter_batches(
                batch_size=None, batch_format="pyarrow"
            )
        )
    ray.shutdown()
    report = run.report()
    return {
        "cores": cores,
        "gpus": gpus,
        "threads": pool.threads,
        "images": rows,
        "forward_rate": forward_rate,
        "forward_bytes": forward.peak_memory_bytes,
        "measured_rate": report["steady_rows_per_second"],
        "measured_bytes": report["peak_memory_bytes"],
        "seconds": report["seconds"],
        "start_up_seconds": report["start_up_seconds"],
    }


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "decoding": measure_decoding,
    "configuration": measure_configuration,
}


if __name__ == "__main__":
    answer_request(KINDS)
