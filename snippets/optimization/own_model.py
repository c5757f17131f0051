"""A model of your own in the pipeline of part 1: you write how it loads and what it computes, the rest stays."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import BLOCKS_IN_FLIGHT, KEEP_FREED_MEMORY, decode, plan_pool
from snippets.fundamentals.dataset import list_images

# isort: split
# --8<-- [start:imports]
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch

# --8<-- [end:imports]


# --8<-- [start:model]
class Model(Protocol):
    """What is yours. The driver makes it and sends it to the actors: read weights in `load`, not in `__init__`."""

    def load(self, device: torch.device) -> None:
        """Read the weights; called once, in the actor."""

    def forward(self, inputs: torch.Tensor) -> dict[str, Any]:
        """Return the columns of a batch, tensors or arrays of a value or a vector a row; always one shape in."""


# --8<-- [end:model]


# --8<-- [start:worker]
def to_column(values: np.ndarray, prepared: np.ndarray) -> pa.Array:
    """Return the values of the rows that are `prepared`, and null for the others.

    More than one number a row becomes a list of fixed size, which other readers of Parquet know too.
    """
    column = np.zeros((len(prepared), *values.shape[1:]), values.dtype)
    column[prepared] = values[: prepared.sum()]
    if column.ndim == 1:
        return pa.array(column, mask=~prepared)
    size = math.prod(column.shape[1:])
    return pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), size, mask=pa.array(~prepared))


class Worker:
    """Runs a model in an actor, as part 1's `Classifier` runs its own."""

    def __init__(self, model: Model, column: str, batch_size: int, threads: int = 1, use_gpu: bool = True) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu and torch.cuda.is_available() else "cpu")
        self.model, self.column, self.batch_size = model, column, batch_size
        model.load(self.device)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return `id`, the model's columns and `error`; null where there is none."""
        prepared = batch["error"] == ""
        values = batch[self.column]
        inputs = np.zeros((self.batch_size, *values.shape[1:]), values.dtype)  # padded: one shape, always
        inputs[: prepared.sum()] = values[prepared]
        with torch.inference_mode():
            outputs = self.model.forward(torch.from_numpy(inputs).to(self.device))
            arrays = {
                name: output.numpy(force=True) if torch.is_tensor(output) else np.asarray(output)
                for name, output in outputs.items()
            }
        columns = {name: to_column(array, prepared) for name, array in arrays.items()}
        errors = pa.array(batch["error"], pa.string(), mask=prepared)
        return pa.table({"id": batch["id"], **columns, "error": errors})


# --8<-- [end:worker]


# --8<-- [start:infer]
LEAST_IN_FLIGHT = 64 * 1024 * 1024  # bytes in the object store: small rows need no limit


def infer(
    model: Model,
    rows: Sequence[dict[str, Any]],
    prepare: Callable[..., dict[str, Any]],
    fn_kwargs: dict[str, Any] | None = None,
    batch_size: int | None = None,
    actors: int | None = None,
    num_gpus: float | None = None,
) -> ray.data.Dataset:
    """Return `id`, the columns of a model, and `error` for each row. `classify` with another model and input.

    `prepare(batch, **fn_kwargs)` returns what `decode` does: `id`, a column of inputs (one shape, one dtype)
    and `error`, a text that is empty where there is none.
    """
    first = prepare({name: np.array([value]) for name, value in rows[0].items()}, **fn_kwargs or {})
    (column,) = first.keys() - {"id", "error"}
    pool = plan_pool(actors, num_gpus)
    batch_size = batch_size or (64 if pool.num_gpus else 16)
    batches = min(8 if pool.num_gpus else 2, max(1, len(rows) // (4 * pool.actors * batch_size)))
    blocks = math.ceil(len(rows) / (batches * batch_size))
    results = (
        ray.data.from_items(list(rows), override_num_blocks=blocks)
        .map_batches(prepare, fn_kwargs=fn_kwargs, num_cpus=pool.decode_cpus)
        .map_batches(
            Worker,
            fn_constructor_args=(model, column, batch_size, pool.threads, pool.num_gpus > 0),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(pool.actors, blocks)),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            runtime_env={"env_vars": KEEP_FREED_MEMORY},
        )
    )
    options = results.context.execution_options
    in_flight = BLOCKS_IN_FLIGHT * pool.actors * batches * batch_size * first[column].nbytes
    options.resource_limits = options.resource_limits.copy(object_store_memory=max(LEAST_IN_FLIGHT, in_flight))
    return results


# --8<-- [end:infer]


MODELS = ("state-dict", "transformer", "embeddings", "text")


def add_options(parser: Any) -> None:
    """Add which model to run, and what overrides the plan."""
    from snippets.command import gpus, positive

    add = parser.add_argument
    add(
        "--own",
        choices=MODELS,
        default=MODELS[0],
        help="whose weights are random, but for embeddings' (default: %(default)s)",
    )
    add("--actors", type=positive, help="size of the pool")
    add("--num-gpus", type=gpus, help="GPUs that an actor reserves; 0 runs on the CPU")


def run(options: Any) -> ray.data.Dataset:
    """Return what the chosen model says of the images, or of their paths as texts."""
    import tempfile
    from pathlib import Path

    from snippets.fundamentals.actor_pool import load_preprocessing
    from snippets.optimization import own_model_examples as examples
    from snippets.optimization import own_model_samples as samples

    filesystem, paths, _ = list_images(options.images, options.limit)
    rows: list[dict[str, Any]] = [{"id": path} for path in paths]
    with tempfile.TemporaryDirectory(prefix="own-model-") as temporary:
        folder, pool = Path(temporary), {"actors": options.actors, "num_gpus": options.num_gpus}
        if options.own == "text":
            encoder = samples.build_text_encoder(folder / "text")
            texts = [{**row, "text": row["id"]} for row in rows]
            model: Model = examples.TextModel(encoder)
            return infer(model, texts, examples.tokenize, examples.tokenizing(encoder), **pool).materialize()
        to = load_preprocessing(options.model)
        decoding: dict[str, Any] = {"filesystem": filesystem, "to": to}
        if options.own == "state-dict":
            model = examples.StateDictModel(samples.build_state_dict(folder / "net.pt", 2), ("no", "yes"), to)
        elif options.own == "transformer":
            checkpoint = samples.build_vision_transformer(folder / "vit", ("no", "yes"))
            to = examples.load_squeezing(checkpoint)
            model = examples.TransformerModel(checkpoint, to)
            decoding = {"filesystem": filesystem, "to": to, "decode_one": examples.squeeze}
        else:
            model = examples.EmbeddingModel(options.model, to)
        return infer(model, rows, decode, decoding, **pool).materialize()


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.own_model")
