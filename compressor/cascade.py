"""Cascade: each text is answered by the first member that is sure enough of it; the last one answers what is left.

What:     members from cheap to dear: operating points of one graph, which share its memory, or graphs of their own.
Papers:   TangoBERT (arXiv:2204.06271).
Formula:  member i answers where its confidence (compressor/confidence.py) reaches thresholds[i]; a confidence that is no number never does.
Limits:   a text that goes on is read again from its start, but for one that goes on from an early exit (compressor/exits.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from compressor.confidence import Confidence, confidences
from compressor.data import Example, in_chunks
from compressor.exits import States
from compressor.halves import AT_ONCE
from compressor.tasks import Task
from compressor.tokens import Floats, Ints, Tokens
from compressor.windows import Windows

MEMBERS = "members"
"""Folder of a bundle that holds the graphs and tokenizers of members that are no operating point of its own."""
GRAPH = "member.onnx"
"""A member's graph: not model.onnx, which other clients look for in a bundle's folder and below."""
CHARACTERS = 2**17
"""Of texts whose states are in memory together, where a text may have many windows."""
NEVER = 2.0
"""A threshold that no confidence reaches."""
STOPS, GOES_ON = "exit", "rest"
"""Which part of an early exit's graphs a member is."""


Answer = Callable[[Tokens, States], tuple[Floats, States]]
"""Logits of tokens, from what the member before handed on, and what is handed on to the next."""


def whole(logits: Callable[..., Floats], lengths: Sequence[int] | None) -> Answer:
    """Return how a graph answers that reads each text from its start, and hands nothing on."""
    return lambda tokens, _: (logits(tokens, lengths), None)


@dataclass(frozen=True)
class Member:
    """A model of a cascade: how it reads examples, and what it answers them."""

    name: str
    read: Callable[[Sequence[Example]], Windows]
    """Members that read alike have the same function: what one has read, the next need not."""
    answer: Answer
    temperature: float = 1.0
    """Divides its logits, so that its confidence is its share of right answers."""
    exits: bool = False
    """Whether it hands states on, of which only so many texts' are kept in memory."""


@dataclass(frozen=True)
class Part:
    """What one member answers of a batch: the examples' rows, its windows of them, its logits, and how sure it is (rows,).

    `no_confidence` (rows,) counts the members before it whose confidence in the example was no number.
    """

    member: str
    rows: Ints
    windows: Windows
    logits: Floats
    confidences: Floats
    no_confidence: Ints


@dataclass(frozen=True)
class Cascade:
    """Members in their order, and the thresholds of all but the last."""

    members: Sequence[Member]
    thresholds: Sequence[float]
    confidence: Confidence

    def having_read(self, examples: Sequence[Example]) -> "Cascade":
        """Return the cascade as it is for those that have read these very examples, to time it without its tokenizers."""
        known = {member.read: {id(e): member.read([e]) for e in examples} for member in self.members}

        def again(windows: Mapping[int, Windows]) -> Callable[[Sequence[Example]], Windows]:
            def read(asked: Sequence[Example]) -> Windows:
                parts = [windows[id(e)] for e in asked]
                return parts[0] if len(parts) == 1 else Windows.joined(parts, [1] * len(parts))

            return read

        reads = {read: again(windows) for read, windows in known.items()}
        return replace(self, members=[replace(member, read=reads[member.read]) for member in self.members])

    def route(self, task: Task, examples: Sequence[Example], thresholds: Sequence[float] | None = None) -> Iterator[Part]:
        """Yield what each member answers; an example's answer does not depend on the others.

        Raises:
            ValueError: there is not one threshold for each member but the last.
        """
        limits = self.thresholds if thresholds is None else thresholds
        if len(limits) != len(self.members) - 1:
            raise ValueError(f"{len(self.members)} members take {len(self.members) - 1} thresholds, not {len(limits)}")
        begin, exits = 0, any(member.exits for member in self.members)
        for chunk in in_chunks(examples, AT_ONCE, CHARACTERS) if exits else [examples]:
            for part in self._routed(task, chunk, limits):
                yield replace(part, rows=part.rows + begin) if begin else part
            begin += len(chunk)

    def _routed(self, task: Task, examples: Sequence[Example], limits: Sequence[float]) -> Iterator[Part]:
        left, before, windows, states = np.arange(len(examples)), None, None, None
        unknown = np.zeros(len(examples), np.int64)
        for member, limit in zip(self.members, [*limits, None], strict=True):
            if not len(left):
                return
            asked = [examples[row] for row in left.tolist()] if len(left) < len(examples) else examples
            if windows is None or before is None or member.read is not before.read:
                windows = member.read(asked)
            logits, states = member.answer(windows.tokens, states)
            sure = confidences(self.confidence, task, logits, windows, asked, member.temperature)
            answered = np.ones(len(left), bool) if limit is None else sure >= limit
            unknown += np.isnan(sure) & ~answered
            if answered.any():
                yield Part(member.name, left[answered], *_of(answered, windows, logits, task), sure[answered], unknown[answered])
            if states is not None:
                states = [states[row] for row in np.flatnonzero(~answered[windows.owners]).tolist()]
            left, unknown, before = left[~answered], unknown[~answered], member
            windows = _of(~answered, windows, logits, task)[0] if len(left) else None


def reader(folder: Path, task: Task, facts: Mapping[str, Any]) -> Callable[[Sequence[Example]], Windows]:
    """Return the function that reads examples with a folder's tokenizer, at its max_length and stride."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Questions and contexts are cut otherwise, each by settings of the tokenizer, which other threads must not see meanwhile.
    alone: AbstractContextManager[object] = Lock() if task.choice == "positions" else nullcontext()
    if task.choice != "positions":
        task.windows(tokenizer, [Example("")], facts["max_length"], facts["stride"])  # it is settled: a long text stops no other thread's

    def read(examples: Sequence[Example]) -> Windows:
        with alone:
            return task.windows(tokenizer, examples, facts["max_length"], facts["stride"])

    return read


def _of(chosen: NDArray[np.bool_], windows: Windows, logits: Floats, task: Task) -> tuple[Windows, Floats]:
    """Return the windows and the logits of chosen examples, which are then counted among themselves."""
    if chosen.all():
        return windows, logits
    wanted = chosen[windows.owners]
    rows = np.flatnonzero(wanted)
    owners = (np.cumsum(chosen) - 1)[windows.owners[rows]]
    own = logits[np.repeat(wanted, windows.tokens.lengths)] if task.per_token else logits[rows]
    return windows.rows(rows, owners), own
