"""From a recipe to a bundle: run, validate, plan, init, schema."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from compressor.errors import GateError
from compressor.options import (
    ARTIFACTS,
    Artifacts,
    Changes,
    Force,
    OutputFormat,
    PairColumn,
    Profile,
    RecipePath,
    TaskName,
    TeacherModel,
    TrainData,
    Until,
    UsualLabel,
    UsualText,
    Workers,
)
from compressor.output import show
from compressor.progress import Progress


def _recipe(path: Path, changes: Sequence[str], profile: str) -> Any:
    from compressor.loader import load_recipe
    from compressor.plan import check_extras, check_sources
    from compressor.smoke import smoke

    recipe = load_recipe(path, changes)
    check_sources(recipe)  # now, and not after hours of the stages before the one that reads it
    check_extras(recipe)
    return smoke(recipe) if profile == "smoke" else recipe


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
    from compressor import machine, pipeline
    from compressor.locks import only_build
    from compressor.plan import check_training, crowded
    from compressor.publish import publish

    chosen, log = _recipe(recipe, set_, profile), Progress()
    check_training(chosen)
    if told := crowded(chosen):
        log.warn(told)
    chosen._workers = workers or machine.usable_cores()
    _known_stages(chosen, [*force, *([until] if until else [])])
    if profile == "smoke":
        log.warn("smoke profile: a sliver of data, and no gate is judged; its figures mean nothing")
    checks: dict[str, Any] = {}
    if _trains(chosen, artifacts, until, force):
        from compressor.preflight import check_data, check_encoders, check_environment

        asked = [stage.name for stage in pipeline.until_stage(pipeline.stages_of(chosen), until)]
        check_encoders(chosen, exports="export" in asked)  # now, and not after hours of the stages before the one that makes them
        if "quantize" in asked:
            check_environment(chosen)
        checks["check"] = partial(check_data, chosen)
    with only_build(chosen.name, artifacts):
        artifact = pipeline.run(chosen, artifacts, log, until=until, force=force, **checks)
        whole = artifact.manifest["stage"] in pipeline.LAST
        place = publish(artifact, artifacts, chosen.name) if whole else artifact.path
    if not whole:
        show(format, {"artifact": str(place), "metrics": dict(artifact.metrics)})
        return
    if artifact.manifest["stage"] == "encoder":
        show(format, {"encoder": str(place), "metrics": dict(artifact.metrics)})
        return
    last = {"variants": artifact.metrics["variants"], "bundle": str(place), "report": str(place / "report.html")}
    show(format, {key: value for key, value in artifact.metrics.items() if key not in (*last, "seconds")} | last)
    broken = [g for g in artifact.metrics["gates"] if not g["passed"]]
    if broken:
        told = "; ".join(f"{g['gate']} is {g['value']}, must be {g['limit']}" for g in broken)
        raise GateError(f"{told}. The bundle is in {place}; loosen the gate or improve the recipe")


def _trains(recipe: Any, artifacts: Path, until: str | None, force: Sequence[str]) -> bool:
    """Say whether a stage that trains would run."""
    from compressor import pipeline

    rows = pipeline.plan(recipe, artifacts, force)
    names = [row.stage.name for row in rows]
    asked = rows[: names.index(until) + 1] if until in names else rows
    return any(not row.cached and row.stage.trains for row in asked)


def _known_stages(recipe: Any, names: Sequence[str]) -> None:
    from compressor.pipeline import stages_of

    known = [s.name for s in stages_of(recipe)]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"no stage {name!r}; those of this recipe are {', '.join(known)}")


def validate(recipe: RecipePath, set_: Changes = [], format: OutputFormat = "text") -> None:
    """Check a recipe: keys, values, and that the files it names are there."""
    chosen = _recipe(recipe, set_, "full")
    show(format, {"recipe": str(recipe), "name": chosen.name, "valid": True})


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
    from compressor.plan import crowded

    chosen = _recipe(recipe, set_, profile)
    _known_stages(chosen, force)
    rows = pipeline.plan(chosen, artifacts, force)
    stages = [{"stage": r.stage.name, "cached": r.cached, "reason": r.reason, "seconds_last_time": r.seconds} for r in rows]
    told = crowded(chosen)
    show(format, {"stages": stages, "advice": [*([told] if told else []), *advise(chosen)]})
    if exit_code and not all(r.cached for r in rows):
        raise typer.Exit(10)


def init(
    path: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.yaml"),
    name: Annotated[str, typer.Option("--name", envvar="COMPRESS_NAME", help="Name of the bundle.")] = "my-model",
    model: TeacherModel = "google-bert/bert-base-uncased",
    train: TrainData = "train.csv",
    task: TaskName = "text-classification",
    text: UsualText = None,
    text_pair: PairColumn = None,
    label: UsualLabel = None,
    student_layers: Annotated[
        int, typer.Option("--student-layers", envvar="COMPRESS_STUDENT_LAYERS", min=2, help="Layers of the student.")
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
        text_pair=text_pair,
        label=label,
        student_layers=student_layers,
        threads=threads,
        teacher_layers=teacher_layers,
    )
    show("text", {"recipe": str(path), "next": f"compress validate {path}"})


def schema() -> None:
    """Print the JSON Schema of a recipe; editors complete from it."""
    from compressor.recipe import schema as recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))
