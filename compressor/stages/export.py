"""Export the student, and the teacher as the baseline, to ONNX.

What:     one graph that takes `lengths` (int64, one a layer, default full); parity with torch is proven before it is handed on.
          With `export.halves` it comes in two parts too, cut at the recycled layer (compressor/halving.py).
Formula:  a text of n real tokens keeps ceil(n · lengths[i] / max_length) after layer i.
Defaults: opset 17, the TorchScript exporter (compressor/exporters.py), tolerance 1e-3 on a logit, onnxruntime's own operators where they
          are faster (compressor/operators.py).
Limits:   the last layer of a sentence task computes only [CLS], whatever its length says, where the family runs layer by layer
          (compressor/backbones.py).
"""

from itertools import islice
from pathlib import Path
from typing import Any

from compressor import checkpoint
from compressor.encoded import pad_id_of, tokenizer_of
from compressor.graphs import export_graph, layered, parity
from compressor.halves import BACK, FRONT
from compressor.halving import check_parity, export_halves
from compressor.inputs import Inputs, Kind
from compressor.lengths import LengthConfig
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.splits import MODEL, Splits, task_of


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write model.onnx and teacher.onnx and return the largest differences from torch."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    found: dict[str, Any] = {}
    graphs: tuple[tuple[str, Kind], ...] = (("model", "checkpoint"), ("teacher", "teacher"))
    for name, kind in graphs:
        log.note(f"{name}.onnx, and its parity with torch")
        artifact = inputs[kind]
        model = checkpoint.load_forward(artifact, splits.labels, task.head)
        path, folder = out / f"{name}.onnx", artifact.path / MODEL
        exported = layered(model) if name == "model" and isinstance(model, PlainModel) else model  # the teacher's is what others export
        export_graph(exported, path, recipe.export)
        some = list(islice(splits.examples("validation"), 8))
        texts = task.windows(tokenizer_of(folder), some, splits.max_length, splits.stride).few()
        configurations = _configurations(model) if isinstance(model, LengthAdaptiveModel) else [None]
        worst = parity(model, path, texts, configurations, pad_id_of(folder), recipe.export.tolerance)
        found[name] = {"largest_difference": worst, "megabytes": path.stat().st_size / 1e6}
        if name == "model" and recipe.export.halves:
            log.note(f"{FRONT} and {BACK}, and their parity with torch")
            assert isinstance(model, PlainModel)
            layers = inputs["activations"].metrics["layer"]
            export_halves(model, layers, out, recipe.export)
            worst = check_parity(model, out, texts, pad_id_of(folder), recipe.export.tolerance)
            found["halves"] = {"layer": layers, "largest_difference": worst}
    return found


def _configurations(model: LengthAdaptiveModel) -> list[tuple[int, ...] | None]:
    smallest = LengthConfig.smallest(model.layers, model.max_length, 0.4)
    constant = LengthConfig.repaired([model.max_length / 2] * model.layers, model.max_length)
    return [None, LengthConfig.full(model.layers, model.max_length).lengths, constant.lengths, smallest.lengths, (1,) * model.layers]
