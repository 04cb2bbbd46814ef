"""Learned significance: every layer learns to rank tokens by what they are worth to the whole model.

What:     a layer's own attention ranks badly where texts are long and the layer is early. What a layer has learned reads each token's state
          after attention instead: one vector, or where a question is protected two small matrices, which hold each token against each of
          the question's. The full model teaches it: by the attention that its last layer pays, or where it chooses positions, by its
          answers, whose neighbours count as far as the recipe says.
Papers:   ToP, Constraint-aware and Ranking-distilled Token Pruning (arXiv:2306.13812), which teaches attention itself; the comparison with
          each token of a question is ColBERT's late interaction (arXiv:2004.12832), with a sum in its maximum's place.
Formula:  significance of token j = softmax over the text's tokens of √width · (w · state of j); of a question's tokens q: the sum over q
          of softmax over all pairs (j, q) of width · (A · state of j) · (B · state of q). Loss = KL(worth ‖ significance), of the tokens
          that are not sure to stay.
Defaults: RANK 32. States are detached from what attention teaches: such rankings are read off the encoder. Answers teach the encoder
          too, or its early layers would not know enough of them.
Limits:   answers that only the upper layers can find are lost where tokens leave earlier.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.attention import DOMAIN, UNSEEN, node
from compressor.choices import Choice
from compressor.losses import answers

NAME = "rankers"
"""Their weights among the model's own: (layers, width), or of those that hold tokens against a question's (layers, 2, RANK, width)."""
OPERATOR = "learned"
RANK = 32
"""Numbers by which a token is held against each of a question's: at a width of 384, their products are a 70th of a layer's."""


def untaught(layers: int, width: int, *, question: bool) -> nn.Parameter:
    """Return the layers' rankers as they begin: without a question all tokens count alike."""
    if not question:
        return nn.Parameter(torch.zeros(layers, width))
    drawn = torch.randn(layers, 2, RANK, width, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(drawn / (2 * width))  # products of two states, of about one a number, are then about one


def significance_of(states: Tensor, ranker: Tensor, real: Tensor, asking: Tensor, leaves: Tensor) -> Tensor:
    """Return how much each token counts (batch, tokens) by a layer's ranker; the graph says so only where tokens leave.

    `states` are (batch, tokens, width); `real` (batch, tokens) says which are no padding, `asking` which are a question's; those come
    first.
    """
    ranker = scaled(ranker)
    if not torch.onnx.is_in_onnx_export():
        return _log_significance(states, ranker, real, asking).exp()
    name, inputs = _named(states, ranker, real, asking, leaves)
    if not torch.compiler.is_exporting():
        return _Learned.apply(name, real, *inputs)  # type: ignore[no-untyped-call,no-any-return]
    return node(name, inputs, [real.shape], [states.dtype])[0]


def worth(logits: Tensor, attention: Tensor, mask: Tensor, choice: Choice, neighbours: int) -> Tensor:
    """Return what each token is worth to the full model (batch, seq): what the last layer attends to, or where answers begin and end.

    `attention` is (batch, seq), `mask` (batch, seq) says which tokens are no padding. Of positions, `neighbours` on each side count too.
    """
    if choice != "positions":
        return attention.detach().float()
    likely = answers(logits.detach(), mask, choice).softmax(-1).view(len(logits), -1, mask.shape[1]).mean(1)
    return functional.avg_pool1d(likely[:, None], 2 * neighbours + 1, stride=1, padding=neighbours)[:, 0]


def ranking_loss(states: list[Tensor], rankers: Tensor, paid: Tensor, open_: Tensor, asking: Tensor) -> Tensor:
    """Return how far the layers' rankings lie from what tokens are worth: the mean KL divergence over texts and layers.

    `states` are each layer's (batch, tokens, width), `paid` (batch, tokens) what a token is worth; `open_` (batch, tokens) says of which
    tokens it is open whether they stay, `asking` which are a question's.
    """
    paid = paid * open_
    goal = paid / paid.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    told = torch.stack([_log_significance(s.float(), _calm(r), open_, asking) for s, r in zip(states, rankers, strict=True)])
    return functional.kl_div(told, goal.expand_as(told), reduction="none").sum(2).mean()


def scaled(ranker: Tensor) -> Tensor:
    """Return the ranker times √width: it learns at the encoder's rate, at which small numbers alone would take it too long."""
    found: Tensor = ranker * ranker.shape[-1] ** 0.5
    return found


def _calm(ranker: Tensor) -> Tensor:
    """Return the scaled ranker, of whose gradient a width-th arrives.

    Gradients are clipped by the norm of all together, of which this must take no part; to Adam the size of its own is nothing.
    """
    found = scaled(ranker)
    return found.detach() + (found - found.detach()) / ranker.shape[-1]


def _log_significance(states: Tensor, ranker: Tensor, real: Tensor, asking: Tensor) -> Tensor:
    if ranker.ndim == 1:
        return (states * ranker).sum(-1).masked_fill(~real, UNSEEN).log_softmax(1)
    longest = int(asking.sum(1).max())
    ours, theirs = states @ ranker[0].T, states[:, :longest] @ ranker[1].T  # (batch, tokens, RANK), (batch, longest, RANK)
    pairs = (ours @ theirs.transpose(1, 2)).float()
    pairs = pairs.masked_fill(~(real[:, :, None] & asking[:, None, :longest]), UNSEEN)
    return pairs.flatten(1).log_softmax(1).view_as(pairs).logsumexp(2)


def _named(states: Tensor, ranker: Tensor, real: Tensor, asking: Tensor, leaves: Tensor) -> tuple[str, tuple[Tensor, ...]]:
    """Return the node's name and its inputs."""
    if ranker.ndim == 1:
        return OPERATOR, (states, ranker, real, leaves)
    return f"{OPERATOR}_of_question", (states, ranker[0].T, ranker[1].T, real, asking, leaves)


class _Learned(torch.autograd.Function):
    """One node; what it stands for is a function of the graph."""

    @staticmethod
    def forward(ctx: Any, name: str, real: Tensor, *inputs: Tensor) -> Tensor:
        return torch.zeros(real.shape, dtype=inputs[0].dtype)

    @staticmethod
    def symbolic(g: Any, name: str, real: Any, *inputs: Any) -> Any:
        found = g.op(f"{DOMAIN}::{name}", *inputs)
        found.setType(inputs[0].type().with_sizes([None, None]))
        return found
