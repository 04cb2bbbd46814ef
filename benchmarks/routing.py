"""What does a cascade take beside its members: confidences, who goes on, batches put together anew?

    python -m benchmarks.routing artifacts/dist/sst2 texts.txt

Texts, one a line, are routed one by one and all at once, tokenized beforehand, on the bundle's threads. What is spent inside the members'
answers is taken off; the rest is the routing's, as a share of its members' time.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.record import conclude
from compressor.cascade import Answer, Cascade
from compressor.data import Example
from compressor.exits import States
from compressor.runtime import Runtime
from compressor.tokens import Floats, Tokens

ROUNDS = 5


class Watched:
    """A cascade whose members' time is counted."""

    def __init__(self, cascade: Cascade) -> None:
        """Take a cascade in."""
        self.spent = 0.0
        self.cascade = replace(cascade, members=[replace(member, answer=self._counted(member.answer)) for member in cascade.members])

    def _counted(self, answer: Answer) -> Answer:
        def counted(tokens: Tokens, states: States) -> tuple[Floats, States]:
            began = time.perf_counter()
            try:
                return answer(tokens, states)
            finally:
                self.spent += time.perf_counter() - began

        return counted


def measure(bundle: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for texts one by one and all at once, the members' milliseconds a text and what the routing adds."""
    runtime = Runtime(bundle)
    examples = [runtime.example(runtime.given(line)) for line in lines]
    watched, rows = Watched(runtime.cascade.having_read(examples)), list[dict[str, Any]]()
    asked: dict[str, list[list[Example]]] = {"one by one": [[example] for example in examples], "all at once": [examples]}
    for name, batches in asked.items():
        for batch in batches:  # what slept is slow at first
            list(watched.cascade.route(runtime.task, batch))
        watched.spent, began = 0.0, time.perf_counter()
        for _ in range(ROUNDS):
            for batch in batches:
                list(watched.cascade.route(runtime.task, batch))
        whole = time.perf_counter() - began
        one = 1000 / (ROUNDS * len(examples))
        rows.append({"texts": name, "members_ms": watched.spent * one, "routing_ms": (whole - watched.spent) * one})
        rows[-1]["routing_over_members"] = rows[-1]["routing_ms"] / rows[-1]["members_ms"]
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Route, tell, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle with a cascade")
    parser.add_argument("texts", type=Path, help="texts, one a line")
    parser.add_argument("--trial", action="store_true", help="eight texts, to see that it works; records nothing")
    chosen = parser.parse_args()
    lines = chosen.texts.read_text(encoding="utf-8").splitlines()
    rows = measure(chosen.bundle, lines[:8] if chosen.trial else lines)
    conclude(f"routing_{chosen.bundle.name}", {"bundle": str(chosen.bundle), "examples": len(lines), "rows": rows}, chosen.trial)


if __name__ == "__main__":
    main()
