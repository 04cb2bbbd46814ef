"""SIGINT and SIGTERM end a build cleanly: between two steps, with a checkpoint, and with the exit code that shells expect."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the build to stop; what is done is kept, and the same command goes on from there."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


_held = 0
_pending: int | None = None


def install() -> None:
    """Turn SIGINT and SIGTERM into Interrupted."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def _handle(signum: int, _frame: FrameType | None) -> None:
    global _pending
    if _held:
        _pending = signum
    else:
        raise Interrupted(signum)


@contextmanager
def held_back() -> Iterator[None]:
    """Let the block finish before an interruption takes effect, so that a training step is done wholly or not at all."""
    global _held, _pending
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    if _pending is not None and not _held:
        signum, _pending = _pending, None
        raise Interrupted(signum)
