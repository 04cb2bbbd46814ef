"""Evolution of length configurations: which are worth deploying.

What:     DEAP's crossover, mutation and NSGA-II selection in an ask/tell loop with a barrier per generation; of several proposals for
          each place in a generation, successive halving on growing parts of the split chooses who is measured. A genome is a length
          for each layer, and before them, where it truncates, how many tokens of a text are read.
Papers:   NSGA-II (Deb 2002), Length-Adaptive Transformer's evolutionary search (arXiv:2010.07003), successive halving (arXiv:1502.07943),
          knee (Kneedle, Satopaa 2011).
Formula:  maximise score, minimise cost (measured latency or MACs); the result is the Pareto front.
Defaults: population 12; half of a generation are crossovers, half mutations; 4 proposals for each that is measured.
Limits:   noise in a measured latency moves the front; the same evaluations give the same front.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

from deap import base, tools

from compressor.lengths import LengthConfig
from compressor.pareto import non_dominated

Genome = tuple[int, ...]
LOSSES: Mapping[str, float] = {"accurate": 0.0, "balanced": 0.005, "fast": 0.010}
"""Score that an operating point may lose against full length on the search split; it is the cheapest that loses no more."""
WORTHWHILE = 0.05
"""Score that the knee may lose: below it a front often falls so deep that its ends tell nothing of what is worth deploying."""


@dataclass(frozen=True)
class Candidate:
    """A length configuration with what was found for it; its cost is what the front trades the score against."""

    lengths: Genome
    score: float
    macs: float
    """Multiply-accumulates, as a share of full length's."""
    cost: float
    """Milliseconds, of means, or multiply-accumulates, as `search.latency` says."""
    median_ms: float | None = None
    """Median latency, where it was timed."""
    share: float = 1.0
    """Part of the search split; below 1 the score is how near answers stay to full length's, and the cost is an estimate."""


@dataclass(frozen=True)
class Space:
    """What a search chooses from: the lengths of so many layers, up to `max_length`, of which the last `fixed` are always 1.

    Where configurations may truncate, a gene before these says how many tokens of a text are read.
    """

    layers: int
    max_length: int
    fixed: int
    truncates: bool = False

    @property
    def full(self) -> Genome:
        """Full length: all of a text is read, and no token leaves before the last layer."""
        return self.repaired([self.max_length] * (self.layers + self.truncates))

    def repaired(self, genes: Iterable[float]) -> Genome:
        """Return the nearest valid genome: layers' lengths non-increasing, at least 1, the last `fixed` 1; what is read at least 2."""
        genes = list(genes)
        read, layers = genes[: self.truncates], genes[self.truncates :]
        genome = list(LengthConfig.repaired(layers, self.max_length).lengths)
        if self.fixed:
            genome[-self.fixed :] = [1] * self.fixed
        return (*(max(2, min(self.max_length, round(g))) for g in read), *genome)

    def distinct(self, many: Iterable[Iterable[float]]) -> list[Genome]:
        """Return the nearest valid genomes, each once, in their order."""
        return list(dict.fromkeys(map(self.repaired, many)))


RUNGS = (0.1, 0.25)
"""Parts of the split on which halving looks, one after the other."""
READ_LESS = 0.3
"""Share of mutations that change how much of a text is read, where that may vary."""
Rate = Callable[[Sequence[Genome], float], Sequence[Candidate]]
"""Rate configurations on a part of the split, without timing them."""
Measure = Callable[[Sequence[Genome]], Sequence[Candidate]]


class _Fitness(base.Fitness):  # type: ignore[misc]
    weights = (1.0, -1.0)  # score up, cost down


class _Individual(list[int]):
    """A genome as DEAP wants it: a list with a fitness."""

    def __init__(self, genes: Iterable[int], candidate: Candidate | None = None) -> None:
        super().__init__(genes)
        self.fitness = _Fitness((candidate.score, candidate.cost) if candidate else ())


def pareto_front(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Candidates that no other beats on both cost and score, cheapest first."""
    return non_dominated(candidates, lambda c: c.cost)


def evolve(
    start: Sequence[Genome],
    measure: Measure,
    rate: Rate,
    space: Space,
    *,
    evaluations: int,
    population: int,
    proposals: int,
    seed: int,
) -> list[Candidate]:
    """Return every candidate that was measured, at most `evaluations`.

    A generation's proposals depend on the seed, its number and the measurements so far, not on when or where they were made.
    """
    known: dict[Genome, Candidate] = {}
    looked_at: set[Genome] = set()
    wanted = list(dict.fromkeys(start))[:evaluations]
    generation = 0
    while wanted:
        known |= {c.lengths: c for c in measure(wanted)}
        generation += 1
        room = min(population, evaluations - len(known))
        with _seeded(f"{seed}/{generation}"):
            parents = tools.selNSGA2([_Individual(c.lengths, c) for c in known.values()], min(population, len(known)))
            fresh = _proposals(parents, looked_at | known.keys(), room * proposals, space)
        looked_at |= set(fresh)
        wanted = halved(fresh, rate, room)
    return list(known.values())


def halved(genomes: Sequence[Genome], rate: Rate, room: int) -> list[Genome]:
    """Return at most `room` of the genomes: rung by rung the better half in nearness and cost stays (successive halving)."""
    for number, share in enumerate(RUNGS):
        if len(genomes) > room:
            last = number + 1 == len(RUNGS)
            rated = [_Individual(c.lengths, c) for c in rate(genomes, share)]
            genomes = [tuple(i) for i in tools.selNSGA2(rated, room if last else max(room, len(rated) // 2))]
    return list(genomes)


def _proposals(parents: Sequence[_Individual], known: Set[Genome], room: int, space: Space) -> list[Genome]:
    """Return up to `room` new genomes; give up after a bounded number of tries."""
    fresh: dict[Genome, None] = {}
    for attempt in range(20 * room):
        if len(fresh) == room:
            break
        child = _Individual(random.choice(parents))
        if attempt % 2 and len(parents) > 1:
            tools.cxUniform(child, _Individual(random.choice(parents)), 0.5)
        else:
            _mutate(child, space)
        genome = space.repaired(child)
        if genome not in known:
            fresh[genome] = None
    return list(fresh)


def _mutate(genes: _Individual, space: Space) -> None:
    """Scale what is read of a text, or a tail of the layers' lengths, or draw single ones of these anew between their neighbours."""
    if space.truncates and random.random() < READ_LESS:
        genes[0] = round(genes[0] * random.uniform(0.6, 1.3))
        return
    layers = genes[space.truncates :]
    if random.random() < 0.5:
        first, factor = random.randrange(len(layers)), random.uniform(0.6, 1.3)
        layers[first:] = [round(g * factor) for g in layers[first:]]
    else:
        upper = [space.max_length, *layers[:-1]]
        lower = [*layers[1:], 1]
        tools.mutUniformInt(layers, [min(a, b) for a, b in zip(lower, upper, strict=True)], upper, 0.5)
    genes[space.truncates :] = layers


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """DEAP draws from Python's global generator: give it a seed of its own and put the old state back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def operating_points(candidates: Sequence[Candidate], full: Candidate) -> dict[str, Candidate]:
    """Name the points of a front: the cheapest that lose at most 0, 0.5 and 1 points against full length, the knee, the cheapest.

    The knee is that of the front's part which loses at most 5 points.
    """
    front = pareto_front([*candidates, full])
    named = {"full": full}
    for name, allowed in LOSSES.items():
        named[name] = next((c for c in front if c.score >= full.score - allowed - 1e-9), full)
    return named | {"knee": knee([c for c in front if c.score >= full.score - WORTHWHILE]), "min": front[0]}


def knee(front: Sequence[Candidate]) -> Candidate:
    """Return the point of a front that lies farthest above the line between its ends (Kneedle), the cheaper of two."""
    low, high = front[0], front[-1]
    cost, score = max(high.cost - low.cost, 1e-12), max(high.score - low.score, 1e-12)
    return max(front, key=lambda c: ((c.score - low.score) / score - (c.cost - low.cost) / cost, -c.cost))


def hypervolume(candidates: Iterable[Candidate], worst: Candidate) -> float:
    """Return the area that a front dominates up to a worst score and a highest cost, in score × cost (Zitzler and Thiele, 1998)."""
    area, below = 0.0, worst.score
    for candidate in pareto_front(c for c in candidates if c.cost <= worst.cost and c.score > worst.score):
        area += (worst.cost - candidate.cost) * (candidate.score - below)
        below = candidate.score
    return area
