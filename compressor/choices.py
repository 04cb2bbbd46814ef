"""What a model's outputs choose among, and the ids of what has no label."""

from typing import Literal

import numpy as np

from compressor.tokens import Floats

Choice = Literal["labels", "positions", "each", "number"]
"""A softmax goes over the labels; over the positions, for each output; over yes and no, for each output; nowhere: a number."""
UNLABELLED = -100
"""Id of the label that a text or a token has not: no loss of labels counts it."""
UNKNOWN = -1
"""Id of a label that a token has but nobody told: only the teacher's answer counts."""


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(-1, keepdims=True)
    return probabilities
