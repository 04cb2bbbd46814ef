"""Scores of a split, from one row of outcomes an example, so that a bootstrap over examples needs no second look at the answers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from compressor.tokens import Floats

Metric = Callable[[Floats], float]
"""A score of outcomes (examples, ...)."""


def accuracy(outcomes: Floats) -> float:
    """Return the share of right answers; outcomes are (examples, 2): the class that was answered, and the right one."""
    return float(np.mean(outcomes[:, 0] == outcomes[:, 1]))


def macro_f1(outcomes: Floats) -> float:
    """Return the unweighted mean over classes of F1; a class that neither side names counts as absent."""
    answered, right = outcomes.astype(np.int64).T
    found, first, second = (
        np.bincount(ids, minlength=int(outcomes.max(initial=0)) + 1) for ids in (right[answered == right], answered, right)
    )
    return _mean_f1(found, first + second)


def label_macro_f1(outcomes: Floats) -> float:
    """Return the mean over labels of F1; outcomes are (examples, 2, labels): 1 for labels that were answered, and that are right."""
    answered, right = outcomes[:, 0], outcomes[:, 1]
    return _mean_f1((answered * right).sum(0), (answered + right).sum(0))


def label_micro_f1(outcomes: Floats) -> float:
    """Return F1 over all labels of all examples; outcomes as for label_macro_f1."""
    return _f1(float((outcomes[:, 0] * outcomes[:, 1]).sum()), float(outcomes.sum()))


def entity_f1(outcomes: Floats) -> float:
    """Return F1 over all entities; outcomes are (examples, 3): entities that were found, answered, and that are there."""
    found, answered, there = outcomes.sum(0)
    return _f1(float(found), float(answered + there))


def spearman(outcomes: Floats) -> float:
    """Return the rank correlation, ties at their mean rank; outcomes are (examples, 2): the number answered, and the right one."""
    answered, right = (_ranks(column) for column in outcomes.T)
    spread = answered.std() * right.std()
    return float(np.mean((answered - answered.mean()) * (right - right.mean())) / spread) if spread else 0.0


def interval(metric: Metric, outcomes: Floats) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a score (percentiles over resampled examples), as `certain` has it."""
    return certain(resampled(metric, outcomes), len(outcomes))


def certain(scores: Floats, examples: int) -> tuple[float, float]:
    """Return between which two numbers a score lies, from its resamples over so many examples.

    Where all are right, or none is, resamples know nothing of those that would not be: 3 in so many may be otherwise, as in `changed`.
    """
    low, high = bounds(scores)
    if low < high:
        return low, high
    return min(low, max(0.0, low - 3 / examples)), max(high, min(1.0, high + 3 / examples))


def resampled(metric: Metric, outcomes: Floats, resamples: int = 500) -> Floats:
    """Return the scores of resampled examples; for as many examples they are the same ones, so that two models' scores can be paired."""
    rng, count = np.random.default_rng(0), len(outcomes)
    return np.array([metric(outcomes[rng.integers(0, count, count)]) for _ in range(resamples)])


def bounds(scores: Floats) -> tuple[float, float]:
    """Return between which two numbers 95 % of resampled scores, or of differences of paired ones, lie."""
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def changed(scores: Floats, others: Floats, examples: int) -> tuple[float, float]:
    """Return between which two numbers a change of score lies, from paired resamples of two models' scores of so many examples.

    Where no example is answered otherwise, resamples know nothing of those that would be: 3 in so many may (the rule of three, Hanley and
    Lippman-Hand, 1983).
    """
    low, high = bounds(scores - others)
    unseen = 3 / examples if low == high else 0.0
    return low - unseen, high + unseen


def _f1(found: float, named: float) -> float:
    """Return F1 of so many right answers among those that the two sides name together."""
    return 2 * found / named if named else 0.0


def _mean_f1(found: Any, named: Any) -> float:
    there = named > 0
    return float(np.mean(2 * found[there] / named[there])) if there.any() else 0.0


def _ranks(values: Floats) -> Floats:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[where]
    return ranks
