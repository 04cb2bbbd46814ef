"""The result table: every row scored on the whole test split and timed on the same texts, in one interleaved run."""

from collections.abc import Mapping
from pathlib import Path

from compressor import machine
from compressor.encoded import Encoded
from compressor.gates import Variant
from compressor.latency import Latency, Run, interleaved, requests
from compressor.pipeline import Inputs, Kind, is_single
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.runtime import Graph, Runtime
from compressor.scores import interval
from compressor.splits import MODEL, Splits, task_of
from compressor.tokens import Floats

LATENCY_TEXTS = 64
TEACHER, STUDENT = "teacher fp32", "student fp32"


def row_name(point: str, inputs: Inputs) -> str:
    """Return what the table calls an operating point of the bundle."""
    return f"{'INT8' if 'int8_graph' in inputs else 'fp32'} {point}"


def measure(recipe: Recipe, inputs: Inputs, folder: Path, log: Progress) -> dict[str, Variant]:
    """Score and time every row: the teacher and the student in fp32, then each operating point of the bundle."""
    splits, task = Splits.of(inputs["data"]), task_of(recipe)
    examples = list(splits.examples("test"))
    kinds: tuple[Kind, ...] = ("teacher", "checkpoint")
    data: dict[str, Encoded] = {kind: splits.encoded("test", task, inputs[kind].path / MODEL) for kind in kinds}
    cores, floats = machine.describe()["cores"], inputs["float_graph"].path
    runtime = Runtime(folder, threads=cores)
    threads, single = recipe.target.threads, {"bundle": is_single(inputs)}
    timed = {n: Graph(p, threads, single=single.get(n, False), pad_id=data[k].pad_id) for n, p, k in _files(inputs, folder)}
    log.note(f"scores of {2 + len(runtime.points)} variants on {len(examples)} test examples")
    outcomes: dict[str, Floats] = {
        name: data[kind].outcomes(Graph(floats / file, single=False, pad_id=data[kind].pad_id, workers=cores).logits(data[kind].tokens))
        for name, file, kind in ((TEACHER, "teacher.onnx", "teacher"), (STUDENT, "model.onnx", "checkpoint"))
    }
    lengths: dict[str, tuple[int, ...] | None] = dict.fromkeys(outcomes)
    for point in runtime.points.values():
        outcomes[row_name(point.name, inputs)] = runtime.outcomes(examples, point)
        lengths[row_name(point.name, inputs)] = point.lengths
    log.note(f"latencies, interleaved, {threads} thread{'s' * (threads > 1)}, batch {recipe.target.batch}")
    times = _latencies(timed, data, lengths, recipe.target.batch)
    sizes = {n: p.stat().st_size / 1e6 for n, p, _ in _files(inputs, folder)}
    metric = task.metrics[recipe.task.metric]
    return {
        name: Variant(
            name,
            metric(found),
            interval(metric, found),
            times[name].p50_ms,
            times[name].p90_ms,
            sizes.get(name, sizes["bundle"]),
            lengths[name],
        )
        for name, found in outcomes.items()
    }


def _files(inputs: Inputs, folder: Path) -> list[tuple[str, Path, str]]:
    floats = inputs["float_graph"].path
    rows = ((TEACHER, floats / "teacher.onnx", "teacher"), (STUDENT, floats / "model.onnx", "checkpoint"))
    return [*rows, ("bundle", folder / "model.onnx", "checkpoint")]


def _latencies(
    graphs: Mapping[str, Graph], data: Mapping[str, Encoded], lengths: Mapping[str, tuple[int, ...] | None], batch: int
) -> dict[str, Latency]:
    """Time all rows in turn on the same requests of `batch` texts; the teacher reads them with its own tokenizer."""

    def runner(name: str) -> Run:
        graph, texts = graphs.get(name, graphs["bundle"]), data["teacher" if name == TEACHER else "checkpoint"].tokens
        own = [texts.rows(rows) for rows in asked]
        return lambda number: graph.logits(own[number], lengths[name])

    asked = requests(data["checkpoint"].tokens.lengths.tolist(), LATENCY_TEXTS, batch)
    return interleaved({name: runner(name) for name in lengths}, range(len(asked)))
