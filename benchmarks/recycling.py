"""What recycled layers give in training: seconds an epoch, and the score, beside full fine-tuning and frozen layers without a store.

    python -m benchmarks.recycling ../shared/data/sci-cite ~/.cache/compressor-models/mpnet-base

The folder holds {train,dev}.jsonl.gz with columns text and label, {train,dev}.conll.gz with tagged words, or SQuAD's own two files. Every
row is a build by `compress` as far as fine-tuning, so rows that are done come from its cache. Scores are those of the data's own
development split, which nothing was chosen on, seed by seed. An epoch's seconds are those of its optimizer steps: what filling the store
takes, once for all seeds and epochs, is told apart.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import built
from benchmarks.record import conclude

RECIPE = Path("artifacts/benchmarks/recycling.yaml")
SHARES = ("25%", "50%", "75%", "100%")
DTYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Form:
    """How a data set lies on disk, and what is learned from it: file names, task, metric, and a text's most tokens."""

    train: str
    dev: str
    test: str | None
    task: str
    metric: str
    max_length: int


FORMS = (
    Form("train.jsonl.gz", "dev.jsonl.gz", "test.jsonl.gz", "text-classification", "macro_f1", 256),
    Form("train.conll.gz", "dev.conll.gz", "test.conll.gz", "token-classification", "entity_f1", 128),
    Form("train-v1.1.json.gz", "dev-v1.1.json.gz", None, "question-answering", "f1", 256),
)


def main() -> None:
    """Build every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of a data set")
    parser.add_argument("model", type=Path, help="folder of an encoder")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--recycled-learning-rate", type=float, help="of the rows whose first layers are recycled (default: the same)")
    parser.add_argument("--metric", help="by what answers are scored (default: the task's usual one)")
    parser.add_argument("--limit", type=int, help="only the first so many training and so many development examples")
    parser.add_argument("--trial", action="store_true", help="a few steps of every row, to see that it works; records nothing")
    parser.add_argument("--row", action="append", help="only this row, by its name; may be given more than once")
    chosen = parser.parse_args()
    form = next((form for form in FORMS if (chosen.data / form.train).exists()), None)
    if form is None:
        parser.error(f"{chosen.data} holds none of {', '.join(form.train for form in FORMS)}")
    every = planned(chosen)
    if unknown := set(chosen.row or ()) - set(every):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {'; '.join(every)}")
    recipes = {name: _prepared(form, chosen, *every[name]) for name in chosen.row or every}  # all of them, before the hours
    rows = [_row(name, recipe, chosen) for name, recipe in recipes.items()]
    budget = {name: getattr(chosen, name) for name in ("epochs", "seeds", "batch_size", "learning_rate")}
    budget |= {"recycled_learning_rate": chosen.recycled_learning_rate or chosen.learning_rate, "metric": chosen.metric or form.metric}
    conclude(f"recycling_{chosen.data.name}_{chosen.model.name}", {**budget, "rows": rows}, chosen.trial)


Planned = tuple[Mapping[str, Any], Mapping[str, Any] | None, int]
"""How a row is fine-tuned, what is recycled for it, and of how many parts of the data it has one."""


def planned(chosen: argparse.Namespace) -> dict[str, Planned]:
    """Return full fine-tuning, frozen layers without a store, recycled layers at several depths and types, adapters, and less data."""
    config = json.loads((chosen.model / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    full, half = {"method": "full"}, {"layer": "50%", "dtype": "float16"}
    above = full | {"learning_rate": chosen.recycled_learning_rate or chosen.learning_rate}  # fewer weights bear, and need, larger steps
    adapters = {"method": "adapters", "learning_rate": 10 * chosen.learning_rate}
    rows: dict[str, Planned] = {
        "full": (full, None, 1),
        "frozen, 50%": (above | {"method": "freeze", "frozen_layers": layers // 2}, None, 1),
    }
    rows |= {f"recycled, {share}, float16": (above, {**half, "layer": share}, 1) for share in SHARES}
    rows |= {f"recycled, 50%, {dtype}": (above, {**half, "dtype": dtype}, 1) for dtype in DTYPES}
    rows |= {"adapters": (adapters, None, 1), "recycled, 50%, float16, adapters": (adapters, half, 1)}
    for part, name in ((2, "half of the data"), (10, "a tenth of the data")):
        rows |= {f"full, {name}": (full, None, part), f"recycled, 50%, float16, {name}": (above, half, part)}
    return rows


def _prepared(
    form: Form, chosen: argparse.Namespace, method: Mapping[str, Any], recycle: Mapping[str, Any] | None, part: int
) -> dict[str, Any]:
    """Return the recipe of a row that learns from the first of so many parts of the training texts, whose data is built.

    Of fewer texts not all have a rare label: what has one that is not learned counts in no score.
    """
    recipe = _recipe(form, chosen, method, recycle)
    found = built(recipe, RECIPE, "data")
    if part > 1:
        recipe["data"]["train"]["limit"], recipe["data"]["unknown_labels"] = found["examples"]["train"] // part, "skip"
        built(recipe, RECIPE, "data")
    return recipe


def _row(name: str, recipe: dict[str, Any], chosen: argparse.Namespace) -> dict[str, Any]:
    """Build one row and return what it measured."""
    texts = built(recipe, RECIPE, "data")["examples"]["train"]
    filled = built(recipe, RECIPE, "recycle") if "recycle" in recipe else None
    tuned = built(recipe, RECIPE, "finetune")
    read = tuned["steps"] * chosen.batch_size / chosen.epochs  # windows, of which a text may have several
    seeds = tuned.get("seeds", {"mean": tuned["validation_score"], "standard_deviation": None})
    row = {"name": name, "score": seeds["mean"], "spread": seeds["standard_deviation"], "learning": tuned["learning_parameters"]}
    row |= {"texts": texts, "texts_per_second": tuned["texts_per_second"], "seconds_per_epoch": read / tuned["texts_per_second"]}
    row["store"] = filled and {key: filled[key] for key in ("entries", "megabytes", "train", "validation")}
    print(json.dumps(row), flush=True)
    return row


def _recipe(form: Form, chosen: argparse.Namespace, method: Mapping[str, Any], recycle: Mapping[str, Any] | None) -> dict[str, Any]:
    train, dev = ({"path": str((chosen.data / file).resolve()), "limit": chosen.limit} for file in (form.train, form.dev))
    dev |= {"limit": 96} if chosen.trial else {}  # train stays whole: the first of its texts may lack a label
    budget = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "learning_rate": chosen.learning_rate, "seeds": chosen.seeds}
    budget |= {"max_steps": 3} if chosen.trial else {}
    splits: dict[str, Any] = {"train": train, "validation": dev}  # a search split, which nothing reads here, is cut from train
    splits |= {"test": str((chosen.data / form.test).resolve())} if form.test else {}
    recipe = {
        "version": 1,
        "name": "recycling",
        "task": {"type": form.task, "metric": chosen.metric or form.metric},
        "data": {**splits, "max_length": form.max_length},
        "teacher": {"model": str(chosen.model.expanduser().resolve()), "finetune": budget | method},
    }
    return recipe | ({"recycle": dict(recycle)} if recycle else {})


if __name__ == "__main__":
    main()
