"""What the training stages hand on: a Hugging Face folder, and the splits encoded for its tokenizer."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from compressor.artifact import Artifact, write_json
from compressor.data import Example
from compressor.errors import RecipeError
from compressor.graphs import PlainClassifier
from compressor.modeling import LengthAdaptiveClassifier, load_classifier
from compressor.recipe import Recipe
from compressor.tasks import TASKS, Task
from compressor.training import Encoded

MODEL = "model"
ADAPTIVE = "length_adaptive.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Splits:
    """The data artifact, read back."""

    folder: Path
    labels: tuple[str, ...]
    max_length: int

    @classmethod
    def of(cls, artifact: Artifact) -> "Splits":
        """Open a data artifact."""
        meta = json.loads((artifact.path / "meta.json").read_text(encoding="utf-8"))
        return cls(artifact.path, tuple(meta["labels"]), meta["max_length"])

    def examples(self, split: str) -> list[Example]:
        """Return the examples of train, validation, search or test."""
        with (self.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            return [Example(**json.loads(line)) for line in file]

    def encoded(self, split: str, task: Task, model: Path) -> Encoded:
        """Return a split as token ids of a model's tokenizer, with label ids."""
        examples = self.examples(split)
        ids = {label: i for i, label in enumerate(self.labels)}
        gold = np.asarray([ids[e.label] for e in examples if e.label is not None], dtype=np.int64)
        return Encoded(task.encode(tokenizer_of(model), examples, self.max_length), gold, pad_id_of(model))


def tokenizer_of(model: Path) -> Tokenizer:
    """Return the fast tokenizer of a model's folder."""
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def pad_id_of(model: Path) -> int:
    """Return the id that pads, from the model's configuration."""
    return int(json.loads((model / "config.json").read_text(encoding="utf-8")).get("pad_token_id") or 0)


def task_of(recipe: Recipe) -> Task:
    """Return the task that the recipe names."""
    return TASKS[recipe.task.type]


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Refuse texts that are longer than the model's position table.

    Raises:
        RecipeError: data.max_length exceeds it.
    """
    positions = getattr(model.config, "max_position_embeddings", max_length)
    usable = positions - 2 if model.config.model_type in ("roberta", "mpnet") else positions  # their positions start after the pad id
    if max_length > usable:
        raise RecipeError(
            f"data.max_length is {max_length}, but {model.config.model_type} here has {usable} positions; set data.max_length: {usable}"
        )


def save(model: PreTrainedModel, tokenizer_from: Path, out: Path, adaptive: dict[str, Any] | None = None) -> None:
    """Write a Hugging Face folder under `out`, with the tokenizer it was trained with."""
    folder = out / MODEL
    model.to("cpu").save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, folder / name)
    if adaptive:
        write_json(out / ADAPTIVE, adaptive)


def load_plain(artifact: Artifact, labels: Sequence[str]) -> PreTrainedModel:
    """Return the classifier of a checkpoint."""
    return load_classifier(artifact.path / MODEL, labels)


def load_forward(artifact: Artifact, labels: Sequence[str]) -> PlainClassifier | LengthAdaptiveClassifier:
    """Return a checkpoint as a module from token ids to logits, length-adaptive when it was trained so."""
    model, marker = load_plain(artifact, labels), artifact.path / ADAPTIVE
    if not marker.exists():
        return PlainClassifier(model)
    return LengthAdaptiveClassifier(model, **json.loads(marker.read_text(encoding="utf-8")))
