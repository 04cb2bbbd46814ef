"""How long the quickstart takes: from nothing, by stage, from the cache; and how long the commands take that people wait for.

    python -m benchmarks.pipeline_times

`compress` runs as a process of its own in a fresh artifacts folder, so its start and its imports count.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.child import COMPRESS, Ended, run
from benchmarks.record import conclude
from compressor.artifact import Artifact
from compressor.errors import GateError
from compressor.pipeline import STAGES

RECIPE = "recipes/quickstart.yaml"
IMPORT_RUNTIME = "import time; t = time.perf_counter(); import compressor.runtime; print(time.perf_counter() - t)"


def measure(artifacts: Path, profile: str, repeats: int) -> dict[str, Any]:
    """Build in an empty folder, build again, and time the small commands."""
    build = [*COMPRESS, RECIPE, "--artifacts", str(artifacts), "--profile", profile, "--format", "json"]
    first = _told("first build", run(build, allowed=(0, GateError.exit_code)))
    stages = _stage_seconds(artifacts)
    again = _told("second build, all cached", run(build, allowed=(0, GateError.exit_code)))
    told = json.loads(first.stdout)
    return {
        "recipe": RECIPE, "profile": profile, "exit_code": first.exit_code,
        "seconds": round(first.seconds, 1),
        "seconds_by_stage": stages,
        "seconds_outside_stages": round(first.seconds - sum(stages.values()), 1),
        "peak_memory_mb": round(first.peak_bytes / 1e6),
        "seconds_cached": round(again.seconds, 2),
        "peak_memory_cached_mb": round(again.peak_bytes / 1e6),
        "seconds_validate": _median_seconds([*COMPRESS, "validate", RECIPE], repeats),
        "seconds_plan": _median_seconds([*COMPRESS, "plan", RECIPE, "--artifacts", str(artifacts), "--profile", profile], repeats),
        "seconds_import_runtime": round(median(float(run([sys.executable, "-c", IMPORT_RUNTIME]).stdout) for _ in range(repeats)), 3),
        "repeats": repeats,
        "variants": told["variants"], "gates": told["gates"], "findings": told["findings"],
    }  # fmt: skip


def _told(what: str, ended: Ended) -> Ended:
    print(f"{what}: {ended.seconds:.1f} s", file=sys.stderr)
    return ended


def _stage_seconds(artifacts: Path) -> dict[str, float]:
    """Return what each stage's manifest says, in the order of the pipeline."""
    found = [Artifact(path.parent) for path in artifacts.glob("*-*/manifest.json")]
    seconds = {a.manifest["stage"]: float(a.metrics["seconds"]) for a in found}
    return {stage.name: seconds[stage.name] for stage in STAGES if stage.name in seconds}


def _median_seconds(command: Sequence[str], repeats: int) -> float:
    return round(median(run(command).seconds for _ in range(repeats)), 2)


def main() -> None:
    """Measure in a folder that is removed afterwards, or in the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, help="an empty or new folder to build in and to keep (default: a temporary one)")
    parser.add_argument("--trial", action="store_true", help="the smoke profile and 1 repeat, not recorded: does it work?")
    chosen = parser.parse_args()
    if chosen.artifacts and chosen.artifacts.exists() and any(chosen.artifacts.iterdir()):
        sys.exit(f"{chosen.artifacts} is not empty, so stages would come from the cache; name a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = chosen.artifacts or Path(scratch)
        result = measure(artifacts, "smoke", 1) if chosen.trial else measure(artifacts, "full", 5)
    conclude("pipeline_times", result, chosen.trial)


if __name__ == "__main__":
    main()
