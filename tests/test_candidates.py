"""What was found for a configuration is kept, whatever happens to the process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.candidates import Evaluator, Results, sizes_of
from compressor.evolution import Candidate, Genome, Space
from compressor.latency import Latency, Run
from compressor.lengths import LengthConfig
from tests.test_families import CONFIGS


def candidate(length: int, share: float = 1.0) -> Candidate:
    return Candidate((length, 1), 0.5, 0.5, 2.0, share=share)


def test_a_result_is_found_once_and_read_back(tmp_path: Path) -> None:
    results, asked = Results(tmp_path / "state" / "evaluated.jsonl"), []

    def find() -> Candidate:
        asked.append(1)
        return candidate(8)

    assert results.of((8, 1), 1.0, find) == results.of((8, 1), 1.0, find) == candidate(8)
    assert results.of((8, 1), 0.25, lambda: candidate(8, 0.25)).share == 0.25
    again = Results(results.path)
    assert again.of((8, 1), 1.0, find) == candidate(8)
    assert again.measured() == [candidate(8)]
    assert len(asked) == 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes_are_known_of_every_family(kind: str, tmp_path: Path) -> None:
    CONFIGS[kind].save_pretrained(tmp_path)
    assert sizes_of(tmp_path) == (3, 32, 96 if kind == "modernbert" else 64)  # whose feed-forward has a third product


def test_a_line_that_a_kill_cut_short_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "evaluated.jsonl"
    results = Results(path)
    for length in (8, 4):
        results.of((length, 1), 1.0, lambda n=length: candidate(n))  # type: ignore[misc]
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    again = Results(path)
    assert again.measured() == [candidate(8)]
    again.of((2, 1), 1.0, lambda: candidate(2))
    assert Results(path).measured() == [candidate(8), candidate(2)]


def test_what_long_texts_alone_lose_counts() -> None:
    bench = object.__new__(Evaluator)
    bench.space, bench.sizes, bench.absolute = Space(6, 512, 1), (384, 1536), True
    bench.lengths, bench.texts = np.array([100, 300, 512]), np.array([60, 20, 20])
    genome = (300, 250, 200, 180, 160, 1)
    costs = [[LengthConfig(lengths, 512, True).macs(384, 1536, n) for n in (100, 300, 512)] for lengths in (genome, bench.space.full)]
    ours, full = (np.dot(cost, (0.6, 0.2, 0.2)) for cost in costs)
    assert bench.macs(genome) == pytest.approx(ours / full)
    assert bench.macs(genome) < 0.7


def bare(tmp_path: Path, latency: str) -> Any:
    """A bench of two layers without a graph or data."""
    bench: Any = object.__new__(Evaluator)
    bench.space, bench.sizes, bench.absolute, bench.metric = Space(2, 16, 0), (8, 16), False, "accuracy"
    bench.lengths, bench.texts, bench.requests = np.array([16]), np.array([1]), [None]
    bench.settings, bench.results = SimpleNamespace(latency=latency), Results(tmp_path / "evaluated.jsonl")
    return bench


def test_a_configuration_is_scored_and_timed_at_its_own_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = bare(tmp_path, "measured"), list[Genome]()
    bench.data = SimpleNamespace(tokens=None, score=lambda logits, metric: logits)
    bench.scorer = SimpleNamespace(logits=lambda tokens, lengths: sum(lengths) / 32)
    bench.timed = SimpleNamespace(logits=lambda tokens, lengths: seen.append(lengths))
    found = iter([(Latency(8, 9, 10), Latency(8, 9, 10)), (Latency(16, 18, 20), Latency(12, 13, 5))])  # the machine is half as fast by now

    def interleaved(runs: dict[str, Run], rows: range, rounds: int) -> dict[str, Latency]:
        for run in runs.values():
            run(0)
        return dict(zip(runs, next(found), strict=True))

    monkeypatch.setattr("compressor.candidates.interleaved", interleaved)
    full, half = bench.measured((16, 16)), bench.measured((8, 4))
    assert seen == [(16, 16), (16, 16), (16, 16), (8, 4)]
    assert (full.score, full.cost, full.median_ms) == (1.0, 8.0, 8.0)
    assert (half.score, half.cost, half.median_ms) == (12 / 32, 2.0, 6.0)  # 8 · 5/20 and 8 · 12/16


def test_of_proposals_the_nearest_to_full_length_is_rated_best(tmp_path: Path) -> None:
    bench = bare(tmp_path, "macs")
    bench._divergence = lambda genome, share: 1 / sum(genome)
    near, far = bench.rated([(16, 8), (4, 2)], 0.25)
    assert (near.score, far.score, near.share) == (-1 / 24, -1 / 6, 0.25)
    assert near.cost == bench.macs((16, 8)) > far.cost


def test_what_is_not_read_costs_nothing(tmp_path: Path) -> None:
    bench, whole = bare(tmp_path, "macs"), LengthConfig((16, 16), 16)
    bench.space = Space(2, 16, 0, truncates=True)
    assert bench.macs((8, 16, 16)) == pytest.approx(whole.macs(8, 16, 8) / whole.macs(8, 16, 16))


def test_proposals_are_held_against_full_length_at_the_cost_that_measurements_tell(tmp_path: Path) -> None:
    bench, seen = bare(tmp_path, "macs"), list[tuple[Any, Any]]()

    def divergence(ours: Any, theirs: Any) -> float:
        seen.append((ours, theirs))
        return 0.0

    part = SimpleNamespace(tokens=None, divergence=divergence)
    bench.parts, bench.data = {}, SimpleNamespace(part=lambda _: part)
    bench.scorer = SimpleNamespace(logits=lambda _, lengths: lengths)
    bench.rated([(8, 8), (4, 4)], 0.25)
    assert seen == [((8, 8), (16, 16)), ((4, 4), (16, 16))]
    timed = bare(tmp_path / "timed", "measured")
    timed._divergence = lambda *_: 0.0
    timed.results.of((16, 16), 1.0, lambda: Candidate((16, 16), 1.0, 1.0, 8.0))
    (half,) = timed.rated([(8, 8)], 0.25)
    assert half.cost == pytest.approx(6.0)  # a part of each run is the same at any length
