import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import RecipeError
from compressor.families import PROJECTIONS, Place, Shape
from compressor.losses import Attention, label_loss, logit_loss, relation_loss, soft_label_loss
from compressor.objectives import (
    OBJECTIVES,
    Places,
    Shapes,
    Views,
    check,
    layer_map,
    learned_modules,
    looks_inside,
    places_of,
    relation_heads,
    total,
)
from compressor.settings.distilling import Distill, HiddenCosine, Labels, Logits, MiniLM, MiniLMv2, Objective, SoftLabels, Student, TinyBERT

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
TEACHER, STUDENT = Shape(4, 24, 4), Shape(2, 12, 4)
SETTINGS: dict[type[Objective], Objective] = {
    MiniLM: MiniLM(type="minilm"),
    MiniLMv2: MiniLMv2(type="minilmv2", relation_heads=4),
    TinyBERT: TinyBERT(type="tinybert"),
    HiddenCosine: HiddenCosine(type="hidden_cosine"),
    Logits: Logits(type="logits"),
    SoftLabels: SoftLabels(type="soft_labels"),
    Labels: Labels(type="labels"),
}


def random_inner(shape: Shape, generator: torch.Generator, padding: float) -> dict[Place, Tensor]:
    """Every place of an encoder, under its number from the start and from the end; padding differs by `padding`."""
    found: dict[Place, Tensor] = {}
    for part, count in (("hidden", shape.layers + 1), *((p, shape.layers) for p in PROJECTIONS)):
        for layer in range(count):
            drawn = torch.randn(2, 4, shape.width, generator=generator)
            found[part, layer] = found[part, layer - count] = torch.where(MASK[..., None], drawn, drawn + padding)
    return found


def random_views(student: Shape = STUDENT, same: bool = False, padding: float = 0.0) -> Views:
    generator = torch.Generator().manual_seed(0)
    logits, goal = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    theirs = random_inner(TEACHER, generator, padding)
    ours = theirs if same else random_inner(student, generator, padding)
    return Views(Shapes(student, TEACHER), MASK, torch.tensor([0, 2]), "labels", goal if same else logits, goal, ours, theirs)


def loss(settings: Objective, views: Views) -> Tensor:
    torch.manual_seed(0)
    return total((settings,), views, learned=learned_modules((settings,), views.shapes))


def test_every_objective_is_listed_and_covered_here() -> None:
    assert set(SETTINGS) == set(OBJECTIVES)


@pytest.mark.parametrize("kind", [k for k in SETTINGS if k is not Labels])
def test_distilling_a_model_into_itself_costs_nothing(kind: type[Objective]) -> None:
    learned = learned_modules((SETTINGS[kind],), Shapes(TEACHER, TEACHER))
    for module in learned.values():
        if isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
    assert total((SETTINGS[kind],), random_views(TEACHER, same=True), learned=learned).abs() < 1e-5


@pytest.mark.parametrize("kind", SETTINGS)
def test_padding_does_not_change_a_loss(kind: type[Objective]) -> None:
    torch.testing.assert_close(loss(SETTINGS[kind], random_views()), loss(SETTINGS[kind], random_views(padding=3.0)))


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_objective_moves_the_student_and_never_the_teacher(kind: type[Objective]) -> None:
    views = random_views()
    ours, theirs = (
        [logits, *inner.values()] for logits, inner in ((views.student_logits, views.student), (views.teacher_logits, views.teacher))
    )
    for tensor in (*ours, views.teacher_logits):
        tensor.requires_grad_()
    loss(SETTINGS[kind], views).backward()
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in ours)
    assert all(tensor.grad is None for tensor in theirs)


def attention(queries: Tensor, keys: Tensor, text: int, length: int, head: int) -> Tensor:
    width = queries.shape[-1] // 4
    part = slice(head * width, (head + 1) * width)
    return queries[text, :length, part] @ keys[text, :length, part].T / width**0.5


def naive_kl(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over heads and real queries of KL(teacher ‖ student), text by text and head by head."""
    values = []
    for text, length in enumerate((4, 2)):
        for head in range(4):
            p, q = (attention(*side, text, length, head).softmax(-1) for side in (teacher, student))
            values += list((p * (p / q).log()).sum(-1))
    return torch.stack(values).mean()


def test_relation_loss_equals_a_naive_loop() -> None:
    views = random_views()
    student, teacher = views.student["queries", 0], views.teacher["queries", 0]
    torch.testing.assert_close(relation_loss(student, teacher, MASK, 4), naive_kl((student, student), (teacher, teacher)))


def test_minilm_is_attention_and_value_relations_of_one_layer() -> None:
    views = random_views()
    s, t = views.student, views.teacher
    attention_kl = naive_kl((s["queries", -1], s["keys", -1]), (t["queries", 2], t["keys", 2]))
    expected = attention_kl + naive_kl((s["values", -1],) * 2, (t["values", 2],) * 2)
    torch.testing.assert_close(loss(MiniLM(type="minilm", teacher_layer=2), views), expected)


def test_attention_has_what_each_model_adds_to_its_scores() -> None:
    plain, settings = random_views(), TinyBERT(type="tinybert")
    added = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    ours, theirs = replace(plain, student_bias=added), replace(plain, teacher_bias=added)
    both = replace(ours, teacher_bias=added)
    assert len({loss(MiniLM(type="minilm"), views).item() for views in (plain, ours, theirs, both)}) == 4
    torch.testing.assert_close(loss(settings, both), loss(settings, plain))  # scores differ by as much as before
    assert not torch.isclose(loss(settings, theirs), loss(settings, plain))


def test_scores_are_float32_products_under_autocast_too() -> None:
    views = random_views()
    attention = Attention(views.student["queries", 0], views.student["keys", 0], 4)
    expected = attention.scores()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attention.scores(), expected, rtol=0, atol=0)


def test_minilmv2_sums_query_key_and_value_relations() -> None:
    views = random_views()
    s, t = views.student, views.teacher
    expected = sum(naive_kl((s[part, -1],) * 2, (t[part, 1],) * 2) for part in PROJECTIONS)
    torch.testing.assert_close(loss(MiniLMv2(type="minilmv2", relation_heads=4, teacher_layer=1), views), torch.as_tensor(expected))


def test_tinybert_equals_a_naive_loop_over_texts() -> None:
    views, settings = random_views(), TinyBERT(type="tinybert", layers=(0, 3))
    learned = learned_modules((settings,), views.shapes)
    s, t = views.student, views.teacher
    projection = learned["0"]
    expected = torch.tensor(0.0)
    for ours, theirs in ((0, 0), (1, 1), (2, 4)):
        rows = [(projection(s["hidden", ours][i, :n]) - t["hidden", theirs][i, :n]) ** 2 for i, n in enumerate((4, 2))]
        expected = expected + torch.cat([r.flatten() for r in rows]).mean()
    for ours, theirs in ((0, 0), (1, 3)):
        gaps = [
            attention(s["queries", ours], s["keys", ours], i, n, h) - attention(t["queries", theirs], t["keys", theirs], i, n, h)
            for i, n in enumerate((4, 2))
            for h in range(4)
        ]
        expected = expected + torch.cat([g.flatten() ** 2 for g in gaps]).mean()
    torch.testing.assert_close(total((settings,), views, learned=learned), expected)


def test_layers_are_mapped_to_the_last_of_equal_blocks() -> None:
    assert list(layer_map(None, 4, 12)) == [2, 5, 8, 11]
    assert list(layer_map(None, 6, 12)) == [1, 3, 5, 7, 9, 11]
    assert layer_map((0, 5), 2, 12) == (0, 5)


def test_hidden_cosine_asks_for_directions_not_lengths() -> None:
    views = random_views(TEACHER)
    last: Place = ("hidden", -1)
    for factor, expected in ((3.0, 0.0), (-1.0, 2.0)):
        turned = replace(views, student={last: factor * views.teacher[last]})
        torch.testing.assert_close(loss(SETTINGS[HiddenCosine], turned), torch.tensor(expected), atol=1e-6, rtol=0)


def test_soft_labels_are_forward_kl_scaled_by_the_squared_temperature() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    torch.testing.assert_close(soft_label_loss(student, teacher, MASK, "labels", 2.0), 4 * (p * (p / q).log()).sum())


def test_soft_labels_send_no_gradient_to_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    soft_label_loss(student, teacher, MASK, "labels", 1.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_a_softmax_goes_over_labels_or_over_real_positions() -> None:
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[0, 1, -1, 2], [2, -100, 0, 1]])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.clamp(-1).flatten(), ignore_index=-1)  # -1: a tag that nobody told
    torch.testing.assert_close(label_loss(logits, labels, MASK, "labels"), expected)
    positions = torch.tensor([[3, 0, 1], [1, 0, -100]])
    inside = logits.masked_fill(~MASK[..., None], -torch.inf)
    torch.testing.assert_close(label_loss(logits, positions, MASK, "positions"), F.cross_entropy(inside, positions))


def test_labels_of_which_each_may_hold_are_yes_or_no() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([[1, 0, 1], [-100, -100, -100]])
    expected = F.binary_cross_entropy_with_logits(logits[0], labels[0].float())
    torch.testing.assert_close(label_loss(logits, labels, MASK, "each"), expected)
    teacher = torch.randn(2, 3)
    p, q = ((x / 2).sigmoid() for x in (teacher, logits))
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(soft_label_loss(logits, teacher, MASK, "each", 2.0), 4 * kl.mean())


def test_numbers_are_learned_by_squared_distance() -> None:
    logits, numbers = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2.0, math.nan, 5.0])
    assert label_loss(logits, numbers, MASK, "number") == 2.5
    assert soft_label_loss(logits, logits + 3, MASK, "number", 2.0) == 9.0


def test_weights_multiply_and_losses_add() -> None:
    views = random_views()
    soft, hard = SoftLabels(type="soft_labels", weight=0.25), Labels(type="labels", weight=2.0)
    parts = 0.25 * loss(SETTINGS[SoftLabels], views) + 2 * loss(SETTINGS[Labels], views)
    torch.testing.assert_close(total((soft, hard), views), parts)


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_objective_reaches_the_logits_or_looks_inside(kind: type[Objective]) -> None:
    views = random_views()
    views.student_logits.requires_grad_()
    for inner in views.student.values():
        inner.requires_grad_()
    loss(SETTINGS[kind], views).backward()
    assert kind.answers == (views.student_logits.grad is not None) == (looks_inside((SETTINGS[kind],)) is None)


def test_scores_count_from_where_an_objective_reaches_the_logits() -> None:
    minilm, soft, labels = MiniLMv2(type="minilmv2"), SoftLabels(type="soft_labels", start=0.3), Labels(type="labels", start=0.6)
    student = Student(layers="first 1")
    assert Distill(student=student, objectives=(minilm, labels, soft)).answers_from == 0.3
    assert Distill(student=student, objectives=(minilm,)).answers_from == 0.0


def test_a_schedule_decides_which_objectives_count() -> None:
    views, both = random_views(), (MiniLMv2(type="minilmv2", relation_heads=4, end=0.4), Labels(type="labels", start=0.4))
    torch.testing.assert_close(total(both, views, 0.0), loss(SETTINGS[MiniLMv2], views))
    torch.testing.assert_close(total(both, views, 0.4), loss(SETTINGS[Labels], views))
    assert [bool(places_of(both, views.shapes, share)) for share in (0.0, 0.4, 0.999)] == [True, False, False]
    assert looks_inside(both) == "minilmv2"
    assert looks_inside(both[1:]) is None


def test_an_objective_reads_only_the_places_that_it_names() -> None:
    shapes = Shapes(STUDENT, TEACHER)
    assert places_of((TinyBERT(type="tinybert", attention=False),), shapes, 0.0) == Places(
        frozenset({("hidden", 0), ("hidden", 1), ("hidden", 2)}), frozenset({("hidden", 0), ("hidden", 2), ("hidden", 4)})
    )
    for kind, settings in SETTINGS.items():
        places, views = places_of((settings,), shapes, 0.0), random_views()
        narrowed = replace(
            views,
            student={place: x for place, x in views.student.items() if place in places.student},
            teacher={place: x for place, x in views.teacher.items() if place in places.teacher},
        )
        torch.testing.assert_close(loss(settings, narrowed), loss(settings, views), msg=str(kind))


def test_soft_labels_of_tokens_count_where_there_is_a_label() -> None:
    student, teacher, labels = torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.tensor([[0, -100, 2, 1], [1, 0, -100, -100]])
    views = replace(random_views(), labels=labels, student_logits=student, teacher_logits=teacher)
    rows = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1)]
    p, q = (torch.stack([(x[r] / 2).softmax(-1) for r in rows]) for x in (teacher, student))
    torch.testing.assert_close(loss(SETTINGS[SoftLabels], views), 4 * (p * (p / q).log()).sum(-1).mean())
    expected = torch.stack([(student[r] - teacher[r]).square().mean() for r in rows]).mean()
    torch.testing.assert_close(loss(SETTINGS[Logits], views), expected)


def test_soft_labels_of_positions_leave_padding_out() -> None:
    student, teacher, spans = torch.randn(2, 4, 2), torch.randn(2, 4, 2), torch.tensor([[0, 3], [1, 1]])
    views = replace(random_views(), choice="positions", labels=spans, student_logits=student, teacher_logits=teacher)
    parts = []
    for text, length in enumerate((4, 2)):
        for end in range(2):
            p, q = ((x[text, :length, end] / 2).softmax(-1) for x in (teacher, student))
            parts.append((p * (p / q).log()).sum())
    torch.testing.assert_close(loss(SETTINGS[SoftLabels], views), 4 * torch.stack(parts).mean())
    expected = torch.cat([(student[i, :n] - teacher[i, :n]).square().flatten() for i, n in enumerate((4, 2))]).mean()
    torch.testing.assert_close(loss(SETTINGS[Logits], views), expected)


def test_a_batch_in_which_nothing_counts_costs_nothing() -> None:
    logits, labels = torch.randn(2, 4, 3, requires_grad=True), torch.full((2, 4), -100)
    none = torch.zeros(2, 4, dtype=torch.bool)
    for value in (
        label_loss(logits, labels, none, "labels"),
        soft_label_loss(logits, logits.detach(), none, "labels", 1.0),
        logit_loss(logits, logits, none),
    ):
        value.backward(retain_graph=True)
        assert value.item() == 0.0


@pytest.mark.parametrize(
    ("objective", "student", "message"),
    [
        (MiniLM(type="minilm"), Shape(2, 12, 3), "but the student has 3, the teacher 4; use minilmv2, or tinybert"),
        (MiniLM(type="minilm", teacher_layer=4), STUDENT, "teacher layer 4 is out of range; the teacher has layers 0 to 3"),
        (MiniLMv2(type="minilmv2", relation_heads=5), STUDENT, "relation_heads 5 does not divide the teacher's hidden size 24; 4 does"),
        (MiniLMv2(type="minilmv2", relation_heads=8), STUDENT, "relation_heads 8 does not divide the student's hidden size 12"),
        (TinyBERT(type="tinybert", layers=(1,)), STUDENT, "tinybert maps 1 layers, but the student has 2; name one for each"),
        (TinyBERT(type="tinybert", layers=(1, 9)), STUDENT, "teacher layer 9 is out of range"),
        (MiniLM(type="minilm"), Shape(2, 12, 4, True), "minilm compares attention scores, which the family of this student computes in"),
        (TinyBERT(type="tinybert"), Shape(2, 12, 4, True), "use minilmv2, or tinybert with attention: false"),
        (TinyBERT(type="tinybert"), Shape(6, 24, 4), "the student has 6 layers, but the teacher has 4; name the teacher's layer for each"),
        (TinyBERT(type="tinybert"), Shape(2, 12, 3), "tinybert with attention needs equal head counts"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused(objective: Objective, student: Shape, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check("distill", (objective,), Shapes(student, TEACHER))


@pytest.mark.parametrize(
    ("teacher", "student", "heads"),
    [((768, 12), 384, 12), ((1024, 16), 1024, 16), ((1024, 16), 384, 16), ((24, 4), 12, 12), ((10, 5), 4, 2)],
)
def test_relation_heads_that_nobody_names_divide_both_widths(teacher: tuple[int, int], student: int, heads: int) -> None:
    assert relation_heads(MiniLMv2(type="minilmv2"), Shapes(Shape(2, student, 4), Shape(4, *teacher))) == heads
    assert relation_heads(MiniLMv2(type="minilmv2", relation_heads=3), Shapes(Shape(2, student, 4), Shape(4, *teacher))) == 3


def test_objectives_that_fit_pass() -> None:
    check("distill", list(SETTINGS.values()), Shapes(STUDENT, TEACHER))
    own = Shape(2, 12, 3, own_scores=True)
    for objective in (TinyBERT(type="tinybert", attention=False), MiniLMv2(type="minilmv2"), HiddenCosine(type="hidden_cosine")):
        check("distill", (objective,), Shapes(own, replace(TEACHER, own_scores=True)))


def test_each_objective_has_its_own_projection_whenever_it_begins() -> None:
    views, both = random_views(), (TinyBERT(type="tinybert", end=0.5), HiddenCosine(type="hidden_cosine", start=0.5))
    torch.manual_seed(0)
    learned = learned_modules(both, views.shapes)
    torch.testing.assert_close(total(both, views, 0.7, learned), OBJECTIVES[HiddenCosine].loss(both[1], views, learned["1"]))
