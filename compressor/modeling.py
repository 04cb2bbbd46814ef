"""Forward passes of an encoder with a head: the plain one, and the length-adaptive one with Drop-and-Restore.

What:     after a layer's attention the least significant tokens leave; before a per-token head they come back with
          the last state they had (Drop-and-Restore).
Papers:   PoWER-BERT (arXiv:2001.08950), Length-Adaptive Transformer (arXiv:2010.07003).
Formula:  significance of token j = sum over heads and real queries i of attention[i, j]; [CLS] always stays first.
Defaults: significance from all real queries (`attention`); `sampled` asks every eighth of them, `question` the question's, `cls` only
          [CLS], `learned` what the layer has learned of a token's worth (compressor/ranking.py); `protect` question lets the question's
          tokens leave last; with `neighbours` those beside a token count for it too.
Limits:   the families of compressor/backbones.py; a question is told by segment ids, which RoBERTa's tokenizers do not give.
"""

from collections.abc import Set

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor import ranking
from compressor.attention import Significance, Votes, attention, exported_attention
from compressor.backbones import backbone, reads_tokens
from compressor.choices import Choice
from compressor.dropping import State, drop, put_back

AHEAD = 1e4
"""More than any token's significance by attention, which is at most heads times queries."""
AHEAD_OF_SHARES = 3.0
"""More than any that layers have learned, which are shares of one: beside 10,000 those of a question's tokens would all be alike."""


class PlainModel(nn.Module):
    """A Hugging Face model that takes positional inputs and returns logits: (batch, labels), or (batch, seq, outputs) of every token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.segments = getattr(model.config, "type_vocab_size", 0) > 1  # families without segments take no token_type_ids

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        segments = {"token_type_ids": token_type_ids} if self.segments else {}
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        if "start_logits" in answer:
            return torch.stack([answer.start_logits, answer.end_logits], -1)
        logits: Tensor = answer.logits
        return logits


class LengthAdaptiveModel(nn.Module):
    """A Hugging Face model whose forward pass takes a length configuration.

    At full lengths (`lengths=None`) it computes exactly what the wrapped model computes.

    Raises:
        RecipeError: the model is not of a supported family.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_length: int,
        significance: Significance = "attention",
        protect: str = "cls",
        counts: str = "ratio",
        neighbours: int = 0,
    ) -> None:
        """Take a model in; the settings are those of a recipe's `length_adapt`."""
        super().__init__()
        self.parts = backbone(model)
        self.model, self.max_length, self.significance, self.protect = model, max_length, significance, protect
        self.absolute, self.neighbours = counts == "absolute", neighbours
        self.ahead = AHEAD_OF_SHARES if significance == "learned" else AHEAD
        self.layers, self.heads = len(self.parts.layers), model.config.num_attention_heads
        self.head_size = model.config.hidden_size // self.heads
        self.per_token = reads_tokens(model)
        self.votes: Votes = "none" if significance == "learned" else significance
        if significance == "learned" and not hasattr(model, ranking.NAME):
            rankers = ranking.untaught(self.layers, model.config.hidden_size, question=protect == "question")
            model.register_parameter(ranking.NAME, rankers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits as the plain model; `lengths` is int64 (layers,), counted at max_length."""
        return self.without_layers(frozenset(), input_ids, attention_mask, token_type_ids, lengths)

    def without_layers(
        self, skipped: Set[int], input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """Return logits of the sub-model in which the `skipped` layers do nothing (LayerDrop)."""
        return self.parts.logits(self.encode(input_ids, attention_mask, token_type_ids, lengths, skipped, restore=self.per_token))

    def with_ranking_loss(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Return logits at full length, and how far the layers' learned rankings lie from what tokens are worth: KL, a number."""
        seen, mask, ahead = list[Tensor](), attention_mask.bool(), self._ahead(token_type_ids)
        logits = self.parts.logits(self.encode(input_ids, attention_mask, token_type_ids, restore=self.per_token, seen=seen))
        *states, attention = seen
        states = states if choice == "positions" else [state.detach() for state in states]
        ranked = states if self.per_token else states[:-1]  # a sentence head reads [CLS] alone of the last layer
        rankers = getattr(self.model, ranking.NAME)[: len(ranked)]
        paid = ranking.worth(logits, attention, mask, choice, self.neighbours)
        return logits, ranking.ranking_loss(ranked, rankers, paid, mask & (ahead == 0), mask & (ahead >= self.ahead))

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        lengths: Tensor | None = None,
        skipped: Set[int] = frozenset(),
        restore: bool = True,
        states: Tensor | None = None,
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the last state of every token (batch, seq, hidden), or of [CLS] alone (batch, 1, hidden) without `restore`.

        The `skipped` layers do nothing; `states` (batch, seq, hidden) stand in for the embeddings. At full length, `seen` is given each
        layer's states after attention, and then the attention that the last one pays each token (batch, seq).
        """
        hidden, tokens = self.parts.embed(input_ids, token_type_ids) if states is None else states, attention_mask.sum(1)
        rows = torch.arange(input_ids.shape[1], device=hidden.device).expand_as(input_ids)
        state, restored = State(hidden, attention_mask.bool(), rows, self._ahead(token_type_ids)), hidden
        padded = ~state.real.all()
        keep = None if lengths is None else self._kept(tokens, lengths)
        leaves = None if keep is None else (keep < torch.cat([tokens[None], keep[:-1]])).any(1)  # whether tokens leave, (layers,)
        last = max(set(range(self.layers)) - skipped, default=None)
        for index, layer in enumerate(self.parts.layers):
            if index in skipped:
                continue
            only_cls = index == last and not restore  # a sentence head reads [CLS] alone: the rest of this layer would be thrown away
            queries = state.hidden[:, :1] if only_cls else state.hidden
            if keep is None or leaves is None or only_cls:
                watched: Votes = "none" if seen is None or index != last else "attention" if restore else "cls"
                hidden, paid = self._attend(layer, queries, state, padded, watched)
                state = state._replace(hidden=hidden)
                if seen is not None:
                    seen.extend([hidden, paid] if index == last else [hidden])
            else:
                hidden, significance = self._attend(layer, queries, state, padded, self.votes, leaves[index])
                if self.significance == "learned":
                    ranker, asking = getattr(self.model, ranking.NAME)[index], state.real & (state.ahead >= self.ahead)
                    significance = ranking.significance_of(hidden, ranker, state.real, asking, leaves[index])
                ordered = self.significance == "sampled"
                state = drop(state._replace(hidden=hidden), significance, keep[index], leaves[index], self.neighbours, ordered=ordered)
            state = state._replace(hidden=self.parts.feed_forward(layer, state.hidden))
            if restore:
                due = torch.ones_like(padded) if leaves is None or index == last else leaves[index + 1]
                restored = state.hidden if leaves is None else put_back(restored, state, padded, due)
        return restored if restore else state.hidden

    def _ahead(self, token_type_ids: Tensor) -> Tensor:
        """Return by how much tokens go before all others (batch, seq): [CLS] does, and the question where it is protected."""
        first = torch.arange(token_type_ids.shape[1], device=token_type_ids.device) == 0
        ahead = torch.where(first, torch.inf, 0.0).expand_as(token_type_ids)
        return ahead + self.ahead * (token_type_ids == 0).float() if self.protect == "question" else ahead

    def _kept(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return how many of each text's tokens (layers, batch) stay after each layer: at least 1."""
        if self.absolute:
            return torch.minimum(tokens, lengths[:, None])
        return (tokens * lengths[:, None] + self.max_length - 1) // self.max_length

    def _attend(
        self, layer: nn.Module, queries: Tensor, state: State, padded: Tensor, kind: Votes, leaves: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the attention block's output (batch, queries, hidden) and the significance of each key (batch, seq), or nothing (0,)."""
        q, k, v = self.parts.project(layer, queries, state.hidden, state.rows)
        bias = self.parts.bias(layer, state.rows)
        bias = None if bias is None else bias[:, :, : queries.shape[1]]
        voters = state.real & (state.ahead >= self.ahead) if kind == "question" else state.real
        if torch.onnx.is_in_onnx_export():
            leaves = torch.zeros((), dtype=torch.bool) if leaves is None else leaves
            sizes = (self.heads, self.head_size)
            context, significance = exported_attention(q, k, v, state.real, voters, padded, leaves, bias, *sizes, kind)
        else:
            dropout = self.parts.dropout(layer)
            rate = float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]
            context, significance = attention(q, k, v, state.real, voters, bias, self.heads, kind, rate)
        return self.parts.attended(layer, context, queries), significance
