"""Distillation objectives: one pure function each, listed in OBJECTIVES.

What:     losses that move a student towards its teacher or towards the labels; a recipe adds them with weights.
Papers:   minilmv2 (arXiv:2012.15828) · soft_labels (arXiv:1503.02531) · labels (cross-entropy).
Defaults: relation_heads 12, teacher_layer -1; temperature 2.
Limits:   minilmv2 needs teacher and student to read the same token ids.
To add:   its settings in recipe.py, the function and one entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.recipe import Labels, MiniLMv2, Objective, SoftLabels

Relations = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of one layer, each (batch, seq, hidden)."""


@dataclass(frozen=True, slots=True)
class Views:
    """What an objective may look at for one batch; only what the active objectives need is computed."""

    mask: Tensor  # (batch, seq) bool, True for real tokens
    labels: Tensor  # (batch,) or (batch, seq)
    class_axis: int
    student_logits: Tensor
    teacher_logits: Tensor
    student_relations: Relations | None = None
    teacher_relations: Relations | None = None


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, relation_heads: int) -> Tensor:
    """KL divergence between teacher and student self-attention relations (MiniLMv2, arXiv:2012.15828)."""

    def relations(x: Tensor) -> Tensor:
        x = x.float().view(*x.shape[:2], relation_heads, -1).transpose(1, 2)  # (batch, heads, seq, head_dim)
        scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5  # (batch, heads, seq, seq)
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        logs: Tensor = scores.log_softmax(-1)
        return logs

    kl = F.kl_div(relations(student), relations(teacher), log_target=True, reduction="none").sum(-1)
    return kl.transpose(1, 2)[mask].mean()  # padding queries do not count


def soft_label_loss(student: Tensor, teacher: Tensor, class_axis: int, temperature: float) -> Tensor:
    """Forward KL from the teacher's to the student's softened probabilities, scaled by T² (arXiv:1503.02531)."""
    goal = (teacher.detach().float().movedim(class_axis, -1) / temperature).log_softmax(-1)
    found = (student.float().movedim(class_axis, -1) / temperature).log_softmax(-1)
    return F.kl_div(found, goal, log_target=True, reduction="none").sum(-1).mean() * temperature**2


def label_loss(logits: Tensor, labels: Tensor, class_axis: int) -> Tensor:
    """Cross-entropy of the labels; positions labelled -100 do not count."""
    return F.cross_entropy(logits.float().movedim(class_axis, 1), labels, ignore_index=-100)


def _minilmv2(settings: MiniLMv2, views: Views) -> Tensor:
    assert views.student_relations is not None
    assert views.teacher_relations is not None
    pairs = zip(views.student_relations, views.teacher_relations, strict=True)
    return torch.stack([relation_loss(s, t, views.mask, settings.relation_heads) for s, t in pairs]).sum()


def _soft_labels(settings: SoftLabels, views: Views) -> Tensor:
    return soft_label_loss(views.student_logits, views.teacher_logits, views.class_axis, settings.temperature)


def _labels(settings: Labels, views: Views) -> Tensor:
    return label_loss(views.student_logits, views.labels, views.class_axis)


OBJECTIVES: Mapping[type[Objective], Callable[[Any, Views], Tensor]] = {MiniLMv2: _minilmv2, SoftLabels: _soft_labels, Labels: _labels}


def total(objectives: tuple[Objective, ...], views: Views) -> Tensor:
    """Return the weighted sum of the objectives' losses."""
    return torch.stack([o.weight * OBJECTIVES[type(o)](o, views) for o in objectives]).sum()


def active(objectives: tuple[Objective, ...], share: float) -> tuple[Objective, ...]:
    """Return the objectives that apply after `share` of the training."""
    return tuple(o for o in objectives if o.start <= share < o.end)
