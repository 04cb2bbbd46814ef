from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.data import Example
from compressor.encoded import UNLABELLED, tokenizer_of
from compressor.errors import RecipeError
from compressor.masking import MaskedText
from compressor.tasks import TRAINED
from compressor.tokens import Tokens
from compressor.windows import Windows
from tests.conftest import sentences
from tests.test_vocabulary import model_folder

TASK = TRAINED["masked-lm"]()


@pytest.fixture
def masked(tiny_model: Path) -> MaskedText:
    texts = [Example(text) for text, _ in sentences(400, 1)]
    return MaskedText.of(TASK, TASK.windows(tokenizer_of(tiny_model), texts, 32, 0), tiny_model)


def test_what_is_hidden_is_what_is_asked(masked: MaskedText) -> None:
    rows = np.arange(400)
    batch, whole = masked.batch(rows, 1), masked.tokens.padded(masked.pad_id)
    hidden = batch["labels"] != UNLABELLED
    assert (batch["labels"][hidden] == whole["input_ids"][hidden]).all()
    assert (batch["input_ids"][~hidden] == whole["input_ids"][~hidden]).all()
    ordinary = whole["attention_mask"].astype(bool) & (whole["input_ids"] > 4)  # the tiny model's special tokens come first
    assert not (hidden & ~ordinary).any()
    assert 0.13 < hidden.sum() / ordinary.sum() < 0.17
    masks, stayed = (batch["input_ids"] == masked.mask_id)[hidden].mean(), (batch["input_ids"] == whole["input_ids"])[hidden].mean()
    assert 0.75 < masks < 0.85
    assert 0.07 < stayed < 0.2  # a tenth stay, and some of those that were replaced are replaced by themselves


def test_each_draw_hides_other_tokens_and_the_same_draw_the_same(masked: MaskedText) -> None:
    rows = np.arange(8)
    assert (masked.batch(rows, 3)["labels"] == masked.batch(rows, 3)["labels"]).all()
    assert (masked.batch(rows, 3)["labels"] != masked.batch(rows, 4)["labels"]).any()


def test_a_teacher_with_other_ids_is_asked_about_the_same_tokens(masked: MaskedText) -> None:
    windows = Windows.whole(Tokens(masked.tokens.ids + 100, masked.tokens.segments, masked.tokens.starts))
    shifted = MaskedText(TASK, windows, masked.targets, (), (), masked.pad_id + 100, masked.mask_id + 100, masked.special + 100)
    rows = np.arange(30)
    ours, theirs = masked.batch(rows, 2), shifted.batch(rows, 2)
    assert (ours["input_ids"] + 100 == theirs["input_ids"]).all()
    assert ((ours["labels"] != UNLABELLED) == (theirs["labels"] != UNLABELLED)).all()


def test_the_score_is_the_share_of_hidden_tokens_that_were_found(masked: MaskedText) -> None:
    labels = torch.tensor([[1, UNLABELLED, 2], [UNLABELLED, 3, UNLABELLED]])
    logits = torch.zeros(2, 3, 5)
    logits[0, 0, 1] = logits[0, 1, 4] = logits[0, 2, 3] = logits[1, 1, 3] = 1.0
    counts = masked.reduced(logits, {"labels": labels})
    assert counts.tolist() == [[1, 2], [1, 1]]
    assert TASK.metrics["accuracy"](counts.numpy().astype(float)) == pytest.approx(2 / 3)


def test_an_encoder_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, True)
    described = folder / "tokenizer.json"
    described.write_text(described.read_text(encoding="utf-8").replace("[MASK]", "[OTHER]"), encoding="utf-8")
    with pytest.raises(RecipeError, match="its tokenizer has no mask token, which task masked-lm needs"):
        MaskedText.of(TASK, Windows.whole(Tokens.joined([])), folder)
