"""Search the length configurations worth deploying, on the graph that ships.

What:     evolution over score and cost of the deployed graph, on a split that is neither trained on nor reported.
Papers:   see compressor/evolution.py; what it is held against: compressor/baselines.py.
Formula:  cost = the candidate's mean latency over full length's in one interleaved run, times full length's median; or MACs.
Defaults: 48 evaluations, population 12, 4 proposals each, latency on 32 texts of the split's own lengths.
Limits:   latencies hold for this machine; `search.latency: macs` holds anywhere but is no time. With `target.backend: auto` they are
          onnxruntime's, because who is faster is asked of the bundle.
"""

import dataclasses
import json
import random
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from compressor.artifact import write_json
from compressor.baselines import constant_ratios, published, random_search, told, truncation
from compressor.candidates import Evaluator
from compressor.evolution import LOSSES, Candidate, Genome, Measure, Space, evolve, hypervolume, operating_points, pareto_front
from compressor.inputs import Inputs
from compressor.lengths import LengthConfig
from compressor.progress import Progress
from compressor.recipe import Recipe


def run(recipe: Recipe, inputs: Inputs, out: Path, log: Progress) -> dict[str, Any]:
    """Write frontier.json: every candidate, the front, the named operating points, and the baselines."""
    assert recipe.search is not None
    bench, settings = Evaluator(recipe, inputs, out), recipe.search
    measured = _measurer(bench, settings.evaluations, log)
    start = starting_points(bench.space, settings.population, recipe.seed)
    if settings.evaluations < len(start) + settings.population:
        enough = len(start) + settings.population
        taken = min(len(start), settings.evaluations)
        log.warn(f"search.evaluations {settings.evaluations}: {taken} go to starting points; from {enough} on there is a whole generation")
    known = evolve(
        start,
        measured,
        bench.rated,
        bench.space,
        evaluations=settings.evaluations,
        population=settings.population,
        proposals=settings.proposals,
        seed=recipe.seed,
    )
    full, began = next(c for c in known if c.lengths == bench.space.full), time.monotonic()
    baselines = _baselines(bench, len(known), recipe.seed, log) if settings.baselines else {}
    apart = round(time.monotonic() - began, 2)
    every = [*known, *(c for some in baselines.values() for c in some)]  # what was measured anyway may be the best
    points, front = operating_points(every, full), pareto_front(every)
    frontier = {
        "truncates": bench.space.truncates,
        "evaluated": known,
        "front": front,
        "points": points,
        "losses": LOSSES,
        "baselines": baselines,
    }
    write_json(out / "frontier.json", json.loads(json.dumps(frontier, default=dataclasses.asdict)))
    gain = full.cost / points["fast"].cost
    fast = (
        f"is {gain:.2f}x full length" if settings.latency == "measured" else f"takes {1 / gain:.0%} of full length's multiply-accumulates"
    )
    log.note(f"{len(front)} of {len(every)} configurations are on the front; fast {fast}")
    worst = dataclasses.replace(full, score=min(c.score for some in (known, *baselines.values()) for c in some))
    volumes = {name: hypervolume(some, worst) for name, some in {"evolution": known, **baselines}.items()}
    looks = [share for _, share in bench.results.known if share < 1]
    facts = {"evaluations": len(known), "looks": len(looks), "front": len(front), "fast_over_full": gain}
    facts |= {"seconds_of_baselines": apart} if baselines else {}
    return {**facts, "hypervolumes": volumes, "against_baselines": told(known, baselines, sum(looks))}


def _measurer(bench: Evaluator, total: int, log: Progress) -> Measure:
    """Return the function that measures a generation and tells of each configuration."""
    done = 0

    def measured(genomes: Sequence[Genome]) -> list[Candidate]:
        nonlocal done
        found = []
        for genome in genomes:
            found.append(bench.measured(genome))
            done += 1
            cost = {"latency": f"{found[-1].cost:.2f} ms"} if bench.settings.latency == "measured" else {"macs": found[-1].cost}
            log.steps(done, total, score=found[-1].score, **cost)
        return found

    return measured


def _baselines(bench: Evaluator, count: int, seed: int, log: Progress) -> dict[str, Sequence[Candidate]]:
    """Measure what the search is held against; random search gets as many evaluations as evolution took."""
    space = bench.space
    chosen = {"constant ratios": constant_ratios(space), "published configurations": published(space), "truncation": truncation(space)}
    chosen["random search"] = random_search(space, count, seed)
    found: dict[str, Sequence[Candidate]] = {}
    for name, genomes in chosen.items():
        if genomes:
            log.note(f"baseline: {name}, {len(genomes)} configurations")
            found[name] = _measurer(bench, len(genomes), log)(genomes)
    return found


def starting_points(space: Space, population: int, seed: int) -> list[Genome]:
    """Return full length first, then constant ratios, LengthDrop of several bounds, halves from a later layer on, and random ones.

    Early layers know little of what a token is worth, least of all for a question: tokens that leave late are missed less. Where a
    configuration may truncate, some read three quarters of the longest texts, or half, and keep all of that, or drop as others do.
    """
    rng, layers, max_length = random.Random(seed), space.layers, space.max_length
    whole = [float(max_length)] * layers
    bounds = [[max_length * (1 - bound) ** (i + 1) for i in range(layers)] for bound in (0.1, 0.2, 0.3, 0.45)]
    late = [[max_length * 0.5 ** max(0, i + 1 - first) for i in range(layers)] for first in (layers // 3, layers // 2, 2 * layers // 3)]
    genomes = [whole, *([max_length * share] * layers for share in (0.75, 0.5)), *bounds, *late]
    while len(genomes) < population:
        genomes.append([*LengthConfig.sample(layers, max_length, rng.choice([0.2, 0.35, 0.5]), rng).lengths])
    if space.truncates:
        shorter = [[max_length * share, *lengths] for share in (0.75, 0.5) for lengths in (whole, bounds[1], bounds[2], late[0], late[1])]
        longest = [[max_length, *lengths] for lengths in genomes]
        genomes = [one for both in zip_longest(longest, shorter) for one in both if one]  # in turn: few evaluations should see some of each
    return space.distinct(genomes)
