"""Which methods suit a recipe, from what can be seen in under a second: its sections, its data's size and lengths, the models' sizes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from compressor import sources
from compressor.data import Example, read_examples
from compressor.errors import CompressorError
from compressor.files import opened
from compressor.recipe import Recipe
from compressor.settings.distilling import Student
from compressor.settings.serving import SizeGate
from compressor.tasks import TRAINED
from compressor.words import EDGES, Told, told_by_words

FEW, MANY_WORDS, FEW_WORDS = 2000, 90, 45
LOOK, SEEN = 2000, 20_000
"""Examples that are counted for their lengths, and that are read."""
NAMED = 3
"""Other recipes that are named."""
COUNTED = (".csv", ".tsv", ".jsonl", ".txt")


@dataclass(frozen=True)
class Size:
    """An encoder's layers, its hidden size, that of its feed-forward, and its tokens."""

    layers: int
    width: int
    inner: int
    vocabulary: int

    @property
    def megabytes(self) -> float:
        """About what its graph takes in 8 bits: a byte a weight."""
        return (self.vocabulary * self.width + self.layers * (4 * self.width**2 + 2 * self.width * self.inner)) / 1e6


@dataclass(frozen=True)
class Facts:
    """What the advice rests on; None where it cannot be seen at once."""

    examples: int | None
    words: float | None
    teacher: Size | None
    student: Size | None
    """What ships where there is no distill section is the teacher."""
    by_words: Told | None
    """What words alone tell of the labels."""
    sharing: Sequence[str] = ()
    """Recipes beside this one that start from the same encoder."""


def advise(recipe: Recipe) -> list[str]:
    """Return one line for each method that suits or does not, with its reason."""
    return list(_lines(recipe, facts_of(recipe)))


def _lines(recipe: Recipe, facts: Facts) -> Iterator[str]:
    tuned = recipe.teacher.finetune
    if facts.examples is not None and facts.examples < FEW and tuned and tuned.method == "full":
        yield f"{facts.examples:,} labelled texts are few: teacher.finetune.method bitfit, adapters or lora overfits less"
    if facts.sharing and tuned and recipe.recycle is None and recipe.deployed:
        others = ", ".join(facts.sharing[:NAMED]) + ", …" * (len(facts.sharing) > NAMED)
        yield f"this encoder is that of {others} too: where they read the same texts, recycle runs its first layers once for all of them"
    if recipe.distill is None and facts.teacher and facts.teacher.layers >= 6:
        half = f"{facts.teacher.layers // 2} of the {facts.teacher.layers}"
        yield f"no distill section: a student of {half} layers halves the time, before all else"
    if facts.words is not None and facts.words < FEW_WORDS and recipe.length_adapt:
        yield f"texts are short (median {facts.words:.0f} words): length_adapt gains little on them; fewer layers and INT8 gain more"
    if facts.words is not None and facts.words > MANY_WORDS and not recipe.length_adapt and recipe.deployed:
        yield f"texts are long (median {facts.words:.0f} words): length_adapt and search pay on them"
    if recipe.length_adapt and recipe.task.type == "question-answering" and recipe.length_adapt.significance != "question":
        told = "where tokenizers mark a second text, length_adapt with significance question, protect question and neighbours 8"
        yield f"{told} loses fewer answers"
    elif facts.words is not None and facts.words > MANY_WORDS and recipe.length_adapt and recipe.length_adapt.significance == "attention":
        yield f"texts are so long (median {facts.words:.0f} words) that length_adapt.significance sampled is faster"
    if facts.words is not None and facts.words > MANY_WORDS and recipe.search and not recipe.search.truncate and recipe.reads_single_texts:
        yield f"texts are so long (median {facts.words:.0f} words) that search.truncate may find points that read only their beginning"
    if facts.teacher and facts.student and recipe.assistant is None:
        large, small = facts.teacher, facts.student
        if 2 * small.layers <= large.layers and 2 * small.width <= large.width:
            named = f"the student ({small.layers}x{small.width}) has at most half of the teacher's layers and width"
            yield f"{named} ({large.layers}x{large.width}): an assistant section may help"
    yield from _of_size(facts.student if recipe.distill else facts.teacher, recipe)
    if facts.by_words is not None and recipe.deployed:
        yield _of_words(facts.by_words, recipe)
    if recipe.quantize is None and recipe.deployed:
        yield "no quantize section: INT8 is the cheapest gain on a processor with VNNI or AMX"


def _of_size(shipped: Size | None, recipe: Recipe) -> Iterator[str]:
    """Say what would make the graph fit a size gate that it will break."""
    allowed = min((gate.max for gate in recipe.gates if isinstance(gate, SizeGate)), default=None)
    if shipped is None or allowed is None or not recipe.quantize or shipped.megabytes <= allowed:
        return
    if recipe.distill is None or recipe.distill.student.vocabulary != "corpus":
        table = shipped.vocabulary * shipped.width / 1e6
        smaller = f"distill.student.vocabulary: corpus (the table of {shipped.vocabulary:,} tokens takes {table:.0f} MB), fewer layers"
        told = (
            f"{shipped.layers} layers of {shipped.width} take some {shipped.megabytes:.0f} MB in 8 bits, the size gate allows {allowed:g}"
        )
        yield f"{told}: {smaller} or a narrower hidden_size"


def _of_words(told: Told, recipe: Recipe) -> str:
    """Return what words alone tell, and whether it speaks for a cascade."""
    fifths = ", ".join(f"{part:.0%}" for part in told.fifths)
    facts = f"words alone answer {told.accuracy:.0%} of held-out texts ({told.guessed:.0%} by guessing; {fifths} from the surest fifth on; "
    bins = zip(pairwise(EDGES), told.shares, strict=True)
    facts += "confidence " + ", ".join(f"{100 * low:.0f}-{high:.0%}: {share:.0%}" for (low, high), share in bins)
    facts += f" of texts), shuffled ones {100 * (told.accuracy - told.shuffled):.0f} points less: "
    if told.easy:
        return facts + ("easy texts are there for the cascade" if recipe.cascade else "easy texts are there, a cascade section may pay")
    return facts + "no easy texts stand out, a cascade will gain little"


def facts_of(recipe: Recipe) -> Facts:
    """Look at the data's first texts and at the models' configurations; what is not on this machine is not looked at."""
    path = sources.resolve(recipe.data.train.path, recipe.root)
    try:
        some = [] if path is None else _some(recipe)
        examples = None if path is None else _count(path, recipe.data.train.limit) if len(some) == SEEN else len(some)
    except CompressorError:  # the data stage tells what is wrong with it
        examples, some = None, []
    words = median(len(_text(e).split()) for e in some[:LOOK]) if some else None
    by_words = told_by_words([_text(e) for e in some], [e.label for e in some]) if recipe.task.type == "text-classification" else None
    teacher = _size(recipe.teacher.model, recipe.root)
    student = _student_size(recipe.distill.student, teacher, recipe.root) if recipe.distill else None
    return Facts(examples, words, teacher, student, by_words, _sharing(recipe))


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
    limit = min(SEEN, recipe.data.train.limit or SEEN)
    rows = read_examples(recipe.data.train.path, recipe.columns(), task, root=recipe.root, split="train", limit=limit, skipped=skipped)
    return list(rows)


def _text(example: Example) -> str:
    return f"{example.text} {example.text_pair or ''}"


def _student_size(student: Student, teacher: Size | None, root: Path) -> Size | None:
    if student.model is not None:
        return _size(student.model, root)
    if student.layers is None or teacher is None:
        return None
    asked = student.layers
    count = len(asked) if not isinstance(asked, str) else teacher.layers // 2 if asked.startswith("every") else int(asked.split()[1])
    width = student.hidden_size or teacher.width
    return Size(count, width, teacher.inner * width // teacher.width, teacher.vocabulary)


def _size(model: str, root: Path) -> Size | None:
    folder = sources.resolve(model, root)
    if folder is None:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = (("num_hidden_layers", "n_layers"), ("hidden_size", "dim"), ("intermediate_size", "hidden_dim"), ("vocab_size",))
    found = [next((config[k] for k in keys if k in config), 0) for keys in named]
    return Size(*found) if all(isinstance(number, int) for number in found) and found[0] and found[1] else None
