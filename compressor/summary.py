"""metrics.json: all that the report and the model card show, and the findings that a user should know."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np

from compressor import __version__, machine
from compressor.artifact import Artifact
from compressor.encoded import tokenizer_of
from compressor.formats import count, duration, milliseconds, percent, points_change, times
from compressor.gates import Link, Variant, gains
from compressor.inputs import Inputs
from compressor.measure import RECYCLED, STUDENT, TEACHER, row_name
from compressor.plan import crowded
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
    teacher, rows, sharing = variants[0], {v.name: v for v in variants}, crowded(recipe)
    cascade = rows.get(row_name("cascade", inputs))
    stages = list(_ancestors(inputs))
    frontier = json.loads((inputs["frontier"].path / "frontier.json").read_text(encoding="utf-8")) if "frontier" in inputs else {}
    seconds, policy = {s["name"]: s["seconds"] for s in stages}, _cascade(inputs, shares) or {}
    for owner, beside in (("cascade", ("members", "early_exit")), ("distill", ("assistant",))):  # which serve nothing else
        if owner in seconds:
            seconds[owner] += sum(seconds.get(name, 0.0) for name in beside)
    fresh = [v for v in variants if v.name not in {row_name(name, inputs) for name in RECYCLED}]  # a cascade reads no store
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
        "findings": [
            *(
                ["A smoke build: a sliver of the data was read, no gate was judged, and these figures mean nothing."]
                if recipe.smoke
                else []
            ),
            *([f"{sharing[0].upper()}{sharing[1:]}."] if sharing else []),
            *_findings(inputs, rows, stages, frontier.get("losses", {}), manifest["backend"]),
            *(_truncated(manifest, recipe.data.max_length) if frontier.get("truncates") else []),
            *_backends(manifest),
            *_elsewhere(manifest),
            *([] if cascade is None else [_paying(cascade, fresh, policy), *_going_on(policy), *_calibrated(recipe)]),
        ],
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


def _paying(cascade: Variant, rows: Iterable[Variant], policy: Mapping[str, Any]) -> str:
    """Say what the cascade gives beside the fastest row of one model that is as good, and beside its last member, which may be no row."""
    good = [v for v in rows if v is not cascade and v.score >= cascade.score - 1e-9]
    answered = ", ".join(f"{own['member']} answers {percent(own['share'])}" for own in policy["test_shares"])
    last = policy["members"][-1]
    faster, of_last = times(last["mean_ms"] / policy["chosen"]["mean_ms"]), f"of {last['name']}, its last member, on the calibration texts"
    if not good:
        told = f"more than any other row, at {faster} the speed {of_last}"
        return f"The cascade scores {percent(cascade.score)}, {told} ({answered}; mean times)."
    rival = min(good, key=lambda v: v.mean_ms)
    ratio = rival.mean_ms / cascade.mean_ms
    verdict = f"{'pays' if ratio > 1.05 else 'does not pay here'}: {times(ratio)} the speed of {rival.name}"
    return f"The cascade {verdict}, the fastest row that is as good, and {faster} that {of_last} ({answered}; mean times)."


def _truncated(manifest: Mapping[str, Any], max_length: int) -> list[str]:
    """Say which operating points read only the beginning of a long text."""
    read = {name: point["lengths"][0] for name, point in manifest["points"].items() if point["lengths"][0] < max_length}
    told = ", ".join(f"{name} reads the first {tokens} tokens" for name, tokens in read.items())
    return [f"Of longer texts {told}: what they say after that counts for nothing."] if read else []


def _backends(manifest: Mapping[str, Any]) -> list[str]:
    """Say which backend runs the graph and what the others were, where there was a choice."""
    told, chosen = manifest["backends"], manifest["backend"]
    refused = [facts["refused"] for facts in told.values() if "refused" in facts]
    others = [name for name, facts in told.items() if name != chosen and "p50_ms" in facts]
    slower = [f"{name} takes {times(told[name]['p50_ms'] / told[chosen]['p50_ms'])} the time" for name in others]
    return [f"The bundle runs in {chosen}: {'; '.join([*slower, *refused])}."] if slower or refused else []


def _elsewhere(manifest: Mapping[str, Any]) -> list[str]:
    """Say where a bundle is for other processors than those that times were measured on."""
    isa, here = manifest["isa"], machine.level()
    return (
        []
        if isa in (None, here)
        else [f"Times are those of this machine ({here or 'an unknown instruction set'}); the bundle is for processors with {isa}."]
    )


def _calibrated(recipe: Recipe) -> list[str]:
    """Say where a cascade was calibrated on the texts by which its points were chosen."""
    assert recipe.cascade is not None
    points = [m.point for m in recipe.cascade.members if m.point not in (None, "full")]
    if recipe.search is None or recipe.cascade.calibration is not None or not points:
        return []
    return [
        f"The cascade was calibrated on the search split, by which {', '.join(map(str, points))} {'were' if len(points) > 1 else 'was'} "
        "chosen too: scores there are a little high. cascade.calibration names texts of its own."
    ]


def _going_on(policy: Mapping[str, Any]) -> list[str]:
    """Say whether it pays to go on from an early exit, if there is one, instead of reading a text again."""
    told = [one for one in policy.get("members", ()) if "continued_ms" in one]
    return [
        f"Going on from the early exit {'pays' if one['continued_ms'] < one['restarted_ms'] else 'does not pay here'}: "
        f"{one['continued_ms']:.2f} ms a text, where {one['name']} from the start takes {one['restarted_ms']:.2f} ms."
        for one in told
    ]


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


def _findings(
    inputs: Inputs, rows: Mapping[str, Variant], stages: list[dict[str, Any]], losses: Mapping[str, float], backend: str
) -> list[str]:
    """Say what a user should know before trusting or repeating this build: what did not pay, what was not certain."""
    found, full, student = [], rows[row_name("full", inputs)], rows[STUDENT]
    if "frontier" in inputs:
        for point in ("balanced", "fast"):
            row = rows[row_name(point, inputs)]
            ratio = full.mean_ms / row.mean_ms  # as the search counts: a median tells nothing of what long texts gain
            verdict = "pays little here" if ratio < 1.15 else "pays"
            gained = f"Length adaptation {verdict}: {point} is {times(ratio)} full length by mean times"
            promised = _more_than_promised(row, full, losses[point])
            found.append(f"{gained}, at {_change(row, full)} on the test split{promised}.")
    if "int8_graph" in inputs:
        ratio = student.p50_ms / full.p50_ms
        here, there = ("", "") if backend == "onnxruntime" else (f" in {backend}", " in onnxruntime")
        found.append(
            f"INT8{here} is {times(ratio)} fp32{there} at {_change(full, student)}{'' if ratio > 1 else ': it does not pay here'}."
        )
    new, known = (rows.get(row_name(name, inputs)) for name in RECYCLED)
    if new and known:
        ratio = full.p50_ms / known.p50_ms
        verdict = "pays" if ratio > 1.05 else "does not pay here"
        told = f"a text that the store knows is {times(ratio)} the speed of the whole graph, at {_change(known, full)}"
        found.append(f"Recycling {verdict}: {told}; one that it does not know takes {times(new.p50_ms / full.p50_ms)} as long.")
    for stage in stages:
        found += _of_stage(stage)
    around = max(full.score_interval[1] - full.score, full.score - full.score_interval[0])
    found.append(
        f"A score on this test split is uncertain by about ±{100 * around:.1f} points; "
        "differences of rows, which answer the same texts, by less: what is said of them here has its own interval."
    )
    return found


def _of_stage(stage: Mapping[str, Any]) -> Iterator[str]:
    """Say what a stage found out about itself."""
    metrics: Mapping[str, Any] = stage["metrics"]
    for warning in metrics.get("warnings", ()):  # what stood on a terminal once belongs to the figures that it qualifies
        yield f"{warning[0].upper()}{warning[1:].rstrip('.')}."
    yield from metrics.get("against_baselines", ())
    if halves := metrics.get("across_halves"):
        here, there = (points_change(halves[name]) for name in ("chosen", "other"))
        yield (
            f"Chosen on half of the calibration texts, thresholds score {here} points against the last member there, "
            f"{there} on the other half (means of {halves['choices']} choices): expect the second on new texts."
        )
    if "before" in metrics:
        whole, smallest = (points_change(metrics["after"][k] - metrics["before"][k]) for k in ("full", "smallest"))
        gained = f"full length by {whole} points and the smallest sub-model by {smallest}"
        yield f"LengthDrop training moved {gained} (validation split), for {duration(stage['seconds'])}."


def _change(row: Variant, other: Variant) -> str:
    """Return the change of a score in points, with its paired interval."""
    low, high = row.changes[other.name]
    return f"{points_change(row.score - other.score)} points ({points_change(low)} to {points_change(high)})"


def _more_than_promised(row: Variant, full: Variant, allowed: float) -> str:
    """Say whether a point certainly loses more on the test split than what it was chosen by."""
    told = f": more than the {100 * allowed:g} that it was chosen for, on the search split"
    return told if row.changes[full.name][1] < -allowed else ""
