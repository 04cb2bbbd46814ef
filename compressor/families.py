"""Encoder families: where each keeps its parts, and what a forward pass computed inside them.

To add a family: one entry in FAMILIES; to make it a length-adaptive student too, one in BACKBONES of compressor/backbones.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import RecipeError


@dataclass(frozen=True)
class Family:
    """Where an encoder keeps its parts: paths from the classifier to embeddings and layers, and from a layer to its projections.

    One path for all three projections means that one product computes them, side by side.
    """

    embeddings: str
    layers: str
    query: str
    key: str
    value: str
    output: str
    own_scores: bool = field(default=False, kw_only=True)
    """Whether attention scores are more than q·kᵀ / √head_dim and what `score_bias` returns."""


def _bert_like(
    name: str,
    block: str = "attention.self",
    parts: tuple[str, str, str] = ("query", "key", "value"),
    output: str = "attention.output.dense",
    own_scores: bool = False,
) -> Family:
    query, key, value = (f"{block}.{part}" for part in parts)
    return Family(f"{name}.embeddings", f"{name}.encoder.layer", query, key, value, output, own_scores=own_scores)


FAMILIES = {
    "bert": _bert_like("bert"),
    "roberta": _bert_like("roberta"),
    "electra": _bert_like("electra"),
    "mpnet": _bert_like("mpnet", "attention.attn", ("q", "k", "v"), "attention.attn.o"),
    "deberta-v2": _bert_like("deberta", parts=("query_proj", "key_proj", "value_proj"), own_scores=True),
    "modernbert": Family("model.embeddings", "model.layers", *("attn.Wqkv",) * 3, "attn.Wo", own_scores=True),
    "distilbert": Family(
        "distilbert.embeddings", "distilbert.transformer.layer", *(f"attention.{part}_lin" for part in ("q", "k", "v", "out"))
    ),
}
"""Encoders whose insides distillation can read."""


def family(model: PreTrainedModel) -> Family:
    """Return where this model's family keeps its parts.

    Raises:
        RecipeError: the family is not known.
    """
    if model.config.model_type not in FAMILIES:
        raise RecipeError(f"{model.config.model_type} encoders are not known here; use one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model.config.model_type]


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides whether an objective fits an encoder: layers, hidden size, attention heads, and whether scores are the family's own."""

    layers: int
    width: int
    heads: int
    own_scores: bool = False


Part = Literal["hidden", "queries", "keys", "values"]
PROJECTIONS: tuple[Part, ...] = ("queries", "keys", "values")
Place = tuple[Part, int]
"""What a layer computes, and which: counted from 0, or negative from the end; hidden state 0 is the embeddings', 1 the first layer's."""
Inner = Mapping[Place, Tensor]
"""What a forward pass computed at some places, each (batch, seq, width)."""


@contextmanager
def captured(model: PreTrainedModel, places: Iterable[Place]) -> Iterator[dict[Place, Tensor]]:
    """Collect what the next forward pass, and none after it, computes at these places.

    Raises:
        RecipeError: the family is not known.
    """
    seen: dict[Place, Tensor] = {}

    def keep(place: Place, third: int | None) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            whole: Tensor = output[0] if isinstance(output, tuple) else output
            # DeBERTa-v3 makes queries and keys of its relative positions too, by the same products, after those of its tokens.
            seen.setdefault(place, whole if third is None else whole.chunk(3, -1)[third])

        return hook

    handles = [module.register_forward_hook(keep(place, third)) for place in places for module, third in [_module_at(model, place)]]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _module_at(model: PreTrainedModel, place: Place) -> tuple[nn.Module, int | None]:
    """Return the module that computes a place, and which third of its output that is, where one product makes q, k and v."""
    where, (part, layer) = family(model), place
    blocks = encoder_layers(model)
    if part == "hidden":
        projected = f"{where.embeddings}_project"  # ELECTRA's embeddings may be narrower than its layers
        narrow = hasattr(model.get_submodule(projected.rpartition(".")[0]), "embeddings_project")
        return [model.get_submodule(projected if narrow else where.embeddings), *blocks][layer], None
    paths = dict(zip(PROJECTIONS, (where.query, where.key, where.value), strict=True))
    return blocks[layer].get_submodule(paths[part]), PROJECTIONS.index(part) if where.query == where.key else None


def encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the encoder's layers."""
    layers = model.get_submodule(family(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def shape_of(model: PreTrainedModel) -> Shape:
    """Return what decides whether an objective fits this model."""
    config = model.config
    own_scores = config.model_type in FAMILIES and FAMILIES[config.model_type].own_scores
    return Shape(config.num_hidden_layers, config.hidden_size, getattr(config, "num_attention_heads", 0), own_scores)


def position_table(model: PreTrainedModel) -> nn.Embedding | None:
    """Return the embeddings of a model's positions, if it has any; with a `padding_idx`, RoBERTa's way, the first is the one behind it."""
    named = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((module for module in named if isinstance(module, nn.Embedding)), None)


def score_bias(model: PreTrainedModel, mask: Tensor) -> Tensor | None:
    """Return what is added to attention scores (1, heads, seq, seq), in all layers alike, of a batch with this mask (batch, seq)."""
    if model.config.model_type != "mpnet":
        return None
    bias: Tensor = model.base_model.encoder.compute_position_bias(mask[:1].to(model.device))
    return bias.to(mask.device)
