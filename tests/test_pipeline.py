import csv
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import BertForMaskedLM, DebertaV2Config, DebertaV2Model

from compressor import checkpoint, findings, machine, pipeline, ranking
from compressor.artifact import Artifact, commit
from compressor.environments import Environment
from compressor.errors import RecipeError, lacked
from compressor.gates import Variant, judge
from compressor.loader import load_recipe
from compressor.measure import TEACHER, measure
from compressor.preflight import check_encoders
from compressor.progress import Progress
from compressor.runtime import Runtime
from compressor.seeds import APART
from compressor.settings.serving import DropGate, LatencyGate, SizeGate, SpeedGate
from compressor.splits import Splits
from compressor.stages.bundle import _front
from tests.conftest import command, compress, sentences


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    """A copy of the whole build, with its artifacts, that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "project"))


def reasons(project: Path, *arguments: str) -> dict[str, bool]:
    done = compress("plan", "tiny.yaml", "--format", "json", *arguments, cwd=project)
    assert done.returncode == 0, done.stderr
    return {row["stage"]: row["cached"] for row in json.loads(done.stdout)["stages"]}


def stale(project: Path, *arguments: str) -> list[str]:
    return [stage for stage, cached in reasons(project, *arguments).items() if not cached]


def test_the_bundle_is_complete_and_its_report_needs_nothing_else(built: Path) -> None:
    bundle = built / "artifacts/dist/tiny"
    files = {p.name for p in bundle.iterdir()}
    assert files >= {
        "model.onnx",
        "tokenizer.json",
        "config.json",
        "manifest.json",
        "metrics.json",
        "gates.json",
        "report.html",
        "README.md",
    }
    assert not any(p.suffix in (".safetensors", ".bin", ".pt") for p in bundle.iterdir())
    metrics = json.loads((bundle / "metrics.json").read_text())
    assert [s["name"] for s in metrics["stages"]] == ["data", "finetune", "distill", "length_adapt", "export", "quantize", "search"]
    assert [v["name"] for v in metrics["variants"]][:3] == ["teacher fp32", "student fp32", "INT8 full"]
    # Of the first layer 4, with queries, keys and values as one; of the last 5, whose only query is [CLS]; of the head 2.
    assert metrics["stages"][5]["metrics"]["products"] == {"int8": 11, "float": 0}
    tokenizer = json.loads((bundle / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 does not know the name that 5 gives it


def test_the_stages_learn(built: Path) -> None:
    """The words give the label away, so a pipeline that works gets nearly everything right."""
    rows = json.loads((built / "artifacts/dist/tiny/metrics.json").read_text())["variants"]
    assert all(row["score"] >= 0.9 for row in rows if row["name"] in ("teacher fp32", "student fp32", "INT8 full"))


def test_a_second_run_does_nothing_and_gives_the_same_digest(project: Path) -> None:
    first = json.loads((project / "artifacts/dist/tiny/manifest.json").read_text())["digest"]
    done = compress("tiny.yaml", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cached") == 8
    assert json.loads(done.stdout)["digest"] == first


def test_changing_search_reruns_only_search_and_bundle(project: Path) -> None:
    assert stale(project) == []
    assert stale(project, "--set", "search.evaluations=9") == ["search", "bundle"]


def test_a_search_may_read_the_beginning_of_texts_only(project: Path) -> None:
    changes = ("--set", "search.truncate=true", "--set", "search.baselines=true", "--set", "search.evaluations=24")
    done = compress("tiny.yaml", "--format", "json", *changes, cwd=project)
    assert done.returncode in (0, 5), done.stderr
    bundle = project / "artifacts/dist/tiny"
    metrics = json.loads((bundle / "metrics.json").read_text())
    assert metrics["truncates"]
    assert "truncation" in [row["name"] for row in metrics["baselines"]]
    runtime, texts = Runtime(bundle), [text for text, _ in sentences(40, 7)]
    full = runtime.point("full")
    assert full.lengths is not None
    assert len(full.lengths) == 3  # two layers, and what is read before them
    assert runtime.predict(texts, full) == runtime.predict(texts, dataclasses.replace(full, lengths=full.lengths[1:]))
    short = [" ".join(text.split()[:4]) for text in texts]
    tokens = [len(own[0].ids) for own in (runtime.tokens([text]) for text in short)]
    pairs = zip(texts, short, tokens, strict=True)
    for text, beginning, count in pairs:
        reads = dataclasses.replace(full, lengths=(count, *full.lengths[1:]))
        assert runtime.predict([text], reads) == runtime.predict([beginning], full)
    read = {point.lengths[0] for point in runtime.points.values() if point.lengths}
    told = [line for line in metrics["findings"] if line.startswith("Of longer texts ")]
    assert len(told) == (min(read) < runtime.max_length)


def test_the_front_is_the_same_for_any_number_of_workers(project: Path) -> None:
    found = []
    for workers in ("1", "4"):
        changes = ("--set", "search.latency=macs", "--workers", workers, "--until", "search", "--force", "search")
        done = compress("tiny.yaml", "--format", "json", *changes, cwd=project)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((project / json.loads(done.stdout)["artifact"] / "frontier.json").read_text()))
    assert found[0] == found[1]


def test_what_an_encoder_cannot_be_made_into_is_told_before_any_training(project: Path) -> None:
    for change, told in (
        ("data.max_length=4096", "data.max_length is 4096, but bert here has 64 positions"),
        ("length_adapt.bound=0.99", "length_adapt.bound 0.99 leaves 1 of 32 tokens after 2 layers"),
    ):
        done = compress("tiny.yaml", "--set", change, cwd=project)
        assert done.returncode == 3, done.stderr
        assert told in done.stderr
        assert "finetune" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["early_exit={layer: 1}", "cascade={members: [{early_exit: true}, {point: full}], max_drop: 1%}"], "early_exit"),
        (["distill=null", "recycle={layer: 1}", "export.halves=true"], "export.halves"),
    ],
)
def test_a_family_that_does_not_run_layer_by_layer_is_told_before_any_training(project: Path, changes: list[str], key: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    DebertaV2Model(DebertaV2Config(vocab_size=60, max_position_embeddings=64, **sizes)).save_pretrained(project / "deberta")
    tokenizer = Path(next(line.split()[1] for line in (project / "tiny.yaml").read_text().splitlines() if "  model: " in line))
    for file in tokenizer.glob("tokenizer*"):
        shutil.copyfile(file, project / "deberta" / file.name)
    changes = ["teacher.model=deberta", "length_adapt=null", "search=null", "default_point=null", *changes]
    done = compress("tiny.yaml", *(part for change in changes for part in ("--set", change)), cwd=project)
    assert done.returncode == 3, done.stderr
    assert f"{key}: deberta-v2 encoders do not run layer by layer" in done.stderr
    assert "finetune" not in done.stderr


def test_a_teacher_that_no_graph_holds_is_refused_before_any_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(project / "tiny.yaml", [])
    check_encoders(recipe)
    monkeypatch.setattr("compressor.preflight.LARGEST_GRAPH", 1000)
    told = r"teacher.model: its weights take 0.0 GB in float32, and one ONNX file holds less than 2; name a smaller teacher"
    with pytest.raises(RecipeError, match=told):
        check_encoders(recipe)


def test_changing_a_section_reruns_what_depends_on_it(project: Path) -> None:
    assert stale(project, "--set", "target.threads=2") == ["quantize", "search", "bundle"]
    assert stale(project, "--set", "target.backend=auto") == ["search", "bundle"]
    assert stale(project, "--set", "quantize.backend=onnxruntime") == []
    assert stale(project, "--set", "length_adapt.bound=0.3") == ["length_adapt", "export", "quantize", "search", "bundle"]
    assert stale(project, "--set", "gates=[]") == ["bundle"]


def test_what_equal_graphs_do_not_tell_apart_is_in_the_key(project: Path) -> None:
    """Graphs for amx and vnni are the same bytes, but a gate on time judges them otherwise; `layer: auto` draws its probes by the seed."""
    stages = {stage.name: stage for stage in pipeline.STAGES}
    for stage, before, after in (("bundle", "quantize.isa=vnni", "quantize.isa=amx"), ("recycle", "seed=1", "seed=2")):
        recipes = [load_recipe(project / "tiny.yaml", [change]) for change in (before, after)]
        keys = {pipeline.cache_key(stages[stage], recipe, {}) for recipe in recipes}
        assert len(keys) == 2


@pytest.mark.parametrize(
    ("package", "stages"), [("openvino", {"quantize", "search", "members", "bundle"}), ("onnxscript", {"export", "members"})]
)
def test_what_may_be_installed_later_is_in_the_key(package: str, stages: set[str], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that says what to install for more, and is asked again when it is, must not answer from its cache."""
    recipe, versions = load_recipe(project / "tiny.yaml", []), machine.versions
    before = {stage.name: pipeline.cache_key(stage, recipe, {}) for stage in pipeline.STAGES}
    monkeypatch.setattr(machine, "versions", lambda *names: versions(*names) | ({package: "9.9"} if package in names else {}))
    assert {stage.name for stage in pipeline.STAGES if pipeline.cache_key(stage, recipe, {}) != before[stage.name]} == stages


def test_what_auto_may_try_is_in_the_key(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (quantize,) = (stage for stage in pipeline.STAGES if stage.name == "quantize")

    def keys(*changes: str) -> set[str]:
        found = set[str]()
        for made in (False, True):
            monkeypatch.setattr(Environment, "is_made", lambda _, made=made: made)
            found.add(pipeline.cache_key(quantize, load_recipe(project / "tiny.yaml", changes), {}))
        return found

    auto = keys("quantize.backend=auto")
    assert len(auto) == 2
    assert not auto & keys("quantize.backend=auto", "target.backend=openvino")
    assert len(keys("quantize.backend=neural-compressor")) == 1  # which makes it


def test_how_calibration_texts_are_read_is_in_the_key(project: Path) -> None:
    (members,) = (stage for stage in pipeline.STAGES if stage.name == "members")
    recipes = [load_recipe(project / "tiny.yaml", [f"data.skip_bad={said}"]) for said in ("true", "false")]
    assert len({pipeline.cache_key(members, recipe, {}) for recipe in recipes}) == 2
    usual = [load_recipe(project / "tiny.yaml", changes) for changes in ([], ["data.text=text", "data.label=label"])]
    assert len({pipeline.cache_key(members, recipe, {}) for recipe in usual}) == 1  # a usual name that is written out is no change


def test_changed_data_reruns_everything_and_renamed_data_nothing(project: Path) -> None:
    (project / "train.csv").rename(project / "other.csv")
    assert stale(project, "--set", "data.train=other.csv") == []
    (project / "other.csv").write_text((project / "other.csv").read_text() + "the film was quite lovely indeed,positive\n")
    assert len(stale(project, "--set", "data.train=other.csv")) == 8


@pytest.mark.parametrize(
    ("split", "rerun"),
    [
        ("test", {"data", "bundle"}),
        ("search", {"data", "search", "bundle"}),
        ("unlabelled", {"data", "distill", "length_adapt", "bundle"}),
    ],
)
def test_only_what_reads_a_split_is_made_anew_when_it_changes(split: str, rerun: set[str], project: Path) -> None:
    recipe = load_recipe(project / "tiny.yaml")
    (data,) = project.glob("artifacts/data-*")
    inputs = {"data": Artifact(data)}
    before = {stage.name: pipeline.cache_key(stage, recipe, inputs) for stage in pipeline.STAGES}
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["files"][f"{split}.jsonl"] = manifest["digest"] = "other"
    (data / "manifest.json").write_text(json.dumps(manifest))
    inputs = {"data": Artifact(data)}
    changed = {stage.name for stage in pipeline.STAGES if pipeline.cache_key(stage, recipe, inputs) != before[stage.name]}
    reads = {stage.name for stage in pipeline.stages_of(recipe)}
    assert changed & reads == rerun


def test_what_changes_no_weights_is_in_no_trainings_key(project: Path) -> None:
    stages = {stage.name: stage for stage in pipeline.STAGES}
    layers = "distill.recycled_layers={layer: 1}"

    def keys(*changes: str) -> dict[str, str]:
        recipe = load_recipe(project / "tiny.yaml", [layers, *changes])
        return {name: pipeline.cache_key(stages[name], recipe, {}) for name in ("finetune", "distill", "length_adapt")}

    usual = keys()
    assert keys("teacher.finetune.checkpoint_every=7") == usual
    assert keys("distill.recycled_layers.store=/elsewhere", "distill.recycled_layers.max_size=9GB") == usual
    recycled = keys("recycle={layer: 1}")
    assert keys("recycle={layer: 1, max_size: 9GB, store: /elsewhere}") == recycled
    assert keys("recycle={layer: 1, dtype: int8}")["distill"] != recycled["distill"]


def test_a_plan_tells_the_time_of_the_artifact_that_it_names(project: Path) -> None:
    (folder,) = project.glob("artifacts/finetune-*")
    other = Path(shutil.copytree(folder, project / "artifacts/finetune-000000000000"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["metrics"]["seconds"], manifest["settings"]["seed"] = 12345.0, 99
    (other / "manifest.json").write_text(json.dumps(manifest))
    os.utime(other)
    for arguments in ((), ("--force", "finetune")):
        rows = json.loads(compress("plan", "tiny.yaml", "--format", "json", *arguments, cwd=project).stdout)["stages"]
        assert next(row["seconds_last_time"] for row in rows if row["stage"] == "finetune") < 12345


def test_a_corrupted_artifact_is_a_miss_with_a_warning(project: Path) -> None:
    victim = next(project.glob("artifacts/quantize-*/model.onnx"))
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    done = compress("tiny.yaml", "--format", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "model.onnx has changed; building it again" in done.stderr
    assert done.stderr.count("cached") >= 5


@pytest.mark.parametrize("damage", ["", "{}", "nonsense", None])
def test_an_artifact_without_a_readable_manifest_is_a_miss(project: Path, damage: str | None) -> None:
    manifest = next(project.glob("artifacts/distill-*/manifest.json"))
    manifest.unlink() if damage is None else manifest.write_text(damage)
    assert stale(project)[0] == "distill"


def test_force_runs_a_cached_stage_again(project: Path) -> None:
    done = compress("tiny.yaml", "--force", "export", "--until", "export", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "export  done" in done.stderr


def test_a_crash_leaves_no_artifact(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe(**{"learning_rate: 3e-3": "learning_rate: 1e30"})
    done = compress(str(recipe), cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "the loss is" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("artifacts/finetune-*"))
    assert not (tmp_path / "artifacts/dist").exists()


def test_a_broken_gate_exits_5_and_the_bundle_is_rejected(project: Path) -> None:
    shutil.rmtree(project / "artifacts/dist")
    done = compress("tiny.yaml", "--set", "gates=[{metric: size, max: 1kB}]", cwd=project)
    assert done.returncode == 5, done.stderr
    assert (project / "artifacts/rejected/tiny/model.onnx").exists()
    assert not (project / "artifacts/dist/tiny").exists()
    assert done.stderr.splitlines()[-1].startswith("error: size of model.onnx is ")
    again = compress("tiny.yaml", "--set", "gates=[{metric: size, max: 1kB}]", cwd=project)
    assert again.returncode == 5


@pytest.mark.parametrize(
    "sections",
    [("search",), ("search", "quantize"), ("search", "quantize", "length_adapt"), ("search", "quantize", "length_adapt", "distill")],
)
def test_every_prefix_of_the_pipeline_makes_a_working_bundle(project: Path, sections: tuple[str, ...]) -> None:
    changes = [part for s in (*sections, "default_point") for part in ("--set", f"{s}=null")]
    done = compress("tiny.yaml", *changes, cwd=project)
    assert done.returncode == 0, done.stderr
    answered = compress("predict", "artifacts/dist/tiny", cwd=project)
    assert answered.returncode == 0, answered.stderr


def test_a_second_build_of_the_same_recipe_is_refused(project: Path) -> None:
    from filelock import FileLock

    with FileLock(project / "artifacts/.tiny.lock"):
        done = compress("tiny.yaml", cwd=project)
    assert done.returncode == 6
    assert "another build of tiny is running" in done.stderr


def test_builds_that_share_a_stage_make_it_once(project: Path) -> None:
    """The second waits for the first and takes what it made, where both swept one scratch folder before."""
    for folder in (project / "artifacts").glob("data-*"):
        shutil.rmtree(folder)
    told = list[str]()

    def build(name: str) -> Path:
        log = Progress(quiet=True)
        log.note = told.append  # type: ignore[method-assign]
        return pipeline.run(load_recipe(project / "tiny.yaml", [f"name={name}"]), project / "artifacts", log, until="data").path

    made = list[str]()
    real = import_module("compressor.stages.data").run

    def slow(*arguments: Any) -> Any:
        made.append("data")
        time.sleep(1)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as builds:
        patch.setattr("compressor.stages.data.run", slow)
        first, second = builds.map(build, ["one", "two"])
    assert first == second
    assert made == ["data"]
    assert any("another build is making it; waiting" in line for line in told)
    assert not Artifact(first).damage()


def digest_after_interruptions(recipe: Path, signum: signal.Signals, marks: list[str]) -> str:
    """Interrupt a build at each mark that shows on stderr, then let it finish; return the bundle's digest."""
    for mark in marks:
        with subprocess.Popen(
            command(str(recipe)), cwd=recipe.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if mark in line:
                    process.send_signal(signum)
                    break
            process.stderr.read()
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signum], mark
    done = compress(str(recipe), "--format", "json", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["digest"])


STAGE_STARTS = ["1/8 data", "2/8 finetune", "3/8 distill", "4/8 length_adapt", "5/8 export", "6/8 quantize", "7/8 search", "8/8 bundle"]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_interrupted_in_every_stage_ends_with_the_same_digest(
    make_recipe: Callable[..., Path], built: Path, signum: signal.Signals
) -> None:
    expected = json.loads((built / "artifacts/dist/tiny/manifest.json").read_text())["digest"]
    assert digest_after_interruptions(make_recipe(), signum, STAGE_STARTS) == expected


def test_fit_resumes_inside_an_epoch_with_the_same_result(make_recipe: Callable[..., Path], built: Path) -> None:
    """Killed once the first checkpoint is there, which is written inside the first epoch."""
    recipe = make_recipe()
    process = subprocess.Popen(command(str(recipe)), cwd=recipe.parent, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(recipe.parent.glob("artifacts/.finetune-*/.state/fit.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = compress(str(recipe), "--until", "finetune", cwd=recipe.parent)
    assert "going on after step" in done.stderr
    ours, theirs = (next(p.glob("artifacts/finetune-*")) for p in (recipe.parent, built))
    assert Artifact(ours).digest == Artifact(theirs).digest


def test_points_without_a_name_have_medians_beside_that_of_full_length(project: Path, tmp_path: Path) -> None:
    full, half = ({"lengths": [n], "score": 0.9, "latency_ms": 2.0 * n, "median_ms": 1.0 * n} for n in (8, 4))
    half["median_ms"] = 6.0  # a text of middle length gains less than a long one
    (tmp_path / "frontier.json").write_text(json.dumps({"points": {"full": full}, "front": [half, full]}), encoding="utf-8")
    inputs: Any = {"frontier": Artifact(tmp_path)}
    recipe = load_recipe(project / "tiny.yaml", ["search.latency=measured"])
    assert [one["latency_ms"] for one in _front(recipe, inputs, 4.0)] == [3.0, 4.0]


def test_the_time_of_a_stage_is_that_of_all_processes_that_worked_on_it(tmp_path: Path) -> None:
    assert pipeline._spent(tmp_path / ".state") == 0
    for name, content, at in (("seconds", "5.5", 100), ("seed-18/fit.pt", "", 110), ("seed-17/fit.pt", "", 130)):
        path = tmp_path / ".state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (at, at))
    for folder in (tmp_path / ".state").glob("seed-*"):
        os.utime(folder, (105, 105))
    assert pipeline._spent(tmp_path / ".state") == 35.5


def test_a_stage_that_is_stopped_while_it_is_committed_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch/.state").mkdir(parents=True)
    (tmp_path / "scratch/model").write_text("weights")
    for step in ("files_of", "write_json", "os.replace"):
        with monkeypatch.context() as stopped:
            stopped.setattr(f"compressor.artifact.{step}", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                commit(tmp_path / "scratch", tmp_path / "made", {})
        assert (tmp_path / "scratch/.state").exists()
    made = commit(tmp_path / "scratch", tmp_path / "made", {})
    assert sorted(path.name for path in made.path.iterdir()) == ["manifest.json", "model"]


@pytest.mark.parametrize("backend", ["onnxruntime", "nncf"])
def test_latencies_are_those_of_the_target_s_requests(project: Path, backend: str) -> None:
    changes = ("target.batch=4", "target.threads=2", f"quantize.backend={backend}", "quantize.calibration=24", "search.latency=measured")
    done = compress("tiny.yaml", *(part for change in changes for part in ("--set", change)), cwd=project)
    assert done.returncode == 0, done.stderr
    assert "latencies, interleaved, 2 threads, batch 4" in done.stderr
    bundle = project / "artifacts/dist/tiny"
    told = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert told["target"] == {"threads": 2, "batch": 4, "backend": "onnxruntime"}
    assert "Latencies are those of a request of 4 texts on 2 threads" in (bundle / "README.md").read_text(encoding="utf-8")


def test_gates_judge_the_arithmetic() -> None:
    teacher, student = Variant("t", 0.9, (0.8, 1), 10, 12, 400, 11), Variant("s", 0.88, (0.8, 1), 4, 5, 90, 4)
    chosen = Variant("c", 0.89, (0.8, 1), 2, 3, 20, 2)
    gates = [
        DropGate(metric="accuracy", max_drop="1.0%"),
        DropGate(metric="accuracy", max_drop="0.5%"),
        DropGate(metric="accuracy", against="student", max_drop="0%"),
        SpeedGate(metric="speedup", min=5),
        SpeedGate(metric="speedup", against="student", min=2.5),
        LatencyGate(metric="latency", max="2ms"),
        SizeGate(metric="size", max="19MB"),
    ]
    verdicts = judge(gates, chosen, {"teacher": teacher, "student": student}, [chosen])
    assert [v.passed for v in verdicts] == [True, False, True, True, False, True, False]


def test_a_gate_that_breaks_by_a_little_does_not_read_as_if_it_held() -> None:
    teacher = Variant("t", 0.9, (0.8, 1), 7.992, 12, 400, 11)
    chosen = Variant("c", 0.88996, (0.8, 1), 2.0004, 3, 20.004, 2)
    gates = [
        DropGate(metric="accuracy", max_drop="1%"),
        DropGate(metric="accuracy", max_drop="0.125%"),
        SpeedGate(metric="speedup", min=4),
        LatencyGate(metric="latency", max="2ms"),
        SizeGate(metric="size", max="20MB"),
    ]
    finer = [
        LatencyGate(metric="latency", max="1.9996ms"),
        SizeGate(metric="size", max="20.003MB"),
        SpeedGate(metric="speedup", min=3.9953),
    ]
    told = [v.value.split()[0] for v in judge(finer, chosen, {"teacher": teacher, "student": teacher}, [chosen])]
    assert told == ["2.00", "20.004", "3.995x"], "beyond the limit, by the decimals that it takes"
    verdicts = judge(gates, chosen, {"teacher": teacher, "student": teacher}, [chosen])
    assert not any(v.passed for v in verdicts)
    assert [(v.value.partition(" (")[0], v.limit) for v in verdicts] == [
        ("1.004%", "≤ 1.00%"),
        ("1.00%", "≤ 0.125%"),
        ("3.995x", "≥ 4x"),
        ("2.0004 ms", "≤ 2 ms"),
        ("20.004 MB", "≤ 20 MB"),
    ]


def test_a_drop_may_have_to_be_certain() -> None:
    teacher = Variant("t", 0.9, (0.8, 1), 10, 12, 400, 11)
    chosen = Variant("c", 0.89, (0.8, 1), 2, 3, 20, 2, changes={"t": (-0.018, -0.004)})
    gates = [DropGate(metric="accuracy", max_drop=drop, certain=certain) for drop, certain in (("1%", False), ("1%", True), ("2%", True))]
    verdicts = judge(gates, chosen, {"teacher": teacher}, [])
    assert [v.passed for v in verdicts] == [True, False, True]
    assert (verdicts[1].value, verdicts[1].limit) == ("1.00% (0.40% to 1.80%)", "≤ 1.00%, certainly")
    (alike,) = judge(gates[:1], Variant("c", 0.9, (0.8, 1), 2, 3, 20, 2, changes={"t": (-0.00001, 0.0)}), {"teacher": teacher}, [])
    assert alike.value == "0.00% (0.00% to 0.00%)"


def test_a_point_that_certainly_loses_more_than_it_was_chosen_for_is_told_of() -> None:
    full = Variant("INT8 full", 0.9, (0.8, 1), 2, 3, 20, 2)
    for low, high, told in ((-0.03, -0.011, True), (-0.03, -0.009, False)):
        row = Variant("INT8 fast", 0.88, (0.8, 1), 1, 2, 20, 1, changes={"INT8 full": (low, high)})
        assert findings._change(row, full) == f"−2.0 points (−3.0 to −{-100 * high:.1f})"
        assert bool(findings._more_than_promised(row, full, 0.01)) == told


def test_a_cascade_is_judged_by_its_mean_time() -> None:
    teacher = Variant("t", 0.9, (0.8, 1), 10, 12, 400, 11)
    cascade = Variant("c", 0.89, (0.8, 1), 1, 9, 20, 2.2, routed=True)
    gates = [SpeedGate(metric="speedup", min=5), SpeedGate(metric="speedup", min=5.1), LatencyGate(metric="latency", max="2ms")]
    verdicts = judge(gates, cascade, {"teacher": teacher}, [])
    assert [v.passed for v in verdicts] == [True, False, False]
    assert (verdicts[2].gate, verdicts[2].value) == ("mean latency of the cascade", "2.20 ms")


def test_a_gate_on_time_breaks_where_the_target_was_not_measured_unless_another_machine_will_do() -> None:
    chosen = Variant("c", 0.9, (0.8, 1), 2, 3, 20, 2)
    gates = [
        LatencyGate(metric="latency", max="2ms"),
        LatencyGate(metric="latency", max="2ms", measured_on="other"),
        SpeedGate(metric="speedup", min=1),
        DropGate(metric="accuracy", max_drop="0%"),
        SizeGate(metric="size", max="20MB"),
    ]
    for on_target, passed in ((True, [True] * 5), (False, [False, True, False, True, True])):
        verdicts = judge(gates, chosen, {"teacher": chosen}, [chosen], on_target=on_target)
        assert [v.passed for v in verdicts] == passed
    assert verdicts[0].value == "2.00 ms here, not measured on the target (quantize.isa)"


def test_a_latency_that_is_missed_names_the_point_that_comes_closest() -> None:
    points = [Variant(f"INT8 {name}", 0.9, (0.8, 1), ms, ms, 20, ms) for name, ms in (("full", 4.0), ("fast", 3.0), ("min", 1.5))]
    for limit, expected in ((2, "3.00 ms (INT8 min takes 1.50 ms)"), (1, "3.00 ms (INT8 min takes 1.50 ms, the closest)"), (3, "3.00 ms")):
        (verdict,) = judge([LatencyGate(metric="latency", max=f"{limit}ms")], points[1], {}, points)
        assert verdict.value == expected


@pytest.mark.parametrize("method", ["freeze", "bitfit", "adapters", "lora"])
def test_an_efficiently_tuned_teacher_is_a_plain_model_and_says_how_much_of_it_learned(
    method: str, make_recipe: Callable[..., Path]
) -> None:
    recipe = make_recipe(**{"finetune: {epochs: 8,": f"finetune: {{method: {method}, class_weights: balanced, epochs: 1,"})
    done = compress("tiny.yaml", "--until", "finetune", "--format", "json", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert 0 < told["metrics"]["learning_parameters"] < told["metrics"]["parameters"]
    names = load_file(recipe.parent / told["artifact"] / "model/model.safetensors").keys()
    assert not [name for name in names if "lora" in name or "base_layer" in name or "modules_to_save" in name]


def test_the_student_learns_from_the_assistant_that_the_teacher_taught(make_recipe: Callable[..., Path]) -> None:
    assistant = "assistant: {student: {layers: [0, 1]}, epochs: 1, objectives: [{type: tinybert}, {type: logits}]}\ndistill:"
    recipe = make_recipe(**{"distill:": assistant, "layers: [0, 2]": "layers: [1]"})
    done = compress("tiny.yaml", *NO_LENGTHS, "--until", "distill", "--format", "json", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    student = Artifact(recipe.parent / json.loads(done.stdout)["artifact"])
    guide = Artifact(student.path.parent / student.manifest["inputs"]["guide"]["path"])
    assert guide.manifest["stage"] == "assistant"
    assert [json.loads((a.path / "model/config.json").read_text())["num_hidden_layers"] for a in (guide, student)] == [2, 1]


def test_pairs_of_texts_with_many_labels_go_through_the_whole_pipeline(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"max_length: 32": "max_length: 32, text: first, text_pair: second, label: grade"})
    labels = ["10", "9", "none", "so-so", "très bien"]
    for name, count in (("train", 300), ("test", 30)):
        rows = [(a, b, labels[i % 5]) for i, ((a, _), (b, _)) in enumerate(pairwise(sentences(count, len(name))))]
        with (recipe.parent / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("first", "second", "grade"), *rows])
    short = [f"--set={section}.epochs=1" for section in ("teacher.finetune", "distill", "length_adapt")]
    done = compress("tiny.yaml", *short, cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    runtime = Runtime(recipe.parent / "artifacts/dist/tiny")
    assert runtime.labels == ("9", "10", "none", "so-so", "très bien")
    (answer, swapped) = runtime.predict([("good film", "dull plot"), ("dull plot", "good film")])
    assert list(answer.probabilities) == list(runtime.labels)
    assert answer.probabilities != swapped.probabilities
    with pytest.raises(RecipeError, match="this bundle answers pairs of texts: give both"):
        runtime.predict(["good film"])
    scored = ("eval", "artifacts/dist/tiny", "--data", "test.csv", "--text", "first", "--label", "grade")
    assert (
        "answers pairs of texts: give both, on a line with a tab between, or name the column --text-pair"
        in compress(*scored, cwd=recipe.parent).stderr
    )
    assert compress(*scored, "--text-pair", "second", cwd=recipe.parent).returncode == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left under"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left under"),
        (PermissionError(errno.EACCES, "Permission denied", "x/model.onnx"), "x/model.onnx is not writable"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "out of memory"),
        (ValueError("odd"), None),
    ],
)
def test_what_the_machine_lacks_is_told_whatever_library_met_it(error: Exception, told: str | None, tmp_path: Path) -> None:
    found = lacked(error, tmp_path)
    assert found is None if told is None else found is not None and found.startswith(told)


def test_an_error_on_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert str(lacked(ValueError("Wire format was corrupt"), tmp_path)).startswith("no space left under")


def test_a_teacher_with_adapters_teaches_exports_and_is_cut_like_any_other(make_recipe: Callable[..., Path]) -> None:
    finetune = "finetune: {method: adapters, adapter_size: 8, epochs: 1,"
    recipe = make_recipe(**{"finetune: {epochs: 8,": finetune, "search: {evaluations: 8, population: 4, texts: 8, latency: macs}\n": ""})
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("default_point: fast\n", ""), encoding="utf-8")
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    runtime = Runtime(recipe.parent / "artifacts/dist/tiny")
    assert len(list(runtime.predict(["the film is good"]))) == 1
    student = next((recipe.parent / "artifacts").glob("distill-*/model/model.safetensors"))
    assert "bert.encoder.layer.1.output.dense.down.weight" in load_file(student)


def test_a_bilstm_learns_from_unlabelled_and_augmented_texts_and_ships_with_a_pruned_vocabulary(make_recipe: Callable[..., Path]) -> None:
    student = "student: {bilstm: {hidden_size: 16}, vocabulary: corpus}\n  augment: {copies: 2}\n  seeds: 2"
    recipe = make_recipe(**{"student: {layers: [0, 2]}": student, "max_length: 32}": "max_length: 32, unlabelled: more.txt}"})
    text = recipe.read_text(encoding="utf-8")
    begin, end = text.index("length_adapt:"), text.index("gates:")
    text = text[:begin] + "quantize: {}\n" + text[end:].replace("40MB", "1MB")
    recipe.write_text(
        text.replace("    - {type: minilmv2, relation_heads: 4, end: 0.5}\n", "").replace(", start: 0.5", ""), encoding="utf-8"
    )
    more = [text for text, _ in sentences(60, 3)] + [text for text, _ in sentences(40, 2)]  # 40 of them are the test split
    (recipe.parent / "more.txt").write_text("\n\n".join(more), encoding="utf-8")
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    assert "40 of 100 unlabelled texts are in validation, search or test too: left out" in done.stderr
    metrics = Artifact(next((recipe.parent / "artifacts").glob("distill-*"))).metrics
    assert metrics["vocabulary"]["after"] < metrics["vocabulary"]["before"]
    assert metrics["vocabulary"]["covered"] == 1.0
    assert len(metrics["seeds"]["scores"]) == 2
    assert metrics["seeds"]["mean"] == pytest.approx(sum(metrics["seeds"]["scores"]) / 2)
    examples = Artifact(next((recipe.parent / "artifacts").glob("data-*"))).metrics["examples"]
    assert examples["unlabelled"] == 60
    assert metrics["texts"]["original"] == examples["train"] + 60
    assert metrics["texts"]["augmented"] > examples["train"]
    runtime = Runtime(recipe.parent / "artifacts/dist/tiny")
    together = list(runtime.predict(["the film is good", "a dull plot and very weak music"]))
    assert [a.label for a in together] == ["positive", "negative"]
    products = Artifact(next((recipe.parent / "artifacts").glob("quantize-*"))).metrics["products"]
    assert products["int8"] >= 2


GENERAL = """\
version: 1
name: general
task: {{type: masked-lm}}
data: {{train: plain.txt, max_length: 32}}
teacher: {{model: {model}}}
distill:
  student: {{layers: every second, hidden_size: 16}}
  epochs: 2
  batch_size: 16
  learning_rate: 1e-3
  precision: float32
  checkpoint_every: 5
  objectives: [{{type: minilmv2, relation_heads: 2}}, {{type: labels}}, {{type: soft_labels}}, {{type: hidden_cosine}}]
"""


def predicting(encoder: Path, folder: Path) -> Path:
    """Give an encoder a head that says which tokens are masked."""
    shutil.copytree(encoder, folder)
    torch.manual_seed(0)
    BertForMaskedLM.from_pretrained(encoder).save_pretrained(folder)
    return folder


def test_general_distillation_makes_an_encoder_that_another_recipe_starts_from(make_recipe: Callable[..., Path], tiny_model: Path) -> None:
    recipe = make_recipe(**{"student: {layers: [0, 2]}": "student: {model: artifacts/dist/general}"})
    (recipe.parent / "plain.txt").write_text("\n".join(text for text, _ in sentences(200, 5)), encoding="utf-8")
    general_teacher = predicting(tiny_model, recipe.parent / "predicting")
    (recipe.parent / "general.yaml").write_text(GENERAL.format(model=general_teacher), encoding="utf-8")
    done = compress("general.yaml", "--format", "json", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["encoder"] == "artifacts/dist/general"
    assert 0 < told["metrics"]["validation_score"] < 1
    assert "masked tokens" in (recipe.parent / told["encoder"] / "README.md").read_text(encoding="utf-8")
    general = {link["path"] for link in Artifact(next((recipe.parent / "artifacts").glob("encoder-*"))).manifest["inputs"].values()}
    done = compress("cache", "gc", "--dry-run", "--format", "json", cwd=recipe.parent)
    assert general.isdisjoint(Path(path).name for path in json.loads(done.stdout)["removed"])
    done = compress("tiny.yaml", *NO_LENGTHS, "--until", "distill", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    students = [json.loads(p.read_text(encoding="utf-8")) for p in (recipe.parent / "artifacts").glob("distill-*/model/config.json")]
    assert sorted((s["architectures"][0], s["hidden_size"]) for s in students) == [
        ("BertForMaskedLM", 16),
        ("BertForSequenceClassification", 16),
    ]


def test_a_teacher_without_a_head_for_masked_tokens_is_not_asked_for_them(make_recipe: Callable[..., Path], tiny_model: Path) -> None:
    folder = make_recipe().parent
    (folder / "plain.txt").write_text("\n".join(text for text, _ in sentences(40, 5)), encoding="utf-8")
    (folder / "general.yaml").write_text(GENERAL.format(model=tiny_model), encoding="utf-8")
    for until in ("data", "finetune"):
        done = compress("general.yaml", "--until", until, cwd=folder)
        assert done.returncode == (3 if until == "finetune" else 0), done.stderr
    assert "error: distill.objectives: soft_labels asks the teacher for masked tokens, but " in done.stderr
    assert "holds no weights of that head; add teacher.finetune, or leave soft_labels out" in done.stderr


def test_logits_of_two_vocabularies_are_not_compared(make_recipe: Callable[..., Path], tiny_model: Path) -> None:
    folder = make_recipe().parent
    other = shutil.copytree(tiny_model, folder / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    pieces["film"], pieces["story"] = pieces["story"], pieces["film"]  # the same pieces, under other ids
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "plain.txt").write_text("\n".join(text for text, _ in sentences(40, 5)), encoding="utf-8")
    text = GENERAL.format(model=f"{tiny_model}, finetune: {{max_steps: 1}}").replace(
        "layers: every second, hidden_size: 16", "model: ./other"
    )
    (folder / "general.yaml").write_text(text, encoding="utf-8")
    done = compress("general.yaml", cwd=folder)
    assert done.returncode == 3
    assert not list(folder.glob("artifacts/finetune-*"))  # told before the teacher learns
    told = "distill.objectives: soft_labels compares the logits of a whole vocabulary, but teacher and student have different ones; "
    assert f"error: {told}use minilm, minilmv2, tinybert, hidden_cosine or labels" in done.stderr
    (folder / "general.yaml").write_text(text.replace(", {type: soft_labels}", ""), encoding="utf-8")
    assert compress("general.yaml", "--set", "distill.max_steps=2", cwd=folder).returncode == 0


LAYERS = "layers: [0, 2]"
NO_LENGTHS = [f"--set={section}=null" for section in ("length_adapt", "search", "default_point")]
"""For students of one layer, which have no length to adapt."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({LAYERS: "layers: [0, 3]"}, "distill.student.layers: 3 is out of range; the teacher has layers 0 to 2"),
        ({LAYERS: "layers: last 4"}, "distill.student.layers: last 4 is out of range; the teacher has 3 layers"),
        ({LAYERS: "layers: [0], hidden_size: 30"}, "distill.student.hidden_size: 30 does not fit this teacher; choose a multiple of 8"),
        ({"relation_heads: 4": "relation_heads: 5"}, "distill.objectives: relation_heads 5 does not divide the teacher's hidden size 32"),
        (
            {LAYERS: "model: ./other"},
            "distill.objectives: minilmv2 compares models token by token, but teacher and student tokenize differ",
        ),
        ({"epochs: 8": "method: freeze, frozen_layers: 4, epochs: 1"}, "teacher.finetune.frozen_layers: 4 of 3 layers cannot be frozen"),
        (
            {"epochs: 8": "method: adapters, epochs: 1", LAYERS: "layers: [0], hidden_size: 16"},
            "distill.student.hidden_size: layers with adapters cannot be narrowed",
        ),
        ({LAYERS: "layers: [2]"}, "length_adapt: the only layer of this student computes [CLS] alone, so that there is no length to adapt"),
        ({"  objectives:": "  recycled_layers: 3\n  objectives:"}, "distill.recycled_layers 3: this encoder can recycle 1 to 2 layers"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_its_reason(
    changes: dict[str, str], message: str, make_recipe: Callable[..., Path], tiny_model: Path
) -> None:
    recipe = make_recipe(**{"epochs: 8": "epochs: 1, max_steps: 1"} | changes)
    other = shutil.copytree(tiny_model, recipe.parent / "other")
    tokenizer = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(tokenizer.replace('"film"', '"fi##"'), encoding="utf-8")
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert done.returncode == 3
    assert f"error: {message}" in done.stderr
    assert len(done.stderr.split("error: ")[1].splitlines()) == 1
    assert not list((recipe.parent / "artifacts").glob("finetune-*"))  # it is told before any training


def test_a_loss_that_is_no_number_names_step_and_texts_and_a_mended_recipe_goes_on(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"learning_rate: 1e-3": "learning_rate: 1e30"})
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert done.returncode == 4
    assert re.search(r"error: step \d+ \(training texts \d+, \d+, \d+ …\): the loss is nan; lower learning_rate", done.stderr)
    assert compress("tiny.yaml", "--set", "distill.learning_rate=1e-3", "--until", "distill", cwd=recipe.parent).returncode == 0


def test_a_teacher_without_the_tasks_head_is_refused(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe()
    text = recipe.read_text(encoding="utf-8")
    begin, end = text.index("  finetune:"), text.index("distill:")
    recipe.write_text(text[:begin] + text[end:], encoding="utf-8")
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert done.returncode == 3
    assert "is no classifier of these 2 labels; add teacher.finetune" in done.stderr


@pytest.mark.parametrize("method", ["full", "adapters"])
def test_what_layers_learned_to_rank_by_is_kept(method: str, make_recipe: Callable[..., Path]) -> None:
    changes = {
        "length_adapt: {epochs: 1,": "length_adapt: {epochs: 1, significance: learned, ",
        "epochs: 8": f"method: {method}, epochs: 2",
    }
    recipe = make_recipe(**changes)
    done = compress("tiny.yaml", "--until", "length_adapt", "--format", "json", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    (folder,) = (recipe.parent / "artifacts").glob("length_adapt-*")
    rankers = load_file(folder / "model" / "model.safetensors")[ranking.NAME]
    assert (abs(rankers).max(1)[:-1] > 0).all()  # the last layer of a sentence task reads [CLS] alone
    loaded = checkpoint.load_forward(Artifact(folder), ["bad", "good"], "sequence-classification")
    assert (loaded.model.get_parameter(ranking.NAME).detach().numpy() == rankers).all()


def test_length_adaptation_over_seeds_goes_on_with_the_best(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"length_adapt: {epochs: 1,": "length_adapt: {epochs: 1, max_steps: 4, seeds: 2,"})
    done = compress("tiny.yaml", "--until", "length_adapt", "--format", "json", cwd=recipe.parent)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics["validation_score"] in metrics["seeds"]["scores"]
    assert metrics["seed"] in (17, 17 + APART)
    assert metrics["after"]["full"] == metrics["validation_score"]


@pytest.mark.parametrize("name", ["quantize", "search"])
def test_a_stage_reads_no_split_that_its_key_leaves_out(name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What chooses by the test split would report its own choice, and a changed split would not make it anew."""
    (stage,) = (one for one in pipeline.STAGES if one.name == name)
    read, examples = set[str](), Splits.examples
    monkeypatch.setattr(Splits, "examples", lambda own, split: read.add(split) or examples(own, split))  # type: ignore[func-returns-value]
    made = {"data": "data", "checkpoint": "length_adapt", "float_graph": "export", "int8_graph": "quantize"}
    inputs: Any = {kind: Artifact(next(built.glob(f"artifacts/{of}-*"))) for kind, of in made.items()}
    import_module(f"compressor.stages.{name}").run(load_recipe(built / "tiny.yaml"), inputs, tmp_path, Progress(quiet=True))
    assert stage.splits is not None
    assert read
    assert read <= set(stage.splits)


def test_a_change_is_a_rows_score_less_the_others(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"data": "data", "teacher": "finetune", "checkpoint": "length_adapt", "float_graph": "export", "int8_graph": "quantize"}
    inputs: Any = {kind: Artifact(next(built.glob(f"artifacts/{of}-*"))) for kind, of in made.items()}
    outcomes = Runtime.outcomes

    def worse(self: Runtime, examples: Any, point: Any = None) -> Any:
        found = outcomes(self, examples, point)
        found[:10, 0] = 1 - found[:10, 1]  # ten of forty answers are wrong
        return found

    monkeypatch.setattr(Runtime, "outcomes", worse)
    monkeypatch.setattr("compressor.measure.LATENCY_TEXTS", 4)
    rows = measure(load_recipe(built / "tiny.yaml"), inputs, built / "artifacts/dist/tiny", Progress(quiet=True)).variants
    low, high = rows["INT8 full"].changes[TEACHER]
    assert low < rows["INT8 full"].score - rows[TEACHER].score < high < 0
    assert rows[TEACHER].changes["INT8 full"] == pytest.approx((-high, -low))


def test_a_cascade_pays_where_it_is_faster_than_whatever_is_as_good() -> None:
    others = {"teacher fp32": (0.95, 40.0), "INT8 full": (0.9, 4.0), "INT8 min": (0.8, 1.0)}
    rows = [Variant(name, score, (0.7, 1), ms, ms, 20, ms) for name, (score, ms) in others.items()]
    members = [{"name": "min", "mean_ms": 1.0}, {"name": "full", "mean_ms": 4.0}]
    for ms, told in ((2.0, "pays: 2.0× the speed of INT8 full, "), (3.9, "does not pay here: 1.03× the speed of INT8 full, ")):
        cascade = Variant("INT8 cascade", 0.9, (0.7, 1), 1, ms, 40, ms, routed=True)
        policy = {"members": members, "chosen": {"mean_ms": ms}, "test_shares": [{"member": "min", "share": 0.75}]}
        assert findings._paying(cascade, [*rows, cascade], policy).startswith(f"The cascade {told}the fastest row that is as good, and ")


def test_a_client_that_names_no_lengths_gets_the_bundles_own_point(built: Path) -> None:
    bundle = built / "artifacts/dist/tiny"
    graph, points = onnx.load(bundle / "model.onnx").graph, Runtime(bundle).points
    default = next(numpy_helper.to_array(i) for i in graph.initializer if i.name == "lengths")
    assert tuple(default.tolist()) == points["fast"].lengths != points["full"].lengths  # [11, 1] and [32, 1] where this was written


def test_what_qualifies_figures_is_kept_with_them_and_names_no_place(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe()
    lines = (tmp_path / "train.csv").read_text(encoding="utf-8").splitlines()
    with (tmp_path / "test.csv").open("a", encoding="utf-8") as file:
        file.write("\n".join(lines[1:4]) + "\n,positive\n")
    read = load_recipe(recipe, ["data.skip_bad=true"])
    first, again = (pipeline.run(read, tmp_path / "artifacts", Progress(quiet=True), until="data") for _ in range(2))
    assert first.path == again.path
    told = list(findings._of_stage({"metrics": again.metrics, "seconds": 1.0}))
    assert told[0].endswith("texts of test are in train too: scores there flatter the model.")
    assert told[1:] == ["1 rows are no examples and were left out (data.skip_bad)."]
    assert str(tmp_path) not in " ".join(told)
