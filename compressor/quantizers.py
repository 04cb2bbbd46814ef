"""The quantizers: a float graph goes in, an INT8 graph comes out.

What:     `dynamic` takes each run's own range for activations and needs no data; `static` (NNCF) measures ranges on calibration texts,
          moves outliers from activations into weights, and corrects the biases; `neural_compressor` measures ranges alone.
Papers:   SmoothQuant (arXiv:2211.10438); data-free quantization's bias correction (arXiv:1906.04721).
Formula:  SmoothQuant: (x · diag(s)^-1)(diag(s) · W), which is x·W, with s_j = max|x_j|^a / max|W_j|^(1-a).
Limits:   a dynamic graph has one activation scale for a whole batch, so it is fed one text a run; a static one takes batches.
"""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from compressor import machine, neural_compressor_script
from compressor.environments import NEURAL_COMPRESSOR
from compressor.errors import StageError, UnfitError
from compressor.fusion import CONTRIB
from compressor.rewrites import fused_products, gathered_rows, unsigned_activations
from compressor.tokens import Ints

Feed = Mapping[str, Ints]
"""What one run of the graph reads."""
FLOAT = {"DefaultTensorType": onnx.TensorProto.FLOAT}
"""Type of what lies behind an operator of onnxruntime's own, whose output ONNX cannot infer."""
PRODUCTS = ("MatMul", "Gemm", "LSTM")
EIGHT_BIT = {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}


def dynamic(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph with weights in s8, a scale a channel, and activations in u8 by each run's own range; `feeds` are not read.

    Products called as in `kept` stay float; with `reduce_range` weights take 7 bits.
    """
    with _quiet():
        quantize_dynamic(
            source,
            target,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*_also_taken_apart(kept), *_biases(onnx.load(source).graph)],
            extra_options=FLOAT,
        )


def static(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph with weights in s8, a scale a channel, and activations in u8 by the ranges that `feeds` show.

    Products called as in `kept` stay float; with `reduce_range` weights take 7 bits.

    Raises:
        UnfitError: nncf is not installed.
    """
    onnx.save(_rewritten(simulated(source, feeds, kept, reduce_range=reduce_range)), target)


def neural_compressor(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph as `static` does, by Intel Neural Compressor in an environment of its own, without SmoothQuant.

    Raises:
        StageError: it cannot quantize this graph.
        UnfitError: its environment cannot be made.
    """
    model = onnx.load(source)
    lengths = [i for i in model.graph.initializer if i.name == "lengths"]
    for default in lengths:
        model.graph.initializer.remove(default)  # it takes inputs that have a default for constants
    _read_through_identities(model.graph)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        onnx.save(model, scratch / "float.onnx")
        stay = [*_products_of_activations(model.graph), *_biases(model.graph), *_also_taken_apart(kept)]
        arrays: dict[str, Any] = {f"{number}/{name}": array for number, feed in enumerate(feeds) for name, array in feed.items()}
        np.savez(scratch / "feeds.npz", **arrays)
        (scratch / "kept.json").write_text(json.dumps(stay), encoding="utf-8")
        files = ["float.onnx", "int8.onnx", "feeds.npz", "kept.json"]
        NEURAL_COMPRESSOR.run(Path(neural_compressor_script.__file__), [*files, str(int(reduce_range))], scratch)
        model = onnx.load(scratch / "int8.onnx")
    model.graph.initializer.extend(lengths)
    onnx.save(_rewritten(model), target)


def _read_through_identities(graph: onnx.GraphProto) -> None:
    """Put a node before each Cast of an input: Neural Compressor looks for one there and fails without."""
    inputs, nodes = {i.name for i in graph.input}, list[onnx.NodeProto]()
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in inputs:
            nodes.append(helper.make_node("Identity", [node.input[0]], [f"{node.output[0]}/read"], f"{node.output[0]}/read"))
            node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph whose products are simulated in 8 bits as one that onnxruntime is fast at."""
    unsigned_activations(model)
    gathered_rows(model)
    if CONTRIB in {domain.domain for domain in model.opset_import}:
        fused_products(model)
    return model


def _also_taken_apart(names: Collection[str]) -> list[str]:
    """Return the names of products, and what onnxruntime and Neural Compressor call a Gemm that they have taken apart."""
    return [*names, *(f"{name}_MatMul" for name in names)]


def _biases(graph: onnx.GraphProto) -> list[str]:
    """Return the names of look-ups of attention's biases, a number a head: 8 bits save nothing, and onnxruntime 1.31 aborts on them."""
    tables = {i.name for i in graph.initializer if len(i.dims) == 2}
    turned = {
        name for node in graph.node if node.op_type == "Transpose" for name in node.input
    }  # heads come first, which no embedding's do
    return [node.name for node in graph.node if node.op_type == "Gather" and node.input[0] in tables and node.output[0] in turned]


def _products_of_activations(graph: onnx.GraphProto) -> list[str]:
    """Return attention's own products, those of two activations: in 8 bits no nearer to float, and slower."""
    constants = {i.name for i in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not constants & set(node.input)]


def simulated(source: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> onnx.ModelProto:
    """Return the graph as NNCF quantizes it: float products between nodes that quantize and dequantize."""
    if not machine.installed("nncf"):
        raise UnfitError("quantize.backend nncf needs the [nncf] extra: pip install 'encoder-compressor[nncf]', or choose onnxruntime")
    os.environ["NNCF_CI"] = "1"  # it would send telemetry
    graph = onnx.load(source)
    for node in graph.graph.node:
        node.name = node.name or node.output[0]
    with _quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        overflow = nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE
        model: onnx.ModelProto = nncf.quantize(
            graph,
            nncf.Dataset(list(feeds)),
            preset=nncf.QuantizationPreset.MIXED,  # activations have a zero point, weights have none
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(names=[*_products_of_activations(graph.graph), *_biases(graph.graph), *kept]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
        )
    return model


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizers' notes, bars and warnings off the terminal: what they advise makes these graphs slower."""
    ort.set_default_logger_severity(3)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        ort.set_default_logger_severity(2)


class Quantizer(Protocol):
    """Writes the INT8 form of a graph."""

    def __call__(
        self, source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False
    ) -> None: ...


QUANTIZERS: Mapping[str, Quantizer] = {"onnxruntime": dynamic, "nncf": static, "neural-compressor": neural_compressor}
"""By the recipe's `quantize.backend`."""
SINGLE = frozenset({"onnxruntime"})
"""Backends whose graphs must be fed one text a run."""
