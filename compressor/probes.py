"""How many layers may stay as they are: short trainings above several depths, on a part of the data.

What:     one pass over the part stores the outputs of several layers; above each, the rest learns for two epochs, as above none.
Paper:    embedding recycling (arXiv:2207.04993) lost nothing at 25 to 50 % of the layers, and a lot at other depths for other tasks.
Formula:  the deepest k with score(k) >= score(0) - max_drop.
Limits:   scores of so few texts are uncertain by a point or two; depths are quarters of the encoder.
"""

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compressor.encoded import Encoded
from compressor.finetuning import TrainingData, finetune
from compressor.modeling import PlainModel
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recycling import FILLED_AT_ONCE, Recycled
from compressor.reuse import Reuse
from compressor.scoring import score_of
from compressor.settings.training import Finetune
from compressor.store import Store
from compressor.tokens import content_of, length_batches

TEXTS = {"train": 1000, "validation": 500}
"""Examples of each split that are looked at."""
EPOCHS = 2
GAIN = 0.01
"""What a short training must gain to tell anything."""
DEPTHS = 4
"""Depths that are tried, evenly up to the last layer."""


@dataclass(frozen=True)
class Probe:
    """What a short training above so many layers gave: its score on validation, and texts a second; above none, the score before it too."""

    layers: int
    score: float
    texts_per_second: float
    before: float | None = None


def depths(layers: int) -> list[int]:
    """Return the numbers of layers that are tried."""
    return sorted({max(1, layers * part // DEPTHS) for part in range(1, DEPTHS + 1)})


def probe(recipe: Recipe, deepest: Reuse, log: Progress) -> list[Probe]:
    """Train above each depth, and above none; `deepest` has all layers that may be recycled."""
    assert recipe.teacher.finetune is not None
    parts = {name: _part(deepest, name, count, recipe.seed) for name, count in TEXTS.items()}
    short = recipe.teacher.finetune.model_copy(update={"epochs": EPOCHS, "seeds": 1, "keep": "last", "patience": None})
    found = [_trained(recipe, short, deepest, 0, parts, log)]
    with tempfile.TemporaryDirectory(dir=deepest.folder.parent) as scratch, ExitStack() as stack:
        tried = depths(deepest.lower.place)
        stores = {layers: stack.enter_context(closing(_store(deepest, layers, Path(scratch)))) for layers in tried}
        for part in parts.values():
            for done in fill(part, deepest, stores):
                log.steps(done, len(part), layers=str(tried))
        for layers, store in stores.items():
            recycled = {name: Recycled.of(part, deepest.lower.at(layers), store) for name, part in parts.items()}
            found.append(_trained(recipe, short, deepest, layers, recycled, log))
    return found


def learned_nothing(whole: Probe) -> bool:
    """Return whether the probe that recycles none gained next to nothing: then no depth is told from another."""
    return whole.before is not None and whole.score - whole.before <= GAIN


def chosen(probes: Sequence[Probe], max_drop: float) -> int | None:
    """Return the most layers whose probe loses no more than is allowed against the first, which recycles none; None: all lose more."""
    good = [p.layers for p in probes[1:] if p.score >= probes[0].score - max_drop - 1e-9]
    return max(good, default=None)


def fill(part: Encoded, deepest: Reuse, stores: Mapping[int, Store]) -> Iterator[int]:
    """Store the outputs of several layers from one pass; yield how many texts are done."""
    done = 0
    for rows in length_batches(part.tokens.lengths, FILLED_AT_ONCE):
        texts = part.tokens.rows(rows)
        states = deepest.lower.states_at(list(stores), texts, part.pad_id)
        for layers, store in stores.items():
            store.write(zip([store.identity.key(content_of(text)) for text in texts], states[layers], strict=True))
        done += len(rows)
        yield done


def _part(deepest: Reuse, split: str, count: int, seed: int) -> Encoded:
    total = sum(1 for _ in deepest.splits.examples(split))
    drawn = set(random.Random(seed).sample(range(total), min(total, count)))
    examples = (example for row, example in enumerate(deepest.splits.examples(split)) if row in drawn)
    return deepest.splits.encode(examples, deepest.task, deepest.model, scored=split != "train")


def _store(deepest: Reuse, layers: int, folder: Path) -> Store:
    return Store(folder / str(layers), replace(deepest.store.identity, layer=layers), deepest.store.limit, deepest.store.tell)


def _trained(recipe: Recipe, settings: Finetune, deepest: Reuse, layers: int, parts: Mapping[str, Encoded], log: Progress) -> Probe:
    torch.manual_seed(recipe.seed)
    model = load_model(deepest.model, deepest.splits.labels, deepest.task.head)
    data = TrainingData(parts["train"], parts["validation"], recipe.task.metric, layers)
    before = None if layers else score_of(PlainModel(model), parts["validation"], recipe.task.metric)
    with tempfile.TemporaryDirectory(dir=deepest.folder.parent) as state:  # a small /tmp may not hold its checkpoints
        told = finetune(model, settings, data, deepest.task, recipe.seed, Path(state), log)
    found = Probe(layers, told["validation_score"], told["texts_per_second"], before)
    log.note(f"{layers} layers recycled: score {found.score:.4f}, {found.texts_per_second:.0f} texts/s")
    return found
