"""Read, check and split the data.

What:     reads every split that the recipe names, cuts the missing ones from train by a hash of the text, and checks labels; leaves
          out of search what is in train or test too.
Formula:  a text is held out when sha256(split, text) falls into the lowest `holdout` share; of questions the context alone decides.
Defaults: holdout 10%, max_length 128.
Limits:   texts pass through one at a time; of every split beside train, a hash of each text is held.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import IO, Any

from compressor.artifact import write_json
from compressor.data import Example, held_out, read_examples, seen_hash
from compressor.errors import RecipeError
from compressor.inputs import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.tasks import TRAINED, Task

MOST_SHARED = 0.05
"""Share of the search split's texts that may be in train or test too, and are left out; more is a mistake."""


FAR = 10
"""Numbers that a head which begins near 0 still reaches, in steps of a learning rate."""


@dataclass
class Written:
    """A split's file, and what later checks ask of it: examples so far, the first of each label, two numbers, and hashes if wanted."""

    file: IO[str]
    task: Task
    hashed: bool
    examples: int = 0
    hashes: list[int] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)
    numbers: set[float] = field(default_factory=set)
    """Different ones, two at most."""
    largest: float = 0.0
    """Magnitude of the largest number."""
    answered: bool = False
    """Whether any question has an answer."""
    several: bool = False
    """Whether any text has more than one label."""

    def add(self, example: Example) -> None:
        """Write one example."""
        self.examples += 1
        names = self.task.names(example)
        for name in names:
            self.first.setdefault(name, self.examples)
        self.several |= len(names) > 1
        self.answered |= bool(example.label)
        if self.task.choice == "number" and example.label is not None:
            self.largest = max(self.largest, abs(example.label))
            if len(self.numbers) < 2:
                self.numbers.add(example.label)
        if self.hashed:
            self.hashes.append(seen_hash(example, self.task.choice))
        self.file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")

    def keep(self, kept: Sequence[bool], path: Path) -> None:
        """Leave out of the file, which is written, all examples that are not kept."""
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        path.write_text("".join(f"{line}\n" for line in compress(lines, kept)), encoding="utf-8")
        self.hashes, self.examples = list(compress(self.hashes, kept)), sum(kept)

    def unscored(self) -> str | None:
        """Say why every model would score alike on these examples, if so: those of hidden labels often hold one made-up value."""
        if len(self.numbers) == 1 and self.examples > 1:
            return f"all numbers are {next(iter(self.numbers)):g}"
        if self.task.choice == "each" and not self.first:
            return "no text has a label"
        if self.task.choice == "positions" and not self.answered:
            return "no question has an answer"
        tagged = self.task.choice == "labels" and self.task.per_token and self.task.labelled
        return "no word belongs to an entity" if tagged and self.first.keys() <= {"O"} else None


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write one jsonl a split, and meta.json with labels, max_length and stride."""
    task, skipped = TRAINED[recipe.task.type](**recipe.task.settings), list[str]()
    with ExitStack() as stack:
        files = {name: stack.enter_context((out / f"{name}.jsonl").open("w", encoding="utf-8")) for name in (*recipe.splits, "unlabelled")}
        splits = {name: Written(files[name], task, hashed=name != "train") for name in recipe.splits}
        in_train = _write(recipe, task, splits, skipped)
        unlabelled = _write_unlabelled(recipe, task, splits, files["unlabelled"], skipped, log)
    if recipe.data.unknown_labels == "skip":
        _leave_out_unknown(splits, out, log)
    _check_cuts(recipe, splits, log)
    if "search" in splits:
        _clear_search(recipe, splits, in_train, out / "search.jsonl", log)
    shared = {name: sum(h in in_train for h in splits[name].hashes) for name in recipe.splits if name != "train"}
    labels = _labels(recipe, task, splits)
    _check_scored(recipe, splits, log)
    write_json(out / "meta.json", {"labels": labels, "max_length": recipe.data.max_length, "stride": recipe.stride})
    for name, count in shared.items():
        if count:
            told = f"{count} of {splits[name].examples} texts of {name} are in train too"
            log.warn(f"{told}; its score flatters the model", f"{told}: scores there flatter the model.")
    if splits["train"].largest > FAR:
        told = f"numbers of train reach {splits['train'].largest:g}, and a new head learns those beyond some {FAR} slowly or never"
        log.warn(f"{told}: divide them in all files (`predict` answers what was learned)", f"Numbers{told.removeprefix('numbers')}.")
    if task.choice == "each" and not splits["train"].several:
        told = f"no text of train has more than one label ({', '.join(map(repr, labels[:3]))}{', …' if len(labels) > 3 else ''})"
        log.warn(f"{told}: in csv and tsv, several stand with | between; where there is only one, text-classification suits")
    if chose := len({*splits["validation"].hashes} & {*splits["test"].hashes} if "test" in splits else ()):
        told = "epochs, seeds and 8-bit products are chosen by the one, and the other is reported"
        shown = f"{chose} of {splits['test'].examples} texts of test are in validation too: {told}"
        log.warn(shown, f"{shown}.")
    if skipped:
        told = f"{len(skipped)} rows are no examples and were left out (data.skip_bad)"
        log.warn(f"{told}; the first: {skipped[0]}", f"{told}.")
    examples = {name: s.examples for name, s in splits.items()} | unlabelled
    return {"examples": examples, "labels": len(labels), "in_train_too": shared, "skipped": len(skipped)}


def _write(recipe: Recipe, task: Task, splits: Mapping[str, Written], skipped: list[str]) -> set[int]:
    """Fill the splits; return the hashes of their texts that are in train too."""
    absent = [name for name in recipe.splits if getattr(recipe.data, name) is None]
    for name in recipe.splits:
        if name != "train" and name not in absent:
            for example in _read(recipe, task, name, skipped):
                splits[name].add(example)
    named = [splits[name] for name in recipe.splits if name != "train" and name not in absent]
    wanted, found = {h for split in named for h in split.hashes}, set[int]()
    for example in _read(recipe, task, "train", skipped):
        name = next((n for n in absent if held_out(example, task.choice, recipe.data.holdout, n)), "train")
        splits[name].add(example)
        if name == "train" and (known := seen_hash(example, task.choice)) in wanted:
            found.add(known)
    return found


def _leave_out_unknown(splits: Mapping[str, Written], out: Path, log: Progress) -> None:
    """Leave out of every split what has a label that train lacks.

    Raises:
        RecipeError: nothing is left.
    """
    known = splits["train"].first.keys()
    for name, split in splits.items():
        if not split.first.keys() <= known:
            path = out / f"{name}.jsonl"
            examples = (Example(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
            kept = [known >= set(split.task.names(example)) for example in examples]
            told = f"{kept.count(False)} of {len(kept)} texts of {name} have labels that train lacks: left out (data.unknown_labels)"
            log.warn(told, f"{told}.")
            if not any(kept):
                raise RecipeError(f"data.{name}: no text has labels that train knows; mend them, or add them to train")
            split.keep(kept, path)
            split.first = {label: number for label, number in split.first.items() if label in known}


def _clear_search(recipe: Recipe, splits: Mapping[str, Written], in_train: set[int], path: Path, log: Progress) -> None:
    """Leave out of search what is in train or test too: what was learned, or will be reported, is nothing to choose by.

    Raises:
        RecipeError: that is so much of a file that the splits were mixed up, or all of what was cut from train.
    """
    search, seen = splits["search"], in_train | set(splits["test"].hashes)
    shared = [h in seen for h in search.hashes]
    if recipe.data.search is None and all(shared):
        raise RecipeError("data.search: all texts that were cut from train for it are in train or test too; name a file")
    if recipe.data.search is not None and sum(shared) > MOST_SHARED * len(shared):
        also = "test" if sum(h in in_train for h in search.hashes) < sum(shared) else "train"
        told = f"{sum(shared)} of {len(shared)} texts of data.search are in {also} too"
        raise RecipeError(f"{told}: lengths would be chosen by what was learned or is reported; name another file, or leave it out")
    if any(shared):
        search.keep([not out for out in shared], path)
        log.warn(f"{sum(shared)} texts of search are in train or test too: left out")


def _write_unlabelled(
    recipe: Recipe, task: Task, splits: Mapping[str, Written], file: IO[str], skipped: list[str], log: Progress
) -> dict[str, int]:
    """Write the texts that nobody labelled, without those that a score is measured on; return how many there are."""
    count, left_out = 0, 0
    if recipe.data.unlabelled is None:
        return {}
    measured = {h for name in recipe.splits if name != "train" for h in splits[name].hashes}
    for example in _read(recipe, task, "unlabelled", skipped):
        if seen_hash(example, task.choice) in measured:
            left_out += 1
        else:
            file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")
            count += 1
    if left_out:
        log.warn(f"{left_out} of {count + left_out} unlabelled texts are in validation, search or test too: left out")
    return {"unlabelled": count}


def _read(recipe: Recipe, task: Task, name: str, skipped: list[str]) -> Iterator[Example]:
    source, columns = getattr(recipe.data, name), recipe.columns(labelled=name != "unlabelled")
    bad = skipped if recipe.data.skip_bad else None
    return read_examples(source.path, columns, task, root=recipe.root, split=name, skipped=bad, **source.how)


def _check_cuts(recipe: Recipe, splits: Mapping[str, Written], log: Progress) -> None:
    for name in recipe.splits:
        cut = getattr(recipe.data, name) is None
        if cut:
            log.note(f"{name}: {splits[name].examples} examples cut from train by a hash of the text")
        if (cut or name == "train") and not splits[name].examples:
            raise RecipeError(
                f"data.{name}: cutting {recipe.data.holdout:.0%} from train leaves an empty split; name a file, or give train more examples"
            )


def _check_scored(recipe: Recipe, splits: Mapping[str, Written], log: Progress) -> None:
    """Refuse a split by whose score nothing can be chosen or judged; of a few first rows that may be chance.

    Raises:
        RecipeError: names it.
    """
    for name, split in splits.items():
        if name != "train" and (why := split.unscored()):
            source = getattr(recipe.data, name)
            told = f"data.{name}{f' ({source.path})' if source else ''}: {why}, so that every model scores alike there"
            if not (source or recipe.data.train).limit:
                raise RecipeError(f"{told}; name texts whose labels are known")
            log.warn(told, f"Of {name}: {why}, so that every model scores alike there.")


def _labels(recipe: Recipe, task: Task, splits: Mapping[str, Written]) -> Sequence[str]:
    known = task.outputs(splits["train"].first)
    if task.choice == "labels" and task.labelled and len(known) < 2:
        raise RecipeError(f"data.train has {len(known)} label ({', '.join(known)}); a classifier needs two: check data.label")
    if task.choice == "each" and not known:
        raise RecipeError("no example of data.train has a label; check data.label")
    for name, split in splits.items():
        for label, number in split.first.items():
            if label not in splits["train"].first:
                source = getattr(recipe.data, name) or recipe.data.train
                where = f"data.{name} ({source.path}): example {number}"
                remedy = "mend the label, add it to train, or set data.unknown_labels: skip"
                raise RecipeError(f"{where} has label {label!r}, which train lacks; {remedy}")
    return known
