"""Learned significance: every layer learns to rank tokens as the last one will.

What:     a layer's own attention ranks badly where texts are long and the layer is early. One vector a layer reads each token's state after
          attention instead; it is taught by the attention that the full model's last layer pays.
Paper:    ToP, Constraint-aware and Ranking-distilled Token Pruning (arXiv:2306.13812), which teaches attention itself.
Formula:  significance of token j = softmax over the text's tokens of √width · (w · state of j); loss = KL(last layer's attention ‖ it), of
          the tokens that are not sure to stay.
Defaults: the states are detached: rankings are read off the encoder, they do not shape it.
Limits:   one linear map: what only several tokens together tell, such as the answer to a question, it cannot rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.attention import DOMAIN, UNSEEN, node

NAME = "rankers"
"""Their weights among the model's own, (layers, width)."""
OPERATOR = "learned"


def significance_of(states: Tensor, ranker: Tensor, real: Tensor, leaves: Tensor) -> Tensor:
    """Return how much each token counts (batch, tokens) by a layer's vector (width,); the graph says so only where tokens leave.

    `states` are (batch, tokens, width); `real` (batch, tokens) says which are no padding.
    """
    ranker = scaled(ranker)
    if not torch.onnx.is_in_onnx_export():
        return _significance(states, ranker, real)
    if not torch.compiler.is_exporting():
        return _Learned.apply(states, ranker, real, leaves)  # type: ignore[no-untyped-call,no-any-return]
    return node(OPERATOR, (states, ranker, real, leaves), [real.shape], [states.dtype])[0]


def ranking_loss(states: list[Tensor], rankers: Tensor, attention: Tensor, open_: Tensor) -> Tensor:
    """Return how far the layers' rankings lie from the last layer's: the mean KL divergence over texts and layers, a width-th of it.

    `states` are each layer's (batch, tokens, width), `attention` (batch, tokens) what the last layer pays, and `open_` (batch, tokens) says
    of which tokens it is open whether they stay.
    """
    paid = attention.float() * open_
    goal = paid / paid.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    found = [_scores(state.detach().float(), scaled(ranker)) for state, ranker in zip(states, rankers, strict=True)]
    told = torch.stack([score.masked_fill(~open_, UNSEEN).log_softmax(1) for score in found])
    # Gradients are clipped by the norm of all together, of which this must take no part; to Adam the size of a loss is nothing.
    apart: Tensor = functional.kl_div(told, goal.expand_as(told), reduction="none").sum(2)
    return apart.mean() / rankers.shape[1]


def scaled(ranker: Tensor) -> Tensor:
    """Return the vector times √width: it learns at the encoder's rate, at which small numbers alone would take it too long."""
    found: Tensor = ranker * ranker.shape[-1] ** 0.5
    return found


def _scores(states: Tensor, ranker: Tensor) -> Tensor:
    return (states * ranker).sum(-1)  # no product of matrices, which would become INT8


def _significance(states: Tensor, ranker: Tensor, real: Tensor) -> Tensor:
    return _scores(states, ranker).masked_fill(~real, UNSEEN).softmax(1)


class _Learned(torch.autograd.Function):
    """One node; what it stands for is a function of the graph."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, ranker: Tensor, real: Tensor, leaves: Tensor) -> Tensor:
        return _significance(states, ranker, real)

    @staticmethod
    def symbolic(g: Any, states: Any, ranker: Any, real: Any, leaves: Any) -> Any:
        found = g.op(f"{DOMAIN}::{OPERATOR}", states, ranker, real, leaves)
        found.setType(states.type().with_sizes([None, None]))
        return found
