from dataclasses import replace

import pytest

from compressor.baselines import PUBLISHED, ahead, constant_ratios, published, random_search, told, truncation
from compressor.evolution import Candidate, Space
from compressor.lengths import LengthConfig

SPACE = Space(6, 128, 1)


def candidate(score: float, cost: float) -> Candidate:
    return Candidate((1,), score, cost, cost)


def test_baselines_are_valid_configurations() -> None:
    for lengths in (*constant_ratios(SPACE), *published(SPACE), *random_search(SPACE, 30, seed=1)):
        LengthConfig(lengths, 128)
        assert lengths[-1] == 1
    assert constant_ratios(Space(3, 100, 0))[4] == (60, 60, 60)
    assert published(Space(6, 384, 0)) == list(PUBLISHED)
    assert published(Space(4, 384, 0)) == []


def test_truncation_reads_less_and_drops_nothing_of_it() -> None:
    space = Space(3, 100, 1, truncates=True)
    assert truncation(space)[:2] == [(95, 100, 100, 1), (90, 100, 100, 1)]
    assert truncation(SPACE) == []
    assert constant_ratios(space)[4] == (100, 60, 60, 1)  # reads all of a text
    found = random_search(space, 30, seed=1)
    assert len({read for read, *_ in found}) > 10
    for read, *lengths in found:
        LengthConfig(tuple(lengths), 100)
        assert 25 <= read <= 100


def test_random_search_has_as_many_distinct_configurations_as_asked() -> None:
    found = random_search(Space(6, 128, 0), 40, seed=1)
    assert len(set(found)) == 40
    assert random_search(Space(6, 128, 0), 40, seed=1) == found
    assert len(random_search(Space(1, 3, 0), 40, seed=1)) <= 3


def test_a_front_is_compared_at_no_more_cost() -> None:
    front = [candidate(0.80, 2), candidate(0.90, 5), candidate(0.70, 4)]
    others = [candidate(0.78, 3), candidate(0.89, 5), candidate(0.5, 1)]
    assert ahead(front, others) == pytest.approx([0.02, 0.01])
    assert told(front, {"constant ratios": others}) == [
        "Against constant ratios evolution's front has +1.5 points on average (+1.0 at worst) at equal cost "
        "(search split, 3 configurations)."
    ]
    looked = told(front, {"constant ratios": others}, passes=2.4)
    assert "3 configurations; evolution, of 3, looked at others on parts of it too, 2 passes in all)" in looked[0]
    timed = {"constant ratios": [replace(c, macs=c.cost + 2) for c in others]}
    assert told(front, timed) == [
        "Against constant ratios evolution's front has +1.5 points on average (+1.0 at worst) at equal cost, "
        "+14.3 points on average (+1.0 at worst) at equal MACs (search split, 3 configurations)."
    ]
    assert told(front, {"constant ratios": [candidate(0.5, 1)]}) == []
