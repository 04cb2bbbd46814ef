import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor import machine
from compressor.artifact import Artifact, sha256, write_json
from compressor.bundles import seal
from compressor.cascade import reader
from compressor.data import Example
from compressor.errors import BundleError, RecipeError, UnfitError
from compressor.evaluation import evaluate
from compressor.publish import publish
from compressor.runtime import CHARACTERS, Runtime
from compressor.session import WORTH_A_RUN, Graph, batches_of, run_all
from compressor.tokens import Tokens
from tests.conftest import compress, sentences


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built / "artifacts/dist/tiny", tmp_path / "bundle"))


TEXTS = [text for text, _ in sentences(30, 7)]


def test_the_runtime_imports_neither_torch_nor_transformers(bundle: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['onnx'] = sys.modules['pydantic'] = None\n"
        "from compressor.runtime import Runtime\n"
        f"print(Runtime({str(bundle)!r}).predict(['a good film'])[0].label)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("negative", "positive")


@pytest.mark.parametrize("point", ["full", "fast", "min"])
def test_a_prediction_does_not_depend_on_its_batch(bundle: Path, point: str) -> None:
    runtime = Runtime(bundle, threads=2)
    together = runtime.predict(TEXTS, point)
    assert [runtime.predict([text], point)[0] for text in TEXTS] == together
    assert runtime.predict(TEXTS[::-1], point)[::-1] == together


def test_one_text_has_all_threads_and_texts_beside_each_other_one_each(built: Path) -> None:
    path = next(built.glob("artifacts/quantize-*/model.onnx"))
    graph = Graph(path, threads=2, single=True)
    alone = Graph(path, threads=1, single=True)
    assert graph.session.get_session_options().intra_op_num_threads == 2
    texts = Tokens.joined(
        [Tokens(np.array([2, *range(5, 5 + n), 3], np.int32), np.zeros(n + 2, np.int8), np.array([0, n + 2])) for n in (3, 9, 6)]
    )
    np.testing.assert_array_equal(graph.logits(texts), alone.logits(texts))
    np.testing.assert_allclose(graph.logits(texts.of_text(1)), alone.logits(texts)[1:2], atol=1e-5)


def test_a_float_graph_is_batched_by_length_and_no_answer_depends_on_it(built: Path, bundle: Path) -> None:
    path = next(built.glob("artifacts/export-*")) / "model.onnx"
    graph = Graph(path, threads=1, single=False)
    runs: list[list[int]] = []
    run = graph._run
    graph._run = lambda opened, e, lengths: (runs.append(e.lengths.tolist()), run(opened, e, lengths))[1]  # type: ignore[method-assign]
    tokens = Runtime(bundle)._read([Example(t) for t, _ in sentences(400, 8)]).tokens
    together = graph.logits(tokens)
    assert [n for lengths in runs for n in lengths] == sorted(tokens.lengths.tolist())
    assert all(len(lengths) <= 32 and sum(n < max(lengths) for n in lengths) < WORTH_A_RUN for lengths in runs)
    assert any(len(set(lengths)) == 1 and len(lengths) > WORTH_A_RUN for lengths in runs)
    np.testing.assert_allclose(together, np.concatenate([graph.run(text) for text in tokens]), atol=1e-5)
    np.testing.assert_allclose(Graph(path, threads=2, single=False).logits(tokens), together, atol=1e-5)


def test_a_run_of_several_texts_has_a_bound_on_its_tokens_and_a_longer_text_one_of_its_own() -> None:
    lengths = [10] * 40 + [300, 600, 200]
    batches = list(batches_of(lengths, single=False, most=512))
    assert sorted(row for rows in batches for row in rows) == list(range(43))
    assert [[lengths[row] for row in rows] for rows in batches[-3:]] == [[200], [300], [600]]
    assert max(len(rows) for rows in batches) == 32


def test_answers_keep_the_order_of_the_texts_and_are_probabilities(bundle: Path) -> None:
    runtime = Runtime(bundle)
    answers = runtime.predict(TEXTS)
    assert len(answers) == len(TEXTS)
    for answer in answers:
        assert answer.score == max(answer.probabilities.values()) == answer.probabilities[answer.label]
        assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert runtime.predict([]) == []


def test_a_stream_of_any_length_is_answered_lazily(bundle: Path) -> None:
    def endless() -> object:
        while True:
            yield "a good film"

    stream = Runtime(bundle).stream(endless())  # type: ignore[arg-type]
    assert next(stream) == next(stream)


@pytest.mark.parametrize("kind", ["bundle", "float graph"])
def test_a_million_tokens_at_once_take_no_more_memory_than_a_tenth_of_them(kind: str, built: Path, bundle: Path) -> None:
    graph = next(built.glob("artifacts/export-*")) / "model.onnx"
    answer = {
        "bundle": f"from compressor.runtime import Runtime\nr = Runtime({str(bundle)!r})\n"
        "answer = lambda n: r.predict(['good film ' * 20] * n)\n",
        "float graph": f"from compressor.session import Graph\ng = Graph({str(graph)!r}, single=False)\n"
        "answer = lambda n: g.logits(Tokens(np.full(32 * n, 7, np.int32), np.zeros(32 * n, np.int8), np.arange(0, 32 * n + 1, 32)))\n",
    }[kind]
    script = (
        "import resource\nimport numpy as np\nfrom compressor.tokens import Tokens\n"
        f"{answer}"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "answer(3200); before = peak()\nfound = answer(32000)\nprint(len(found), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    answers, kilobytes = map(int, done.stdout.split())
    assert answers == 32000
    assert kilobytes < 50_000  # tokens and answers alone; a single run of them all would take gigabytes


def test_texts_of_any_size_and_script_are_answered(bundle: Path) -> None:
    assert len(Runtime(bundle).predict(["", "x" * 100_000, "good " * 20_000, "日本語 \U0001f600", "\n\t"])) == 5


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([("a film", "it was good")], "this bundle answers single texts, and this is a pair"),
        ([["a", "good", "film"]], "is neither a text nor a pair of texts; give a str, or a tuple of two"),
        ([None], "None is neither a text"),
        ([b"a film"], "is neither a text"),
        (["ab \ud800 cd"], "has half a character"),
        ("a good film", "is one text, not several; give a list of texts"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, message: str, bundle: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        Runtime(bundle).predict(texts)


def test_pairs_are_no_data_to_score_a_bundle_for_single_texts_on(bundle: Path) -> None:
    with pytest.raises(RecipeError, match="answers single texts, and this is a pair: give one text, and name no column --text-pair"):
        evaluate(Runtime(bundle), [Example("a film", "it was good", "positive")])


def test_long_texts_are_tokenized_few_at_a_time(bundle: Path) -> None:
    asked = list[int]()

    def long() -> Iterator[str]:
        for number in range(8):
            asked.append(number)
            yield "good " * (CHARACTERS // 8)  # 5/8 of what is read at once

    assert next(Runtime(bundle).stream(long())).label == "positive"
    assert asked == [0, 1]


def test_within_returns_the_most_accurate_point_that_is_fast_enough(bundle: Path) -> None:
    runtime = Runtime(bundle)
    slowest = max(p.latency_ms for p in runtime.points.values())
    best = runtime.within(latency_ms=slowest)
    assert best.score == max(p.score for p in runtime.points.values())
    assert runtime.predict(TEXTS[:2], best) == runtime.predict(TEXTS[:2], best.name)
    with pytest.raises(BundleError, match=r"no operating point within 1e-06 ms; the fastest is \w+ at"):
        runtime.within(latency_ms=1e-6)


def test_within_knows_all_that_a_search_found_worth_deploying(bundle: Path) -> None:
    runtime = Runtime(bundle)
    full = runtime.points["full"]
    assert full.lengths is not None
    half = tuple(max(1, n // 2) for n in full.lengths)
    runtime.manifest["front"] = [
        {"lengths": list(half), "score": 0.8, "latency_ms": full.latency_ms / 2},
        {"lengths": list(full.lengths), "score": 0.9, "latency_ms": full.latency_ms},
    ]
    found = runtime.within(full.latency_ms * 0.75)
    assert (found.name, found.lengths) == ("front", half)
    assert runtime.predict(TEXTS[:2], found)
    assert runtime.within(full.latency_ms * 2) == full


def test_an_unknown_point_is_refused_by_naming_the_known_ones(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no operating point 'slow'; this bundle has full, accurate, balanced, fast, knee, min"):
        Runtime(bundle).predict(["a"], point="slow")


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "report.html", "metrics.json"])
def test_a_changed_file_is_refused(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} does not match manifest.json \(sha256 .* ≠ .*\); copy the bundle again"):
        Runtime(bundle)


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer.json is missing"):
        Runtime(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_a_file_that_is_there_and_cannot_be_read_is_not_called_missing(name: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refused(path: Path, *how: Any, **more: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UnfitError, match=rf"{name} cannot be read \(Permission denied\)"):
        Runtime(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_what_this_environment_cannot_open_is_told_with_its_versions(name: str, bundle: Path) -> None:
    """As the file of a newer onnxruntime or tokenizers would be."""
    (bundle / name).write_bytes(b'{"version": "9.0"}')
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = sha256(bundle / name)
    write_json(bundle / "manifest.json", manifest | {"self": seal(manifest)})
    with pytest.raises(UnfitError, match=r"the bundle cannot be opened \(.*\): onnxruntime .* here, .* where it was built; tokenizers"):
        Runtime(bundle)
    done = compress("predict", str(bundle), "-", cwd=bundle.parent)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)


def test_a_bundle_opened_by_a_relative_path_is_found_from_elsewhere(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    runtime = Runtime(bundle.name, threads=2)
    first = runtime.predict(TEXTS[:1])
    monkeypatch.chdir("/")
    assert runtime.predict(TEXTS[:2])[:1] == first


def test_a_bundle_takes_no_more_threads_than_there_are_cores(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["target"]["threads"] = 8
    write_json(bundle / "manifest.json", manifest | {"self": seal(manifest)})
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert (Runtime(bundle).threads, Runtime(bundle, threads=3).threads) == (2, 3)


def test_an_edited_manifest_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["labels"].reverse()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="manifest.json was changed after the build"):
        Runtime(bundle)


@pytest.mark.parametrize(("key", "value"), [("format", 99), ("task", "image-classification"), ("task", ["text-classification"])])
def test_an_unknown_format_or_task_is_refused(bundle: Path, key: str, value: object) -> None:
    manifest = {**json.loads((bundle / "manifest.json").read_text()), key: value}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "self": seal(manifest)}))
    with pytest.raises(BundleError, match=f"{re.escape(str(value))}.* is unknown to this version"):
        Runtime(bundle)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\x00", "[" * 100_000])
def test_a_damaged_manifest_is_refused(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest.json is damaged"):
        Runtime(bundle)


def test_a_folder_whose_name_is_not_utf8_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="the name of this folder is not UTF-8"):
        Runtime(bundle.rename(bundle.parent / "\udcff"))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        Runtime(tmp_path)


def test_predict_and_eval_on_the_command_line_agree_with_the_runtime(built: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    done = compress("predict", str(bundle), "texts.txt", "--point", "fast", cwd=tmp_path)
    runtime = Runtime(bundle)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [a.label for a in runtime.predict(TEXTS, "fast")]
    scored = json.loads(compress("eval", str(bundle), "--data", str(built / "test.csv"), "--format", "json", cwd=tmp_path).stdout)
    metrics = json.loads((bundle / "metrics.json").read_text())
    assert scored["score"] == next(v["score"] for v in metrics["variants"] if v["name"] == "INT8 fast")
    assert scored["low"] <= scored["score"] <= scored["high"]


def test_what_is_opened_late_is_what_was_verified(bundle: Path) -> None:
    runtime = Runtime(bundle, threads=2)
    known = runtime.predict(TEXTS[:1])
    again = shutil.copytree(bundle, bundle.with_name("again"))
    shutil.rmtree(bundle)
    again.rename(bundle)  # as a build publishes over the last one
    with pytest.raises(BundleError, match=r"model.onnx has changed since it was opened; open the bundle again"):
        runtime.predict(TEXTS)
    assert runtime.predict(TEXTS[:1]) == known
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match=r"model.onnx has changed since it was opened; open the bundle again"):
        runtime.predict(TEXTS)


def test_outcomes_of_many_examples_are_those_of_some_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, examples = Runtime(bundle), [Example(text, label=label) for text, label in sentences(30, 7)]
    found, tokens = runtime.outcomes(examples, "min"), runtime.tokens(TEXTS)
    monkeypatch.setattr("compressor.runtime.CHUNK", 7)
    np.testing.assert_array_equal(runtime.outcomes(examples, "min"), found)
    for one, other in zip(runtime.tokens(TEXTS), tokens, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


def test_a_bundle_that_is_published_already_is_left_alone(built: Path, tmp_path: Path) -> None:
    made = Artifact(next(built.glob("artifacts/bundle-*")))
    place = publish(made, tmp_path, "tiny")
    before = (place / "model.onnx").stat().st_ino
    runtime = Runtime(place, threads=2)
    assert publish(made, tmp_path, "tiny") == place
    assert (place / "model.onnx").stat().st_ino == before
    assert len(runtime.predict(TEXTS)) == len(TEXTS)
    (place / "report.html").unlink()
    publish(made, tmp_path, "tiny")
    assert (place / "report.html").exists()
    (place / "tokenizer.json").write_text("{}", encoding="utf-8")
    publish(made, tmp_path, "tiny")
    assert Runtime(place).predict(TEXTS[:1])
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_an_encoder_that_is_published_already_is_left_alone(tmp_path: Path) -> None:
    """It has no manifest, as a bundle has."""
    made = Artifact(tmp_path / "encoder-1")
    (made.path / "bundle").mkdir(parents=True)
    write_json(made.path / "manifest.json", {"metrics": {"passed": True}})
    weights = made.path / "bundle/model.safetensors"
    for content, left in (("first", False), ("first", True), ("second", False)):
        weights.write_text(content, encoding="utf-8")
        there = tmp_path / "dist/mini/model.safetensors"
        before = there.stat().st_ino if there.exists() else None
        assert publish(made, tmp_path, "mini") == there.parent
        assert (there.read_text(encoding="utf-8"), there.stat().st_ino == before) == (content, left)


@pytest.mark.parametrize("passed", [True, False])
def test_a_bundle_that_a_kill_left_aside_comes_back(built: Path, tmp_path: Path, passed: bool) -> None:
    made = Artifact(Path(shutil.copytree(next(built.glob("artifacts/bundle-*")), tmp_path / "bundle-1")))
    place = publish(made, tmp_path, "tiny")
    place.rename(place.with_name(".tiny.last"))
    metrics = {**made.manifest["metrics"], "passed": passed}
    write_json(made.path / "manifest.json", {**made.manifest, "metrics": metrics})
    assert publish(Artifact(made.path), tmp_path, "tiny").parent.name == ("dist" if passed else "rejected")
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]
    assert Runtime(place).predict(TEXTS[:1])


def test_a_bundle_that_cannot_take_its_place_leaves_the_last_one(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, replace = Artifact(next(built.glob("artifacts/bundle-*"))), os.replace
    place = publish(made, tmp_path, "tiny")
    (place / "tokenizer.json").write_text("{}", encoding="utf-8")

    def fail(source: Path, target: Path) -> None:
        if source.name.endswith(".partial"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        replace(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UnfitError, match=r"tiny: .*quota"):
        publish(made, tmp_path, "tiny")
    assert (place / "tokenizer.json").read_text(encoding="utf-8") == "{}"


def test_a_server_that_ends_answers_what_was_asked(bundle: Path) -> None:
    """While its main thread has ended, Python starts no more threads for the others; what they ask is answered one after the other."""
    code = f"""
import threading
from compressor.runtime import Runtime
runtime = Runtime({str(bundle.absolute())!r}, threads=2)
def last():
    threading.main_thread().join()
    print(len(runtime.predict(["good film", "bad film", "great plot"] * 50)))
threading.Thread(target=last).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("150\n", "")


def test_a_long_text_keeps_no_other_waiting(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, begun, may_end = Runtime(bundle), Event(), Event()
    windows = runtime.task.windows

    def reads_long(tokenizer: Any, examples: Any, *how: Any) -> Any:
        if examples[0].text == "long":
            begun.set()
            assert may_end.wait(20)
        return windows(tokenizer, examples, *how)

    monkeypatch.setattr(runtime.task, "windows", reads_long)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(runtime.predict, ["long"])
        assert begun.wait(10)
        beside = pool.submit(runtime.predict, ["good film"])
        try:
            assert len(beside.result(10)) == 1
        finally:
            may_end.set()
        assert len(asked.result()) == 1


def test_who_interrupts_or_fails_does_not_wait_for_what_was_asked_beside() -> None:
    done = list[int]()

    def run(_: object, number: int) -> np.ndarray:
        if number == 198:
            raise ValueError("wrong")
        sleep(0.02)
        done.append(number)
        return np.zeros(1)

    graph: Any = SimpleNamespace(workers=2, session=None, beside=None)
    with pytest.raises(ValueError, match="wrong"):
        run_all(range(200), run, graph)
    assert len(done) < 20


def test_threads_below_none_are_refused(bundle: Path) -> None:
    with pytest.raises(RecipeError, match="threads is -1: give 1 or more"):
        Runtime(bundle, threads=-1)


def test_what_came_before_a_bad_text_of_a_stream_is_answered(bundle: Path) -> None:
    stream = Runtime(bundle).stream(["good film", "bad film", None])  # type: ignore[list-item]
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(RecipeError):
        next(stream)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "nncf"])
def test_what_runs_and_makes_graphs_sends_nothing_home(package: str, bundle: Path, tmp_path: Path) -> None:
    """Their telemetry is on by default: onnxruntime's leaves its queue in the home folder, OpenVINO's, which nncf has too, an id."""
    pytest.importorskip(package)
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    opened = f"Runtime({str(bundle.absolute())!r}, backend={package!r}).predict(['good'])" if package != "nncf" else "import nncf"
    told = "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    code = f"import sys; from compressor.runtime import Runtime; {opened}; {told}"
    home = tmp_path / "home"
    home.mkdir()
    asked = [sys.executable, "-c", code]
    done = subprocess.run(asked, env=environment | {"HOME": str(home)}, check=True, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n")
    assert not [path for path in home.rglob("*") if "intel" in path.parts or "onnxruntime" in str(path).lower()]


def test_a_link_that_leads_elsewhere_changes_no_open_bundle(bundle: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "current", tmp_path / "next"
    shutil.copytree(bundle, other)
    link.symlink_to(bundle.absolute())
    runtime, texts = Runtime(link, threads=2), ["good film", "bad film"]
    link.unlink()
    link.symlink_to(other)
    assert len(runtime.predict(texts)) == 2


def test_a_rebuild_while_a_bundle_opens_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader_after_a_rebuild(folder: Path, *given: Any) -> Any:
        os.utime(folder / "manifest.json")
        return reader(folder, *given)

    monkeypatch.setattr("compressor.runtime.reader", reader_after_a_rebuild)
    with pytest.raises(BundleError, match="has changed since it was opened; open the bundle again"):
        Runtime(bundle)


def test_a_manifest_that_names_what_lies_elsewhere_is_refused(bundle: Path, tmp_path: Path) -> None:
    for change, told in (
        ({"files": {"/dev/zero": "0" * 64}}, "'/dev/zero', which lies outside"),
        ({"files": {"../../etc/hostname": "0" * 64}}, "which lies outside of the bundle"),
        ({"cascade": {"members": [{"folder": "../other"}]}}, "'../other', which lies outside"),
        ({"files": {}}, "says nothing of model.onnx"),
    ):
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(bundle, copy)
        manifest = {**json.loads((copy / "manifest.json").read_text()), **change}
        (copy / "manifest.json").write_text(json.dumps({**manifest, "self": seal(manifest)}))
        with pytest.raises(BundleError, match=told):
            Runtime(copy)
