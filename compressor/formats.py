"""Numbers as people read them: percentages, points, milliseconds, factors, sizes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

DASH = "—"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage: 0.871 is `87.1%`; a rank correlation may be negative."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}%".replace("-", "−")


def percent_interval(interval: Sequence[float]) -> str:
    """Format an interval of fractions: (0.85, 0.89) is `85.0–89.0%`."""
    low, high = interval
    return f"{percent(low)[:-1]}–{percent(high)}"


def points_change(fraction: float) -> str:
    """Format a change of a score in points with a real minus sign: -0.006 is `−0.6`."""
    text = f"{100 * fraction:+.1f}".replace("-", "−")
    return "±0.0" if text in ("+0.0", "−0.0") else text


def milliseconds(latency_ms: float) -> str:
    """Format a latency: 1.234 is `1.23 ms`."""
    return f"{latency_ms:.2f} ms"


def macs(share: float) -> str:
    """Format multiply-accumulates: 0.55 is `55% of full length's MACs`."""
    return f"{100 * share:.0f}% of full length's MACs"


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


def is_number(value: object) -> bool:
    """Tell whether a value is a number that can be shown."""
    return isinstance(value, int | float) and math.isfinite(value)


def or_dash(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """Let a template print a number that was not measured."""

    def filtered(value: object) -> str:
        numbers = value if isinstance(value, list | tuple) else [value]
        return write(value) if numbers and all(map(is_number, numbers)) else DASH

    return filtered
