"""A bundle in OpenVINO: the same answers, or none."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import machine
from compressor.backends import _worse
from compressor.bench import bench
from compressor.bilstm import bilstm_over
from compressor.errors import RecipeError, UnfitError
from compressor.graphs import export_graph
from compressor.loader import load_recipe
from compressor.modeling import PlainModel
from compressor.plan import check_extras
from compressor.runtime import Runtime
from compressor.session import Graph, check_agreement
from compressor.settings.distilling import BiLSTM
from tests.conftest import compress, sentences, write_project
from tests.test_families import model_of

TEXTS = [text for text, _ in sentences(40, 7)]


@pytest.fixture(scope="module")
def floats(built: Path) -> Path:
    return next(built.glob("artifacts/export-*/model.onnx"))


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="openvino")


def test_a_backend_that_scores_less_on_validation_is_left_out() -> None:
    def of(score: float) -> Any:
        return SimpleNamespace(logits=lambda tokens, lengths: score)

    data: Any = SimpleNamespace(tokens=None, score=lambda logits, metric: logits)
    near, far = ({"onnxruntime": of(0.9), "openvino": of(score)} for score in (0.898, 0.89))
    assert _worse(near, data, None, "accuracy") == {}
    told = "openvino scores 0.8900 where onnxruntime scores 0.9000 on validation"
    assert _worse(far, data, None, "accuracy") == {"openvino": {"refused": told}}
    assert _worse({"openvino": of(0.1)}, data, None, "accuracy") == {}


def _labels(told: str) -> list[str]:
    return [line.split("\t")[0] for line in told.splitlines()]


@pytest.mark.parametrize("lengths", [None, (20, 9), (1, 1)])
def test_a_float_graph_answers_alike_in_both_whatever_came_before(floats: Path, built: Path, lengths: tuple[int, ...] | None) -> None:
    """Each text is read once, as it comes: 2026.4 answers the first longer text wrongly when a branch is chosen at run time."""
    tokens = Runtime(built / "artifacts/dist/tiny").tokens(TEXTS)
    usual, other = (Graph(floats, 2, single=False, backend=name) for name in ("onnxruntime", "openvino"))
    found, expected = (np.concatenate([graph.run(text, lengths) for text in tokens]) for graph in (other, usual))
    np.testing.assert_allclose(found, expected, atol=0.02)  # OpenVINO computes in bfloat16 where the processor does
    joined = tokens[0].joined(tokens)
    np.testing.assert_allclose(other.logits(joined, lengths), expected, atol=0.02)


def test_a_bundle_answers_alike_in_both(built: Path) -> None:
    bundle = built / "artifacts/dist/tiny"
    usual, other = Runtime(bundle), Runtime(bundle, backend="openvino")
    assert (usual.backend, other.backend) == ("onnxruntime", "openvino")
    assert [a.label for a in other.predict(TEXTS)] == [a.label for a in usual.predict(TEXTS)]
    for mine, theirs in zip(other.predict(TEXTS), usual.predict(TEXTS), strict=True):
        assert mine.score == pytest.approx(theirs.score, abs=0.05)


def test_a_graph_that_is_answered_otherwise_is_refused(floats: Path, tmp_path: Path) -> None:
    """The first branch is taken always, so a graph whose first branch is wrong stands for whatever a backend reads otherwise."""
    model = onnx.load(floats)
    bias = next(i for i in model.graph.initializer if i.name.endswith("classifier.bias"))
    graph = Graph(floats, single=False, backend="openvino")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 5, bias.name))
    graph.path = tmp_path / "other.onnx"
    onnx.save(model, graph.path)
    with pytest.raises(UnfitError, match=r"other.onnx: openvino answers this graph otherwise: logits differ by [45]"):
        check_agreement(graph, 32)


def test_a_graph_that_a_backend_answers_otherwise_beside_longer_texts_is_refused(tmp_path: Path) -> None:
    """OpenVINO 2026.4 reads the reverse half of an LSTM from the padding on."""
    path = tmp_path / "model.onnx"
    export_graph(PlainModel(bilstm_over(model_of("bert"), BiLSTM(hidden_size=12))).eval(), path)
    graph = Graph(path, single=True, backend="openvino")
    check_agreement(graph, 32)
    graph.single = False
    with pytest.raises(UnfitError, match="openvino answers this graph otherwise beside longer texts"):
        check_agreement(graph, 32)


def test_a_file_that_reads_one_text_a_run_is_asked_for_no_more(tmp_path: Path) -> None:
    """As others export: bench runs them with a batch of one."""
    path = tmp_path / "model.onnx"
    head = '<ir_version: 8, opset_import: ["" : 17]> mean (int64[1, tokens] input_ids) => (float[1, 1] logits)'
    body = "{ ids = Cast<to = 1>(input_ids) logits = ReduceMean<axes = [1], keepdims = 1>(ids) }"
    onnx.save(onnx.parser.parse_model(f"{head} {body}"), path)
    check_agreement(Graph(path, single=False, backend="openvino"), 32)


def test_auto_measures_and_keeps_the_faster(built: Path, tmp_path: Path) -> None:
    project = shutil.copytree(built, tmp_path / "project")
    for chosen in ("auto", "openvino"):
        done = compress("run", "tiny.yaml", "--set", f"target.backend={chosen}", cwd=project)
        assert done.returncode == 0, done.stderr
        bundle = project / "artifacts/dist/tiny"
        told = json.loads((bundle / "manifest.json").read_text())
        times = {name: facts["p50_ms"] for name, facts in told["backends"].items()}
        assert set(times) == {"onnxruntime", "openvino"}
        assert told["backend"] == (min(times, key=times.__getitem__) if chosen == "auto" else "openvino")
        assert Runtime(bundle).backend == told["backend"]
        findings = json.loads((bundle / "metrics.json").read_text())["findings"]
        other = ({"onnxruntime", "openvino"} - {told["backend"]}).pop()
        assert any(line.startswith(f"The bundle runs in {told['backend']}: {other} takes ") for line in findings)


def test_bench_tells_backends_apart_and_predict_takes_one(built: Path) -> None:
    bundle = built / "artifacts/dist/tiny"
    rows = bench([bundle], None, ["1x8"], [1], ["full"], ["onnxruntime", "openvino"], 1)["rows"]
    assert [row["model"] for row in rows] == ["tiny onnxruntime full", "tiny openvino full"]
    (built / "texts.txt").write_text("\n".join(TEXTS[:3]))
    usual, other = (
        _labels(compress("predict", str(bundle), "texts.txt", *more, cwd=built).stdout) for more in ((), ("--backend", "openvino"))
    )
    assert usual == other != []


def test_a_backend_that_is_none_is_refused(built: Path) -> None:
    with pytest.raises(UnfitError, match="no backend 'openvno'; choose onnxruntime or openvino"):
        Runtime(built / "artifacts/dist/tiny", backend="openvno")  # type: ignore[arg-type]


def test_a_missing_extra_is_told_before_anything_runs(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path, tiny_model)
    monkeypatch.setattr("compressor.machine.installed", lambda _: False)
    for section in ("target", "quantize"):
        backend = {"target": "openvino", "quantize": "nncf"}[section]
        recipe = load_recipe(tmp_path / "tiny.yaml", [f"{section}.backend={backend}"])
        with pytest.raises(UnfitError, match=rf"{section}.backend {backend} needs the \[{backend}\] extra: pip install"):
            check_extras(recipe)
    check_extras(load_recipe(tmp_path / "tiny.yaml", ["target.backend=auto"]))


def test_without_openvino_a_runtime_says_what_to_install(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(UnfitError, match=r"backend openvino needs the \[openvino\] extra: pip install"):
        Runtime(built / "artifacts/dist/tiny", backend="openvino")


def test_a_graph_that_openvino_cannot_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UnfitError, match=r"model.onnx: openvino cannot read this graph: .*; choose backend onnxruntime"):
        Graph(tmp_path / "model.onnx", single=False, backend="openvino")


def test_a_store_is_read_in_onnxruntime(built: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave out the store, or the backend"):
        Runtime(built / "artifacts/dist/tiny", store=tmp_path, backend="openvino")


def test_installed_says_what_is_there() -> None:
    assert machine.installed("onnxruntime")
    assert not machine.installed("no_such_package")
