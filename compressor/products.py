"""The matrix products of a graph: which have constant weights, which are in 8 bits, and which must stay float."""

from collections.abc import Collection
from pathlib import Path

import onnx

from compressor.errors import StageError

PRODUCTS = ("MatMul", "Gemm", "LSTM")
EIGHT_BIT = {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}


def products(path: Path) -> list[str]:
    """Return the names of a float graph's products of constant weights, in their order."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {i.name for i in graph.initializer}
    return [node.name for node in graph.node if node.op_type in PRODUCTS and node.input[1] in weights]


def check_int8(path: Path, what: str) -> None:
    """Check that a graph has products in 8 bits.

    Raises:
        StageError: it has none.
    """
    if not count_products(path)["int8"]:
        raise StageError(f"{what} has no matrix product in 8 bits; this graph's products are not MatMul of constant weights")


def count_products(path: Path) -> dict[str, int]:
    """Return how many matrix products of constant weights are INT8 and how many stayed float."""
    graph = onnx.load(path).graph
    weights = {i.name for i in graph.initializer}
    from_int8 = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
    stayed = sum(n.op_type in PRODUCTS and n.input[1] in weights for n in graph.node)
    turned = sum(n.op_type in EIGHT_BIT or (n.op_type in PRODUCTS and n.input[1] in from_int8) for n in graph.node)
    return {"int8": turned, "float": stayed}


def also_taken_apart(names: Collection[str]) -> list[str]:
    """Return the names of products, and what onnxruntime and Neural Compressor call a Gemm that they have taken apart."""
    return [*names, *(f"{name}_MatMul" for name in names)]


def biases(graph: onnx.GraphProto) -> list[str]:
    """Return the names of look-ups of attention's biases, a number a head: 8 bits save nothing, and onnxruntime 1.31 aborts on them."""
    tables = {i.name for i in graph.initializer if len(i.dims) == 2}
    turned = {
        name for node in graph.node if node.op_type == "Transpose" for name in node.input
    }  # heads come first, which no embedding's do
    return [node.name for node in graph.node if node.op_type == "Gather" and node.input[0] in tables and node.output[0] in turned]


def products_of_activations(graph: onnx.GraphProto) -> list[str]:
    """Return attention's own products, those of two activations: in 8 bits no nearer to float, and slower."""
    constants = {i.name for i in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constants & set(node.input)]
