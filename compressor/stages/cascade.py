"""Choose a cascade's thresholds: who answers which texts, by the recipe's goal, from the passes of its members.

What:     the whole curve of score against time, and the thresholds that the goal picks from it; no member runs again for another goal.
Papers:   TangoBERT (arXiv:2204.06271); see compressor/calibration.py.
Formula:  a text costs the milliseconds of all members that read it.
Defaults: at most 0.3 points below the last member.
Limits:   scores are those of the calibration split; the bundle's report has the test split's.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor import calibration
from compressor.artifact import write_json
from compressor.calibration import Pass, Setting
from compressor.cascade import GOES_ON
from compressor.errors import StageError
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.scores import Metric
from compressor.settings.serving import Cascade
from compressor.splits import task_of

USUAL_DROP = 0.003


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write policy.json: members, thresholds, curve; return what the thresholds give on the calibration split."""
    assert recipe.cascade is not None
    settings, metric, source = recipe.cascade, task_of(recipe).metrics[recipe.task.metric], inputs["members"]
    facts, passes = json.loads((source.path / "members.json").read_text(encoding="utf-8")), calibration.load(source.path)
    front, last = calibration.curve(passes, metric), facts[-1]
    chosen = _chosen(settings, front, last) or calibration.setting(passes, metric, settings.thresholds or ())
    policy = {"confidence": settings.confidence, "thresholds": chosen.thresholds, "members": facts, "chosen": dataclasses.asdict(chosen)}
    policy |= {"curve": [dataclasses.asdict(s) for s in front], "oracle": dataclasses.asdict(calibration.oracle(passes, metric))}
    write_json(out / "policy.json", json.loads(json.dumps(policy)))
    ratio, shares = last["mean_ms"] / chosen.mean_ms, ", ".join(f"{share:.0%}" for share in chosen.shares)
    log.note(f"cascade: score {chosen.score:.4f} at {ratio:.2f}x {last['name']}; its members answer {shares}")
    useless = _useless(facts, passes, metric, chosen)
    for name, without in useless.items():
        log.warn(f"cascade: without {name} it is as good in {without:.2f} ms a text instead of {chosen.mean_ms:.2f}: leave {name} out")
    return {"score": chosen.score, "over_last_member": ratio, "shares": list(chosen.shares), "mean_ms": chosen.mean_ms, "useless": useless}


def _useless(facts: Sequence[Mapping[str, Any]], passes: Sequence[Pass], metric: Metric, chosen: Setting) -> dict[str, float]:
    """Return the members without which these thresholds score no less in less time, and the milliseconds of a text that are left then."""
    found = dict[str, float]()
    for place, own in enumerate(facts[:-1]):
        if facts[place + 1].get("part") == GOES_ON:  # what goes on from it cannot do without it
            continue
        others = [one for number, one in enumerate(passes) if number != place]
        without = calibration.setting(others, metric, chosen.thresholds[:place] + chosen.thresholds[place + 1 :])
        if without.mean_ms < chosen.mean_ms and without.score >= chosen.score - 1e-9:
            found[own["name"]] = without.mean_ms
    return found


def _chosen(settings: Cascade, front: Sequence[Setting], last: Mapping[str, Any]) -> Setting | None:
    """Return the setting that meets the recipe's goal; None where it states the thresholds themselves.

    Raises:
        StageError: none does; the closest is named.
    """
    if settings.thresholds is not None:
        return None
    if settings.speedup is None and settings.latency_ms is None:
        return calibration.within_drop(front, last["score"], USUAL_DROP if settings.max_drop is None else settings.max_drop)
    limit = last["mean_ms"] / settings.speedup if settings.speedup is not None else settings.latency_ms
    found = calibration.within_time(front, limit or 0.0)
    if found is None:
        closest, goal = (
            front[0],
            f"speedup {settings.speedup:g}" if settings.speedup is not None else f"latency_ms {settings.latency_ms:g} ms",
        )
        told = f"{closest.mean_ms:.2f} ms a text, {last['mean_ms'] / closest.mean_ms:.2f}x {last['name']}, at score {closest.score:.4f}"
        raise StageError(f"cascade: no thresholds reach {goal}; the closest takes {told}: loosen the goal or name a cheaper first member")
    return found
