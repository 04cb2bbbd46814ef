"""An early exit at run time: one front, above it a small graph that answers, and the student's own rest for texts that go on.

What:     front.onnx makes states, exit.onnx answers from them, back.onnx goes on from them: no layer of the front runs twice.
Paper:    DeeBERT (arXiv:2004.12993).
Limits:   full length; states of a batch stay in memory until its texts are answered.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from compressor.halves import BACK, FRONT, BackGraph, states_of
from compressor.session import Graph, Seen
from compressor.tokens import Floats, Tokens

EXIT = "exit.onnx"
States = Sequence[Floats] | None
"""What a member hands on: the states (tokens, width) of each text, or nothing."""


class Exit:
    """The graphs of a folder."""

    def __init__(self, folder: Path, threads: int, *, single: bool, pad_id: int) -> None:
        """Open them; `single`: answers depend on the batch, so feed one text a run."""
        self.front = Graph(folder / FRONT, threads, single=single, pad_id=pad_id)
        self.above = BackGraph(folder / EXIT, threads, single=single, pad_id=pad_id)
        self._rest = Seen(folder / BACK)

    @cached_property
    def rest(self) -> BackGraph:
        """The graph that continues from the exit's states; never opened where such texts are read again from their start."""
        self._rest.check()
        return BackGraph(self._rest.path, self.above.threads, single=self.above.single, pad_id=self.above.pad_id)

    def stop(self, tokens: Tokens, _: States) -> tuple[Floats, States]:
        """Return the exit's logits, and the states from which the student goes on."""
        states = states_of(self.front, tokens)
        return self.above.logits(tokens, states), states

    def go_on(self, tokens: Tokens, states: States) -> tuple[Floats, States]:
        """Return the whole student's logits, from the states if there are any."""
        return self.rest.logits(tokens, states_of(self.front, tokens) if states is None else states), None
