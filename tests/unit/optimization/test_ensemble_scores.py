"""Answers are combined over the models that answered, and what is fitted is fitted to held-out rows."""

from __future__ import annotations

import numpy as np
import pytest

from snippets.optimization.ensemble_scores import (
    answered,
    choose,
    choose_sure,
    fit_weights,
    labels_from_folders,
    mean,
    stop_when_sure,
)

NONE = [np.nan, np.nan]


def rows(*of: list[list[float]]) -> np.ndarray:
    return np.array(of, np.float32)


def test_the_mean_is_over_the_models_that_answered() -> None:
    found = rows([[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], NONE], [NONE, NONE])
    assert answered(found).tolist() == [[True, True], [True, False], [False, False]]
    assert mean(found)[:2] == pytest.approx(np.array([[0.7, 0.3], [0.9, 0.1]]))
    assert np.isnan(mean(found)[2]).all()
    assert mean(found, [3, 1])[:2] == pytest.approx(np.array([[0.8, 0.2], [0.9, 0.1]]))
    best, score = choose(found)
    assert best.tolist() == [0, 0, -1]
    assert score[:2] == pytest.approx([0.7, 0.9]) and np.isnan(score[2])
    assert score.dtype == np.float32


def test_a_vote_counts_models_and_the_mean_decides_a_tie() -> None:
    found = rows(
        [[0.99, 0.01], [0.4, 0.6], [0.4, 0.6]],  # the mean says 0, two of three say 1
        [[0.9, 0.1], [0.4, 0.6], NONE],  # one vote each
        [[0.55, 0.45], [0.2, 0.8], NONE],
        [NONE, NONE, NONE],
    )
    best, score = choose(found, "vote")
    assert best.tolist() == [1, 0, 1, -1]
    assert score[:3] == pytest.approx([2 / 3, 1 / 2, 1 / 2]) and np.isnan(score[3])
    assert choose(found)[0].tolist() == [0, 0, 1, -1]


def draw(rng: np.random.Generator, truth: np.ndarray, skill: float) -> np.ndarray:
    """Return probabilities of a model that gives the truth about `skill`, and the rest to another label."""
    right = np.clip(skill + rng.normal(0, 0.2, len(truth)), 0.01, 0.99)
    found = np.zeros((len(truth), 3))
    found[np.arange(len(truth)), truth] = right
    found[np.arange(len(truth)), (truth + 1) % 3] = 1 - right
    return found


@pytest.fixture
def held_out() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    return np.stack([draw(rng, truth, skill) for skill in (0.5, 0.8)], axis=1).astype(np.float32), truth


def test_the_fitted_weights_are_the_most_likely_ones(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, truth = held_out
    weights = fit_weights(probabilities, truth)
    assert sum(weights) == pytest.approx(1)
    assert weights == fit_weights(probabilities, truth)

    def likelihood(first: float) -> float:
        true = mean(probabilities, [first, 1 - first])[np.arange(len(truth)), truth]
        return float(np.log(true).sum())

    assert weights[0] < 0.3
    others = [first for first in np.arange(0.01, 1, 0.01) if abs(first - weights[0]) > 0.01]
    assert likelihood(weights[0]) > max(map(likelihood, others))


def test_rows_without_a_truth_or_an_answer_do_not_count(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, truth = held_out
    more = np.concatenate([probabilities, probabilities[:20, ::-1], probabilities[:1]])
    more[-1, 0] = np.nan
    assert fit_weights(more, np.concatenate([truth, np.full(20, -1), truth[:1]])) == pytest.approx(
        fit_weights(probabilities, truth)
    )
    assert fit_weights(probabilities, np.full(300, -1)) == pytest.approx([0.5, 0.5])


def test_a_model_of_no_use_still_answers_where_it_is_alone() -> None:
    truth = np.zeros(50, int)
    found = np.tile(rows([[0.01, 0.99], [0.99, 0.01]]), (50, 1, 1))
    weights = fit_weights(found, truth)
    assert 0 < weights[0] < 1e-5
    found[0, 1] = np.nan
    best, score = choose(found, weights=weights)
    assert best[0] == 1 and score[0] == pytest.approx(0.99)


def test_a_cascade_asks_no_further_than_the_model_that_is_sure() -> None:
    found = rows(
        [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]],
        [[0.6, 0.4], [1.0, 0.0], [0.5, 0.5]],
        [[0.6, 0.4], [0.5, 0.5], [0.5, 0.5]],
        [NONE, [0.9, 0.1], [0.5, 0.5]],  # a model that fails is not sure
    )
    kept = answered(stop_when_sure(found, 0.8))
    assert kept.tolist() == [[True, False, False], [True, True, False], [True, True, True], [False, True, False]]
    assert answered(stop_when_sure(found, 1.01)).tolist() == answered(found).tolist()
    assert choose(stop_when_sure(found, 0.8))[0].tolist() == [0, 0, 0, 0]


def test_sure_is_the_lowest_that_loses_nothing_on_held_out_rows() -> None:
    # The cheap model is right where it is sure of 0.9, and wrong at 0.6; the other one is always right.
    cheap = [[0.9, 0.1]] * 6 + [[0.4, 0.6]] * 4
    found = np.array([[one, [0.99, 0.01]] for one in cheap], np.float32)
    truth = np.zeros(10, int)
    sure = choose_sure(found, truth)
    assert 0.6 < sure <= 0.62
    assert answered(stop_when_sure(found, sure)).sum(axis=0).tolist() == [10, 4]
    assert choose_sure(found, truth, lose=0.4) == 0
    assert choose_sure(found, np.full(10, -1)) > 1


def test_a_cascade_that_is_never_as_good_asks_everybody() -> None:
    # Wrong and certain: whatever is asked of the first model, it keeps its row.
    found = np.array([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]], np.float32)
    assert choose_sure(found, np.zeros(1, int)) > 1


def test_folders_give_labels_where_they_have_the_names_of_some() -> None:
    ids = ["a/cat/1.jpg", "a/dog/2.jpg", "a/n0144/3.jpg", "cat.jpg"]
    assert labels_from_folders(ids, ["dog", "cat"]).tolist() == [1, 0, -1, -1]
