"""The training loop, the only one: finetune, distill and length_adapt differ in the losses they hand it.

What:     AdamW, linear schedule with warm-up, batches bucketed by length, bfloat16 autocast where the processor is fast at it.
Resume:   every `checkpoint_every` steps, and on SIGINT or SIGTERM, the state is committed by rename; a second run goes on inside
          the epoch and ends with the same weights. Batches and LengthDrop samples derive from the seed and the step, not from history.
Limits:   one process; `precision: auto` on a GPU or another processor gives other last digits than here, and a GPU, which adds in no
          order of its own, other ones each time.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from compressor.cheapening import cheapen
from compressor.encoded import Encoded
from compressor.errors import StageError, one_line
from compressor.interrupts import Interrupted, held_back
from compressor.progress import Progress
from compressor.scoring import autocast, on
from compressor.settings.training import Training
from compressor.tokens import Ints, length_batches


@dataclass(frozen=True)
class Step:
    """Where the training stands: the step's number, and the share of all steps that lie behind it."""

    number: int
    share: float

    @property
    def draw(self) -> int:
        """Return which draw of a varying text's batch this step reads; 0 is for scores."""
        return self.number + 1


Losses = Callable[[dict[str, Tensor], Step], Iterable[Tensor]]
"""Losses of one batch; each is back-propagated as it is yielded, so that a sandwich holds one graph at a time."""


@dataclass(frozen=True)
class Fitted:
    """What a training did: optimizer steps, the last smoothed loss, seconds and texts per second of all processes, the step it kept."""

    steps: int
    loss: float
    seconds: float
    texts_per_second: float
    kept_step: int


def fit(
    model: nn.Module,
    losses: Losses,
    train: Encoded,
    settings: Training,
    seed: int,
    state: Path,
    log: Progress,
    score: Callable[[], float] | None = None,
    rated_from: float = 0.0,
) -> Fitted:
    """Train the model in place and return what was done; go on from `state` when it holds a checkpoint.

    With `settings.keep` best, `score` is asked after every epoch, and the model ends with the weights that it rated highest; what was
    learned before the share `rated_from` of the steps is not rated, and patience begins there.

    Raises:
        StageError: a loss or its gradient is not finite; the step is named, counted from 1, and the weights stay as they were before it.
        Interrupted: a signal came; the state is saved.
    """
    accelerator = Accelerator()
    precision = autocast(settings.precision, accelerator.device)
    if accelerator.device.type == "cpu":
        cheapen(model)
    model.to(accelerator.device).train()
    steps, per_epoch = count_steps(len(train), settings), math.ceil(len(train) / settings.batch_size)
    unrated = math.ceil(rated_from * steps)
    optimizer = torch.optim.AdamW(_decayed(model, settings.weight_decay), lr=settings.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps, settings.warmup))
    torch.manual_seed(seed)
    run = _State(state, model, optimizer, scheduler, log)
    if run.done:
        log.note(f"going on after step {run.done} of {steps}")
    try:
        for step, rows, arrays in _read_ahead(train, batches(train.tokens.lengths, settings, seed, run.done, steps), steps):
            batch = on(accelerator.device, arrays)
            if settings.patience is not None and run.done - max(run.best_step, unrated) >= settings.patience * per_epoch:
                log.note(f"stopped after step {run.done} of {steps}: no better score in {settings.patience} epochs")
                break
            with held_back():
                loss = _step(accelerator, precision, model, optimizer, losses(batch, step), step.number, train.windows.owners[rows])
                scheduler.step()
                run.count(loss, len(rows))
                if score and settings.keep == "best" and run.done > unrated and (run.done % per_epoch == 0 or run.done == steps):
                    run.rate(score)
                if run.done % settings.checkpoint_every == 0 and run.done < steps:
                    run.save()
            if run.done % 5 == 0 or run.done == steps:
                log.steps(run.done, steps, loss=run.loss, rate=f"{run.rate_of_reading():.0f} texts/s")
        if settings.seeds > 1:
            run.save(finished=True)
    except Interrupted:
        with held_back():  # CI systems send a second signal soon after the first
            run.save()
        raise
    seconds, rate = run.seconds, run.rate_of_reading()
    run.restore_best()
    model.eval()
    return Fitted(run.done, run.loss, seconds, rate, run.best_step or run.done)


def count_steps(examples: int, settings: Training) -> int:
    """Return the optimizer steps of the whole training."""
    steps = max(1, round(math.ceil(examples / settings.batch_size) * settings.epochs))
    return min(steps, settings.max_steps or steps)


def batches(lengths: Ints, settings: Training, seed: int, first: int, steps: int) -> Iterator[tuple[int, Ints]]:
    """Yield (step, rows of its batch) from step `first` on; an epoch's order is drawn when it begins."""
    per_epoch = math.ceil(len(lengths) / settings.batch_size)
    for epoch in range(first // per_epoch, math.ceil(steps / per_epoch)):
        for number, rows in enumerate(length_batches(lengths, settings.batch_size, seed + epoch), epoch * per_epoch):
            if first <= number < steps:
                yield number, rows


def _read_ahead(train: Encoded, order: Iterable[tuple[int, Ints]], steps: int) -> Iterator[tuple[Step, Ints, dict[str, Any]]]:
    """Yield each step with its batch; those of a split that reads ahead are put together by another thread."""

    def ready(number: int, rows: Ints) -> tuple[Step, Ints, dict[str, Any]]:
        step = Step(number, number / steps)
        return step, rows, train.batch(rows, step.draw)

    if not train.ahead:
        yield from (ready(*following) for following in order)
        return
    pending = deque[Future[tuple[Step, Ints, dict[str, Any]]]]()
    with ThreadPoolExecutor(1) as reader:
        for following in order:
            pending.append(reader.submit(ready, *following))
            if len(pending) > train.ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _step(
    accelerator: Accelerator,
    precision: torch.autocast,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    number: int,
    texts: Ints,
) -> float:
    values, pending = list[Tensor](), iter(losses)
    while True:
        with precision:
            loss = next(pending, None)
        if loss is None:
            break
        values.append(loss.detach())
        accelerator.backward(loss)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    found: list[float] = torch.stack([torch.stack(values).sum(), norm]).tolist()  # read together: a GPU is waited for once a step
    value, size = found
    if not math.isfinite(value) or not math.isfinite(size):
        batch = f"training texts {', '.join(str(row + 1) for row in texts[:3])}{' …' if len(texts) > 3 else ''}"
        wrong = f"the gradient's norm is {size}" if math.isfinite(value) else f"the loss is {value}"
        told = "lower learning_rate or set precision: float32; the training then starts anew, because its checkpoint is of these settings"
        raise StageError(f"step {number + 1} ({batch}): {wrong}; {told}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _factor(step: int, steps: int, warmup: float) -> float:
    rise = max(1, round(steps * warmup))
    return (step + 1) / rise if step < rise else max(0.0, (steps - step) / max(1, steps - rise))


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return [  # biases and normalisation weights are vectors; decaying them only hurts
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _State:
    """What an interrupted training goes on from: weights, optimizer, schedule, random numbers, and the best epoch so far."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        log: Progress,
    ) -> None:
        """Resume from the folder when it holds a checkpoint."""
        self.folder, self.model, self.optimizer, self.scheduler = folder, model, optimizer, scheduler
        self.done, self.loss, self.best, self.best_step = 0, 0.0, -math.inf, 0
        self.texts, self._before, self._started = 0, 0.0, time.perf_counter()
        if saved := self._saved(log):
            for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler)):
                if name in saved:
                    part.load_state_dict(saved[name])
            torch.set_rng_state(saved["rng"])
            if saved["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(saved["cuda"][0])  # dropout on a GPU draws from its own; the first is the one that trains
            self.done, self.loss, self.best, self.best_step = saved["progress"]
            self.texts, self._before = saved["work"]

    def _saved(self, log: Progress) -> dict[str, Any] | None:
        """Return what an earlier process left; nothing where it is not whole, as after the machine went down."""
        if not (self.folder / "fit.pt").exists():
            return None
        try:
            saved: dict[str, Any] = _load(self.folder / "fit.pt")
            _, _, _, best_step = saved["progress"]
            if best_step:
                _load(self.folder / "best.pt")  # now, and not when all is learned
        except (OSError, EOFError, RuntimeError, ValueError, LookupError, UnpicklingError) as error:
            log.warn(f"{self.folder}: its checkpoint is not whole ({one_line(error, 100)}); the training begins anew")
            return None
        return saved

    @property
    def seconds(self) -> float:
        """How long all processes trained, those before this one until they saved."""
        return self._before + time.perf_counter() - self._started

    def rate_of_reading(self) -> float:
        """Return texts a second."""
        return self.texts / max(self.seconds, 1e-9)

    def count(self, loss: float, texts: int) -> None:
        """Note that a step was taken over so many texts; the loss is smoothed."""
        self.loss = loss if self.done == 0 else 0.95 * self.loss + 0.05 * loss
        self.done += 1
        self.texts += texts

    def rate(self, score: Callable[[], float]) -> None:
        """Score the model as it is, and keep its weights if they are the best so far."""
        self.model.eval()
        found = score()
        self.model.train()
        if found > self.best:
            self.best, self.best_step = found, self.done
            self._write("best.pt", self.model.state_dict())

    def restore_best(self) -> None:
        """Go back to the best weights, if any were rated."""
        if self.best_step and self.best_step != self.done:
            self.model.load_state_dict(_load(self.folder / "best.pt"))

    def save(self, *, finished: bool = False) -> None:
        """Commit everything by rename; of a finished training only the weights."""
        parts = {"model": self.model.state_dict()}
        if not finished:
            parts |= {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        drawn = {"rng": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}
        told = {"progress": (self.done, self.loss, self.best, self.best_step), "work": (self.texts, self.seconds)}
        self._write("fit.pt", parts | drawn | told)

    def _write(self, name: str, content: object) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.partial"
        torch.save(content, partial)
        os.replace(partial, self.folder / name)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)  # a GPU that wrote it may be gone
