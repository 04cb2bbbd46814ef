"""What reading long texts in parts gives a training (`compressor.attending`), by their length: seconds of a step, and memory.

    python -m benchmarks.attending

`at once` is the same training with no batch called large. Both take turns, each a process of its own; the first steps do not count.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.child import run
from benchmarks.record import conclude
from benchmarks.training_throughput import BATCH, MODEL, SEED, TASK, TRAIN, work_of
from compressor import attending
from compressor.losses import label_loss
from compressor.modeling import PlainModel
from compressor.progress import Progress
from compressor.settings.training import Training
from compressor.tokens import Tokens
from compressor.training import Step, fit
from compressor.windows import Windows

LENGTHS = (256, 384, 512)
WAYS = {"in parts": attending.LARGE, "at once": sys.maxsize}


def measure(way: str, length: int, steps: int, warm_up: int) -> dict[str, float]:
    """Train on texts of so many tokens in this process; return the median seconds of a step."""
    attending.LARGE = WAYS[way]
    with tempfile.TemporaryDirectory() as scratch:
        work = work_of(steps, warm_up, Path(scratch))
        train = dataclasses.replace(work.train, windows=Windows.whole(cut(work.train.tokens, length)))
        model, begun = PlainModel(work.model), list[float]()

        def losses(batch: dict[str, Tensor], step: Step) -> Iterable[Tensor]:
            begun.append(time.perf_counter())
            logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            yield label_loss(logits, batch["labels"], batch["attention_mask"].bool(), TASK.choice)

        settings = Training(epochs=1, max_steps=steps, batch_size=BATCH, checkpoint_every=steps)
        fit(model, losses, train, settings, SEED, Path(scratch), Progress(quiet=True))
    return {"seconds": median(np.diff(begun[warm_up:]).tolist())}


def cut(tokens: Tokens, length: int) -> Tokens:
    """Return as many texts as there are, each of so many tokens, from all tokens in their order, again and again."""
    ids = np.resize(tokens.ids, len(tokens) * length)
    return Tokens(ids, np.zeros_like(ids, np.int8), np.arange(0, len(ids) + 1, length))


def compare(rounds: int, steps: int, warm_up: int) -> dict[str, Any]:
    """Return for each length the seconds and the peak memory of both ways by round, and how many times as fast parts are."""
    rows = []
    for length in LENGTHS:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(_in_a_process(way, length, steps, warm_up))
        ratios = [whole["seconds"] / parts["seconds"] for parts, whole in zip(*(found[way] for way in WAYS), strict=True)]
        rows.append({"tokens": length, **found, "times_as_fast": median(ratios)})
        print(f"{length} tokens: {median(ratios):.2f} times as fast", file=sys.stderr)
    return {"model": MODEL, "data": TRAIN, "batch_size": BATCH, "steps": steps, "warm_up_steps": warm_up, "rows": rows}


def _in_a_process(way: str, length: int, steps: int, warm_up: int) -> dict[str, float]:
    asked = ["--measure", way, "--length", str(length), "--steps", str(steps), "--warm-up", str(warm_up)]
    ended = run([sys.executable, "-m", "benchmarks.attending", *asked])
    return {**json.loads(ended.stdout), "peak_mb": round(ended.peak_bytes / 1e6)}


def main() -> None:
    """Compare, or measure one way for the process that compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=2, help="first steps, not counted")
    parser.add_argument("--trial", action="store_true", help="one round of 3 steps, not recorded: does it work?")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.measure, chosen.length, chosen.steps, chosen.warm_up)))
    elif chosen.trial:
        conclude("attending", compare(rounds=1, steps=3, warm_up=0), trial=True)
    else:
        conclude("attending", compare(chosen.rounds, chosen.steps, chosen.warm_up), trial=False)


if __name__ == "__main__":
    main()
