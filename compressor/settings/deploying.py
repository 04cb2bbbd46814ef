"""From a student to a graph: lengths, an early exit, export, INT8, and the search for operating points."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.settings.base import LARGEST, Section, Share
from compressor.settings.training import Training
from compressor.units import Percent


class LengthAdapt(Training):
    sandwiches: Annotated[int, Field(ge=0, le=LARGEST)] = 2
    """Random sub-models per step, beside the full and the smallest one."""
    bound: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """LengthDrop: a layer keeps at least 1 - bound of what the layer before it passed on."""
    smallest: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a text that the smallest sub-model keeps after the last layer, an equal part of it lost in each; absent: as bound has it.
    Random ones keep no less after any layer."""
    layer_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """LayerDrop: probability that a sub-model skips a layer in training."""
    soft_labels: Share = 0.5
    """Share of the teacher's soft labels, against the labels, in what the full model learns."""
    significance: Literal["attention", "sampled", "question", "cls", "learned"] = "attention"
    """A token counts for the attention it receives in a layer from all real tokens, every eighth (cheaper), those of a protected question,
    or [CLS] (cheaper still); or for what each layer learns of its worth to the full model (cheapest): the attention that the last layer
    will pay it, or how likely an answer begins or ends there, told by a protected question's tokens where there is one."""
    neighbours: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Tokens on each side whose significance counts for a token too: a text is left in whole stretches, not in single words."""
    counts: Literal["ratio", "absolute"] = "ratio"
    """A length configuration keeps a share of each text's tokens after a layer, or up to so many of them whatever the text's length."""
    protect: Literal["cls", "question"] = "cls"
    """What leaves last: [CLS], which never does, or the whole first text of a pair too, as the question of question-answering."""

    @model_validator(mode="after")
    def _question_stays(self) -> "LengthAdapt":
        if self.significance == "question" and self.protect != "question":
            raise ValueError("significance question asks the question's tokens, which must stay: set length_adapt.protect: question")
        return self

    @model_validator(mode="after")
    def _some_skip_layers(self) -> "LengthAdapt":
        if self.layer_drop and not self.sandwiches:
            raise ValueError("layer_drop skips layers of random sub-models, of which there are none: set sandwiches to 1 or more")
        return self


class EarlyExit(Training):
    layer: Annotated[int, Field(ge=1, le=LARGEST)]
    """Layers of the student, from the first on, that stay as they are; a copy of its last one and of its head answers above them."""


Exporter = Literal["torchscript", "dynamo"]


class Export(Section):
    opset: Annotated[int, Field(ge=14, le=20)] = 17
    """Version of the ONNX operators."""
    exporter: Exporter = "torchscript"
    """Which of torch's exporters writes the graph; torchscript, or dynamo for opset 18 and later."""
    portable: bool = False
    """Only operators of ONNX itself, for runtimes other than onnxruntime; slower."""
    halves: bool = False
    """Write the graph in two halves too, cut at recycle.layer: a runtime with a store runs the first once per text, for all tasks."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    """Largest difference between a logit of the graph and of torch, over lengths, batches and paddings."""

    @model_validator(mode="after")
    def _within_reach(self) -> "Export":
        if self.exporter == "dynamo" and self.opset < 18:
            raise ValueError(f"the dynamo exporter writes opset 18 and later, not {self.opset}: set export.opset: 18")
        return self


class Quantize(Section):
    backend: Literal["onnxruntime", "onnxruntime-static", "nncf", "neural-compressor", "auto"] = "onnxruntime"
    """onnxruntime: dynamic, needs no data, reads one text a run; the next three: static, read batches; auto: the best here."""
    calibration: Annotated[int, Field(ge=1, le=LARGEST)] = 256
    """Training texts on which static backends measure activations."""
    max_drop: Percent = 0.01
    """Score on validation that INT8 may lose against float; where it loses more, the fewest products that suffice go back to float.
    Where none suffice, all stay INT8, and the build warns."""
    isa: Literal["auto", "amx", "vnni", "avx512", "avx2"] = "auto"
    """Instruction set of the processors that will serve; auto: this machine's. Without VNNI, weights have 7 bits: 8 would saturate."""


class Search(Section):
    evaluations: Annotated[int, Field(ge=4, le=LARGEST)] = 48
    """Length configurations that are measured at most."""
    population: Annotated[int, Field(ge=4, multiple_of=4, le=LARGEST)] = 12
    """Length configurations of one generation, a multiple of 4."""
    latency: Literal["measured", "macs"] = "measured"
    """What the front trades the score against: milliseconds on the deployed graph, or multiply-accumulates."""
    texts: Annotated[int, Field(ge=8, le=LARGEST)] = 32
    """Requests of search texts that a latency is measured on."""
    proposals: Annotated[int, Field(ge=1, le=100)] = 4
    """Configurations that are looked at for each one that is measured: on a tenth of the split, the better half on a quarter of it."""
    truncate: bool = False
    """A configuration may read the beginning of long texts only; before its layers' lengths stands how many tokens it reads."""
    baselines: bool = False
    """Measure constant ratios, published configurations and random search with equal evaluations too, for the report."""


PointName = Literal["full", "accurate", "balanced", "fast", "knee", "min"]
