"""Tasks that answer for a whole text, or a pair of texts: one label, any number of labels, or a number."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.choices import UNLABELLED, Choice, sigmoid, softmax
from compressor.data import Example, given_texts, label_of, text_of
from compressor.errors import RecipeError
from compressor.files import Columns, Reader
from compressor.scores import Metric, accuracy, label_macro_f1, label_micro_f1, macro_f1, spearman
from compressor.tokens import Floats, Ints
from compressor.windows import Windows, whole_texts

_WHOLE_NUMBER = re.compile("-?[0-9]+")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one text: its label, the label's probability, and the probability of every label."""

    label: str
    score: float
    probabilities: Mapping[str, float]

    def line(self) -> str:
        """Return the answer as a line for people."""
        return f"{self.label}\t{self.score:.4f}"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of one text, those of a probability above one half, and the probability of every label."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    def line(self) -> str:
        """Return the answer as a line for people."""
        return "|".join(f"{label} {self.probabilities[label]:.4f}" for label in self.labels)


@dataclass(frozen=True, slots=True)
class Number:
    """The number that one text is given."""

    value: float

    def line(self) -> str:
        """Return the answer as a line for people."""
        return f"{self.value:.4f}"


class _WholeTexts:
    """What these tasks share: a text is read in one piece, and the model answers once."""

    head = "sequence-classification"
    labelled = True
    per_token = False
    forms: Mapping[str, Reader] = {}

    def given(self, value: Any) -> Example:
        """Return the example that a caller gave as a text or a pair of texts.

        Raises:
            RecipeError: it is neither.
        """
        return given_texts(value)

    def windows(self, tokenizer: Tokenizer, examples: Sequence[Example], max_length: int, stride: int) -> Windows:
        """Return each text, or pair of texts, cut at the longer side first."""
        return whole_texts(tokenizer, [e.text if e.text_pair is None else (e.text, e.text_pair) for e in examples], max_length)


class TextClassification(_WholeTexts):
    """One label for a text or a pair of texts; logits are (batch, labels), outcomes (examples, 2): answered and right label."""

    choice: Choice = "labels"
    metrics: Mapping[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1}

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return a row's text, or texts, and label."""
        return _texts(where, row, columns, None if columns.label is None else label_of(where, columns.label, row[columns.label]))

    def names(self, example: Example) -> Sequence[str]:
        """Return the example's label."""
        return (example.label,)

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the labels, numbers by size, names by letter."""
        return by_name(names)

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Ints:
        """Return each text's label id (texts,); -100 for what has no label."""
        ids: dict[str | None, int] = {None: UNLABELLED} | {name: i for i, name in enumerate(outputs)}
        return np.array([ids[e.label] for e in examples], np.int64)

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Floats:
        """Return the most probable label's id, and the right one's."""
        return np.stack([logits.argmax(-1), self.targets(windows, examples, outputs)], 1).astype(np.float64)

    def decode(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> list[Prediction]:
        """Return for each text its most probable label and all probabilities."""
        probabilities = softmax(logits)
        rows = zip(probabilities.argmax(-1).tolist(), probabilities.tolist(), strict=True)
        return [Prediction(outputs[best], row[best], dict(zip(outputs, row, strict=True))) for best, row in rows]


class MultiLabelClassification(_WholeTexts):
    """Any number of labels for a text or a pair of texts; logits are (batch, labels), outcomes (examples, 2, labels)."""

    choice: Choice = "each"
    metrics: Mapping[str, Metric] = {"micro_f1": label_micro_f1, "macro_f1": label_macro_f1}

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return a row's text, or texts, and labels: a list, or in csv and tsv names with `|` between."""
        if columns.label is None:
            return _texts(where, row, columns, None)
        value = row[columns.label]
        names = [part for part in value.split("|") if part.strip()] if isinstance(value, str) else value
        if not isinstance(names, list):
            raise RecipeError(f"{where}: column {columns.label!r} is no list of labels; write a list, or names with | between")
        return _texts(where, row, columns, [label_of(where, columns.label, name) for name in names])

    def names(self, example: Example) -> Sequence[str]:
        """Return the example's labels."""
        labels: Sequence[str] = example.label
        return labels

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the labels, numbers by size, names by letter."""
        return by_name(names)

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> NDArray[np.int8]:
        """Return 1 for each label that a text has, else 0, int8 (texts, labels); -100 for texts of which none is known."""
        ids, found = {name: i for i, name in enumerate(outputs)}, np.zeros((len(examples), len(outputs)), np.int8)
        for row, example in enumerate(examples):
            if example.label is None:
                found[row] = UNLABELLED
            else:
                found[row, [ids[name] for name in example.label]] = 1
        return found

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> NDArray[np.int8]:
        """Return which labels were answered, and which are right, int8: of thousands of labels there are many."""
        return np.stack([(logits > 0).astype(np.int8), self.targets(windows, examples, outputs)], 1)

    def decode(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> list[LabelSet]:
        """Return the labels that are more probable than not."""
        answers = []
        for row in sigmoid(logits):
            named = tuple(name for name, probability in zip(outputs, row, strict=True) if probability > 0.5)
            answers.append(LabelSet(named, dict(zip(outputs, row.tolist(), strict=True))))
        return answers


class TextRegression(_WholeTexts):
    """A number for a text or a pair of texts; logits are (batch, 1), outcomes (examples, 2): answered and right number."""

    choice: Choice = "number"
    metrics: Mapping[str, Metric] = {"spearman": spearman}

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return a row's text, or texts, and number."""
        return _texts(where, row, columns, None if columns.label is None else _number(where, columns.label, row[columns.label]))

    def names(self, example: Example) -> Sequence[str]:
        """Return nothing: a number has no name."""
        return ()

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the name of the only output."""
        return ("value",)

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Floats:
        """Return each text's number (texts,); not a number for what has none."""
        return np.array([math.nan if e.label is None else e.label for e in examples], np.float32)

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Floats:
        """Return the number that was answered, and the right one."""
        return np.stack([logits[:, 0], self.targets(windows, examples, outputs)], 1).astype(np.float64)

    def decode(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> list[Number]:
        """Return the numbers."""
        return [Number(float(value)) for value in logits[:, 0]]


class MaskedLanguageModelling(_WholeTexts):
    """The tokens that were hidden in a text; logits are (batch, seq, vocabulary). It trains encoders, and no bundle answers it."""

    head = "masked-lm"
    labelled = False
    choice: Choice = "labels"
    per_token = True
    metrics: Mapping[str, Metric] = {"accuracy": lambda outcomes: float(outcomes[:, 0].sum() / max(outcomes[:, 1].sum(), 1.0))}

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return a row's text, or texts."""
        return _texts(where, row, columns, None)

    def names(self, example: Example) -> Sequence[str]:
        """Return nothing: the tokens of a text are its labels."""
        return ()

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return nothing: the model's vocabulary says what it can answer."""
        return ()

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Ints:
        """Return no label for any text: each batch hides tokens of its own."""
        return np.full(len(examples), UNLABELLED)

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Floats:
        """Return each text's counts (texts, 2) of found and hidden tokens, which is what is kept of its logits."""
        return logits


def by_name(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct names in order: whole numbers by size, then the others by letter."""

    def place(name: str) -> tuple[bool, Decimal, str]:
        number = Decimal(name) if _WHOLE_NUMBER.fullmatch(name) else None  # int has a longest one
        return number is None, number or Decimal(0), name

    return tuple(sorted(set(names), key=place))


def _texts(where: str, row: Mapping[str, Any], columns: Columns, label: Any) -> Example:
    pair = None if columns.text_pair is None else text_of(where, columns.text_pair, row[columns.text_pair])
    return Example(text_of(where, columns.text, row[columns.text]), pair, label)


def _number(where: str, column: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):  # an integer of hundreds of digits
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"{where}: column {column!r} is {value!r}, not a number; write one or remove the row")
    return number
