"""Torch to ONNX: one graph whose `lengths` input has a default, proven equal to torch; and its INT8 form.

A client that knows nothing of lengths runs the default operating point: `lengths` is an input with an initializer of the same name.
Graphs carry no times, paths or doc strings, so the same weights give the same bytes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import RecipeError, StageError
from compressor.exporters import export
from compressor.families import encoder_layers, family
from compressor.fusion import check_fused, merge_products
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.operators import expand
from compressor.session import Graph, truncated
from compressor.settings.deploying import Export
from compressor.tokens import Floats, Tokens

NAMES = ("input_ids", "attention_mask", "token_type_ids")
USUAL = Export()
LONG = 512
"""Tokens of texts that are compared beside each other."""
COUNTED = re.compile(r"\w+::\w+_\d+")
"""Names that torch's exporters make up."""


class FullLengthModel(nn.Module):
    """A plain model run layer by layer: the same answers, but in a sentence task only [CLS] asks in the last layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._layered = LengthAdaptiveModel(model, max_length=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return logits as the plain model."""
        logits: Tensor = self._layered(input_ids, attention_mask, token_type_ids)
        return logits


def layered(model: PlainModel) -> PlainModel | FullLengthModel:
    """Return the plain model as what exports to a faster graph, where its family allows it."""
    try:
        return FullLengthModel(model.model)
    except RecipeError:
        return model


def export_graph(model: PlainModel | FullLengthModel | LengthAdaptiveModel, path: Path, settings: Export = USUAL) -> None:
    """Write the model as ONNX with dynamic batch and length; a length-adaptive one takes `lengths`, by default full."""
    model = model.to("cpu").eval()
    model.model.config._attn_implementation = "eager"
    arguments, names = texts_to_trace(), list(NAMES)
    if isinstance(model, LengthAdaptiveModel):
        arguments.append(torch.full((model.layers,), model.max_length // 2))
        names.append("lengths")
    graph = traced(model, path, arguments, names, "logits", settings)
    if not isinstance(model, PlainModel):
        check_layers(graph, model.model, len(encoder_layers(model.model)), settings)
    if type(model.model).__name__.endswith("ForQuestionAnswering"):
        _add_start_and_end(graph.graph)
    if isinstance(model, LengthAdaptiveModel):
        set_default_lengths(graph, [model.max_length] * model.layers)
    onnx.save(graph, path)


def texts_to_trace() -> list[Tensor]:
    """Return inputs of three texts of unequal length: tracing must see a mask at work and no size that another could be confused with."""
    ids = torch.tensor([[2, 5, 6, 7, 8], [2, 5, 6, 0, 0], [2, 5, 0, 0, 0]])
    return [ids, (ids > 0).long(), torch.zeros_like(ids)]


def traced(
    model: nn.Module, path: Path, arguments: Sequence[Tensor], names: Sequence[str], output: str, settings: Export
) -> onnx.ModelProto:
    """Return a module as a graph of any batch and length, each operator in its fastest form; the file is for the exporter to write in."""
    each, whole = {0: "batch", 1: "tokens"}, {0: "batch"}
    axes = {name: each for name in names if name != "lengths"}
    with torch.no_grad():
        axes[output] = whole if model(*arguments).ndim == 2 else each
    exported = export(settings.exporter, model, path, arguments, names, output, axes, settings.opset)
    graph = expand(exported, settings.opset, portable=settings.portable)
    _number_anew(graph.graph, {})
    merge_products(graph)
    for node in graph.graph.node:
        node.doc_string, node.name = "", node.name or node.output[0]  # a product is called by its name where it must stay float
    return graph


def check_layers(graph: onnx.ModelProto, model: PreTrainedModel, layers: int, settings: Export) -> None:
    """Check that each of the layers of a model that ran one by one has fused attention, and one product for queries, keys and values.

    Raises:
        StageError: one has not.
    """
    apart = family(model).query != family(model).key  # where one product makes them, there is nothing to merge
    check_fused(graph.graph, 0 if settings.portable else 2 * layers, layers if apart else 0)  # once with a mask, once without


def _number_anew(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Number values that the exporter called by a count of all that the model holds: fronts of equal layers are to be equal bytes."""

    def renamed(name: str) -> str:
        return names.setdefault(name, f"value_{len(names)}") if COUNTED.fullmatch(name) else name

    for initializer in graph.initializer:
        initializer.name = renamed(initializer.name)
    for node in graph.node:
        node.input[:], node.output[:] = map(renamed, node.input), map(renamed, node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _number_anew(inner, names)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = renamed(value.name)


def _add_start_and_end(graph: onnx.GraphProto) -> None:
    """Give a graph of positions the two outputs by which other clients ask, beside `logits` (batch, tokens, 2)."""
    names = ("start_logits", "end_logits")
    graph.initializer.extend([numpy_helper.from_array(np.array([1, 1]), "one_each"), numpy_helper.from_array(np.array([-1]), "last_axis")])
    graph.node.append(helper.make_node("Split", ["logits", "one_each"], [f"{name}_apart" for name in names], "split_logits", axis=-1))
    for name in names:
        graph.node.append(helper.make_node("Squeeze", [f"{name}_apart", "last_axis"], [name], f"squeeze_{name}"))
        graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "tokens"]))


def set_default_lengths(graph: onnx.ModelProto, lengths: Sequence[int]) -> None:
    """Give the `lengths` input its default: an initializer of the same name; how much of a text is read is no part of the graph."""
    layers = next(i.type.tensor_type.shape.dim[0].dim_value for i in graph.graph.input if i.name == "lengths")
    kept = [i for i in graph.graph.initializer if i.name != "lengths"]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend([*kept, numpy_helper.from_array(np.asarray(lengths[-layers:], dtype=np.int64), "lengths")])


def parity(
    model: PlainModel | LengthAdaptiveModel,
    path: Path,
    texts: Tokens,
    configurations: Sequence[Sequence[int] | None],
    pad_id: int,
    tolerance: float,
) -> float:
    """Return the largest difference of a logit between torch and the graph, over configurations, batches and paddings.

    Raises:
        StageError: it exceeds the tolerance.
    """
    graph, worst = Graph(path, single=False, pad_id=pad_id), 0.0
    by_length = texts.lengths.argsort(kind="stable").tolist()
    short = truncated(texts, LONG)  # beside each other long ones would take gigabytes
    padded = Tokens.joined([truncated(short.rows([0]), max(2, int(short.lengths[0]) // 2)), short.rows([0])])
    some = sorted({*by_length[:2], *by_length[-2:]})
    batches = [*(texts.rows([row]) for row in {0, by_length[0], by_length[-1]}), padded, short.rows(some), short]
    for lengths in configurations:
        for batch in batches:
            difference = _difference(torch_logits(model, batch, lengths, pad_id), graph.run(batch, lengths), batch)
            worst = max(worst, difference)
            if not difference <= tolerance:  # nor is a logit that is no number any parity
                raise StageError(
                    f"export: at lengths {lengths} and {len(batch)} texts a logit differs by {difference:.2g} from torch "
                    f"(export.tolerance {tolerance:g}); report the model, or raise the tolerance"
                )
    return worst


def _difference(torch: Floats, graph: Floats, batch: Tokens) -> float:
    """Return the largest difference of a logit; what padding answers is nobody's business."""
    apart = np.abs(torch - graph)
    return float((apart if apart.ndim == 2 else apart[np.arange(apart.shape[1]) < batch.lengths[:, None]]).max())


@torch.inference_mode()
def torch_logits(model: PlainModel | LengthAdaptiveModel, batch: Tokens, lengths: Sequence[int] | None, pad_id: int) -> Floats:
    """Return torch's float32 logits for one padded batch."""
    arrays = batch.padded(pad_id)
    inputs = [torch.from_numpy(arrays[name]) for name in NAMES]
    extra = [] if lengths is None or isinstance(model, PlainModel) else [torch.tensor(lengths)]
    logits: Floats = model.eval()(*inputs, *extra).float().numpy()
    return logits
