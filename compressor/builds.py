"""What each recipe's builds need of the artifacts folder: a record beside its lock, which clearing the cache goes by.

Links from one artifact to another do not tell it alone: a stage that ran again to equal bytes is what nothing later was made from,
and another recipe's bundle, made since, does not end a build that was interrupted.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compressor.errors import UnfitError


@dataclass(frozen=True)
class Record:
    """The artifacts, by name, of a recipe's last build that ended, and of those that began since and did not."""

    used: Sequence[str] = ()
    begun: Sequence[str] = ()
    since: float | None = None
    """When the first of those that did not end began, in seconds of the epoch."""


def begin(artifacts: Path, recipe: str, name: str, *, made: bool) -> None:
    """Note that a build needs the artifact of this name; with `made`, that it makes it, again where it was there.

    Raises:
        UnfitError: the record cannot be written.
    """
    record = read(path_of(artifacts, recipe))
    if name not in (record.begun if made else (*record.used, *record.begun)):
        since = record.since if record.begun else math.floor(time.time())  # files' stamps lag behind the clock
        write(path_of(artifacts, recipe), Record(record.used, (*record.begun, name), since))


def end(artifacts: Path, recipe: str, names: Sequence[str]) -> None:
    """Note that a build ended with the artifacts of these names: what others began before it is needed no more.

    Raises:
        UnfitError: the record cannot be written.
    """
    write(path_of(artifacts, recipe), Record(names))


def records(artifacts: Path) -> dict[Path, Record]:
    """Return the record of every recipe that was built here."""
    return {path: read(path) for path in sorted(artifacts.glob(".*.build"))}


def path_of(artifacts: Path, recipe: str) -> Path:
    """Return where a recipe's record is."""
    return artifacts / f".{recipe}.build"


def read(path: Path) -> Record:
    """Return a record; an empty one where there is none that can be read."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        since = None if told["since"] is None else float(told["since"])
        return Record(tuple(map(str, told["used"])), tuple(map(str, told["begun"])), since)
    except (OSError, ValueError, TypeError, KeyError):
        return Record()


def write(path: Path, record: Record) -> None:
    """Write a record, unless it is there.

    Raises:
        UnfitError: it cannot be written.
    """
    partial, text = path.with_name(f"{path.name}.partial"), json.dumps(asdict(record))
    try:
        if path.exists() and path.read_bytes() == text.encode():  # a full disk must not end a build that writes nothing
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UnfitError(f"{path}: {error.strerror or error}; free some space or mend permissions, then run again") from None
