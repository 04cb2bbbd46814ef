"""A narrower copy of an encoder: the hidden dimensions, heads and feed-forward neurons that carry most, sliced out of its weights.

What:     structured pruning as a starting point; distillation then mends what the cut took.
Paper:    magnitude pruning of structures, as in LLM-Pruner's and Sheared LLaMA's baselines (arXiv:2310.06694).
Formula:  a hidden dimension counts by how much the layers read from it, Σ W[:, d]²; a head by its part of the output projection;
          a neuron by |input weights| · |output weights|. The heads keep their size, the feed-forward its ratio.
Limits:   the new size must be a multiple of the head size; one feed-forward product in, one out (no gated layers).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor import adapters
from compressor.errors import RecipeError
from compressor.families import Family, encoder_layers, family


@dataclass(frozen=True)
class Kept:
    """What stays of a layer: rows of its heads, and neurons."""

    heads: Tensor
    rows: Tensor
    neurons: Tensor


def narrow(model: PreTrainedModel, width: int, key: str = "hidden_size") -> PreTrainedModel:
    """Return a copy of the model with a smaller hidden size.

    Raises:
        RecipeError: the size does not fit, or the family's layers cannot be cut.
    """
    config, where = model.config, family(model)
    old, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    if width >= old or width % head:
        sizes = f"a multiple of {head}, its head size, below {old}"
        raise RecipeError(f"{key}: {width} does not fit this teacher; choose {sizes}")
    if where.query == where.key:
        raise RecipeError(f"{key}: {config.model_type} layers cannot be narrowed; leave hidden_size out, or use another teacher")
    if hasattr(config, adapters.SIZE):
        raise RecipeError(f"{key}: layers with adapters cannot be narrowed; leave hidden_size out, or choose another finetune.method")
    inner = _inner_size(model, where)
    embedded = getattr(config, "embedding_size", old)
    if getattr(config, "conv_kernel_size", 0) or (embedded != old and embedded in (width, inner)):
        told = "its embeddings have a size of their own" if embedded != old else "it convolves its tokens"
        raise RecipeError(f"{key}: {width} does not fit this teacher, because {told}; choose another, or leave hidden_size out")
    layers = list(encoder_layers(model))
    hidden = _hidden_dimensions(layers, where, old, width)
    scores = [_head_scores(layer, where, head) for layer in layers]
    if any(_by_head(m, config) for m in model.modules()):
        scores = [torch.stack(scores).sum(0)] * len(layers)  # what is shared by all layers ties their heads together
    kept = [_kept(layer, s, head, width // head, inner, inner * width // old) for layer, s in zip(layers, scores, strict=True)]
    smaller = config.__class__.from_dict(config.to_dict() | _sizes(config, width, width // head, inner * width // old))
    student = model.__class__(smaller)
    student.load_state_dict(_sliced(model, where, old, inner, hidden, kept))
    return student


def _sizes(config: Any, width: int, heads: int, inner: int) -> dict[str, int]:
    names = {"hidden_size": "hidden_size", "num_attention_heads": "num_attention_heads"} | config.attribute_map
    wide = "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"  # DistilBERT's name for it
    pooler = {"pooler_hidden_size": width} if hasattr(config, "pooler_hidden_size") else {}  # DeBERTa's
    # ELECTRA's: embeddings of the layers' size are cut with them, those of a size of their own are projected
    embedded = {"embedding_size": width} if getattr(config, "embedding_size", None) == config.hidden_size else {}
    return {names["hidden_size"]: width, names["num_attention_heads"]: heads, wide: inner} | pooler | embedded


def _inner_size(model: PreTrainedModel, where: Family) -> int:
    first = encoder_layers(model)[0]
    wide = {m.out_features for m in first.modules() if isinstance(m, nn.Linear)} - {model.config.hidden_size}
    if len(wide) != 1 or model.config.num_labels in (model.config.hidden_size, *wide):
        raise RecipeError(f"{model.config.model_type} layers of this shape cannot be narrowed; leave hidden_size out")
    return wide.pop()


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _hidden_dimensions(layers: list[nn.Module], where: Family, old: int, width: int) -> Tensor:
    mixed = [layer.get_submodule(where.output) for layer in layers]  # which read what heads made, and no hidden dimensions
    linears = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear) and m.in_features == old and m not in mixed]
    return _top(torch.stack([m.weight.detach().float().square().sum(0) for m in linears]).sum(0), width)


def _head_scores(layer: nn.Module, where: Family, head: int) -> Tensor:
    output = layer.get_submodule(where.output)
    assert isinstance(output, nn.Linear)
    return output.weight.detach().float().square().sum(0).view(-1, head).sum(1)


def _by_head(module: nn.Module, config: Any) -> bool:
    """Say whether a table holds a number for each head: MPNet's relative positions."""
    return isinstance(module, nn.Embedding) and module.embedding_dim == config.num_attention_heads != config.hidden_size


def _kept(layer: nn.Module, head_scores: Tensor, head: int, heads: int, inner: int, neurons: int) -> Kept:
    linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    chosen = _top(head_scores, heads)
    rows = (chosen[:, None] * head + torch.arange(head)).flatten()
    first, second = (next(m for m in linears if getattr(m, side) == inner) for side in ("out_features", "in_features"))
    scores = first.weight.detach().float().norm(dim=1) * second.weight.detach().float().norm(dim=0)
    return Kept(chosen, rows, _top(scores, neurons))


def _sliced(model: PreTrainedModel, where: Family, old: int, inner: int, hidden: Tensor, kept: list[Kept]) -> dict[str, Tensor]:
    """Return the state of the narrower model."""
    state, attention = dict(model.state_dict()), where.query.rpartition(".")[0]
    for name, module in model.named_modules():
        number, _, path = name.removeprefix(where.layers + ".").partition(".") if name.startswith(where.layers + ".") else ("", "", name)
        part = kept[int(number)] if number else kept[0]
        by_width = {old: hidden, inner: part.neurons}
        if isinstance(module, nn.Linear):
            inside = number and path.startswith(attention + ".") and path != where.output
            out = part.rows if inside and module.out_features == old else by_width.get(module.out_features)
            into = part.rows if number and path == where.output else by_width.get(module.in_features)
            _cut(state, name, out, into)
        elif isinstance(module, nn.Embedding):
            _cut(state, name, None, part.heads if _by_head(module, model.config) else by_width.get(module.embedding_dim))
        elif f"{name}.weight" in state and not list(module.children()):  # LayerNorms
            _cut(state, name, by_width.get(module.weight.shape[0]), None)  # type: ignore[union-attr,index]
    return state


def _cut(state: dict[str, Tensor], name: str, rows: Tensor | None, columns: Tensor | None) -> None:
    weight = state[f"{name}.weight"]
    weight = weight if rows is None else weight[rows]
    state[f"{name}.weight"] = weight if columns is None else weight[:, columns]
    if rows is not None and f"{name}.bias" in state:
        state[f"{name}.bias"] = state[f"{name}.bias"][rows]
