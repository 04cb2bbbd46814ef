"""Backends of the quantize stage: what each writes, how `auto` chooses, what is said when one is missing."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import machine, summary
from compressor.artifact import Artifact
from compressor.bundles import check_isa
from compressor.classification import TextClassification
from compressor.environments import NEURAL_COMPRESSOR
from compressor.errors import StageError, UnfitError
from compressor.inputs import Inputs, Kind
from compressor.loader import load_recipe
from compressor.products import count_products, products
from compressor.progress import Progress
from compressor.quantizers import QUANTIZERS, Feed, Quantizer, dynamic, smoothed, static
from compressor.runtime import Runtime
from compressor.session import Graph
from compressor.settings.serving import Target
from compressor.splits import MODEL, Splits
from compressor.stages import quantize
from compressor.stages.quantize import choose
from tests.conftest import command, compress, sentences

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = [text for text, _ in sentences(24, 9)]


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "project"))


def quantized(project: Path, backend: str) -> Artifact:
    """The artifact of the quantize stage with a backend, and its bundle in place."""
    before = set(project.glob("artifacts/quantize-*"))
    done = compress("run", "tiny.yaml", "--set", f"quantize.backend={backend}", "--set", "quantize.calibration=24", cwd=project)
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback|WARNING|INFO|Statistics|W:onnx", done.stdout + done.stderr)
    (made,) = set(project.glob("artifacts/quantize-*")) - before
    return Artifact(made)


@pytest.mark.parametrize(
    ("scores", "milliseconds", "wanted", "chosen"),
    [
        ({"onnxruntime": 0.9}, {}, 0.8, "onnxruntime"),
        ({"onnxruntime": 0.900, "nncf": 0.902}, {"onnxruntime": 1.0, "nncf": 1.1}, 0.8, "onnxruntime"),
        ({"onnxruntime": 0.900, "nncf": 0.902}, {"onnxruntime": 1.1, "nncf": 1.0}, 0.8, "nncf"),
        ({"onnxruntime": 0.900, "nncf": 0.904}, {"onnxruntime": 1.0, "nncf": 1.1}, 0.8, "nncf"),
        ({"onnxruntime": 0.904, "nncf": 0.900}, {"onnxruntime": 1.1, "nncf": 1.0}, 0.8, "onnxruntime"),
        ({"onnxruntime": 0.900, "nncf": 0.902}, {"onnxruntime": 1.0, "nncf": 1.1}, 0.901, "nncf"),  # the faster one loses too much
        ({"onnxruntime": 0.900, "nncf": 0.902}, {"onnxruntime": 1.0, "nncf": 1.1}, 0.95, "onnxruntime"),  # as both do
    ],
)
def test_the_fastest_of_those_that_answer_alike_is_kept(
    scores: dict[str, float], milliseconds: dict[str, float], wanted: float, chosen: str
) -> None:
    assert choose(scores, milliseconds, wanted) == chosen


ISOLATED = pytest.param(
    "neural-compressor",
    marks=pytest.mark.skipif(not NEURAL_COMPRESSOR.is_made(), reason="its environment is not made: make environments"),
)


@pytest.mark.parametrize("backend", ["onnxruntime-static", "nncf", ISOLATED])
def test_a_static_graph_answers_a_text_alike_in_any_batch(project: Path, backend: str) -> None:
    artifact = quantized(project, backend)
    metrics = artifact.metrics
    assert (metrics["backend"], metrics["single"], metrics["products"]) == (backend, False, {"int8": 11, "float": 0})
    assert metrics["validation_score"] > 0.8
    runtime = Runtime(project / "artifacts/dist/tiny")
    assert runtime.manifest["single"] is False
    for point in ("full", "min"):
        together = runtime.predict(TEXTS, point)
        for text, answer in zip(TEXTS, together, strict=True):
            (alone,) = runtime.predict([text], point)
            np.testing.assert_allclose(list(answer.probabilities.values()), list(alone.probabilities.values()), atol=1e-5)


@pytest.mark.parametrize("quantizer", [dynamic, static, smoothed])
def test_weights_take_seven_bits_where_eight_would_saturate(built: Path, tmp_path: Path, quantizer: Quantizer) -> None:
    source = next(built.glob("artifacts/export-*/model.onnx"))
    tokens = np.array([[2, 5, 6, 7, 3]])
    feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    largest = {}
    for reduce_range in (False, True):
        quantizer(source, tmp_path / "int8.onnx", [feed], reduce_range=reduce_range)
        graph = onnx.load(tmp_path / "int8.onnx").graph
        tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}  # rows are no products: they have all 8 bits
        arrays = [numpy_helper.to_array(i) for i in graph.initializer if i.name not in tables]
        products = [a for a in arrays if a.dtype == np.int8 and a.ndim == 2]
        largest[reduce_range] = max(int(np.abs(a.astype(int)).max()) for a in products)
    assert largest[False] > 100
    assert largest[True] <= 64


def test_a_build_for_another_processor_says_so_and_its_gate_on_time_breaks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "avx2" if machine.level() != "avx2" else "amx"
    recipe = project / "tiny.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "  - {metric: speedup, min: 0.01}\n", encoding="utf-8")
    done = compress("run", "tiny.yaml", "--set", f"quantize.isa={other}", cwd=project)
    assert done.returncode == 5
    assert (
        f"warning: quantize.isa is {other}, this machine has {machine.level() or 'an unknown instruction set'}: latencies are"
        in done.stderr
    )
    assert "here, not measured on the target (quantize.isa), must be ≥ 0.01x" in done.stderr
    allowed = recipe.read_text(encoding="utf-8").replace("min: 0.01}", "min: 0.01, measured_on: other}")
    recipe.write_text(allowed, encoding="utf-8")
    assert compress("run", "tiny.yaml", "--set", f"quantize.isa={other}", cwd=project).returncode == 0
    bundle = project / "artifacts/dist/tiny"
    saturates = machine.level() in machine.SATURATING and other not in machine.SATURATING
    with pytest.warns(RuntimeWarning, match=f"for processors with {other}") if saturates else nullcontext():
        assert Runtime(bundle).manifest["isa"] == other


def test_a_processor_that_would_saturate_is_warned_of(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "level", lambda: "avx2")
    manifest = {"isa": "vnni"}
    with pytest.warns(
        RuntimeWarning, match=r"for processors with vnni; on this one \(avx2\) .* saturate .* rebuild it with quantize.isa: avx2"
    ):
        check_isa(manifest)
    with pytest.warns(RuntimeWarning, match="for processors with arm64"):
        check_isa({"isa": "arm64"})
    for isa in ("avx2", "avx512", None):
        check_isa({"isa": isa, "cascade": {"members": [{"isa": isa}, {}]}})  # a warning would be an error here
    with pytest.warns(RuntimeWarning, match="for processors with amx"):  # a graph in float, and a teacher in 8 bits behind it
        check_isa({"isa": None, "cascade": {"members": [{"folder": None}, {"isa": "amx"}]}})


def test_backends_are_timed_in_what_will_run_them(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits, seen = Splits.of(Artifact(next(built.glob("artifacts/data-*")))), list[object]()

    class Timed:
        def __init__(self, *_: object, **how: object) -> None:
            seen.append(how["backend"])

        def logits(self, *_: object) -> None: ...

    monkeypatch.setattr(quantize, "Graph", Timed)
    validation = splits.encoded("validation", TextClassification(), next(built.glob("artifacts/finetune-*")) / MODEL)
    for backend in ("openvino", "auto"):
        quantize._milliseconds({"onnxruntime": Path("a.onnx")}, validation, Target(backend=backend))
    assert seen == ["openvino", "onnxruntime"]


def inputs_of(built: Path) -> Inputs:
    stages: tuple[tuple[Kind, str], ...] = (("data", "data"), ("checkpoint", "length_adapt"), ("float_graph", "export"))
    return {kind: Artifact(next(built.glob(f"artifacts/{stage}-*"))) for kind, stage in stages}


def test_a_backend_that_fails_or_answers_otherwise_is_left_out_by_auto(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = inputs_of(built)
    names = ["onnxruntime", "onnxruntime-static", "nncf"]

    def fails(source: Path, target: Path, *_: object, **__: object) -> None:
        target.touch()
        raise ValueError("no such\nscale")

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    def agrees(graph: Graph, longest: int) -> None:
        if graph.path.name.startswith(unlike):
            raise UnfitError(f"{graph.path}: openvino answers this graph otherwise")

    monkeypatch.setattr(quantize, "_backends", lambda *_: names)
    monkeypatch.setattr(quantize, "check_agreement", agrees)
    monkeypatch.setitem(QUANTIZERS, "nncf", fails)  # type: ignore[arg-type]
    recipe, unlike = load_recipe(built / "tiny.yaml", ["quantize.backend=auto", "quantize.calibration=24"]), "onnxruntime-static"
    metrics = quantize.run(recipe, inputs, tmp_path, Progress())
    assert metrics["left_out"] == {"onnxruntime-static": "openvino answers this graph otherwise", "nncf": "no such scale"}
    assert (metrics["backend"], set(metrics["milliseconds"])) == ("onnxruntime", {"onnxruntime"})
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert "quantize: auto leaves nncf out: no such scale" in capsys.readouterr().err
    assert "nncf was left out: no such scale" in summary.told(metrics)
    unlike = "onnx"
    with pytest.raises(StageError, match="auto has no backend left; the last was left out because: no such scale"):
        quantize.run(recipe, inputs, tmp_path, Progress())
    names = ["nncf"]
    with pytest.raises(ValueError, match="no such"):
        quantize.run(recipe, inputs, tmp_path, Progress())
    monkeypatch.setitem(QUANTIZERS, "nncf", full)
    names = ["onnxruntime", "nncf"]
    with pytest.raises(RuntimeError, match="out of memory"):
        quantize.run(recipe, inputs, tmp_path, Progress())


def test_products_that_stay_float_unasked_are_told(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = inputs_of(built)

    def forgetful(source: Path, target: Path, feeds: Sequence[Feed], kept: Collection[str] = (), **how: bool) -> None:
        dynamic(source, target, feeds, [*kept, products(source)[0]], **how)

    recipe, told = load_recipe(built / "tiny.yaml"), "1 of 11 matrix products stay float though 8 bits were asked"
    quantize.run(recipe, inputs, tmp_path, Progress())
    assert told not in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(QUANTIZERS, "onnxruntime", forgetful)  # type: ignore[arg-type]
    assert quantize.run(recipe, inputs, tmp_path, Progress())["products"] == {"int8": 10, "float": 1}
    assert told in " ".join(capsys.readouterr().err.split())


def test_texts_that_calibrate_are_of_train_of_all_lengths_and_configurations(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = inputs_of(built)
    recipe = load_recipe(built / "tiny.yaml", ["quantize.backend=onnxruntime-static", "quantize.calibration=12"])
    train = Splits.of(inputs["data"]).encoded("train", TextClassification(), inputs["checkpoint"].path / MODEL).tokens
    feeds = list(quantize._feeds(recipe, inputs, inputs["float_graph"].path / "model.onnx"))
    assert len(feeds) == 12
    assert {tuple(feed["input_ids"][0]) for feed in feeds} <= {tuple(text.ids) for text in train}
    assert len({tuple(feed["lengths"]) for feed in feeds}) == 3
    sizes = [feed["input_ids"].shape[1] for feed in feeds]
    assert max(sizes) - min(sizes) >= 0.8 * (train.lengths.max() - train.lengths.min())
    quantize.run(recipe, inputs, tmp_path, Progress())
    assert "quantize: 12 texts calibrate, few to know what ranges activations take" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-static"])
def test_nothing_is_written_beside_the_float_graph(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    source, seen = next(built.glob("artifacts/export-*/model.onnx")), list[Path]()
    library = import_module("onnxruntime.quantization.quantize")  # whose package has a function of this name
    infer = library.load_model_with_shape_infer
    monkeypatch.setattr(library, "load_model_with_shape_infer", lambda path: seen.append(Path(path)) or infer(path))  # type: ignore[func-returns-value]
    feed = {name: np.full((1, 5), 1 + (name == "input_ids") * 5) for name in INPUTS}
    lengths = next(numpy_helper.to_array(i) for i in onnx.load(source).graph.initializer if i.name == "lengths")
    QUANTIZERS[backend](source, tmp_path / "int8.onnx", [{**feed, "lengths": lengths}])
    assert {path.parent for path in seen} == {tmp_path}


def test_auto_measures_all_and_keeps_one(project: Path) -> None:
    artifact = quantized(project, "auto")
    metrics = artifact.metrics
    backends = {"onnxruntime", "onnxruntime-static", "nncf", *(["neural-compressor"] if NEURAL_COMPRESSOR.is_made() else [])}
    assert set(metrics["milliseconds"]) == backends
    assert set(metrics["validation"]) == {*backends, "float"}
    assert metrics["backend"] == choose({k: metrics["validation"][k] for k in metrics["milliseconds"]}, metrics["milliseconds"], 0)
    assert [path.name for path in artifact.path.glob("*.onnx")] == ["model.onnx"]
    assert Runtime(project / "artifacts/dist/tiny").manifest["single"] is (metrics["backend"] == "onnxruntime")


def scales_of_activations(path: Path) -> list[float]:
    graph = onnx.load(path).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    return sorted(
        float(values[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear" and values[node.input[1]].ndim == 0
    )


@pytest.mark.parametrize("backend", ["onnxruntime-static", "nncf", ISOLATED])
def test_products_stay_float_and_weights_take_seven_bits_in_every_static_backend(built: Path, tmp_path: Path, backend: str) -> None:
    source = next(built.glob("artifacts/export-*/model.onnx"))
    feeds = [{name: np.full((1, size), 1 + (name == "input_ids") * size) for name in INPUTS} for size in (5, 8)]
    kept = [name for name in products(source) if "Gemm" in name]
    lengths = next(numpy_helper.to_array(i) for i in onnx.load(source).graph.initializer if i.name == "lengths")
    given = [{**feed, "lengths": lengths} for feed in feeds]
    QUANTIZERS[backend](source, tmp_path / "int8.onnx", given, kept, reduce_range=True)
    QUANTIZERS[backend](source, tmp_path / "all-bits.onnx", given, kept)
    assert scales_of_activations(tmp_path / "int8.onnx") == pytest.approx(scales_of_activations(tmp_path / "all-bits.onnx"), rel=0.05)
    assert count_products(tmp_path / "int8.onnx") == {"int8": 11 - len(kept), "float": len(kept)}
    graph = onnx.load(tmp_path / "int8.onnx").graph
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}  # rows are no products: they have all 8 bits
    arrays = [numpy_helper.to_array(i) for i in graph.initializer if i.name not in tables]
    assert max(int(np.abs(a.astype(int)).max()) for a in arrays if a.dtype == np.int8 and a.ndim == 2) <= 64
    assert Graph(tmp_path / "int8.onnx", single=True).layers


def test_an_environment_that_cannot_be_made_is_told_in_one_line(project: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "COMPRESS_CACHE": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
    }
    arguments = command("tiny.yaml", "--set", "quantize.backend=neural-compressor")
    done = subprocess.run(arguments, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1].startswith(
        "error: the environment of neural-compressor cannot be made: ERROR: No matching distribution"
    )
    assert not list((tmp_path / "cache").rglob("bin"))


def test_a_static_graph_is_the_same_bytes_in_every_process(project: Path) -> None:
    first = (quantized(project, "nncf").path / "model.onnx").read_bytes()
    shutil.rmtree(next(p for p in project.glob("artifacts/quantize-*") if Artifact(p).metrics["backend"] == "nncf"))
    assert (quantized(project, "nncf").path / "model.onnx").read_bytes() == first


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("compressor.machine.installed", lambda _: False)
    with pytest.raises(UnfitError, match=r"needs the \[nncf\] extra: pip install 'encoder-compressor\[nncf\]', or choose onnxruntime"):
        smoothed(tmp_path / "model.onnx", tmp_path / "int8.onnx", [])


@pytest.mark.parametrize(
    ("backend", "exit_code", "told"), [("nncf", 6, "needs the [nncf] extra"), ("auto", 0, "auto leaves nncf out: it is not installed")]
)
def test_without_nncf_a_build_says_so(backend: str, exit_code: int, told: str, project: Path) -> None:
    code = "import sys; sys.modules['nncf'] = None; from compressor.cli import main; main()"
    arguments = ["run", "tiny.yaml", "--until", "quantize", "--set", f"quantize.backend={backend}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=project, capture_output=True, text=True)
    assert done.returncode == exit_code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shipped_graph_has_seven_bits_where_its_processor_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()
    monkeypatch.setitem(quantize.QUANTIZERS, "onnxruntime", lambda *_, reduce_range=False: asked.append(reduce_range))
    monkeypatch.setattr(quantize, "check_int8", lambda *_: None)
    for isa in ("avx2", "vnni"):
        bench: Any = SimpleNamespace(source=tmp_path, isa=isa, wanted=0.0, float_score=1.0, score=lambda *_, **__: 1.0)
        quantize._quantized("onnxruntime", bench, tmp_path, [], Progress(quiet=True))
    assert asked == [True, False]
