"""How far the answers of a split lie from others."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor

from compressor.answering import QuestionAnswering
from compressor.choices import UNLABELLED
from compressor.classification import MultiLabelClassification, TextClassification, TextRegression
from compressor.data import Example
from compressor.encoded import Encoded
from compressor.scoring import predict
from compressor.tagging import TokenClassification
from compressor.tasks import Task
from compressor.tokens import Floats, Tokens
from compressor.windows import Windows

STARTS = np.array([0, 3, 8])
TOKENS = Tokens(np.arange(8, dtype=np.int32), np.zeros(8, np.int8), STARTS)


def drawn(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def encoded(task: Task) -> Encoded:
    return Encoded(task, Windows.whole(TOKENS), np.zeros(2, np.int64), (), (), 0)


def kl(ours: Floats, theirs: Floats) -> float:
    return float(rel_entr(softmax(theirs, -1), softmax(ours, -1)).sum(-1).mean())


@pytest.mark.parametrize("task", [TextClassification(), MultiLabelClassification(), TextRegression(), QuestionAnswering()])
def test_answers_do_not_differ_from_themselves(task: Task) -> None:
    logits = drawn(1, 8, 2) if task.per_token else drawn(1, 2, 3)
    assert encoded(task).divergence(logits, logits) == pytest.approx(0, abs=1e-6)
    assert encoded(task).divergence(logits + drawn(2, *logits.shape), logits) > 0.01


def test_the_divergence_of_labels_is_the_mean_kl() -> None:
    ours, theirs = drawn(1, 2, 3), drawn(2, 2, 3)
    assert encoded(TextClassification()).divergence(ours, theirs) == pytest.approx(kl(ours, theirs), rel=1e-5)


def test_the_divergence_of_tags_is_that_of_tokens_that_have_one() -> None:
    ours, theirs = drawn(1, 8, 3), drawn(2, 8, 3)
    tagged = np.array([1, 2, 5])
    targets = np.full(8, UNLABELLED)
    targets[tagged] = 0
    split = Encoded(TokenClassification(), Windows.whole(TOKENS), targets, ("O", "B-X", "I-X"), (), 0)
    assert split.divergence(ours, theirs) == pytest.approx(kl(ours[tagged], theirs[tagged]), rel=1e-5)


def test_the_divergence_of_positions_is_taken_window_by_window() -> None:
    ours, theirs = drawn(1, 8, 2), drawn(2, 8, 2)
    windows = [slice(0, 3), slice(3, 8)]
    expected = np.mean([kl(ours[w].T, theirs[w].T) for w in windows])
    assert encoded(QuestionAnswering()).divergence(ours, theirs) == pytest.approx(expected, rel=1e-5)


def test_long_texts_are_scored_few_at_a_time() -> None:
    """Attention's memory grows with the square of a batch's longest text."""
    lengths, seen = [10] * 64 + [512] * 64 + [1024] * 64 + [4096] * 2, list[tuple[int, int]]()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.zeros(starts[-1], np.int32), np.zeros(starts[-1], np.int8), starts)
    examples = [Example("x", label="a")] * len(lengths)
    data = Encoded(TextClassification(), Windows.whole(tokens), np.zeros(len(lengths), np.int64), ("a", "b"), examples, 0)

    def forward(batch: dict[str, Tensor]) -> Tensor:
        seen.append((batch["input_ids"].shape[0], batch["input_ids"].shape[1]))
        return torch.zeros(len(batch["input_ids"]), 2)

    assert predict(forward, data).shape == (len(lengths), 2)
    assert max(size for size, longest in seen if longest <= 512) == 64
    assert max(size for size, longest in seen if longest == 1024) == 16
    assert [size for size, longest in seen if longest == 4096] == [1, 1]
