"""The result table: every row scored on the whole test split and timed on the same texts, in one interleaved run."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressor import machine
from compressor.data import Example
from compressor.encoded import Encoded
from compressor.gates import Variant
from compressor.halves import BACK, FRONT
from compressor.inputs import Inputs, Kind, is_single
from compressor.latency import Run, interleaved, requests, tokens_of
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.runtime import Runtime
from compressor.scores import Metric, certain, changed, resampled
from compressor.session import Backend, Graph
from compressor.splits import MODEL, Splits, task_of
from compressor.tokens import Floats, Tokens

LATENCY_TEXTS = 64
Lengths = tuple[int, ...] | None
TEACHER, STUDENT = "teacher fp32", "student fp32"
RECYCLED = ("new text", "known text")
"""What the table calls texts that a store does not know and those that it does."""


def row_name(point: str, inputs: Inputs) -> str:
    """Return what the table calls an operating point of the bundle."""
    return f"{'INT8' if 'int8_graph' in inputs else 'fp32'} {point}"


class Measured(NamedTuple):
    """The table's rows by name, and what each member of the cascade answered of the test split, if there is one."""

    variants: dict[str, Variant]
    shares: list[dict[str, Any]]


def measure(recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> Measured:
    """Score and time every row: the teacher and the student in fp32, each operating point of the bundle, then its cascade."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    examples = list(splits.examples("test"))
    kinds: tuple[Kind, ...] = ("teacher", "checkpoint")
    data: dict[str, Encoded] = {kind: splits.encoded("test", task, inputs[kind].path / MODEL) for kind in kinds}
    cores, floats = machine.describe()["cores"], inputs["float_graph"].path
    runtime = Runtime(folder, threads=cores)
    points = {row_name(point.name, inputs): point for point in runtime.points.values()}
    cascade = row_name("cascade", inputs) if runtime.manifest["cascade"] else None
    log.note(f"scores of {2 + len(points) + (cascade is not None)} variants on {len(examples)} test examples")
    outcomes: dict[str, Floats] = {
        name: data[kind].outcomes(Graph(floats / file, single=False, pad_id=data[kind].pad_id, workers=cores).logits(data[kind].tokens))
        for name, file, kind in ((TEACHER, "teacher.onnx", "teacher"), (STUDENT, "model.onnx", "checkpoint"))
    }
    outcomes |= {name: runtime.outcomes(examples, point) for name, point in points.items()}
    metric, shares, who = task.metrics[recipe.task.metric], list[dict[str, Any]](), None
    lengths: dict[str, Lengths] = dict.fromkeys(outcomes) | {name: point.lengths for name, point in points.items()}
    if cascade:
        outcomes[cascade], who, _ = runtime.routed_outcomes(examples)
        shares = _shares([member.name for member in runtime.cascade.members], who, outcomes[cascade], metric)
    asked = requests(data["checkpoint"].lengths.tolist(), LATENCY_TEXTS, recipe.target.batch, who)
    runs = _runs(recipe, inputs, folder, data, lengths, asked, runtime.backend)
    sizes = {name: path.stat().st_size / 1e6 for name, path, _ in _files(inputs, folder)}
    if cascade:
        runs[cascade] = _routes(Runtime(folder, recipe.target.threads), [[examples[row] for row in rows] for rows in asked])
        sizes[cascade] = sum(p.stat().st_size for p in folder.rglob("*.onnx")) / 1e6
    threads = recipe.target.threads
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:  # beside the bundle: a small /tmp may not hold what is known
        if runtime.manifest["halves"]:
            recycling = Runtime(folder, threads, store=scratch)
            new, known = (row_name(name, inputs) for name in RECYCLED)
            found = {new: recycling.outcomes(examples), known: recycling.outcomes(examples)}  # the second from the store
            store = recycling.store
            if store is not None and len(store) and store.filling:  # to count what it keeps waits until all is written
                outcomes |= found
                runs |= {new: _reads(recycling, data["checkpoint"], asked, new=True), known: _reads(recycling, data["checkpoint"], asked)}
                sizes |= dict.fromkeys((new, known), sum((folder / half).stat().st_size for half in (FRONT, BACK)) / 1e6)
            else:
                log.warn(f"{', '.join(found)}: left out, because the store under {folder.parent} did not keep the test split")
        log.note(f"latencies, interleaved, {threads} thread{'s' * (threads > 1)}, batch {recipe.target.batch}")
        times = interleaved(runs, range(len(asked)))
    resamples = {name: resampled(metric, own) for name, own in outcomes.items()}
    references = {name: resamples[name] for name in (TEACHER, STUDENT, row_name("full", inputs))}
    rows = dict[str, Variant]()
    for name, own in outcomes.items():
        took, size, sure = times[name], sizes.get(name, sizes["bundle"]), certain(resamples[name], len(examples))
        changes = {other: changed(resamples[name], scores, len(examples)) for other, scores in references.items()}
        facts = (name, metric(own), sure, took.p50_ms, took.p90_ms, size, took.mean_ms, lengths.get(name))
        rows[name] = Variant(*facts, routed=name == cascade, changes=changes)
    return Measured(rows, shares)


def _shares(members: Sequence[str], who: Sequence[str], outcomes: Floats, metric: Metric) -> list[dict[str, Any]]:
    """Return the share of examples that each member answers, and its score on them."""
    found = list[dict[str, Any]]()
    for member in members:
        own = outcomes[np.array([name == member for name in who])]
        found.append({"member": member, "share": len(own) / len(who), "score": metric(own) if len(own) else None})
    return found


def _files(inputs: Inputs, folder: Path) -> list[tuple[str, Path, str]]:
    floats = inputs["float_graph"].path
    rows = ((TEACHER, floats / "teacher.onnx", "teacher"), (STUDENT, floats / "model.onnx", "checkpoint"))
    return [*rows, ("bundle", folder / "model.onnx", "checkpoint")]


def _runs(
    recipe: Recipe,
    inputs: Inputs,
    folder: Path,
    data: Mapping[str, Encoded],
    lengths: Mapping[str, Lengths],
    asked: Sequence[Sequence[int]],
    backend: Backend,
) -> dict[str, Run]:
    """Return what answers the same requests for each row of one graph; the teacher reads them with its own tokenizer."""
    how: dict[str, dict[str, Any]] = {"bundle": {"single": is_single(inputs), "backend": backend}}
    graphs = {
        name: Graph(path, recipe.target.threads, pad_id=data[kind].pad_id, **how.get(name, {"single": False}))
        for name, path, kind in _files(inputs, folder)
    }

    def runner(name: str) -> Run:
        graph, own = graphs.get(name, graphs["bundle"]), data["teacher" if name == TEACHER else "checkpoint"]
        texts = tokens_of(own, asked)
        return lambda number: graph.logits(texts[number], lengths[name])

    return {name: runner(name) for name in lengths}


def _reads(runtime: Runtime, data: Encoded, asked: Sequence[Sequence[int]], *, new: bool = False) -> Run:
    """Return what answers the same requests through a store; new ones differ in a token each time, so that the store knows none of them."""
    texts, rng = tokens_of(data, asked), np.random.default_rng(0)

    def changed(tokens: Tokens) -> Tokens:
        ids, inner = tokens.ids.copy(), tokens.starts[:-1] + tokens.lengths // 2
        ids[inner], ids[inner - 1] = rng.choice(data.tokens.ids, (2, len(tokens)))
        return Tokens(ids, tokens.segments, tokens.starts)

    return lambda number: runtime.logits(changed(texts[number]) if new else texts[number])


def _routes(runtime: Runtime, asked: Sequence[Sequence[Example]]) -> Run:
    """Return what answers the same requests by the cascade, tokenized beforehand like all others."""
    ready = [runtime.cascade.having_read(examples) for examples in asked]
    return lambda number: list(ready[number].route(runtime.task, asked[number]))
