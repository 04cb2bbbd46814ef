"""Self-attention and what is read off it: how much each token counts. In torch for training, as one operator each in the exported graph.

What:     the exporter writes the operators below as single nodes: compressor/operators.py says what onnxruntime computes for them.
Formula:  context = softmax(q·kᵀ / √d)·v; significance of token j = sum over heads and real queries i of attention[i, j], where i is every
          token, every eighth, each of a question's, or [CLS] alone.
Limits:   the operators have no gradients; they are used while a graph is traced.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.attending import attend

DOMAIN = "compressor"
"""Domain of the graph's own functions."""
Votes = Literal["attention", "sampled", "question", "cls", "none"]
"""Whose attention counts for a token: all real tokens', every eighth's from [CLS] on, the question's, [CLS]'s, or nobody's, where no
token leaves."""
Significance = Literal[Votes, "learned"]
"""What a token counts by: a layer's attention, or what it has learned of the last layer's (compressor/ranking.py)."""
EVERY = 8
"""Of so many tokens one is asked where significance is sampled."""
UNSEEN = -1e4
"""Score of a token that must not be seen."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor,
    voters: Tensor,
    bias: Tensor | None,
    heads: int,
    kind: Votes,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the context (batch, queries, hidden) and the significance (batch, seq), of kind none empty (0,).

    q is (batch, queries, hidden), k and v are (batch, seq, hidden); `real` (batch, seq) says which keys are no padding, `voters` (batch,
    seq) whose attention counts; `bias` (batch, heads or 1, queries, seq) is added to the scores.
    """

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # (batch, heads, tokens, head_dim)

    def read(probabilities: Tensor, texts: slice) -> Tensor:
        return significance_of(probabilities, voters[texts], kind)

    unseen = torch.where(real, 0.0, UNSEEN)[:, None, None].to(q.dtype)
    added = unseen if bias is None else bias.to(q.dtype) + unseen
    context, significance = attend(split(q) * (q.shape[-1] // heads) ** -0.5, split(k), split(v), added, dropout, read)
    return context.transpose(1, 2).flatten(2), significance


def significance_of(probabilities: Tensor, voters: Tensor, kind: Votes) -> Tensor:
    """Return how much each key counts (batch, seq); only `voters`, no padding, have a vote. Of kind none it is empty (0,)."""
    if kind == "none":
        return probabilities.new_zeros(0)
    if kind == "cls":
        return probabilities[:, :, 0].sum(1)
    if kind == "sampled":
        probabilities, voters = probabilities[:, :, ::EVERY], voters[:, ::EVERY]
    return (probabilities * voters[:, None, :, None]).sum(2).sum(1)  # onnxruntime is 14x slower on the joint reduction


def exported_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor,
    voters: Tensor,
    padded: Tensor,
    leaves: Tensor,
    bias: Tensor | None,
    heads: int,
    size: int,
    kind: Votes,
) -> tuple[Tensor, Tensor]:
    """Return context (batch, queries, hidden) and significance (batch, seq) as one node of the graph.

    It computes significance only where tokens leave; of kind none that is empty. A question's voters come before all other tokens.
    """
    if not torch.compiler.is_exporting():
        return _Attention.apply(q, k, v, real, voters, padded, leaves, bias, heads, size, kind)  # type: ignore[no-untyped-call,no-any-return]
    name, inputs, settings = _named(bias, heads, size, kind)
    shapes = (q.shape,) if kind == "none" else (q.shape, k.shape[:2])
    found = node(name, (q, k, v, real, voters, padded, leaves, *inputs), shapes, (q.dtype,) * len(shapes), settings)
    return found[0], q.new_zeros(0) if kind == "none" else found[1]


def _named(bias: Any, heads: int, size: int, kind: Votes) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the node's name, its further inputs and its settings."""
    name, inputs = (f"attention_{kind}", []) if bias is None else (f"biased_attention_{kind}", [bias])
    return name, inputs, {"num_heads": heads, "split": [0, 0, heads, size], "scale": size**-0.5}


def node(
    name: str,
    inputs: Sequence[Tensor],
    shapes: Sequence[Sequence[int | torch.SymInt]],
    dtypes: Sequence[torch.dtype],
    settings: Mapping[str, Any] | None = None,
) -> Sequence[Tensor]:
    """Return the outputs of one of the graph's own functions, for the dynamo exporter."""
    operator = f"{DOMAIN}::{name}"
    return torch.onnx.ops.symbolic_multi_out(operator, inputs, dict(settings or {}), dtypes=dtypes, shapes=shapes, version=1)


class _Attention(torch.autograd.Function):
    """The same for the TorchScript exporter."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        q, k, v, real, voters, _, _, bias, heads, _, kind = given
        return attention(q, k, v, real, voters, bias, heads, kind)

    @staticmethod
    def symbolic(g: Any, *given: Any) -> Any:
        q, k, v, real, voters, padded, leaves, bias, heads, size, kind = given
        name, inputs, told = _named(bias, heads, size, kind)
        settings = {"num_heads_i": told["num_heads"], "split_i": told["split"], "scale_f": told["scale"]}
        found = g.op(f"{DOMAIN}::{name}", q, k, v, real, voters, padded, leaves, *inputs, **settings, outputs=1 if kind == "none" else 2)
        context, significance = (found, g.op("Constant", value_t=torch.zeros(0))) if kind == "none" else found
        context.setType(q.type())  # the exporter warns of what it cannot infer
        significance.setType(q.type().with_sizes([None, None]))
        return context, significance
