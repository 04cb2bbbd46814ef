"""Rows of files, installed packages and the Hub, with errors that name the row."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from compressor import sources
from compressor.errors import RecipeError, UnfitError, install, one_line

csv.field_size_limit(2**31 - 1)  # the default refuses texts of 131,072 characters
Row = tuple[int, Mapping[str, Any] | RecipeError]
"""A line number and its columns, or what is wrong with a row after which the next can be read."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; `label` None reads unlabelled texts. `options`: errors name the command line's options, not recipe keys."""

    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"
    options: bool = False

    @property
    def by_key(self) -> dict[str, str]:
        """The columns that every row must have, by the key or option that names them."""
        keys = ("--text", "--text-pair", "--label") if self.options else ("data.text", "data.text_pair", "data.label")
        named = dict(zip(keys, (self.text, self.text_pair, self.label), strict=True))
        return {key: column for key, column in named.items() if column is not None}


Reader = Callable[[Path, Columns], Iterator[Row]]


def rows(source: str, columns: Columns, *, root: Path, split: str, forms: Mapping[str, Reader]) -> tuple[str, Iterator[Row]]:
    """Return what to call a source in errors, and its rows; `forms` are further kinds of files beside csv, tsv, jsonl and parquet.

    Raises:
        RecipeError: what is wrong, with file and row.
        UnfitError: the Hub cannot be reached.
    """
    path = sources.resolve(source, root)
    if path is None:
        return source, _hub_rows(source, split, columns)
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {**READERS, **forms}
    if path.is_dir() or kind not in readers:
        raise RecipeError(f"{path}: {'a folder' if path.is_dir() else f'unknown form {kind!r}'}; use {', '.join(readers)}, also with .gz")
    return str(path), readers[kind](path, columns)


def check_columns(where: str, present: Sequence[str], columns: Columns) -> None:
    """Refuse rows without a column that is asked for."""
    for key, column in columns.by_key.items():
        if column not in present:
            near = sources.nearest(column, list(present))
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"{where} has no column {column!r}, only {', '.join(map(repr, present)) or 'none'}; {hint}set {key}")


def _csv_rows(path: Path, columns: Columns) -> Iterator[Row]:
    tabs = path.name.removesuffix(".gz").lower().endswith(".tsv")
    with opened(path) as binary:
        lines = decoded(path, binary)
        # tsv as it is found in the wild has quotes as text: ' "good' must not swallow the lines after it.
        reader = csv.reader(lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=not tabs)
        first = 1
        try:
            header = next((values for values in reader if values), [])
            if header:
                _check_header(f"{path}: row {reader.line_num}, the header,", header, columns)
            first = reader.line_num + 1
            for values in reader:
                if len(values) == len(header):
                    yield reader.line_num, dict(zip(header, values, strict=True))
                elif values:
                    yield reader.line_num, _width(path, reader.line_num, values, header)
                first = reader.line_num + 1
        except csv.Error as error:
            raise RecipeError(f"{path}: row {first}: {error}; mend the quotes or stray line ends of the row that begins there") from None


def _check_header(where: str, header: list[str], columns: Columns) -> None:
    check_columns(where, header, columns)
    for name in columns.by_key.values():
        if header.count(name) > 1:
            raise RecipeError(f"{where} has column {name!r} {header.count(name)} times; rename all but one")


def _width(path: Path, number: int, values: list[str], header: list[str]) -> RecipeError:
    count = f"{len(values)} column{'s' if len(values) > 1 else ''}"
    return RecipeError(f"{path}: row {number} has {count}, the header {len(header)}; mend the row (separators, quotes)")


def _jsonl_rows(path: Path, columns: Columns) -> Iterator[Row]:
    with opened(path) as binary:
        for number, line in enumerate(decoded(path, binary), 1):
            if line.strip():
                yield number, _object(f"{path}: row {number}", line)


def _object(where: str, line: str) -> dict[str, Any] | RecipeError:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return RecipeError(f"{where} is not JSON ({error.msg} at column {error.colno}); write one object a line")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        return RecipeError(f"{where} cannot be read ({error}); write one object a line")
    if not isinstance(row, dict):
        return RecipeError(f"{where} is a {type(row).__name__}, not an object; write one object a line")
    return row


def txt_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield each line that is not blank as the text of a row."""
    with opened(path) as binary:
        for number, line in enumerate(decoded(path, binary), 1):
            if line.strip():
                yield number, {columns.text: line.strip()}


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UnfitError(f"{path}: reading parquet needs pyarrow; {install('train')}") from None
    with opened(path) as binary:
        try:
            with ParquetFile(io.BytesIO(binary.read()) if path.suffix == ".gz" else binary) as file:
                check_columns(str(path), file.schema_arrow.names, columns)
                batches = file.iter_batches(columns=list(columns.by_key.values()))
                yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: not a readable parquet file ({one_line(error, 120)}); write it again") from None


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


def decoded(path: Path, binary: Iterable[bytes]) -> Iterator[str]:
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
        raise RecipeError(f"{source}: {one_line(error)}; write OWNER/NAME[:CONFIG][@REVISION][#SPLIT]") from error
    except Exception as error:  # the Hub client raises errors of many libraries
        raise sources.hub_error(source, error) from error
    check_columns(source, data.column_names, columns)
    wanted_columns = list(columns.by_key.values())
    kinds = {column: getattr(data.features[column], "feature", data.features[column]) for column in wanted_columns}  # of a list: its items
    names = {column: kind.names for column, kind in kinds.items() if isinstance(kind, ClassLabel)}
    for number, row in enumerate(data.select_columns(wanted_columns), 1):
        yield number, {column: _class_name(names[column], value) if column in names else value for column, value in row.items()}


def _class_name(names: Sequence[str], value: Any) -> Any:
    """Return the name of a class, or of each of a list; the Hub marks an unlabelled row by -1."""
    if isinstance(value, list):
        return [_class_name(names, item) for item in value]
    return None if value is None or value < 0 else names[value]


READERS: Mapping[str, Reader] = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
