"""What each INT8 backend loses and how fast it is: on the test split of a recipe, against its float graph.

    python -m benchmarks.quantizers recipes/quickstart.yaml

The recipe is built up to its INT8 graphs in ./artifacts, where stages that are there already are taken from the cache.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import built_here, conclude, recipe_parser
from compressor.artifact import Artifact
from compressor.encoded import Encoded
from compressor.latency import interleaved, sample, timed
from compressor.lengths import LengthConfig
from compressor.loader import load_recipe
from compressor.plan import check_extras
from compressor.quantizers import QUANTIZERS
from compressor.recipe import Recipe
from compressor.session import Graph
from compressor.smoke import smoke
from compressor.splits import MODEL, Splits, task_of

ARTIFACTS = Path("artifacts")
BACKENDS = tuple(QUANTIZERS)
TEXTS, STREAM, ROUNDS = 64, 512, 5


def main() -> None:
    """Build both graphs, score and time them, and record what was found."""
    chosen = recipe_parser(__doc__).parse_args()
    graphs, found = dict[str, tuple[Path, bool]](), dict[str, Artifact]()
    recipes = {name: load_recipe(chosen.recipe, [*chosen.changes, f"quantize.backend={name}"]) for name in BACKENDS}
    for recipe in recipes.values():
        check_extras(recipe)
    for backend, recipe in recipes.items():
        recipe = smoke(recipe) if chosen.trial else recipe
        int8 = built_here(recipe, ARTIFACTS, until="quantize")
        found = {kind: Artifact(ARTIFACTS / link["path"]) for kind, link in int8.manifest["inputs"].items()}
        graphs[backend] = (int8.path / "model.onnx", bool(int8.metrics["single"]))
    graphs = {"float": (found["float_graph"].path / "model.onnx", False), **graphs}
    data = Splits.of(found["data"]).encoded("test", task_of(recipe), found["checkpoint"].path / MODEL)
    rows = compare(recipe, data, graphs)
    conclude(f"quantizers_{recipe.name}", {"recipe": str(chosen.recipe), "texts": len(data), "rows": rows}, chosen.trial)


def compare(recipe: Recipe, data: Encoded, files: dict[str, tuple[Path, bool]]) -> list[dict[str, Any]]:
    """Return each graph's score, its distance from float at two lengths, its latency and its texts a second."""
    rows = {name: dict[str, Any]({"graph": name, "megabytes": path.stat().st_size / 1e6}) for name, (path, _) in files.items()}
    for length, lengths in _lengths(recipe, data, files["float"][0]).items():
        logits = {
            name: Graph(path, 2, single=single, pad_id=data.pad_id).logits(data.tokens, lengths) for name, (path, single) in files.items()
        }
        for name, own in logits.items():
            rows[name] |= {f"score_{length}": data.score(own, recipe.task.metric)}
            rows[name] |= {f"divergence_{length}": data.divergence(own, logits["float"])}
    singles = {name: Graph(path, single=False, pad_id=data.pad_id) for name, (path, _) in files.items()}
    runs = {name: lambda row, g=graph: g.run(data.tokens.of_text(row)) for name, graph in singles.items()}
    for name, latency in interleaved(runs, sample(data.tokens.lengths.tolist(), TEXTS)).items():
        rows[name] |= dataclasses.asdict(latency)
    stream = data.tokens.rows(sample(data.tokens.lengths.tolist(), STREAM))
    for threads in (1, 2):
        graphs = {name: Graph(path, threads, single=single, pad_id=data.pad_id) for name, (path, single) in files.items()}
        streams = {name: lambda _, g=graph: g.logits(stream) for name, graph in graphs.items()}
        for name, times in timed(streams, [0], ROUNDS).items():
            rows[name][f"texts_per_second_{threads}_threads"] = 1000 * len(stream) / float(np.median(times))
    for row in rows.values():
        print(json.dumps(row), flush=True)
    return list(rows.values())


def _lengths(recipe: Recipe, data: Encoded, graph: Path) -> dict[str, tuple[int, ...] | None]:
    if recipe.length_adapt is None:
        return {"full": None}
    layers = next(i.shape[0] for i in Graph(graph, single=False).session.get_overridable_initializers() if i.name == "lengths")
    full = recipe.data.max_length
    return {"full": None, "smallest": LengthConfig.smallest(layers, full, recipe.length_adapt.bound, recipe.length_adapt.smallest).lengths}


if __name__ == "__main__":
    main()
