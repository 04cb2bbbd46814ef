"""Calibrate a cascade: who answers which texts, from one pass of every member over a split that nothing was learned from.

What:     members from cheap to dear; temperatures, and the whole curve of score against time; the thresholds that the recipe's goal picks.
Papers:   TangoBERT (arXiv:2204.06271); see compressor/calibration.py and compressor/confidence.py.
Formula:  a text's milliseconds are those of texts of its length, timed one by one, of all members that read it.
Defaults: at most 0.3 points below the last member; max_softmax; calibrated on the search split.
Limits:   at most four members; a text that goes on is read again from its start.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from compressor import calibration, checkpoint
from compressor.artifact import write_json
from compressor.calibration import Pass, Setting
from compressor.cascade import GRAPH, MEMBERS, reader
from compressor.confidence import confidences
from compressor.data import Example, read_examples, text_hash
from compressor.encoded import pad_id_of, tokenizer_of
from compressor.errors import RecipeError, StageError
from compressor.graphs import export_graph, layered, parity
from compressor.latency import Run, sample, timed
from compressor.modeling import PlainModel
from compressor.pipeline import Inputs, deployed, is_single, lengths_of
from compressor.progress import Progress
from compressor.quantizers import dynamic
from compressor.recipe import Cascade, Recipe
from compressor.recipe import Member as Asked
from compressor.runtime import verify
from compressor.session import Graph
from compressor.splits import MODEL, Splits, task_of
from compressor.tasks import Task
from compressor.tokens import Floats, Tokens
from compressor.windows import Windows

TIMED = 48
"""Texts that are timed; they spread evenly over the split's lengths."""
ROUNDS = 3
USUAL_DROP = 0.003


@dataclass(frozen=True)
class Built:
    """A member as a bundle describes it, and how it reads and answers."""

    facts: Mapping[str, Any]
    read: Callable[[Sequence[Example]], Windows]
    logits: Callable[[Tokens], Floats]


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write policy.json and the graphs of members that are no operating point; return score and time of each member and of the cascade."""
    assert recipe.cascade is not None
    splits, task, settings = Splits.of(inputs["data"]), task_of(recipe), recipe.cascade
    examples = _examples(recipe, splits, task)
    built = _named_apart([_built(asked, number, recipe, inputs, out, log) for number, asked in enumerate(settings.members)])
    log.note(f"{len(built)} members answer {len(examples)} texts: {', '.join(one.facts['name'] for one in built)}")
    times, metric = _milliseconds(built, task, examples), task.metrics[recipe.task.metric]
    found = [_passed(one, task, examples, splits.labels, settings, own) for one, own in zip(built, times, strict=True)]
    passes, facts = [passed for passed, _ in found], list[dict[str, Any]]()
    for one, (passed, told) in zip(built, found, strict=True):
        facts.append({**one.facts, "score": metric(passed.outcomes), "mean_ms": float(passed.milliseconds.mean()), **told})
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


def _named_apart(built: Sequence[Built]) -> list[Built]:
    """Return the members, those of one name numbered from the second on."""
    found = list[Built]()
    for one in built:
        alike = sum(other.facts["name"].split("#")[0] == one.facts["name"] for other in found)
        name = f"{one.facts['name']}#{alike + 1}" if alike else one.facts["name"]
        found.append(dataclasses.replace(one, facts={**one.facts, "name": name}))
    return found


def _passed(
    one: Built, task: Task, examples: Sequence[Example], labels: Sequence[str], settings: Cascade, milliseconds: Floats
) -> tuple[Pass, dict[str, Any]]:
    """Return what a member answers to the whole split, and what its confidence is worth before and after its temperature."""
    windows = one.read(examples)
    logits = one.logits(windows.tokens)
    outcomes = task.outcomes(logits, windows, examples, labels)
    right = calibration.rightness(task, outcomes)
    temperature = calibration.fit_temperature(task, logits, windows, np.asarray(task.targets(windows, examples, labels), np.int64))
    sure = confidences(settings.confidence, task, logits, windows, examples, temperature)
    likely = {t: confidences("max_softmax", task, logits, windows, examples, t) for t in (1.0, temperature)}  # others are no probabilities
    errors = {when: calibration.calibration_error(likely[t], right) for when, t in (("before", 1.0), ("after", temperature))}
    told = {"temperature": temperature, "calibration_error": errors, "no_confidence": int(np.isnan(sure).sum())}
    return Pass(one.facts["name"], outcomes, right, sure, milliseconds), told


def _milliseconds(built: Sequence[Built], task: Task, examples: Sequence[Example]) -> list[Floats]:
    """Return for each member how long each text takes it: what texts of its length took, one by one, all members in turn."""
    windows = built[0].read(examples)
    tokens = np.bincount(windows.owners, windows.tokens.lengths, len(examples))
    rows = sample(tokens.tolist(), TIMED)
    read = [[one.read([examples[row]]).tokens for row in rows] for one in built]

    def runner(number: int) -> Run:
        return lambda position: built[number].logits(read[number][position])

    best = [found.min(0) for found in timed({str(n): runner(n) for n in range(len(built))}, rows, ROUNDS).values()]
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
    for name in ("train", "test"):
        seen = {text_hash(e) for e in splits.examples(name)}
        shared = sum(text_hash(e) in seen for e in examples)
        if shared:
            told = f"cascade.calibration ({source.path}): {shared} of {len(examples)} texts are in {name} too"
            raise RecipeError(f"{told}: confidence on what was learned or is reported means nothing; name another file, or leave it out")
    return examples


def _built(asked: Asked, number: int, recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> Built:
    """Return a member, with its graph copied or quantized where the bundle's own is not it."""
    splits, task, threads = Splits.of(inputs["data"]), task_of(recipe), recipe.target.threads
    if asked.point is not None:
        lengths, model = lengths_of(inputs)[asked.point], inputs["checkpoint"].path / MODEL
        facts: dict[str, Any] = {"name": asked.point, "folder": None, "lengths": lengths}
        facts |= {"max_length": splits.max_length, "stride": splits.stride, "pad_id": pad_id_of(model), "single": is_single(inputs)}
        graph, folder = deployed(inputs).path / "model.onnx", model
    else:
        folder = out / MEMBERS / str(number)
        folder.mkdir(parents=True)
        facts = _from_teacher(asked, recipe, inputs, folder, log) if asked.teacher else _from_bundle(asked, recipe, inputs, folder)
        facts, graph = {**facts, "folder": f"{MEMBERS}/{number}"}, folder / GRAPH
    opened = Graph(graph, threads, single=facts["single"], pad_id=facts["pad_id"], workers=recipe.workers)
    return Built(facts, reader(folder, task, facts), partial(opened.logits, lengths=facts["lengths"]))


def _from_teacher(asked: Asked, recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> dict[str, Any]:
    """Put the teacher's graph, in 8 bits if asked, and its tokenizer into the folder.

    It is exported anew, as fast as a student is; the one beside it in the report's table is what others export.
    """
    quantized = asked.teacher == "int8"
    log.note(f"teacher.onnx, as fast as it goes{', in 8 bits' if quantized else ''}")
    artifact, splits, task = inputs["teacher"], Splits.of(inputs["data"]), task_of(recipe)
    model, source = PlainModel(checkpoint.load_plain(artifact, splits.labels, task.head)), folder / "float.onnx"
    export_graph(layered(model), source, recipe.export.opset, portable=recipe.export.portable)
    folder_of_model = artifact.path / MODEL
    some = task.windows(tokenizer_of(folder_of_model), list(islice(splits.examples("validation"), 8)), splits.max_length, splits.stride)
    parity(model, source, some.tokens, [None], pad_id_of(folder_of_model), recipe.export.tolerance)
    if quantized:
        dynamic(source, folder / GRAPH, [])
        source.unlink()
    else:
        source.rename(folder / GRAPH)
    shutil.copyfile(folder_of_model / "tokenizer.json", folder / "tokenizer.json")
    reading = {"max_length": splits.max_length, "stride": splits.stride, "pad_id": pad_id_of(folder_of_model)}
    return {"name": "teacher", "lengths": None, "single": quantized, **reading}


def _from_bundle(asked: Asked, recipe: Recipe, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Put another bundle's graph and tokenizer into the folder.

    Raises:
        BundleError: it is no bundle, or was changed.
        RecipeError: it answers something else.
    """
    source = recipe.root / Path(str(asked.bundle)).expanduser()
    manifest, labels = verify(source), Splits.of(inputs["data"]).labels
    if manifest["task"] != recipe.task.type or manifest["task_settings"] != recipe.task.settings:
        raise RecipeError(f"cascade: {source} answers {manifest['task']}, this recipe {recipe.task.type}; members must answer the same")
    if tuple(manifest["labels"]) != labels:
        only = sorted({*manifest["labels"]} ^ {*labels}) or list(manifest["labels"])
        raise RecipeError(f"cascade: {source} has other labels than this recipe ({', '.join(only[:5])}); members must answer the same")
    for name, copied in (("model.onnx", GRAPH), ("tokenizer.json", "tokenizer.json")):
        shutil.copyfile(source / name, folder / copied)
    lengths = manifest["points"][manifest["default_point"]]["lengths"]
    return {"name": manifest["name"], "lengths": lengths, **{key: manifest[key] for key in ("max_length", "stride", "pad_id", "single")}}
