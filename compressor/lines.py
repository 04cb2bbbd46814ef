"""Texts one a line: of a file, gzip too, or of a pipe or a terminal, as they come: who writes a line and waits gets its answer."""

import codecs
import gzip
import os
import select
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, cast

from compressor.errors import RecipeError

BLOCK, AT_ONCE = 2**16, 2**22
"""Bytes of one read of a pipe, and of all that was ready at once."""
ENCODING = "utf-8-sig"
"""It drops a byte order mark."""


def lines_of(path: Path | None) -> Iterator[str]:
    """Yield the lines of a file, or of stdin.

    Raises:
        RecipeError: it cannot be read.
    """
    with _told(path), _binary(path) as binary:
        # A stray carriage return ends no line, so that answers stay beside their lines.
        for line in TextIOWrapper(binary, encoding=ENCODING, newline="\n"):
            yield line.rstrip("\r\n")


def groups_of(path: Path | None) -> Iterator[Iterable[str]]:
    """Yield a file's lines together; of a pipe, or a terminal, those that are there each time.

    Raises:
        RecipeError: it cannot be read.
    """
    if path is not None or sys.stdin is None or stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode):
        yield lines_of(path)
        return
    begun, decoder, block = "", codecs.getincrementaldecoder(ENCODING)(), b"\n"
    while block:
        with _told(path):
            block = _ready(sys.stdin.fileno())
            *whole, begun = (begun + decoder.decode(block, final=not block)).split("\n")
        if whole:
            yield [line.rstrip("\r") for line in whole]
    if begun:
        yield [begun.rstrip("\r")]


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
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path or 'stdin'}: byte {error.start} of a block is not UTF-8; convert it with iconv -t utf-8") from None
