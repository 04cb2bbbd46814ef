"""Build a cascade's members, and let each answer a split that nothing was learned from: one pass, from which every threshold can be told.

What:     members from cheap to dear: operating points, early exit, teacher, other bundles; of each its temperature, answers and times.
Papers:   temperature scaling (arXiv:1706.04599); TangoBERT (arXiv:2204.06271); see compressor/confidence.py.
Formula:  a text's milliseconds are those of texts of its length, timed one by one, of all members that read it.
Defaults: max_softmax; the search split.
Limits:   at most four members; a text that goes on is read again from its start, or goes on from an early exit where that is faster.
"""

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from compressor import calibration
from compressor.artifact import write_json
from compressor.calibration import Pass
from compressor.cascade import GOES_ON
from compressor.confidence import confidences
from compressor.data import CHARACTERS, CHUNK, Example, in_chunks, read_examples, seen_hash
from compressor.errors import RecipeError
from compressor.evaluation import check_labels
from compressor.halves import BACK
from compressor.inputs import Inputs
from compressor.latency import Run, sample, timed
from compressor.members import Member, members_of
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.settings.serving import Cascade
from compressor.splits import Splits, task_of
from compressor.tasks import Task
from compressor.tokens import Floats
from compressor.windows import Windows

TIMED = 48
"""Texts that are timed; they spread evenly over the split's lengths."""
ROUNDS = 3
TOGETHER = 256
"""Texts that a member answers together: bounds what an early exit hands on."""


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write members.json, the pass of each, and the graphs of those that are no operating point; return score and time of each."""
    assert recipe.cascade is not None
    splits, task, settings = Splits.of(inputs["data"]), task_of(recipe), recipe.cascade
    skipped = list[str]()
    examples = examples_of(recipe, splits, skipped)
    if skipped:
        left_out = f"{len(skipped)} texts of cascade.calibration were left out (data.skip_bad, data.unknown_labels)"
        log.warn(f"{left_out}; the first: {skipped[0]}", f"{left_out}.")
    built, times = _fastest(members_of(recipe, inputs, out, log), examples, out, log)
    log.note(f"{len(built)} members answer {len(examples)} texts: {', '.join(one.facts['name'] for one in built)}")
    metric = task.metrics[recipe.task.metric]
    found = [_passed(one, task, examples, splits.labels, settings, own) for one, own in zip(built, times, strict=True)]
    facts = list[dict[str, Any]]()
    for one, (passed, told) in zip(built, found, strict=True):
        alone = one.facts.get("restarted_ms", float(passed.milliseconds.mean()))  # not what is left of it behind an early exit
        facts.append({**one.facts, "score": metric(passed.outcomes), "mean_ms": alone, **told})
        if told["no_confidence"]:
            log.warn(f"cascade: {one.facts['name']} has no confidence in {told['no_confidence']} of {len(examples)} answers, which go on")
        log.note("{name}: score {score:.4f}, {mean_ms:.2f} ms a text, temperature {temperature:.2f}".format(**facts[-1]))
    for before, after in pairwise(facts):
        if before["mean_ms"] >= after["mean_ms"]:
            log.warn(f"cascade: {before['name']} takes as long as {after['name']} behind it: leave it out, or change their order")
    calibration.save([passed for passed, _ in found], out)
    write_json(out / "members.json", json.loads(json.dumps(facts)))
    return {"calibrated_on": len(examples), "members": {one["name"]: {"score": one["score"], "mean_ms": one["mean_ms"]} for one in facts}}


def _passed(
    one: Member, task: Task, examples: Sequence[Example], labels: Sequence[str], settings: Cascade, milliseconds: Floats
) -> tuple[Pass, dict[str, Any]]:
    """Return what a member answers to the whole split, and what its confidence is worth before and after its temperature."""
    windows = _read(one, examples)
    parts = [range(row, min(row + TOGETHER, len(windows.tokens))) for row in range(0, len(windows.tokens), TOGETHER)]
    logits = np.concatenate([one.answer(windows.tokens.rows(rows), None)[0] for rows in parts])
    outcomes = task.outcomes(logits, windows, examples, labels)
    right = calibration.rightness(task, outcomes)
    targets = np.asarray(task.targets(windows, examples, labels), np.int64)
    temperature = calibration.fit_temperature(task, logits, windows, examples, targets, right)
    sure = confidences(settings.confidence, task, logits, windows, examples, temperature)
    likely = {t: confidences("max_softmax", task, logits, windows, examples, t) for t in (1.0, temperature)}  # others are no probabilities
    errors = {when: calibration.calibration_error(likely[t], right) for when, t in (("before", 1.0), ("after", temperature))}
    told = {"temperature": temperature, "calibration_error": errors, "no_confidence": int(np.isnan(sure).sum())}
    return Pass(one.facts["name"], outcomes, right, sure, milliseconds), told


def _read(one: Member, examples: Sequence[Example]) -> Windows:
    """Return what a member reads of the whole split, some texts after the others: a tokenizer takes far more than what it returns."""
    chunks = list(in_chunks(examples, CHUNK, CHARACTERS))
    return Windows.joined([one.read(chunk) for chunk in chunks], [len(chunk) for chunk in chunks])


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
    windows = _read(first, examples)
    tokens = np.bincount(windows.owners, windows.tokens.lengths, len(examples))
    rows = sample(tokens.tolist(), TIMED)
    read = [[one.read([examples[row]]).tokens for row in rows] for one in built]
    states = [first.timed(own, None)[1] for own in read[0]]

    def runner(number: int) -> Run:
        on = built[number].facts.get("part") == GOES_ON
        return lambda position: built[number].timed(read[number][position], states[position] if on else None)

    best = [found.min(0) for found in timed({str(n): runner(n) for n in range(len(built))}, range(len(rows)), ROUNDS).values()]
    known, where = np.unique(tokens[rows], return_inverse=True)
    return [np.interp(tokens, known, np.bincount(where, ms) / np.bincount(where)) for ms in best]


def examples_of(recipe: Recipe, splits: Splits, skipped: list[str]) -> list[Example]:
    """Return the calibration split: the recipe's own, or the search split.

    What is wrong with rows that the recipe leaves out goes to `skipped`.

    Raises:
        RecipeError: a row is no example, or its label is not known; a text was learned, or will be reported.
    """
    assert recipe.cascade is not None
    source, task, bad = recipe.cascade.calibration, task_of(recipe), skipped if recipe.data.skip_bad else None
    if source is None:
        return list(splits.examples("search"))
    columns, name = recipe.columns(), "cascade.calibration"
    found = read_examples(source.path, columns, task, root=recipe.root, split=name, skipped=bad, **source.how)
    examples = list(found)
    if recipe.data.unknown_labels == "skip":
        known = [e for e in examples if set(task.outputs(task.names(e))) <= set(splits.labels)]
        if not known:
            raise RecipeError(f"{name} ({source.path}): no text has labels that train knows; mend them, or name another file")
        skipped += [f"{name} ({source.path}): has labels that train lacks"] * (len(examples) - len(known))
        examples = known
    try:
        check_labels(task, examples, splits.labels)
    except RecipeError as error:
        raise RecipeError(f"{name} ({source.path}): {error}; mend the label or leave the row out") from None
    for other in ("train", "unlabelled", "test"):
        seen = {seen_hash(e, task.choice) for e in splits.examples(other)}
        shared = sum(seen_hash(e, task.choice) in seen for e in examples)
        if shared:
            told = f"{name} ({source.path}): {shared} of {len(examples)} texts are in {other} too"
            raise RecipeError(f"{told}: confidence on what was learned or is reported means nothing; name another file, or leave it out")
    return examples
