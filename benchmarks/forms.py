"""Which form of GELU, and of attention's two products, is fastest on this processor, and how far each is from the exact one.

    python -m benchmarks.forms

Graphs of one form each in onnxruntime on one thread, all in turn, at the sizes of MiniLM 6×384: GELU of (1, tokens, 1536), attention of
12 heads of 32. The first of each is what an export has; `times` is the time of another over its, above 1 where it is slower.
`difference` is the largest from the exact result in float64, of inputs that are normally distributed, GELU's three times as wide.
"""

import argparse
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx.parser import parse_model
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unsupported  # type: ignore[import-untyped]

from benchmarks.record import conclude
from compressor.errors import one_line
from compressor.latency import timed
from compressor.tokens import Floats

TOKENS = (32, 128, 384)
HEADS, SIZE, INNER = 12, 32, 1536
REQUESTS, ROUNDS = 20, 5

GELUS = {
    "erf, fused": "y = com.microsoft.Gelu (x)",
    "erf, taken apart": """
        half = Constant <value_float: float = 0.5> ()  one = Constant <value_float: float = 1.0> ()
        root = Constant <value_float: float = 1.4142135> ()
        scaled = Div (x, root)  e = Erf (scaled)  above = Add (e, one)  product = Mul (x, above)  y = Mul (product, half)""",
    "tanh, fused": "y = com.microsoft.FastGelu (x)",
    "tanh, ONNX's own": 'y = Gelu <approximate: string = "tanh"> (x)',
    "sigmoid": "y = com.microsoft.QuickGelu <alpha: float = 1.702> (x)",
}
SPLIT = """
    shape = Constant <value_ints: ints = [0, 0, {heads}, {size}]> ()
    q4 = Reshape (q, shape)  k4 = Reshape (k, shape)  v4 = Reshape (v, shape)
    qh = Transpose <perm: ints = [0, 2, 1, 3]> (q4)  kt = Transpose <perm: ints = [0, 2, 3, 1]> (k4)
    vh = Transpose <perm: ints = [0, 2, 1, 3]> (v4)"""
JOIN = """
    joined = Transpose <perm: ints = [0, 2, 1, 3]> (context)
    flat = Constant <value_ints: ints = [0, 0, {width}]> ()
    y = Reshape (joined, flat)"""
ATTENTIONS = {
    "fused": "y = com.microsoft.MultiHeadAttention <num_heads: int = {heads}> (q, k, v)",
    "fused, ONNX's own": "y = Attention <q_num_heads: int = {heads}, kv_num_heads: int = {heads}> (q, k, v)",
    "two products": SPLIT
    + """
    scale = Constant <value_float: float = {scale}> ()
    scores = MatMul (qh, kt)  scaled = Mul (scores, scale)  shares = Softmax <axis: int = -1> (scaled)
    context = MatMul (shares, vh)"""
    + JOIN,
    "two products in 8 bits": SPLIT
    + """
    scale = Constant <value_float: float = {scale}> ()  step = Constant <value_float: float = 0.003921569> ()
    zero = Constant <value: tensor = uint8 {{0}}> ()
    qb, qs, qz = DynamicQuantizeLinear (qh)  kb, ks, kz = DynamicQuantizeLinear (kt)  vb, vs, vz = DynamicQuantizeLinear (vh)
    ints = MatMulInteger (qb, kb, qz, kz)  floats = Cast <to: int = 1> (ints)
    qk = Mul (qs, ks)  factor = Mul (qk, scale)  scaled = Mul (floats, factor)  shares = Softmax <axis: int = -1> (scaled)
    shares8 = QuantizeLinear (shares, step, zero)
    sums = MatMulInteger (shares8, vb, zero, vz)  whole = Cast <to: int = 1> (sums)
    last = Mul (vs, step)  context = Mul (whole, last)"""
    + JOIN,
    "two products in bfloat16": SPLIT
    + """
    q16 = Cast <to: int = 16> (qh)  k16 = Cast <to: int = 16> (kt)  v16 = Cast <to: int = 16> (vh)
    scale = Constant <value_float: float = {scale}> ()
    scores16 = MatMul (q16, k16)  scores = Cast <to: int = 1> (scores16)
    scaled = Mul (scores, scale)  shares = Softmax <axis: int = -1> (scaled)  shares16 = Cast <to: int = 16> (shares)
    context16 = MatMul (shares16, v16)  context = Cast <to: int = 1> (context16)"""
    + JOIN,
}


def session(nodes: str, inputs: tuple[str, ...], width: int) -> ort.InferenceSession:
    """Return a graph of these nodes over inputs (1, tokens, width), on one thread; nothing is fused that is not so written."""
    given = ", ".join(f"float[1, tokens, {width}] {name}" for name in inputs)
    sizes = {"heads": HEADS, "size": SIZE, "width": HEADS * SIZE, "scale": SIZE**-0.5}
    head = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
    model = parse_model(f"{head} g ({given}) => (float[1, tokens, {width}] y) {{ {nodes.format(**sizes)} }}")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.graph_optimization_level = 1, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def gelu(x: Floats) -> Floats:
    """Return GELU, exactly."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def attention(q: Floats, k: Floats, v: Floats) -> Floats:
    """Return attention over (1, tokens, heads · size), exactly."""
    q, k, v = (x.reshape(-1, HEADS, SIZE).swapaxes(0, 1) for x in (q, k, v))
    scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(SIZE))
    return (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(1, -1, HEADS * SIZE)


def compared(forms: Mapping[str, str], feed: Mapping[str, Floats], exact: Floats, requests: int, rounds: int) -> dict[str, Any]:
    """Return of each form its milliseconds, their ratio to the first one's, and its distance from the exact result."""
    width, found, opened = exact.shape[-1], dict[str, Any](), dict[str, ort.InferenceSession]()
    given = {name: x.astype(np.float32) for name, x in feed.items()}
    for name, nodes in forms.items():
        try:
            opened[name] = session(nodes, tuple(feed), width)
        except Unsupported as error:
            found[name] = {"refused": one_line(error, 200)}
            continue
        found[name] = {"difference": float(np.abs(opened[name].run(None, given)[0] - exact).max())}
    times = timed({name: lambda _, one=one: one.run(None, given) for name, one in opened.items()}, range(requests), rounds)
    best = {name: float(np.median(t.min(0))) for name, t in times.items()}
    first = best[next(iter(forms))]
    for name, ms in best.items():
        found[name] |= {"ms": ms, "times": ms / first}
    return found


def main() -> None:
    """Compare the forms at each length and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="a few rounds, to see that it works; records nothing")
    chosen = parser.parse_args()
    requests, rounds = (2, 1) if chosen.trial else (REQUESTS, ROUNDS)
    rng, rows = np.random.default_rng(0), []
    for tokens in TOKENS:
        x = rng.normal(0, 3, (1, tokens, INNER)).astype(np.float32).astype(np.float64)
        q, k, v = (rng.normal(size=(1, tokens, HEADS * SIZE)).astype(np.float32).astype(np.float64) for _ in range(3))
        row = {"gelu": compared(GELUS, {"x": x}, gelu(x), requests, rounds)}
        row |= {"attention": compared(ATTENTIONS, {"q": q, "k": k, "v": v}, attention(q, k, v), requests, rounds)}
        rows.append({"tokens": tokens, **row})
    conclude("forms", {"heads": HEADS, "head_size": SIZE, "inner": INNER, "rows": rows}, chosen.trial)


if __name__ == "__main__":
    main()
