"""Whether a store may keep only the tokens that count: a late start of length adaptation, above the layers that run once per text.

    python -m benchmarks.late_start ../shared/data/sciie-relation-extraction ~/.cache/compressor-models/minilm-l6-h384

Of each text the states of layer k are kept for a share of its tokens, those that receive most attention there, [CLS] among them, in their
order; the layers above learn from, and answer from, these alone. The folder holds {train,dev}.jsonl.gz with columns text and label; scores
are macro F1 on the data's own development split, seed by seed. The model is a BERT, RoBERTa, ELECTRA or DistilBERT, whose upper layers do
not ask where a token stood.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cross_model import CPU, encoded, scores_above, texts_of
from benchmarks.record import conclude
from compressor.families import shape_of
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.recycling import Lower, Recycled, learning
from compressor.reuse import stored
from compressor.scoring import autocast, inputs_of, on
from compressor.settings.training import Recycle
from compressor.tokens import Floats, Ints, Tokens

KEPT = (1.0, 0.75, 0.5, 0.25)
TIMED = 64


class Late(Lower):
    """Frozen layers of whose last one only the tokens that receive most attention are kept."""

    share = 1.0

    @torch.no_grad()
    def states(self, tokens: Tokens, pad_id: int) -> list[Floats]:
        """Return the states of each text's kept tokens, float32 (kept, width)."""
        batch = {name: torch.from_numpy(array) for name, array in tokens.padded(pad_id).items()}
        self.model.model.set_attn_implementation("eager")
        with self.precision:
            found = self.model.model.base_model(batch["input_ids"], batch["attention_mask"], output_attentions=True)
        real = batch["attention_mask"].bool()
        received = (found.attentions[-1].float().sum(1) * real[:, :, None]).sum(1)  # (batch, keys), from all heads and real tokens
        received[:, 0] = torch.inf
        kept = []
        for states, own, count in zip(found.last_hidden_state.float(), received, tokens.lengths.tolist(), strict=True):
            rows = own[:count].topk(math.ceil(count * self.share)).indices.sort().values
            kept.append(states[rows].numpy())
        return kept


class Kept(Recycled):
    """A split whose batches are as long as what was kept of their texts."""

    def batch(self, rows: Ints, draw: int = 0) -> dict[str, NDArray[Any]]:
        """Return a batch as Recycled does, cut to the kept tokens."""
        arrays, counts = super().batch(rows, draw), np.array([len(own) for own in self.known(rows)])
        cut = {name: arrays[name][:, : counts.max()] for name in ("input_ids", "attention_mask", "token_type_ids", "states")}
        cut["attention_mask"] = (np.arange(counts.max()) < counts[:, None]).astype(np.int64)
        return {**arrays, **cut}


def main() -> None:
    """Train every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.jsonl.gz and dev.jsonl.gz")
    parser.add_argument("model", type=Path)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--trial", action="store_true", help="a few steps of every row, to see that it works; records nothing")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(rows_of(chosen, Path(folder)))
    result = {"epochs": chosen.epochs, "seeds": chosen.seeds, "rows": rows}
    conclude(f"late_start_{chosen.data.name}_{chosen.model.name}", result, chosen.trial)


def rows_of(chosen: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each share of the tokens that is kept."""
    examples, labels = texts_of(chosen)
    half = shape_of(load_model(chosen.model, labels)).layers // 2
    for share in KEPT:
        lower = Late(load_model(chosen.model, labels), half, CPU, autocast("auto", CPU))
        lower.share = share
        with stored(lower, f"{lower.digest()}, {share} kept", chosen.model, Recycle(layer=half), scratch, Progress(quiet=True)) as store:
            read = {name: Kept.of(encoded(chosen.model, own, labels), lower, store) for name, own in examples.items()}
            row = {"kept": share, **scores_above(chosen, chosen.model, half, labels, read, lambda upper, _: upper)}
            row |= {"store_megabytes": store.bytes() / 1e6, "milliseconds_above": _milliseconds(chosen.model, half, labels, read["dev"])}
        print(row, flush=True)
        yield row


@torch.inference_mode()
def _milliseconds(folder: Path, layers: int, labels: tuple[str, ...], data: Recycled) -> float:
    """Return the median milliseconds of the layers above, one text a time, in torch on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = [inputs_of(on(CPU, data.batch(np.array([row])))) for row in range(min(TIMED, len(data)))]
    with learning(load_model(folder, labels), layers) as upper:
        upper.eval()
        times = []
        for _ in range(3):
            for batch in batches:
                started = time.perf_counter()
                upper(*batch)
                times.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return 1000 * median(times[len(batches) :])


if __name__ == "__main__":
    main()
