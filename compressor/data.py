"""Read labelled texts from files, installed packages and the Hub, with errors that name the row; batch them by length."""

import csv
import gzip
import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import IO, Any

from compressor import sources
from compressor.errors import RecipeError, UnfitError

csv.field_size_limit(2**31 - 1)  # the default refuses texts of 131,072 characters
Row = tuple[int, Mapping[str, Any]]
"""A line number and its columns."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text, or a pair of texts, and its label when it is known."""

    text: str
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; `label` None reads unlabelled texts."""

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"

    @property
    def names(self) -> list[str]:
        """The columns that every row must have."""
        return [name for name in (self.text, self.text_pair, self.label) if name is not None]


def read_examples(source: str, columns: Columns, *, root: Path, split: str, limit: int | None = None) -> list[Example]:
    """Return the examples of a csv, tsv, jsonl or parquet file (also .gz), or of a Hub data set's split.

    Raises:
        RecipeError: what is wrong, with file and row.
        UnfitError: the Hub cannot be reached.
    """
    path = sources.resolve(source, root)
    name = source if path is None else str(path)
    rows = _hub_rows(source, split) if path is None else _file_rows(path)
    examples = [_example(name, number, row, columns) for number, row in islice(rows, limit)]
    if not examples:
        raise RecipeError(f"{name}: no examples; data.{split} must not be empty")
    return examples


def _example(source: str, number: int, row: Mapping[str, Any], columns: Columns) -> Example:
    for column in columns.names:
        if column not in row:
            near = get_close_matches(column, list(row), 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(map(str, row)) or 'none'}"
            raise RecipeError(f"{source}: row {number} has no column {column!r}; {hint} (set data.text, data.text_pair, data.label)")
    text = _text(source, number, columns.text, row[columns.text])
    pair = None if columns.text_pair is None else _text(source, number, columns.text_pair, row[columns.text_pair])
    return Example(text, pair, None if columns.label is None else _label(source, number, columns.label, row[columns.label]))


def _text(source: str, number: int, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        what = "empty" if value is None or isinstance(value, str) else f"a {type(value).__name__}, not a text"
        raise RecipeError(f"{source}: row {number}: column {column!r} is {what}; give it a text or remove the row")
    return value


def _label(source: str, number: int, column: str, value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, (dict, list)) or not str(value).strip():
        raise RecipeError(f"{source}: row {number}: column {column!r} has no label; label the row or remove it")
    return str(value).strip()


def _file_rows(path: Path) -> Iterator[Row]:
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.is_dir() or kind not in readers:
        raise RecipeError(f"{path}: {'a folder' if path.is_dir() else f'unknown form {kind!r}'}; use {', '.join(readers)}, also with .gz")
    return readers[kind](path)


def _csv_rows(path: Path) -> Iterator[Row]:
    tabs = path.name.removesuffix(".gz").endswith(".tsv")
    with _opened(path) as binary:
        lines = _decoded(path, binary)
        # tsv as it is found in the wild has quotes as text: ' "good' must not swallow the lines after it.
        reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=not tabs)
        try:
            header = next(reader, None)
            for values in reader:
                if not values:
                    continue
                if header is None or len(values) != len(header):
                    raise RecipeError(
                        f"{path}: row {reader.line_num} has {len(values)} columns, the header {len(header or [])}; mend the row (quotes?)"
                    )
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise RecipeError(f"{path}: row {reader.line_num}: {error}; mend the quotes there") from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as binary:
        for number, line in enumerate(_decoded(path, binary), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RecipeError(f"{path}: row {number} is not JSON ({error}); write one object a line") from None
            if not isinstance(row, dict):
                raise RecipeError(f"{path}: row {number} is a {type(row).__name__}, not an object; write one object a line")
            yield number, row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UnfitError(f"{path}: reading parquet needs pyarrow; pip install 'encoder-compressor[train]'") from None
    with _opened(path) as binary:
        try:
            file = ParquetFile(io.BytesIO(binary.read()) if path.suffix == ".gz" else path)
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ArrowException, OSError) as error:
            raise RecipeError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:120]}); write it again") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError) as error:
        raise RecipeError(f"{path}: damaged gzip ({error}); compress it again") from None
    except PermissionError:
        raise RecipeError(f"{path}: not readable; mend its permissions") from None


def _decoded(path: Path, binary: IO[bytes]) -> Iterator[str]:
    """Yield lines as text; a byte that is not UTF-8 is named with its row."""
    for number, line in enumerate(binary, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            raise RecipeError(f"{path}: row {number}: {byte} is not UTF-8; convert the file: iconv -f latin1 -t utf-8") from None
        yield text.replace("\r\n", "\n")


def _hub_rows(source: str, split: str) -> Iterator[Row]:
    """Yield the rows of `OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`, class labels by their names."""
    name, _, wanted = source.partition("#")
    name, _, revision = name.partition("@")
    name, _, config = name.partition(":")
    try:
        from datasets import ClassLabel, load_dataset

        data = load_dataset(name, config or None, split=wanted or split, revision=revision or None)
    except Exception as error:  # the Hub client raises errors of many libraries
        raise UnfitError(
            f"{source}: the Hugging Face Hub did not give it ({type(error).__name__}); without a network {sources.LOCAL_FORMS}"
        ) from error
    names = {column: feature.names for column, feature in data.features.items() if isinstance(feature, ClassLabel)}
    for number, row in enumerate(data, 1):
        yield number, {k: names[k][v] if k in names and isinstance(v, int) and v >= 0 else v for k, v in row.items()}


def split_by_hash(examples: Sequence[Example], share: float, salt: str) -> tuple[list[Example], list[Example]]:
    """Return (kept, held out): a text goes by its own hash, so equal texts stay together and files may be reordered."""
    kept: list[Example] = []
    held: list[Example] = []
    for example in examples:
        key = hashlib.sha256(f"{salt}\0{example.text}\0{example.text_pair or ''}".encode()).digest()
        (held if int.from_bytes(key[:8], "big") < share * 2**64 else kept).append(example)
    return kept, held


def length_batches(lengths: Sequence[int], batch_size: int, seed: int | None = None) -> list[list[int]]:
    """Return batches of rows of like length: sorted throughout without a seed, else shuffled and sorted in windows of 50 batches."""
    rows = list(range(len(lengths)))
    if seed is None:
        rows.sort(key=lambda row: lengths[row])
        return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    rng = random.Random(seed)
    rng.shuffle(rows)
    window = 50 * batch_size
    ordered = [row for i in range(0, len(rows), window) for row in sorted(rows[i : i + window], key=lambda row: lengths[row])]
    batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    rng.shuffle(batches)
    return batches
