"""Products that 8 bits hurt are found, and the fewest that suffice go back to float."""

import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import machine
from compressor.artifact import Artifact
from compressor.classification import TextClassification
from compressor.encoded import Encoded
from compressor.errors import StageError
from compressor.loader import load_recipe
from compressor.products import count_products, products
from compressor.progress import Progress
from compressor.quantizers import dynamic
from compressor.sensitivity import by_sensitivity, fewest
from compressor.session import Graph
from compressor.splits import MODEL, Splits
from compressor.stages import quantize
from compressor.stages.quantize import run
from compressor.summary import told

HURT = {"/query/MatMul": "/output/dense/MatMul", "/key_1/MatMul": "/output/dense_2/MatMul"}
"""Where a layer's values come from, and the product that reads what attention makes of them."""


@pytest.fixture(scope="module")
def validation(built: Path) -> Encoded:
    checkpoint, data = (next(built.glob(f"artifacts/{stage}-*")) for stage in ("length_adapt", "data"))
    return Splits.of(Artifact(data)).encoded("validation", TextClassification(), checkpoint / MODEL)


@pytest.fixture(scope="module")
def hurt(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float graph with one value of each layer made large before attention and small after it: answers stay as they were."""
    model = onnx.load(next(built.glob("artifacts/export-*/model.onnx")))
    constants = {i.name: i for i in model.graph.initializer}
    by_name = {node.name: node for node in model.graph.node}
    width, channel, factor = 32, 5, 1e5

    def change(name: str, place: tuple[int | slice, ...], by: float) -> None:
        array = numpy_helper.to_array(constants[name]).copy()
        array[place] *= by
        constants[name].CopyFrom(numpy_helper.from_array(array, name))

    for values, reader in HURT.items():
        projection = by_name[values]
        bias = next(node for node in model.graph.node if node.op_type == "Add" and projection.output[0] in node.input)
        change(projection.input[1], (slice(None), channel - width), factor)  # values are the last columns
        change(next(name for name in bias.input if name in constants), (channel - width,), factor)
        change(by_name[reader].input[1], (channel, slice(None)), 1 / factor)
    path = tmp_path_factory.mktemp("hurt") / "model.onnx"
    onnx.save(model, path)
    return path


def answers(file: Path, data: Encoded, *, single: bool) -> np.ndarray:
    return Graph(file, single=single, pad_id=data.pad_id).logits(data.tokens)


def test_the_products_that_read_an_outlier_are_the_most_sensitive(hurt: Path, validation: Encoded, tmp_path: Path) -> None:
    found = by_sensitivity(hurt, tmp_path / "alone.onnx", validation, reduce_range=machine.needs_seven_bits(machine.level()))
    assert list(found) == sorted(found, key=lambda name: -found[name])
    assert set(found) == set(products(hurt))
    assert set(list(found)[:2]) == set(HURT.values())
    assert list(tmp_path.iterdir()) == []


def test_products_are_ranked_by_the_weights_that_will_be_deployed(
    hurt: Path, validation: Encoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()
    monkeypatch.setattr(
        "compressor.sensitivity.dynamic", lambda *how, reduce_range: (asked.append(reduce_range), dynamic(*how, reduce_range=reduce_range))
    )
    narrow = by_sensitivity(hurt, tmp_path / "alone.onnx", validation, reduce_range=True)
    assert set(asked) == {True}
    assert narrow != by_sensitivity(hurt, tmp_path / "alone.onnx", validation)


def test_answers_come_near_float_again_when_they_stay_float(hurt: Path, validation: Encoded, tmp_path: Path) -> None:
    reference = answers(hurt, validation, single=False)
    distances = []
    for kept in ([], list(HURT.values())):
        dynamic(hurt, tmp_path / "int8.onnx", [], kept)
        assert count_products(tmp_path / "int8.onnx")["float"] == len(kept)
        distances.append(validation.divergence(answers(tmp_path / "int8.onnx", validation, single=True), reference))
    assert distances[1] < distances[0] / 3


@pytest.mark.parametrize("needed", range(1, 8))
def test_bisection_finds_the_fewest(needed: int) -> None:
    names, asked = [str(n) for n in range(7)], []

    def holds(some: Collection[str]) -> bool:
        asked.append(len(some))
        return len(some) >= needed

    assert fewest(names, holds) == names[:needed]
    assert len(asked) <= 4


def test_where_not_even_all_suffice_none_is_named() -> None:
    assert fewest(["a", "b"], lambda some: False) is None


def test_the_stage_puts_products_back_until_the_drop_is_allowed(built: Path, tmp_path: Path, hurt: Path) -> None:
    inputs = {
        kind: Artifact(next(built.glob(f"artifacts/{stage}-*"))) for kind, stage in (("data", "data"), ("checkpoint", "length_adapt"))
    }
    shutil.copy(hurt, tmp_path / "model.onnx")
    recipe = load_recipe(built / "tiny.yaml", ["quantize.max_drop=0%"])
    (tmp_path / "out").mkdir()
    metrics = run(recipe, {**inputs, "float_graph": Artifact(tmp_path)}, tmp_path / "out", Progress())
    kept = metrics["products_in_float"]
    assert kept == list(metrics["sensitivities"])[: len(kept)]
    assert set(kept) <= set(HURT.values())
    assert metrics["products"] == {"int8": 11 - len(kept), "float": len(kept)}
    assert metrics["validation_score"] == metrics["validation"]["float"] == 1.0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert told(metrics).endswith(f"in float, because 8 bits cost too much there: {', '.join(kept)}")
    allowed = load_recipe(built / "tiny.yaml", ["quantize.max_drop=100%"])
    metrics = run(allowed, {**inputs, "float_graph": Artifact(tmp_path)}, tmp_path / "out", Progress())
    assert metrics["products_in_float"] == []
    assert metrics["validation_score"] < 0.9


def test_a_graph_whose_products_all_stay_float_is_not_called_int8(
    built: Path, tmp_path: Path, hurt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {
        kind: Artifact(next(built.glob(f"artifacts/{stage}-*"))) for kind, stage in (("data", "data"), ("checkpoint", "length_adapt"))
    }
    shutil.copy(hurt, tmp_path / "model.onnx")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(quantize, "fewest", lambda names, holds: names)
    recipe = load_recipe(built / "tiny.yaml", ["quantize.max_drop=0%"])
    with pytest.raises(StageError, match="unless every product stays in float, which is no INT8; raise it, choose another backend, or"):
        run(recipe, {**inputs, "float_graph": Artifact(tmp_path)}, tmp_path / "out", Progress())
