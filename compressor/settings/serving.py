"""What a bundle is served as and judged by: cascade, target, gates."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.settings.base import BUNDLE, LARGEST, Section, Share
from compressor.settings.data import Metric, PathOrSplit
from compressor.settings.deploying import PointName
from compressor.units import Megabytes, Milliseconds, Percent


class Member(Section):
    point: PointName | None = None
    """An operating point of this bundle: it shares the bundle's graph."""
    teacher: Literal["int8", "float"] | None = None
    """The teacher, dynamically quantized or as it is."""
    bundle: Annotated[str, Field(min_length=1), BUNDLE] | None = None
    """Another bundle's folder, at its default operating point: it must know the same task and labels."""
    early_exit: Literal[True] | None = None
    """The head on an inner layer of the student, which `early_exit` trains: the point full behind it goes on from that layer."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Member":
        if sum(origin is not None for origin in (self.point, self.teacher, self.bundle, self.early_exit)) != 1:
            raise ValueError("a member is one of `point`, `teacher`, `bundle` and `early_exit`")
        return self


class Cascade(Section):
    members: Annotated[tuple[Member, ...], Field(min_length=2, max_length=4, strict=False)]
    """Who answers, from cheap to dear; a text goes on until a member is sure enough of it, at the latest to the last one."""
    confidence: Literal["max_softmax", "margin", "entropy"] = "max_softmax"
    """How sure a member is: its largest probability, that less the second, or how little its probabilities spread."""
    calibration: PathOrSplit | None = None
    """What temperatures and thresholds are found on, never a text of train, unlabelled or test; absent: the search split."""
    thresholds: Annotated[tuple[Share, ...], Field(strict=False)] | None = None
    """Confidence from which each member but the last answers; or one of the following."""
    max_drop: Percent | None = None
    """Or: the fastest thresholds that lose at most so much against the last member; 0.3% where nothing is said."""
    speedup: Annotated[float, Field(gt=0)] | None = None
    """Or: the best thresholds that are at least so many times as fast as the last member alone."""
    latency_ms: Milliseconds | None = None
    """Or: the best thresholds that take at most so long a text, in the mean."""
    default: bool = False
    """Whether a client that names no point gets the cascade, and gates judge it, by its mean latency."""

    @model_validator(mode="after")
    def _one_goal(self) -> "Cascade":
        goals = [key for key in ("thresholds", "max_drop", "speedup", "latency_ms") if getattr(self, key) is not None]
        if len(goals) > 1:
            raise ValueError(f"{' and '.join(goals)} each decide the thresholds: keep one")
        if self.thresholds is not None and len(self.thresholds) != len(self.members) - 1:
            raise ValueError(f"{len(self.members)} members take {len(self.members) - 1} thresholds, not {len(self.thresholds)}")
        if any(member.early_exit for member in self.members[1:]):
            raise ValueError("an early exit is the cheapest member: name it first, and once")
        return self


class Target(Section):
    threads: Annotated[int, Field(ge=1, le=LARGEST)] = 1
    """Threads of one inference."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 1
    """Texts of one request; latencies are those of a request, its texts of all lengths."""
    backend: Literal["onnxruntime", "openvino", "auto"] = "onnxruntime"
    """What runs the bundle's graph; auto: the faster of those that are installed and answer as onnxruntime does, or
    onnxruntime where there is a cascade, which is calibrated in one backend."""

    @property
    def settled(self) -> Literal["onnxruntime", "openvino"]:
        """What runs the graph while there is no bundle yet, on which to choose."""
        return "openvino" if self.backend == "openvino" else "onnxruntime"


class DropGate(Section):
    metric: Metric
    """Judges the score; it is the one of task.metric."""
    against: Literal["teacher", "student"] = "teacher"
    """Float model that the default operating point is held against."""
    max_drop: Percent
    """Score that the default operating point may lose, in points."""
    certain: bool = False
    """Whether the upper end of the drop's 95 % interval must hold too, which takes many texts."""


MeasuredOn = Literal["target", "other"]


class SpeedGate(Section):
    metric: Literal["speedup"]
    """Judges how many times faster the bundle is."""
    against: Literal["teacher", "student"] = "teacher"
    """Float model that the default operating point is held against."""
    min: Annotated[float, Field(gt=0)]
    """Least ratio of the median latencies (of a cascade's, with cascade.default: true: mean), both measured in one interleaved run."""
    measured_on: MeasuredOn = "target"
    """Where quantize.isa is not this machine's, the gate breaks; other: judge by this machine all the same."""


class LatencyGate(Section):
    metric: Literal["latency"]
    """Judges the milliseconds of one request at the default operating point, each its best of three runs ('compress bench' times all)."""
    max: Milliseconds
    """Largest median latency; with cascade.default: true the cascade's mean."""
    measured_on: MeasuredOn = "target"
    """Where quantize.isa is not this machine's, the gate breaks; other: judge by this machine all the same."""


class SizeGate(Section):
    metric: Literal["size"]
    """Judges the megabytes of the graph."""
    max: Megabytes
    """Largest model.onnx; with cascade.default: true all graphs together."""


AnyGate = Annotated[DropGate | SpeedGate | LatencyGate | SizeGate, Field(discriminator="metric")]
