import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification, PreTrainedModel

from compressor import ranking
from compressor.answering import QuestionAnswering
from compressor.attention import Significance
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.encoded import tokenizer_of
from compressor.errors import StageError
from compressor.graphs import PlainModel, export_graph, layered, parity, torch_logits
from compressor.modeling import LengthAdaptiveModel
from compressor.session import Graph
from compressor.settings.deploying import Export
from compressor.tokens import Tokens

CONFIGURATIONS = [None, (32, 32, 32), (20, 10, 1), (16, 16, 16), (1, 1, 1)]


def tiny(seed: int = 1) -> LengthAdaptiveModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=28, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=32
    )
    return LengthAdaptiveModel(BertForSequenceClassification(config), 32).eval()


def adaptive(model: PreTrainedModel, max_length: int, significance: Significance, **settings: Any) -> LengthAdaptiveModel:
    """Return a length-adaptive model in evaluation mode; what it has learned to rank tokens by, if anything, is random.

    That of a question begins so.
    """
    wrapped = LengthAdaptiveModel(model, max_length, significance, **settings).eval()
    if significance == "learned" and settings.get("protect") != "question":
        torch.nn.init.normal_(model.get_parameter(ranking.NAME), std=0.1, generator=torch.Generator().manual_seed(1))
    return wrapped


def tokens(tiny_model: Path, *texts: str) -> Tokens:
    return TextClassification().windows(tokenizer_of(tiny_model), [Example(t) for t in texts], 32, 0).tokens


TEXTS = ("film", "the story was very good", "a dull plot and the music is weak and it was quite awful", "it", "witty ending " * 30)


@pytest.mark.parametrize("significance", ["attention", "sampled", "cls", "learned"])
def test_the_graph_equals_torch_at_all_lengths_batches_and_paddings(tmp_path: Path, tiny_model: Path, significance: Significance) -> None:
    model = adaptive(tiny().model, 32, significance)
    export_graph(model, tmp_path / "model.onnx")
    assert parity(model, tmp_path / "model.onnx", tokens(tiny_model, *TEXTS), CONFIGURATIONS, 0, 1e-4) < 1e-4


def test_a_logit_that_is_no_number_is_no_parity(tmp_path: Path, tiny_model: Path) -> None:
    model = tiny()
    export_graph(model, tmp_path / "model.onnx")
    torch.nn.init.constant_(model.model.classifier.bias, float("nan"))
    with pytest.raises(StageError, match="a logit differs by nan from torch"):
        parity(model, tmp_path / "model.onnx", tokens(tiny_model, *TEXTS), [None], 0, 1e-4)


PAIRS = [("film", "good"), ("was it a dull plot", "the music is weak and it was quite awful"), ("it", "witty ending " * 30)]


@pytest.mark.parametrize("settings", [Export(), Export(portable=True), Export(exporter="dynamo", opset=18)], ids=str)
@pytest.mark.parametrize(
    ("significance", "neighbours"), [("question", 0), ("question", 3), ("sampled", 2), ("cls", 20), ("learned", 0), ("learned", 3)]
)
@pytest.mark.parametrize("head", [BertForQuestionAnswering, BertForSequenceClassification], ids=["answers", "labels"])
def test_the_graph_of_a_question_and_of_neighbours_equals_torch(
    tmp_path: Path, tiny_model: Path, significance: Significance, neighbours: int, settings: Export, head: type[PreTrainedModel]
) -> None:
    model = adaptive(head(tiny().model.config), 32, significance, protect="question", neighbours=neighbours)
    export_graph(model, tmp_path / "model.onnx", settings)
    windows = QuestionAnswering().windows(tokenizer_of(tiny_model), [Example(q, text_pair=c) for q, c in PAIRS], 32, 8)
    assert windows.tokens.segments.any()
    assert parity(model, tmp_path / "model.onnx", windows.tokens, CONFIGURATIONS, 0, 1e-4) < 1e-4


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("settings", [Export(), Export(exporter="dynamo", opset=18)], ids=str)
def test_a_text_that_stays_whole_for_a_layer_is_answered_alike_in_any_batch(tmp_path: Path, settings: Export, neighbours: int) -> None:
    torch.manual_seed(1)
    model = adaptive(BertForTokenClassification(tiny().model.config), 32, "sampled", neighbours=neighbours).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)  # so that states are unlike each other, and who votes counts
    export_graph(model, tmp_path / "model.onnx", settings)
    graph, rng, lengths = Graph(tmp_path / "model.onnx", single=False), np.random.default_rng(0), (30, 16, 8)

    def text(size: int) -> Tokens:
        return Tokens(rng.integers(5, 28, size).astype(np.int32), np.zeros(size, np.int8), np.array([0, size]))

    long = text(32)
    for size in range(9, 16):
        own = text(size)
        alone, beside = graph.run(own, lengths)[0], graph.run(Tokens.joined([own, long]), lengths)[0][:size]
        np.testing.assert_allclose(alone, beside, atol=1e-4)
        np.testing.assert_allclose(alone, torch_logits(model, own, lengths, 0)[0], atol=1e-4)


def test_a_graph_of_other_weights_fails_the_parity_check(tmp_path: Path, tiny_model: Path) -> None:
    export_graph(tiny(seed=2), tmp_path / "model.onnx")
    with pytest.raises(StageError, match="differs by"):
        parity(tiny(seed=1), tmp_path / "model.onnx", tokens(tiny_model, *TEXTS), CONFIGURATIONS, 0, 1e-4)


def test_a_client_that_knows_no_lengths_gets_the_default(tmp_path: Path) -> None:
    model = tiny()
    export_graph(model, tmp_path / "model.onnx")
    assert Graph(tmp_path / "model.onnx", single=True).layers == 3
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    feed = {
        "input_ids": np.array([[2, 6, 7, 3]]),
        "attention_mask": np.ones((1, 4), np.int64),
        "token_type_ids": np.zeros((1, 4), np.int64),
    }
    assert "lengths" not in {i.name for i in session.get_inputs()}
    full = session.run(None, {**feed, "lengths": np.array([32, 32, 32])})[0]
    np.testing.assert_array_equal(session.run(None, feed)[0], full)
    assert not np.allclose(session.run(None, {**feed, "lengths": np.array([16, 8, 1])})[0], full, atol=1e-5)


def test_a_model_without_lengths_exports_without_the_input(tmp_path: Path, tiny_model: Path) -> None:
    model = PlainModel(tiny().model).eval()
    for exported in (model, layered(model)):
        export_graph(exported, tmp_path / "model.onnx")
        assert not Graph(tmp_path / "model.onnx", single=True).layers
        assert parity(model, tmp_path / "model.onnx", tokens(tiny_model, *TEXTS), [None], 0, 1e-4) < 1e-4


SCRIPT = """
import sys; from pathlib import Path; sys.path.insert(0, {tests!r})
from test_graphs import tiny; from compressor.graphs import export_graph
from onnxruntime.quantization import QuantType, quantize_dynamic
export_graph(tiny(), Path(sys.argv[1]) / "model.onnx")
quantize_dynamic(Path(sys.argv[1]) / "model.onnx", Path(sys.argv[1]) / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
"""


def test_export_and_quantization_are_byte_identical_across_processes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT.format(tests=str(Path(__file__).parent)), str(tmp_path / name)],
            check=True,
            capture_output=True,
        )
        contents.append([(tmp_path / name / f).read_bytes() for f in ("model.onnx", "int8.onnx")])
    assert contents[0] == contents[1]


def test_the_graph_holds_no_paths_and_no_doc_strings(tmp_path: Path) -> None:
    export_graph(tiny(), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    assert not any(n.doc_string for n in graph.graph.node)
    assert str(tmp_path).encode() not in (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()
