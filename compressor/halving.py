"""Cut a model at a layer: a front from token ids to states, which is the same for every task above it, and a back from states to logits.

What:     the recycled layers become front.onnx, those above them with the head back.onnx; one after the other they are the whole model.
Paper:    embedding recycling (arXiv:2207.04993).
Formula:  logits = back(front(ids)); a text that was read before costs the back alone.
Limits:   the families of compressor/backbones.py; the last layer of a sentence task computes only [CLS].
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.backbones import BACKBONES, backbone
from compressor.errors import RecipeError, StageError
from compressor.exits import EXIT
from compressor.families import encoder_layers
from compressor.graphs import NAMES, USUAL, check_layers, texts_to_trace, torch_logits, traced
from compressor.halves import BACK, FRONT, STATES, Halves
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.settings.deploying import Export
from compressor.tokens import Tokens


class Front(nn.Module):
    """Embeddings and the first layers."""

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        super().__init__()
        self.body = LengthAdaptiveModel(model, max_length=1)
        self.above = frozenset(range(layers, self.body.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the states of every token (batch, seq, width)."""
        return self.body.encode(input_ids, attention_mask, token_type_ids, skipped=self.above)


class Back(nn.Module):
    """The layers above the first ones, and the head."""

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        super().__init__()
        self.body, self.below = LengthAdaptiveModel(model, max_length=1), frozenset(range(layers))

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the whole model's logits."""
        ids, segments = attention_mask, torch.zeros_like(attention_mask)  # of ids only their number counts here
        restore = self.body.per_token
        return self.body.parts.logits(self.body.encode(ids, attention_mask, segments, None, self.below, restore=restore, states=states))


def check_family(model: PreTrainedModel, key: str) -> None:
    """Refuse a model that cannot be cut, where the recipe's key asks for it.

    Raises:
        RecipeError: its family does not run layer by layer, or not with its head.
    """
    if model.config.model_type not in BACKBONES:
        known = ", ".join(sorted(BACKBONES))
        raise RecipeError(f"{key}: {model.config.model_type} encoders do not run layer by layer, as {known} do; leave it out")
    try:
        backbone(model)
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}, or leave it out") from None


def export_halves(model: PlainModel, layers: int, folder: Path, settings: Export = USUAL, key: str = "export.halves") -> None:
    """Write front.onnx and back.onnx; `key` is where the recipe asks for them.

    Raises:
        RecipeError: the model's family does not run layer by layer.
    """
    model = model.to("cpu").eval()
    model.model.config._attn_implementation = "eager"
    check_family(model.model, key)
    arguments, front, back = texts_to_trace(), Front(model.model, layers).eval(), Back(model.model, layers).eval()
    with torch.no_grad():
        states = front(*arguments)
    above = len(encoder_layers(model.model)) - layers
    for module, name, given, names, output, inside in (
        (front, FRONT, arguments, NAMES, STATES, layers),
        (back, BACK, [states, arguments[1]], (STATES, "attention_mask"), "logits", above),
    ):
        graph = traced(module, folder / name, given, names, output, settings)
        check_layers(graph, model.model, inside, settings)
        onnx.save(graph, folder / name)


def export_exit(student: PlainModel, early: PlainModel, layers: int, folder: Path, settings: Export, texts: Tokens, pad_id: int) -> None:
    """Write front.onnx, what an early exit answers from it, and what the student goes on with; each is proven against torch.

    Raises:
        RecipeError: the family does not run layer by layer.
        StageError: a logit differs.
    """
    for model, place, name in ((early, folder / "early", EXIT), (student, folder, BACK)):
        place.mkdir(exist_ok=True)
        export_halves(model, layers, place, settings, "early_exit")
        check_parity(model, place, texts, pad_id, settings.tolerance)
        (place / BACK).rename(folder / name)
    shutil.rmtree(folder / "early")


def check_parity(model: PlainModel, folder: Path, texts: Tokens, pad_id: int, tolerance: float) -> float:
    """Return the largest difference of a logit between torch and the two graphs, one after the other, over texts.

    Raises:
        StageError: it exceeds the tolerance.
    """
    halves = Halves(folder, 1, single=False, pad_id=pad_id)
    apart = [abs(torch_logits(model, text, None, pad_id).reshape(-1) - halves.logits(text).reshape(-1)).max() for text in texts]
    worst = float(np.max(apart))
    if not worst <= tolerance:  # nor is a logit that is no number any parity
        told = f"export: a logit of the two halves differs by {worst:.2g} from torch (export.tolerance {tolerance:g})"
        raise StageError(f"{told}; report the model, or raise the tolerance")
    return worst
