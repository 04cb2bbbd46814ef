"""What a length configuration is worth, on the graph that ships: its score and its time, each found once and kept on disk."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from compressor.artifact import STATE
from compressor.encoded import Encoded
from compressor.evolution import Candidate, Genome, Space
from compressor.inputs import Inputs, deployed, is_single
from compressor.latency import Run, interleaved, requests, tokens_of
from compressor.latency_model import features, fitted, predicted
from compressor.lengths import LengthConfig, gated_inner
from compressor.recipe import Recipe
from compressor.session import Graph, check_agreement
from compressor.settings.deploying import Search
from compressor.splits import ADAPTIVE, MODEL, Splits, task_of
from compressor.tokens import Floats


@dataclass
class Results:
    """Candidates by configuration and share of the split, one line each in a file; what was written survives `kill -9`."""

    path: Path
    known: dict[tuple[Genome, float], Candidate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed while it wrote
            self._keep(Candidate(**{**row, "lengths": tuple(row["lengths"])}))
        if lines:
            whole = self.path.with_suffix(".whole")  # put in its place at once: a second kill finds one or the other
            whole.write_text("".join(_line(c) for c in self.known.values()), encoding="utf-8")
            whole.replace(self.path)

    def of(self, genome: Genome, share: float, find: Callable[[], Candidate]) -> Candidate:
        """Return what is known, or find it and write it down."""
        if (genome, share) not in self.known:
            self._keep(find())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(self.known[genome, share]))
                file.flush()
                os.fsync(file.fileno())
        return self.known[genome, share]

    def _keep(self, candidate: Candidate) -> None:
        self.known[candidate.lengths, candidate.share] = candidate

    def measured(self) -> list[Candidate]:
        """Return those of the whole split."""
        return [c for c in self.known.values() if c.share == 1.0]


def _line(candidate: Candidate) -> str:
    return json.dumps(dataclasses.asdict(candidate)) + "\n"


def sizes_of(folder: Path) -> tuple[int, int, int]:
    """Return a model's layers, its hidden size and that of its feed-forward, one that is gated as `gated_inner` has it."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    inner = getattr(config, "hidden_dim", 0) or config.intermediate_size  # DistilBERT's name for it
    return config.num_hidden_layers, config.hidden_size, gated_inner(config.model_type, inner)


class Evaluator:
    """Scores configurations on a split, in parallel, and times them alone."""

    def __init__(self, recipe: Recipe, inputs: Inputs, out: Path, split: str = "search") -> None:
        assert recipe.search is not None
        splits, task = Splits.of(inputs["data"]), task_of(recipe)
        folder = inputs["checkpoint"].path / MODEL
        graph = deployed(inputs).path / "model.onnx"
        self.settings: Search = recipe.search
        self.metric = recipe.task.metric
        adaptive = json.loads((inputs["checkpoint"].path / ADAPTIVE).read_text(encoding="utf-8"))
        self.absolute = adaptive["counts"] == "absolute"
        sizes = sizes_of(folder)
        self.sizes = sizes[1:]
        fixed = 0 if task.per_token else 1  # a sentence task's last layer computes only [CLS]
        self.space = Space(sizes[0], splits.max_length, fixed, recipe.search.truncate)
        self.data: Encoded = splits.encoded(split, task, folder)
        self.parts: dict[float, tuple[Encoded, Floats]] = {}  # with full length's logits
        single = is_single(inputs)
        opened = partial(Graph, graph, single=single, pad_id=self.data.pad_id, backend=recipe.target.settled)
        self.scorer, self.timed = opened(1, workers=recipe.workers), opened(recipe.target.threads)
        check_agreement(self.timed, splits.max_length)
        self.requests = tokens_of(self.data, requests(self.data.lengths.tolist(), self.settings.texts, recipe.target.batch))
        self.lengths, self.texts = np.unique(self.data.tokens.lengths, return_counts=True)
        self.results = Results(out / STATE / "evaluated.jsonl")

    def measured(self, genome: Genome) -> Candidate:
        """Return a configuration's score on the whole split and its measured cost."""

        def find() -> Candidate:
            macs = self.macs(genome)
            cost, median = self._latency(genome) if self.settings.latency == "measured" else (macs, None)
            score = self.data.score(self.scorer.logits(self.data.tokens, genome), self.metric)
            return Candidate(genome, score, macs, cost, median)

        return self.results.of(genome, 1.0, find)

    def rated(self, genomes: Sequence[Genome], share: float) -> list[Candidate]:
        """Return how near configurations stay to full length on a part of the split, and the cost that the measured ones let expect.

        On few texts that tells more than their score does: every answer moves a little, few change sides.
        """
        known = [c for c in self.results.measured() if self.settings.latency == "measured"]
        fit = fitted([self._asked(c.lengths) for c in known], [c.cost for c in known]) if known else None

        def find(genome: Genome) -> Candidate:
            cost = self.macs(genome) if fit is None else predicted(fit, self._asked(genome))
            return Candidate(genome, -self._divergence(genome, share), self.macs(genome), cost, share=share)

        return [self.results.of(genome, share, lambda g=genome: find(g)) for genome in genomes]  # type: ignore[misc]

    def _divergence(self, genome: Genome, share: float) -> float:
        if share not in self.parts:
            part = self.data.part(share)
            self.parts[share] = part, self.scorer.logits(part.tokens, self.space.full)
        part, reference = self.parts[share]
        return part.divergence(self.scorer.logits(part.tokens, genome), reference)

    def _asked(self, genome: Genome) -> Floats:
        asked: Floats = self._mean(genome, features)
        return asked

    def _mean(self, genome: Genome, of: Callable[[LengthConfig, int], Any]) -> Any:
        """Return the mean over the split's texts of what a configuration costs at so many tokens.

        A text of mean length tells less: what long texts alone lose would cost nothing.
        """
        config = LengthConfig(genome[-self.space.layers :], self.space.max_length, self.absolute)
        read = np.minimum(self.lengths, genome[0]) if self.space.truncates else self.lengths
        return np.average([of(config, tokens) for tokens in read.tolist()], axis=0, weights=self.texts)

    def macs(self, genome: Genome) -> float:
        """Return a configuration's multiply-accumulates for the split's texts, as a share of full length's."""
        ours, full = (self._mean(g, lambda config, tokens: config.macs(*self.sizes, tokens)) for g in (genome, self.space.full))
        return float(ours / full)

    def _latency(self, genome: Genome) -> tuple[float, float]:
        """Return milliseconds: full length's median, times what all requests take over what they take at full length in the same run.

        And the median likewise: times this one's over full length's.
        """

        def at(lengths: Genome) -> Run:
            return lambda number: self.timed.logits(self.requests[number], lengths)

        found = interleaved({"full": at(self.space.full), "this": at(genome)}, range(len(self.requests)), rounds=2)
        first = self.results.known.get((self.space.full, 1.0))
        reference = first.cost if first else found["full"].p50_ms
        this, full = found["this"], found["full"]
        return reference * this.mean_ms / full.mean_ms, reference * this.p50_ms / full.p50_ms
