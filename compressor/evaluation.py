"""Score a bundle on labelled examples, on the bytes that are deployed."""

from collections.abc import Sequence
from typing import Any

from compressor.data import Example
from compressor.errors import RecipeError
from compressor.runtime import Runtime
from compressor.scores import interval


def evaluate(runtime: Runtime, examples: Sequence[Example], point: str | None = None) -> dict[str, Any]:
    """Return score and 95 % interval at an operating point.

    Raises:
        RecipeError: a label that the bundle does not know.
    """
    task, name = runtime.task, runtime.manifest["metric"]
    for number, example in enumerate(examples, 1):
        for label in task.outputs(task.names(example)):
            if label not in runtime.labels:
                raise RecipeError(f"example {number} has label {label!r}; this bundle answers {', '.join(runtime.labels)}")
    outcomes, metric = runtime.outcomes(examples, point), task.metrics[name]
    low, high = interval(metric, outcomes)
    return {
        "metric": name,
        "score": metric(outcomes),
        "low": low,
        "high": high,
        "examples": len(examples),
        "point": point or runtime.default,
    }
