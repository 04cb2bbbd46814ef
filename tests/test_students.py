from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, ElectraForSequenceClassification, PreTrainedModel

from compressor.bilstm import bilstm_over
from compressor.errors import RecipeError
from compressor.families import FAMILIES, shape_of
from compressor.graphs import export_graph, parity
from compressor.modeling import PlainModel
from compressor.narrowing import narrow
from compressor.pretrained import load_model
from compressor.settings.distilling import BiLSTM, Student
from compressor.students import layers_of, select_layers, student_of
from compressor.tokens import Tokens
from tests.test_families import SIZES, L, batch, model_of

LABELS = ("a", "b", "c")
CUT = [kind for kind in FAMILIES if kind != "modernbert"]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = PlainModel(model.eval())(*batch(16, 9))
    return found


@pytest.mark.parametrize("width", [16, 64])
def test_electras_own_embedding_size_is_no_other(width: int) -> None:
    sizes = {**SIZES, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    for embedded in (width, 128):
        if embedded != 64:
            model = ElectraForSequenceClassification(ElectraConfig(**sizes, max_position_embeddings=L, embedding_size=embedded))
            with pytest.raises(RecipeError, match="k: 16 does not fit this teacher, because its embeddings have a size of their own"):
                narrow(model, 16, "k")


def test_layer_maps_have_names() -> None:
    assert layers_of("every second", 6, "k") == [1, 3, 5]
    assert layers_of("first 2", 6, "k") == [0, 1]
    assert layers_of("last 2", 6, "k") == [4, 5]
    assert layers_of((0, 5), 6, "k") == [0, 5]


@pytest.mark.parametrize(
    ("asked", "count", "message"),
    [
        ((0, 5), 3, r"k: 5 is out of range; the teacher has layers 0 to 2"),
        ("first 7", 6, r"k: first 7 is out of range; the teacher has 6 layers"),
        ("every second", 1, r"k: every second leaves no layer; the teacher has 1"),
    ],
)
def test_a_layer_map_out_of_range_is_refused(asked: str | tuple[int, ...], count: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        layers_of(asked, count, "k")


def test_layers_that_cannot_stand_in_an_order_are_refused() -> None:
    with pytest.raises(RecipeError, match="modernbert layers cannot stand in this order; let layer 0 come first"):
        select_layers(model_of("modernbert"), [1, 2])


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_student_of_all_layers_is_the_teacher_and_survives_a_save(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    torch.testing.assert_close(logits(select_layers(model, [0, 1, 2])), logits(model))
    student = select_layers(model, [0, 2])
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path, LABELS)), logits(student))


@pytest.mark.parametrize("kind", CUT)
def test_a_narrower_student_runs_and_survives_a_save(kind: str, tmp_path: Path) -> None:
    student = narrow(model_of(kind), 16)
    assert shape_of(student).width == 16
    assert shape_of(student).heads == 2
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path, LABELS)), logits(student))


def test_narrowing_keeps_what_carries_the_answer() -> None:
    """A model whose second half of dimensions, heads and neurons is silent answers the same without them."""
    model = model_of("bert")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    silent = order[16:]
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name or "embeddings" in name:
            continue
        if parameter.ndim == 2 and parameter.shape[1] == 32 and "attention.output" not in name:
            parameter.data[:, silent] = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.output.dense.weight.data *= 1000  # what heads made says nothing of hidden dimensions
        layer.attention.output.dense.weight.data[:, 8:24] = 0.0  # heads 1 and 2 of 4
        layer.output.dense.weight.data[:, ::2] = 0.0
    student = narrow(model, 16)
    first, ours = model.bert.encoder.layer[0], student.bert.encoder.layer[0]
    kept = order[:16].sort().values
    torch.testing.assert_close(ours.attention.self.query.weight, first.attention.self.query.weight[[*range(8), *range(24, 32)]][:, kept])
    torch.testing.assert_close(ours.output.dense.weight, first.output.dense.weight[kept][:, 1::2])
    torch.testing.assert_close(ours.intermediate.dense.bias, first.intermediate.dense.bias[1::2])


@pytest.mark.parametrize(
    ("kind", "width", "message"),
    [
        ("bert", 20, "k: 20 does not fit this teacher; choose a multiple of 8, its head size, below 32"),
        ("bert", 32, "k: 32 does not fit"),
        ("modernbert", 16, "k: modernbert layers cannot be narrowed"),
    ],
)
def test_a_width_that_does_not_fit_is_refused(kind: str, width: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        narrow(model_of(kind), width, "k")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bilstm_has_the_encoders_embeddings_and_never_reads_padding(layers: int, tmp_path: Path) -> None:
    teacher = model_of("bert")
    student = bilstm_over(teacher, BiLSTM(layers=layers, hidden_size=12)).eval()  # type: ignore[arg-type]
    theirs = teacher.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(student.embeddings.weight, theirs / theirs.std())
    with torch.no_grad():
        together = PlainModel(student)(*batch(16, 9, 3))
        for row, length in enumerate((16, 9, 3)):
            alone = PlainModel(student)(*[tensor[:, :length] for tensor in batch(length)])
            torch.testing.assert_close(together[row], alone[0])
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path, LABELS)), logits(student))


def test_a_bilstms_graph_equals_torch(tmp_path: Path) -> None:
    model = PlainModel(bilstm_over(model_of("bert"), BiLSTM(hidden_size=12)))
    export_graph(model, tmp_path / "model.onnx")
    ids = batch(16, 9, 3)[0].numpy()
    texts = Tokens.joined([Tokens(row[:n], row[:n] * 0, np.array([0, n])) for row, n in zip(ids, (16, 9, 3), strict=True)])
    assert parity(model, tmp_path / "model.onnx", texts, [None], 0, 1e-4) < 1e-4


def test_a_student_is_a_model_or_layers_or_a_bilstm(tiny_model: Path, tmp_path: Path) -> None:
    teacher = load_model(tiny_model, LABELS)
    for settings, kind, layers in (
        (Student(model=str(tiny_model)), "bert", 3),
        (Student(layers="last 2", hidden_size=16), "bert", 2),
        (Student(bilstm=BiLSTM(layers=2)), "bilstm", 2),
        (Student(bilstm=BiLSTM(embeddings=str(tiny_model))), "bilstm", 1),
    ):
        student, folder = student_of(settings, "distill", tmp_path, teacher, tiny_model, LABELS, "sequence-classification")
        assert (student.config.model_type, student.config.num_hidden_layers, folder) == (kind, layers, tiny_model)


def test_embeddings_of_the_layers_size_are_narrowed_with_them(tmp_path: Path) -> None:
    config = ElectraConfig(**SIZES, max_position_embeddings=L, embedding_size=32, num_labels=3)
    student = narrow(ElectraForSequenceClassification(config).eval(), 16)
    assert (student.config.embedding_size, shape_of(student).width) == (16, 16)
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path, LABELS)), logits(student))
