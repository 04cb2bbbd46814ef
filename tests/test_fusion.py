"""What is made faster computes the same."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import BertForTokenClassification

from compressor.attention import Significance
from compressor.errors import StageError
from compressor.fusion import CONTRIB, merge_products, operators
from compressor.graphs import export_graph, parity
from compressor.halving import export_halves
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.operators import expand
from compressor.session import Graph, session
from compressor.settings.deploying import Export
from compressor.tokens import Tokens
from tests.test_graphs import CONFIGURATIONS, TEXTS, adaptive, tiny, tokens


@pytest.mark.parametrize("opset", [14, 17, 20])
@pytest.mark.parametrize("kind", ["attention", "sampled", "cls", "learned"])
def test_a_portable_graph_answers_alike_with_operators_of_onnx_alone(
    tmp_path: Path, tiny_model: Path, kind: Significance, opset: int
) -> None:
    model, texts = adaptive(tiny().model, 32, kind), tokens(tiny_model, *TEXTS)
    paths = {portable: tmp_path / f"{portable}.onnx" for portable in (False, True)}
    for portable, path in paths.items():
        export_graph(model, path, Export(opset=opset, portable=portable))
        assert parity(model, path, texts, CONFIGURATIONS, 0, 1e-4) < 1e-4
    onnx.checker.check_model(onnx.load(paths[True]), full_check=True)
    assert {o.domain for o in onnx.load(paths[True]).opset_import} == {""}
    assert CONTRIB in {o.domain for o in onnx.load(paths[False]).opset_import}


@pytest.mark.parametrize("kind", ["attention", "sampled", "cls", "learned"])
def test_attention_is_fused_wherever_nothing_reads_its_probabilities(tmp_path: Path, kind: Significance) -> None:
    export_graph(adaptive(tiny().model, 32, kind), tmp_path / "model.onnx")
    found = Counter(operators(onnx.load(tmp_path / "model.onnx").graph))
    assert found["MultiHeadAttention"] == 2 * 3  # in each layer with and without a mask
    assert found["Softmax"] == 2 * (1 if kind == "learned" else 2)  # of the two layers that tokens leave; votes need a mask, states none


@pytest.mark.parametrize("kind", ["attention", "sampled", "cls", "learned"])
@pytest.mark.parametrize("head", ["sentence", "token"])
def test_layers_that_no_token_leaves_rank_none(tmp_path: Path, tiny_model: Path, kind: Significance, head: str) -> None:
    """By what onnxruntime says that it ran: at full length nothing is ranked, at others only where tokens leave."""
    model = LengthAdaptiveModel(tiny().model if head == "sentence" else BertForTokenClassification(tiny().model.config), 32, kind)
    export_graph(model.eval(), tmp_path / "model.onnx")
    text = tokens(tiny_model, TEXTS[-1])
    ran = {
        lengths: Counter(ran_by(tmp_path / "model.onnx", text, lengths)) for lengths in [(32, 32, 32), (32, 9, 9), (9, 9, 9), (20, 10, 9)]
    }
    assert [c["TopK"] for c in ran.values()] == [0, 1, 1, 2 if head == "sentence" else 3]
    put_back = [0, 0, 0, 0] if head == "sentence" else [1, 2, 1, 3]
    assert [c["ScatterND"] for c in ran.values()] == put_back


def ran_by(path: Path, text: Tokens, lengths: Sequence[int]) -> Iterator[str]:
    """Yield the operators of one run."""
    graph = Graph(path, single=False)
    graph.session = session(path, 1, profile=path.parent / "profile")
    graph.run(text, lengths)
    for event in json.loads(Path(graph.session.end_profiling()).read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            yield event["args"]["op_name"]


def test_queries_keys_and_values_are_one_product_where_all_tokens_ask(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_graph(tiny(), tmp_path / "model.onnx")
    assert capfd.readouterr().err == ""
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [len(n.output) for n in graph.node if n.op_type == "Split"] == [3, 3, 2]  # the last layer's only query is [CLS]


def test_a_graph_that_is_less_fused_than_it_should_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.graphs.merge_products", lambda graph: 0)
    with pytest.raises(StageError, match=r"0 merged products of queries, keys and values instead of 3; choose the other export\.exporter"):
        export_graph(tiny(), tmp_path / "model.onnx")
    monkeypatch.undo()
    monkeypatch.setattr("compressor.graphs.expand", lambda graph, opset, portable: expand(graph, opset, portable=True))
    with pytest.raises(StageError, match="0 fused attentions instead of 2"):
        export_halves(PlainModel(adaptive(tiny().model, 32, "cls").model), 1, tmp_path)


def products(readers: int) -> onnx.ModelProto:
    """Return a graph of three products of one input, the first of which so many nodes read."""
    rng = np.random.default_rng(0)
    nodes, constants = [], []
    for i, width in enumerate((3, 5, 2)):
        nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"p{i}"], f"product{i}"))
        nodes.append(helper.make_node("Add", [f"b{i}", f"p{i}"], [f"y{i}"], f"sum{i}"))
        constants.append(numpy_helper.from_array(rng.normal(size=(4, width)).astype(np.float32), f"w{i}"))
        constants.append(numpy_helper.from_array(rng.normal(size=width).astype(np.float32), f"b{i}"))
    nodes += [helper.make_node("Neg", ["p0"], [f"z{i}"]) for i in range(readers - 1)]
    outputs = [f"y{i}" for i in range(3)] + [f"z{i}" for i in range(readers - 1)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, 4])], values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("readers", "left"), [(1, 1), (2, 2)])
def test_products_of_one_input_become_one(readers: int, left: int) -> None:
    model = products(readers)
    plain = onnx.reference.ReferenceEvaluator(products(readers))
    assert merge_products(model) == 1
    assert [n.op_type for n in model.graph.node].count("MatMul") == left
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    for ours, theirs in zip(onnx.reference.ReferenceEvaluator(model).run(None, {"x": x}), plain.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    names = {i.name for i in model.graph.initializer}
    assert names <= {name for n in model.graph.node for name in n.input}


def test_a_text_that_is_padded_answers_as_it_does_alone(tmp_path: Path, tiny_model: Path) -> None:
    """The graph's two ways, with mask work and without, meet."""
    torch.manual_seed(0)
    export_graph(LengthAdaptiveModel(tiny().model, 32, "cls").eval(), tmp_path / "model.onnx")
    graph, texts = Graph(tmp_path / "model.onnx", single=False), tokens(tiny_model, *TEXTS)
    together = graph.run(texts, (20, 10, 1))
    alone = np.concatenate([graph.run(text, (20, 10, 1)) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
