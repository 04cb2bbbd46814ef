"""What a recipe gives and how long it takes: a whole build as a user would run it.

    python -m benchmarks.build recipes/sst2.yaml --set data.train=../shared/data/sst2/train.tsv.gz …

The result is called after the recipe's name, which `--set name=…` changes. The artifacts folder is a new one, so that nothing comes from
the cache, unless one is named: then `cached` says which stages were there before.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import COMPRESS, run
from benchmarks.record import conclude, recipe_parser
from compressor import builds
from compressor.artifact import Artifact
from compressor.errors import GateError
from compressor.loader import load_recipe

KEPT = ("data", "variants", "points", "cascade", "gates", "findings", "stage_gains", "baselines", "front")


def measure(recipe: Path, changes: list[str], artifacts: Path, profile: str) -> dict[str, Any]:
    """Build the recipe and return what its bundle's report says, with the build's own cost."""
    before = {folder.name for folder in artifacts.glob("*-*")}
    sets = [part for change in changes for part in ("--set", change)]
    command = [*COMPRESS, "run", str(recipe), *sets, "--artifacts", str(artifacts), "--profile", profile, "--format", "json"]
    ended = run(command, allowed=(0, GateError.exit_code))
    told = json.loads(ended.stdout)
    result = {"recipe": str(recipe), "exit_code": ended.exit_code, "minutes": round(ended.seconds / 60, 1)}
    result |= {"peak_memory_mb": round(ended.peak_bytes / 1e6), "cached": sorted(before)}
    if "bundle" not in told:
        used = builds.read(builds.path_of(artifacts, Path(told["encoder"]).name)).used
        seconds = {name.rpartition("-")[0]: Artifact(artifacts / name).metrics["seconds"] for name in used}
        return result | {"stages": {name: {"seconds": own} for name, own in seconds.items()}, "metrics": told["metrics"]}
    metrics = json.loads((Path(told["bundle"]) / "metrics.json").read_text(encoding="utf-8"))
    stages = {stage["name"]: {"seconds": stage["seconds"], "summary": stage["summary"]} for stage in metrics["stages"]}
    return result | {"stages": stages} | {key: metrics[key] for key in KEPT}


def main() -> None:
    """Build in a folder that is removed afterwards, or in the one that is named."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--artifacts", type=Path, help="a folder to build in and to keep (default: a temporary one)")
    chosen = parser.parse_args()
    if not chosen.recipe.exists():
        sys.exit(f"{chosen.recipe}: no such recipe")
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(chosen.recipe, chosen.changes, chosen.artifacts or Path(scratch), "smoke" if chosen.trial else "full")
    conclude(f"build_{load_recipe(chosen.recipe, chosen.changes).name}", result, chosen.trial)


if __name__ == "__main__":
    main()
