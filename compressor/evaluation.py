"""Score a bundle on labelled examples, on the bytes that are deployed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compressor.data import Example
from compressor.errors import RecipeError
from compressor.runtime import Runtime
from compressor.tasks import TASKS, interval


def evaluate(runtime: Runtime, examples: Sequence[Example], point: str | None = None) -> dict[str, Any]:
    """Return score and 95 % interval at an operating point.

    Raises:
        RecipeError: a label that the bundle does not know.
    """
    ids = {label: i for i, label in enumerate(runtime.labels)}
    for number, example in enumerate(examples, 1):
        if example.label not in ids:
            raise RecipeError(f"example {number} has label {example.label!r}; this bundle answers {', '.join(runtime.labels)}")
    gold = np.asarray([ids[e.label] for e in examples if e.label is not None], dtype=np.int64)
    metric, task = runtime.manifest["metric"], TASKS[runtime.manifest["task"]]
    logits = runtime.logits(examples, point)
    low, high = interval(task, logits, gold, metric)
    return {
        "metric": metric,
        "score": task.score(logits, gold, metric),
        "low": low,
        "high": high,
        "examples": len(examples),
        "point": point or runtime.default,
    }
