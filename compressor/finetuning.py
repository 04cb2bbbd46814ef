"""Train an encoder and its head on the labels of a task, whole or above recycled layers."""

import dataclasses
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.encoded import Encoded
from compressor.losses import balanced_weights, label_loss
from compressor.modeling import PlainModel
from compressor.progress import Progress
from compressor.recycling import above
from compressor.scoring import inputs_of, score_of
from compressor.settings.training import Finetune
from compressor.tasks import Task
from compressor.training import Step, fit
from compressor.tuning import learning_parameters, merged, prepare


@dataclass(frozen=True)
class TrainingData:
    """What is learned from, what is watched and by which score, and how many layers are recycled."""

    train: Encoded
    validation: Encoded
    metric: str
    recycled: int = 0


def finetune(
    model: PreTrainedModel, settings: Finetune, data: TrainingData, task: Task, seed: int, state: Path, log: Progress
) -> dict[str, Any]:
    """Train the model in place and return what was done."""
    tuned = prepare(model, settings, data.recycled)
    learning, balanced = learning_parameters(tuned), settings.class_weights == "balanced"
    weights = balanced_weights(torch.from_numpy(data.train.targets), model.config.num_labels) if balanced else None
    log.note(f"{settings.method}: {learning:,} weights learn{f' above {data.recycled} recycled layers' if data.recycled else ''}")
    with above(model, data.recycled) if data.recycled else nullcontext(PlainModel(tuned)) as forward:

        def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
            logits, mask = forward(*inputs_of(batch)), batch["attention_mask"].bool()
            yield label_loss(logits, batch["labels"], mask, task.choice, None if weights is None else weights.to(logits.device))

        def score() -> float:
            return score_of(forward, data.validation, data.metric)

        fitted = fit(forward, losses, data.train, settings, seed, state, log, score)
        if data.recycled:
            found = score()
    merged(tuned)
    if not data.recycled:
        found = score_of(PlainModel(model), data.validation, data.metric)
    return {**dataclasses.asdict(fitted), "learning_parameters": learning, "validation_score": found}
