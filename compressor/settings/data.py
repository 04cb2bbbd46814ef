"""A recipe's task and data: what the model answers, which columns and scores that has, and where its texts are."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from compressor.settings.base import LARGEST, Section, Source
from compressor.units import Percent

Metric = Literal["accuracy", "macro_f1", "micro_f1", "spearman", "entity_f1", "f1", "exact_match"]


class Usual(NamedTuple):
    """What a task's columns are usually called, and its scores, the usual one first."""

    text: str
    text_pair: str | None
    label: str | None
    metrics: tuple[Metric, ...]


USUAL: Mapping[str, Usual] = {
    "text-classification": Usual("text", None, "label", ("accuracy", "macro_f1")),
    "multi-label-classification": Usual("text", None, "labels", ("micro_f1", "macro_f1")),
    "text-regression": Usual("text", None, "score", ("spearman",)),
    "token-classification": Usual("tokens", None, "tags", ("entity_f1",)),
    "question-answering": Usual("question", "context", "answers", ("f1", "exact_match")),
    "masked-lm": Usual("text", None, None, ("accuracy",)),
}
WINDOWED = ("token-classification", "question-answering")
"""Tasks that read a long text in windows."""


class Task(Section):
    type: Literal[
        "text-classification", "multi-label-classification", "text-regression", "token-classification", "question-answering", "masked-lm"
    ] = "text-classification"
    """What the model answers: one label for a text or a pair of texts; any number of labels; a number; a tag for each word (entities); a
    span of a context; or the hidden tokens of plain text, which makes an encoder for other recipes to start from (general distillation)."""
    metric: Metric = "accuracy"
    """The score that search, gates and report use; absent: the usual one of the type."""
    scheme: Literal["IOB1", "IOB2", "BIOES"] | None = None
    """token-classification: how the tags of the data mark where entities begin and end; absent: IOB2."""
    no_answer: bool = False
    """question-answering: whether a question may have no answer (SQuAD 2)."""

    @model_validator(mode="before")
    @classmethod
    def _usual_metric(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "metric" not in value and value.get("type") in USUAL:
            return {**value, "metric": USUAL[value["type"]].metrics[0]}
        return value

    @model_validator(mode="after")
    def _keys_of_the_type(self) -> "Task":
        known = USUAL[self.type].metrics
        if self.metric not in known:
            raise ValueError(f"{self.type} has no metric {self.metric}: set metric: {' or '.join(known)}")
        for key, owner in (("scheme", "token-classification"), ("no_answer", "question-answering")):
            if getattr(self, key) and self.type != owner:
                raise ValueError(f"{key} belongs to {owner}, but type is {self.type}: leave it out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What the task itself is made with."""
        chosen = {"scheme": self.scheme, "no_answer": self.no_answer}
        return {key: value for key, value in chosen.items() if value}


class Split(Section):
    path: Source
    """csv, tsv, jsonl or parquet (also .gz), .conll of tagged words, SQuAD's .json, .txt of texts alone, package:NAME/FILE, or on the Hub
    OWNER/NAME[:CONFIG][@REVISION][#SPLIT]; a path begins at the recipe's folder."""
    limit: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Read only so many examples."""
    draw: Literal["first", "spread"] = "first"
    """Which: the first of the file, or some from all over it, as a file needs that is sorted by label."""
    within: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """spread: from all over the first so many examples; absent: over all."""

    @model_validator(mode="after")
    def _draw_of_a_limit(self) -> "Split":
        if self.draw != "first" and self.limit is None:
            raise ValueError("draw says which examples limit takes: set limit too")
        if self.within is not None and self.draw != "spread":
            raise ValueError("within says what draw: spread spreads over: set draw too, or leave it out")
        return self

    @property
    def how(self) -> dict[str, Any]:
        """What says which examples are read."""
        return {"limit": self.limit, "spread": self.draw == "spread", "within": self.within}


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


PathOrSplit = Annotated[Split, BeforeValidator(_from_path, json_schema_input_type=str | Split)]


class Data(Section):
    train: PathOrSplit
    """What the teacher and the student learn from."""
    validation: PathOrSplit | None = None
    """What training is watched on; cut from train when absent."""
    search: PathOrSplit | None = None
    """What length configurations are chosen on; cut from train when absent, never the test split."""
    test: PathOrSplit | None = None
    """What the report's figures are measured on, once; cut from train when absent."""
    unlabelled: PathOrSplit | None = None
    """More texts, without labels, that the teacher answers for the student: any form of train, or .txt with a text a line."""
    holdout: Percent = 0.1
    """Share of train that each absent split takes, chosen by a hash of the text."""
    text: str | None = None
    """Column of the text; absent: text, tokens (a list of words) or question, as the task is."""
    text_pair: str | None = None
    """Column of the second text, for tasks on pairs; absent: none, or context for question-answering."""
    label: str | None = None
    """Column of what is known; absent: label, labels, score, tags or answers, as the task is."""
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens after which a text is cut, or goes on in another window; length configurations are counted at this length."""
    stride: Annotated[int, Field(ge=0, le=8192)] | None = None
    """Tokens that neighbouring windows of a long text share; absent: a third of max_length."""
    skip_bad: bool = False
    """Leave out rows that are no examples, and count them, instead of stopping at the first."""
    unknown_labels: Literal["refuse", "skip"] = "refuse"
    """What is done with examples whose labels train lacks: stop at the first, or leave them out and count them."""
