"""Distill a teacher assistant: a model between teacher and student, from which the student then learns.

What:     the teacher teaches the assistant as `distill` teaches a student; `distill` then reads the assistant in the teacher's place.
Papers:   Teacher Assistants (arXiv:1902.03393), MiniLM (arXiv:2002.10957).
Formula:  as in distill.
Defaults: as in distill.
Limits:   one assistant; it pays where the student has at most half of the teacher's layers and half of its width.
"""

from pathlib import Path
from typing import Any

from compressor.distillation import train_student
from compressor.inputs import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the assistant and return its score on the validation split."""
    assert recipe.assistant is not None
    return train_student(recipe.assistant, "assistant", recipe, inputs, out, log)
