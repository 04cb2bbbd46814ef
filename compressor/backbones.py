"""How a length-adaptive student runs its layers one by one, family by family.

To add a family: one class, or an entry of an old one, in BACKBONES.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import RecipeError


class Backbone(Protocol):
    """The steps of a classifier's forward pass, one call a part, so that tokens may leave between them."""

    layers: Sequence[nn.Module]

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the first hidden state (batch, seq, width)."""
        ...

    def project(self, layer: Any, queries: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q of `queries`, k and v of `states`, each (batch, tokens, width)."""
        ...

    def attended(self, layer: Any, context: Tensor, queries: Tensor) -> Tensor:
        """Return the attention block's output (batch, queries, width) from its context, with residual and normalisation."""
        ...

    def feed_forward(self, layer: Any, states: Tensor) -> Tensor:
        """Return the layer's output (batch, tokens, width)."""
        ...

    def dropout(self, layer: Any) -> nn.Module:
        """Return the dropout of attention probabilities."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (batch, labels) of hidden states whose first token is [CLS]."""
        ...


class BertBackbone:
    """BERT, RoBERTa and ELECTRA."""

    def __init__(self, model: Any) -> None:
        self.model, self.encoder = model, model.base_model
        self.layers = self.encoder.encoder.layer
        self.segments = model.config.type_vocab_size > 1

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return embeddings, at the layers' width."""
        hidden: Tensor = self.encoder.embeddings(input_ids=input_ids, token_type_ids=token_type_ids if self.segments else None)
        return self.encoder.embeddings_project(hidden) if hasattr(self.encoder, "embeddings_project") else hidden

    def project(self, layer: Any, queries: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v."""
        attention = layer.attention.self
        return attention.query(queries), attention.key(states), attention.value(states)

    def attended(self, layer: Any, context: Tensor, queries: Tensor) -> Tensor:
        """Return the attention block's output."""
        output: Tensor = layer.attention.output(context, queries)
        return output

    def feed_forward(self, layer: Any, states: Tensor) -> Tensor:
        """Return the layer's output."""
        output: Tensor = layer.output(layer.intermediate(states), states)
        return output

    def dropout(self, layer: Any) -> nn.Module:
        """Return the dropout of attention probabilities."""
        module: nn.Module = layer.attention.self.dropout
        return module

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's logits: BERT pools [CLS] itself, the others' heads do."""
        pooler = getattr(self.encoder, "pooler", None)
        found: Tensor = self.model.classifier(states if pooler is None else self.model.dropout(pooler(states)))
        return found


class DistilBertBackbone:
    """DistilBERT."""

    def __init__(self, model: Any) -> None:
        self.model, self.layers = model, model.distilbert.transformer.layer

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return embeddings; this family has no segments."""
        hidden: Tensor = self.model.distilbert.embeddings(input_ids)
        return hidden

    def project(self, layer: Any, queries: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v."""
        attention = layer.attention
        return attention.q_lin(queries), attention.k_lin(states), attention.v_lin(states)

    def attended(self, layer: Any, context: Tensor, queries: Tensor) -> Tensor:
        """Return the attention block's output."""
        output: Tensor = layer.sa_layer_norm(layer.attention.out_lin(context) + queries)
        return output

    def feed_forward(self, layer: Any, states: Tensor) -> Tensor:
        """Return the layer's output."""
        output: Tensor = layer.output_layer_norm(layer.ffn(states) + states)
        return output

    def dropout(self, layer: Any) -> nn.Module:
        """Return the dropout of attention probabilities."""
        module: nn.Module = layer.attention.dropout
        return module

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's logits."""
        pooled = torch.relu(self.model.pre_classifier(states[:, 0]))
        found: Tensor = self.model.classifier(self.model.dropout(pooled))
        return found


BACKBONES: dict[str, Callable[[Any], Backbone]] = {
    "bert": BertBackbone,
    "roberta": BertBackbone,
    "electra": BertBackbone,
    "distilbert": DistilBertBackbone,
}
"""Families that can be length-adaptive students."""


def backbone(model: PreTrainedModel) -> Backbone:
    """Return the steps of this model's forward pass.

    Raises:
        RecipeError: its family cannot be a length-adaptive student.
    """
    kind = model.config.model_type
    if kind not in BACKBONES:
        raise RecipeError(f"{kind} encoders cannot be length-adaptive students; choose one of {', '.join(sorted(BACKBONES))}")
    return BACKBONES[kind](model)
