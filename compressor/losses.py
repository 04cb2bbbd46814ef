"""The losses' arithmetic: pure functions of tensors, each a mean over what counts, so that weights compare between tasks.

Logits are (batch, classes), or (batch, seq, classes) where tokens have labels (token classification, masked tokens), or (batch, seq,
outputs) where each output chooses a position (extractive question answering); a Choice says what a softmax goes over.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.choices import Choice


def answers(logits: Tensor, mask: Tensor, choice: Choice) -> Tensor:
    """Return one row of logits (answers, classes) for each answer that counts; a yes-or-no output z becomes logits (0, z).

    `mask` (batch, seq) says which tokens count; positions that do not count are no choice where the class is a position.
    """
    logits = logits.float()
    if choice == "each":
        return torch.stack([torch.zeros_like(logits), logits], -1).flatten(0, 1)
    if choice == "positions":
        return logits.masked_fill(~mask[..., None], -1e4).movedim(1, -1).flatten(0, 1)
    return logits if logits.ndim == 2 else logits[mask]


def soft_label_loss(student: Tensor, teacher: Tensor, mask: Tensor, choice: Choice, temperature: float) -> Tensor:
    """Forward KL from the teacher's to the student's softened probabilities, scaled by T² (arXiv:1503.02531).

    A number has no probabilities: there it is the squared distance.
    """
    if choice == "number":
        return logit_loss(student, teacher, mask)
    goal, found = (answers(x, mask, choice).div(temperature).log_softmax(-1) for x in (teacher.detach(), student))
    if not goal.numel():
        return student.sum() * 0.0  # no token of this batch counts
    return F.kl_div(found, goal, log_target=True, reduction="none").sum(-1).mean() * temperature**2


def logit_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of the logits, a mean over those that count (biLSTM-SOFT, arXiv:1903.12136)."""
    found, goal = (x.float() if x.ndim == 2 else x.float()[mask] for x in (student, teacher.detach()))
    return F.mse_loss(found, goal) if goal.numel() else student.sum() * 0.0


def label_loss(logits: Tensor, labels: Tensor, mask: Tensor, choice: Choice, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the labels, weighted by class (classes,) when asked, or squared distance of numbers; what has no label is left out.

    Labels below zero, and numbers that are none, are no labels.
    """
    known = labels.isfinite() if choice == "number" else labels >= 0
    if not known.any():
        return logits.sum() * 0.0  # a batch without labels; the mean over nothing would be no number
    if choice == "number":
        return F.mse_loss(logits[known].float().squeeze(-1), labels[known])
    # Of a whole vocabulary's logits only those that count are worth a softmax.
    found = logits[known].float() if choice == "labels" else answers(logits, mask, choice)[known.flatten()]
    if weights is None:
        return F.cross_entropy(found, labels[known])
    # The mean over all labels is 1 already: to divide by a batch's own would undo them the more, the smaller it is.
    return F.cross_entropy(found, labels[known], weights, reduction="none").mean()


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Return weights (classes,) in inverse proportion to how often each class occurs; over the labels their mean is 1."""
    known = labels[labels >= 0]
    counts = torch.bincount(known, minlength=classes)
    return known.numel() / (int((counts > 0).sum()) * counts.clamp(min=1).float())


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, relation_heads: int) -> Tensor:
    """KL divergence between teacher and student self-attention relations (MiniLMv2, arXiv:2012.15828).

    student and teacher are the queries, keys or values of a layer, (batch, seq, width); widths may differ.
    """
    return attention_loss(Attention(student, student, relation_heads), Attention(teacher, teacher, relation_heads), mask)


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention is made of: queries and keys (batch, seq, width), heads, and what is added to scores (1, heads, seq, seq)."""

    queries: Tensor
    keys: Tensor
    heads: int
    bias: Tensor | None = None

    def scores(self) -> Tensor:
        """Return Q·Kᵀ / √head_dim, and the bias, (batch, heads, seq, seq), in float32."""
        with torch.autocast(self.queries.device.type, enabled=False):  # it would round the products to bfloat16 again
            q, k = (x.float().view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (self.queries, self.keys))
            scores: Tensor = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # q, k: (batch, heads, seq, head_dim)
        return scores if self.bias is None else scores + self.bias.float()

    def log_probabilities(self, mask: Tensor) -> Tensor:
        """Return the logarithm of each query's distribution over real keys, (batch, heads, seq, seq)."""
        scores = self.scores()
        return scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)


def attention_loss(student: Attention, teacher: Attention, mask: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the attention distributions, a mean over heads and real queries (MiniLM, arXiv:2002.10957)."""
    ours, theirs = student.log_probabilities(mask), teacher.log_probabilities(mask)
    kl = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
    return kl.transpose(1, 2)[mask].mean()  # padding queries do not count


def attention_score_loss(student: Attention, teacher: Attention, mask: Tensor) -> Tensor:
    """Squared distance of the attention scores, before the softmax, over pairs of real tokens (TinyBERT, arXiv:1909.10351)."""
    ours, theirs = student.scores(), teacher.scores()
    real = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(ours)
    return F.mse_loss(ours[real], theirs[real])


def token_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of two states (batch, seq, width), over real tokens (TinyBERT, arXiv:1909.10351)."""
    return F.mse_loss(student.float()[mask], teacher.float()[mask])


def token_cosine(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """One minus the cosine of two states (batch, seq, width), a mean over real tokens (DistilBERT, arXiv:1910.01108)."""
    return 1 - F.cosine_similarity(student.float()[mask], teacher.float()[mask], dim=-1).mean()
