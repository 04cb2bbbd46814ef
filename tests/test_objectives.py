import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.objectives import OBJECTIVES, Views, active, label_loss, relation_loss, soft_label_loss, total
from compressor.recipe import Labels, MiniLMv2, SoftLabels

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()


def random_views(seed: int = 0, same: bool = False, padding: float = 0.0) -> Views:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    teacher = tuple(draw(2, 4, 24) for _ in range(3))
    student = teacher if same else tuple(draw(2, 4, 12) for _ in range(3))
    student, teacher = (tuple(torch.where(MASK[..., None], x, x + padding) for x in side) for side in (student, teacher))
    goal = draw(2, 3)
    return Views(MASK, torch.tensor([0, 2]), -1, goal if same else draw(2, 3), goal, student, teacher)  # type: ignore[arg-type]


SETTINGS = {
    MiniLMv2: MiniLMv2(type="minilmv2", relation_heads=4),
    SoftLabels: SoftLabels(type="soft_labels"),
    Labels: Labels(type="labels"),
}


def test_every_objective_is_listed_and_covered_here() -> None:
    assert set(SETTINGS) == set(OBJECTIVES)


def test_distilling_a_model_into_itself_costs_nothing() -> None:
    for kind in (MiniLMv2, SoftLabels):
        assert total((SETTINGS[kind],), random_views(same=True)).abs() < 1e-6


def test_padding_does_not_change_a_loss() -> None:
    for kind, settings in SETTINGS.items():
        torch.testing.assert_close(
            total((settings,), random_views(padding=0.0)), total((settings,), random_views(padding=3.0)), msg=kind.__name__
        )


def test_relation_loss_equals_a_naive_loop() -> None:
    views = random_views()
    assert views.student_relations is not None
    assert views.teacher_relations is not None
    student, teacher = views.student_relations[0], views.teacher_relations[0]
    values = []
    for text, length in enumerate((4, 2)):
        for query in range(length):
            total_kl = torch.tensor(0.0)
            for head in range(4):
                s, t = student[text, :length].unflatten(-1, (4, 3))[:, head], teacher[text, :length].unflatten(-1, (4, 6))[:, head]
                p = (t[query] @ t.T / 6**0.5).softmax(-1)
                q = (s[query] @ s.T / 3**0.5).softmax(-1)
                total_kl = total_kl + (p * (p / q).log()).sum()
            values.append(total_kl)
    torch.testing.assert_close(relation_loss(student, teacher, MASK, 4), torch.stack(values).mean() / 4)  # mean over heads too


def test_soft_labels_are_forward_kl_scaled_by_the_squared_temperature() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    torch.testing.assert_close(soft_label_loss(student, teacher, -1, 2.0), 4 * (p * (p / q).log()).sum())


def test_soft_labels_send_no_gradient_to_the_teacher() -> None:
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    soft_label_loss(student, teacher, -1, 1.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_class_axis_chooses_labels_or_positions() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 1, 2, -100, 1], [2, 2, 0, 1, -100]])
    torch.testing.assert_close(label_loss(logits, labels, -1), F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))
    positions = torch.tensor([[4, 0, 1], [2, 3, 3]])
    torch.testing.assert_close(label_loss(logits, positions, 1), F.cross_entropy(logits, positions))


def test_weights_multiply_and_losses_add() -> None:
    views = random_views()
    soft, hard = SoftLabels(type="soft_labels", weight=0.25), Labels(type="labels", weight=2.0)
    parts = 0.25 * total((SETTINGS[SoftLabels],), views) + 2 * total((SETTINGS[Labels],), views)
    torch.testing.assert_close(total((soft, hard), views), parts)


def test_a_schedule_decides_which_objectives_are_active() -> None:
    first, second = MiniLMv2(type="minilmv2", end=0.4), Labels(type="labels", start=0.4)
    assert active((first, second), 0.0) == (first,)
    assert active((first, second), 0.4) == (second,)
    assert active((first, second), 0.999) == (second,)
