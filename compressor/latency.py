"""Latencies that can be compared: one request at a time, all variants in turn, so that the machine's drift hits each alike."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from compressor.tokens import Floats, Tokens

if TYPE_CHECKING:
    from compressor.encoded import Encoded

Run = Callable[[int], object]
"""Answers one request, given its number."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a request over texts of real lengths."""

    p50_ms: float
    p90_ms: float
    mean_ms: float


def interleaved(variants: Mapping[str, Run], rows: Sequence[int], rounds: int = 3) -> dict[str, Latency]:
    """Time every variant on every request; its time is its best round, which nothing else on the machine has disturbed."""
    best = {name: t.min(0) for name, t in timed(variants, rows, rounds).items()}
    return {name: Latency(float(np.percentile(b, 50)), float(np.percentile(b, 90)), float(b.mean())) for name, b in best.items()}


def timed(variants: Mapping[str, Run], rows: Sequence[int], rounds: int) -> dict[str, Floats]:
    """Return each variant's milliseconds (rounds, rows), all variants in turn and each time in another order.

    A timed run follows an untimed one of the same variant: its weights are then in the caches, as when one model is served.
    Without that, a variant paid for its neighbours: of five equal INT8 graphs after a float one, the first read 1.7x the fifth.
    """
    rng, names = random.Random(0), list(variants)
    times: dict[str, Floats] = {name: np.full((rounds, len(rows)), np.inf) for name in names}
    for number in range(rounds):
        for position, row in enumerate(rows):
            for name in rng.sample(names, len(names)):
                variants[name](row)
                start = time.perf_counter_ns()
                variants[name](row)
                times[name][number, position] = (time.perf_counter_ns() - start) / 1e6
    return times


def tokens_of(data: "Encoded", asked: Sequence[Sequence[int]]) -> list[Tokens]:
    """Return what is read for each request, given its examples' rows: all their windows."""
    windows = data.windows.of_examples(len(data.examples))
    return [data.tokens.rows([window for row in rows for window in windows[row]]) for rows in asked]


def requests(lengths: Sequence[int], count: int, batch: int, groups: Sequence[str] | None = None) -> list[list[int]]:
    """Return the rows of `count` requests of `batch` texts each, drawn alike each time from texts that spread evenly over these lengths.

    Of texts in `groups`, as of those that each member of a cascade answers, each group has its share.
    """
    rows = sample(lengths, count * batch) if groups is None else _of_each(lengths, count * batch, groups)
    if batch > 1:
        random.Random(0).shuffle(rows)
        rows += list(islice(cycle(rows), -len(rows) % batch))  # a smaller request would take less than what is told of
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def _of_each(lengths: Sequence[int], count: int, groups: Sequence[str]) -> list[int]:
    """Return the rows of `count` texts, of each group as its share asks for (largest remainders), spread evenly over its lengths."""
    members = {name: [row for row, own in enumerate(groups) if own == name] for name in sorted(set(groups))}
    exact = {name: min(count, len(groups)) * len(rows) / len(groups) for name, rows in members.items()}
    most_lacking = sorted(exact, key=lambda name: math.floor(exact[name]) - exact[name])
    left = min(count, len(groups)) - sum(map(math.floor, exact.values()))
    wanted = {name: math.floor(exact[name]) + (name in most_lacking[:left]) for name in exact}
    return [members[name][place] for name in members for place in sample([lengths[row] for row in members[name]], wanted[name])]


def sample(lengths: Sequence[int], count: int) -> list[int]:
    """Return the rows of `count` texts that spread evenly over these lengths; of one alone, the middle one's."""
    ordered = sorted(range(len(lengths)), key=lambda row: lengths[row])
    if min(count, len(ordered)) == 1:
        return [ordered[len(ordered) // 2]]
    return [ordered[i] for i in np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)]
