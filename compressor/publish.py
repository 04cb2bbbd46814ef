"""Put a built bundle where its verdict says: `dist/` when every gate holds, `rejected/` otherwise."""

import os
import shutil
from pathlib import Path

from compressor.artifact import Artifact
from compressor.errors import UnfitError

BUNDLE = "bundle"


def publish(artifact: Artifact, artifacts: Path, name: str) -> Path:
    """Copy the bundle and return its place; a rejected build leaves the last good bundle in dist/ as it is.

    Raises:
        UnfitError: the copy could not be written.
    """
    passed = bool(artifact.metrics["passed"])
    target = artifacts / ("dist" if passed else "rejected") / name
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
