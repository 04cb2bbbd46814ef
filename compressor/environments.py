"""Packages that cannot live beside ours: each in a virtual environment of its own, made with exact pins when it is first used.

They lie in the user's cache (~/.cache/encoder-compressor, or the folder that COMPRESS_CACHE names); a changed pin makes a new one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.errors import StageError, UnfitError

PINS: Mapping[str, Sequence[str]] = {
    # The last release with code for ONNX, and what it works with.
    "neural-compressor": ("neural-compressor==3.7.1", "onnx==1.17.0", "onnxruntime==1.20.1", "numpy==1.26.4", "six==1.17.0"),
}
READY = "ready"
"""File of a complete environment."""


def folder_of(name: str) -> Path:
    """Return where the environment of a name lies, or would lie."""
    facts = "\n".join([*PINS[name], sys.version])
    cache = Path(os.environ.get("COMPRESS_CACHE") or Path.home() / ".cache" / "encoder-compressor")
    return cache / "environments" / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def is_made(name: str) -> bool:
    """Say whether the environment is there."""
    return (folder_of(name) / READY).exists()


def make(name: str) -> None:
    """Make the environment unless it is there; another process that makes it is waited for.

    Raises:
        UnfitError: it cannot be made; the last line of what pip says.
    """
    from filelock import FileLock

    folder = folder_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_made(name):
            return
        try:
            venv.create(folder, clear=True, with_pip=True, symlinks=True)
            _run([str(_python(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS[name]])
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            told = _last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise UnfitError(f"the environment of {name} cannot be made: {told}; give pip a package index, or do without it") from None
        (folder / READY).touch()


def run(name: str, script: Path, arguments: Sequence[str], cwd: Path) -> None:
    """Run a script in the environment, which is made if it is not there.

    Raises:
        StageError: the script fails; the last line that it says.
        UnfitError: the environment cannot be made.
    """
    make(name)
    try:
        _run([str(_python(folder_of(name))), str(script), *arguments], cwd)
    except subprocess.CalledProcessError as error:
        raise StageError(f"{name}: {_last_line(error.stderr)}") from None


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run(command, check=True, cwd=cwd, env=clean, capture_output=True, text=True)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")
