"""The training loop, the only one: finetune, distill and length_adapt differ in the losses they hand it.

What:     AdamW, linear schedule with warm-up, batches bucketed by length, bfloat16 autocast where the processor is fast at it.
Resume:   every `checkpoint_every` steps, and on SIGINT or SIGTERM, the state is committed by rename; a second run goes on inside
          the epoch and ends with the same weights. Batches and LengthDrop samples derive from the seed and the step, not from history.
Limits:   one process; `precision: auto` on a GPU or another processor gives other last digits than here.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tokenizers import Encoding
from torch import Tensor, nn

from compressor.data import length_batches
from compressor.errors import StageError
from compressor.interrupts import Interrupted, held_back
from compressor.machine import describe
from compressor.progress import Progress
from compressor.recipe import Training
from compressor.tasks import Floats, Ints, pad


@dataclass(frozen=True)
class Encoded:
    """A split ready for a model: one encoding and one label id an example."""

    encodings: Sequence[Encoding]
    labels: Ints
    pad_id: int

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(e.ids) for e in self.encodings]

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return input_ids, attention_mask, token_type_ids (batch, longest), labels and rows (batch,)."""
        arrays = pad([self.encodings[row] for row in rows], self.pad_id) | {"labels": self.labels[list(rows)], "rows": np.asarray(rows)}
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


@dataclass(frozen=True)
class Step:
    """Where the training stands: the step's number, and the share of all steps that lie behind it."""

    number: int
    share: float


Losses = Callable[[dict[str, Tensor], Step], Iterable[Tensor]]
"""Losses of one batch; each is back-propagated as it is yielded, so that a sandwich holds one graph at a time."""


@dataclass(frozen=True)
class Fitted:
    """What a training did: optimizer steps, the last smoothed loss, seconds and texts per second of this process."""

    steps: int
    loss: float
    seconds: float
    texts_per_second: float


def fit(model: nn.Module, losses: Losses, train: Encoded, settings: Training, seed: int, state: Path, log: Progress) -> Fitted:
    """Train the model in place and return what was done; go on from `state` when it holds a checkpoint.

    Raises:
        StageError: a loss is not finite; the step is named and the last checkpoint kept.
        Interrupted: a signal came; the state is saved.
    """
    accelerator = Accelerator()
    precision = autocast(settings.precision, accelerator.device)
    model.to(accelerator.device).train()
    plan = schedule(train.lengths, settings, seed)
    optimizer = torch.optim.AdamW(_decayed(model, settings.weight_decay), lr=settings.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, len(plan), settings.warmup))
    torch.manual_seed(seed)
    done, smooth = _resume(state, model, optimizer, scheduler)
    if done:
        log.note(f"going on after step {done} of {len(plan)}")
    first, started, texts = done, time.perf_counter(), 0
    try:
        for number, rows in enumerate(plan[first:], first):
            batch = train.batch(rows, accelerator.device)
            with held_back():
                loss = _step(accelerator, precision, model, optimizer, losses(batch, Step(number, number / len(plan))), number)
                scheduler.step()
                smooth = loss if number == 0 else 0.95 * smooth + 0.05 * loss
                done, texts = number + 1, texts + len(rows)
                if done % settings.checkpoint_every == 0 and done < len(plan):
                    _save(state, model, optimizer, scheduler, done, smooth)
            if done % 5 == 0 or done == len(plan):
                log.steps(done, len(plan), loss=smooth, rate=f"{texts / (time.perf_counter() - started):.0f} texts/s")
    except Interrupted:
        _save(state, model, optimizer, scheduler, done, smooth)
        raise
    seconds = time.perf_counter() - started
    model.eval()
    return Fitted(len(plan), smooth, seconds, texts / max(seconds, 1e-9))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context that runs matrix products in bfloat16 where the precision asks for it; `auto` asks the machine."""
    fast = device.type == "cuda" or bool({"amx_bf16", "avx512_bf16"} & set(describe()["isa"]))
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16" or (precision == "auto" and fast))


def schedule(lengths: Sequence[int], settings: Training, seed: int) -> list[list[int]]:
    """Return the rows of every batch of the whole training, in order."""
    per_epoch = math.ceil(len(lengths) / settings.batch_size)
    steps = max(1, round(per_epoch * settings.epochs))
    steps = min(steps, settings.max_steps or steps)
    epochs = math.ceil(steps / per_epoch)
    return [rows for epoch in range(epochs) for rows in length_batches(lengths, settings.batch_size, seed + epoch)][:steps]


@torch.inference_mode()
def predict(forward: Callable[[dict[str, Tensor]], Tensor], data: Encoded, batch_size: int = 64, precision: str = "auto") -> Floats:
    """Return the logits (examples, ...) of a model in evaluation mode, in the order of the data."""
    device = Accelerator().device
    results: dict[int, Floats] = {}
    for rows in length_batches(data.lengths, batch_size):
        with autocast(precision, device):
            logits = forward(data.batch(rows, device)).float().cpu().numpy()
        results |= dict(zip(rows, logits, strict=True))
    return np.stack([results[row] for row in range(len(data))])


def _step(
    accelerator: Accelerator,
    precision: torch.autocast,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    number: int,
) -> float:
    value, pending = 0.0, iter(losses)
    while True:
        with precision:
            loss = next(pending, None)
        if loss is None:
            break
        value += loss.item()
        if not math.isfinite(value):
            raise StageError(f"step {number}: the loss is {value}; lower learning_rate or set precision: float32, then run again")
        accelerator.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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


def _save(
    state: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    done: int,
    smooth: float,
) -> None:
    state.mkdir(parents=True, exist_ok=True)
    partial = state / "fit.partial"
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "done": done,
            "smooth": smooth,
        },
        partial,
    )
    os.replace(partial, state / "fit.pt")


def _resume(
    state: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> tuple[int, float]:
    if not (state / "fit.pt").exists():
        return 0, 0.0
    saved = torch.load(state / "fit.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    torch.set_rng_state(saved["rng"])
    return saved["done"], saved["smooth"]
