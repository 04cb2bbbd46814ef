from contextlib import nullcontext
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import scoring
from compressor.classification import TextClassification
from compressor.encoded import Encoded
from compressor.errors import StageError
from compressor.progress import Progress
from compressor.seeds import Trained, train_seeds
from compressor.settings.training import Training
from compressor.tokens import Ints, Tokens
from compressor.training import Fitted, Step, _decayed, _factor, _read_ahead, _State, _step, batches, count_steps, fit
from compressor.windows import Windows

TEXTS = 12
SETTINGS = {"epochs": 4, "batch_size": 4, "learning_rate": 0.1, "precision": "float32", "weight_decay": 0.0}


def texts() -> Encoded:
    """Twelve texts of two tokens; the label is whether the first token is odd."""
    ids = np.arange(2 * TEXTS, dtype=np.int32)
    tokens = Tokens(ids, ids.astype(np.int8) * 0, np.arange(0, 2 * TEXTS + 1, 2))
    return Encoded(TextClassification(), Windows.whole(tokens), (np.arange(TEXTS) % 2).astype(np.int64), (), (), 0)


def test_a_model_is_scored_on_the_machines_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        device = torch.device("meta")

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, ids: Tensor, *further: Tensor) -> Tensor:
            assert {tensor.device for tensor in (ids, self.weight, *further)} == {Elsewhere.device}
            return torch.zeros(len(ids), 2)

    monkeypatch.setattr(scoring, "Accelerator", Elsewhere)
    monkeypatch.setattr(scoring, "autocast", lambda *_: nullcontext())
    monkeypatch.setattr(Encoded, "score", lambda _, logits, metric: logits.shape)
    assert scoring.score_of(Probe(), texts(), "accuracy", torch.ones(3)) == (TEXTS, 2)


def test_batches_ahead_are_put_together_while_a_step_is_taken() -> None:
    """A reader that waited to be asked would never make what is waited for here."""
    made = [Event() for _ in range(5)]

    class Ahead:
        ahead = 2

        def batch(self, rows: Ints, draw: int) -> dict[str, object]:
            assert rows.tolist() == [draw - 1]
            made[draw - 1].set()
            return {"rows": rows}

    taken = 0
    for step, rows, arrays in _read_ahead(cast(Encoded, Ahead()), [(n, np.array([n])) for n in range(5)], 5):
        assert step.number == taken == rows[0] == arrays["rows"][0]
        for later in made[taken : taken + 3]:
            assert later.wait(10)
        assert not any(later.is_set() for later in made[taken + 3 :])  # and no more than that are held
        taken += 1
    assert taken == 5


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(2 * TEXTS, 4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 2))


def train(
    trained: nn.Module,
    folder: Path,
    scores: list[float] | None = None,
    fail_at: int | None = None,
    steep_at: int | None = None,
    rated_from: float = 0.0,
    **settings: object,
) -> Fitted:
    """Fit; the scores of the epochs are given, not measured."""

    def losses(batch: dict[str, Tensor], step: Step) -> list[Tensor]:
        loss = nn.functional.cross_entropy(trained(batch["input_ids"]), batch["labels"])
        if step.number == steep_at:
            loss = loss + (loss * 0.0).sqrt()  # a root at zero is finite, its slope is not
        return [loss * float("nan") if step.number == fail_at else loss]

    left = list(scores or [])
    score = (lambda: left.pop(0)) if scores else None
    asked = Training.model_validate(SETTINGS | settings)
    return fit(trained, losses, texts(), asked, 17, folder, Progress(quiet=True), score, rated_from)


def weights(trained: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained.parameters()])


def test_the_best_epochs_weights_are_kept(tmp_path: Path) -> None:
    short, best = model(), model()
    train(short, tmp_path / "a", max_steps=6)
    fitted = train(best, tmp_path / "b", [0.1, 0.9, 0.5, 0.8], keep="best", warmup=0.0)
    assert (fitted.steps, fitted.kept_step) == (12, 6)
    last = model()
    train(last, tmp_path / "c", warmup=0.0)
    assert not torch.equal(weights(best), weights(last))
    saved = torch.load(tmp_path / "b/best.pt", weights_only=True)
    torch.testing.assert_close(best.state_dict(), saved)


def test_the_last_weights_are_kept_unless_asked(tmp_path: Path) -> None:
    one, other = model(), model()
    train(one, tmp_path / "a", [0.9, 0.1, 0.1, 0.1])
    train(other, tmp_path / "b")
    assert torch.equal(weights(one), weights(other))


def test_patience_ends_the_training_early(tmp_path: Path) -> None:
    fitted = train(model(), tmp_path, [0.5, 0.9, 0.8, 0.9], keep="best", patience=1)
    assert (fitted.steps, fitted.kept_step) == (9, 6)


def test_what_is_learned_before_answers_are_is_neither_rated_nor_waited_for(tmp_path: Path) -> None:
    fitted = train(model(), tmp_path / "a", [0.5, 0.4], rated_from=0.5, keep="best", patience=1)  # epochs end after 3, 6, 9 and 12 steps
    assert (fitted.steps, fitted.kept_step) == (12, 9)
    waited = train(model(), tmp_path / "b", [0.5, 0.4, 0.4, 0.4], rated_from=0.6, epochs=6, keep="best", patience=2)
    assert (waited.steps, waited.kept_step) == (18, 12)
    assert train(model(), tmp_path / "c", [0.5], rated_from=0.99, keep="best").kept_step == 12  # nothing was rated: the last weights


def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"step 8 \(training texts \d+, \d+, \d+ …\): the loss is nan; lower learning_rate"):
        train(model(), tmp_path, fail_at=7, checkpoint_every=5)
    assert torch.load(tmp_path / "fit.pt", weights_only=True)["progress"][0] == 5


def test_a_gradient_that_is_not_finite_reaches_no_weight(tmp_path: Path) -> None:
    trained = model()
    with pytest.raises(StageError, match=r"step 4 \(training texts .*\): the gradient's norm is nan; lower learning_rate or set precision"):
        train(trained, tmp_path / "a", steep_at=3)
    assert weights(trained).isfinite().all()


def test_a_training_that_goes_on_keeps_the_best_of_all_epochs(tmp_path: Path) -> None:
    whole, parts = model(), model()
    train(whole, tmp_path / "whole", [0.9, 0.1, 0.2, 0.3], keep="best", checkpoint_every=5)
    with pytest.raises(StageError):
        train(parts, tmp_path / "parts", [0.9, 0.1], fail_at=7, keep="best", checkpoint_every=5)
    again = model()
    fitted = train(again, tmp_path / "parts", [0.1, 0.2, 0.3], keep="best", checkpoint_every=5)
    assert fitted.kept_step == 3
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("content", [b"", b"half", None], ids=["empty", "half", "gone"])
@pytest.mark.parametrize("broken", ["fit.pt", "best.pt"])
def test_a_checkpoint_that_is_not_whole_is_told_and_the_training_begins_anew(
    broken: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, again = model(), model()
    scores: dict[str, Any] = {"scores": [0.9, 0.1, 0.2, 0.3], "keep": "best", "checkpoint_every": 5}
    train(whole, tmp_path / "whole", **scores)
    with pytest.raises(StageError):
        train(model(), tmp_path / "parts", fail_at=7, **scores)
    left = (tmp_path / "parts" / broken).read_bytes()[:-100]
    (tmp_path / "parts" / broken).unlink()
    if content is not None:
        (tmp_path / "parts" / broken).write_bytes(left if content else content)
    train(again, tmp_path / "parts", **scores)
    assert torch.equal(weights(again), weights(whole))
    told = capsys.readouterr().err
    assert ("its checkpoint is not whole" in told) == (content is not None or broken == "best.pt")


def test_a_training_that_a_gpu_began_goes_on_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, again = model(), model()
    train(whole, tmp_path / "whole", [0.9, 0.1, 0.2, 0.3], keep="best", checkpoint_every=5)
    with monkeypatch.context() as gpu:
        gpu.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        with pytest.raises(StageError):
            train(model(), tmp_path / "parts", [0.9, 0.1], fail_at=7, keep="best", checkpoint_every=5)
    train(again, tmp_path / "parts", [0.1, 0.2, 0.3], keep="best", checkpoint_every=5)
    assert torch.equal(weights(again), weights(whole))


def test_the_rate_of_a_training_that_goes_on_is_that_of_all_its_processes(tmp_path: Path) -> None:
    first = train(model(), tmp_path, seeds=2)
    again = train(model(), tmp_path, seeds=2)  # a seed that was done when another one was stopped
    assert again.seconds >= 0.9 * first.seconds
    assert 0 < again.texts_per_second <= 1.2 * first.texts_per_second


def test_steps_follow_from_epochs_and_the_limit() -> None:
    assert count_steps(10, Training(epochs=2, batch_size=4)) == 6
    assert count_steps(10, Training(epochs=0.5, batch_size=4)) == 2
    assert count_steps(10, Training(epochs=2, batch_size=4, max_steps=3)) == 3


@pytest.mark.parametrize(
    ("cpu", "isa", "precision", "bfloat16"),
    [
        ("Intel", ["avx512_bf16", "amx_bf16"], "auto", True),
        ("Intel", ["avx512_bf16"], "auto", False),  # slower than float32 there
        ("AMD EPYC", ["avx512_bf16"], "auto", True),
        ("AMD EPYC", ["avx2"], "auto", False),
        ("Intel", ["avx2"], "bfloat16", True),
        ("Intel", ["amx_bf16"], "float32", False),
    ],
)
def test_products_are_in_bfloat16_where_that_is_fast(
    cpu: str, isa: list[str], precision: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "describe", lambda: {"cpu": cpu, "isa": isa})
    with scoring.autocast(precision, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bfloat16 else torch.float32)


def test_an_epoch_is_rated_without_dropout_and_learned_with_it(tmp_path: Path) -> None:
    trained, seen = model(), list[bool]()

    def losses(batch: dict[str, Tensor], step: Step) -> list[Tensor]:
        seen.append(trained.training)
        return [nn.functional.cross_entropy(trained(batch["input_ids"]), batch["labels"])]

    def score() -> float:
        seen.append(trained.training)
        return 0.5

    asked = Training.model_validate(SETTINGS | {"epochs": 2, "keep": "best"})
    fit(trained, losses, texts(), asked, 17, tmp_path, Progress(quiet=True), score)
    assert seen == [*[True] * 3, False] * 2
    assert not trained.training


def test_the_learning_rate_rises_and_falls_in_straight_lines() -> None:
    found = [_factor(step, 10, 0.2) for step in range(10)]
    assert found == pytest.approx([0.5, 1.0, *(left / 8 for left in range(8, 0, -1))])
    assert [_factor(step, 4, 0.0) for step in range(4)] == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])


def test_of_several_seeds_the_best_goes_on_and_their_spread_is_told(tmp_path: Path) -> None:
    asked, scores = list[tuple[int, Path]](), {5: 0.8, 1005: 0.9, 2005: 0.7}

    def once(seed: int, state: Path) -> Trained:
        asked.append((seed, state))
        return Trained(f"of {seed}", {"validation_score": scores[seed], "texts_per_second": 10.0 * seed})

    best = train_seeds(Training(seeds=3), 5, tmp_path, Progress(quiet=True), once)
    assert asked == [(seed, tmp_path / f"seed-{seed}") for seed in scores]
    assert (best.model, best.metrics["seed"], best.metrics["validation_score"]) == ("of 1005", 1005, 0.9)
    assert best.metrics["texts_per_second"] == pytest.approx(10050)
    assert best.metrics["seeds"] == {"scores": [0.8, 0.9, 0.7], "mean": pytest.approx(0.8), "standard_deviation": pytest.approx(0.1)}
    orders = [np.concatenate([rows for _, rows in batches(np.ones(64), Training(epochs=3), seed, 0, 6)]).tolist() for seed in scores]
    epochs = [tuple(own[begin : begin + 64]) for own in orders for begin in (0, 64, 128)]
    assert len(set(epochs)) == 9, "no epoch of one seed has the order of another's"
    assert train_seeds(Training(), 5, tmp_path, Progress(quiet=True), once).model == "of 5"
    assert asked[-1] == (5, tmp_path)

    def otherwise(seed: int, state: Path) -> Trained:
        return Trained(f"of {seed}", once(seed, state).metrics, rating=-scores[seed])

    assert train_seeds(Training(seeds=3), 5, tmp_path, Progress(quiet=True), otherwise).model == "of 2005", "by what epochs are kept by too"


def test_each_epoch_has_an_order_of_its_own_and_a_second_process_goes_on_in_it() -> None:
    lengths, settings = np.arange(1, 101), Training(epochs=2, batch_size=8)
    whole = [(number, rows.tolist()) for number, rows in batches(lengths, settings, 17, 0, 26)]
    assert [number for number, _ in whole] == list(range(26))
    for epoch in (whole[:13], whole[13:]):
        assert sorted(row for _, rows in epoch for row in rows) == list(range(100))
    assert [rows for _, rows in whole[:13]] != [rows for _, rows in whole[13:]]
    assert [(number, rows.tolist()) for number, rows in batches(lengths, settings, 17, 20, 26)] == whole[20:]


def test_vectors_do_not_decay_and_a_gradient_is_cut_to_a_length_of_one() -> None:
    decayed, others = _decayed(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), 0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert ([p.ndim for p in decayed["params"]], [p.ndim for p in others["params"]]) == ([2], [1, 1, 1])
    weight = nn.Parameter(torch.zeros(4))
    accelerator: Any = SimpleNamespace(backward=lambda loss: loss.backward())
    losses = ((factor * weight).sum() for factor in (100.0, 200.0))
    precision, optimizer = cast(torch.autocast, nullcontext()), torch.optim.SGD([weight], lr=1.0)
    _step(accelerator, precision, nn.ParameterList([weight]), optimizer, losses, 0, np.arange(1))
    torch.testing.assert_close(weight.detach(), torch.full((4,), -0.5))


def test_a_last_epoch_that_is_cut_short_is_rated_too(tmp_path: Path) -> None:
    assert train(model(), tmp_path, [0.5, 0.9], keep="best", epochs=1.67).kept_step == 5


def test_a_gpu_s_random_numbers_go_on_where_fewer_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that was interrupted beside two GPUs may go on beside one."""
    restored = list[Tensor]()
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, *_: restored.append(state))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    network, optimizer = model(), torch.optim.AdamW(model().parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    _State(tmp_path, network, optimizer, schedule, Progress(quiet=True)).save()
    _State(tmp_path, network, optimizer, schedule, Progress(quiet=True))
    assert [state.tolist() for state in restored] == [[7]]
