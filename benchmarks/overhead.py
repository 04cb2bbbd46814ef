"""What does a runtime take beside its graph's own runs: tokens, what is fed, answers?

    python -m benchmarks.overhead artifacts/dist/quickstart texts.txt

Texts, one a line, are asked one by one on one thread, as text and tokenized beforehand, which is what a report's latencies are; then all
of them as a stream. What is spent inside the graph's runs is taken off; each text's time is its best of several.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import conclude
from compressor.runtime import Runtime

ROUNDS = 7


class Watched:
    """A session whose runs are timed."""

    def __init__(self, session: Any) -> None:
        """Take a session in."""
        self.session, self.spent = session, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *asked: Any) -> Any:
        """Run the graph."""
        began = time.perf_counter()
        try:
            return self.session.run(*asked)
        finally:
            self.spent += time.perf_counter() - began


def measure(bundle: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return microseconds of a text within the graph's runs and beside them, medians over texts where they come one by one."""
    runtime = Runtime(bundle, threads=1)
    graph = runtime._graph
    graph.session = watched = Watched(graph.session)
    given = [runtime.given(line) for line in lines]
    tokens = runtime.tokens(given)

    def timed(ask: Callable[[], object]) -> tuple[float, float]:
        watched.spent, began = 0.0, time.perf_counter()
        ask()
        whole = time.perf_counter() - began
        return 1e6 * (whole - watched.spent), 1e6 * watched.spent

    asked: dict[str, list[Callable[[], object]]] = {
        "one by one": [lambda text=text: runtime.predict([text]) for text in given],  # type: ignore[misc]
        "one by one, tokenized": [lambda text=text: runtime.logits(text) for text in tokens],  # type: ignore[misc]
    }
    rows = list[dict[str, Any]]()
    for name, calls in asked.items():
        found = [min(timed(call) for _ in range(ROUNDS)) for call in calls]
        beside, within = (median(column) for column in zip(*found, strict=True))
        rows.append({"texts": name, "within_us": within, "beside_us": beside})
    streams = [timed(lambda: sum(1 for _ in runtime.stream(given))) for _ in range(ROUNDS)]
    beside, within = (value / len(given) for value in min(streams))
    return [*rows, {"texts": "a stream", "within_us": within, "beside_us": beside}]


def main() -> None:
    """Measure, tell, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("texts", type=Path, help="texts, one a line")
    parser.add_argument("--trial", action="store_true", help="records nothing")
    chosen = parser.parse_args()
    lines = chosen.texts.read_text(encoding="utf-8").splitlines()
    rows = measure(chosen.bundle, lines)
    for row in rows:
        print(json.dumps(row), flush=True)
    conclude(f"overhead_{chosen.bundle.name}", {"bundle": str(chosen.bundle), "texts": len(lines), "rows": rows}, chosen.trial)


if __name__ == "__main__":
    main()
