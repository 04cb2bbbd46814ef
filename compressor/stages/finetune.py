"""Fine-tune the teacher on the task.

What:     a pretrained encoder with a classification head learns the labels; without `teacher.finetune` it is taken as it is.
Paper:    BERT (arXiv:1810.04805); which weights learn: see compressor/tuning.py.
Formula:  cross-entropy of the labels, weighted by class when `class_weights` is balanced.
Defaults: all weights, 3 epochs, batch 32, learning rate 5e-5, linear schedule with 10 % warm-up.
          With a `recycle` section the first layers stay as they are, and are read from a store (compressor/stages/recycle.py).
Limits:   adapters cannot be merged: a teacher that has them is a little slower, and its folder says so (`adapter_size`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from compressor import checkpoint, sources
from compressor.artifact import STATE
from compressor.encoded import Encoded
from compressor.errors import RecipeError
from compressor.finetuning import TrainingData, finetune
from compressor.inputs import Inputs
from compressor.modeling import PlainModel
from compressor.objectives import compares_answers
from compressor.pretrained import has_head, load_model, own_labels
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.reuse import Reuse
from compressor.scoring import score_of
from compressor.seeds import Trained, train_seeds
from compressor.settings.training import Finetune
from compressor.splits import Splits, task_of
from compressor.tasks import Task


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the teacher and return its score on the validation split."""
    splits, task, settings = Splits.of(inputs["data"]), task_of(recipe), recipe.teacher.finetune
    folder = sources.model_folder(recipe.teacher.model, recipe.root)
    splits.check_windows(task, folder)

    def untrained(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)  # the new head's weights
        model = load_model(folder, splits.labels, task.head)
        checkpoint.check_positions(model, splits.max_length)
        return model

    if settings is None:
        trained = _as_it_is(recipe, untrained(recipe.seed), splits.encoded("validation", task, folder), splits.labels, folder)
        if task.choice != "positions" and (told := named_otherwise(folder, splits.labels)):
            log.warn(f"teacher.model: {told}")
    elif recipe.recycle is None:
        data = TrainingData(splits.encoded("train", task, folder), splits.encoded("validation", task, folder), recipe.task.metric)
        trained = _train(untrained, settings, data, task, recipe.seed, out / STATE, log)
    else:
        with Reuse.of(recipe, inputs["activations"].metrics["layer"], splits, task, out.parent, log) as reuse:
            data = TrainingData(reuse.recycled("train"), reuse.recycled("validation"), recipe.task.metric, reuse.lower.place)
            trained = _train(untrained, settings, data, task, recipe.seed, out / STATE, log)
    checkpoint.save(trained.model, folder, out)
    return {"parameters": sum(p.numel() for p in trained.model.parameters()), **trained.metrics}


def _as_it_is(recipe: Recipe, model: PreTrainedModel, validation: Encoded, labels: Sequence[str], folder: Path) -> Trained:
    if task_of(recipe).labelled and not has_head(folder, model):
        raise RecipeError(f"teacher.model: {recipe.teacher.model} is no classifier of these {len(labels)} labels; add teacher.finetune")
    check_answers(recipe, folder, model)
    return Trained(model, {"validation_score": score_of(PlainModel(model), validation, recipe.task.metric)})


def check_answers(recipe: Recipe, folder: Path, model: PreTrainedModel) -> None:
    """Refuse to teach what a teacher that is taken as it is says of masked tokens, where its folder holds no head for them.

    Raises:
        RecipeError: the objective that asks for it.
    """
    if recipe.deployed or has_head(folder, model):
        return
    for name, section in (("assistant", recipe.assistant), ("distill", recipe.distill)):
        if section and (asking := compares_answers(section.objectives)):
            told = (
                f"{name}.objectives: {asking} asks the teacher for masked tokens, but {recipe.teacher.model} holds no weights of that head"
            )
            raise RecipeError(f"{told}; add teacher.finetune, or leave {asking} out")
        if section and any(objective.answers for objective in section.objectives):
            return  # its own head has learned what the next may ask for


def named_otherwise(folder: Path, labels: Sequence[str]) -> str | None:
    """Say which labels a model's own are taken for, where it calls them otherwise: the order is a guess unless they are its numbers."""
    own = own_labels(AutoConfig.from_pretrained(folder, local_files_only=True))
    numbered = own == [f"LABEL_{label}" for label in labels]
    if len(labels) < 2 or numbered or {label.casefold() for label in own} == {label.casefold() for label in labels}:
        return None
    ours, theirs = (", ".join(some[:5]) + ", …" * (len(some) > 5) for some in (labels, own))
    return f"its labels {theirs} are taken for {ours}, in this order; add teacher.finetune if they mean something else"


def _train(
    untrained: Callable[[int], PreTrainedModel], settings: Finetune, data: TrainingData, task: Task, seed: int, state: Path, log: Progress
) -> Trained:
    def once(seed: int, state: Path) -> Trained:
        model = untrained(seed)
        return Trained(model, finetune(model, settings, data, task, seed, state, log))

    return train_seeds(settings, seed, state, log, once)
