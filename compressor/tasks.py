"""Tasks: how a text becomes tokens, how logits become an answer, how answers become a score.

One object serves training, search and runtime, so there is one encoding and one post-processing.
To add a task: one class and one entry in TASKS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from compressor.data import Example
from compressor.tokens import Floats, Ints, Tokens

Metric = Callable[[Ints, Ints, int], float]


def accuracy(predicted: Ints, labels: Ints, classes: int) -> float:
    """Return the share of right answers; both arrays are (examples,)."""
    return float(np.mean(predicted == labels))


def macro_f1(predicted: Ints, labels: Ints, classes: int) -> float:
    """Return the unweighted mean over classes of F1; a class that neither side names counts as absent."""
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    named = counts.sum(0) + counts.sum(1)
    return float(np.mean(2 * counts.diagonal()[named > 0] / named[named > 0]))


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1}


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one text: its label, the label's probability, and the probability of every label."""

    label: str
    score: float
    probabilities: Mapping[str, float]


class Task(Protocol):
    """What the training stages need to know of a task."""

    head: str
    """Which head the model has: sequence-classification or masked-lm."""
    labelled: bool
    """Whether texts come with labels; without, a text's own hidden tokens are the labels."""

    class_axis: int
    """Axis of the logits that the loss normalises over: -1 over labels, 1 over positions (extractive QA)."""
    per_token: bool
    """Whether the head reads every token, so that dropped tokens must be restored."""

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], max_length: int) -> Tokens:
        """Return the tokens of each text (or window of it), at most `max_length` tokens long."""
        ...

    def score(self, logits: Floats, gold: Ints, metric: str) -> float:
        """Return the metric of the logits against the gold labels, in [0, 1]."""
        ...


class ServedTask(Task, Protocol):
    """What the runtime needs beside: a task whose answers a bundle gives."""

    def decode(self, logits: Floats, labels: Sequence[str]) -> list[Prediction]:
        """Return the answers for the logits of a batch."""
        ...


class _WholeTexts:
    """Tasks that read a text, or a pair of texts, in one piece."""

    def encode(self, tokenizer: Tokenizer, examples: Sequence[Example], max_length: int) -> Tokens:
        """Encode each text, or pair of texts, cutting the longer side first."""
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        return Tokens.of(tokenizer.encode_batch([e.text if e.text_pair is None else (e.text, e.text_pair) for e in examples]))


class TextClassification(_WholeTexts):
    """One label for a text or a pair of texts; logits are (batch, labels)."""

    head = "sequence-classification"
    labelled = True
    class_axis = -1
    per_token = False

    def decode(self, logits: Floats, labels: Sequence[str]) -> list[Prediction]:
        """Return for each row its most probable label and all probabilities."""
        answers = []
        for row in softmax(logits):
            best = int(row.argmax())
            answers.append(Prediction(labels[best], float(row[best]), dict(zip(labels, row.tolist(), strict=True))))
        return answers

    def score(self, logits: Floats, gold: Ints, metric: str) -> float:
        """Return the metric of the most probable labels."""
        return METRICS[metric](logits.argmax(-1), gold, logits.shape[-1])


class MaskedLanguageModelling(_WholeTexts):
    """The tokens that were hidden in a text; logits are (batch, seq, vocabulary). It trains encoders, and no bundle answers it."""

    head = "masked-lm"
    labelled = False
    class_axis = -1
    per_token = True

    def score(self, logits: Floats, gold: Ints, metric: str) -> float:
        """Return the share of hidden tokens that were found, from each text's counts (texts, 2) of found and hidden ones."""
        found, hidden = logits.sum(0)
        return float(found / max(hidden, 1.0))


TASKS: Mapping[str, ServedTask] = {"text-classification": TextClassification()}
TRAINED: Mapping[str, Task] = {**TASKS, "masked-lm": MaskedLanguageModelling()}
"""All that can be trained for; TASKS are those that can be served too."""


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(-1, keepdims=True)
    return probabilities


def interval(task: Task, logits: Floats, gold: Ints, metric: str, resamples: int = 500) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a score (percentiles over resampled examples)."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(gold), len(gold)) for _ in range(resamples))
    low, high = np.percentile([task.score(logits[d], gold[d], metric) for d in draws], [2.5, 97.5])
    return float(low), float(high)
