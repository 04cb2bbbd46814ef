"""What words alone tell of a classification, before any training: whether easy texts are there to stop early.

What:     a naive Bayes classifier of words and pairs of neighbours, learned from some texts and asked about others in a second; its
          accuracy on fifths of them from the surest on, a histogram of its confidence, and what it loses when the words are shuffled.
Papers:   multinomial naive Bayes (McCallum and Nigam, 1998); word-order sensitivity (arXiv:2012.15180); temperature scaling
          (arXiv:1706.04599), without which it would be sure of everything.
Formula:  label of a text: the largest log P(label) + sum over its features of log P(feature | label), add-one smoothing.
Limits:   hashed features, so that two may share a place; texts without spaces between words are one word each.
"""

import itertools
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.choices import softmax
from compressor.tokens import Floats, Ints

PLACES = 2**16
"""Places that features are hashed to."""
HELD_OUT = 4
"""Of so many texts one is asked about."""
LEAST = 200
"""Texts below which nothing is told."""
MOST_LABELS = 500
"""Labels above which nothing is told: each takes most of a megabyte."""
MOST_WORDS, LONGEST = 200_000, 200
"""Words that are looked at, of all texts and of one: about a second's work."""
PARTS = 5
EDGES = (0.0, 0.5, 0.7, 0.9, 1.0)
"""Of the confidence's histogram."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Told:
    """Accuracy of words alone: overall, of each fifth of the texts from the surest on, and with the words shuffled; and of guessing.

    `shares` are those of the texts in each bin of the confidence's histogram.
    """

    accuracy: float
    fifths: tuple[float, ...]
    shuffled: float
    guessed: float
    shares: tuple[float, ...]

    @property
    def easy(self) -> bool:
        """Whether the surest fifth is answered so much better that a cascade may stop there."""
        return self.accuracy > self.guessed and 1 - self.fifths[0] <= (1 - self.accuracy) / 3


def told_by_words(texts: Sequence[str], labels: Sequence[str]) -> Told | None:
    """Return what words tell of these labels; None where there are too few texts, or labels with fewer than two, or too many of them."""
    if len(texts) < LEAST or not 2 <= len(set(labels)) <= MOST_LABELS:
        return None
    rng = random.Random(0)
    order = rng.sample(range(len(texts)), len(texts))
    words = {row: texts[row].lower().split(maxsplit=LONGEST)[:LONGEST] for row in order}
    fitting = int((np.cumsum([len(words[row]) for row in order]) <= MOST_WORDS).sum())
    asked, learned = order[: fitting // HELD_OUT], order[fitting // HELD_OUT : fitting]
    ids = {label: number for number, label in enumerate(sorted(set(labels)))}
    known = np.array([ids[label] for label in labels])
    weights = _learned([_features(words[row]) for row in learned], known[learned], len(ids))
    plain = _scores([_features(words[row]) for row in asked], weights)
    mixed = _scores([_features(rng.sample(words[row], len(words[row]))) for row in asked], weights)
    right, ordered = plain.argmax(1) == known[asked], np.sort(plain, 1)
    surest = (ordered[:, -1] - ordered[:, -2]).argsort(kind="stable")[::-1]
    return Told(
        float(right.mean()),
        tuple(float(part.mean()) for part in np.array_split(right[surest], PARTS)),
        float((mixed.argmax(1) == known[asked]).mean()),
        float((np.bincount(known[learned]).argmax() == known[asked]).mean()),
        tuple((np.histogram(_confidences(plain, known[asked]), EDGES)[0] / len(asked)).tolist()),
    )


def _confidences(scores: Floats, labels: Ints) -> Floats:
    """Return the largest softmax of each row, at the temperature at which the right labels are most likely."""
    tried = (softmax(scores / temperature) for temperature in np.geomspace(1, 1000, 40))
    likeliest = max(tried, key=lambda found: float(np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-12)).sum()))
    found: Floats = likeliest.max(1)
    return found


def _features(parts: Sequence[str]) -> Ints:
    """Return the places of a text's words and of its pairs of neighbours."""
    words = [word for part in parts for word in _WORD.findall(part)]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)]
    return np.array([zlib.crc32(feature.encode()) % PLACES for feature in (*words, *pairs)], np.int64)


def _learned(features: Sequence[Ints], labels: Ints, count: int) -> tuple[Floats, Floats]:
    """Return log P(label) (labels,) and log P(feature | label) (labels, places)."""
    places = np.concatenate([own + label * PLACES for own, label in zip(features, labels.tolist(), strict=True)])
    seen = np.bincount(places, minlength=count * PLACES).reshape(count, PLACES).astype(np.float32) + 1
    prior = np.log(np.bincount(labels, minlength=count) + 1.0)
    return prior, np.log(seen) - np.log(seen.sum(1, keepdims=True))


def _scores(features: Sequence[Ints], weights: tuple[Floats, Floats]) -> Floats:
    prior, likely = weights
    return np.stack([prior + likely[:, own].sum(1) for own in features])
