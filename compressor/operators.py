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

from compressor import operator_texts as texts
from compressor.attention import DOMAIN, EVERY, UNSEEN
from compressor.dropping import ORDERED
from compressor.fusion import CONTRIB


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
    for name, inputs, body in (
        ("", "ranker, real", texts.LEARNED),
        ("_of_question", "ranker, asker, real, voters", texts.LEARNED_OF_QUESTION),
    ):
        yield function(f"learned{name} (states, {inputs}, leaves) => (significance)", _if_tokens_leave(body, texts.NONE, "SIGNIFICANCE"))
    after = "hidden_after, real_after, rows_after, ahead_after"
    head = f"(hidden, real, rows, ahead, significance, keep, leaves) => ({after})"
    for name, settings, body in (("drop", "", texts.ALONE), ("drop_around", "<kernel, pads, share>", texts.AROUND)):
        yield function(f"{name} {settings} {head}", texts.DROP.replace("SCORE", body))
        in_order = body.replace("score =", "by_significance =") + texts.IN_ORDER
        yield function(f"{name}{ORDERED} {settings} {head}", texts.DROP.replace("SCORE", in_order))
    yield function("restore (restored, hidden, rows, starts, real, padded, due) => (states)", texts.RESTORE)


def _attention_bodies(portable: bool) -> Mapping[str, str]:
    """Return what attention of each kind of significance stands for."""
    probabilities = texts.PROBABILITIES.replace("SOFTMAX", texts.SOFTMAX.replace("SCORES", "scores"))
    plain = probabilities if portable else texts.FUSED
    some = texts.ROWS_OF_SOME.replace("SOFTMAX", texts.SOFTMAX.replace("SCORES", "some_scores"))
    votes = {
        "attention": _votes(texts.VOTES, "voters", "probabilities"),
        "sampled": texts.EIGHTHS + some + _votes(texts.VOTES, "voting", "some"),
        "question": texts.QUESTION + some + _votes(texts.VOTES_OF_QUESTION, "voting", "some"),
        "cls": texts.VOTE_OF_CLS,
    }
    context = plain.replace("CONTEXT", "context")
    ranked = _if_tokens_leave(probabilities + votes["attention"], plain + texts.NONE, "CONTEXT", "SIGNIFICANCE")
    beside = {kind: context + _if_tokens_leave(votes[kind], texts.NONE, "SIGNIFICANCE") for kind in ("sampled", "question", "cls")}
    return {kind: texts.SHARED + body for kind, body in {"none": context, "attention": ranked, **beside}.items()}


def _votes(body: str, voters: str, rows: str) -> str:
    return body.replace("COUNTED", texts.COUNTED).replace("VOTERS", voters).replace("ROWS", rows)


def _biased(body: str) -> str:
    """Return attention's body with a bias added to every score; the fused kernel takes it as an input."""
    body = body.replace("(q, k, v, , mask)", "(q, k, v, , mask, bias)").replace("(q, k, v)", "(q, k, v, , , bias)")
    for scores, bias, rows in (
        ("scores", "bias", ""),
        ("some_scores", "some_bias", texts.SOME_BIAS),
        ("of_cls", "cls_bias", texts.BIAS_OF_CLS),
    ):
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
