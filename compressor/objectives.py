"""Distillation objectives: what each asks of two models, listed in OBJECTIVES; the arithmetic is in compressor/losses.py.

What:     losses that move a student towards its teacher or towards the labels; a recipe adds them with weights and schedules.
Papers:   minilm (arXiv:2002.10957) · minilmv2 (arXiv:2012.15828) · tinybert (arXiv:1909.10351) · hidden_cosine (DistilBERT,
          arXiv:1910.01108) · logits (biLSTM-SOFT, arXiv:1903.12136) · soft_labels (arXiv:1503.02531) · labels (cross-entropy).
Formula:  beside each function; a loss is a mean over real tokens or over texts, so that weights compare between tasks.
Defaults: relation_heads 12 where both widths divide so, teacher_layer -1, temperature 2; tinybert maps student layers to the last of equal
          blocks of teacher layers.
Limits:   what looks inside needs a student that splits texts into the teacher's tokens; minilm and tinybert's attention need equal
          head counts, and scores that are q·kᵀ / √d and MPNet's bias, which those of DeBERTa and ModernBERT are not. Labels of
          unlabelled texts count nowhere; every other objective learns from them too.
To add:   its settings in settings/distilling.py; the function and one entry here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.choices import UNLABELLED, Choice
from compressor.errors import RecipeError
from compressor.families import PROJECTIONS, Inner, Part, Place, Shape
from compressor.losses import (
    Attention,
    attention_loss,
    attention_score_loss,
    label_loss,
    logit_loss,
    relation_loss,
    soft_label_loss,
    token_cosine,
    token_mse,
)
from compressor.settings.distilling import HiddenCosine, Labels, Logits, MiniLM, MiniLMv2, Objective, SoftLabels, TinyBERT


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes of both encoders."""

    student: Shape
    teacher: Shape


@dataclass(frozen=True, slots=True)
class Places:
    """Where an objective looks, in each of the two encoders."""

    student: frozenset[Place] = frozenset()
    teacher: frozenset[Place] = frozenset()

    def __or__(self, other: "Places") -> "Places":
        """Return both objectives' places."""
        return Places(self.student | other.student, self.teacher | other.teacher)

    def __bool__(self) -> bool:
        """Say whether there is anywhere to look."""
        return bool(self.student)


@dataclass(frozen=True, slots=True)
class Views:
    """What an objective may look at for one batch; of the insides, the places that an active objective reads."""

    shapes: Shapes
    mask: Tensor  # (batch, seq) bool, True for real tokens
    labels: Tensor  # (batch,), (batch, seq) of tokens, (batch, 2) of spans, (batch, labels) of sets; below 0 where there is none
    choice: Choice
    student_logits: Tensor  # (batch, classes), (batch, seq, classes) or (batch, seq, outputs)
    teacher_logits: Tensor
    student: Inner = field(default_factory=dict)
    teacher: Inner = field(default_factory=dict)
    student_bias: Tensor | None = None  # (1, heads, seq, seq), added to attention scores
    teacher_bias: Tensor | None = None

    @property
    def counted(self) -> Tensor:
        """Which tokens' answers count (batch, seq): those with a label where tokens have labels, else the real ones."""
        return self.labels != UNLABELLED if self.choice == "labels" and self.student_logits.ndim == 3 else self.mask

    def attention(self, student: int, teacher: int) -> tuple[Attention, Attention]:
        """Return the attention of a layer of each."""
        s, t, shapes = self.student, self.teacher, self.shapes
        ours = Attention(s["queries", student], s["keys", student], shapes.student.heads, self.student_bias)
        return ours, Attention(t["queries", teacher], t["keys", teacher], shapes.teacher.heads, self.teacher_bias)


def layer_map(layers: Sequence[int] | None, student: int, teacher: int) -> Sequence[int]:
    """Return the teacher layer of each student layer: as given, else the last of `student` equal blocks of teacher layers."""
    return layers if layers is not None else [(layer + 1) * teacher // student - 1 for layer in range(student)]


def minilm(settings: MiniLM, views: Views) -> Tensor:
    """KL of the attention distributions plus KL of the value relations (MiniLM, arXiv:2002.10957)."""
    values = views.student["values", -1], views.teacher["values", settings.teacher_layer]
    attention = attention_loss(*views.attention(-1, settings.teacher_layer), views.mask)
    return attention + relation_loss(*values, views.mask, views.shapes.student.heads)


def relation_heads(settings: MiniLMv2, shapes: Shapes) -> int:
    """Return the heads that a recipe asks for, else 12, or where 12 does not fit as many as do and the teacher has."""
    return settings.relation_heads or (12 if _common(shapes) % 12 == 0 else _fitting(shapes))


def _common(shapes: Shapes) -> int:
    return math.gcd(shapes.teacher.width, shapes.student.width)


def _fitting(shapes: Shapes) -> int:
    return max(heads for heads in range(1, max(1, shapes.teacher.heads) + 1) if _common(shapes) % heads == 0)


def minilmv2(settings: MiniLMv2, views: Views) -> Tensor:
    """Sum of the Q-Q, K-K and V-V relation losses (MiniLMv2, arXiv:2012.15828)."""
    pairs = [(views.student[part, -1], views.teacher[part, settings.teacher_layer]) for part in PROJECTIONS]
    return torch.stack([relation_loss(s, t, views.mask, relation_heads(settings, views.shapes)) for s, t in pairs]).sum()


def _last_layer(settings: MiniLM | MiniLMv2, shapes: Shapes) -> Places:
    return Places(frozenset((part, -1) for part in PROJECTIONS), frozenset((part, settings.teacher_layer) for part in PROJECTIONS))


def tinybert(settings: TinyBERT, views: Views, projection: nn.Module) -> Tensor:
    """MSE of projected embeddings and hidden states, and of attention scores, by layer map (TinyBERT, arXiv:1909.10351)."""
    s, t, shapes, mask = views.student, views.teacher, views.shapes, views.mask
    layers = list(enumerate(layer_map(settings.layers, shapes.student.layers, shapes.teacher.layers)))
    states = [(0, 0), *((ours + 1, theirs + 1) for ours, theirs in layers)]
    losses = [token_mse(projection(s["hidden", ours].float()), t["hidden", theirs], mask) for ours, theirs in states]
    for ours, theirs in layers if settings.attention else ():
        losses.append(attention_score_loss(*views.attention(ours, theirs), mask))
    return torch.stack(losses).sum()


def _mapped_layers(settings: TinyBERT, shapes: Shapes) -> Places:
    layers = layer_map(settings.layers, shapes.student.layers, shapes.teacher.layers)
    parts: tuple[Part, ...] = ("queries", "keys") if settings.attention else ()

    def of(chosen: Sequence[int]) -> frozenset[Place]:
        return frozenset([("hidden", 0), *(("hidden", i + 1) for i in chosen), *((part, i) for part in parts for i in chosen)])

    return Places(of(range(shapes.student.layers)), of(layers))


def hidden_cosine(settings: HiddenCosine, views: Views, projection: nn.Module) -> Tensor:
    """One minus the cosine of the last hidden states, a mean over real tokens (DistilBERT, arXiv:1910.01108)."""
    return token_cosine(projection(views.student["hidden", -1].float()), views.teacher["hidden", -1], views.mask)


def _projection(shapes: Shapes) -> nn.Module:
    return nn.Linear(shapes.student.width, shapes.teacher.width, bias=False)


def _projection_if_needed(shapes: Shapes) -> nn.Module:
    return nn.Identity() if shapes.student.width == shapes.teacher.width else _projection(shapes)


def _unlike_attention(what: str, shapes: Shapes) -> str:
    if own := [who for who, shape in (("student", shapes.student), ("teacher", shapes.teacher)) if shape.own_scores]:
        told = f"{what} compares attention scores, which the family of this {own[0]} computes in a way of its own"
        return f"{told}; use minilmv2, or tinybert with attention: false"
    if shapes.student.heads == shapes.teacher.heads:
        return ""
    told = f"{what} needs equal head counts, but the student has {shapes.student.heads}, the teacher {shapes.teacher.heads}"
    return f"{told}; use minilmv2, or tinybert with attention: false"


def _no_layer(layer: int, teacher: Shape) -> str:
    if -teacher.layers <= layer < teacher.layers:
        return ""
    return f"teacher layer {layer} is out of range; the teacher has layers 0 to {teacher.layers - 1}"


def _check_minilm(settings: MiniLM, shapes: Shapes) -> str:
    return _no_layer(settings.teacher_layer, shapes.teacher) or _unlike_attention("minilm", shapes)


def _check_minilmv2(settings: MiniLMv2, shapes: Shapes) -> str:
    for name, shape in (("teacher", shapes.teacher), ("student", shapes.student)):
        if shape.width % (heads := relation_heads(settings, shapes)):
            return f"relation_heads {heads} does not divide the {name}'s hidden size {shape.width}; {_fitting(shapes)} does"
    return _no_layer(settings.teacher_layer, shapes.teacher)


def _check_tinybert(settings: TinyBERT, shapes: Shapes) -> str:
    if settings.layers is None and shapes.student.layers > shapes.teacher.layers:
        told = f"{shapes.student.layers} layers, but the teacher has {shapes.teacher.layers}"
        return f"tinybert maps equal blocks of teacher layers, and the student has {told}; name the teacher's layer for each in `layers`"
    layers = layer_map(settings.layers, shapes.student.layers, shapes.teacher.layers)
    if len(layers) != shapes.student.layers:
        return f"tinybert maps {len(layers)} layers, but the student has {shapes.student.layers}; name one for each"
    unlike = _unlike_attention("tinybert with attention", shapes) if settings.attention else ""
    return next(filter(None, (_no_layer(layer, shapes.teacher) for layer in layers)), unlike)


@dataclass(frozen=True)
class Method:
    """An objective's loss; where it looks inside the models; what must hold; and the module that is learned beside the student."""

    loss: Callable[..., Tensor]
    places: Callable[[Any, Shapes], Places] | None = None
    check: Callable[[Any, Shapes], str] | None = None
    learned: Callable[[Shapes], nn.Module] | None = None


OBJECTIVES: Mapping[type[Objective], Method] = {
    MiniLM: Method(minilm, _last_layer, _check_minilm),
    MiniLMv2: Method(minilmv2, _last_layer, _check_minilmv2),
    TinyBERT: Method(tinybert, _mapped_layers, _check_tinybert, _projection),
    HiddenCosine: Method(
        hidden_cosine, lambda *_: Places(frozenset({("hidden", -1)}), frozenset({("hidden", -1)})), learned=_projection_if_needed
    ),
    Logits: Method(lambda _, v: logit_loss(v.student_logits, v.teacher_logits, v.counted)),
    SoftLabels: Method(lambda s, v: soft_label_loss(v.student_logits, v.teacher_logits, v.counted, v.choice, s.temperature)),
    Labels: Method(lambda _, v: label_loss(v.student_logits, v.labels, v.mask, v.choice)),
}


def looks_inside(objectives: Sequence[Objective]) -> str | None:
    """Return the type of an objective that looks inside the models, if there is one."""
    return next((str(o.type) for o in objectives if OBJECTIVES[type(o)].places), None)


def compares_answers(objectives: Sequence[Objective]) -> str | None:
    """Return the type of an objective that compares the two models' logits, if there is one."""
    return next((str(o.type) for o in objectives if o.asks_teacher and o.answers), None)


def check(section: str, objectives: Sequence[Objective], shapes: Shapes) -> None:
    """Refuse objectives of a recipe's section that do not fit the two encoders.

    Raises:
        RecipeError: which, and why.
    """
    for objective in objectives:
        method = OBJECTIVES[type(objective)]
        if method.check and (wrong := method.check(objective, shapes)):
            raise RecipeError(f"{section}.objectives: {wrong}")


def learned_modules(objectives: Sequence[Objective], shapes: Shapes) -> nn.ModuleDict:
    """Return what is learned beside the student and thrown away after the training, by the objective's place in the recipe."""
    made = {str(number): OBJECTIVES[type(o)].learned for number, o in enumerate(objectives)}
    return nn.ModuleDict({number: make(shapes) for number, make in made.items() if make})


def active(objectives: Sequence[Objective], share: float) -> list[tuple[str, Objective]]:
    """Return the objectives that count after `share` of the training, each with its place in the recipe."""
    return [(str(number), o) for number, o in enumerate(objectives) if o.start <= share < o.end]


def asks_teacher(objectives: Sequence[Objective], share: float) -> bool:
    """Say whether an objective that is active after `share` of the training asks the teacher."""
    return any(o.asks_teacher for _, o in active(objectives, share))


def looks_below(objectives: Sequence[Objective], shapes: Shapes, layers: int) -> str | None:
    """Return the type of the first objective that looks at one of the student's first layers, if any does."""
    for objective in objectives:
        look, from_end = OBJECTIVES[type(objective)].places, shapes.student.layers
        if look and any(number + from_end * (number < 0) < layers for _, number in look(objective, shapes).student):
            return str(objective.type)
    return None


def places_of(objectives: Sequence[Objective], shapes: Shapes, share: float) -> Places:
    """Return where the objectives that are active after `share` of the training look."""
    found = Places()
    for _, objective in active(objectives, share):
        if look := OBJECTIVES[type(objective)].places:
            found |= look(objective, shapes)
    return found


def total(
    objectives: Sequence[Objective], views: Views, share: float = 0.0, learned: Mapping[str, nn.Module] | nn.ModuleDict | None = None
) -> Tensor:
    """Return the weighted sum of the losses that are active after `share` of the training."""
    losses = []
    for number, objective in active(objectives, share):
        method = OBJECTIVES[type(objective)]
        extra = [learned[number]] if method.learned and learned is not None else []
        losses.append(objective.weight * method.loss(objective, views, *extra))
    return torch.stack(losses).sum()
