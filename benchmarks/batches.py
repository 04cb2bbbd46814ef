"""How many tokens should a run of several texts have?

    python -m benchmarks.batches artifacts/dist/newsgroups texts.txt

Texts, one a line, are read all at once at full length and at the bundle's own point, in runs of at most so many padded tokens (of one, each
text is a run of its own), in turn. The graph must be one that reads several texts a run (`quantize.backend` other than onnxruntime).
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import conclude
from compressor.runtime import Runtime
from compressor.session import Graph, batches_of
from compressor.tokens import Tokens

MOST = (1, 128, 256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 3


def measure(bundle: Path, lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return milliseconds a text for each number of threads, operating point and bound."""
    runtime = Runtime(bundle)
    tokens = Tokens.joined(runtime.tokens([runtime.given(line) for line in lines]))
    rows = list[dict[str, Any]]()
    for threads in (1, 2):
        graph = Graph(bundle / "model.onnx", threads, single=False, pad_id=runtime.manifest["pad_id"])
        for point in dict.fromkeys(("full", runtime.default)):
            lengths, times = runtime.points[point].lengths, {most: list[float]() for most in MOST}
            for turn in range(ROUNDS + 1):
                for most in MOST:
                    began = time.perf_counter()
                    graph.logits(tokens, lengths, most)
                    if turn:  # the first warms up
                        times[most].append(1000 * (time.perf_counter() - began) / len(tokens))
            for most, found in times.items():
                runs = sum(1 for _ in batches_of(tokens.lengths.tolist(), single=False, most=most))
                rows.append({"threads": threads, "point": point, "most_tokens": most, "runs": runs, "ms": statistics.median(found)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Read, tell, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle that reads several texts a run")
    parser.add_argument("texts", type=Path, help="texts, one a line")
    parser.add_argument("--trial", action="store_true", help="eight texts, to see that it works; records nothing")
    chosen = parser.parse_args()
    if Runtime(chosen.bundle).manifest["single"]:
        parser.error(f"{chosen.bundle} reads one text a run; build it with quantize.backend: onnxruntime-static")
    lines = chosen.texts.read_text(encoding="utf-8").splitlines()[: 8 if chosen.trial else None]
    facts = {"bundle": str(chosen.bundle), "texts": len(lines), "mean_tokens": float(np.mean(_lengths(chosen.bundle, lines)))}
    conclude(f"batches_{chosen.bundle.name}", {**facts, "rows": measure(chosen.bundle, lines)}, chosen.trial)


def _lengths(bundle: Path, lines: Sequence[str]) -> list[int]:
    runtime = Runtime(bundle)
    return [len(tokens.ids) for tokens in runtime.tokens([runtime.given(line) for line in lines])]


if __name__ == "__main__":
    main()
