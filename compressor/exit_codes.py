"""How a command ends: what went wrong as one line, and the documented exit code."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from compressor import interrupts
from compressor.errors import CompressorError, UnfitError, one_line
from compressor.progress import Stderr

BROKEN_PIPE = 128 + 13
"""Exit code of what SIGPIPE ends, as shells tell it; not 0, because gates may not have been judged yet."""
USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


@contextmanager
def exits(debug: bool) -> Iterator[None]:
    """Turn what can end a command into one line and the documented exit code."""
    stdout = sys.stdout
    err = Stderr(highlight=False, markup=False, emoji=False, soft_wrap=True)  # emoji: recipe.yaml:100:1 holds :100:
    try:
        yield
    except CompressorError as error:
        if debug:
            err.print(traceback.format_exc(), end="")
        err.print(f"error: {error}")
        sys.exit(error.exit_code)
    except interrupts.Interrupted as stop:
        err.print(f"{stop}; give the same command again: a build goes on from here")
        sys.exit(stop.exit_code)
    except SystemExit as leaving:
        # typer replaces stdout when its reader has gone (`compress … | head`), and leaves with 1, our code for a bug.
        sys.exit(leaving.code if sys.stdout is stdout else BROKEN_PIPE)
    except USAGE as error:
        told, where = error.format_message().rstrip("."), error.ctx.command_path if error.ctx else "compress"
        err.print(told if told.startswith("Usage:") else f"error: {where}: {told}; '{where} --help' tells what it takes")
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            err.print(traceback.format_exc(), end="")
        err.print(f"error: {error.filename or 'output'}: {error.strerror or error}; mend the disk or its permissions and run again")
        sys.exit(UnfitError.exit_code)
    except Exception as error:
        if debug:
            err.print(traceback.format_exc(), end="")
        err.print(f"bug: {type(error).__name__}: {one_line(error, 300)}; run again with --debug and report what it prints")
        sys.exit(1)
