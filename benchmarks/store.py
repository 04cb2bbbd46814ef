"""How fast a store of recycled layers reads and writes, by type of its entries, and whether reading slows as it grows.

    python -m benchmarks.store

Texts are random numbers, which no compression helps; they are read in random batches, each text once in a round, from a file that the
system has in memory, as it is after the first epoch. Megabytes a second are of the float32 that a reader gets. Growth is that of entries of
one row: what reading all of them takes for the first time, which maps the file into the process page by page, and what reading some takes
after that; with it the memory that the process then holds for itself.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.record import conclude
from compressor.entries import CODES, DType
from compressor.store import Identity, Store
from compressor.tokens import Floats

WIDTH, TOKENS, BATCH, ROUNDS = 768, 40, 64, 5
NARROW = 384
WRITTEN_AT_ONCE = 1000


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=5000, help="texts of each type")
    parser.add_argument("--rows", type=int, default=1_000_000, help="entries of the largest store")
    parser.add_argument("--trial", action="store_true", help="few texts, to see that it works; records nothing")
    chosen = parser.parse_args()
    texts, rows = (200, 10_000) if chosen.trial else (chosen.texts, chosen.rows)
    types = [_typed(dtype, texts) for dtype in CODES]
    result = {"texts": texts, "tokens": TOKENS, "width": WIDTH, "batch": BATCH, "types": types, "growth": list(_grown(rows))}
    conclude("store", result, chosen.trial)


def _typed(dtype: DType, texts: int) -> dict[str, Any]:
    """Return what texts of one type take on disk, and how fast they are written and read."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder), dtype, 4 * texts * TOKENS * WIDTH * 2)
        started = time.perf_counter()
        for some in _parts(texts, WRITTEN_AT_ONCE):
            store.write((_key(store, number), rng.standard_normal((TOKENS, WIDTH), np.float32)) for number in some)
        written = time.perf_counter() - started
        seconds = [_read(store, rng.permutation(texts)) for _ in range(ROUNDS + 1)][1:]
        size, megabytes = store.bytes() / 1e6, 4 * texts * TOKENS * WIDTH / 1e6
        store.close()
    found = {"dtype": dtype, "megabytes": size, "of_float32": size / megabytes, "written_mb_per_second": megabytes / written}
    return found | {"read_mb_per_second": megabytes / median(seconds), "milliseconds_a_text": 1000 * median(seconds) / texts}


def _grown(rows: int) -> Iterator[dict[str, Any]]:
    """Yield what reading takes at a hundredth, a tenth and all of so many entries, as the store grows."""
    rng, reading = np.random.default_rng(0), min(rows // 100, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        store, known = _store(Path(folder), "float16", rows * (NARROW * 2 + 400) * 4), 0
        for count in (rows // 100, rows // 10, rows):
            for some in _parts(count, WRITTEN_AT_ONCE):
                store.write((_key(store, n), rng.standard_normal((1, NARROW), np.float32)) for n in some if n >= known)
            known, first = count, _read(store, rng.permutation(count))
            seconds = [_read(store, rng.choice(count, reading, replace=False)) for _ in range(ROUNDS)]
            times = {"microseconds_a_first_read": 1e6 * first / count, "microseconds_a_read": 1e6 * median(seconds) / reading}
            yield {"entries": len(store), "megabytes": store.bytes() / 1e6, "own_megabytes": _own_memory() / 1e6, **times}
        store.close()


def _own_memory() -> int:
    """Return the bytes that this process holds for itself; pages of the mapped file are the system's, which takes them back."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def _store(folder: Path, dtype: DType, largest: int) -> Store:
    return Store(folder, Identity("model", 6, "tokenizer", "float32", dtype), largest, print)


def _key(store: Store, number: int) -> bytes:
    return store.identity.key(str(number).encode())


def _parts(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _read(store: Store, numbers: Sequence[int] | np.ndarray[Any, Any]) -> float:
    """Return the seconds that reading these texts takes, in batches; a miss is an error."""
    keys = [_key(store, int(number)) for number in numbers]
    started = time.perf_counter()
    for some in _parts(len(keys), BATCH):
        found: list[Floats | None] = store.read([keys[row] for row in some])
        if any(own is None for own in found):
            raise SystemExit("the store lost what was written")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
