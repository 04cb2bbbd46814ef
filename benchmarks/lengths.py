"""What a token's significance, a protected question and LengthDrop training itself give a length-adaptive student, and what they cost.

    python -m benchmarks.lengths recipes/ner.yaml --set data.train=…
    python -m benchmarks.lengths recipes/squad.yaml --set data.train=… --variant attention --variant question

Every variant is the recipe with other settings of `length_adapt`; what comes before is built once. Each is scored at the same length
configurations on the search split, on its INT8 graph, and all are timed in one interleaved run. `plain dropping` has one training step.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import built_here, conclude, recipe_parser
from compressor.artifact import Artifact
from compressor.candidates import Evaluator
from compressor.evolution import Genome
from compressor.inputs import Kind
from compressor.latency import Run, interleaved
from compressor.lengths import LengthConfig
from compressor.loader import load_recipe
from compressor.recipe import Recipe
from compressor.settings.deploying import Search
from compressor.smoke import smoke

ARTIFACTS = Path("artifacts")
USUAL = ["length_adapt.protect=cls", "length_adapt.neighbours=0", "length_adapt.counts=ratio"]
"""What a variant has that does not say otherwise, whatever the recipe says."""
VARIANTS: Mapping[str, list[str]] = {
    "attention": ["length_adapt.significance=attention"],
    "sampled": ["length_adapt.significance=sampled"],
    "cls": ["length_adapt.significance=cls"],
    "learned": ["length_adapt.significance=learned"],
    "attention, absolute counts": ["length_adapt.significance=attention", "length_adapt.counts=absolute"],
    "plain dropping, attention": ["length_adapt.significance=attention", "length_adapt.max_steps=1"],
    "plain dropping, sampled": ["length_adapt.significance=sampled", "length_adapt.max_steps=1"],
    "plain dropping, cls": ["length_adapt.significance=cls", "length_adapt.max_steps=1"],
}
ASKED = {
    "attention, question protected": ["length_adapt.significance=attention", "length_adapt.protect=question"],
    "question": ["length_adapt.significance=question", "length_adapt.protect=question"],
    "question, neighbours": ["length_adapt.significance=question", "length_adapt.protect=question", "length_adapt.neighbours=8"],
}
PLAIN = {f"plain dropping, {name}": [*changes, "length_adapt.max_steps=1"] for name, changes in ASKED.items()}
LEARNED = {
    "learned, question protected": ["length_adapt.significance=learned", "length_adapt.protect=question"],
    "learned, question, neighbours": ["length_adapt.significance=learned", "length_adapt.protect=question", "length_adapt.neighbours=8"],
}
QUESTION = {**ASKED, **LEARNED, **PLAIN}
BOUNDS = (0.05, 0.1, 0.15, 0.2, 0.25)


def main() -> None:
    """Build every variant, score and time it, and record what was found."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--variant", action="append", help="only this variant, by its name; may be given more than once")
    chosen = parser.parse_args()
    every = {**VARIANTS, **(QUESTION if load_recipe(chosen.recipe, chosen.changes).task.type == "question-answering" else {})}
    if unknown := set(chosen.variant or ()) - set(every):
        parser.error(f"no variant {'; '.join(sorted(unknown))}; there are {'; '.join(every)}")
    variants = {name: every[name] for name in chosen.variant or every}
    benches, seconds = dict[str, Evaluator](), dict[str, float]()
    with tempfile.TemporaryDirectory() as scratch:
        for name, changes in variants.items():
            recipe = load_recipe(chosen.recipe, [*USUAL, *chosen.changes, *changes])
            recipe = smoke(recipe) if chosen.trial else recipe
            benches[name], seconds[name] = bench_of(recipe, Path(scratch))
    rows = compare(benches)
    conclude(f"lengths_{recipe.name}", {"recipe": str(chosen.recipe), "training_seconds": seconds, "rows": rows}, chosen.trial)


def bench_of(recipe: Recipe, out: Path, split: str = "search") -> tuple[Evaluator, float]:
    """Build a recipe up to its INT8 graph; return what scores and times it, and the seconds of its length-adaptive training.

    Layers' lengths are all that a configuration has: what these are held against reads whole texts.
    """
    int8 = built_here(recipe, ARTIFACTS, until="quantize")
    inputs: dict[Kind, Artifact] = {kind: Artifact(ARTIFACTS / link["path"]) for kind, link in int8.manifest["inputs"].items()}
    search = (recipe.search or Search()).model_copy(update={"truncate": False})
    recipe = recipe.model_copy(update={"search": search})
    return Evaluator(recipe, {**inputs, "int8_graph": int8}, out, split), inputs["checkpoint"].metrics["seconds"]


def compare(benches: Mapping[str, Evaluator]) -> list[dict[str, Any]]:
    """Return each variant's score and latency at each configuration."""
    first = next(iter(benches.values()))
    space = first.space
    configurations: list[Genome] = [space.full]
    configurations += [space.repaired(LengthConfig.smallest(space.layers, space.max_length, bound).lengths) for bound in BOUNDS]

    def timed(bench: Evaluator, lengths: Genome) -> Run:
        return lambda number: bench.timed.logits(bench.requests[number], lengths)

    runs = {f"{name} {lengths}": timed(bench, lengths) for name, bench in benches.items() for lengths in configurations}
    times = interleaved(runs, range(len(first.requests)))
    rows = []
    for name, bench in benches.items():
        for lengths in configurations:
            score = bench.data.score(bench.scorer.logits(bench.data.tokens, lengths), bench.metric)
            latency = dataclasses.asdict(times[f"{name} {lengths}"])
            rows.append({"variant": name, "lengths": lengths, "macs": bench.macs(lengths), "score": score, **latency})
            print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
