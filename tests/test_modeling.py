import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    RobertaConfig,
    XLMRobertaConfig,
)

from compressor import ranking
from compressor.answering import QuestionAnswering
from compressor.attention import Significance
from compressor.checkpoint import check_positions
from compressor.classification import TextClassification
from compressor.dropping import State, drop, put_back
from compressor.errors import RecipeError
from compressor.lengths import LengthConfig
from compressor.modeling import AHEAD, LengthAdaptiveModel, PlainModel
from compressor.preflight import _known
from compressor.pretrained import load_model
from compressor.stages.finetune import named_otherwise
from compressor.students import select_layers
from tests.test_families import model_of
from tests.test_graphs import adaptive

L = 16
YES, NO = torch.tensor(True), torch.tensor(False)


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


def test_positions_begin_behind_the_id_that_pads_in_every_family_that_has_them_so() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for config, usable in ((XLMRobertaConfig, 16), (RobertaConfig, 16), (BertConfig, 18)):
        model = AutoModelForSequenceClassification.from_config(config(vocab_size=50, max_position_embeddings=18, **sizes))
        check_positions(model, usable)
        with pytest.raises(RecipeError, match=f"has {usable} positions; set data.max_length: {usable}"):
            check_positions(model, usable + 1)


def test_a_config_with_a_value_of_another_kind_is_refused_in_a_line(tmp_path: Path) -> None:
    model_of("bert").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_attention_heads": "four"}), encoding="utf-8")
    with pytest.raises(RecipeError, match="num_attention_heads.*; name a folder of a transformers encoder"):
        load_model(tmp_path, ("a", "b"))


def test_a_head_of_other_labels_is_no_hindrance_to_spans(tmp_path: Path) -> None:
    model_of("distilbert").save_pretrained(tmp_path)  # three labels
    assert load_model(tmp_path, _known(QuestionAnswering()), "question-answering").config.num_labels == 2
    assert _known(TextClassification()) == ()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_head_that_knows_the_labels_in_another_order_answers_in_theirs(kind: str, tmp_path: Path) -> None:
    ready = model_of(kind)
    ready.config.id2label = {0: "Neutral", 1: "negative", 2: "positive"}
    ready.save_pretrained(tmp_path)
    ids, mask, segments = batch(16, 9)
    expected = PlainModel(ready)(ids, mask, segments)[:, [1, 0, 2]]
    found = load_model(tmp_path, ("negative", "neutral", "positive"))
    torch.testing.assert_close(PlainModel(found)(ids, mask, segments), expected)
    assert named_otherwise(tmp_path, ("negative", "neutral", "positive")) is None
    other = load_model(tmp_path, ("0", "1", "2"))
    torch.testing.assert_close(PlainModel(other)(ids, mask, segments), PlainModel(ready)(ids, mask, segments))
    told = named_otherwise(tmp_path, ("0", "1", "2"))
    assert (
        told
        == "its labels Neutral, negative, positive are taken for 0, 1, 2, in this order; add teacher.finetune if they mean something else"
    )


def test_made_up_names_tell_an_order_of_numbers_alone(tmp_path: Path) -> None:
    BertConfig(num_labels=3).save_pretrained(tmp_path)
    assert named_otherwise(tmp_path, ("0", "1", "2")) is None
    told = named_otherwise(tmp_path, ("contradiction", "entailment", "neutral"))
    assert told is not None
    assert told.startswith("its labels LABEL_0, LABEL_1, LABEL_2 are taken for contradiction, entailment, neutral, in this order")
    assert named_otherwise(tmp_path, ("value",)) is None


@pytest.mark.parametrize("labels", [2, 3])
def test_a_trained_classifier_becomes_a_regressor_that_loads_again(tmp_path: Path, labels: int) -> None:
    """transformers notes in config.json that a classifier learned from single labels, and refuses that of one output."""
    ready = model_of("bert")
    ready.config.problem_type, ready.config.num_labels = "single_label_classification", labels
    ready.save_pretrained(tmp_path / "classifier")
    load_model(tmp_path / "classifier", ("value",)).save_pretrained(tmp_path / "regressor")
    assert load_model(tmp_path / "regressor", ("value",)).config.num_labels == 1


def test_weights_by_other_names_are_no_encoder(tmp_path: Path) -> None:
    ready = model_of("bert")
    ready.save_pretrained(tmp_path)
    weights = {f"_orig_mod.{name}": weight.contiguous() for name, weight in ready.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"bert\.embeddings\.\S+ is missing, or of another size; name a folder of a transformers encoder"):
        load_model(tmp_path, ("negative", "positive"))


SHORTER = [(12, 8, 4), (16, 4, 1), (10, 10, 10), (1, 1, 1)]


def test_at_full_length_it_is_the_plain_hugging_face_model(model: LengthAdaptiveModel) -> None:
    ids, mask, segments = batch(16, 9, 3)
    plain = model.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
    torch.testing.assert_close(model(ids, mask, segments), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(ids, mask, segments, torch.tensor([L] * 3)), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", SHORTER)
@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("significance", ["attention", "sampled", "cls", "learned"])
def test_a_prediction_does_not_depend_on_its_batch(
    model: LengthAdaptiveModel, lengths: tuple[int, ...], significance: Significance, neighbours: int
) -> None:
    model = adaptive(copy.deepcopy(model.model), L, significance, neighbours=neighbours)
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


def state_of(hidden: Tensor, real: Tensor, ahead: Tensor | None = None) -> State:
    """Return the state of tokens that are all still there, in their order."""
    rows = torch.arange(hidden.shape[1]).expand(hidden.shape[:2])
    return State(hidden, real, rows, torch.zeros(hidden.shape[:2]) if ahead is None else ahead)


def test_drop_keeps_the_most_significant_real_tokens() -> None:
    hidden = torch.arange(10.0).view(2, 5, 1)
    significance = torch.tensor([[1.0, 0.1, 0.9, 0.5, 0.2], [1.0, 0.3, 0.4, 9.0, 9.0]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    left = drop(state_of(hidden, real), significance, torch.tensor([3, 2]), YES)
    assert left.rows[0].tolist() == [0, 2, 3]
    assert left.rows[1, :2].tolist() == [0, 2]
    assert left.real.tolist() == [[True, True, True], [True, True, False]]
    assert left.hidden[0].flatten().tolist() == [0.0, 2.0, 3.0]


def test_a_token_counts_for_those_beside_it_in_the_text_too() -> None:
    """A stretch that counts goes before a single token that counts more; tokens that have left count nothing."""
    significance = torch.tensor([[0.0, 9.0, 0.0, 0.0, 4.1, 5.0, 4.0, 0.0]])
    state = state_of(torch.arange(8.0).view(1, 8, 1), torch.ones(1, 8).bool())
    assert drop(state, significance, torch.tensor([3]), YES).rows.tolist() == [[1, 5, 4]]
    stretch = drop(state, significance, torch.tensor([3]), YES, neighbours=1)
    assert drop(state, significance, torch.tensor([1]), YES, neighbours=1).rows.tolist() == [[5]]
    assert stretch.rows.tolist() == [[5, 1, 4]]
    assert drop(stretch, torch.tensor([[4.5, 5.5, 4.0]]), torch.tensor([1]), YES, neighbours=1).rows.tolist() == [[5]]


@torch.no_grad()
def test_only_the_question_says_what_counts(model: LengthAdaptiveModel) -> None:
    answering = BertForQuestionAnswering(model.model.config)
    model = LengthAdaptiveModel(answering, L, "question", "question").eval()
    ids, mask, _ = batch(16, 9)
    segments = (torch.arange(L) >= torch.tensor([[6], [4]])).long()
    hidden = model.parts.embed(ids, segments)
    state = state_of(hidden, mask.bool(), model._ahead(segments))
    layer = model.parts.layers[0]
    _, found = model._attend(layer, hidden, state, ~state.real.all(), "question")
    for row, length, asked in ((0, 16, 6), (1, 9, 4)):
        q, k, _ = (x.view(L, 4, 8).transpose(0, 1) for x in [y[row] for y in model.parts.project(layer, hidden, hidden, state.rows)])
        rows = (q[:, :asked] @ k[:, :length].transpose(1, 2) / 8**0.5).softmax(-1)
        torch.testing.assert_close(found[row, :length], rows.sum((0, 1)), atol=1e-5, rtol=1e-5)


def test_cls_stays_however_much_another_token_counts(model: LengthAdaptiveModel) -> None:
    """A text of thousands of tokens may give one of them more than any number that was thought of."""
    ids, mask, segments = batch(16)
    significance = torch.zeros(1, L).index_fill(1, torch.tensor([5]), 1e6)
    state = state_of(model.parts.embed(ids, segments), mask.bool(), model._ahead(segments))
    assert drop(state, significance, torch.tensor([2]), YES).rows.tolist() == [[0, 5]]


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
            here = state_of(state[None], torch.ones(1, len(kept)).bool())._replace(rows=torch.tensor([kept]))
            out, significance = model._attend(layer, here.hidden, here, NO, "attention")
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
    state = state_of(model.parts.embed(ids, segments), mask.bool(), (segments == 0) * AHEAD)
    _, significance = model._attend(model.parts.layers[0], state.hidden, state, NO, "attention")
    kept = drop(state, significance, torch.tensor([8]), YES).rows
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
    state = state_of(torch.tensor([[[5.0], [7.0]]]), torch.tensor([[True, False]]))._replace(rows=torch.tensor([[2, 1]]))
    out = put_back(restored, state, YES, YES)
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


def test_layers_learn_to_rank_as_the_last_one_attends(model: LengthAdaptiveModel) -> None:
    """Only the rankings learn: what they are read off stays as it is."""
    learned, inputs = LengthAdaptiveModel(copy.deepcopy(model.model), L, "learned"), batch(16, 9, 5)
    rankers = learned.model.get_parameter(ranking.NAME)
    before, after = learned.with_ranking_loss(*inputs, "labels")
    torch.testing.assert_close(before, learned(*inputs))
    after.backward()
    assert [name for name, weights in learned.named_parameters() if weights.grad is not None] == [f"model.{ranking.NAME}"]
    optimizer = torch.optim.Adam([rankers], 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss = learned.with_ranking_loss(*inputs, "labels")[1]
        loss.backward()
        optimizer.step()
    assert loss < after / 3
    seen = list[Tensor]()
    with torch.no_grad():
        learned.encode(*inputs, restore=False, seen=seen)
    best = seen[-1][0, 1:].argmax() + 1  # [CLS], which always stays, aside
    told = ranking.significance_of(seen[0], rankers[0], inputs[1].bool(), inputs[1].bool(), YES)
    assert told[0, 1:].argmax() + 1 == best
    assert (told[1, 9:] == 0).all()


def asking(model: LengthAdaptiveModel, neighbours: int = 0) -> tuple[LengthAdaptiveModel, tuple[Tensor, ...]]:
    """Return a model that answers questions and learns to rank by them, and texts whose first six tokens are the question."""
    ids, mask, _ = batch(16, 12)
    answering = BertForQuestionAnswering(model.model.config)
    segments = (torch.arange(L) >= 6).long().expand_as(ids)
    return LengthAdaptiveModel(answering, L, "learned", "question", neighbours=neighbours).eval(), (ids, mask, segments)


@torch.no_grad()
def test_a_token_counts_by_each_of_the_questions(model: LengthAdaptiveModel) -> None:
    """Padding counts for nothing and changes nothing."""
    asked, (ids, mask, segments) = asking(model)
    states, ranker = asked.parts.embed(ids, segments), asked.model.get_parameter(ranking.NAME)[0]
    real = mask.bool()
    found = ranking.significance_of(states, ranker, real, real & (segments == 0), YES)
    ours, theirs = ranker * ranker.shape[-1] ** 0.5
    for row, length in enumerate((16, 12)):
        pairs = torch.stack([states[row, :length] @ ours.T @ (theirs @ states[row, q]) for q in range(6)], 1)
        torch.testing.assert_close(found[row, :length], (pairs.exp() / pairs.exp().sum()).sum(1))
    assert (found[1, 12:] == 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@torch.no_grad()
def test_of_a_question_too_what_counts_least_leaves_first(model: LengthAdaptiveModel) -> None:
    """What layers learned are small numbers, which all look alike beside a large one."""
    asked, (ids, mask, segments) = asking(model)
    states, real, ahead = asked.parts.embed(ids, segments), mask.bool(), asked._ahead(segments)
    nearly_alike = 0.1 * asked.model.get_parameter(ranking.NAME)[0]
    told = ranking.significance_of(states, nearly_alike, real, real & (segments == 0), YES)
    kept = drop(state_of(states, real, ahead), told, torch.tensor([4, 4]), YES).rows
    assert kept[:, 0].tolist() == [0, 0]
    assert kept[:, 1:].tolist() == (1 + told[:, 1:6].argsort(descending=True))[:, :3].tolist()


def test_layers_learn_where_answers_will_be(model: LengthAdaptiveModel) -> None:
    """The encoder learns with its rankings, because early layers know too little of it; of the head nothing is asked."""
    asked, inputs = asking(model, neighbours=1)
    with torch.no_grad():
        asked.model.qa_outputs.weight.normal_()
        goal = asked(*inputs)
    optimizer = torch.optim.Adam(asked.parameters(), 0.003)
    first = asked.with_ranking_loss(*inputs, "positions")[1]
    first.backward()
    assert asked.model.qa_outputs.weight.grad is None
    assert asked.parts.layers[0].attention.self.value.weight.grad.abs().sum() > 0
    for _ in range(60):
        optimizer.zero_grad()
        logits, loss = asked.with_ranking_loss(*inputs, "positions")
        (loss + torch.nn.functional.mse_loss(logits, goal)).backward()
        optimizer.step()
    assert loss < first / 2


def test_what_a_token_is_worth_is_how_likely_an_answer_begins_or_ends_beside_it() -> None:
    logits = torch.full((1, 4, 2), -1e4)
    logits[0, 1, 0] = logits[0, 2, 1] = 0.0
    mask = torch.tensor([[True, True, True, False]])
    attention = torch.tensor([[4.0, 3.0, 2.0, 0.0]])
    assert ranking.worth(logits, attention, mask, "positions", 0).tolist() == [[0, 0.5, 0.5, 0]]
    torch.testing.assert_close(ranking.worth(logits, attention, mask, "positions", 1), torch.tensor([[0.5, 1, 1, 0.5]]) / 3)
    assert ranking.worth(logits, attention, mask, "labels", 1) is not attention
    assert ranking.worth(logits, attention, mask, "labels", 1).tolist() == attention.tolist()


def test_nothing_is_learned_of_tokens_that_are_sure_to_stay(model: LengthAdaptiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    states, paid = torch.randn(1, 5, 8), torch.rand(1, 5)
    rankers, open_ = torch.randn(1, 8), torch.tensor([[False, True, True, True, False]])
    found = [ranking.ranking_loss([states], rankers, paid + more, open_, open_) for more in (0.0, torch.tensor([9.0, 0, 0, 0, 9.0]))]
    goal, told = paid[0, 1:4] / paid[0, 1:4].sum(), (states[0, 1:4] @ rankers[0] * 8**0.5).log_softmax(0)
    torch.testing.assert_close(found, [(goal * (goal.log() - told)).sum()] * 2)
    asked, inputs = asking(model)
    seen = list[tuple[Tensor, ...]]()
    monkeypatch.setattr(ranking, "ranking_loss", lambda *given: seen.append(given[3:]) or torch.zeros(()))
    asked.with_ranking_loss(*inputs, "positions")
    for row, length in enumerate((16, 12)):
        assert seen[0][0][row].tolist() == [6 <= place < length for place in range(L)]
        assert seen[0][1][row].tolist() == [place < 6 for place in range(L)]


def test_rankings_take_no_part_of_the_clipped_gradient() -> None:
    torch.manual_seed(0)
    states, ranker, paid = torch.randn(1, 5, 8), torch.randn(1, 8, requires_grad=True), torch.rand(1, 5)
    real = torch.ones(1, 5, dtype=torch.bool)
    ranking.ranking_loss([states], ranker, paid, real, real).backward()
    told = (states @ ranker[0] * 8**0.5).log_softmax(1)
    (free,) = torch.autograd.grad(torch.nn.functional.kl_div(told, paid / paid.sum(), reduction="sum"), ranker)
    torch.testing.assert_close(ranker.grad, free / 8)  # smaller by the width
