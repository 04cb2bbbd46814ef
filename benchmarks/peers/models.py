"""The models that stand beside a bundle, each made in its own environment from the same student and the same texts."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

from compressor.environments import NEURAL_COMPRESSOR, Environment
from compressor.errors import CompressorError
from compressor.graphs import export_graph
from compressor.modeling import PlainModel
from compressor.pretrained import load_model
from compressor.runtime import Runtime
from compressor.session import Backend
from compressor.tokens import Tokens

HERE = Path(__file__).parent
OPTIMUM = Environment(
    "optimum",
    (
        "torch==2.13.0",
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "transformers==4.57.6",
        "onnx==1.23.2",
        "onnxruntime==1.31.1",
        "sentence-transformers==5.7.0",
        "numpy==2.4.6",
    ),
)
OPENVINO = Environment("openvino", ("openvino==2026.4.1", "nncf==3.4.0", "numpy==2.4.6"))
OURS = "this project"


@dataclass(frozen=True)
class Model:
    """A model, and the process that answers with it."""

    name: str
    kind: str
    path: str
    python: Path = Path(sys.executable)
    scored: bool = True
    """Whether it is the student: its answers can be scored."""


def references(folder: Path, labels: int) -> Iterator[Model]:
    """Make BERT-base and DistilBERT with random weights, on which speed does not depend."""
    bert, distilbert = BertConfig(num_labels=labels), DistilBertConfig(num_labels=labels)
    made: dict[str, PreTrainedModel] = {
        "BERT-base fp32": BertForSequenceClassification(bert),
        "DistilBERT fp32": DistilBertForSequenceClassification(distilbert),
    }
    for name, model in made.items():
        own = folder / name.split()[0]
        model.save_pretrained(own)
        export_graph(PlainModel(model), own / "model.onnx")
        yield Model(f"{name}, onnxruntime", "onnxruntime", str(own / "model.onnx"), scored=False)
    yield Model("BERT-base fp32, PyTorch", "pytorch", str(folder / "BERT-base"), scored=False)


def peers(student: Path, labels: Sequence[str], texts: Tokens, folder: Path) -> Iterator[Model | str]:
    """Make the student's other forms; where one cannot be made, yield why."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "plain.onnx"
    export_graph(PlainModel(load_model(student, labels)), plain)
    yield Model("student fp32, onnxruntime", "onnxruntime", str(plain))
    np.savez(folder / "feeds.npz", **_feeds(texts))
    feeds = [str(plain), str(folder / "feeds.npz"), str(folder)]
    optimum, openvino, neural = folder / "optimum", folder / "openvino", folder / "neural-compressor"
    sentences = folder / "sentence-transformers" / "onnx" / "model_qint8_avx512_vnni.onnx"
    makers = [
        (OPTIMUM, "make_optimum.py", [str(student), str(folder)], {
            "student fp32, optimum": optimum / "model.onnx",
            "student INT8, optimum": optimum / "model_quantized.onnx",
            "student's encoder INT8, sentence-transformers": sentences,
        }),
        (OPENVINO, "make_openvino.py", feeds, {
            "student bf16, OpenVINO": openvino / "model.xml",
            "student INT8, NNCF in OpenVINO": openvino / "model_int8.xml",
        }),
        (NEURAL_COMPRESSOR, "make_neural_compressor.py", feeds, {
            "student INT8, Neural Compressor static": neural / "static.onnx",
            "student INT8, Neural Compressor dynamic": neural / "dynamic.onnx",
        }),
    ]  # fmt: skip
    for environment, script, arguments, files in makers:
        try:
            if not all(path.exists() for path in files.values()):
                environment.run(HERE / script, arguments, folder)
        except CompressorError as error:
            yield str(error)
        for name, path in files.items():
            if not path.exists():
                yield f"{name}: {environment.name} wrote no {path.name}"
            elif path.suffix == ".xml":
                yield Model(name, "openvino", str(path), environment.python)
            else:
                yield Model(name, "onnxruntime", str(path), scored="encoder" not in name)


def ours(bundle: Path, points: Sequence[str]) -> Iterator[Model | str]:
    """Return the bundle at its operating points in each backend; where one does not answer as the other does, yield why."""
    for backend in get_args(Backend):
        try:
            known = Runtime(bundle, backend=backend).points
        except CompressorError as error:
            yield f"{OURS} in {backend}: {error}"
            continue
        where = "" if backend == "onnxruntime" else f", {backend}"
        yield from (Model(f"{OURS}, {point}{where}", "bundle", f"{bundle}@{point}@{backend}") for point in points if point in known)


def _feeds(texts: Tokens) -> dict[str, Any]:
    return {f"{row}/{name}": array for row, text in enumerate(texts) for name, array in text.padded(0).items()}
