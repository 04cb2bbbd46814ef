"""Training at any length: the smallest sub-model, and what the full one learns."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.choices import UNLABELLED
from compressor.errors import RecipeError
from compressor.lengths import LengthConfig
from compressor.losses import label_loss, soft_label_loss
from compressor.settings.deploying import LengthAdapt
from compressor.stages.length_adapt import _losses, drop_layers, sandwich, smallest_of, untaught
from compressor.training import Step

LAYERS, LONGEST = 4, 100


def settings_of(**asked: object) -> LengthAdapt:
    return LengthAdapt.model_validate({"epochs": 1, "batch_size": 2, "learning_rate": 1e-4, **asked})


def test_the_smallest_sub_model_may_be_larger_than_the_bound_makes_it() -> None:
    assert smallest_of(settings_of(bound=0.5), 2, LONGEST).lengths == (50, 25)
    assert smallest_of(settings_of(bound=0.5, smallest=0.64), 2, LONGEST).lengths == (80, 64)
    with pytest.raises(RecipeError, match=r"length_adapt.smallest 0.01 leaves 1 of 100 tokens after 2 layers; raise it to 0.02 or more"):
        smallest_of(settings_of(smallest=0.01), 2, LONGEST)
    with pytest.raises(RecipeError, match=r"length_adapt.bound 0.9 leaves 1 of 100 tokens after 2 layers; lower it to 0.86 or less"):
        smallest_of(settings_of(bound=0.9), 2, LONGEST)


def test_training_is_held_against_a_ranking_that_needs_none() -> None:
    assert untaught(settings_of(significance="sampled")) == {}
    assert untaught(settings_of(significance="learned")) == {"significance": "attention"}
    assert untaught(settings_of(significance="learned", protect="question")) == {"significance": "question"}


def test_no_random_sub_model_keeps_less_than_the_smallest() -> None:
    seen = list[tuple[int, ...]]()
    logits, labels, mask = torch.randn(2, 3), torch.tensor([0, 1]), torch.ones(2, LONGEST, dtype=torch.bool)

    def forward(config: LengthConfig | None, _: frozenset[int]) -> Tensor:
        seen.extend([config.lengths] if config else [])
        return logits

    wanted = settings_of(bound=0.5, smallest=0.64, sandwiches=100)
    list(sandwich(forward, labels, None, mask, wanted, 2, LONGEST, "labels", random.Random(1)))
    assert seen[0] == (80, 64)
    assert min(first for first, _ in seen) == 80
    assert min(last for _, last in seen) < 70


def test_without_soft_labels_the_full_model_learns_the_labels_alone() -> None:
    logits, labels, mask = torch.randn(2, 3), torch.tensor([0, 1]), torch.ones(2, LONGEST, dtype=torch.bool)

    def first(goal: Tensor | None, soft_labels: float) -> Tensor:
        wanted = settings_of(soft_labels=soft_labels)
        return next(iter(sandwich(lambda *_: logits, labels, goal, mask, wanted, LAYERS, LONGEST, "labels", random.Random(1))))

    torch.testing.assert_close(first(None, 0.0), torch.nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(first(torch.randn(2, 3), 0.0), first(None, 0.0))


def test_random_sub_models_alone_skip_layers_and_never_all() -> None:
    rng = random.Random(0)
    assert drop_layers(LAYERS, 0.0, rng) == frozenset()
    assert 0.25 < sum(len(drop_layers(LAYERS, 0.3, rng)) for _ in range(2000)) / (2000 * LAYERS) < 0.35
    seen, logits = list[frozenset[int]](), torch.randn(2, 3)

    def forward(_: LengthConfig | None, skipped: frozenset[int]) -> Tensor:
        seen.append(skipped)
        return logits

    labels, mask = torch.tensor([0, 1]), torch.ones(2, LONGEST, dtype=torch.bool)
    wanted = settings_of(layer_drop=0.9999, sandwiches=3)
    list(sandwich(forward, labels, None, mask, wanted, LAYERS, LONGEST, "labels", random.Random(1)))
    assert [len(skipped) for skipped in seen] == [0, 0, *[LAYERS - 1] * 3]  # full, smallest, random ones


def test_absolute_lengths_are_trained_at_those_of_the_texts_at_hand() -> None:
    seen, ids = list[Any](), torch.ones(2, 10, dtype=torch.long)
    model: Any = SimpleNamespace(absolute=True, significance="attention", layers=2, max_length=LONGEST)
    model.without_layers = lambda skipped, ids, mask, segments, lengths: seen.append(lengths) or torch.zeros(2, 3)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids) | {"labels": torch.tensor([0, 1])}
    list(_losses(settings_of(bound=0.5, sandwiches=0), model, None, "labels", 1)(batch, Step(0, 0.0)))
    assert seen[0] is None
    assert seen[1].tolist() == [5, 2]


def test_tags_are_compared_where_a_token_has_one() -> None:
    labels, mask = torch.tensor([[0, UNLABELLED, 1, UNLABELLED]]), torch.ones(1, 4, dtype=torch.bool)
    full, goal, sub = (torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    settings, tagged = settings_of(soft_labels=0.3, sandwiches=0), labels != UNLABELLED
    losses = list(sandwich(lambda c, _: sub if c else full, labels, goal, mask, settings, 2, 100, "labels", random.Random(1)))
    first = 0.7 * label_loss(full, labels, mask, "labels") + 0.3 * soft_label_loss(full, goal, tagged, "labels", 1.0)
    torch.testing.assert_close(losses, [first, soft_label_loss(sub, full, tagged, "labels", 1.0)])
