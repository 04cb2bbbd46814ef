"""The quantizers: a float graph goes in, an INT8 graph comes out.

What:     `dynamic` takes each run's own range for activations and needs no data; `static` measures ranges on calibration texts;
          `smoothed` (NNCF) also moves outliers from activations into weights, and corrects the biases.
Papers:   SmoothQuant (arXiv:2211.10438); data-free quantization's bias correction (arXiv:1906.04721).
Formula:  SmoothQuant: (x · diag(s)^-1)(diag(s) · W), which is x·W, with s_j = max|x_j|^a / max|W_j|^(1-a).
Limits:   a dynamic graph has one activation scale for a whole batch, so it is fed one text a run; a static one takes batches.
"""

import json
import logging
import os
import shutil
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
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

from compressor import machine, neural_compressor_script
from compressor.environments import NEURAL_COMPRESSOR
from compressor.errors import UnfitError, install
from compressor.fusion import CONTRIB
from compressor.products import also_taken_apart, biases, products_of_activations
from compressor.rewrites import fused_products, gathered_rows, unsigned_activations
from compressor.tokens import Ints

Feed = Mapping[str, Ints]
"""What one run of the graph reads."""
FLOAT = {"DefaultTensorType": onnx.TensorProto.FLOAT}
"""Type of what lies behind an operator of onnxruntime's own, whose output ONNX cannot infer."""
STATIC = ["MatMul", "Gemm"]
"""What onnxruntime quantizes by measured ranges: other operators in 8 bits wreck an encoder (optimum#151)."""


def dynamic(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph with weights in s8, a scale a channel, and activations in u8 by each run's own range; `feeds` are not read.

    Products called as in `kept` stay float; with `reduce_range` weights take 7 bits.
    """
    biased = biases(onnx.load(source).graph)
    shutil.copyfile(source, target)  # onnxruntime writes beside what it reads, and that lies in a finished artifact
    with _quiet():
        quantize_dynamic(
            target,
            target,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*also_taken_apart(kept), *biased],
            extra_options=FLOAT,
        )


class _Texts(CalibrationDataReader):  # type: ignore[misc]
    """Calibration texts as onnxruntime asks for them: one at a time, then None."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def static(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph with weights in s8, a scale a channel, and activations in u8 by the smallest and the largest that `feeds` show.

    Products called as in `kept` stay float; with `reduce_range` weights take 7 bits.
    """
    graph = onnx.load(source).graph
    stay = [*products_of_activations(graph), *biases(graph), *also_taken_apart(kept)]
    extra = FLOAT | {"OpTypesToExcludeOutputQuantization": STATIC}  # a product's output in 8 bits loses more and saves nothing
    shutil.copyfile(source, target)  # as above
    with _quiet():
        # Tables first: by measured ranges, what is taken out of them would be quantized a second time.
        quantize_dynamic(target, target, ["Gather"], weight_type=QuantType.QInt8, nodes_to_exclude=stay, extra_options=FLOAT)
        quantize_static(
            target,
            target,
            _Texts(feeds),
            op_types_to_quantize=STATIC,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=stay,
            extra_options=extra,
        )
    onnx.save(_rewritten(onnx.load(target)), target)


def smoothed(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph as `static` does, by NNCF, with SmoothQuant and bias correction.

    Raises:
        UnfitError: nncf is not installed.
    """
    onnx.save(_rewritten(simulated(source, feeds, kept, reduce_range=reduce_range)), target)


def neural_compressor(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> None:
    """Write the graph as `static` does, by Intel Neural Compressor in an environment of its own.

    Raises:
        StageError: it cannot quantize this graph.
        UnfitError: its environment cannot be made.
    """
    model = onnx.load(source)
    lengths = [i for i in model.graph.initializer if i.name == "lengths"]
    for default in lengths:
        model.graph.initializer.remove(default)  # it takes inputs that have a default for constants
    _read_through_identities(model.graph)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # a small /tmp may not hold the graphs
        scratch = Path(folder)
        onnx.save(model, scratch / "float.onnx")
        stay = [*products_of_activations(model.graph), *biases(model.graph), *also_taken_apart(kept)]
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


def simulated(source: Path, feeds: Sequence[Feed], kept: Collection[str] = (), *, reduce_range: bool = False) -> onnx.ModelProto:
    """Return the graph as NNCF quantizes it: float products between nodes that quantize and dequantize."""
    if not machine.installed("nncf"):
        raise UnfitError(f"quantize.backend nncf needs the [nncf] extra: {install('nncf')}, or choose onnxruntime")
    graph = onnx.load(source)
    for node in graph.graph.node:
        node.name = node.name or node.output[0]
    _own_weights(graph.graph)
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
            ignored_scope=nncf.IgnoredScope(names=[*products_of_activations(graph.graph), *biases(graph.graph), *kept]),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
        )
    return model


def _own_weights(graph: onnx.GraphProto) -> None:
    """Give each product a weight of its own where several share one behind an Identity, as DeBERTa's do: NNCF finds no weight there."""
    given = {value.name for value in graph.input}  # with a default, as lengths, which may be given otherwise
    weights = {weight.name: weight for weight in graph.initializer if weight.name not in given}
    shared = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]
    for node in shared:
        graph.initializer.add().CopyFrom(weights[node.input[0]])
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


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


QUANTIZERS: Mapping[str, Quantizer] = {
    "onnxruntime": dynamic,
    "onnxruntime-static": static,
    "nncf": smoothed,
    "neural-compressor": neural_compressor,
}
"""By the recipe's `quantize.backend`."""
SINGLE = frozenset({"onnxruntime"})
"""Backends whose graphs must be fed one text a run."""
