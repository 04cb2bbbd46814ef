"""Distillation objectives: one pure function each, listed in OBJECTIVES.

What:     losses that move a student towards its teacher or towards the labels; a recipe adds them with weights and schedules.
Papers:   minilm (arXiv:2002.10957) · minilmv2 (arXiv:2012.15828) · tinybert (arXiv:1909.10351) · hidden_cosine (DistilBERT,
          arXiv:1910.01108) · logits (biLSTM-SOFT, arXiv:1903.12136) · soft_labels (arXiv:1503.02531) · labels (cross-entropy).
Formula:  beside each function; a loss is a mean over real tokens or over texts, so that weights compare between tasks.
Defaults: relation_heads 12, teacher_layer -1, temperature 2; tinybert maps student layers to the last of equal blocks of teacher layers.
Limits:   what looks inside needs a student that reads the teacher's token ids; minilm and tinybert's attention need equal head counts.
To add:   its settings in recipe.py; the function and one entry here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import RecipeError
from compressor.families import Inner, Shape
from compressor.recipe import HiddenCosine, Labels, Logits, MiniLM, MiniLMv2, Objective, SoftLabels, TinyBERT


@dataclass(frozen=True, slots=True)
class Views:
    """What an objective may look at for one batch; the insides are captured only while an active objective looks at them."""

    mask: Tensor  # (batch, seq) bool, True for real tokens
    labels: Tensor  # (batch,) or (batch, seq)
    class_axis: int
    student_logits: Tensor
    teacher_logits: Tensor
    student: Inner | None = None
    teacher: Inner | None = None
    student_heads: int = 1
    teacher_heads: int = 1


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.float().view(*x.shape[:2], heads, -1).transpose(1, 2)  # (batch, heads, seq, head_dim)


def _scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    q, k = _heads(queries, heads), _heads(keys, heads)
    scores: Tensor = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores  # (batch, heads, seq, seq)


def _log_attention(queries: Tensor, keys: Tensor, mask: Tensor, heads: int) -> Tensor:
    scores = _scores(queries, keys, heads)
    logs: Tensor = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)
    return logs


def _query_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) of log attention (batch, heads, seq, seq), a mean over heads and real queries."""
    kl = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    return kl.transpose(1, 2)[mask].mean()  # padding queries do not count


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, relation_heads: int) -> Tensor:
    """KL divergence between teacher and student self-attention relations (MiniLMv2, arXiv:2012.15828).

    student and teacher are the queries, keys or values of a layer, (batch, seq, width); widths may differ.
    """
    return _query_kl(_log_attention(student, student, mask, relation_heads), _log_attention(teacher, teacher, mask, relation_heads), mask)


def minilm_loss(settings: MiniLM, views: Views) -> Tensor:
    """KL of the attention distributions plus KL of the value relations (MiniLM, arXiv:2002.10957)."""
    student, teacher = _insides(views)
    ours, theirs, layer = views.student_heads, views.teacher_heads, settings.teacher_layer
    attention = _query_kl(
        _log_attention(student.queries[-1], student.keys[-1], views.mask, ours),
        _log_attention(teacher.queries[layer], teacher.keys[layer], views.mask, theirs),
        views.mask,
    )
    return attention + relation_loss(student.values[-1], teacher.values[layer], views.mask, ours)


def minilmv2_loss(settings: MiniLMv2, views: Views) -> Tensor:
    """Sum of the Q-Q, K-K and V-V relation losses (MiniLMv2, arXiv:2012.15828)."""
    student, teacher = _insides(views)
    layer = settings.teacher_layer
    pairs = (
        (student.queries[-1], teacher.queries[layer]),
        (student.keys[-1], teacher.keys[layer]),
        (student.values[-1], teacher.values[layer]),
    )
    return torch.stack([relation_loss(s, t, views.mask, settings.relation_heads) for s, t in pairs]).sum()


def tinybert_loss(settings: TinyBERT, views: Views, projection: nn.Module) -> Tensor:
    """MSE of projected embeddings and hidden states, and of attention scores, by layer map (TinyBERT, arXiv:1909.10351)."""
    student, teacher = _insides(views)
    layers = layer_map(settings.layers, len(student.queries), len(teacher.queries))
    pairs = [(0, 0), *((ours + 1, theirs + 1) for ours, theirs in enumerate(layers))]
    losses = [_token_mse(projection(student.hidden[ours].float()), teacher.hidden[theirs], views.mask) for ours, theirs in pairs]
    if settings.attention:
        real = views.mask[:, None, :, None] & views.mask[:, None, None, :]
        for ours, theirs in enumerate(layers):
            s = _scores(student.queries[ours], student.keys[ours], views.student_heads)
            t = _scores(teacher.queries[theirs], teacher.keys[theirs], views.teacher_heads)
            losses.append(F.mse_loss(s[real.expand_as(s)], t[real.expand_as(t)]))
    return torch.stack(losses).sum()


def hidden_cosine_loss(settings: HiddenCosine, views: Views, projection: nn.Module) -> Tensor:
    """One minus the cosine of the last hidden states, a mean over real tokens (DistilBERT, arXiv:1910.01108)."""
    student, teacher = _insides(views)
    found, goal = projection(student.hidden[-1].float()), teacher.hidden[-1].float()
    return 1 - F.cosine_similarity(found[views.mask], goal[views.mask], dim=-1).mean()


def logit_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the logits, a mean over all of them (biLSTM-SOFT, arXiv:1903.12136)."""
    return F.mse_loss(student.float(), teacher.detach().float())


def soft_label_loss(student: Tensor, teacher: Tensor, class_axis: int, temperature: float) -> Tensor:
    """Forward KL from the teacher's to the student's softened probabilities, scaled by T² (arXiv:1503.02531)."""
    goal = (teacher.detach().float().movedim(class_axis, -1) / temperature).log_softmax(-1)
    found = (student.float().movedim(class_axis, -1) / temperature).log_softmax(-1)
    return F.kl_div(found, goal, log_target=True, reduction="none").sum(-1).mean() * temperature**2


def label_loss(logits: Tensor, labels: Tensor, class_axis: int, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the labels, weighted by class (classes,) when asked; positions labelled -100 do not count."""
    return F.cross_entropy(logits.float().movedim(class_axis, 1), labels, weights, ignore_index=-100)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Return weights (classes,) in inverse proportion to how often each class occurs; over the labels their mean is 1."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return labels.numel() / (classes * counts.float())


def layer_map(layers: Sequence[int] | None, student: int, teacher: int) -> Sequence[int]:
    """Return the teacher layer of each student layer: as given, else the last of `student` equal blocks of teacher layers."""
    return layers if layers is not None else [(layer + 1) * teacher // student - 1 for layer in range(student)]


def _token_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    return F.mse_loss(student[mask], teacher[mask].float())


def _insides(views: Views) -> tuple[Inner, Inner]:
    assert views.student is not None
    assert views.teacher is not None
    return views.student, views.teacher


def _projection(student: Shape, teacher: Shape) -> nn.Module:
    return nn.Linear(student.width, teacher.width, bias=False)


def _projection_if_needed(student: Shape, teacher: Shape) -> nn.Module:
    return nn.Identity() if student.width == teacher.width else _projection(student, teacher)


def _unequal_heads(what: str, student: Shape, teacher: Shape) -> str:
    if student.heads == teacher.heads:
        return ""
    return f"{what} needs equal head counts, but the student has {student.heads}, the teacher {teacher.heads}"


def _no_layer(layer: int, teacher: Shape) -> str:
    if -teacher.layers <= layer < teacher.layers:
        return ""
    return f"teacher layer {layer} is out of range; the teacher has layers 0 to {teacher.layers - 1}"


def _check_minilm(settings: MiniLM, student: Shape, teacher: Shape) -> str:
    return _no_layer(settings.teacher_layer, teacher) or _unequal_heads("minilm", student, teacher)


def _check_minilmv2(settings: MiniLMv2, student: Shape, teacher: Shape) -> str:
    for name, shape in (("teacher", teacher), ("student", student)):
        if shape.width % settings.relation_heads:
            return f"relation_heads {settings.relation_heads} does not divide the {name}'s hidden size {shape.width}"
    return _no_layer(settings.teacher_layer, teacher)


def _check_tinybert(settings: TinyBERT, student: Shape, teacher: Shape) -> str:
    layers = layer_map(settings.layers, student.layers, teacher.layers)
    if len(layers) != student.layers:
        return f"tinybert maps {len(layers)} layers, but the student has {student.layers}; name one for each"
    heads = _unequal_heads("tinybert with attention", student, teacher) if settings.attention else ""
    return next(filter(None, (_no_layer(layer, teacher) for layer in layers)), heads)


@dataclass(frozen=True)
class Method:
    """An objective's loss, whether it looks inside the models, what it must hold, and the module that it learns beside the student."""

    loss: Callable[..., Tensor]
    inside: bool = False
    check: Callable[[Any, Shape, Shape], str] | None = None
    learned: Callable[[Shape, Shape], nn.Module] | None = None


OBJECTIVES: Mapping[type[Objective], Method] = {
    MiniLM: Method(minilm_loss, inside=True, check=_check_minilm),
    MiniLMv2: Method(minilmv2_loss, inside=True, check=_check_minilmv2),
    TinyBERT: Method(tinybert_loss, inside=True, check=_check_tinybert, learned=_projection),
    HiddenCosine: Method(hidden_cosine_loss, inside=True, learned=_projection_if_needed),
    Logits: Method(lambda _, v: logit_loss(v.student_logits, v.teacher_logits)),
    SoftLabels: Method(lambda s, v: soft_label_loss(v.student_logits, v.teacher_logits, v.class_axis, s.temperature)),
    Labels: Method(lambda _, v: label_loss(v.student_logits, v.labels, v.class_axis)),
}


def check(section: str, objectives: Sequence[Objective], student: Shape, teacher: Shape) -> None:
    """Refuse objectives of a recipe's section that do not fit the two encoders.

    Raises:
        RecipeError: which, and why.
    """
    for objective in objectives:
        method = OBJECTIVES[type(objective)]
        if method.check and (wrong := method.check(objective, student, teacher)):
            raise RecipeError(f"{section}.objectives: {wrong}")


def learned_modules(objectives: Sequence[Objective], student: Shape, teacher: Shape) -> nn.ModuleDict:
    """Return what is learned beside the student and thrown away after the training, by the objective's place in the recipe."""
    made = {str(place): OBJECTIVES[type(o)].learned for place, o in enumerate(objectives)}
    return nn.ModuleDict({place: make(student, teacher) for place, make in made.items() if make})


def look_inside(objectives: Sequence[Objective], share: float = 0.0, *, ever: bool = False) -> bool:
    """Say whether an objective that is active after `share` of the training, or `ever`, looks inside the models."""
    return any(OBJECTIVES[type(o)].inside for o in objectives if ever or o.start <= share < o.end)


def total(
    objectives: Sequence[Objective], views: Views, share: float = 0.0, learned: Mapping[str, nn.Module] | nn.ModuleDict | None = None
) -> Tensor:
    """Return the weighted sum of the losses that are active after `share` of the training."""
    losses = []
    for place, objective in enumerate(objectives):
        if objective.start <= share < objective.end:
            method = OBJECTIVES[type(objective)]
            extra = [learned[str(place)]] if method.learned and learned is not None else []
            losses.append(objective.weight * method.loss(objective, views, *extra))
    return torch.stack(losses).sum()
