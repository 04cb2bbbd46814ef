"""Calibrate a cascade: who answers which texts, from one pass of every member over a split that nothing was learned from.

What:     members from cheap to dear; temperatures, and the whole curve of score against time; the thresholds that the recipe's goal picks.
Papers:   TangoBERT (arXiv:2204.06271); see compressor/calibration.py and compressor/confidence.py.
Formula:  a text's milliseconds are those of texts of its length, timed one by one, of all members that read it.
Defaults: at most 0.3 points below the last member; max_softmax; calibrated on the search split.
Limits:   at most four members; a text that goes on is read again from its start, or goes on from an early exit where that is faster.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from compressor import calibration
from compressor.artifact import write_json
from compressor.calibration import Pass, Setting
from compressor.cascade import GOES_ON
from compressor.confidence import confidences
from compressor.data import Example, read_examples, seen_hash
from compressor.errors import RecipeError, StageError
from compressor.evaluation import check_labels
from compressor.halves import BACK
from compressor.latency import Run, sample, timed
from compressor.members import Member, members_of
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.settings.serving import Cascade
from compressor.splits import Splits, task_of
from compressor.tasks import Task
from compressor.tokens import Floats

TIMED = 48
"""Texts that are timed; they spread evenly over the split's lengths."""
ROUNDS = 3
TOGETHER = 256
"""Texts that a member answers together: bounds what an early exit hands on."""
USUAL_DROP = 0.003


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write policy.json and the graphs of members that are no operating point; return score and time of each member and of the cascade."""
    assert recipe.cascade is not None
    splits, task, settings = Splits.of(inputs["data"]), task_of(recipe), recipe.cascade
    examples = _examples(recipe, splits, task)
    built, times = _fastest(members_of(recipe, inputs, out, log), examples, out, log)
    log.note(f"{len(built)} members answer {len(examples)} texts: {', '.join(one.facts['name'] for one in built)}")
    metric = task.metrics[recipe.task.metric]
    found = [_passed(one, task, examples, splits.labels, settings, own) for one, own in zip(built, times, strict=True)]
    passes, facts = [passed for passed, _ in found], list[dict[str, Any]]()
    for one, (passed, told) in zip(built, found, strict=True):
        alone = one.facts.get("restarted_ms", float(passed.milliseconds.mean()))  # not what is left of it behind an early exit
        facts.append({**one.facts, "score": metric(passed.outcomes), "mean_ms": alone, **told})
        if told["no_confidence"]:
            log.warn(f"cascade: {one.facts['name']} has no confidence in {told['no_confidence']} of {len(examples)} answers, which go on")
        log.note("{name}: score {score:.4f}, {mean_ms:.2f} ms a text, temperature {temperature:.2f}".format(**facts[-1]))
    for before, after in pairwise(facts):
        if before["mean_ms"] >= after["mean_ms"]:
            log.warn(f"cascade: {before['name']} takes as long as {after['name']} behind it: leave it out, or change their order")
    front, last = calibration.curve(passes, metric), facts[-1]
    chosen = _chosen(settings, front, last) or calibration.setting(passes, metric, settings.thresholds or ())
    policy = {"confidence": settings.confidence, "thresholds": chosen.thresholds, "members": facts, "chosen": dataclasses.asdict(chosen)}
    policy |= {"curve": [dataclasses.asdict(s) for s in front], "oracle": dataclasses.asdict(calibration.oracle(passes, metric))}
    write_json(out / "policy.json", json.loads(json.dumps(policy)))
    ratio, shares = last["mean_ms"] / chosen.mean_ms, ", ".join(f"{share:.0%}" for share in chosen.shares)
    log.note(f"cascade: score {chosen.score:.4f} at {ratio:.2f}x {last['name']}; its members answer {shares}")
    return {"calibrated_on": len(examples), "score": chosen.score, "over_last_member": ratio, "shares": list(chosen.shares)}


def _passed(
    one: Member, task: Task, examples: Sequence[Example], labels: Sequence[str], settings: Cascade, milliseconds: Floats
) -> tuple[Pass, dict[str, Any]]:
    """Return what a member answers to the whole split, and what its confidence is worth before and after its temperature."""
    windows = one.read(examples)
    parts = [range(row, min(row + TOGETHER, len(windows.tokens))) for row in range(0, len(windows.tokens), TOGETHER)]
    logits = np.concatenate([one.answer(windows.tokens.rows(rows), None)[0] for rows in parts])
    outcomes = task.outcomes(logits, windows, examples, labels)
    right = calibration.rightness(task, outcomes)
    temperature = calibration.fit_temperature(task, logits, windows, np.asarray(task.targets(windows, examples, labels), np.int64))
    sure = confidences(settings.confidence, task, logits, windows, examples, temperature)
    likely = {t: confidences("max_softmax", task, logits, windows, examples, t) for t in (1.0, temperature)}  # others are no probabilities
    errors = {when: calibration.calibration_error(likely[t], right) for when, t in (("before", 1.0), ("after", temperature))}
    told = {"temperature": temperature, "calibration_error": errors, "no_confidence": int(np.isnan(sure).sum())}
    return Pass(one.facts["name"], outcomes, right, sure, milliseconds), told


def _fastest(built: Sequence[Member], examples: Sequence[Example], out: Path, log: Progress) -> tuple[list[Member], list[Floats]]:
    """Return the members and how long each text takes them; one that may go on from an early exit does so if that is faster."""
    onward = [one.continued for one in built if one.continued]
    times = _milliseconds([*built, *onward], built[0], examples)
    if not onward:
        return list(built), times
    again, on = float(times[1].mean()), float(times[-1].mean())
    both = {"continued_ms": on, "restarted_ms": again}
    log.note(f"{built[1].facts['name']}: going on from the early exit takes {on:.2f} ms a text, reading again {again:.2f} ms")
    pays = on < again
    if not pays:
        (out / str(onward[0].facts["folder"]) / BACK).unlink()
    faster = onward[0] if pays else built[1]
    chosen = dataclasses.replace(faster, facts={**faster.facts, "name": built[1].facts["name"], **both})
    return [built[0], chosen, *built[2:]], [times[0], times[-1] if pays else times[1], *times[2 : len(built)]]


def _milliseconds(built: Sequence[Member], first: Member, examples: Sequence[Example]) -> list[Floats]:
    """Return for each member how long each text takes it: what texts of its length took, one by one, all members in turn.

    Those that go on from the first are given what it hands on.
    """
    windows = first.read(examples)
    tokens = np.bincount(windows.owners, windows.tokens.lengths, len(examples))
    rows = sample(tokens.tolist(), TIMED)
    read = [[one.read([examples[row]]).tokens for row in rows] for one in built]
    states = [first.answer(own, None)[1] for own in read[0]]

    def runner(number: int) -> Run:
        on = built[number].facts.get("part") == GOES_ON
        return lambda position: built[number].answer(read[number][position], states[position] if on else None)

    best = [found.min(0) for found in timed({str(n): runner(n) for n in range(len(built))}, range(len(rows)), ROUNDS).values()]
    known, where = np.unique(tokens[rows], return_inverse=True)
    return [np.interp(tokens, known, np.bincount(where, ms) / np.bincount(where)) for ms in best]


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


def _examples(recipe: Recipe, splits: Splits, task: Task) -> list[Example]:
    """Return the calibration split: the recipe's own, or the search split.

    Raises:
        RecipeError: a text of it was learned, or will be reported.
    """
    assert recipe.cascade is not None
    source = recipe.cascade.calibration
    if source is None:
        return list(splits.examples("search"))
    examples = list(read_examples(source.path, recipe.columns(), task, root=recipe.root, split="cascade.calibration", limit=source.limit))
    try:
        check_labels(task, examples, splits.labels)
    except RecipeError as error:
        raise RecipeError(f"cascade.calibration ({source.path}): {error}; mend the label or leave the row out") from None
    for name in ("train", "unlabelled", "test"):
        seen = {seen_hash(e, task.choice) for e in splits.examples(name)}
        shared = sum(seen_hash(e, task.choice) in seen for e in examples)
        if shared:
            told = f"cascade.calibration ({source.path}): {shared} of {len(examples)} texts are in {name} too"
            raise RecipeError(f"{told}: confidence on what was learned or is reported means nothing; name another file, or leave it out")
    return examples
