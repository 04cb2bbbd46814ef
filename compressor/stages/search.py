"""Search the length configurations worth deploying, on the graph that ships.

What:     evolution over score and cost of the deployed graph, on a split that is neither trained on nor reported.
Papers:   see compressor/evolution.py.
Formula:  cost = the candidate's median latency over full length's in one interleaved run, times full length's latency; or MACs.
Defaults: 48 evaluations, population 12, latency on 64 texts of the split's own lengths.
Limits:   latencies hold for this machine; `search.latency: macs` holds anywhere but is no time.
"""

import dataclasses
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.artifact import STATE, write_json
from compressor.encoded import Encoded
from compressor.evolution import Candidate, Genome, evolve, operating_points, pareto_front, repaired
from compressor.latency import Run, interleaved, sample
from compressor.lengths import LengthConfig
from compressor.pipeline import Inputs
from compressor.progress import Progress
from compressor.recipe import Recipe, Search
from compressor.runtime import Graph
from compressor.splits import MODEL, Splits, task_of
from compressor.tasks import Task


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write frontier.json: every candidate, the front, and the named operating points."""
    assert recipe.search is not None
    bench = Bench(recipe, inputs, out / STATE)
    settings, total = recipe.search, recipe.search.evaluations
    done = 0

    def measure(genomes: Sequence[Genome]) -> list[Candidate]:
        nonlocal done
        found = []
        for genome in genomes:
            found.append(bench.candidate(genome))
            done += 1
            log.steps(done, total, score=found[-1].score, latency=f"{found[-1].latency_ms:.2f} ms")
        return found

    start = starting_points(bench.layers, bench.max_length, bench.fixed, settings.population, recipe.seed)
    known = evolve(
        start, measure, max_length=bench.max_length, fixed=bench.fixed, evaluations=total, population=settings.population, seed=recipe.seed
    )
    full = next(c for c in known if c.lengths == start[0])
    points = operating_points(known, full)
    front = pareto_front(known)
    frontier = {"evaluated": known, "front": front, "points": points}
    write_json(out / "frontier.json", json.loads(json.dumps(frontier, default=dataclasses.asdict)))
    gain = full.latency_ms / points["fast"].latency_ms
    log.note(f"{len(front)} of {len(known)} configurations are on the front; fast is {gain:.2f}x full length")
    return {"evaluations": len(known), "front": len(front), "fast_over_full": gain}


def starting_points(layers: int, max_length: int, fixed: int, population: int, seed: int) -> list[Genome]:
    """Return full length first, then constant ratios, then LengthDrop samples of several bounds."""
    rng = random.Random(seed)
    genomes: list[Sequence[float]] = [[max_length] * layers]
    genomes += [[max_length * share] * layers for share in (0.75, 0.5)]
    genomes += [[max_length * (1 - bound) ** (i + 1) for i in range(layers)] for bound in (0.1, 0.2, 0.3, 0.45)]
    while len(genomes) < population:
        genomes.append(LengthConfig.sample(layers, max_length, rng.choice([0.2, 0.35, 0.5]), rng).lengths)
    return list(dict.fromkeys(repaired(g, max_length, fixed) for g in genomes))


class Bench:
    """Measures candidates on the deployed graph and keeps each result on disk, so that nothing is measured twice."""

    def __init__(self, recipe: Recipe, inputs: Inputs, state: Path) -> None:
        assert recipe.search is not None
        splits = Splits.of(inputs["data"])
        folder = inputs["checkpoint"].path / MODEL
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        graph = inputs.get("int8_graph") or inputs["float_graph"]
        self.settings: Search = recipe.search
        self.metric = recipe.task.metric
        self.task: Task = task_of(recipe)
        self.layers, self.max_length = config["num_hidden_layers"], splits.max_length
        self.sizes = (config["hidden_size"], config["intermediate_size"])
        self.fixed = 0 if self.task.per_token else 1  # a sentence task's last layer computes only [CLS]
        self.data: Encoded = splits.encoded("search", self.task, folder)
        single = "int8_graph" in inputs
        self.scorer = Graph(graph.path / "model.onnx", os.cpu_count() or 1, single=single, pad_id=self.data.pad_id)
        self.timed = Graph(graph.path / "model.onnx", recipe.target.threads, single=False, pad_id=self.data.pad_id)
        self.texts = sample(self.data.tokens.lengths.tolist(), self.settings.texts)
        self.log = state / "evaluated.jsonl"
        self.known = self._read()

    def candidate(self, genome: Genome) -> Candidate:
        """Return what was found for a configuration, measuring it if it is new."""
        if genome not in self.known:
            self.known[genome] = self._measure(genome)
            self._append(self.known[genome])
        return self.known[genome]

    def _measure(self, genome: Genome) -> Candidate:
        tokens = len(self.data.tokens.ids) // len(self.data)
        share = LengthConfig(genome, self.max_length).macs(*self.sizes, tokens) / self._full.macs(*self.sizes, tokens)
        score = self.task.score(self.scorer.logits(self.data.tokens, genome), self.data.labels, self.metric)
        latency = self._latency(genome) if self.settings.latency == "measured" else share
        return Candidate(genome, score, latency, share, latency)

    @property
    def _full(self) -> LengthConfig:
        return LengthConfig(repaired([self.max_length] * self.layers, self.max_length, self.fixed), self.max_length)

    def _latency(self, genome: Genome) -> float:
        """Return milliseconds, corrected for the machine's drift by full length's time in the same run."""
        full = self._full.lengths
        texts, timed = self.data.tokens, self.timed

        def at(lengths: Genome) -> Run:
            return lambda row: timed.run(texts.of_text(row), lengths)

        found = interleaved({"full": at(full), "this": at(genome)}, self.texts)
        first = self.known.get(full)
        reference = first.latency_ms if first else found["full"].p50_ms
        return reference * found["this"].p50_ms / found["full"].p50_ms

    def _read(self) -> dict[Genome, Candidate]:
        if not self.log.exists():
            return {}
        known = {}
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed while it wrote
            known[tuple(row["lengths"])] = Candidate(**{**row, "lengths": tuple(row["lengths"])})
        self.log.write_text("".join(_line(c) for c in known.values()), encoding="utf-8")
        return known

    def _append(self, candidate: Candidate) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(_line(candidate))
            file.flush()
            os.fsync(file.fileno())


def _line(candidate: Candidate) -> str:
    return json.dumps(dataclasses.asdict(candidate)) + "\n"
