"""Encoders with a head, as transformers loads them from a folder."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from compressor import adapters, bilstm
from compressor.errors import RecipeError, one_line

logging.set_verbosity_error()  # its notes (a new head has new weights) read like defects here
logging.disable_progress_bar()
bilstm.register()


HEADS: Mapping[str, Any] = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "masked-lm": AutoModelForMaskedLM,
}


def load_model(folder: Path, labels: Sequence[str], head: str = "sequence-classification") -> PreTrainedModel:
    """Return the folder's encoder with a head, for these labels if any; a head that fits is kept, any other is made anew.

    A head that knows these labels in another order answers in this one.

    Raises:
        RecipeError: the folder holds no encoder that transformers can load.
    """
    names = dict(enumerate(labels))
    ids = {label: number for number, label in names.items()}
    settings: dict[str, Any] = {"num_labels": len(labels), "id2label": names, "label2id": ids} if labels else {}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        own = own_labels(config)
        config.problem_type = None  # a classifier's says how it was trained before, and refuses one output
        config.update(settings)
        if hasattr(config, adapters.SIZE):
            return _in_order(_with_adapters(folder, config, head), own, labels)
        model, read = HEADS[head].from_pretrained(
            folder,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        _check_encoder(model, [*read["missing_keys"], *(name for name, *_ in read["mismatched_keys"])])
        return _in_order(model, own, labels)
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise RecipeError(f"{folder}: {one_line(error, 300)}; name a folder of a transformers encoder") from error


def own_labels(config: Any) -> list[str]:
    """Return the labels that a folder says its head answers, in their order."""
    return [str(config.id2label[number]) for number in sorted(config.id2label or {})]


def _in_order(model: PreTrainedModel, own: Sequence[str], labels: Sequence[str]) -> PreTrainedModel:
    """Put what the head says of its own labels where these have them, where they are the same ones."""
    ours, theirs = ([label.casefold() for label in some] for some in (labels, own))
    if ours == theirs or sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
        return model
    rows = torch.tensor([theirs.index(label) for label in ours])
    apart = [module for name, module in model.named_modules() if not name.startswith(f"{model.base_model_prefix}.")]
    last = [module for module in apart if isinstance(module, nn.Linear) and module.out_features == len(labels)][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[rows])
        if last.bias is not None:
            last.bias.copy_(last.bias[rows])
    return model


def _check_encoder(model: PreTrainedModel, made_anew: Iterable[str]) -> None:
    """Refuse an encoder some of whose weights were made at random: none of that name and size were there. Heads and poolers may be new."""
    lacking = sorted(name for name in made_anew if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name)
    if lacking:
        raise ValueError(f"{lacking[0]} is missing, or of another size")


def _with_adapters(folder: Path, config: Any, head: str) -> PreTrainedModel:
    """Return a model whose layers have adapters: these are put in before the weights are read; a head that does not fit is made anew."""
    model: PreTrainedModel = HEADS[head].from_config(config)
    adapters.insert_as_told(model, config)
    weights = load_file(folder / "model.safetensors")
    wanted = model.state_dict()
    fitting = {name: weight for name, weight in weights.items() if name in wanted and weight.shape == wanted[name].shape}
    _check_encoder(model, wanted.keys() - fitting.keys())
    model.load_state_dict(fitting, strict=False)
    return model.eval()


def has_head(folder: Path, model: PreTrainedModel) -> bool:
    """Say whether the folder holds all weights of the model's head, in its sizes: a head that was made anew knows nothing."""
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes |= {_today(name): file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    tied = {name for name in model.state_dict() if any(name.endswith(part) for part in getattr(model, "_tied_weights_keys", None) or ())}
    wanted = {name: list(x.shape) for name, x in model.state_dict().items() if not name.startswith(f"{model.base_model_prefix}.")}
    return all(shapes.get(name) == shape for name, shape in wanted.items() if name not in tied)


def _today(name: str) -> str:
    """Return what transformers calls a weight now: the first BERTs have their normalisations' by other names."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
