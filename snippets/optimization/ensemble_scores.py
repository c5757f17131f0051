"""Make one answer of several models' probabilities: mean, vote, or weights fitted on held-out images."""

from __future__ import annotations

# --8<-- [start:imports]
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

# --8<-- [end:imports]


# --8<-- [start:combine]
def answered(probabilities: np.ndarray) -> np.ndarray:
    """Return, for probabilities (n, models, labels), which model answered which row: bool (n, models)."""
    found: np.ndarray = ~np.isnan(probabilities).any(-1)
    return found


def mean(probabilities: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
    """Return the mean over the models that answered a row, (n, labels); NaN where none did.

    `weights` has one positive number a model. Only their ratios count, and a model alone counts for all.
    """
    share = answered(probabilities) * np.asarray(weights or [1.0] * probabilities.shape[1])
    total = share.sum(axis=1, keepdims=True)
    share = np.divide(share, total, out=np.full(share.shape, np.nan), where=total > 0)
    means: np.ndarray = np.einsum("nm,nml->nl", share, np.nan_to_num(probabilities))
    return means


def choose(
    probabilities: np.ndarray, by: str = "mean", weights: Sequence[float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best label (int, -1 where no model answered) and its score (float32, then NaN) of each row.

    `by="mean"`: the score is the mean probability. `by="vote"`: each model has one vote, the score is the share
    of votes, and where labels have as many votes, their mean probability decides.
    """
    ranking = score = mean(probabilities, weights)
    if by == "vote":
        votes = np.eye(probabilities.shape[2])[np.nan_to_num(probabilities).argmax(-1)]
        votes[~answered(probabilities)] = np.nan
        score = mean(votes)
        # Shares of votes differ by at least one in the number of models, and this adds half of that at most.
        ranking = score + ranking / (2 * probabilities.shape[1])
    best = np.where(np.isnan(ranking).any(-1), -1, np.nan_to_num(ranking).argmax(-1))
    return best, score[np.arange(len(score)), best].astype(np.float32)


# --8<-- [end:combine]


# --8<-- [start:fit]
def labels_from_folders(ids: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return the label of each image whose folder has the name of one, as an index; -1 of the others."""
    places = {label: place for place, label in enumerate(labels)}
    return np.array([places.get(PurePosixPath(id).parent.name, -1) for id in ids])


def fit_weights(probabilities: np.ndarray, truth: np.ndarray, rounds: int = 1000) -> list[float]:
    """Return the weights, which sum to 1, under which the true labels of held-out rows are most likely.

    The mean is a mixture of the models, and these are its proportions by expectation maximization (Dempster,
    Laird and Rubin 1977), which has one optimum here and is the same each time. Rows without a truth (-1), or
    that a model did not answer, do not count; with none that does, the weights are equal.
    """
    models = probabilities.shape[1]
    weights = np.full(models, 1 / models)
    counts = (truth >= 0) & answered(probabilities).all(axis=1)
    if counts.any():
        likely = probabilities[counts, :, truth[counts]].astype(np.float64).clip(1e-12)  # (rows, models)
        for _ in range(rounds):
            shares = likely * weights
            weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    # None is zero: where the others fail on a row, the model that is left has to answer.
    weights = np.maximum(weights, 1e-6)
    return [float(weight) for weight in weights / weights.sum()]


# --8<-- [end:fit]


# --8<-- [start:cascade]
def stop_when_sure(probabilities: np.ndarray, sure: float, weights: Sequence[float] | None = None) -> np.ndarray:
    """Return the probabilities that a cascade would have, NaN for the models that it would not have asked.

    Models are asked in their order, and a row ends with the one after which the best mean is at least `sure`.
    """
    kept = np.full_like(probabilities, np.nan)
    for place in range(probabilities.shape[1]):
        asks = ~(mean(kept, weights).max(-1) >= sure)  # nothing answered yet is not sure either
        kept[asks, place] = probabilities[asks, place]
    return kept


def choose_sure(
    probabilities: np.ndarray, truth: np.ndarray, lose: float = 0.0, weights: Sequence[float] | None = None
) -> float:
    """Return the lowest `sure` at which a cascade is right on held-out rows as often as all models together.

    `lose` is the share of rows (0 to 1) that it may be right on less often. Where no row has a truth (not -1), or
    where no cascade is as good, it is above 1, which asks every model about every row.
    """
    known = truth >= 0

    def right(of: np.ndarray) -> int:
        return int((choose(of[known], weights=weights)[0] == truth[known]).sum())

    enough = right(probabilities) - lose * known.sum()
    for percent in range(100 if known.any() else 0):
        if right(stop_when_sure(probabilities, percent / 100, weights)) >= enough:
            return percent / 100
    return 1.01


# --8<-- [end:cascade]
