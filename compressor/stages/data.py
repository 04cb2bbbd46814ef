"""Read, check and split the data.

What:     reads every split that the recipe names, cuts the missing ones from train by a hash of the text, and checks labels.
Formula:  a text is held out when sha256(split, text) falls into the lowest `holdout` share.
Defaults: holdout 10%, max_length 128.
Limits:   texts pass through one at a time; of the splits that the recipe names beside train, a hash of every text is held.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from compressor.artifact import write_json
from compressor.data import Columns, Example, held_out, read_examples, text_hash
from compressor.errors import RecipeError
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import SPLITS, Recipe


@dataclass
class Written:
    """A split's file, and what later checks ask of it: examples so far, and the first example of each label."""

    file: IO[str]
    examples: int = 0
    first: dict[str, int] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Write one example."""
        self.examples += 1
        assert example.label is not None
        self.first.setdefault(example.label, self.examples)
        self.file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write one jsonl a split, and meta.json with labels and max_length."""
    with ExitStack() as stack:
        splits = {name: Written(stack.enter_context((out / f"{name}.jsonl").open("w", encoding="utf-8"))) for name in SPLITS}
        shared = _write(recipe, splits)
    _check_cuts(recipe, splits, log)
    labels = _labels(recipe, splits)
    write_json(out / "meta.json", {"labels": labels, "max_length": recipe.data.max_length})
    for name, count in shared.items():
        if count:
            log.warn(f"{count} of {splits[name].examples} texts of {name} are in train too; its score flatters the model")
    return {"examples": {name: s.examples for name, s in splits.items()}, "labels": len(labels), "in_train_too": shared}


def _write(recipe: Recipe, splits: Mapping[str, Written]) -> dict[str, int]:
    """Fill the splits; return how many texts of each are in train too."""
    absent = [name for name in SPLITS if getattr(recipe.data, name) is None]
    hashes: dict[str, list[int]] = {name: [] for name in SPLITS if name != "train"}
    for name in hashes.keys() - set(absent):
        for example in _read(recipe, name):
            splits[name].add(example)
            hashes[name].append(text_hash(example))
    wanted, found = {h for each in hashes.values() for h in each}, set[int]()
    for example in _read(recipe, "train"):
        name = next((n for n in absent if held_out(example, recipe.data.holdout, n)), "train")
        splits[name].add(example)
        if name == "train" and (known := text_hash(example)) in wanted:
            found.add(known)
    return {name: sum(h in found for h in each) for name, each in hashes.items()}


def _read(recipe: Recipe, name: str) -> Iterator[Example]:
    data = recipe.data
    source, columns = getattr(data, name), Columns(data.text, data.text_pair, data.label)
    return read_examples(source.path, columns, root=recipe.root, split=name, limit=source.limit)


def _check_cuts(recipe: Recipe, splits: Mapping[str, Written], log: Progress) -> None:
    for name in SPLITS:
        cut = getattr(recipe.data, name) is None
        if cut:
            log.note(f"{name}: {splits[name].examples} examples cut from train by a hash of the text")
        if (cut or name == "train") and not splits[name].examples:
            raise RecipeError(
                f"data.{name}: cutting {recipe.data.holdout:.0%} from train leaves an empty split; name a file, or give train more examples"
            )


def _labels(recipe: Recipe, splits: Mapping[str, Written]) -> Sequence[str]:
    known = sorted(splits["train"].first, key=lambda x: (not x.isdigit(), int(x) if x.isdigit() else 0, x))
    if len(known) < 2:
        raise RecipeError(f"data.train has {len(known)} label ({', '.join(known)}); a classifier needs two: check data.label")
    for name, split in splits.items():
        for label, number in split.first.items():
            if label not in splits["train"].first:
                source = getattr(recipe.data, name) or recipe.data.train
                where = f"data.{name} ({source.path}): example {number}"
                raise RecipeError(f"{where} has label {label!r}, which train lacks; mend the label or add it to train")
    return known
