"""Tabulate the parameters that the course passes: meaning and page from here, defaults from what is installed."""

from __future__ import annotations

import enum
import inspect
import pkgutil
import posixpath
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from snippets.reference.generated import ROOT, update

PACKAGES = ("ray", "transformers")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a call: what it does, and the page that shows it, as `folder/page.md#anchor`."""

    name: str
    meaning: str
    page: str


@dataclass(frozen=True)
class Call:
    """What is called, by the name that it is imported by; `alias` is another name that takes the same."""

    name: str
    parameters: tuple[Parameter, ...]
    alias: str = ""

    @property
    def anchor(self) -> str:
        """The last part of the name, which is also how code calls it on an object."""
        return self.name.rpartition(".")[2]


CONNECT = "setup.md#connect"
SWITCHES = "setup.md#set-the-switches-of-ray-data-first"
ASK = "setup.md#ask-the-cluster-not-this-process"
LIST = "fundamentals/dataset.md#list-first-then-read"
LOOK = "fundamentals/dataset.md#look-at-a-batch"
RESERVE = "fundamentals/dataset.md#what-num_cpus-on-the-read-does"
RERUNS = "fundamentals/dataset.md#every-look-runs-the-read-again"
NAIVE = "fundamentals/naive.md#the-code"
LOAD = "fundamentals/costs.md#loading-for-every-batch"
SHARE = "fundamentals/costs.md#too-little-to-share"
THREADS = "fundamentals/costs.md#threads-or-actors"
CLASSIFY = "fundamentals/actor_pool.md#load-once-then-classify-batches"
SIZE = "fundamentals/actor_pool.md#size-the-pool-from-the-cluster"
TOGETHER = "fundamentals/actor_pool.md#put-it-together"
REACHES = "fundamentals/actor_pool.md#what-it-reaches"
RESERVATIONS = "optimization/reservations.md#num_gpus-and-memory-the-same"
STATE = "fundamentals/watching.md#while-it-runs-the-state-api"
DASHBOARD = "fundamentals/watching.md#in-a-browser-the-dashboard"
FRAMES = "fundamentals/preprocessing.md#a-function-on-frames"
IN_FRAMES = "fundamentals/preprocessing.md#what-may-be-in-a-frame"
WRITE = "fundamentals/results.md#write-once"
STOP = "optimization/production.md#end-when-asked"
BRING = "optimization/own_model.md#bring-your-code-to-the-workers"
LOG = "optimization/monitoring.md#find-the-rows-in-the-log"
PARQUET = "reference/changes.md#override_num_blocks"
READ_ONLY = "reference/changes.md#read-only-batches"
NAMED = "optimization/patterns.md#read-less"
LARGE = "architecture/blocks.md#who-decides-how-large"
CUT = "architecture/blocks.md#how-batches-are-cut"
MEMORY = "architecture/memory.md#what-memory-does"
GROWS = "architecture/backpressure.md#pools-that-grow-and-shrink"
DEADLOCK = "architecture/backpressure.md#the-pool-that-holds-every-cpu"
TIMED = "architecture/scaling.md#an-accelerator-that-is-a-wait"
BREAKS = "architecture/streaming.md#the-first-result-and-what-breaks-streaming"

CALLS = (
    Call(
        "ray.init",
        (
            Parameter(
                "address", "the cluster to join; without it that of `RAY_ADDRESS`, or a new one here", CONNECT
            ),
            Parameter("num_cpus", "CPUs that a Ray started here schedules; raises with an address", CONNECT),
            Parameter("runtime_env", "what the job's processes start with, such as `working_dir`", BRING),
            Parameter(
                "ignore_reinit_error", "whether a second call returns the connection instead of raising", DASHBOARD
            ),
            Parameter("logging_config", "how this process and its workers log; `None` for text", LOG),
        ),
    ),
    Call(
        "ray.LoggingConfig",
        (Parameter("encoding", "`TEXT`, or `JSON` for an object a line", LOG),),
    ),
    Call(
        "ray.util.state.list_actors",
        (
            Parameter("address", "the cluster that is asked, by its head; `None` looks for one", STATE),
            Parameter("filters", "triples of column, `=` or `!=`, and value that all entries meet", STATE),
            Parameter("limit", "entries at the most; nothing says that there are more", STATE),
        ),
        alias="list_tasks",
    ),
    Call(
        "ray.get",
        (Parameter("timeout", "seconds until it raises `GetTimeoutError`; `None` waits for ever", ASK),),
    ),
    Call(
        "ray.remote",
        (
            Parameter("num_cpus", "CPUs that the task or actor reserves", ASK),
            Parameter("num_gpus", "GPUs that it reserves, and the only ones that it sees", ASK),
            Parameter("memory", "bytes that it reserves; whoever takes more is not stopped", RESERVATIONS),
            Parameter("scheduling_strategy", "where it runs: anywhere, or on one node", ASK),
            Parameter("runtime_env", "what its process starts with, such as `env_vars`", THREADS),
        ),
        alias="options",
    ),
    Call(
        "ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy",
        (
            Parameter("node_id", "the node to run on", ASK),
            Parameter("soft", "whether another node will do where that one is gone", ASK),
        ),
    ),
    Call(
        "ray.data.DataContext",
        (
            Parameter("enable_progress_bars", "shows progress bars", SWITCHES),
            Parameter("enable_operator_progress_bars", "shows one for each operator too", SWITCHES),
            Parameter(
                "execution_no_progress_timeout_s",
                "seconds without progress until `ExecutionTimeoutError`; -1 waits for ever",
                SWITCHES,
            ),
            Parameter("target_max_block_size", "bytes at which a task ends a block and begins another", LARGE),
            Parameter(
                "wait_for_min_actors_s",
                "seconds that the fewest actors of a pool may take to start; -1 begins without them",
                DEADLOCK,
            ),
            Parameter(
                "max_errored_blocks",
                "blocks that may fail and be lost, with all of their rows; -1 for any number",
                "fundamentals/dataset.md#claim-corrupt-file",
            ),
        ),
    ),
    Call(
        "ray.data.ExecutionOptions",
        (Parameter("resource_limits", "what a dataset may use of the cluster; `None` for all of it", REACHES),),
    ),
    Call(
        "ray.data.ExecutionResources.copy",
        (
            Parameter(
                "object_store_memory", "bytes in the object store at which operators are held back", TOGETHER
            ),
        ),
    ),
    Call(
        "ray.data.read_images",
        (
            Parameter("paths", "files, or folders", LOOK),
            Parameter("filesystem", "the pyarrow filesystem of the paths; `None` takes it from them", LOOK),
            Parameter("mode", "Pillow's mode to convert to, such as `RGB`; `None` leaves each as it is", LOOK),
            Parameter("size", "height and width to squeeze each image into", LOOK),
            Parameter("include_paths", "adds the column `path`, an id for each image", LOOK),
            Parameter("num_cpus", "CPUs that each read task reserves; `None` for one", RESERVE),
        ),
    ),
    Call(
        "ray.data.read_parquet",
        (
            Parameter("paths", "files, or folders", PARQUET),
            Parameter("filesystem", "the pyarrow filesystem of the paths; `None` takes it from them", WRITE),
            Parameter("override_num_blocks", "blocks to read, not heeded for small files", PARQUET),
        ),
    ),
    Call(
        "ray.data.from_items",
        (
            Parameter("items", "one dictionary a row", TOGETHER),
            Parameter("override_num_blocks", "blocks to cut the rows into, and so tasks", TOGETHER),
        ),
    ),
    Call(
        "ray.data.range",
        (
            Parameter("n", "rows, with an `id` from 0", RERUNS),
            Parameter("override_num_blocks", "blocks to cut the rows into, and so tasks", SHARE),
        ),
    ),
    Call("ray.data.from_numpy", (Parameter("ndarrays", "one array, a row for each of its items", IN_FRAMES),)),
    Call(
        "ray.data.Dataset.repartition",
        (
            Parameter("target_num_rows_per_block", "rows of a block, for as long as they can be had", CUT),
            Parameter("shuffle", "whether rows change places, for which all of them have to be there", BREAKS),
            Parameter("strict", "whether every block but the last has so many rows, across the old blocks", CUT),
        ),
    ),
    Call(
        "ray.data.Dataset.map_batches",
        (
            Parameter("fn", "a function, which runs in tasks, or a class, which runs in an actor pool", CLASSIFY),
            Parameter("batch_size", "rows a call; `None` for the whole block; an integer with a GPU", TOGETHER),
            Parameter("batch_format", "what a batch is: NumPy arrays by default, or `pandas`, `cudf`", FRAMES),
            Parameter("compute", "tasks or actors, and how many", TOGETHER),
            Parameter("fn_kwargs", "keyword arguments of each call", NAIVE),
            Parameter("fn_constructor_args", "arguments of the class, which is built once an actor", TOGETHER),
            Parameter("fn_constructor_kwargs", "the same by their names", TIMED),
            Parameter("num_cpus", "CPUs that each task or actor reserves; `None` for one", SIZE),
            Parameter("num_gpus", "GPUs that each reserves; a part of one is allowed", SIZE),
            Parameter("memory", "bytes of memory that each reserves, and may exceed", MEMORY),
            Parameter("runtime_env", "what the processes start with, such as `env_vars`", TOGETHER),
            Parameter("zero_copy_batch", "hands out views that cannot be written to", READ_ONLY),
        ),
    ),
    Call(
        "ray.data.ActorPoolStrategy",
        (
            Parameter("size", "actors of a pool that neither grows nor shrinks", TOGETHER),
            Parameter("min_size", "actors at the least, of a pool that grows and shrinks", GROWS),
            Parameter("max_size", "actors at the most", GROWS),
        ),
    ),
    Call(
        "ray.data.TaskPoolStrategy",
        (Parameter("size", "tasks at a time; `None` for as many as fit", NAIVE),),
    ),
    Call(
        "ray.data.Dataset.iter_batches",
        (
            Parameter("batch_size", "rows of a batch; `None` takes each block as it comes", STOP),
            Parameter("batch_format", "what a batch is, such as a table of `pyarrow`", STOP),
            Parameter("prefetch_batches", "batches to fetch before the first is handed out", STOP),
        ),
    ),
    Call(
        "ray.data.Dataset.filter",
        (Parameter("expr", "rows to keep, named by columns, which a read can take", NAMED),),
    ),
    Call("ray.data.Dataset.take_batch", (Parameter("batch_size", "rows to look at", LOOK),)),
    Call(
        "ray.data.Dataset.write_parquet",
        (
            Parameter("path", "a folder or URI that all nodes see", WRITE),
            Parameter("filesystem", "the pyarrow filesystem of the path", WRITE),
            Parameter("mode", "what to do where the path exists: append, overwrite, ignore or raise", WRITE),
        ),
    ),
    Call(
        "transformers.pipeline",
        (
            Parameter("task", "what the pipeline does, here `image-classification`", LOAD),
            Parameter("model", "a folder, or a name on the hub", LOAD),
            Parameter("revision", "the commit of the checkpoint on the hub", LOAD),
        ),
    ),
    Call(
        "transformers.PreTrainedModel.from_pretrained",
        (
            Parameter("pretrained_model_name_or_path", "a folder, or a name on the hub", CLASSIFY),
            Parameter("revision", "the commit of the checkpoint on the hub", CLASSIFY),
            Parameter("use_safetensors", "`True` refuses pickled weights, which can run code", CLASSIFY),
        ),
    ),
)


def defaults(call: Call) -> Mapping[str, Any]:
    """Return the defaults of a call's parameters, from its signature; `inspect.Parameter.empty` is none."""
    if call.name == "ray.remote":  # its signature hides the options of tasks and actors
        from ray._common.ray_option_utils import task_options

        return {name: option.default_value for name, option in task_options.items()}
    signature = inspect.signature(pkgutil.resolve_name(call.name))
    return {name: parameter.default for name, parameter in signature.parameters.items()}


def show(default: Any) -> str:
    """Return a default as code writes it."""
    if default is inspect.Parameter.empty:
        return "required"
    if isinstance(default, enum.Enum):
        return f"`{type(default).__name__}.{default.name}`"
    return f"`{default!r}`"


def link(page: str) -> str:
    """Return a link to a page from the reference, named by the page's title."""
    path = page.partition("#")[0]
    title = re.search(r"^# (.+)$", (ROOT / "docs" / path).read_text("utf-8"), re.M)
    if title is None:
        raise ValueError(f"The page {path} has no title.")
    return f"[{title[1]}]({posixpath.relpath(page, 'reference')})"


def format_call(call: Call) -> str:
    """Return the table of a call, under its name."""
    found = defaults(call)
    # Code imports a strategy by its own name.
    name = f"`{re.sub(r'^ray[.]util[.].*[.]', '', call.name)}`" + (f" and `.{call.alias}`" if call.alias else "")
    head = ["| parameter | default | what it does | shown in |", "| --- | --- | --- | --- |"]
    lines = [f"## {name} {{#{call.anchor}}}", "", *head]
    for each in call.parameters:
        if each.name not in found:
            raise ValueError(f"{call.name} has no parameter {each.name}.")
        lines.append(f"| `{each.name}` | {show(found[each.name])} | {each.meaning} | {link(each.page)} |")
    return "\n".join(lines)


def render() -> str:
    """Return the generated part of the page."""
    versions = ", ".join(f"{package} {version(package).partition('+')[0]}" for package in PACKAGES)
    return "\n\n".join([f"Inspected: {versions}.", *map(format_call, CALLS)]) + "\n"


if __name__ == "__main__":
    sys.exit(update("parameters", render))
