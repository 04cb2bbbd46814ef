"""Token ids of many texts, end to end in flat arrays: 5 bytes a token, where tokenizers.Encoding objects take 5 KB a text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Token ids and segment ids of texts; text `i` is `[starts[i]:starts[i + 1]]`.

    Shapes: ids int32 (tokens,), segments int8 (tokens,), starts int64 (texts + 1,).
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int8]
    starts: Ints

    @classmethod
    def of(cls, encodings: Iterable[Encoding]) -> "Tokens":
        """Return the flat form of what a tokenizer returned."""
        found = list(encodings)
        if len(found) == 1:
            ids = np.array(found[0].ids, np.int32)
            return cls(ids, np.array(found[0].type_ids, np.int8), np.array([0, len(ids)]))
        starts = np.concatenate([[0], np.cumsum([len(e) for e in found], dtype=np.int64)])
        ids = np.fromiter(chain.from_iterable(e.ids for e in found), np.int32, starts[-1])
        return cls(ids, np.fromiter(chain.from_iterable(e.type_ids for e in found), np.int8, starts[-1]), starts)

    @classmethod
    def joined(cls, parts: Sequence["Tokens"]) -> "Tokens":
        """Return the texts of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64))
        lengths = np.concatenate([p.lengths for p in parts])
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return cls(np.concatenate([p.ids for p in parts]), np.concatenate([p.segments for p in parts]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator["Tokens"]:
        """Yield each text as tokens of its own."""
        return (self.of_text(row) for row in range(len(self)))

    @property
    def lengths(self) -> Ints:
        """Tokens of each text, (texts,)."""
        return np.diff(self.starts)

    def of_text(self, row: int) -> "Tokens":
        """Return one text."""
        begin, end = self.starts[row], self.starts[row + 1]
        return Tokens(self.ids[begin:end], self.segments[begin:end], np.array([0, end - begin]))

    def first(self, count: int) -> "Tokens":
        """Return the first so many texts."""
        end = self.starts[count]
        return Tokens(self.ids[:end], self.segments[:end], self.starts[: count + 1])

    def rows(self, chosen: Sequence[int] | Ints) -> "Tokens":
        """Return the chosen texts, in that order."""
        return self.joined([self.of_text(row) for row in chosen])

    def padded(self, pad_id: int) -> dict[str, Ints]:
        """Return input_ids, attention_mask and token_type_ids, each int64 (texts, longest)."""
        if len(self) == 1:  # most requests are of one text, and a small graph answers it in a millisecond: nothing is to be padded
            alone = self.ids[None].astype(np.int64)
            return {"input_ids": alone, "attention_mask": np.ones_like(alone), "token_type_ids": self.segments[None].astype(np.int64)}
        lengths = self.lengths
        real = np.arange(lengths.max()) < lengths[:, None]
        ids, segments = np.full(real.shape, pad_id, np.int64), np.zeros(real.shape, np.int64)
        ids[real], segments[real] = self.ids, self.segments
        return {"input_ids": ids, "attention_mask": real.astype(np.int64), "token_type_ids": segments}


def content_of(text: Tokens) -> bytes:
    """Return what tells a text from others: its token and segment ids."""
    return text.ids.astype("<i4").tobytes() + b"/" + text.segments.astype("i1").tobytes()


def length_batches(lengths: Ints, batch_size: int, seed: int | None = None) -> list[Ints]:
    """Return batches of rows of like length: sorted throughout without a seed, else shuffled and sorted in windows of 50 batches."""
    rows = np.arange(len(lengths))
    if seed is None:
        return _cut(rows[lengths.argsort(kind="stable")], batch_size)
    rng = np.random.default_rng(seed)
    rng.shuffle(rows)
    ordered = np.concatenate([rows[:0], *(window[lengths[window].argsort(kind="stable")] for window in _cut(rows, 50 * batch_size))])
    batches = _cut(ordered, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def in_order(found: Sequence[Floats], batches: Sequence[Sequence[int] | Ints], lengths: Ints) -> Floats:
    """Return the logits of batches of rows in the order of the rows, without padding.

    Shapes: of each batch (texts, classes) or (texts, longest, classes); the result is (texts, classes) or (tokens, classes).
    """
    if found[0].ndim == 2:
        joined = np.concatenate(found)
        joined[np.concatenate(batches)] = joined.copy()
        return joined
    parts: dict[int, Floats] = {}
    for rows, logits in zip(batches, found, strict=True):
        parts |= {int(row): own[: lengths[row]] for row, own in zip(rows, logits, strict=True)}
    return np.concatenate([parts[row] for row in range(len(lengths))])


def _cut(rows: Ints, size: int) -> list[Ints]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
