"""What can be said of a recipe before hours of training: whether its encoders can be made into what it asks of them, its cascade too.

Limits:   the stages check the same again, with what only the whole data tells: all tokens, and the labels.
"""

from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel

from compressor import sources
from compressor.alignment import alike
from compressor.artifact import Artifact
from compressor.bundles import verify
from compressor.checkpoint import check_positions
from compressor.data import read_examples
from compressor.distillation import check_above, check_objectives, check_vocabulary
from compressor.environments import NEURAL_COMPRESSOR
from compressor.errors import RecipeError
from compressor.families import shape_of
from compressor.halving import check_family
from compressor.layer_maps import count_layers
from compressor.members import bundle_of, check_member
from compressor.modeling import LengthAdaptiveModel
from compressor.objectives import Shapes
from compressor.pretrained import load_model
from compressor.recipe import Recipe
from compressor.recycling import check_layers
from compressor.reuse import check_stores
from compressor.settings.distilling import Distill
from compressor.splits import Splits, task_of
from compressor.stages.early_exit import check_layer
from compressor.stages.finetune import check_answers
from compressor.stages.length_adapt import check_question, check_tokens, smallest_of
from compressor.stages.members import examples_of
from compressor.students import student_of
from compressor.tasks import Task
from compressor.tuning import prepare
from compressor.vocabulary import check_kind

LARGEST_GRAPH = 2**31
"""Bytes that a protocol buffer cannot hold."""
TEXTS = 200
"""Training texts, the first ones, on which two tokenizers are compared."""


def check_encoders(recipe: Recipe, *, exports: bool = True) -> None:
    """Make the assistant and the student as the recipe has them, from the teacher as it starts, and look whether they fit.

    `exports`: the build goes on as far as ONNX.

    Raises:
        RecipeError: a layer map is out of range, a fine-tuning method or objectives do not fit, a text is longer than a position table, a
            teacher is too large for an ONNX file, a family has no adaptive length or does not run layer by layer, a student of one layer
            is to adapt its length, the smallest sub-model has next to no tokens, a question cannot be told from its context, the teacher's
            answers for tokens are none for the student's, a vocabulary cannot be pruned, layers to recycle or to exit from are not there,
            or two models' layers would be kept in one store.
    """
    task, longest, tuned = task_of(recipe), recipe.data.max_length, recipe.teacher.finetune
    check_stores(recipe)
    taught_by = folder = sources.model_folder(recipe.teacher.model, recipe.root)
    model = load_model(folder, _known(task), task.head)
    check_positions(model, longest)
    if exports and recipe.deployed:
        check_size(model)
    if tuned is None:
        check_answers(recipe, folder, model)
    elif tuned.method != "lora":  # which is merged
        prepare(model, tuned)
    for section, settings in (("assistant", recipe.assistant), ("distill", recipe.distill)):
        if settings is not None:
            model, folder = _student(recipe, section, settings, model, folder)
    if recipe.length_adapt:
        if shape_of(model).layers == 1 and not task.per_token:
            told = "the only layer of this student computes [CLS] alone, so that there is no length to adapt"
            raise RecipeError(f"length_adapt: {told}; leave length_adapt and search out, or keep more layers")
        smallest_of(recipe.length_adapt, LengthAdaptiveModel(model, longest).layers, longest)
        check_question(recipe.length_adapt, folder)
        check_tokens(recipe.length_adapt, task, lambda: folder == taught_by or alike(_texts(recipe), folder, taught_by))
    if recipe.export.halves:
        check_family(model, "export.halves")
    if recipe.early_exit:
        check_family(model, "early_exit")
        check_layer(recipe.early_exit.layer, shape_of(model).layers)


def check_environment(recipe: Recipe) -> None:
    """Make the environment of a quantizer that has one of its own, where the recipe names it.

    Raises:
        UnfitError: it cannot be made.
    """
    if recipe.quantize and recipe.quantize.backend == NEURAL_COMPRESSOR.name:
        NEURAL_COMPRESSOR.make()


def check_size(teacher: PreTrainedModel) -> None:
    """Refuse a teacher whose float graph, the baseline of every bundle, would be larger than an ONNX file may be.

    Raises:
        RecipeError: it would.
    """
    size = 4 * sum(weight.numel() for weight in teacher.parameters())
    if size >= LARGEST_GRAPH:
        told = f"its weights take {size / 2**30:.1f} GB in float32, and one ONNX file holds less than 2"
        raise RecipeError(f"teacher.model: {told}; name a smaller teacher")


def check_data(recipe: Recipe, data: Artifact) -> None:
    """Look whether a cascade's other bundles know the labels of the data, and whether what it is calibrated on was never learned.

    Raises:
        BundleError: one is no bundle, or was changed.
        RecipeError: other labels; or a text of the calibration that is no example, has another label, was learned, or will be reported.
    """
    if recipe.cascade is None:
        return
    splits = Splits.of(data)
    for asked in recipe.cascade.members:
        if asked.bundle is not None:
            folder = bundle_of(asked, recipe)
            check_member(folder, verify(folder), recipe, splits.labels)
    if recipe.cascade.calibration is not None:
        examples_of(recipe, splits, [])


def _student(recipe: Recipe, section: str, settings: Distill, guide: PreTrainedModel, beside: Path) -> tuple[PreTrainedModel, Path]:
    """Return a section's student as it starts, and the folder of its tokenizer."""
    task = task_of(recipe)
    student, folder = student_of(settings.student, section, recipe.root, guide, beside, _known(task), task.head)
    check_positions(student, recipe.data.max_length)
    shapes = Shapes(shape_of(student), shape_of(guide))
    same_tokens = folder == beside or alike(_texts(recipe), folder, beside)
    check_objectives(section, settings, task, student, guide, shapes, same_tokens=same_tokens)
    if task.head == "masked-lm":
        check_vocabulary(section, settings, (student, folder), (guide, beside))
    if settings.student.vocabulary == "corpus":
        check_kind(folder, f"{section}.student.vocabulary")
    if settings.recycled_layers is not None:
        below = count_layers(settings.recycled_layers.layer, shapes.student.layers)
        check_layers(student, below, f"{section}.recycled_layers")
        check_above(section, settings, shapes, below)
    return student, folder


def _known(task: Task) -> tuple[str, ...]:
    """Return the outputs that are known before the data is: start and end, which every span has."""
    return task.outputs(()) if task.choice == "positions" else ()


def _texts(recipe: Recipe) -> list[str]:
    data, skipped = recipe.data.train, list[str]()
    rows = read_examples(data.path, recipe.columns(), task_of(recipe), root=recipe.root, split="train", skipped=skipped, **data.how)
    return [part for example in islice(rows, TEXTS) for part in (example.text, example.text_pair) if part]
