"""Bundle: everything that a deployment needs, measured on the shipped bytes, with a report and the gates' verdicts.

What:     model, tokenizer and manifest; every row of the result table is measured on the test split, INT8 rows through `Runtime`.
Formula:  speed-up = the teacher's median latency over the row's, both from one interleaved run at the target's threads and batch 1.
Defaults: 95 % bootstrap intervals; latencies on up to 64 texts that spread over the test split's lengths.
Limits:   latencies hold for the machine that metrics.json describes.
"""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from compressor import checkpoint, machine
from compressor.artifact import Artifact, digest_of, files_of, write_json
from compressor.data import Example
from compressor.gates import Variant, gains, judge
from compressor.graphs import set_default_lengths
from compressor.latency import Latency, Run, interleaved, sample
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.report import render_card, render_report
from compressor.runtime import FORMAT, Graph, Runtime, seal
from compressor.tasks import Floats, interval
from compressor.training import Encoded

FOLDER = "bundle"
MEASURED = frozenset({"metrics.json", "gates.json", "report.html", "README.md"})
"""Files that hold times: they have a hash each, but no part in the bundle's digest."""
LATENCY_TEXTS = 64


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the bundle folder and return its digest, the result table and the verdicts."""
    folder = out / FOLDER
    manifest = _content(recipe, inputs, folder)
    variants = _measure(recipe, inputs, folder, manifest, log)
    chosen, teacher, student = (variants[n] for n in (_row(manifest["default_point"], inputs), "teacher fp32", "student fp32"))
    verdicts = [dataclasses.asdict(v) for v in judge(recipe.gates, chosen, {"teacher": teacher, "student": student})]
    metrics = _metrics(recipe, inputs, manifest, list(variants.values()), verdicts)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "gates.json", verdicts)
    (folder / "report.html").write_text(render_report(metrics), encoding="utf-8")
    (folder / "README.md").write_text(render_card(metrics), encoding="utf-8")
    points = {n: {"lengths": p["lengths"], **_found(variants[_row(n, inputs)])} for n, p in manifest["points"].items()}
    digest = _seal(folder, {**manifest, "points": points, "measured_on": machine.describe()})
    return {
        "digest": digest,
        "passed": all(v["passed"] for v in verdicts),
        "gates": verdicts,
        "variants": metrics["variants"],
        "findings": metrics["findings"],
    }


def _row(point: str, inputs: Inputs) -> str:
    return f"{'INT8' if 'int8_graph' in inputs else 'fp32'} {point}"


def _found(variant: Variant) -> dict[str, float]:
    return {"score": variant.score, "latency_ms": variant.p50_ms}


def _content(recipe: Recipe, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Write model and tokenizer, and a first manifest that lets `Runtime` open them."""
    splits = checkpoint.Splits.of(inputs["data"])
    model = inputs["checkpoint"].path / checkpoint.MODEL
    shutil.copytree(model, folder, ignore=lambda _, names: [n for n in names if n.endswith(".safetensors")])
    points = _points(inputs)
    default = recipe.default_point or ("balanced" if "frontier" in inputs else "full")
    graph = onnx.load(_graph(inputs).path / "model.onnx")
    lengths = points[default]
    if lengths is not None:
        set_default_lengths(graph, lengths)
    onnx.save(graph, folder / "model.onnx")
    manifest = {
        "format": FORMAT,
        "name": recipe.name,
        "task": recipe.task.type,
        "metric": recipe.task.metric,
        "labels": list(splits.labels),
        "max_length": splits.max_length,
        "pad_id": checkpoint.pad_id_of(model),
        "single": "int8_graph" in inputs,
        "points": {name: {"lengths": lengths, "score": 0.0, "latency_ms": 0.0} for name, lengths in points.items()},
        "default_point": default,
        "target": recipe.target.model_dump(),
        "versions": machine.versions("onnxruntime", "tokenizers", "numpy"),
    }
    _seal(folder, manifest)
    return manifest


def _points(inputs: Inputs) -> dict[str, list[int] | None]:
    """Return the operating points: the search's, else full length alone."""
    if "frontier" in inputs:
        found = json.loads((inputs["frontier"].path / "frontier.json").read_text(encoding="utf-8"))["points"]
        return {name: point["lengths"] for name, point in found.items()}
    return {"full": None}


def _graph(inputs: Inputs) -> Artifact:
    return inputs.get("int8_graph") or inputs["float_graph"]


def _seal(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Write manifest.json with the hash of every file and the digest of those that hold no times; return the digest."""
    files = files_of(folder)
    digest = digest_of({name: sha for name, sha in files.items() if name not in MEASURED})
    sealed = {**manifest, "files": files, "digest": digest}
    write_json(folder / "manifest.json", {**sealed, "self": seal(json.loads(json.dumps(sealed)))})
    return digest


def _measure(recipe: Recipe, inputs: Inputs, folder: Path, manifest: Mapping[str, Any], log: Progress) -> dict[str, Variant]:
    """Score and time every row: the teacher and the student in fp32, then each operating point of the bundle."""
    splits, task = checkpoint.Splits.of(inputs["data"]), checkpoint.task_of(recipe)
    examples = splits.examples("test")
    data = {kind: splits.encoded("test", task, inputs[kind].path / checkpoint.MODEL) for kind in ("teacher", "checkpoint")}  # type: ignore[index]
    cores, floats = machine.describe()["cores"], inputs["float_graph"].path
    runtime = Runtime(folder, threads=cores)
    timed = {n: Graph(p, recipe.target.threads, single=False, pad_id=data[k].pad_id) for n, p, k in _files(inputs, folder)}
    log.note(f"scores of {2 + len(runtime.points)} variants on {len(examples)} test examples")
    logits: dict[str, Floats] = {
        name: Graph(floats / file, cores, single=False, pad_id=data[kind].pad_id).logits(data[kind].encodings)
        for name, file, kind in (("teacher fp32", "teacher.onnx", "teacher"), ("student fp32", "model.onnx", "checkpoint"))
    }
    lengths: dict[str, tuple[int, ...] | None] = dict.fromkeys(logits)
    for point in runtime.points.values():
        logits[_row(point.name, inputs)] = runtime.logits(examples, point)
        lengths[_row(point.name, inputs)] = point.lengths
    log.note(f"latencies, interleaved, {recipe.target.threads} thread{'s' * (recipe.target.threads > 1)}, batch 1")
    times = _latencies(timed, data, lengths)
    sizes = {n: p.stat().st_size / 1e6 for n, p, _ in _files(inputs, folder)}
    gold = data["checkpoint"].labels
    return {
        name: Variant(
            name,
            task.score(found, gold, recipe.task.metric),
            interval(task, found, gold, recipe.task.metric),
            times[name].p50_ms,
            times[name].p90_ms,
            sizes.get(name, sizes["bundle"]),
            lengths[name],
        )
        for name, found in logits.items()
    }


def _files(inputs: Inputs, folder: Path) -> list[tuple[str, Path, str]]:
    floats = inputs["float_graph"].path
    rows = (("teacher fp32", floats / "teacher.onnx", "teacher"), ("student fp32", floats / "model.onnx", "checkpoint"))
    return [*rows, ("bundle", folder / "model.onnx", "checkpoint")]


def _latencies(
    graphs: Mapping[str, Graph], data: Mapping[str, Encoded], lengths: Mapping[str, tuple[int, ...] | None]
) -> dict[str, Latency]:
    """Time all rows in turn on the same texts; the teacher reads them with its own tokenizer."""
    position = {id(e): i for i, e in enumerate(data["checkpoint"].encodings)}
    teacher = data["teacher"].encodings

    def runner(name: str) -> Run:
        if name == "teacher fp32":
            return lambda e: graphs[name].run([teacher[position[id(e)]]])
        graph = graphs.get(name, graphs["bundle"])
        return lambda e: graph.run([e], lengths[name])

    return interleaved({name: runner(name) for name in lengths}, sample(data["checkpoint"].encodings, LATENCY_TEXTS))


def _metrics(
    recipe: Recipe, inputs: Inputs, manifest: Mapping[str, Any], variants: list[Variant], verdicts: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return metrics.json: all that the report and the model card show."""
    teacher, student, rows = variants[0], variants[1], {v.name: v for v in variants}
    stages = list(_ancestors(inputs))
    frontier = json.loads((inputs["frontier"].path / "frontier.json").read_text(encoding="utf-8")) if "frontier" in inputs else {}
    full, default = rows[_row("full", inputs)], rows[_row(manifest["default_point"], inputs)]
    chain = [("finetune", teacher), ("distill", student), ("quantize", full), (f"search: {manifest['default_point']}", default)]
    asked = {s["name"] for s in stages}
    return {
        "name": recipe.name,
        "task": recipe.task.type,
        "metric": recipe.task.metric,
        "labels": manifest["labels"],
        "seed": recipe.seed,
        "max_length": manifest["max_length"],
        "default_point": manifest["default_point"],
        "data": _data_facts(inputs),
        "target": recipe.target.model_dump(),
        "machine": machine.describe(),
        "versions": machine.versions("torch", "transformers", "onnx", "onnxruntime", "tokenizers"),
        "variants": [{**dataclasses.asdict(v), "speedup": teacher.p50_ms / v.p50_ms} for v in variants],
        "front": frontier.get("front", []),
        "evaluated": frontier.get("evaluated", []),
        "points": {name: {**p, **_found(rows[_row(name, inputs)])} for name, p in manifest["points"].items()},
        "stages": stages,
        "gates": verdicts,
        "findings": list(_findings(inputs, rows, stages)),
        "stage_gains": gains([link for link in chain if link[0].split(":")[0] in asked], {s["name"]: s["seconds"] for s in stages}),
    }


def _ancestors(inputs: Inputs) -> list[dict[str, Any]]:
    """Return every stage that led here, in the order they ran, from the manifests' own links."""
    found: dict[str, dict[str, Any]] = {}

    def visit(artifact: Artifact) -> None:
        for link in artifact.manifest["inputs"].values():
            visit(Artifact(artifact.path.parent / link["path"]))
        metrics, name = artifact.metrics, artifact.manifest["stage"]
        summary = f"score {metrics['validation_score']:.4f} on validation" if "validation_score" in metrics else ""
        found.setdefault(name, {"name": name, "seconds": metrics["seconds"], "summary": summary, "metrics": dict(metrics)})

    for artifact in inputs.values():
        visit(artifact)
    return list(found.values())


def _data_facts(inputs: Inputs) -> dict[str, Any]:
    splits, folder = checkpoint.Splits.of(inputs["data"]), inputs["checkpoint"].path / checkpoint.MODEL
    tokenizer = checkpoint.tokenizer_of(folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(splits.max_length)
    facts = {}
    for name in ("train", "validation", "search", "test"):
        examples = splits.examples(name)
        first: list[Example] = list(itertools.islice(examples, 2000))
        lengths = sorted(
            len(e.ids) for e in tokenizer.encode_batch([x.text if x.text_pair is None else (x.text, x.text_pair) for x in first])
        )
        facts[name] = {
            "examples": len(examples),
            "median_tokens": lengths[len(lengths) // 2],
            "p90_tokens": lengths[len(lengths) * 9 // 10],
        }
    return facts


def _findings(inputs: Inputs, rows: Mapping[str, Variant], stages: list[dict[str, Any]]) -> list[str]:
    """Say what a user should know before trusting or repeating this build: what did not pay, what was not certain."""
    found, full = [], rows[_row("full", inputs)]
    student = rows["student fp32"]
    if "frontier" in inputs:
        for point in ("balanced", "fast"):
            ratio, lost = full.p50_ms / rows[_row(point, inputs)].p50_ms, full.score - rows[_row(point, inputs)].score
            verdict = "pays little here" if ratio < 1.15 else "pays"
            found.append(
                f"Length adaptation {verdict}: {point} is {ratio:.2f}x full length at {-lost * 100:+.1f} points on the test split."
            )
    if full is not student and "int8_graph" in inputs:
        ratio = student.p50_ms / full.p50_ms
        found.append(
            f"INT8 is {ratio:.2f}x fp32 at {(full.score - student.score) * 100:+.1f} points{'' if ratio > 1 else ': it does not pay here'}."
        )
    for stage in stages:
        if "before" in stage["metrics"]:
            before, after = stage["metrics"]["before"], stage["metrics"]["after"]
            whole, smallest = ((after[k] - before[k]) * 100 for k in ("full", "smallest"))
            gained = f"full length by {whole:+.1f} points and the smallest sub-model by {smallest:+.1f}"
            found.append(f"LengthDrop training moved {gained} (validation split), for {stage['seconds']:.0f} s.")
    low, high = full.score_interval
    found.append(f"A score on this test split is uncertain by about ±{(high - low) * 50:.1f} points; smaller differences may be chance.")
    return found
