"""How much code each rung of the ladder runs, counted in the sections that the pages show."""

import re
from pathlib import Path

from snippets.optimization.gpu import GPU_RUNGS

SNIPPETS = Path(__file__).parents[1]
NAIVE = ("fundamentals/naive.py:classify_batch", "fundamentals/naive.py:classify_naively")
STEPS = "fundamentals/stepwise.py:"
POOL = "fundamentals/actor_pool.py:"
ENGINES = "optimization/engines.py:"
LADDER = "optimization/ladder.py:"
GPU = "optimization/gpu.py:"
DECODED = (f"{POOL}preprocessing", f"{POOL}decode")
KEPT = (f"{STEPS}kept",)
BATCHED = (*KEPT, f"{STEPS}batched")
MEMORY = (*BATCHED, f"{STEPS}memory", f"{POOL}keep_freed_memory")
POOLED = (*DECODED, f"{POOL}plan_pool", f"{POOL}keep_freed_memory")
COMPILED = (
    *POOLED,
    *(f"{ENGINES}{name}" for name in ("engine", "key", "build_once", "export", "open")),
    *(f"{LADDER}{name}" for name in ("classifier", "run_in_pool", "classify_compiled")),
)
QUANTIZED = (*COMPILED, f"{ENGINES}calibration", f"{ENGINES}quantize")
ON_GPU = (
    *POOLED,
    *(f"{GPU}{name}" for name in ("engine", "network", "record", "overlap", "open", "classify_on_gpu")),
)
SECTIONS = {
    **dict.fromkeys(GPU_RUNGS, ON_GPU),
    "naive": NAIVE,
    "kept": KEPT,
    "batched": BATCHED,
    "memory": MEMORY,
    "decoded": (*MEMORY, *DECODED, f"{STEPS}decoded"),
    "pool": (*POOLED, f"{POOL}classifier", f"{POOL}classify"),
    "onnxruntime": COMPILED,
    "openvino": COMPILED,
    "openvino-bfloat16": COMPILED,
    "openvino-int8": QUANTIZED,
    "cheap-decode": (*QUANTIZED, f"{LADDER}decode_cheaply"),
    "gpu-cheap-decode": (*ON_GPU, f"{LADDER}decode_cheaply"),
}


def lines_of(rung: str) -> int:
    """Return the lines of a rung's code that are not empty, without imports and what Part 1 has for any pipeline.

    Raises `ValueError` for a section that is not there.
    """
    return sum(map(_lines_of_section, SECTIONS[rung]))


def _lines_of_section(named: str) -> int:
    file, _, section = named.partition(":")
    marker = "# --8<-- [{}:" + section + "]"
    _, found, rest = (SNIPPETS / file).read_text("utf-8").partition(marker.format("start"))
    code, ended, _ = rest.partition(marker.format("end"))
    if not (found and ended):
        raise ValueError(f"{file} has no section {section}.")
    return len(re.findall(r"^(?!\s*# --8<--).*\S", code, re.M))
