"""`compress bench`: every variant on every workload, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.bench import _check, _runner, _told, batch_of, bench, model_of
from compressor.errors import BundleError, RecipeError
from compressor.latency import Run
from compressor.runtime import Runtime
from compressor.session import Graph
from tests.conftest import compress, sentences

TEXTS = [text for text, _ in sentences(100, 5)]


@pytest.fixture(scope="session")
def bundle(built: Path) -> Path:
    return built / "artifacts/dist/tiny"


@pytest.fixture(scope="session")
def teacher(built: Path) -> Path:
    return next(built.glob("artifacts/export-*/teacher.onnx"))


def test_every_variant_is_timed_on_every_workload_at_every_number_of_threads(bundle: Path, teacher: Path) -> None:
    found = bench([teacher, bundle], TEXTS, ["2x8"], [1, 2], ["full", "min"], [], 2)
    variants = ["teacher.onnx", "tiny full", "tiny min"]
    workloads = ["one by one", "all at once", "2x8"]
    expected = [(v, w, t) for t in (1, 2) for w in workloads for v in variants]
    assert [(row["model"], row["workload"], row["threads"]) for row in found["rows"]] == expected
    for row in found["rows"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"]
        assert row["p99_ms"] is None  # of so few times
        assert row["texts_per_second"] > 0
        assert (row["speedup"] == pytest.approx(1)) == (row["model"] == "teacher.onnx")
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["onnxruntime"]


def test_inputs_of_32_bits_are_given_what_they_take(teacher: Path, tmp_path: Path) -> None:
    """As other exporters write them."""
    model, wide = onnx.load(teacher), {i.name: f"{i.name}_wide" for i in onnx.load(teacher).graph.input}
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    for place, (name, other) in enumerate(wide.items()):
        model.graph.input[place].type.tensor_type.elem_type = onnx.TensorProto.INT32
        model.graph.node.insert(0, onnx.helper.make_node("Cast", [name], [other], to=onnx.TensorProto.INT64))
    onnx.save(model, tmp_path / "narrow.onnx")
    texts = batch_of("2x8").batches[0]
    narrow, usual = (Graph(path, single=False).logits(texts) for path in (tmp_path / "narrow.onnx", teacher))
    np.testing.assert_array_equal(narrow, usual)


def test_a_cascade_is_as_fast_as_its_mean_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most texts are easy: the median tells nothing of those that go on."""
    found = {"first": (8, 8, 8, 16), "point": (2, 2, 2, 10), "cascade": (1, 1, 1, 17)}
    times = {name: np.array([own], float) for name, own in found.items()}
    monkeypatch.setattr("compressor.bench.timed", lambda *_: times)
    runs: dict[str, Run] = dict.fromkeys(times, lambda row: None)
    rows = _told(runs, {"cascade"}, batch_of("1x8"), 1, 1)
    assert [row["speedup"] for row in rows] == [1, 4, 2]


def test_without_points_a_bundle_is_timed_at_all_of_them(bundle: Path) -> None:
    rows = bench([bundle], None, ["1x8"], [1], [], [], 1)["rows"]
    assert [row["model"] for row in rows] == [f"tiny {name}" for name in Runtime(bundle).points]


def test_models_of_one_name_are_told_apart(bundle: Path, built: Path) -> None:
    graphs = [next(built.glob(f"artifacts/{stage}-*/model.onnx")) for stage in ("export", "quantize")]
    assert [row["model"] for row in bench(graphs, None, ["1x8"], [1], [], [], 1)["rows"]] == [str(path) for path in graphs]


def test_a_shape_of_a_graph_that_no_bundle_serves_is_one_run(teacher: Path) -> None:
    graph, workload, runs = Graph(teacher, single=False), batch_of("32x32"), list[int]()
    graph._run = lambda opened, tokens, lengths: runs.append(len(tokens)) or np.zeros((len(tokens), 2))  # type: ignore[method-assign,func-returns-value]
    _runner(graph, workload, None, whole=True)(0)
    assert runs == [32]
    _check(model_of(teacher, []), graph, workload)
    assert runs[1:] == [32]
    _runner(graph, workload, None, whole=False)(0)
    assert runs[2:] == [16, 16]  # as a bundle answers: of at most 512 tokens


def test_a_shape_is_a_batch_of_texts_of_equal_length() -> None:
    (batch,) = batch_of("8x5").batches
    np.testing.assert_array_equal(batch.lengths, [5] * 8)
    assert batch_of("8x5").texts == 8


def test_of_a_pair_the_first_text_is_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not batch_of("2x128").batches[0].segments.any()
    for shape, first in (("2x128", 16), ("1x8", 2), ("1x1", 1)):
        (batch,) = batch_of(shape, pairs=True).batches
        for text in batch:
            assert text.segments.tolist() == [int(place >= first) for place in range(len(text.ids))]


@pytest.mark.parametrize("shape", ["8", "0x5", "8x0", "8*5", "8x5x2", "axb", ""])
def test_what_is_no_shape_is_refused(shape: str) -> None:
    with pytest.raises(RecipeError, match="is no shape; write texts x tokens, as 8x128"):
        batch_of(shape)


def test_what_does_not_fit_is_refused_in_one_line(bundle: Path, teacher: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("not a graph")
    refused = [
        ([teacher], TEXTS, [], [], "texts need a bundle"),
        ([bundle], [], [], [], "there are no texts to time"),
        ([bundle], TEXTS, ["1x33"], [], "reads 32 tokens at most; choose a shorter shape"),
        ([teacher], None, ["1x65"], [], "teacher.onnx: onnxruntime cannot run 1x65 in it"),
        ([bundle], None, ["99999999999x32"], [], "has more than 100,000,000 tokens; choose a smaller one"),
        ([broken], None, ["1x8"], [], "broken.onnx: onnxruntime cannot open it"),
        ([tmp_path / "absent.onnx"], None, ["1x8"], [], "absent.onnx: no such file"),
    ]
    for paths, texts, shapes, points, message in refused:
        with pytest.raises(RecipeError, match=message):
            bench(paths, texts, shapes, [1], points, [], 1)
    with pytest.raises(BundleError, match="no operating point 'quick'; this bundle has full, "):
        bench([bundle], None, ["1x8"], [1], ["quick"], [], 1)


def test_without_texts_and_shapes_what_all_models_read_is_timed(bundle: Path, teacher: Path) -> None:
    assert [row["workload"] for row in bench([bundle], None, [], [1], ["full"], [], 1)["rows"]] == ["1x32"]
    with pytest.raises(RecipeError, match="onnxruntime cannot run 1x128"):
        bench([teacher], None, [], [1], [], [], 1)  # this one has 64 positions, and nothing that says so


def test_the_command_line_times_lines_of_a_file(bundle: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ("bench", str(teacher), str(bundle), "--texts", "lines.txt", "--point", "full", "--rounds", "1", "--format", "json")
    done = compress(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["workload"] for row in json.loads(done.stdout)["rows"]] == ["one by one"] * 2 + ["all at once"] * 2


def test_the_command_line_says_in_one_line_what_onnxruntime_refuses(teacher: Path, tmp_path: Path) -> None:
    done = compress("bench", str(teacher), "--shape", "1x65", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
