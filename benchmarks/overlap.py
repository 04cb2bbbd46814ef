"""How much of a document that was edited a store of recycled layers still knows: read whole, in windows, or in paragraphs.

    python -m benchmarks.overlap ../shared/data/20newsgroups ~/.cache/compressor-models/minilm-l6-h384

A text is known by all its tokens, so what is handed in as one text is one entry. Each long post is filled in once and edited in several
ways, each time from the original; then the shares of its pieces, and of its tokens, are told that the store knows. Nothing is computed: an
entry is a single number here. The folder holds dev.jsonl.gz with a column text, of which those with at least four paragraphs are taken.
"""

import argparse
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.record import conclude
from compressor.classification import TextClassification
from compressor.data import read_examples
from compressor.files import Columns
from compressor.store import Identity, Store
from compressor.tokens import Floats, Tokens, content_of

PARAGRAPHS, WINDOW = 4, 128
ADDED = "This was added when the text was read for a second time, and nothing else in it is new."
ENTRY: Floats = np.zeros((1, 1), np.float32)


def paragraphs(text: str) -> list[str]:
    """Return what stands between empty lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _word(parts: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(parts))
    words = parts[place].split(" ")
    words[rng.randrange(len(words))] = "other"
    return [*parts[:place], " ".join(words), *parts[place + 1 :]]


def _sentence(parts: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(parts))
    return [*parts[:place], f"{ADDED} {parts[place]}", *parts[place + 1 :]]


EDITS: Mapping[str, Callable[[list[str], random.Random], list[str]]] = {
    "none": lambda parts, _: parts,
    "a word is another": _word,
    "a sentence is added to a paragraph": _sentence,
    "a paragraph is added at the end": lambda parts, _: [*parts, ADDED],
    "a paragraph is added at the beginning": lambda parts, _: [ADDED, *parts],
    "a paragraph is removed": lambda parts, rng: _without(parts, rng.randrange(len(parts))),
}


def _without(parts: Sequence[str], place: int) -> list[str]:
    return [*parts[:place], *parts[place + 1 :]]


def main() -> None:
    """Fill, edit, look up and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path, help="folder of an encoder, whose tokenizer reads the texts")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--trial", action="store_true", help="20 texts, to see that it works; records nothing")
    chosen = parser.parse_args()
    path = str((chosen.data / "dev.jsonl.gz").resolve())
    every = (paragraphs(e.text) for e in read_examples(path, Columns(), TextClassification(), root=Path(), split="dev", limit=None))
    documents = [parts for parts in every if len(parts) >= PARAGRAPHS][: 20 if chosen.trial else chosen.texts]
    tokenizer = Tokenizer.from_file(str(chosen.model.expanduser() / "tokenizer.json"))
    tokenizer.no_padding()
    rows = [_row(name, documents, pieces) for name, pieces in _splits(tokenizer).items()]
    conclude("overlap", {"texts": len(documents), "window": WINDOW, "rows": rows}, chosen.trial)


Pieces = Callable[[Sequence[str]], list[Tokens]]


def _splits(tokenizer: Tokenizer) -> dict[str, Pieces]:
    """Return the ways in which a document's paragraphs may be handed in."""
    return {
        "one text": lambda parts: [_tokens(tokenizer, "\n\n".join(parts), None)[0]],
        f"windows of {WINDOW} tokens": lambda parts: _tokens(tokenizer, "\n\n".join(parts), WINDOW),
        "paragraphs": lambda parts: [_tokens(tokenizer, part, None)[0] for part in parts],
    }


def _tokens(tokenizer: Tokenizer, text: str, window: int | None) -> list[Tokens]:
    """Return a text's tokens, whole or in windows."""
    tokenizer.no_truncation() if window is None else tokenizer.enable_truncation(window)
    first = tokenizer.encode(text)
    ids = [np.array(one.ids, np.int32) for one in (first, *first.overflowing)]
    return [Tokens(own, np.zeros(len(own), np.int8), np.array([0, len(own)])) for own in ids]


def _row(name: str, documents: Sequence[list[str]], pieces: Pieces) -> dict[str, Any]:
    """Fill a store with all documents, and say of each edit what of them it knows."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), Identity("model", 3, "tokenizer", "float32", "float32"), 1e9, print)
        for parts in documents:
            _look_up(store, pieces(parts), keep=True)
        found = dict[str, Any]()
        for edit, change in EDITS.items():
            rng, counts = random.Random(0), np.zeros(4)
            for parts in documents:
                counts += _look_up(store, pieces(change(parts, rng)), keep=False)
            found[edit] = {"pieces": counts[0] / counts[1], "tokens": counts[2] / counts[3]}
        entries = len(store)
        store.close()
    print(name, found, flush=True)
    return {"read_as": name, "entries": entries, "known": found}


def _look_up(store: Store, texts: Sequence[Tokens], *, keep: bool) -> Floats:
    """Return how many pieces the store knows, of how many, and how many tokens those have, of how many."""
    keys = [store.identity.key(content_of(text)) for text in texts]
    lengths = np.array([len(text.ids) for text in texts])
    known = np.array([own is not None for own in store.read(keys)])
    if keep:
        store.write((key, ENTRY) for key in dict.fromkeys(keys))
    return np.array([known.sum(), len(known), lengths[known].sum(), lengths.sum()], np.float64)


if __name__ == "__main__":
    main()
