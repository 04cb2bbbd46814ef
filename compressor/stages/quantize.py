"""Quantize the graph to zero-point INT8.

What:     matrix products and embedding tables in 8 bits: u8 activations with a zero point, s8 weights with a scale per channel.
Paper:    Jacob et al. (arXiv:1712.05877); ZeroQuant's and onnxruntime's dynamic activations (arXiv:2206.01861).
Formula:  x ≈ scale · (q - zero_point); activations' scale and zero point from each run's own range.
Defaults: onnxruntime dynamic, per channel.
Limits:   one activation scale for a whole batch: such a graph is fed one text a run, so that answers never depend on the batch.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from compressor.errors import StageError
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.runtime import Graph
from compressor.splits import MODEL, Splits, task_of

FLOAT = {"DefaultTensorType": onnx.TensorProto.FLOAT}
"""Type of what lies behind an operator of onnxruntime's own, whose output ONNX cannot infer."""
EIGHT_BIT = {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "DynamicQuantizeLSTM"}


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the INT8 model.onnx; return its score and the float graph's on the validation split."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    source, target = inputs["float_graph"].path / "model.onnx", out / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # it advises a pre-processing that fuses first, which makes this slower
        try:
            quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, extra_options=FLOAT)
        finally:
            logging.disable(logging.NOTSET)
    counts = count_products(target)
    if not counts["int8"]:
        raise StageError("quantize: no matrix product became INT8; this graph's products are not MatMul of constant weights")
    folder = inputs["checkpoint"].path / MODEL
    validation = splits.encoded("validation", task, folder)
    scores = {}
    for name, path, single in (("float", source, False), ("int8", target, True)):
        logits = Graph(path, 2, single=single, pad_id=validation.pad_id).logits(validation.tokens)
        scores[name] = validation.score(logits, recipe.task.metric)
    log.note(f"{recipe.task.metric} on validation: float {scores['float']:.4f}, INT8 {scores['int8']:.4f}")
    return {"products": counts, "validation": scores, "validation_score": scores["int8"], "megabytes": target.stat().st_size / 1e6}


def count_products(path: Path) -> dict[str, int]:
    """Return how many matrix products of constant weights are INT8 and how many stayed float."""
    graph = onnx.load(path).graph
    weights = {i.name for i in graph.initializer}
    stayed = sum(n.op_type in ("MatMul", "Gemm", "LSTM") and n.input[1] in weights for n in graph.node)
    return {"int8": sum(n.op_type in EIGHT_BIT for n in graph.node), "float": stayed}
