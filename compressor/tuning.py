"""Efficient fine-tuning: which of an encoder's weights learn.

What:     full: all · freeze: the layers above the first `frozen_layers`, or the head alone · bitfit: biases · adapters: a bottleneck in
          each layer, which stays in the model · lora: low-rank updates of queries and values, merged into the weights afterwards.
          The head, and the pooler it reads, always learn; recycled layers never do.
Papers:   BitFit (arXiv:2106.10199), adapters (arXiv:1902.00751), LoRA (arXiv:2106.09685).
Formula:  lora: W + (alpha / rank) · B A with B (out, rank) from zero and A (rank, in); alpha = 2 · rank.
Defaults: full; rank 8; adapter_size 64.
Limits:   fewer weights that learn save memory and optimizer time, but only `freeze` saves backward passes;
          bitfit, adapters and lora want learning rates of 1e-4 to 1e-3.
"""

import re
import warnings

from torch import nn
from transformers import PreTrainedModel

from compressor import adapters
from compressor.errors import RecipeError
from compressor.families import encoder_layers, family
from compressor.settings.training import Finetune


def prepare(model: PreTrainedModel, settings: Finetune, recycled: int = 0) -> nn.Module:
    """Return the model with only those weights learning that the method trains above recycled layers; `lora` wraps it, see `merged`.

    Raises:
        RecipeError: more layers are to be frozen than there are.
    """
    tuned: nn.Module = model
    if recycled and settings.method in ("bitfit", "lora") and recycled >= len(encoder_layers(model)):
        _freeze(model, recycled)  # all layers are recycled: what they would change is the head alone
        return tuned
    match settings.method:
        case "full":
            if recycled:
                _freeze(model, recycled)
        case "freeze":
            _freeze(model, settings.frozen_layers)
        case "bitfit":
            model.base_model.requires_grad_(False)
            for module in encoder_layers(model)[recycled:] if recycled else [model.base_model]:
                for name, parameter in module.named_parameters():
                    parameter.requires_grad = name.endswith("bias")
            if not learning_parameters(model.base_model):
                kind = model.config.model_type
                raise RecipeError(f"teacher.finetune.method bitfit: {kind} here has no biases that could learn; use lora or adapters")
            _learn(_head(model))
        case "adapters":
            model.base_model.requires_grad_(False)
            for adapted in adapters.insert(model, settings.adapter_size or 64, recycled):
                adapted.down.requires_grad_(True)
                adapted.up.requires_grad_(True)
            _learn(_head(model))
        case "lora":
            tuned = _with_lora(model, settings.rank or 8, recycled)
    return tuned


def merged(model: nn.Module) -> nn.Module:
    """Return the plain model again, with what was learned in its own weights."""
    plain: nn.Module = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model  # type: ignore[operator]
    return plain


def learning_parameters(model: nn.Module) -> int:
    """Return how many weights learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _freeze(model: PreTrainedModel, count: int | None) -> None:
    layers = encoder_layers(model)
    if count is not None and count > len(layers):
        raise RecipeError(f"teacher.finetune.frozen_layers: {count} of {len(layers)} layers cannot be frozen; lower it, or leave it out")
    model.base_model.requires_grad_(False)
    for layer in layers[len(layers) if count is None else count :]:
        layer.requires_grad_(True)
    if count is not None and (norm := getattr(model.base_model, "final_norm", None)) is not None:
        norm.requires_grad_(True)  # ModernBERT's, above all layers
    _learn(_head(model))
    for module in (model.get_submodule(family(model).embeddings), *layers[:count]):
        _keep_in_evaluation(module)


def _keep_in_evaluation(module: nn.Module) -> None:
    """Leave a module without dropout, whatever the model around it does: its output is the same each time, and may be computed once."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]


def _head(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules after the encoder, and its pooler, by name."""
    found = {name: module for name, module in model.named_children() if name != model.base_model_prefix}
    pooler = getattr(model.base_model, "pooler", None)
    return found | ({f"{model.base_model_prefix}.pooler": pooler} if pooler is not None else {})


def _learn(modules: dict[str, nn.Module]) -> None:
    for module in modules.values():
        module.requires_grad_(True)


def _with_lora(model: PreTrainedModel, rank: int, recycled: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    where = family(model)
    numbers = "|".join(str(number) for number in range(recycled, len(encoder_layers(model))))
    targets = "|".join(re.escape(f"{where.layers}.") + f"({numbers})" + re.escape(f".{part}") for part in (where.query, where.value))
    heads = [name for name, module in _head(model).items() if any(True for _ in module.parameters())]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules=f"({targets})", modules_to_save=heads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that goes in version 6
        wrapped: nn.Module = get_peft_model(model, config)
    return wrapped
