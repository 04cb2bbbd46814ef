"""Length configurations: how many tokens each layer passes on.

What:     lengths are counted at `max_length` tokens and scale with each text: a text of n real tokens keeps
          ceil(n * length / max_length) of them after a layer; absolute ones keep min(n, length). Either way a prediction never
          depends on its batch.
Paper:    LengthDrop, Length-Adaptive Transformer (arXiv:2010.07003); PoWER-BERT (arXiv:2001.08950).
Formula:  multiply-accumulates of a layer: 4H²·n_in + 2H·n_in² + 2HI·n_out + H(n_in + n_out); H·L for the embeddings.
Limits:   the closed form counts a sentence task's last layer like any other, though its graph computes only [CLS] there.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GATED = ("modernbert",)
"""Families whose feed-forward has a third product, which gates (GLU)."""


def gated_inner(family: str, inner: int) -> int:
    """Return the size of the feed-forward of two products that multiplies as much as a family's own."""
    return inner * 3 // 2 if family in GATED else inner


@dataclass(frozen=True, slots=True)
class LengthConfig:
    """Non-increasing token counts, one per layer, for texts of `max_length` tokens.

    Raises:
        ValueError: a layer would keep more than it receives, or nothing.
    """

    lengths: tuple[int, ...]
    max_length: int
    absolute: bool = False
    """Whether each text keeps up to so many tokens, instead of its share."""

    def __post_init__(self) -> None:
        passed = self.max_length
        for layer, length in enumerate(self.lengths):
            if length < 1:
                raise ValueError(f"layer {layer} keeps {length} tokens; at least 1 must stay")
            if length > passed:
                raise ValueError(f"layer {layer} keeps {length} tokens but only {passed} reach it")
            passed = length

    @classmethod
    def full(cls, layers: int, max_length: int) -> "LengthConfig":
        """Return the configuration that drops nothing."""
        return cls((max_length,) * layers, max_length)

    @classmethod
    def smallest(cls, layers: int, max_length: int, bound: float, left: float | None = None) -> "LengthConfig":
        """Return the configuration that drops the largest share `bound` at every layer, or such a one that `left` is left of all."""
        bound = bound if left is None else 1 - left ** (1 / layers)
        return cls.repaired((max_length * (1 - bound) ** (layer + 1) for layer in range(layers)), max_length)

    @classmethod
    def sample(cls, layers: int, max_length: int, bound: float, rng: random.Random, least: Sequence[int] = ()) -> "LengthConfig":
        """Draw each length from [(1 - bound) * previous, previous] (LengthDrop), and no lower than a layer keeps at `least`."""
        lengths, passed = [], max_length
        for layer in range(layers):
            floor = least[layer] if least else 1
            passed = rng.randint(max(floor, math.ceil((1 - bound) * passed)), passed)
            lengths.append(passed)
        return cls(tuple(lengths), max_length)

    @classmethod
    def repaired(cls, lengths: Iterable[float], max_length: int) -> "LengthConfig":
        """Return the nearest valid configuration below the given lengths: a running minimum, at least 1."""
        result, passed = [], max_length
        for length in lengths:
            passed = max(1, min(passed, round(length)))
            result.append(passed)
        return cls(tuple(result), max_length)

    def kept(self, tokens: int) -> tuple[int, ...]:
        """Return how many of a text's real tokens each layer passes on."""
        if self.absolute:
            return tuple(min(tokens, length) for length in self.lengths)
        return tuple(-(-tokens * length // self.max_length) for length in self.lengths)

    def macs(self, hidden: int, intermediate: int, tokens: int | None = None) -> int:
        """Return the encoder's multiply-accumulates for a text of `tokens` (default: max_length)."""
        passed = tokens or self.max_length
        total = hidden * passed
        for n_out in self.kept(passed):
            total += 4 * hidden**2 * passed + 2 * hidden * passed**2 + 2 * hidden * intermediate * n_out + hidden * (passed + n_out)
            passed = n_out
        return total
