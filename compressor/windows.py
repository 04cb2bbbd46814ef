"""Token windows of examples: most texts are one window, a long one of a task that reads it all is several that overlap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from compressor.tokens import Ints, Tokens


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
        """Return the tokens of the first eight windows."""
        return self.tokens.first(min(8, len(self)))

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
    long = {row for row, text in enumerate(texts) if not isinstance(text, str) and min(len(side.encode()) for side in text) > max_length}
    if not long:
        return Windows.whole(Tokens.of(_encoded(tokenizer, texts)))
    read = iter(Tokens.of(_encoded(tokenizer, [text for row, text in enumerate(texts) if row not in long])))
    return Windows.whole(Tokens.joined([_long_pair(tokenizer, t, max_length) if r in long else next(read) for r, t in enumerate(texts)]))


def _encoded(tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]]) -> list[Encoding]:
    """Return what a tokenizer makes of texts; of single ones without the places, which nobody reads, of pairs they tell the segments."""
    if all(isinstance(text, str) for text in texts):
        return tokenizer.encode_batch_fast(list(texts))
    return tokenizer.encode_batch(list(texts))


def _long_pair(tokenizer: Tokenizer, pair: str | tuple[str, str], max_length: int) -> Tokens:
    """Return a pair of long texts as the tokenizer reads it, from its sides.

    Of a pair it keeps every piece that it cuts off of one side beside every piece of the other: of 20,000 characters each 400 MB.
    """
    sides = [[id for piece in pieces(found) for id in piece.ids] for found in tokenizer.encode_batch(list(pair), add_special_tokens=False)]
    room, form = max_length - tokenizer.num_special_tokens_to_add(True), tokenizer.encode("a", "a")  # where sides and special tokens stand
    if not {0, 1} <= {*form.sequence_ids}:  # it has no token for "a"
        return Tokens.of([tokenizer.encode(*pair)])
    counts, ids, segments = _longest_first(len(sides[0]), len(sides[1]), room), list[int](), list[int]()
    for place, (id, segment, side) in enumerate(zip(form.ids, form.type_ids, form.sequence_ids, strict=True)):
        if side is None:
            ids.append(id)
        elif place == form.sequence_ids.index(side):
            ids += sides[side][: counts[side]]
        segments += [segment] * (len(ids) - len(segments))
    return Tokens(np.array(ids, np.int32), np.array(segments, np.int8), np.array([0, len(ids)]))


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two sides a tokenizer keeps: of the longer one what is left, of two long ones half each."""
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    kept = (shorter, room - shorter) if 2 * shorter <= room else (room // 2, room // 2 + room % 2)
    return kept if first <= second else kept[::-1]


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
