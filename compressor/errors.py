"""The errors a user can meet: one line that says where, what, and what to do; each carries its exit code."""

import errno
import shutil
from pathlib import Path


class CompressorError(Exception):
    """Say what is wrong and how to mend it; the command line prints it as one line and leaves with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Names of files and keys come from outside: a newline, an escape code or half a surrogate in one stays visible and harmless.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class RecipeError(CompressorError):
    """The recipe, or an input that it names, cannot be used."""

    exit_code = 3


class StageError(CompressorError):
    """A stage could not finish its work."""

    exit_code = 4


class GateError(CompressorError):
    """The bundle was built and measured, and a gate of the recipe does not hold."""

    exit_code = 5


class UnfitError(CompressorError):
    """This machine or environment lacks something: disk, permission, a package, a network."""

    exit_code = 6


class BundleError(CompressorError):
    """A bundle is damaged, unknown or was changed after it was built."""

    exit_code = 7


_OUT_OF_MEMORY = ("not enough memory", "out of memory", "allocate memory", "bad_alloc")
FULL = 2**20
"""Free bytes under which a disk counts as full: a library that could not write may fail later, on what it finds cut short."""


def one_line(error: object, most: int = 200) -> str:
    """Return the beginning of what an error says, on one line: libraries write paragraphs."""
    return " ".join(str(error).split())[:most]


def install(extra: str) -> str:
    """Return the command that installs an extra of this package."""
    return f"pip install 'encoder-compressor[{extra}]'"


def lacked(error: Exception, artifacts: Path) -> str | None:
    """Say what the machine lacked, if that is what the error means; libraries hide the system's error in a text, or trip over it later."""
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or shutil.disk_usage(artifacts).free < FULL:
        return f"no space left under {artifacts}; free some ('compress cache gc', or folders that 'compress cache ls' lists) and run again"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{getattr(error, 'filename', None) or artifacts} is not writable; mend its permissions and run again"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(told in text for told in _OUT_OF_MEMORY):
        return "out of memory; lower batch_size or data.max_length"
    return None
