"""One ONNX file in OpenVINO, behind the calls that this package makes of an onnxruntime session.

What:     the graph as OpenVINO reads it; where the processor multiplies bfloat16, OpenVINO computes float parts in it by itself.
Defaults: its latency hint; threads as given; a stream for each run beside another, because runs of one stream wait for each other.
Limits:   it always takes the general branch, which masks and drops even where nothing is padded or dropped: 2026.4 answers a text that is
          longer than all before it wrongly when a branch is chosen at run time. 8-bit products whose scale is found at run time
          (`quantize.backend: onnxruntime`) have no fast kernel there.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compressor.errors import UnfitError, install, one_line

LENGTHS = "lengths"


class Named(NamedTuple):
    """An input or an output."""

    name: str
    shape: Sequence[Any] = ()


class OpenVINOSession:
    """A compiled graph, which several threads may ask at once."""

    def __init__(self, path: Path | str, threads: int, beside: int = 1) -> None:
        """Read and compile the file, for so many runs beside each other, of so many threads each.

        Raises:
            UnfitError: OpenVINO is not installed, or cannot read the graph.
        """
        try:
            import openvino
        except ImportError:
            remedy = f"{install('openvino')}, or choose backend onnxruntime"
            raise UnfitError(f"backend openvino needs the [openvino] extra: {remedy}") from None
        core, options = openvino.Core(), dict[str, Any](INFERENCE_NUM_THREADS=threads * beside)
        options |= {"PERFORMANCE_HINT": "LATENCY"} if beside == 1 else {"NUM_STREAMS": beside}
        try:
            model = core.read_model(str(path))
            self._default = _free_lengths(model)
            _take_general_branches(model)
            model.validate_nodes_and_infer_types()
            self._compiled, self._own = core.compile_model(model, "CPU", options), threading.local()
        except RuntimeError as error:  # all that OpenVINO raises
            told = one_line(error)
            raise UnfitError(f"{path}: openvino cannot read this graph: {told}; choose backend onnxruntime") from None
        names = [x.any_name for x in model.inputs]
        self._inputs, self._outputs = [Named(n) for n in names if n != LENGTHS], [Named(x.any_name) for x in model.outputs]

    def get_inputs(self) -> Sequence[Named]:
        """Return what every run is given."""
        return self._inputs

    def get_overridable_initializers(self) -> Sequence[Named]:
        """Return what a run may be given."""
        return [] if self._default is None else [Named(LENGTHS, self._default.shape)]

    def get_outputs(self) -> Sequence[Named]:
        """Return what may be asked."""
        return self._outputs

    def run(self, outputs: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
        """Return these outputs of one padded batch."""
        if not hasattr(self._own, "request"):  # a request answers one thread at a time
            self._own.request = self._compiled.create_infer_request()
        self._own.request.infer(dict(feed) if self._default is None else {LENGTHS: self._default, **feed})
        return [self._own.request.get_tensor(name).data.copy() for name in outputs]


def _free_lengths(model: Any) -> Any:
    """Make an input of `lengths`, which OpenVINO reads as a constant, and return its value; None: there are none."""
    from openvino import opset8 as operators

    constant = next((op for op in model.get_ops() if op.get_friendly_name() == LENGTHS and op.get_type_name() == "Constant"), None)
    if constant is None:
        return None
    parameter = operators.parameter(constant.get_output_shape(0), np.int64, name=LENGTHS)
    parameter.output(0).tensor.set_names({LENGTHS})
    constant.output(0).replace(parameter.output(0))
    model.add_parameters([parameter])
    return constant.data.copy()


def _take_general_branches(model: Any) -> None:
    """Let every choice be made for its first branch: of this package's graphs (compressor/operators.py) that one is right for all texts."""
    from openvino import opset8 as operators

    for choice in [op for op in model.get_ops() if op.get_type_name() == "If"]:
        choice.input(0).replace_source_output(operators.constant(np.array(True)).output(0))
        for branch in range(2):
            _take_general_branches(choice.get_function(branch))
