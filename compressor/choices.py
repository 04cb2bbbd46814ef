"""What a model's outputs choose among, and the ids of what has no label."""

from typing import Literal

import numpy as np

from compressor.tokens import Floats

Choice = Literal["labels", "positions", "each", "number"]
"""A softmax goes over the labels; over the positions, for each output; over yes and no, for each output; nowhere: a number."""
UNLABELLED = -100
"""Id of the label that a text or a token has not: no loss of labels counts it."""
UNKNOWN = -1
"""Id for a token that should have a label but has none, as in unlabelled text: only the teacher's answer counts."""


def sigmoid(logits: Floats) -> Floats:
    """Return the probability of yes, of each logit."""
    yes: Floats = 1 / (1 + np.exp(-logits))
    return yes


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(-1, keepdims=True)
    return probabilities
