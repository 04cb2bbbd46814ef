"""What can be said of a recipe before anything runs."""

from importlib.util import find_spec

from compressor import sources
from compressor.errors import UnfitError
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


def check_extras(recipe: Recipe) -> None:
    """Check that the backends which the recipe names are installed, where an extra brings them.

    Raises:
        UnfitError: names the extra.
    """
    asked = {"quantize": recipe.quantize and recipe.quantize.backend, "target": recipe.target.backend}
    for section, backend in asked.items():
        if backend in ("nncf", "openvino") and find_spec(backend) is None:
            extra = f"pip install 'encoder-compressor[{backend}]'"
            raise UnfitError(f"{section}.backend {backend} needs the [{backend}] extra: {extra}, or choose onnxruntime")
