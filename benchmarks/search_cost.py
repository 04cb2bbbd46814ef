"""What a search costs, and whether it finds less than the reference's 1,822 full evaluations.

    python -m benchmarks.search_cost recipes/quickstart.yaml

The reference schedule is that of Length-Adaptive Transformer: 30 iterations of 30 mutations and 30 crossovers, each evaluated on the
whole split. Both searches trade the score for multiply-accumulates, on the same INT8 graph and the same split; ours runs with 1 and with
4 workers, whose fronts must be the same. The recipe is built up to its INT8 graph first; its length-adaptive training is what the time is
held against. The best of 1,822 scores on one split is partly luck, so both fronts are scored again on the test split: that is the verdict.
A front's hypervolume counts what no one would deploy, so it is told too for what loses at most 5 points.
"""

import dataclasses
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lengths import bench_of
from benchmarks.record import conclude, recipe_parser
from compressor.candidates import Evaluator
from compressor.evolution import WORTHWHILE, Candidate, Genome, evolve, hypervolume, pareto_front
from compressor.lengths import LengthConfig
from compressor.loader import load_recipe
from compressor.recipe import Recipe
from compressor.smoke import smoke
from compressor.stages.search import starting_points

ITERATIONS, CHILDREN, PROBABILITY = 30, 30, 0.5
Measured = Callable[[Genome], Candidate]
Found = tuple[Candidate, float]
"""A measured configuration, and the seconds after which it was known."""


def reference(bench: Evaluator, measured: Measured, iterations: int) -> list[Candidate]:
    """Run the reference's schedule: its population starts with 20 drawn configurations, full length and the smallest."""
    rng, (layers, longest) = random.Random(0), (bench.space.layers, bench.space.max_length)
    start = [LengthConfig.sample(layers, longest, 0.2, rng).lengths for _ in range(20)]
    start += [(longest,) * layers, LengthConfig.smallest(layers, longest, 0.2).lengths]
    known = {genome: measured(genome) for genome in map(bench.space.repaired, start)}
    for _ in range(iterations):
        parents = [c.lengths for c in pareto_front(known.values())]
        children = [_mutated(rng.choice(parents), longest, rng) for _ in range(CHILDREN)]
        children += [_crossed(rng.choice(parents), rng.choice(parents)) for _ in range(CHILDREN)]
        for child in children:
            genome = bench.space.repaired(child)
            known[genome] = measured(genome)  # measured again when it comes again, as there
    return list(known.values())


def _mutated(genome: Genome, longest: int, rng: random.Random) -> Sequence[float]:
    upper, lower = (longest, *genome[:-1]), (*genome[1:], 1)
    return [rng.randint(min(a, b), b) if rng.random() < PROBABILITY else g for g, a, b in zip(genome, lower, upper, strict=True)]


def _crossed(one: Genome, other: Genome) -> Sequence[float]:
    return [(a + b) / 2 for a, b in zip(one, other, strict=True)]


def ours(recipe: Recipe, workers: int, out: Path) -> tuple[list[Found], int]:
    """Search as the stage does; return what was measured, and how many looks there were beside."""
    assert recipe.search is not None
    recipe._workers = workers
    bench, _ = bench_of(recipe, out)
    settings, started, found = recipe.search, time.perf_counter(), list[Found]()

    def measured(genomes: Sequence[Genome]) -> list[Candidate]:
        for genome in genomes:
            candidate = bench.measured(genome)
            found.append((candidate, time.perf_counter() - started))
        return [candidate for candidate, _ in found[-len(genomes) :]]

    sizes = {"evaluations": settings.evaluations, "population": settings.population, "proposals": settings.proposals}
    start = starting_points(bench.space, settings.population, recipe.seed)
    evolve(start, measured, bench.rated, bench.space, seed=recipe.seed, **sizes)
    return found, len(bench.results.known) - len(found)


def measure(recipe: Recipe, iterations: int, out: Path) -> dict[str, Any]:
    """Run both searches and compare what they found and took."""
    assert recipe.search is not None
    found, looks = ours(recipe, 2, out / "two")
    by_workers = [pareto_front(c for c, _ in ours(recipe, workers, out / str(workers))[0]) for workers in (1, 4)]
    recipe._workers = 2
    bench, training = bench_of(recipe, out / "reference")
    taken = 0.0
    evaluations = 0

    def measured(genome: Genome) -> Candidate:
        nonlocal taken, evaluations
        bench.results.known.pop((genome, 1.0), None)
        started = time.perf_counter()
        candidate = bench.measured(genome)
        taken, evaluations = taken + time.perf_counter() - started, evaluations + 1
        return candidate

    theirs = reference(bench, measured, iterations)
    judge, _ = bench_of(recipe, out / "test", "test")
    counts = [*range(recipe.search.population, len(found), recipe.search.population), len(found)]
    rows = []
    for count in counts:
        first, seconds = [c for c, _ in found[:count]], found[count - 1][1]
        row = {"evaluations": count, "seconds": seconds, "share_of_training": seconds / training, "share_of_reference": seconds / taken}
        rows.append(row | {"hypervolume_over_reference": _ratios(first, theirs, bench, judge)})
    return {
        "training_seconds": training,
        "reference": {"seconds": taken, "evaluations": evaluations},
        "ours": rows,
        "looks": looks,
        "same_front_for_1_and_4_workers": by_workers[0] == by_workers[1],
        "fronts_on_test": {
            name: [dataclasses.asdict(c) for c in _again(judge, pareto_front(some))]
            for name, some in {"ours": [c for c, _ in found], "reference": theirs}.items()
        },
    }


def _again(judge: Evaluator, front: Sequence[Candidate]) -> list[Candidate]:
    """Return a front with the scores of another split."""
    return [dataclasses.replace(c, score=judge.measured(c.lengths).score) for c in front]


def _ratios(ours: Sequence[Candidate], reference: Sequence[Candidate], bench: Evaluator, judge: Evaluator) -> dict[str, dict[str, float]]:
    """Return one front's hypervolume over the other's by split: of all, and of what loses at most 5 points against full length."""
    fronts, ratios = (pareto_front(ours), pareto_front(reference)), {}
    for split, asked in {"search": bench, "test": judge}.items():
        both, full = [_again(asked, front) for front in fronts], asked.measured(asked.space.full)
        scores = {"all": min(c.score for c in (*both[0], *both[1])), "at most 5 points lost": full.score - WORTHWHILE}
        areas = {name: [hypervolume(front, dataclasses.replace(full, score=score)) for front in both] for name, score in scores.items()}
        ratios[split] = {name: mine / theirs for name, (mine, theirs) in areas.items()}
    return ratios


def main() -> None:
    """Build the recipe, search twice, record."""
    chosen = recipe_parser(__doc__).parse_args()
    recipe = load_recipe(chosen.recipe, [*chosen.changes, "search.latency=macs"])
    recipe = smoke(recipe) if chosen.trial else recipe
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(recipe, 1 if chosen.trial else ITERATIONS, Path(scratch))
    conclude("search_cost", found, chosen.trial)


if __name__ == "__main__":
    main()
