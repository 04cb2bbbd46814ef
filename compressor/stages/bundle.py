"""Bundle: everything that a deployment needs, measured on the shipped bytes, with a report and the gates' verdicts.

What:     model, tokenizer and manifest; every row of the result table is measured on the test split, INT8 rows through `Runtime`.
Formula:  speed-up = the teacher's median latency over the row's, both from one interleaved run at the target's threads and batch.
Defaults: 95 % bootstrap intervals; latencies on up to 64 texts that spread over the test split's lengths, of
          which each member of a cascade answers its share.
Limits:   latencies hold for the machine that metrics.json describes.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from compressor import backends, machine
from compressor.artifact import digest_of, files_of, sha256, write_json
from compressor.bundles import FOLDER, FORMAT, seal
from compressor.cascade import MEMBERS
from compressor.clients import settle_tokenizer, tell_choice
from compressor.encoded import pad_id_of
from compressor.gates import judge
from compressor.graphs import set_default_lengths
from compressor.halves import BACK, FRONT
from compressor.inputs import Inputs, deployed, is_single, lengths_of
from compressor.measure import STUDENT, TEACHER, measure, row_name
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.report import render_card, render_report
from compressor.splits import MODEL, Splits, task_of
from compressor.summary import found_at, summarize

MEASURED = frozenset({"metrics.json", "gates.json", "report.html", "README.md"})
"""Files that hold times: they have a hash each, but no part in the bundle's digest."""


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the bundle folder and return its digest, the result table and the verdicts."""
    folder = out / FOLDER
    manifest = _content(recipe, inputs, folder, log)
    variants, shares = measure(recipe, inputs, folder, log)
    judged = "cascade" if manifest["default_policy"] else manifest["default_point"]
    chosen, teacher, student = (variants[n] for n in (row_name(judged, inputs), TEACHER, STUDENT))
    points = [variants[row_name(name, inputs)] for name in manifest["points"]]
    references, on_target = {"teacher": teacher, "student": student}, manifest["isa"] in (None, machine.level())
    verdicts = [dataclasses.asdict(v) for v in judge(recipe.gates, chosen, references, points, on_target=on_target)]
    metrics = summarize(recipe, inputs, manifest, list(variants.values()), verdicts, shares)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "gates.json", verdicts)
    (folder / "report.html").write_text(render_report(metrics), encoding="utf-8")
    (folder / "README.md").write_text(render_card(metrics), encoding="utf-8")
    measured = {n: {"lengths": p["lengths"], **found_at(variants[row_name(n, inputs)])} for n, p in manifest["points"].items()}
    front = _front(recipe, inputs, measured["full"]["latency_ms"])
    digest = _seal(folder, {**manifest, "points": measured, "front": front, "measured_on": machine.describe()})
    return {
        "digest": digest,
        "passed": all(v["passed"] for v in verdicts),
        "gates": verdicts,
        "variants": metrics["variants"],
        "findings": metrics["findings"],
    }


def _content(recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> dict[str, Any]:
    """Write model and tokenizer, and a first manifest that lets `Runtime` open them."""
    splits = Splits.of(inputs["data"])
    model = inputs["checkpoint"].path / MODEL
    shutil.copytree(model, folder, ignore=lambda _, names: [n for n in names if n.endswith(".safetensors")])
    tell_choice(folder / "config.json", task_of(recipe))
    points = lengths_of(inputs)
    default = recipe.default_point or ("balanced" if "frontier" in inputs else "full")
    graph = onnx.load(deployed(inputs).path / "model.onnx")
    settle_tokenizer(folder, task_of(recipe), [value.name for value in graph.graph.input], fixed=recipe.export.halves)
    lengths = points[default]
    if lengths is not None:
        set_default_lengths(graph, lengths)
    onnx.save(graph, folder / "model.onnx")
    halves = _halves(recipe, inputs, folder) if recipe.export.halves else None
    if "members" in inputs and (inputs["members"].path / MEMBERS).exists():
        shutil.copytree(inputs["members"].path / MEMBERS, folder / MEMBERS)
    manifest = {
        "format": FORMAT,
        "name": recipe.name,
        "task": recipe.task.type,
        "metric": recipe.task.metric,
        "task_settings": recipe.task.settings,
        "labels": list(splits.labels),
        "pairs": recipe.columns().text_pair is not None,
        "max_length": splits.max_length,
        "stride": splits.stride,
        "pad_id": pad_id_of(model),
        "single": is_single(inputs),
        **backends.choose(recipe, inputs, folder / "model.onnx", points[default], log),
        "isa": deployed(inputs).metrics.get("isa"),
        "points": {name: {"lengths": lengths, "score": 0.0, "latency_ms": 0.0} for name, lengths in points.items()},
        "front": [],
        "default_point": default,
        "cascade": _cascade(inputs),
        "halves": halves,
        "default_policy": "cascade" if recipe.cascade and recipe.cascade.default else None,
        "target": recipe.target.model_dump(),
        "versions": machine.versions("onnxruntime", "tokenizers", "numpy"),
    }
    _seal(folder, manifest)
    return manifest


def _front(recipe: Recipe, inputs: Inputs, full_ms: float) -> list[dict[str, Any]]:
    """Return what a search found worth deploying, fastest first: scores of the search split, medians beside that of full length here.

    Empty where it was searched by multiply-accumulates, which tell no time.
    """
    if recipe.search is None or recipe.search.latency != "measured":
        return []
    found = json.loads((inputs["frontier"].path / "frontier.json").read_text(encoding="utf-8"))
    distinct = {tuple(one["lengths"]): one for one in (*found["points"].values(), *found["front"])}
    over = full_ms / found["points"]["full"]["median_ms"]
    told = [{"lengths": one["lengths"], "score": one["score"], "latency_ms": one["median_ms"] * over} for one in distinct.values()]
    return sorted(told, key=lambda one: one["latency_ms"])


def _halves(recipe: Recipe, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Put front and back into the bundle, and return whose outputs the front makes."""
    assert recipe.recycle is not None
    for name in (FRONT, BACK):
        shutil.copyfile(deployed(inputs).path / name, folder / name)
    precision = "int8" if "int8_graph" in inputs else "float32"
    told = {"layer": inputs["float_graph"].metrics["halves"]["layer"], "precision": precision, "dtype": recipe.recycle.dtype}
    return {**told, "front": sha256(folder / FRONT), "tokenizer": sha256(folder / "tokenizer.json")}


def _cascade(inputs: Inputs) -> dict[str, Any] | None:
    """Return what a runtime needs of the policy: members, thresholds, confidence."""
    if "policy" not in inputs:
        return None
    policy = json.loads((inputs["policy"].path / "policy.json").read_text(encoding="utf-8"))
    return {key: policy[key] for key in ("confidence", "thresholds", "members")}


def _seal(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Write manifest.json with the hash of every file and the digest of those that hold no times; return the digest."""
    files = files_of(folder)
    digest = digest_of({name: sha for name, sha in files.items() if name not in MEASURED})
    sealed = {**manifest, "files": files, "digest": digest}
    write_json(folder / "manifest.json", {**sealed, "self": seal(json.loads(json.dumps(sealed)))})
    return digest
