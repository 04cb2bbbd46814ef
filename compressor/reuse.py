"""A recipe's recycled layers: which they are, where their store is, and its splits read through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from compressor import sources
from compressor.artifact import STORE, sha256
from compressor.modeling import load_model
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recycling import Lower, Recycled
from compressor.scoring import autocast
from compressor.splits import Splits
from compressor.store import Identity, Store
from compressor.tasks import Task


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
        settings, source, device = recipe.recycle, sources.model_folder(recipe.teacher.model, recipe.root), Accelerator().device
        torch.manual_seed(0)  # of a head that is made anew and thrown away
        precision = autocast(recipe.teacher.finetune.precision, device)
        lower = Lower(load_model(source, splits.labels, task.head), layers, device, precision)
        digests = sources.fingerprint(recipe.teacher.model, recipe.root), sha256(source / "tokenizer.json")
        computed = "bfloat16" if precision._enabled else "float32"
        identity = Identity(digests[0], lower.place, digests[1], computed, settings.dtype)
        name = f"{STORE}-{identity.key(b'').hex()[:12]}"
        folder = artifacts / name if settings.store is None else recipe.root / Path(settings.store).expanduser()
        store = Store(folder, identity, settings.max_size * 1e6, log.warn)
        try:
            yield cls(splits, task, source, folder, lower, store)
        finally:
            store.close()

    def recycled(self, split: str) -> Recycled:
        """Return a split whose batches hold the frozen layers' states."""
        return Recycled.of(self.splits.encoded(split, self.task, self.model), self.lower, self.store)
