"""What a student starts as, and what it learns from its teacher."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from compressor.settings.base import LARGEST, Section, Share, Source
from compressor.settings.training import RecycledLayers, Training
from compressor.units import Megabytes

LayerList = Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], Field(min_length=1, strict=False)]


def _layer_map(value: Any) -> Any:
    named = isinstance(value, str) and re.fullmatch(r"every second|(first|last) [1-9][0-9]{0,3}", value)
    if not named and not (isinstance(value, list | tuple) and value):
        raise ValueError("write layers as [0, 5, 11], every second, first 4 or last 4")
    return value


LayerMap = Annotated[LayerList | str, BeforeValidator(_layer_map)]


class BiLSTM(Section):
    embeddings: Source | None = None
    """Encoder whose embedding table and tokenizer it takes; absent: the teacher's."""
    layers: Literal[1, 2] = 1
    """Layers of the LSTM."""
    hidden_size: Annotated[int, Field(ge=8, le=4096)] = 256
    """Units of each direction."""


class Student(Section):
    model: Source | None = None
    """A smaller encoder: a local folder, package:NAME/FOLDER, or a Hub model id."""
    layers: LayerMap | None = None
    """Or: these layers of the teacher: [0, 5, 11], counted from 0, `every second`, `first 4` or `last 4`."""
    bilstm: BiLSTM | None = None
    """Or: a bidirectional LSTM on an encoder's embeddings (arXiv:1903.12136)."""
    hidden_size: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Narrower than the teacher, for `layers`: a multiple of its head size; the dimensions that carry most stay."""
    vocabulary: Literal["full", "corpus"] = "full"
    """corpus: keep only the tokens that the training texts use; the report says how many texts that covers."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        if sum(origin is not None for origin in (self.model, self.layers, self.bilstm)) != 1:
            raise ValueError("name one of `model`, `layers` of the teacher, and `bilstm`")
        if self.hidden_size is not None and self.layers is None:
            raise ValueError("hidden_size cuts `layers` of the teacher: leave it out, or name layers")
        return self


class Objective(Section):
    answers: ClassVar[bool] = False
    """Whether it reaches the logits, and so trains the head; the others look inside the models."""
    asks_teacher: ClassVar[bool] = True
    """Whether it needs a teacher; without one it is the data's labels that are learned."""
    type: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this loss in the sum."""
    start: Share = 0.0
    """Share of the training after which this objective begins."""
    end: Share = 1.0
    """Share of the training at which it ends."""

    @model_validator(mode="after")
    def _some_time(self) -> "Objective":
        if self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")
        return self


class MiniLM(Objective):
    type: Literal["minilm"]
    """Last layer's attention distributions and value relations (arXiv:2002.10957); head counts must be equal."""
    teacher_layer: int = -1
    """Layer of the teacher, counted from 0, negative from the end."""


class MiniLMv2(Objective):
    type: Literal["minilmv2"]
    """Self-attention relations of one teacher layer (arXiv:2012.15828)."""
    relation_heads: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Heads that queries, keys and values are split into; divides both hidden sizes; absent: 12, or where that does not, as many as do and
    the teacher has."""
    teacher_layer: int = -1
    """Layer of the teacher, counted from 0, negative from the end."""


class TinyBERT(Objective):
    type: Literal["tinybert"]
    """Embeddings, hidden states (through a learned projection) and attention scores, layer by layer (arXiv:1909.10351)."""
    layers: LayerList | None = None
    """Teacher layer that each student layer learns from, counted from 0; absent: the last of equal blocks of teacher layers."""
    attention: bool = True
    """Whether attention scores count; head counts must then be equal."""


class HiddenCosine(Objective):
    type: Literal["hidden_cosine"]
    """Direction of the last hidden state of every token (arXiv:1910.01108), through a learned projection where the widths differ."""


class Logits(Objective):
    answers = True
    type: Literal["logits"]
    """Squared distance of the logits (arXiv:1903.12136)."""


class SoftLabels(Objective):
    answers = True
    type: Literal["soft_labels"]
    """The teacher's class probabilities (arXiv:1503.02531)."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Divides both models' logits: the higher, the more the unlikely classes count."""


class Labels(Objective):
    answers, asks_teacher = True, False
    type: Literal["labels"]
    """The labels of the data."""


AnyObjective = Annotated[MiniLM | MiniLMv2 | TinyBERT | HiddenCosine | Logits | SoftLabels | Labels, Field(discriminator="type")]


class Augment(Section):
    copies: Annotated[int, Field(ge=1, le=100)] = 1
    """Changed copies of each training text, which only the teacher answers."""
    mask: Share = 0.1
    """Probability that a word becomes the mask token."""
    swap: Share = 0.1
    """Probability that a word becomes one that is near in the student's embeddings."""
    ngrams: Share = 0.25
    """Probability that a text is cut to one to five neighbouring words."""

    @model_validator(mode="after")
    def _some_change(self) -> "Augment":
        if self.mask + self.swap > 1 or self.mask + self.swap + self.ngrams == 0:
            raise ValueError("mask and swap add up to at most 1, and one of mask, swap and ngrams is above 0")
        return self


def _with_layer(value: Any) -> Any:
    """Return the short form `recycled_layers: 50%` as a mapping."""
    return value if value is None or isinstance(value, dict | RecycledLayers) else {"layer": value}


class Distill(Training):
    student: Student
    """What the student starts as."""
    augment: Augment | None = None
    """Learn from changed copies of the texts too (arXiv:1903.12136, arXiv:1909.10351)."""
    recycled_layers: Annotated[
        RecycledLayers | None, BeforeValidator(_with_layer, json_schema_input_type=int | str | RecycledLayers | None)
    ] = None
    """Layers of the student that stay as they are and run once per text (arXiv:2207.04993): so many from the first on, or a share of them,
    as 50%, or a mapping that says how they are kept."""
    teacher_store: Megabytes = 20e3
    """Largest disk store of the teacher's insides, which are then computed once a text; what does not fit is computed at each step."""
    objectives: Annotated[tuple[AnyObjective, ...], Field(min_length=1, strict=False)]
    """Losses that are added; `start` and `end` put them one after another."""

    @property
    def labels_alone_from(self) -> float | None:
        """Share of the training at which nothing is asked of the teacher, for a while at least; None: it is asked at every step."""
        asked = {share: any(o.asks_teacher for o in self.objectives if o.start <= share < o.end) for share in self._edges}
        return next((share for share, teacher in asked.items() if not teacher), None)

    @property
    def _edges(self) -> list[float]:
        """Shares of the training at which another set of objectives may begin."""
        return sorted({0.0, *(o.start for o in self.objectives), *(o.end for o in self.objectives if o.end < 1)})

    @property
    def answers_from(self) -> float:
        """Share of the training after which scores tell something: an objective reaches the logits then, if any ever does."""
        return min((o.start for o in self.objectives if o.answers), default=0.0)

    @model_validator(mode="after")
    def _covered(self) -> "Distill":
        for share in self._edges:
            if not any(o.start <= share < o.end for o in self.objectives):
                raise ValueError(f"no objective is active at {share:.0%} of the training")
        return self
