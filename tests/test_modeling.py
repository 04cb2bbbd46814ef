from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from compressor.dropping import drop, put_back
from compressor.lengths import LengthConfig
from compressor.modeling import AHEAD, LengthAdaptiveModel
from compressor.students import select_layers

L = 16


@pytest.fixture(scope="module")
def model() -> LengthAdaptiveModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=L,
        num_labels=3,
    )
    return LengthAdaptiveModel(BertForSequenceClassification(config), L).eval()


def batch(*lengths: int, longest: int = L) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of the given lengths; each text's tokens depend on its length alone."""
    ids, mask = torch.zeros(len(lengths), longest, dtype=torch.long), torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 50, (length,), generator=torch.Generator().manual_seed(length))
        mask[row, :length] = 1
    return ids, mask, torch.zeros_like(ids)


SHORTER = [(12, 8, 4), (16, 4, 1), (10, 10, 10), (1, 1, 1)]


def test_at_full_length_it_is_the_plain_hugging_face_model(model: LengthAdaptiveModel) -> None:
    ids, mask, segments = batch(16, 9, 3)
    plain = model.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    torch.testing.assert_close(model(ids, mask, segments), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids, mask, segments, torch.tensor([L] * 3)), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", SHORTER)
@pytest.mark.parametrize("significance", ["attention", "sampled", "cls"])
def test_a_prediction_does_not_depend_on_its_batch(model: LengthAdaptiveModel, lengths: tuple[int, ...], significance: str) -> None:
    model = LengthAdaptiveModel(model.model, L, significance).eval()
    config = torch.tensor(lengths)
    together = model(*batch(16, 9, 3, 5), config)
    for row, length in enumerate((16, 9, 3, 5)):
        alone = model(*batch(length, longest=length), config)
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


def test_shorter_lengths_change_the_answer(model: LengthAdaptiveModel) -> None:
    ids, mask, segments = batch(16)
    assert not torch.allclose(model(ids, mask, segments), model(ids, mask, segments, torch.tensor([8, 4, 1])), atol=1e-4)


def test_the_last_layer_of_a_sentence_task_needs_only_cls(model: LengthAdaptiveModel) -> None:
    """Its length has no effect: what it would pass on is not read."""
    inputs = batch(16, 9)
    torch.testing.assert_close(model(*inputs, torch.tensor([12, 8, 8])), model(*inputs, torch.tensor([12, 8, 1])))


def test_drop_keeps_the_most_significant_real_tokens() -> None:
    hidden = torch.arange(10.0).view(2, 5, 1)
    significance = torch.tensor([[1.0, 0.1, 0.9, 0.5, 0.2], [1.0, 0.3, 0.4, 9.0, 9.0]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    kept, still_real, rows = drop(hidden, significance, real, torch.tensor([3, 2]))
    assert rows[0].tolist() == [0, 2, 3]
    assert rows[1, :2].tolist() == [0, 2]
    assert still_real.tolist() == [[True, True, True], [True, True, False]]
    assert kept[0].flatten().tolist() == [0.0, 2.0, 3.0]


def test_cls_stays_however_much_another_token_counts(model: LengthAdaptiveModel) -> None:
    """A text of thousands of tokens may give one of them more than any number that was thought of."""
    ids, mask, segments = batch(16)
    significance = torch.zeros(1, L).index_fill(1, torch.tensor([5]), 1e6)
    _, _, kept = drop(model.parts.embed(ids, segments), significance + model._ahead(segments), mask.bool(), torch.tensor([2]))
    assert kept.tolist() == [[0, 5]]


@torch.no_grad()
def test_restored_tokens_have_the_last_state_that_they_had(model: LengthAdaptiveModel) -> None:
    """Against a naive loop over single texts: drop by hand, remember every token's last state (Drop-and-Restore)."""
    config = LengthConfig((12, 6, 3), L)
    inputs = batch(16, 9)
    found = model.encode(*inputs, torch.tensor(config.lengths))
    bert = model.model.bert
    for row, length in enumerate((16, 9)):
        ids, mask, segments = batch(length, longest=length)
        state = bert.embeddings(input_ids=ids, token_type_ids=segments)[0]
        last, kept = dict(enumerate(state)), list(range(length))
        for index, layer in enumerate(bert.encoder.layer):
            real = torch.ones(1, len(kept)).bool()
            out, significance = model._attend(layer, state[None], state[None], real, ~real.all(), torch.tensor([kept]), "attention")
            assert significance is not None
            order = sorted(range(len(kept)), key=lambda i: (i != 0, -significance[0, i].item()))[: config.kept(length)[index]]
            kept, state = [kept[i] for i in order], out[0, order]
            state = layer.output(layer.intermediate(state), state)
            last |= dict(zip(kept, state, strict=True))
        torch.testing.assert_close(found[row, :length], torch.stack([last[i] for i in range(length)]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_protected_question_leaves_last(model: LengthAdaptiveModel) -> None:
    model = LengthAdaptiveModel(BertForQuestionAnswering(model.model.config), L, protect="question").eval()
    ids, mask, _ = batch(16)
    segments = (torch.arange(L) >= 6).long()[None]
    hidden, real, rows = model.parts.embed(ids, segments), mask.bool(), torch.arange(L)[None]
    _, significance = model._attend(model.parts.layers[0], hidden, hidden, real, ~real.all(), rows, "attention")
    assert significance is not None
    _, _, kept = drop(hidden, significance + (segments == 0) * AHEAD, real, torch.tensor([8]))
    assert set(kept[0, :6].tolist()) == set(range(6))
    assert kept[0, 6:].tolist() == (6 + significance[0, 6:].argsort(descending=True))[:2].tolist()
    short, plain = torch.tensor([8, 8, 8]), LengthAdaptiveModel(model.model, L).eval()
    assert not torch.allclose(model(ids, mask, segments, short), plain(ids, mask, segments, short), atol=1e-4)
    torch.testing.assert_close(model(ids, mask, segments), plain(ids, mask, segments))


@torch.no_grad()
def test_absolute_counts_drop_nothing_of_short_texts(model: LengthAdaptiveModel) -> None:
    absolute, lengths = LengthAdaptiveModel(model.model, L, counts="absolute").eval(), torch.tensor([9, 9, 9])
    together = absolute(*batch(16, 9, 3), lengths)
    torch.testing.assert_close(together[1:], model(*batch(9, 3)), atol=1e-5, rtol=0)
    assert not torch.allclose(together[:1], model(*batch(16)), atol=1e-5)
    torch.testing.assert_close(together[0], absolute(*batch(16), lengths)[0], atol=1e-5, rtol=0)


def test_put_back_leaves_surplus_places_alone() -> None:
    restored = torch.zeros(1, 4, 1)
    real = torch.tensor([[True, False]])
    out = put_back(restored, torch.tensor([[[5.0], [7.0]]]), torch.tensor([[2, 1]]), real, torch.tensor([[0]]), ~real.all())
    assert out.flatten().tolist() == [0, 0, 5, 0]


def test_restoring_at_full_length_gives_the_plain_models_states(model: LengthAdaptiveModel) -> None:
    ids, mask, segments = batch(16, 9)
    plain = model.model.bert(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
    found = model.encode(ids, mask, segments, torch.tensor([L] * 3))
    torch.testing.assert_close(found[mask.bool()], plain[mask.bool()], atol=1e-5, rtol=0)


def test_a_skipped_layer_does_nothing(model: LengthAdaptiveModel) -> None:
    ids, mask, segments = batch(16, 9)
    without = select_layers(model.model, [0, 2]).eval()
    plain = without(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    torch.testing.assert_close(model.without_layers({1}, ids, mask, segments), plain, atol=1e-5, rtol=0)


def test_the_tiny_model_loads_as_a_classifier(tiny_model: Path) -> None:
    assert AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=4).num_labels == 4
