"""Examples: texts and what is known of them, read from rows, with errors that name the row."""

import dataclasses
import hashlib
import heapq
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

from compressor.choices import Choice
from compressor.errors import RecipeError
from compressor.files import Columns, Reader, Row, check_columns, rows, txt_rows

_SURROGATE = re.compile("[\ud800-\udfff]")
CHUNK, CHARACTERS = 4096, 2**22
"""Texts, and their characters, that are tokenized at once: tokenizers keep some 30 bytes a character, also of what is cut off."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and what is known of it."""

    text: str
    text_pair: str | None = None
    label: Any = None
    """None where unknown; else as its task has it: a name, names, a number, a tag for each word, or answers [text, start]."""
    words: Sequence[str] | None = None
    """The text's words, where tags belong to them."""


def in_chunks(examples: Iterable[Example], most: int, characters: int) -> Iterator[list[Example]]:
    """Yield up to so many examples at once, fewer where they reach so many characters together: what memory bears."""
    chunk, held = list[Example](), 0
    try:
        for example in examples:
            chunk.append(example)
            held += len(example.text) + len(example.text_pair or "")
            if len(chunk) == most or held >= characters:
                yield chunk
                chunk, held = [], 0
    except Exception:
        if chunk:
            yield chunk  # what came before the failure is answered first
        raise
    if chunk:
        yield chunk


class Format(Protocol):
    """How a task's examples lie in files."""

    @property
    def forms(self) -> Mapping[str, Reader]:
        """Kinds of files that only this task has, by suffix."""
        ...

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return the example of a row; `where` names it in errors."""
        ...


def read_examples(
    source: str,
    columns: Columns,
    task: Format,
    *,
    root: Path,
    split: str,
    limit: int | None = None,
    spread: bool = False,
    within: int | None = None,
    skipped: list[str] | None = None,
) -> Iterator[Example]:
    """Yield the examples of a file (csv, tsv, jsonl, parquet, the task's own, txt without labels; all also .gz), or of the Hub.

    Of a `limit`, those are the first so many rows, or so many from all over the file, or over its first rows.
    A row that is no example ends the reading, unless there is a list for `skipped` ones: what is wrong with them goes there.

    Raises:
        RecipeError: what is wrong, with file and row.
        UnfitError: the Hub cannot be reached.
    """
    plain = {".txt": txt_rows} if columns.label is None and columns.text_pair is None else {}
    name, found = rows(source, columns, root=root, split=split, forms={**task.forms, **plain})
    empty, left_out = True, len(skipped or ())
    for number, row in _spread(islice(found, within), limit) if spread and limit else islice(found, limit):
        where = f"{name}: row {number}"
        try:
            if isinstance(row, RecipeError):
                raise row
            check_columns(where, list(row), columns)
            example = task.example(where, row, columns)
        except RecipeError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        yield example
        empty = False
    if empty and skipped and len(skipped) > left_out:
        raise RecipeError(f"{name}: no examples for {split}, {len(skipped) - left_out} rows are none; the first: {skipped[left_out]}")
    if empty:
        raise RecipeError(f"{name}: no examples; add rows, or name another file for {split}")


def _spread(found: Iterator[Row], limit: int) -> list[Row]:
    """Return so many rows, in their order, chosen by a hash of their numbers."""
    chosen = heapq.nsmallest(limit, found, key=lambda row: hashlib.sha256(str(row[0]).encode()).digest())
    return sorted(chosen, key=itemgetter(0))


def text_of(where: str, column: str, value: object) -> str:
    """Return a row's text, which must not be empty."""
    if not isinstance(value, str) or not value.strip():
        what = "empty" if value is None or isinstance(value, str) else f"a {type(value).__name__}, not a text"
        raise RecipeError(f"{where}: column {column!r} is {what}; give it a text or remove the row")
    return _whole(where, column, value)


def _whole(where: str, column: str, text: str) -> str:
    if not text.isascii() and _SURROGATE.search(text):
        raise RecipeError(f"{where}: column {column!r} has half a character (a lone surrogate such as \\ud800); write the text again")
    return text


def given_texts(value: object) -> Example:
    """Return the example that a caller gave as a text or a pair of texts.

    Raises:
        RecipeError: it is neither.
    """
    parts = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, str) for part in parts):
        raise RecipeError(f"{value!r:.60} is neither a text nor a pair of texts; give a str, or a tuple of two")
    return Example(*parts)


def check_characters(example: Example) -> None:
    """Refuse what no tokenizer reads.

    Raises:
        RecipeError: a text has half a character.
    """
    for text in (example.text, example.text_pair or ""):
        if not text.isascii() and _SURROGATE.search(text):
            raise RecipeError(f"{text!r:.60} has half a character (a lone surrogate such as \\ud800); write the text again")


def label_of(where: str, column: str, value: object) -> str:
    """Return a row's label, which may be written as a number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes a missing label as NaN
    if missing or isinstance(value, (dict, list, bytes)) or not str(value).strip():
        what = "has no label" if missing or isinstance(value, str) else f"is a {type(value).__name__}, not a label"
        raise RecipeError(f"{where}: column {column!r} {what}; label the row or remove it")
    return _whole(where, column, str(value).strip())


def text_hash(example: Example, salt: str = "") -> int:
    """Return 64 bits that stand for the text, or the pair of texts."""
    key = hashlib.sha256(f"{salt}\0{example.text}\0{example.text_pair or ''}".encode()).digest()
    return int.from_bytes(key[:8], "big")


def seen_hash(example: Example, choice: Choice, salt: str = "") -> int:
    """Return 64 bits that stand for what was read: the text or the pair of texts; of a question its context, which others are asked on."""
    return text_hash(dataclasses.replace(example, text="") if choice == "positions" else example, salt)


def held_out(example: Example, choice: Choice, share: float, salt: str) -> bool:
    """Say whether a text is of the held-out share: it goes by its own hash, so equal texts stay together and files may be reordered."""
    return seen_hash(example, choice, salt) < share * 2**64
