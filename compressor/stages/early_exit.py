"""Train an early exit: a head on an inner layer of the student, by which a cascade's easy texts stop there.

What:     the student's first layers as they are, which run once per text; above them a copy of its last layer and head learns, by inplace
          distillation, what the whole student answers. A text that goes on continues with the student's own next layer.
Papers:   DeeBERT (arXiv:2004.12993), inplace distillation (arXiv:1903.05134).
Formula:  the student's soft labels at temperature 2, of all training texts; the student itself never changes.
Defaults: 3 epochs, batch 32, learning rate 5e-5.
Limits:   one exit, at full length; families of compressor/backbones.py.
"""

from pathlib import Path
from typing import Any

from compressor import checkpoint
from compressor.distillation import train_student
from compressor.errors import RecipeError
from compressor.families import shape_of
from compressor.halving import check_family
from compressor.inputs import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.settings.distilling import Distill, SoftLabels, Student
from compressor.settings.training import RecycledLayers, Training
from compressor.splits import Splits, task_of


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the exit's layers and head, and return its score on the validation split."""
    assert recipe.early_exit is not None
    layer, head = recipe.early_exit.layer, task_of(recipe).head
    student = checkpoint.load_plain(inputs["checkpoint"], Splits.of(inputs["data"]).labels, head)
    check_family(student, "early_exit")  # now, and not after the training
    count = shape_of(student).layers
    check_layer(layer, count)
    settings = Distill(
        **{name: getattr(recipe.early_exit, name) for name in Training.model_fields},
        student=Student(layers=(*range(layer), count - 1)),
        objectives=(SoftLabels(type="soft_labels"),),
        recycled_layers=RecycledLayers(layer=layer),
    )
    return train_student(settings, "early_exit", recipe, {**inputs, "guide": inputs["checkpoint"]}, out, log) | {"layer": layer}


def check_layer(layer: int, count: int) -> None:
    """Refuse an exit that is none, of a student of so many layers.

    Raises:
        RecipeError: no layer of the student's own would be left to go on with.
    """
    if layer > count - 2:
        told = f"choose 1 to {count - 2}" if count > 2 else "leave early_exit out"
        raise RecipeError(f"early_exit.layer {layer}: the student has {count} layers, and an exit takes one of its own; {told}")
