"""Does optimum load a bundle and give the same answers? It lives in an environment of its own, made on first use (1.5 GB).

    python -m benchmarks.interop artifacts/dist/quickstart lines.txt

Each line is a text (a question and its context: with a tab between). Token ids must be equal; logits are those of the bundle's own
operating point. They need not be equal: optimum's session fuses residuals with normalisations, which the runtime's leaves alone, rounds
otherwise, and an 8-bit value beside a boundary falls on its other side. `other_answers` counts the texts whose largest logit is another.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.models import HERE, OPTIMUM
from benchmarks.record import conclude
from compressor.runtime import Given, Runtime
from compressor.session import Graph
from compressor.tokens import Floats

ALIKE = 1e-3
"""Difference of logits that is float arithmetic in another order; more comes of an 8-bit value that was rounded otherwise."""


def answers(bundle: Path, texts: Sequence[Given]) -> list[tuple[Floats, Floats]]:
    """Return optimum's logits of each text, and the runtime's.

    Raises:
        StageError: optimum cannot load the bundle, or run it.
        UnfitError: its environment cannot be made.
        ValueError: it reads a text as other tokens, or its logits have another shape.
    """
    runtime, pairs = Runtime(bundle), list[tuple[Floats, Floats]]()
    graph = Graph(bundle / "model.onnx", single=runtime.manifest["single"], pad_id=runtime.manifest["pad_id"])
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "texts.json", Path(folder) / "logits.json"
        asked.write_text(json.dumps(texts), encoding="utf-8")
        script = HERE / "optimum_client.py"
        OPTIMUM.run(script, [str(bundle.resolve()), runtime.task.head, str(asked), str(answered)], Path(folder))
        read = json.loads(answered.read_text(encoding="utf-8"))
    for text, tokens, answer in zip(texts, runtime.tokens(texts), read, strict=True):
        if tokens.ids.tolist() != answer["ids"]:
            raise ValueError(f"{text!r:.60}: optimum reads {answer['ids']}, the runtime {tokens.ids.tolist()}")
        theirs, ours = np.array(answer["logits"]), graph.logits(tokens, runtime.point(None).lengths)
        ours = ours if theirs.ndim == 2 else ours[0]
        if ours.shape != theirs.shape:
            raise ValueError(f"{text!r:.60}: optimum answers {theirs.shape}, the runtime {ours.shape}")
        pairs.append((theirs, ours))
    return pairs


def compared(pairs: Sequence[tuple[Floats, Floats]]) -> dict[str, float]:
    """Return how far the logits of two programs are apart."""
    apart = np.array([np.abs(ours - theirs).max() for theirs, ours in pairs])
    return {
        "other_answers": sum(bool((ours.argmax(-1) != theirs.argmax(-1)).any()) for theirs, ours in pairs),
        "alike": float((apart <= ALIKE).mean()),
        "median_difference": float(np.median(apart)),
        "largest_difference": float(apart.max()),
    }


def main() -> None:
    """Compare, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--trial", action="store_true", help="the first 8 texts, to see that it works; records nothing")
    chosen = parser.parse_args()
    runtime = Runtime(chosen.bundle)
    lines = chosen.texts.read_text(encoding="utf-8").splitlines()
    texts = [runtime.given(line) for line in lines[: 8 if chosen.trial else None]]
    found = {
        "bundle": str(chosen.bundle),
        "texts": len(texts),
        "pins": OPTIMUM.pins,
        **compared(answers(chosen.bundle, texts)),
    }
    conclude("interop", found, chosen.trial)


if __name__ == "__main__":
    main()
