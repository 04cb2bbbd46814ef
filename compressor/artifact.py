"""Artifacts: immutable folders, addressed by what they were made from, committed by rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compressor import interrupts

MANIFEST = "manifest.json"
STATE = ".state"
"""Folder inside an unfinished artifact that an interrupted stage goes on from."""
STORE = "store"
"""Prefix of the folders that keep what recycled layers made: no artifacts, because they go on growing."""


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """Return the hex digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write readable JSON that ends in a newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder, by its relative name, the manifest and the state left out."""
    return {name: sha256(path) for name, path in _files(folder).items()}


def _files(folder: Path) -> dict[str, Path]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.name != MANIFEST and STATE not in f.relative_to(folder).parts)
    return {f.relative_to(folder).as_posix(): f for f in files}


def drop_state(folder: Path) -> None:
    """Remove what an interrupted stage would go on from."""
    shutil.rmtree(folder / STATE, ignore_errors=True)


@dataclass(frozen=True)
class Artifact:
    """An immutable folder of files plus the manifest that says how it was made."""

    path: Path

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What the stage declared: settings, inputs, metrics, the hash of every file."""
        manifest: Mapping[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return manifest

    @property
    def digest(self) -> str:
        """Hash of the files; what was measured of their making plays no part."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the stage measured."""
        metrics: Mapping[str, Any] = self.manifest["metrics"]
        return metrics

    def damage(self, *, content: bool = True) -> str | None:
        """Return what is wrong with the folder, or None when every byte is as it was committed; without `content`, every file's name."""
        try:
            expected = self.manifest["files"]
            found = files_of(self.path) if content else {name: expected.get(name, "") for name in _files(self.path)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"no readable {MANIFEST} ({type(error).__name__})"
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        return f"{changed[0]} has changed" if changed else None


def commit(scratch: Path, folder: Path, manifest: Mapping[str, Any]) -> Artifact:
    """Write the manifest and rename the scratch folder into place."""
    files = files_of(scratch)
    write_json(scratch / MANIFEST, {**manifest, "files": files, "digest": digest_of(files)})
    with interrupts.held_back():
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
        drop_state(folder)  # last: until then a stage that is killed goes on from it
    return Artifact(folder)
