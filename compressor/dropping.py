"""Drop-and-Restore: tokens leave after a layer's attention, and come back with the last state they had before a per-token head.

What:     in torch for training, as few operators of whole rows in the exported graph (compressor/operators.py). With `neighbours` a
          token counts for those beside it too, so that a text is left in whole stretches.
Paper:    Length-Adaptive Transformer (arXiv:2010.07003).
Formula:  score of token j = mean of the significance of tokens j - n … j + n of the text, and a (2n + 1)th of its own once more, by which
          the tokens of a text that is shorter than that differ; tokens that have left count nothing.
Limits:   which tokens leave has no gradient; what their states become has.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compressor.attention import DOMAIN, node


class State(NamedTuple):
    """What is known of the tokens that are still there, each text's most significant ones first once any have left."""

    hidden: Tensor
    """(batch, tokens, hidden)"""
    real: Tensor
    """Which are tokens and no padding, bool (batch, tokens)."""
    rows: Tensor
    """Where each stood in the text, int64 (batch, tokens)."""
    ahead: Tensor
    """By how much each goes before others when tokens leave, (batch, tokens)."""


def drop(state: State, significance: Tensor, keep: Tensor, leaves: Tensor, neighbours: int = 0, *, ordered: bool = False) -> State:
    """Keep the `keep[b]` most significant real tokens of each text, most significant first, by themselves and `neighbours` on each side.

    Where no text's tokens leave, `leaves` is false and the graph does nothing, not even reorder; `ordered` leaves any text that stays whole
    in its order, which counts where tokens vote by their places.
    """
    if not torch.onnx.is_in_onnx_export():
        return _drop(state, significance, keep, neighbours, ordered)
    inputs = (*state, significance, keep, leaves)
    if not torch.compiler.is_exporting():
        return State(*_Drop.apply(*inputs, neighbours, ordered))  # type: ignore[no-untyped-call]
    left: Any = keep.max().item()  # a symbol
    torch._check(left >= 1)  # type: ignore[no-untyped-call]
    batch, _, width = state.hidden.shape
    name, settings = _named(neighbours, ordered)
    return State(*node(name, inputs, ((batch, left, width), *[(batch, left)] * 3), [x.dtype for x in state], settings))


ORDERED = "_in_order"
"""How the names of nodes end that leave whole texts in their order."""


def _named(neighbours: int, ordered: bool) -> tuple[str, dict[str, Any]]:
    """Return the node's name and its settings."""
    size, ending = 2 * neighbours + 1, ORDERED * ordered
    if not neighbours:
        return f"drop{ending}", {}
    return f"drop_around{ending}", {"kernel": [size], "pads": [neighbours] * 2, "share": 1 / size}


def _around(significance: Tensor, rows: Tensor, neighbours: int) -> Tensor:
    size, significance = 2 * neighbours + 1, significance.float()
    in_text = significance.new_zeros(len(rows), int(rows.max()) + 1).scatter(1, rows, significance)
    means = nn.functional.avg_pool1d(in_text[:, None], size, stride=1, padding=neighbours)[:, 0]
    return means.gather(1, rows) + significance / size


def _drop(state: State, significance: Tensor, keep: Tensor, neighbours: int, ordered: bool) -> State:
    significance = _around(significance, state.rows, neighbours) if neighbours else significance
    score = significance + state.ahead
    if ordered:
        by_place = torch.arange(score.shape[1], 0, -1, dtype=score.dtype, device=score.device)
        score = torch.where((keep >= state.real.sum(1))[:, None], by_place, score)
    score = score.masked_fill(~state.real, -1.0)
    kept = score.topk(keep.max(), dim=1).indices  # type: ignore[arg-type]
    real = torch.arange(kept.shape[1], device=kept.device) < keep[:, None]
    return State(rows_of(state.hidden, kept), real, state.rows.gather(1, kept), state.ahead.gather(1, kept))


def rows_of(states: Tensor, rows: Tensor) -> Tensor:
    """Return chosen rows (batch, rows, hidden) of each text's states (batch, seq, hidden)."""
    batch, seq, width = states.shape  # rows of a flattened table: gather() on an expanded index copies number by number
    flat = (rows + torch.arange(batch, device=states.device)[:, None] * seq).flatten()
    return states.reshape(-1, width).index_select(0, flat).view(batch, -1, width)


class _Drop(torch.autograd.Function):
    """One node; what it stands for is a function of the graph."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        significance, keep, _, neighbours, ordered = given[4:]
        return tuple(_drop(State(*given[:4]), significance, keep, neighbours, ordered))

    @staticmethod
    def symbolic(
        g: Any,
        hidden: Any,
        real: Any,
        rows: Any,
        ahead: Any,
        significance: Any,
        keep: Any,
        leaves: Any,
        neighbours: int,
        ordered: bool,
    ) -> Any:
        state, (name, told) = (hidden, real, rows, ahead), _named(neighbours, ordered)
        settings = {f"{key}_{'f' if key == 'share' else 'i'}": value for key, value in told.items()}
        found = g.op(f"{DOMAIN}::{name}", *state, significance, keep, leaves, **settings, outputs=4)
        for left, before in zip(found, state, strict=True):
            left.setType(before.type().with_sizes([None] * (before.type().dim())))
        return found


class _Restore(torch.autograd.Function):
    """One node; what it stands for is a function of the graph."""

    @staticmethod
    def forward(
        ctx: Any, restored: Tensor, hidden: Tensor, rows: Tensor, starts: Tensor, real: Tensor, padded: Tensor, due: Tensor
    ) -> Tensor:
        return _put_back(restored, hidden, rows, real)

    @staticmethod
    def symbolic(g: Any, restored: Any, hidden: Any, rows: Any, starts: Any, real: Any, padded: Any, due: Any) -> Any:
        found = g.op(f"{DOMAIN}::restore", restored, hidden, rows, starts, real, padded, due)
        found.setType(restored.type())
        return found


def put_back(restored: Tensor, state: State, padded: Tensor, due: Tensor) -> Tensor:
    """Return restored (batch, seq, hidden) with the states of kept tokens replaced; surplus places leave theirs as it is.

    The graph does it where it is `due`: before some of them leave, and at the end. `padded` says whether any place is surplus.
    """
    if torch.onnx.is_in_onnx_export():
        batch, seq, _ = restored.shape
        starts = torch.arange(batch, device=restored.device)[:, None] * seq  # where each text begins among the tokens of all
        inputs = (restored, state.hidden, state.rows, starts, state.real, padded, due)
        if not torch.compiler.is_exporting():
            return _Restore.apply(*inputs)  # type: ignore[no-untyped-call,no-any-return]
        return node("restore", inputs, [restored.shape], [restored.dtype])[0]
    return _put_back(restored, state.hidden, state.rows, state.real)


def _put_back(restored: Tensor, hidden: Tensor, rows: Tensor, real: Tensor) -> Tensor:
    index = rows[..., None].expand_as(hidden)
    return restored.scatter(1, index, torch.where(real[..., None], hidden.to(restored.dtype), restored.gather(1, index)))
