"""Teach a student: the work that the stages assistant, distill and early_exit share."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor import checkpoint
from compressor.alignment import Apart, aligned, joining_as
from compressor.artifact import STATE, STORE
from compressor.augmentation import Neighbours, augmented
from compressor.choices import Choice
from compressor.data import Example
from compressor.encoded import Encoded, mask_token, tokenizer_of
from compressor.errors import RecipeError
from compressor.families import FAMILIES, Place, score_bias, shape_of
from compressor.inputs import Inputs
from compressor.modeling import PlainModel
from compressor.objectives import (
    Shapes,
    Views,
    asks_teacher,
    check,
    compares_answers,
    learned_modules,
    looks_below,
    looks_inside,
    places_of,
    total,
)
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recycling import Upper, captured_in, learning
from compressor.reuse import Layers, student_layers
from compressor.scoring import inputs_of, score_of
from compressor.seeds import Trained, train_seeds
from compressor.settings.distilling import Distill
from compressor.splits import MODEL, LeftOut, Splits, task_of
from compressor.students import student_of
from compressor.tasks import Task
from compressor.teaching import TeacherOutputs
from compressor.tokens import Tokens
from compressor.training import Losses, Step, count_steps, fit
from compressor.vocabulary import asked_by, covered, prune_model, prune_tokenizer, used

ENOUGH = 0.95
"""Share of texts that a pruned vocabulary should cover; with less the user is warned."""


@dataclass(frozen=True)
class _Lesson:
    """What a student learns from: its texts, those it is watched on, what the teacher answers, and how the two encoders compare."""

    train: Encoded
    validation: Encoded
    outputs: TeacherOutputs
    shapes: Shapes
    task: Task


Untrained = Callable[[int], tuple[PreTrainedModel, Path]]
"""The student as it starts with a seed, and the folder of its tokenizer."""


def train_student(settings: Distill, section: str, recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the student of a recipe's section, taught by the newest guide, and return its score on the validation split."""
    splits, task, guide = Splits.of(inputs["data"]), task_of(recipe), inputs["guide"].path / MODEL
    teacher = PlainModel(checkpoint.load_plain(inputs["guide"], splits.labels, task.head)).eval()

    def untrained(seed: int) -> tuple[PreTrainedModel, Path]:
        torch.manual_seed(seed)
        return student_of(settings.student, section, recipe.root, teacher.model, guide, splits.labels, task.head)

    model, folder = untrained(recipe.seed)
    checkpoint.check_positions(model, splits.max_length)
    if recipe.columns().text_pair and (task.per_token or looks_inside(settings.objectives)):
        folder = joining_as(guide, folder, out / STATE / "tokenizer")
    by_token = bool(looks_inside(settings.objectives) or (task.per_token and compares_answers(settings.objectives)))
    train, teacher_train, left_out = _texts(settings, splits, task, model, folder, guide, recipe.seed, by_token)
    if left_out.count:
        log.warn(f"{section}: {left_out.told()}")
    shapes = Shapes(shape_of(model), shape_of(teacher.model))
    same_tokens = aligned(train.tokens, teacher_train.tokens, folder, guide)
    check_objectives(section, settings, task, model, teacher.model, shapes, same_tokens=same_tokens)
    room = settings.teacher_store * 1e6 if _epochs_inside(settings, len(train)) > 1 else 0.0
    if task.head == "masked-lm":
        check_vocabulary(section, settings, (model, folder), (teacher.model, guide))
    outputs = TeacherOutputs(teacher, teacher_train, task.per_token, out / STATE / "teacher", room, log)
    lesson = _Lesson(train, splits.encoded("validation", task, folder), outputs, shapes, task)
    with student_layers(settings, f"{section}.recycled_layers", recipe, model, folder, out.parent, log) as layers:
        del model  # the checks needed it; each seed starts from one of its own
        if layers:
            check_above(section, settings, shapes, layers.count)
        trained = _taught(settings, recipe, untrained, lesson, layers, out / STATE, log)
    counts = inputs["data"].metrics["examples"]
    originals = counts["train"] + counts.get("unlabelled", 0) - left_out.count
    metrics = {**trained.metrics, "texts": {"original": originals, "augmented": train.windows.count - originals}}
    checkpoint.save(trained.model, folder, out)
    if settings.student.vocabulary == "corpus":
        corpus = train.windows.first(originals)
        metrics |= _prune(trained.model, folder, corpus, lesson.validation, f"{section}.student.vocabulary", out, log)
        covered_by_it = splits.encoded("validation", task, out / MODEL)
        metrics["validation_score"] = score_of(PlainModel(trained.model), covered_by_it, recipe.task.metric)
    return metrics | {"parameters": sum(p.numel() for p in trained.model.parameters())}


def _taught(
    settings: Distill, recipe: Recipe, untrained: Untrained, lesson: _Lesson, layers: Layers | None, state: Path, log: Progress
) -> Trained:
    """Train the student with each seed, whole or above recycled layers, and return the best."""
    train, validation, below, count = lesson.train, lesson.validation, 0, lesson.shapes.student.layers
    if layers:
        below = layers.count
        train, validation = layers.recycled(train, "train", log), layers.recycled(validation, "validation", log)
        log.note(f"the upper {count - below} of {count} layers learn, from what {layers.name} keeps")

    def once(seed: int, state: Path) -> Trained:
        student, learned = untrained(seed)[0], learned_modules(settings.objectives, lesson.shapes)
        with learning(student, below) as forward:

            def score() -> float:
                return score_of(forward, validation, recipe.task.metric)

            losses = losses_of(settings, forward, learned, lesson.shapes, lesson.outputs, lesson.task.choice)
            both = nn.ModuleList([forward, learned])
            fitted = fit(both, losses, train, settings, seed, state, log, score, settings.answers_from)
            return Trained(student, {**dataclasses.asdict(fitted), "validation_score": score()})

    trained = train_seeds(settings, recipe.seed, state, log, once)
    return Trained(trained.model, trained.metrics | ({"recycled_layers": below, STORE: layers.name} if layers else {}))


def _texts(
    settings: Distill, splits: Splits, task: Task, student: PreTrainedModel, folder: Path, guide: Path, seed: int, by_token: bool
) -> tuple[Encoded, Encoded, LeftOut]:
    """Return what the student reads and what the teacher reads, text by text the same: labelled, unlabelled, augmented; and the few that
    neither reads, because tokens are compared and they hold a special token of one only."""
    masks = mask_token(folder), mask_token(guide)
    near = Neighbours.of(student, folder) if settings.augment else None
    apart = Apart(folder, guide) if by_token else None
    left_out = splits.left_out(apart.keeps) if apart and apart.tokens else LeftOut()

    def originals() -> Iterator[Example]:
        return filter(apart.keeps, splits.texts()) if apart and left_out.count else splits.texts()

    def examples() -> Iterator[Example]:
        yield from originals()
        if settings.augment and near:
            yield from augmented(originals(), settings.augment, near, masks[0] if all(masks) else None, seed)

    def as_teacher_reads(example: Example) -> Example:
        ours, theirs = masks
        if not ours or not theirs or ours == theirs:
            return example
        pair = example.text_pair and example.text_pair.replace(ours, theirs)
        words = example.words and [word.replace(ours, theirs) for word in example.words]
        return dataclasses.replace(example, text=example.text.replace(ours, theirs), text_pair=pair, words=words)

    texts = splits.encode(examples(), task, folder)
    return texts, texts if folder == guide else splits.encode(map(as_teacher_reads, examples()), task, guide), left_out


def check_objectives(
    section: str, settings: Distill, task: Task, student: PreTrainedModel, teacher: PreTrainedModel, shapes: Shapes, *, same_tokens: bool
) -> None:
    """Refuse objectives that do not fit the two models, or that compare tokens of two different tokenizations.

    Raises:
        RecipeError: which objective, and what to use instead.
    """
    if inside := looks_inside(settings.objectives):
        for who, model in (("student", student), ("teacher", teacher)):
            if (kind := model.config.model_type) not in FAMILIES:
                raise RecipeError(
                    f"{section}.objectives: {inside} looks inside self-attention, which is not known of a {kind} {who}; "
                    "use soft_labels, logits and labels"
                )
        if not same_tokens:
            raise RecipeError(
                f"{section}.objectives: {inside} compares models token by token, but teacher and student tokenize differently; "
                "use soft_labels, logits and labels"
            )
    check(section, settings.objectives, shapes)
    if task.per_token and not same_tokens and (comparing := compares_answers(settings.objectives)):
        raise RecipeError(
            f"{section}.objectives: {comparing} compares the answers for each token, but teacher and student tokenize differently; "
            "use labels alone, or a teacher with the student's tokenizer"
        )


def check_vocabulary(section: str, settings: Distill, student: tuple[PreTrainedModel, Path], teacher: tuple[PreTrainedModel, Path]) -> None:
    """Refuse objectives that compare logits of tokens, one by one, where the two models number them otherwise.

    Raises:
        RecipeError: which one, and what to use instead.
    """
    ours, theirs = ((model.config.vocab_size, tokenizer_of(folder).get_vocab()) for model, folder in (student, teacher))
    if ours != theirs and (comparing := compares_answers(settings.objectives)):
        raise RecipeError(
            f"{section}.objectives: {comparing} compares the logits of a whole vocabulary, but teacher and student have different ones; "
            "use minilm, minilmv2, tinybert, hidden_cosine or labels"
        )


def check_above(section: str, settings: Distill, shapes: Shapes, below: int) -> None:
    """Refuse objectives that look at layers which are taken out.

    Raises:
        RecipeError: which one, and what to use instead.
    """
    if found := looks_below(settings.objectives, shapes, below):
        told = f"{found} compares layers that are recycled and never learn"
        raise RecipeError(f"{section}.objectives: {told}; choose another objective, or recycle fewer than {below} layers")


def _epochs_inside(settings: Distill, texts: int) -> float:
    """Return over how many epochs of so many texts, of all seeds, objectives look inside the models."""
    spans = [(o.start, o.end) for o in settings.objectives if looks_inside([o])]
    epochs = count_steps(texts, settings) / math.ceil(max(1, texts) / settings.batch_size)
    return epochs * settings.seeds * (max(end for _, end in spans) - min(start for start, _ in spans)) if spans else 0.0


def losses_of(
    settings: Distill, student: PlainModel | Upper, learned: nn.ModuleDict, shapes: Shapes, outputs: TeacherOutputs, choice: Choice
) -> Losses:
    """Return the losses of a batch: the objectives that are active at a step, added."""
    plain = student.plain if isinstance(student, Upper) else student

    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        places = places_of(settings.objectives, shapes, step.share)
        with ExitStack() as stack:
            ours = stack.enter_context(captured_in(student, places.student)) if places else {}
            logits = student(*inputs_of(batch))
        goal, theirs, mask = logits.detach(), dict[Place, Tensor](), batch["attention_mask"].bool()
        if asks_teacher(settings.objectives, step.share):
            goal, theirs = outputs.of(batch["rows"], places.teacher, logits.device, step.draw)
        biases = (score_bias(plain.model, mask), outputs.bias(mask)) if places else (None, None)
        views = Views(shapes, mask, batch["labels"], choice, logits, goal, ours, theirs, *biases)
        yield total(settings.objectives, views, step.share, learned)

    return losses


def _prune(model: PreTrainedModel, folder: Path, corpus: Tokens, validation: Encoded, key: str, out: Path, log: Progress) -> dict[str, Any]:
    """Write the student again with the tokens only that its training texts use."""
    before, kept = int(model.config.vocab_size), used(folder, corpus, key, asked_by(model))
    prune_model(model, kept)
    checkpoint.save(model, folder, out)
    prune_tokenizer(folder, out / MODEL, kept)
    share = covered(kept, validation.tokens)
    told = f"vocabulary: {len(kept):,} of {before:,} tokens stay; {share:.1%} of the validation texts lose none"
    (log.note if share > ENOUGH else log.warn)(told)
    return {"vocabulary": {"before": before, "after": len(kept), "covered": share}}
