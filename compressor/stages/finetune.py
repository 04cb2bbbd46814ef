"""Fine-tune the teacher on the task.

What:     a pretrained encoder with a classification head learns the labels; without `teacher.finetune` it is taken as it is.
Paper:    BERT (arXiv:1810.04805); which weights learn: see compressor/tuning.py.
Formula:  cross-entropy of the labels, weighted by class when `class_weights` is balanced.
Defaults: all weights, 3 epochs, batch 32, learning rate 5e-5, linear schedule with 10 % warm-up.
          With a `recycle` section the first layers stay as they are, and are read from a store (compressor/stages/recycle.py).
Limits:   adapters cannot be merged: a teacher that has them is a little slower, and its folder says so (`adapter_size`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor import checkpoint, sources
from compressor.artifact import STATE
from compressor.encoded import Encoded
from compressor.errors import RecipeError
from compressor.losses import balanced_weights, label_loss
from compressor.modeling import PlainModel, has_head, load_model
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Finetune, Recipe
from compressor.recycling import above
from compressor.reuse import Reuse
from compressor.scoring import inputs_of, score_of
from compressor.seeds import Trained, train_seeds
from compressor.splits import Splits, task_of
from compressor.tasks import Task
from compressor.training import Step, fit
from compressor.tuning import learning_parameters, merged, prepare


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the teacher and return its score on the validation split."""
    splits, task, settings = Splits.of(inputs["data"]), task_of(recipe), recipe.teacher.finetune
    folder = sources.model_folder(recipe.teacher.model, recipe.root)

    def untrained(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)  # the new head's weights
        model = load_model(folder, splits.labels, task.head)
        checkpoint.check_positions(model, splits.max_length)
        return model

    if settings is None:
        trained = _as_it_is(recipe, untrained(recipe.seed), splits.encoded("validation", task, folder), splits.labels, folder)
    elif recipe.recycle is None:
        data = _Data(splits.encoded("train", task, folder), splits.encoded("validation", task, folder), recipe.task.metric)
        trained = _train(untrained, settings, data, task, recipe.seed, out / STATE, log)
    else:
        with Reuse.of(recipe, splits, task, out.parent, log) as reuse:
            data = _Data(reuse.recycled("train"), reuse.recycled("validation"), recipe.task.metric, reuse.lower.place)
            trained = _train(untrained, settings, data, task, recipe.seed, out / STATE, log)
    checkpoint.save(trained.model, folder, out)
    return {"parameters": sum(p.numel() for p in trained.model.parameters()), **trained.metrics}


@dataclass(frozen=True)
class _Data:
    """What is learned from, what is watched and by which score, and how many layers are recycled."""

    train: Encoded
    validation: Encoded
    metric: str
    recycled: int = 0


def _as_it_is(recipe: Recipe, model: PreTrainedModel, validation: Encoded, labels: Sequence[str], folder: Path) -> Trained:
    if task_of(recipe).labelled and not has_head(folder, model):
        raise RecipeError(f"teacher.model: {recipe.teacher.model} is no classifier of these {len(labels)} labels; add teacher.finetune")
    return Trained(model, {"validation_score": score_of(PlainModel(model), validation, recipe.task.metric)})


def _train(
    untrained: Callable[[int], PreTrainedModel], settings: Finetune, data: _Data, task: Task, seed: int, state: Path, log: Progress
) -> Trained:
    def once(seed: int, state: Path) -> Trained:
        model = untrained(seed)
        return Trained(model, _finetune(model, settings, data, task, seed, state, log))

    return train_seeds(settings, seed, state, log, once)


def _finetune(model: PreTrainedModel, settings: Finetune, data: _Data, task: Task, seed: int, state: Path, log: Progress) -> dict[str, Any]:
    """Train the model in place and return what was done."""
    if data.recycled:
        settings = settings.model_copy(update={"method": "freeze", "frozen_layers": data.recycled})
    tuned = prepare(model, settings)
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
