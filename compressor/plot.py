"""Lay out the Pareto front, score against latency, as SVG coordinates: axes, dots, line, and names that cover none of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from compressor.formats import is_number, milliseconds, percent


@dataclass(frozen=True)
class Scale:
    """A linear axis from values to SVG units, with ticks at round values."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Map a value to its place, in SVG units with one decimal."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def step(self) -> float:
        """Return the distance of two ticks: 1, 2 or 5 times a power of ten, about five ticks on the axis."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        return power * next(nice for nice in (1, 2, 5, 10) if rough <= nice * power * 1.0001)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return (place, text) of every tick inside the axis."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [(self(i * self.step), f"{i * self.step:.{decimals}f}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class Box:
    """A rectangle in SVG units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Tell whether the two rectangles share an area."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def holds(self, x: float, y: float) -> bool:
        """Tell whether the place lies inside."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    def inside(self, other: "Box") -> bool:
        """Tell whether this rectangle lies within the other."""
        return other.left <= self.left and self.right <= other.right and other.top <= self.top and self.bottom <= other.bottom


@dataclass(frozen=True)
class Mark:
    """A dot of the plot and what a pointer resting on it reads."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Label:
    """An operating point's dot, its name, and where the name stands; `leader` asks for a line between the two."""

    x: float
    y: float
    name: str
    text: str
    text_x: float
    text_y: float
    anchor: str
    leader: bool
    box: Box


@dataclass(frozen=True)
class Plot:
    """Everything the template draws of the Pareto front, in SVG units."""

    area: Box
    x: Scale
    y: Scale
    cloud: str
    line: str
    front: list[Mark]
    labels: list[Label]
    shown: int
    hidden: int


WIDTH, HEIGHT = 640, 400
AREA = Box(left=74, top=16, right=WIDTH - 20, bottom=HEIGHT - 64)
# Narrow screens draw text at 18 units so that it stays readable; names are placed for that size, hence fit at every other.
GLYPH_WIDTH, GLYPH_ASCENT, GLYPH_DESCENT = 9.6, 14.0, 5.0
# The place above and left of a front is empty by definition of the front, so that side is tried first.
SIDES = (
    (-0.7, -0.7, "end"),
    (0.0, -1.0, "middle"),
    (0.7, 0.7, "start"),
    (1.0, 0.0, "start"),
    (0.0, 1.0, "middle"),
    (-1.0, 0.0, "end"),
    (0.7, -0.7, "start"),
    (-0.7, 0.7, "end"),
)
DISTANCES = (11, 26, 44, 64, 86)

Candidate = Mapping[str, Any]


def _axis(wanted: Sequence[float], cloud: Sequence[float], start: float, end: float, side: int) -> Scale:
    """Fit an axis to the front, and let the cloud widen it by at most one front's range on `side` (-1 below, 1 above)."""
    low, high = min(wanted), max(wanted)
    room = high - low or abs(high) * 0.05 or 1.0
    low = min(low, max(min(cloud, default=low), low - (room if side < 0 else 0)))
    high = max(high, min(max(cloud, default=high), high + (room if side > 0 else 0)))
    margin = (high - low or room) * 0.08
    return Scale(low - margin, high + margin, start, end)


def _usable(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [c for c in candidates if is_number(c.get("score")) and is_number(c.get("cost"))]


def _as_searched(points: Mapping[str, Candidate], searched: Iterable[Candidate]) -> dict[str, Candidate]:
    """Return the points with the search's own figures, which alone compare with the front; the bundle's are of another split and run."""
    found = {tuple(c.get("lengths") or ()): c for c in searched}
    measured = {name: found.get(tuple(point["lengths"]), point) if point.get("lengths") else point for name, point in points.items()}
    return {name: point for name, point in measured.items() if _usable([point])}


def _describe(candidate: Candidate, write: Callable[[float], str]) -> str:
    lengths = " ".join(map(str, candidate.get("lengths") or ()))
    return f"{percent(candidate['score'])}, {write(candidate['cost'])}" + (f", lengths {lengths}" if lengths else "")


def _text_box(x: float, y: float, name: str, anchor: str) -> Box:
    width = GLYPH_WIDTH * len(name)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return Box(left, y - GLYPH_ASCENT, left + width, y + GLYPH_DESCENT)


def _choices(mark: Mark, name: str) -> Iterable[Label]:
    """Offer places for a name, nearest first."""
    for distance in DISTANCES:
        for dx, dy, anchor in SIDES:
            x, y = round(mark.x + dx * distance, 1), round(mark.y + dy * distance + 5, 1)
            yield Label(mark.x, mark.y, name, mark.text, x, y, anchor, distance > DISTANCES[0], _text_box(x, y, name, anchor))


def _along(line: Sequence[Mark]) -> list[tuple[float, float]]:
    """Sample places on the front's line that a name should not cover."""
    steps = [i / 12 for i in range(13)]
    return [(a.x + t * (b.x - a.x), a.y + t * (b.y - a.y)) for a, b in pairwise(line) for t in steps] or [(m.x, m.y) for m in line]


def place_labels(points: Mapping[str, Mark], line: Sequence[Mark] = ()) -> list[Label]:
    """Choose a place for each point's name inside the plot, off the dots, the line and each other; one dot's names share a label."""
    names: dict[tuple[float, float], list[str]] = {}
    marks = {(mark.x, mark.y): mark for mark in points.values()}
    for name, mark in points.items():
        names.setdefault((mark.x, mark.y), []).append(name)
    dots = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    path = _along(line)
    placed: list[Label] = []

    def penalty(label: Label) -> int:
        outside = not label.box.inside(AREA)
        covered = sum(label.box.overlaps(other) for other in [*dots, *(p.box for p in placed)])
        return 1000 * covered + 500 * outside + sum(label.box.holds(x, y) for x, y in path)

    for place, mark in marks.items():
        placed.append(min(_choices(mark, ", ".join(names[place])), key=penalty))  # min keeps the first, nearest, of equals
    return placed


def front_plot(
    front: Iterable[Candidate],
    evaluated: Iterable[Candidate],
    points: Mapping[str, Candidate],
    write: Callable[[float], str] = milliseconds,
) -> Plot | None:
    """Lay out score against latency, or what a search by MACs has in its place; None when the recipe searched nothing."""
    best = sorted(_usable(front), key=lambda c: c["cost"])
    if not best:
        return None
    cloud = _usable(evaluated)
    named = _as_searched(points, [*cloud, *best])
    wanted = [*best, *named.values()]
    x = _axis([c["cost"] for c in wanted], [c["cost"] for c in cloud], AREA.left, AREA.right, side=1)
    y = _axis([100 * c["score"] for c in wanted], [100 * c["score"] for c in cloud], AREA.bottom, AREA.top, side=-1)

    def mark(candidate: Candidate) -> Mark:
        return Mark(x(candidate["cost"]), y(100 * candidate["score"]), _describe(candidate, write))

    dots = [dot for dot in map(mark, cloud) if AREA.holds(dot.x, dot.y)]
    line = [mark(c) for c in best]
    return Plot(
        area=AREA,
        x=x,
        y=y,
        cloud="".join(f"M{dot.x:g} {dot.y:g}h0" for dot in dots),  # one path of round caps: 13 bytes a dot instead of 40
        line=" ".join(f"{m.x:g},{m.y:g}" for m in line),
        front=line,
        labels=place_labels({name: mark(point) for name, point in named.items()}, line),
        shown=len(dots),
        hidden=len(cloud) - len(dots),
    )
