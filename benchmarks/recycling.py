"""What recycled layers give in training: seconds an epoch, and the score, beside full fine-tuning and frozen layers without a store.

    python -m benchmarks.recycling ../shared/data/sci-cite ~/.cache/compressor-models/mpnet-base

The folder holds {train,dev,test}.jsonl.gz with columns text and label. Every row is a build by `compress` as far as fine-tuning, so rows
that are done come from its cache. Scores are those of the data's own development split, which nothing was chosen on, seed by seed. An
epoch's seconds are those of its optimizer steps: what filling the store takes, once for all seeds and epochs, is told apart.
"""

import argparse
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.child import COMPRESS, run
from benchmarks.record import conclude

ARTIFACTS = Path("artifacts/benchmarks")
SHARES = ("25%", "50%", "75%", "100%")
DTYPES = ("float32", "float16", "int8")


def main() -> None:
    """Build every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl.gz, dev.jsonl.gz and test.jsonl.gz")
    parser.add_argument("model", type=Path, help="folder of an encoder")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--trial", action="store_true", help="a few steps of every row, to see that it works; records nothing")
    parser.add_argument("--row", action="append", help="only this row, by its name; may be given more than once")
    chosen = parser.parse_args()
    every = planned(chosen)
    if unknown := set(chosen.row or ()) - set(every):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {'; '.join(every)}")
    rows = [_row(name, chosen, *every[name]) for name in chosen.row or every]
    name = f"recycling_{chosen.data.name}_{chosen.model.name}"
    conclude(name, {"epochs": chosen.epochs, "seeds": chosen.seeds, "rows": rows}, chosen.trial)


Planned = tuple[Mapping[str, Any], Mapping[str, Any] | None, int]
"""How a row is fine-tuned, what is recycled for it, and of how many parts of the data it has one."""


def planned(chosen: argparse.Namespace) -> dict[str, Planned]:
    """Return full fine-tuning, frozen layers without a store, recycled layers at several depths and types, adapters, and less data."""
    config = json.loads((chosen.model / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    full, half = {"method": "full"}, {"layer": "50%", "dtype": "float16"}
    adapters = {"method": "adapters", "learning_rate": 10 * chosen.learning_rate}
    rows: dict[str, Planned] = {"full": (full, None, 1), "frozen, 50%": ({"method": "freeze", "frozen_layers": layers // 2}, None, 1)}
    rows |= {f"recycled, {share}, float16": (full, {**half, "layer": share}, 1) for share in SHARES}
    rows |= {f"recycled, 50%, {dtype}": (full, {**half, "dtype": dtype}, 1) for dtype in DTYPES}
    rows |= {"adapters": (adapters, None, 1), "recycled, 50%, float16, adapters": (adapters, half, 1)}
    for part, name in ((2, "half of the data"), (10, "a tenth of the data")):
        rows |= {f"full, {name}": (full, None, part), f"recycled, 50%, float16, {name}": (full, half, part)}
    return rows


def _row(name: str, chosen: argparse.Namespace, method: Mapping[str, Any], recycle: Mapping[str, Any] | None, part: int) -> dict[str, Any]:
    """Build one row from the first of so many parts of the training texts."""
    splits = ("train", "dev", "test")
    train, dev, test = tuple[dict[str, Any], ...]({"path": str((chosen.data / f"{split}.jsonl.gz").resolve())} for split in splits)
    budget = {"epochs": chosen.epochs, "batch_size": 32, "learning_rate": chosen.learning_rate, "seeds": chosen.seeds}
    budget |= {"max_steps": 3} if chosen.trial else {}
    if chosen.trial:
        train["limit"] = dev["limit"] = 96
    if part > 1:
        train["limit"] = _texts(train) // part
    recipe = {
        "version": 1,
        "name": "recycling",
        "task": {"metric": "macro_f1"},
        "data": {"train": train, "validation": dev, "test": test, "max_length": 256},
        "teacher": {"model": str(chosen.model.expanduser().resolve()), "finetune": budget | method},
    }
    recipe |= {"recycle": dict(recycle)} if recycle else {}
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTIFACTS / "recycling.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [*COMPRESS, "run", str(path), "--artifacts", str(ARTIFACTS), "--format", "json", "--until"]
    filled = json.loads(run([*command, "recycle"]).stdout)["metrics"] if recycle else None
    tuned = json.loads(run([*command, "finetune"]).stdout)["metrics"]
    seeds = tuned.get("seeds", {"mean": tuned["validation_score"], "standard_deviation": None})
    row = {"name": name, "score": seeds["mean"], "spread": seeds["standard_deviation"], "learning": tuned["learning_parameters"]}
    row |= {"texts_per_second": tuned["texts_per_second"], "seconds_per_epoch": _texts(train) / tuned["texts_per_second"]}
    row["store"] = filled and {key: filled[key] for key in ("entries", "megabytes", "train", "validation")}
    print(json.dumps(row), flush=True)
    return row


def _texts(split: Mapping[str, Any]) -> int:
    with gzip.open(split["path"], "rt", encoding="utf-8") as file:
        return min(sum(1 for _ in file), split.get("limit", 10**9))


if __name__ == "__main__":
    main()
