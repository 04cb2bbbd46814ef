"""metrics.json: all that the report and the model card show."""

import dataclasses
import json
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

import numpy as np

from compressor import __version__, machine
from compressor.artifact import Artifact
from compressor.encoded import tokenizer_of
from compressor.findings import findings
from compressor.formats import count, milliseconds, percent
from compressor.gates import Link, Variant, gains
from compressor.inputs import Inputs
from compressor.measure import STUDENT, TEACHER, row_name
from compressor.recipe import Recipe
from compressor.settings.base import SPLITS
from compressor.splits import MODEL, Splits, task_of


def found_at(variant: Variant) -> dict[str, float]:
    """Return what a manifest says of an operating point beside its lengths."""
    return {"score": variant.score, "latency_ms": variant.p50_ms}


def summarize(
    recipe: Recipe,
    inputs: Inputs,
    manifest: Mapping[str, Any],
    variants: list[Variant],
    verdicts: list[dict[str, Any]],
    shares: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return metrics.json: all that the report and the model card show."""
    teacher, rows = variants[0], {v.name: v for v in variants}
    stages = list(_ancestors(inputs))
    frontier = json.loads((inputs["frontier"].path / "frontier.json").read_text(encoding="utf-8")) if "frontier" in inputs else {}
    seconds, policy = {s["name"]: s["seconds"] for s in stages}, _cascade(inputs, shares) or {}
    for owner, beside in (("cascade", ("members", "early_exit")), ("distill", ("assistant",))):  # which serve nothing else
        if owner in seconds:
            seconds[owner] += sum(seconds.get(name, 0.0) for name in beside)
    if "search" in seconds:
        seconds["search"] -= next(s["metrics"].get("seconds_of_baselines", 0.0) for s in stages if s["name"] == "search")
    return {
        "name": recipe.name,
        "task": recipe.task.type,
        "metric": recipe.task.metric,
        "labels": [] if task_of(recipe).choice in ("positions", "number") else manifest["labels"],
        "seed": recipe.seed,
        "max_length": manifest["max_length"],
        "default_point": manifest["default_point"],
        "default_policy": manifest["default_policy"],
        "data": _data_facts(recipe, inputs),
        "target": recipe.target.model_dump(),
        "machine": machine.describe(),
        "versions": {"compressor": __version__} | machine.versions("torch", "transformers", "onnx", "onnxruntime", "tokenizers"),
        "variants": [{**dataclasses.asdict(v), "speedup": v.faster_than(teacher)} for v in variants],
        "front": frontier.get("front", []),
        "evaluated": [*frontier.get("evaluated", []), *chain.from_iterable(frontier.get("baselines", {}).values())],
        "baselines": _baselines(frontier, stages),
        "truncates": bool(frontier.get("truncates")),
        "searched_by": recipe.search.latency if recipe.search else None,
        "points": {
            name: {**p, **found_at(rows[row_name(name, inputs)]), **_macs(name, frontier)} for name, p in manifest["points"].items()
        },
        "cascade": policy or None,
        "stages": stages,
        "gates": verdicts,
        "options": list(recipe.options),
        "smoke": recipe.smoke,
        "counts": recipe.length_adapt.counts if recipe.length_adapt else None,
        "findings": findings(recipe, inputs, manifest, rows, stages, frontier, policy),
        "pairs": manifest["pairs"],
        "stage_gains": gains(_chain(seconds, rows, inputs, manifest["default_point"], manifest["backend"])),
    }


def _macs(name: str, frontier: Mapping[str, Any]) -> dict[str, float]:
    """Return a point's multiply-accumulates, as a share of full length's, where a search counted them."""
    found = frontier.get("points", {}).get(name)
    return {"macs": found["macs"]} if found else {}


def _chain(seconds: Mapping[str, float], rows: Mapping[str, Variant], inputs: Inputs, default: str, backend: str) -> list[Link]:
    """Return what each stage made, from the teacher on; a student that nothing was taught is the teacher, in a graph that is faster.

    Floats run in onnxruntime: where the bundle does not, what its backend gives is no stage's.
    """
    taught = [name for name in ("distill", "length_adapt") if name in seconds]
    links = [Link("finetune", rows[TEACHER if taught else STUDENT], 0.0)]
    links += [Link(" and ".join(taught), rows[STUDENT], sum(seconds[name] for name in taught))] if taught else []
    beside = "" if backend == "onnxruntime" else f" and {backend}"
    if beside and "quantize" not in seconds:
        links.append(Link(backend, rows[row_name("full", inputs)], 0.0))
    made = {"quantize": (f"quantize{beside}", "full"), "search": (f"search: {default}", default), "cascade": ("cascade", "cascade")}
    return links + [Link(told, rows[row_name(row, inputs)], seconds[name]) for name, (told, row) in made.items() if name in seconds]


def _baselines(frontier: Mapping[str, Any], stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return evolution and what it was held against, if anything, with the hypervolume of each over evolution's."""
    if not frontier.get("baselines"):
        return []
    volumes = next(s["metrics"]["hypervolumes"] for s in stages if s["name"] == "search")
    counts = {"evolution": len(frontier["evaluated"])} | {name: len(some) for name, some in frontier["baselines"].items()}
    best = volumes["evolution"] or 1.0
    return [{"name": name, "configurations": n, "hypervolume": volumes[name] / best} for name, n in counts.items()]


def _cascade(inputs: Inputs, shares: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the policy with its whole curve, as calibrated, and each member's share of the test split."""
    if "policy" not in inputs:
        return None
    return {**json.loads((inputs["policy"].path / "policy.json").read_text(encoding="utf-8")), "test_shares": shares}


def _ancestors(inputs: Inputs) -> list[dict[str, Any]]:
    """Return every stage that led here, in the order they ran, from the manifests' own links."""
    found: dict[str, dict[str, Any]] = {}

    def visit(artifact: Artifact) -> None:
        for link in artifact.manifest["inputs"].values():
            folder = artifact.path.parent / link["path"]
            if folder.is_dir():  # data of which other splits have changed since is needed no more
                visit(Artifact(folder))
        metrics, name = artifact.metrics, artifact.manifest["stage"]
        found.setdefault(name, {"name": name, "seconds": metrics["seconds"], "summary": told(metrics), "metrics": dict(metrics)})

    for artifact in inputs.values():
        visit(artifact)
    from compressor.pipeline import STAGES  # here: it imports the stages, of which the last one imports this module

    order = [stage.name for stage in STAGES]
    return sorted(found.values(), key=lambda stage: order.index(stage["name"]))


def told(metrics: Mapping[str, Any]) -> str:
    """Return what a stage's row of the report says of its result."""
    parts = []
    if "seeds" in metrics:
        seeds = metrics["seeds"]
        parts.append(f"{len(seeds['scores'])} seeds: {seeds['mean']:.4f} ± {seeds['standard_deviation']:.4f}; the best went on")
    if "validation_score" in metrics:
        parts.append(f"score {metrics['validation_score']:.4f} on validation")
    if metrics.get("learning_parameters", 0) < metrics.get("parameters", 0) and "learning_parameters" in metrics:
        parts.append(f"{count(metrics['learning_parameters'])} of {count(metrics['parameters'])} weights learned")
    if metrics.get("products_in_float"):
        parts.append(f"in float, because 8 bits cost too much there: {', '.join(metrics['products_in_float'])}")
    if "left_out" in metrics:
        parts.append("; ".join(f"{name} was left out: {why}" for name, why in metrics["left_out"].items()))
    if "entries" in metrics:
        parts.append(f"layer {metrics['layer']} of {count(metrics['entries'])} distinct texts takes {count(metrics['megabytes'])} MB")
    if "probes" in metrics:
        tried = ", ".join(f"{p['layers']}: {p['score']:.4f} at {p['texts_per_second']:.0f} texts/s" for p in metrics["probes"])
        parts.append(f"{metrics['layer']} layers recycled, by short trainings above so many: {tried}")
    if "calibrated_on" in metrics:
        answered = ", ".join(f"{name}: {own['score']:.4f} in {milliseconds(own['mean_ms'])}" for name, own in metrics["members"].items())
        parts.append(f"of {count(metrics['calibrated_on'])} texts, {answered} each")
    if "vocabulary" in metrics:
        kept = metrics["vocabulary"]
        sizes = f"{count(kept['after'])} of {count(kept['before'])} tokens"
        parts.append(f"{sizes}, which cover {percent(kept['covered'])} of the validation texts")
    return "; ".join(parts)


def _data_facts(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """Return each split's examples, and how many tokens are read of its first 2,000, in all their windows."""
    splits, folder = Splits.of(inputs["data"]), inputs["checkpoint"].path / MODEL
    tokenizer, task, counts = tokenizer_of(folder), task_of(recipe), inputs["data"].metrics["examples"]
    facts = {}
    for name in SPLITS:
        looked_at = list(islice(splits.examples(name), 2000))
        windows = task.windows(tokenizer, looked_at, splits.max_length, splits.stride)
        lengths = np.bincount(windows.owners, windows.tokens.lengths, len(looked_at))
        median, p90 = np.percentile(lengths, [50, 90], method="nearest")
        facts[name] = {"examples": counts[name], "median_tokens": int(median), "p90_tokens": int(p90)}
    return facts
