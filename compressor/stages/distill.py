"""Distill the teacher into a smaller student.

What:     a student made of some of the teacher's layers, or another encoder, learns the objectives of the recipe, added and scheduled.
Papers:   MiniLMv2 (arXiv:2012.15828), soft labels (arXiv:1503.02531).
Formula:  sum over active objectives of weight · loss; see compressor/objectives.py.
Defaults: relations first (`end`), then soft labels and labels (`start`).
Limits:   relations need a student that reads the teacher's token ids; the teacher's logits are computed once, its relations at every step.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor import checkpoint, sources
from compressor.artifact import STATE, Artifact
from compressor.errors import RecipeError
from compressor.modeling import PlainClassifier, as_relations, captured_relations, load_classifier, select_layers
from compressor.objectives import Views, active, total
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Distill, MiniLMv2, Recipe
from compressor.splits import MODEL, Encoded, Splits, task_of
from compressor.training import Losses, Step, fit, predict


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the student and return its score on the validation split."""
    assert recipe.distill is not None
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    teacher = PlainClassifier(checkpoint.load_plain(inputs["teacher"], splits.labels)).eval()
    torch.manual_seed(recipe.seed)
    student_model, tokenizer_from = _student(recipe, recipe.distill, inputs["teacher"], teacher.model, splits.labels)
    checkpoint.check_positions(student_model, splits.max_length)
    student = PlainClassifier(student_model)
    train, teacher_train = (
        splits.encoded("train", task, tokenizer_from),
        splits.encoded("train", task, inputs["teacher"].path / MODEL),
    )
    _check(recipe.distill, student_model, teacher.model, train, teacher_train)
    log.note("teacher's logits, once for every text")
    goals = torch.from_numpy(predict(lambda b: teacher(b["input_ids"], b["attention_mask"], b["token_type_ids"]), teacher_train))
    losses = _losses(recipe.distill, student, teacher, goals, task.class_axis)
    fitted = fit(student, losses, train, recipe.distill, recipe.seed, out / STATE, log)
    validation = splits.encoded("validation", task, tokenizer_from)
    logits = predict(lambda b: student(b["input_ids"], b["attention_mask"], b["token_type_ids"]), validation)
    checkpoint.save(student.model, tokenizer_from, out)
    return {
        "steps": fitted.steps,
        "loss": fitted.loss,
        "texts_per_second": fitted.texts_per_second,
        "validation_score": task.score(logits, validation.labels, recipe.task.metric),
        "parameters": sum(p.numel() for p in student.parameters()),
    }


def _student(
    recipe: Recipe, settings: Distill, artifact: Artifact, teacher: PreTrainedModel, labels: tuple[str, ...]
) -> tuple[PreTrainedModel, Path]:
    if settings.student.layers is not None:
        return select_layers(teacher, settings.student.layers), artifact.path / MODEL
    assert settings.student.model is not None
    folder = sources.model_folder(settings.student.model, recipe.root)
    return load_classifier(folder, labels), folder


def _check(settings: Distill, student: PreTrainedModel, teacher: PreTrainedModel, train: Encoded, teacher_train: Encoded) -> None:
    """Refuse relations where they have no meaning."""
    for objective in settings.objectives:
        if not isinstance(objective, MiniLMv2):
            continue
        for name, model in (("teacher", teacher), ("student", student)):
            if model.config.hidden_size % objective.relation_heads:
                raise RecipeError(
                    f"distill.objectives: relation_heads {objective.relation_heads} does not divide "
                    f"the {name}'s hidden size {model.config.hidden_size}"
                )
        if not np.array_equal(train.tokens.ids, teacher_train.tokens.ids):
            raise RecipeError(
                "distill.objectives: minilmv2 needs equal token ids, but teacher and student tokenize differently; use soft_labels"
            )


def _losses(settings: Distill, student: PlainClassifier, teacher: PlainClassifier, goals: Tensor, class_axis: int) -> Losses:
    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        objectives = active(settings.objectives, step.share)
        relational = next((o for o in objectives if isinstance(o, MiniLMv2)), None)
        ids, mask, segments = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        student_relations = teacher_relations = None
        with ExitStack() as stack:
            seen = stack.enter_context(captured_relations(student.model, -1)) if relational else []
            student_logits = student(ids, mask, segments)
        if relational:
            with captured_relations(teacher.model, relational.teacher_layer) as known, torch.no_grad():
                teacher.to(ids.device)(ids, mask, segments)
            student_relations, teacher_relations = as_relations(seen), as_relations(known)
        goal = goals[batch["rows"].cpu()].to(ids.device)
        yield total(objectives, Views(mask.bool(), batch["labels"], class_axis, student_logits, goal, student_relations, teacher_relations))

    return losses
