"""Run the teacher's first layers once per text, and keep what they made of each for the fine-tuning of the layers above.

What:     each distinct text of train and validation, texts of like length together; what the store knows already is not computed again.
Paper:    embedding recycling (arXiv:2207.04993).
Formula:  bytes = tokens · width · 4, 2 or 1 (and 4 more a token), by dtype.
Defaults: float16, at most 20 GB, in the artifacts folder.
Limits:   the store is no part of the artifact: entries that went, or a store that was removed, are computed when they are read.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.artifact import write_json
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.reuse import Reuse
from compressor.splits import Splits, task_of


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Fill the store; return where it is, what it takes and how long that took."""
    assert recipe.recycle is not None
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    with Reuse.of(recipe, splits, task, out.parent, log) as reuse:
        found: dict[str, Any] = {
            "layer": reuse.lower.place,
            "store": reuse.folder.name if recipe.recycle.store is None else recipe.recycle.store,
            "dtype": reuse.store.identity.dtype,
        }
        for name in ("train", "validation"):
            data, started, before = reuse.recycled(name), time.perf_counter(), len(reuse.store)
            for done in data.fill():
                log.steps(done, len(data), split=name)
            found[name] = {"texts": len(data), "distinct": len(set(data.keys)), "computed": len(reuse.store) - before}
            found[name]["seconds"] = time.perf_counter() - started
        write_json(out / "identity.json", asdict(reuse.store.identity))  # what is learned above depends on it
        entries, size = len(reuse.store), reuse.store.bytes()
        log.note(f"layer {reuse.lower.place} of {entries:,} distinct texts takes {size / 1e6:,.0f} MB")
        return {**found, "entries": entries, "megabytes": size / 1e6, "evicted": reuse.store.evicted}
