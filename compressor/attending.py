"""Attention to train with: what it keeps of long texts is little, because the backward pass computes their probabilities again.

What:     softmax(q·kᵀ + added)·v, with dropout that leaves out the same pairs of tokens in all heads: at 512 tokens the random numbers
          for each head on its own took half of a training step.
Paper:    Self-attention Does Not Need O(n²) Memory (arXiv:2112.05682): texts in parts, nothing of a part's probabilities is kept.
Limits:   in parts on a CPU only, where `benchmarks/attending.py` tells what it gives: the system maps a tensor above 32 MB anew each time,
          and fills its pages with zeros, which took more of a step than the products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compressor.dropout import drawn, factors

LARGE = 32 * 2**20
"""Bytes of probabilities above which texts are read in parts: glibc's malloc maps what is larger."""
PART = 16 * 2**20
"""Bytes of a part's probabilities, at least one text's."""

Read = Callable[[Tensor, slice], Tensor]
"""What is read off the probabilities (texts, heads, queries, keys) of the texts of a slice, before dropout: (texts, …), no gradients."""


def attend(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, dropout: float = 0.0, read: Read | None = None) -> tuple[Tensor, Tensor]:
    """Return the context (batch, heads, queries, head_dim), and what was read (batch, …), or nothing (0,).

    q (batch, heads, queries, head_dim) is scaled; k and v are (batch, heads, keys, head_dim); `added`, to the scores, broadcasts to
    (batch, heads, queries, keys).
    """
    batch, heads, queries, _ = q.shape
    text = heads * queries * k.shape[2] * q.element_size()
    kept = drawn((batch, 1, queries, k.shape[2]), dropout, q.device)
    if q.device.type == "cpu" and torch.is_grad_enabled() and batch * text > LARGE and not (added is not None and added.requires_grad):
        found: tuple[Tensor, Tensor] = _Recomputed.apply(q, k, v, added, kept, dropout, read, max(1, PART // text))  # type: ignore[no-untyped-call]
        return found
    probabilities = _probabilities(q, k, added)
    told = q.new_zeros(0) if read is None else read(probabilities.detach(), slice(None))
    return (probabilities if kept is None else probabilities * factors(kept, dropout, probabilities.dtype)) @ v, told


def _probabilities(q: Tensor, k: Tensor, added: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    return (scores if added is None else scores + added.to(scores.dtype)).softmax(-1)


class _Recomputed(torch.autograd.Function):
    """Attention of `size` texts after `size` texts."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, kept: Tensor | None, dropout: float, read: Read | None, size: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, added, kept)
        ctx.dropout, ctx.size = dropout, size
        contexts, told = list[Tensor](), list[Tensor]()
        for texts in _parts(q, size):
            probabilities = _probabilities(q[texts], k[texts], _of(added, texts))
            if read:
                told.append(read(probabilities, texts))
            if kept is not None:
                probabilities = probabilities * factors(kept[texts], dropout, probabilities.dtype)
            contexts.append(probabilities @ v[texts])
        found = torch.cat(told) if told else q.new_zeros(0)
        ctx.mark_non_differentiable(found)
        return torch.cat(contexts), found

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, added, kept = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for texts in _parts(q, ctx.size):
            probabilities = _probabilities(q[texts], k[texts], _of(added, texts))
            seen, back = probabilities, gradient[texts] @ v[texts].transpose(-1, -2)
            if kept is not None:
                factor = factors(kept[texts], ctx.dropout, probabilities.dtype)
                seen, back = probabilities * factor, back * factor
            dv[texts] = seen.transpose(-1, -2) @ gradient[texts]
            scores = torch.ops.aten._softmax_backward_data(back, probabilities, -1, probabilities.dtype)
            dq[texts] = scores @ k[texts]
            dk[texts] = scores.transpose(-1, -2) @ q[texts]
        return dq, dk, dv, None, None, None, None, None


def _parts(q: Tensor, size: int) -> list[slice]:
    return [slice(begin, begin + size) for begin in range(0, len(q), size)]


def _of(added: Tensor | None, texts: slice) -> Tensor | None:
    return added if added is None or len(added) == 1 else added[texts]
