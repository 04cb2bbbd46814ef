"""Text with masked tokens, for general distillation and for pre-training: the tokens that are hidden are the labels.

What:     of the real, not special tokens 15 % are chosen; 80 % of these are masked, 10 % become another token of the batch, 10 % stay.
Papers:   BERT (arXiv:1810.04805); drawn anew at each step, as in RoBERTa (arXiv:1907.11692).
Limits:   the draw depends on the step and on the texts' rows and lengths alone, so a teacher with another tokenizer that splits texts
          alike is asked about the same tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.choices import UNLABELLED
from compressor.encoded import Encoded, mask_token, pad_id_of, tokenizer_of
from compressor.errors import RecipeError
from compressor.tasks import Task
from compressor.tokens import Ints
from compressor.windows import Windows

CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1


@dataclass(frozen=True)
class MaskedText(Encoded):
    """A split whose labels are the tokens that each batch hides."""

    mask_id: int = 0
    special: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    varies = True
    rows_at_once = 8

    @classmethod
    def of(cls, task: Task, windows: Windows, model: Path) -> "MaskedText":
        """Return the masked form of a split.

        Raises:
            RecipeError: the tokenizer has no mask token.
        """
        tokenizer, mask = tokenizer_of(model), mask_token(model)
        mask_id = tokenizer.token_to_id(mask) if mask else None
        if mask_id is None:
            raise RecipeError(f"{model}: its tokenizer has no mask token, which task masked-lm needs; use an encoder that has one")
        special = np.array(sorted(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special))
        return cls(task, windows, np.full(len(windows), UNLABELLED), (), (), pad_id_of(model), mask_id, special)

    def batch(self, rows: Ints, draw: int = 0) -> dict[str, Any]:
        """Return a batch with tokens hidden, and labels (batch, longest); another `draw` hides others."""
        arrays = self.tokens.rows(rows).padded(self.pad_id)
        ids, rng = arrays["input_ids"], np.random.default_rng([draw, int(rows[0]), len(rows)])
        may = arrays["attention_mask"].astype(bool) & ~np.isin(ids, self.special)
        chosen = may & (rng.random(ids.shape) < CHOSEN)
        fate, pool = rng.random(ids.shape), ids[may]
        other = pool[rng.integers(len(pool), size=ids.shape)] if len(pool) else ids
        hidden = np.where(fate < MASKED, self.mask_id, np.where(fate < MASKED + REPLACED, other, ids))
        return {**arrays, "input_ids": np.where(chosen, hidden, ids), "labels": np.where(chosen, ids, UNLABELLED), "rows": rows}

    def reduced(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return for each text how many hidden tokens were found, and how many there are, (batch, 2)."""
        hidden = batch["labels"] != UNLABELLED
        found = (logits.argmax(-1) == batch["labels"]) & hidden
        return torch.stack([found.sum(1), hidden.sum(1)], 1)
