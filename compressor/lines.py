"""Texts one a line: of a file, gzip too, or of a pipe or a terminal, as they come: who writes a line and waits gets its answer."""

import gzip
import os
import select
import stat
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from compressor.errors import RecipeError
from compressor.files import decoded

BLOCK, AT_ONCE = 2**16, 2**22
"""Bytes of one read of a pipe, and of all that was ready at once."""


def lines_of(path: Path | None) -> Iterator[str]:
    """Yield the lines of a file, or of stdin.

    Raises:
        RecipeError: it cannot be read.
    """
    with _told(path), _binary(path) as binary:
        yield from _texts(path, binary)


def groups_of(path: Path | None) -> Iterator[Iterable[str]]:
    """Yield a file's lines together; of a pipe, or a terminal, those that are there each time, to be read before the next are asked for.

    Raises:
        RecipeError: it cannot be read.
    """
    path = None if path == Path("-") else path
    if _is_whole(path):
        yield lines_of(path)
        return
    ready, begun, block = deque[bytes](), list[bytes](), b"\n"
    texts = _texts(path, iter(ready.popleft, None))
    with _told(path), _binary(path) as binary:
        while block:
            block = _ready(binary.fileno())
            begun.append(block)
            if block and b"\n" not in block:
                continue  # a long line is put together once it ends
            whole, begun = b"".join(begun).split(b"\n"), []
            last = whole.pop()
            ready.extend(line + b"\n" for line in whole)
            if last:
                (begun if block else ready).append(last)
            if ready:
                yield islice(texts, len(ready))


def _texts(path: Path | None, binary: Iterable[bytes]) -> Iterator[str]:
    for line in decoded(path or Path("stdin"), binary):
        yield line.rstrip("\r\n")  # a stray carriage return within ends no line, so that answers stay beside their lines


def _is_whole(path: Path | None) -> bool:
    """Return whether all lines are there already: of a pipe, whether it has a name or not, they come."""
    try:
        mode = os.stat(path).st_mode if path is not None else os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, AttributeError):  # who opens it tells what is wrong
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (path is not None and path.suffix == ".gz")


def _ready(pipe: int) -> bytes:
    """Return what a pipe holds now, or next; nothing at its end."""
    found = block = os.read(pipe, BLOCK)
    # A terminal hands out a line a read, and its end once: who reads ahead would take it and wait for another.
    while block and len(found) < AT_ONCE and not os.isatty(pipe) and _more(pipe):
        block = os.read(pipe, BLOCK)
        found += block
    return found


def _more(pipe: int) -> bool:
    try:
        return bool(select.select([pipe], [], [], 0)[0])
    except (OSError, ValueError):  # Windows asks so of sockets alone
        return False


def _binary(path: Path | None) -> BinaryIO:
    if path is not None:
        return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    if sys.stdin is None:  # so Python tells that it was closed
        raise RecipeError("stdin is closed; name a file with one text a line")
    return open(sys.stdin.fileno(), "rb", closefd=False)


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Tell in a line what is wrong with a file."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecipeError(f"{path}: damaged gzip ({error}); compress it again") from None
    except OSError as error:
        raise RecipeError(f"{path or 'stdin'}: {error.strerror}; name a file with one text a line") from None
