"""The settings of a production run: a TOML file, the environment above it, the command line above both."""

from __future__ import annotations

from snippets.optimization.engines import BATCH_SIZE, ENGINES

# isort: split
# --8<-- [start:imports]
import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# --8<-- [end:imports]


# --8<-- [start:settings]
PREFIX = "PRODUCTION_"  # PRODUCTION_PART_ROWS sets part_rows


class Settings(BaseModel):
    """What a run reads, computes and writes, and what it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: str = Field(min_length=1)  # a Parquet file with a column `path`, which is the id of a row
    output: str = Field(min_length=1)  # a folder or URI, new or of the same job
    model: str = Field(min_length=1)  # a folder, or name@revision on the hub
    images: str | None = None  # where the paths begin; by default at the manifest's folder
    limit: int | None = Field(default=None, gt=0)  # rows of the manifest at the most
    part_rows: int = Field(default=1000, gt=0)  # what a crash can cost: a part is there as a whole or not at all
    max_bytes: int = Field(default=20_000_000, gt=0)  # of an encoded image
    max_pixels: int = Field(default=50_000_000, gt=0)  # of a decoded one
    max_dead_share: float = Field(default=0.01, ge=0, le=1)  # of the rows; more dead letters end the run
    stop_within_s: float = Field(default=20, gt=0, le=25)  # for parts in hand, after SIGTERM
    no_progress_timeout_s: float = Field(default=600, gt=0)  # of no row at all: more than the model takes to load
    batch_size: int | None = Field(default=None, gt=0)
    actors: int | None = Field(default=None, gt=0)
    num_gpus: float | None = Field(default=None, ge=0)
    dtype: str = Field(default="auto", pattern="^(auto|float32|bfloat16|float16)$")
    engine: str = Field(default="eager", pattern=f"^(eager|{'|'.join(ENGINES)})$")  # eager: PyTorch as it comes
    calibration: str | None = None  # images that say which range int8 has to cover

    @property
    def gpus(self) -> float | None:
        """GPUs of an actor, None for what the cluster has. Engines run on the CPUs."""
        return self.num_gpus if self.engine == "eager" else 0

    @model_validator(mode="after")
    def check_engine(self) -> Self:
        """Refuse what an engine would not heed."""
        needs_calibration = False
        if self.engine != "eager":
            needs_calibration = ENGINES[self.engine].precision == "int8"
            if self.dtype != "auto" or self.num_gpus or self.batch_size not in (None, BATCH_SIZE):
                batches = f"in batches of {BATCH_SIZE}, on CPUs, in its own precision"
                raise ValueError(f"engine {self.engine} runs {batches}: set no batch_size, num_gpus or dtype")
        if needs_calibration != (self.calibration is not None):
            raise ValueError(f"calibration is needed for int8, and for nothing else: engine is {self.engine}")
        return self


# --8<-- [end:settings]


# --8<-- [start:load_settings]
def load_settings(file: str | None = None, environ: Mapping[str, str] = os.environ, **given: Any) -> Settings:
    """Return the settings of a file, overridden by the environment, overridden by what is given and not None.

    Raises `ValueError` with a sentence for each thing that is wrong: which setting, from where, and why.
    """
    values = _read_file(file) if file else {}
    origins = dict.fromkeys(values, str(file))
    for name in sorted(environ):
        if name.startswith(PREFIX):
            setting = name.removeprefix(PREFIX).lower()
            values[setting], origins[setting] = environ[name], name
    for setting, value in given.items():
        if value is not None:
            values[setting], origins[setting] = value, "the command line"
    try:
        return Settings(**values)
    except ValidationError as error:
        sentences = [_sentence(problem, origins) for problem in error.errors()]
        raise ValueError("\n".join(sentences)) from None


def _read_file(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"The settings file {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"The settings file {file} is not TOML: {error}.") from None


def _sentence(problem: Any, origins: Mapping[str, str]) -> str:
    if not problem["loc"]:  # of settings that do not go together
        return f"{problem['ctx']['error']}."
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"There is no value for {name}: set it in the file, as {PREFIX}{name.upper()}, or as --{name}."
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, 1)
        return f"There is no setting {name} (from {origins[name]})" + (f": is {near[0]} meant?" if near else ".")
    reason = problem["msg"].replace("Input should", "it should")
    return f"{name} (from {origins[name]}) cannot be {problem['input']!r}: {reason}."


# --8<-- [end:load_settings]
