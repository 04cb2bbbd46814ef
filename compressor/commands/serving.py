"""What a bundle answers, scores and takes: predict, eval, bench, explain."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compressor.errors import RecipeError
from compressor.lines import groups_of, lines_of
from compressor.options import (
    BackendName,
    BundlePath,
    Labelled,
    LatencyBudget,
    Models,
    OutputFormat,
    PairColumn,
    Point,
    Policy,
    SkipBad,
    StoreFolder,
    StoreSize,
    Texts,
    Threads,
    Thresholds,
    UsualLabel,
    UsualText,
)
from compressor.output import show
from compressor.progress import Progress

if TYPE_CHECKING:
    from compressor.runtime import Given, Runtime


def predict(
    bundle: BundlePath,
    texts: Texts = None,
    point: Point = None,
    latency_ms: LatencyBudget = None,
    policy: Policy = None,
    threshold: Thresholds = [],
    threads: Threads = None,
    store: StoreFolder = None,
    max_size: StoreSize = None,
    backend: BackendName = None,
    format: OutputFormat = "text",
) -> None:
    """Answer each line (a pair, or a question and its context: with a tab between), one answer a line; a cascade tells who answered too."""
    if sum(x is not None for x in (point, latency_ms, policy)) > 1:
        raise typer.BadParameter("give one of --point, --latency-ms and --policy")
    runtime = _runtime(bundle, threads, store, max_size, backend)
    chosen = point if latency_ms is None else runtime.within(latency_ms)
    policy = runtime.policy(chosen, policy, threshold or None)
    groups = _asked(runtime, texts)
    if policy:
        unknown = 0
        for routed in chain.from_iterable(runtime.trace(group, policy, threshold or None) for group in groups):
            unknown += routed.no_confidence > 0
            how = {"member": routed.member, "confidence": routed.confidence, "no_confidence": routed.no_confidence}
            line = f"{routed.answer.line()}\t{routed.member} {routed.confidence:.4f}"
            typer.echo(_json({**asdict(routed.answer), **how}) if format == "json" else line)
        if unknown:
            Progress().note(f"{unknown} text{'s' * (unknown > 1)} went on because a member's confidence was no number")
        return
    for answer in chain.from_iterable(runtime.stream(group, chosen) for group in groups):
        typer.echo(_json(asdict(answer)) if format == "json" else answer.line())


def _json(told: Any) -> str:
    """Return a line of JSON, which has no word for what is no number: null stands for it."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(own) for key, own in value.items()}
        if isinstance(value, list | tuple):
            return [known(own) for own in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(told), ensure_ascii=False)


def _runtime(bundle: Path, threads: int | None, store: Path | None, max_size: str | None, backend: BackendName) -> "Runtime":
    """Open a bundle as the options say.

    Raises:
        BadParameter: the store's size is none, or is told without a store.
    """
    from compressor.runtime import Runtime
    from compressor.units import megabytes

    if store is None and max_size is not None:
        raise typer.BadParameter("--max-size is that of a store: give --store too")
    try:
        size = None if max_size is None else megabytes(max_size)
    except ValueError as error:
        raise typer.BadParameter(f"--max-size {max_size!r} {error}") from None
    return Runtime(bundle, threads, store, size, backend)


def _asked(runtime: "Runtime", path: Path | None) -> "Iterator[Iterator[Given]]":
    """Yield what each line asks, those together that are there at once.

    Raises:
        RecipeError: the bundle cannot answer one, as a question without its context; the line is named.
    """
    number = itertools.count(1)

    def asked(lines: Iterable[str]) -> "Iterator[Given]":
        for line in lines:
            row, given = next(number), runtime.given(line)
            try:
                runtime.example(given)
            except RecipeError as error:
                raise RecipeError(f"{path or 'stdin'}: line {row}: {error}") from None
            yield given

    yield from map(asked, groups_of(path))


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
    max_size: StoreSize = None,
    backend: BackendName = None,
    skip_bad: SkipBad = False,
    format: OutputFormat = "text",
) -> None:
    """Score a bundle on labelled data, with a 95 % interval."""
    from compressor.data import read_examples
    from compressor.evaluation import evaluate as score
    from compressor.files import Columns
    from compressor.settings.data import USUAL

    if point is not None and policy is not None:
        raise typer.BadParameter("give --point or --policy, not both")
    runtime = _runtime(bundle, threads, store, max_size, backend)
    usual = USUAL[runtime.manifest["task"]]
    columns = Columns(text or usual.text, text_pair or usual.text_pair, label or usual.label, options=True)
    skipped = list[str]()
    bad = skipped if skip_bad else None
    examples = list(read_examples(data, columns, runtime.task, root=Path.cwd(), split="test", skipped=bad))
    show(format, score(runtime, examples, point, policy, threshold or None) | ({"skipped": len(skipped)} if skip_bad else {}))


def bench(
    models: Models,
    texts: Annotated[Path | None, typer.Option("--texts", envvar="COMPRESS_TEXTS", help="Time 64 of these, one a line.")] = None,
    shape: Annotated[
        list[str],
        typer.Option(
            "--shape",
            envvar="COMPRESS_SHAPE",
            help="Texts x tokens, as 8x32; absent, without --texts: 1x32, 1x128, 1x384, as far as all read them. Repeatable.",
        ),
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
    show(format, timed(models, list(lines_of(texts)) if texts else None, shape, threads, point, backends, rounds))


def explain(
    model: Annotated[Path, typer.Argument(help="Folder of a bundle, or an .onnx file.", show_default=False)],
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", envvar="COMPRESS_TOKENS", min=1, help="Length of the text (default: 128, or what the bundle reads)."),
    ] = None,
    point: Point = None,
    rounds: Annotated[int, typer.Option("--rounds", envvar="COMPRESS_ROUNDS", min=1, help="Runs that are timed.")] = 30,
    format: OutputFormat = "text",
) -> None:
    """Say where one text's time goes, what stayed in float, how far the floor is, and what each stage of the build gave."""
    from compressor.explain import explain as explained

    show(format, explained(model, tokens, point, rounds))
