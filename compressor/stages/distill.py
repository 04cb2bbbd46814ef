"""Distill the teacher into a smaller student.

What:     a student made of some of the teacher's layers, or another encoder, learns the objectives of the recipe, added and scheduled.
Papers:   see compressor/objectives.py.
Formula:  sum over active objectives of weight · loss; see compressor/objectives.py.
Defaults: relations first (`end`), then soft labels and labels (`start`).
Limits:   what looks inside needs a student that splits texts into the teacher's tokens. The teacher's logits are computed once a text, its
          insides too as far as `teacher_store` has room, else at every step; see compressor/teaching.py.
"""

from pathlib import Path
from typing import Any

from compressor.distillation import train_student
from compressor.inputs import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the student, taught by the assistant or else by the teacher, and return its score on the validation split."""
    assert recipe.distill is not None
    return train_student(recipe.distill, "distill", recipe, inputs, out, log)
