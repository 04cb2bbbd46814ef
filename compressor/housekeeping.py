"""What lies in the artifacts folder, and what may go."""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifact import STORE, Artifact
from compressor.errors import UnfitError
from compressor.pipeline import LAST, STAGES

NAMED = "named by a recipe"
"""Status of a store that does not lie in the cache."""


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


def entries(artifacts: Path) -> list[Entry]:
    """Return every artifact: `in use` (a newest bundle was made from it), `old`, `damaged`, or `unfinished`; and what recipes named."""
    names = {s.name for s in STAGES}
    named, used = _named_stores(artifacts), _used(artifacts)
    folders = sorted(f for f in artifacts.glob("*") if f.is_dir() and (f.name.lstrip(".").rpartition("-")[0] in names or _is_store(f)))
    folders = [f for f in folders if f.resolve() not in named]
    found = [Entry(f, f.name.lstrip(".").rpartition("-")[0], _megabytes(f), _status(f, used)) for f in folders]
    return found + [Entry(f, STORE, _megabytes(f), NAMED) for f in named]


def collect(artifacts: Path, *, dry_run: bool = False) -> list[Entry]:
    """Remove what is old, damaged or unfinished and return it.

    Raises:
        UnfitError: a build is running, or a folder could not be removed.
    """
    if dry_run:
        return _unused(artifacts)
    with _no_build(artifacts):
        gone = _unused(artifacts)
        for entry in gone:
            try:
                shutil.rmtree(entry.path)
            except OSError as error:
                raise UnfitError(f"{entry.path}: {error.strerror}; mend its permissions and run again") from error
    return gone


def _unused(artifacts: Path) -> list[Entry]:
    return [e for e in entries(artifacts) if e.status not in ("in use", NAMED)]


def _named_stores(artifacts: Path) -> list[Path]:
    """Return the stores outside the cache that recipes built here have named; other builds may read them, so that none is removed."""
    stages = [Artifact(folder) for folder in artifacts.glob("recycle-*") if _readable(folder)]
    paths = {Path(str(stage.metrics[STORE])) for stage in stages}
    return sorted(path for path in paths if path.is_absolute() and path.exists())


@contextmanager
def _no_build(artifacts: Path) -> Iterator[None]:
    """Hold the lock of every recipe that was built here: what a running build has not finished is no leftover."""
    with ExitStack() as held:
        for path in sorted(artifacts.glob(".*.lock")):
            from filelock import FileLock, Timeout  # where builds run it is installed; a deployed bundle does without

            try:
                held.enter_context(FileLock(path, timeout=0))
            except Timeout:
                raise UnfitError(f"a build of {path.name[1:-5]} is running in {artifacts}; wait for it, then run again") from None
            except OSError as error:
                raise UnfitError(f"{path}: {error.strerror}; mend its permissions and run again") from None
        yield


def _is_store(folder: Path) -> bool:
    """Return whether a build named this store: one that a recipe or a runtime put here under a name of its own is never touched."""
    return re.fullmatch(rf"\.?{STORE}-[0-9a-f]{{12}}", folder.name) is not None


def _status(folder: Path, used: frozenset[str]) -> str:
    if folder.name.startswith("."):
        return "unfinished"
    if folder.name.startswith(f"{STORE}-"):
        return "in use" if folder.name in used else "old"
    if not _readable(folder):
        return "damaged"
    return "in use" if folder.name in used else "old"


def _readable(folder: Path) -> bool:
    """Return whether the manifest is whole; that every file is as it was made is for a build to check."""
    try:
        manifest = Artifact(folder).manifest
        return manifest.keys() >= {"stage", "settings", "inputs", "files", "digest"}
    except (OSError, ValueError, AttributeError):
        return False


def _used(artifacts: Path) -> frozenset[str]:
    """Return the names of all artifacts that the newest bundle, or encoder, of each recipe was made from, and of these."""
    newest: dict[str, Path] = {}
    ends = [folder for stage in LAST for folder in artifacts.glob(f"{stage}-*")]
    for folder in sorted(ends, key=lambda f: f.stat().st_mtime):
        if _readable(folder):
            newest[str(Artifact(folder).manifest["settings"]["name"])] = folder
    used: set[str] = set()
    waiting = list(newest.values())
    while waiting:
        folder = waiting.pop()
        if folder.name not in used and _readable(folder):
            used |= {folder.name, str(Artifact(folder).metrics.get(STORE, folder.name))}  # a recycle stage's store is no artifact
            waiting += [artifacts / link["path"] for link in Artifact(folder).manifest["inputs"].values()]
    return frozenset(used)


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
