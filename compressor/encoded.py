"""A split as a model's tokenizer sees it: token ids and label ids, handed out in padded batches."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tokenizers import Tokenizer
from torch import Tensor

from compressor.tokens import Ints, Tokens

UNLABELLED = -100
"""Id of the label that a text or a token has not: no loss of labels counts it."""


@dataclass(frozen=True)
class Encoded:
    """A split ready for a model: the tokens of each text, and its label's id."""

    tokens: Tokens
    labels: Ints
    pad_id: int
    varies: ClassVar[bool] = False
    """Whether a text's batch is another one each time."""
    rows_at_once: ClassVar[int] = 64
    """Texts that are answered at once where nothing is learned."""

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Ints, draw: int = 0) -> dict[str, Ints]:
        """Return input_ids, attention_mask, token_type_ids (batch, longest), labels and rows (batch,); `draw` changes what varies."""
        return self.tokens.rows(rows).padded(self.pad_id) | {"labels": self.labels[rows], "rows": rows}

    def reduced(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what a score needs of the logits of a batch: here, all of them."""
        return logits


def tokenizer_of(model: Path) -> Tokenizer:
    """Return the fast tokenizer of a model's folder."""
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def mask_token(model: Path) -> str | None:
    """Return the text of the tokenizer's mask token, if it has one."""
    special = [token.content for token in tokenizer_of(model).get_added_tokens_decoder().values() if token.special]
    return next((token for token in special if "mask" in token.lower()), None)


def pad_id_of(model: Path) -> int:
    """Return the id that pads, from the model's configuration."""
    return int(json.loads((model / "config.json").read_text(encoding="utf-8")).get("pad_token_id") or 0)
