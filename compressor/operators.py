"""What the exporter writes as one operator becomes the nodes that are fastest in onnxruntime on a CPU, and exact.

What:     attention as onnxruntime's fused kernel, without mask work where no text is padded; dropping and putting back by whole rows.
Paper:    FlashAttention (arXiv:2205.14135) is what the fused kernel computes on a CPU too.
Limits:   `portable` graphs have no operators of onnxruntime's own; full-attention significance needs the probabilities, which no fused
          kernel gives.
"""

from collections.abc import Iterator

import onnx
from onnx import helper, inliner, parser

from compressor.attention import DOMAIN, EVERY, UNSEEN
from compressor.fusion import CONTRIB

_SHARED = """
    split = Constant <value_ints: ints = @split> ()
    scale = Constant <value_float: float = @scale> ()
"""
_SOFTMAX = """If (padded) <
        then_branch = masked () => (float[b, h, m, n] of_real) {
            zero = Constant <value_float = 0.0> ()
            unseen = Constant <value_float = UNSEEN> ()
            axes = Constant <value_ints = [1, 2]> ()
            columns = Unsqueeze (real, axes)
            bias = Where (columns, zero, unseen)
            biased = Add (SCORES, bias)
            of_real = Softmax <axis = -1> (biased)
        },
        else_branch = plain () => (float[b, h, m, n] of_all) {
            of_all = Softmax <axis = -1> (SCORES)
        }
    >"""
_PROBABILITIES = """
    q4 = Reshape (q, split)
    k4 = Reshape (k, split)
    v4 = Reshape (v, split)
    queries = Transpose <perm = [0, 2, 1, 3]> (q4)
    keys = Transpose <perm = [0, 2, 3, 1]> (k4)
    values = Transpose <perm = [0, 2, 1, 3]> (v4)
    scaled = Mul (queries, scale)
    scores = MatMul (scaled, keys)
    probabilities = SOFTMAX
    mixed = MatMul (probabilities, values)
    turned = Transpose <perm = [0, 2, 1, 3]> (mixed)
    whole = Constant <value_ints = [0, 0, -1]> ()
    context = Reshape (turned, whole)
"""
_FUSED = """
    context = If (padded) <
        then_branch = masked () => (float[b, m, w] of_real) {
            mask = Cast <to = 6> (real)
            of_real = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v, , mask)
        },
        else_branch = plain () => (float[b, m, w] of_all) {
            of_all = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v)
        }
    >
"""
_ROWS_OF_SOME = """
    begin = Constant <value_ints = [0]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    tokens = Constant <value_ints = [1]> ()
    every = Constant <value_ints = [EVERY]> ()
    asking = Slice (q, begin, end, tokens, every)
    asking4 = Reshape (asking, split)
    asked4 = Reshape (k, split)
    some_queries = Transpose <perm = [0, 2, 1, 3]> (asking4)
    by_asked = Transpose <perm = [0, 2, 1, 3]> (asked4)
    asked = Transpose <perm = [0, 1, 3, 2]> (by_asked)
    some_scaled = Mul (some_queries, scale)
    some_scores = MatMul (some_scaled, asked)
    some = SOFTMAX
    voters = Slice (real, begin, end, tokens, every)
"""
# Two reductions, not one over both axes: onnxruntime is 14x slower on the joint one.
_VOTES = """
    over_heads = Constant <value_ints = [1]> ()
    over_queries = Constant <value_ints = [2]> ()
    votes = If (padded) <
        then_branch = masked () => (float[b, h, n] of_real) {
            one = Constant <value_ints = [1]> ()
            last = Constant <value_ints = [-1]> ()
            numbers = Cast <to = 1> (VOTERS)
            by_head = Unsqueeze (numbers, one)
            rows = Unsqueeze (by_head, last)
            counted = Mul (ROWS, rows)
            of_real = ReduceSum <keepdims = 0> (counted, over_queries)
        },
        else_branch = plain () => (float[b, h, n] of_all) {
            of_all = ReduceSum <keepdims = 0> (ROWS, over_queries)
        }
    >
    significance = ReduceSum <keepdims = 0> (votes, over_heads)
"""
_VOTE_OF_CLS = """
    from = Constant <value_ints = [0]> ()
    to = Constant <value_ints = [1]> ()
    heads = Constant <value_ints = [2]> ()
    within = Constant <value_ints = [3]> ()
    cls = Slice (q, from, to, to)
    asked = Mul (cls, scale)
    products = Mul (k, asked)
    by_head = Reshape (products, split)
    of_cls = ReduceSum <keepdims = 0> (by_head, within)
    row = If (padded) <
        then_branch = masked () => (float[b, n, h] of_real) {
            unseen = Constant <value_float = UNSEEN> ()
            last = Constant <value_ints = [-1]> ()
            columns = Unsqueeze (real, last)
            visible = Where (columns, of_cls, unseen)
            of_real = Softmax <axis = 1> (visible)
        },
        else_branch = plain () => (float[b, n, h] of_all) {
            of_all = Softmax <axis = 1> (of_cls)
        }
    >
    significance = ReduceSum <keepdims = 0> (row, heads)
"""
_RESTORE = """
    last = Constant <value_ints = [-1]> ()
    tokens = Flatten <axis = 2> (restored)
    places = Add (rows, starts)
    index = Unsqueeze (places, last)
    changed = If (padded) <
        then_branch = masked () => (float[t, w] of_real) {
            before = GatherND (tokens, index)
            columns = Unsqueeze (real, last)
            newest = Where (columns, hidden, before)
            of_real = ScatterND (tokens, index, newest)
        },
        else_branch = plain () => (float[t, w] of_all) {
            of_all = ScatterND (tokens, index, hidden)
        }
    >
    shape = Shape (restored)
    states = Reshape (changed, shape)
"""


def _functions(opset: int, portable: bool) -> Iterator[onnx.FunctionProto]:
    """Yield what the exporter's nodes stand for."""
    domains = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{CONTRIB}" : 1]>'
    probabilities = _PROBABILITIES.replace("SOFTMAX", _SOFTMAX.replace("SCORES", "scores"))
    of_all = _VOTES.replace("VOTERS", "real").replace("ROWS", "probabilities")
    rows_of_some = _ROWS_OF_SOME.replace("SOFTMAX", _SOFTMAX.replace("SCORES", "some_scores"))
    of_some = rows_of_some + _VOTES.replace("VOTERS", "voters").replace("ROWS", "some")
    for kind, votes in (("attention", of_all), ("sampled", of_some), ("cls", _VOTE_OF_CLS), ("none", "")):
        body = probabilities if portable or kind == "attention" else _FUSED
        outputs = "context, significance" if votes else "context"
        head = f"attention_{kind} <num_heads, split, scale> (q, k, v, real, padded) => ({outputs})"
        text = f"{_SHARED}{body}{votes}".replace("UNSEEN", f"{UNSEEN:.1f}").replace("EVERY", str(EVERY))
        yield parser.parse_function(f"{domains} {head} {{{text}}}")
    yield parser.parse_function(f"{domains} restore (restored, hidden, rows, starts, real, padded) => (states) {{{_RESTORE}}}")


def expand(model: onnx.ModelProto, opset: int, *, portable: bool) -> onnx.ModelProto:
    """Return the model with the exporter's own nodes replaced by what they stand for."""
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    if not used:
        return model
    model.functions.extend(function for function in _functions(opset, portable) if function.name in used)
    expanded = inliner.inline_local_functions(model)
    _name_sizes_apart(expanded.graph)
    kept = [domain for domain in expanded.opset_import if domain.domain not in (DOMAIN, CONTRIB)]
    del expanded.opset_import[:]
    expanded.opset_import.extend([*kept, *([] if portable else [helper.make_opsetid(CONTRIB, 1)])])
    return expanded


def _name_sizes_apart(graph: onnx.GraphProto) -> None:
    """Give every layer's sizes names of their own: onnxruntime reuses memory between values whose sizes are called alike."""
    for number, node in enumerate(node for node in graph.node if node.op_type == "If"):
        for size in (size for branch in node.attribute for size in branch.g.output[0].type.tensor_type.shape.dim):
            size.dim_param += f"_{number}"
