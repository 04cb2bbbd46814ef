"""The command line: one function a verb. stdout carries the result, stderr everything else."""

import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from compressor import __version__, interrupts
from compressor.errors import CompressorError, GateError, RecipeError, UnfitError
from compressor.output import Format, show
from compressor.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compile BERT-class encoders into small, fast, measured INT8 bundles for CPUs. `compress recipe.yaml` builds.",
)
cache = typer.Typer(no_args_is_help=True, help="What lies in the artifacts folder, and what may go.")
app.add_typer(cache, name="cache")

RecipePath = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
BundlePath = Annotated[Path, typer.Argument(help="A bundle: a folder that `compress run` wrote.", show_default=False)]
Changes = Annotated[
    list[str],
    typer.Option("--set", envvar="COMPRESS_SET", help="Change a key: section.key=value. Repeatable; in the environment, split at spaces."),
]
Artifacts = Annotated[Path, typer.Option("--artifacts", envvar="COMPRESS_ARTIFACTS", help="Folder of stage artifacts and bundles.")]
OutputFormat = Annotated[Format, typer.Option("--format", envvar="COMPRESS_FORMAT", help="text, or json for programs.")]
Profile = Annotated[
    Literal["full", "smoke"], typer.Option("--profile", envvar="COMPRESS_PROFILE", help="smoke: the same stages on a sliver of data.")
]
Force = Annotated[list[str], typer.Option("--force", envvar="COMPRESS_FORCE", help="Run this stage though it is cached. Repeatable.")]
Threads = Annotated[int | None, typer.Option("--threads", envvar="COMPRESS_THREADS", min=1, help="Threads (default: the bundle's target).")]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", envvar="COMPRESS_STORE", help="Keep what the first layers make of each text here (export.halves).")
]
BackendName = Annotated[
    Literal["onnxruntime", "openvino"] | None,
    typer.Option("--backend", envvar="COMPRESS_BACKEND", help="What runs the graph (default: what it was built for)."),
]
Point = Annotated[str | None, typer.Option("--point", envvar="COMPRESS_POINT", help="Operating point (default: the bundle's own).")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", envvar="COMPRESS_WORKERS", min=1, help="Texts that the search scores beside each other; absent: one a core."),
]
Until = Annotated[str | None, typer.Option("--until", envvar="COMPRESS_UNTIL", help="Stop after this stage.")]
LatencyBudget = Annotated[
    float | None, typer.Option("--latency-ms", envvar="COMPRESS_LATENCY_MS", help="The most accurate point within this.")
]
Policy = Annotated[
    str | None, typer.Option("--policy", envvar="COMPRESS_POLICY", help="cascade: easy texts stop at a cheap member, hard ones go on.")
]
Thresholds = Annotated[
    list[float],
    typer.Option("--threshold", envvar="COMPRESS_THRESHOLD", help="Of each member but the last, in place of the cascade's. Repeatable."),
]
Models = Annotated[list[Path], typer.Argument(help="Folders of bundles, or .onnx files.", show_default=False)]
Texts = Annotated[Path | None, typer.Argument(help="One text a line; stdin when absent.", show_default=False)]
Labelled = Annotated[str, typer.Option("--data", envvar="COMPRESS_DATA", help="Labelled examples: csv, tsv, jsonl, parquet.")]
TaskName = Annotated[str, typer.Option("--task", envvar="COMPRESS_TASK", help="What the model answers, as in task.type of a recipe.")]
PairColumn = Annotated[str | None, typer.Option("--text-pair", envvar="COMPRESS_TEXT_PAIR", help="Column of the second text.")]
UsualText = Annotated[str | None, typer.Option("--text", envvar="COMPRESS_TEXT", help="Column of the text; absent: the task's usual one.")]
UsualLabel = Annotated[
    str | None, typer.Option("--label", envvar="COMPRESS_LABEL", help="Column of what is known; absent: the task's usual one.")
]
TeacherModel = Annotated[str, typer.Option("--model", envvar="COMPRESS_MODEL", help="The teacher: folder, package:NAME/FOLDER or Hub id.")]
TrainData = Annotated[
    str, typer.Option("--train", envvar="COMPRESS_TRAIN", help="Labelled examples: csv, tsv, jsonl, parquet, Hub data set id.")
]
ARTIFACTS = Path("artifacts")
BROKEN_PIPE = 128 + 13
"""Exit code of what SIGPIPE ends, as shells tell it; not 0, because gates may not have been judged yet."""
USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def main() -> None:
    """Run the command line; `compress recipe.yaml` means `compress run recipe.yaml`."""
    debug = "--debug" in sys.argv[1:]
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    verbs = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback} | {"cache"}
    meant = list[str]()
    if arguments and arguments[0] not in verbs and not arguments[0].startswith("-"):
        meant = [] if Path(arguments[0]).suffix or Path(arguments[0]).exists() else get_close_matches(arguments[0], verbs, 1)
        arguments.insert(0, "run")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    interrupts.install()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks Linux for large pages: a tenth of the page faults
    with _exits(debug):
        if meant:
            raise USAGE(f"there is no command {arguments[1]!r}, but {meant[0]!r}; a recipe is a .yaml file")
        sys.exit(app(args=arguments, prog_name="compress", standalone_mode=False))


@contextmanager
def _exits(debug: bool) -> Iterator[None]:
    """Turn what can end a command into one line and the documented exit code."""
    stdout = sys.stdout
    err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)  # emoji: recipe.yaml:100:1 holds :100:
    try:
        yield
    except CompressorError as error:
        if debug:
            traceback.print_exc()
        err.print(f"error: {error}")
        sys.exit(error.exit_code)
    except interrupts.Interrupted as stop:
        err.print(f"{stop}; the same command goes on from here")
        sys.exit(stop.exit_code)
    except SystemExit as leaving:
        # typer replaces stdout when its reader has gone (`compress … | head`), and leaves with 1, our code for a bug.
        sys.exit(leaving.code if sys.stdout is stdout else BROKEN_PIPE)
    except USAGE as error:
        told, where = error.format_message().rstrip("."), error.ctx.command_path if error.ctx else "compress"
        err.print(told if told.startswith("Usage:") else f"error: {where}: {told}; '{where} --help' tells what it takes")
        sys.exit(error.exit_code)
    except OSError as error:
        if debug:
            traceback.print_exc()
        err.print(f"error: {error.filename or 'output'}: {error.strerror or error}; mend the disk or its permissions and run again")
        sys.exit(UnfitError.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        err.print(f"bug: {type(error).__name__}: {' '.join(str(error).split())[:300]}; run again with --debug and report what it prints")
        sys.exit(1)


def _recipe(path: Path, changes: Sequence[str], profile: str) -> Any:
    from compressor.loader import load_recipe
    from compressor.plan import check_extras, check_sources

    recipe = load_recipe(path, changes)
    check_sources(recipe)  # now, and not after hours of the stages before the one that reads it
    check_extras(recipe)
    return recipe.smoke() if profile == "smoke" else recipe


@app.command()
def run(
    recipe: RecipePath,
    set_: Changes = [],
    artifacts: Artifacts = ARTIFACTS,
    until: Until = None,
    force: Force = [],
    profile: Profile = "full",
    workers: Workers = None,
    format: OutputFormat = "text",
) -> None:
    """Build what is out of date, measure, judge by the gates, and write the bundle."""
    from compressor import pipeline
    from compressor.publish import publish

    chosen, log = _recipe(recipe, set_, profile), Progress()
    chosen._workers = workers or os.cpu_count() or 1
    _known_stages([*force, *([until] if until else [])])
    if profile == "smoke":
        log.warn("smoke profile: a sliver of data, and no gate is judged; its figures mean nothing")
    artifact = pipeline.run(chosen, artifacts, log, until=until, force=force)
    if artifact.manifest["stage"] not in pipeline.LAST:
        show(format, {"artifact": str(artifact.path), "metrics": dict(artifact.metrics)})
        return
    place = publish(artifact, artifacts, chosen.name)
    if artifact.manifest["stage"] == "encoder":
        show(format, {"encoder": str(place), "metrics": dict(artifact.metrics)})
        return
    last = {"variants": artifact.metrics["variants"], "bundle": str(place), "report": str(place / "report.html")}
    show(format, {key: value for key, value in artifact.metrics.items() if key not in (*last, "seconds")} | last)
    broken = [g for g in artifact.metrics["gates"] if not g["passed"]]
    if broken:
        told = "; ".join(f"{g['gate']} is {g['value']}, must be {g['limit']}" for g in broken)
        raise GateError(f"{told}. The bundle is in {place}; loosen the gate or improve the recipe")


def _known_stages(names: Sequence[str]) -> None:
    from compressor.pipeline import STAGES

    known = [s.name for s in STAGES]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"no stage {name!r}; the stages are {', '.join(known)}")


@app.command()
def validate(recipe: RecipePath, set_: Changes = [], format: OutputFormat = "text") -> None:
    """Check a recipe: keys, values, and that the files it names are there."""
    chosen = _recipe(recipe, set_, "full")
    show(format, {"recipe": str(recipe), "name": chosen.name, "valid": True})


@app.command()
def plan(
    recipe: RecipePath,
    set_: Changes = [],
    artifacts: Artifacts = ARTIFACTS,
    force: Force = [],
    profile: Profile = "full",
    format: OutputFormat = "text",
    exit_code: Annotated[bool, typer.Option("--exit-code", envvar="COMPRESS_EXIT_CODE", help="Exit 10 when a stage would run.")] = False,
) -> None:
    """Show each stage: cached, or why it would run, and how long it took last time; and which methods suit."""
    from compressor import pipeline
    from compressor.advice import advise

    _known_stages(force)
    chosen = _recipe(recipe, set_, profile)
    rows = pipeline.plan(chosen, artifacts, force)
    stages = [{"stage": r.stage.name, "cached": r.cached, "reason": r.reason, "seconds_last_time": r.seconds} for r in rows]
    show(format, {"stages": stages, "advice": advise(chosen)})
    if exit_code and not all(r.cached for r in rows):
        raise typer.Exit(10)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    name: Annotated[str, typer.Option("--name", envvar="COMPRESS_NAME", help="Name of the bundle.")] = "my-model",
    model: TeacherModel = "google-bert/bert-base-uncased",
    train: TrainData = "train.csv",
    task: TaskName = "text-classification",
    text: UsualText = None,
    label: UsualLabel = None,
    student_layers: Annotated[
        int, typer.Option("--student-layers", envvar="COMPRESS_STUDENT_LAYERS", min=1, help="Layers of the student.")
    ] = 3,
    teacher_layers: Annotated[
        int, typer.Option("--teacher-layers", envvar="COMPRESS_TEACHER_LAYERS", min=1, help="Layers of the teacher.")
    ] = 12,
    threads: Annotated[int, typer.Option("--threads", envvar="COMPRESS_THREADS", min=1, help="Threads of one inference.")] = 1,
) -> None:
    """Write a commented recipe to start from."""
    from compressor.init import write_recipe

    write_recipe(
        path,
        name=name,
        model=model,
        train=train,
        task=task,
        text=text,
        label=label,
        student_layers=student_layers,
        threads=threads,
        teacher_layers=teacher_layers,
    )
    show("text", {"recipe": str(path), "next": f"compress validate {path}"})


@app.command()
def predict(
    bundle: BundlePath,
    texts: Texts = None,
    point: Point = None,
    latency_ms: LatencyBudget = None,
    policy: Policy = None,
    threshold: Thresholds = [],
    threads: Threads = None,
    store: StoreFolder = None,
    backend: BackendName = None,
    format: OutputFormat = "text",
) -> None:
    """Answer each line (a pair, or a question and its context: with a tab between), one answer a line; a cascade tells who answered too."""
    from compressor.runtime import Runtime

    if sum(x is not None for x in (point, latency_ms, policy)) > 1:
        raise typer.BadParameter("give one of --point, --latency-ms and --policy")
    _only_with_policy(policy, threshold)
    runtime = Runtime(bundle, threads, store, backend=backend)
    given = map(runtime.given, _lines(texts))
    if policy:
        for routed in runtime.trace(given, policy, threshold or None):
            told = {**asdict(routed.answer), "member": routed.member, "confidence": routed.confidence}
            line = f"{routed.answer.line()}\t{routed.member} {routed.confidence:.4f}"
            typer.echo(json.dumps(told, ensure_ascii=False) if format == "json" else line)
        return
    for answer in runtime.stream(given, point if latency_ms is None else runtime.within(latency_ms)):
        typer.echo(json.dumps(asdict(answer), ensure_ascii=False) if format == "json" else answer.line())


def _only_with_policy(policy: str | None, threshold: Sequence[float]) -> None:
    if threshold and policy is None:
        raise typer.BadParameter("--threshold moves a cascade: give --policy cascade too")


def _lines(path: Path | None) -> Iterator[str]:
    if path is None and sys.stdin is None:  # so Python tells that it was closed
        raise RecipeError("stdin is closed; name a file with one text a line")
    try:
        # utf-8-sig drops a byte order mark; newline: a stray carriage return ends no line, so that answers stay beside their lines.
        with open(path or sys.stdin.fileno(), encoding="utf-8-sig", newline="\n", closefd=path is not None) as file:
            for line in file:
                yield line.rstrip("\r\n")
    except OSError as error:
        raise RecipeError(f"{path or 'stdin'}: {error.strerror}; name a file with one text a line") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path or 'stdin'}: byte {error.start} of a block is not UTF-8; convert it with iconv -t utf-8") from None


@app.command(name="eval")
def evaluate(
    bundle: BundlePath,
    data: Labelled,
    text: UsualText = None,
    text_pair: PairColumn = None,
    label: UsualLabel = None,
    point: Point = None,
    policy: Policy = None,
    threshold: Thresholds = [],
    threads: Threads = None,
    store: StoreFolder = None,
    backend: BackendName = None,
    format: OutputFormat = "text",
) -> None:
    """Score a bundle on labelled data, with a 95 % interval."""
    from compressor.data import read_examples
    from compressor.evaluation import evaluate as score
    from compressor.files import Columns
    from compressor.runtime import Runtime
    from compressor.settings.data import USUAL

    if point is not None and policy is not None:
        raise typer.BadParameter("give --point or --policy, not both")
    _only_with_policy(policy, threshold)
    runtime = Runtime(bundle, threads, store, backend=backend)
    usual = USUAL[runtime.manifest["task"]]
    columns = Columns(text or usual.text, text_pair or usual.text_pair, label or usual.label, options=True)
    examples = list(read_examples(data, columns, runtime.task, root=Path.cwd(), split="test"))
    show(format, score(runtime, examples, point, policy, threshold or None))


@app.command()
def bench(
    models: Models,
    texts: Annotated[Path | None, typer.Option("--texts", envvar="COMPRESS_TEXTS", help="Time these, one a line.")] = None,
    shape: Annotated[
        list[str],
        typer.Option("--shape", envvar="COMPRESS_SHAPE", help="Texts x tokens, as 8x32 (default: 1x32, 1x128, 1x384). Repeatable."),
    ] = [],
    threads: Annotated[list[int], typer.Option("--threads", envvar="COMPRESS_THREADS", min=1, help="Threads of a run. Repeatable.")] = [1],
    point: Annotated[
        list[str], typer.Option("--point", envvar="COMPRESS_POINT", help="Operating point, or cascade; absent: all. Repeatable.")
    ] = [],
    backend: Annotated[
        Literal["onnxruntime", "openvino", "both"] | None,
        typer.Option("--backend", envvar="COMPRESS_BACKEND", help="What runs the graphs (default: what each was built for)."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", envvar="COMPRESS_ROUNDS", min=1, help="Timed runs of each, in turn.")] = 10,
    format: OutputFormat = "text",
) -> None:
    """Time bundles, and any encoder's .onnx file, beside each other; speed-ups are over the first."""
    from compressor.bench import bench as timed
    from compressor.session import Backend

    backends: list[Backend] = ["onnxruntime", "openvino"] if backend == "both" else [backend] if backend else []
    show(format, timed(models, list(_lines(texts)) if texts else None, shape, threads, point, backends, rounds))


@app.command()
def explain(
    model: Annotated[Path, typer.Argument(help="Folder of a bundle, or an .onnx file.", show_default=False)],
    tokens: Annotated[
        int | None, typer.Option("--tokens", envvar="COMPRESS_TOKENS", min=1, help="Length of the text (default: 128).")
    ] = None,
    point: Point = None,
    rounds: Annotated[int, typer.Option("--rounds", envvar="COMPRESS_ROUNDS", min=1, help="Runs that are timed.")] = 30,
    format: OutputFormat = "text",
) -> None:
    """Say where one text's time goes, what stayed in float, how far the floor is, and what each stage of the build gave."""
    from compressor.explain import explain as explained

    show(format, explained(model, tokens, point, rounds))


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe; editors complete from it."""
    from compressor.recipe import schema as recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


@app.command()
def doctor(artifacts: Artifacts = ARTIFACTS, format: OutputFormat = "text") -> None:
    """Say what this machine and environment are fit for; exit 6 when something is broken."""
    from compressor.doctor import examine

    checks = examine(artifacts)
    show(format, {"checks": [{"name": c.name, "status": c.status, "detail": c.detail, "remedy": c.remedy} for c in checks]})
    if any(c.status == "fail" for c in checks):
        raise typer.Exit(6)


@cache.command(name="ls")
def cache_ls(artifacts: Artifacts = ARTIFACTS, format: OutputFormat = "text") -> None:
    """List the artifacts: stage, size, what they are read by."""
    from compressor.housekeeping import entries

    show(format, {"artifacts": [e.row() for e in entries(artifacts)]})


@cache.command(name="gc")
def cache_gc(
    artifacts: Artifacts = ARTIFACTS,
    dry_run: Annotated[bool, typer.Option("--dry-run", envvar="COMPRESS_DRY_RUN", help="Only say what would go.")] = False,
    format: OutputFormat = "text",
) -> None:
    """Remove artifacts that no newest bundle was made from, and leftovers of interrupted builds."""
    from compressor.housekeeping import collect

    gone = collect(artifacts, dry_run=dry_run)
    show(format, {"removed": [str(e.path) for e in gone], "megabytes": round(sum(e.megabytes for e in gone), 1), "dry_run": dry_run})


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error; may stand anywhere.")] = False,
) -> None:
    with suppress(AttributeError):
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
