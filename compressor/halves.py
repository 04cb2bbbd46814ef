"""A graph in two halves: the front reads a text once, a store keeps what it made, and the back of every task answers from that.

What:     front.onnx takes token ids to the states of a layer that no task changed; back.onnx takes those to logits.
Paper:    embedding recycling (arXiv:2207.04993).
Formula:  a text's key is that of compressor/store.py, with the front's own hash in the model's place: bundles whose fronts are equal share.
Limits:   one machine; a text is known by all its tokens, so that a changed one is read anew: who hands in paragraphs reads that one only.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from compressor.session import Graph, Opened, Seen, Session, batches_of, run_all
from compressor.tokens import Floats, Ints, Tokens, content_of, in_order, length_batches

if TYPE_CHECKING:
    from compressor.store import Store

FRONT, BACK, STATES = "front.onnx", "back.onnx", "states"
AT_ONCE = 64
"""Texts whose states are in memory, and are written down, together."""


_FRONTS: "WeakValueDictionary[tuple[Any, ...], Graph]" = WeakValueDictionary()
"""Open fronts of bundles with a store, by process, the front's own hash and how it is fed: a session's threads do not come along a fork."""
_OPENING = Lock()


def _forget() -> None:
    global _OPENING
    _OPENING = Lock()  # a fork may have come while the parent held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class BackGraph(Opened):
    """The graph above a front: from states to logits."""

    def __init__(self, path: Path, threads: int, *, single: bool, pad_id: int) -> None:
        """Open it; `single`: answers depend on the batch, so feed one text a run, and several at once where there are threads."""
        super().__init__(path, threads, threads)
        self.single, self.pad_id = single, pad_id
        self.inputs = [i.name for i in self.session.get_inputs()]  # a head alone asks for no mask

    def logits(self, texts: Tokens, states: Sequence[Floats]) -> Floats:
        """Return the logits of texts, as a whole graph does, from the states (tokens, width) of each."""
        if len(texts) == 1:  # nothing to pad or to put in order
            logits = self._answered(self.session, texts, states)
            return logits if logits.ndim == 2 else logits[0]
        batches, found = zip(*self.answered(texts, states), strict=True)
        return in_order(found, batches, texts.lengths)

    def answered(self, texts: Tokens, states: Sequence[Floats]) -> Iterator[tuple[list[int], Floats]]:
        """Return the logits of batches of texts, padded, each with its rows."""
        batches = list(batches_of(texts.lengths.tolist(), single=self.single))

        def answer(opened: Session, batch: list[int]) -> Floats:
            return self._answered(opened, texts.rows(batch), [states[row] for row in batch])

        return zip(batches, run_all(batches, answer, self), strict=True)

    def _answered(self, opened: Session, texts: Tokens, states: Sequence[Floats]) -> Floats:
        if len(texts) == 1:
            return self._run(opened, states[0][None], np.ones((1, len(states[0])), np.int64))
        mask = texts.padded(self.pad_id)["attention_mask"]
        padded = np.zeros((*mask.shape, states[0].shape[1]), np.float32)
        padded[mask == 1] = np.concatenate(states)
        return self._run(opened, padded, mask)

    def _run(self, opened: Session, padded: Floats, mask: Ints) -> Floats:
        feed = {STATES: padded, "attention_mask": mask}
        logits: Floats = opened.run(["logits"], {name: feed[name] for name in self.inputs})[0]
        return logits


def states_of(front: Graph, texts: Tokens) -> list[Floats]:
    """Return what a front makes of each text, float32 (tokens, width)."""
    found = front.logits(texts)
    return [found] if len(texts) == 1 else np.split(found, texts.starts[1:-1])


class Halves:
    """Two graphs that answer as the whole one does."""

    def __init__(self, folder: Path, threads: int, *, single: bool, pad_id: int, store: "Store | None" = None) -> None:
        """Open the back, and the front when a text needs it; `single`: answers depend on the batch, so feed one text a run."""
        self.folder, self.threads, self.single, self.pad_id, self.store = folder, threads, single, pad_id, store
        self.back, self._seen = BackGraph(folder / BACK, threads, single=single, pad_id=pad_id), Seen(folder / FRONT)

    @cached_property
    def front(self) -> Graph:
        """The front, which a store that knows every text never asks; bundles that share a store in one process share it."""
        how: dict[str, Any] = {"single": self.single, "pad_id": self.pad_id}
        self._seen.check()
        if self.store is None:
            return Graph(self.folder / FRONT, self.threads, **how)
        key = (os.getpid(), self.store.identity.model, self.threads, *how.values())
        with _OPENING:
            if (found := _FRONTS.get(key)) is None:
                found = _FRONTS[key] = Graph(self.folder / FRONT, self.threads, **how)
                _ = found.beside  # opened while the file is what was verified: it may go before the last bundle that shares it
            return found

    def logits(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Floats:
        """Return the logits of any number of texts, as a whole graph does; there are no lengths to choose."""
        if len(tokens) == 1:  # nothing to sort, to pad or to put in order
            return self.back.logits(tokens, self.states(tokens))
        found, rows_of = list[Floats](), list[Ints]()
        for rows in length_batches(tokens.lengths, AT_ONCE):
            texts = tokens.rows(rows)
            for batch, logits in self.back.answered(texts, self.states(texts)):
                found.append(logits)
                rows_of.append(rows[batch])
        return in_order(found, rows_of, tokens.lengths)

    def states(self, texts: Tokens) -> list[Floats]:
        """Return what the front makes of each text, float32 (tokens, width): from the store, where it knows the text."""
        if self.store is None:
            return states_of(self.front, texts)
        keys = [self.store.identity.key(content_of(text)) for text in texts]
        return self.store.through(keys, lambda missing: states_of(self.front, texts.rows(missing)))
