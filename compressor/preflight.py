"""What can be said of a recipe's encoders before hours of training: whether each can be made into what the recipe asks of it.

Limits:   the stages check the same again, with what only the data tells: tokens, and the labels.
"""

from compressor import sources
from compressor.checkpoint import check_positions
from compressor.distillation import check_objectives
from compressor.families import shape_of
from compressor.modeling import LengthAdaptiveModel, load_model
from compressor.objectives import Shapes
from compressor.recipe import Recipe
from compressor.splits import task_of
from compressor.stages.length_adapt import check_question, smallest_of
from compressor.students import student_of


def check_encoders(recipe: Recipe) -> None:
    """Make the assistant and the student as the recipe has them, from the teacher as it starts, and look whether they fit.

    Raises:
        RecipeError: a layer map is out of range, objectives do not fit, a text is longer than a position table, a family has no
            adaptive length, the smallest sub-model has next to no tokens, or a question cannot be told from its context.
    """
    task, longest = task_of(recipe), recipe.data.max_length
    folder = sources.model_folder(recipe.teacher.model, recipe.root)
    model = load_model(folder, (), task.head)
    check_positions(model, longest)
    for section, settings in (("assistant", recipe.assistant), ("distill", recipe.distill)):
        if settings is not None:
            student, beside = student_of(settings.student, section, recipe.root, model, folder, (), task.head)
            check_positions(student, longest)
            shapes = Shapes(shape_of(student), shape_of(model))
            check_objectives(section, settings, task, student, model, shapes, same_tokens=True)
            model, folder = student, beside
    if recipe.length_adapt:
        smallest_of(recipe.length_adapt, LengthAdaptiveModel(model, longest).layers, longest)
        check_question(recipe.length_adapt, folder)
