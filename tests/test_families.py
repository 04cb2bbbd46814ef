import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
)

from compressor import machine
from compressor.attention import Significance
from compressor.backbones import BACKBONES
from compressor.dropping import State
from compressor.errors import RecipeError
from compressor.families import FAMILIES, PROJECTIONS, Place, Shape, captured, score_bias, shape_of
from compressor.graphs import NAMES, FullLengthModel, export_graph, layered, parity
from compressor.losses import Attention
from compressor.modeling import LengthAdaptiveModel, PlainModel
from compressor.pretrained import HEADS
from compressor.products import count_products
from compressor.quantizers import Quantizer, dynamic, smoothed, static
from compressor.session import Graph
from compressor.settings.deploying import Export
from compressor.students import select_layers
from compressor.tokens import Tokens
from tests.test_graphs import adaptive

L = 16
SIZES: dict[str, Any] = {"vocab_size": 50, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
CONFIGS = {
    "bert": BertConfig(**SIZES, max_position_embeddings=L),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=L + 2, type_vocab_size=1, pad_token_id=0),
    "electra": ElectraConfig(**SIZES, max_position_embeddings=L, embedding_size=24),
    "mpnet": MPNetConfig(**SIZES, max_position_embeddings=L + 2),
    "deberta-v2": DebertaV2Config(  # as version 3 has it
        **SIZES,
        max_position_embeddings=L,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    ),
    "modernbert": ModernBertConfig(**SIZES, max_position_embeddings=L, local_attention=8, pad_token_id=0),
    "distilbert": DistilBertConfig(vocab_size=50, dim=32, hidden_dim=64, n_layers=3, n_heads=4, max_position_embeddings=L),
}


SERVED = [head for head in HEADS if head != "masked-lm"]


def model_of(kind: str, head: str = "sequence-classification") -> PreTrainedModel:
    torch.manual_seed(1)
    config = copy.deepcopy(CONFIGS[kind])  # a model's own: who cuts layers out of it changes no other test's
    config.num_labels = 2 if head == "question-answering" else 3
    return HEADS[head].from_config(config).eval()


def batch(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = torch.zeros(len(lengths), L, dtype=torch.long), torch.zeros(len(lengths), L, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 50, (length,), generator=torch.Generator().manual_seed(length))
        mask[row, :length] = 1
    return ids, mask, torch.zeros_like(ids)


def test_every_family_is_covered_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_captured_is_what_the_layers_computed(kind: str) -> None:
    model = model_of(kind)
    places: list[Place] = [("hidden", i) for i in range(4)] + [(part, i) for part in PROJECTIONS for i in range(3)] + [("hidden", -1)]
    with captured(model, places) as seen, torch.no_grad():
        PlainModel(model)(*batch(16, 9))
        states = model.base_model(input_ids=batch(16, 9)[0], attention_mask=batch(16, 9)[1], output_hidden_states=True).hidden_states
    where = FAMILIES[kind]
    assert shape_of(model) == Shape(3, 32, 4, own_scores=kind in ("deberta-v2", "modernbert"))
    for layer in range(3):
        torch.testing.assert_close(seen["hidden", layer], states[layer])
    assert seen["hidden", -1] is seen["hidden", 3]
    for layer, block in enumerate(model.get_submodule(where.layers)):  # type: ignore[arg-type]
        normed = block.attn_norm(states[layer]) if kind == "modernbert" else states[layer]
        outputs = [block.get_submodule(path)(normed) for path in (where.query, where.key, where.value)]
        if kind == "modernbert":
            outputs = list(outputs[0].chunk(3, -1))
        for part, expected in zip(PROJECTIONS, outputs, strict=True):
            torch.testing.assert_close(seen[part, layer], expected)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if not FAMILIES[kind].own_scores])
@torch.no_grad()
def test_attention_of_what_is_captured_is_what_the_model_computed(kind: str) -> None:
    torch.manual_seed(1)
    model = HEADS["sequence-classification"].from_config(CONFIGS[kind], attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.mul_(5)  # so that distributions are far from even
    ids, mask, _ = batch(16, 9)
    with captured(model, [(part, layer) for part in PROJECTIONS for layer in range(3)]) as seen:
        expected = model.base_model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    for layer in range(3):
        attention = Attention(seen["queries", layer], seen["keys", layer], 4, score_bias(model, mask))
        found, real = attention.log_probabilities(mask.bool()).exp(), mask.bool()
        torch.testing.assert_close(found.transpose(1, 2)[real], expected[layer].transpose(1, 2)[real], atol=1e-5, rtol=1e-4)


def test_hooks_are_gone_afterwards() -> None:
    model = model_of("bert")
    with captured(model, [("hidden", -1)]):
        pass
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", FAMILIES)
def test_select_layers_copies_the_named_layers_and_all_around_them(kind: str) -> None:
    model, path = model_of(kind), FAMILIES[kind].layers
    chosen = [0, 2] if kind == "modernbert" else [2, 0]
    student = select_layers(model, chosen)
    assert student.config.num_hidden_layers == 2
    for ours, theirs in enumerate(chosen):
        layers = student.get_submodule(path), model.get_submodule(path)
        torch.testing.assert_close(layers[0][ours].state_dict(), layers[1][theirs].state_dict())  # type: ignore[index]
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(path)}
    torch.testing.assert_close({k: v for k, v in student.state_dict().items() if not k.startswith(path)}, rest)


def answered(logits: Tensor, *lengths: int) -> list[Tensor]:
    """Each text's logits, without those of padding where every token has some."""
    return [row if row.ndim == 1 else row[:length] for row, length in zip(logits, lengths, strict=True)]


@pytest.mark.parametrize("head", SERVED)
@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_at_full_length_it_is_the_plain_hugging_face_model(kind: str, head: str) -> None:
    model, lengths = model_of(kind, head), (16, 9, 3)
    plain, adaptive = answered(PlainModel(model)(*batch(*lengths)), *lengths), LengthAdaptiveModel(model, L).eval()
    for given in (None, torch.tensor([L] * 3)):
        torch.testing.assert_close(answered(adaptive(*batch(*lengths), given), *lengths), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", SERVED)
@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_a_prediction_does_not_depend_on_its_batch(kind: str, head: str) -> None:
    model, lengths = LengthAdaptiveModel(model_of(kind, head), L).eval(), torch.tensor([12, 6, 1])
    together = answered(model(*batch(16, 9, 3), lengths), 16, 9, 3)
    for row, length in enumerate((16, 9, 3)):
        alone = [tensor[:, :length] for tensor in batch(length)]
        torch.testing.assert_close(together[row], model(*alone, lengths)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", SERVED)
@pytest.mark.parametrize("kind", BACKBONES)
def test_the_exported_graph_equals_torch(kind: str, head: str, tmp_path: Path) -> None:
    model = LengthAdaptiveModel(model_of(kind, head), L).eval()
    export_graph(model, tmp_path / "model.onnx")
    ids = batch(16, 9, 3)[0].numpy()
    texts = Tokens.joined([Tokens(row[:n], row[:n] * 0, np.array([0, n])) for row, n in zip(ids, (16, 9, 3), strict=True)])
    assert parity(model, tmp_path / "model.onnx", texts, [None, (12, 6, 1), (L,) * 3, (1, 1, 1)], 0, 1e-4) < 1e-4


@pytest.mark.parametrize("portable", [True, False])
@pytest.mark.parametrize("significance", ["attention", "sampled", "cls", "learned"])
@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
def test_a_graph_whose_scores_have_a_bias_equals_torch(kind: str, significance: Significance, portable: bool, tmp_path: Path) -> None:
    model = adaptive(model_of(kind), L, significance)
    export_graph(model, tmp_path / "model.onnx", Export(portable=portable))
    ids = batch(16, 9, 3)[0].numpy()
    texts = Tokens.joined([Tokens(row[:n], row[:n] * 0, np.array([0, n])) for row, n in zip(ids, (16, 9, 3), strict=True)])
    assert parity(model, tmp_path / "model.onnx", texts, [None, (12, 6, 1), (9, 9, 2)], 0, 1e-4) < 1e-4


@pytest.mark.parametrize("quantizer", [dynamic, static, smoothed])
@pytest.mark.parametrize("kind", BACKBONES)
def test_the_graph_of_every_family_runs_in_8_bits(kind: str, quantizer: Quantizer, tmp_path: Path) -> None:
    model = LengthAdaptiveModel(model_of(kind), L).eval()
    export_graph(model, tmp_path / "float.onnx")
    feeds = [dict(zip(NAMES, (t.numpy() for t in batch(length)), strict=True)) for length in (16, 9, 3)]
    feeds = [{**feed, "lengths": np.array([L] * 3)} for feed in feeds]
    quantizer(tmp_path / "float.onnx", tmp_path / "int8.onnx", feeds, reduce_range=machine.needs_seven_bits(machine.level()))
    assert count_products(tmp_path / "int8.onnx")["float"] == 0
    ids = batch(16)[0][0].numpy()
    text = Tokens(ids, ids * 0, np.array([0, L]))
    for lengths in ([L] * 3, [12, 6, 1]):
        floats, eights = (Graph(tmp_path / name, 1, single=True, pad_id=0).logits(text, lengths) for name in ("float.onnx", "int8.onnx"))
        np.testing.assert_allclose(eights, floats, atol=0.05)


@pytest.mark.parametrize("quantizer", [dynamic, static, smoothed])
def test_a_teacher_whose_weights_are_used_twice_runs_in_8_bits(quantizer: Quantizer, tmp_path: Path) -> None:
    """DeBERTa-v3's queries and keys of positions are made by the weights of those of tokens."""
    export_graph(PlainModel(model_of("deberta-v2")).eval(), tmp_path / "float.onnx")
    wanted = {value.name for value in onnx.load(tmp_path / "float.onnx").graph.input}  # this one has no segments
    given = [zip(NAMES, (t.numpy() for t in batch(length)), strict=True) for length in (16, 9, 3)]
    feeds, narrow = [{k: v for k, v in one if k in wanted} for one in given], machine.needs_seven_bits(machine.level())
    quantizer(tmp_path / "float.onnx", tmp_path / "int8.onnx", feeds, reduce_range=narrow)
    assert count_products(tmp_path / "int8.onnx")["int8"] > 0
    ids = batch(16)[0][0].numpy()
    text = Tokens(ids, ids * 0, np.array([0, len(ids)]))
    floats, eights = (Graph(tmp_path / name, 1, single=True, pad_id=0).logits(text) for name in ("float.onnx", "int8.onnx"))
    np.testing.assert_allclose(eights, floats, atol=0.05)


def test_an_unsupported_family_is_refused_as_a_length_adaptive_student() -> None:
    with pytest.raises(RecipeError, match="deberta-v2 encoders cannot be length-adaptive students; choose one of bert, distilbert"):
        LengthAdaptiveModel(model_of("deberta-v2"), L)


@pytest.mark.parametrize("head", SERVED)
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_graph_of_a_plain_teacher_or_student_equals_torch(kind: str, head: str, tmp_path: Path) -> None:
    model = PlainModel(model_of(kind, head))
    ids = batch(16, 9, 3)[0].numpy()
    texts = Tokens.joined([Tokens(row[:n], row[:n] * 0, np.array([0, n])) for row, n in zip(ids, (16, 9, 3), strict=True)])
    for exported in (model, layered(model)):
        export_graph(exported, tmp_path / "model.onnx")
        assert parity(model, tmp_path / "model.onnx", texts, [None], 0, 1e-4) < 1e-4
    assert isinstance(exported, FullLengthModel) == (kind in BACKBONES)


@torch.no_grad()
def test_kept_tokens_of_modernbert_stay_where_they_stood() -> None:
    """A layer of local attention after a drop equals Hugging Face's own layer, told the kept tokens' positions and who sees whom."""
    model = model_of("modernbert")
    adaptive, encoder = LengthAdaptiveModel(model, L).eval(), model.model
    layer = encoder.layers[1]
    assert layer.attention_type == "sliding_attention"
    positions, states = torch.tensor([[0, 3, 4, 12, 15]]), torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    state = State(states, torch.ones(1, 5).bool(), positions, torch.zeros(1, 5))
    context, _ = adaptive._attend(layer, states, state, torch.tensor(False), "none")
    far = (positions[0][:, None] - positions[0]).abs() > 4  # local_attention is 8: four to each side
    bias = torch.where(far, torch.finfo(torch.float32).min, 0.0)[None, None]
    rotary = encoder.rotary_emb(states, positions, "sliding_attention")
    expected = layer(states, attention_mask=bias, position_embeddings=rotary)
    torch.testing.assert_close(adaptive.parts.feed_forward(layer, context), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_kept_tokens_of_mpnet_are_as_far_apart_as_they_were() -> None:
    """A layer after a drop equals Hugging Face's own layer, told the bias of where the kept tokens stood."""
    model = model_of("mpnet")
    adaptive, encoder = LengthAdaptiveModel(model, L).eval(), model.base_model.encoder
    layer, positions = encoder.layer[1], torch.tensor([[0, 3, 4, 12, 300], [0, 1, 2, 3, 4]])
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    state = State(states, torch.ones(2, 5).bool(), positions, torch.zeros(2, 5))
    context, _ = adaptive._attend(layer, states, state, torch.tensor(False), "none")
    buckets = encoder.relative_position_bucket(positions[:, None, :] - positions[:, :, None])
    expected = layer(states, position_bias=encoder.relative_attention_bias(buckets).permute(0, 3, 1, 2))[0]
    torch.testing.assert_close(adaptive.parts.feed_forward(layer, context), expected, atol=1e-5, rtol=0)


def test_far_tokens_have_the_bias_that_mpnet_gives_them() -> None:
    torch.manual_seed(0)
    model = MPNetForSequenceClassification(MPNetConfig(**SIZES, max_position_embeddings=202, initializer_range=0.5)).eval()
    ids = torch.randint(5, SIZES["vocab_size"], (1, 200))
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    with torch.no_grad():
        found, wanted = LengthAdaptiveModel(model, 200).eval()(ids, mask, segments), model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
