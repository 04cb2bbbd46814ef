"""Score a bundle on labelled examples, on the bytes that are deployed."""

from collections.abc import Sequence
from typing import Any

from compressor.data import Example
from compressor.errors import RecipeError
from compressor.runtime import Runtime
from compressor.scores import interval
from compressor.tasks import Task

NAMED = 10
"""Labels that are named where one is not known."""


def evaluate(
    runtime: Runtime,
    examples: Sequence[Example],
    point: str | None = None,
    policy: str | None = None,
    thresholds: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return score and 95 % interval at an operating point, or of the cascade with the number of examples that each member answers.

    Raises:
        RecipeError: a label that the bundle does not know, a text without its second or with one too many, a point and a policy, or
            thresholds that do not fit the cascade.
        BundleError: there is no such point, or no cascade.
    """
    task, name = runtime.task, runtime.manifest["metric"]
    check_labels(task, examples, runtime.labels)
    for example in examples:
        runtime.check_pairs(example)
    metric, facts = task.metrics[name], dict[str, Any]()
    policy = runtime.policy(point, policy, thresholds)
    if policy is None:
        outcomes, facts["point"] = runtime.outcomes(examples, point), point or runtime.default
    else:
        outcomes, who, unknown = runtime.routed_outcomes(examples, policy, thresholds)
        facts = {"policy": policy, "answered": {member.name: who.count(member.name) for member in runtime.cascade.members}}
        facts["no_confidence"] = unknown
    low, high = interval(metric, outcomes)
    return {"metric": name, "score": metric(outcomes), "low": low, "high": high, "examples": len(examples), **facts}


def check_labels(task: Task, examples: Sequence[Example], known: Sequence[str]) -> None:
    """Refuse examples that a bundle cannot be scored on.

    Raises:
        RecipeError: one has a label that is not known.
    """
    names = frozenset(known)
    for number, example in enumerate(examples, 1):
        for label in task.outputs(task.names(example)):
            if label not in names:
                few = ", ".join(known[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
                raise RecipeError(
                    f"example {number} has label {label!r}; this bundle answers {few}; mend the label, or name data with these"
                )
