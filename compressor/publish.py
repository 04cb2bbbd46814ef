"""Put a built bundle where its verdict says: `dist/` when every gate holds, `rejected/` otherwise."""

import os
import shutil
from pathlib import Path

from compressor.artifact import Artifact
from compressor.bundles import verify
from compressor.errors import BundleError, UnfitError

BUNDLE = "bundle"


def publish(artifact: Artifact, artifacts: Path, name: str) -> Path:
    """Copy the bundle and return its place; a rejected build leaves the last good bundle in dist/ as it is.

    Raises:
        UnfitError: the copy could not be written.
    """
    passed = bool(artifact.metrics["passed"])
    target = artifacts / ("dist" if passed else "rejected") / name
    if passed and _is_there(target, artifact.path / BUNDLE):
        shutil.rmtree(artifacts / "rejected" / name, ignore_errors=True)
        return target
    partial = target.parent / f".{name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(artifact.path / BUNDLE, partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        if passed:
            shutil.rmtree(artifacts / "rejected" / name, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UnfitError(f"{target}: {error.strerror or error}; free some space or mend permissions, then run again") from error
    return target


def _is_there(target: Path, bundle: Path) -> bool:
    """Say whether a bundle is published already, whole: a server that has it open need not see its files change."""
    try:
        if (target / "manifest.json").read_bytes() != (bundle / "manifest.json").read_bytes():
            return False
        return bool(verify(target)) and all((target / path.relative_to(bundle)).exists() for path in bundle.rglob("*"))
    except (OSError, BundleError):
        return False
