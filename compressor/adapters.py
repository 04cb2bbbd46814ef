"""Bottleneck adapters: a small layer after each feed-forward, which learns while the encoder stays as it is.

What:     down to `size` units, a nonlinearity, up again, added to what came in; they stay in the model, since they cannot be merged.
Papers:   adapters (arXiv:1902.00751), placed once a layer as in AdapterFusion (arXiv:2005.00247).
Formula:  x + W_up · relu(W_down · x), with W_up zero at first: an untrained adapter changes nothing.
Defaults: size 64.
Limits:   families of compressor/families.py whose layers end in one feed-forward product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import RecipeError
from compressor.families import encoder_layers

SIZE, FIRST = "adapter_size", "adapter_first_layer"
"""Keys of a model's configuration that say that its layers have adapters, how wide these are, and from which layer on."""


class Adapted(nn.Linear):
    """A feed-forward's last product, followed by an adapter; its own weights keep their names."""

    def __init__(self, product: nn.Linear, size: int) -> None:
        super().__init__(product.in_features, product.out_features, product.bias is not None)
        self.weight, self.bias = product.weight, product.bias
        self.down = nn.Linear(product.out_features, size)
        self.up = nn.Linear(size, product.out_features)
        nn.init.normal_(self.down.weight, std=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product with what the adapter adds."""
        states = super().forward(input)
        added: Tensor = self.up(torch.relu(self.down(states)))
        return states + added


def built(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """Return an untrained model of this configuration, with adapters where it says so."""
    model = kind(config)
    insert_as_told(model, config)
    return model


def insert_as_told(model: PreTrainedModel, config: Any) -> None:
    """Give the model the adapters that a configuration says it has, if any."""
    if hasattr(config, SIZE):
        insert(model, getattr(config, SIZE), getattr(config, FIRST, 0))


def insert(model: PreTrainedModel, size: int, first: int = 0) -> list[Adapted]:
    """Give each layer of the model, from the `first` on, an adapter, in place, and return them.

    Raises:
        RecipeError: the family's layers have no place for one.
    """
    found = []
    for layer in encoder_layers(model)[first:]:
        name, product = _feed_forward_end(layer, model.config)
        adapted = Adapted(product, size)
        layer.set_submodule(name, adapted)
        found.append(adapted)
    setattr(model.config, SIZE, size)
    setattr(model.config, FIRST, first)
    return found


def _feed_forward_end(layer: nn.Module, config: Any) -> tuple[str, nn.Linear]:
    """Return the product that leads from the feed-forward's width back to the layer's."""
    width = config.hidden_size
    ends = [(n, m) for n, m in layer.named_modules() if isinstance(m, nn.Linear) and m.out_features == width != m.in_features]
    if len(ends) != 1:
        raise RecipeError(f"teacher.finetune.method: {config.model_type} layers have no place for adapters; use lora")
    return ends[0]
