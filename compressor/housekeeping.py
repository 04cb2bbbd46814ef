"""What lies in the artifacts folder, and what may go."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifact import MANIFEST, Artifact
from compressor.errors import UnfitError
from compressor.pipeline import STAGES


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: an artifact, or what an interrupted build left."""

    path: Path
    stage: str
    megabytes: float
    status: str

    def row(self) -> Mapping[str, Any]:
        """Return what a listing shows."""
        return {"artifact": self.path.name, "stage": self.stage, "megabytes": round(self.megabytes, 1), "status": self.status}


def entries(artifacts: Path) -> list[Entry]:
    """Return every artifact: `in use` (a newest bundle was made from it), `old`, `damaged`, or `unfinished`."""
    names = {s.name for s in STAGES}
    folders = sorted(f for f in artifacts.glob("*") if f.is_dir() and f.name.lstrip(".").rpartition("-")[0] in names)
    used = _used(artifacts)
    return [Entry(f, f.name.lstrip(".").rpartition("-")[0], _megabytes(f), _status(f, used)) for f in folders]


def collect(artifacts: Path, *, dry_run: bool = False) -> list[Entry]:
    """Remove what is old, damaged or unfinished and return it.

    Raises:
        UnfitError: a folder could not be removed.
    """
    gone = [e for e in entries(artifacts) if e.status != "in use"]
    for entry in [] if dry_run else gone:
        try:
            shutil.rmtree(entry.path)
        except OSError as error:
            raise UnfitError(f"{entry.path}: {error.strerror}; mend its permissions and run again") from error
    return gone


def _status(folder: Path, used: frozenset[str]) -> str:
    if folder.name.startswith("."):
        return "unfinished"
    if not (folder / MANIFEST).exists():
        return "damaged"
    return "in use" if folder.name in used else "old"


def _used(artifacts: Path) -> frozenset[str]:
    """Return the names of all artifacts that the newest bundle of each recipe was made from, and of these bundles."""
    newest: dict[str, Path] = {}
    for folder in sorted(artifacts.glob("bundle-*"), key=lambda f: f.stat().st_mtime):
        if (folder / MANIFEST).exists():
            newest[str(Artifact(folder).manifest["settings"]["name"])] = folder
    used: set[str] = set()
    waiting = list(newest.values())
    while waiting:
        folder = waiting.pop()
        if folder.name not in used and (folder / MANIFEST).exists():
            used.add(folder.name)
            waiting += [artifacts / link["path"] for link in Artifact(folder).manifest["inputs"].values()]
    return frozenset(used)


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
