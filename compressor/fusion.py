"""Products that read the same input become one, which quantizes it once; and how nodes of a graph are read and replaced.

Formula:  x·W_q, x·W_k and x·W_v are x·[W_q W_k W_v], cut into three.
Limits:   weights and biases must be constants.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compressor.errors import StageError

CONTRIB = "com.microsoft"
"""Domain of onnxruntime's own operators."""
MERGED = "/product"
"""What the name of a product ends with that was made of several."""


def merge_products(model: onnx.ModelProto) -> int:
    """Make one product of those that multiply the same input by constant weights and add constant biases; return how many are left of them.

    Exact: each column of a product depends on its own weights alone, and INT8 weights have a scale a column.
    """
    graph = model.graph
    _read_equal_biases(graph)
    constants = {i.name: i for i in graph.initializer}
    tables, readers = {name for name, i in constants.items() if len(i.dims) == 2}, readers_of(graph)
    groups = defaultdict[str, list[tuple[onnx.NodeProto, onnx.NodeProto]]](list)
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tables and [n.op_type for n in readers[node.output[0]]] == ["Add"]:
            add = readers[node.output[0]][0]
            if _bias(add, node.output[0]) in constants:
                groups[node.input[0]].append((node, add))
    merged = [pairs for pairs in groups.values() if len(pairs) > 1]
    for pairs in merged:
        _merge(graph, pairs, constants)
    return len(merged)


def _read_equal_biases(graph: onnx.GraphProto) -> None:
    """Let sums read a bias itself where the exporter, which keeps one of equal biases, put an Identity before the others."""
    biases = {i.name for i in graph.initializer if len(i.dims) == 1}
    same = {node.output[0]: node for node in graph.node if node.op_type == "Identity" and node.input[0] in biases}
    for node in graph.node:
        if node.op_type == "Add":
            node.input[:] = [same[name].input[0] if name in same else name for name in node.input]
    for name in same.keys() - set(read_by(graph)):
        graph.node.remove(same[name])


def _bias(add: onnx.NodeProto, product: str) -> str:
    return next((name for name in add.input if name != product), "")


def _merge(
    graph: onnx.GraphProto, pairs: Sequence[tuple[onnx.NodeProto, onnx.NodeProto]], constants: Mapping[str, onnx.TensorProto]
) -> None:
    (first, first_add), name = pairs[0], pairs[0][0].output[0]
    weights = [numpy_helper.to_array(constants[product.input[1]]) for product, _ in pairs]
    biases = [numpy_helper.to_array(constants[_bias(add, product.output[0])]) for product, add in pairs]
    sizes = np.array([w.shape[1] for w in weights], np.int64)
    made = {f"{name}/weights": np.concatenate(weights, 1), f"{name}/biases": np.concatenate(biases), f"{name}/sizes": sizes}
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in made.items())
    nodes = [
        helper.make_node("MatMul", [first.input[0], f"{name}/weights"], [f"{name}{MERGED}"], first.name),
        helper.make_node("Add", [f"{name}{MERGED}", f"{name}/biases"], [f"{name}/all"], first_add.name),
        helper.make_node("Split", [f"{name}/all", f"{name}/sizes"], [add.output[0] for _, add in pairs], f"{name}/split", axis=-1),
    ]
    replace(graph, [node for pair in pairs for node in pair], nodes)
    merged = {name for product, add in pairs for name in (product.input[1], _bias(add, product.output[0]))}
    read = set(read_by(graph))
    kept = [i for i in graph.initializer if i.name not in merged or i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def check_fused(graph: onnx.GraphProto, attentions: int, products: int) -> None:
    """Check that a graph came out as fast as it is meant to be: an exporter that writes other operators costs time, not answers.

    Raises:
        StageError: it has another number of fused attentions, or of products that became one.
    """
    fused = Counter(operators(graph))["MultiHeadAttention"]
    merged = sum(node.output[0].endswith(MERGED) for node in graph.node)
    checks = (("fused attentions", fused, attentions), ("merged products of queries, keys and values", merged, products))
    for what, found, expected in checks:
        if found != expected:
            told = f"export: the graph has {found} {what} instead of {expected}"
            raise StageError(f"{told}; choose the other export.exporter, and report the model")


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the types of a graph's operators, those of its branches too."""
    for node in graph.node:
        yield node.op_type
        for branch in (a.g for a in node.attribute if a.HasField("g")):
            yield from operators(branch)


def read_by(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the values that a graph reads or returns, its branches too."""
    for node in graph.node:
        yield from node.input
        for branch in (a.g for a in node.attribute if a.HasField("g")):
            yield from read_by(branch)
    yield from (output.name for output in graph.output)


def readers_of(graph: onnx.GraphProto) -> Mapping[str, list[onnx.NodeProto]]:
    """Return which nodes read each value."""
    readers = defaultdict[str, list[onnx.NodeProto]](list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def replace(graph: onnx.GraphProto, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto], at: onnx.NodeProto | None = None) -> None:
    """Put new nodes where the first of the old ones stood, or another of them."""
    gone, nodes = {node.output[0] for node in old}, list[onnx.NodeProto]()
    place = (at or old[0]).output[0]
    for node in graph.node:
        nodes += new if node.output[0] == place else ()
        nodes += () if node.output[0] in gone else [node]
    del graph.node[:]
    graph.node.extend(nodes)
