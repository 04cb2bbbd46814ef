"""What can be said of a recipe before anything runs."""

from compressor import sources
from compressor.recipe import Recipe
from compressor.settings.base import SPLITS


def check_sources(recipe: Recipe) -> None:
    """Check that every local file and folder that the recipe names is there and of a usable form; Hub ids are taken on trust.

    Raises:
        RecipeError: names what is missing.
        BundleError: a member of the cascade is no bundle.
    """
    for name in (*SPLITS, "unlabelled"):
        split = getattr(recipe.data, name)
        if split is not None:
            sources.resolve(split.path, recipe.root)
    students = [section.student for section in (recipe.assistant, recipe.distill) if section]
    named = [model for s in students for model in (s.model, s.bilstm and s.bilstm.embeddings)]
    for model in (recipe.teacher.model, *named):
        if model and sources.resolve(model, recipe.root) is not None:
            sources.model_folder(model, recipe.root)
    if recipe.cascade:
        if recipe.cascade.calibration:
            sources.resolve(recipe.cascade.calibration.path, recipe.root)
        for member in recipe.cascade.members:
            if member.bundle is not None:
                sources.bundle_fingerprint(member.bundle, recipe.root)
