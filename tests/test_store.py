"""A store of frozen layers' outputs: what it knows is exact, what it does not know it says, whatever happens to its file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from unittest.mock import Mock

import lmdb
import numpy as np
import pytest

from compressor import store as store_module
from compressor.behind import Entries, WriteBehind
from compressor.entries import DType
from compressor.errors import RecipeError
from compressor.store import Identity, Store
from compressor.store_file import StoreFile
from compressor.tokens import Floats

IDENTITY = Identity("a" * 64, 6, "b" * 64, "float32", "float32")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path: Path, told: list[str]) -> Iterator[Callable[..., Store]]:
    """Open stores in one folder, and close what is still open."""
    stores: list[Store] = []

    def make(identity: Identity = IDENTITY, largest: float = 2**24) -> Store:
        stores.append(Store(tmp_path / "store", identity, largest, told.append))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def values(seed: int, rows: int = 5, width: int = 16) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def key(number: int, identity: Identity = IDENTITY) -> bytes:
    return identity.key(str(number).encode())


def test_what_was_written_is_read_in_any_order_and_what_was_not_is_a_miss(opened: Callable[..., Store]) -> None:
    store = opened()
    store.write((key(n), values(n, rows=n + 1)) for n in range(8))
    found = store.read([key(n) for n in (7, 99, 0, 3)])
    assert found[1] is None
    for number, own in zip((7, 0, 3), (found[0], found[2], found[3]), strict=True):
        assert own is not None
        np.testing.assert_array_equal(own, values(number, rows=number + 1))
    assert len(store) == 8
    store.close()
    again = opened().read([key(5)])[0]
    assert again is not None
    np.testing.assert_array_equal(again, values(5, rows=6))


@pytest.mark.parametrize(("dtype", "size", "error"), [("float32", 1.0, 0.0), ("float16", 0.5, 1e-3), ("int8", 0.25, 0.02)])
def test_smaller_types_take_less_and_stay_near(opened: Callable[..., Store], dtype: DType, size: float, error: float) -> None:
    identity = replace(IDENTITY, dtype=dtype)
    store, whole = opened(identity), values(1, rows=100, width=384)
    whole[3] = 0  # a row without any scale
    store.write([(key(1, identity), whole)])
    (found,) = store.read([key(1, identity)])
    assert found is not None
    assert found.dtype == np.float32
    assert np.abs(found - whole).max() <= error * np.abs(whole).max()
    with store.file.env.begin(db=store.file.entries) as txn:
        assert len(txn.get(key(1, identity))) == pytest.approx(size * whole.nbytes, rel=0.02)


@pytest.mark.parametrize(
    "changed", [{"model": "c" * 64}, {"layer": 5}, {"tokenizer": "d" * 64}, {"precision": "bfloat16"}, {"dtype": "int8"}]
)
def test_a_store_of_another_model_is_refused_and_its_keys_never_hit(opened: Callable[..., Store], changed: dict[str, str]) -> None:
    opened().close()
    other = replace(IDENTITY, **changed)  # type: ignore[arg-type]
    assert other.key(b"text") != IDENTITY.key(b"text")
    with pytest.raises(RecipeError, match=f"made for {next(iter(changed))} .*; name another folder, or remove this one"):
        opened(other)


def test_a_changed_byte_is_a_miss(opened: Callable[..., Store]) -> None:
    store = opened()
    store.write([(key(1), values(1)), (key(2), values(2))])
    with store.file.env.begin(write=True) as txn:
        entry = bytearray(txn.get(key(1), db=store.file.entries))
        entry[-7] ^= 1
        txn.put(key(1), bytes(entry), db=store.file.entries)
        txn.put(key(3), b"short", db=store.file.entries)
    found = store.read([key(1), key(2), key(3)])
    assert found[0] is None
    assert found[1] is not None
    assert found[2] is None


def test_another_texts_entry_is_a_miss(opened: Callable[..., Store]) -> None:
    store = opened()
    store.write([(key(1), values(1)), (key(2), values(2))])
    with store.file.env.begin(write=True, db=store.file.entries) as txn:
        first, second = txn.get(key(1)), txn.get(key(2))
        txn.put(key(1), second)
        txn.put(key(2), first)
    assert store.read([key(1), key(2)]) == [None, None]


def test_an_older_store_is_refused(opened: Callable[..., Store], told: list[str]) -> None:
    store = opened()
    with store.file.env.begin(write=True) as txn:
        txn.put(b"about", json.dumps(asdict(IDENTITY)).encode())
    store.close()
    with pytest.raises(RecipeError, match="made for format 1, not 2; name another folder, or remove this one"):
        opened()


def test_a_full_store_lets_go_what_was_not_read_for_longest(opened: Callable[..., Store], told: list[str]) -> None:
    store, entry = opened(largest=4 * 2**20), values(0, rows=32, width=256)  # 32 kB each
    for number in range(60):
        store.write([(key(number), entry)])
        assert store.read([key(0)])[0] is not None  # the first is read all the time
    for number in range(60, 200):
        store.write([(key(number), entry)])
        store.read([key(0)])
    found = store.read([key(n) for n in range(200)])
    assert found[0] is not None
    assert found[199] is not None
    assert found[1] is None
    assert store.evicted > 50
    assert len(told) == 1
    assert "full, what was not read for longest goes; max_size may be raised" in told[0]
    assert sum(f.stat().st_size for f in store.folder.iterdir()) < 4.2 * 2**20


def test_what_another_process_read_since_stays(opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    store, entry = opened(largest=2**20), values(0, rows=32, width=256)
    for number in range(8):
        store.write([(key(number), entry)])
    store.close()
    store = opened(largest=2**20)
    store.read([key(n) for n in range(8)])  # not written down yet
    with store.file.env.begin(write=True, db=store.file.used) as txn:
        assert txn.get(key(0)) == (1000).to_bytes(8, "big")
        txn.put(key(0), (5000).to_bytes(8, "big"))  # as another process does
    now[0] = 2000
    for number in range(8, 40):
        store.write([(key(number), entry)])
        now[0] += 10
    found = store.read([key(n) for n in range(40)])
    assert found[0] is not None
    assert all(own is None for own in found[1:8])
    with store.file.env.begin(db=store.file.used) as txn:
        assert txn.get(key(0)) == (5000).to_bytes(8, "big")


READER = """
import sys
from pathlib import Path
from compressor.store import Identity, Store

def serve():
    identity = Identity("a" * 64, 6, "b" * 64, "float32", "float32")
    store = Store.shared(Path(sys.argv[1]), identity, 2**24, print)
    assert store.through([identity.key(b"1")], lambda missing: 1 / 0)

serve()
"""


def test_a_process_that_only_reads_notes_when_it_did(opened: Callable[..., Store], tmp_path: Path) -> None:
    store, started = opened(), time.time_ns()
    store.write([(key(n), values(n)) for n in range(3)])
    with store.file.env.begin(write=True, db=store.file.used) as txn:
        for number in range(3):
            txn.put(key(number), (1).to_bytes(8, "big"))
    store.close()
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path / "store")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store = opened()
    with store.file.env.begin(db=store.file.used) as txn:
        found = [int.from_bytes(txn.get(key(n)), "big") for n in range(3)]
    assert found[0] == found[2] == 1
    assert found[1] > started


def test_what_is_larger_than_the_store_is_not_kept_and_said_once(opened: Callable[..., Store], told: list[str]) -> None:
    store = opened(largest=2**20)
    store.write([(key(1), values(1, rows=2000, width=384))])
    assert store.read([key(1)]) == [None]
    store.write([(key(2), values(2))])
    assert len(told) == 1
    assert "larger than max_size; going on" in told[0]


def test_what_goes_wrong_while_entries_go_is_said_and_no_error(
    opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, evicted = opened(), list[float]()

    def put(entries: object) -> None:
        raise lmdb.MapFullError("mdb_put: Environment mapsize limit reached")

    def evict(wanted: float) -> None:
        evicted.append(wanted)
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    monkeypatch.setattr(store, "_put", put)
    monkeypatch.setattr(store, "_evict", evict)
    store.write([(key(1), values(1))])
    assert len(evicted) == len(told) == 1
    assert "No space left on device" in told[0]
    assert store.read([key(1)]) == [None]


def test_a_store_lets_go_of_its_file_also_where_the_last_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.shared(tmp_path / "store", IDENTITY, 2**24, print)

    def write(known: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store, "write", write)
    store.through([key(1)], lambda _: [values(1)])
    with pytest.raises(OSError, match="no space left"):
        store.close()
    again = Store.shared(tmp_path / "store", IDENTITY, 2**24, print)
    assert again is not store
    again.close()


def test_readers_that_were_killed_keep_no_room(opened: Callable[..., Store], tmp_path: Path) -> None:
    store, entry = opened(largest=2**20), values(0, rows=32, width=256)
    killed = "import lmdb, os, sys; txn = lmdb.open(sys.argv[1], max_dbs=2).begin(); txn.get(b'about'); os.kill(os.getpid(), 9)"
    reader = subprocess.Popen([sys.executable, "-c", killed, str(tmp_path / "store")])
    reader.wait()
    assert str(reader.pid) in store.file.env.readers()
    for number in range(60):  # twice what there is room for
        store.write([(key(number), entry)])
    assert str(reader.pid) not in store.file.env.readers()
    assert store.filling


def test_a_read_only_store_is_read_and_not_filled(opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write what is read-only, so the refusal is what a read-only disk answers to all who ask to write."""
    store = opened()
    store.write([(key(1), values(1))])
    store.close()
    real = lmdb.open

    def refusing(path: str, **options: object) -> object:
        if not options.get("readonly"):
            raise lmdb.Error(f"{path}: Read-only file system")
        return real(path, **options)

    monkeypatch.setattr(lmdb, "open", refusing)
    store = opened()
    assert store.read([key(1)])[0] is not None
    store.write([(key(2), values(2))])
    assert store.read([key(2)]) == [None]
    assert len(told) == 1
    assert "cannot be written" in told[0]
    store.close()
    with pytest.raises(RecipeError, match="made for layer 6, not 5; name another folder, or remove this one"):
        opened(replace(IDENTITY, layer=5))


def test_a_store_that_cannot_be_made_answers_only_misses_and_says_it_once(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    real, bare, none = lmdb.open, tmp_path / "bare", tmp_path / "file" / "store"
    real(str(bare)).close()

    def refusing(path: str, **options: object) -> object:
        if not options.get("readonly"):
            raise lmdb.Error(f"{path}: Read-only file system")
        return real(path, **options)

    monkeypatch.setattr(lmdb, "open", refusing)
    for folder in (bare, none):
        told.clear()
        store = Store.shared(folder, IDENTITY, 2**20, told.append)
        for _ in range(2):
            (found,) = store.through([key(1)], lambda _: [values(1)])
            np.testing.assert_array_equal(found, values(1))
        assert (len(store), store.bytes(), store.computed) == (0, 0, 2)
        with pytest.raises(RecipeError, match="made for layer 6, not 5"):  # its keys are another model's
            Store.shared(folder, replace(IDENTITY, layer=5), 2**20, told.append)
        store.close()
        store.close()
        assert len(told) == 1
        assert "cannot be written" in told[0]


def test_what_cannot_be_written_down_is_not_remembered(
    opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.store.TOUCHES", 3)
    store, writes = opened(), list[int]()
    store.write([(key(n), values(n)) for n in range(8)])
    store.file.stop("no more")
    monkeypatch.setattr(store, "_fit_and_put", lambda entries: writes.append(1))
    for _ in range(3):
        assert store.read([key(n) for n in range(8)])[7] is not None
    assert (store.touched, writes) == ({}, [])


def test_a_store_that_cannot_be_written_any_more_goes_on_without_filling(
    opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.write([(key(1), values(1))])

    class Full:
        def begin(self, **options: object) -> object:
            if options.get("write"):
                raise lmdb.DiskError("mdb_txn_commit: No space left on device")
            return store_env.begin(**options)

        def close(self) -> None: ...

    store_env = store.file.env
    monkeypatch.setattr(store.file, "env", Full())
    for number in (2, 3):
        store.write([(key(number), values(number))])
    assert store.read([key(1)])[0] is not None
    assert len(told) == 1
    assert "cannot be read or written any more" in told[0]
    monkeypatch.setattr(store.file, "env", store_env)


def test_a_store_that_cannot_be_read_any_more_answers_only_misses(
    opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.write([(key(1), values(1))])

    class Broken:
        def begin(self, **options: object) -> object:
            raise lmdb.CorruptedError("mdb_get: Located page was wrong type")

    store_env = store.file.env
    monkeypatch.setattr(store.file, "env", Broken())
    assert store.read([key(1), key(2)]) == [None, None]
    assert (len(store), store.bytes()) == (0, 0)
    store.write([(key(2), values(2))])
    assert len(told) == 1
    assert "cannot be read or written any more" in told[0]
    monkeypatch.setattr(store.file, "env", store_env)


WRITER = """
import sys
import numpy as np
from pathlib import Path
from compressor.store import Identity, Store
identity = Identity("a" * 64, 6, "b" * 64, "float32", "float32")
store = Store(Path(sys.argv[1]), identity, 2**26, print)
first, count = int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + count):
    array = np.random.default_rng(number).normal(size=(5, 16)).astype(np.float32)
    store.write([(identity.key(str(number).encode()), array)])
    print(number, flush=True)
store.close()
"""


def test_several_processes_fill_one_store(opened: Callable[..., Store], tmp_path: Path) -> None:
    opened().close()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store")]
    writers = [subprocess.Popen([*command, str(100 * n), "60"], stdout=subprocess.DEVNULL) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    store = opened()
    for first in (0, 100, 200):
        for number, found in enumerate(store.read([key(n) for n in range(first, first + 60)]), first):
            assert found is not None
            np.testing.assert_array_equal(found, values(number))


def test_a_store_that_another_process_made_larger_is_read_and_filled_on(
    opened: Callable[..., Store], told: list[str], tmp_path: Path
) -> None:
    store, first = opened(largest=2**20), [key(n) for n in range(40)]
    store.write((key(n), values(n)) for n in range(40))
    wide = WRITER.replace("(5, 16)", "(50, 16)")
    writer = subprocess.Popen([sys.executable, "-c", wide, str(tmp_path / "store"), "1000", "600"], stdout=subprocess.DEVNULL)
    while writer.poll() is None:  # threads that read while one of them maps the file anew
        with ThreadPoolExecutor(4) as pool:
            assert all(own is not None for found in pool.map(store.read, [first] * 40) for own in found)
    assert writer.wait() == 0
    assert store.file.env.info()["map_size"] > 2**20
    assert len(store) == 640
    assert store.bytes() > 2**20
    (found,) = store.read([key(1599)])
    assert found is not None
    np.testing.assert_array_equal(found, values(1599, rows=50))
    store.write([(key(-1), values(2))])
    assert store.read([key(-1)])[0] is not None
    assert not [line for line in told if "full" not in line]


def test_a_write_follows_a_file_that_another_process_made_larger(opened: Callable[..., Store], told: list[str], tmp_path: Path) -> None:
    store, wide = opened(largest=2**20), WRITER.replace("(5, 16)", "(50, 16)")
    subprocess.run([sys.executable, "-c", wide, str(tmp_path / "store"), "0", "400"], stdout=subprocess.DEVNULL, check=True)
    store.write([(key(-1), values(1))])
    assert store.read([key(-1)])[0] is not None
    assert store.bytes() < 2**20  # what it may hold at most is this process's own affair
    assert not [line for line in told if "full" not in line]


def test_a_process_that_is_killed_loses_at_most_what_it_was_writing(opened: Callable[..., Store], tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "store"), "0", "100000"], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [writer.stdout.readline() for _ in range(50)]
    time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    told += writer.stdout.readlines()
    writer.wait(30)
    writer.stdout.close()
    whole = [int(line) for line in told if line.endswith("\n")]
    store = opened()
    for number, found in zip(whole, store.read([key(n) for n in whole]), strict=True):
        assert found is not None
        np.testing.assert_array_equal(found, values(number))
    store.write([(key(-1), values(1))])
    assert store.read([key(-1)])[0] is not None


def test_what_is_handed_over_is_found_before_and_after_it_is_written() -> None:
    may_write, calls = Event(), list[list[bytes]]()

    def write(entries: Entries) -> None:
        assert may_write.wait(10)
        calls.append([key for key, _ in entries])

    behind, values = WriteBehind(1e6), np.ones((2, 3), np.float32)
    for number in range(5):  # nobody waits for the disk
        behind.add([(bytes([number]), values * number)], write)
    assert not calls
    assert behind.waiting([bytes([number]) for number in range(6)]).keys() == {bytes([number]) for number in range(5)}
    may_write.set()
    behind.flush()
    assert sorted(key for own in calls for key in own) == [bytes([number]) for number in range(5)]
    assert len(calls) <= 2  # the first alone, perhaps, and all that waited meanwhile at once
    assert not behind.waiting([bytes([0])])
    behind.close()


def test_no_more_than_so_much_waits() -> None:
    written = list[bytes]()
    behind = WriteBehind(10)
    behind.add([(b"large", np.ones((9, 9), np.float32))], lambda entries: written.extend(key for key, _ in entries))
    assert written == [b"large"]  # it was waited for
    behind.close()


def test_where_no_thread_can_be_had_what_is_handed_over_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a process ends and others still ask; the next that comes finds a queue that works."""
    written, behind = list[bytes](), WriteBehind(1e6)

    def write(entries: Entries) -> None:
        written.extend(key for key, _ in entries)

    with monkeypatch.context() as ending:
        ending.setattr(behind._thread, "submit", Mock(side_effect=RuntimeError("cannot schedule new futures after interpreter shutdown")))
        behind.add([(b"one", np.ones((1, 1), np.float32))], write)
        assert written == [b"one"]
    behind.add([(b"two", np.ones((1, 1), np.float32))], write)
    behind.close()
    assert written == [b"one", b"two"]


def test_what_fails_beside_is_told_at_the_latest_in_the_end() -> None:
    def write(entries: Entries) -> None:
        raise OSError("no space left")

    behind = WriteBehind(1e6)
    behind.add([(b"one", np.ones((1, 1), np.float32))], write)
    with pytest.raises(OSError, match="no space left"):
        behind.close()


def test_many_threads_fill_a_shared_store_and_all_of_it_lasts(tmp_path: Path) -> None:
    identity = Identity("m", 2, "t", "float32", "float32")
    store = Store.shared(tmp_path / "s", identity, 2**26, print)
    rows = {identity.key(bytes([n, m])): np.full((3, 4), n * 16.0 + m, np.float32) for n in range(16) for m in range(16)}

    def fill(part: list[bytes]) -> None:
        for key in part:
            (found,) = store.through([key], lambda _, key=key: [rows[key]])  # type: ignore[misc]
            np.testing.assert_array_equal(found, rows[key])
            (again,) = store.read([key])
            np.testing.assert_array_equal(again, rows[key])

    keys = list(rows)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, [keys[n::8] for n in range(8)]))
    assert len(store) == 256
    store.close()
    again = Store(tmp_path / "s", identity, 2**26, print)
    for key, found in zip(keys, again.read(keys), strict=True):
        np.testing.assert_array_equal(found, rows[key])
    again.close()


def test_a_file_is_no_store(opened: Callable[..., Store], tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(RecipeError, match="this is a file; name a folder"):
        opened()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("behind", [True, False])
def test_what_is_computed_is_returned_as_it_is_kept(dtype: DType, behind: bool, opened: Callable[..., Store]) -> None:
    identity = replace(IDENTITY, dtype=dtype)
    store = opened(identity)
    store.behind = WriteBehind(1e9) if behind else None
    (first,) = store.through([key(1, identity)], lambda _: [values(1)])
    (waiting,) = store.through([key(1, identity)], lambda _: pytest.fail("it is known"))
    assert len(store) == 1
    (read,) = store.through([key(1, identity)], lambda _: pytest.fail("it is known"))
    np.testing.assert_array_equal(first, read)
    np.testing.assert_array_equal(waiting, read)


def test_what_is_beyond_float16_is_kept_whole_and_told_of_once(opened: Callable[..., Store], told: list[str]) -> None:
    identity = replace(IDENTITY, dtype="float16")
    store, wide, usual = opened(identity), values(1), values(2)
    wide[2, 3] = -70_000
    for number, own in enumerate((wide, wide + 1)):
        (found,) = store.through([key(number, identity)], lambda _, own=own: [own])  # type: ignore[misc]
        np.testing.assert_array_equal(found, own)
    store.write([(key(2, identity), usual)])
    first, last = (store.read([key(number, identity)])[0] for number in (0, 2))
    assert first is not None
    assert last is not None
    np.testing.assert_array_equal(first, wide)
    np.testing.assert_array_equal(last, usual.astype(np.float16))
    assert [line for line in told if "beyond what float16 holds and are kept in float32" in line] == told[:1] == told


@pytest.mark.parametrize("read_before", [False, True])
def test_a_store_that_may_be_no_longer_as_large_lets_go(read_before: bool, opened: Callable[..., Store], told: list[str]) -> None:
    first = opened(largest=2**24)
    first.write((key(n), values(n, rows=200, width=64)) for n in range(150))  # some 8 MB
    if read_before:
        first.read([key(n) for n in range(150)])
    first.close()
    store = opened(largest=2**22)
    for number in range(200, 230):
        store.write([(key(number), values(number, rows=200, width=64))])
    assert store.filling
    assert store.read([key(229)])[0] is not None
    assert store.evicted > 0
    assert store.bytes() <= 2**22
    assert ["what was not read for longest goes" in line for line in told] == [True]


def test_a_store_that_serves_keeps_a_size_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.store.USUAL", 2**20)
    first = Store(tmp_path / "store", IDENTITY, 2**24, print)
    first.write((key(n), values(n, rows=200, width=64)) for n in range(150))
    first.close()
    store = Store.shared(tmp_path / "store", IDENTITY, None, print)
    store.through([key(999)], lambda _: [values(999)])
    assert len(store) > 100  # of one of the size that nobody named some dozen would stay
    store.close()


def test_what_was_read_is_written_down_from_time_to_time(opened: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    store.write([(key(1), values(1))])
    store.read([key(1)])
    assert store.touched
    monkeypatch.setattr("compressor.store.NOTED_EVERY", 0.0)
    store.read([key(1)])
    assert not store.touched


def test_a_row_that_has_no_scale_is_kept_whole(opened: Callable[..., Store], told: list[str]) -> None:
    identity = replace(IDENTITY, dtype="int8")
    store, odd = opened(identity), values(1)
    odd[2, 3] = np.inf
    (found,) = store.through([key(1, identity)], lambda _: [odd])
    np.testing.assert_array_equal(found, odd)
    assert ["beyond what int8 holds" in line for line in told] == [True]


def test_a_store_that_is_locked_elsewhere_is_not_read_beside_its_writer(
    opened: Callable[..., Store], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two containers on one volume are to lmdb, which knows them by their process numbers."""

    def locked(*_: object, **how: object) -> None:
        assert not how.get("readonly")
        raise lmdb.LockError("mdb_txn_begin: Resource temporarily unavailable")

    monkeypatch.setattr(lmdb, "open", locked)
    store = opened()
    assert (store.filling, store.read([key(1)])) == (False, [None])
    assert ["in another container maybe" in line for line in told] == [True]


@pytest.mark.parametrize("share", [0.5, 0.65, 0.7])
def test_batches_of_most_of_the_room_take_turns(share: float, opened: Callable[..., Store], told: list[str]) -> None:
    store = opened(largest=4 * 2**20)
    each = int(share * 4 * 2**20 / 64 / 1024)
    for batch in range(6):
        store.write((key(batch * 64 + n), values(n, rows=each, width=256)) for n in range(64))
        assert store.filling, told
        assert store.read([key(batch * 64 + 63)])[0] is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork_texts_are_computed_and_nothing_is_kept(opened: Callable[..., Store], told: list[str]) -> None:
    store = opened()
    store.behind = WriteBehind(100)  # less than one entry: the second one waits for the thread that writes
    store.through([key(0)], lambda _: [values(0)])
    child = os.fork()
    if not child:
        signal.alarm(20)
        found = [store.through([key(n)], lambda _: [values(n)])[0] for n in (0, 1, 2, 3)]  # noqa: B023
        right = all((own == values(n)).all() for n, own in enumerate(found))
        os._exit(0 if right and len(told) == 1 and "opened before this process was forked" in told[0] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(store) == 1
    assert not told


def shared_in(folder: Path, told: list[str]) -> Store:
    return Store.shared(folder, IDENTITY, 2**24, told.append)


def test_who_shares_a_store_and_wants_another_size_is_told(tmp_path: Path, told: list[str]) -> None:
    first = shared_in(tmp_path / "store", told)
    second, fourth = shared_in(tmp_path / "store", told), Store.shared(tmp_path / "store", IDENTITY, None, told.append)
    assert not told
    third = Store.shared(tmp_path / "store", IDENTITY, 2**25, told.append)
    assert told == [f"{tmp_path / 'store'}: open in this process already, at most 17 MB; that stays, not 34"]
    for store in (first, second, third, fourth):
        store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_who_opens_a_shared_store_after_a_fork_reads_and_fills_it(tmp_path: Path, told: list[str]) -> None:
    store = shared_in(tmp_path / "store", told)
    store.write([(key(0), values(0))])
    child = os.fork()
    if not child:
        signal.alarm(20)
        own = shared_in(tmp_path / "store", told)
        known = own.read([key(0)])[0]
        own.write([(key(1), values(1))])
        own.close()
        os._exit(0 if own is not store and known is not None and (known == values(0)).all() and not told else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert all(own is not None for own in store.read([key(0), key(1)]))  # and the one before the fork goes on
    store.write([(key(2), values(2))])
    assert len(store) == 3
    store.close()
    assert not told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_another_thread_opens_a_store_leaves_the_child_free_to_open_one(tmp_path: Path, told: list[str]) -> None:
    with store_module._OPENING:  # held by the parent, which in the child nobody lets go
        child = os.fork()
        if not child:
            signal.alarm(20)
            shared_in(tmp_path / "store", told).close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_that_closes_its_parents_store_waits_for_no_thread(tmp_path: Path, told: list[str]) -> None:
    may_write, store = Event(), shared_in(tmp_path / "store", told)
    assert store.behind is not None
    store.behind.add([(key(0), values(0))], lambda _: may_write.wait(20) and None)
    child = os.fork()
    if not child:
        signal.alarm(10)
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    may_write.set()
    store.close()


def test_what_is_being_closed_is_opened_afterwards(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks meanwhile waits, where lmdb would refuse to open a file a second time."""
    closing, close = Event(), StoreFile.close

    def slowly(self: StoreFile) -> None:
        closing.set()
        time.sleep(0.2)
        close(self)

    store = shared_in(tmp_path / "store", told)
    monkeypatch.setattr(StoreFile, "close", slowly)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(store.close)
        assert closing.wait(10)
        again = shared_in(tmp_path / "store", told)
        ended.result()
    assert again is not store
    again.write([(key(0), values(0))])
    assert again.read([key(0)])[0] is not None
    again.close()
    assert not told


def test_a_fork_while_somebody_reads_leaves_the_file_alone(tmp_path: Path, told: list[str]) -> None:
    store = shared_in(tmp_path / "store", told)
    with store.file._map.looked_at():
        assert not store.file.forsaken()
    assert store.file.readable
    assert store.file.forsaken()
    assert not store.file.readable
    store.close()


def test_who_opens_a_store_that_was_being_read_at_the_fork_gets_one_that_only_computes(tmp_path: Path, told: list[str]) -> None:
    store = shared_in(tmp_path / "store", told)
    store.write([(key(0), values(0))])
    store._process += 1  # as in a child
    with store.file._map.looked_at():
        assert shared_in(tmp_path / "store", told) is store
        env, store.file.env = store.file.env, None  # which it leaves alone
        with pytest.raises(RecipeError, match="made for layer 6, not 7"):
            Store.shared(tmp_path / "store", replace(IDENTITY, layer=7), 2**24, told.append)
        assert store.read([key(0)]) == [None]
    assert "opened before this process was forked" in told[0]
    store.file.env, store._process = env, os.getpid()
    assert store.read([key(0)])[0] is not None
    for _ in range(2):
        store.close()


def test_a_shared_store_is_closed_with_the_last_that_has_it(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (shared_in(Path("store"), told) for _ in range(2))
    assert first is second
    first.close()
    second.through([key(0)], lambda _: [values(0)])
    assert second.read([key(0)])[0] is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # its folder was named from another place
    second.close()
    monkeypatch.chdir(tmp_path)
    again = shared_in(Path("store"), told)
    assert again is not second
    assert again.read([key(0)])[0] is not None
    again.close()


@pytest.mark.parametrize("about", [b"{no json", b"[1, 2]", b"\xff"])
def test_a_store_whose_note_is_damaged_is_refused(about: bytes, opened: Callable[..., Store]) -> None:
    store = opened()
    with store.file.env.begin(write=True) as txn:
        txn.put(b"about", about)
    store.close()
    with pytest.raises(RecipeError, match="what it says of its model is damaged; name another folder, or remove this one"):
        opened()
