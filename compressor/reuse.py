"""A recipe's recycled layers: which they are, where their store is, and its splits read through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from compressor import sources
from compressor.artifact import STORE, sha256
from compressor.encoded import Encoded
from compressor.errors import RecipeError
from compressor.families import shape_of
from compressor.layer_maps import count_layers
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recycling import Lower, Recycled
from compressor.scoring import autocast
from compressor.settings.distilling import Distill
from compressor.settings.training import Recycle, RecycledLayers
from compressor.splits import Splits
from compressor.store import Identity, Store
from compressor.tasks import Task


@contextmanager
def stored(lower: Lower, digest: str, tokenizer: Path, settings: Recycle, place: Path, log: Progress) -> Iterator[Store]:
    """Open the store of what frozen layers make of texts: `place` itself where the settings name a store, else a folder of its own there.

    Raises:
        RecipeError: it was made by another model.
    """
    computed = "bfloat16" if lower.precision._enabled else "float32"
    identity = Identity(digest, lower.place, sha256(tokenizer / "tokenizer.json"), computed, settings.dtype)
    folder = place / f"{STORE}-{identity.key(b'').hex()[:12]}" if settings.store is None else place
    store = Store(folder, identity, settings.max_size * 1e6, log.warn_once)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def student_layers(
    settings: Distill, key: str, recipe: Recipe, model: PreTrainedModel, tokenizer: Path, artifacts: Path, log: Progress
) -> Iterator["Layers | None"]:
    """Open what recycles a student's first layers, if it recycles any.

    Raises:
        RecipeError: the encoder has fewer.
    """
    if settings.recycled_layers is None:
        yield None
        return
    count, device = count_layers(settings.recycled_layers.layer, shape_of(model).layers), Accelerator().device
    lower = Lower(model, count, device, autocast(settings.precision, device), key)
    kept = _kept(settings.recycled_layers, recipe.recycle)
    own = kept.model_copy(update={"store": None})  # a teacher's layers are others after each fine-tuning: each has a folder in the place
    with stored(lower, lower.digest(), tokenizer, own, _place(kept, recipe, artifacts), log) as store:
        yield Layers(lower, store, kept)


def _kept(layers: RecycledLayers, recycle: Recycle | None) -> Recycle:
    """Return how a student's layers' outputs are kept, beside what the recipe recycles of its teacher, if anything."""
    own = layers.model_dump(include={"layer", "dtype", "max_size"}, exclude_none=True)
    return (recycle or Recycle(layer=layers.layer)).model_copy(update={**own, "store": layers.store})


def check_stores(recipe: Recipe) -> None:
    """Look whether students keep their layers' outputs elsewhere than the teacher, whose folder is one store.

    Raises:
        RecipeError: one names the same folder.
    """
    if recipe.recycle is None or recipe.recycle.store is None:
        return
    taken = sources.place_of(recipe.recycle.store, recipe.root).resolve()
    asked = [own.recycled_layers.store for own in (recipe.assistant, recipe.distill) if own and own.recycled_layers]
    if any(sources.place_of(store, recipe.root).resolve() == taken for store in asked if store):
        raise RecipeError(f"store {taken} keeps what the teacher's layers make: name another folder for the student's")


def told(store: Store, settings: Recycle) -> str:
    """Return a store's folder as metrics name it: by its name in the artifacts folder, by its path where the settings name one."""
    return store.folder.name if settings.store is None else str(store.folder.resolve())


def _place(settings: Recycle, recipe: Recipe, artifacts: Path) -> Path:
    if settings.store is None:
        return artifacts
    place = sources.place_of(settings.store, recipe.root)
    if place.exists() and not place.is_dir():
        raise RecipeError(f"store {place}: this is a file; name a folder")
    return place


@dataclass(frozen=True)
class Layers:
    """Frozen layers, and the store of what they made."""

    lower: Lower
    store: Store
    settings: Recycle

    @property
    def count(self) -> int:
        """How many they are."""
        return self.lower.place

    @property
    def name(self) -> str:
        """The store's folder, as `told`."""
        return told(self.store, self.settings)

    def recycled(self, data: Encoded, name: str, log: Progress) -> Recycled:
        """Return a split whose batches hold the layers' states, all of which the store then has."""
        found = Recycled.of(data, self.lower, self.store)
        for done in found.fill():
            log.steps(done, len(found), split=name)
        return found


@dataclass(frozen=True)
class Reuse:
    """The frozen layers of a recipe's teacher, and the store that keeps what they made."""

    splits: Splits
    task: Task
    model: Path
    folder: Path
    lower: Lower
    store: Store

    @classmethod
    @contextmanager
    def of(cls, recipe: Recipe, layers: int, splits: Splits, task: Task, artifacts: Path, log: Progress) -> Iterator["Reuse"]:
        """Open the store that the recipe names, or one in the artifacts folder, of so many layers.

        Raises:
            RecipeError: it was made by another model, or the encoder has fewer layers.
        """
        assert recipe.recycle is not None
        assert recipe.teacher.finetune is not None
        source, device = sources.model_folder(recipe.teacher.model, recipe.root), Accelerator().device
        torch.manual_seed(0)  # of a head that is made anew and thrown away
        precision = autocast(recipe.teacher.finetune.precision, device)
        lower = Lower(load_model(source, splits.labels, task.head), layers, device, precision)
        digest = sources.fingerprint(recipe.teacher.model, recipe.root)
        with stored(lower, digest, source, recipe.recycle, _place(recipe.recycle, recipe, artifacts), log) as store:
            yield cls(splits, task, source, store.folder, lower, store)

    def recycled(self, split: str) -> Recycled:
        """Return a split whose batches hold the frozen layers' states."""
        return Recycled.of(self.splits.encoded(split, self.task, self.model), self.lower, self.store)
