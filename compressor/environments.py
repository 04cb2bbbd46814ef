"""Packages that cannot live beside ours: each set in a virtual environment of its own, made with exact pins when it is first used.

They lie in the user's cache (~/.cache/encoder-compressor, or the folder that COMPRESS_CACHE names); a changed pin makes a new one.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import StageError, UnfitError

READY = "ready"
"""File of a complete environment."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with exactly these packages."""

    name: str
    pins: tuple[str, ...]
    module: str = "sys"
    """What must be there to be imported, before it counts as made."""
    newest: tuple[int, int] = (3, 99)
    """The last Python for which there are such packages."""

    @property
    def folder(self) -> Path:
        """Where it lies, or would lie.

        Raises:
            UnfitError: no cache is named, and the user has no home for one.
        """
        facts = "\n".join([*self.pins, sys.version])
        try:
            cache = Path(os.environ.get("COMPRESS_CACHE") or Path.home() / ".cache" / "encoder-compressor")
        except RuntimeError:
            raise UnfitError("there is no home folder for environments: name another one in COMPRESS_CACHE") from None
        return cache.absolute() / "environments" / f"{self.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def is_made(self) -> bool:
        """Say whether it is there."""
        try:
            return (self.folder / READY).exists()
        except (UnfitError, OSError):  # no home, or one of another user
            return False

    def suits(self) -> bool:
        """Say whether there are such packages for this Python."""
        return sys.version_info[:2] <= self.newest

    def make(self) -> None:
        """Make it unless it is there; another process that makes it is waited for.

        Raises:
            UnfitError: it cannot be made; the last line of what pip says.
        """
        from filelock import FileLock

        if not self.suits():
            raise UnfitError(f"{self.name} needs Python {'.'.join(map(str, self.newest))} or older: build with that, or do without")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if self.is_made():
                return
            try:
                venv.create(self.folder, clear=True, with_pip=True, symlinks=True)
                _run([str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.pins])
                _run([str(self.python), "-c", f"import {self.module}"])
            except (OSError, subprocess.CalledProcessError) as error:
                shutil.rmtree(self.folder, ignore_errors=True)
                told = _last_line(error.stderr or error.output) if isinstance(error, subprocess.CalledProcessError) else str(error)
                raise UnfitError(
                    f"the environment of {self.name} cannot be made: {told}; give pip a package index, or do without"
                ) from None
            (self.folder / READY).touch()

    def run(self, script: Path, arguments: Sequence[str], cwd: Path) -> None:
        """Run a script in it, once it is made.

        Raises:
            StageError: the script fails; the last line that it says.
            UnfitError: the environment cannot be made, or the script is killed.
        """
        self.make()
        try:
            _run([str(self.python), str(script), *arguments], cwd)
        except subprocess.CalledProcessError as error:
            if error.returncode == -signal.SIGKILL:  # by the system, for what it took
                raise UnfitError(f"{self.name} was killed, most likely for its memory; lower quantize.calibration") from None
            raise StageError(f"{self.name}: {_last_line(error.stderr)}") from None


NEURAL_COMPRESSOR = Environment(  # the last release with code for ONNX, and what it works with
    "neural-compressor",
    ("neural-compressor==3.7.1", "onnx==1.17.0", "onnxruntime==1.20.1", "numpy==1.26.4", "six==1.17.0", "setuptools==75.8.0"),
    "neural_compressor",
    (3, 12),
)
OURS = ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIREMENT")
"""Environment variables that would let another interpreter see our packages, or its pip put packages elsewhere or take other ones."""


def clean_variables() -> dict[str, str]:
    """Return this process's environment variables without those that mean this interpreter's packages alone."""
    return {key: value for key, value in os.environ.items() if key not in OURS}


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, env=clean_variables(), capture_output=True, text=True)


def _last_line(text: str | bytes | None) -> str:
    text = text.decode(errors="replace") if isinstance(text, bytes) else text or ""  # venv passes bytes on
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")
