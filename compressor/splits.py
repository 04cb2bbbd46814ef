"""The data artifact, read back: a split as examples, or as the token ids of a model's tokenizer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from compressor.artifact import Artifact
from compressor.data import Example
from compressor.recipe import Recipe
from compressor.tasks import TASKS, Task
from compressor.tokens import Ints, Tokens

MODEL = "model"
"""Folder of a checkpoint that holds the Hugging Face model and its tokenizer."""
UNLABELLED = -100
"""Id of the label that a text has not: no loss of labels counts it."""
CHUNK = 4096
"""Examples that are held as text while a split is encoded."""


@dataclass(frozen=True)
class Encoded:
    """A split ready for a model: the tokens of each text, and its label's id."""

    tokens: Tokens
    labels: Ints
    pad_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Ints) -> dict[str, Ints]:
        """Return input_ids, attention_mask, token_type_ids (batch, longest), labels and rows (batch,)."""
        return self.tokens.rows(rows).padded(self.pad_id) | {"labels": self.labels[rows], "rows": rows}


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

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the examples of train, validation, search or test, or those of unlabelled, which may be none."""
        with (self.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield Example(**json.loads(line))

    def encoded(self, split: str, task: Task, model: Path) -> Encoded:
        """Return a split as token ids of a model's tokenizer, with label ids."""
        return self.encode(self.examples(split), task, model)

    def encode(self, examples: Iterator[Example], task: Task, model: Path) -> Encoded:
        """Return examples as token ids of a model's tokenizer, with label ids; -100 for what has no label."""
        ids: dict[str | None, int] = {None: UNLABELLED} | {label: i for i, label in enumerate(self.labels)}
        tokenizer, tokens, gold = tokenizer_of(model), list[Tokens](), list[Ints]()
        while chunk := list(islice(examples, CHUNK)):
            tokens.append(task.encode(tokenizer, chunk, self.max_length))
            gold.append(np.array([ids[e.label] for e in chunk], np.int64))
        return Encoded(Tokens.joined(tokens), np.concatenate(gold), pad_id_of(model))


def tokenizer_of(model: Path) -> Tokenizer:
    """Return the fast tokenizer of a model's folder."""
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def pad_id_of(model: Path) -> int:
    """Return the id that pads, from the model's configuration."""
    return int(json.loads((model / "config.json").read_text(encoding="utf-8")).get("pad_token_id") or 0)


def task_of(recipe: Recipe) -> Task:
    """Return the task that the recipe names."""
    return TASKS[recipe.task.type]
