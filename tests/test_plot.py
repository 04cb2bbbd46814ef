import math
from itertools import combinations
from typing import Any

import pytest

from compressor.plot import front_plot


def lengths_of(budget: float) -> list[int]:
    return [round(128 * budget ** (layer / 4)) for layer in range(1, 6)] + [1]


def candidate(budget: float, loss: float = 0.0) -> dict[str, Any]:
    """A made-up search result that behaves like real ones: the score saturates as tokens are kept."""
    score = 0.868 - 0.05 * math.exp(-5 * budget) - loss
    return {"lengths": lengths_of(budget), "score": score, "cost": 0.55 + 0.9 * budget, "macs": budget}


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 1.0])
def test_names_in_the_plot_never_overlap(spread: float) -> None:
    names = ["full", "accurate", "balanced", "fast", "min"]
    points = {name: {"score": 0.86 + 0.002 * spread * i, "cost": 1 + spread * i / 10} for i, name in enumerate(names)}
    plot = front_plot([*points.values(), {"score": 0.9, "cost": 2.0}], [], points)
    assert plot
    assert all(label.box.inside(plot.area) for label in plot.labels)
    assert not any(a.box.overlaps(b.box) for a, b in combinations(plot.labels, 2))


def test_points_on_one_configuration_share_a_label() -> None:
    plot = front_plot([candidate(0.2), candidate(0.9)], [], {"fast": candidate(0.2), "min": candidate(0.2)})
    assert plot
    assert [label.name for label in plot.labels] == ["fast, min"]


def test_points_stand_where_the_search_measured_them() -> None:
    front = [candidate(0.2), candidate(0.9)]
    plot = front_plot(front, front, {"fast": {**candidate(0.2), "score": 0.7, "cost": 5.0}})
    assert plot
    assert [(label.x, label.y) for label in plot.labels] == [(plot.front[0].x, plot.front[0].y)]


def test_a_collapsed_candidate_does_not_flatten_the_front() -> None:
    front = [candidate(0.2), candidate(0.9)]
    plot = front_plot(front, [*front, {"score": 0.1, "cost": 1.0}], {})
    assert plot
    assert plot.hidden == 1
    assert abs(plot.front[0].y - plot.front[1].y) > 100


def test_a_front_of_one_configuration_has_axes() -> None:
    plot = front_plot([candidate(0.5)], [candidate(0.5)], {"full": candidate(0.5)})
    assert plot
    assert len(plot.x.ticks) >= 3
    assert len(plot.y.ticks) >= 3
