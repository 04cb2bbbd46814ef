"""What lies in the artifacts folder, and what may go."""

import math
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor import builds
from compressor.artifact import STORE, Artifact
from compressor.errors import UnfitError
from compressor.locks import no_build
from compressor.pipeline import LAST, STAGES

NAMED = "named by a recipe"
"""Status of a store that does not lie in the cache."""
_OURS = re.compile(rf"\.?({'|'.join(stage.name for stage in STAGES)}|{STORE})-[0-9a-f]{{12}}")
"""Names that a build gives: what anyone put here under a name of their own, a store among it, is never touched."""


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: an artifact, what an interrupted build left, or a store of recycled layers, here or where a recipe put it."""

    path: Path
    stage: str
    megabytes: float
    status: str

    def row(self) -> Mapping[str, Any]:
        """Return what a listing shows."""
        return {
            "artifact": str(self.path) if self.status == NAMED else self.path.name,
            "stage": self.stage,
            "megabytes": round(self.megabytes, 1),
            "status": self.status,
        }


def entries(artifacts: Path, *, unfinished_too: bool = False) -> list[Entry]:
    """Return every artifact by its status, and the stores that recipes named.

    `in use`: a recipe's last build was made from it, or one that began since and has not ended (with `unfinished_too` that counts as old);
    `unfinished`: what such a build goes on from; `damaged`; `old`: all else.
    """
    named, known = _named_stores(artifacts), builds.records(artifacts)
    going_on = [record for record in known.values() if record.begun and not unfinished_too]
    begun, since = {name for record in going_on for name in record.begun}, min((record.since or 0 for record in going_on), default=math.inf)
    ended = {path: record.used for path, record in known.items() if record.used}
    used = _made_from(artifacts, begun.union(*ended.values(), _unrecorded(artifacts, ended)))

    def status(folder: Path) -> str:
        if folder.name.startswith("."):
            return "unfinished" if folder.name[1:] in begun else "old"
        if folder.name.startswith(f"{STORE}-"):  # a stage that has not ended says nowhere which it fills
            return "in use" if folder.name in used or max(_stamp(folder), _stamp(folder / "data.mdb")) >= since else "old"
        if not _readable(folder):
            return "damaged"
        return "in use" if folder.name in used else "old"

    folders = sorted(f for f in artifacts.glob("*") if f.is_dir() and _OURS.fullmatch(f.name) and f.resolve() not in named)
    found = [Entry(f, f.name.lstrip(".").rpartition("-")[0], _megabytes(f), status(f)) for f in folders]
    return found + [Entry(f, STORE, _megabytes(f), NAMED) for f in named]


def collect(artifacts: Path, *, dry_run: bool = False, unfinished: bool = False) -> list[Entry]:
    """Remove what is old or damaged and return it; with `unfinished`, also what builds that have not ended would go on from.

    Raises:
        UnfitError: a build is running, or a folder could not be removed.
    """
    if dry_run:
        return _unused(artifacts, unfinished)
    locks = {path: path.name[1:-5] for path in sorted(artifacts.glob(".*.lock"))}
    # An artifact's lock is only taken under a recipe's; there is one for each that was ever made, too many to hold.
    with no_build(path for path, name in locks.items() if not _OURS.fullmatch(name)):
        gone = _unused(artifacts, unfinished)
        for entry in gone:
            try:
                shutil.rmtree(entry.path)
            except OSError as error:
                raise UnfitError(f"{entry.path}: {error.strerror}; mend its permissions and run again") from error
        for path, name in locks.items():
            if _OURS.fullmatch(name) and not (artifacts / name).exists():
                with suppress(OSError):
                    path.unlink()
        for path, record in builds.records(artifacts).items() if unfinished else ():
            builds.write(path, builds.Record(record.used))
    return gone


def _unused(artifacts: Path, unfinished: bool) -> list[Entry]:
    return [e for e in entries(artifacts, unfinished_too=unfinished) if e.status in ("old", "damaged")]


def _named_stores(artifacts: Path) -> list[Path]:
    """Return the stores outside the cache that recipes built here have named; other builds may read them, so that none is removed.

    Beside a student's store lie those of its earlier teachers, which nothing may read again: only who named the place can tell.
    """
    metrics = [Artifact(f).metrics for stage in STAGES for f in artifacts.glob(f"{stage.name}-*") if _readable(f)]
    paths = {path for path in (Path(str(own[STORE])) for own in metrics if STORE in own) if path.is_absolute()}
    places = {path.parent for path in paths if _OURS.fullmatch(path.name)} - {artifacts.resolve()}
    beside = {other for place in places for other in place.glob(f"{STORE}-*") if _OURS.fullmatch(other.name)}
    return sorted(path for path in paths | beside if path.is_dir())


def _stamp(path: Path) -> float:
    """Return when a file was changed; 0 where it is gone, as a build beside this one may have it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _readable(folder: Path) -> bool:
    """Return whether the manifest is whole; that every file is as it was made is for a build to check."""
    try:
        manifest = Artifact(folder).manifest
        return manifest.keys() >= {"stage", "settings", "inputs", "files", "digest"}
    except (OSError, ValueError, AttributeError):
        return False


def _unrecorded(artifacts: Path, ended: Collection[Path]) -> set[str]:
    """Return the newest bundle, or encoder, of each recipe whose record of it is gone, as from a cache that leaves out hidden files."""
    ends = sorted((f for stage in LAST for f in artifacts.glob(f"{stage}-*") if _readable(f)), key=_stamp)
    newest = {str(Artifact(folder).manifest["settings"]["name"]): folder.name for folder in ends}
    return {end for recipe, end in newest.items() if builds.path_of(artifacts, recipe) not in ended}


def _made_from(artifacts: Path, names: Iterable[str]) -> frozenset[str]:
    """Return the names of these artifacts, of all that they were made from, and of the stores that were read."""
    used: set[str] = set()
    waiting = [artifacts / name for name in names]
    while waiting:
        folder = waiting.pop()
        if folder.name not in used and _readable(folder):
            used |= {folder.name, str(Artifact(folder).metrics.get(STORE, folder.name))}  # a recycle stage's store is no artifact
            waiting += [artifacts / link["path"] for link in Artifact(folder).manifest["inputs"].values()]
    return frozenset(used)


def _megabytes(folder: Path) -> float:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a build beside this one may have moved it
                total += (Path(place) / name).stat().st_size
    return total / 1e6
