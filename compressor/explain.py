"""Say where a graph's time goes, how far it is from what this machine's 8-bit products allow, and what each stage of the build gave.

What:     onnxruntime's own profile of one text on one thread, by class of operator; beside it the time of runs that are not profiled.
Formula:  floor = multiply-accumulates of all products (attention's too) over the rate that MatMulInteger reaches here, on one thread.
Limits:   the floor counts no memory traffic and no operator but products; profiling slows every operator a little, so its rows add up
          to more than the time without it.
"""

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor import machine
from compressor.bench import PACKAGES, batch_of, graph_of, load_findings, model_of
from compressor.errors import RecipeError, UnfitError, install, one_line
from compressor.session import Graph, session

FLOAT = "float products"
INT8 = ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeLSTM")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "INT8 products": INT8,
    FLOAT: ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "LSTM"),
    "attention": ("MultiHeadAttention", "Attention", "QAttention", "Softmax"),
    "normalization": ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"),
    "activation": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Erf", "Tanh", "Relu", "Sigmoid"),
    "quantizing": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    "arithmetic": ("Add", "Sub", "Mul", "Div", "Sqrt", "Pow", "Cast", "Where", "ReduceSum", "ReduceMean", "ReduceMax"),
    "rows in and out": ("Gather", "GatherND", "GatherElements", "Scatter", "ScatterND", "ScatterElements", "TopK"),
    "moving data": ("Transpose", "Reshape", "Split", "Concat", "Slice", "Expand", "Unsqueeze", "Squeeze", "Shape"),
}
CLASS_OF = {operator: name for name, operators in CLASSES.items() for operator in operators}
BRANCHES = ("If", "Loop", "Scan")
"""Operators whose time is that of the operators in them, which the profile has too."""
WARM_UP = 3
TOKENS = 128
"""Length of the text that is explained, where it is not asked for."""
NAMED = 4
"""Products left in float that are named."""


@dataclass(frozen=True)
class Step:
    """What one operator did in one run."""

    name: str
    operator: str
    ms: float
    macs: int
    weights: bool

    @property
    def kind(self) -> str:
        """The class of operators that it belongs to; a float product without weights is one of attention's."""
        kind = CLASS_OF.get(self.operator, "other")
        return "attention" if kind == FLOAT and not self.weights else kind


def explain(path: Path, tokens: int | None, point: str | None, rounds: int) -> dict[str, Any]:
    """Return a row for each class of operators, how many products stayed in float, the floor, and the gains of the build's stages.

    Raises:
        BundleError: the bundle is damaged, or lacks the point.
        RecipeError: the file is no encoder in ONNX, or the text is longer than it reads.
        UnfitError: the extra [train] is not installed.
    """
    model = model_of(path, [point] if point else [], "onnxruntime")
    if point and not model.runtime:
        raise RecipeError(f"{path} has no operating points; leave out --point, or name a bundle")
    name = point or (model.runtime.default if model.runtime else "")
    tokens = tokens or min(TOKENS, model.runtime.max_length if model.runtime else TOKENS)
    if name not in model.points:
        raise RecipeError(f"{path}: {name} is no single graph to look into; choose --point {', '.join(model.points) or 'full'}")
    if model.runtime and tokens > model.runtime.max_length:
        raise RecipeError(f"{path} reads {model.runtime.max_length} tokens at most; choose --tokens {model.runtime.max_length}")
    lengths, (text,) = model.points[name], batch_of(f"1x{tokens}", pairs=model.reads_pairs).batches
    rate, graph = gemm_rate(), graph_of(model, 1)
    try:
        found = _milliseconds(graph, text, lengths, rounds)
    except Exception as error:
        raise RecipeError(f"{path}: onnxruntime cannot run {tokens} tokens: {one_line(error)}") from None
    runs = _profiled(graph, text, lengths, rounds)
    macs = sum(step.macs for step in runs[0].steps)
    if not macs:
        raise RecipeError(f"{path} has no product of matrices that is known here; 'compress bench' times it")
    floor = macs / rate * 1000
    facts: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(*PACKAGES),
        "model": str(path),
        "point": name or None,
    }
    facts |= {"tokens": tokens, "latency_ms": found, "million_macs": macs / 1e6}
    facts |= {"billion_int8_macs_per_second": rate / 1e9, "floor_ms": floor, "over_floor": found / floor}
    gains = json.loads((path / "metrics.json").read_text(encoding="utf-8")).get("stage_gains", []) if model.runtime else []
    left = [step.name for step in runs[0].steps if step.kind == FLOAT]
    told = [f"{len(left)} products with weights stay in float: {', '.join(left[:NAMED])}{', …' * (len(left) > NAMED)}"] if left else []
    return {**facts, "operators": rows(runs), "products_in_float": len(left), "stage_gains": gains, "findings": told + load_findings()}


@dataclass(frozen=True)
class Profiled:
    """One profiled run: its milliseconds and its operators'."""

    ms: float
    steps: Sequence[Step]


def rows(runs: Sequence[Profiled]) -> list[dict[str, Any]]:
    """Return classes of operators, the dearest first, with medians over runs; what is no operator's time comes last."""
    total = float(np.median([run.ms for run in runs]))
    times: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for kind in {step.kind for step in run.steps}:
            times[kind].append(sum(step.ms for step in run.steps if step.kind == kind))
    found = []
    for kind in sorted(times, key=lambda k: -float(np.median(times[k]))):
        own = [step for step in runs[0].steps if step.kind == kind]
        ms, macs = float(np.median(times[kind])), sum(step.macs for step in own)
        found.append({"class": kind, "nodes": len(own), "ms": ms, "share": ms / total, "million_macs": macs / 1e6})
    between = max(0.0, float(np.median([run.ms - sum(step.ms for step in run.steps) for run in runs])))
    return [*found, {"class": "between operators", "nodes": None, "ms": between, "share": between / total, "million_macs": 0.0}]


def _milliseconds(graph: Graph, text: Any, lengths: Sequence[int] | None, rounds: int) -> float:
    times = []
    for _ in range(WARM_UP + rounds):
        started = time.perf_counter_ns()
        graph.run(text, lengths)
        times.append((time.perf_counter_ns() - started) / 1e6)
    return float(np.median(times[WARM_UP:]))


def _profiled(graph: Graph, text: Any, lengths: Sequence[int] | None, rounds: int) -> list[Profiled]:
    with tempfile.TemporaryDirectory() as scratch:
        graph.session = opened = session(graph.path, 1, profile=Path(scratch) / "profile")
        for _ in range(WARM_UP + rounds):
            graph.run(text, lengths)
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    return profiled(events)[WARM_UP:]


def profiled(events: Iterable[Mapping[str, Any]]) -> list[Profiled]:
    """Return the runs of an onnxruntime profile, each with its operators."""
    events = list(events)
    steps = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time") and e["args"]["op_name"] not in BRANCHES]
    found = []
    for run in (e for e in events if e["name"] == "model_run"):
        own = [_step(e) for e in steps if run["ts"] <= e["ts"] < run["ts"] + run["dur"]]
        found.append(Profiled(run["dur"] / 1000, own))
    return found


def _step(event: Mapping[str, Any]) -> Step:
    operator, arguments = event["args"]["op_name"], event["args"]
    read, written = ([list(next(iter(shape.values()))) for shape in arguments[f"{side}_type_shape"]] for side in ("input", "output"))
    weights = len(read) < 2 or len(read[1]) <= 2  # a packed weight is not among what was read; activations have batches
    return Step(event["name"].removesuffix("_kernel_time"), operator, event["dur"] / 1000, macs_of(operator, read, written), weights)


def macs_of(operator: str, read: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> int:
    """Return the multiply-accumulates of one operator, from the shapes that it read and wrote; 0 for what multiplies no matrices."""
    if operator == "MultiHeadAttention":  # queries (batch, tokens, hidden) meet keys (batch, tokens, hidden), and what comes of it values
        return 2 * math.prod(read[0]) * read[1][1]
    if operator in ("Attention", "QAttention"):
        if len(read) > 1 and len(read[1]) > 2:  # ONNX's own, of queries, keys and values
            return 2 * math.prod(read[0]) * read[1][-2]
        (batch, tokens, hidden), inner = read[0], written[0][-1]  # onnxruntime's makes these of the hidden states
        return batch * tokens * (3 * hidden * inner + 2 * tokens * inner)
    if operator in ("LSTM", "DynamicQuantizeLSTM"):  # (tokens, batch, inputs) to (tokens, directions, batch, hidden), four gates
        tokens, directions, batch, hidden = written[0]
        return tokens * batch * directions * 4 * hidden * (read[0][-1] + hidden)
    if CLASS_OF.get(operator) in ("INT8 products", FLOAT):
        return math.prod(written[0]) * read[0][-1]
    return 0


def gemm_rate(rounds: int = 30) -> float:
    """Return how many 8-bit multiply-accumulates a second one thread does here, in a product too large for its cost to hide.

    Raises:
        UnfitError: the package that writes graphs is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise UnfitError(f"explain measures a graph of its own and needs the [train] extra: {install('train')}") from None
    m, k, n = 512, 1024, 1024
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.integers(-128, 128, (k, n), dtype=np.int8), "w")
    ends = [helper.make_tensor_value_info(*end) for end in (("x", TensorProto.UINT8, [m, k]), ("y", TensorProto.INT32, [m, n]))]
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "rate", ends[:1], ends[1:], [weight]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    product, feed = session(model.SerializeToString(), 1), {"x": rng.integers(0, 256, (m, k), dtype=np.uint8)}
    best = math.inf
    for _ in range(rounds):
        started = time.perf_counter()
        product.run(None, feed)
        best = min(best, time.perf_counter() - started)
    return m * k * n / best
