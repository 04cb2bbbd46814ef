"""The two exporters of torch, which write what is the graph's own as functions of their own domain (compressor/operators.py says of what).

What:     `torchscript` traces a model as it runs; `dynamo` reads its program with sizes for symbols.
Defaults: torchscript: its graphs are those that were measured here. Torch calls it deprecated; dynamo is what comes after it.
Limits:   dynamo writes opset 18 and later, and needs onnxscript.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compressor.settings.deploying import Exporter

Axes = Mapping[str, Mapping[int, str]]
"""Which axes of an input or output are of any size, and what they are called."""
Export = Callable[[nn.Module, Path, Sequence[Tensor], Sequence[str], str, Axes, int], onnx.ModelProto]


def _torchscript(
    model: nn.Module, path: Path, arguments: Sequence[Tensor], names: Sequence[str], output: str, axes: Axes, opset: int
) -> onnx.ModelProto:
    torch.onnx.export(
        model,
        tuple(arguments),
        str(path),
        input_names=list(names),
        output_names=[output],
        dynamic_axes=axes,
        opset_version=opset,
        dynamo=False,
    )
    return onnx.load(path)


def _dynamo(
    model: nn.Module, path: Path, arguments: Sequence[Tensor], names: Sequence[str], output: str, axes: Axes, opset: int
) -> onnx.ModelProto:
    sizes = {size: torch.export.Dim(size) for size in dict.fromkeys(size for own in axes.values() for size in own.values())}
    shapes = [{axis: sizes[size] for axis, size in axes.get(name, {}).items()} or None for name in names]
    with _quiet():
        program: Any = torch.onnx.export(
            model,
            tuple(arguments),
            input_names=list(names),
            output_names=[output],
            dynamic_shapes=tuple(shapes),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    _fold(program.model)
    graph: onnx.ModelProto = program.model_proto
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]  # where in the source each came from
    del graph.graph.value_info[:]  # sizes by symbols of its own, which mean nothing once functions are put in
    return graph


def _fold(program: Any) -> None:
    """Turn and cut weights at once, of whatever size and however many read them: only what is a constant then becomes INT8."""
    from onnxscript import optimizer

    optimizer.fold_constants(program, output_size_limit=2**31, should_fold=lambda node: node.op_type in ("Transpose", "Slice") or None)
    optimizer.remove_unused_nodes(program)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter tells of packages that it could use and of names that it does not."""
    told = logging.getLogger("torch.onnx")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        yield
    finally:
        told.setLevel(level)


_EXPORTERS: Mapping[Exporter, Export] = {"torchscript": _torchscript, "dynamo": _dynamo}


def export(
    exporter: Exporter, model: nn.Module, path: Path, arguments: Sequence[Tensor], names: Sequence[str], output: str, axes: Axes, opset: int
) -> onnx.ModelProto:
    """Return a module as a graph with its own functions still in it; the file is for the exporter to write in."""
    with warnings.catch_warnings():  # TorchScript's is deprecated, and dynamo's reads parts of torch that are
        warnings.simplefilter("ignore")
        return _EXPORTERS[exporter](model, path, arguments, names, output, axes, opset)
