"""Fine-tune the teacher on the task.

What:     a pretrained encoder with a classification head learns the labels; without `teacher.finetune` it is taken as it is.
Paper:    BERT (arXiv:1810.04805).
Formula:  cross-entropy of the labels.
Defaults: 3 epochs, batch 32, learning rate 5e-5, linear schedule with 10 % warm-up.
Limits:   all weights are trained.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor import checkpoint, sources
from compressor.artifact import STATE
from compressor.modeling import PlainClassifier, load_classifier
from compressor.objectives import label_loss
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.splits import Splits, task_of
from compressor.training import Step, fit, predict


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the teacher and return its score on the validation split."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    folder = sources.model_folder(recipe.teacher.model, recipe.root)
    torch.manual_seed(recipe.seed)  # the new head's weights
    model = PlainClassifier(load_classifier(folder, splits.labels))
    checkpoint.check_positions(model.model, splits.max_length)
    metrics: dict[str, Any] = {}
    if recipe.teacher.finetune:

        def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
            yield label_loss(model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]), batch["labels"], task.class_axis)

        fitted = fit(model, losses, splits.encoded("train", task, folder), recipe.teacher.finetune, recipe.seed, out / STATE, log)
        metrics |= {"steps": fitted.steps, "loss": fitted.loss, "texts_per_second": fitted.texts_per_second}
    validation = splits.encoded("validation", task, folder)
    logits = predict(lambda b: model(b["input_ids"], b["attention_mask"], b["token_type_ids"]), validation)
    checkpoint.save(model.model, folder, out)
    parameters = sum(p.numel() for p in model.parameters())
    return metrics | {"validation_score": task.score(logits, validation.labels, recipe.task.metric), "parameters": parameters}
