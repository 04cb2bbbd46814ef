"""Encoder families: where each keeps its parts, and what a forward pass computed inside them.

To add a family: one entry in FAMILIES; to make it a length-adaptive student too, one in BACKBONES of compressor/backbones.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import RecipeError


@dataclass(frozen=True)
class Family:
    """Where an encoder keeps its parts: paths from the classifier to embeddings and layers, and from a layer to its projections."""

    embeddings: str
    layers: str
    query: str
    key: str
    value: str


def _bert_like(name: str, block: str = "attention.self", parts: tuple[str, str, str] = ("query", "key", "value")) -> Family:
    return Family(f"{name}.embeddings", f"{name}.encoder.layer", *(f"{block}.{part}" for part in parts))


FAMILIES = {
    "bert": _bert_like("bert"),
    "roberta": _bert_like("roberta"),
    "electra": _bert_like("electra"),
    "mpnet": _bert_like("mpnet", "attention.attn", ("q", "k", "v")),
    "deberta-v2": _bert_like("deberta", parts=("query_proj", "key_proj", "value_proj")),
    "distilbert": Family("distilbert.embeddings", "distilbert.transformer.layer", "attention.q_lin", "attention.k_lin", "attention.v_lin"),
}
"""Encoders whose insides distillation can read."""


def select_layers(teacher: PreTrainedModel, layers: Sequence[int], section: str = "distill") -> PreTrainedModel:
    """Return a copy of the teacher's classifier with these of its layers only.

    Raises:
        RecipeError: a layer is out of range.
    """
    config = teacher.config.__class__.from_dict({**teacher.config.to_dict(), "num_hidden_layers": len(layers)})
    path = family(teacher).layers
    source = teacher.get_submodule(path)
    wrong = [layer for layer in layers if layer >= len(source)]
    if wrong:
        raise RecipeError(f"{section}.student.layers: {wrong[0]} is out of range; the teacher has layers 0 to {len(source) - 1}")
    student = teacher.__class__(config)
    state = {k: v for k, v in teacher.state_dict().items() if not k.startswith(path + ".")}
    for position, layer in enumerate(layers):
        state |= {f"{path}.{position}.{k}": v for k, v in source[layer].state_dict().items()}
    student.load_state_dict(state)
    return student


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
    """What decides whether an objective fits an encoder: layers, hidden size, attention heads."""

    layers: int
    width: int
    heads: int


@dataclass
class Inner:
    """What a forward pass computed inside, each (batch, seq, width): hidden states, embeddings first, and every layer's projections."""

    hidden: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@contextmanager
def captured(model: PreTrainedModel) -> Iterator[Inner]:
    """Collect what the next forward pass computes inside."""
    where, seen = family(model), Inner()
    projected = f"{where.embeddings}_project"  # ELECTRA's embeddings may be narrower than its layers
    embeddings = projected if hasattr(model.get_submodule(projected.rpartition(".")[0]), "embeddings_project") else where.embeddings
    blocks = list(model.get_submodule(where.layers))  # type: ignore[arg-type]
    wanted: list[tuple[nn.Module, list[Tensor]]] = [(model.get_submodule(embeddings), seen.hidden)]
    for block in blocks:
        wanted += [
            (block.get_submodule(path), to)
            for path, to in ((where.query, seen.queries), (where.key, seen.keys), (where.value, seen.values))
        ]
        wanted.append((block, seen.hidden))

    def keep(to: list[Tensor]) -> Callable[..., None]:
        return lambda _module, _inputs, output: to.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep(to)) for module, to in wanted]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def shape_of(model: PreTrainedModel) -> Shape:
    """Return what decides whether an objective fits this model."""
    config = model.config
    return Shape(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
