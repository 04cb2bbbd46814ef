"""What a search is held against: configurations that need none, reading less of a text, and random ones of equal number.

Papers:   constant ratios as in ToP's tables (arXiv:2306.13812); published configurations of six layers: QuaLA-MiniLM (arXiv:2210.17114);
          random search (Bergstra and Bengio, 2012).
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from compressor.evolution import Candidate, Genome, Space, pareto_front
from compressor.formats import points_change
from compressor.lengths import LengthConfig

PUBLISHED, PUBLISHED_AT = ((269, 253, 252, 202, 104, 34), (315, 251, 242, 159, 142, 33)), 384
"""QuaLA-MiniLM's configurations, and the length that they are counted at."""
RATIOS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def constant_ratios(space: Space) -> list[Genome]:
    """Return configurations that read all of a text and keep one share of the tokens from the first layer on."""
    return space.distinct([*_all_of_it(space), *[space.max_length * ratio] * space.layers] for ratio in RATIOS)


def truncation(space: Space) -> list[Genome]:
    """Return configurations that read the beginning of a text, and all layers all of that; none where nothing may truncate."""
    layers = space.full[space.truncates :]
    return space.distinct((space.max_length * ratio, *layers) for ratio in RATIOS) if space.truncates else []


def published(space: Space) -> list[Genome]:
    """Return the published configurations for so many layers, scaled to the length, which read all of a text."""
    fitting = (lengths for lengths in PUBLISHED if len(lengths) == space.layers)
    return space.distinct([*_all_of_it(space), *(n * space.max_length / PUBLISHED_AT for n in lengths)] for lengths in fitting)


def _all_of_it(space: Space) -> list[int]:
    return [space.max_length] * space.truncates


def random_search(space: Space, count: int, seed: int) -> list[Genome]:
    """Return so many configurations drawn as LengthDrop draws them, at bounds of any size; fewer where there are no more.

    Where they may truncate, each reads any number of tokens from a quarter on.
    """
    rng, found = random.Random(f"{seed}/random search"), dict[Genome, None]()
    for _ in range(20 * count):
        if len(found) < count:
            lengths = LengthConfig.sample(space.layers, space.max_length, rng.uniform(0.05, 0.6), rng).lengths
            read = [rng.uniform(0.25, 1) * space.max_length] if space.truncates else []
            found[space.repaired([*read, *lengths])] = None
    return list(found)


def ahead(front: Iterable[Candidate], others: Sequence[Candidate]) -> list[float]:
    """Return, for each of the others, how much more the front scores at no more cost, where the front goes that low."""
    points = pareto_front(front)
    below = [([p.score for p in points if p.cost <= other.cost], other.score) for other in others]
    return [max(scores) - score for scores, score in below if scores]


def told(known: Sequence[Candidate], baselines: Mapping[str, Sequence[Candidate]], passes: float = 0) -> list[str]:
    """Return a sentence for each baseline: how far ahead of it evolution is at equal cost and, where that is time, at equal MACs.

    `passes` over the split are what evolution's looks at parts of it came to, which the baselines did without.
    """
    sentences = []
    for name, candidates in baselines.items():
        gaps = ahead(known, pareto_front(candidates))
        if gaps:
            at_macs = ahead(_by_macs(known), pareto_front(_by_macs(candidates))) if any(c.cost != c.macs for c in candidates) else []
            same = f", {_points(at_macs)} at equal MACs" if at_macs else ""
            lead = f"Against {name} evolution's front has {_points(gaps)} at equal cost{same}"
            looked = f"; evolution, of {len(known)}, looked at others on parts of it too, {passes:.0f} passes in all"
            beside = looked if passes >= 0.5 else ""
            sentences.append(f"{lead} (search split, {len(candidates)} configurations{beside}).")
    return sentences


def _by_macs(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [replace(c, cost=c.macs) for c in candidates]


def _points(gaps: Sequence[float]) -> str:
    return f"{points_change(sum(gaps) / len(gaps))} points on average ({points_change(min(gaps))} at worst)"
