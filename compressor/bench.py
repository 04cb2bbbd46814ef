"""Time models beside each other: bundles at their operating points, and any other encoder's ONNX file.

What:     every variant runs each workload in turn, round by round, in another order each time; no run is left out.
Workloads: texts one by one, as a server gets them; all of them at once, as a job reads them; and batches of a fixed shape.
Formula:  speed-ups are of medians over the first row's; a cascade's of means, because its median tells nothing of the texts that go on.
Limits:   one process; the ids of fixed shapes are random, which no kernel's time depends on, so a cascade is timed on texts alone; of what
          reads pairs, the first text of a shape is as long as a usual question.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor import machine
from compressor.data import Example
from compressor.doctor import check_load, machine_load
from compressor.errors import RecipeError, UnfitError, one_line
from compressor.latency import Run, sample, timed
from compressor.runtime import Given, Runtime
from compressor.session import Backend, Graph, check_agreement
from compressor.tokens import Tokens

PACKAGES = ("encoder-compressor", "onnxruntime", "numpy")
TEXTS = 64
"""Texts of a stream that are timed: they spread evenly over its lengths."""
FIRST_ID, IDS = 5, 25
"""Where random token ids lie: in the smallest vocabulary too."""
QUESTION = 16
"""Tokens of the first text of a pair of a fixed shape; a quarter, where that is less."""
MOST = 10**8
"""Tokens of the largest batch of a shape."""
ENOUGH = 100
"""Times from which one in a hundred can be told."""
LENGTHS = (32, 128, 384)
"""Tokens of the texts that are timed where nobody says otherwise."""
UNTOLD = 128
"""Tokens that any encoder reads, where no bundle says how many."""
LONGEST_MADE_UP = 64
"""Tokens of the longest text that backends must agree on, where no bundle says what a graph reads."""
Lengths = tuple[int, ...] | None
POLICY = "cascade"


@dataclass(frozen=True)
class Workload:
    """What one variant runs in turn: batches of so many texts in all."""

    name: str
    batches: Sequence[Tokens]
    texts: int
    examples: Sequence[Sequence[Example]] = ()
    """What the batches say, where they are texts and not random ids: a cascade decides by it."""


@dataclass(frozen=True)
class Model:
    """A graph to be timed at each of these length configurations; an .onnx file has no runtime."""

    path: Path
    file: Path
    points: Mapping[str, Lengths]
    runtime: Runtime | None
    cascade: bool = False
    """Whether the bundle's cascade is timed too."""
    backend: Backend = "onnxruntime"

    @property
    def reads_pairs(self) -> bool:
        """Whether a text is two, as a question and its context are."""
        return self.runtime is not None and bool(self.runtime.manifest.get("pairs"))


def bench(
    paths: Sequence[Path],
    lines: Sequence[str] | None,
    shapes: Sequence[str],
    threads: Sequence[int],
    points: Sequence[str],
    backends: Sequence[Backend],
    rounds: int,
) -> dict[str, Any]:
    """Return the machine, and a row for each variant, workload and number of threads; speed-ups are over the first variant.

    Without texts and shapes, the usual shapes that all models read are timed.

    Raises:
        BundleError: a bundle is damaged, or lacks a point.
        RecipeError: a file is no encoder in ONNX, or a workload does not fit a model.
        UnfitError: a backend is not installed, or its answers are not those of onnxruntime.
    """
    models = [model_of(path, points, backend) for path in paths for backend in backends or (None,)]
    chosen = None if lines is None else _chosen(lines, models)
    asked = shapes or (_usual(models) if lines is None else ())
    read = {
        model.path: [*_streams(model, models, chosen), *(batch_of(shape, pairs=model.reads_pairs) for shape in asked)] for model in models
    }
    for model in models:
        for workload in read[model.path]:
            _check_length(model, workload)
            if POLICY in points and not workload.examples:
                raise RecipeError(f"{workload.name}: a cascade decides by texts, not by random ids: give --texts and no --shape")
    rows = [row for count in threads for row in _rows(models, read, count, rounds)]
    facts = {"machine": machine.describe(), "versions": machine.versions(*PACKAGES), "rounds": rounds}
    return {**facts, "rows": rows, "findings": load_findings()}


def _usual(models: Sequence[Model]) -> list[str]:
    """Return one text of each usual length that all models read; of the longest, where they read less than any."""
    longest = min((model.runtime.max_length for model in models if model.runtime), default=UNTOLD)
    return [f"1x{length}" for length in LENGTHS if length <= longest] or [f"1x{longest}"]


def batch_of(shape: str, *, pairs: bool = False) -> Workload:
    """Return a batch of texts of equal length, such as 8x128; of pairs, the longer part of each is its second text.

    Raises:
        RecipeError: this is no shape.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)
    if not found:
        raise RecipeError(f"{shape!r} is no shape; write texts x tokens, as 8x128")
    count, length = int(found[1]), int(found[2])
    if count * length > MOST:
        raise RecipeError(f"{shape} has more than {MOST:,} tokens; choose a smaller one")
    ids = np.random.default_rng(0).integers(FIRST_ID, IDS, count * length, dtype=np.int32)
    segments = np.tile(np.arange(length) >= min(QUESTION, max(1, length // 4)), count) & pairs
    return Workload(shape, [Tokens(ids, segments.astype(np.int8), np.arange(count + 1) * length)], count)


def load_findings() -> list[str]:
    """Say that this machine is busy, if it is: times then mean less."""
    return [f"load {check.detail}; {check.remedy}" for check in check_load(machine_load()) if check.status != "ok"]


def model_of(path: Path, points: Sequence[str], backend: Backend | None = None) -> Model:
    """Return a bundle at these operating points (none: all, and its cascade), or an .onnx file.

    Raises:
        BundleError: a bundle is damaged, or lacks a point.
        RecipeError: there is no such file.
    """
    if path.suffix != ".onnx":
        runtime = Runtime(path, backend=backend)
        lengths = {name: runtime.point(name).lengths for name in points or runtime.points if name != POLICY}
        calibrated = runtime.manifest.get("cascade") is not None and runtime.backend == runtime.calibrated_in
        cascade = runtime.cascade is not None if POLICY in points else not points and calibrated
        return Model(path, path / "model.onnx", lengths, runtime, cascade, runtime.backend)
    if not path.exists():
        raise RecipeError(f"{path}: no such file; name a bundle's folder or an .onnx file")
    return Model(path, path, {"": None}, None, backend=backend or "onnxruntime")


def _reader(models: Sequence[Model]) -> Runtime:
    """Return the first bundle, which reads texts for .onnx files too."""
    for model in models:
        if model.runtime:
            return model.runtime
    raise RecipeError("texts need a bundle, whose tokenizer reads them; name one beside the .onnx files, or give shapes alone")


def _chosen(lines: Sequence[str], models: Sequence[Model]) -> list[Given]:
    """Return texts that spread evenly over all lengths."""
    if not lines:
        raise RecipeError("there are no texts to time; give some, or shapes alone")
    reader = _reader(models)
    texts = [reader.given(line) for line in lines]
    return [texts[row] for row in sample([len(tokens.ids) for tokens in reader.tokens(texts)], TEXTS)]


def _streams(model: Model, models: Sequence[Model], texts: Sequence[Given] | None) -> list[Workload]:
    """Return the texts one by one and all at once, as this model reads them."""
    if texts is None:
        return []
    reader = model.runtime or _reader(models)
    tokens, examples = reader.tokens(texts), [reader.example(text) for text in texts]
    alone = Workload("one by one", tokens, len(texts), [[example] for example in examples])
    return [alone, Workload("all at once", [Tokens.joined(tokens)], len(texts), [examples])]


def _rows(models: Sequence[Model], read: Mapping[Path, Sequence[Workload]], threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    named = list(zip(_names(models), models, [graph_of(model, threads) for model in models], strict=True))
    for number in range(len(read[models[0].path])):
        workloads = {path: own[number] for path, own in read.items()}
        for _, model, graph in named:
            _check(model, graph, workloads[model.path])
        runs = {
            f"{name} {point}".strip(): _runner(graph, workloads[model.path], lengths, whole=model.runtime is None)
            for name, model, graph in named
            for point, lengths in model.points.items()
        }
        routes = {
            f"{name} {POLICY}": _router(model, threads, workloads[model.path].examples)
            for name, model, _ in named
            if model.cascade and workloads[model.path].examples
        }
        yield from _told(runs | routes, routes.keys(), workloads[models[0].path], threads, rounds)


def _names(models: Sequence[Model]) -> list[str]:
    """Return what the rows call each model: its folder's name, as long as that tells it apart, and its backend where there are several."""
    paths, several = {model.path for model in models}, len({model.backend for model in models}) > 1
    short = Counter(path.name for path in paths)
    names = [model.path.name if short[model.path.name] == 1 else str(model.path) for model in models]
    return [f"{name} {model.backend}" if several else name for name, model in zip(names, models, strict=True)]


def graph_of(model: Model, threads: int) -> Graph:
    """Open a model's graph.

    Raises:
        RecipeError: its backend cannot.
        UnfitError: the backend is not installed, or its answers are not those of onnxruntime.
    """
    single, pad_id = (model.runtime.manifest["single"], model.runtime.manifest["pad_id"]) if model.runtime else (False, 0)
    try:
        graph = Graph(model.file, threads, single=single, pad_id=pad_id, backend=model.backend)
        if model.runtime is None:  # a bundle's runtime has looked already
            check_agreement(graph, LONGEST_MADE_UP)
        return graph
    except UnfitError:
        raise
    except Exception as error:  # a backend's errors have no class in common
        raise RecipeError(f"{model.file}: {model.backend} cannot open it: {one_line(error)}; is it an encoder?") from None


def _check_length(model: Model, workload: Workload) -> None:
    longest = max(int(batch.lengths.max()) for batch in workload.batches)
    if model.runtime and longest > model.runtime.max_length:
        raise RecipeError(f"{workload.name}: {model.path} reads {model.runtime.max_length} tokens at most; choose a shorter shape")


def _check(model: Model, graph: Graph, workload: Workload) -> None:
    try:
        _runner(graph, workload, None, whole=model.runtime is None)(-1)
    except Exception as error:
        told = one_line(error)
        raise RecipeError(
            f"{model.file}: {model.backend} cannot run {workload.name} in it: {told}; is it an encoder of these tokens?"
        ) from None


def _runner(graph: Graph, workload: Workload, lengths: Lengths, *, whole: bool) -> Run:
    """Return what answers a batch: a bundle as its runtime does, in runs that suit its backend; `whole` runs a shape as it is told."""
    batches = workload.batches
    return lambda row: graph.run(batches[row], lengths) if whole and not workload.examples else graph.logits(batches[row], lengths)


def _router(model: Model, threads: int, batches: Sequence[Sequence[Example]]) -> Run:
    runtime = Runtime(model.path, threads, backend=model.backend)
    ready = [runtime.cascade.having_read(examples) for examples in batches]
    return lambda row: list(ready[row].route(runtime.task, batches[row]))


def _told(runs: Mapping[str, Run], routed: Set[str], workload: Workload, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    times = timed(runs, range(len(workload.batches)), rounds)
    first = times[next(iter(runs))]
    for name, found in times.items():
        p50, p90, p99 = (float(np.percentile(found, share)) for share in (50, 90, 99))
        rare = p99 if len(found) >= ENOUGH else None  # of fewer times it would be the largest by another name
        rate = 1000 * workload.texts * rounds / float(found.sum())
        row: dict[str, Any] = {"model": name, "workload": workload.name, "threads": threads, "p50_ms": p50, "p90_ms": p90, "p99_ms": rare}
        faster = first.mean() / found.mean() if name in routed else np.median(first) / p50
        yield {**row, "texts_per_second": rate, "speedup": float(faster)}
