"""Encoders: loading, smaller students, and the length-adaptive forward pass with Drop-and-Restore.

What:     after a layer's attention the least significant tokens leave; before a per-token head they come back with
          the last state they had (Drop-and-Restore).
Papers:   PoWER-BERT (arXiv:2001.08950), Length-Adaptive Transformer (arXiv:2010.07003).
Formula:  significance of token j = sum over heads and real queries i of attention[i, j]; [CLS] always stays first.
Defaults: significance from all real queries (`attention`); `cls` reads only the [CLS] row.
Limits:   BERT layers; other families need an entry that says where a layer keeps its parts.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from compressor.errors import RecipeError

logging.set_verbosity_error()  # its notes (a new head has new weights) read like defects here
logging.disable_progress_bar()


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


def load_classifier(folder: Path, labels: Sequence[str]) -> PreTrainedModel:
    """Return the folder's encoder with a head for these labels; a head of that size is kept, any other is made anew.

    Raises:
        RecipeError: the folder holds no classifier that transformers can load.
    """
    names = dict(enumerate(labels))
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=names,
            label2id={v: k for k, v in names.items()},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise RecipeError(f"{folder}: {' '.join(str(error).split())[:300]}; name a folder of a transformers encoder") from error


def select_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a copy of the teacher's classifier with these of its layers only.

    Raises:
        RecipeError: a layer is out of range.
    """
    config = teacher.config.__class__.from_dict({**teacher.config.to_dict(), "num_hidden_layers": len(layers)})
    path = family(teacher).layers
    source = teacher.get_submodule(path)
    wrong = [layer for layer in layers if layer >= len(source)]
    if wrong:
        raise RecipeError(f"distill.student.layers: {wrong[0]} is out of range; the teacher has layers 0 to {len(source) - 1}")
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


class PlainClassifier(nn.Module):
    """A Hugging Face classifier that takes positional inputs and returns logits (batch, labels)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.segments = getattr(model.config, "type_vocab_size", 0) > 1  # families without segments take no token_type_ids

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        segments = {"token_type_ids": token_type_ids} if self.segments else {}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return logits


class LengthAdaptiveClassifier(nn.Module):
    """A Hugging Face BERT classifier whose forward pass takes a length configuration.

    At full lengths (`lengths=None`) it computes exactly what the wrapped model computes.

    Raises:
        RecipeError: the model is not of a supported family.
    """

    def __init__(self, model: PreTrainedModel, max_length: int, significance: str = "attention") -> None:
        super().__init__()
        if not isinstance(model, BertForSequenceClassification):
            raise RecipeError(f"a length-adaptive student must be a BERT encoder, not {model.config.model_type}; choose another student")
        self.model, self.max_length, self.significance = model, max_length, significance
        self.layers = len(model.bert.encoder.layer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (batch, labels); `lengths` is int64 (layers,), counted at max_length."""
        return self.without_layers(frozenset(), input_ids, attention_mask, token_type_ids, lengths)

    def without_layers(
        self, skipped: Set[int], input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Return logits of the sub-model in which the `skipped` layers do nothing (LayerDrop)."""
        hidden = self.encode(input_ids, attention_mask, token_type_ids, lengths, skipped, restore=False)
        logits: Tensor = self.model.classifier(self.model.dropout(self.model.bert.pooler(hidden)))
        return logits

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        lengths: Tensor | None = None,
        skipped: Set[int] = frozenset(),
        restore: bool = True,
    ) -> Tensor:
        """Return the last state of every token (batch, seq, hidden), or of [CLS] alone (batch, 1, hidden) without `restore`."""
        bert = self.model.bert
        hidden = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        real, tokens = attention_mask.bool(), attention_mask.sum(1)
        restored = hidden
        rows = torch.arange(input_ids.shape[1], device=hidden.device).expand_as(input_ids)  # where each kept token came from
        last = max(set(range(self.layers)) - skipped)
        for index, layer in enumerate(bert.encoder.layer):
            if index in skipped:
                continue
            only_cls = index == last and not restore  # a sentence head reads [CLS] alone: the rest of this layer would be thrown away
            hidden, significance = self._attend(layer, hidden, real, only_cls)
            if lengths is not None and not only_cls:
                keep = (tokens * lengths[index] + self.max_length - 1) // self.max_length  # (batch,) ceil, so at least 1
                hidden, real, kept = drop(hidden, significance, real, keep)
                rows = rows.gather(1, kept)
            hidden = layer.output(layer.intermediate(hidden), hidden)
            if restore:
                restored = put_back(restored, hidden, rows, real)
        states: Tensor = restored if restore else hidden
        return states

    def _attend(self, layer: Any, hidden: Tensor, real: Tensor, only_cls: bool) -> tuple[Tensor, Tensor]:
        """Return the attention block's output (batch, queries, hidden) and the significance of each key (batch, seq)."""
        attention, block = layer.attention.self, layer.attention
        queries = hidden[:, :1] if only_cls else hidden

        def heads(x: Tensor) -> Tensor:
            split: Tensor = x.view(*x.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)
            return split  # (batch, heads, seq, head_dim)

        q, k, v = heads(attention.query(queries)), heads(attention.key(hidden)), heads(attention.value(hidden))
        scores = q @ k.transpose(-1, -2) * attention.attention_head_size**-0.5
        bias = torch.where(real, 0.0, -1e4)[:, None, None, :].to(scores.dtype)
        probabilities = (scores + bias).softmax(-1)  # (batch, heads, queries, seq)
        context = (attention.dropout(probabilities) @ v).transpose(1, 2).flatten(2)
        output: Tensor = block.output(context, queries)
        return output, self._significance(probabilities, real, only_cls)

    def _significance(self, probabilities: Tensor, real: Tensor, only_cls: bool) -> Tensor:
        if only_cls or self.significance == "cls":
            row: Tensor = probabilities[:, :, 0].sum(1)
            return row
        # Two reductions, not sum((1, 2)): onnxruntime is 14x slower on the joint one. Padding queries have no vote.
        return (probabilities * real[:, None, :, None]).sum(2).sum(1)


def drop(hidden: Tensor, significance: Tensor, real: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `keep[b]` most significant real tokens of each text, [CLS] first.

    Returns hidden (batch, kept, hidden), which of them are real (batch, kept), and where they stood (batch, kept).
    """
    batch, seq, width = hidden.shape
    ranks = significance.detach().float().masked_fill(~real, -1.0)
    first = torch.arange(seq, device=hidden.device) == 0
    kept = ranks.masked_fill(first, torch.inf).topk(keep.max(), dim=1).indices  # type: ignore[arg-type]  # (batch, kept), most significant first
    # Rows of a flattened table, not gather() on an expanded index: the graph's Gather then copies whole rows.
    flat = (kept + torch.arange(batch, device=hidden.device)[:, None] * seq).flatten()
    chosen = hidden.reshape(-1, width).index_select(0, flat).view(batch, -1, width)
    return chosen, torch.arange(kept.shape[1], device=hidden.device) < keep[:, None], kept


def put_back(restored: Tensor, hidden: Tensor, rows: Tensor, real: Tensor) -> Tensor:
    """Return restored (batch, seq, hidden) with the states of kept tokens replaced; surplus places leave theirs as it is."""
    index = rows[..., None].expand_as(hidden)
    return restored.scatter(1, index, torch.where(real[..., None], hidden.to(restored.dtype), restored.gather(1, index)))
