"""Both of torch's exporters write graphs that answer as torch does."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from transformers import ModernBertConfig, ModernBertForTokenClassification

from compressor.attention import Significance
from compressor.errors import RecipeError
from compressor.fusion import operators
from compressor.graphs import export_graph, layered, parity
from compressor.halving import check_parity, export_halves
from compressor.loader import load_recipe
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.products import products
from compressor.settings.deploying import Export
from tests.conftest import write_project
from tests.test_families import model_of
from tests.test_graphs import CONFIGURATIONS, TEXTS, adaptive, tiny, tokens
from tests.test_halves import texts_of

DYNAMO = Export(exporter="dynamo", opset=18)


def _trained(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with no two weights alike: of equal ones, as new biases are, TorchScript's exporter keeps one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.05 * torch.randn_like(weights)
    return model


@pytest.mark.parametrize("kind", ["attention", "sampled", "cls", "learned"])
def test_dynamo_writes_the_same_operators_as_torchscript(tmp_path: Path, tiny_model: Path, kind: Significance) -> None:
    model, texts = adaptive(_trained(tiny().model), 32, kind), tokens(tiny_model, *TEXTS)
    paths = {exporter: tmp_path / f"{exporter}.onnx" for exporter in ("torchscript", "dynamo")}
    for exporter, path in paths.items():
        export_graph(model, path, Export(exporter=exporter, opset=18))
        assert parity(model, path, texts, CONFIGURATIONS, 0, 1e-4) < 1e-4
    costly = {"MatMul", "Gemm", "MultiHeadAttention", "If", "TopK", "GatherND", "LayerNormalization", "Erf", "Softmax", "Split"}
    script, dynamo = (Counter(op for op in operators(onnx.load(path).graph) if op in costly) for path in paths.values())
    assert dynamo == script
    onnx.checker.check_model(onnx.load(paths["dynamo"]))


def test_weights_of_real_sizes_are_constants_in_dynamos_graphs(tmp_path: Path) -> None:
    """ModernBERT's q, k and v are parts of one weight, of more numbers than onnxscript folds by itself."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = ModernBertConfig(vocab_size=50, **sizes, max_position_embeddings=16, local_attention=8, pad_token_id=0)
    model = layered(PlainModel(ModernBertForTokenClassification(config).eval()))
    for exporter in (Export(opset=18), DYNAMO):
        export_graph(model, tmp_path / "model.onnx", exporter)
        assert len(products(tmp_path / "model.onnx")) == 12  # q; k and v; the output; two of the feed-forward; and those of the head


@pytest.mark.parametrize("head", ["token-classification", "question-answering"])
@pytest.mark.parametrize("opset", [18, 20])
def test_dynamo_brings_tokens_back_before_a_head_that_reads_all(tmp_path: Path, head: str, opset: int) -> None:
    model = LengthAdaptiveModel(model_of("bert", head), 16).eval()
    export_graph(model, tmp_path / "model.onnx", Export(exporter="dynamo", opset=opset, portable=opset == 20))
    layers = model.layers
    assert parity(model, tmp_path / "model.onnx", texts_of(16, 9, 3), [None, (12, 6, 1)[:layers], (1,) * layers], 0, 1e-4) < 1e-4


def test_dynamo_exports_models_without_lengths_and_halves(tmp_path: Path, tiny_model: Path) -> None:
    model, texts = PlainModel(tiny().model).eval(), tokens(tiny_model, *TEXTS)
    for exported in (model, layered(model)):
        export_graph(exported, tmp_path / "model.onnx", DYNAMO)
        assert parity(model, tmp_path / "model.onnx", texts, [None], 0, 1e-4) < 1e-4
    export_halves(model, 1, tmp_path, DYNAMO)
    assert check_parity(model, tmp_path, texts, 0, 1e-4) < 1e-4


SCRIPT = """
import sys; from pathlib import Path; sys.path.insert(0, {root!r})
from tests.test_exporters import DYNAMO, tiny, export_graph
export_graph(tiny(), Path(sys.argv[1]), DYNAMO)
"""


def test_dynamo_writes_the_same_bytes_in_every_process_and_no_paths(tmp_path: Path) -> None:
    found = []
    for name in ("one.onnx", "two.onnx"):
        script = SCRIPT.format(root=str(Path(__file__).parent.parent))
        subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path / name)], check=True, capture_output=True)
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]
    assert b"site-packages" not in found[0]
    assert str(Path(__file__).parent.parent).encode() not in found[0]


def test_an_opset_that_dynamo_does_not_write_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    write_project(tmp_path, tiny_model)
    with pytest.raises(RecipeError, match="dynamo exporter writes opset 18 and later, not 17: set export.opset: 18"):
        load_recipe(tmp_path / "tiny.yaml", ["export.exporter=dynamo"])
    assert load_recipe(tmp_path / "tiny.yaml", ["export.exporter=dynamo", "export.opset=18"]).export == DYNAMO


def test_torch_is_as_it_was(tmp_path: Path) -> None:
    """Exporting leaves no trace in torch: a model answers as before."""
    model = tiny()
    given = (torch.tensor([[2, 5, 6, 7, 3]]), torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long))
    with torch.no_grad():
        before = model(*given)
        export_graph(model, tmp_path / "model.onnx", DYNAMO)
        torch.testing.assert_close(model(*given), before)
