"""A split as a model's tokenizer sees it: token ids and what the model should answer, handed out in padded batches."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from compressor.choices import UNLABELLED
from compressor.data import Example
from compressor.losses import soft_label_loss
from compressor.tasks import Task
from compressor.tokens import Floats, Ints, Tokens
from compressor.windows import Windows


@dataclass(frozen=True)
class Encoded:
    """A split ready for a model: windows of its examples, what the model should answer for each, and the examples if they are scored."""

    task: Task
    windows: Windows
    targets: NDArray[Any]
    outputs: tuple[str, ...]
    examples: Sequence[Example]
    pad_id: int
    varies: ClassVar[bool] = False
    """Whether a text's batch is another one each time."""
    ahead: ClassVar[int] = 0
    """Batches that are put together while one is learned from."""
    rows_at_once: ClassVar[int] = 64
    """Texts that are answered at once where nothing is learned."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def tokens(self) -> Tokens:
        """The tokens of each window."""
        return self.windows.tokens

    @property
    def lengths(self) -> Ints:
        """The tokens of each example, in all its windows, (examples,)."""
        return np.bincount(self.windows.owners, self.tokens.lengths, len(self.examples)).astype(np.int64)

    def batch(self, rows: Ints, draw: int = 0) -> dict[str, NDArray[Any]]:
        """Return input_ids, attention_mask, token_type_ids (batch, longest), labels and rows (batch,); `draw` changes what varies.

        Labels are what the task's targets are, a row a window, or (batch, longest) where tokens have tags.
        """
        arrays = self.tokens.rows(rows).padded(self.pad_id)
        return {**arrays, "labels": self._labels(rows, arrays["attention_mask"]), "rows": rows}

    def _labels(self, rows: Ints, mask: Ints) -> NDArray[Any]:
        if len(self.targets) == len(self):
            found = self.targets[rows]
            return found.astype(np.int64) if found.dtype == np.int8 else found  # sets of labels are kept in bytes
        labels = np.full(mask.shape, UNLABELLED, np.int64)
        labels[mask == 1] = np.concatenate([self.targets[own] for own in self._slices(rows)])
        return labels

    def reduced(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what a score needs of the logits of a batch: here, all of them."""
        return logits

    def part(self, share: float) -> "Encoded":
        """Return a share of the examples, at least one, drawn alike each time: a smaller part lies in a larger one."""
        drawn = np.random.default_rng(0).permutation(len(self.examples))
        chosen = np.sort(drawn[: max(1, round(share * len(self.examples)))])
        rows = np.flatnonzero(np.isin(self.windows.owners, chosen))
        targets = np.concatenate([self.targets[rows]] if len(self.targets) == len(self) else [self.targets[s] for s in self._slices(rows)])
        windows = self.windows.rows(rows, np.searchsorted(chosen, self.windows.owners[rows]))
        return dataclasses.replace(self, windows=windows, targets=targets, examples=[self.examples[i] for i in chosen])

    def _slices(self, rows: Ints) -> list[slice]:
        starts = self.tokens.starts
        return [slice(starts[row], starts[row + 1]) for row in rows]

    def outcomes(self, logits: Floats) -> NDArray[Any]:
        """Return one row an example, of which scores are computed; logits are (windows, classes) or (tokens, classes)."""
        return self.task.outcomes(logits, self.windows, self.examples, self.outputs)

    def score(self, logits: Floats, metric: str) -> float:
        """Return the metric of logits."""
        return self.task.metrics[metric](self.outcomes(logits))

    def divergence(self, logits: Floats, reference: Floats) -> float:
        """Return how far answers lie from the reference's: the mean KL divergence from it, or squared distance of numbers."""
        ours, theirs = torch.from_numpy(logits), torch.from_numpy(reference)
        if self.task.per_token and self.task.choice == "labels":  # of words' other pieces nothing is asked, and nothing was learned
            asked = torch.from_numpy(self.targets != UNLABELLED)
            ours, theirs = ours[asked], theirs[asked]
        if self.task.choice != "positions":
            return float(soft_label_loss(ours, theirs, torch.empty(0), self.task.choice, 1.0))
        spans = [slice(*span) for span in self.windows.spans()]
        real = [torch.ones(1, span.stop - span.start, dtype=torch.bool) for span in spans]
        found = [soft_label_loss(ours[None, s], theirs[None, s], mask, "positions", 1.0) for s, mask in zip(spans, real, strict=True)]
        return float(torch.stack(found).mean())


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")


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
