"""An early exit: what stops there, what goes on from it, and that each text is answered as if it were alone."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file

from compressor.backbones import BACKBONES
from compressor.calibration import NEVER
from compressor.cascade import Cascade, Member
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.errors import RecipeError
from compressor.exits import Exit, States
from compressor.graphs import torch_logits
from compressor.halves import AT_ONCE, BACK
from compressor.halving import check_family, export_exit
from compressor.latency import Run
from compressor.members import Member as Built
from compressor.modeling import PlainModel
from compressor.progress import Progress
from compressor.runtime import Runtime
from compressor.settings.deploying import Export
from compressor.stages.members import _fastest
from compressor.students import select_layers
from compressor.tokens import Floats, Tokens
from compressor.windows import Windows
from tests.conftest import compress, sentences, write_project
from tests.test_families import SERVED, model_of
from tests.test_halves import NONE, texts_of


@pytest.mark.parametrize("head", SERVED)
@pytest.mark.parametrize("kind", BACKBONES)
def test_an_exit_answers_as_torch_does_and_the_rest_goes_on_from_it(kind: str, head: str, tmp_path: Path) -> None:
    model, texts = model_of(kind, head), texts_of(16, 9, 3)
    torch.manual_seed(5)
    early = select_layers(model, [0, 2])
    with torch.no_grad():
        for name, parameter in early.named_parameters():  # a head of its own
            parameter.add_(0.0 if name.startswith(early.base_model_prefix) else torch.randn_like(parameter))
    export_exit(PlainModel(model), PlainModel(early), 1, tmp_path, Export(tolerance=1e-4), texts, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.onnx", "exit.onnx", "front.onnx"]
    for single in (True, False):
        opened = Exit(tmp_path, 1, single=single, pad_id=0)
        stopped, states = opened.stop(texts, None)
        for found, torch_model in ((stopped, early), (opened.go_on(texts, states)[0], model), (opened.go_on(texts, None)[0], model)):
            alone = [torch_logits(PlainModel(torch_model), text, None, 0).ravel() for text in texts]
            np.testing.assert_allclose(found.ravel(), np.concatenate(alone), atol=1e-4)


def windows_of(examples: Sequence[Example]) -> Windows:
    """Return two windows of each text but the first, each of one token, which tells text and window."""
    rows = [(number, int(e.text), window) for number, e in enumerate(examples) for window in range(1 + (e.text != "0"))]
    ids = np.array([10 * text + window for _, text, window in rows], np.int32)
    tokens = Tokens(ids, np.zeros(len(ids), np.int8), np.arange(len(ids) + 1))
    return Windows(tokens, np.array([number for number, _, _ in rows]), np.zeros((len(ids), 0), np.int32))


def test_states_stay_with_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, most = list[int](), list[int]()

    def stop(tokens: Tokens, states: States) -> tuple[Floats, States]:
        assert states is None
        most.append(len(tokens))
        sure = np.where(tokens.ids // 10 % 3 == 0, 9.0, 0.1)
        return np.stack([sure, np.zeros(len(tokens))], 1), [np.full((1, 1), float(token)) for token in tokens.ids]

    def go_on(tokens: Tokens, states: States) -> tuple[Floats, States]:
        assert states is not None
        assert [float(own[0, 0]) for own in states] == tokens.ids.tolist()  # each text has what was made of it
        asked.extend((tokens.ids // 10).tolist())
        return np.zeros((len(tokens), 2)), None

    def least(kind: object, task: object, logits: Floats, windows: Windows, examples: Sequence[Example], temperature: float) -> Floats:
        found = np.ones(len(examples))
        np.minimum.at(found, windows.owners, 1 / (1 + np.exp(-logits[:, 0])))
        return found

    monkeypatch.setattr("compressor.cascade.confidences", least)
    examples = [Example(str(row)) for row in range(3 * AT_ONCE + 5)]
    members, answered = [Member("exit", windows_of, stop, exits=True), Member("full", windows_of, go_on)], dict[int, str]()
    for part in Cascade(members, [0.9], "max_softmax").route(TextClassification(), examples):
        answered |= dict.fromkeys(part.rows.tolist(), part.member)
    assert answered == {row: "exit" if row % 3 == 0 else "full" for row in range(len(examples))}
    assert sorted(set(asked)) == [row for row in range(len(examples)) if row % 3]
    assert max(most) <= 2 * AT_ONCE  # windows of so many texts: what is handed on stays small
    whole = dict(answered)
    monkeypatch.setattr("compressor.cascade.CHARACTERS", 30)  # long texts have many windows each: then fewer texts at once
    most.clear()
    for part in Cascade(members, [0.9], "max_softmax").route(TextClassification(), examples):
        answered |= dict.fromkeys(part.rows.tolist(), part.member)
    assert answered == whole
    assert max(most) <= 2 * 30


@pytest.mark.parametrize("pays", [True, False])
def test_what_is_slower_of_going_on_and_reading_again_is_left_out(pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[States]()

    def answer(tokens: Tokens, states: States) -> tuple[Floats, States]:
        given.append(states)
        return np.zeros((len(tokens), 2)), [np.zeros((1, 1))] * len(tokens)

    def timed(runs: dict[str, Run], rows: Sequence[int], rounds: int) -> dict[str, Floats]:
        given.clear()
        for run in runs.values():
            run(0)
        return {name: np.full((rounds, len(rows)), ms) for name, ms in zip(runs, (1.0, 8.0, 2.0 if pays else 9.0), strict=True)}

    def rest(tokens: Tokens, states: States) -> tuple[Floats, States]:
        return answer(tokens, states)

    monkeypatch.setattr("compressor.stages.members.timed", timed)
    (tmp_path / "members/0").mkdir(parents=True)
    (tmp_path / "members/0" / BACK).write_bytes(b"")
    facts = {"folder": "members/0"}
    onward = Built({**facts, "name": "full", "part": "rest"}, windows_of, rest, rest)
    early = Built({**facts, "name": "exit", "part": "exit"}, windows_of, answer, answer)
    members = [early, Built({"name": "full#2"}, windows_of, answer, answer, onward)]
    found, times = _fastest(members, [Example(str(row)) for row in range(4)], tmp_path, Progress(quiet=True))
    assert [states is not None for states in given] == [False, False, True]  # only the one that goes on is given states
    assert [one.facts["name"] for one in found] == ["exit", "full#2"]
    assert (found[1].answer is rest) == pays == (found[1].facts.get("part") == "rest") == (tmp_path / "members/0" / BACK).exists()
    assert (found[1].facts["restarted_ms"], found[1].facts["continued_ms"]) == (8.0, 2.0 if pays else 9.0)
    assert times[1].mean() == (2.0 if pays else 8.0)


def test_a_family_that_cannot_stop_early_is_told_before_the_training() -> None:
    with pytest.raises(RecipeError, match="early_exit: deberta-v2 encoders do not run layer by layer, as bert, "):
        check_family(model_of("deberta-v2"), "early_exit")
    mean = model_of("modernbert")
    mean.config = copy.deepcopy(mean.config)  # others have it too
    mean.config.classifier_pooling = "mean"
    told = "early_exit: modernbert students adapt their length with classifier_pooling cls only; set it in .*, or leave it out"
    with pytest.raises(RecipeError, match=told):
        check_family(mean, "early_exit")


EXITS = (
    "early_exit={layer: 1, max_steps: 4, batch_size: 16, learning_rate: 1e-3, precision: float32}",
    "cascade={members: [{early_exit: true}, {point: full}], thresholds: [0.8]}",
    *NONE,
)
SETS = tuple(part for change in EXITS for part in ("--set", change))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A build whose cascade stops after one of three layers."""
    folder = tmp_path_factory.mktemp("exits")
    write_project(folder, tiny_model)
    done = compress("run", "tiny.yaml", *SETS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "full: going on from the early exit takes" in " ".join(done.stderr.split())
    return folder


def test_a_bundle_stops_early_and_goes_on(project: Path) -> None:
    bundle, texts = project / "artifacts/dist/tiny", [text for text, _ in sentences(AT_ONCE + 9, 11)]
    runtime, members = Runtime(bundle), json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["cascade"]["members"]
    assert [one["name"] for one in members] == ["exit", "full"]
    assert members[0]["score"] > 0.6
    assert members[1]["mean_ms"] == members[1]["restarted_ms"]  # what it takes alone
    warm = [replace(member, temperature=20.0) for member in runtime.cascade.members]  # this task is so easy that all are sure
    runtime.cascade = replace(runtime.cascade, members=warm)
    sure = float(np.median([one.confidence for one in runtime.trace(texts, thresholds=[0.0])]))
    together = list(runtime.trace(texts, thresholds=[sure]))
    assert {one.member for one in together} == {"exit", "full"}
    for text, routed in zip(texts[:20], together, strict=False):
        (alone,) = runtime.trace([text], thresholds=[sure])
        assert (alone.member, alone.answer.label) == (routed.member, routed.answer.label)
        assert alone.confidence == pytest.approx(routed.confidence, abs=1e-5)
    assert {one.member for one in runtime.trace(texts, thresholds=[0.0])} == {"exit"}
    went_on = [one.answer.label for one in runtime.trace(texts, thresholds=[NEVER])]
    assert went_on == [answer.label for answer in runtime.predict(texts, "full")]
    metrics = json.loads((bundle / "metrics.json").read_text(encoding="utf-8"))
    assert "early_exit" in {stage["name"] for stage in metrics["stages"]}
    assert any("early exit" in finding for finding in metrics["findings"])
    seconds = {stage["name"]: stage["seconds"] for stage in metrics["stages"]}
    (routed,) = (gain for gain in metrics["stage_gains"] if gain["stage"] == "cascade")
    assert routed["seconds"] == pytest.approx(seconds["cascade"] + seconds["members"] + seconds["early_exit"])


def test_the_student_does_not_change_and_the_exit_has_its_first_layers(project: Path) -> None:
    student, early = (load_file(next(project.glob(f"artifacts/{stage}-*/model/model.safetensors"))) for stage in ("finetune", "early_exit"))
    assert {name for name in early if ".layer.1." in name}
    for name, value in early.items():
        if "embeddings" in name or ".layer.0." in name:
            assert torch.equal(value, student[name]), name
    assert any(not torch.equal(value, student[name.replace(".1.", ".2.")]) for name, value in early.items() if ".layer.1." in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cascade=null", "`early_exit` trains a member of a cascade"),
        ("early_exit=null", "cascade names an early exit: add an `early_exit` section"),
        ("cascade={members: [{point: full}, {early_exit: true}]}", "an early exit is the cheapest member: name it first"),
        ("early_exit.layer=2", "early_exit.layer 2: the student has 3 layers, and an exit takes one of its own; choose 1 to 1"),
        ("early_exit.layer=0", "early_exit.layer"),
    ],
)
def test_an_exit_that_cannot_be_is_refused(project: Path, change: str, message: str) -> None:
    done = compress("run", "tiny.yaml", *SETS, "--set", change, "--until", "early_exit", cwd=project)
    assert done.returncode == 3, done.stderr
    assert message in " ".join(done.stderr.split())


def test_texts_are_read_again_where_the_rest_would_not_answer_as_what_ships(project: Path) -> None:
    pytest.importorskip("nncf")
    changes = ("--set", "quantize={backend: nncf}", "--set", "gates=[]")
    done = compress("run", "tiny.yaml", *SETS, *changes, "--until", "members", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "texts are read again behind the early exit" in " ".join(done.stderr.split())
    made = Path(project / json.loads(done.stdout)["artifact"])
    assert sorted(path.name for path in (made / "members/0").iterdir()) == ["exit.onnx", "front.onnx"]
    members = json.loads((made / "members.json").read_text(encoding="utf-8"))
    assert [(m["name"], m["folder"]) for m in members[:2]] == [("exit", "members/0"), ("full", None)]


def test_what_goes_on_is_left_out_where_nobody_does_and_weights_have_7_bits_where_they_must(project: Path) -> None:
    changes = ("--set", "cascade={members: [{early_exit: true}, {teacher: int8}]}", "--set", "quantize={isa: avx2}", "--set", "gates=[]")
    done = compress("run", "tiny.yaml", *SETS, *changes, "--until", "members", cwd=project)
    assert done.returncode == 0, done.stderr
    (folder,) = [path for path in project.glob("artifacts/members-*/members") if (path / "1").exists()]
    assert sorted(path.name for path in (folder / "0").iterdir()) == ["exit.onnx", "front.onnx"]
    for path in (folder / "0/front.onnx", folder / "1/member.onnx"):
        weights = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer if one.data_type == onnx.TensorProto.INT8]
        assert weights
        assert max(int(np.abs(own.astype(int)).max()) for own in weights if own.ndim == 2) <= 64
