"""The contract of the command line: exit codes, what stdout and stderr carry, environment forms. Each command is a process of its own."""

import gzip
import json
import math
import os
import pty
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from filelock import FileLock
from typer.main import get_command

from compressor import __version__, builds
from compressor.cli import app
from compressor.commands.serving import _json
from compressor.errors import UnfitError
from compressor.housekeeping import entries
from compressor.lines import groups_of
from compressor.loader import load_recipe
from compressor.output import _number, show
from compressor.plan import check_training
from compressor.runtime import Runtime
from tests.conftest import RECIPE, command, compress, sentences

BUNDLE = "artifacts/dist/tiny"
STAGES = ["data", "finetune", "distill", "length_adapt", "export", "quantize", "search", "bundle"]
VARIANTS = ["teacher fp32", "student fp32", "INT8 full", "INT8 accurate", "INT8 balanced", "INT8 fast", "INT8 knee", "INT8 min"]
MISUSES = ["run tiny.yaml --unknown", "plan tiny.yaml --format yaml", f"predict {BUNDLE} --point a --latency-ms 3", "eval", "cache", ""]
READS = [
    "validate tiny.yaml",
    "plan tiny.yaml",
    f"eval {BUNDLE} --data test.csv",
    f"bench {BUNDLE} --shape 1x8 --rounds 1",
    "doctor",
    "cache ls",
    "cache gc --dry-run",
]
SLIVER = ("run", "tiny.yaml", "--profile", "smoke", "--until", "data", "--force", "data")
COLOR = re.compile(r"\x1b\[(?:\d+;)*[39]\dm")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test."""
    for name in list(os.environ):
        if name.startswith("COMPRESS_") or name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    """A copy of the whole build, with its artifacts, that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "project"))


def refusal(done: Done, exit_code: int) -> str:
    """What the one line says that the command left with; lines before it tell of a build's progress."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if re.match("error|bug", line)] == lines[-1:]
    assert done.stderr.endswith("\n")
    return lines[-1].removeprefix("error: ")


def answers(bundle: Path, texts: str, *options: str) -> list[str]:
    done = subprocess.run(command("predict", str(bundle), *options), input=texts, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """Everything that a command shows when stdout and stderr are a terminal."""
    shown, (ours, theirs) = b"", pty.openpty()
    with subprocess.Popen(command(*arguments), cwd=cwd, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with suppress(OSError):  # so Linux says that the other side has closed
            while chunk := os.read(ours, 65536):
                shown += chunk
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def leaves(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its name as it is typed."""
    for name, verb in group.commands.items():
        yield from leaves(verb, f"{path}{name} ") if hasattr(verb, "commands") else [(f"{path}{name}", verb)]


VERBS = dict(leaves(get_command(app)))


@pytest.mark.parametrize("line", MISUSES)
def test_a_command_that_cannot_be_understood_exits_2(line: str, built: Path) -> None:
    done = compress(*line.split(), cwd=built)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: compress " if " " in line or line == "eval" else "Usage: compress")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["run tiny.yaml --until", "run tiny.yaml --force", "plan tiny.yaml --force"])
def test_an_unknown_stage_exits_2_and_names_the_stages(line: str, built: Path) -> None:
    done = compress(*line.split(), "destill", cwd=built)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no stage 'destill'; those of this recipe are {', '.join(STAGES)}" in done.stderr


def test_a_stage_that_this_recipe_has_not_exits_2(built: Path) -> None:
    done = compress("run", "tiny.yaml", "--until", "cascade", cwd=built)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no stage 'cascade'; those of this recipe are data, finetune, " in done.stderr


@pytest.mark.parametrize("verb", ["validate", "plan", "run"])
def test_an_unknown_key_exits_3_and_names_its_place_and_the_nearest_key(verb: str, make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"distill:": "distil:"})
    said = refusal(compress(verb, "tiny.yaml", cwd=recipe.parent), 3)
    assert said == f"tiny.yaml:{RECIPE.splitlines().index('distill:') + 1}:1: unknown key distil; did you mean distill?"
    assert not (recipe.parent / "artifacts").exists()


def test_a_recipe_that_cannot_be_read_exits_3(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_bytes("name: café".encode("latin-1"))
    assert refusal(compress("validate", "tiny.yaml", cwd=tmp_path), 3).startswith("tiny.yaml: byte 9 is not UTF-8; ")
    assert refusal(compress("tinny.yaml", cwd=tmp_path), 3) == "tinny.yaml: no such recipe; did you mean tiny.yaml?"


def test_a_missing_data_file_exits_3_before_anything_runs(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"test: test.csv": "test: tests.csv"})
    done = compress("tiny.yaml", cwd=recipe.parent)
    assert refusal(done, 3).endswith("did you mean test.csv?")
    assert len(done.stderr.splitlines()) == 1


def test_data_sorted_by_many_labels_have_a_smoke_profile(make_recipe: Callable[..., Path]) -> None:
    folder = make_recipe(**{"test: test.csv": "test: test.csv, validation: more.csv"}).parent
    for name, each in (("train", 40), ("test", 3), ("more", 2)):
        rows = [f"{name} {number} of {label},label {label:03}" for label in range(60) for number in range(each)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    done = compress("tiny.yaml", "--profile", "smoke", "--until", "data", "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["metrics"]
    assert 40 <= told["labels"] < 60
    assert "have labels that train lacks: left out (data.unknown_labels)" in " ".join(done.stderr.split())
    assert 24 < told["examples"]["test"] < 48


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good,positive\nbad,odd\nfine,positive\n", "1 of 3 texts of validation have labels that train lacks: left out"),
        ("bad,odd\n", "data.validation: no text has labels that train knows; mend them, or add them to train"),
    ],
)
def test_labels_that_train_lacks_may_be_left_out(content: str, message: str, make_recipe: Callable[..., Path]) -> None:
    folder = make_recipe(**{"test: test.csv": "test: test.csv, validation: more.csv, unknown_labels: skip"}).parent
    (folder / "more.csv").write_text(f"text,label\n{content}", encoding="utf-8")
    done = compress("tiny.yaml", "--until", "data", "--format", "json", cwd=folder)
    assert message in " ".join(done.stderr.split())
    assert done.returncode == (3 if "no text" in message else 0)
    if not done.returncode:
        assert json.loads(done.stdout)["metrics"]["examples"]["validation"] == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("more.csv", "text,label\n", "more.csv: no examples; add rows, or name another file for validation"),
        ("more.csv", "text,label\ngood,positive\nbad,odd\n", "more.csv): example 2 has label 'odd', which train lacks; "),
        ("more.csv", "text,lable\ngood,positive\n", "row 1, the header, has no column 'label', only 'text', 'lable'; did you mean"),
        ("more.csv", "text,label\ngood,positive\nbad\n", "more.csv: row 3 has 1 column, the header 2; "),
        ("more.jsonl", '{"text": "good", "label": "positive"}\n{"text": "bad"}', "more.jsonl: row 2 has no column 'label', only 'text'; "),
        ("more.csv", "text,label\ncafé,positive\n", "more.csv: row 2: byte 0xe9 at offset 14 is not UTF-8; "),
    ],
)
def test_unusable_data_exits_3_and_names_the_row(file: str, content: str, message: str, make_recipe: Callable[..., Path]) -> None:
    folder = make_recipe().parent
    (folder / file).write_text(content, encoding="latin-1")
    done = compress("tiny.yaml", "--set", f"data.validation={file}", cwd=folder)
    assert message in refusal(done, 3)
    assert done.stdout == ""
    assert [entry.name for entry in (folder / "artifacts").iterdir() if entry.is_dir()] == []


def test_a_stage_that_fails_exits_4_and_leaves_no_bundle(make_recipe: Callable[..., Path]) -> None:
    recipe = make_recipe(**{"learning_rate: 3e-3": "learning_rate: 1e30"})
    done = compress("tiny.yaml", "--format", "json", cwd=recipe.parent)
    assert "the loss is" in refusal(done, 4)
    assert done.stdout == ""
    assert not (recipe.parent / BUNDLE).exists()


def test_a_broken_gate_exits_5_and_the_last_good_bundle_stays(project: Path) -> None:
    before = (project / BUNDLE / "manifest.json").read_bytes()
    done = compress("tiny.yaml", "--format", "json", "--set", "gates=[{metric: size, max: 1kB}]", cwd=project)
    assert refusal(done, 5).startswith("size of model.onnx is ")
    result = json.loads(done.stdout)
    assert (result["passed"], result["bundle"]) == (False, "artifacts/rejected/tiny")
    assert (project / "artifacts/rejected/tiny/model.onnx").exists()
    assert (project / BUNDLE / "manifest.json").read_bytes() == before


def test_an_artifacts_folder_that_cannot_be_made_exits_6(built: Path) -> None:
    done = compress("tiny.yaml", "--artifacts", "train.csv/artifacts", cwd=built)
    assert refusal(done, 6).startswith("train.csv/artifacts: Not a directory; ")
    looked = compress("doctor", "--artifacts", "train.csv", "--format", "json", cwd=built)
    assert looked.returncode == 6
    assert [check["name"] for check in json.loads(looked.stdout)["checks"] if check["status"] == "fail"] == ["artifacts"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"), reason="there is only one core, or no choosing")
def test_a_command_takes_as_many_cores_as_it_may_use(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a quota, which torch does not see."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one = {next(iter(os.sched_getaffinity(0)))}
    asked = command("doctor", "--format", "json")
    done = subprocess.run(asked, cwd=built, capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, one))
    told = {check["name"]: check["detail"] for check in json.loads(done.stdout)["checks"]}
    assert told["OMP_NUM_THREADS"] == "1 of 1 usable cores"


@pytest.mark.parametrize("line", ["tiny.yaml", "cache gc"])
def test_what_a_running_build_forbids_exits_6(line: str, project: Path) -> None:
    with FileLock(project / "artifacts/.tiny.lock"):
        done = compress(*line.split(), cwd=project)
    assert "build of tiny is running in artifacts; wait for it" in refusal(done, 6)


def test_a_bundle_that_was_changed_exits_7(project: Path) -> None:
    model = project / BUNDLE / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-5] ^= 1
    model.write_bytes(content)
    for line in (f"predict {BUNDLE} test.csv", f"eval {BUNDLE} --data test.csv"):
        done = compress(*line.split(), cwd=project)
        assert refusal(done, 7).startswith(f"{BUNDLE}: model.onnx does not match manifest.json (sha256 ")
        assert done.stdout == ""


def test_what_a_bundle_does_not_hold_exits_7(built: Path) -> None:
    assert refusal(compress("predict", ".", cwd=built), 7).startswith(".: no bundle here (manifest.json is missing); ")
    unknown = compress("predict", BUNDLE, "test.csv", "--point", "slow", cwd=built)
    assert refusal(unknown, 7) == "no operating point 'slow'; this bundle has full, accurate, balanced, fast, knee, min"
    assert "no operating point within 1e-06 ms; " in refusal(compress("predict", BUNDLE, "--latency-ms", "1e-6", cwd=built), 7)


def test_plan_exits_10_only_when_asked_and_only_with_work_to_do(built: Path) -> None:
    changed = ("plan", "tiny.yaml", "--set", "search.evaluations=9")
    assert compress("plan", "tiny.yaml", "--exit-code", cwd=built).returncode == 0
    assert compress(*changed, cwd=built).returncode == 0
    assert compress(*changed, "--exit-code", cwd=built).returncode == 10


def test_a_recipe_alone_is_built(project: Path) -> None:
    short, long = (compress(*verb, "tiny.yaml", "--format", "json", cwd=project) for verb in ([], ["run"]))
    assert (short.returncode, short.stdout) == (0, long.stdout)
    assert json.loads(short.stdout)["bundle"] == BUNDLE


@pytest.mark.parametrize("line", READS)
def test_with_json_stdout_is_one_document_and_stderr_is_silent(line: str, built: Path) -> None:
    done = compress(*line.split(), "--format", "json", cwd=built)
    assert (done.returncode, done.stderr) == (0, "")
    assert isinstance(json.loads(done.stdout), dict)


def test_with_json_a_build_tells_its_progress_on_stderr(project: Path) -> None:
    done = compress("tiny.yaml", "--format", "json", cwd=project)
    assert [v["name"] for v in json.loads(done.stdout)["variants"]] == VARIANTS
    assert re.findall(r"^\d/8 (\w+)  cached", done.stderr, re.MULTILINE) == STAGES
    part = compress(*SLIVER, "--format", "json", cwd=project)
    assert json.loads(part.stdout)["metrics"]["examples"]["test"] == 40
    assert "1/8 data  done in" in part.stderr


def test_a_build_ends_with_its_table_and_the_paths_of_bundle_and_report(project: Path) -> None:
    done = compress("tiny.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    *table, bundle, report = done.stdout.splitlines()[-11:]
    assert [re.split("  +", line)[0] for line in table] == ["variant", *VARIANTS]
    assert (bundle, report) == (f"bundle: {BUNDLE}", f"report: {BUNDLE}/report.html")
    assert (project / report.removeprefix("report: ")).is_file()


def test_without_a_terminal_lines_are_plain(project: Path) -> None:
    done = compress(*SLIVER, cwd=project)
    assert "warning: smoke profile" in done.stderr
    assert not re.search(r"[\x1b\r]", done.stdout + done.stderr)


def test_a_log_that_may_have_colours_has_no_bar_and_whole_tables(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = compress(*SLIVER, cwd=project)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\x1b\[\?25l|\r", done.stderr)
    rows = [{"path": f"/srv/{'long/' * 30}store"}]
    monkeypatch.delenv("COLUMNS", raising=False)
    show("text", {"stores": rows})
    assert rows[0]["path"] in capsys.readouterr().out


@pytest.mark.parametrize("closed", ["2>&-", ">&-"])
def test_a_command_goes_on_where_an_output_was_closed_before_it_began(closed: str, built: Path) -> None:
    line = shlex.join(command("validate", "tiny.yaml"))
    assert subprocess.run(f"{line} {closed}", shell=True, cwd=built, capture_output=True).returncode == 0


@pytest.mark.parametrize("arguments", [SLIVER, ("plan", "tiny.yaml")], ids=["run", "plan"])
def test_no_color_is_respected_on_a_terminal(arguments: tuple[str, ...], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colors = re.compile(r"\x1b\[1m") if "plan" in arguments else COLOR
    assert colors.search(on_a_terminal(*arguments, cwd=project))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colors.search(on_a_terminal(*arguments, cwd=project))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_an_output_that_cannot_be_written_exits_6(built: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("schema"), stdout=full, stderr=subprocess.PIPE, text=True, cwd=built)
    assert refusal(done, 6) == "output: No space left on device; mend the disk or its permissions and run again"


def _unread(place: str) -> IO[bytes]:
    """Return what cannot be written to: a full disk, or a pipe whose reader has gone."""
    if place != "a pipe":
        return Path(place).open("wb")
    ours, theirs = os.pipe()
    os.close(ours)
    return open(theirs, "wb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
@pytest.mark.parametrize("place", ["a pipe", "/dev/full"])
@pytest.mark.parametrize(("arguments", "exit_code"), [(("validate", "none.yaml"), 3), (SLIVER, 0)], ids=["an error", "progress"])
def test_a_command_keeps_its_exit_code_where_nobody_reads_what_it_tells(
    project: Path, place: str, arguments: tuple[str, ...], exit_code: int
) -> None:
    with _unread(place) as unread:
        done = subprocess.run(command(*arguments), stdout=subprocess.PIPE, stderr=unread, text=True, cwd=project)
    assert (done.returncode, bool(done.stdout)) == (exit_code, not exit_code)


def test_debug_shows_the_traceback_before_the_one_line(tmp_path: Path) -> None:
    done = compress("validate", "none.yaml", "--debug", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("error: none.yaml: no such recipe; ")


def test_the_version_is_told(tmp_path: Path) -> None:
    done = compress("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_an_environment_form_of_its_name(verb: str) -> None:
    options = {p.opts[0].removeprefix("--"): p.envvar for p in VERBS[verb].params if p.param_type_name == "option"}
    options.pop("help", None)
    assert options == {name: f"COMPRESS_{name.replace('-', '_').upper()}" for name in options}


def test_settings_of_the_environment_are_honoured(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "artifacts").rename(project / "elsewhere")
    changes = "search=null quantize=null default_point=null"
    settings = {"FORMAT": "json", "ARTIFACTS": "elsewhere", "SET": changes, "EXIT_CODE": "1", "FORCE": "export"}
    for name, value in settings.items():
        monkeypatch.setenv(f"COMPRESS_{name}", value)
    done = compress("plan", "tiny.yaml", cwd=project)
    assert done.returncode == 10, done.stderr
    reasons = {row["stage"]: row["reason"] for row in json.loads(done.stdout)["stages"]}
    assert reasons == dict.fromkeys(STAGES[:4], "cached") | {"export": "forced", "bundle": "export runs before it"}


def test_the_command_line_wins_over_the_environment(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_FORMAT", "json")
    assert compress("validate", "tiny.yaml", "--format", "text", cwd=built).stdout.startswith("recipe: tiny.yaml\n")


@pytest.mark.parametrize("arguments", ["--help", "validate tiny.yaml", "plan tiny.yaml", "schema", "init first.yaml"])
def test_a_quick_verb_imports_nothing_heavy(arguments: str, project: Path) -> None:
    heavy = ["torch", "transformers", "onnxruntime", "sklearn", "datasets"]
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy})); from compressor.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments.split()], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_what_init_writes_is_valid_once_its_data_and_model_are_there(tmp_path: Path, tiny_model: Path) -> None:
    asked = ("init", "first.yaml", "--model", str(tiny_model), "--student-layers", "2", "--teacher-layers", "3")
    assert compress(*asked, cwd=tmp_path).stdout.splitlines()[-1] == "next: compress validate first.yaml"
    assert "train.csv: not found" in refusal(compress("validate", "first.yaml", cwd=tmp_path), 3)
    (tmp_path / "train.csv").write_text("text,label\ngood,positive\n")
    assert compress("validate", "first.yaml", cwd=tmp_path).returncode == 0
    assert "first.yaml exists and is not overwritten" in refusal(compress(*asked, cwd=tmp_path), 3)


def test_predict_answers_each_line_in_order_from_a_file_and_from_stdin(built: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in sentences(20, seed=3)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    forward = compress("predict", str(built / BUNDLE), "texts.txt", cwd=tmp_path).stdout.splitlines()
    assert forward == answers(built / BUNDLE, "\n".join(reversed(texts)) + "\n")[::-1]
    assert {line.split("\t")[0] for line in forward} == {"negative", "positive"}
    assert all(re.fullmatch(r"\w+\t[01]\.\d{4}", line) for line in forward)
    assert len(forward) == 20


def test_predict_answers_in_json_lines_and_takes_no_tab_for_a_second_text(built: Path) -> None:
    told = [json.loads(line) for line in answers(built / BUNDLE, "a film\tquite good\na film quite bad\n", "--format", "json")]
    known = Runtime(built / BUNDLE).predict(["a film\tquite good", "a film quite bad"])
    assert told == [{"label": a.label, "score": a.score, "probabilities": dict(a.probabilities)} for a in known]
    assert told[0] != told[1]


def test_who_writes_a_line_and_waits_gets_its_answer(built: Path) -> None:
    known = answers(built / BUNDLE, "a good film\na dull plot\nit was good\n")
    with subprocess.Popen(command("predict", str(built / BUNDLE)), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for line, expected in zip((b"a good film\n", b"a dull plot\n"), known, strict=False):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().decode().rstrip("\n") == expected
        process.stdin.write(b"it was good")  # no line's end
        process.stdin.close()
        assert process.stdout.read().decode().splitlines() == known[2:]


def test_letters_that_a_read_cuts_are_whole_in_their_line(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, "\ufeffété\r\nçà et là\n\nnaïf".encode())
    os.close(theirs)
    monkeypatch.setattr("compressor.lines.BLOCK", 1)
    monkeypatch.setattr("compressor.lines.AT_ONCE", 1)
    with open(ours, encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stdin", pipe)
        assert [line for group in groups_of(None) for line in group] == ["été", "çà et là", "", "naïf"]


def test_lines_before_one_that_is_no_text_are_answered(built: Path, tmp_path: Path) -> None:
    wrong, wanted = b"good\nbad\n\xff\ndull\n", answers(built / BUNDLE, "good\nbad\n")
    (tmp_path / "texts.txt").write_bytes(wrong)
    for path, name in ((["-"], b"stdin"), ([], b"stdin"), (["texts.txt"], b"texts.txt")):
        done = subprocess.run(command("predict", str(built / BUNDLE), *path), input=wrong, capture_output=True, cwd=tmp_path)
        assert (done.returncode, done.stdout.decode().splitlines()) == (3, wanted)
        assert name + b": row 3: byte 0xff at offset 9 is not UTF-8; convert the file: iconv -f latin1 -t utf-8" in done.stderr


def test_who_writes_into_a_named_pipe_and_waits_gets_an_answer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "asked")
    ours = os.open(tmp_path / "asked", os.O_RDWR)  # so that nobody waits for the other to open it
    os.write(ours, b"a good film\na du")
    groups = groups_of(tmp_path / "asked")
    assert list(next(groups)) == ["a good film"]
    os.write(ours, b"ll plot\n")
    assert list(next(groups)) == ["a dull plot"]
    os.close(ours)
    assert list(groups) == []


def test_what_is_typed_on_a_terminal_ends_with_its_first_end_of_file(built: Path) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"a good film\n\x04")
    done = subprocess.run(command("predict", str(built / BUNDLE)), stdin=theirs, capture_output=True, timeout=60)
    os.close(ours)
    os.close(theirs)
    assert done.stdout.decode().splitlines() == answers(built / BUNDLE, "a good film\n")


def test_predict_reads_gzip_and_names_what_is_none(built: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress(b"a good film\na dull plot\n"))
    done = compress("predict", str(built / BUNDLE), "texts.txt.gz", cwd=tmp_path)
    assert done.stdout.splitlines() == answers(built / BUNDLE, "a good film\na dull plot\n")
    (tmp_path / "texts.txt.gz").write_text("a good film\n")
    assert "texts.txt.gz: damaged gzip" in refusal(compress("predict", str(built / BUNDLE), "texts.txt.gz", cwd=tmp_path), 3)


@pytest.mark.parametrize(
    ("package", "change"),
    [
        ("transformers", None),
        ("scipy", None),
        ("deap", None),
        ("peft", "teacher.finetune.method=lora"),
        ("onnxscript", "export={exporter: dynamo, opset: 18}"),
    ],
)
def test_a_build_without_a_package_that_it_imports_is_told_which_extra(
    built: Path, monkeypatch: pytest.MonkeyPatch, package: str, change: str | None
) -> None:
    usual, recipe = (load_recipe(built / "tiny.yaml", changes) for changes in ([], [change] if change else []))
    check_training(recipe)
    monkeypatch.setattr("compressor.machine.installed", lambda name: name != package)
    with pytest.raises(UnfitError, match=rf"needs {package} of the \[train\] extra: pip install 'encoder-compressor"):
        check_training(recipe)
    if change:
        check_training(usual)


def test_a_build_with_packages_that_are_too_old_is_told(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(built / "tiny.yaml")
    for version, old in {"4.57.1": True, "5.0.0rc1": False, "unknown": False}.items():
        monkeypatch.setattr("compressor.machine.versions", lambda *_, version=version: {"transformers": version})
        with pytest.raises(UnfitError, match="needs transformers 5 or newer, here is 4.57.1") if old else nullcontext():
            check_training(recipe)
    monkeypatch.setattr("compressor.machine.versions", lambda *_: {"transformers": "5.0.0", "torch": "2.5.1+cpu"})
    with pytest.raises(UnfitError, match=r"needs torch 2\.6 or newer, here is 2\.5\.1"):
        check_training(recipe)


def test_a_table_is_whole_where_no_terminal_tells_how_wide_it_may_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"path": f"/srv/{'long/' * 30}store-{number}", "what": "named by a recipe " * 5} for number in range(2)]
    monkeypatch.delenv("COLUMNS", raising=False)
    show("text", {"stores": rows})
    lines = capsys.readouterr().out.splitlines()[1:]
    assert all(row["path"] in line and row["what"] in line for row, line in zip(rows, lines, strict=True))
    monkeypatch.setenv("COLUMNS", "60")
    show("text", {"stores": rows})
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 60
    assert "…" not in told


def test_small_numbers_keep_their_digits() -> None:
    assert [_number(value) for value in (-0.0046, 0.0, 0.05, 0.5, 12.34)] == ["-0.0046", "0.00", "0.05", "0.50", "12.3"]


def test_json_has_no_word_for_what_is_no_number() -> None:
    told = _json({"score": math.nan, "probabilities": {"a": math.inf, "b": 0.5}, "spans": [{"score": -math.inf}], "count": 2})
    assert json.loads(told) == {"score": None, "probabilities": {"a": None, "b": 0.5}, "spans": [{"score": None}], "count": 2}


def test_predict_is_not_misled_by_byte_order_marks_and_carriage_returns(built: Path) -> None:
    plain = answers(built / BUNDLE, "good\ndull plot\n", "--format", "json")
    assert answers(built / BUNDLE, "\ufeffgood\r\ndull\rplot", "--format", "json") == plain


def test_predict_refuses_texts_that_it_cannot_read(built: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("café".encode("latin-1"))
    for name, message in {"texts.txt": "is not UTF-8; convert", ".": "Is a directory; ", "none.txt": "No such file or directory; "}.items():
        assert message in refusal(compress("predict", str(built / BUNDLE), name, cwd=tmp_path), 3)
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command("predict", str(built / BUNDLE))]
    assert refusal(subprocess.run(closed, capture_output=True, text=True), 3) == "stdin is closed; name a file with one text a line"


def test_predict_ends_in_silence_when_its_reader_leaves(built: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("good film\n" * 2000)  # their answers are more than a pipe holds
    arguments = command("predict", str(built / BUNDLE), str(tmp_path / "texts.txt"), "--format", "json")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["label"] == "positive"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + 13


def test_eval_prints_the_score_with_its_interval(built: Path) -> None:
    told = dict(line.split(": ") for line in compress("eval", BUNDLE, "--data", "test.csv", cwd=built).stdout.splitlines())
    assert list(told) == ["metric", "score", "low", "high", "examples", "point"]
    assert 0 <= float(told["low"]) <= float(told["score"]) <= float(told["high"]) <= 1
    assert (told["examples"], told["point"]) == ("40", "fast")


def test_eval_names_the_example_whose_label_is_unknown(built: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("text,label\ngood,positive\nbad,odd\n")
    done = compress("eval", str(built / BUNDLE), "--data", "odd.csv", cwd=tmp_path)
    assert refusal(done, 3) == "example 2 has label 'odd'; this bundle answers negative, positive; mend the label, or name data with these"


def test_cache_ls_lists_every_stage(built: Path) -> None:
    rows = json.loads(compress("cache", "ls", "--format", "json", cwd=built).stdout)["artifacts"]
    assert {row["stage"]: row["status"] for row in rows} == dict.fromkeys(STAGES, "in use")


def test_cache_gc_removes_what_no_last_build_was_made_from(project: Path) -> None:
    artifacts = project / "artifacts"
    for stage in ("export", "bundle"):
        shutil.copytree(next(artifacts.glob(f"{stage}-*")), artifacts / f"{stage}-000000000000")
    (artifacts / ".finetune-000000000000" / ".state").mkdir(parents=True)
    (artifacts / "store-000000000000").mkdir()
    (artifacts / "data-raw").mkdir()
    gone = {f"artifacts/{name}-000000000000" for name in (".finetune", "export", "bundle", "store")}
    before = sorted(artifacts.rglob("*"))
    looked = json.loads(compress("cache", "gc", "--dry-run", "--format", "json", cwd=project).stdout)
    assert (set(looked["removed"]), looked["dry_run"]) == (gone, True)
    assert sorted(artifacts.rglob("*")) == before
    removed = json.loads(compress("cache", "gc", "--format", "json", cwd=project).stdout)
    assert (set(removed["removed"]), removed["dry_run"]) == (gone, False)
    assert not any((project / name).exists() for name in gone)
    assert (artifacts / "data-raw").exists()
    assert compress("plan", "tiny.yaml", "--exit-code", cwd=project).returncode == 0


def test_cache_gc_keeps_the_newest_bundles_of_recipes_whose_record_is_gone(project: Path) -> None:
    artifacts = project / "artifacts"
    old = shutil.copytree(next(artifacts.glob("bundle-*")), artifacts / "bundle-000000000000")
    os.utime(old, (0, 0))
    (artifacts / ".tiny.build").unlink()
    for again in (b"", b"[]", b'{"used": null, "begun": 3, "since": "x"}', b"\xff\xfe"):
        removed = json.loads(compress("cache", "gc", "--dry-run", "--format", "json", cwd=project).stdout)["removed"]
        assert removed == ["artifacts/bundle-000000000000"]
        (artifacts / ".tiny.build").write_bytes(again)  # cut off, or edited
    builds.begin(artifacts, "tiny", "distill-000000000000", made=True)
    removed = json.loads(compress("cache", "gc", "--format", "json", cwd=project).stdout)["removed"]
    assert removed == ["artifacts/bundle-000000000000"]
    assert compress("plan", "tiny.yaml", "--exit-code", cwd=project).returncode == 0


def test_cache_gc_keeps_a_stage_that_ran_again_to_equal_bytes(project: Path) -> None:
    artifacts = project / "artifacts"
    trained = next(artifacts.glob("distill-*"))
    again = Path(shutil.move(trained, artifacts / "distill-000000000000"))  # by code that was changed, say: the bundle names the first one
    record = artifacts / ".tiny.build"
    record.write_text(record.read_text(encoding="utf-8").replace(trained.name, again.name), encoding="utf-8")
    assert json.loads(compress("cache", "gc", "--format", "json", cwd=project).stdout)["removed"] == []


def test_cache_gc_holds_few_locks_and_clears_those_of_what_is_gone(project: Path) -> None:
    artifacts = project / "artifacts"
    left = [artifacts / f".distill-{number:012}.lock" for number in range(300)]
    for path in left:
        path.touch()
    kept = [path for path in artifacts.glob(".*.lock") if path not in left]
    few = (resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    done = subprocess.run(command("cache", "gc"), cwd=project, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(*few))
    assert done.returncode == 0, done.stderr
    assert sorted(artifacts.glob(".*.lock")) == sorted(kept)


def test_cache_gc_leaves_what_a_stage_that_is_made_again_goes_on_from(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = project / "artifacts"
    made = next(artifacts.glob("distill-*")).name
    builds.begin(artifacts, "tiny", made, made=False)  # as a build that finds it
    assert not builds.read(artifacts / ".tiny.build").begun
    builds.begin(artifacts, "tiny", made, made=True)  # as one that is told to make it again
    (artifacts / f".{made}" / ".state").mkdir(parents=True)
    (artifacts / "store-000000000000").mkdir()
    monkeypatch.setattr("time.time", lambda: os.stat(artifacts / "store-000000000000").st_mtime + 1000)
    builds.begin(artifacts, "tiny", "data-000000000000", made=True)  # and then begins something else
    assert [entry for entry in entries(artifacts) if entry.status == "old"] == []
    (artifacts / "store-000000000000").rmdir()
    shutil.rmtree(artifacts / f".{made}")


def test_cache_gc_leaves_what_an_interrupted_build_goes_on_from_whatever_ended_since(project: Path) -> None:
    artifacts = project / "artifacts"
    done = compress("tiny.yaml", "--set", "name=other", "--set", "distill.epochs=2", "--until", "finetune", cwd=project)
    assert done.returncode == 0, done.stderr
    record = artifacts / ".other.build"
    begun = json.loads(record.read_text(encoding="utf-8"))["begun"]
    assert [name.rpartition("-")[0] for name in begun] == ["data", "finetune"]
    left, other = artifacts / ".distill-000000000000", artifacts / ".distill-000000000001"
    for state in (left, other):
        (state / ".state").mkdir(parents=True)
    builds.begin(artifacts, "other", left.name[1:], made=True)
    (artifacts / "store-000000000000").mkdir()  # which that stage fills, and says so when it ends
    assert compress("tiny.yaml", "--force", "bundle", cwd=project).returncode == 0
    removed = json.loads(compress("cache", "gc", "--format", "json", cwd=project).stdout)["removed"]
    assert removed == [f"artifacts/{other.name}"]
    rows = json.loads(compress("cache", "ls", "--format", "json", cwd=project).stdout)["artifacts"]
    assert {row["artifact"]: row["status"] for row in rows}[left.name] == "unfinished"
    removed = json.loads(compress("cache", "gc", "--unfinished", "--format", "json", cwd=project).stdout)["removed"]
    assert removed == [f"artifacts/{left.name}", "artifacts/store-000000000000"]
    assert json.loads(record.read_text(encoding="utf-8"))["begun"] == []
    assert compress("plan", "tiny.yaml", "--exit-code", cwd=project).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("predict",), "error: compress predict: Missing argument 'bundle'; 'compress predict --help' tells what it takes"),
        (("run", "--nope"), "error: compress run: No such option: --nope"),
        (("runn", "x"), "error: compress: there is no command 'runn', but 'run'; a recipe is a .yaml file"),
        (("doctor", "--format", "no"), "error: compress doctor: Invalid value for '--format'"),
    ],
)
def test_a_command_that_cannot_be_is_told_in_one_line(arguments: tuple[str, ...], line: str, tmp_path: Path) -> None:
    done = compress(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_warning_is_one_line() -> None:
    warn = "cli.interrupts.install = lambda: cli.warnings.warn('the disk is full', RuntimeWarning)"
    code = f"from compressor import cli; {warn}; cli.sys.argv = ['compress', '--version']; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "warning: the disk is full\n")
