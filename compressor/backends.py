"""Which backend runs a bundle's graph: the fastest of those whose answers are onnxruntime's, measured on the build machine.

Limits: median times of texts whose length was read before; OpenVINO takes longer for the first text of a length.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from compressor import machine
from compressor.encoded import Encoded
from compressor.errors import UnfitError, install
from compressor.inputs import Inputs, is_single
from compressor.latency import interleaved, requests, tokens_of
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.session import Backend, Graph, check_agreement
from compressor.splits import MODEL, Splits, task_of
from compressor.tokens import Tokens

REQUESTS = 32
NOISE = 0.003
"""Scores on validation that differ by less are alike."""
Lengths = Sequence[int] | None


def choose(recipe: Recipe, inputs: Inputs, file: Path, lengths: Lengths, log: Progress) -> dict[str, Any]:
    """Return the backend of a graph on the recipe's target and, where there was a choice, each one's median time, or why it is left out.

    All read at the lengths of the point that clients get who name none.

    Raises:
        UnfitError: the backend that the recipe names is not installed, or answers otherwise than onnxruntime.
    """
    target = recipe.target
    if target.backend == "onnxruntime":
        return {"backend": "onnxruntime", "backends": {}}
    splits = Splits.of(inputs["data"])
    data = splits.encoded("validation", task_of(recipe), inputs["checkpoint"].path / MODEL)
    graphs, found = dict[str, Graph](), dict[str, Any]()
    for name in _candidates(recipe, log):
        try:
            graph = Graph(file, target.threads, single=is_single(inputs), pad_id=data.pad_id, backend=name)
            check_agreement(graph, splits.max_length)
            graphs[name] = graph
        except UnfitError as error:
            if target.backend == name:
                raise
            found[name] = {"refused": str(error).removeprefix(f"{file}: ")}
    if target.backend == "auto":
        found |= _worse(graphs, data, lengths, recipe.task.metric)
        graphs = {name: graph for name, graph in graphs.items() if name not in found}
    log.note(f"latencies in {' and '.join(graphs)}, interleaved")
    asked = requests(data.lengths.tolist(), REQUESTS, target.batch)
    found |= _milliseconds(graphs, tokens_of(data, asked), lengths)
    fastest = min(graphs, key=lambda name: found[name]["p50_ms"])
    return {"backend": fastest if target.backend == "auto" else target.backend, "backends": found}


def _candidates(recipe: Recipe, log: Progress) -> Sequence[Backend]:
    if recipe.target.backend == "auto" and recipe.cascade is not None:
        log.warn("target.backend: auto leaves openvino out: the cascade was calibrated in onnxruntime; name openvino to calibrate it there")
        return ["onnxruntime"]
    if recipe.target.backend == "auto" and not machine.installed("openvino"):
        log.warn(f"target.backend: auto leaves openvino out: it is not installed ({install('openvino')})")
        return ["onnxruntime"]
    return get_args(Backend)


def _worse(graphs: Mapping[str, Graph], data: Encoded, lengths: Lengths, metric: str) -> dict[str, Any]:
    """Return the backends that score less than onnxruntime on validation, beyond noise, and what to say of it."""
    if len(graphs) == 1:
        return {}
    scores = {name: data.score(graph.logits(data.tokens, lengths), metric) for name, graph in graphs.items()}
    usual = scores["onnxruntime"]
    told = f"where onnxruntime scores {usual:.4f} on validation"
    return {name: {"refused": f"{name} scores {own:.4f} {told}"} for name, own in scores.items() if own < usual - NOISE}


def _milliseconds(graphs: Mapping[str, Graph], texts: Sequence[Tokens], lengths: Lengths) -> dict[str, Any]:
    runs = {name: lambda number, g=graph: g.logits(texts[number], lengths) for name, graph in graphs.items()}
    return {name: {"p50_ms": latency.p50_ms} for name, latency in interleaved(runs, range(len(texts))).items()}
