"""What benchmarks share: their options, and a result written beside what it depends on: command, day, machine and versions."""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from compressor import __version__, machine, pipeline
from compressor.artifact import Artifact, write_json
from compressor.locks import only_build
from compressor.progress import Progress
from compressor.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers", "accelerate")


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a benchmark that builds a recipe."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--trial", action="store_true", help="a sliver of the data, to see that it works; records nothing")
    return parser


def built_here(recipe: Recipe, artifacts: Path, until: str | None = None) -> Artifact:
    """Build a recipe in this process, alone in the folder as `compress` would, and return its last artifact."""
    with only_build(recipe.name, artifacts):
        return pipeline.run(recipe, artifacts, Progress(), until=until)


def record(name: str, result: dict[str, Any], command: str | None = None) -> Path:
    """Write benchmarks/results/NAME.json and return its path; without a command, the one that runs now is recorded."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    facts = {
        "command": command or shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "versions": {"compressor": __version__, **machine.versions(*PACKAGES)},
    }
    write_json(path, {**facts, "result": result})
    return path


def conclude(name: str, result: dict[str, Any], trial: bool) -> None:
    """Record a result and say where; a trial's figures mean nothing, so they are only printed."""
    if trial:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print(record(name, result))
