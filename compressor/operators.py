"""What the exporter writes as one operator becomes the nodes that are fastest in onnxruntime on a CPU, and exact.

What:     attention as onnxruntime's fused kernel, without mask work where no text is padded; dropping and putting back by whole rows.
Paper:    FlashAttention (arXiv:2205.14135) is what the fused kernel computes on a CPU too.
Limits:   `portable` graphs have no operators of onnxruntime's own; full-attention significance needs the probabilities, which no fused
          kernel gives.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import count

import onnx
from onnx import helper, inliner, parser

from compressor.attention import DOMAIN, EVERY, UNSEEN
from compressor.dropping import ORDERED
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
            hiding = Where (columns, zero, unseen)
            visible = Add (SCORES, hiding)
            of_real = Softmax <axis = -1> (visible)
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
    CONTEXT = Reshape (turned, whole)
"""
_FUSED = """
    CONTEXT = If (padded) <
        then_branch = masked () => (float[b, m, w] of_real) {
            mask = Cast <to = 6> (real)
            of_real = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v, , mask)
        },
        else_branch = plain () => (float[b, m, w] of_all) {
            of_all = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v)
        }
    >
"""
_EIGHTHS = """
    tokens = Constant <value_ints = [1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    every = Constant <value_ints = [EVERY]> ()
"""
# A question's tokens are the first of their text, and stay so when others leave.
_QUESTION = """
    tokens = Constant <value_ints = [1]> ()
    of_question = Cast <to = 7> (voters)
    counts = ReduceSum <keepdims = 0> (of_question, tokens)
    end = ReduceMax <keepdims = 1> (counts)
    every = Constant <value_ints = [1]> ()
"""
_ROWS_OF_SOME = """
    begin = Constant <value_ints = [0]> ()
    asking = Slice (q, begin, end, tokens, every)
    asking4 = Reshape (asking, split)
    asked4 = Reshape (k, split)
    some_queries = Transpose <perm = [0, 2, 1, 3]> (asking4)
    by_asked = Transpose <perm = [0, 2, 1, 3]> (asked4)
    asked = Transpose <perm = [0, 1, 3, 2]> (by_asked)
    some_scaled = Mul (some_queries, scale)
    some_scores = MatMul (some_scaled, asked)
    some = SOFTMAX
    voting = Slice (voters, begin, end, tokens, every)
"""
_COUNTED = """
    one = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    numbers = Cast <to = 1> (VOTERS)
    by_head = Unsqueeze (numbers, one)
    rows = Unsqueeze (by_head, last)
    counted = Mul (ROWS, rows)
"""
# Two reductions, not one over both axes: onnxruntime is 14x slower on the joint one.
_VOTES = """
    over_heads = Constant <value_ints = [1]> ()
    over_queries = Constant <value_ints = [2]> ()
    votes = If (padded) <
        then_branch = masked () => (float[b, h, n] of_real) {
            COUNTED
            of_real = ReduceSum <keepdims = 0> (counted, over_queries)
        },
        else_branch = plain () => (float[b, h, n] of_all) {
            of_all = ReduceSum <keepdims = 0> (ROWS, over_queries)
        }
    >
    SIGNIFICANCE = ReduceSum <keepdims = 0> (votes, over_heads)
"""
_VOTES_OF_QUESTION = """
    COUNTED
    over_queries = Constant <value_ints = [2]> ()
    votes = ReduceSum <keepdims = 0> (counted, over_queries)
    SIGNIFICANCE = ReduceSum <keepdims = 0> (votes, one)
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
    SIGNIFICANCE = ReduceSum <keepdims = 0> (row, heads)
"""
_SOME_BIAS = """
    by_query = Constant <value_ints = [2]> ()
    some_bias = Slice (bias, begin, end, by_query, every)
"""
_BIAS_OF_CLS = """
    by_query = Constant <value_ints = [2]> ()
    one_row = Slice (bias, from, to, by_query)
    row_of_bias = Squeeze (one_row, by_query)
    cls_bias = Transpose <perm = [0, 2, 1]> (row_of_bias)
"""
_LEARNED = """
    unseen = Constant <value_float = UNSEEN> ()
    last = Constant <value_ints = [-1]> ()
    parts = Mul (states, ranker)
    scores = ReduceSum <keepdims = 0> (parts, last)
    visible = Where (real, scores, unseen)
    SIGNIFICANCE = Softmax <axis = 1> (visible)
"""
# What is left of a question's tokens comes first. The sum over them of one softmax over all pairs is what a token counts.
_LEARNED_OF_QUESTION = (
    _QUESTION
    + """
    unseen = Constant <value_float = UNSEEN> ()
    begin = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    some = Slice (states, begin, end, tokens, every)
    voting = Slice (voters, begin, end, tokens, every)
    ours = MatMul (states, ranker)
    theirs = MatMul (some, asker)
    turned = Transpose <perm = [0, 2, 1]> (theirs)
    scores = MatMul (ours, turned)
    rows = Unsqueeze (real, last)
    columns = Unsqueeze (voting, tokens)
    both = And (rows, columns)
    visible = Where (both, scores, unseen)
    in_a_row = Flatten <axis = 1> (visible)
    likely = Softmax <axis = 1> (in_a_row)
    shape = Shape (visible)
    pairs = Reshape (likely, shape)
    SIGNIFICANCE = ReduceSum <keepdims = 0> (pairs, last)
"""
)
_NONE = """
    SIGNIFICANCE = Constant <value = float[1, 1] {0.0}> ()
"""
_DROP = """
    hidden_after, real_after, rows_after, ahead_after = If (leaves) <
        then_branch = some () => (float[b, n, w] hidden_left, bool[b, n] real_left, int64[b, n] rows_left, float[b, n] ahead_left) {
            never = Constant <value_float = -1.0> ()
            last = Constant <value_ints = [-1]> ()
            none = Constant <value_int = 0> ()
            one = Constant <value_int = 1> ()
            SCORE
            ranked = Where (real, score, never)
            most = ReduceMax <keepdims = 1> (keep)
            best, kept = TopK <axis = 1> (ranked, most)
            index = Unsqueeze (kept, last)
            hidden_left = GatherND <batch_dims = 1> (hidden, index)
            rows_left = GatherElements <axis = 1> (rows, kept)
            ahead_left = GatherElements <axis = 1> (ahead, kept)
            end = Squeeze (most)
            places = Range (none, end, one)
            counts = Unsqueeze (keep, last)
            real_left = Less (places, counts)
        },
        else_branch = all () => (float[b, n, w] hidden_stayed, bool[b, n] real_stayed, int64[b, n] rows_stayed, float[b, n] ahead_stayed) {
            hidden_stayed = Identity (hidden)
            real_stayed = Identity (real)
            rows_stayed = Identity (rows)
            ahead_stayed = Identity (ahead)
        }
    >
"""
_ALONE = "score = Add (significance, ahead)"
# A mean over the text as it was: tokens that have left count nothing, as places beyond its ends do.
_AROUND = """
            own = Constant <value_float: float = @share> ()
            first = Constant <value_ints = [0]> ()
            second = Constant <value_ints = [1]> ()
            shape = Shape (rows)
            texts = Slice (shape, first, second)
            row = ReduceMax <keepdims = 0> (rows)
            place = Add (row, one)
            length = Unsqueeze (place, first)
            size = Concat <axis = 0> (texts, length)
            nothing = ConstantOfShape <value = float[1] {0.0}> (size)
            in_text = ScatterElements <axis = 1> (nothing, rows, significance)
            channel = Unsqueeze (in_text, second)
            means = AveragePool <kernel_shape: ints = @kernel, pads: ints = @pads, count_include_pad = 1> (channel)
            mean = Squeeze (means, second)
            around = GatherElements <axis = 1> (mean, rows)
            alone = Mul (significance, own)
            both = Add (around, alone)
            score = Add (both, ahead)
"""
# What votes by where it stands needs a text that stays whole to stay in its order, whatever its batch does.
_IN_ORDER = """
            along = Constant <value_ints = [1]> ()
            back = Constant <value_int = -1> ()
            of_text = Cast <to = 7> (real)
            held = ReduceSum <keepdims = 0> (of_text, along)
            stays = GreaterOrEqual (keep, held)
            whole = Unsqueeze (stays, last)
            sizes = Shape (real)
            there = Gather (sizes, one)
            backwards = Range (there, none, back)
            by_place = Cast <to = 1> (backwards)
            score = Where (whole, by_place, by_significance)
"""
_RESTORE = """
    states = If (due) <
        then_branch = back () => (float[b, n, w] put_back) {
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
            put_back = Reshape (changed, shape)
        },
        else_branch = later () => (float[b, n, w] as_before) {
            as_before = Identity (restored)
        }
    >
"""


def _functions(opset: int, portable: bool) -> Iterator[onnx.FunctionProto]:
    """Yield what the exporter's nodes stand for."""
    domains = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{CONTRIB}" : 1]>'

    def function(head: str, body: str) -> onnx.FunctionProto:
        text = f"{domains} {head} {{{body}}}".replace("UNSEEN", f"{UNSEEN:.1f}").replace("EVERY", str(EVERY))
        return parser.parse_function(text)

    for name, inputs, of in (("attention", "", str), ("biased_attention", ", bias", _biased)):
        head = f"<num_heads, split, scale> (q, k, v, real, voters, padded, leaves{inputs})"
        for kind, body in _attention_bodies(portable).items():
            outputs = "context" if kind == "none" else "context, significance"
            yield function(f"{name}_{kind} {head} => ({outputs})", of(body))
    for name, inputs, body in (("", "ranker, real", _LEARNED), ("_of_question", "ranker, asker, real, voters", _LEARNED_OF_QUESTION)):
        yield function(f"learned{name} (states, {inputs}, leaves) => (significance)", _if_tokens_leave(body, _NONE, "SIGNIFICANCE"))
    after = "hidden_after, real_after, rows_after, ahead_after"
    head = f"(hidden, real, rows, ahead, significance, keep, leaves) => ({after})"
    for name, settings, body in (("drop", "", _ALONE), ("drop_around", "<kernel, pads, share>", _AROUND)):
        yield function(f"{name} {settings} {head}", _DROP.replace("SCORE", body))
        in_order = body.replace("score =", "by_significance =") + _IN_ORDER
        yield function(f"{name}{ORDERED} {settings} {head}", _DROP.replace("SCORE", in_order))
    yield function("restore (restored, hidden, rows, starts, real, padded, due) => (states)", _RESTORE)


def _attention_bodies(portable: bool) -> Mapping[str, str]:
    """Return what attention of each kind of significance stands for."""
    probabilities = _PROBABILITIES.replace("SOFTMAX", _SOFTMAX.replace("SCORES", "scores"))
    plain = probabilities if portable else _FUSED
    some = _ROWS_OF_SOME.replace("SOFTMAX", _SOFTMAX.replace("SCORES", "some_scores"))
    votes = {
        "attention": _votes(_VOTES, "voters", "probabilities"),
        "sampled": _EIGHTHS + some + _votes(_VOTES, "voting", "some"),
        "question": _QUESTION + some + _votes(_VOTES_OF_QUESTION, "voting", "some"),
        "cls": _VOTE_OF_CLS,
    }
    context = plain.replace("CONTEXT", "context")
    ranked = _if_tokens_leave(probabilities + votes["attention"], plain + _NONE, "CONTEXT", "SIGNIFICANCE")
    beside = {kind: context + _if_tokens_leave(votes[kind], _NONE, "SIGNIFICANCE") for kind in ("sampled", "question", "cls")}
    return {kind: _SHARED + body for kind, body in {"none": context, "attention": ranked, **beside}.items()}


def _votes(body: str, voters: str, rows: str) -> str:
    return body.replace("COUNTED", _COUNTED).replace("VOTERS", voters).replace("ROWS", rows)


def _biased(body: str) -> str:
    """Return attention's body with a bias added to every score; the fused kernel takes it as an input."""
    body = body.replace("(q, k, v, , mask)", "(q, k, v, , mask, bias)").replace("(q, k, v)", "(q, k, v, , , bias)")
    for scores, bias, rows in (("scores", "bias", ""), ("some_scores", "some_bias", _SOME_BIAS), ("of_cls", "cls_bias", _BIAS_OF_CLS)):
        body = re.sub(rf"\b{scores} = (.*)", rf"{scores}_alone = \1 {rows} {scores} = Add ({scores}_alone, {bias})", body)
    return body


def _if_tokens_leave(some: str, none: str, *outputs: str) -> str:
    """Return an If over two bodies that write the outputs, each under a name of its own."""
    types = {"CONTEXT": "float[b, m, w]", "SIGNIFICANCE": "float[b, n]"}

    def branch(body: str, ending: str) -> str:
        for name in outputs:
            body = body.replace(name, f"{name.lower()}_{ending}")
        told = ", ".join(f"{types[name]} {name.lower()}_{ending}" for name in outputs)
        return f"{ending} () => ({told}) {{{body}}}"

    results = ", ".join(name.lower() for name in outputs)
    return f"{results} = If (leaves) <then_branch = {branch(some, 'ranked')}, else_branch = {branch(none, 'unranked')}>"


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


def _name_sizes_apart(graph: onnx.GraphProto, numbers: Iterator[int] | None = None) -> None:
    """Give every If's sizes names of their own: onnxruntime reuses memory between values whose sizes are called alike."""
    numbers = numbers or count()
    for node in (node for node in graph.node if node.op_type == "If"):
        number = next(numbers)
        for branch in (a.g for a in node.attribute):
            for size in (size for output in branch.output for size in output.type.tensor_type.shape.dim):
                size.dim_param += f"_{number}"
            _name_sizes_apart(branch, numbers)
