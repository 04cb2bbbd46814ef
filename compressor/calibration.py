"""Calibrate a cascade: temperatures, and thresholds for all budgets from one pass of every member over a split.

What:     the whole curve of score against time comes from answers that are kept on disk; nothing runs again for another threshold.
Papers:   temperature scaling (arXiv:1706.04599); TangoBERT (arXiv:2204.06271).
Formula:  a text costs the milliseconds of all members that read it; expected calibration error: the mean over ten bins of
          |right - confidence|, weighed by the bins' shares.
Limits:   thresholds are tried at quantiles of the confidences: 200 of two members, 40 of three, 15 of four.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from compressor.cascade import NEVER
from compressor.choices import sigmoid, softmax
from compressor.confidence import confidences
from compressor.data import Example
from compressor.pareto import non_dominated
from compressor.scores import Metric
from compressor.tasks import Task
from compressor.tokens import Floats, Ints
from compressor.windows import Windows

STEPS: Mapping[int, int] = {2: 200, 3: 40, 4: 15}
"""Thresholds that are tried for each of so many members."""
BINS = 10
WARMEST = 20.0
"""Largest temperature, and the inverse of the smallest."""
HALVINGS = 5
"""Times that the split is cut in two at random, to see what thresholds of the one half give on the other."""


@dataclass(frozen=True)
class Pass:
    """One member over the whole split, a row an example: outcomes, whether they are right, confidences, milliseconds."""

    name: str
    outcomes: Floats
    right: NDArray[np.bool_]
    confidences: Floats
    milliseconds: Floats

    def of(self, rows: Ints) -> "Pass":
        """Return the pass over some of the examples."""
        return Pass(self.name, self.outcomes[rows], self.right[rows], self.confidences[rows], self.milliseconds[rows])


def save(passes: Sequence[Pass], folder: Path) -> None:
    """Write the passes, a file each."""
    for number, one in enumerate(passes):
        np.savez(folder / f"pass-{number}.npz", **asdict(one))


def load(folder: Path) -> list[Pass]:
    """Return the passes that `save` wrote, in their order."""
    found = list[Pass]()
    while (path := folder / f"pass-{len(found)}.npz").exists():
        with np.load(path) as arrays:
            kept: dict[str, Any] = {**arrays, "name": str(arrays["name"])}
        found.append(Pass(**kept))
    return found


@dataclass(frozen=True)
class Setting:
    """Thresholds, and what they give: score, mean milliseconds of a text, and the share of texts that each member answers."""

    thresholds: tuple[float, ...]
    score: float
    mean_ms: float
    shares: tuple[float, ...]


def fit_temperature(
    task: Task, logits: Floats, windows: Windows, examples: Sequence[Example], targets: Ints, right: NDArray[np.bool_]
) -> float:
    """Return the temperature at which what was found is most likely: the right labels, or whether the answer is wholly `right`.

    An answer of several tokens is judged as a whole: likely tokens are not what its confidence tells.
    """

    def loss(log: float) -> float:
        if task.per_token:
            sure = confidences("max_softmax", task, logits, windows, examples, float(np.exp(log)))
            return _mean_log_loss(np.where(right, sure, 1 - sure))
        return _negative_log_likelihood(task, logits / np.exp(log), targets)

    limit = float(np.log(WARMEST))
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def _negative_log_likelihood(task: Task, logits: Floats, targets: Ints) -> float:
    if task.choice == "each":
        likely = sigmoid(np.where(targets == 1, logits, -logits))
    else:
        known = np.flatnonzero(targets >= 0)
        likely = softmax(logits[known])[np.arange(len(known)), targets[known]]
    return _mean_log_loss(likely)


def _mean_log_loss(likely: Floats) -> float:
    likely = likely[~np.isnan(likely)]  # a member whose logits are no numbers is told of, and goes on
    return float(-np.log(np.maximum(likely, 1e-12)).mean()) if likely.size else 0.0


def rightness(task: Task, outcomes: Floats) -> NDArray[np.bool_]:
    """Return whether each example's answer is wholly right, from its outcomes."""
    if task.choice == "positions":
        exact: NDArray[np.bool_] = outcomes[:, 0] == 1
        return exact
    if task.choice == "labels" and task.per_token:
        found, answered, there = outcomes.T
        return np.asarray((found == answered) & (found == there))
    return np.asarray((outcomes[:, 0] == outcomes[:, 1]).reshape(len(outcomes), -1).all(1))


def calibration_error(confidences: Floats, right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error; confidences that are no numbers are left out."""
    known = ~np.isnan(confidences)
    if not known.any():
        return 0.0
    sure, right = confidences[known], right[known]
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(float(right[bins == b].mean() - sure[bins == b].mean())) * float((bins == b).mean()) for b in set(bins.tolist())]
    return float(sum(gaps))


def routed(passes: Sequence[Pass], thresholds: Sequence[float]) -> Ints:
    """Return which member answers each example."""
    reached = np.stack([p.confidences >= limit for p, limit in zip(passes, [*thresholds, -np.inf], strict=True)])
    reached[-1] = True
    first: Ints = reached.argmax(0)
    return first


def setting(passes: Sequence[Pass], metric: Metric, thresholds: Sequence[float]) -> Setting:
    """Return what thresholds give on the split."""
    return _given(passes, metric, routed(passes, thresholds), tuple(thresholds))


def oracle(passes: Sequence[Pass], metric: Metric) -> Setting:
    """Return what is given by who knows the answers: each text's cheapest right member answers; if none is right, the least wrong one."""
    right = np.stack([p.right for p in passes])
    who = right.argmax(0)
    for row in np.flatnonzero(~right.any(0)):
        who[row] = np.argmax([metric(p.outcomes[row : row + 1]) for p in passes])
    return _given(passes, metric, who, ())


def _given(passes: Sequence[Pass], metric: Metric, who: Ints, thresholds: tuple[float, ...]) -> Setting:
    rows = np.arange(len(who))
    outcomes = np.stack([p.outcomes for p in passes])[who, rows]
    spent = np.cumsum(np.stack([p.milliseconds for p in passes]), 0)[who, rows]
    shares = tuple(float((who == number).mean()) for number in range(len(passes)))
    return Setting(thresholds, metric(outcomes), float(spent.mean()), shares)


def curve(passes: Sequence[Pass], metric: Metric) -> list[Setting]:
    """Return the settings that no other beats on both score and time, the fastest first."""
    steps = np.linspace(0, 1, STEPS[len(passes)])
    known = [p.confidences[~np.isnan(p.confidences)] for p in passes[:-1]]
    tried = [sorted({*(np.quantile(own, steps).tolist() if len(own) else ()), NEVER}) for own in known]
    found = [setting(passes, metric, thresholds) for thresholds in itertools.product(*tried)]
    return non_dominated(found, lambda one: one.mean_ms)


def across_halves(
    passes: Sequence[Pass], metric: Metric, choose: Callable[[Sequence[Setting], float], Setting | None]
) -> tuple[float, float, int] | None:
    """Return how far thresholds score above the last member on random halves of the split that chose them, and on the other halves, both
    as means of so many choices: on some halves the goal may be out of reach.

    `choose` is given a half's curve and its last member's score; None where no half has texts, or thresholds to choose.
    """
    if len(passes[0].right) < 2:
        return None
    rng, changes = np.random.default_rng(0), list[tuple[float, float]]()
    for _ in range(HALVINGS):
        order = rng.permutation(len(passes[0].right))
        halves = [[p.of(rows) for p in passes] for rows in np.array_split(order, 2)]
        for here, there in (halves, halves[::-1]):
            own, other = (metric(half[-1].outcomes) for half in (here, there))
            if chosen := choose(curve(here, metric), own):
                changes.append((chosen.score - own, setting(there, metric, chosen.thresholds).score - other))
    return (float(np.mean([c[0] for c in changes])), float(np.mean([c[1] for c in changes])), len(changes)) if changes else None


def within_drop(front: Sequence[Setting], reference: float, max_drop: float) -> Setting | None:
    """Return the fastest setting that scores at most `max_drop` below the reference."""
    return next((s for s in front if s.score >= reference - max_drop - 1e-9), None)


def within_time(front: Sequence[Setting], mean_ms: float) -> Setting | None:
    """Return the best setting of at most so many milliseconds a text."""
    fitting = [s for s in front if s.mean_ms <= mean_ms]
    return fitting[-1] if fitting else None
