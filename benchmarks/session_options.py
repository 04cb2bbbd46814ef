"""Which options of an onnxruntime session make a bundle faster here: each against the usual ones, in turn, on one and on two threads.

    python -m benchmarks.session_options artifacts/dist/quickstart

Times are medians over rounds of the ratio to the usual options in the same round; processor seconds count what waiting threads spin away.
A stream of texts, one a run, is read by as many workers as there are cores: by one session, or one each, kept to a core or not.
One text alone is read by one thread and by two, at several lengths, of two sessions: the threads of more would spin beside each other.
"""

import argparse
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.record import conclude
from compressor import machine
from compressor.bundles import verify
from compressor.session import DISABLED, SMALLEST_VOCABULARY, options_of
from compressor.tokens import Floats, Tokens

SHAPES = ((1, 32), (1, 128), (8, 128))
"""Texts and their tokens, or as many as the bundle reads if those are fewer."""
THREADS = (1, 2)
ROUNDS, RUNS = 45, 12
ALONE = (8, 16, 24, 32, 48, 64, 96, 128)
"""Tokens of one text, as far as the bundle reads."""
STREAM, STREAM_LONGEST = 256, 64
"""Texts of a stream, and the tokens of its longest; its shortest has 8."""
Options = ort.SessionOptions


def _entry(key: str, value: str) -> Callable[[Options], None]:
    return lambda options: options.add_session_config_entry(key, value)


def _set(**attributes: Any) -> Callable[[Options], None]:
    def change(options: Options) -> None:
        for name, value in attributes.items():
            setattr(options, name, value)

    return change


CHANGES: dict[str, Callable[[Options], None]] = {
    "usual": lambda options: None,
    "usual, again": lambda options: None,  # how far two equal sessions lie apart
    "no spinning": _entry("session.intra_op.allow_spinning", "0"),
    "spinning ends with a run": _entry("session.force_spinning_stop", "1"),
    "denormals as zero": _entry("session.set_denormal_as_zero", "1"),
    "no memory arena": _set(enable_cpu_mem_arena=False),
    "no memory pattern": _set(enable_mem_pattern=False),
    "no packed weights": _entry("session.disable_prepacking", "1"),
    "work in smaller blocks": _entry("session.dynamic_block_base", "4"),
}
PINNED = {"second thread on its own core": _entry("session.intra_op_thread_affinities", "2")}
"""The thread that calls is one of the two; the other is the session's own."""


def main() -> None:
    """Time every option at every shape, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trial", action="store_true", help="two rounds; records nothing")
    chosen = parser.parse_args()
    manifest, rounds = verify(chosen.bundle), 2 if chosen.trial else ROUNDS
    graph = chosen.bundle / "model.onnx"
    rows = [row for threads in THREADS for row in compare(graph, manifest, threads, rounds)]
    found = {"rows": rows, "alone": alone(graph, manifest, rounds), "streams": streams(graph, manifest, rounds)}
    conclude("session_options", {"bundle": manifest["name"], "isa": machine.level(), "rounds": rounds, **found}, chosen.trial)


def compare(graph: Path, manifest: Mapping[str, Any], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return for each option and shape: milliseconds, and time and processor seconds over those of the usual options."""
    opened = {name: _opened(graph, threads, change) for name, change in {**CHANGES, **(PINNED if threads > 1 else {})}.items()}
    found = list[dict[str, Any]]()
    for batch, length in [(texts, min(tokens, manifest["max_length"])) for texts, tokens in SHAPES]:
        times = _timed(opened, _feed(opened["usual"], batch, length), rounds)
        for name, own in times.items():
            wall, processor = np.median(own / times["usual"], axis=0)
            row = {"threads": threads, "shape": f"{batch}x{length}", "option": name, "ms": float(np.median(own[:, 0])) * 1000}
            found.append(row | {"time_over_usual": round(float(wall), 3), "processor_over_usual": round(float(processor), 3)})
            print(json.dumps(found[-1]), flush=True)
    return found


def alone(graph: Path, manifest: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return what two threads take for one text over what one takes, by its tokens."""
    opened = {str(threads): _opened(graph, threads, CHANGES["usual"]) for threads in THREADS}
    found = list[dict[str, Any]]()
    for tokens in [tokens for tokens in ALONE if tokens <= manifest["max_length"]]:
        times = _timed(opened, _feed(opened["1"], 1, tokens), rounds)
        ratio = float(np.median(times["2"][:, 0] / times["1"][:, 0]))
        row = {"tokens": tokens, "ms": float(np.median(times["1"][:, 0])) * 1000}
        found.append(row | {"two_threads_over_one": round(ratio, 3)})
        print(json.dumps(found[-1]), flush=True)
    return found


def streams(graph: Path, manifest: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return what a stream takes for every way to share sessions and cores, over one session that the workers share, on any core."""
    cores = sorted(os.sched_getaffinity(0))
    opened = [_opened(graph, 1, CHANGES["usual"]) for _ in cores]
    lengths = np.random.default_rng(0).integers(8, min(STREAM_LONGEST, manifest["max_length"]) + 1, STREAM)
    feeds = [_feed(opened[0], 1, int(length)) for length in lengths]
    ways = [(own, pinned) for own in (False, True) for pinned in (False, True)]
    times = dict[tuple[bool, bool], list[float]]((way, []) for way in ways)
    for number in range(rounds):
        for own, pinned in random.Random(number).sample(ways, len(ways)):
            times[own, pinned].append(_streamed(opened if own else opened[:1], feeds, cores, pinned=pinned))
    found = list[dict[str, Any]]()
    for (own, pinned), taken in times.items():
        ratio = float(np.median(np.array(taken) / times[False, False]))
        row = {"workers": len(cores), "sessions": len(cores) if own else 1, "kept_to_cores": pinned}
        found.append(row | {"texts_per_second": STREAM / float(np.median(taken)), "time_over_usual": round(ratio, 3)})
        print(json.dumps(found[-1]), flush=True)
    return found


def _streamed(opened: Sequence[ort.InferenceSession], feeds: Sequence[Any], cores: Sequence[int], *, pinned: bool) -> float:
    """Return the seconds that a worker for each core take for all texts."""
    numbers, sessions = itertools.count(), dict[int, ort.InferenceSession]()

    def begin() -> None:
        number = next(numbers)
        sessions[get_ident()] = opened[number % len(opened)]
        if pinned:
            os.sched_setaffinity(0, {cores[number]})  # of the thread that calls

    with ThreadPoolExecutor(len(cores), initializer=begin) as pool:
        list(pool.map(lambda _: time.sleep(0.01), cores))  # all workers are there
        start = time.perf_counter()
        list(pool.map(lambda feed: sessions[get_ident()].run(None, feed), feeds))
        return time.perf_counter() - start


def _opened(graph: Path, threads: int, change: Callable[[Options], None]) -> ort.InferenceSession:
    options = options_of(threads)
    change(options)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], **DISABLED)


def _feed(opened: ort.InferenceSession, batch: int, length: int) -> dict[str, Any]:
    """Return a batch of random texts, none of them padded."""
    ids = np.random.default_rng(0).integers(0, SMALLEST_VOCABULARY, batch * length, dtype=np.int32)
    texts = Tokens(ids, np.zeros_like(ids, np.int8), np.arange(0, batch * length + 1, length))
    names = {one.name for one in opened.get_inputs()}
    return {name: array for name, array in texts.padded(0).items() if name in names}


def _timed(opened: Mapping[str, ort.InferenceSession], feed: Mapping[str, Any], rounds: int) -> dict[str, Floats]:
    """Return for each session (rounds, 2): seconds, and processor seconds of the whole process, of a run.

    The first runs of a turn are not counted: until then the threads of the session before may still be spinning.
    """
    rng, found = random.Random(0), {name: np.zeros((rounds, 2)) for name in opened}
    for number in range(rounds):
        for name in rng.sample(list(opened), len(opened)):
            for _ in range(RUNS):
                opened[name].run(None, feed)
            start = time.perf_counter(), time.process_time()
            for _ in range(RUNS):
                opened[name].run(None, feed)
            found[name][number] = (time.perf_counter() - start[0]) / RUNS, (time.process_time() - start[1]) / RUNS
    return found


if __name__ == "__main__":
    main()
