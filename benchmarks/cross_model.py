"""Whether what a large model's layers made of texts can be read by a small model's upper layers, through a learned projection.

    python -m benchmarks.cross_model ../shared/data/sciie-relation-extraction ~/.cache/compressor-models/mpnet-base \\
        ~/.cache/compressor-models/minilm-l6-h384

The authors of embedding recycling (arXiv:2207.04993) saw a loss. The folder holds {train,dev}.jsonl.gz with columns text and label. All
rows learn for the same epochs above layers that never change, whose outputs come from a store; scores are macro F1 on the data's own
development split, which nothing was chosen on, seed by seed. `projected` rows have a linear layer and a normalisation, from the large
model's width to the small one's, in the place of the small model's own lower layers.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import conclude
from compressor.classification import TextClassification
from compressor.data import Example, read_examples
from compressor.encoded import Encoded, pad_id_of, tokenizer_of
from compressor.families import shape_of
from compressor.files import Columns
from compressor.losses import label_loss
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.recycling import Lower, Recycled, learning
from compressor.reuse import stored
from compressor.scoring import autocast, inputs_of, score_of
from compressor.seeds import APART
from compressor.settings.training import Recycle, Training
from compressor.training import fit

TASK, MAX_LENGTH, CPU = TextClassification(), 256, torch.device("cpu")


class Projected(nn.Module):
    """States of one width into what reads another."""

    def __init__(self, upper: nn.Module, widths: tuple[int, int]) -> None:
        super().__init__()
        self.upper = upper
        self.projection = nn.Sequential(nn.Linear(*widths), nn.LayerNorm(widths[1]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, states: Tensor) -> Tensor:
        """Return the logits of the large model's states (batch, seq, width)."""
        logits: Tensor = self.upper(input_ids, attention_mask, token_type_ids, self.projection(states))
        return logits


def main() -> None:
    """Train every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl.gz and dev.jsonl.gz")
    parser.add_argument("large", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="of the small model's layers, and of a head alone")
    parser.add_argument("--large-learning-rate", type=float, default=1.5e-4, help="of the large model's upper layers")
    parser.add_argument("--trial", action="store_true", help="a few steps of every row, to see that it works; records nothing")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(rows_of(chosen, Path(folder)))
    conclude(f"cross_model_{chosen.data.name}", {"epochs": chosen.epochs, "seeds": chosen.seeds, "rows": rows}, chosen.trial)


def rows_of(chosen: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Yield the small model above its own layers, above the large one's, and the large one above its own."""
    examples, labels = texts_of(chosen)
    counts = {who: shape_of(load_model(getattr(chosen, who), labels)).layers for who in ("large", "small")}
    half = counts["small"] // 2
    for lower, layers, upper, above in (
        ("small", half, "small", half),
        ("large", counts["large"] // 2, "small", half),
        ("large", counts["large"], "small", half),
        ("large", counts["large"], "small", counts["small"]),
        ("large", counts["large"] // 2, "large", counts["large"] // 2),
        ("large", counts["large"], "large", counts["large"]),
    ):
        row = _row(chosen, examples, labels, (lower, layers), (upper, above), scratch)
        print(row, flush=True)
        yield row


def _row(
    chosen: argparse.Namespace,
    examples: dict[str, list[Example]],
    labels: tuple[str, ...],
    below: tuple[str, int],
    top: tuple[str, int],
    scratch: Path,
) -> dict[str, Any]:
    """Train the layers of `top` above its first so many, from what the first layers of `below` made, and return the scores."""
    source, log = getattr(chosen, below[0]), Progress(quiet=True)
    model = load_model(source, labels)
    alone, lower = top == (below[0], shape_of(model).layers), Lower(model, below[1], CPU, autocast("auto", CPU))
    with stored(lower, lower.digest(), source, Recycle(layer=below[1]), scratch, log) as store:
        read = {name: Recycled.of(encoded(source, own, labels), lower, store) for name, own in examples.items()}

        def wrapped(upper: nn.Module, width: int) -> nn.Module:
            return upper if below[0] == top[0] else Projected(upper, (shape_of(lower.model.model).width, width))

        rate = chosen.learning_rate if top[0] == "small" or alone else chosen.large_learning_rate
        own = argparse.Namespace(**{**vars(chosen), "learning_rate": rate})
        found = scores_above(own, getattr(chosen, top[0]), top[1], labels, read, wrapped)
    facts = {"states": f"{below[0]}, layer {below[1]}", "above": f"{top[0]}, from layer {top[1] + 1}", "projected": below[0] != top[0]}
    return facts | {"learning_rate": rate} | found


def texts_of(chosen: argparse.Namespace) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """Return the examples of train and dev, and their labels."""
    limit = 96 if chosen.trial else None
    examples = {
        name: list(read_examples(str((chosen.data / f"{name}.jsonl.gz").resolve()), Columns(), TASK, root=Path(), split=name, limit=limit))
        for name in ("train", "dev")
    }
    return examples, tuple(sorted({str(e.label) for own in examples.values() for e in own}))


def scores_above(
    chosen: argparse.Namespace,
    model_folder: Path,
    layers: int,
    labels: tuple[str, ...],
    read: Mapping[str, Recycled],
    wrapped: Callable[[nn.Module, int], nn.Module],
) -> dict[str, Any]:
    """Train a model's upper layers from recycled states, seed by seed, and return mean and spread of macro F1, and texts a second."""
    settings = Training(epochs=chosen.epochs, learning_rate=chosen.learning_rate, max_steps=3 if chosen.trial else None)
    scores, rates = list[float](), list[float]()
    for split in read.values():
        list(split.fill())
    for seed in range(0, APART if chosen.trial else chosen.seeds * APART, APART):
        torch.manual_seed(seed)
        model = load_model(model_folder, labels)
        with learning(model, layers) as upper, tempfile.TemporaryDirectory() as state:
            forward = wrapped(upper, shape_of(model).width)

            def losses(batch: dict[str, Tensor], _: object, forward: nn.Module = forward) -> list[Tensor]:
                return [label_loss(forward(*inputs_of(batch)), batch["labels"], batch["attention_mask"].bool(), TASK.choice)]

            fitted = fit(forward, losses, read["train"], settings, seed, Path(state), Progress(quiet=True))
            scores.append(score_of(forward, read["dev"], "macro_f1"))
            rates.append(fitted.texts_per_second)
    return {"score": mean(scores), "spread": stdev(scores) if len(scores) > 1 else None, "texts_per_second": mean(rates)}


def encoded(folder: Path, examples: list[Example], labels: tuple[str, ...]) -> Encoded:
    """Return the texts as a model reads them."""
    windows = TASK.windows(tokenizer_of(folder), examples, MAX_LENGTH, 0)
    return Encoded(TASK, windows, TASK.targets(windows, examples, labels), labels, examples, pad_id_of(folder))


if __name__ == "__main__":
    main()
