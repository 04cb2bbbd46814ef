"""Arguments and options of the command line, each named once: every option may come from the environment too."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from compressor.output import Format

_FORMS = "csv, tsv, jsonl, parquet, conll or SQuAD json, also .gz, or package:NAME/FILE"

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
Threads = Annotated[
    int | None,
    typer.Option("--threads", envvar="COMPRESS_THREADS", min=1, help="Threads (default: the bundle's target, at most the cores)."),
]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", envvar="COMPRESS_STORE", help="Keep what the first layers make of each text here (export.halves).")
]
StoreSize = Annotated[
    str | None,
    typer.Option(
        "--max-size",
        envvar="COMPRESS_MAX_SIZE",
        help="Largest store; what was not read for longest goes (default: 20GB, or what it takes).",
    ),
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
Labelled = Annotated[str, typer.Option("--data", envvar="COMPRESS_DATA", help=f"Labelled examples: {_FORMS}.")]
TaskName = Annotated[str, typer.Option("--task", envvar="COMPRESS_TASK", help="What the model answers: a task.type but masked-lm.")]
PairColumn = Annotated[str | None, typer.Option("--text-pair", envvar="COMPRESS_TEXT_PAIR", help="Column of the second text.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", envvar="COMPRESS_SKIP_BAD", help="Leave out rows that are no examples.")]
UsualText = Annotated[str | None, typer.Option("--text", envvar="COMPRESS_TEXT", help="Column of the text; absent: the task's usual one.")]
UsualLabel = Annotated[
    str | None, typer.Option("--label", envvar="COMPRESS_LABEL", help="Column of what is known; absent: the task's usual one.")
]
TeacherModel = Annotated[str, typer.Option("--model", envvar="COMPRESS_MODEL", help="The teacher: folder, package:NAME/FOLDER or Hub id.")]
TrainData = Annotated[str, typer.Option("--train", envvar="COMPRESS_TRAIN", help=f"Labelled examples: {_FORMS}, or a Hub data set id.")]
ARTIFACTS = Path("artifacts")
"""Folder of stage artifacts and bundles, where nobody names one."""
