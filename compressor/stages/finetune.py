"""Fine-tune the teacher on the task.

What:     a pretrained encoder with a classification head learns the labels; without `teacher.finetune` it is taken as it is.
Paper:    BERT (arXiv:1810.04805); which weights learn: see compressor/tuning.py.
Formula:  cross-entropy of the labels, weighted by class when `class_weights` is balanced.
Defaults: all weights, 3 epochs, batch 32, learning rate 5e-5, linear schedule with 10 % warm-up.
Limits:   adapters that stay beside the weights are not trained here: what cannot be merged would not export as a plain encoder.
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
from compressor.modeling import PlainClassifier, load_classifier
from compressor.objectives import balanced_weights, label_loss
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Finetune, Recipe
from compressor.splits import Encoded, Splits, task_of
from compressor.training import Step, fit, predict
from compressor.tuning import learning_parameters, merged, prepare


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the teacher and return its score on the validation split."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    folder = sources.model_folder(recipe.teacher.model, recipe.root)
    torch.manual_seed(recipe.seed)  # the new head's weights
    model = load_classifier(folder, splits.labels)
    checkpoint.check_positions(model, splits.max_length)
    metrics: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    validation = splits.encoded("validation", task, folder)

    def score(forward: nn.Module) -> float:
        logits = predict(lambda b: forward(b["input_ids"], b["attention_mask"], b["token_type_ids"]), validation)
        return task.score(logits, validation.labels, recipe.task.metric)

    if recipe.teacher.finetune:
        metrics |= _finetune(model, recipe.teacher.finetune, splits.encoded("train", task, folder), score, recipe, out, log)
    checkpoint.save(model, folder, out)
    return metrics | {"validation_score": score(PlainClassifier(model).eval())}


def _finetune(
    model: PreTrainedModel,
    settings: Finetune,
    train: Encoded,
    score: Callable[[nn.Module], float],
    recipe: Recipe,
    out: Path,
    log: Progress,
) -> dict[str, Any]:
    """Train the model in place and return what was done."""
    task, classes = task_of(recipe), model.config.num_labels
    tuned = prepare(model, settings)
    forward, learning = PlainClassifier(tuned), learning_parameters(tuned)
    weights = balanced_weights(torch.from_numpy(train.labels), classes) if settings.class_weights == "balanced" else None
    log.note(f"{settings.method}: {learning:,} weights learn")

    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        logits = forward(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        yield label_loss(logits, batch["labels"], task.class_axis, None if weights is None else weights.to(logits.device))

    fitted = fit(forward, losses, train, settings, recipe.seed, out / STATE, log, lambda: score(forward))
    merged(tuned)
    return {**dataclasses.asdict(fitted), "learning_parameters": learning}
