"""Read, check and split the data.

What:     reads every split that the recipe names, cuts the missing ones from train by a hash of the text, and checks labels.
Formula:  a text is held out when sha256(split, text) falls into the lowest `holdout` share.
Defaults: holdout 10%, max_length 128.
Limits:   the whole text of a split is in memory while it is read.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.artifact import write_json
from compressor.data import Columns, Example, read_examples, split_by_hash
from compressor.errors import RecipeError
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe

SPLITS = ("train", "test", "validation", "search")


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write one jsonl a split, and meta.json with labels and max_length."""
    splits = _read(recipe, log)
    labels = _labels(splits)
    for name, examples in splits.items():
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(dataclasses.asdict(e), ensure_ascii=False) + "\n" for e in examples)
    write_json(out / "meta.json", {"labels": labels, "max_length": recipe.data.max_length})
    train = {(e.text, e.text_pair) for e in splits["train"]}
    shared = {name: sum((e.text, e.text_pair) in train for e in examples) for name, examples in splits.items() if name != "train"}
    for name, count in shared.items():
        if count:
            log.warn(f"{count} of {len(splits[name])} texts of {name} are in train too; its score flatters the model")
    return {"examples": {name: len(e) for name, e in splits.items()}, "labels": len(labels), "in_train_too": shared}


def _read(recipe: Recipe, log: Progress) -> dict[str, list[Example]]:
    data = recipe.data
    columns = Columns(data.text, data.text_pair, data.label)
    splits: dict[str, list[Example]] = {}
    for name in SPLITS:
        source = getattr(data, name)
        if source is not None:
            splits[name] = read_examples(source.path, columns, root=recipe.root, split=name, limit=source.limit)
    for name in [n for n in SPLITS if n not in splits]:
        splits["train"], splits[name] = split_by_hash(splits["train"], data.holdout, name)
        log.note(f"{name}: {len(splits[name])} examples cut from train by a hash of the text")
        if not splits[name] or not splits["train"]:
            raise RecipeError(
                f"data.{name}: cutting {data.holdout:.0%} from train leaves an empty split; name a file, or give train more examples"
            )
    return splits


def _labels(splits: dict[str, list[Example]]) -> Sequence[str]:
    known = sorted(
        {e.label for e in splits["train"] if e.label is not None}, key=lambda x: (not x.isdigit(), int(x) if x.isdigit() else 0, x)
    )
    if len(known) < 2:
        raise RecipeError(f"data.train has {len(known)} label ({', '.join(known)}); a classifier needs two: check data.label")
    for name, examples in splits.items():
        for number, example in enumerate(examples, 1):
            if example.label not in known:
                raise RecipeError(
                    f"data.{name}: example {number} has label {example.label!r}, which train lacks; mend the label or add it to train"
                )
    return known
