"""Put a built bundle where its verdict says: `dist/` when every gate holds, `rejected/` otherwise."""

import os
import shutil
from pathlib import Path

from compressor import interrupts
from compressor.artifact import Artifact, sha256
from compressor.bundles import FOLDER
from compressor.errors import UnfitError


def publish(artifact: Artifact, artifacts: Path, name: str) -> Path:
    """Copy the bundle and return its place; a rejected build leaves the last good bundle in dist/ as it is.

    Raises:
        UnfitError: the copy could not be written.
    """
    passed = bool(artifact.metrics["passed"])
    for place in ("dist", "rejected"):
        _restore(artifacts / place / name)
    target = artifacts / ("dist" if passed else "rejected") / name
    if passed and _is_there(target, artifact.path / FOLDER):
        shutil.rmtree(artifacts / "rejected" / name, ignore_errors=True)
        return target
    partial, last = target.parent / f".{name}.partial", _last(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(artifact.path / FOLDER, partial)
        with interrupts.held_back():
            if target.exists():
                os.replace(target, last)
            os.replace(partial, target)
        shutil.rmtree(last, ignore_errors=True)
        if passed:
            shutil.rmtree(artifacts / "rejected" / name, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        _restore(target)
        raise UnfitError(f"{target}: {error.strerror or error}; free some space or mend permissions, then run again") from error
    return target


def _last(target: Path) -> Path:
    return target.parent / f".{target.name}.last"


def _restore(target: Path) -> None:
    """Put back what was moved away for a bundle that never came, as after `kill -9`."""
    if not target.exists() and _last(target).exists():
        os.replace(_last(target), target)
    shutil.rmtree(_last(target), ignore_errors=True)


def _is_there(target: Path, bundle: Path) -> bool:
    """Say whether this is published already, every byte of it: who has it open need not see its files change."""
    names = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    try:
        return all(sha256(target / name) == sha256(bundle / name) for name in names)
    except OSError:
        return False
