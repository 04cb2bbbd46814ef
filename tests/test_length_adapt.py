"""Training at any length: what the sub-models of a step read."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.lengths import LEAST_READ, LengthConfig
from compressor.session import truncated as truncated_rows
from compressor.settings.deploying import LengthAdapt
from compressor.stages.length_adapt import sandwich, truncated
from tests.test_tokens import TEXTS, flat

LAYERS, LONGEST = 4, 100


@given(texts=TEXTS, most=st.none() | st.integers(2, 21))
@settings(max_examples=60)
def test_training_cuts_texts_as_serving_does(texts: list[list[int]], most: int | None) -> None:
    def batch(most: int | None = None) -> list[Tensor]:
        rows = flat(texts)
        padded = (rows if most is None else truncated_rows(rows, most)).padded(7)
        return [torch.from_numpy(padded[name]) for name in ("input_ids", "attention_mask", "token_type_ids")]

    for found, expected in zip(truncated(batch(), most), batch(most), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("truncate", [False, True])
def test_random_sub_models_alone_read_less(truncate: bool) -> None:
    asked: list[tuple[LengthConfig | None, int | None]] = []

    def forward(config: LengthConfig | None, skipped: frozenset[int], read: int | None) -> Tensor:
        asked.append((config, read))
        return torch.zeros(2, 3, requires_grad=True)

    wanted = LengthAdapt(epochs=1, batch_size=2, learning_rate=1e-4, sandwiches=20, truncate=truncate)
    labels, mask = torch.tensor([0, 1]), torch.ones(2, LONGEST, dtype=torch.bool)
    losses = sandwich(forward, labels, torch.zeros(2, 3), mask, wanted, LAYERS, LONGEST, "labels", random.Random(1))
    assert len(list(losses)) == len(asked) == 22
    assert asked[0] == (None, None)
    assert asked[1] == (LengthConfig.smallest(LAYERS, LONGEST, wanted.bound), None)
    read = [most for _, most in asked[2:]]
    if truncate:
        assert all(most is not None and LEAST_READ * LONGEST <= most <= LONGEST for most in read)
        assert len(set(read)) > 10
    else:
        assert set(read) == {None}
