"""The smoke profile: a recipe's own stages on a sliver of its data."""

from typing import Any

from compressor.recipe import Recipe
from compressor.settings.base import SPLITS
from compressor.settings.data import Split


def smoke(recipe: Recipe) -> Recipe:
    """Return the same stages on a sliver of data: for CI and for a first look, not for judging."""
    limits = dict.fromkeys((*SPLITS, "unlabelled"), 48) | {"train": 192}
    taught = recipe.teacher.finetune is not None and not any(one.bundle for one in (recipe.cascade.members if recipe.cascade else ()))
    if recipe.deployed and not taught:
        limits["train"] = 2000  # who is there already knows all labels, of which fewer texts may show some only
    splits = {name: _sliver(split, most, name) for name, most in limits.items() if (split := getattr(recipe.data, name))}
    # of so few texts a smaller share may be none, and not every label is there
    sliver = {**splits, "holdout": max(0.2, recipe.data.holdout), "unknown_labels": "skip"}
    changed: dict[str, Any] = {"name": f"{recipe.name}-smoke", "gates": (), "data": recipe.data.model_copy(update=sliver)}
    short = {"max_steps": 6, "batch_size": 16, "seeds": 1}
    changed["teacher"] = recipe.teacher.model_copy(
        update={"finetune": recipe.teacher.finetune and recipe.teacher.finetune.model_copy(update=short)}
    )
    changed |= {
        k: section.model_copy(update=short)
        for k in ("assistant", "distill", "length_adapt", "early_exit")
        if (section := getattr(recipe, k))
    }
    if recipe.quantize:  # of a few texts one costs more than any drop allowed
        changed["quantize"] = recipe.quantize.model_copy(update={"max_drop": 1.0})
    if recipe.search:
        changed["search"] = recipe.search.model_copy(update={"evaluations": 6, "population": 4, "texts": 8, "proposals": 2})
    if recipe.cascade:
        own = recipe.cascade.calibration
        few = own and _sliver(own, 48, "calibration")
        # a few texts reach no goal of speed
        changed["cascade"] = recipe.cascade.model_copy(update={"speedup": None, "latency_ms": None, "calibration": few})
    small = recipe.model_copy(update=changed)
    small._smoke, small._options = True, (*recipe.options, "--profile", "smoke")
    return small


def _sliver(split: Split, most: int, name: str) -> Split:
    """Return at most so many examples of a split, from all over what it reads: a file that is sorted by label begins with one label.

    Of texts without labels the first will do.
    """
    spread: dict[str, Any] = {} if name == "unlabelled" else {"draw": "spread"}
    within = {"within": split.limit} if spread and split.draw == "first" else {}  # no rows beyond the recipe's own
    return split.model_copy(update={"limit": min(most, split.limit or most), **spread, **within})
