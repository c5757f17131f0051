"""Several models over the same images: all in one actor, a pool for each, or the cheap one first."""

from __future__ import annotations

from snippets.fundamentals.actor_pool import (
    KEEP_FREED_MEMORY,
    Classifier,
    Pool,
    Preprocessing,
    plan_pool,
)
from snippets.fundamentals.dataset import list_images
from snippets.fundamentals.setup import MODEL, split_revision
from snippets.optimization.ensemble_scores import answered, choose, mean
from snippets.optimization.ensemble_views import View, decode_views, load_view

# isort: split
# --8<-- [start:imports]
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

# --8<-- [end:imports]


# --8<-- [start:models]
MODELS = (os.environ.get("MODELS") or MODEL).split(",")  # the cheapest first
# --8<-- [end:models]


# --8<-- [start:ensemble]
@dataclass(frozen=True)
class Member:
    """One of the models: its place in the ensemble, the view that it wants, and `order`, the places of the
    ensemble's labels among its own."""

    model: str
    name: str
    place: int
    view: int
    to: Preprocessing
    order: tuple[int, ...]


@dataclass(frozen=True)
class Ensemble:
    """What the models of an ensemble share: the labels, those of the first, and the views, each of them once."""

    members: tuple[Member, ...]
    views: tuple[View, ...]
    labels: tuple[str, ...]

    @property
    def bytes_per_image(self) -> int:
        """The bytes of a decoded image's views together."""
        return sum(3 * view.side**2 for view in self.views)


def load_ensemble(models: Sequence[str]) -> Ensemble:
    """Read what the checkpoints say of their labels and inputs; no weights are loaded.

    Raises `ValueError` where a model has other labels than the first.
    """
    from transformers import AutoConfig

    names = [Path(split_revision(model)[0]).name for model in models]
    members: list[Member] = []
    views: list[View] = []
    labels: tuple[str, ...] = ()
    for place, model in enumerate(models):
        checkpoint, revision = split_revision(model)
        names_of = AutoConfig.from_pretrained(checkpoint, revision=revision).id2label
        own = tuple(names_of[index] for index in range(len(names_of)))
        labels = labels or own
        if own == labels:  # ImageNet's have two that are equal, which only their order tells apart
            order = tuple(range(len(own)))
        elif sorted(own) == sorted(labels) and len(set(own)) == len(own):
            order = tuple(own.index(label) for label in labels)
        else:
            raise ValueError(f"{model} has other labels than {models[0]}, and their answers cannot be combined.")
        view, to = load_view(model)
        if view not in views:
            views.append(view)
        name = names[place] if names.count(names[place]) == 1 else f"{names[place]}-{place}"
        members.append(Member(model, name, place, views.index(view), to, order))
    return Ensemble(tuple(members), tuple(views), labels)


# --8<-- [end:ensemble]


# --8<-- [start:model]
class LoadedModel(Classifier):
    """A member's checkpoint, loaded once. It answers with all probabilities, and rows fail one by one."""

    def __init__(self, member: Member, batch_size: int, threads: int, use_gpu: bool) -> None:
        super().__init__(member.model, member.to, batch_size, "auto", threads, use_gpu)
        self.member = member

    def forward(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities (n, labels), float32, of at most a batch of images, uint8 (n, side, side, 3).

        They are padded to the next power of two: few shapes, and less than twice the images.
        """
        import torch

        padded = np.zeros((1 << (len(images) - 1).bit_length(), *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        with torch.inference_mode():
            pixels = torch.from_numpy(padded).to(self.device).permute(0, 3, 1, 2)
            pixels = pixels.float().sub_(self.mean).div_(self.std).to(self.dtype)
            probabilities = self.network(pixels).logits[: len(images)].float().softmax(-1)
        found: np.ndarray = probabilities.cpu().numpy()
        return found[:, self.member.order]

    def answer(self, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the probabilities of any number of images, NaN for those that it fails on, and why for each.

        A batch that fails is halved until the image that it fails on is alone.
        """
        if len(images) > self.batch_size:
            return self._in_parts(images, range(self.batch_size, len(images), self.batch_size))
        try:
            probabilities = self.forward(images)
            if not np.isfinite(probabilities).all():
                raise FloatingPointError("the probabilities are not finite")
            return probabilities, [""] * len(images)
        except Exception as error:  # whatever a model raises, the others may have an answer
            if len(images) > 1:
                return self._in_parts(images, [len(images) // 2])
            return np.full((1, len(self.labels)), np.nan, np.float32), [f"{type(error).__name__}: {error}"]

    def _in_parts(self, images: np.ndarray, at: Iterable[int]) -> tuple[np.ndarray, list[str]]:
        answers = [self.answer(part) for part in np.split(images, list(at))]
        return np.concatenate([found for found, _ in answers]), [why for _, reasons in answers for why in reasons]


# --8<-- [end:model]


# --8<-- [start:ask]
@dataclass(frozen=True)
class Rule:
    """How the answers become one, `by` and `weights` as `choose` takes them. `sure` (0 to 1) makes a cascade."""

    by: str = "mean"
    weights: tuple[float, ...] | None = None
    sure: float | None = None


MEAN = Rule()
RESULT = pa.schema(
    {
        "id": pa.string(),
        "label": pa.string(),
        "score": pa.float32(),
        "models": pa.list_(pa.string()),
        "error": pa.string(),
    }
)


def ask(model: LoadedModel, batch: dict[str, Any], ensemble: Ensemble, rule: Rule) -> dict[str, Any]:
    """Return a decoded batch with a model's answers in `probabilities` (n, models, labels), and its `failures`.

    A cascade does not ask about rows of which the models before are sure.
    """
    rows, member = len(batch["id"]), model.member
    if "probabilities" not in batch:
        empty = np.full((rows, len(ensemble.members), len(ensemble.labels)), np.nan, np.float32)
        batch = {**batch, "probabilities": empty, "failures": np.full(rows, "", object)}
    probabilities, failures = batch["probabilities"].copy(), batch["failures"].astype(object)
    asked = batch["error"] == ""
    if rule.sure is not None:
        asked &= ~(mean(probabilities, rule.weights).max(-1) >= rule.sure)
    if asked.any():
        probabilities[asked, member.place], reasons = model.answer(batch[f"view_{member.view}"][asked])
        failures[asked] += np.array([f"{member.name}: {why}; " if why else "" for why in reasons], object)
    return {**batch, "probabilities": probabilities, "failures": failures}


def conclude(batch: dict[str, Any], ensemble: Ensemble, rule: Rule) -> pa.Table:
    """Return `id`, `label`, `score`, the `models` that took part, and `error`, of the file or of models.

    A row has a label where at least one model answered, whatever the others did.
    """
    best, score = choose(batch["probabilities"], rule.by, rule.weights)
    names = np.array([member.name for member in ensemble.members])
    errors = [
        error or failed.removesuffix("; ") for error, failed in zip(batch["error"], batch["failures"], strict=True)
    ]
    return pa.table(
        {
            "id": batch["id"],
            "label": [None if label < 0 else ensemble.labels[label] for label in best],
            "score": pa.array(score, mask=best < 0),
            "models": [names[row].tolist() for row in answered(batch["probabilities"])],
            "error": [error or None for error in errors],
        },
        RESULT,
    )


# --8<-- [end:ask]


# --8<-- [start:together]
class Together:
    """All models in one actor, which take turns on a batch."""

    def __init__(self, ensemble: Ensemble, rule: Rule, model: type[LoadedModel], *settings: Any) -> None:
        self.ensemble, self.rule = ensemble, rule
        self.models = [model(member, *settings) for member in ensemble.members]

    def ask_all(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of `decode_views` with the answers of all models, or as many as a cascade asks."""
        for model in self.models:
            batch = ask(model, batch, self.ensemble, self.rule)
        return batch

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Return the rows of `conclude`."""
        return conclude(self.ask_all(batch), self.ensemble, self.rule)


class Each(Together):
    """The same without a conclusion: what weights and a cascade's `sure` are chosen from."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return `id`, `probabilities` (n, models, labels), NaN where a model did not answer, and `error`."""
        batch = self.ask_all(batch)
        return {name: batch[name] for name in ("id", "probabilities", "error")}


# --8<-- [end:together]


# --8<-- [start:stage]
class Stage:
    """One model in an actor of its own. Rows pass from pool to pool, with the views that later ones want."""

    def __init__(
        self, place: int, ensemble: Ensemble, rule: Rule, model: type[LoadedModel], *settings: Any
    ) -> None:
        self.ensemble, self.rule = ensemble, rule
        self.model = model(ensemble.members[place], *settings)
        self.later = {f"view_{member.view}" for member in ensemble.members[place + 1 :]}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any] | pa.Table:
        """Return the batch for the next pool, or of the last one the rows of `conclude`."""
        batch = ask(self.model, batch, self.ensemble, self.rule)
        if not self.later:
            return conclude(batch, self.ensemble, self.rule)
        return {name: of for name, of in batch.items() if not name.startswith("view_") or name in self.later}


# --8<-- [end:stage]


# --8<-- [start:plan_pools]
def plan_pools(
    members: int, sizes: Sequence[int] | None = None, num_gpus: float | None = None
) -> tuple[list[int], Pool]:
    """Return the actors of each member's pool, equally many unless `sizes` says otherwise, and what one reserves.

    Together they reserve what the one pool of `plan_pool` would, and share its GPUs. Raises `ValueError` where
    they do not fit.
    """
    whole = plan_pool(num_gpus=num_gpus)
    found = list(sizes or [max(1, whole.actors // members)] * members)
    total = sum(found)
    if whole.num_gpus:
        gpus = ray.cluster_resources()["GPU"]
        return found, plan_pool(total, num_gpus or 1 / math.ceil(total / gpus))
    cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    num_cpus = whole.actors * whole.num_cpus / total

    def fill_every_node() -> int:
        """Return how few actors could leave no node with the CPUs of a decode task."""
        return sum(int((node - whole.decode_cpus) / num_cpus) + 1 for node in cpus if node >= whole.decode_cpus)

    while fill_every_node() <= total:
        num_cpus /= 2
    # As many threads as if each pool were alone: those of the cheap models wait most of the time.
    threads = max(1, min(int(max(cpus)), whole.actors * whole.threads // max(found)))
    return found, Pool(total, math.floor(1000 * num_cpus) / 1000, 0, threads, whole.decode_cpus)


# --8<-- [end:plan_pools]


# --8<-- [start:classify]
BLOCKS_IN_FLIGHT = 8  # of decoded images, for each actor


def decode_all(
    source: str | list[str], ensemble: Ensemble, pool: Pool, limit: int | None
) -> tuple[ray.data.Dataset, list[str], int, int]:
    """Return the decoded images of a source, their ids, the rows of a block, and those of a forward pass."""
    filesystem, paths, _ = list_images(source, limit)
    batch_size = 64 if pool.num_gpus else 16
    rows = batch_size * min(2, max(1, len(paths) // (4 * pool.actors * batch_size)))
    files = ray.data.from_items([{"id": path} for path in paths], override_num_blocks=math.ceil(len(paths) / rows))
    views = {"filesystem": filesystem, "views": ensemble.views}
    return files.map_batches(decode_views, fn_kwargs=views, num_cpus=pool.decode_cpus), paths, rows, batch_size


def pool_options(pool: Pool, actors: int) -> dict[str, Any]:
    """Return what `map_batches` is told of a pool of so many actors."""
    return {
        "compute": ray.data.ActorPoolStrategy(size=actors),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
        "runtime_env": {"env_vars": KEEP_FREED_MEMORY},
    }


def hold_back(answers: ray.data.Dataset, pool: Pool, rows: int, ensemble: Ensemble) -> ray.data.Dataset:
    """Return the dataset with a limit of decoded blocks in flight, as in Part 1's `classify`."""
    options = answers.context.execution_options
    in_flight = BLOCKS_IN_FLIGHT * pool.actors * rows * ensemble.bytes_per_image
    options.resource_limits = options.resource_limits.copy(object_store_memory=in_flight)
    return answers


def classify_together(
    source: str | list[str],
    models: Sequence[str],
    limit: int | None = None,
    rule: Rule = MEAN,
    num_gpus: float | None = None,
    model: type[LoadedModel] = LoadedModel,
    actor: type[Together] = Together,
) -> ray.data.Dataset:
    """Return one answer an image. Each actor has all models; with `rule.sure` they are a cascade."""
    ensemble, pool = load_ensemble(models), plan_pool(num_gpus=num_gpus)
    decoded, paths, rows, batch_size = decode_all(source, ensemble, pool, limit)
    answers = decoded.map_batches(
        actor,
        fn_constructor_args=(ensemble, rule, model, batch_size, pool.threads, pool.num_gpus > 0),
        batch_size=rows,  # of all of which a cascade makes batches for the later models
        **pool_options(pool, min(pool.actors, math.ceil(len(paths) / rows))),
    )
    return hold_back(answers, pool, rows, ensemble)


def classify_in_pools(
    source: str | list[str],
    models: Sequence[str],
    limit: int | None = None,
    rule: Rule = MEAN,
    num_gpus: float | None = None,
    model: type[LoadedModel] = LoadedModel,
    sizes: Sequence[int] | None = None,
) -> ray.data.Dataset:
    """Return one answer an image. Each model has a pool, of `sizes` actors, and rows pass through them in turn."""
    ensemble = load_ensemble(models)
    actors, pool = plan_pools(len(models), sizes, num_gpus)
    answers, paths, rows, batch_size = decode_all(source, ensemble, pool, limit)
    for place, size in enumerate(actors):
        answers = answers.map_batches(
            Stage,
            fn_constructor_args=(place, ensemble, rule, model, batch_size, pool.threads, pool.num_gpus > 0),
            batch_size=rows,
            **pool_options(pool, min(size, math.ceil(len(paths) / rows))),
        )
    return hold_back(answers, pool, rows, ensemble)


# --8<-- [end:classify]


# --8<-- [start:branches]
class Branch(Stage):
    """One model in an actor of its own, which answers the images beside the others and not after them."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return `id`, `place`, `error`, and this model's `probabilities` (n, labels) and `failures`."""
        batch, place = ask(self.model, batch, self.ensemble, self.rule), self.model.member.place
        return {
            "id": batch["id"],
            "place": np.full(len(batch["id"]), place),
            "error": batch["error"],
            "probabilities": batch["probabilities"][:, place],
            "failures": batch["failures"],
        }


def join_by_id(batches: Iterable[dict[str, Any]], ids: Iterable[str], members: int) -> Iterator[dict[str, Any]]:
    """Yield batches of the rows that every model has answered, as `conclude` takes them, each row once.

    Raises `RuntimeError` where an answer comes twice or for an unknown id, and at the end where one is missing.
    """
    waiting: dict[str, dict[int, list[Any]]] = {id: {} for id in ids}
    for batch in batches:
        whole = {}
        columns = (batch[name] for name in ("id", "place", "error", "probabilities", "failures"))
        for id, place, *answer in zip(*columns, strict=True):
            if place in waiting.get(id, {place: None}):
                raise RuntimeError(f"An answer for {id} came twice, or nobody asked for it.")
            waiting[id][place] = answer
            if len(waiting[id]) == members:
                whole[id] = [waiting[id][place] for place in range(members)]
                del waiting[id]
        if whole:
            yield {
                "id": np.array([*whole]),
                "error": np.array([answers[0][0] for answers in whole.values()], object),
                "probabilities": np.array([[found for _, found, _ in answers] for answers in whole.values()]),
                "failures": np.array(["".join(why for *_, why in answers) for answers in whole.values()], object),
            }
    if waiting:
        raise RuntimeError(f"{len(waiting)} rows lack an answer, such as {next(iter(waiting))}.")


def classify_in_branches(
    source: str | list[str],
    models: Sequence[str],
    limit: int | None = None,
    rule: Rule = MEAN,
    num_gpus: float | None = None,
    model: type[LoadedModel] = LoadedModel,
    sizes: Sequence[int] | None = None,
) -> ray.data.Dataset:
    """Return one answer an image. Each model has a pool, all read the same images, and answers are joined by id.

    The decoded images are kept until every model has seen them: the object store has to hold them all. Raises
    `ValueError` for a cascade, as no model here knows what another has answered.
    """
    if rule.sure is not None:
        raise ValueError("A cascade asks one model after another, and branches ask all of them at once.")
    ensemble = load_ensemble(models)
    actors, pool = plan_pools(len(models), sizes, num_gpus)
    decoded, paths, rows, batch_size = decode_all(source, ensemble, pool, limit)
    kept = decoded.materialize()  # or each branch would decode again
    branches = [
        kept.map_batches(
            Branch,
            fn_constructor_args=(place, ensemble, rule, model, batch_size, pool.threads, pool.num_gpus > 0),
            batch_size=rows,
            **pool_options(pool, min(size, math.ceil(len(paths) / rows))),
        )
        for place, size in enumerate(actors)
    ]
    answers = branches[0].union(*branches[1:]) if branches[1:] else branches[0]  # Ray fails on a union of one
    joined = join_by_id(answers.iter_batches(batch_size=None), paths, len(models))
    return ray.data.from_arrow(pa.concat_tables([conclude(batch, ensemble, rule) for batch in joined]))


# --8<-- [end:branches]


Layout = Callable[..., ray.data.Dataset]  # (source, models, limit, rule, num_gpus)
LAYOUTS: dict[str, Layout] = {
    "together": classify_together,
    "pools": classify_in_pools,
    "branches": classify_in_branches,
}


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    import argparse

    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text}")
    return number


def add_options(parser: Any) -> None:
    """Add the models, the layout, and how answers are combined."""
    from snippets.command import gpus

    add = parser.add_argument
    add("--models", help="checkpoints, the cheapest first, with commas between (default: small ones and --model)")
    add("--layout", choices=tuple(LAYOUTS), default="together", help="default: %(default)s")
    add("--by", choices=("mean", "vote"), default="mean", help="how answers become one (default: %(default)s)")
    add("--sure", type=share, help="make a cascade: the score from which no further model is asked")
    add("--num-gpus", type=gpus, help="GPUs that an actor reserves; 0 runs on the CPU")


def run(options: Any) -> ray.data.Dataset:
    """Return the answers that the command asks for."""
    from snippets.checkpoint import check_checkpoint
    from snippets.optimization.ensemble_models import models_for

    models = (options.models or models_for(options.model)).split(",")
    for model in models:
        check_checkpoint(model)
    rule = Rule(options.by, sure=options.sure)
    return LAYOUTS[options.layout](options.images, models, options.limit, rule, options.num_gpus)


if __name__ == "__main__":
    from snippets.command import run_module

    run_module("snippets.optimization.ensemble")
