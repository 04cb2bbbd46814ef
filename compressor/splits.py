"""The data artifact, read back: a split as examples, or as the token ids of a model's tokenizer."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.artifact import Artifact
from compressor.data import CHARACTERS, CHUNK, Example, in_chunks
from compressor.encoded import Encoded, pad_id_of, tokenizer_of
from compressor.errors import RecipeError
from compressor.masking import MaskedText
from compressor.recipe import Recipe
from compressor.tasks import TRAINED, Task
from compressor.windows import Windows

MODEL = "model"
"""Folder of a checkpoint that holds the Hugging Face model and its tokenizer."""
ADAPTIVE = "length_adaptive.json"
"""File of a checkpoint that was trained to adapt its length: how."""
FEW = 0.05
"""Share of the texts that may be left out."""


@dataclass(frozen=True)
class LeftOut:
    """Texts that are not learned from, because teacher and student read them otherwise: the first, and their number."""

    first: str = ""
    count: int = 0

    def told(self) -> str:
        """Say what is left out."""
        read = f"read otherwise by the student's tokenizer than by the teacher's, and left out; the first: {self.first!r:.60}"
        return f"{self.count} texts hold a special token of one model, as </s>, {read}"


@dataclass(frozen=True)
class Splits:
    """The data artifact, read back."""

    folder: Path
    labels: tuple[str, ...]
    max_length: int
    stride: int

    @classmethod
    def of(cls, artifact: Artifact) -> "Splits":
        """Open a data artifact."""
        meta = json.loads((artifact.path / "meta.json").read_text(encoding="utf-8"))
        return cls(artifact.path, tuple(meta["labels"]), meta["max_length"], meta["stride"])

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the examples of train, validation, search or test, or those of unlabelled, which may be none."""
        with (self.folder / f"{split}.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield Example(**json.loads(line))

    def texts(self) -> Iterator[Example]:
        """Yield all that is learned from: the labelled texts of train, then the unlabelled ones."""
        return chain(self.examples("train"), self.examples("unlabelled"))

    def left_out(self, keeps: Callable[[Example], bool]) -> LeftOut:
        """Return what is not kept of the texts that are learned from; of more than a few, nothing, because nobody would do without."""
        first, count, total = "", 0, 0
        for example in self.texts():
            total += 1
            if not keeps(example):
                first, count = first or example.text, count + 1
        return LeftOut(first, count) if count <= FEW * total else LeftOut()

    def encoded(self, split: str, task: Task, model: Path) -> Encoded:
        """Return a split as a model's tokenizer sees it, with what the model should answer; all but train can be scored."""
        return self.encode(self.examples(split), task, model, scored=split != "train")

    def check_windows(self, task: Task, model: Path) -> None:
        """Refuse answers at a cut between windows that share no token, of any split, before one of them is learned from.

        Raises:
            RecipeError: a text takes several such windows.
        """
        if task.choice == "positions" and not self.stride:
            for file in sorted(self.folder.glob("*.jsonl")):
                for _ in self._parts(self.examples(file.stem), task, tokenizer_of(model)):
                    pass

    def _parts(self, examples: Iterator[Example], task: Task, tokenizer: Tokenizer) -> Iterator[tuple[list[Example], Windows]]:
        """Yield some examples after the others, and their windows."""
        for chunk in in_chunks(examples, CHUNK, CHARACTERS):
            windows = task.windows(tokenizer, chunk, self.max_length, self.stride)
            if task.choice == "positions" and not self.stride and len(windows) > len(chunk):
                long = chunk[windows.owners[np.flatnonzero(np.diff(windows.owners) == 0)[0]]]
                raise RecipeError(
                    f"data.stride is 0, but the context of {long.text!r:.60} takes more than max_length {self.max_length} tokens, and "
                    f"answers at a cut would be lost; set data.stride: {self.max_length // 3}, or raise data.max_length"
                )
            yield chunk, windows

    def encode(self, examples: Iterator[Example], task: Task, model: Path, *, scored: bool = False) -> Encoded:
        """Return examples as a model's tokenizer sees them; those that are `scored` are held beside their tokens.

        Raises:
            RecipeError: a text takes several windows that share no token.
        """
        kept, windows, targets, counts = list[Example](), list[Windows](), list[NDArray[Any]](), list[int]()
        for chunk, found in self._parts(examples, task, tokenizer_of(model)):
            windows.append(found)
            targets.append(task.targets(found, chunk, self.labels))
            counts.append(len(chunk))
            kept += chunk if scored else ()
        joined = Windows.joined(windows, counts)
        if not task.labelled:
            return MaskedText.of(task, joined, model)
        if not scored:
            joined = dataclasses.replace(joined, places=joined.places[:0])  # they are needed for answers only
        return Encoded(task, joined, np.concatenate(targets), self.labels, kept, pad_id_of(model))


def task_of(recipe: Recipe) -> Task:
    """Return the task that the recipe names."""
    return TRAINED[recipe.task.type](**recipe.task.settings)
