"""Teach a student: the work that the stages assistant and distill share."""

import dataclasses
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor import checkpoint, sources
from compressor.artifact import STATE, Artifact
from compressor.errors import RecipeError
from compressor.families import captured, select_layers, shape_of
from compressor.modeling import PlainClassifier, load_classifier
from compressor.objectives import Views, check, learned_modules, look_inside, total
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Distill, Recipe
from compressor.splits import MODEL, Encoded, Splits, task_of
from compressor.training import Losses, Step, fit, predict


def train_student(settings: Distill, section: str, recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the student of a recipe's section, taught by the newest guide, and return its score on the validation split."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    teacher = PlainClassifier(checkpoint.load_plain(inputs["guide"], splits.labels)).eval()
    torch.manual_seed(recipe.seed)
    student_model, tokenizer_from = _student(recipe, settings, section, inputs["guide"], teacher.model, splits.labels)
    checkpoint.check_positions(student_model, splits.max_length)
    student = PlainClassifier(student_model)
    train, teacher_train = (
        splits.encoded("train", task, tokenizer_from),
        splits.encoded("train", task, inputs["guide"].path / MODEL),
    )
    shapes = shape_of(student_model), shape_of(teacher.model)
    check(section, settings.objectives, *shapes)
    _check_tokens(section, settings, train, teacher_train)
    learned = learned_modules(settings.objectives, *shapes)
    log.note("teacher's logits, once for every text")
    goals = torch.from_numpy(predict(lambda b: teacher(b["input_ids"], b["attention_mask"], b["token_type_ids"]), teacher_train))
    losses = _losses(settings, student, teacher, learned, goals, task.class_axis)
    validation = splits.encoded("validation", task, tokenizer_from)

    def score() -> float:
        logits = predict(lambda b: student(b["input_ids"], b["attention_mask"], b["token_type_ids"]), validation)
        return task.score(logits, validation.labels, recipe.task.metric)

    fitted = fit(nn.ModuleList([student, learned]), losses, train, settings, recipe.seed, out / STATE, log, score)
    checkpoint.save(student.model, tokenizer_from, out)
    return {
        **dataclasses.asdict(fitted),
        "validation_score": score(),
        "parameters": sum(p.numel() for p in student.parameters()),
    }


def _student(
    recipe: Recipe, settings: Distill, section: str, artifact: Artifact, teacher: PreTrainedModel, labels: tuple[str, ...]
) -> tuple[PreTrainedModel, Path]:
    if settings.student.layers is not None:
        return select_layers(teacher, settings.student.layers, section), artifact.path / MODEL
    assert settings.student.model is not None
    folder = sources.model_folder(settings.student.model, recipe.root)
    return load_classifier(folder, labels), folder


def _check_tokens(section: str, settings: Distill, train: Encoded, teacher_train: Encoded) -> None:
    """Refuse objectives that compare tokens of two different tokenizations."""
    if look_inside(settings.objectives, ever=True) and not np.array_equal(train.tokens.ids, teacher_train.tokens.ids):
        raise RecipeError(
            f"{section}.objectives: what looks inside the models needs equal token ids, but teacher and student tokenize differently; "
            "use soft_labels, logits and labels"
        )


def _losses(
    settings: Distill, student: PlainClassifier, teacher: PlainClassifier, learned: nn.ModuleDict, goals: Tensor, class_axis: int
) -> Losses:
    heads = shape_of(student.model).heads, shape_of(teacher.model).heads

    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        ids, mask, segments = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        ours = theirs = None
        with ExitStack() as stack:
            if look_inside(settings.objectives, step.share):
                with captured(teacher.model) as theirs, torch.no_grad():
                    teacher.to(ids.device)(ids, mask, segments)
                ours = stack.enter_context(captured(student.model))
            logits = student(ids, mask, segments)
        goal = goals[batch["rows"].cpu()].to(ids.device)
        views = Views(mask.bool(), batch["labels"], class_axis, logits, goal, ours, theirs, *heads)
        yield total(settings.objectives, views, step.share, learned)

    return losses
