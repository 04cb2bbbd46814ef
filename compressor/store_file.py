"""The file beneath a store: lmdb, as threads and processes look at it together, on disks that may be full or read-only.

What:     work on the file is guarded: where it fails, that is told once, nothing is filled in any more, and all goes on without.
Limits:   a process can open a file once; a file that another process makes larger is mapped anew between two transactions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition
from typing import Any, TypeVar

import lmdb

T = TypeVar("T")


class _Map:
    """Who looks at the file in memory: any number of threads, or one alone that maps it anew, which ends all transactions."""

    def __init__(self) -> None:
        self._change, self._looking = Condition(), 0

    @property
    def is_looked_at(self) -> bool:
        """Whether anybody does; in a process that was forked: whether anybody did then."""
        return self._looking > 0

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Keep the map as it is meanwhile."""
        with self._change:
            self._looking += 1
        try:
            yield
        finally:
            with self._change:
                self._looking -= 1
                self._change.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody looks, and let nobody look meanwhile."""
        with self._change:
            self._change.wait_for(lambda: not self._looking)
            yield


READERS = 1024
"""Reads at once, of all processes and threads; lmdb's own default is 126."""
SLACK = 2**22
"""Bytes beside a file that is larger than it may be."""


def _bytes_there(folder: Path) -> int:
    """Return the bytes of a store's file; 0 where there is none."""
    try:
        return (folder / "data.mdb").stat().st_size
    except OSError:
        return 0


class StoreFile:
    """An lmdb file: its entries, and when each was read for the last time; `readable` and `filling` say what it is fit for."""

    def __init__(self, folder: Path, size: int, tell: Callable[[str], None]) -> None:
        """Open or make a file of at most so many bytes, to read only where it cannot be written; `tell` hears once what goes wrong."""
        self.folder, self.tell, self.filling, self._map = folder, tell, True, _Map()
        self._locked = False
        self.readable = self._opened(size, readonly=False) or (not self._locked and self._opened(size, readonly=True))

    def _opened(self, size: int, *, readonly: bool) -> bool:
        try:
            if not readonly:
                self.folder.mkdir(parents=True, exist_ok=True)
            self.env, self.entries, self.used = _file(self.folder, size, readonly=readonly)
        except lmdb.LockError:
            # lmdb locks by process number, and reads without a lock are for files that nobody writes.
            self.stop(
                "a process of this number has it open elsewhere, in another container maybe: share its process numbers, or name another"
            )
            self._locked = True
            return False
        except (lmdb.Error, OSError) as error:
            self.stop(f"it cannot be written ({error})")
            return False
        return True

    def guarded(self, work: Callable[[], T], otherwise: T) -> T:
        """Return what work on the file gives; where that fails, say so once, fill no more, and return `otherwise`.

        A process that opened the store with a larger max_size may have made the file larger than it is mapped here. Work must not be
        guarded within: it would wait for itself.
        """
        if not self.readable:
            return otherwise
        for again in (True, False):
            try:
                if not again:
                    with self._map.alone():
                        self.env.set_mapsize(0)  # as large as the file now says
                with self._map.looked_at():
                    return work()
            except lmdb.MapResizedError as error:
                if not again:
                    self.stop(f"it grows faster than it can be read ({error})")
            except lmdb.Error as error:
                self.stop(f"it cannot be read or written any more ({error})")
                break
        return otherwise

    def taken(self) -> int:
        """Return the bytes that the entries take."""
        with self.env.begin() as txn:
            facts = txn.stat(self.entries)
        return int(facts["psize"] * (facts["leaf_pages"] + facts["branch_pages"] + facts["overflow_pages"]))

    def stop(self, why: str) -> None:
        """Go on without filling, and say so once."""
        if self.filling:
            self.tell(f"{self.folder}: {why}; going on, what is not in it is computed each time")
        self.filling = False

    def forsaken(self) -> bool:
        """Let go of a file that was opened before a fork, here alone: a process opens a file once; return whether that was possible.

        Not where somebody looked at it at the fork: to end that transaction here would free what is still being read there.
        """
        if self._map.is_looked_at:
            return False
        if self.readable:
            self.env.close()
        self.readable = self.filling = False
        return True

    def close(self) -> None:
        """Let go of the file when nobody looks at it any more."""
        with self._map.alone():
            if self.readable:
                self.env.close()
            self.readable = self.filling = False


def _file(folder: Path, size: int, *, readonly: bool) -> tuple[Any, Any, Any]:
    """Return an open store's file, its entries, and when each was read."""
    options = {"readonly": True, "lock": False} if readonly else {"metasync": False, "max_readers": READERS}
    there = _bytes_there(folder)
    if there >= size:  # smaller now than it was: to remove entries takes some free pages first
        size = there + SLACK
    env = lmdb.open(str(folder), map_size=size, max_dbs=2, **options)
    try:
        if not readonly:
            env.reader_check()
        return env, env.open_db(b"entries", create=not readonly), env.open_db(b"used", create=not readonly)
    except lmdb.Error:
        env.close()
        raise
