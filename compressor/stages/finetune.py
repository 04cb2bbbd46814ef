"""Fine-tune the teacher on the task.

What:     a pretrained encoder with a classification head learns the labels; without `teacher.finetune` it is taken as it is.
Paper:    BERT (arXiv:1810.04805); which weights learn: see compressor/tuning.py.
Formula:  cross-entropy of the labels, weighted by class when `class_weights` is balanced.
Defaults: all weights, 3 epochs, batch 32, learning rate 5e-5, linear schedule with 10 % warm-up.
Limits:   adapters cannot be merged: a teacher that has them is a little slower, and its folder says so (`adapter_size`).
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
from compressor.scoring import score_of
from compressor.seeds import Trained, train_seeds
from compressor.splits import Splits, task_of
from compressor.tasks import Task
from compressor.training import Step, fit
from compressor.tuning import learning_parameters, merged, prepare


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the teacher and return its score on the validation split."""
    splits, task, settings = Splits.of(inputs["data"]), task_of(recipe), recipe.teacher.finetune
    folder = sources.model_folder(recipe.teacher.model, recipe.root)
    validation = splits.encoded("validation", task, folder)

    def score(forward: nn.Module) -> float:
        return score_of(forward, validation, recipe.task.metric)

    def untrained(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)  # the new head's weights
        model = load_model(folder, splits.labels, task.head)
        checkpoint.check_positions(model, splits.max_length)
        return model

    def once(seed: int, state: Path) -> Trained:
        assert settings is not None
        model = untrained(seed)
        metrics = _finetune(model, settings, train, score, task, seed, state, log)
        return Trained(model, {**metrics, "validation_score": score(PlainModel(model))})

    if settings is None:
        model = untrained(recipe.seed)
        if task.labelled and not has_head(folder, model):
            what = f"{recipe.teacher.model} is no classifier of these {len(splits.labels)} labels"
            raise RecipeError(f"teacher.model: {what}; add teacher.finetune")
        trained = Trained(model, {"validation_score": score(PlainModel(model))})
    else:
        train = splits.encoded("train", task, folder)
        trained = train_seeds(settings, recipe.seed, out / STATE, log, once)
    checkpoint.save(trained.model, folder, out)
    return {"parameters": sum(p.numel() for p in trained.model.parameters()), **trained.metrics}


def _finetune(
    model: PreTrainedModel,
    settings: Finetune,
    train: Encoded,
    score: Callable[[nn.Module], float],
    task: Task,
    seed: int,
    state: Path,
    log: Progress,
) -> dict[str, Any]:
    """Train the model in place and return what was done."""
    tuned = prepare(model, settings)
    forward, learning = PlainModel(tuned), learning_parameters(tuned)
    balanced = settings.class_weights == "balanced"
    weights = balanced_weights(torch.from_numpy(train.targets), model.config.num_labels) if balanced else None
    log.note(f"{settings.method}: {learning:,} weights learn")

    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        logits = forward(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        mask = batch["attention_mask"].bool()
        yield label_loss(logits, batch["labels"], mask, task.choice, None if weights is None else weights.to(logits.device))

    fitted = fit(forward, losses, train, settings, seed, state, log, lambda: score(forward))
    merged(tuned)
    return {**dataclasses.asdict(fitted), "learning_parameters": learning}
