"""Encoder: what general distillation ends with, a Hugging Face folder that other recipes start from.

What:     the student with its tokenizer, and a card that says what it learned from.
Limits:   it has no task yet, so nothing of it is quantized or judged: name it as `teacher.model` or `distill.student.model`.
"""

import shutil
from pathlib import Path
from typing import Any

from compressor.artifact import digest_of, files_of
from compressor.bundles import FOLDER
from compressor.formats import count
from compressor.inputs import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.splits import MODEL


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write the encoder's folder and return its digest and score."""
    folder, measured = out / FOLDER, inputs["checkpoint"].metrics
    shutil.copytree(inputs["checkpoint"].path / MODEL, folder)
    examples, score = inputs["data"].metrics["examples"], measured["validation_score"]
    lines = [
        f"# {recipe.name}",
        "",
        f"An encoder of {count(measured['parameters'])} parameters, trained on {count(examples['train'])} texts without labels.",
        f"It finds {score:.1%} of the masked tokens of {count(examples['validation'])} texts that it was not trained on.",
        "It knows no task: fine-tune it, or name it as `teacher.model` or `distill.student.model` in a recipe.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"digest": digest_of(files_of(folder)), "passed": True, "gates": [], "validation_score": score}
