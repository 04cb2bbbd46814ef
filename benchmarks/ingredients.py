"""What each ingredient of recipes/sst2.yaml gives the student: soft labels, relations, augmented text.

    python -m benchmarks.ingredients --set data.train=… --set data.validation=… --set data.search=… --set data.test=… --set teacher.model=…

Rows have the same number of steps, those of the row with augmented text, of which copies that came out unchanged are left out. The
teacher is built once; every row comes from the cache when it is there. Scores are those of the test split, in torch, before length
adaptation and INT8.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import built_here, conclude
from compressor.artifact import Artifact
from compressor.checkpoint import load_plain
from compressor.loader import load_recipe
from compressor.modeling import PlainModel
from compressor.recipe import Recipe
from compressor.scores import interval
from compressor.scoring import predict
from compressor.smoke import smoke
from compressor.splits import MODEL, Splits, task_of

RECIPE, ARTIFACTS = Path("recipes/sst2.yaml"), Path("artifacts")
AUGMENTED = "+ augmented text"
SOFT = {"type": "soft_labels", "temperature": 2.0}


def rows_of(recipe: Recipe) -> Mapping[str, Sequence[str]]:
    """Return the changes of each row."""
    assert recipe.distill is not None
    assert recipe.distill.augment is not None
    longest = f"distill.epochs={recipe.distill.epochs * (1 + recipe.distill.augment.copies)}"  # more than the steps that the others get
    plain = ["distill.augment=null", longest]
    return {
        "labels": [*plain, "distill.objectives=[{type: labels}]"],
        "+ soft labels": [*plain, f"distill.objectives={json.dumps([SOFT, {'type': 'labels', 'weight': 0.2}])}"],
        "+ relations": plain,
        AUGMENTED: [],
    }


def main() -> None:
    """Build every row and record its score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--trial", action="store_true", help="a sliver of the data, to see that it works; records nothing")
    chosen = parser.parse_args()
    every, rows = rows_of(load_recipe(RECIPE, chosen.changes)), dict[str, dict[str, Any]]()
    for name in sorted(every, key=lambda name: name != AUGMENTED):  # first: the others take as many steps
        steps = [f"distill.max_steps={rows[AUGMENTED]['steps']}"] if rows else []
        recipe = load_recipe(RECIPE, [*chosen.changes, *every[name], *steps])
        recipe = smoke(recipe) if chosen.trial else recipe
        rows[name] = {"name": name, **scored(recipe, built_here(recipe, ARTIFACTS, until="distill"))}
        print(json.dumps(rows[name]), flush=True)
    teacher = scored(recipe, built_here(recipe, ARTIFACTS, until="finetune"))
    conclude("ingredients", {"teacher": teacher, "students": [rows[name] for name in every]}, chosen.trial)


def scored(recipe: Recipe, artifact: Artifact) -> dict[str, Any]:
    """Return a checkpoint's score on the test split with its interval, and what its training took."""
    data = ARTIFACTS / artifact.manifest["inputs"]["data"]["path"]
    splits, task = Splits.of(Artifact(data)), task_of(recipe)
    model = PlainModel(load_plain(artifact, splits.labels, task.head)).eval()
    test = splits.encoded("test", task, artifact.path / MODEL)
    logits = predict(lambda b: model(b["input_ids"], b["attention_mask"], b["token_type_ids"]), test)
    metric, metrics = recipe.task.metric, artifact.metrics
    low, high = interval(task.metrics[metric], test.outcomes(logits))
    facts = {"validation": metrics["validation_score"], "seconds": round(metrics["seconds"]), "steps": metrics["steps"]}
    return {"score": test.score(logits, metric), "low": low, "high": high, **facts}


if __name__ == "__main__":
    main()
