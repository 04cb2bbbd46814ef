"""A cascade: who answers, at what confidence, and that it gives what its calibration promised."""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor import calibration, members
from compressor.answering import QuestionAnswering
from compressor.artifact import Artifact
from compressor.bundles import seal
from compressor.calibration import (
    HALVINGS,
    NEVER,
    Pass,
    Setting,
    across_halves,
    curve,
    fit_temperature,
    oracle,
    setting,
    within_drop,
    within_time,
)
from compressor.cascade import GOES_ON, Cascade, Member
from compressor.classification import MultiLabelClassification, TextClassification, TextRegression
from compressor.confidence import Confidence, confidences
from compressor.data import Example
from compressor.errors import BundleError, RecipeError
from compressor.loader import load_recipe
from compressor.members import Member as Built
from compressor.plan import check_task
from compressor.progress import Progress
from compressor.runtime import Runtime
from compressor.scores import accuracy
from compressor.session import Graph
from compressor.settings.data import Task
from compressor.settings.serving import Member as Asked
from compressor.splits import Splits
from compressor.stages.cascade import _goal, _useless
from compressor.stages.members import _passed, examples_of
from compressor.tagging import TokenClassification
from compressor.tokens import Floats, Tokens
from compressor.windows import Windows
from tests.conftest import compress, sentences

TEXTS = [Example(text, label=label) for text, label in sentences(60, 5)]


def windows_of(lengths: Sequence[int], owners: Sequence[int] | None = None, places: Any = None) -> Windows:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.arange(starts[-1], dtype=np.int32), np.zeros(starts[-1], np.int8), starts)
    found = np.zeros((starts[-1], 0), np.int32) if places is None else np.array(places, np.int32)
    return Windows(tokens, np.arange(len(lengths)) if owners is None else np.array(owners), found)


@pytest.mark.parametrize(("kind", "sure"), [("max_softmax", 0.7), ("margin", 0.5), ("entropy", 1 - 0.801819 / math.log(3))])
def test_confidence_of_one_label(kind: Confidence, sure: float) -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    found = confidences(kind, TextClassification(), logits, windows_of([1, 1]), TEXTS[:2])
    assert found[0] == pytest.approx(sure, abs=1e-5)
    assert found[1] == pytest.approx(1 / 3 if kind == "max_softmax" else 0, abs=1e-6)
    warm = confidences(kind, TextClassification(), logits, windows_of([1, 1]), TEXTS[:2], temperature=2.0)
    assert warm[0] < found[0]


@pytest.mark.parametrize("kind", ["max_softmax", "margin", "entropy"])
def test_what_is_nearly_sure_is_still_told_apart(kind: Confidence) -> None:
    """A member that is right on all it was calibrated on has a low temperature, and float32 would call each of its answers certain."""
    logits = np.array([[3.0, 0.0], [2.5, 0.0], [2.0, 0.0]], np.float32)
    found = confidences(kind, TextClassification(), logits, windows_of([1, 1, 1]), TEXTS[:3], temperature=0.1)
    assert 1 > found[0] > found[1] > found[2]


def test_extreme_logits_overflow_nothing_and_no_confidence_is_below_none() -> None:
    extreme = np.array([[-90.0, 90.0]], np.float32)
    each = confidences("max_softmax", MultiLabelClassification(), extreme, windows_of([1]), TEXTS[:1], temperature=0.05)
    assert each == pytest.approx([1.0])  # an overflow's warning would be an error here
    for labels in (2, 3, 7, 150):
        (least,) = confidences("entropy", TextClassification(), np.zeros((1, labels), np.float32), windows_of([1]), TEXTS[:1])
        assert 0 <= least < 1e-9  # a threshold of 0 lets every answer stand


def test_of_several_labels_and_of_tagged_words_the_least_certain_counts() -> None:
    logits = np.array([[5.0, 0.1, -5.0], [5.0, 5.0, 5.0]])
    found = confidences("max_softmax", MultiLabelClassification(), logits, windows_of([1, 1]), TEXTS[:2])
    assert found == pytest.approx([1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(-5))])
    tags = np.array([[9.0, 0.0], [0.5, 0.0], [0.0, 0.0], [3.0, 0.0]])  # the third token is no word's first: it does not count
    found = confidences("max_softmax", TokenClassification(), tags, windows_of([2, 2], [0, 1], [[0], [1], [-1], [0]]), TEXTS[:2])
    assert found == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-3))])


def test_a_question_is_as_sure_as_its_best_span_is_among_all() -> None:
    places = [[-1, -1], [0, 3], [4, 8]]
    clear, vague = np.array([[0.0, 0], [9, 9], [0, 0]]), np.zeros((3, 2))
    example = Example("what", "the story", [("the", 0)])
    found = [confidences("margin", QuestionAnswering(), logits, windows_of([3], places=places), [example])[0] for logits in (clear, vague)]
    assert found[0] > 0.99
    assert found[1] == pytest.approx(0)


def test_logits_that_are_no_numbers_give_no_confidence() -> None:
    assert np.isnan(confidences("max_softmax", TextClassification(), np.array([[np.nan, 1.0]]), windows_of([1]), TEXTS[:1])).all()
    assert np.isnan(confidences("max_softmax", TextRegression(), np.array([[1.0]]), windows_of([1]), TEXTS[:1])).all()


def member(name: str, known: dict[str, Sequence[float]], asked: list[int]) -> Member:
    """Return a member that answers texts as it is told, and notes how many it was asked."""
    order = {example.text: row for row, example in enumerate(TEXTS)}

    def read(examples: Sequence[Example]) -> Windows:
        ids = np.array([order[e.text] for e in examples], np.int32)
        return Windows.whole(Tokens(ids, np.zeros(len(ids), np.int8), np.arange(len(ids) + 1)))

    def logits(tokens: Tokens) -> Floats:
        asked.append(len(tokens))
        return np.array([known[TEXTS[row].text] for row in tokens.ids])

    return Member(name, read, lambda tokens, _: (logits(tokens), None))


def test_a_text_goes_on_until_a_member_is_sure_and_one_without_confidence_always_does() -> None:
    first, second, asked = dict[str, Sequence[float]](), dict[str, Sequence[float]](), ([], [])
    for row, example in enumerate(TEXTS[:30]):
        first[example.text] = (np.nan, 1.0) if row % 3 == 0 else (4.0, 0.0) if row % 3 == 1 else (0.1, 0.0)
        second[example.text] = (0.0, 1.0)
    cascade = Cascade([member("cheap", first, asked[0]), member("dear", second, asked[1])], [0.9], "max_softmax")
    parts = {part.member: part for part in cascade.route(TextClassification(), TEXTS[:30])}
    assert parts["cheap"].rows.tolist() == list(range(1, 30, 3))
    assert sorted(parts["dear"].rows.tolist()) == [row for row in range(30) if row % 3 != 1]
    assert (asked[0], asked[1]) == ([30], [20])
    for row, example in enumerate(TEXTS[:30]):  # alone, each text has the same answer
        (alone,) = cascade.route(TextClassification(), [example])
        assert alone.member == ("cheap" if row % 3 == 1 else "dear")
        assert alone.logits.tolist() == [list((first if row % 3 == 1 else second)[example.text])]
    assert parts["cheap"].no_confidence.tolist() == [0] * 10
    assert parts["dear"].no_confidence.tolist() == [int(row % 3 == 0) for row in parts["dear"].rows]
    everything = list(cascade.route(TextClassification(), TEXTS[:30], [0.0]))
    assert [len(part.rows) for part in everything] == [20, 10]  # what has no confidence goes on even so
    with pytest.raises(ValueError, match="2 members take 1 thresholds, not 2"):
        list(cascade.route(TextClassification(), TEXTS[:30], [0.1, 0.2]))


def passes(seed: int = 0, count: int = 400) -> list[Pass]:
    """Return three members of growing score and price, whose confidence tells something of their answers."""
    rng, right = np.random.default_rng(seed), np.arange(count) % 2
    found = []
    for name, share, cost in (("cheap", 0.75, 1.0), ("middle", 0.85, 3.0), ("dear", 0.95, 10.0)):
        good = rng.random(count) < share
        sure = np.clip(np.where(good, 0.9, 0.7) + rng.normal(0, 0.1, count), 0, 1)
        outcomes = np.stack([np.where(good, right, 1 - right), right], 1).astype(float)
        found.append(Pass(name, outcomes, good, sure, np.full(count, cost)))
    return found


def test_a_setting_is_what_a_naive_loop_gives() -> None:
    members, thresholds = passes(), (0.8, 0.85)
    found, spent, hits, shares = setting(members, accuracy, thresholds), 0.0, 0, [0, 0, 0]
    for row in range(400):
        for number, one in enumerate(members):
            spent += one.milliseconds[row]
            if number == 2 or one.confidences[row] >= thresholds[number]:
                hits, shares[number] = hits + bool(one.right[row]), shares[number] + 1
                break
    assert (found.score, found.mean_ms) == (pytest.approx(hits / 400), pytest.approx(spent / 400))
    assert found.shares == pytest.approx([s / 400 for s in shares])


def test_the_curve_holds_both_ends_and_only_grows() -> None:
    members = passes()
    front, single = curve(members, accuracy), [accuracy(p.outcomes) for p in members]
    assert front[0].mean_ms == pytest.approx(1.0, abs=0.2)
    assert all(a.mean_ms < b.mean_ms and a.score < b.score for a, b in itertools.pairwise(front))
    assert front[-1].score >= single[-1]  # to ask all to the end is one of the settings
    assert oracle(members, accuracy).score >= front[-1].score
    dropped = within_drop(front, single[-1], 0.02)
    assert dropped is not None
    assert dropped.score >= single[-1] - 0.02
    assert all(s.score < single[-1] - 0.02 for s in front if s.mean_ms < dropped.mean_ms)
    timed = within_time(front, 5.0)
    assert timed is not None
    assert timed.mean_ms <= 5.0
    assert within_time(front, 0.5) is None
    none = [Pass(p.name, p.outcomes, p.right, np.full(400, np.nan), p.milliseconds) for p in members]
    assert setting(none, accuracy, (0.0, 0.0)).shares == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("true", [0.5, 3.0])
def test_temperature_makes_confidence_the_share_of_right_answers(true: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (6000, 3))
    chances = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in chances])
    logits, task, windows = honest * true, TextClassification(), windows_of([1] * 6000)
    right = logits.argmax(1) == labels
    found = fit_temperature(task, logits, windows, TEXTS[:1] * 6000, labels, right)
    assert found == pytest.approx(true, rel=0.1)
    before, after = (
        calibration.calibration_error(confidences("max_softmax", task, logits, windows, TEXTS[:1] * 6000, t), right) for t in (1.0, found)
    )
    assert after < 0.03 < before


def test_a_temperature_is_found_where_logits_are_no_numbers_or_nothing_is_known() -> None:
    task, logits = TextClassification(), np.array([[np.nan, 1.0], [2.0, 0.0]])
    two, right = TEXTS[:2], np.array([False, True])
    assert 0 < fit_temperature(task, logits, windows_of([1, 1]), two, np.array([0, 0]), right) < math.inf
    assert 0 < fit_temperature(task, logits, windows_of([1, 1]), two, np.array([-100, -100]), right) < math.inf
    nothing = windows_of([3], places=[[-1, -1]] * 3)
    assert 0 < fit_temperature(QuestionAnswering(), np.zeros((3, 2)), nothing, TEXTS[:1], np.array([[-100, -100]]), right[:1]) < math.inf


def test_temperature_of_the_other_tasks() -> None:
    half, twenty, unused = np.array([True, False] * 10), TEXTS[:20], np.zeros(0, np.int64)
    each = np.array([[4.0, -4.0]] * 20)
    asked = windows_of([1] * 20)
    assert fit_temperature(MultiLabelClassification(), each, asked, twenty, np.array([[1, 0], [0, 1]] * 10), half) > 2
    tags, words = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]] * 20), windows_of([3] * 20, places=[[0], [1], [2]] * 20)
    spans, context = np.tile(np.array([[0.0, 0], [6, 0], [0, 6]]), (20, 1)), windows_of([3] * 20, places=[[-1, -1], [0, 3], [4, 8]] * 20)
    for task, logits, windows in ((TokenClassification(), tags, words), (QuestionAnswering(), spans, context)):
        found = fit_temperature(task, logits, windows, twenty, unused, half)
        assert found > 2  # half of what it is sure of is wrong
        before, after = (confidences("max_softmax", task, logits, windows, twenty, t) for t in (1.0, found))
        assert calibration.calibration_error(after, half) < 0.05 < calibration.calibration_error(before, half)


CASCADE = "cascade={members: [{point: min}, {point: full}, {teacher: int8}], thresholds: [0.97, 0.97]}"


@pytest.fixture(scope="module")
def project(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole build, with a cascade added to it: nothing is trained again."""
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("cascade") / "project"))
    done = compress("run", "tiny.yaml", "--set", CASCADE, "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cached") == 7
    return folder


def bundle_of(project: Path) -> Path:
    return project / "artifacts/dist/tiny"


def test_a_bundle_with_a_cascade_brings_what_its_members_need(project: Path) -> None:
    bundle = bundle_of(project)
    manifest, metrics = (json.loads((bundle / name).read_text(encoding="utf-8")) for name in ("manifest.json", "metrics.json"))
    assert [m["name"] for m in manifest["cascade"]["members"]] == ["min", "full", "teacher"]
    assert {"members/2/member.onnx", "members/2/tokenizer.json"} <= manifest["files"].keys()
    assert manifest["cascade"]["thresholds"] == [0.97, 0.97]
    row = {r["name"]: r for r in metrics["variants"]}["INT8 cascade"]
    assert row["score"] >= 0.9
    assert row["size_mb"] > {r["name"]: r for r in metrics["variants"]}["INT8 full"]["size_mb"]
    assert sum(own["share"] for own in metrics["cascade"]["test_shares"]) == pytest.approx(1)
    assert any(f.startswith("The cascade") for f in metrics["findings"])
    report = (bundle / "report.html").read_text(encoding="utf-8")
    assert 'id="cascade-plot-title"' in report
    assert "oracle" in report


def test_the_runtime_answers_alike_for_any_batch_and_says_who_did(project: Path) -> None:
    runtime, texts = Runtime(bundle_of(project)), [e.text for e in TEXTS]
    together = list(runtime.trace(texts))
    assert [r.answer for r in together] == runtime.predict(texts, policy="cascade")
    for text, routed in zip(texts, together, strict=True):
        (alone,) = runtime.trace([text])
        assert (alone.member, alone.answer.label) == (routed.member, routed.answer.label)
        assert alone.confidence == pytest.approx(routed.confidence, abs=1e-5)
    assert {r.member for r in runtime.trace(texts, thresholds=[0.0, 0.0])} == {"min"}
    assert {r.member for r in runtime.trace(texts, thresholds=[NEVER, 0.0])} == {"full"}
    assert {r.member for r in runtime.trace(texts, thresholds=np.array([NEVER, NEVER]))} == {"teacher"}
    assert runtime.predict(texts, policy="cascade", thresholds=[NEVER, 0.0]) == runtime.predict(texts, "full")


def test_predict_eval_and_bench_take_the_policy(project: Path, tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("".join(f"{e.text}\n" for e in TEXTS[:6]), encoding="utf-8")
    done = compress("predict", str(bundle_of(project)), str(lines), "--policy", "cascade", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"label", "member", "confidence"} <= found[0].keys()
    sent = ("--threshold", "1", "--threshold", "1")
    done = compress("eval", str(bundle_of(project)), "--data", "test.csv", "--policy", "cascade", *sent, "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(told["answered"].values()) == told["examples"] == 40
    done = compress("bench", str(bundle_of(project)), "--texts", str(lines), "--rounds", "1", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert {row["workload"] for row in json.loads(done.stdout)["rows"] if row["model"] == "tiny cascade"} == {"one by one", "all at once"}
    done = compress("bench", str(bundle_of(project)), "--point", "cascade", "--shape", "1x8", cwd=project)
    assert done.returncode == 3, done.stderr
    assert "1x8: a cascade decides by texts, not by random ids: give --texts and no --shape" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--policy", "cascade", "--threshold", "0.5"), 3, "the cascade of min, full, teacher takes 2 thresholds, not 1"),
        (("--policy", "other"), 7, "no policy 'other'"),
        (("--threshold", "0.5"), 3, "thresholds move a cascade: name policy cascade too"),
        (("--policy", "cascade", "--threshold", "0.5", "--threshold", "95"), 3, "threshold 95 is no confidence: write a number from 0"),
        (("--policy", "cascade", "--threshold", "nan", "--threshold", "0.5"), 3, "threshold nan is no confidence"),
        (("--policy", "cascade", "--point", "full"), 2, "give one of"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(project: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    (tmp_path / "texts.txt").write_text("a good film\n", encoding="utf-8")
    done = compress("predict", str(bundle_of(project)), str(tmp_path / "texts.txt"), *arguments, cwd=project)
    assert done.returncode == code, done.stderr
    assert message in " ".join(done.stderr.split())


def test_a_bundle_without_a_cascade_and_one_with_a_changed_member_are_refused(built: Path, project: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no cascade; add a `cascade` section"):
        Runtime(bundle_of(built)).predict(["a good film"], policy="cascade")
    changed = Path(shutil.copytree(bundle_of(project), tmp_path / "changed"))
    content = bytearray((changed / "members/2/member.onnx").read_bytes())
    content[-5] ^= 1
    (changed / "members/2/member.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="members/2/member.onnx does not match"):
        Runtime(changed)
    shutil.rmtree(changed / "members")
    with pytest.raises(BundleError, match="is missing"):
        Runtime(changed)


def test_routed_outcomes_of_many_examples_are_those_of_some_at_a_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, examples = Runtime(bundle_of(project)), [Example(text, label=label) for text, label in sentences(30, 7)]
    outcomes, members, unknown = runtime.routed_outcomes(examples)
    monkeypatch.setattr("compressor.runtime.CHUNK", 7)
    again = runtime.routed_outcomes(examples)
    np.testing.assert_array_equal(again[0], outcomes)
    assert again[1:] == (members, unknown)


def test_texts_that_a_member_has_no_confidence_in_go_on_and_are_counted(project: Path, tmp_path: Path) -> None:
    broken, lines = Path(shutil.copytree(bundle_of(project), tmp_path / "broken")), tmp_path / "texts.txt"
    cascade = json.loads((broken / "manifest.json").read_text(encoding="utf-8"))["cascade"]
    cascade["members"][0]["temperature"] = math.nan  # as logits of a graph that overflows
    resealed(broken, cascade=cascade)
    lines.write_text("a good film\na bad film\n", encoding="utf-8")
    sent = ("--policy", "cascade", "--threshold", "0", "--threshold", "0", "--format", "json")
    done = compress("predict", str(broken), str(lines), *sent, cwd=project)
    assert done.returncode == 0, done.stderr
    assert [(r["member"], r["no_confidence"]) for r in map(json.loads, done.stdout.splitlines())] == [("full", 1), ("full", 1)]
    assert "2 texts went on because a member's confidence was no number" in " ".join(done.stderr.split())
    done = compress("eval", str(broken), "--data", "test.csv", *sent, cwd=project)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["no_confidence"], told["answered"]) == (40, {"min": 0, "full": 40, "teacher": 0})


def test_a_cascade_answers_in_the_backend_that_it_was_calibrated_in(project: Path) -> None:
    with pytest.raises(RecipeError, match="calibrated in onnxruntime: leave out backend openvino, or name a point"):
        Runtime(bundle_of(project), backend="openvino").predict(["a good film"], policy="cascade")


def test_a_point_or_thresholds_that_nothing_would_read_are_refused(built: Path, project: Path) -> None:
    with pytest.raises(RecipeError, match="at an operating point or by a policy: name one of them"):
        Runtime(bundle_of(project)).predict(["a good film"], "full", "cascade")
    with pytest.raises(RecipeError, match="thresholds move a cascade"):
        Runtime(bundle_of(built)).predict(["a good film"], thresholds=[0.5])


def test_a_cascade_may_be_what_a_client_gets_and_what_gates_judge(project: Path) -> None:
    section = "cascade={members: [{point: min}, {teacher: float}], thresholds: [1], default: true}"
    gates = "gates=[{metric: latency, max: 10s}, {metric: size, max: 1kB}]"
    done = compress("run", "tiny.yaml", "--set", section, "--set", gates, "--format", "json", cwd=project)
    assert done.returncode == 5, done.stderr
    told = json.loads(done.stdout)
    assert [(v["gate"], v["passed"]) for v in told["gates"]] == [("mean latency of the cascade", True), ("size of all graphs", False)]
    runtime, texts = Runtime(project / "artifacts/rejected/tiny"), [e.text for e in TEXTS]
    assert runtime.predict(texts) == runtime.predict(texts, policy="cascade")
    assert runtime.predict(texts, thresholds=[NEVER]) != runtime.predict(texts, "min")
    report = (project / "artifacts/rejected/tiny/report.html").read_text(encoding="utf-8")
    assert '<tr class="pick"><th scope="row" class="nb">INT8 cascade</th>' in report


def test_a_member_that_only_costs_time_is_named() -> None:
    right, wrong = np.tile([1.0, 1.0], (4, 1)), np.tile([0.0, 1.0], (4, 1))
    passes = [
        Pass("hopeless", wrong, np.zeros(4, bool), np.full(4, 0.1), np.full(4, 1.0)),
        Pass("good", right, np.ones(4, bool), np.array([0.9, 0.9, 0.9, 0.1]), np.full(4, 2.0)),
        Pass("last", right, np.ones(4, bool), np.ones(4), np.full(4, 10.0)),
    ]
    facts: list[dict[str, object]] = [{"name": one.name} for one in passes]
    chosen = setting(passes, accuracy, (0.5, 0.5))
    assert _useless(facts, passes, accuracy, chosen) == (["hopeless"], 2 + 10 / 4)
    facts[1]["part"] = GOES_ON
    assert _useless(facts, passes, accuracy, chosen) == ([], chosen.mean_ms)


def test_of_two_members_that_could_each_be_spared_one_stays() -> None:
    right, sure = np.tile([1.0, 1.0], (4, 1)), np.array([0.9, 0.9, 0.9, 0.1])
    names = {"first": 1.0, "second": 1.1, "last": 10.0}
    passes = [Pass(name, right, np.ones(4, bool), np.ones(4) if name == "last" else sure, np.full(4, ms)) for name, ms in names.items()]
    chosen = setting(passes, accuracy, (0.5, 0.5))
    assert _useless([{"name": name} for name in names], passes, accuracy, chosen) == (["second"], 1 + 10 / 4)


def test_thresholds_fare_worse_on_texts_that_did_not_choose_them() -> None:
    """What luck chose does not hold on other texts, and where all members answer alike nothing is lost."""
    rng, count = np.random.default_rng(1), 400

    def one(name: str, share: float, cost: float) -> Pass:
        right = rng.random(count) < share
        return Pass(name, np.stack([right, np.ones(count)], 1), right, rng.random(count), np.full(count, cost))

    lucky = [one("first", 0.8, 1), one("second", 0.8, 2), one("last", 0.8, 10)]  # no confidence tells anything
    found = across_halves(lucky, accuracy, lambda front, score: within_drop(front, score, -0.02))
    assert found is not None
    here, there, choices = found
    assert here >= 0.02
    assert there < here - 0.01
    assert choices <= 2 * HALVINGS
    alike = [dataclasses.replace(lucky[0], name=name) for name in ("first", "last")]
    assert across_halves(alike, accuracy, lambda front, score: within_drop(front, score, 0.0)) == (0, 0, 2 * HALVINGS)
    assert across_halves(alike, accuracy, lambda front, _: within_time(front, 0.1)) is None
    assert across_halves([p.of(np.array([0])) for p in alike], accuracy, lambda front, _: front[0]) is None


def test_members_are_timed_as_a_runtime_answers_however_many_workers_a_build_has(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, opened = load_recipe(project / "tiny.yaml"), list[Graph]()
    recipe._workers = 3
    artifacts = {name: Artifact(next(project.glob(f"artifacts/{name}-*"))) for name in ("data", "finetune", "length_adapt", "search")}
    made = Artifact(next(project.glob("artifacts/quantize-*")))
    inputs = {"data": artifacts["data"], "teacher": artifacts["finetune"], "checkpoint": artifacts["length_adapt"]}
    graph = members.Graph
    monkeypatch.setattr("compressor.members.Graph", lambda *a, **k: (opened.append(graph(*a, **k)), opened[-1])[1])
    inputs |= {"int8_graph": made, "frontier": artifacts["search"]}
    one = members._member(Asked(point="min"), 0, recipe, inputs, tmp_path, Progress(quiet=True))  # type: ignore[arg-type]
    assert sorted(own.workers for own in opened) == [1, 3]
    texts = one.read([Example(text) for text in ("a good film", "a dull plot")]).tokens
    np.testing.assert_allclose(one.timed(texts, None)[0], one.answer(texts, None)[0], atol=1e-5)


def test_another_goal_lets_no_member_answer_again(project: Path) -> None:
    section = "cascade={members: [{point: min}, {point: full}, {teacher: int8}], max_drop: 10%}"
    plan = compress("plan", "tiny.yaml", "--set", section, "--format", "json", cwd=project)
    cached = {row["stage"]: row["cached"] for row in json.loads(plan.stdout)["stages"]}
    assert (cached["members"], cached["cascade"]) == (True, False)
    done = compress("run", "tiny.yaml", "--set", section, "--until", "cascade", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    chosen = json.loads(done.stdout)["metrics"]
    assert chosen["across_halves"]["chosen"] >= -0.1
    policy = json.loads((project / json.loads(done.stdout)["artifact"] / "policy.json").read_text(encoding="utf-8"))
    assert chosen["score"] >= policy["members"][-1]["score"] - 0.1
    assert policy["thresholds"] != [0.97, 0.97]


def test_a_calibration_split_of_its_own_may_have_more_texts_than_are_timed(project: Path) -> None:
    rows = "".join(f"{text},{label}\n" for text, label in sentences(120, 9))
    (project / "more.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    section = "cascade={members: [{point: min}, {point: full}], calibration: more.csv}"
    done = compress("run", "tiny.yaml", "--set", section, "--until", "members", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["calibrated_on"] == 120


def test_a_label_of_the_calibration_that_train_lacks_is_named(project: Path) -> None:
    (project / "odd.csv").write_text("text,label\na strange film,odd\n", encoding="utf-8")
    section = "cascade={members: [{point: min}, {point: full}], calibration: odd.csv}"
    done = compress("run", "tiny.yaml", "--set", section, "--until", "cascade", cwd=project)
    assert done.returncode == 3, done.stderr
    assert f"cascade.calibration ({project / 'odd.csv'}): example 1 has label 'odd'; this bundle answers negative, positive" in done.stderr
    recipe = load_recipe(project / "tiny.yaml", [section.replace("odd.csv", str(project / "odd.csv")), "data.unknown_labels=skip"])
    splits, skipped = Splits.of(Artifact(next(project.glob("artifacts/data-*")))), list[str]()
    with pytest.raises(RecipeError, match="no text has labels that train knows; mend them, or name another file"):
        examples_of(recipe, splits, skipped)
    (project / "odd.csv").write_text("text,label\na strange film,odd\nfine it was indeed,positive\n", encoding="utf-8")
    assert [example.label for example in examples_of(recipe, splits, skipped)] == ["positive"]
    assert ["has labels that train lacks" in told for told in skipped] == [True]


REFUSED = {
    "{members: [{point: min}, {bundle: nowhere}]}": (7, "no bundle here"),
    "{members: [{point: min}, {point: full}], calibration: other.csv}": (3, "other.csv: not found"),
    "{members: [{point: min}, {point: full}], calibration: train.csv}": (3, "texts are in train too"),
    "{members: [{point: min}, {point: full}], calibration: test.csv}": (3, "texts are in test too"),
    "{members: [{point: full}, {teacher: float}], speedup: 1000}": (4, "no thresholds reach speedup 1000; the closest takes"),
    "{members: [{point: full}, {teacher: float}], latency_ms: 1us}": (4, "no thresholds reach latency_ms 0.001 ms"),
    "{members: [{point: full}]}": (3, "at least 2"),
    "{members: [{point: full}, {point: full, teacher: int8}]}": (3, "a member is one of"),
    "{members: [{point: min}, {point: full}], thresholds: [0.5, 0.5]}": (3, "2 members take 1 thresholds"),
    "{members: [{point: min}, {point: full}], speedup: 2, max_drop: 1%}": (3, "each decide the thresholds: keep one"),
}


@pytest.mark.parametrize("section", REFUSED)
def test_a_cascade_that_cannot_be_is_refused_in_one_line(project: Path, section: str) -> None:
    code, message = REFUSED[section]
    done = compress("run", "tiny.yaml", "--set", f"cascade={section}", cwd=project)
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{members: [{point: min}, {point: full}], calibration: train.csv}", "texts are in train too"),
        ("{members: [{point: min}, {point: full}], calibration: odd.csv}", "example 1 has label 'odd'"),
        ("{members: [{bundle: other}, {point: full}]}", "has other labels than this recipe (only there: neutral; only here: positive)"),
    ],
)
def test_what_a_cascade_cannot_use_is_told_before_any_training(
    project: Path, make_recipe: Callable[..., Path], section: str, message: str
) -> None:
    folder = make_recipe().parent
    (folder / "odd.csv").write_text("text,label\na strange film,odd\n", encoding="utf-8")
    resealed(Path(shutil.copytree(bundle_of(project), folder / "other")), labels=["negative", "neutral"])
    done = compress("run", "tiny.yaml", "--set", f"cascade={section}", cwd=folder)
    assert done.returncode == 3, done.stderr
    assert message in " ".join(done.stderr.split())
    assert not list((folder / "artifacts").glob("finetune-*"))


def test_a_sliver_of_data_reaches_for_no_speed(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    section = "cascade={members: [{point: full}, {teacher: float}], speedup: 1000}"
    done = compress("run", "tiny.yaml", "--set", section, "--profile", "smoke", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr


def resealed(bundle: Path, **facts: object) -> None:
    """Write other facts into a manifest, as a build that found them would."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    body = {key: value for key, value in manifest.items() if key != "self"} | facts
    (bundle / "manifest.json").write_text(json.dumps({**body, "self": seal(body)}), encoding="utf-8")


def test_another_bundle_is_a_member_if_it_answers_the_same(built: Path, project: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle_of(built), tmp_path / "other"))
    section = f"{{members: [{{bundle: {other}}}, {{bundle: {other}}}, {{point: full}}], confidence: margin, max_drop: 50%}}"
    done = compress("run", "tiny.yaml", "--set", f"cascade={section}", "--set", "name=two", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    resealed(other, name="tiny", license="other")  # another bundle under the same name is another cascade
    plan = compress("plan", "tiny.yaml", "--set", f"cascade={section}", "--set", "name=two", "--format", "json", cwd=project)
    assert {row["stage"]: row["cached"] for row in json.loads(plan.stdout)["stages"]}["members"] is False
    manifest = json.loads((project / "artifacts/dist/two/manifest.json").read_text(encoding="utf-8"))
    assert [m["name"] for m in manifest["cascade"]["members"]] == ["tiny", "tiny#2", "full"]
    assert Runtime(project / "artifacts/dist/two").predict(["a good film"], policy="cascade")[0].label == "positive"


def test_members_must_know_the_same_labels(project: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle_of(project), tmp_path / "other"))
    section = f"cascade={{members: [{{bundle: {other}}}, {{point: full}}]}}"
    for facts, message in (
        ({"labels": ["negative", "neutral"]}, "has other labels than this recipe (only there: neutral; only here: positive); members"),
        ({"task": "text-regression"}, "answers something else (task.type is text-regression there, text-classification here); members"),
    ):
        resealed(other, **facts)
        done = compress("run", "tiny.yaml", "--set", section, cwd=project)
        assert done.returncode == 3, done.stderr
        assert message in " ".join(done.stderr.split())


def test_a_member_that_was_changed_after_its_build_is_refused(project: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle_of(project), tmp_path / "other"))
    with (other / "model.onnx").open("ab") as file:
        file.write(b"x")
    done = compress("run", "tiny.yaml", "--set", f"cascade={{members: [{{bundle: {other}}}, {{point: full}}]}}", cwd=project)
    assert done.returncode == 7, done.stderr
    assert "model.onnx" in done.stderr


def test_a_text_that_the_teacher_labelled_calibrates_nothing(project: Path) -> None:
    (project / "more.csv").write_text("text\na quite new film\n", encoding="utf-8")
    (project / "same.csv").write_text("text,label\na quite new film,positive\n", encoding="utf-8")
    section = "cascade={members: [{point: min}, {point: full}], calibration: same.csv}"
    done = compress("run", "tiny.yaml", "--set", "data.unlabelled=more.csv", "--set", section, cwd=project)
    assert done.returncode == 3, done.stderr
    assert f"cascade.calibration ({project / 'same.csv'}): 1 of 1 texts are in unlabelled too" in " ".join(done.stderr.split())


def test_a_number_cannot_be_cascaded(project: Path) -> None:
    changes = ("--set", "task={type: text-regression}", "--set", "gates=[]", "--set", "cascade={members: [{point: min}, {point: full}]}")
    done = compress("validate", "tiny.yaml", *changes, cwd=project)
    assert done.returncode == 3, done.stderr
    assert "a number that is answered has no confidence" in done.stderr


def test_thresholds_of_another_number_are_refused_by_the_runtime(project: Path) -> None:
    with pytest.raises(RecipeError, match="takes 2 thresholds, not 1"):
        Runtime(bundle_of(project)).predict(["a good film"], policy="cascade", thresholds=[0.5])


def test_a_scheme_of_tags_is_no_other_task(tmp_path: Path) -> None:
    recipe: Any = SimpleNamespace(task=Task(type="token-classification", metric="entity_f1", scheme="BIOES"))
    check_task(tmp_path, {"task": "token-classification", "task_settings": {"scheme": "IOB2"}}, recipe)
    with pytest.raises(RecipeError, match="task.type is question-answering there, token-classification here"):
        check_task(tmp_path, {"task": "question-answering", "task_settings": {}}, recipe)


def test_without_a_file_of_its_own_a_cascade_is_calibrated_on_the_search_split(project: Path) -> None:
    splits = Splits.of(Artifact(next(project.glob("artifacts/data-*"))))
    assert examples_of(load_recipe(project / "tiny.yaml", [CASCADE]), splits, []) == list(splits.examples("search"))


def test_an_answer_is_right_as_a_whole_or_not_at_all() -> None:
    labels, spans = np.array([[0.0, 0], [0, 1]]), np.array([[1.0, 1.0], [0.0, 0.9]])
    tags = np.array([[2.0, 2, 2], [2, 2, 3], [2, 3, 2], [0, 0, 0]])  # found, answered, there
    sets = np.array([[[1.0, 0, 1], [1, 0, 1]], [[1, 0, 1], [1, 1, 1]]])
    assert calibration.rightness(TextClassification(), labels).tolist() == [True, False]
    assert calibration.rightness(QuestionAnswering(), spans).tolist() == [True, False]
    assert calibration.rightness(TokenClassification(), tags).tolist() == [True, False, False, True]
    assert calibration.rightness(MultiLabelClassification(), sets).tolist() == [True, False]


def test_temperature_of_label_sets_makes_what_is_said_right_as_often() -> None:
    logits, targets = np.full((10, 1), 4.0), np.array([[1]] * 8 + [[0]] * 2)
    found = fit_temperature(MultiLabelClassification(), logits, windows_of([1] * 10), TEXTS[:10], targets, targets[:, 0] == 1)
    assert found == pytest.approx(4 / math.log(4), rel=0.01)  # 1 / (1 + exp(-4 / t)) = 0.8


def test_a_confidence_that_just_reaches_its_threshold_answers_in_calibration_and_in_service() -> None:
    known: dict[str, Sequence[float]] = {TEXTS[0].text: (0.0, 0.0)}
    cascade = Cascade([member("cheap", known, []), member("dear", known, [])], [0.5], "max_softmax")
    (part,) = cascade.route(TextClassification(), TEXTS[:1])
    assert (part.member, part.confidences.tolist()) == ("cheap", [0.5])
    one = Pass("cheap", np.ones((1, 2)), np.array([True]), part.confidences, np.ones(1))
    assert setting([one, dataclasses.replace(one, name="dear")], accuracy, (0.5,)).shares == (1.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, 2.0),
        ({"max_drop": 0.0}, 3.0),
        ({"max_drop": 0.02}, 1.0),
        ({"latency_ms": 2.5}, 2.0),
        ({"speedup": 4.0}, 2.0),
        ({"speedup": 20.0}, None),
    ],
)
def test_a_goal_picks_the_fastest_that_is_good_enough_or_the_best_that_is_fast(asked: dict[str, float], chosen: float | None) -> None:
    front = [Setting((0.1,), 0.890, 1.0, ()), Setting((0.2,), 0.898, 2.0, ()), Setting((0.3,), 0.900, 3.0, ())]
    unsaid: Any = dict.fromkeys(("thresholds", "speedup", "latency_ms", "max_drop"))
    goal = _goal(SimpleNamespace(**unsaid | asked), 10.0)  # type: ignore[arg-type]
    assert goal is not None
    found = goal(front, 0.900)
    assert (found and found.mean_ms) == chosen


def test_thresholds_are_chosen_on_the_confidence_that_serves() -> None:
    logits, windows = np.tile([[4.0, 0.0]], (20, 1)), windows_of([1] * 20)
    examples = [replace(example, label="ab"[row % 4 == 0]) for row, example in enumerate(TEXTS[:20])]
    one = Built({"name": "x"}, lambda _: windows, *[lambda tokens, _: (logits[: len(tokens)], None)] * 2)
    settings: Any = SimpleNamespace(confidence="margin")
    passed, told = _passed(one, TextClassification(), examples, ("a", "b"), settings, np.ones(20))
    assert told["temperature"] > 2
    served = confidences("margin", TextClassification(), logits, windows, examples, told["temperature"])
    np.testing.assert_allclose(passed.confidences, served)
