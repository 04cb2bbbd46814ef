"""`compress explain`: time by class of operator, products counted as they ran, and what it refuses."""

import json
from pathlib import Path
from typing import cast

import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import BundleError, RecipeError
from compressor.explain import Profiled, Step, explain, macs_of, profiled, rows
from compressor.gates import Variant, gains
from compressor.inputs import Inputs
from compressor.summary import _chain
from tests.conftest import compress


@pytest.fixture(scope="session")
def bundle(built: Path) -> Path:
    return built / "artifacts/dist/tiny"


def test_a_float_graph_has_the_closed_form_s_products_and_none_in_int8(built: Path) -> None:
    found = explain(next(built.glob("artifacts/export-*/teacher.onnx")), 8, None, 3)
    hidden, intermediate, tokens, labels = 32, 64, 8, 2
    layer = 4 * hidden**2 * tokens + 2 * hidden * tokens**2 + 2 * hidden * intermediate * tokens
    assert found["million_macs"] == pytest.approx((3 * layer + hidden**2 + hidden * labels) / 1e6)
    assert found["products_in_float"] == 3 * 4 + 2  # queries, keys and values are one product
    assert "INT8 products" not in [row["class"] for row in found["operators"]]
    assert found["findings"][0].startswith("14 products with weights stay in float: ")
    assert found["floor_ms"] == pytest.approx(found["million_macs"] / found["billion_int8_macs_per_second"])
    assert found["over_floor"] == pytest.approx(found["latency_ms"] / found["floor_ms"])
    assert found["stage_gains"] == []


def test_a_bundle_s_products_are_int8_and_fewer_at_its_smallest_point(bundle: Path) -> None:
    full, smallest = explain(bundle, 16, "full", 3), explain(bundle, 16, "min", 3)
    classes = {row["class"]: row for row in full["operators"]}
    assert full["products_in_float"] == 0
    assert classes["INT8 products"]["million_macs"] > classes["attention"]["million_macs"] > 0
    assert smallest["million_macs"] < full["million_macs"]
    assert full["operators"][-1]["class"] == "between operators"
    assert [gain["stage"] for gain in full["stage_gains"]][:2] == ["distill and length_adapt", "quantize"]


@pytest.mark.parametrize(
    ("stages", "links"),
    [
        (["finetune", "distill", "quantize"], ["distill", "quantize"]),
        (["finetune", "length_adapt", "quantize", "search"], ["length_adapt", "quantize", "search: fast"]),
        (["finetune", "distill", "length_adapt", "search"], ["distill and length_adapt", "search: fast"]),
        (["finetune", "quantize", "cascade"], ["quantize", "cascade"]),
        (["finetune"], []),
    ],
)
def test_each_stage_is_credited_with_what_it_gave(stages: list[str], links: list[str]) -> None:
    """Each row is twice as fast as the one before; what a stage that did not run would have made is no link's doing."""
    quantized = "quantize" in stages
    ships = "INT8" if quantized else "fp32"
    order = ["teacher fp32", "student fp32", f"{ships} full", f"{ships} fast", f"{ships} cascade"]
    milliseconds = dict(zip(order, (16.0, 8.0, 4.0 if quantized else 8.0, 2.0, 1.0), strict=True))
    table = {name: Variant(name, 0.9, (0.8, 1.0), ms, ms, 1.0, ms) for name, ms in milliseconds.items()}
    seconds = {name: 10.0 * (number + 1) for number, name in enumerate(stages)}
    inputs = cast(Inputs, {"int8_graph": None} if quantized else {})
    found = gains(_chain(seconds, table, inputs, "fast", "onnxruntime"))
    assert [link["stage"] for link in found] == links
    elsewhere = [link["stage"] for link in gains(_chain(seconds, table, inputs, "fast", "openvino"))]
    if quantized:
        assert elsewhere == [f"{name} and openvino" if name == "quantize" else name for name in links]
    else:  # full length in floats is timed in both
        assert elsewhere == [name for link in links for name in (["openvino", link] if link.startswith("search") else [link])] or not links
    for link in found:
        own = [name for name in stages if name in link["stage"].split(":")[0].split(" and ")]
        assert link["seconds"] == sum(seconds[name] for name in own)
        slower = {"search: fast": 2 if quantized else 4, "cascade": 4 if "search" not in stages else 2}.get(link["stage"], 2)
        assert link["speedup_factor"] == slower


def test_a_class_is_the_median_over_runs_and_branches_are_not_counted_twice() -> None:
    def event(name: str, operator: str, start: int, duration: int) -> dict[str, object]:
        shapes = {"input_type_shape": [{"float": [1, 4, 8]}], "output_type_shape": [{"float": [1, 4, 16]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": {"op_name": operator, **shapes}}

    runs = [{"cat": "Session", "name": "model_run", "ts": at, "dur": 100, "args": {}} for at in (0, 200)]
    nodes = [event("a", "MatMul", 10, 20), event("i", "If", 30, 50), event("b", "Gelu", 35, 40), event("a", "MatMul", 210, 40)]
    found = profiled([*runs, *nodes])
    assert found[0] == Profiled(0.1, [Step("a", "MatMul", 0.02, 4 * 16 * 8, True), Step("b", "Gelu", 0.04, 0, True)])
    table = {row["class"]: row for row in rows(found)}
    assert table["float products"] == {
        "class": "float products",
        "nodes": 1,
        "ms": 0.03,
        "share": pytest.approx(0.3),
        "million_macs": 512 / 1e6,
    }
    assert table["between operators"]["ms"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("operator", "read", "written", "macs"),
    [
        ("DynamicQuantizeMatMul", [[1, 4, 8], [16]], [[1, 4, 16]], 4 * 8 * 16),
        ("FusedMatMul", [[1, 2, 4, 3], [1, 2, 3, 5]], [[1, 2, 4, 5]], 2 * 4 * 3 * 5),
        ("MultiHeadAttention", [[1, 1, 8], [1, 4, 8], [1, 4, 8]], [[1, 1, 8]], 2 * 4 * 8),
        ("LSTM", [[4, 1, 8]], [[4, 2, 1, 16]], 4 * 2 * 4 * 16 * (8 + 16)),
        ("Add", [[1, 4, 8], [8]], [[1, 4, 8]], 0),
    ],
)
def test_multiply_accumulates_follow_from_what_an_operator_read_and_wrote(
    operator: str, read: list[list[int]], written: list[list[int]], macs: int
) -> None:
    assert macs_of(operator, read, written) == macs


def test_what_does_not_fit_is_refused_in_one_line(bundle: Path, built: Path, tmp_path: Path) -> None:
    teacher = next(built.glob("artifacts/export-*/teacher.onnx"))
    with pytest.raises(RecipeError, match="tiny reads 32 tokens at most; choose --tokens 32"):
        explain(bundle, 33, None, 1)
    with pytest.raises(RecipeError, match="teacher.onnx: onnxruntime cannot run 65 tokens"):
        explain(teacher, 65, None, 1)
    with pytest.raises(RecipeError, match="teacher.onnx has no operating points; leave out --point"):
        explain(teacher, 8, "full", 1)
    with pytest.raises(BundleError, match="no operating point 'quick'"):
        explain(bundle, 8, "quick", 1)
    with pytest.raises(RecipeError, match="tiny reads 32 tokens at most"):
        explain(bundle, 10**14, None, 1)
    with pytest.raises(BundleError, match="no bundle here"):
        explain(tmp_path, 8, None, 1)


def test_the_command_line_explains_a_bundle_for_people_and_for_programs(bundle: Path, tmp_path: Path) -> None:
    told = compress("explain", str(bundle), "--tokens", "16", "--rounds", "2", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert "INT8 products" in told.stdout
    done = compress("explain", str(bundle), "--rounds", "2", "--format", "json", cwd=tmp_path)
    assert (json.loads(done.stdout)["point"], json.loads(done.stdout)["tokens"]) == ("fast", 32)


def test_attention_of_other_tools_counts_what_it_multiplies() -> None:
    tokens, hidden = 10, 32
    fused = macs_of("Attention", [[2, tokens, hidden], [hidden, 3 * hidden]], [[2, tokens, hidden]])
    assert fused == 2 * (tokens * hidden * 3 * hidden + 2 * tokens**2 * hidden)
    assert macs_of("QAttention", [[2, tokens, hidden]], [[2, tokens, hidden]]) == fused  # its weights are packed
    assert macs_of("Attention", [[2, 4, tokens, 8]] * 3, [[2, 4, tokens, 8]]) == 2 * (2 * tokens**2 * hidden)


def test_a_graph_without_products_is_told(tmp_path: Path) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [None, None])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None])
    nodes = [helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)]
    model = helper.make_model(helper.make_graph(nodes, "none", [ids], [logits]), opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "none.onnx")
    with pytest.raises(RecipeError, match="has no product of matrices that is known here; 'compress bench' times it"):
        explain(tmp_path / "none.onnx", 8, None, 2)
