"""Render a bundle's metrics for people: one self-contained HTML report and one Hugging Face model card.

Both functions are pure: the text of metrics.json goes in, the text of report.html or README.md comes out; no clock, no files, no network.
"""

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader
from ruamel.yaml import YAML

DASH = "—"
TAGS = ("compressed", "int8", "onnx", "length-adaptive")
# A recipe without a stage leaves its part out of metrics.json, and the templates then say so.
EMPTY: Mapping[str, Any] = {
    "labels": (),
    "seed": None,
    "max_length": None,
    "data": {},
    "target": {},
    "machine": {},
    "versions": {},
    "variants": (),
    "front": (),
    "evaluated": (),
    "points": {},
    "stages": (),
    "gates": (),
    "findings": (),
    "stage_gains": (),
    "license": None,
}


# ---------------------------------------------------------------------------------------------------------------- numbers


def percent(fraction: float) -> str:
    """Format a fraction as a percentage: 0.871 is `87.1%`."""
    return f"{100 * fraction:.1f}%"


def percent_interval(interval: Sequence[float]) -> str:
    """Format an interval of fractions: (0.85, 0.89) is `85.0–89.0%`."""
    low, high = interval
    return f"{100 * low:.1f}–{percent(high)}"


def points_change(fraction: float) -> str:
    """Format a change of a score in points with a real minus sign: -0.006 is `−0.6`."""
    text = f"{100 * fraction:+.1f}".replace("-", "−")
    return "±0.0" if text in ("+0.0", "−0.0") else text


def milliseconds(latency_ms: float) -> str:
    """Format a latency: 1.234 is `1.23 ms`."""
    return f"{latency_ms:.2f} ms"


def times(factor: float) -> str:
    """Format a factor: 6.31 is `6.3×`; below 2 the second decimal matters, 1.08 is `1.08×`."""
    return f"{factor:.2f}×" if factor < 2 else f"{factor:.1f}×"


def megabytes(size_mb: float) -> str:
    """Format a size: 17.23 is `17.2 MB`."""
    return f"{size_mb:.1f} MB"


def duration(seconds: float) -> str:
    """Format a build time: 12.34 is `12.3 s`, 200 is `3 min 20 s`, 3900 is `1 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: float) -> str:
    """Format a count: 8451 is `8,451`."""
    return f"{number:,.0f}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _or_dash(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Let a template print a number that was not measured."""

    def filtered(value: object) -> str:
        numbers = value if isinstance(value, list | tuple) else [value]
        return write(value) if numbers and all(map(_is_number, numbers)) else DASH

    return filtered


# --------------------------------------------------------------------------------------------------------- the front plot


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
    return [c for c in candidates if _is_number(c.get("score")) and _is_number(c.get("latency_ms"))]


def _describe(candidate: Candidate) -> str:
    lengths = " ".join(map(str, candidate.get("lengths") or ()))
    return f"{percent(candidate['score'])}, {milliseconds(candidate['latency_ms'])}" + (f", lengths {lengths}" if lengths else "")


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


def front_plot(front: Iterable[Candidate], evaluated: Iterable[Candidate], points: Mapping[str, Candidate]) -> Plot | None:
    """Lay out score against latency; None when the recipe searched nothing."""
    best = sorted(_usable(front), key=lambda c: c["latency_ms"])
    if not best:
        return None
    cloud = _usable(evaluated)
    named = {name: point for name, point in points.items() if _usable([point])}
    wanted = [*best, *named.values()]
    x = _axis([c["latency_ms"] for c in wanted], [c["latency_ms"] for c in cloud], AREA.left, AREA.right, side=1)
    y = _axis([100 * c["score"] for c in wanted], [100 * c["score"] for c in cloud], AREA.bottom, AREA.top, side=-1)

    def mark(candidate: Candidate) -> Mark:
        return Mark(x(candidate["latency_ms"]), y(100 * candidate["score"]), _describe(candidate))

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


# --------------------------------------------------------------------------------------------------------------- the facts


@dataclass(frozen=True)
class Headline:
    """The row people should look at first, the row it is measured against, and the sentence about the two."""

    row: Mapping[str, Any]
    teacher: Mapping[str, Any] | None
    verdict: str
    change: float | None


def _number(row: Mapping[str, Any], key: str) -> float | None:
    return row[key] if _is_number(row.get(key)) else None


def _default_row(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of the operating point that the report speaks of: balanced, else full length, else the last row."""
    rows = {row["name"]: row for row in metrics["variants"]}
    wanted = [f"INT8 {point}" for point in ("balanced", "full")]
    return next((rows[name] for name in wanted if name in rows), next(reversed(rows.values()), {}))


def _verdict(metric: str, row: Mapping[str, Any], speedup: float | None, change: float | None) -> str:
    score, latency, size = (_number(row, key) for key in ("score", "p50_ms", "size_mb"))
    parts = []
    if speedup is not None:
        parts.append(f"{times(speedup)} faster than its teacher" if speedup >= 1.005 else f"{times(speedup)} the speed of its teacher")
    elif latency is not None:
        parts.append(f"{milliseconds(latency)} a text")
    if change is not None:
        parts.append(f"at {points_change(change)} points of {metric}")
    elif score is not None:
        parts.append(f"at {percent(score)} {metric}")
    first = " ".join(parts)
    return ", ".join(filter(None, [first, megabytes(size) if size is not None else ""])) or "Nothing was measured"


def headline(metrics: Mapping[str, Any]) -> Headline:
    """Sum the bundle up: `6.3× faster than its teacher at −0.6 points of accuracy, 17.2 MB`."""
    row = _default_row(metrics)
    teacher = next((r for r in metrics["variants"] if r["name"].startswith("teacher") and r is not row), None)
    score, before = _number(row, "score"), _number(teacher or {}, "score")
    change = score - before if score is not None and before is not None else None
    speedup = _number(row, "speedup") if teacher else None
    return Headline(row, teacher, _verdict(metrics["metric"], row, speedup, change), change)


@dataclass(frozen=True)
class Bar:
    """A table cell's bar, as a width in percent of the longest; `loss` marks a change for the worse."""

    width: float
    loss: bool


def bars(values: Sequence[float | None]) -> list[Bar]:
    """Scale values to the largest magnitude among them; negative values are losses."""
    known = [abs(v) for v in values if v is not None]
    longest = max(known, default=0) or 1
    return [Bar(round(100 * abs(v or 0) / longest, 1), (v or 0) < 0) for v in values]


def _log_factor(row: Mapping[str, Any], key: str) -> float | None:
    factor = _number(row, key)
    return math.log(factor) if factor else None


@dataclass(frozen=True)
class LengthChart:
    """The tokens each layer keeps at one operating point: bars (x, y, width, height, tokens) in a 200 × 90 drawing."""

    name: str
    lengths: list[int]
    columns: list[tuple[float, float, float, float, int]]
    kept: float


def length_chart(name: str, lengths: Sequence[int], longest: int) -> LengthChart:
    """Lay out one operating point's length configuration as columns, `longest` tokens being the full height."""
    slot = 200 / len(lengths)
    heights = [max(1.5, round(62 * tokens / longest, 1)) for tokens in lengths]
    width = round(min(slot - 3, 34), 1)
    columns = [
        (round(i * slot + (slot - width) / 2, 1), round(74 - height, 1), width, height, tokens)
        for i, (height, tokens) in enumerate(zip(heights, lengths, strict=True))
    ]
    return LengthChart(name, list(lengths), columns, sum(lengths) / (longest * len(lengths)))


def _length_charts(metrics: Mapping[str, Any]) -> list[LengthChart]:
    rows = metrics["points"] or {row["name"]: row for row in metrics["variants"]}
    configurations = {name: row["lengths"] for name, row in rows.items() if row.get("lengths")}
    longest = max((max(lengths) for lengths in configurations.values()), default=1)
    return [length_chart(name, lengths, longest) for name, lengths in configurations.items()]


# --------------------------------------------------------------------------------------------------------------- documents


def _markdown(value: object) -> str:
    """Escape text for a Markdown paragraph or table cell, where raw HTML would otherwise be live."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compressor"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = (percent, percent_interval, points_change, milliseconds, times, megabytes, duration, count)
    environment.filters.update({write.__name__: _or_dash(write) for write in numbers})
    environment.filters["markdown"] = _markdown
    return environment


def _complete(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the parts that this recipe did not produce."""
    return {**EMPTY, **{key: value for key, value in metrics.items() if value is not None}}


def render_report(metrics: Mapping[str, Any]) -> str:
    """Render metrics.json as one HTML file that fetches nothing: styles and drawings are inline, and there is no script."""
    facts = _complete(metrics)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            m=facts,
            headline=headline(facts),
            plot=front_plot(facts["front"], facts["evaluated"], facts["points"]),
            charts=_length_charts(facts),
            speed_bars=bars([_number(row, "speedup") for row in facts["variants"]]),
            gain_bars=bars([_log_factor(row, "speedup_factor") for row in facts["stage_gains"]]),
            change_bars=bars([_number(row, "score_change") for row in facts["stage_gains"]]),
            time_bars=bars([_number(row, "seconds") for row in facts["stages"]]),
        )
    )


def _front_matter(metrics: Mapping[str, Any]) -> str:
    """Write the card's YAML: what the Hub indexes, with one accuracy result per measured INT8 row."""
    metric = metrics["metric"]
    shipped = [row for row in metrics["variants"] if row["name"].startswith("INT8") and _number(row, "score") is not None]
    results = [{"type": metric, "name": f"{metric} ({row['name']})", "value": row["score"]} for row in shipped]
    data = {"name": f"{metrics['name']} (test split)", "type": "custom", "split": "test"}
    result = {"task": {"type": metrics["task"]}, "dataset": data, "metrics": results}
    card = {
        **({"license": metrics["license"]} if metrics["license"] else {}),
        "pipeline_tag": metrics["task"],
        "tags": list(TAGS),
        **({"model-index": [{"name": metrics["name"], "results": [result]}]} if results else {}),
    }
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.dump(card, text)
    return text.getvalue()


def render_card(metrics: Mapping[str, Any]) -> str:
    """Render metrics.json as the bundle's README.md, a Hugging Face model card with its front matter."""
    facts = _complete(metrics)
    point = next((name for name in ("fast", "full") if name in facts["points"]), None)
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(m=facts, headline=headline(facts), front_matter=_front_matter(facts), point=point)
    )
