"""Drop-and-Restore: tokens leave after a layer's attention, and come back with the last state they had before a per-token head.

What:     in torch for training, as few operators of whole rows in the exported graph (compressor/operators.py).
Paper:    Length-Adaptive Transformer (arXiv:2010.07003).
Limits:   which tokens leave has no gradient; what their states become has.
"""

from typing import Any

import torch
from torch import Tensor

from compressor.attention import DOMAIN


def drop(hidden: Tensor, significance: Tensor, real: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `keep[b]` most significant real tokens of each text, most significant first.

    Returns hidden (batch, kept, hidden), which of them are real (batch, kept), and where they stood (batch, kept).
    """
    kept = significance.masked_fill(~real, -1.0).topk(keep.max(), dim=1).indices  # type: ignore[arg-type]
    return rows_of(hidden, kept), torch.arange(kept.shape[1], device=hidden.device) < keep[:, None], kept


class _Rows(torch.autograd.Function):
    """One GatherND, which copies whole rows."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, rows: Tensor) -> Tensor:
        return states.gather(1, rows[..., None].expand(-1, -1, states.shape[-1]))

    @staticmethod
    def symbolic(g: Any, states: Any, rows: Any) -> Any:
        index = g.op("Unsqueeze", rows, g.op("Constant", value_t=torch.tensor([-1])))
        return g.op("GatherND", states, index, batch_dims_i=1)


def rows_of(states: Tensor, rows: Tensor) -> Tensor:
    """Return chosen rows (batch, rows, hidden) of each text's states (batch, seq, hidden)."""
    if torch.onnx.is_in_onnx_export():
        chosen: Tensor = _Rows.apply(states, rows)  # type: ignore[no-untyped-call]
        return chosen
    batch, seq, width = states.shape  # rows of a flattened table: gather() on an expanded index copies number by number
    flat = (rows + torch.arange(batch, device=states.device)[:, None] * seq).flatten()
    return states.reshape(-1, width).index_select(0, flat).view(batch, -1, width)


class _Restore(torch.autograd.Function):
    """One node; what it stands for is a function of the graph."""

    @staticmethod
    def forward(ctx: Any, restored: Tensor, hidden: Tensor, rows: Tensor, starts: Tensor, real: Tensor, padded: Tensor) -> Tensor:
        return _put_back(restored, hidden, rows, real)

    @staticmethod
    def symbolic(g: Any, restored: Any, hidden: Any, rows: Any, starts: Any, real: Any, padded: Any) -> Any:
        found = g.op(f"{DOMAIN}::restore", restored, hidden, rows, starts, real, padded)
        found.setType(restored.type())
        return found


def put_back(restored: Tensor, hidden: Tensor, rows: Tensor, real: Tensor, starts: Tensor, padded: Tensor) -> Tensor:
    """Return restored (batch, seq, hidden) with the states of kept tokens replaced; surplus places leave theirs as it is.

    `starts` (batch, 1) says where each text begins among the tokens of all, `padded` whether any place is surplus: the graph reads them.
    """
    if torch.onnx.is_in_onnx_export():
        states: Tensor = _Restore.apply(restored, hidden, rows, starts, real, padded)  # type: ignore[no-untyped-call]
        return states
    return _put_back(restored, hidden, rows, real)


def _put_back(restored: Tensor, hidden: Tensor, rows: Tensor, real: Tensor) -> Tensor:
    index = rows[..., None].expand_as(hidden)
    return restored.scatter(1, index, torch.where(real[..., None], hidden.to(restored.dtype), restored.gather(1, index)))
