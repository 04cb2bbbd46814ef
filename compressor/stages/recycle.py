"""Run the teacher's first layers once per text, and keep what they made of each for the fine-tuning of the layers above.

What:     each distinct text of train and validation, texts of like length together; what the store knows already is not computed again.
Paper:    embedding recycling (arXiv:2207.04993).
Formula:  bytes = tokens · width · 4, 2 or 1 (and 4 more a token), by dtype.
Defaults: float16, at most 20 GB, in the artifacts folder; `layer: auto` asks short trainings (compressor/probes.py), at most 1 point lost.
Limits:   the store is no part of the artifact: entries that went, or a store that was removed, are computed when they are read.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor import sources
from compressor.artifact import write_json
from compressor.families import shape_of
from compressor.inputs import Inputs
from compressor.layer_maps import count_layers
from compressor.pretrained import load_model
from compressor.probes import Probe, chosen, learned_nothing, probe
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.recycling import most_layers
from compressor.reuse import Reuse, told
from compressor.splits import Splits, task_of
from compressor.tasks import Task


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Fill the store; return where it is, what it takes and how long that took."""
    assert recipe.recycle is not None
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    layers, probes = _layers(recipe, splits, task, out, log)
    with Reuse.of(recipe, layers, splits, task, out.parent, log) as reuse:
        found: dict[str, Any] = {
            "layer": reuse.lower.place,
            "store": told(reuse.store, recipe.recycle),
            "dtype": reuse.store.identity.dtype,
        }
        for name in ("train", "validation"):
            data, started, before = reuse.recycled(name), time.perf_counter(), reuse.store.computed
            for done in data.fill():
                log.steps(done, len(data), split=name)
            found[name] = {"texts": len(data), "distinct": len(set(data.keys)), "computed": reuse.store.computed - before}
            found[name]["seconds"] = time.perf_counter() - started
        write_json(out / "identity.json", asdict(reuse.store.identity))  # what is learned above depends on it
        entries, size = len(reuse.store), reuse.store.bytes()
        log.note(f"layer {reuse.lower.place} of {entries:,} distinct texts takes {size / 1e6:,.0f} MB")
        found |= {"probes": [asdict(p) for p in probes]} if probes else {}
        return {**found, "entries": entries, "megabytes": size / 1e6, "evicted": reuse.store.evicted}


def _layers(recipe: Recipe, splits: Splits, task: Task, out: Path, log: Progress) -> tuple[int, Sequence[Probe]]:
    """Return how many layers are recycled, and the probes that told it, where the recipe asks for them."""
    assert recipe.recycle is not None
    model = load_model(sources.model_folder(recipe.teacher.model, recipe.root), splits.labels, task.head)
    if recipe.recycle.layer != "auto":
        return count_layers(recipe.recycle.layer, shape_of(model).layers), []
    count = most_layers(model)
    own = recipe.recycle.model_copy(update={"store": str((out / "probed").resolve())})  # outputs of all layers are not what is kept
    with Reuse.of(recipe.model_copy(update={"recycle": own}), count, splits, task, out, log) as deepest:
        probes = probe(recipe, deepest, log)
    shutil.rmtree(deepest.folder)
    layers = chosen(probes, recipe.recycle.max_drop)
    if layers is None:
        layers = probes[1].layers
        lost = f"{(probes[0].score - probes[1].score) * 100:.1f} points"
        log.warn(
            f"recycle: even {layers} layers that stay as they are lose {lost} in a short training; raise max_drop or leave recycle out"
        )
    elif learned_nothing(probes[0]):
        layers = probes[1].layers
        told = f"a short training of all layers scores {probes[0].score:.4f}, {probes[0].before:.4f} before it, and tells no depth apart"
        log.warn(f"recycle: {told}: {layers} stay as they are; name recycle.layer, or leave recycle out")
    log.note(f"{layers} of {count} layers stay as they are")
    return layers, probes
