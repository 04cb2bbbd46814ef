"""Gates: what must hold before a bundle may be deployed. Pure arithmetic over the measured variants."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from compressor.settings.serving import AnyGate, DropGate, LatencyGate, SizeGate, SpeedGate


@dataclass(frozen=True)
class Variant:
    """A row of the result table, measured on the test split; all rows' latencies come from one interleaved run."""

    name: str
    score: float
    score_interval: tuple[float, float]
    p50_ms: float
    p90_ms: float
    size_mb: float
    mean_ms: float
    lengths: tuple[int, ...] | None = None
    routed: bool = False
    """Whether a cascade answers: its median tells nothing of the texts that go on, so that it is judged by its mean."""
    changes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval of its score less another row's, by that row's name: paired, because both answer the same texts."""

    @property
    def time_ms(self) -> float:
        """What speed-ups are of: the median latency, or a cascade's mean."""
        return self.mean_ms if self.routed else self.p50_ms

    def faster_than(self, other: "Variant") -> float:
        """Return how many times as fast it is, medians against medians, or means against means where it is a cascade."""
        return other.mean_ms / self.mean_ms if self.routed else other.p50_ms / self.p50_ms


@dataclass(frozen=True)
class Verdict:
    """A gate, what was found, and whether it holds."""

    gate: str
    value: str
    limit: str
    passed: bool


def judge(
    gates: Sequence[AnyGate], chosen: Variant, references: Mapping[str, Variant], points: Sequence[Variant], *, on_target: bool = True
) -> list[Verdict]:
    """Judge the default operating point; `references` holds teacher and student (fp32), `points` all operating points.

    Where nothing was timed on the target, a gate on time breaks unless it says that another machine will do.
    """
    verdicts = [_judge(gate, chosen, references, points) for gate in gates]
    if on_target:
        return verdicts
    return [v if getattr(gate, "measured_on", "other") == "other" else _unmeasured(v) for gate, v in zip(gates, verdicts, strict=True)]


def _share(value: float, decimals: int = 2) -> str:
    return f"{round(100 * value, decimals) + 0.0:.{decimals}f}%"  # no minus before nothing


def _limit(share: float) -> str:
    """Return a limit as it was given, with two decimals at least."""
    _, _, decimals = f"{100 * share:.10g}".partition(".")
    return _share(share, max(2, len(decimals)))


def _decimals(found: float, limit: float, passed: bool, least: int = 2) -> int:
    """Return how many decimals to show: where the gate breaks, so many that what was found is told from its limit."""
    if passed:
        return least
    beyond = (n for n in range(least, 10) if (round(found, n) - limit) * (found - limit) > 0 and not math.isclose(round(found, n), limit))
    return next(beyond, least)


def _unmeasured(verdict: Verdict) -> Verdict:
    return dataclasses.replace(verdict, value=f"{verdict.value} here, not measured on the target (quantize.isa)", passed=False)


def _judge(gate: AnyGate, chosen: Variant, references: Mapping[str, Variant], points: Sequence[Variant]) -> Verdict:
    match gate:
        case DropGate():
            reference = references[gate.against]
            drop = reference.score - chosen.score
            high, low = (-bound for bound in chosen.changes.get(reference.name, (-drop, -drop)))
            judged, limit = (high, f"≤ {_limit(gate.max_drop)}, certainly") if gate.certain else (drop, f"≤ {_limit(gate.max_drop)}")
            passed = judged <= gate.max_drop + 1e-9
            own = _decimals(100 * judged, 100 * gate.max_drop, passed)
            told = f"{_share(drop, own)} ({_share(low, own)} to {_share(high, own)})"
            return Verdict(f"{gate.metric} drop against {gate.against}", told, limit, passed)
        case SpeedGate():
            ratio = chosen.faster_than(references[gate.against])
            passed = ratio >= gate.min
            told = f"{ratio:.{_decimals(ratio, gate.min, passed)}f}x"
            return Verdict(f"speed-up over {gate.against} (fp32)", told, f"≥ {gate.min:g}x", passed)
        case LatencyGate():
            took, fastest = chosen.time_ms, min([*points, chosen], key=lambda point: point.time_ms)
            found = f"{took:.{_decimals(took, gate.max, took <= gate.max)}f} ms"
            if took > gate.max and fastest is not chosen:
                found += f" ({fastest.name} takes {fastest.time_ms:.2f} ms{', the closest' * (fastest.time_ms > gate.max)})"
            what = "mean latency of the cascade" if chosen.routed else "median latency"
            return Verdict(what, found, f"≤ {gate.max:g} ms", took <= gate.max)
        case SizeGate():
            what = "size of all graphs" if chosen.routed else "size of model.onnx"
            size, passed = chosen.size_mb, chosen.size_mb <= gate.max
            told = f"{size:.{_decimals(size, gate.max, passed, least=1)}f} MB"
            return Verdict(what, told, f"≤ {gate.max:g} MB", passed)


@dataclass(frozen=True)
class Link:
    """What a stage made: a row of the table, and the seconds that it took to build."""

    stage: str
    row: Variant
    seconds: float


def gains(chain: Sequence[Link]) -> list[dict[str, Any]]:
    """Return what each link of the chain gave over the one before: factor of speed, change of score, seconds it took to build."""
    return [
        {
            "stage": after.stage,
            "speedup_factor": after.row.faster_than(before.row),
            "score_change": after.row.score - before.row.score,
            "seconds": after.seconds,
        }
        for before, after in pairwise(chain)
    ]
