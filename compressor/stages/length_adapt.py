"""Train the student to answer at any length configuration.

What:     at each step the full model, the smallest and a few random sub-models (LengthDrop, LayerDrop) learn together (sandwich rule).
Papers:   Length-Adaptive Transformer (arXiv:2010.07003), Universally Slimmable Networks (arXiv:1903.05134), LayerDrop (arXiv:1909.11556).
Formula:  full: (1 - a) · cross-entropy + a · KL(teacher ‖ full); each sub-model: KL(full, detached ‖ sub) (inplace distillation).
Defaults: 2 sandwiches, bound 0.2, layer_drop 0, a = `soft_labels` 0.5.
          With `truncate`, random sub-models read only the beginning of long texts, and still learn what full length says of all of it.
Limits:   a step costs 2 + sandwiches passes; short texts gain little (the report says how much).
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor import checkpoint
from compressor.alignment import aligned
from compressor.artifact import STATE
from compressor.choices import UNLABELLED, Choice
from compressor.errors import RecipeError
from compressor.lengths import LEAST_READ, LengthConfig
from compressor.losses import label_loss, soft_label_loss
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.scoring import score_of
from compressor.seeds import Trained, train_seeds
from compressor.settings.deploying import LengthAdapt
from compressor.splits import MODEL, Splits, task_of
from compressor.teaching import TeacherOutputs
from compressor.training import Losses, Step, fit

LEAST = 2
"""Tokens that the smallest sub-model keeps at least: one beside [CLS]."""
Forward = Callable[[LengthConfig | None, frozenset[int], int | None], Tensor]
"""Logits of one batch at a length configuration (None: full), without the given layers, reading so many tokens (None: all)."""


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the length-adaptive student; report its score at full length and at the smallest, before and after."""
    assert recipe.length_adapt is not None
    settings = recipe.length_adapt
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    source, guide = inputs["checkpoint"].path / MODEL, inputs["teacher"].path / MODEL
    train, validation = splits.encode(splits.texts(), task, source), splits.encoded("validation", task, source)
    teacher = PlainModel(checkpoint.load_plain(inputs["teacher"], splits.labels, task.head))
    teacher_train = splits.encode(splits.texts(), task, guide)
    if task.per_token and settings.soft_labels and not aligned(train.tokens, teacher_train.tokens, source, guide):
        raise RecipeError(
            "length_adapt: teacher and student tokenize differently, so the teacher's answers for single tokens are of no use; "
            "set length_adapt.soft_labels: 0"
        )
    outputs = TeacherOutputs(teacher, teacher_train, task.per_token, out / STATE / "teacher", 0.0, log)

    def once(seed: int, state: Path) -> Trained:
        plain = checkpoint.load_plain(inputs["checkpoint"], splits.labels, task.head)
        model = LengthAdaptiveModel(plain, splits.max_length, settings.significance, settings.protect, settings.counts)
        smallest = torch.tensor(_smallest(settings, model))

        def scores() -> dict[str, float]:
            named = {"full": None, "smallest": smallest}
            return {name: score_of(model, validation, recipe.task.metric, lengths) for name, lengths in named.items()}

        before, losses = scores(), _losses(settings, model, outputs, task.choice, seed)
        fitted = fit(model, losses, train, settings, seed, state, log, lambda: sum(scores().values()))
        after = scores()
        facts = {"validation_score": after["full"], "before": before, "after": after, "smallest": smallest.tolist()}
        return Trained(plain, {**dataclasses.asdict(fitted), **facts})

    trained = train_seeds(settings, recipe.seed, out / STATE, log, once)
    made_for = {"max_length": splits.max_length} | settings.model_dump(include={"significance", "protect", "counts"})
    checkpoint.save(trained.model, source, out, made_for)
    return trained.metrics


def _smallest(settings: LengthAdapt, model: LengthAdaptiveModel) -> Sequence[int]:
    """Return the smallest sub-model's lengths, refusing a bound that leaves next to nothing."""
    lengths = LengthConfig.smallest(model.layers, model.max_length, settings.bound).lengths
    if lengths[-1] < LEAST:
        told = f"length_adapt.bound {settings.bound:g} leaves {lengths[-1]} of {model.max_length} tokens after {model.layers} layers"
        raise RecipeError(f"{told}; lower it to {1 - (LEAST / model.max_length) ** (1 / model.layers):.2f} or less")
    return lengths


def _losses(settings: LengthAdapt, model: LengthAdaptiveModel, outputs: TeacherOutputs, choice: Choice, seed: int) -> Losses:
    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        def forward(config: LengthConfig | None, skipped: frozenset[int], read: int | None) -> Tensor:
            lengths = None if config is None else torch.tensor(config.lengths, device=batch["input_ids"].device)
            ids, mask, segments = truncated([batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")], read)
            return model.without_layers(skipped, ids, mask, segments, lengths)

        goal, _ = outputs.of(batch["rows"], (), batch["input_ids"].device)
        rng = random.Random(f"{seed}/{step.number}")
        mask = batch["attention_mask"].bool()
        longest = int(mask.sum(1).max()) if model.absolute else model.max_length  # absolute counts of short texts would drop nothing
        return sandwich(forward, batch["labels"], goal, mask, settings, model.layers, longest, choice, rng)

    return losses


def sandwich(
    forward: Forward,
    labels: Tensor,
    goal: Tensor,
    mask: Tensor,
    settings: LengthAdapt,
    layers: int,
    max_length: int,
    choice: Choice,
    rng: random.Random,
) -> Iterable[Tensor]:
    """Yield the losses of one step: the full model's, the smallest sub-model's, and those of random sub-models."""
    full = forward(None, frozenset(), None)
    counted = labels != UNLABELLED if choice == "labels" and full.ndim == 3 else mask
    hard, soft = label_loss(full, labels, mask, choice), soft_label_loss(full, goal, counted, choice, temperature=1.0)
    yield (1 - settings.soft_labels) * hard + settings.soft_labels * soft
    target = full.detach()
    configurations = [LengthConfig.smallest(layers, max_length, settings.bound)]
    configurations += [LengthConfig.sample(layers, max_length, settings.bound, rng) for _ in range(settings.sandwiches)]
    for number, config in enumerate(configurations):
        skipped = frozenset() if number == 0 else drop_layers(layers, settings.layer_drop, rng)
        read = round(rng.uniform(LEAST_READ, 1) * max_length) if number and settings.truncate else None
        yield soft_label_loss(forward(config, skipped, read), target, counted, choice, temperature=1.0)


def truncated(texts: Sequence[Tensor], most: int | None) -> Sequence[Tensor]:
    """Return ids, mask and segments (batch, seq) with at most so many tokens of each text: its first ones and its last, which ends it."""
    ids, mask, _ = texts
    if most is None or ids.shape[1] <= most:
        return texts
    places = torch.arange(most, device=ids.device).repeat(len(ids), 1)
    places[:, -1] = mask.sum(1).sub(1).clamp(min=most - 1)  # of a shorter text: padding, as before
    return [tensor.gather(1, places) for tensor in texts]


def drop_layers(layers: int, probability: float, rng: random.Random) -> frozenset[int]:
    """Choose the layers that a sub-model skips (LayerDrop); one always stays."""
    skipped = {layer for layer in range(layers) if rng.random() < probability}
    return frozenset(skipped - {rng.randrange(layers)} if len(skipped) == layers else skipped)
