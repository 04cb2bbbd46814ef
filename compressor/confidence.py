"""How sure a model is of an answer: what a cascade decides by.

What:     one number an example, from 0 to 1, of the logits divided by the member's temperature; not a number where the logits are none.
Papers:   TangoBERT (arXiv:2204.06271); temperature scaling and expected calibration error (arXiv:1706.04599).
Formula:  max_softmax: max p; margin: the largest p less the second; entropy: 1 - H(p) / log(classes). p is a softmax over the labels;
          of several yes-or-no labels, and of tagged words, the least certain one counts; of a question, p is over its best spans.
Limits:   a number that is answered (regression) has no confidence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from compressor.answering import QuestionAnswering
from compressor.choices import sigmoid, softmax
from compressor.data import Example
from compressor.tasks import Task
from compressor.tokens import Floats
from compressor.windows import Windows

Confidence = Literal["max_softmax", "margin", "entropy"]


def _max_softmax(probabilities: Floats) -> Floats:
    best: Floats = probabilities.max(-1)
    return best


def _margin(probabilities: Floats) -> Floats:
    if probabilities.shape[-1] == 1:
        return _max_softmax(probabilities)
    ordered = np.sort(probabilities, -1)
    apart: Floats = ordered[..., -1] - ordered[..., -2]
    return apart


def _entropy(probabilities: Floats) -> Floats:
    logs = np.log(np.maximum(probabilities, 1e-12))
    sure: Floats = np.maximum(0, 1 + (probabilities * logs).sum(-1) / np.log(max(2, probabilities.shape[-1])))
    return sure


MEASURES: Mapping[Confidence, Callable[[Floats], Floats]] = {"max_softmax": _max_softmax, "margin": _margin, "entropy": _entropy}


def confidences(
    kind: Confidence, task: Task, logits: Floats, windows: Windows, examples: Sequence[Example], temperature: float = 1.0
) -> Floats:
    """Return how sure the logits are of each example's answer, (examples,)."""
    measure, scaled = MEASURES[kind], logits.astype(np.float64) / temperature  # in float32 all that is nearly sure would be alike
    with np.errstate(invalid="ignore", over="ignore"):  # logits that are no numbers give a confidence that is none; 1 / (1 + inf) is 0
        if task.choice == "number":
            return np.full(len(examples), np.nan)
        if isinstance(task, QuestionAnswering):
            spans = task.spans(scaled, windows, examples)
            return np.array([float(measure(softmax(np.array([span.score for span in own])))) for own in spans])
        if task.choice == "each":
            yes = sigmoid(scaled)
            least: Floats = measure(np.stack([yes, 1 - yes], -1)).min(-1)
            return least
        sure = measure(softmax(scaled))
    return _of_least_certain_words(sure, windows, len(examples)) if task.per_token else sure


def _of_least_certain_words(sure: Floats, windows: Windows, count: int) -> Floats:
    """Return the least of each example's words; 1 where none has a token."""
    found, owners = np.ones(count), np.repeat(windows.owners, windows.tokens.lengths)
    asked = windows.places[:, 0] >= 0
    np.minimum.at(found, owners[asked], sure[asked])
    return found
