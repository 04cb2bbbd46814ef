"""Write beside the answer: one thread writes what others hand over, all that waits at once, while they go on.

What:     a request does not wait for the disk; what is handed over is found until it is written.
Limits:   a process that is killed loses what is queued, at most `most` bytes; beyond that, `add` waits until it is written.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from compressor.tokens import Floats

Entries = Sequence[tuple[bytes, Floats]]


class WriteBehind:
    """A queue of arrays by key, and the thread that empties it."""

    def __init__(self, most: float) -> None:
        """Let at most so many bytes wait."""
        self._most, self._lock = most, Lock()
        self._waiting, self._written = dict[bytes, Floats](), dict[bytes, Floats]()
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1, "store")
        self._last: Future[None] | None = None

    def add(self, entries: Iterable[tuple[bytes, Floats]], write: Callable[[Entries], None]) -> None:
        """Hand entries over, for this function to write; wait only where too many bytes wait already."""
        with self._lock:
            asleep = not self._waiting
            for key, own in entries:
                self._waiting[key] = own
                self._bytes += own.nbytes
            full, alone = self._bytes > self._most, False
            if asleep:  # else the thread, which has not taken them yet, takes these too
                try:
                    self._last = self._thread.submit(self._empty, write)
                except RuntimeError:  # the process ends while others still ask, or it may have no more threads
                    alone = True
        if alone or full:
            self.flush()
        if alone:
            self._empty(write)

    def waiting(self, keys: Iterable[bytes]) -> dict[bytes, Floats]:
        """Return what waits under these keys, or is being written."""
        with self._lock:
            return {key: part[key] for key in keys for part in (self._written, self._waiting) if key in part}

    def flush(self) -> None:
        """Wait until all is written.

        Raises:
            Exception: what writing raised.
        """
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self.flush()
        self._thread.shutdown(wait=True)

    def _empty(self, write: Callable[[Entries], None]) -> None:
        with self._lock:
            self._written, self._waiting, self._bytes = self._waiting, {}, 0
        try:
            write(list(self._written.items()))
        finally:
            with self._lock:
                self._written = {}
