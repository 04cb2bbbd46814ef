"""Write the first recipe: complete, commented, and ready to edit."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from compressor.errors import RecipeError, UnfitError
from compressor.settings.data import USUAL, WINDOWED

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
NOT_STRINGS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}

SERVED = tuple(name for name in USUAL if name != "masked-lm")
OWN_FORMS = {"question-answering": ("SQuAD json",), "token-classification": ("conll",)}

RECIPE = """\
# Compresses an encoder for {task} into an INT8 bundle for CPUs, and builds it only if the gates at the end hold.
# Needs    pip install 'encoder-compressor[train]' and the data named below
# Check    compress validate {file}
# Look     compress plan {file}       what would run, and how long it may take
# Build    compress run {file}        finished stages are cached; an interrupted run resumes
version: 1                  # of this format
name: {name}
seed: 17                    # same seed, versions and thread count: same weights; with search.latency: macs, same bundle
task: {{type: {task}, metric: {metric}}}

# Files ({forms}, also .gz), a Hub data set id, or package:NAME/FILE.
# Without validation:, search: and test: they are cut from train by a hash of the text.
data:
  train: {train}
{columns}
  max_length: {max_length}           # tokens; longer texts {longer}

# The model to compress: a Hub id, a local folder, or package:NAME/FOLDER.
# Leave finetune out if it already answers this task.
teacher:
  model: {model}
  finetune: {{epochs: 3, batch_size: 32, learning_rate: 5e-5}}

{distill}
length_adapt: {{epochs: 2}}   # trains with dropped tokens, so that one model serves many speeds
export: {{}}
quantize: {{backend: onnxruntime}}
search: {{evaluations: 48}}   # token lengths per layer that are measured to find the best trade of speed for quality
target: {{threads: {threads}, batch: 1}}   # what latency is measured with: set it as it will be served

# A bundle that misses a gate goes to rejected/, and the command leaves with exit code 5.
gates:
  - {{metric: {metric}, against: teacher, max_drop: 1.0%}}
  - {{metric: speedup, against: teacher, min: {speedup:.1f}}}
  - {{metric: size, max: {size_mb}MB}}          # guessed for a BERT-base teacher; a large vocabulary needs more
"""

DISTILL = """\
# The student starts as these layers of the teacher; or name another model: {{model: ID}}.
distill:
  student: {{layers: {layers}}}
  epochs: 3
  objectives:               # start and end are parts of the training: 0.4 is after 40 % of the steps
    - {{type: minilmv2, end: 0.4}}
    - {{type: soft_labels, temperature: 2.0, weight: 0.9, start: 0.4}}
    - {{type: labels, weight: 0.1, start: 0.4}}
"""


def write_recipe(
    path: Path,
    *,
    name: str,
    model: str,
    train: str,
    task: str = "text-classification",
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    student_layers: int = 3,
    threads: int = 1,
    teacher_layers: int = 12,
) -> None:
    """Write a commented recipe to `path`; columns that are not named are the task's usual ones.

    Raises:
        RecipeError: the file exists, or a number is out of range.
        UnfitError: the file cannot be written.
    """
    train, model = (_from_beside(path, source) for source in (train, model))
    columns = {"text": text, "text_pair": text_pair, "label": label}
    depths = {"student_layers": student_layers, "teacher_layers": teacher_layers}
    recipe = _composed(str(path), name=name, model=model, train=train, task=task, columns=columns, threads=threads, **depths)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(recipe)
    except FileExistsError:
        raise RecipeError(f"{path} exists and is not overwritten; give another file name, or remove it first") from None
    except OSError as error:
        raise UnfitError(f"{path} cannot be written ({error.strerror}); name a file in a folder that you may write") from None


def _from_beside(path: Path, source: str) -> str:
    """Return a file or folder that is there as the recipe names it, from its own folder, where that is not the user's."""
    away = path.parent.resolve() != Path.cwd() and not os.path.isabs(source) and os.path.exists(source)
    return os.path.relpath(source, path.parent) if away else source


def _composed(
    file: str,
    *,
    name: str,
    model: str,
    train: str,
    task: str,
    columns: Mapping[str, str | None],
    student_layers: int,
    threads: int,
    teacher_layers: int,
) -> str:
    """Compose the text of a recipe that will be called `file`."""
    if threads < 1:
        raise RecipeError(f"threads is {threads}; give 1 or more")
    if task not in SERVED:
        raise RecipeError(f"no task {task!r}; choose {', '.join(SERVED)}")
    usual, windowed = USUAL[task], task in WINDOWED
    if columns["text_pair"] is not None and task in WINDOWED and usual.text_pair is None:
        raise RecipeError(f"{task} reads one text: leave --text-pair out")
    named = {key: getattr(usual, key) if column is None else column for key, column in columns.items()}
    return RECIPE.format(
        file=scalar(file),
        name=scalar(name),
        model=scalar(model),
        train=scalar(train),
        task=task,
        metric=usual.metrics[0],
        forms=", ".join(["csv", "tsv", "jsonl", "parquet", *OWN_FORMS.get(task, ())]),
        columns="\n".join(f"  {key}: {scalar(column)}" for key, column in named.items() if column is not None),
        max_length=384 if task == "question-answering" else 128,
        longer="go on in another window" if windowed else "are cut",
        distill=DISTILL.format(layers=spread_layers(student_layers, teacher_layers)),
        threads=threads,
        speedup=max(1.5, teacher_layers / student_layers),  # INT8 alone brings more than 1.5 on a processor with VNNI
        size_mb=_size_gate_mb(student_layers),
    )


def spread_layers(student: int, teacher: int) -> list[int]:
    """Choose `student` of the `teacher` layers, evenly spread, with the first and the last: 3 of 12 are [0, 5, 11]."""
    if not 1 <= student <= teacher:
        raise RecipeError(f"a student of {student} layers cannot be cut from {teacher}; give 1 to {teacher} layers")
    return [layer * (teacher - 1) // max(1, student - 1) for layer in range(student)]


def scalar(value: str) -> str:
    """Write `value` as a YAML string on one line, quoted only where YAML would read something else."""
    if PLAIN.fullmatch(value) and value.lower() not in NOT_STRINGS:
        return value
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    if character in '\\"':
        return "\\" + character
    # json.dumps would write an emoji as two surrogates, which YAML does not join.
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _size_gate_mb(layers: int) -> int:
    """A BERT-base INT8 model is 24 MB of embeddings and 7.1 MB a layer; a third more, in tens, leaves room for the rest."""
    return math.ceil((24 + 7.1 * layers) * 1.3 / 10) * 10
