"""What the training stages hand on: a Hugging Face folder, and the splits encoded for its tokenizer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from compressor import ranking
from compressor.artifact import Artifact, write_json
from compressor.encoded import TOKENIZER_FILES
from compressor.errors import RecipeError
from compressor.families import position_table
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.pretrained import load_model
from compressor.splits import ADAPTIVE, MODEL


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Refuse texts that are longer than the model's position table.

    Raises:
        RecipeError: data.max_length exceeds it.
    """
    table, usable = position_table(model), getattr(model.config, "max_position_embeddings", max_length)
    if table is not None:
        usable = min(usable, table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    if max_length > usable:
        raise RecipeError(
            f"data.max_length is {max_length}, but {model.config.model_type} here has {usable} positions; set data.max_length: {usable}"
        )


def save(model: PreTrainedModel, tokenizer_from: Path, out: Path, adaptive: dict[str, Any] | None = None) -> None:
    """Write a Hugging Face folder under `out`, with the tokenizer it was trained with."""
    folder = out / MODEL
    model.to("cpu").save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, folder / name)
    if adaptive:
        write_json(out / ADAPTIVE, adaptive)


def load_plain(artifact: Artifact, labels: Sequence[str], head: str) -> PreTrainedModel:
    """Return the model of a checkpoint."""
    return load_model(artifact.path / MODEL, labels, head)


def load_forward(artifact: Artifact, labels: Sequence[str], head: str) -> PlainModel | LengthAdaptiveModel:
    """Return a checkpoint as a module from token ids to logits, length-adaptive when it was trained so."""
    model, marker = load_plain(artifact, labels, head), artifact.path / ADAPTIVE
    if not marker.exists():
        return PlainModel(model)
    adaptive = LengthAdaptiveModel(model, **json.loads(marker.read_text(encoding="utf-8")))
    if hasattr(model, ranking.NAME):
        learned = load_file(artifact.path / MODEL / "model.safetensors")[ranking.NAME]
        model.load_state_dict({ranking.NAME: learned}, strict=False)
    return adaptive
