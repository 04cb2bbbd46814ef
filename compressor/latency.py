"""Latencies that can be compared: one text at a time, all variants in turn, so that the machine's drift hits each alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

Run = Callable[[Encoding], object]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per text over texts of real lengths."""

    p50_ms: float
    p90_ms: float


def interleaved(variants: Mapping[str, Run], texts: Sequence[Encoding], rounds: int = 3) -> dict[str, Latency]:
    """Time every variant on every text, `rounds` times in turn; a text's time is its best round, which no neighbour has disturbed."""
    for run in variants.values():
        for text in texts[:3]:
            run(text)
    times = {name: np.full((rounds, len(texts)), np.inf) for name in variants}
    for number in range(rounds):
        for position, text in enumerate(texts):
            for name, run in variants.items():
                start = time.perf_counter_ns()
                run(text)
                times[name][number, position] = (time.perf_counter_ns() - start) / 1e6
    best = {name: t.min(0) for name, t in times.items()}
    return {name: Latency(float(np.percentile(b, 50)), float(np.percentile(b, 90))) for name, b in best.items()}


def sample(texts: Sequence[Encoding], count: int) -> list[Encoding]:
    """Return `count` texts that spread evenly over the split's real lengths."""
    ordered = sorted(texts, key=lambda e: len(e.ids))
    rows = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[row] for row in rows]
