"""What frozen layers computed, on disk: found by content, in any batch, by any process.

What:     an lmdb file of ragged rows without padding; each entry has a checksum, of its key too, and what does not match it is a miss.
Papers:   embedding recycling (arXiv:2207.04993).
Formula:  key = sha256(format, model, layer, tokenizer, precision, dtype; token and segment ids).
Defaults: float16; 20 GB, of which entries take four fifths before those that were not read for longest go.
Limits:   one machine; a process that is killed loses at most the batch that it was writing, and one that serves what waits too, 64 MB.
"""

import atexit
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import lmdb

from compressor.behind import WriteBehind
from compressor.entries import DType, decoded, encoded, fits
from compressor.errors import RecipeError
from compressor.store_file import StoreFile
from compressor.tokens import Floats

FORMAT = 2
"""Of entries: stores of another are refused."""
FULL, ROOM = 0.8, 0.6
"""Share of the largest size at which entries go, and that they leave."""
USUAL = 20e9
"""Largest size where nobody says otherwise."""
SMALLEST = 2**20
"""Bytes of the smallest file that lmdb can work in."""
WAITING = 64e6
"""Bytes of what requests filled in that may wait to be written."""
TOUCHES = 2**16
"""Reads that are remembered before their times are written to disk: writing a few at a time would rewrite a page for each."""

NOTED_EVERY = 60.0
"""Seconds after which they are written at the latest: what another process lets go is what nobody has read."""


@dataclass(frozen=True)
class Identity:
    """Whose outputs a store holds: digests of the model's weights and of its tokenizer, the layer, how it computed and how it is kept."""

    model: str
    layer: int
    tokenizer: str
    precision: str
    dtype: DType

    def noted(self) -> dict[str, Any]:
        """Return it as a store notes it, with the format of its entries."""
        return {"format": FORMAT, **asdict(self)}

    def key(self, content: bytes) -> bytes:
        """Return the key of a text, from what tells it from others."""
        return hashlib.sha256(self._prefix + content).digest()

    @cached_property
    def _prefix(self) -> bytes:
        return json.dumps(self.noted(), sort_keys=True).encode() + b"\n"


class Store:
    """Arrays (rows, width) by key; reading and writing never fail for a full or read-only disk, they only find and keep less.

    Raises:
        RecipeError: the folder holds outputs of another model, layer, tokenizer, type or format.
    """

    def __init__(self, folder: Path, identity: Identity, largest: float, tell: Callable[[str], None]) -> None:
        """Open or make a store of at most so many bytes; `tell` hears once what goes wrong.

        Where none can be made, every key is a miss.

        Raises:
            RecipeError: the folder is a file, or holds another model's outputs.
        """
        self.folder, self.identity, self.tell = folder, identity, tell
        self.touched: dict[bytes, int] = {}
        self.behind: WriteBehind | None = None
        self._writing, self._touching, self._noted_at = RLock(), Lock(), time.monotonic()
        self.evicted, self.found, self.computed, self._openers = 0, 0, 0, 1
        self.size = size = max(SMALLEST, int(largest))
        self.limit, self._process, self._told, self._wide = FULL * size, os.getpid(), False, False
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"store {folder}: this is a file; name a folder")
        self.file = StoreFile(folder, size, tell)
        try:
            self.check(identity)
        except BaseException:
            self.file.close()
            raise

    @property
    def filling(self) -> bool:
        """Whether it keeps what is computed: not where the disk is full or read-only, nor after a fork."""
        return self.file.filling and self.is_of_this_process

    @property
    def is_of_this_process(self) -> bool:
        """Whether this process opened it: what was forked from that one must leave the file alone."""
        return self._process == os.getpid()

    @classmethod
    def shared(cls, folder: Path, identity: Identity, largest: float | None, tell: Callable[[str], None]) -> "Store":
        """Return this process's store of the folder, which lmdb cannot open twice; whoever comes second must want the same outputs.

        Who names no size takes what it has, 20 GB where it is the first and the store is no larger already. It serves requests, so that
        what they fill in is written beside their answers. It is closed when the process ends, if not when all that it was given to have
        closed it.
        """
        place = folder.resolve()
        with _OPENING:
            known = _OPEN.get(place)
            if known is not None and not known.is_of_this_process and known.file.forsaken():
                known = None
            if known is None:
                known = _OPEN[place] = cls(folder, identity, USUAL if largest is None else largest, tell)
                if largest is None:
                    known._keep_what_is_there()
                known.behind = WriteBehind(WAITING)
            else:
                known.check(identity)
                known._openers += 1
                if largest is not None and max(SMALLEST, int(largest)) != known.size:
                    tell(f"{folder}: open in this process already, at most {known.size / 1e6:.0f} MB; that stays, not {largest / 1e6:.0f}")
            return known

    def _keep_what_is_there(self) -> None:
        """Let a store that is larger than the usual one stay as large: nobody asked for less."""
        self.limit = max(self.limit, self.bytes())
        self.size = max(self.size, int(self.limit / FULL))

    def check(self, identity: Identity) -> None:
        """Refuse another model's outputs, and note whose these are where nobody did.

        Raises:
            RecipeError: they are another model's, layer's, tokenizer's, type's or format's, or nobody can tell.
        """
        try:
            noted = self.file.guarded(lambda: self._noted(identity), None) if self.is_of_this_process else None
        except (ValueError, TypeError):
            told = "what it says of its model is damaged; name another folder, or remove this one"
            raise RecipeError(f"store {self.folder}: {told}") from None
        there, wanted = noted or self.identity.noted(), identity.noted()
        if there != wanted:
            named = [(k, str(there.get(k)), str(v)) for k, v in wanted.items() if there.get(k) != v]
            differing = ", ".join(f"{k} {_short(old)}, not {_short(new)}" for k, old, new in named)
            raise RecipeError(f"store {self.folder}: made for {differing}; name another folder, or remove this one")

    def _noted(self, identity: Identity) -> dict[str, Any] | None:
        """Return whose outputs these are, which the first that fills them writes there."""
        filling = self.filling
        with self.file.env.begin(write=filling) as txn:
            if filling:
                txn.put(b"about", json.dumps(identity.noted()).encode(), overwrite=False)
            about = txn.get(b"about")
        return None if about is None else {"format": 1, **json.loads(about)}  # which the first did not note

    def read(self, keys: Sequence[bytes]) -> list[Floats | None]:
        """Return what is known of each key, float32 (rows, width); None for a miss."""
        if not self.is_of_this_process:
            self._forked()
            return [None] * len(keys)
        waiting = self.behind.waiting(keys) if self.behind else {}  # first: what is written meanwhile is then in one or the other
        misses: list[Floats | None] = [None] * len(keys)
        found = self.file.guarded(lambda: self._found(keys), misses)
        self._touch(key for key, values in zip(keys, found, strict=True) if values is not None)
        since = time.monotonic() - self._noted_at
        # Beside answers at most once a second: what was handed over stays noted here until it is written.
        if self.touched and (since > NOTED_EVERY or (len(self.touched) > TOUCHES and (self.behind is None or since > 1))):
            self._noted_at = time.monotonic()
            self.behind.add([], self.write) if self.behind else self._write([])
        if not waiting:
            return found
        written = {key: self._kept(key, values) for key, values in waiting.items()}
        return [written.get(key) if own is None else own for key, own in zip(keys, found, strict=True)]

    def _forked(self) -> None:
        """Say once that neither lmdb's file nor the thread that writes came along."""
        if not self._told:
            self._told = True
            self.tell(f"{self.folder}: opened before this process was forked, so that texts are computed without it; open it afterwards")

    def _found(self, keys: Sequence[bytes]) -> list[Floats | None]:
        with self.file.env.begin(db=self.file.entries, buffers=True) as txn:
            return [decoded(key, value) if (value := txn.get(key)) is not None else None for key in keys]

    def _touch(self, keys: Iterable[bytes]) -> None:
        with self._touching:
            if self.filling:
                self.touched |= dict.fromkeys(keys, time.time_ns())
            else:  # nothing will write it down
                self.touched = {}

    def through(self, keys: Sequence[bytes], compute: Callable[[list[int]], Iterable[Floats]]) -> list[Floats]:
        """Return the array of each key; those that are missing are computed, each once, from their positions in `keys`, and kept.

        What is computed is returned as it is kept, so that a text is answered alike whenever it comes.
        """
        known = self.read(keys)
        missing = {key: number for number, (key, own) in enumerate(zip(keys, known, strict=True)) if own is None}
        self.found, self.computed = self.found + len(keys) - len(missing), self.computed + len(missing)
        if not missing:
            return [own for own in known if own is not None]
        made = dict(zip(missing, compute(list(missing.values())), strict=True))
        if self.behind and self.filling:
            self.behind.add(made.items(), self.write)
        else:
            self.write(made.items())
        kept = {key: self._kept(key, values) for key, values in made.items()}
        return [kept[key] if own is None else own for key, own in zip(keys, known, strict=True)]

    def _kept(self, key: bytes, values: Floats) -> Floats:
        """Return an array as the next that asks for it will read it."""
        if self.identity.dtype == "float32":
            return values
        found = decoded(key, self._encoded(key, values))
        assert found is not None
        return found

    def _encoded(self, key: bytes, values: Floats) -> bytes:
        """Return an array as it is kept, and say once where that takes more than asked."""
        if not (self._wide or fits(values, self.identity.dtype)):
            self._wide = True
            self.tell(f"{self.folder}: some of these outputs are beyond what {self.identity.dtype} holds and are kept in float32")
        return encoded(key, values, self.identity.dtype)

    def write(self, known: Iterable[tuple[bytes, Floats]]) -> None:
        """Keep arrays (rows, width), all of them or, where the process is killed, none."""
        if not self.filling:
            return
        self._write([(key, self._encoded(key, values)) for key, values in known])

    def _write(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        with self._writing:
            if self.filling:
                self.file.guarded(lambda: self._fit_and_put(entries), None)

    def _fit_and_put(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        coming = sum(len(value) for _, value in entries)
        for in_pieces in (False, True):  # what the first time freed may be, so that there is no room yet
            try:
                if in_pieces:
                    self._evict(self.file.taken() / 2)
                elif self.file.taken() + coming > self.limit:
                    self._evict(ROOM / FULL * self.limit - coming)
                self._touch(key for key, _ in entries)  # here, because making room may have taken all that was noted
                self._put(entries)
                return
            except lmdb.MapFullError:
                continue
        self.file.stop("these outputs are larger than max_size")

    def _put(self, entries: Sequence[tuple[bytes, bytes]]) -> None:
        with self._touching:
            touched = dict(self.touched)
        with self.file.env.begin(write=True) as txn:
            for key, value in entries:
                txn.put(key, value, db=self.file.entries)
            for key, when in sorted(touched.items()):  # pages in turn
                if when > _when(txn.get(key, db=self.file.used)):  # another process may have read it since
                    txn.put(key, when.to_bytes(8, "big"), db=self.file.used)
        with self._touching:  # what was read meanwhile waits for the next time
            self.touched = {key: when for key, when in self.touched.items() if touched.get(key) != when}

    def bytes(self) -> int:
        """Return what the entries take on disk."""
        return self.file.guarded(self.file.taken, 0)

    def _evict(self, wanted: float) -> None:
        """Remove what was not read for longest, until the rest takes no more bytes than wanted."""
        self.file.env.reader_check()  # a reader that was killed keeps what is removed from being used again
        with self._touching:
            touched = dict(self.touched)
        with self.file.env.begin(db=self.file.used) as txn:  # meanwhile others read: there may be millions
            ages = {bytes(key): _when(value) for key, value in txn.cursor()}
        ages |= {key: max(when, ages.get(key, 0)) for key, when in touched.items()}
        oldest, gone = sorted(ages, key=lambda key: ages[key]), 0
        at_once = min(256, len(oldest) // 20 + 1)
        for begin in range(0, len(oldest), at_once):
            if self.file.taken() <= wanted:
                break
            some = oldest[begin : begin + at_once]
            with self.file.env.begin(write=True) as txn, self._touching:
                gone += sum(txn.delete(key, db=self.file.entries) for key in some)
                for key in some:
                    txn.delete(key, db=self.file.used)
                    self.touched.pop(key, None)
        if gone and not self.evicted:
            self.tell(f"{self.folder}: full, what was not read for longest goes; max_size may be raised")
        self.evicted += gone

    def __len__(self) -> int:
        if self.behind and self.is_of_this_process:  # the thread that writes did not come along in a fork
            self.behind.flush()
        return self.file.guarded(self._count, 0)

    def _count(self) -> int:
        with self.file.env.begin() as txn:
            return int(txn.stat(self.file.entries)["entries"])

    def close(self) -> None:
        """Write down what waits and what was read when, and let go of the file, also where writing fails; a shared one, with the last.

        Raises:
            Exception: what writing beside the answers raised.
        """
        with _OPENING:
            self._openers -= 1
            if self._openers > 0:
                return
            for place in [place for place, store in _OPEN.items() if store is self]:
                del _OPEN[place]
            self._close()  # meanwhile nobody opens it: lmdb opens no file twice

    def _close(self) -> None:
        if not self.is_of_this_process:
            self.file.forsaken()
            return
        try:
            if self.behind:
                self.behind.close()
            self._write([])
        finally:
            self.file.close()


_OPEN: dict[Path, Store] = {}
"""Stores that requests share in this process, by their folders."""
_OPENING = Lock()


def _forget() -> None:
    global _OPENING
    _OPENING = Lock()  # a fork may have come while the parent held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@atexit.register
def _close_all() -> None:
    """Write down when entries were read, which a process that finds all it asks for does at no other time."""
    with ExitStack() as stack:
        for store in list(_OPEN.values()):
            if store.is_of_this_process:
                stack.callback(store._close)


def _short(value: str) -> str:
    """Return the beginning of a digest; what says more, as a model's name on the Hub, whole."""
    return value if ":" in value else value[:12]


def _when(stamp: bytes | None) -> int:
    """Return when an entry was read for the last time, in nanoseconds by the clock that all processes have; 0 where nobody noted it."""
    return int.from_bytes(stamp or b"", "big")
