"""Dropout that is cheap on a CPU: a random number for every element took a quarter of a training step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CheapDropout(nn.Dropout):
    """Dropout (arXiv:1207.0580) that decides four elements by one 64-bit random number, 16 bits each.

    The probability is rounded to a multiple of 2^-16; the mask is drawn from torch's own generator, so seeds hold.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with elements zeroed with probability p, the others scaled by 1 / (1 - p)."""
        if not self.training or (kept := drawn(input.shape, self.p, input.device)) is None:
            return input
        return input * factors(kept, self.p, input.dtype)


def drawn(shape: Sequence[int], p: float, device: torch.device) -> Tensor | None:
    """Return which elements stay (bool, of this shape), each left out with probability p; None: all stay."""
    level = _level(p)
    if level == 0:
        return None
    if device.type not in ("cpu", "cuda"):  # others, as Apple's, draw no 64 bits at once
        return torch.rand(tuple(shape), device=device) >= level / 2**16
    count = math.prod(shape)
    numbers = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    return numbers.view(torch.int16)[:count].view(*shape) >= level - 2**15


def factors(kept: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """Return what elements are multiplied by: 1 / (1 - p) where they stay, else 0."""
    return kept.to(dtype) * (2**16 / (2**16 - _level(p)))


def _level(p: float) -> int:
    return round(p * 2**16)
