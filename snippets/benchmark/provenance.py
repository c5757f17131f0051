"""Where figures come from: date, commit, versions and hardware, without names of hosts, users or their folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
# All but what measuring and rendering write, so that one measurement may follow another.
SOURCES = (".", ":!docs/assets/results", ":!docs/assets/figures", ":!docs/labs/*.ipynb", ":!README.md")
PACKAGES = ("ray", "torch", "transformers", "pillow", "numpy")
# What decides how fast a CPU multiplies matrices, of x86 and ARM.
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


@dataclass(frozen=True)
class Hardware:
    """What computes: the processor, the cores that this process may use, the memory, and the GPU's name."""

    processor: str
    cores: int
    memory_bytes: int
    instruction_sets: list[str]
    gpu: str | None

    @property
    def has_bfloat16(self) -> bool:
        """Whether products of bfloat16 are computed by instructions of their own."""
        return self.gpu is not None or not {"avx512_bf16", "amx_bf16"}.isdisjoint(self.instruction_sets)

    @property
    def slug(self) -> str:
        """The name for files: `cpu-2-cores`, or the GPU's name in lower case with hyphens."""
        if self.gpu is None:
            return f"cpu-{self.cores}-cores"
        return re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")


def read_hardware() -> Hardware:
    """Return the hardware of this machine."""
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(
        processor=model[1].strip() if model else platform.processor() or platform.machine(),
        cores=may_use,
        memory_bytes=psutil.virtual_memory().total,
        instruction_sets=[name for name in INSTRUCTION_SETS if name in found],
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    )


def read_provenance(
    hardware: Hardware, source: str, model: str, arguments: Sequence[str], module: str = "snippets.benchmark"
) -> dict[str, Any]:
    """Return what a results file says about its origin; `arguments` are those of the command line."""
    status = _git("status", "--porcelain", "--", *SOURCES)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
        "command": shlex.join(["python", "-m", module, *map(public_name, arguments)]),
        "images": public_name(source),
        "model": public_name(model),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "hardware": asdict(hardware),
    }


def public_name(argument: str) -> str:
    """Return a path below the repository relative to it, one elsewhere without its folders, and all else as is."""
    if argument.startswith("--") and "=" in argument:
        option, _, value = argument.partition("=")
        return f"{option}={public_name(value)}"
    path = Path(argument)
    if path.is_absolute():
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return argument


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return None
    return done.stdout.strip()
