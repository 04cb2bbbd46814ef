"""A bundle beside what a user would pick instead: the same student, the same texts, the same threads, taking turns.

    python -m benchmarks.peers recipes/sst2.yaml --set data.train=…

The recipe is built first, in ./artifacts, where stages that are there already come from the cache. Where it classifies single texts, all
peers take part and scores are compared; of other tasks, or with --shapes, only fixed shapes are timed, beside BERT-base and DistilBERT.
Every peer is made in an environment of its own (made on first use: 3 GB) and is a process of its own; ONNX files run in this one's
onnxruntime, OpenVINO's in theirs. In each round all of them answer, in another order each time, and only one works at a time; before a run
is timed it is repeated for a tenth of a second. Texts are read by the student's tokenizer, and padded to the longest of their batch.
"""

import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.models import HERE, Model, ours, peers, references
from benchmarks.record import built_here, conclude, recipe_parser
from compressor.artifact import Artifact, digest_of
from compressor.encoded import Encoded
from compressor.environments import clean_variables
from compressor.latency import sample
from compressor.loader import load_recipe
from compressor.recipe import Recipe
from compressor.runtime import Runtime
from compressor.smoke import smoke
from compressor.splits import MODEL, Splits, task_of

ARTIFACTS = Path("artifacts")
POINTS = ("full", "accurate", "balanced", "fast")
SHAPES = ((1, 32), (1, 128), (1, 384), (8, 128), (32, 384))
ROUNDS, TEXTS, STREAM, CALIBRATION, BATCH = 3, 32, 512, 256, 32
WARM = 100
"""Milliseconds for which a model answers what it is asked, before that is timed."""
LARGE = 1024
"""Tokens of a batch above which one round is enough."""
RARE = {50: 1, 90: 10, 99: 100}
"""Percentiles, and the times from which they can be told."""
PAUSE = 0.01
"""Seconds between two models, so that threads of the one before no longer wait for work."""
Texts = list[list[int]]


class Answering:
    """A model's process."""

    def __init__(self, model: Model, process: "subprocess.Popen[str]") -> None:
        self.model, self._process = model, process
        self._read()

    def ask(self, texts: Texts, batch: int, *, answers: bool = False, warm_ms: int = 0) -> dict[str, Any]:
        """Return milliseconds, and the answers if they are wanted."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"texts": texts, "batch": batch, "answers": answers, "warm_ms": warm_ms}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.model.name}: its process has ended")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def answering(models: Sequence[Model], threads: int) -> Iterator[list[Answering]]:
    """Start all processes, and end them."""
    with ExitStack() as stack:
        found = []
        for model in models:
            command = [str(model.python), str(HERE / "worker.py"), model.kind, model.path, str(threads)]
            own = clean_variables() | {"OMP_NUM_THREADS": str(threads)}
            if model.kind == "bundle":
                own["PYTHONPATH"] = str(Path.cwd())
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own))
            stack.callback(process.kill)
            found.append(Answering(model, process))
        yield found


def timed(models: Sequence[Answering], work: Sequence[Texts], rounds: int) -> dict[str, list[float]]:
    """Return each model's milliseconds for every piece of work in every round."""
    rng, times = random.Random(0), {one.model.name: list[float]() for one in models}
    for _ in range(rounds):
        for texts in work:
            for one in rng.sample(list(models), len(models)):
                time.sleep(PAUSE)
                times[one.model.name].append(one.ask(texts, BATCH, warm_ms=WARM)["ms"])
    return times


def workloads(data: Encoded | None) -> dict[str, Sequence[Texts]]:
    """Return what is asked: texts of the data, if there are any, and random ids of fixed shapes, of which lengths keep their shares."""
    rng, found = np.random.default_rng(0), dict[str, Sequence[Texts]]()
    if data is not None:
        chosen = [_ids(data, row) for row in sample(data.tokens.lengths.tolist(), STREAM)]
        found["one by one"] = [[_ids(data, row)] for row in sample(data.tokens.lengths.tolist(), TEXTS)]
        found[f"stream of {len(chosen)}"] = [chosen]
    return found | {f"{b}x{n}": [[rng.integers(1000, 2000, n).tolist() for _ in range(b)]] for b, n in SHAPES}


def rows(models: Sequence[Answering], works: Mapping[str, Sequence[Texts]], threads: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each workload and model; ratios are over the first model."""
    for name, work in works.items():
        tokens = max(sum(map(len, texts)) for texts in work)
        times = timed(models, work, 1 if tokens > LARGE else ROUNDS)
        base = float(np.median(next(iter(times.values()))))
        for model, found in times.items():
            p50, p90, p99 = (float(np.percentile(found, share)) if len(found) >= least else None for share, least in RARE.items())
            rate = 1000 * sum(map(len, work)) * (len(found) / len(work)) / sum(found)
            row = {"model": model, "workload": name, "threads": threads, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
            yield {**row, "texts_per_second": rate, "over_first": base / float(np.median(found))}


def _ids(data: Encoded, row: int) -> list[int]:
    return [int(i) for i in data.tokens.of_text(row).padded(0)["input_ids"][0]]


def scores(models: Sequence[Answering], data: Encoded, metric: str) -> Iterator[dict[str, Any]]:
    """Yield the test split's score and the file's size of each form of the student."""
    texts = [_ids(data, row) for row in range(len(data))]
    for one in models:
        if one.model.scored:
            logits = np.array(one.ask(texts, 1, answers=True)["answers"], np.float32)
            yield {"model": one.model.name, "score": data.score(logits, metric), "megabytes": _megabytes(one.model)}


def _megabytes(model: Model) -> float:
    path = Path(model.path.rsplit("@", 2)[0] if model.kind == "bundle" else model.path)
    files = [path / "model.onnx"] if path.is_dir() else [path, *path.parent.glob(f"{path.stem}.bin")]
    return sum(file.stat().st_size for file in files) / 1e6


def measure(recipe: Recipe, folder: Path, shapes: bool) -> dict[str, Any]:
    """Build the bundle and its peers; return scores, times and what could not be made or does not fit; `shapes`: of fixed shapes only."""
    found = built_here(recipe, ARTIFACTS)
    inputs: Mapping[str, Artifact] = {kind: Artifact(ARTIFACTS / link["path"]) for kind, link in found.manifest["inputs"].items()}
    splits, task, student = Splits.of(inputs["data"]), task_of(recipe), (inputs["checkpoint"].path / MODEL).resolve()
    made: list[Model | str] = [*references(folder, len(splits.labels))]
    data = None
    if shapes:
        made.append("the student's other forms, and texts: --shapes")
    elif recipe.task.type == "text-classification" and not recipe.columns().text_pair:
        train, data = splits.encoded("train", task, student).tokens, splits.encoded("test", task, student)
        own = digest_of([inputs["checkpoint"].digest, inputs["data"].digest])[:12]  # what is kept is of one student and its texts
        made += peers(student, splits.labels, train.rows(sample(train.lengths.tolist(), CALIBRATION)), folder / f"student-{own}")
    else:
        made.append(f"the student's other forms, and texts: they are made for single texts with one label each, this is {recipe.task.type}")
    made += ours(found.path / "bundle", POINTS)
    models, works = [one for one in made if isinstance(one, Model)], workloads(data)
    result: dict[str, Any] = {"left_out": [one for one in made if isinstance(one, str)], "lengths": _lengths(found.path / "bundle")}
    with answering(models, 1) as ready:
        result |= {"scores": list(scores(ready, data, recipe.task.metric))} if data else {}
        result["times"] = list(rows(ready, works, 1))
    with answering(models, 2) as ready:
        result["times"] += list(rows(ready, works, 2))
    return result


def _lengths(bundle: Path) -> dict[str, Any]:
    """Return the lengths of the points that take part, and of how many tokens they are shares."""
    runtime = Runtime(bundle)
    return {"max_length": runtime.max_length} | {name: runtime.points[name].lengths for name in POINTS if name in runtime.points}


def main() -> None:
    """Build, measure, record."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="where the peers' files are made and kept (default: a temporary folder)")
    parser.add_argument("--shapes", action="store_true", help="time fixed shapes only, beside BERT-base and DistilBERT")
    chosen = parser.parse_args()
    recipe = load_recipe(chosen.recipe, chosen.changes)
    recipe = smoke(recipe) if chosen.trial else recipe
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(recipe, chosen.folder or Path(scratch), chosen.shapes)
    conclude(f"peers_{recipe.name}", {"recipe": str(chosen.recipe), **result}, chosen.trial)


if __name__ == "__main__":
    main()
