from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import BertForMaskedLM

from compressor import distillation
from compressor.choices import UNLABELLED
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.distillation import _epochs_inside, losses_of
from compressor.encoded import Encoded, tokenizer_of
from compressor.families import Place, captured, shape_of
from compressor.masking import MaskedText
from compressor.modeling import PlainModel
from compressor.objectives import Shapes, learned_modules
from compressor.progress import Progress
from compressor.settings.distilling import Distill, MiniLM, SoftLabels, Student, TinyBERT
from compressor.tasks import TRAINED
from compressor.teaching import Ragged, TeacherOutputs
from compressor.tokens import Tokens
from compressor.training import Step
from compressor.windows import Windows
from tests.conftest import sentences
from tests.test_families import model_of

PLACES: list[Place] = [("queries", -1), ("hidden", 0)]
LENGTHS = (9, 4, 12, 4)


class Counting(PlainModel):
    """A teacher that counts its forward passes."""

    passes: ClassVar[int] = 0

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        Counting.passes += 1
        return super().forward(*inputs)


def encoded() -> Encoded:
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 50, n).astype(np.int32) for n in LENGTHS]
    texts = Tokens.joined([Tokens(x, np.zeros(len(x), np.int8), np.array([0, len(x)])) for x in ids])
    return Encoded(TextClassification(), Windows.whole(texts), np.zeros(4, np.int64), (), (), 0)


def outputs(folder: Path, room: float = 1e9) -> tuple[TeacherOutputs, Counting]:
    teacher = Counting(model_of("bert"))
    Counting.passes = 0
    return TeacherOutputs(teacher, encoded(), False, folder, room, Progress(quiet=True)), teacher


def ask(store: TeacherOutputs, *rows: int) -> tuple[torch.Tensor, dict[Place, torch.Tensor]]:
    return store.of(torch.tensor(rows), PLACES, torch.device("cpu"))


def test_what_is_read_is_what_the_teacher_computes(tmp_path: Path) -> None:
    store, teacher = outputs(tmp_path)
    ask(store, 2, 0, 1, 3)
    logits, insides = ask(store, 0, 3)
    batch = {name: torch.from_numpy(array) for name, array in encoded().batch(np.array([0, 3])).items()}
    with captured(teacher.model, PLACES) as seen, torch.no_grad():
        expected = teacher(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    torch.testing.assert_close(logits, expected)
    real = batch["attention_mask"].bool()
    for place in PLACES:
        assert insides[place].shape == seen[place].shape
        torch.testing.assert_close(insides[place][real].float(), seen[place][real], atol=2e-3, rtol=1e-3)


def test_each_text_is_computed_once_whatever_batch_it_comes_in(tmp_path: Path) -> None:
    store, teacher = outputs(tmp_path)
    for rows in ((0, 1), (2, 3), (3, 0), (1, 2), (0, 1, 2, 3)):
        ask(store, *rows)
    assert teacher.passes == 2


def test_a_second_process_goes_on_with_what_the_first_one_stored(tmp_path: Path) -> None:
    first = outputs(tmp_path)[0]
    known = ask(first, 0, 1)
    store, teacher = outputs(tmp_path)
    again = ask(store, 0, 1)
    assert teacher.passes == 0
    torch.testing.assert_close(again, known, rtol=0, atol=0)
    ask(store, 1, 2)  # a batch of which one text is new changes nothing of the other
    torch.testing.assert_close(ask(store, 0, 1), known, rtol=0, atol=0)


def test_what_does_not_fit_is_computed_at_each_step_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = Counting(model_of("bert"))
    Counting.passes = 0
    store = TeacherOutputs(teacher, encoded(), False, tmp_path, sum(LENGTHS) * 32 * 2 + 10, Progress())  # of one place of two
    expected = ask(outputs(tmp_path / "whole")[0], 0, 2)[1]
    Counting.passes = 0
    for _ in range(2):
        found = ask(store, 0, 2)[1]
        for place in PLACES:
            torch.testing.assert_close(found[place][1], expected[place][1], atol=0, rtol=0)  # rounded as what is stored
    assert teacher.passes == 2
    assert capsys.readouterr().err.count("computed at each step, not stored") == 1
    assert sorted(p.name for p in tmp_path.glob("*.bin")) == ["logits.bin"]


def test_what_an_interrupted_run_stored_counts_when_it_goes_on(tmp_path: Path) -> None:
    """A run that goes on in a later phase opens what that one asks for first, and must not find more room than before."""
    room = 3 * sum(LENGTHS) * 32 * 2 + 10
    ask(outputs(tmp_path, room)[0], 0, 1)
    store = outputs(tmp_path, room)[0]
    later: list[Place] = [("values", -1), ("keys", -1)]
    store.of(torch.tensor([0, 1]), later, torch.device("cpu"))
    assert sorted(p.name for p in tmp_path.glob("*.bin")) == ["hidden0.bin", "logits.bin", "queries-1.bin"]
    assert {place for place, own in store.insides.items() if own is None} == set(later)


def test_a_store_takes_its_room_at_once(tmp_path: Path) -> None:
    Ragged(tmp_path / "x.bin", np.array([1000, 3000]), 64, "float16")
    assert (tmp_path / "x.bin").stat().st_blocks * 512 >= 4000 * 64 * 2


def test_a_students_attention_is_compared_with_the_bias_of_both(tmp_path: Path) -> None:
    """Two MPNets that differ in their table of biases alone have other attention, and only the student's table learns."""
    teacher, student = PlainModel(model_of("mpnet")), PlainModel(model_of("mpnet"))
    table = student.model.base_model.encoder.relative_attention_bias.weight
    settings = Distill(student=Student(layers="first 3"), objectives=(MiniLM(type="minilm"),))
    shapes, batch = Shapes(shape_of(student.model), shape_of(teacher.model)), encoded().batch(np.array([0, 2]))
    store = TeacherOutputs(teacher, encoded(), False, tmp_path, 0.0, Progress(quiet=True))
    losses = losses_of(settings, student, learned_modules(settings.objectives, shapes), shapes, store, "labels")

    def loss() -> torch.Tensor:
        (found,) = losses({name: torch.from_numpy(array) for name, array in batch.items()}, Step(0, 0.0))
        return found

    assert loss().abs() < 1e-6
    with torch.no_grad():
        table.normal_(generator=torch.Generator().manual_seed(0))
    found = loss()
    found.backward()
    assert found > 0.01
    assert table.grad is not None
    assert table.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in store.teacher.parameters())


def test_padding_is_not_stored(tmp_path: Path) -> None:
    store = Ragged(tmp_path / "x.bin", np.array([1, 3]), 2, "float32")
    batch: NDArray[np.floating] = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    store.write(np.array([0, 1]), batch)
    assert store.values.tolist() == [[0, 1], [6, 7], [8, 9], [10, 11]]
    assert store.read(np.array([1, 0])).tolist() == [[[6, 7], [8, 9], [10, 11]], [[0, 1], [0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("asked", "epochs"), [({"epochs": 1}, 1), ({"epochs": 2}, 2), ({"epochs": 5, "max_steps": 3}, 1), ({"seeds": 3}, 9)]
)
def test_how_often_texts_are_looked_into_follows_from_the_steps(asked: dict[str, int], epochs: float) -> None:
    """A store is worth its room where a text is read twice."""
    student, objectives = Student(layers="first 3"), (MiniLM(type="minilm"),)
    settings = Distill.model_validate({"epochs": 3, "batch_size": 4, "student": student, "objectives": objectives} | asked)
    assert _epochs_inside(settings, 10) == epochs


def test_under_autocast_the_teacher_answers_the_same_and_is_left_as_it_was(tmp_path: Path) -> None:
    store, teacher = outputs(tmp_path)
    batch = {name: torch.from_numpy(array) for name, array in encoded().batch(np.array([0, 2])).items()}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = teacher(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).float()
        logits, _ = ask(store, 0, 2)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in store.teacher.parameters()}


def test_under_autocast_a_table_that_also_decodes_stays_as_it_is(tmp_path: Path) -> None:
    teacher = PlainModel(BertForMaskedLM(model_of("bert").config).eval())
    store = TeacherOutputs(teacher, encoded(), True, tmp_path, 1e9, Progress(quiet=True))
    batch = {name: torch.from_numpy(array) for name, array in encoded().batch(np.array([0, 2])).items()}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        with captured(teacher.model, PLACES) as seen:
            teacher(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        _, insides = store._forward(np.array([0, 2]), PLACES, torch.device("cpu"), 0)
    for place in PLACES:
        torch.testing.assert_close(insides[place], seen[place], rtol=0, atol=0)


def test_a_teacher_is_asked_about_the_tokens_that_this_step_hides(tiny_model: Path, tmp_path: Path) -> None:
    task, read = TRAINED["masked-lm"](), [Example(text) for text, _ in sentences(8, 1)]
    texts = MaskedText.of(task, task.windows(tokenizer_of(tiny_model), read, 16, 0), tiny_model)
    model = PlainModel(BertForMaskedLM(model_of("bert").config).eval())
    settings = Distill(student=Student(layers="first 3"), objectives=(SoftLabels(type="soft_labels"),))
    shapes = Shapes(shape_of(model.model), shape_of(model.model))
    store = TeacherOutputs(model, texts, True, tmp_path, 0.0, Progress(quiet=True))
    losses, step = losses_of(settings, model, learned_modules(settings.objectives, shapes), shapes, store, "labels"), Step(3, 0.5)
    batch = {name: torch.from_numpy(array) for name, array in texts.batch(np.arange(8), step.draw).items()}
    (found,) = losses(batch, step)
    assert (batch["labels"] != UNLABELLED).any()
    assert found.abs() < 1e-6  # a student that is its teacher has nothing to learn


def test_values_that_are_gone_are_not_known(tmp_path: Path) -> None:
    """A cache that was restored in part: zeros for all that the teacher said would be learned from in silence."""
    store, rows = Ragged(tmp_path / "x.bin", np.array([1, 2]), 2, "float32"), np.array([0, 1])
    store.write(rows, np.ones((2, 2, 2), np.float32))
    assert Ragged(tmp_path / "x.bin", np.array([1, 2]), 2, "float32").has(rows)
    (tmp_path / "x.bin").unlink()
    assert not Ragged(tmp_path / "x.bin", np.array([1, 2]), 2, "float32").known.any()


def test_projections_learn_and_scores_count_from_where_answers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()

    def fit(learner: nn.Module, *given: Any) -> SimpleNamespace:
        seen.append((learner, given))
        return SimpleNamespace()

    monkeypatch.setattr(distillation, "fit", fit)
    monkeypatch.setattr(distillation.dataclasses, "asdict", lambda _: {})  # type: ignore[attr-defined]
    monkeypatch.setattr(distillation, "score_of", lambda *_: 0.0)
    student = model_of("bert")
    objectives = (TinyBERT(type="tinybert", end=0.5), SoftLabels(type="soft_labels", start=0.5))
    settings, shape = Distill(student=Student(layers="first 3"), objectives=objectives), shape_of(student)
    nothing: Any = None
    lesson = distillation._Lesson(nothing, nothing, nothing, Shapes(shape, shape), TextClassification())
    recipe: Any = SimpleNamespace(seed=1, task=SimpleNamespace(metric="accuracy"))
    distillation._taught(settings, recipe, lambda _: (student, tmp_path), lesson, nothing, tmp_path, Progress(quiet=True))
    ((learner, given),) = seen
    assert [name for name, _ in learner.named_parameters() if name.startswith("1.")]
    assert given[-1] == 0.5
