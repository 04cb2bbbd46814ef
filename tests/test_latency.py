from collections.abc import Callable

import numpy as np
import pytest

from compressor.latency import interleaved, requests, sample


def watched(names: str, rows: list[int], rounds: int) -> list[tuple[str, int]]:
    """Every call that a measurement makes, in order."""
    calls: list[tuple[str, int]] = []

    def run(name: str) -> Callable[[int], object]:
        return lambda row: calls.append((name, row))

    found = interleaved({name: run(name) for name in names}, rows, rounds)
    assert set(found) == set(names)
    assert all(0 < latency.p50_ms <= latency.p90_ms for latency in found.values())
    return calls


def test_a_timed_run_follows_an_untimed_one_of_the_same_variant_and_text() -> None:
    calls = watched("abc", [4, 7], rounds=3)
    assert len(calls) == 2 * 3 * 2 * 3
    assert calls[::2] == calls[1::2]


def test_every_variant_reads_every_text_in_every_round_in_changing_order() -> None:
    calls = watched("abc", [4, 7], rounds=3)[::2]
    turns = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all({name for name, _ in turn} == set("abc") and len({row for _, row in turn}) == 1 for turn in turns)
    assert len({tuple(name for name, _ in turn) for turn in turns}) > 1


def test_requests_have_a_batch_of_texts_of_all_lengths_each() -> None:
    lengths = np.random.default_rng(0).permutation(1000).tolist()
    asked = requests(lengths, 8, 16)
    assert [len(rows) for rows in asked] == [16] * 8
    assert sorted(row for rows in asked for row in rows) == sorted(sample(lengths, 128))
    assert all(max(lengths[row] for row in rows) - min(lengths[row] for row in rows) > 500 for rows in asked)
    assert requests(lengths, 8, 16) == asked
    assert requests(lengths, 8, 1) == [[row] for row in sample(lengths, 8)]
    assert [len(rows) for rows in requests([3, 1, 2], 8, 2)] == [2, 1]


@pytest.mark.parametrize("batch", [1, 4])
def test_of_texts_in_groups_each_has_its_share(batch: int) -> None:
    """Whom a cascade's timed texts reach decides its mean time: as many must go on as of all texts do."""
    rng = np.random.default_rng(0)
    lengths, groups = rng.permutation(1000).tolist(), rng.choice(["fast", "teacher", "full"], 1000, p=[0.77, 0.2, 0.03]).tolist()
    asked = [row for rows in requests(lengths, 64, batch, groups) for row in rows]
    assert len(asked) == len(set(asked)) == 64 * batch
    for name in set(groups):
        assert abs([groups[row] for row in asked].count(name) - 64 * batch * groups.count(name) / 1000) < 1
    firsts = sorted(lengths[row] for row in asked if groups[row] == "teacher")
    assert firsts[0] < 100 < 900 < firsts[-1]
    assert sorted(row for rows in requests([3, 1, 2], 8, 1, ["a", "b", "a"]) for row in rows) == [0, 1, 2]


def test_sampled_texts_spread_over_all_lengths() -> None:
    lengths = np.random.default_rng(0).permutation(1000).tolist()
    rows = sample(lengths, 11)
    assert [lengths[row] for row in rows] == [0, 100, 200, 300, 400, 500, 599, 699, 799, 899, 999]
    assert sorted(sample([3, 1, 2], 64)) == [0, 1, 2]
