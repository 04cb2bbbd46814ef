"""How far a bundle is from the floor: what its INT8 graph takes beside its products alone at this machine's best 8-bit rate.

    python -m benchmarks.floor artifacts/dist/quickstart

Texts of random ids at one thread, each length in turn, `compress explain` for each; the median of several runs of the whole benchmark
counts, because the rate of products and the graph's time are measured one after the other on a machine that others share.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import conclude
from compressor.explain import explain
from compressor.runtime import Runtime

TOKENS = (16, 32, 64, 128, 256)
RUNS, ROUNDS = 5, 20


def main() -> None:
    """Explain the bundle at each length and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--point", default="full")
    parser.add_argument("--trial", action="store_true", help="one run of one round, to see that it works; records nothing")
    chosen = parser.parse_args()
    runs, rounds = (1, 1) if chosen.trial else (RUNS, ROUNDS)
    longest = Runtime(chosen.bundle).max_length
    asked = [tokens for tokens in TOKENS if tokens <= longest]
    found = [{tokens: explain(chosen.bundle, tokens, chosen.point, rounds) for tokens in asked} for _ in range(runs)]
    rows = [_row(tokens, [run[tokens] for run in found]) for tokens in asked]
    result = {"bundle": chosen.bundle.name, "point": chosen.point, "runs": runs, "rows": rows}
    conclude(f"floor_{chosen.bundle.name}", result, chosen.trial)


def _row(tokens: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over runs: milliseconds, the floor, their ratio, and each class of operators' share of the time."""
    row: dict[str, Any] = {key: median(run[key] for run in runs) for key in ("latency_ms", "floor_ms", "over_floor")}
    shares = {kind: [one["share"] for run in runs for one in run["operators"] if one["class"] == kind] for kind in _classes(runs)}
    return {"tokens": tokens, "million_macs": runs[0]["million_macs"], **row, "shares": {k: median(v) for k, v in shares.items()}}


def _classes(runs: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["class"] for run in runs for one in run["operators"]))


if __name__ == "__main__":
    main()
