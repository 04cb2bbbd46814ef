"""Several seeds of one training: mean, spread, and the best of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.progress import Progress
from compressor.settings.training import Training

APART = 1000
"""Between two seeds: an epoch's order follows from the seed and the epoch's number, and no two seeds have one alike."""


@dataclass(frozen=True)
class Trained:
    """A trained model and what was measured; seeds are compared by its rating, `validation_score` where it has no other."""

    model: Any
    metrics: dict[str, Any]
    rating: float | None = None

    @property
    def rated(self) -> float:
        """By what the best seed is chosen."""
        return float(self.metrics["validation_score"]) if self.rating is None else self.rating


def train_seeds(settings: Training, seed: int, state: Path, log: Progress, train: Callable[[int, Path], Trained]) -> Trained:
    """Train once for each seed of the settings, the first with `seed`, and return the best; its metrics tell mean and spread of all."""
    if settings.seeds == 1:
        return train(seed, state)
    best, scores, rates = None, list[float](), list[float]()
    for turn, number in enumerate(range(seed, seed + settings.seeds * APART, APART), 1):
        log.note(f"seed {number}, {turn} of {settings.seeds}")
        trained = train(number, state / f"seed-{number}")
        scores.append(trained.metrics["validation_score"])
        rates.append(trained.metrics["texts_per_second"])
        if best is None or trained.rated > best.rated:
            best = Trained(trained.model, trained.metrics | {"seed": number}, trained.rating)
    assert best is not None
    mean, spread = float(np.mean(scores)), float(np.std(scores, ddof=1))
    log.note(f"{settings.seeds} seeds: {mean:.4f} ± {spread:.4f} on validation; seed {best.metrics['seed']} goes on")
    of_all = {"texts_per_second": float(np.mean(rates)), "seeds": {"scores": scores, "mean": mean, "standard_deviation": spread}}
    return Trained(best.model, best.metrics | of_all)
