"""Pareto fronts of score against cost."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar


class Scored(Protocol):
    """Anything that scores."""

    @property
    def score(self) -> float:
        """The higher, the better."""
        ...


T = TypeVar("T", bound=Scored)


def non_dominated(found: Iterable[T], cost: Callable[[T], float]) -> list[T]:
    """Return what nothing else beats on both cost and score, the cheapest first."""
    front: list[T] = []
    for one in sorted(found, key=lambda item: (cost(item), -item.score)):
        if not front or one.score > front[-1].score:
            front.append(one)
    return front
