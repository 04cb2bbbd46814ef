"""How a length-adaptive student runs its layers one by one, family by family.

To add a family: one class, or an entry of an old one, in BACKBONES.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.attention import UNSEEN
from compressor.errors import RecipeError


class Backbone(Protocol):
    """The steps of a classifier's forward pass, one call a part, so that tokens may leave between them."""

    layers: Sequence[nn.Module]

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the first hidden state (batch, seq, width)."""
        ...

    def project(self, layer: Any, queries: Tensor, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q of `queries`, k and v of `states`, each (batch, tokens, width).

        `positions` (batch, tokens) says where each state stood in its text; the queries are the first of the states.
        """
        ...

    def bias(self, layer: Any, positions: Tensor) -> Tensor | None:
        """Return what is added to attention scores (batch, heads or 1, tokens, tokens), of queries by keys; None: nothing is."""
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
        """Return the logits (batch, labels) of states whose first is [CLS], or (batch, seq, outputs) of a head that reads every token."""
        ...


class BertBackbone:
    """BERT, RoBERTa and ELECTRA."""

    def __init__(self, model: Any) -> None:
        self.model, self.encoder = model, model.base_model
        self.layers = self.encoder.encoder.layer
        self.segments = getattr(model.config, "type_vocab_size", 0) > 1

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return embeddings, at the layers' width."""
        hidden: Tensor = self.encoder.embeddings(input_ids=input_ids, token_type_ids=token_type_ids if self.segments else None)
        return self.encoder.embeddings_project(hidden) if hasattr(self.encoder, "embeddings_project") else hidden

    def bias(self, layer: Any, positions: Tensor) -> Tensor | None:
        """Return None: positions are in the embeddings, and attention is global."""
        return None

    def project(self, layer: Any, queries: Tensor, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v; positions are in the embeddings."""
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
        if reads_tokens(self.model):
            return _token_logits(self.model, states)
        pooler = getattr(self.encoder, "pooler", None)
        found: Tensor = self.model.classifier(states if pooler is None else self.model.dropout(pooler(states)))
        return found


class MPNetBackbone(BertBackbone):
    """MPNet: how far a key stands from its query is worth a bias, one table for all layers."""

    FARTHEST = 128
    """Distances beyond it count as it does."""

    def bias(self, layer: Any, positions: Tensor) -> Tensor:
        """Return the bias of each head by where query and key stood in their text."""
        within = self.encoder.encoder
        distances = torch.arange(-self.FARTHEST, self.FARTHEST + 1, device=positions.device)
        table = within.relative_attention_bias(within.relative_position_bucket(distances))  # (257, heads)
        apart = (positions[:, None, :] - positions[:, :, None]).clamp(-self.FARTHEST, self.FARTHEST) + self.FARTHEST
        return F.embedding(apart, table).permute(0, 3, 1, 2)

    def project(self, layer: Any, queries: Tensor, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v."""
        attention = layer.attention.attn
        return attention.q(queries), attention.k(states), attention.v(states)

    def attended(self, layer: Any, context: Tensor, queries: Tensor) -> Tensor:
        """Return the attention block's output."""
        block = layer.attention
        output: Tensor = block.LayerNorm(block.dropout(block.attn.o(context)) + queries)
        return output

    def dropout(self, layer: Any) -> nn.Module:
        """Return the dropout of attention probabilities."""
        module: nn.Module = layer.attention.attn.dropout
        return module


class DistilBertBackbone:
    """DistilBERT."""

    def __init__(self, model: Any) -> None:
        self.model, self.layers = model, model.distilbert.transformer.layer

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return embeddings; this family has no segments."""
        hidden: Tensor = self.model.distilbert.embeddings(input_ids)
        return hidden

    def bias(self, layer: Any, positions: Tensor) -> Tensor | None:
        """Return None: positions are in the embeddings, and attention is global."""
        return None

    def project(self, layer: Any, queries: Tensor, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v; positions are in the embeddings."""
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
        if reads_tokens(self.model):
            return _token_logits(self.model, states)
        pooled = torch.relu(self.model.pre_classifier(states[:, 0]))
        found: Tensor = self.model.classifier(self.model.dropout(pooled))
        return found


class ModernBertBackbone:
    """ModernBERT: positions turn queries and keys (rotary embedding), and most layers see only neighbours."""

    def __init__(self, model: Any) -> None:
        self.model, self.encoder = model, model.model
        self.layers, self.heads = self.encoder.layers, model.config.num_attention_heads
        if model.config.classifier_pooling != "cls" and not reads_tokens(model):
            raise RecipeError(
                "modernbert students adapt their length with classifier_pooling cls only; set it in the model's config.json and "
                "let the head learn it (teacher.finetune)"
            )

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return embeddings; this family has no segments."""
        hidden: Tensor = self.encoder.embeddings(input_ids=input_ids)
        return hidden

    def bias(self, layer: Any, positions: Tensor) -> Tensor | None:
        """Return what hides tokens that stood far from each other in their text."""
        if layer.attention_type != "sliding_attention":
            return None
        near = (positions[:, :, None] - positions[:, None, :]).abs() <= self.model.config.sliding_window
        return torch.where(near, 0.0, UNSEEN)[:, None]

    def project(self, layer: Any, queries: Tensor, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and k, turned by where each token stood in its text, and v."""
        # Of a width that is no tensor's size the exporters make constants, and only constant weights become INT8.
        width, weight, bias = layer.attn.Wqkv.in_features, layer.attn.Wqkv.weight, layer.attn.Wqkv.bias
        normed = layer.attn_norm(states)
        q = F.linear(normed[:, : queries.shape[1]], weight[:width], None if bias is None else bias[:width])
        k, v = F.linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, -1)
        cos, sin = self.encoder.rotary_emb(states, positions, layer.attention_type)  # (batch, tokens, head_dim)
        return self._turned(q, cos, sin), self._turned(k, cos, sin), v

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = x.view(*x.shape[:2], self.heads, -1)
        first, second = heads.float().chunk(2, -1)
        turned = heads * cos[:, : x.shape[1], None] + torch.cat([-second, first], -1) * sin[:, : x.shape[1], None]
        return turned.to(x.dtype).flatten(2)

    def attended(self, layer: Any, context: Tensor, queries: Tensor) -> Tensor:
        """Return the attention block's output."""
        output: Tensor = queries + layer.attn.out_drop(layer.attn.Wo(context))
        return output

    def feed_forward(self, layer: Any, states: Tensor) -> Tensor:
        """Return the layer's output."""
        output: Tensor = states + layer.mlp(layer.mlp_norm(states))
        return output

    def dropout(self, layer: Any) -> nn.Module:
        """Return the dropout of attention probabilities."""
        return nn.Dropout(layer.attn.attention_dropout).train(layer.training)

    def logits(self, states: Tensor) -> Tensor:
        """Return the head's logits."""
        if reads_tokens(self.model):
            return _token_logits(self.model, self.encoder.final_norm(states))
        pooled = self.model.head(self.encoder.final_norm(states[:, 0]))
        found: Tensor = self.model.classifier(self.model.drop(pooled))
        return found


def reads_tokens(model: PreTrainedModel) -> bool:
    """Say whether the model's head reads every token: that of token classification or of question answering."""
    return type(model).__name__.endswith(("ForTokenClassification", "ForQuestionAnswering"))


def _token_logits(model: Any, states: Tensor) -> Tensor:
    """Return a per-token head's logits (batch, seq, outputs); the families name its parts alike."""
    for part in ("head", "drop", "dropout"):
        states = getattr(model, part)(states) if hasattr(model, part) else states
    logits: Tensor = model.qa_outputs(states) if hasattr(model, "qa_outputs") else model.classifier(states)
    return logits


BACKBONES: dict[str, Callable[[Any], Backbone]] = {
    "bert": BertBackbone,
    "roberta": BertBackbone,
    "electra": BertBackbone,
    "mpnet": MPNetBackbone,
    "distilbert": DistilBertBackbone,
    "modernbert": ModernBertBackbone,
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
