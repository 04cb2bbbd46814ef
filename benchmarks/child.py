"""Run a command as a process of its own, and say how long it took and how much memory it held.

This module and what imports it stay small: a child's peak memory starts from what its parent held when it was born.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

COMPRESS = (sys.executable, "-c", "from compressor.cli import main; main()")
"""The command line, found by this interpreter whatever PATH says."""


@dataclass(frozen=True)
class Ended:
    """What a command left: wall seconds, peak resident bytes of its largest process, stdout, exit code."""

    seconds: float
    peak_bytes: int
    stdout: str
    exit_code: int


def run(command: Sequence[str], allowed: Collection[int] = (0,)) -> Ended:
    """Run a command to its end; its stderr is shown only when it fails.

    Raises:
        SystemExit: it left with another exit code than the allowed ones.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        # wait4, not RUSAGE_CHILDREN: that is the maximum over all children so far, so a small one would inherit a big one's peak.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in allowed:
            sys.exit(f"{' '.join(command)}\nleft with {process.returncode}:\n{_content(err)[-4000:]}")
        kilobyte = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in kilobytes on Linux, in bytes on macOS
        return Ended(seconds, usage.ru_maxrss * kilobyte, _content(out), process.returncode)


def built(recipe: Mapping[str, Any], path: Path, until: str) -> dict[str, Any]:
    """Build a recipe as far as a stage, in the folder of its file, from what is cached there, and return what the stage measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    ended = run([*COMPRESS, "run", str(path), "--until", until, "--artifacts", str(path.parent), "--format", "json"])
    found: dict[str, Any] = json.loads(ended.stdout)["metrics"]
    return found


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")
