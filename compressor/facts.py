"""What can be seen of a recipe in under a second: its data's size, lengths and labels, the models' sizes, and who shares its encoder."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from compressor import sources
from compressor.data import Example, read_examples
from compressor.errors import CompressorError
from compressor.files import opened
from compressor.layer_maps import layers_of
from compressor.lengths import gated_inner
from compressor.pieces import KINDS, kind_of
from compressor.recipe import Recipe
from compressor.settings.distilling import Student
from compressor.tasks import TRAINED
from compressor.words import Told, told_by_words

LOOK, SEEN = 2000, 20_000
"""Examples that are counted for their lengths, and that are read."""
COUNTED = (".csv", ".tsv", ".jsonl", ".txt")


@dataclass(frozen=True)
class Size:
    """An encoder's layers, its hidden size, that of its feed-forward, its tokens, its family, and whether some of its tokens can leave."""

    layers: int
    width: int
    inner: int
    vocabulary: int
    family: str
    prunable: bool
    embedded: int | None = None
    """Size of its embeddings, where they are narrower than its layers (ELECTRA's)."""
    pooling: str = "cls"
    """What a head for texts reads: [CLS], or the mean of all tokens, which ModernBERT's may."""

    @property
    def weights(self) -> int:
        """The weights of its layers, each of which multiplies once a token."""
        return self.layers * (4 * self.width**2 + 2 * self.width * gated_inner(self.family, self.inner))

    @property
    def table(self) -> int:
        """The weights of its tokens' embeddings."""
        return self.vocabulary * (self.embedded or self.width)

    @property
    def megabytes(self) -> float:
        """About what its graph takes in 8 bits: a byte a weight."""
        return (self.table + self.weights) / 1e6


@dataclass(frozen=True)
class Facts:
    """What the advice rests on; None where it cannot be seen at once."""

    examples: int | None
    words: float | None
    """Median of the words of a text, of which no more are read than a text may have tokens."""
    teacher: Size | None
    student: Size | None
    """What ships where there is no distill section is the teacher."""
    by_words: Told | None
    """What words alone tell of the labels; of sets of labels, whether all of a set are right."""
    skew: float = 1.0
    """How many times as often as the rarest label the commonest one comes."""
    sharing: Sequence[str] = ()
    """Recipes beside this one that start from the same encoder."""


def facts_of(recipe: Recipe) -> Facts:
    """Look at the data's first texts and at the models' configurations; what is not on this machine is not looked at."""
    path = sources.resolve(recipe.data.train.path, recipe.root)
    try:
        some = [] if path is None else _some(recipe)
        examples = None if path is None else _count(path, recipe.data.train.limit) if len(some) == SEEN else len(some)
    except CompressorError:  # the data stage tells what is wrong with it
        examples, some = None, []
    read = recipe.data.max_length  # a word is a token or more
    words = median(min(len(_text(e).split()), read) for e in some[:LOOK]) if some else None
    labels = [e.label for e in some] if recipe.task.type == "text-classification" else []
    together = ["|".join(sorted(e.label)) for e in some] if recipe.task.type == "multi-label-classification" else labels
    by_words = told_by_words([_text(e) for e in some], together) if together else None
    counts = Counter(labels).values()
    skew = max(counts) / min(counts) if counts else 1.0
    teacher = _size(recipe.teacher.model, recipe.root)
    guide = _student_size("assistant", recipe.assistant.student, teacher, recipe.root) if recipe.assistant else teacher
    student = _student_size("distill", recipe.distill.student, guide, recipe.root) if recipe.distill else None
    return Facts(examples, words, teacher, student, by_words, skew, _sharing(recipe))


def _sharing(recipe: Recipe) -> list[str]:
    """Return the recipes of this folder, but for this one, whose teacher is the same encoder; what is no recipe is passed over."""
    found = list[str]()
    for path in sorted(recipe.root.glob("*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            if recipe.teacher.model not in text:  # parsing takes a hundred times as long
                continue
            read = YAML(typ="safe", pure=True).load(text)
            if read["name"] != recipe.name and read["teacher"]["model"] == recipe.teacher.model:
                found.append(str(read["name"]))
        except (YAMLError, OSError, ValueError, LookupError, TypeError):
            continue
    return found


def _count(path: Path, limit: int | None) -> int | None:
    """Return about how many rows a file has: its lines."""
    if not path.name.removesuffix(".gz").endswith(COUNTED):
        return None
    with opened(path) as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    headless = any(kind in path.suffixes for kind in (".jsonl", ".txt"))
    rows = lines if headless else max(0, lines - 1)
    return min(rows, limit or rows)


def _some(recipe: Recipe) -> list[Example]:
    """Return the first examples: so many that a file that is sorted by label shows more than one."""
    task, skipped = TRAINED[recipe.task.type](**recipe.task.settings), list[str]()
    train, columns = recipe.data.train, recipe.columns()
    how = train.how | {"limit": min(SEEN, train.limit or SEEN)}
    rows = read_examples(train.path, columns, task, root=recipe.root, split="train", skipped=skipped, **how)
    return list(rows)


def _text(example: Example) -> str:
    return f"{example.text} {example.text_pair or ''}"


def _student_size(section: str, student: Student, teacher: Size | None, root: Path) -> Size | None:
    """Return what a student will be, of whose teacher, which may be the assistant, this is the size."""
    if student.model is not None:
        return _size(student.model, root)
    if student.layers is None or teacher is None:
        return None
    count = len(layers_of(student.layers, teacher.layers, f"{section}.student.layers"))
    width = student.hidden_size or teacher.width
    embedded = width if teacher.embedded == teacher.width else teacher.embedded
    return replace(teacher, layers=count, width=width, inner=teacher.inner * width // teacher.width, embedded=embedded)


def _size(model: str, root: Path) -> Size | None:
    folder = sources.resolve(model, root)
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = (("num_hidden_layers", "n_layers"), ("hidden_size", "dim"), ("intermediate_size", "hidden_dim"), ("vocab_size",))
    layers, width, inner, vocabulary = (next((config[k] for k in keys if k in config), 0) for keys in named)
    if not (all(isinstance(number, int) for number in (layers, width, inner, vocabulary)) and layers and width):
        return None
    family, embedded = str(config.get("model_type", "")), config.get("embedding_size")
    return Size(layers, width, inner, vocabulary, family, _is_prunable(folder), embedded, config.get("classifier_pooling", "cls"))


def _is_prunable(folder: Path) -> bool:
    """Return whether a vocabulary can be cut; where no tokenizer.json tells, it may."""
    path = folder / "tokenizer.json"
    return not path.exists() or kind_of(json.loads(path.read_text(encoding="utf-8"))["model"]) in KINDS
