"""Tasks: how texts become tokens, how logits become answers, how answers become a score.

One object serves training, search and runtime, so there is one encoding and one post-processing.
To add a task: its name and columns in settings/data.py; one class and one entry in TASKS.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.answering import QuestionAnswering
from compressor.choices import Choice
from compressor.classification import MaskedLanguageModelling, MultiLabelClassification, TextClassification, TextRegression
from compressor.data import Example, Format
from compressor.scores import Metric
from compressor.tagging import TokenClassification
from compressor.tokens import Floats
from compressor.windows import Windows


class Task(Format, Protocol):
    """What the compiler needs to know of a task."""

    @property
    def head(self) -> str:
        """Which head the model has: sequence-classification, token-classification, question-answering or masked-lm."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether texts come with labels; without, a text's own hidden tokens are the labels."""
        ...

    @property
    def choice(self) -> Choice:
        """What a softmax goes over: labels; positions, for each output; yes and no, for each output; or nothing: a number."""
        ...

    @property
    def per_token(self) -> bool:
        """Whether the head reads every token, so that dropped tokens must be restored."""
        ...

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The task's scores, the usual one first."""
        ...

    def names(self, example: Example) -> Sequence[str]:
        """Return the names that a labelled example uses."""
        ...

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return what the model's outputs are called, from the names that the training split uses."""
        ...

    def windows(self, tokenizer: Tokenizer, examples: Sequence[Example], max_length: int, stride: int) -> Windows:
        """Return the windows of examples, at most `max_length` tokens long; neighbours share `stride` tokens."""
        ...

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> NDArray[Any]:
        """Return what the model should answer: one row a window, or one a token where tokens have tags."""
        ...

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> NDArray[Any]:
        """Return one row for each labelled example, of which the metrics are computed."""
        ...


class ServedTask(Task, Protocol):
    """What the runtime needs beside: a task whose answers a bundle gives."""

    def given(self, value: Any) -> Example:
        """Return the example that a caller gave.

        Raises:
            RecipeError: it lacks something.
        """
        ...

    def decode(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Sequence[Any]:
        """Return the answer for each example."""
        ...


TASKS: Mapping[str, Callable[..., ServedTask]] = {
    "text-classification": TextClassification,
    "multi-label-classification": MultiLabelClassification,
    "text-regression": TextRegression,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
}
TRAINED: Mapping[str, Callable[..., Task]] = {**TASKS, "masked-lm": MaskedLanguageModelling}
"""All that can be trained for; TASKS are those that can be served too. Each takes the settings of its recipe section."""
