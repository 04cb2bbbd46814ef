from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor import measure
from compressor.answering import QuestionAnswering
from compressor.data import Example
from compressor.encoded import Encoded
from compressor.latency import interleaved, requests, sample, tokens_of
from compressor.measure import STUDENT, TEACHER
from compressor.tokens import Tokens
from compressor.windows import Windows


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
    whole = requests([3, 1, 2], 8, 2)
    assert [len(rows) for rows in whole] == [2, 2], "some texts are asked twice, none of fewer at once"
    assert {row for rows in whole for row in rows} == {0, 1, 2}
    assert [len(rows) for rows in requests([3, 1, 2], 8, 7)] == [7]


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


def test_each_row_is_timed_in_its_graph_on_its_own_tokens_at_its_own_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[object, ...]]()

    class Timed:
        def __init__(self, path: Path, threads: int, *, single: bool, pad_id: int, backend: str = "onnxruntime") -> None:
            self.facts = str(path), threads, single, backend

        def logits(self, tokens: object, lengths: object = None) -> None:
            asked.append((*self.facts, tokens, lengths))

    monkeypatch.setattr(measure, "Graph", Timed)
    monkeypatch.setattr(measure, "tokens_of", lambda data, rows: [data.name] * len(rows))
    recipe: Any = SimpleNamespace(target=SimpleNamespace(threads=3))
    inputs: Any = {"float_graph": SimpleNamespace(path=Path("floats"), metrics={"single": True})}
    data: Any = {kind: SimpleNamespace(name=kind, pad_id=0) for kind in ("teacher", "checkpoint")}
    lengths = {TEACHER: None, STUDENT: None, "INT8 fast": (4, 2)}
    for run in measure._runs(recipe, inputs, Path("bundle"), data, lengths, [[0]], "openvino").values():
        run(0)
    assert asked == [
        ("floats/teacher.onnx", 3, False, "onnxruntime", "teacher", None),
        ("floats/model.onnx", 3, False, "onnxruntime", "checkpoint", None),
        ("bundle/model.onnx", 3, True, "openvino", "checkpoint", (4, 2)),
    ]


def test_a_time_is_in_milliseconds_and_that_of_the_best_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0], dict.fromkeys(range(10), 0)
    monkeypatch.setattr("compressor.latency.time", SimpleNamespace(perf_counter_ns=lambda: now[0]))

    def run(row: int) -> None:
        number, calls[row] = calls[row], calls[row] + 1
        disturbed = (5, 0, 3)[number // 2]  # of three rounds the second is the best
        now[0] += 10**6 * (row**2 + disturbed if number % 2 else 50)  # the first run of two is not timed

    found = interleaved({"a": run}, range(10), 3)["a"]
    assert (found.p50_ms, found.p90_ms, found.mean_ms) == (pytest.approx(20.5), pytest.approx(65.7), pytest.approx(28.5))


def test_a_request_reads_all_windows_of_its_texts() -> None:
    tokens = Tokens(np.arange(9, dtype=np.int32), np.zeros(9, np.int8), np.array([0, 3, 7, 9]))
    windows = Windows(tokens, np.array([0, 0, 1]), np.zeros((9, 0), np.int32))  # the first two are one text's
    data = Encoded(QuestionAnswering(), windows, np.zeros((3, 2), np.int64), (), [Example("a"), Example("b")], 0)
    assert data.lengths.tolist() == [7, 2]
    assert [asked.lengths.tolist() for asked in tokens_of(data, [[0], [1, 0]])] == [[3, 4], [2, 3, 4]]


def test_a_new_text_is_another_one_each_time_and_a_known_one_never() -> None:
    tokens = Tokens(np.arange(100, 120, dtype=np.int32), np.zeros(20, np.int8), np.array([0, 8, 20]))
    data = Encoded(QuestionAnswering(), Windows.whole(tokens), np.zeros((2, 2), np.int64), (), [Example("a"), Example("b")], 0)
    seen = list[list[int]]()
    runtime: Any = SimpleNamespace(logits=lambda asked: seen.append(asked.ids.tolist()))
    new, known = (measure._reads(runtime, data, [[0], [1]], new=new) for new in (True, False))
    for run in (new, known, new, known):
        run(0)
    assert seen[1] == seen[3] == list(range(100, 108))
    assert seen[0] != seen[1] != seen[2] != seen[0]
    assert [len(ids) for ids in seen] == [8] * 4
