"""Run a bundle: onnxruntime, tokenizers and numpy, nothing else.

    from compressor.runtime import Runtime
    runtime = Runtime("artifacts/dist/quickstart")
    runtime.predict(["a gorgeous, witty film"], point="fast")
    Runtime("artifacts/dist/sst2").predict(["a gorgeous, witty film"], policy="cascade")  # of a recipe with a cascade

A prediction never depends on what else is in its batch.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor import machine
from compressor.bundles import check_isa, readable, verify
from compressor.cascade import GRAPH, NEVER, STOPS, Cascade, Member, reader, whole
from compressor.data import CHARACTERS, CHUNK, Example, check_characters, in_chunks
from compressor.errors import BundleError, RecipeError, UnfitError, install
from compressor.exits import Exit
from compressor.halves import Halves
from compressor.session import Backend, Graph, Seen, check_agreement
from compressor.sources import place_of
from compressor.tasks import TASKS, ServedTask
from compressor.tokens import Floats, Ints, Tokens

if TYPE_CHECKING:
    from compressor.store import Store

Given = str | tuple[str, str] | Sequence[str]
"""A text; a pair of texts, as a question and its context; or, where words have tags, a list of words."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A length configuration with what was measured for it when the bundle was built (test split, build machine)."""

    name: str
    lengths: tuple[int, ...] | None
    """Tokens that each layer passes on of a text of max_length; one number more: the first is how many tokens of a text are read."""
    score: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Routed:
    """An answer of a cascade: which member gave it, how sure it was, and how many before it had a confidence that is no number."""

    answer: Any
    member: str
    confidence: float
    no_confidence: int


class Runtime:
    """A verified bundle, ready to answer.

    Raises:
        BundleError: the folder is no bundle, of another format, or not what was built; or a store is given and it has no halves.
        RecipeError: the store holds another model's outputs, or is given together with a backend that reads none; or threads are below 0.
        UnfitError: the backend is not installed, or its answers are not those of onnxruntime; or a file cannot be read here.
    """

    def __init__(
        self,
        bundle: Path | str,
        threads: int | None = None,
        store: Path | str | None = None,
        max_size: float | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Check the bundle and open its graph, in the backend that it was built for or another, on as many threads as it was built for, or
        as there are cores.

        A cascade's other graphs, and the two of a bundle with halves, run in onnxruntime always. With a `store`, a folder, its first layers
        run once per text, for all bundles that have the same ones and name the same folder; when it reaches `max_size` megabytes (default:
        20,000), what was not read for longest goes.
        """
        if threads is not None and threads < 0:
            raise RecipeError(f"threads is {threads}: give 1 or more, or none for as many as it was built for")
        opening = Seen(Path(bundle).absolute() / "manifest.json")
        folder = Path(bundle).resolve()  # what is opened later is there too after a change of the working directory, or of a link
        self._folder, self._seen = folder, Seen(folder / "manifest.json")
        self.manifest = verify(Path(bundle))
        check_isa(self.manifest)
        self.labels: tuple[str, ...] = tuple(self.manifest["labels"])
        self.points: Mapping[str, OperatingPoint] = {
            name: OperatingPoint(name, None if p["lengths"] is None else tuple(p["lengths"]), p["score"], p["latency_ms"])
            for name, p in self.manifest["points"].items()
        }
        self.default: str = self.manifest["default_point"]
        self.default_policy: str | None = self.manifest.get("default_policy")
        self.max_length: int = self.manifest["max_length"]
        self.task: ServedTask = TASKS[self.manifest["task"]](**self.manifest["task_settings"])
        self.threads: int = threads or min(self.manifest["target"]["threads"], machine.usable_cores())
        self.backend: Backend = backend or (self.calibrated_in if store is None else "onnxruntime")
        self._exits = dict[Path, Exit]()
        if store is not None and backend == "openvino":
            raise RecipeError("what lies above a store runs in onnxruntime: leave out the store, or the backend")
        with readable(self.manifest):
            self._read = reader(folder, self.task, self.manifest)
            self._graph = self._opened(folder, None if store is None else self._store(Path(store), max_size))
        opening.check()  # after a rebuild, or a move of the link, while it opened these labels may not be that graph's

    @property
    def store(self) -> "Store | None":
        """What keeps the first layers' outputs, if anything does."""
        return self._graph.store if isinstance(self._graph, Halves) else None

    def _opened(self, folder: Path, store: "Store | None") -> Graph | Halves:
        pad_id, single = self.manifest["pad_id"], self.manifest["single"]
        if store is not None:
            return Halves(folder, self.threads, single=single, pad_id=pad_id, store=store)
        graph = Graph(folder / "model.onnx", self.threads, single=single, pad_id=pad_id, backend=self.backend)
        check_agreement(graph, self.max_length)
        return graph

    def _store(self, folder: Path, max_size: float | None) -> "Store":
        told = self.manifest.get("halves")
        if not told:
            raise BundleError("this bundle has no halves, so a store has nothing to keep; set export.halves: true and build it again")
        try:
            from compressor.store import Identity, Store
        except ImportError:
            raise UnfitError(f"a store needs the [recycle] extra: {install('recycle')}") from None
        identity = Identity(told["front"], told["layer"], told["tokenizer"], told["precision"], told["dtype"])
        largest = None if max_size is None else max_size * 1e6
        return Store.shared(place_of(folder), identity, largest, lambda line: warnings.warn(line, RuntimeWarning, stacklevel=2))

    @cached_property
    def cascade(self) -> Cascade:
        """The bundle's cascade, whose own graphs are opened when it is first asked.

        Raises:
            BundleError: the bundle has none, or has changed since it was opened.
            RecipeError: it was calibrated in another backend than what runs the bundle's graph here.
        """
        told = self.manifest.get("cascade")
        if not told:
            raise BundleError("this bundle has no cascade; add a `cascade` section to its recipe and build it again")
        if self.backend != self.calibrated_in:
            other = f"backend {self.backend}" if self.store is None else "the store, above which onnxruntime answers"
            raise RecipeError(f"the cascade was calibrated in {self.calibrated_in}: leave out {other}, or name a point")
        self._seen.check()
        with readable(self.manifest):
            cascade = Cascade([self._member(facts) for facts in told["members"]], told["thresholds"], told["confidence"])
        self._seen.check()
        return cascade

    @property
    def calibrated_in(self) -> Backend:
        """The backend whose confidence the cascade's thresholds are for: the bundle's own."""
        found: Backend = self.manifest.get("backend", "onnxruntime")
        return found

    def _member(self, facts: Mapping[str, Any]) -> Member:
        name, temperature = facts["name"], facts["temperature"]
        if facts["folder"] is None:
            return Member(name, self._read, whole(self._graph.logits, facts["lengths"]), temperature)
        folder, part = self._folder / facts["folder"], facts.get("part")
        if part:
            opened = self._exits.get(folder) or Exit(folder, self.threads, single=facts["single"], pad_id=facts["pad_id"])
            self._exits[folder], stops = opened, part == STOPS
            return Member(name, self._read, opened.stop if stops else opened.go_on, temperature, exits=stops)
        graph = Graph(folder / GRAPH, self.threads, single=facts["single"], pad_id=facts["pad_id"])
        return Member(name, reader(folder, self.task, facts), whole(graph.logits, facts["lengths"]), temperature)

    def predict(
        self,
        texts: Iterable[Given],
        point: str | OperatingPoint | None = None,
        policy: str | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> list[Any]:
        """Return one answer for each text, in order, at an operating point or by the policy `cascade` (default: the bundle's own).

        What an answer is, the task says: Prediction, LabelSet, Number, Entities or Answer. `thresholds` move the cascade's own.

        Raises:
            RecipeError: a text lacks something, as a question its context; a point and a policy are named; or thresholds do not fit.
            BundleError: the bundle has no such point, or no cascade.
        """
        return list(self.stream(texts, point, policy, thresholds))

    def stream(
        self,
        texts: Iterable[Given],
        point: str | OperatingPoint | None = None,
        policy: str | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> Iterator[Any]:
        """Yield the answers of any number of texts with flat memory.

        They are read some thousands at a time: of a source that is still being written, ask `predict` what is there.
        """
        policy = self.policy(point, policy, thresholds)
        if policy is not None:
            yield from (routed.answer for routed in self.trace(texts, policy, thresholds))
            return
        lengths = self.point(point).lengths
        for chunk in self._chunks(texts):
            windows = self._read(chunk)
            yield from self.task.decode(self._graph.logits(windows.tokens, lengths), windows, chunk, self.labels)

    def policy(self, point: str | OperatingPoint | None, policy: str | None, thresholds: Sequence[float] | None) -> str | None:
        """Return the policy that answers: the one that is named, or the bundle's own where no point is; None: an operating point does.

        Raises:
            RecipeError: a point and a policy are named, or thresholds where no cascade answers.
        """
        if point is not None and policy is not None:
            raise RecipeError("texts are answered at an operating point or by a policy: name one of them")
        chosen = self.default_policy if point is None and policy is None else policy
        if chosen is None and thresholds is not None:
            raise RecipeError("thresholds move a cascade: name policy cascade too")
        return chosen

    def trace(self, texts: Iterable[Given], policy: str = "cascade", thresholds: Sequence[float] | None = None) -> Iterator[Routed]:
        """Yield the cascade's answers, each with the member that gave it and how sure it was."""
        self._check(policy, thresholds)
        for chunk in self._chunks(texts):
            found, told = dict[int, Routed](), 0
            for part in self.cascade.route(self.task, chunk, thresholds):
                rows = part.rows.tolist()
                answers = self.task.decode(part.logits, part.windows, [chunk[row] for row in rows], self.labels)
                for row, answer, *how in zip(rows, answers, part.confidences.tolist(), part.no_confidence.tolist(), strict=True):
                    found[row] = Routed(answer, part.member, *how)
                while told in found:  # those before the first text that went on need not wait for it
                    yield found.pop(told)
                    told += 1

    def _chunks(self, texts: Iterable[Given]) -> Iterator[list[Example]]:
        if isinstance(texts, str):
            raise RecipeError(f"{texts!r:.60} is one text, not several; give a list of texts")
        return in_chunks(map(self.example, texts), CHUNK, CHARACTERS)

    def outcomes(self, examples: Sequence[Example], point: str | OperatingPoint | None = None) -> Floats:
        """Return the outcomes of labelled examples, one row each, of which the task's metrics are computed."""
        lengths, found = self.point(point).lengths, list[Floats]()
        for chunk in in_chunks(examples, CHUNK, CHARACTERS):
            windows = self._read(chunk)
            found.append(self.task.outcomes(self._graph.logits(windows.tokens, lengths), windows, chunk, self.labels))
        return np.concatenate(found)

    def routed_outcomes(
        self, examples: Sequence[Example], policy: str = "cascade", thresholds: Sequence[float] | None = None
    ) -> tuple[Floats, list[str], int]:
        """Return the cascade's outcomes of labelled examples, one row each, the members that answered, and how many examples went on
        because a confidence was no number."""
        self._check(policy, thresholds)
        found, members, unknown, begin = list[Floats](), np.empty(len(examples), object), 0, 0
        rows = list[Ints]()
        for chunk in in_chunks(examples, CHUNK, CHARACTERS):
            for part in self.cascade.route(self.task, chunk, thresholds):
                found.append(self.task.outcomes(part.logits, part.windows, [chunk[row] for row in part.rows.tolist()], self.labels))
                rows.append(part.rows + begin)
                members[rows[-1]] = part.member
                unknown += int(np.count_nonzero(part.no_confidence))
            begin += len(chunk)
        return np.concatenate(found)[np.concatenate(rows).argsort()], members.tolist(), unknown

    def logits(self, tokens: Tokens) -> Floats:
        """Return the logits of tokens that were read before, (texts, classes) or (tokens, classes), at the bundle's own point."""
        return self._graph.logits(tokens, self.points[self.default].lengths)

    def _check(self, policy: str, thresholds: Sequence[float] | None) -> None:
        if policy != "cascade":
            raise BundleError(f"no policy {policy!r}; a bundle has an operating point, or the policy cascade")
        wanted = len(self.cascade.members) - 1
        if thresholds is not None and len(thresholds) != wanted:
            names = ", ".join(member.name for member in self.cascade.members)
            raise RecipeError(f"the cascade of {names} takes {wanted} threshold{'s' * (wanted > 1)}, not {len(thresholds)}")
        for limit in () if thresholds is None else thresholds:
            if not 0 <= limit <= NEVER:
                raise RecipeError(f"threshold {limit:g} is no confidence: write a number from 0, which answers all, to 1")

    def given(self, line: str) -> Given:
        """Return what a line of a file asks: a pair where it has a tab, of a bundle that answers pairs."""
        first, tab, second = line.partition("\t")
        return (first, second) if tab and self.manifest.get("pairs", self.manifest["task"] != "token-classification") else line

    def example(self, text: Given) -> Example:
        """Return what the task reads of what a caller gave.

        Raises:
            RecipeError: it lacks something, as a question its context; it is a pair where the bundle answers single texts; or no text.
        """
        found = self.task.given(text)
        self.check_pairs(found)
        check_characters(found)
        return found

    def check_pairs(self, example: Example) -> None:
        """Refuse a single text where the model learned from pairs, and a pair where it learned from single texts.

        Raises:
            RecipeError: this is one.
        """
        pairs = self.manifest.get("pairs")
        if pairs and example.text_pair is None:
            raise RecipeError("this bundle answers pairs of texts: give both, on a line with a tab between, or name the column --text-pair")
        if pairs is False and example.text_pair is not None:
            raise RecipeError("this bundle answers single texts, and this is a pair: give one text, and name no column --text-pair")

    def tokens(self, texts: Sequence[Given]) -> list[Tokens]:
        """Return the tokens of each text: one window, or several that overlap where the task reads long texts so."""
        found = list[Tokens]()
        for chunk in self._chunks(texts):
            windows = self._read(chunk)
            found += [windows.tokens.rows(own) for own in windows.of_examples(len(chunk))]
        return found

    def within(self, latency_ms: float) -> OperatingPoint:
        """Return the most accurate operating point of at most this median latency, as measured on the build machine.

        Where latencies were searched it may be one without a name of its own: `front`, whose score is that of the search split.

        Raises:
            BundleError: none is that fast; the fastest is named.
        """
        fitting = [(score, p) for score, p in self._choices if p.latency_ms <= latency_ms]
        if not fitting:
            fastest = min((p for _, p in self._choices), key=lambda p: p.latency_ms)
            raise BundleError(f"no operating point within {latency_ms:g} ms; the fastest is {fastest.name} at {fastest.latency_ms:.2f} ms")
        return max(fitting, key=lambda one: (one[0], -one[1].latency_ms))[1]

    @cached_property
    def _choices(self) -> list[tuple[float, OperatingPoint]]:
        """What `within` chooses from, each with a score on one split for all: what the search found, or the named points."""
        named = {p.lengths: p for p in reversed(list(self.points.values()))}
        found = [OperatingPoint("front", tuple(one["lengths"]), one["score"], one["latency_ms"]) for one in self.manifest.get("front", ())]
        return [(p.score, named.get(p.lengths, p)) for p in found] or [(p.score, p) for p in self.points.values()]

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
