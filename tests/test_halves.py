"""A graph in two halves: front and back answer as the whole does, and a store lets the front rest, for every task above it."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest
import torch

from compressor import halves as halves_module
from compressor import machine
from compressor.artifact import sha256
from compressor.backbones import BACKBONES
from compressor.bundles import seal
from compressor.errors import BundleError, RecipeError, StageError, UnfitError
from compressor.graphs import export_graph, layered, torch_logits
from compressor.halves import BACK, FRONT, Halves
from compressor.halving import check_parity, export_halves
from compressor.modeling import PlainModel
from compressor.products import count_products, products
from compressor.progress import Progress
from compressor.quantizers import dynamic
from compressor.runtime import Runtime
from compressor.stages.quantize import Scorer, _quantize_halves, kept_in_back
from compressor.tokens import Tokens
from tests.conftest import compress, sentences, write_project
from tests.test_families import SERVED, batch, model_of

NONE = tuple(f"{section}=null" for section in ("distill", "length_adapt", "search", "default_point"))
CHANGES = ("recycle={layer: 2, dtype: float32}", "export={halves: true}", *NONE)
RECYCLE = tuple(part for change in CHANGES for part in ("--set", change))
TEXTS = [text for text, _ in sentences(24, 9)]


def texts_of(*lengths: int) -> Tokens:
    ids = batch(*lengths)[0].numpy()
    return Tokens.joined([Tokens(row[:n], row[:n] * 0, np.array([0, n])) for row, n in zip(ids, lengths, strict=True)])


def with_biases(kind: str) -> PlainModel:
    """Return a model whose biases are none of them zero, as a trained one's: projections of equal biases would not be merged."""
    torch.manual_seed(2)
    model = model_of(kind)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    return PlainModel(model)


@pytest.mark.parametrize("head", SERVED)
@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("layers", [1, 3])
def test_front_and_back_are_the_whole_model(kind: str, head: str, layers: int, tmp_path: Path) -> None:
    model, texts = PlainModel(model_of(kind, head)), texts_of(16, 9, 3)
    export_halves(model, layers, tmp_path)
    assert check_parity(model, tmp_path, texts, 0, 1e-4) < 1e-4
    for single, threads in ((True, 1), (False, 1), (True, 2)):  # one by one, padded in a batch, and beside each other
        found = Halves(tmp_path, threads, single=single, pad_id=0).logits(texts)
        alone = [torch_logits(model, text, None, 0) for text in texts]
        np.testing.assert_allclose(found.ravel(), np.concatenate([own.ravel() for own in alone]), atol=1e-4)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("kind", BACKBONES)
def test_products_that_stay_float_do_so_in_the_back(kind: str, layers: int, tmp_path: Path) -> None:
    model = with_biases(kind)
    export_halves(model, layers, tmp_path)
    export_graph(layered(model), tmp_path / "model.onnx")
    whole, back = (products(tmp_path / name) for name in ("model.onnx", BACK))
    assert kept_in_back(whole, back, whole) == back
    assert kept_in_back(whole, back, [whole[0], whole[-1]]) == back[-1:]
    ends = whole[len(whole) - len(back) :]
    shapes = [
        [tuple(i.dims) for n in graph.node if n.name in names for i in graph.initializer if i.name == n.input[1]]
        for graph, names in ((onnx.load(tmp_path / "model.onnx").graph, ends), (onnx.load(tmp_path / BACK).graph, back))
    ]
    assert shapes[0] == shapes[1]


def test_tasks_of_every_kind_have_the_same_front(tmp_path: Path) -> None:
    """Labels, entities and answers above the same layers: what one has filled in, all know."""
    encoder, fronts = model_of("bert", SERVED[0]).base_model.state_dict(), set[tuple[str, str]]()
    for head in SERVED:
        model, folder = model_of("bert", head), tmp_path / head
        model.base_model.load_state_dict(encoder, strict=False)  # a pooler lies above the layers, and not all have one
        folder.mkdir()
        export_halves(PlainModel(model), 2, folder)
        dynamic(folder / FRONT, folder / "int8.onnx", [])
        fronts.add((sha256(folder / FRONT), sha256(folder / "int8.onnx")))
    assert len(fronts) == 1


@pytest.mark.parametrize(("layers", "stays"), [(2, "last"), (3, "last"), (3, "all")])
def test_what_stays_float_in_the_whole_graph_does_so_in_its_halves(layers: int, stays: str, tmp_path: Path) -> None:
    """All of a head's products may: that its graph has none in 8 bits then is no failure."""
    model, (floats, out) = with_biases("bert"), (tmp_path / "float", tmp_path)
    floats.mkdir()
    export_halves(model, layers, floats)
    export_graph(layered(model), floats / "model.onnx")
    whole, inside = products(floats / "model.onnx"), products(floats / BACK)
    kept = whole[-1:] if stays == "last" else whole[len(whole) - len(inside) :]
    bench = cast(Scorer, SimpleNamespace(source=floats / "model.onnx", isa="vnni"))
    _quantize_halves(bench, "onnxruntime", out, [], kept, Progress(quiet=True))
    counted = count_products(out / BACK)
    assert counted == {"int8": len(inside) - len(kept), "float": len(kept)}
    assert count_products(out / FRONT)["int8"] > 0


@pytest.mark.parametrize("kind", BACKBONES)
def test_both_halves_are_quantized(kind: str, tmp_path: Path) -> None:
    """All but MPNet's table of biases, on which onnxruntime would abort."""
    model, texts = PlainModel(model_of(kind)), texts_of(16, 9, 3)
    (tmp_path / "float").mkdir()
    export_halves(model, 2, tmp_path / "float")
    for name in (FRONT, BACK):
        dynamic(tmp_path / "float" / name, tmp_path / name, [], reduce_range=machine.needs_seven_bits(machine.level()))
        weights = [i for i in onnx.load(tmp_path / name).graph.initializer if len(i.dims) == 2]
        assert sum(i.data_type == onnx.TensorProto.FLOAT for i in weights) == (kind == "mpnet")
    found, expected = (Halves(folder, 1, single=True, pad_id=0).logits(texts) for folder in (tmp_path, tmp_path / "float"))
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_halves_that_are_not_the_model_are_refused(tmp_path: Path) -> None:
    export_halves(PlainModel(model_of("bert")), 1, tmp_path)
    other = PlainModel(model_of("bert"))
    torch.nn.init.normal_(next(other.parameters()))
    with pytest.raises(StageError, match=r"a logit of the two halves differs by .* report the model, or raise the tolerance"):
        check_parity(other, tmp_path, texts_of(16, 9), 0, 1e-4)


def test_a_family_that_cannot_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"export.halves: deberta-v2 encoders do not run layer by layer, as bert, .* do; leave it out"):
        export_halves(PlainModel(model_of("deberta-v2")), 1, tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Two bundles on the same recycled layers, of tasks whose labels differ."""
    folder = tmp_path_factory.mktemp("halves")
    write_project(folder, tiny_model)
    for name in ("tiny", "other"):
        if name == "other":
            for path in folder.glob("*.csv"):
                path.write_text(path.read_text(encoding="utf-8").replace("positive", "good").replace("negative", "bad"), encoding="utf-8")
        done = compress("tiny.yaml", *RECYCLE, "--set", f"name={name}", "--set", "seed=3", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "artifacts/dist"


def test_a_bundle_answers_from_a_store_as_without(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [(a.label, a.score) for a in Runtime(served / "tiny").predict(TEXTS)]
    runtime = Runtime(served / "tiny", store=tmp_path / "store")
    for found, computed in ((0, len(TEXTS)), (len(TEXTS), len(TEXTS))):
        answers = runtime.predict(TEXTS)
        assert [a.label for a in answers] == [label for label, _ in expected]
        np.testing.assert_allclose([a.score for a in answers], [score for _, score in expected], atol=1e-5)
        assert runtime.store is not None
        assert (runtime.store.found, runtime.store.computed) == (found, computed)
    runtime.store.close()
    later = Runtime(served / "tiny", store=tmp_path / "store")  # as another process would
    monkeypatch.setattr(halves_module, "Graph", None)  # a front that is not asked is not opened
    assert [a.label for a in later.predict(TEXTS)] == [label for label, _ in expected]


def test_two_tasks_on_one_text_cost_one_front(served: Path, tmp_path: Path) -> None:
    first, second = (Runtime(served / name, store=tmp_path / "store") for name in ("tiny", "other"))
    assert first.manifest["halves"] == second.manifest["halves"]
    assert first.store is second.store
    assert first.store is not None
    first.predict(TEXTS)
    answers = second.predict(TEXTS)
    assert (first.store.found, first.store.computed) == (len(TEXTS), len(TEXTS))
    assert {a.label for a in answers} == {"good", "bad"}
    assert [a.label for a in answers] == [a.label for a in Runtime(served / "other").predict(TEXTS)]
    fronts = {id(runtime._graph.front) for runtime in (first, second) if isinstance(runtime._graph, Halves)}
    assert len(fronts) == 1  # in memory too


def test_a_text_is_known_by_what_is_read_of_it(served: Path, tmp_path: Path) -> None:
    runtime, start = Runtime(served / "tiny", store=tmp_path / "store"), "the film is good and " * 20
    first, second = runtime.predict([start + "the end", start + "another end"])
    assert first == second == Runtime(served / "tiny").predict([start])[0]
    assert runtime.store is not None
    assert (runtime.store.found, runtime.store.computed) == (1, 1)  # beyond the window they differ, which nobody reads


def test_two_bundles_whose_tokenizers_differ_share_no_store(served: Path, tmp_path: Path) -> None:
    """Their fronts may be equal bytes, but a text's ids are not the same text's."""
    other = Path(shutil.copytree(served / "other", tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
    manifest["halves"]["tokenizer"] = "f" * 64
    del manifest["self"]
    (other / "manifest.json").write_text(json.dumps({**manifest, "self": seal(manifest)}), encoding="utf-8")
    runtime = Runtime(served / "tiny", store=tmp_path / "store")
    assert runtime.store is not None
    with pytest.raises(RecipeError, match=r"made for tokenizer .*, not f{12}; name another folder, or remove this one"):
        Runtime(other, store=tmp_path / "store")
    runtime.store.close()


def test_static_halves_answer_as_the_whole_graph_does(served: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(served.parent.parent, tmp_path / "project"))
    static = ("--set", "quantize={backend: nncf, calibration: 24}", "--set", "name=static")
    done = compress("tiny.yaml", *RECYCLE, *static, cwd=folder)
    assert done.returncode == 0, done.stderr
    bundle = folder / "artifacts/dist/static"
    whole, halves = Runtime(bundle).predict(TEXTS), Runtime(bundle, store=tmp_path / "store").predict(TEXTS)
    assert [a.label for a in halves] == [a.label for a in whole]
    np.testing.assert_allclose([a.score for a in halves], [a.score for a in whole], atol=0.05)


def test_a_head_alone_above_the_store_may_be_static_too(served: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(served.parent.parent, tmp_path / "project"))
    above = ("--set", "recycle.layer=3", "--set", "quantize={backend: onnxruntime-static, calibration: 24}", "--set", "name=head")
    done = compress("tiny.yaml", *RECYCLE, *above, cwd=folder)
    assert done.returncode == 0, done.stderr
    bundle = folder / "artifacts/dist/head"
    whole, halves = Runtime(bundle).predict(TEXTS), Runtime(bundle, store=tmp_path / "store").predict(TEXTS)
    assert [a.label for a in halves] == [a.label for a in whole]


def test_the_table_has_texts_that_a_store_knows_and_those_that_it_does_not(served: Path) -> None:
    metrics = json.loads((served / "tiny/metrics.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in metrics["variants"]}
    full, new, known = (rows[f"INT8 {name}"] for name in ("full", "new text", "known text"))
    assert full["score"] == new["score"] == known["score"]
    assert new["size_mb"] == pytest.approx(sum((served / "tiny" / name).stat().st_size for name in (FRONT, BACK)) / 1e6)
    assert [f for f in metrics["findings"] if f.startswith("Recycling ") and "one that it does not know takes" in f]


def test_the_shell_takes_a_store(served: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    ask = ("predict", str(served / "tiny"), "lines.txt")
    plain = compress(*ask, cwd=tmp_path)
    for _ in range(2):
        kept = compress(*ask, "--store", "kept", cwd=tmp_path)
        assert (kept.returncode, kept.stdout) == (0, plain.stdout), kept.stderr
    assert (tmp_path / "kept/data.mdb").exists()
    small = compress(*ask, "--store", "small", "--max-size", "2MB", cwd=tmp_path)
    assert (small.returncode, small.stdout) == (0, plain.stdout), small.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--store", "kept", "--max-size", "2"), "--max-size '2' needs a positive number and a unit, one of MB, kB, GB"),
        (("--max-size", "2GB"), "--max-size is that of a store: give --store too"),
    ],
)
def test_a_size_of_no_store_and_no_size_are_refused(served: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = compress("predict", str(served / "tiny"), *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", "").split())
    assert not (tmp_path / "kept").exists()


def test_a_store_of_another_front_is_named_and_refused(served: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(served.parent.parent, tmp_path / "project"))
    done = compress("tiny.yaml", *RECYCLE, "--set", "recycle.layer=1", "--set", "name=lower", cwd=folder)
    assert done.returncode == 0, done.stderr
    keeper = Runtime(served / "other", store=tmp_path / "store")
    keeper.predict(TEXTS[:2])
    with pytest.raises(RecipeError, match=r"made for model .*, not .*, layer 2, not 1; name another folder, or remove this one"):
        Runtime(folder / "artifacts/dist/lower", store=tmp_path / "store")
    assert keeper.store is not None
    assert keeper.store.read([b"-" * 32]) == [None]  # whoever had it open still has


def test_a_store_without_its_extra_names_it(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compressor.store", None)
    with pytest.raises(UnfitError, match=r"a store needs the \[recycle\] extra: pip install 'encoder-compressor\[recycle\]'"):
        Runtime(served / "tiny", store=tmp_path / "store")


def test_a_bundle_without_halves_takes_no_store(built: Path, tmp_path: Path) -> None:
    bundle = built / "artifacts/dist/tiny"
    with pytest.raises(BundleError, match=r"has no halves, so a store has nothing to keep; set export.halves: true and build it again"):
        Runtime(bundle, store=tmp_path / "store")
    done = compress("predict", str(bundle), "--store", "kept", cwd=tmp_path)
    assert done.returncode == 7
    assert "set export.halves: true" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("export={halves: true}",), "add a `recycle` section or leave it out"),
        (
            ("export={halves: true}", "recycle={layer: 2}", "distill={student: {layers: first 2}, objectives: [{type: logits}]}"),
            "whose recycled layers never change: leave `distill` and `length_adapt` out",
        ),
    ],
)
def test_halves_of_layers_that_change_are_refused(built: Path, changes: tuple[str, ...], message: str) -> None:
    done = compress("validate", "tiny.yaml", *(part for change in changes for part in ("--set", change)), cwd=built)
    assert done.returncode == 3
    assert message in " ".join(done.stderr.split())
