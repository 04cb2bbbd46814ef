"""Token classification: a tag for each word, entities from tags (named-entity recognition).

What:     a word's tag is that of its first token; texts longer than the model are read in windows, whose overlap they share half and half.
Formula:  tags are IOB2 throughout; IOB1 and BIOES are turned into it when they are read. An entity begins at B, and at an I that
          follows another type or none, as seqeval and conlleval read them.
Limits:   a text that comes without words is split at spaces and around punctuation.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from compressor.characters import is_inside, on_a_line
from compressor.choices import UNKNOWN, UNLABELLED, Choice, softmax
from compressor.data import Example, label_of, text_of
from compressor.errors import RecipeError
from compressor.files import Columns, Reader, Row, decoded, opened
from compressor.scores import Metric, entity_f1
from compressor.tokens import Floats, Ints, Tokens
from compressor.windows import Windows, pieces, settle

Scheme = Literal["IOB1", "IOB2", "BIOES"]
_PIECE = re.compile(r"\w+|[^\w\s]")
"""Letters and digits in a row, or one other character; `\\w` holds no combining marks and no joiners, of which words have some."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A named thing: its type, its text, where it begins and ends (characters), and the mean probability of its words' tags."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Entities:
    """The entities of one text, in their order."""

    entities: tuple[Entity, ...]

    def line(self) -> str:
        """Return the entities as a line for people."""
        return "\t".join(f"{on_a_line(e.text)} ({e.label} {e.start}-{e.end} {e.score:.4f})" for e in self.entities)


def conll_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the sentences of a conll file: a word a line, its tag last, a blank line after each sentence."""
    words, tags, first, wrong = list[str](), list[str](), 0, list[RecipeError]()
    with opened(path) as binary:
        for number, line in enumerate([*decoded(path, binary), ""], 1):
            parts = _columns(line)
            if not parts or parts[0] == "-DOCSTART-":
                if words:
                    yield first, wrong[0] if wrong else {columns.text: words, columns.label or "": tags}
                words, tags, wrong = [], [], []
                continue
            if columns.label is not None and len(parts) < 2:
                wrong.append(RecipeError(f"{path}: row {number} has one column, {parts[0]!r}; write a word and its tag"))
            first = first if words else number
            words.append(parts[0])
            tags.append(parts[-1])


def _columns(line: str) -> list[str]:
    """Return a line's columns: a word may hold spaces that are not ASCII's, as between a number and its unit."""
    return [part for part in re.split(r"[ \t]+", line.strip(" \t\r\n")) if part.strip()]


@dataclass(frozen=True)
class TokenClassification:
    """A tag for each word; logits are (tokens, tags), outcomes (examples, 3): entities found, answered, and there."""

    scheme: Scheme = "IOB2"
    head: ClassVar[str] = "token-classification"
    labelled: ClassVar[bool] = True
    choice: ClassVar[Choice] = "labels"
    per_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {"entity_f1": entity_f1}
    forms: ClassVar[Mapping[str, Reader]] = {".conll": conll_rows}

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return a row's words and tags: lists, or texts with spaces between."""
        words = _items(where, columns.text, row[columns.text])
        if columns.label is None:
            return Example(" ".join(words), words=words)
        tags = [label_of(where, columns.label, tag) for tag in _items(where, columns.label, row[columns.label])]
        if len(tags) != len(words):
            raise RecipeError(f"{where} has {len(words)} words and {len(tags)} tags; give each word one")
        return Example(" ".join(words), label=iob2(where, tags, self.scheme), words=words)

    def given(self, value: Any) -> Example:
        """Return the example that a caller gave as a text or as a list of words.

        Raises:
            RecipeError: it is neither.
        """
        if isinstance(value, str):
            return Example(value)
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise RecipeError(f"{value!r:.60} is neither a text nor a list of words; give a str, or a list of them")
        return Example(" ".join(value), words=list(value))

    def names(self, example: Example) -> Sequence[str]:
        """Return the types that the example names, and O."""
        return ["O", *(tag[2:] for tag in example.label if tag != "O")]

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return O, then B and I of each type: tags that only another split has are known then."""
        return ("O", *(f"{part}-{name}" for name in sorted(set(names) - {"O"}) for part in "BI"))

    def windows(self, tokenizer: Tokenizer, examples: Sequence[Example], max_length: int, stride: int) -> Windows:
        """Return each text's windows; a token's place is its word, if it is the word's first and belongs to this window."""
        settle(tokenizer, max_length, stride)
        words = [_for(tokenizer, [text for text, _ in words_of(e)]) for e in examples]
        parts, owners, places = list[Encoding](), list[int](), list[list[int]]()
        for row, encoding in enumerate(tokenizer.encode_batch(words, is_pretokenized=True)):
            found = pieces(encoding)
            parts += found
            owners += [row] * len(found)
            places += _first_tokens([piece.word_ids for piece in found], stride)
        flat = np.array([place for window in places for place in window], np.int32)
        return Windows(Tokens.of(parts), np.array(owners, np.int64), flat[:, None])

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Ints:
        """Return each token's tag id (tokens,): -100 where it has none of its own, -1 where it is not known."""
        ids, found = {name: i for i, name in enumerate(outputs)}, np.full(len(windows.tokens.ids), UNLABELLED, np.int64)
        for owner, (begin, end) in zip(windows.owners.tolist(), windows.spans(), strict=True):
            tags = examples[owner].label
            for token in range(begin, end):
                if (word := windows.places[token, 0]) >= 0:
                    found[token] = UNKNOWN if tags is None else ids[tags[word]]
        return found

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Floats:
        """Return how many of each text's entities were found, how many were answered, and how many there are."""
        found = np.zeros((len(examples), 3))
        answers = _tags(logits, windows, [len(e.label) for e in examples], outputs)
        for row, ((tags, _), example) in enumerate(zip(answers, examples, strict=True)):
            answered, there = set(entities(tags)), set(entities(example.label))
            found[row] = len(answered & there), len(answered), len(there)
        return found

    def decode(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> list[Entities]:
        """Return the entities of each text."""
        answers, places = list[Entities](), [[span for _, span in words_of(e)] for e in examples]
        found = _tags(logits, windows, [len(spans) for spans in places], outputs)
        for (tags, scores), example, spans in zip(found, examples, places, strict=True):
            named = list[Entity]()
            for label, first, last in entities(tags):
                start, end = spans[first][0], spans[last][1]
                named.append(Entity(label, example.text[start:end], start, end, float(np.mean(scores[first : last + 1]))))
            answers.append(Entities(tuple(named)))
        return answers


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the entities of IOB2 tags: type, first word, last word."""
    found: list[tuple[str, int, int]] = []
    for number, tag in enumerate(tags):
        if tag == "O":
            continue
        goes_on = tag[0] == "I" and found and found[-1][0] == tag[2:] and found[-1][2] == number - 1
        found[-1:] = [(tag[2:], found[-1][1], number)] if goes_on else [*found[-1:], (tag[2:], number, number)]
    return found


def iob2(where: str, tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Return tags of a scheme as IOB2.

    Raises:
        RecipeError: a tag, or the step from one to the next, that the scheme does not have.
    """
    found: list[str] = []
    for number, (before, tag, after) in enumerate(zip(["O", *tags], tags, [*tags[1:], "O"], strict=False), 1):
        part, _, name = tag.partition("-")
        if tag != "O" and (part not in _PARTS[scheme] or not name):
            raise RecipeError(f"{where}: tag {number} is {tag!r}, which {scheme} does not have; mend it, or set task.scheme")
        goes_on = before != "O" and before[2:] == name and before[0] in "BI"
        stays_open = part in ("B", "I") and (after[:1] not in ("I", "E") or after[2:] != name)
        wrong = (part == "I" and scheme != "IOB1" and not goes_on) or (part == "E" and not goes_on)
        if wrong or (scheme == "BIOES" and stays_open):
            told = f"tag {number}, {tag!r}, stands between {before!r} and {after!r}"
            raise RecipeError(f"{where}: {told}, which {scheme} does not allow; mend it, or set task.scheme")
        begins = part in ("B", "S") or (part == "I" and not goes_on)
        found.append("O" if tag == "O" else f"{'B' if begins else 'I'}-{name}")
    return found


_PARTS: Mapping[str, tuple[str, ...]] = {"IOB1": ("B", "I"), "IOB2": ("B", "I"), "BIOES": ("B", "I", "E", "S")}


def words_of(example: Example) -> list[tuple[str, tuple[int, int]]]:
    """Return an example's words, and where each begins and ends in its text."""
    if example.words is None:
        return [(example.text[begin:end], (begin, end)) for begin, end in _spans(example.text)]
    found, start = [], 0
    for word in example.words:
        found.append((word, (start, start + len(word))))
        start += len(word) + 1
    return found


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each word of a plain text begins and ends: at spaces and around punctuation, but at no mark or joiner within it."""
    begin, end, lettered, open_ = 0, 0, False, False  # the word so far, whether it has letters, and whether more that touch it are its own
    for match in _PIECE.finditer(text):
        start, stop = match.span()
        letters, inside = _is_letter(text[start]), is_inside(text[start])
        if start == end > begin and (inside or (letters and open_)):
            end, open_ = stop, inside and lettered
            continue
        if end > begin:
            yield begin, end
        begin, end, lettered, open_ = start, stop, letters, False
    if end > begin:
        yield begin, end


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _items(where: str, column: str, value: object) -> list[str]:
    if isinstance(value, str):
        return text_of(where, column, value).split()
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{where}: column {column!r} is no list of words; write one, or a text with spaces between")
    return [text_of(where, column, item) for item in value]


def _for(tokenizer: Tokenizer, words: list[str]) -> list[str]:
    """Return words as the tokenizer wants them alone: byte-level ones tell words by the space before."""
    return [f" {word}" for word in words] if "ByteLevel" in repr(tokenizer.pre_tokenizer) else words


def _first_tokens(windows: Sequence[Sequence[int | None]], stride: int) -> list[list[int]]:
    """Return for each token of a text's windows its word, if it is the word's first token and no neighbour window has it; else -1."""
    places, before = [], None
    for number, words in enumerate(windows):
        inside = [i for i, word in enumerate(words) if word is not None]
        low = stride // 2 if number else 0
        high = len(inside) - (stride - stride // 2 if number + 1 < len(windows) else 0)
        found = [-1] * len(words)
        for position, token in enumerate(inside):
            if low <= position < high and words[token] != (words[inside[position - 1]] if position else before):
                found[token] = words[token]  # type: ignore[assignment]
        before = words[inside[-1 - stride]] if len(inside) > stride else None
        places.append(found)
    return places


def _tags(logits: Floats, windows: Windows, counts: Sequence[int], outputs: Sequence[str]) -> Iterator[tuple[list[str], list[float]]]:
    """Yield the tags of each example, which has so many words, and their probabilities.

    A word without a token, as a mark that the tokenizer leaves out, ends no entity: it is of the one that goes on behind it, else O.
    """
    firsts = np.flatnonzero(windows.places[:, 0] >= 0)
    probabilities = softmax(logits[firsts])
    best, words = probabilities.argmax(-1), windows.places[firsts, 0].tolist()
    owners = np.repeat(windows.owners, windows.tokens.lengths)[firsts]
    named, sure, bounds = best.tolist(), probabilities.max(-1).tolist(), np.searchsorted(owners, np.arange(len(counts) + 1)).tolist()
    for count, (begin, end) in zip(counts, pairwise(bounds), strict=True):
        tags, scores = ["O"] * count, [1.0] * count
        for place in range(begin, end):
            tags[words[place]], scores[words[place]] = outputs[named[place]], sure[place]
        for before, after in pairwise(words[begin:end]):
            if tags[after][0] == "I" and tags[before][2:] == tags[after][2:]:
                for silent in range(before + 1, after):
                    tags[silent], scores[silent] = tags[after], scores[before]
        yield tags, scores
