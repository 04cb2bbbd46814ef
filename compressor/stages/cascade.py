"""Choose a cascade's thresholds: who answers which texts, by the recipe's goal, from the passes of its members.

What:     the whole curve of score against time, and the thresholds that the goal picks from it; no member runs again for another goal.
Papers:   TangoBERT (arXiv:2204.06271); see compressor/calibration.py.
Formula:  a text costs the milliseconds of all members that read it.
Defaults: at most 0.3 points below the last member.
Limits:   scores are those of the calibration split, which chose the thresholds: the metrics say how they fare across its halves, the
          bundle's report has the test split's.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor import calibration
from compressor.artifact import write_json
from compressor.calibration import Pass, Setting
from compressor.cascade import GOES_ON
from compressor.errors import StageError
from compressor.inputs import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.scores import Metric
from compressor.settings.serving import Cascade
from compressor.splits import task_of

USUAL_DROP = 0.003


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write policy.json: members, thresholds, curve; return what the thresholds give on the calibration split.

    Raises:
        StageError: no thresholds meet the goal; the closest is named.
    """
    assert recipe.cascade is not None
    settings, metric, source = recipe.cascade, task_of(recipe).metrics[recipe.task.metric], inputs["members"]
    facts, passes = json.loads((source.path / "members.json").read_text(encoding="utf-8")), calibration.load(source.path)
    front, last = calibration.curve(passes, metric), facts[-1]
    goal = _goal(settings, last["mean_ms"])
    chosen = goal(front, last["score"]) if goal else calibration.setting(passes, metric, settings.thresholds or ())
    if chosen is None:
        raise StageError(_out_of_reach(settings, front[0], last))
    policy = {"confidence": settings.confidence, "thresholds": chosen.thresholds, "members": facts, "chosen": dataclasses.asdict(chosen)}
    policy |= {"curve": [dataclasses.asdict(s) for s in front], "oracle": dataclasses.asdict(calibration.oracle(passes, metric))}
    write_json(out / "policy.json", json.loads(json.dumps(policy)))
    ratio, shares = last["mean_ms"] / chosen.mean_ms, ", ".join(f"{share:.0%}" for share in chosen.shares)
    log.note(f"cascade: score {chosen.score:.4f} at {ratio:.2f}x {last['name']}; its members answer {shares}")
    halves = calibration.across_halves(passes, metric, goal) if goal else None
    useless, without = _useless(facts, passes, metric, chosen)
    if useless:
        named = " and ".join(useless)
        told = f"is as good in {without:.2f} ms a text instead of {chosen.mean_ms:.2f}: leave {named} out"
        log.warn(f"cascade: without {named} it {told}", f"Without {named} the cascade {told}.")
    found = {"score": chosen.score, "over_last_member": ratio, "shares": list(chosen.shares), "mean_ms": chosen.mean_ms}
    return found | ({"across_halves": dict(zip(("chosen", "other", "choices"), halves, strict=True))} if halves else {})


def _useless(facts: Sequence[Mapping[str, Any]], passes: Sequence[Pass], metric: Metric, chosen: Setting) -> tuple[list[str], float]:
    """Return the members without which these thresholds score no less in less time, and the milliseconds of a text that are left then.

    One after the other, whose absence saves most, while two are left: each alone may be done without, and both together not.
    """
    left, best, gone = list(range(len(passes))), chosen, list[str]()
    while len(left) > (2 if gone else 1):
        found = list[tuple[Setting, int]]()
        for place, number in enumerate(left[:-1]):
            if facts[left[place + 1]].get("part") == GOES_ON:  # what goes on from it cannot do without it
                continue
            thresholds = best.thresholds[:place] + best.thresholds[place + 1 :]
            without = calibration.setting([passes[other] for other in left if other != number], metric, thresholds)
            if without.mean_ms < best.mean_ms and without.score >= chosen.score - 1e-9:
                found.append((without, number))
        if not found:
            break
        best, number = min(found, key=lambda one: one[0].mean_ms)
        left.remove(number)
        gone.append(str(facts[number]["name"]))
    return gone, best.mean_ms


def _goal(settings: Cascade, last_ms: float) -> Callable[[Sequence[Setting], float], Setting | None] | None:
    """Return how the recipe's goal picks a setting of a curve, by the last member's score; None where it states the thresholds."""
    if settings.thresholds is not None:
        return None
    if settings.speedup is None and settings.latency_ms is None:
        drop = USUAL_DROP if settings.max_drop is None else settings.max_drop
        return lambda front, score: calibration.within_drop(front, score, drop)
    limit = last_ms / settings.speedup if settings.speedup is not None else settings.latency_ms
    return lambda front, _: calibration.within_time(front, limit or 0.0)


def _out_of_reach(settings: Cascade, closest: Setting, last: Mapping[str, Any]) -> str:
    """Say that no thresholds meet the goal, and what the fastest give."""
    goal = f"speedup {settings.speedup:g}" if settings.speedup is not None else f"latency_ms {settings.latency_ms:g} ms"
    told = f"{closest.mean_ms:.2f} ms a text, {last['mean_ms'] / closest.mean_ms:.2f}x {last['name']}, at score {closest.score:.4f}"
    return f"cascade: no thresholds reach {goal}; the closest takes {told}: loosen the goal or name a cheaper first member"
