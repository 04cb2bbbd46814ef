"""Render a bundle's metrics for people: one self-contained HTML report and one Hugging Face model card.

Both functions are pure: the text of metrics.json goes in, the text of report.html or README.md comes out; no clock, no files, no network.
"""

import html
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import StringIO
from typing import Any

from jinja2 import Environment, PackageLoader
from ruamel.yaml import YAML

from compressor.formats import (
    count,
    duration,
    is_number,
    macs,
    megabytes,
    milliseconds,
    or_dash,
    percent,
    percent_interval,
    points_change,
    times,
)
from compressor.plot import Plot, front_plot
from compressor.settings.data import WINDOWED

# The parts that code here or a template looks into; every other part may be absent, and the templates then say so.
EMPTY: Mapping[str, Any] = {
    "default_point": None,
    "default_policy": None,
    "data": {},
    "target": {},
    "machine": {},
    "variants": (),
    "front": (),
    "evaluated": (),
    "baselines": (),
    "truncates": False,
    "searched_by": "measured",
    "cascade": None,
    "pairs": False,
    "points": {},
    "stages": (),
    "stage_gains": (),
    "options": (),
    "smoke": False,
    "counts": None,
}


PIPELINES: Mapping[str, str] = {"multi-label-classification": "text-classification", "text-regression": "text-classification"}
"""The Hub's name of a task, where it is another."""
GIVEN: Mapping[str, str] = {
    "question-answering": '("Who wrote it?", "Ada wrote it in 1843.")',
    "token-classification": '"A text with names in it."',
}
"""What a model card's example gives the model, in Python."""


@dataclass(frozen=True)
class Headline:
    """The row people should look at first, the row it is measured against, and the sentence about the two."""

    row: Mapping[str, Any]
    teacher: Mapping[str, Any] | None
    verdict: str
    change: float | None


def _number(row: Mapping[str, Any], key: str) -> float | None:
    return row[key] if is_number(row.get(key)) else None


def _shipped(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of the bundle's operating points, INT8 or fp32, without those it is measured against."""
    return [row for row in metrics["variants"] if not row["name"].startswith(("teacher", "student"))]


def _default_row(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row that the report speaks of: the default operating point's, else balanced, else full length, else the last row."""
    rows = {row["name"].split()[-1]: row for row in _shipped(metrics)}
    wanted = (metrics["default_policy"], metrics["default_point"], "balanced", "full")
    return next((rows[point] for point in wanted if point in rows), next(iter(metrics["variants"][-1:]), {}))


def _is_int8(metrics: Mapping[str, Any]) -> bool:
    return any(row["name"].startswith("INT8") for row in metrics["variants"])


def _has_lengths(metrics: Mapping[str, Any]) -> bool:
    return any(row.get("lengths") for row in metrics["variants"])


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
    """The tokens each layer keeps at one operating point: bars (x, y, width, height, tokens, name) in a 200 × 90 drawing."""

    name: str
    lengths: list[int]
    columns: list[tuple[float, float, float, float, int, str]]
    kept: float | None
    macs: float | None


def length_chart(
    name: str, lengths: Sequence[int], longest: int, truncates: bool, macs: float | None = None, full: Sequence[int] | None = None
) -> LengthChart:
    """Lay out one operating point's length configuration as columns, `longest` tokens being the full height.

    Where it truncates, the first column is what is read of a text. Its share of token positions is over those of `full` length, whose last
    layer may keep one token only; absent: of as many everywhere.
    """
    names = [*(["read"] if truncates else []), *(str(layer + 1) for layer in range(len(lengths) - truncates))]
    slot = 200 / len(lengths)
    heights = [max(1.5, round(62 * tokens / longest, 1)) for tokens in lengths]
    width = round(min(slot - 3, 34), 1)
    columns = [
        (round(i * slot + (slot - width) / 2, 1), round(74 - height, 1), width, height, tokens, column)
        for i, (height, tokens, column) in enumerate(zip(heights, lengths, names, strict=True))
    ]
    whole = sum(full[truncates:]) if full else longest * (len(lengths) - truncates)
    kept, read = lengths[truncates:], lengths[0] / longest if truncates else 1.0  # layers keep their share of what is read
    return LengthChart(name, list(lengths), columns, read * sum(kept) / whole, macs)


def _length_charts(metrics: Mapping[str, Any]) -> list[LengthChart]:
    rows = metrics["points"] or {row["name"]: row for row in metrics["variants"]}
    configured = {name: row for name, row in rows.items() if row.get("lengths")}
    longest = max((max(row["lengths"]) for row in configured.values()), default=1)
    full = configured["full"]["lengths"] if "full" in configured else None
    charts = [length_chart(name, row["lengths"], longest, metrics["truncates"], row.get("macs"), full) for name, row in configured.items()]
    if metrics.get("counts") == "absolute":  # what is kept of a text depends on its length
        return [replace(chart, kept=None) for chart in charts]
    return charts


@dataclass(frozen=True)
class CascadeDrawing:
    """The cascade's curve with its members and the oracle, and the line of routing at random, in the same SVG units."""

    plot: Plot
    random: str


def _probe_plot(metrics: Mapping[str, Any]) -> Plot | None:
    """Lay out the short trainings that told how many layers stay: score against a text's time; None where the recipe states it."""
    probes = [probe for stage in metrics["stages"] for probe in (stage.get("metrics") or {}).get("probes", ())]
    points = {f"{p['layers']} layers": {"score": p["score"], "cost": 1000 / p["texts_per_second"]} for p in probes}
    return front_plot(points.values(), (), points)


def _cascade_drawing(policy: Mapping[str, Any]) -> CascadeDrawing | None:
    """Lay out score against mean time."""

    def at(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"score": row["score"], "cost": row["mean_ms"]}

    members = {row["name"]: at(row) for row in policy["members"]}
    points = {**members, "oracle": at(policy["oracle"]), "cascade": at(policy["chosen"])}
    plot = front_plot([at(row) for row in policy["curve"]], (), points)
    if plot is None:
        return None
    return CascadeDrawing(plot, " ".join(f"{plot.x(m['cost']):g},{plot.y(100 * m['score']):g}" for m in members.values()))


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
    environment.filters.update({write.__name__: or_dash(write) for write in numbers})
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
            plot=front_plot(facts["front"], facts["evaluated"], facts["points"], macs if facts["searched_by"] == "macs" else milliseconds),
            cascade=_cascade_drawing(facts["cascade"]) if facts["cascade"] else None,
            probes=_probe_plot(facts),
            charts=_length_charts(facts),
            speed_bars=bars([_number(row, "speedup") for row in facts["variants"]]),
            gain_bars=bars([_log_factor(row, "speedup_factor") for row in facts["stage_gains"]]),
            change_bars=bars([_number(row, "score_change") for row in facts["stage_gains"]]),
            command=shlex.join(["compress", "recipe.yaml", *facts["options"]]),
            time_bars=bars([_number(row, "seconds") for row in facts["stages"]]),
        )
    )


def _front_matter(metrics: Mapping[str, Any]) -> str:
    """Write the card's YAML: what the Hub indexes, with one result per measured operating point."""
    metric = metrics["metric"]
    shipped = [row for row in _shipped(metrics) if _number(row, "score") is not None]
    results = [{"type": metric, "name": f"{metric} ({row['name']})", "value": row["score"]} for row in shipped]
    data = {"name": f"{metrics['name']} (test split)", "type": "custom", "split": "test"}
    result = {"task": {"type": metrics["task"]}, "dataset": data, "metrics": results}
    card = {
        "pipeline_tag": PIPELINES.get(metrics["task"], metrics["task"]),
        "tags": ["compressed", *(["int8"] if _is_int8(metrics) else []), "onnx", *(["length-adaptive"] if _has_lengths(metrics) else [])],
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
    point = facts["default_point"] if facts["default_point"] in facts["points"] and facts["default_point"] != "full" else None
    point = None if facts["default_policy"] else point  # the default policy answers where no point is named
    usual = '("A text.", "Another that belongs to it.")' if facts["pairs"] else '"A text to classify."'
    given, drawn = GIVEN.get(facts["task"], usual), {"has_lengths": _has_lengths(facts), "windowed": facts["task"] in WINDOWED}
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(
            m=facts, headline=headline(facts), front_matter=_front_matter(facts), point=point, int8=_is_int8(facts), given=given, **drawn
        )
    )
