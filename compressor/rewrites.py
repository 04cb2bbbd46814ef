"""Rewrites of a statically quantized graph that change no answer: what a quantizer writes becomes what onnxruntime is fast at on a CPU.

What:     u8 activations for s8, rows of an embedding table gathered before they are made float, products as one node with their bias.
Formula:  scale · (q - z) = scale · ((q + 128) - (z + 128)).
Limits:   weights of two dimensions, symmetric, with one scale or one a column; tables with one scale, or symmetric with one a row.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.fusion import CONTRIB, read_by, readers_of, replace

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def unsigned_activations(model: onnx.ModelProto) -> int:
    """Store activations as u8 instead of s8, which the processor's 8-bit products take on the left; return how many zero points moved."""
    graph, constants = model.graph, _constants(model)
    moved: dict[str, str] = {}
    for node in graph.node:
        quantizes = node.op_type == QUANTIZE or (node.op_type == DEQUANTIZE and node.input[0] not in constants)
        if not quantizes or len(node.input) < 3 or node.input[2] not in constants:
            continue
        zero = numpy_helper.to_array(constants[node.input[2]])
        if zero.dtype == np.int8:  # under a name of its own: a weight may share the old one
            name = f"{node.input[2]}/unsigned"
            if name not in moved.values():
                graph.initializer.append(numpy_helper.from_array((zero.astype(np.int16) + 128).astype(np.uint8), name))
            moved[node.input[2]] = node.input[2] = name
    _tidy(graph)
    return len(moved)


def gathered_rows(model: onnx.ModelProto) -> int:
    """Take rows out of a quantized table before they are made float, instead of making all of it float on every run; return how many."""
    graph, constants = model.graph, _constants(model)
    makers = {name: node for node in graph.node for name in node.output}
    count = 0
    for gather in [node for node in graph.node if node.op_type == "Gather"]:
        made = makers.get(gather.input[0])
        if made is None or made.op_type != DEQUANTIZE or made.input[0] not in constants:
            continue
        scales, (ids, out) = numpy_helper.to_array(constants[made.input[1]]), (gather.input[1], gather.output[0])
        rows = helper.make_node("Gather", [made.input[0], ids], [f"{out}/rows"])
        if scales.size == 1:
            nodes = [rows, helper.make_node(DEQUANTIZE, [f"{out}/rows", *made.input[1:]], [out])]
        elif _symmetric(made, constants) and _axis(made, 2) == 0:
            graph.initializer.append(numpy_helper.from_array(scales.reshape(-1, 1).astype(np.float32), f"{out}/scales"))
            nodes = [
                rows,
                helper.make_node("Cast", [f"{out}/rows"], [f"{out}/float"], to=onnx.TensorProto.FLOAT),
                helper.make_node("Gather", [f"{out}/scales", ids], [f"{out}/scale"]),
                helper.make_node("Mul", [f"{out}/float", f"{out}/scale"], [out]),
            ]
        else:
            continue
        replace(graph, [gather], nodes)
        count += 1
    _tidy(graph)
    return count


def fused_products(model: onnx.ModelProto) -> int:
    """Make one node of onnxruntime's of each quantized product and the bias behind it; return how many."""
    graph, constants, readers = model.graph, _constants(model), readers_of(model.graph)
    makers = {name: node for node in graph.node for name in node.output}
    count = 0
    for product in [node for node in graph.node if node.op_type == "MatMul"]:
        left, right = (makers.get(name) for name in product.input)
        if left is None or right is None or not _quantized(left, makers) or not _weight(right, constants):
            continue
        inputs = [left.input[0], right.input[0], left.input[1], right.input[1], left.input[2], right.input[2]]
        old, out = [product], product.output[0]
        after = readers[out]
        bias = next((name for node in after if node.op_type == "Add" for name in node.input if name in constants), None)
        if len(after) == 1 and bias is not None and len(constants[bias].dims) == 1:
            old, out, inputs = [product, after[0]], after[0].output[0], [*inputs, bias]
        replace(graph, old, [helper.make_node("MatMulIntegerToFloat", inputs, [out], product.name, domain=CONTRIB)], at=old[-1])
        count += 1
    if CONTRIB not in {domain.domain for domain in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    _tidy(graph)
    return count


def _constants(model: onnx.ModelProto) -> Mapping[str, onnx.TensorProto]:
    return {i.name: i for i in model.graph.initializer}


def _quantized(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Say whether a node makes a quantized activation float."""
    return node.op_type == DEQUANTIZE and len(node.input) > 2 and node.input[0] in makers and makers[node.input[0]].op_type == QUANTIZE


def _weight(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Say whether a node makes a product's s8 weights float, of one scale or one a column."""
    if node.op_type != DEQUANTIZE or node.input[0] not in constants or not _symmetric(node, constants):
        return False
    weights, scales = constants[node.input[0]], constants[node.input[1]]
    by_column = list(scales.dims) == [weights.dims[-1]] and _axis(node, 2) == 1
    return len(weights.dims) == 2 and weights.data_type == onnx.TensorProto.INT8 and (not scales.dims or by_column)


def _symmetric(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    return len(node.input) > 2 and node.input[2] in constants and not _array(constants[node.input[2]]).any()


def _array(tensor: onnx.TensorProto) -> NDArray[np.generic]:
    array: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return array


def _axis(node: onnx.NodeProto, dimensions: int) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 1) % dimensions


def _tidy(graph: onnx.GraphProto) -> None:
    """Drop what nothing reads any more, and the noted types, which have changed."""
    read = set(read_by(graph))
    while unread := [n for n in graph.node if n.op_type in (QUANTIZE, DEQUANTIZE) and not read & set(n.output)]:
        for node in unread:
            graph.node.remove(node)
        read = set(read_by(graph))
    inputs = {i.name for i in graph.input}
    kept = [i for i in graph.initializer if i.name in read or i.name in inputs]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
