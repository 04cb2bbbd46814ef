"""The data artifact, read back: a split as examples, or as the token ids of a model's tokenizer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from compressor.artifact import Artifact
from compressor.data import Example
from compressor.encoded import UNLABELLED, Encoded, pad_id_of, tokenizer_of
from compressor.masking import MaskedText
from compressor.recipe import Recipe
from compressor.tasks import TRAINED, Task
from compressor.tokens import Ints, Tokens

MODEL = "model"
"""Folder of a checkpoint that holds the Hugging Face model and its tokenizer."""
CHUNK = 4096
"""Examples that are held as text while a split is encoded."""


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

    def texts(self) -> Iterator[Example]:
        """Yield all that is learned from: the labelled texts of train, then the unlabelled ones."""
        return chain(self.examples("train"), self.examples("unlabelled"))

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
        if not task.labelled:
            return MaskedText.of(Tokens.joined(tokens), model)
        return Encoded(Tokens.joined(tokens), np.concatenate(gold), pad_id_of(model))


def task_of(recipe: Recipe) -> Task:
    """Return the task that the recipe names."""
    return TRAINED[recipe.task.type]
