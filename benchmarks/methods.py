"""What each distillation objective and each fine-tuning method gives: same data, same budget, several seeds, mean and spread.

    python -m benchmarks.methods --shared ../shared --models ~/.cache/compressor-models sst2-10k sci-cite

Every row is a build by `compress`, so rows that are done come from its cache, and an interrupted benchmark goes on. Scores are those of a
split of the data's own, which nothing was chosen on: the last epoch counts, and each seed's score is in the result.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import built
from benchmarks.record import conclude

RECIPE = Path("artifacts/benchmarks/methods.yaml")
SEEDS = 3
SOFT = {"type": "soft_labels", "temperature": 2.0}
LABELS = {"type": "labels", "weight": 0.2}


@dataclass(frozen=True)
class Study:
    """A data set, how long its texts may be, and the budget that every row gets."""

    files: Mapping[str, str]
    columns: Mapping[str, str]
    metric: str
    max_length: int
    epochs: int
    limit: int | None = None


def _files(folder: str, kind: str, **splits: str) -> dict[str, str]:
    """Return the file of train and of each split; search is named because a share of train, cut off for it, would be missed there."""
    return {split: f"{folder}/{name}.{kind}.gz" for split, name in {"train": "train", **splits}.items()}


STUDIES = {
    "sst2-10k": Study(_files("sst2", "tsv", test="dev", search="test"), {"text": "sentence"}, "accuracy", 64, 2, 10_000),
    "sci-cite": Study(_files("sci-cite", "jsonl", test="test", search="dev"), {}, "macro_f1", 128, 2),
}

MINILM: Mapping[str, Any] = {"model": "minilm-l6-h384"}
BILSTM: Mapping[str, Any] = {"bilstm": {"embeddings": "minilm-l6-h384"}}


def _then_soft_labels(first: str) -> list[dict[str, Any]]:
    """Return objectives of two phases: a third of the steps inside the models, then the answers."""
    return [{"type": first, "end": 0.33}, SOFT | {"start": 0.33}, LABELS | {"start": 0.33}]


STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "labels": {"student": MINILM, "objectives": [{"type": "labels"}]},
    "soft_labels": {"student": MINILM, "objectives": [SOFT, LABELS]},
    "logits": {"student": MINILM, "objectives": [{"type": "logits"}]},
    "hidden_cosine + soft_labels": {"student": MINILM, "objectives": [{"type": "hidden_cosine"}, SOFT, LABELS]},
    "minilm, then soft_labels": {"student": MINILM, "objectives": _then_soft_labels("minilm")},
    "minilmv2, then soft_labels": {"student": MINILM, "objectives": _then_soft_labels("minilmv2")},
    "tinybert, then soft_labels": {"student": MINILM, "objectives": _then_soft_labels("tinybert")},
    "soft_labels, augmented": {"student": MINILM, "objectives": [SOFT, LABELS], "augment": {"copies": 1}, "epochs_factor": 0.5},
    "bilstm: labels": {"student": BILSTM, "objectives": [{"type": "labels"}], "learning_rate": 1e-3},
    "bilstm: logits": {"student": BILSTM, "objectives": [{"type": "logits"}], "learning_rate": 1e-3},
    "bilstm: logits, augmented": {
        "student": BILSTM,
        "objectives": [{"type": "logits"}],
        "learning_rate": 1e-3,
        "augment": {"copies": 10},
        "epochs_factor": 1 / 11,
    },
}
"""Rows of the table of objectives; `epochs_factor` keeps the number of steps where there are more texts."""

FINETUNING: Mapping[str, Mapping[str, Any]] = {
    "full": {"learning_rate": 1.5e-4},
    "freeze, 3 of 6 layers": {"method": "freeze", "frozen_layers": 3, "learning_rate": 1.5e-4},
    "freeze, all but the head": {"method": "freeze", "learning_rate": 1e-3},
    "bitfit": {"method": "bitfit", "learning_rate": 1e-3},
    "adapters": {"method": "adapters", "learning_rate": 1e-3},
    "lora": {"method": "lora", "learning_rate": 1e-3},
}
"""Rows of the table of fine-tuning methods, all of MiniLM 6x384."""


def main() -> None:
    """Build every row of the chosen studies and write a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/sst2 and data/sci-cite")
    parser.add_argument("--models", type=Path, required=True, help="folder with mpnet-base and minilm-l6-h384")
    parser.add_argument("--trial", action="store_true", help="a few steps of every row, to see that it works; records nothing")
    chosen = parser.parse_args()
    for name in chosen.studies:
        conclude(f"methods_{name}", {"metric": STUDIES[name].metric, "seeds": SEEDS, "rows": list(rows_of(name, chosen))}, chosen.trial)


def rows_of(name: str, chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measured rows of a study: the teacher, the students, the fine-tuning methods."""
    study = STUDIES[name]
    data = {**study.columns, "max_length": study.max_length}
    data |= {split: {"path": str((chosen.shared / "data" / path).resolve())} for split, path in study.files.items()}
    data["validation"] = data["test"]  # nothing is chosen on it: the last epoch counts
    if study.limit:
        data["train"] = {**data["train"], "limit": study.limit}
    short = {"max_steps": 3} if chosen.trial else {}
    budget = {"batch_size": 64, "seeds": 2 if chosen.trial else SEEDS, **short}
    tuned = {"epochs": study.epochs, "batch_size": 64, "learning_rate": 4e-5, **short}
    teacher = {"model": str(chosen.models.resolve() / "mpnet-base"), "finetune": tuned}
    yield _row("teacher", "mpnet-base", _build(name, data, teacher, until="finetune"))
    for row, settings in STUDENTS.items():
        given = dict(settings)
        epochs = study.epochs * given.pop("epochs_factor", 1)
        distill = {"learning_rate": 1.5e-4} | budget | {"epochs": epochs} | given
        distill["student"] = _with_folders(settings["student"], chosen.models.resolve())
        yield _row("objectives", row, _build(name, data, teacher, distill, until="distill"))
    for row, settings in FINETUNING.items():
        encoder = {"model": str(chosen.models.resolve() / "minilm-l6-h384"), "finetune": budget | {"epochs": study.epochs} | settings}
        yield _row("fine-tuning", row, _build(name, data, encoder, until="finetune"))


def _with_folders(student: Mapping[str, Any], models: Path) -> dict[str, Any]:
    return {k: _with_folders(v, models) if isinstance(v, dict) else str(models / v) for k, v in student.items()}


def _build(name: str, data: Mapping[str, Any], teacher: Mapping[str, Any], distill: Mapping[str, Any] | None = None, *, until: str) -> Any:
    """Build a recipe as far as its training goes and return what that measured."""
    recipe = {"version": 1, "name": f"methods-{name}", "data": data, "teacher": teacher} | ({"distill": distill} if distill else {})
    recipe["task"] = {"type": "text-classification", "metric": STUDIES[name].metric}
    return built(recipe, RECIPE, until)


def _row(kind: str, name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    score = metrics["validation_score"]
    seeds = metrics.get("seeds", {"scores": [score], "mean": score, "standard_deviation": None})
    row = {
        "table": kind,
        "name": name,
        "score": seeds["mean"],
        "spread": seeds["standard_deviation"],
        "scores": seeds["scores"],
    }
    facts = {"parameters": metrics["parameters"], "learning": metrics.get("learning_parameters", metrics["parameters"])}
    row |= facts | {"seconds": round(metrics["seconds"]), "steps": metrics["steps"]}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
