"""What can be said of a recipe before anything runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor import machine, sources
from compressor.errors import RecipeError, UnfitError, install
from compressor.recipe import Recipe
from compressor.settings.base import SPLITS

BUILDING = ("torch", "transformers", "onnx", "accelerate", "filelock", "huggingface_hub", "jinja2", "lmdb", "safetensors", "scipy")
"""Packages that any build imports."""
OLDEST: Mapping[str, tuple[int, ...]] = {"transformers": (5,), "torch": (2, 6)}
"""First version of transformers whose models this package knows."""


def check_sources(recipe: Recipe) -> None:
    """Check that every local file and folder that the recipe names is there and of a usable form; Hub ids are taken on trust.

    Raises:
        RecipeError: names what is missing.
        BundleError: a member of the cascade is no bundle, or was changed.
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
                _check_member(sources.place_of(member.bundle, recipe.root), recipe)


def _check_member(bundle: Path, recipe: Recipe) -> None:
    from compressor.bundles import verify  # brings numpy along

    check_task(bundle, verify(bundle), recipe)


def check_task(bundle: Path, manifest: Mapping[str, Any], recipe: Recipe) -> None:
    """Check that a member of the cascade answers what the recipe does.

    Raises:
        RecipeError: it has another task, or other settings of it.
    """
    theirs = {"type": manifest["task"], **manifest["task_settings"]}
    ours = {"type": recipe.task.type, **recipe.task.settings}
    other = [key for key in theirs | ours if key != "scheme" and theirs.get(key) != ours.get(key)]  # all tags are read into one scheme
    if other:
        told = "; ".join(f"task.{key} is {theirs.get(key)} there, {ours.get(key)} here" for key in other)
        raise RecipeError(f"cascade: {bundle} answers something else ({told}); members must answer the same")


def check_training(recipe: Recipe) -> None:
    """Check that what builds this bundle is installed, and not when the stage that imports it begins: what runs bundles is less.

    Raises:
        UnfitError: names the extra.
    """
    extra = f"{install('train')}, or in a checkout: pip install -e '.[train]'"
    tuned = recipe.teacher.finetune
    own = {"deap": recipe.search, "peft": tuned and tuned.method == "lora", "onnxscript": recipe.export.exporter == "dynamo"}
    needed = [*BUILDING, *(package for package, wanted in own.items() if wanted)]
    if lacking := [package for package in needed if not machine.installed(package)]:
        raise UnfitError(f"building this bundle needs {', '.join(lacking)} of the [train] extra: {extra}")
    for package, there in machine.versions(*OLDEST).items():
        if (0,) < machine.numbers_of(there) < OLDEST[package]:
            least = ".".join(map(str, OLDEST[package]))
            raise UnfitError(f"building a bundle needs {package} {least} or newer, here is {there}: {extra} --upgrade")


def check_extras(recipe: Recipe) -> None:
    """Check that the backends which the recipe names are installed, where an extra brings them.

    Raises:
        UnfitError: names the extra.
    """
    asked = {"quantize": recipe.quantize and recipe.quantize.backend, "target": recipe.target.backend}
    for section, backend in asked.items():
        if backend in ("nncf", "openvino") and not machine.installed(backend):
            extra = install(backend)
            raise UnfitError(f"{section}.backend {backend} needs the [{backend}] extra: {extra}, or choose onnxruntime")


def crowded(recipe: Recipe) -> str | None:
    """Say where the target's threads would share this machine's cores, if so: latencies measured here are then no one's."""
    cores = machine.usable_cores()
    if not recipe.deployed or recipe.target.threads <= cores:
        return None
    told = f"target.threads is {recipe.target.threads}, of {cores} usable cores here: times are measured with threads that share a core"
    return f"{told}, and a bundle that is served here takes {cores}; set target.threads {cores}, or build where it will be served"
