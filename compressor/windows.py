"""Token windows of examples: most texts are one window, a long one of a task that reads it all is several that overlap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from compressor.tokens import Ints, Tokens

MARGIN = 16
"""Tokens that the longer side of a pair is left ahead of the other, of which some may be the spaces where it was cut."""


@dataclass(frozen=True)
class Windows:
    """Windows, the example that each is of, and where its tokens stand there.

    Shapes: owners (windows,); places (tokens, k) with -1 for a token that stands nowhere; what a place is, the task says.
    """

    tokens: Tokens
    owners: Ints
    places: NDArray[np.int32]

    @classmethod
    def whole(cls, tokens: Tokens) -> "Windows":
        """Return one window an example, of tasks that ask nothing of single tokens."""
        return cls(tokens, np.arange(len(tokens)), np.zeros((len(tokens.ids), 0), np.int32))

    @classmethod
    def joined(cls, parts: Sequence["Windows"], examples: Sequence[int]) -> "Windows":
        """Return the windows of all parts, which are of so many examples each."""
        before = np.cumsum([0, *examples])[: len(parts)]
        owners = [part.owners + first for part, first in zip(parts, before, strict=True)]
        return cls(Tokens.joined([p.tokens for p in parts]), np.concatenate(owners), np.concatenate([p.places for p in parts]))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def count(self) -> int:
        """How many examples these windows are of."""
        return int(self.owners[-1]) + 1

    def first(self, examples: int) -> Tokens:
        """Return the tokens of all windows of the first so many examples."""
        return self.tokens.first(int((self.owners < examples).sum()))

    def few(self) -> Tokens:
        """Return the tokens of the first eight windows, fewer where they are so long that a batch of them takes gigabytes."""
        longest = np.maximum.accumulate(self.tokens.lengths[:8])
        bearable = np.arange(1, len(longest) + 1) * longest**2 <= 8 * 512**2
        return self.tokens.first(max(1, int(bearable.sum())))

    def rows(self, chosen: Ints, owners: Ints) -> "Windows":
        """Return the chosen windows, in that order, as those of other owners."""
        places = [self.places[self.tokens.starts[row] : self.tokens.starts[row + 1]] for row in chosen]
        return Windows(self.tokens.rows(chosen), owners, np.concatenate(places))

    def spans(self) -> Iterable[tuple[int, int]]:
        """Yield where each window's tokens begin and end in flat arrays, as those of places and logits."""
        return pairwise(self.tokens.starts.tolist())

    def of_examples(self, count: int) -> list[list[int]]:
        """Return the windows of each of so many examples."""
        found: list[list[int]] = [[] for _ in range(count)]
        for window, owner in enumerate(self.owners.tolist()):
            found[owner].append(window)
        return found


def whole_texts(tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]], max_length: int) -> Windows:
    """Return each text, or pair of texts, in one piece: the longer side is cut first."""
    settle(tokenizer, max_length)
    return Windows.whole(
        Tokens.of(tokenizer.encode_batch_fast([t if isinstance(t, str) else _shortened(tokenizer, t, max_length) for t in texts]))
    )


def _shortened(tokenizer: Tokenizer, pair: tuple[str, str], max_length: int) -> tuple[str, str]:
    """Return a pair that is read alike, without most of what is cut off where both sides are long.

    A tokenizer keeps every piece that it cuts off of one side beside every piece of the other: of two texts of 20,000 characters 400 MB.
    The longer side stays the longer one, because that is the one which is cut.
    """
    if min(map(len, pair)) <= max_length:
        return pair
    first, second = (pieces(found) for found in tokenizer.encode_batch(list(pair), add_special_tokens=False))
    if sum(map(len, second)) < sum(map(len, first)):
        text, tokens = _beginning(pair[1], second, max_length)
        return _beginning(pair[0], first, max(tokens, max_length) + MARGIN)[0], text
    text, tokens = _beginning(pair[0], first, max_length)
    return text, _beginning(pair[1], second, max(tokens, max_length) + MARGIN)[0]


def _beginning(text: str, found: Sequence[Encoding], tokens: int) -> tuple[str, int]:
    """Return a text up to the word that begins after so many tokens, and how many tokens at most that is."""
    before, number = None, 0
    for piece in found:
        for word, (begin, _) in zip(piece.word_ids, piece.offsets, strict=True):
            if number >= tokens and word != before:
                return text[:begin].rstrip(), number
            before, number = word, number + 1
    return text, number


def settle(tokenizer: Tokenizer, max_length: int, stride: int = 0, strategy: str = "longest_first") -> None:
    """Make a tokenizer cut texts so, and pad none; one that does is left alone, so that several threads may read with it at once."""
    wanted = {"max_length": max_length, "stride": stride, "strategy": strategy, "direction": "right"}
    if tokenizer.padding is not None:
        tokenizer.no_padding()
    if tokenizer.truncation != wanted:
        tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy)


def pieces(encoding: Encoding) -> list[Encoding]:
    """Return all windows of one example, in their order."""
    return [encoding, *encoding.overflowing]
