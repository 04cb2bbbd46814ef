"""The recipe: its sections (compressor/settings), how they must fit each other, and what `compress` hashes of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from compressor import sources
from compressor.files import Columns
from compressor.settings.base import BUNDLE, CONTENT, LARGEST, SPLITS, UNKEYED, Section
from compressor.settings.data import USUAL, WINDOWED, Data, Split, Task
from compressor.settings.deploying import EarlyExit, Export, LengthAdapt, PointName, Quantize, Search
from compressor.settings.distilling import BiLSTM, Distill, SoftLabels, Student
from compressor.settings.serving import AnyGate, Cascade, DropGate, Target
from compressor.settings.training import Recycle, Teacher


class Recipe(Section):
    """What to compile, from which data, for which machine, and what the result must hold."""

    version: Literal[1]
    """Version of the recipe's format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Folder of the bundle."""
    seed: Annotated[int, Field(ge=0, le=LARGEST)] = 17
    """Same seed, package versions and thread count: same weights, of a GPU up to rounding; and the same bundle where nothing is chosen by
    time, as with search.latency: macs."""
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
    _options: tuple[str, ...] = PrivateAttr(default=())
    _smoke: bool = PrivateAttr(default=False)
    _workers: int = PrivateAttr(default=1)

    @model_validator(mode="after")
    def _makes_an_encoder_or_a_bundle(self) -> "Recipe":
        if self.assistant and not self.distill:
            raise ValueError("`assistant` teaches the student of a `distill` section: add one, or leave `assistant` out")
        if self.deployed:
            return self
        for section in ("length_adapt", "early_exit", "quantize", "search", "cascade", "default_point", "gates"):
            if getattr(self, section):
                raise ValueError(f"a masked-lm recipe ends with an encoder that answers no task yet: leave `{section}` out")
        if any(section.student.bilstm or section.student.vocabulary == "corpus" for section in self._students.values()):
            raise ValueError("a masked-lm recipe makes a whole encoder: name a student by `model` or `layers`, with vocabulary: full")
        if self.teacher.finetune and self.teacher.finetune.method != "full":
            raise ValueError("a masked-lm head is tied to the embeddings, which learn with all else: leave teacher.finetune.method out")
        for split in ("search", "test"):
            if getattr(self.data, split):
                raise ValueError(f"a masked-lm recipe answers nothing that is searched or reported: leave data.{split} out")
        for section in ("export", "target"):
            if section in self.model_fields_set:
                raise ValueError(f"a masked-lm recipe ends with an encoder in torch: leave `{section}` out")
        if self.data.label:
            raise ValueError("a masked-lm recipe reads plain text: leave data.label out")
        if self.data.unlabelled:
            raise ValueError("a masked-lm recipe needs no labels: name all texts in data.train, and leave data.unlabelled out")
        if self.recycle or any(section.recycled_layers for section in self._students.values()):
            raise ValueError("a masked-lm recipe hides other tokens each time, so that no text runs once: recycle no layers")
        return self

    @model_validator(mode="after")
    def _students_learn(self) -> "Recipe":
        if self.data.unlabelled and not self.distill:
            raise ValueError("data.unlabelled holds texts for a student to learn from its teacher: add a `distill` section or leave it out")
        for name, section in self._students.items():
            if self.data.unlabelled and (alone := section.labels_alone_from) is not None:
                when = f" at {alone:.0%} of the training" if alone else ""
                told = f"data.unlabelled holds texts that only the teacher answers, and {name}.objectives are labels alone{when}"
                raise ValueError(f"{told}: add soft_labels, logits or another objective, or leave data.unlabelled out")
            if self.deployed and section.augment and (alone := section.labels_alone_from) is not None:
                when = f", which teach nothing at {alone:.0%} of the training" if alone else ""
                told = f"{name}.augment makes texts that only the teacher answers{when}"
                raise ValueError(f"{told}: add soft_labels, logits or another objective beside labels")
            if self.deployed and section.student.layers is None and not any(o.answers for o in section.objectives):
                told = "the head of a student by `model` or `bilstm` is new, and would answer by chance"
                raise ValueError(f"{name}.objectives: none of them reaches the logits: {told}; add soft_labels, logits or labels")
        pruned = self.assistant and self.assistant.student.vocabulary == "corpus"
        if pruned and self.distill and self.distill.augment and self.distill.student.layers is None:
            told = "distill.augment puts in words that an assistant with the vocabulary of the corpus does not know"
            raise ValueError(f"{told}: leave assistant.student.vocabulary out, or distill.augment")
        return self

    @model_validator(mode="after")
    def _bilstm_fits(self) -> "Recipe":
        self._check_bilstms()
        return self

    @property
    def may_be_bilstm(self) -> bool:
        """Whether no other section refuses a student that is a BiLSTM."""
        taught = Distill(student=Student(bilstm=BiLSTM()), objectives=(SoftLabels(type="soft_labels"),))
        try:
            self.model_copy(update={"distill": taught})._check_bilstms()
        except ValueError:
            return False
        return True

    def _check_bilstms(self) -> None:
        if self.distill and self.distill.student.bilstm:
            if self.length_adapt:
                raise ValueError("a bilstm student has no lengths to adapt: leave `length_adapt` and `search` out")
            if self.early_exit:
                raise ValueError("a bilstm student has no layers to stop after: leave `early_exit` out")
            if self.export.exporter == "dynamo":
                raise ValueError("the dynamo exporter cannot write a bilstm: set export.exporter torchscript")
            if self.quantize and self.quantize.backend not in ("onnxruntime", "auto"):
                told = f"{self.quantize.backend} leaves a bilstm's layers in float"
                raise ValueError(f"{told}: set quantize.backend onnxruntime, which makes them INT8")
            if self.target.backend == "openvino" and not self.quantize:
                told = "a bilstm's padding is read by OpenVINO where its layers are in float"
                raise ValueError(f"{told}: set target.backend onnxruntime, or add `quantize`, which feeds it one text a run")
            if self.export.portable and self.quantize:
                told = "a bilstm in INT8 is an operator of onnxruntime's own"
                raise ValueError(f"{told}: leave `quantize`, or export.portable, out")
        for name, section in self._students.items():
            teacher = self.assistant if name == "distill" else None
            inside = next((o.type for o in section.objectives if not o.answers), None)
            if section.student.bilstm and section.recycled_layers:
                raise ValueError(f"a bilstm student has no layers to recycle: leave {name}.recycled_layers out")
            if section.student.bilstm and self.task.type in WINDOWED:
                raise ValueError(
                    f"a bilstm student answers for whole texts, not for {self.task.type}: name a student by `model` or `layers`"
                )
            if inside and (section.student.bilstm or (teacher and teacher.student.bilstm)):
                told = f"{inside} looks inside self-attention, which a bilstm has not"
                raise ValueError(f"{name}.objectives: {told}; use soft_labels, logits and labels")
            if section.student.layers is not None and teacher and teacher.student.bilstm:
                raise ValueError("a bilstm assistant has no layers to take: name the student of `distill` by `model` or `bilstm`")

    @model_validator(mode="after")
    def _windows_fit(self) -> "Recipe":
        if self.task.type == "question-answering" and self.data.max_length < 32:
            raise ValueError(f"data.max_length {self.data.max_length} has no room for a question and its context: set 32 or more")
        if self.task.type == "token-classification" and self.data.text_pair is not None:
            raise ValueError("token-classification tags the words of one text: leave data.text_pair out")
        if self.data.stride is not None:
            if self.task.type not in WINDOWED:
                raise ValueError(f"{self.task.type} cuts long texts and reads no windows: leave data.stride out")
            if 2 * self.data.stride > self.data.max_length:
                raise ValueError(f"data.stride {self.data.stride} is more than half of max_length {self.data.max_length}: lower it")
        return self

    @model_validator(mode="after")
    def _truncation_fits(self) -> "Recipe":
        if self.search and self.search.truncate and not self.reads_single_texts:
            told = f"{self.task.type} asks of every word" if self.task.type in WINDOWED else "of a pair the second text would go first"
            raise ValueError(f"search.truncate reads the beginning of a text, and {told}: leave it out")
        return self

    @model_validator(mode="after")
    def _fine_tuning_fits(self) -> "Recipe":
        tuned = self.teacher.finetune
        if self.recycle and (tuned is None or tuned.method == "freeze"):
            raise ValueError("`recycle` keeps the first layers as they are: say by which method those above learn, as full or adapters")
        if self.export.halves and not self.recycle:
            raise ValueError("export.halves cuts the graph where recycled layers end: add a `recycle` section or leave it out")
        if self.export.halves and (self.distill or self.length_adapt):
            raise ValueError("export.halves serves the teacher, whose recycled layers never change: leave `distill` and `length_adapt` out")
        if tuned and tuned.class_weights == "balanced" and self.task.type not in ("text-classification", "token-classification"):
            raise ValueError(f"class_weights weigh the labels of a classification; {self.task.type} has none: leave them out")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> "Recipe":
        asked = self.length_adapt and self.length_adapt.protect == "question"
        if asked and self.task.type != "question-answering" and self.data.text_pair is None:
            raise ValueError("length_adapt.protect question keeps the first text of a pair: name data.text_pair, or leave it out")
        return self

    @model_validator(mode="after")
    def _points_exist(self) -> "Recipe":
        if self.search and not self.length_adapt:
            raise ValueError("`search` chooses lengths of a length-adaptive student: add a `length_adapt` section or leave `search` out")
        if self.default_point not in (None, "full") and not self.search:
            raise ValueError(f"default_point {self.default_point} comes from a search: add a `search` section or choose full")
        points = {member.point for member in self.cascade.members if member.point} if self.cascade else set()
        if points - {"full"} and not self.search:
            raise ValueError(f"cascade: point {min(points - {'full'})} comes from a search: add a `search` section or choose full")
        return self

    @model_validator(mode="after")
    def _cascade_and_gates_fit(self) -> "Recipe":
        stops = bool(self.cascade and self.cascade.members[0].early_exit)
        if self.early_exit and not stops:
            raise ValueError("`early_exit` trains a member of a cascade: name {early_exit: true} first in cascade.members, or leave it out")
        if stops and not self.early_exit:
            raise ValueError("cascade names an early exit: add an `early_exit` section that says after which layer")
        if self.cascade and self.task.type == "text-regression":
            raise ValueError("a number that is answered has no confidence to decide by: leave `cascade` out")
        for gate in self.gates:
            if isinstance(gate, DropGate) and gate.metric != self.task.metric:
                raise ValueError(f"a gate asks for {gate.metric}, but task.metric is {self.task.metric}")
        return self

    @property
    def _students(self) -> dict[str, Distill]:
        named = {"assistant": self.assistant, "distill": self.distill}
        return {name: section for name, section in named.items() if section}

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
    def reads_single_texts(self) -> bool:
        """Whether an example is one text, of which the whole is asked."""
        return self.task.type not in WINDOWED and not self.columns().text_pair

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

    @property
    def options(self) -> tuple[str, ...]:
        """What was asked on the command line beside the file."""
        return self._options

    @property
    def smoke(self) -> bool:
        """Whether it is the smoke profile's, of a sliver of the data."""
        return self._smoke

    def key_settings(self, names: Iterable[str]) -> dict[str, Any]:
        """Return what a result depends on: sections or single keys (`section.key`), every named file replaced by a hash of its content."""
        values = {name: self._key_setting(*name.split(".")) for name in names}
        columns = self.columns()  # a usual name that is written out is no change
        named = {"text": columns.text, "text_pair": columns.text_pair, "label": columns.label}
        if "data" in values:
            values["data"] |= {**named, "stride": self.stride}
        return values | {f"data.{key}": name for key, name in named.items() if f"data.{key}" in values}

    def _key_setting(self, section: str, key: str | None = None) -> Any:
        found = _key_value(getattr(self, section), self.root)
        return found if key is None or found is None else found[key]


def _key_value(value: Any, root: Path) -> Any:
    if isinstance(value, Section):
        declared = {name: f"{field.annotation!r} {field.metadata!r}" for name, field in type(value).model_fields.items()}
        kind: sources.Kind = "dataset" if isinstance(value, Split) else "model"
        return {name: _hashed(getattr(value, name), root, how, kind) for name, how in declared.items() if repr(UNKEYED) not in how}
    if isinstance(value, tuple):
        return [_key_value(item, root) for item in value]
    return value


def _hashed(item: Any, root: Path, declared: str, kind: sources.Kind) -> Any:
    if item is None:
        return None
    if repr(CONTENT) in declared:
        return sources.fingerprint(item, root, kind)
    return sources.bundle_fingerprint(item, root) if repr(BUNDLE) in declared else _key_value(item, root)


SIZES = ("max_size", "teacher_store")
"""Keys whose quantity is megabytes; the other defaults with a unit are shares."""


def schema() -> Mapping[str, Any]:
    """Return the JSON Schema of a recipe, for editors and checkers, with defaults as a recipe would write them."""
    found = Recipe.model_json_schema()
    for section in (found, *found["$defs"].values()):
        for key, field in section.get("properties", {}).items():
            if field.get("type") == "string" and isinstance(field.get("default"), int | float):
                share, size = f"{100 * field['default']:g}%", f"{field['default'] / 1e3:g}GB"
                field["default"] = size if key in SIZES else share
    return found
