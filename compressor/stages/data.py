"""Read, check and split the data.

What:     reads every split that the recipe names, cuts the missing ones from train by a hash of the text, and checks labels.
Formula:  a text is held out when sha256(split, text) falls into the lowest `holdout` share.
Defaults: holdout 10%, max_length 128.
Limits:   texts pass through one at a time; of every split beside train, a hash of each text is held.
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
from compressor.recipe import Recipe


@dataclass
class Written:
    """A split's file, and what later checks ask of it: examples so far, the first of each label, and, if wanted, each text's hash."""

    file: IO[str]
    hashed: bool
    examples: int = 0
    hashes: list[int] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Write one example."""
        self.examples += 1
        if example.label is not None:
            self.first.setdefault(example.label, self.examples)
        if self.hashed:
            self.hashes.append(text_hash(example))
        self.file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write one jsonl a split, and meta.json with labels and max_length."""
    with ExitStack() as stack:
        files = {name: stack.enter_context((out / f"{name}.jsonl").open("w", encoding="utf-8")) for name in (*recipe.splits, "unlabelled")}
        splits = {name: Written(files[name], hashed=name != "train") for name in recipe.splits}
        shared = _write(recipe, splits)
        unlabelled = _write_unlabelled(recipe, splits, files["unlabelled"], log)
    _check_cuts(recipe, splits, log)
    labels = _labels(recipe, splits) if recipe.deployed else []
    write_json(out / "meta.json", {"labels": labels, "max_length": recipe.data.max_length})
    for name, count in shared.items():
        if count:
            log.warn(f"{count} of {splits[name].examples} texts of {name} are in train too; its score flatters the model")
    return {"examples": {name: s.examples for name, s in splits.items()} | unlabelled, "labels": len(labels), "in_train_too": shared}


def _write(recipe: Recipe, splits: Mapping[str, Written]) -> dict[str, int]:
    """Fill the splits; return how many texts of each are in train too."""
    absent = [name for name in recipe.splits if getattr(recipe.data, name) is None]
    for name in recipe.splits:
        if name != "train" and name not in absent:
            for example in _read(recipe, name):
                splits[name].add(example)
    named = [splits[name] for name in recipe.splits if name != "train" and name not in absent]
    wanted, found = {h for split in named for h in split.hashes}, set[int]()
    for example in _read(recipe, "train"):
        name = next((n for n in absent if held_out(example, recipe.data.holdout, n)), "train")
        splits[name].add(example)
        if name == "train" and (known := text_hash(example)) in wanted:
            found.add(known)
    return {name: sum(h in found for h in splits[name].hashes) for name in recipe.splits if name != "train" and name not in absent}


def _write_unlabelled(recipe: Recipe, splits: Mapping[str, Written], file: IO[str], log: Progress) -> dict[str, int]:
    """Write the texts that nobody labelled, without those that a score is measured on; return how many there are."""
    source, count, left_out = recipe.data.unlabelled, 0, 0
    if source is None:
        return {}
    measured = {h for name in recipe.splits if name != "train" for h in splits[name].hashes}
    columns = Columns(recipe.data.text, recipe.data.text_pair, None)
    for example in read_examples(source.path, columns, root=recipe.root, split="unlabelled", limit=source.limit):
        if text_hash(example) in measured:
            left_out += 1
        else:
            file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")
            count += 1
    if left_out:
        log.warn(f"{left_out} of {count + left_out} unlabelled texts are in validation, search or test too: left out")
    return {"unlabelled": count}


def _read(recipe: Recipe, name: str) -> Iterator[Example]:
    data = recipe.data
    source, columns = getattr(data, name), Columns(data.text, data.text_pair, data.label if recipe.deployed else None)
    return read_examples(source.path, columns, root=recipe.root, split=name, limit=source.limit)


def _check_cuts(recipe: Recipe, splits: Mapping[str, Written], log: Progress) -> None:
    for name in recipe.splits:
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
