"""Run a bundle: onnxruntime, tokenizers and numpy, nothing else.

    from compressor.runtime import Runtime
    runtime = Runtime("artifacts/dist/quickstart")
    runtime.predict(["a gorgeous, witty film"], point="fast")

A prediction never depends on what else is in its batch: float graphs mask padding, and graphs whose activations are
quantized dynamically (one scale for a whole batch) are fed one text at a time, several at once when there are threads.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from compressor import machine
from compressor.data import Example
from compressor.errors import BundleError
from compressor.tasks import TASKS, ServedTask
from compressor.tokens import Floats, Tokens, in_order
from compressor.windows import Windows

Given = str | tuple[str, str] | Sequence[str]
"""A text; a pair of texts, as a question and its context; or, where words have tags, a list of words."""
FORMAT = 2
TOKENS_PER_RUN = 8192
"""Padded tokens of one graph run at most: bounds memory whatever is asked."""
WORTH_A_RUN = 8
"""Texts of one length that make a batch of their own: nothing in it is padded."""
CHUNK = 4096
"""Texts that are tokenized and sorted by length together: bounds memory on a stream."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A length configuration with what was measured for it when the bundle was built (test split, build machine)."""

    name: str
    lengths: tuple[int, ...] | None
    score: float
    latency_ms: float


class Graph:
    """One ONNX file in onnxruntime; `logits` is all that is asked of it."""

    def __init__(self, path: Path | str, threads: int = 1, *, single: bool, pad_id: int = 0, workers: int | None = None) -> None:
        """Open the file; `single`: its answers depend on the batch, so feed one text a run.

        One run has all threads; of several, `workers` run beside each other, one thread each (default: as many as there are threads),
        which reads more texts than all threads on each run.
        """
        self.path, self.single, self.pad_id = path, single, pad_id
        self.workers = workers or threads
        self.session = session(path, threads)
        self._beside = self.session if threads == 1 else None
        self.inputs = {i.name for i in self.session.get_inputs()} | {i.name for i in self.session.get_overridable_initializers()}
        outputs = [o.name for o in self.session.get_outputs()]
        self.output = "logits" if "logits" in outputs else outputs[0]

    def run(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Floats:
        """Return the logits of one padded batch, or the first output of a graph that has none."""
        return self._run(self.session, tokens, lengths)

    def _run(self, opened: ort.InferenceSession, tokens: Tokens, lengths: Sequence[int] | None) -> Floats:
        feed = {name: array for name, array in tokens.padded(self.pad_id).items() if name in self.inputs}
        if lengths is not None:
            feed["lengths"] = np.asarray(lengths, dtype=np.int64)
        logits: Floats = opened.run([self.output], feed)[0]
        return logits

    def logits(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Floats:
        """Return the logits of any number of texts, in their order: (texts, classes), or (tokens, classes) where every token has logits."""
        if len(tokens) == 1:  # nothing to sort, to pad or to put in order
            logits = self.run(tokens, lengths)
            return logits if logits.ndim == 2 else logits[0]
        batches = list(_batches(tokens.lengths.tolist(), 1 if self.single else 32))
        if self.workers == 1 or len(batches) == 1:
            return in_order([self.run(tokens.rows(rows), lengths) for rows in batches], batches, tokens.lengths)
        beside = self._beside = self._beside or session(self.path, 1)
        with ThreadPoolExecutor(self.workers) as pool:
            results = list(pool.map(lambda rows: self._run(beside, tokens.rows(rows), lengths), batches))
        return in_order(results, batches, tokens.lengths)


def session(graph: Path | str | bytes, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    """Open a file, or a graph's bytes; with `profile`, the session writes what each operator takes to a file of this beginning."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised as well as logged
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Residual and normalisation as one node take three times as long as two on a CPU.
    disabled = {"disabled_optimizers": ["SkipLayerNormFusion"]}
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], **disabled)


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield rows by length, so that little is padded, under the bound on tokens; a batch that is worth a run ends with its length."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda r: (lengths[r], r)):
        longer = len(batch) >= WORTH_A_RUN and lengths[row] > lengths[batch[-1]]
        if batch and (longer or len(batch) == size or lengths[row] * (len(batch) + 1) > TOKENS_PER_RUN):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class Runtime:
    """A verified bundle, ready to answer.

    Raises:
        BundleError: the folder is no bundle, of another format, or not what was built.
    """

    def __init__(self, bundle: Path | str, threads: int | None = None) -> None:
        folder = Path(bundle)
        self.manifest = verify(folder)
        check_isa(self.manifest)
        self.labels: tuple[str, ...] = tuple(self.manifest["labels"])
        self.points: Mapping[str, OperatingPoint] = {
            name: OperatingPoint(name, None if p["lengths"] is None else tuple(p["lengths"]), p["score"], p["latency_ms"])
            for name, p in self.manifest["points"].items()
        }
        self.default: str = self.manifest["default_point"]
        self.max_length: int = self.manifest["max_length"]
        self.task: ServedTask = TASKS[self.manifest["task"]](**self.manifest["task_settings"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pad_id, single = self.manifest["pad_id"], self.manifest["single"]
        self._graph = Graph(folder / "model.onnx", threads or self.manifest["target"]["threads"], single=single, pad_id=pad_id)

    def predict(self, texts: Iterable[Given], point: str | OperatingPoint | None = None) -> list[Any]:
        """Return one answer for each text, in order, at an operating point (default: the bundle's own).

        What an answer is, the task says: Prediction, LabelSet, Number, Entities or Answer.

        Raises:
            RecipeError: a text lacks something, as a question its context.
        """
        return list(self.stream(texts, point))

    def stream(self, texts: Iterable[Given], point: str | OperatingPoint | None = None) -> Iterator[Any]:
        """Yield the answers of any number of texts with flat memory."""
        lengths, examples = self.point(point).lengths, map(self.task.given, texts)
        while chunk := list(islice(examples, CHUNK)):
            windows = self._windows(chunk)
            yield from self.task.decode(self._graph.logits(windows.tokens, lengths), windows, chunk, self.labels)

    def outcomes(self, examples: Sequence[Example], point: str | OperatingPoint | None = None) -> Floats:
        """Return the outcomes of labelled examples, one row each, of which the task's metrics are computed."""
        windows = self._windows(examples)
        logits = self._graph.logits(windows.tokens, self.point(point).lengths)
        return self.task.outcomes(logits, windows, examples, self.labels)

    def given(self, line: str) -> Given:
        """Return what a line of a file asks: a pair where it has a tab, unless words are tagged."""
        first, tab, second = line.partition("\t")
        return (first, second) if tab and self.manifest["task"] != "token-classification" else line

    def tokens(self, texts: Sequence[Given]) -> list[Tokens]:
        """Return the tokens of each text: one window, or several that overlap where the task reads long texts so."""
        windows = self._windows([self.task.given(text) for text in texts])
        return [windows.tokens.rows(own) for own in windows.of_examples(len(texts))]

    def within(self, latency_ms: float) -> OperatingPoint:
        """Return the most accurate operating point of at most this median latency, as measured on the build machine.

        Raises:
            BundleError: none is that fast; the fastest is named.
        """
        fitting = [p for p in self.points.values() if p.latency_ms <= latency_ms]
        if not fitting:
            fastest = min(self.points.values(), key=lambda p: p.latency_ms)
            raise BundleError(f"no operating point within {latency_ms:g} ms; the fastest is {fastest.name} at {fastest.latency_ms:.2f} ms")
        return max(fitting, key=lambda p: (p.score, -p.latency_ms))

    def point(self, point: str | OperatingPoint | None) -> OperatingPoint:
        """Return an operating point by its name; None: the bundle's own.

        Raises:
            BundleError: there is none of this name.
        """
        if isinstance(point, OperatingPoint):
            return point
        name = point or self.default
        if name not in self.points:
            raise BundleError(f"no operating point {name!r}; this bundle has {', '.join(self.points)}")
        return self.points[name]

    def _windows(self, examples: Sequence[Example]) -> Windows:
        return self.task.windows(self._tokenizer, examples, self.max_length, self.manifest["stride"])


def verify(folder: Path) -> Mapping[str, Any]:
    """Return the manifest of a bundle of which every byte is as it was built.

    Raises:
        BundleError: what is wrong, in one line.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError
    except OSError:
        raise BundleError(f"{folder}: no bundle here (manifest.json is missing); name a folder that 'compress' built") from None
    except ValueError:
        raise BundleError(f"{folder}/manifest.json is damaged; copy the bundle again or rebuild it with 'compress recipe.yaml'") from None
    if manifest.get("format") != FORMAT or manifest.get("task") not in TASKS:
        found = f"format {manifest.get('format')}, task {manifest.get('task')}"
        raise BundleError(
            f"{folder}: {found} is unknown to this version (format {FORMAT}); update encoder-compressor or rebuild the bundle"
        )
    _check_content(folder, manifest)
    return manifest


def check_isa(manifest: Mapping[str, Any]) -> None:
    """Warn where this processor's 8-bit products cannot hold what the bundle's weights make."""
    isa, here = manifest.get("isa"), machine.level()
    if isa is not None and isa not in machine.SATURATING and here in machine.SATURATING:
        told = f"this bundle is for processors with {isa}; on this one ({here}) its 8-bit products saturate and answers may be wrong"
        warnings.warn(f"{told}: rebuild it with quantize.isa: {here}", RuntimeWarning, stacklevel=3)


def _check_content(folder: Path, manifest: Mapping[str, Any]) -> None:
    remedy = "copy the bundle again or rebuild it with 'compress recipe.yaml'"
    if manifest.get("self") != seal(manifest):
        raise BundleError(f"{folder}: manifest.json was changed after the build; {remedy}")
    for name, expected in manifest["files"].items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise BundleError(f"{folder}: {name} is missing; {remedy}") from None
        if found != expected:
            raise BundleError(f"{folder}: {name} does not match manifest.json (sha256 {found[:8]}… ≠ {expected[:8]}…); {remedy}")


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the hash of a manifest without its seal: a slip or an edit shows; it is no signature."""
    body = {k: v for k, v in manifest.items() if k != "self"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
