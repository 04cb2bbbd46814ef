"""What the rewrites of a quantized graph promise: the same answers, by other nodes."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.graphs import export_graph
from compressor.modeling import LengthAdaptiveModel
from compressor.products import count_products, products
from compressor.quantizers import Feed, Quantizer, dynamic, simulated, smoothed, static
from compressor.rewrites import fused_products, gathered_rows, unsigned_activations
from compressor.settings.deploying import Export
from tests.test_graphs import TEXTS, tiny, tokens

PRODUCTS = 4 + 4 + 5
"""Of each layer: queries, keys and values, the attention's output, two of the feed-forward; in the last one [CLS] asks on its own."""


@pytest.fixture(scope="module")
def feeds(tiny_model: Path) -> list[Feed]:
    lengths = (np.array([32, 32, 32]), np.array([16, 8, 4]))
    return [{**text.padded(0), "lengths": lengths[row % 2]} for row, text in enumerate(tokens(tiny_model, *TEXTS))]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, feeds: list[Feed]) -> onnx.ModelProto:
    path, model = tmp_path_factory.mktemp("float") / "model.onnx", tiny().model
    for bias in (p for p in model.parameters() if p.ndim == 1):
        torch.nn.init.normal_(bias, std=0.1)  # the exporter keeps equal ones once, behind other nodes
    export_graph(LengthAdaptiveModel(model, 32, "cls").eval(), path)
    return simulated(path, feeds)


@pytest.fixture
def model(quantized: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(quantized)
    return copy


def answers(model: onnx.ModelProto, feeds: list[Feed]) -> np.ndarray:
    """Logits as the nodes say: onnxruntime fuses nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return np.concatenate([session.run(["logits"], feed)[0] for feed in feeds])


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def activation_types(model: onnx.ModelProto) -> set[np.dtype]:
    constants = {i.name: i for i in model.graph.initializer}
    return {numpy_helper.to_array(constants[node.input[2]]).dtype for node in model.graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("rewrite", [unsigned_activations, gathered_rows, lambda m: unsigned_activations(m) and fused_products(m)])
def test_a_rewrite_changes_no_answer(
    rewrite: Callable[[onnx.ModelProto], int], model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: list[Feed]
) -> None:
    assert rewrite(model) > 0
    onnx.checker.check_model(model)
    np.testing.assert_allclose(answers(model, feeds), answers(quantized, feeds), atol=1e-5, rtol=0)


def test_activations_become_unsigned(model: onnx.ModelProto) -> None:
    assert activation_types(model) == {np.dtype(np.int8)}
    unsigned_activations(model)
    assert activation_types(model) == {np.dtype(np.uint8)}


def test_a_zero_point_that_a_weight_shares_stays_signed(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    expected, one = answers(model, feeds), np.ones((4, 4), np.int8)
    made = {"weights": one, "scale": np.float32(1), "shared": np.int8(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in made.items())
    model.graph.node.extend(
        [
            helper.make_node("DequantizeLinear", ["weights", "scale", "shared"], ["float"]),
            helper.make_node("QuantizeLinear", ["float", "scale", "shared"], ["again"]),
            helper.make_node("DequantizeLinear", ["again", "scale", "shared"], ["out"]),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4, 4]))
    unsigned_activations(model)
    np.testing.assert_array_equal(ort.InferenceSession(model.SerializeToString()).run(["out"], feeds[0])[0], one)
    np.testing.assert_allclose(answers(model, feeds), expected, atol=1e-5, rtol=0)


def test_no_table_is_made_float_as_a_whole(model: onnx.ModelProto) -> None:
    tables = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) == 2}

    def whole() -> int:
        made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in tables}
        return sum(n.op_type == "Gather" and n.input[0] in made for n in model.graph.node)

    before = whole()
    assert before > 0
    assert gathered_rows(model) == before
    assert whole() == 0


@pytest.mark.parametrize(
    ("scales", "zeros", "gathered"), [([0.5], [7], 1), ([0.5, 0.25, 2.0], [0, 0, 0], 1), ([0.5, 0.25, 2.0], [0, 1, 0], 0)]
)
def test_rows_of_a_table_are_what_they_were(scales: list[float], zeros: list[int], gathered: int) -> None:
    """A table with a zero point, one with a scale a row, and one with both, which stays as it is."""
    rng = np.random.default_rng(0)
    arrays = {"table": rng.integers(0, 255, (3, 4), np.uint8), "scale": np.array(scales, np.float32), "zero": np.array(zeros, np.uint8)}
    made = [numpy_helper.from_array(array.squeeze() if array.size == 1 else array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("DequantizeLinear", list(arrays), ["whole"], axis=0), helper.make_node("Gather", ["whole", "ids"], ["rows"])]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["texts", "tokens"])
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "look-up", [ids], [rows], made), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    asked = {"ids": np.array([[2, 0], [1, 1]])}
    expected = ort.InferenceSession(model.SerializeToString()).run(["rows"], asked)[0]
    assert gathered_rows(model) == gathered
    np.testing.assert_array_equal(ort.InferenceSession(model.SerializeToString()).run(["rows"], asked)[0], expected)
    assert (next(node for node in model.graph.node if node.op_type == "Gather").input[0] == "table") is bool(gathered)


def test_every_product_becomes_one_node_with_its_bias(model: onnx.ModelProto) -> None:
    unsigned_activations(model)
    before = kinds(model)
    count = fused_products(model)
    after = kinds(model)
    assert after["MatMulIntegerToFloat"] == count == before["MatMul"] - after["MatMul"] == PRODUCTS
    assert all(len(node.input) == 7 for node in model.graph.node if node.op_type == "MatMulIntegerToFloat")
    assert before["Add"] - after["Add"] == count


def test_products_of_two_activations_stay_float(tmp_path: Path, feeds: list[Feed]) -> None:
    """In a portable graph attention's products are nodes of their own."""
    path = tmp_path / "model.onnx"
    export_graph(LengthAdaptiveModel(tiny().model, 32, "cls").eval(), path, Export(portable=True))
    model = simulated(path, feeds)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    constants = {i.name for i in model.graph.initializer}
    sources = [[makers.get(name) for name in n.input] for n in model.graph.node if n.op_type == "MatMul" and not constants & set(n.input)]
    attention = [kinds for kinds in sources if kinds != ["DequantizeLinear"] * 2]
    assert len(attention) == 2 * 3  # queries by keys and probabilities by values, in three layers
    assert all("DequantizeLinear" not in kinds for kinds in attention)


@pytest.mark.parametrize("quantizer", [dynamic, static, smoothed])
def test_a_portable_graph_stays_portable(quantizer: Quantizer, tmp_path: Path, feeds: list[Feed]) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_graph(LengthAdaptiveModel(tiny().model, 32, "cls").eval(), source, Export(portable=True))
    quantizer(source, target, feeds)
    assert count_products(target) == {"int8": len(products(source)), "float": 0}
    assert {node.domain for node in onnx.load(target).graph.node} <= {"", "ai.onnx"}
    floats, eights = answers(onnx.load(source), feeds), answers(onnx.load(target), feeds)
    np.testing.assert_allclose(eights, floats, atol=0.05)


def test_what_has_another_form_stays(tmp_path: Path) -> None:
    """A float graph has nothing to rewrite."""
    export_graph(tiny(), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    before = kinds(model)
    assert (unsigned_activations(model), gathered_rows(model), fused_products(model)) == (0, 0, 0)
    assert kinds(model) == before
