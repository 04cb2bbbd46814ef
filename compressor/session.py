"""One ONNX file in onnxruntime or OpenVINO: batches by length, bounded memory, threads.

An answer never depends on what else is in its batch: float graphs mask padding, and graphs whose activations are quantized dynamically
(one scale for a whole batch) are fed one text at a time, several at once when there are threads.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np
import onnxruntime as ort

from compressor.errors import BundleError, UnfitError, one_line
from compressor.openvino_session import OpenVINOSession
from compressor.tokens import Floats, Tokens, in_order

Backend = Literal["onnxruntime", "openvino"]
"""What runs a graph."""
Session: TypeAlias = ort.InferenceSession | OpenVINOSession
T = TypeVar("T")
AGREEMENT = 0.1
"""Difference that another backend's logits may have, as a share of onnxruntime's largest; other roundings may drop other tokens."""
BESIDE = 0.025
"""The same of texts in one batch, against its own answers to each alone: padding must tell nothing."""
SHORT = 64
"""Tokens of texts that are read in one batch for that: padding tells in short ones, and long ones take time and memory."""
SMALLEST_VOCABULARY, MADE_UP = 25, 12
"""Ids that are in every vocabulary, and texts of them on which backends must agree."""
TOKENS_PER_RUN: Mapping[Backend, int] = {"onnxruntime": 512, "openvino": 8192}
"""Padded tokens of a run of several texts at most: bounds memory whatever is asked. What more of them compute does not stay in a core's
cache, so that onnxruntime reads long texts faster one by one (benchmarks/batches.py)."""
WORTH_A_RUN = 8
"""Texts of one length that make a batch of their own: nothing in it is padded."""


class Seen:
    """A file as it was when a bundle was verified: what is opened later must be the same, or two builds would answer together."""

    def __init__(self, path: Path) -> None:
        self.path, self._stamp = path, self._now(path)

    @staticmethod
    def _now(path: Path) -> tuple[int, ...] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check(self) -> None:
        """Refuse a file that is another now, or gone.

        Raises:
            BundleError: it is.
        """
        if self._now(self.path) != self._stamp:
            raise BundleError(f"{self.path} has changed since it was opened; open the bundle again")


class Opened:
    """A file whose batches run one after another, with all threads each, or beside each other, one thread each."""

    def __init__(self, path: Path | str, threads: int, workers: int | None, backend: Backend = "onnxruntime") -> None:
        """Open the file for so many threads, and as many workers if nothing is said of them."""
        self.path, self.threads, self.workers, self.backend = path, threads, workers or threads, backend
        self._seen = Seen(Path(path))
        self.session: Session = OpenVINOSession(path, threads) if backend == "openvino" else session(path, threads)

    @cached_property
    def beside(self) -> Session:
        """What runs several batches beside each other, one thread each."""
        if self.threads == 1 and self.backend == "onnxruntime":
            return self.session
        self._seen.check()
        return OpenVINOSession(self.path, 1, self.workers) if self.backend == "openvino" else session(self.path, 1)


class Graph(Opened):
    """One ONNX file in a backend; `logits` is all that is asked of it."""

    def __init__(
        self,
        path: Path | str,
        threads: int = 1,
        *,
        single: bool,
        pad_id: int = 0,
        workers: int | None = None,
        backend: Backend = "onnxruntime",
    ) -> None:
        """Open the file; `single`: its answers depend on the batch, so feed one text a run.

        One run has all threads; of several, `workers` run beside each other, one thread each (default: as many as there are threads),
        which reads more texts than all threads on each run.

        Raises:
            UnfitError: there is no such backend, it is not installed, or it cannot read the graph.
        """
        if backend not in get_args(Backend):
            raise UnfitError(f"no backend {backend!r}; choose {' or '.join(get_args(Backend))}")
        super().__init__(path, threads, workers, backend)
        self.single, self.pad_id = single, pad_id
        inputs = [*self.session.get_inputs(), *self.session.get_overridable_initializers()]
        shapes = {i.name: i.shape for i in inputs}
        self._narrow = {i.name for i in inputs if getattr(i, "type", "") == "tensor(int32)"}  # as others export; ours are of 64 bits
        self.inputs, self.layers = set(shapes), shapes["lengths"][0] if "lengths" in shapes else 0
        outputs = [o.name for o in self.session.get_outputs()]
        self.output = "logits" if "logits" in outputs else outputs[0]

    def run(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Floats:
        """Return the logits of one padded batch, or the first output of a graph that has none."""
        return self._run(self.session, *self._read(tokens, lengths))

    def _read(self, tokens: Tokens, lengths: Sequence[int] | None) -> tuple[Tokens, Sequence[int] | None]:
        """Return what is read of the texts, and a length for each layer: of one number more, the first is how many tokens are read."""
        if lengths is None or len(lengths) == self.layers:
            return tokens, lengths
        return truncated(tokens, lengths[0]), lengths[1:]

    def _run(self, opened: Session, tokens: Tokens, lengths: Sequence[int] | None) -> Floats:
        feed = {name: array for name, array in tokens.padded(self.pad_id).items() if name in self.inputs}
        feed |= {name: feed[name].astype(np.int32) for name in self._narrow & feed.keys()}
        if lengths is not None:
            feed["lengths"] = np.asarray(lengths, dtype=np.int64)
        logits: Floats = opened.run([self.output], feed)[0]
        return logits

    def logits(self, tokens: Tokens, lengths: Sequence[int] | None = None, most: int | None = None) -> Floats:
        """Return the logits of any number of texts, in their order: (texts, classes), or (tokens, classes) where every token has logits.

        A run of several texts has at most so many padded tokens, `most` (default: what suits the backend).
        """
        tokens, lengths = self._read(tokens, lengths)
        if len(tokens) == 1:  # nothing to sort, to pad or to put in order
            logits = self.run(tokens, lengths)
            return logits if logits.ndim == 2 else logits[0]
        batches = list(batches_of(tokens.lengths.tolist(), single=self.single, most=most or TOKENS_PER_RUN[self.backend]))
        found = run_all(batches, lambda opened, rows: self._run(opened, tokens.rows(rows), lengths), self)
        return in_order(found, batches, tokens.lengths)


def run_all(batches: Sequence[T], run: Callable[[Session, T], Floats], graph: Opened) -> list[Floats]:
    """Return what running each batch gives: of several, as many at once as the graph has workers."""
    if graph.workers == 1 or len(batches) == 1:
        return [run(graph.session, batch) for batch in batches]
    beside, left, found = graph.beside, deque(enumerate(batches)), dict[int, Floats]()

    def work() -> None:
        while left:
            try:
                number, batch = left.pop()  # the longest first: begun last, it would be waited for
            except IndexError:  # another thread has taken it
                return
            try:
                found[number] = run(beside, batch)
            except BaseException:
                left.clear()  # who fails, or is interrupted, waits for none that has not begun
                raise

    with ThreadPoolExecutor(min(graph.workers, len(batches))) as pool:
        others = list[Future[None]]()
        with suppress(RuntimeError):  # the process ends while others still ask, or it may have no more threads: this one does it all
            others += (pool.submit(work) for _ in range(min(graph.workers, len(batches)) - 1))
        work()
        for other in others:
            other.result()
    return [found[number] for number in range(len(batches))]


def _beside(graph: Graph, texts: Tokens, alone: Sequence[Floats]) -> list[Floats]:
    """Return the answers to texts in one batch, for as many tokens of each as it has alone."""
    return [own[: len(one)] for own, one in zip(graph.run(texts), alone[: len(texts)], strict=True)]


def _differences(found: Sequence[Floats], wanted: Sequence[Floats]) -> list[float]:
    return [float(np.abs(one - other).max()) for one, other in zip(found, wanted, strict=True)]


def check_agreement(graph: Graph, longest: int) -> None:
    """Check that a graph's answers are those of onnxruntime, on made-up texts, each longer than the last, alone and in one batch.

    Raises:
        UnfitError: they are not.
    """
    if graph.backend == "onnxruntime":
        return
    usual = Graph(graph.path, single=graph.single, pad_id=graph.pad_id)
    rng, ends = np.random.default_rng(0), np.cumsum(np.unique(np.geomspace(2, longest, MADE_UP).round().astype(int)))
    ids = rng.integers(0, SMALLEST_VOCABULARY, ends[-1], dtype=np.int32)
    texts = Tokens(ids, np.zeros_like(ids, np.int8), np.array([0, *ends]))
    expected = [usual.run(text)[0] for text in texts]
    few = texts.rows(np.flatnonzero(texts.lengths <= SHORT).tolist())
    batched = not graph.single and all(value.shape[:1] != [1] for value in usual.session.get_inputs())  # others' may read one text only
    try:
        alone = [graph.run(text)[0] for text in texts]
        beside = _beside(graph, few, alone) if batched else alone[: len(few)]
    except RuntimeError as error:
        what = one_line(error)
        raise UnfitError(f"{graph.path}: {graph.backend} cannot run this graph ({what}); choose backend onnxruntime") from error
    largest, moves = max(float(np.abs(one).max()) for one in expected), 0.0
    if batched:  # what others made may have one scale a batch: then onnxruntime's answers move too
        moves = max(_differences(_beside(usual, few, expected), expected[: len(few)]))
    pairs = (
        ("otherwise", AGREEMENT * largest, alone, expected),
        ("otherwise beside longer texts", BESIDE * largest + moves, beside, alone),
    )
    for how, allowed, found, wanted in pairs:
        worst = _differences(found, wanted[: len(found)])
        if not all(difference <= allowed for difference in worst):  # no number is no agreement either
            told = f"{graph.backend} answers this graph {how}: logits differ by {np.max(worst):.3g}, where the largest is {largest:.3g}"
            raise UnfitError(
                f"{graph.path}: {told}; choose backend onnxruntime, or build with quantize.backend: nncf, whose answers move least"
            )


# Residual and normalisation as one node take three times as long as two on a CPU.
DISABLED: Mapping[str, list[str]] = {"disabled_optimizers": ["SkipLayerNormFusion"]}


def options_of(threads: int) -> ort.SessionOptions:
    """Return the options of every session; `benchmarks/session_options.py` tells what others would give."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised as well as logged
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def session(graph: Path | str | bytes, threads: int, profile: Path | None = None) -> ort.InferenceSession:
    """Open a file, or a graph's bytes; with `profile`, the session writes what each operator takes to a file of this beginning."""
    options = options_of(threads)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], **DISABLED)


def truncated(tokens: Tokens, most: int) -> Tokens:
    """Return the texts with at most so many tokens, 2 or more, of each: its first ones and its last, which ends it."""
    lengths = tokens.lengths
    if lengths.max(initial=0) <= most:
        return tokens
    kept = np.minimum(lengths, most)
    places = np.arange(len(tokens.ids)) - np.repeat(tokens.starts[:-1], lengths)
    chosen = (places < np.repeat(kept, lengths) - 1) | (places == np.repeat(lengths, lengths) - 1)
    return Tokens(tokens.ids[chosen], tokens.segments[chosen], np.concatenate([[0], np.cumsum(kept)]))


def batches_of(lengths: Sequence[int], *, single: bool, most: int = TOKENS_PER_RUN["onnxruntime"]) -> Iterator[list[int]]:
    """Yield rows by length, so that little is padded, of at most so many tokens; a batch that is worth a run ends with its length.

    With `single` each row is a batch of its own.
    """
    size, batch = 1 if single else 32, list[int]()
    for row in sorted(range(len(lengths)), key=lambda r: (lengths[r], r)):
        longer = len(batch) >= WORTH_A_RUN and lengths[row] > lengths[batch[-1]]
        if batch and (longer or len(batch) == size or lengths[row] * (len(batch) + 1) > most):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
