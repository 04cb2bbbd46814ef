"""Read labelled texts from files, installed packages and the Hub, with errors that name the row; batch them by length."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from compressor import sources
from compressor.errors import RecipeError, UnfitError

csv.field_size_limit(2**31 - 1)  # the default refuses texts of 131,072 characters
_SURROGATE = re.compile("[\ud800-\udfff]")
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
    """Which columns hold what; `label` None reads unlabelled texts. `options`: errors name the command line's options, not recipe keys."""

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"
    options: bool = False

    @property
    def plain(self) -> bool:
        """Whether one unlabelled text is all that a row holds, so that a line of a .txt file is one."""
        return self.label is None and self.text_pair is None

    @property
    def by_key(self) -> dict[str, str]:
        """The columns that every row must have, by the key or option that names them."""
        keys = ("--text", "--text-pair", "--label") if self.options else ("data.text", "data.text_pair", "data.label")
        named = dict(zip(keys, (self.text, self.text_pair, self.label), strict=True))
        return {key: column for key, column in named.items() if column is not None}


def read_examples(source: str, columns: Columns, *, root: Path, split: str, limit: int | None = None) -> Iterator[Example]:
    """Yield the examples of a csv, tsv, jsonl or parquet file, of a txt file where texts have no labels (all also .gz), or of the Hub.

    Raises:
        RecipeError: what is wrong, with file and row.
        UnfitError: the Hub cannot be reached.
    """
    path = sources.resolve(source, root)
    name = source if path is None else str(path)
    rows = _hub_rows(source, split, columns) if path is None else _file_rows(path, columns)
    empty = True
    for number, row in islice(rows, limit):
        yield _example(name, number, row, columns)
        empty = False
    if empty:
        raise RecipeError(f"{name}: no examples; add rows, or name another file for {split}")


def _check_columns(where: str, present: Sequence[str], columns: Columns) -> None:
    for key, column in columns.by_key.items():
        if column not in present:
            near = sources.nearest(column, list(present))
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"{where} has no column {column!r}, only {', '.join(map(repr, present)) or 'none'}; {hint}set {key}")


def _example(source: str, number: int, row: Mapping[str, Any], columns: Columns) -> Example:
    where = f"{source}: row {number}"
    _check_columns(where, list(row), columns)
    text = _text(where, columns.text, row[columns.text])
    pair = None if columns.text_pair is None else _text(where, columns.text_pair, row[columns.text_pair])
    return Example(text, pair, None if columns.label is None else _label(where, columns.label, row[columns.label]))


def _text(where: str, column: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        what = "empty" if value is None or isinstance(value, str) else f"a {type(value).__name__}, not a text"
        raise RecipeError(f"{where}: column {column!r} is {what}; give it a text or remove the row")
    return _whole(where, column, value)


def _whole(where: str, column: str, text: str) -> str:
    if not text.isascii() and _SURROGATE.search(text):
        raise RecipeError(f"{where}: column {column!r} has half a character (a lone surrogate such as \\ud800); write the text again")
    return text


def _label(where: str, column: str, value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    missing = value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes a missing label as NaN
    if missing or isinstance(value, (dict, list, bytes)) or not str(value).strip():
        what = "has no label" if missing or isinstance(value, str) else f"is a {type(value).__name__}, not a label"
        raise RecipeError(f"{where}: column {column!r} {what}; label the row or remove it")
    return _whole(where, column, str(value).strip())


def _file_rows(path: Path, columns: Columns) -> Iterator[Row]:
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if columns.plain:
        readers[".txt"] = _txt_rows
    if path.is_dir() or kind not in readers:
        raise RecipeError(f"{path}: {'a folder' if path.is_dir() else f'unknown form {kind!r}'}; use {', '.join(readers)}, also with .gz")
    return readers[kind](path, columns)


def _csv_rows(path: Path, columns: Columns) -> Iterator[Row]:
    tabs = path.name.removesuffix(".gz").lower().endswith(".tsv")
    with opened(path) as binary:
        lines = _decoded(path, binary)
        # tsv as it is found in the wild has quotes as text: ' "good' must not swallow the lines after it.
        reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=not tabs)
        first = 1
        try:
            header = next((values for values in reader if values), [])
            if header:
                _check_header(f"{path}: row {reader.line_num}, the header,", header, columns)
            first = reader.line_num + 1
            for values in reader:
                if values:
                    _check_width(path, reader.line_num, values, header)
                    yield reader.line_num, dict(zip(header, values, strict=True))
                first = reader.line_num + 1
        except csv.Error as error:
            raise RecipeError(f"{path}: row {first}: {error}; mend the quotes or stray line ends of the row that begins there") from None


def _check_header(where: str, header: list[str], columns: Columns) -> None:
    _check_columns(where, header, columns)
    for name in columns.by_key.values():
        if header.count(name) > 1:
            raise RecipeError(f"{where} has column {name!r} {header.count(name)} times; rename all but one")


def _check_width(path: Path, number: int, values: list[str], header: list[str]) -> None:
    if len(values) != len(header):
        count = f"{len(values)} column{'s' if len(values) > 1 else ''}"
        raise RecipeError(f"{path}: row {number} has {count}, the header {len(header)}; mend the row (separators, quotes)")


def _jsonl_rows(path: Path, columns: Columns) -> Iterator[Row]:
    with opened(path) as binary:
        for number, line in enumerate(_decoded(path, binary), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"{error.msg} at column {error.colno}"
                raise RecipeError(f"{path}: row {number} is not JSON ({what}); write one object a line") from None
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
                raise RecipeError(f"{path}: row {number} cannot be read ({error}); write one object a line") from None
            if not isinstance(row, dict):
                raise RecipeError(f"{path}: row {number} is a {type(row).__name__}, not an object; write one object a line")
            yield number, row


def _txt_rows(path: Path, columns: Columns) -> Iterator[Row]:
    with opened(path) as binary:
        for number, line in enumerate(_decoded(path, binary), 1):
            if line.strip():
                yield number, {columns.text: line.strip()}


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UnfitError(f"{path}: reading parquet needs pyarrow; pip install 'encoder-compressor[train]'") from None
    with opened(path) as binary:
        try:
            with ParquetFile(io.BytesIO(binary.read()) if path.suffix == ".gz" else binary) as file:
                _check_columns(str(path), file.schema_arrow.names, columns)
                batches = file.iter_batches(columns=list(columns.by_key.values()))
                yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:120]}); write it again") from None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, through gzip when it is called .gz.

    Raises:
        RecipeError: it cannot be read, at once or later.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecipeError(f"{path}: damaged gzip ({error}); compress it again") from None
    except OSError as error:
        raise RecipeError(f"{path}: not readable ({error.strerror or error}); mend its permissions") from None


def _decoded(path: Path, binary: IO[bytes]) -> Iterator[str]:
    """Yield lines as text; a byte that is not UTF-8 is named with its row."""
    offset = 0
    for number, line in enumerate(binary, 1):
        raw = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at offset {offset + len(line) - len(raw) + error.start}"
            wide = number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            remedy = f"iconv -f {'utf-16' if wide else 'latin1'} -t utf-8"
            raise RecipeError(f"{path}: row {number}: {byte} is not UTF-8; convert the file: {remedy}") from None
        offset += len(line)
        yield text.replace("\r\n", "\n")


def _hub_rows(source: str, split: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of `OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`, class labels by their names."""
    name, _, wanted = source.partition("#")
    name, _, revision = name.partition("@")
    name, _, config = name.partition(":")
    try:
        from datasets import ClassLabel, load_dataset

        data = load_dataset(name, config or None, split=wanted or split, revision=revision or None)
    except ValueError as error:  # the Hub has it, but not this configuration or split
        raise RecipeError(f"{source}: {' '.join(str(error).split())[:200]}; write OWNER/NAME[:CONFIG][@REVISION][#SPLIT]") from error
    except Exception as error:  # the Hub client raises errors of many libraries
        raise sources.hub_error(source, error) from error
    _check_columns(source, data.column_names, columns)
    wanted_columns = list(columns.by_key.values())
    names = {column: data.features[column].names for column in wanted_columns if isinstance(data.features[column], ClassLabel)}
    for number, row in enumerate(data.select_columns(wanted_columns), 1):
        yield number, {column: _class_name(names[column], value) if column in names else value for column, value in row.items()}


def _class_name(names: Sequence[str], value: int | None) -> str | None:
    """Return the name of a class; the Hub marks an unlabelled row by -1."""
    return None if value is None or value < 0 else names[value]


def text_hash(example: Example, salt: str = "") -> int:
    """Return 64 bits that stand for the text, or the pair of texts."""
    key = hashlib.sha256(f"{salt}\0{example.text}\0{example.text_pair or ''}".encode()).digest()
    return int.from_bytes(key[:8], "big")


def held_out(example: Example, share: float, salt: str) -> bool:
    """Say whether a text is of the held-out share: it goes by its own hash, so equal texts stay together and files may be reordered."""
    return text_hash(example, salt) < share * 2**64
