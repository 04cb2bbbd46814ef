"""Products that read the same input become one, which quantizes it once; and how nodes of a graph are read and replaced.

Formula:  x·W_q, x·W_k and x·W_v are x·[W_q W_k W_v], cut into three.
Limits:   weights and biases must be constants.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"
"""Domain of onnxruntime's own operators."""


def merge_products(model: onnx.ModelProto) -> int:
    """Make one product of those that multiply the same input by constant weights and add constant biases; return how many are left of them.

    Exact: each column of a product depends on its own weights alone, and INT8 weights have a scale a column.
    """
    graph = model.graph
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
        helper.make_node("MatMul", [first.input[0], f"{name}/weights"], [f"{name}/product"], first.name),
        helper.make_node("Add", [f"{name}/product", f"{name}/biases"], [f"{name}/all"], first_add.name),
        helper.make_node("Split", [f"{name}/all", f"{name}/sizes"], [add.output[0] for _, add in pairs], f"{name}/split", axis=-1),
    ]
    replace(graph, [node for pair in pairs for node in pair], nodes)
    merged = {name for product, add in pairs for name in (product.input[1], _bias(add, product.output[0]))}
    read = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name not in merged or i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


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
