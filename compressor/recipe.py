"""Every key of a recipe, in one place: what `compress` reads, checks, hashes and documents.

The docstring under a key is its documentation: `compress schema` and editors show it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from compressor import sources
from compressor.files import Columns
from compressor.units import Megabytes, Milliseconds, Percent

SPLITS = ("train", "validation", "search", "test")
CONTENT, BUNDLE = "content", "bundle"
"""Mark keys that name files, or a bundle: the cache hashes what they hold, not how they are called."""

LARGEST = 2**63 - 1
"""Integer that torch, numpy and Python's own slices still take."""

Source = Annotated[str, Field(min_length=1), CONTENT]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and strict about unknown keys and types: `true` and `'1'` are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False)


Metric = Literal["accuracy", "macro_f1", "micro_f1", "spearman", "entity_f1", "f1", "exact_match"]


class Usual(NamedTuple):
    """What a task's columns are usually called, and its scores, the usual one first."""

    text: str
    text_pair: str | None
    label: str | None
    metrics: tuple[Metric, ...]


USUAL: Mapping[str, Usual] = {
    "text-classification": Usual("text", None, "label", ("accuracy", "macro_f1")),
    "multi-label-classification": Usual("text", None, "labels", ("micro_f1", "macro_f1")),
    "text-regression": Usual("text", None, "score", ("spearman",)),
    "token-classification": Usual("tokens", None, "tags", ("entity_f1",)),
    "question-answering": Usual("question", "context", "answers", ("f1", "exact_match")),
    "masked-lm": Usual("text", None, None, ("accuracy",)),
}
WINDOWED = ("token-classification", "question-answering")
"""Tasks that read a long text in windows."""


class Task(Section):
    type: Literal[
        "text-classification", "multi-label-classification", "text-regression", "token-classification", "question-answering", "masked-lm"
    ] = "text-classification"
    """What the model answers: one label for a text or a pair of texts; any number of labels; a number; a tag for each word (entities); a
    span of a context; or the hidden tokens of plain text, which makes an encoder for other recipes to start from (general distillation)."""
    metric: Metric = "accuracy"
    """The score that search, gates and report use; absent: the usual one of the type."""
    scheme: Literal["IOB1", "IOB2", "BIOES"] | None = None
    """token-classification: how the tags of the data mark where entities begin and end; absent: IOB2."""
    no_answer: bool = False
    """question-answering: whether a question may have no answer (SQuAD 2)."""

    @model_validator(mode="before")
    @classmethod
    def _usual_metric(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "metric" not in value and value.get("type") in USUAL:
            return {**value, "metric": USUAL[value["type"]].metrics[0]}
        return value

    @model_validator(mode="after")
    def _keys_of_the_type(self) -> "Task":
        known = USUAL[self.type].metrics
        if self.metric not in known:
            raise ValueError(f"{self.type} has no metric {self.metric}: set metric: {' or '.join(known)}")
        for key, owner in (("scheme", "token-classification"), ("no_answer", "question-answering")):
            if getattr(self, key) and self.type != owner:
                raise ValueError(f"{key} belongs to {owner}, but type is {self.type}: leave it out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What the task itself is made with."""
        chosen = {"scheme": self.scheme, "no_answer": self.no_answer}
        return {key: value for key, value in chosen.items() if value}


class Split(Section):
    path: Source
    """csv, tsv, jsonl or parquet (also .gz), package:NAME/FILE, or a Hub data set id."""
    limit: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Read only the first so many examples."""


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


PathOrSplit = Annotated[Split, BeforeValidator(_from_path, json_schema_input_type=str | Split)]


class Data(Section):
    train: PathOrSplit
    """What the teacher and the student learn from."""
    validation: PathOrSplit | None = None
    """What training is watched on; cut from train when absent."""
    search: PathOrSplit | None = None
    """What length configurations are chosen on; cut from train when absent, never the test split."""
    test: PathOrSplit | None = None
    """What the report's figures are measured on, once; cut from train when absent."""
    unlabelled: PathOrSplit | None = None
    """More texts, without labels, that the teacher answers for the student: any form of train, or .txt with a text a line."""
    holdout: Percent = 0.1
    """Share of train that each absent split takes, chosen by a hash of the text."""
    text: str | None = None
    """Column of the text; absent: text, tokens (a list of words) or question, as the task is."""
    text_pair: str | None = None
    """Column of the second text, for tasks on pairs; absent: none, or context for question-answering."""
    label: str | None = None
    """Column of what is known; absent: label, labels, score, tags or answers, as the task is."""
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    """Tokens after which a text is cut, or goes on in another window; length configurations are counted at this length."""
    stride: Annotated[int, Field(ge=0, le=8192)] | None = None
    """Tokens that neighbouring windows of a long text share; absent: a third of max_length."""
    skip_bad: bool = False
    """Leave out rows that are no examples, and count them, instead of stopping at the first."""


class Training(Section):
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the training split."""
    max_steps: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Stop after so many optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=LARGEST)] = 32
    """Examples of one optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Peak of a linear schedule."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decay of AdamW; biases and LayerNorms have none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the processor has AMX (or on a GPU), else float32; AVX512-bf16 alone is slower than float32."""
    checkpoint_every: Annotated[int, Field(ge=1, le=LARGEST)] = 100
    """Steps between two checkpoints that an interrupted build goes on from."""
    keep: Literal["last", "best"] = "last"
    """best: end with the weights of the epoch that scored highest on the validation split."""
    patience: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Stop early after so many epochs without a better score on the validation split; needs keep: best."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Train so many times, from the recipe's seed on; report mean and spread, and go on with what scored best on the validation split."""

    @model_validator(mode="after")
    def _patience_for_the_best(self) -> "Training":
        if self.patience is not None and self.keep != "best":
            raise ValueError("patience waits for a better score: set keep: best, or leave patience out")
        return self


class Finetune(Training):
    method: Literal["full", "freeze", "bitfit", "adapters", "lora"] = "full"
    """What learns beside the head: all, the upper layers, biases (arXiv:2106.10199), bottlenecks in each layer (arXiv:1902.00751), or
    low-rank updates (arXiv:2106.09685)."""
    frozen_layers: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    """freeze: layers that stay as they are, from the first, with the embeddings; absent: all, so that only the head learns."""
    rank: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """lora: rank of the updates; absent: 8."""
    adapter_size: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """adapters: units of each bottleneck; absent: 64."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a rare label counts for more, in inverse proportion to its share."""

    @model_validator(mode="after")
    def _keys_of_the_method(self) -> "Finetune":
        for key, method in (("frozen_layers", "freeze"), ("rank", "lora"), ("adapter_size", "adapters")):
            if getattr(self, key) is not None and self.method != method:
                raise ValueError(f"{key} belongs to method {method}, but method is {self.method}: leave it out")
        return self


def _first_layers(value: Any) -> Any:
    share = re.fullmatch(r"([1-9][0-9]?|100)%", value) if isinstance(value, str) else None
    if not share and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("write a number of layers from the first on, as 6, or a share of them, as 50%")
    return value


def _first_layers_or_auto(value: Any) -> Any:
    try:
        return value if value == "auto" else _first_layers(value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


FirstLayers = Annotated[int | str, BeforeValidator(_first_layers)]


def count_layers(asked: int | str, count: int) -> int:
    """Return how many of an encoder's layers are the first so many, or the first share of them."""
    return asked if isinstance(asked, int) else max(1, count * int(asked[:-1]) // 100)


class Recycle(Section):
    layer: Annotated[int | str, BeforeValidator(_first_layers_or_auto)]
    """Layers that stay as they are and run once per text: so many from the first on, a share of them, as 50%, or auto: short trainings on a
    part of the data tell how many may."""
    max_drop: Percent = 0.01
    """auto: what the score on validation may lose against layers that all learn."""
    dtype: Literal["float32", "float16", "int8"] = "float16"
    """How their outputs are kept; int8 has a scale a token."""
    store: Annotated[str, Field(min_length=1)] | None = None
    """Folder that keeps them, for other recipes too; absent: one in the artifacts folder."""
    max_size: Megabytes = 20e3
    """Largest store; what was not read for longest goes when it is full."""

    @model_validator(mode="after")
    def _drop_of_auto(self) -> "Recycle":
        if "max_drop" in self.model_fields_set and self.layer != "auto":
            raise ValueError(f"max_drop is what layer: auto may lose, but layer is {self.layer}: leave it out")
        return self


class Teacher(Section):
    model: Source
    """Encoder to start from: a local folder, package:NAME/FOLDER, or a Hub model id."""
    finetune: Finetune | None = None
    """How it is fine-tuned on the task; absent: the model is a classifier of this task already."""


LayerList = Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...], Field(min_length=1, strict=False)]


def _layer_map(value: Any) -> Any:
    named = isinstance(value, str) and re.fullmatch(r"every second|(first|last) [1-9][0-9]{0,3}", value)
    if not named and not (isinstance(value, list | tuple) and value):
        raise ValueError("write layers as [0, 5, 11], every second, first 4 or last 4")
    return value


LayerMap = Annotated[LayerList | str, BeforeValidator(_layer_map)]


class BiLSTM(Section):
    embeddings: Source | None = None
    """Encoder whose embedding table and tokenizer it takes; absent: the teacher's."""
    layers: Literal[1, 2] = 1
    """Layers of the LSTM."""
    hidden_size: Annotated[int, Field(ge=8, le=4096)] = 256
    """Units of each direction."""


class Student(Section):
    model: Source | None = None
    """A smaller encoder: a local folder, package:NAME/FOLDER, or a Hub model id."""
    layers: LayerMap | None = None
    """Or: these layers of the teacher: [0, 5, 11], counted from 0, `every second`, `first 4` or `last 4`."""
    bilstm: BiLSTM | None = None
    """Or: a bidirectional LSTM on an encoder's embeddings (arXiv:1903.12136)."""
    hidden_size: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Narrower than the teacher, for `layers`: a multiple of its head size; the dimensions that carry most stay."""
    vocabulary: Literal["full", "corpus"] = "full"
    """corpus: keep only the tokens that the training texts use; the report says how many texts that covers."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        if sum(origin is not None for origin in (self.model, self.layers, self.bilstm)) != 1:
            raise ValueError("name one of `model`, `layers` of the teacher, and `bilstm`")
        if self.hidden_size is not None and self.layers is None:
            raise ValueError("hidden_size cuts `layers` of the teacher: leave it out, or name layers")
        return self


class Objective(Section):
    type: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this loss in the sum."""
    start: Share = 0.0
    """Share of the training after which this objective begins."""
    end: Share = 1.0
    """Share of the training at which it ends."""

    @model_validator(mode="after")
    def _some_time(self) -> "Objective":
        if self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")
        return self


class MiniLM(Objective):
    type: Literal["minilm"]
    """Last layer's attention distributions and value relations (arXiv:2002.10957); head counts must be equal."""
    teacher_layer: int = -1
    """Layer of the teacher, counted from 0, negative from the end."""


class MiniLMv2(Objective):
    type: Literal["minilmv2"]
    """Self-attention relations of one teacher layer (arXiv:2012.15828)."""
    relation_heads: Annotated[int, Field(ge=1, le=LARGEST)] = 12
    """Heads that queries, keys and values are split into; divides both hidden sizes."""
    teacher_layer: int = -1
    """Layer of the teacher, counted from 0, negative from the end."""


class TinyBERT(Objective):
    type: Literal["tinybert"]
    """Embeddings, hidden states (through a learned projection) and attention scores, layer by layer (arXiv:1909.10351)."""
    layers: LayerList | None = None
    """Teacher layer that each student layer learns from, counted from 0; absent: the last of equal blocks of teacher layers."""
    attention: bool = True
    """Whether attention scores count; head counts must then be equal."""


class HiddenCosine(Objective):
    type: Literal["hidden_cosine"]
    """Direction of the last hidden state of every token (arXiv:1910.01108), through a learned projection where the widths differ."""


class Logits(Objective):
    type: Literal["logits"]
    """Squared distance of the logits (arXiv:1903.12136)."""


class SoftLabels(Objective):
    type: Literal["soft_labels"]
    """The teacher's class probabilities (arXiv:1503.02531)."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Divides both models' logits: the higher, the more the unlikely classes count."""


class Labels(Objective):
    type: Literal["labels"]
    """The labels of the data."""


AnyObjective = Annotated[MiniLM | MiniLMv2 | TinyBERT | HiddenCosine | Logits | SoftLabels | Labels, Field(discriminator="type")]


class Augment(Section):
    copies: Annotated[int, Field(ge=1, le=100)] = 1
    """Changed copies of each training text, which only the teacher answers."""
    mask: Share = 0.1
    """Probability that a word becomes the mask token."""
    swap: Share = 0.1
    """Probability that a word becomes one that is near in the student's embeddings."""
    ngrams: Share = 0.25
    """Probability that a text is cut to one to five neighbouring words."""

    @model_validator(mode="after")
    def _some_change(self) -> "Augment":
        if self.mask + self.swap > 1 or self.mask + self.swap + self.ngrams == 0:
            raise ValueError("mask and swap add up to at most 1, and one of mask, swap and ngrams is above 0")
        return self


class Distill(Training):
    student: Student
    """What the student starts as."""
    augment: Augment | None = None
    """Learn from changed copies of the texts too (arXiv:1903.12136, arXiv:1909.10351)."""
    recycled_layers: FirstLayers | None = None
    """Layers of the student that stay as they are and run once per text (arXiv:2207.04993): so many from the first on, or a share of them,
    as 50%; kept as `recycle` says, in the artifacts folder."""
    teacher_store: Megabytes = 20e3
    """Largest disk store of the teacher's insides, which are then computed once a text; what does not fit is computed at each step."""
    objectives: Annotated[tuple[AnyObjective, ...], Field(min_length=1, strict=False)]
    """Losses that are added; `start` and `end` put them one after another."""

    @model_validator(mode="after")
    def _covered(self) -> "Distill":
        edges = sorted({0.0, *(o.end for o in self.objectives if o.end < 1)})
        for share in edges:
            if not any(o.start <= share < o.end for o in self.objectives):
                raise ValueError(f"no objective is active at {share:.0%} of the training")
        if all(isinstance(o, Labels) for o in self.objectives) and self.augment:
            raise ValueError(
                "augment makes texts that only the teacher answers: add soft_labels, logits or another objective beside labels"
            )
        return self


class LengthAdapt(Training):
    sandwiches: Annotated[int, Field(ge=0, le=LARGEST)] = 2
    """Random sub-models per step, beside the full and the smallest one."""
    bound: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """LengthDrop: a layer keeps at least 1 - bound of what the layer before it passed on."""
    layer_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """LayerDrop: probability that a sub-model skips a layer in training."""
    soft_labels: Share = 0.5
    """Share of the teacher's soft labels, against the labels, in what the full model learns."""
    significance: Literal["attention", "sampled", "cls"] = "attention"
    """A token counts for the attention it receives from all real tokens, every eighth (nearly as good, cheaper) or [CLS] (cheapest)."""
    counts: Literal["ratio", "absolute"] = "ratio"
    """A length configuration keeps a share of each text's tokens after a layer, or up to so many of them whatever the text's length."""
    protect: Literal["cls", "question"] = "cls"
    """What leaves last: [CLS], which never does, or the whole first text of a pair too, as the question of question-answering."""


class EarlyExit(Training):
    layer: Annotated[int, Field(ge=1, le=LARGEST)]
    """Layers of the student, from the first on, that stay as they are; a copy of its last one and of its head answers above them."""


class Export(Section):
    opset: Annotated[int, Field(ge=14, le=20)] = 17
    """Version of the ONNX operators."""
    portable: bool = False
    """Only operators of ONNX itself, for runtimes other than onnxruntime; slower."""
    halves: bool = False
    """Write the graph in two halves too, cut at recycle.layer: a runtime with a store runs the first once per text, for all tasks."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    """Largest difference between a logit of the graph and of torch, over lengths, batches and paddings."""


class Quantize(Section):
    backend: Literal["onnxruntime", "nncf", "neural-compressor", "auto"] = "onnxruntime"
    """onnxruntime: dynamic, needs no data, reads one text a run; nncf, neural-compressor: static, read batches; auto: the best here."""
    calibration: Annotated[int, Field(ge=1, le=LARGEST)] = 256
    """Training texts on which static backends measure activations."""
    max_drop: Percent = 0.01
    """Score on validation that INT8 may lose against float; where it loses more, the fewest products that suffice go back to float."""
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
    baselines: bool = False
    """Measure constant ratios, published configurations and random search with equal evaluations too, for the report."""


PointName = Literal["full", "accurate", "balanced", "fast", "knee", "min"]


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
    """What temperatures and thresholds are found on, never a text of train or test; absent: the search split."""
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


class DropGate(Section):
    metric: Metric
    """Judges the score; it is the one of task.metric."""
    against: Literal["teacher", "student"] = "teacher"
    """Float model that the default operating point is held against."""
    max_drop: Percent
    """Score that the default operating point may lose, in points."""


MeasuredOn = Literal["target", "other"]


class SpeedGate(Section):
    metric: Literal["speedup"]
    """Judges how many times faster the bundle is."""
    against: Literal["teacher", "student"] = "teacher"
    """Float model that the default operating point is held against."""
    min: Annotated[float, Field(gt=0)]
    """Least ratio of the median latencies, both measured in one interleaved run."""
    measured_on: MeasuredOn = "target"
    """Where quantize.isa is not this machine's, the gate breaks; other: judge by this machine all the same."""


class LatencyGate(Section):
    metric: Literal["latency"]
    """Judges the milliseconds of one request at the default operating point."""
    max: Milliseconds
    """Largest median latency."""
    measured_on: MeasuredOn = "target"
    """Where quantize.isa is not this machine's, the gate breaks; other: judge by this machine all the same."""


class SizeGate(Section):
    metric: Literal["size"]
    """Judges the megabytes of the graph."""
    max: Megabytes
    """Largest model.onnx."""


AnyGate = Annotated[DropGate | SpeedGate | LatencyGate | SizeGate, Field(discriminator="metric")]


class Recipe(Section):
    """What to compile, from which data, for which machine, and what the result must hold."""

    version: Literal[1]
    """Version of the recipe's format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Folder of the bundle."""
    seed: Annotated[int, Field(ge=0, le=LARGEST)] = 17
    """Same seed, package versions and thread count: same bundle."""
    task: Task = Task()
    """What the model answers, and how its answers are scored."""
    data: Data
    """Labelled texts, and what they are called in their files."""
    teacher: Teacher
    """The encoder to compress."""
    recycle: Recycle | None = None
    """Run the teacher's first layers once per text while the layers above them are fine-tuned (arXiv:2207.04993)."""
    assistant: Distill | None = None
    """Train a model of middle size from the teacher first, which then teaches the student in its place (arXiv:1902.03393)."""
    distill: Distill | None = None
    """Train a smaller student from the teacher, or from the assistant."""
    length_adapt: LengthAdapt | None = None
    """Train the student to answer at any length configuration."""
    early_exit: EarlyExit | None = None
    """Train a head on an inner layer of the student, for a cascade whose easy texts stop there."""
    export: Export = Export()
    """How the ONNX graph is made and checked against torch."""
    quantize: Quantize | None = None
    """Make the graph INT8."""
    search: Search | None = None
    """Find the length configurations worth deploying."""
    cascade: Cascade | None = None
    """Let easy texts stop at a cheap member, and hard ones go on (arXiv:2204.06271)."""
    target: Target = Target()
    """What the bundle is measured for: set it as it will be served."""
    default_point: PointName | None = None
    """Operating point that gates judge and that a client gets who names none; absent: balanced, or full without a search."""
    gates: Annotated[tuple[AnyGate, ...], Field(strict=False)] = ()
    """What must hold; a bundle that breaks one is rejected."""
    _root: Path = PrivateAttr(default=Path())
    _workers: int = PrivateAttr(default=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.assistant and not self.distill:
            raise ValueError("`assistant` teaches the student of a `distill` section: add one, or leave `assistant` out")
        if not self.deployed:
            for section in ("length_adapt", "early_exit", "quantize", "search", "cascade", "default_point", "gates"):
                if getattr(self, section):
                    raise ValueError(f"a masked-lm recipe ends with an encoder that answers no task yet: leave `{section}` out")
            students = [section.student for section in (self.assistant, self.distill) if section]
            if any(student.bilstm or student.vocabulary == "corpus" for student in students):
                raise ValueError("a masked-lm recipe makes a whole encoder: name a student by `model` or `layers`, with vocabulary: full")
            if self.data.unlabelled:
                raise ValueError("a masked-lm recipe needs no labels: name all texts in data.train, and leave data.unlabelled out")
        if self.distill and self.distill.student.bilstm:
            if self.length_adapt:
                raise ValueError("a bilstm student has no lengths to adapt: leave `length_adapt` and `search` out")
            if self.early_exit:
                raise ValueError("a bilstm student has no layers to stop after: leave `early_exit` out")
            if self.task.type in WINDOWED:
                raise ValueError(
                    f"a bilstm student answers for whole texts, not for {self.task.type}: name a student by `model` or `layers`"
                )
        recycling = self.recycle or any(section.recycled_layers for section in (self.assistant, self.distill) if section)
        if self.task.type == "question-answering" and self.data.max_length < 32:
            raise ValueError(f"data.max_length {self.data.max_length} has no room for a question and its context: set 32 or more")
        if self.data.stride is not None:
            if self.task.type not in WINDOWED:
                raise ValueError(f"{self.task.type} cuts long texts and reads no windows: leave data.stride out")
            if 2 * self.data.stride > self.data.max_length:
                raise ValueError(f"data.stride {self.data.stride} is more than half of max_length {self.data.max_length}: lower it")
        tuned = self.teacher.finetune
        if self.recycle and (tuned is None or tuned.method == "freeze"):
            raise ValueError("`recycle` keeps the first layers as they are: say by which method those above learn, as full or adapters")
        if self.export.halves and not self.recycle:
            raise ValueError("export.halves cuts the graph where recycled layers end: add a `recycle` section or leave it out")
        if self.export.halves and (self.distill or self.length_adapt):
            raise ValueError("export.halves serves the teacher, whose recycled layers never change: leave `distill` and `length_adapt` out")
        if recycling and not self.deployed:
            raise ValueError("a masked-lm recipe hides other tokens each time, so that no text runs once: recycle no layers")
        if tuned and tuned.class_weights == "balanced" and self.task.type not in ("text-classification", "token-classification"):
            raise ValueError(f"class_weights weigh the labels of a classification; {self.task.type} has none: leave them out")
        if self.data.unlabelled and not self.distill:
            raise ValueError("data.unlabelled holds texts for a student to learn from its teacher: add a `distill` section or leave it out")
        if self.search and not self.length_adapt:
            raise ValueError("`search` chooses lengths of a length-adaptive student: add a `length_adapt` section or leave `search` out")
        if self.default_point not in (None, "full") and not self.search:
            raise ValueError(f"default_point {self.default_point} comes from a search: add a `search` section or choose full")
        points = {member.point for member in self.cascade.members if member.point} if self.cascade else set()
        if points - {"full"} and not self.search:
            raise ValueError(f"cascade: point {min(points - {'full'})} comes from a search: add a `search` section or choose full")
        stops = bool(self.cascade and self.cascade.members[0].early_exit)
        if self.early_exit and not stops:
            raise ValueError("`early_exit` trains a member of a cascade: name {early_exit: true} first in cascade.members, or leave it out")
        if stops and not self.early_exit:
            raise ValueError(
                "cascade names an early exit: add an `early_exit` section that says after which layer, or leave the member out"
            )
        if self.cascade and self.task.type == "text-regression":
            raise ValueError("a number that is answered has no confidence to decide by: leave `cascade` out")
        for gate in self.gates:
            if isinstance(gate, DropGate) and gate.metric != self.task.metric:
                raise ValueError(f"a gate asks for {gate.metric}, but task.metric is {self.task.metric}")
        return self

    @property
    def deployed(self) -> bool:
        """Whether a bundle comes out, and not an encoder for other recipes."""
        return self.task.type != "masked-lm"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this recipe uses."""
        return SPLITS if self.deployed else ("train", "validation")

    def columns(self, *, labelled: bool = True) -> Columns:
        """Return the columns of the data's files: those that are named, else the usual ones of the task."""
        data, usual = self.data, USUAL[self.task.type]
        label = (data.label or usual.label) if labelled and self.deployed else None
        return Columns(data.text or usual.text, data.text_pair or usual.text_pair, label)

    @property
    def stride(self) -> int:
        """Tokens that neighbouring windows share."""
        if self.task.type not in WINDOWED:
            return 0
        return self.data.max_length // 3 if self.data.stride is None else self.data.stride

    @property
    def root(self) -> Path:
        """Folder that relative paths of the recipe start from."""
        return self._root

    @property
    def workers(self) -> int:
        """Texts that are scored beside each other in the search: it changes the time, never the result."""
        return self._workers

    def smoke(self) -> "Recipe":
        """Return the same stages on a sliver of data: for CI and for a first look, not for judging."""
        limits = dict.fromkeys((*SPLITS, "unlabelled"), 48) | {"train": 192}
        splits = {k: s.model_copy(update={"limit": min(n, s.limit or n)}) for k, n in limits.items() if (s := getattr(self.data, k))}
        sliver = {**splits, "holdout": max(0.2, self.data.holdout)}  # of so few texts a smaller share may be none
        changed: dict[str, Any] = {"name": f"{self.name}-smoke", "gates": (), "data": self.data.model_copy(update=sliver)}
        short = {"max_steps": 6, "batch_size": 16, "seeds": 1}
        changed["teacher"] = self.teacher.model_copy(
            update={"finetune": self.teacher.finetune and self.teacher.finetune.model_copy(update=short)}
        )
        changed |= {
            k: section.model_copy(update=short)
            for k in ("assistant", "distill", "length_adapt", "early_exit")
            if (section := getattr(self, k))
        }
        if self.search:
            changed["search"] = self.search.model_copy(update={"evaluations": 6, "population": 4, "texts": 8, "proposals": 2})
        return self.model_copy(update=changed)

    def key_settings(self, sections: Iterable[str]) -> dict[str, Any]:
        """Return what a stage's result depends on: the sections' values, with every named file replaced by a hash of its content."""
        values = {name: _key_value(getattr(self, name), self.root) for name in sections}
        if "data" in values:  # a usual name that is written out is no change
            columns = self.columns()
            values["data"] |= {"text": columns.text, "text_pair": columns.text_pair, "label": columns.label, "stride": self.stride}
        return values


def _key_value(value: Any, root: Path) -> Any:
    if isinstance(value, Section):
        fields = type(value).model_fields
        return {
            name: _key_value(item, root) if item is None else _hashed(item, root, f"{fields[name].annotation!r} {fields[name].metadata!r}")
            for name in fields
            for item in [getattr(value, name)]
        }
    if isinstance(value, tuple):
        return [_key_value(item, root) for item in value]
    return value


def _hashed(item: Any, root: Path, declared: str) -> Any:
    if repr(CONTENT) in declared:
        return sources.fingerprint(item, root)
    return sources.bundle_fingerprint(item, root) if repr(BUNDLE) in declared else _key_value(item, root)


def schema() -> Mapping[str, Any]:
    """Return the JSON Schema of a recipe, for editors and checkers."""
    return Recipe.model_json_schema()
