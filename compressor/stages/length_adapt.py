"""Train the student to answer at any length configuration.

What:     at each step the full model, the smallest and a few random sub-models (LengthDrop, LayerDrop) learn together (sandwich rule).
Papers:   Length-Adaptive Transformer (arXiv:2010.07003), Universally Slimmable Networks (arXiv:1903.05134), LayerDrop (arXiv:1909.11556).
Formula:  full: (1 - a) · cross-entropy + a · KL(teacher ‖ full); each sub-model: KL(full, detached ‖ sub) (inplace distillation). Where
          significance is learned, the full pass teaches the layers' rankings too (compressor/ranking.py).
Defaults: 2 sandwiches, bound 0.2, layer_drop 0, a = `soft_labels` 0.5.
Limits:   a step costs 2 + sandwiches passes; short texts gain little (the report says how much).
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor import checkpoint
from compressor.alignment import Apart, aligned
from compressor.artifact import STATE
from compressor.choices import UNLABELLED, Choice
from compressor.data import Example
from compressor.encoded import tokenizer_of
from compressor.errors import RecipeError
from compressor.inputs import Inputs
from compressor.lengths import LengthConfig
from compressor.losses import label_loss, soft_label_loss
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.scoring import score_of
from compressor.seeds import Trained, train_seeds
from compressor.settings.deploying import LengthAdapt
from compressor.splits import MODEL, LeftOut, Splits, task_of
from compressor.tasks import Task
from compressor.teaching import TeacherOutputs
from compressor.training import Losses, Step, fit

LEAST = 2
"""Tokens that the smallest sub-model keeps at least: one beside [CLS]."""
Forward = Callable[[LengthConfig | None, frozenset[int]], Tensor]
"""Logits of one batch at a length configuration (None: full), without the given layers."""


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the length-adaptive student; report its score at full length and at the smallest, before and after."""
    assert recipe.length_adapt is not None
    settings = recipe.length_adapt
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    source, guide = inputs["checkpoint"].path / MODEL, inputs["teacher"].path / MODEL
    # As in distillation: what one tokenizer reads as a special token is no text of which answers for tokens can be compared.
    apart = Apart(source, guide) if settings.soft_labels and task.per_token else None
    left_out = splits.left_out(apart.keeps) if apart and apart.tokens else LeftOut()
    if left_out.count:
        log.warn(f"length_adapt: {left_out.told()}")

    def texts() -> Iterator[Example]:
        return filter(apart.keeps, splits.texts()) if apart and left_out.count else splits.texts()

    train, validation = splits.encode(texts(), task, source), splits.encoded("validation", task, source)
    check_question(settings, source)
    outputs = None
    if settings.soft_labels:
        teacher = PlainModel(checkpoint.load_plain(inputs["teacher"], splits.labels, task.head))
        teacher_train = splits.encode(texts(), task, guide)
        check_tokens(settings, task, lambda: aligned(train.tokens, teacher_train.tokens, source, guide))
        outputs = TeacherOutputs(teacher, teacher_train, task.per_token, out / STATE / "teacher", 0.0, log)

    made_for = {"max_length": splits.max_length} | settings.model_dump(include={"significance", "neighbours", "protect", "counts"})

    def once(seed: int, state: Path) -> Trained:
        plain = checkpoint.load_plain(inputs["checkpoint"], splits.labels, task.head)
        dropping = LengthAdaptiveModel(plain, **made_for | untaught(settings))
        model = LengthAdaptiveModel(plain, **made_for)
        config = smallest_of(settings, model.layers, model.max_length)
        if model.absolute:  # as it is trained: of short texts absolute counts would drop nothing
            config = LengthConfig.smallest(model.layers, int(validation.tokens.lengths.max()), settings.bound, settings.smallest)
        smallest = torch.tensor(config.lengths)

        def scores(model: LengthAdaptiveModel = model) -> dict[str, float]:
            named = {"full": None, "smallest": smallest}
            return {name: score_of(model, validation, recipe.task.metric, lengths) for name, lengths in named.items()}

        before, losses = scores(dropping), _losses(settings, model, outputs, task.choice, seed)
        fitted = fit(model, losses, train, settings, seed, state, log, lambda: sum(scores().values()))
        after = scores()
        facts = {"validation_score": after["full"], "before": before, "after": after, "smallest": smallest.tolist()}
        return Trained(plain, {**dataclasses.asdict(fitted), **facts}, rating=sum(after.values()))

    trained = train_seeds(settings, recipe.seed, out / STATE, log, once)
    checkpoint.save(trained.model, source, out, made_for)
    return trained.metrics


def untaught(settings: LengthAdapt) -> dict[str, str]:
    """Return the setting by which tokens are dropped before anything was learned: what training is held against is not a random ranking."""
    if settings.significance != "learned":
        return {}
    return {"significance": "question" if settings.protect == "question" else "attention"}


def check_question(settings: LengthAdapt, folder: Path) -> None:
    """Refuse to protect a question that the folder's tokenizer does not tell from its context.

    Raises:
        RecipeError: it marks no second text, as RoBERTa's and MPNet's.
    """
    if settings.protect == "question" and not any(tokenizer_of(folder).encode("one", "other").type_ids):
        told = "the student's tokenizer does not tell the question from the context"
        raise RecipeError(f"length_adapt.protect question: {told}; set length_adapt.protect: cls")


def check_tokens(settings: LengthAdapt, task: Task, alike: Callable[[], bool]) -> None:
    """Refuse a teacher whose answers for single tokens are none for the student's; `alike` says whether both split texts alike.

    Raises:
        RecipeError: they do not, and the recipe asks for these answers.
    """
    if settings.soft_labels and task.per_token and not alike():
        told = "teacher and student tokenize differently, so the teacher's answers for single tokens are of no use"
        raise RecipeError(f"length_adapt: {told}; set length_adapt.soft_labels: 0")


def smallest_of(settings: LengthAdapt, layers: int, max_length: int) -> LengthConfig:
    """Return the smallest sub-model's lengths.

    Raises:
        RecipeError: the recipe leaves next to nothing of a text.
    """
    config = LengthConfig.smallest(layers, max_length, settings.bound, settings.smallest)
    if config.lengths[-1] < LEAST:
        left = f"leaves {config.lengths[-1]} of {max_length} tokens after {layers} layers"
        if settings.smallest is not None:
            raise RecipeError(f"length_adapt.smallest {settings.smallest:g} {left}; raise it to {LEAST / max_length:.2g} or more")
        most = 1 - (LEAST / max_length) ** (1 / layers)
        raise RecipeError(f"length_adapt.bound {settings.bound:g} {left}; lower it to {most:.2f} or less")
    return config


def _losses(settings: LengthAdapt, model: LengthAdaptiveModel, outputs: TeacherOutputs | None, choice: Choice, seed: int) -> Losses:
    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        def forward(config: LengthConfig | None, skipped: frozenset[int]) -> Tensor:
            texts = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
            if config is None and model.significance == "learned":
                logits, loss = model.with_ranking_loss(*texts, choice)
                beside.append(loss)
                return logits
            lengths = None if config is None else torch.tensor(config.lengths, device=batch["input_ids"].device)
            return model.without_layers(skipped, *texts, lengths)

        beside = list[Tensor]()  # what the full pass teaches beside its answers
        goal = None if outputs is None else outputs.of(batch["rows"], (), batch["input_ids"].device)[0]
        rng = random.Random(f"{seed}/{step.number}")
        mask = batch["attention_mask"].bool()
        longest = int(mask.sum(1).max()) if model.absolute else model.max_length  # absolute counts of short texts would drop nothing
        for loss in sandwich(forward, batch["labels"], goal, mask, settings, model.layers, longest, choice, rng):
            yield loss + beside.pop() if beside else loss

    return losses


def sandwich(
    forward: Forward,
    labels: Tensor,
    goal: Tensor | None,
    mask: Tensor,
    settings: LengthAdapt,
    layers: int,
    max_length: int,
    choice: Choice,
    rng: random.Random,
) -> Iterable[Tensor]:
    """Yield the losses of one step: the full model's, the smallest sub-model's, and those of random sub-models.

    `goal` are the teacher's logits; without it the full model learns the labels alone.
    """
    full = forward(None, frozenset())
    counted = labels != UNLABELLED if choice == "labels" and full.ndim == 3 else mask
    hard = label_loss(full, labels, mask, choice)
    if goal is None:
        yield hard
    else:
        soft = soft_label_loss(full, goal, counted, choice, temperature=1.0)
        yield (1 - settings.soft_labels) * hard + settings.soft_labels * soft
    target = full.detach()
    smallest = LengthConfig.smallest(layers, max_length, settings.bound, settings.smallest)
    drawn = (LengthConfig.sample(layers, max_length, settings.bound, rng, smallest.lengths) for _ in range(settings.sandwiches))
    configurations = [smallest, *drawn]
    for number, config in enumerate(configurations):
        skipped = frozenset() if number == 0 else drop_layers(layers, settings.layer_drop, rng)
        yield soft_label_loss(forward(config, skipped), target, counted, choice, temperature=1.0)


def drop_layers(layers: int, probability: float, rng: random.Random) -> frozenset[int]:
    """Choose the layers that a sub-model skips (LayerDrop); one always stays."""
    skipped = {layer for layer in range(layers) if rng.random() < probability}
    return frozenset(skipped - {rng.randrange(layers)} if len(skipped) == layers else skipped)
