"""Several seeds of one training: mean, spread, and the best of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.progress import Progress
from compressor.settings.training import Training


@dataclass(frozen=True)
class Trained:
    """A trained model and what was measured; `validation_score` is what seeds are compared by."""

    model: Any
    metrics: dict[str, Any]


def train_seeds(settings: Training, seed: int, state: Path, log: Progress, train: Callable[[int, Path], Trained]) -> Trained:
    """Train once for each seed of the settings, from `seed` on, and return the best; its metrics tell mean and spread of all."""
    if settings.seeds == 1:
        return train(seed, state)
    best, scores, rates = None, list[float](), list[float]()
    for number in range(seed, seed + settings.seeds):
        log.note(f"seed {number}, {number - seed + 1} of {settings.seeds}")
        trained = train(number, state / f"seed-{number}")
        scores.append(trained.metrics["validation_score"])
        rates.append(trained.metrics["texts_per_second"])
        if best is None or scores[-1] > best.metrics["validation_score"]:
            best = Trained(trained.model, trained.metrics | {"seed": number})
    assert best is not None
    mean, spread = float(np.mean(scores)), float(np.std(scores, ddof=1))
    log.note(f"{settings.seeds} seeds: {mean:.4f} ± {spread:.4f} on validation; seed {best.metrics['seed']} goes on")
    of_all = {"texts_per_second": float(np.mean(rates)), "seeds": {"scores": scores, "mean": mean, "standard_deviation": spread}}
    return Trained(best.model, best.metrics | of_all)
