"""Vocabulary pruning: keep only the tokens that a corpus uses, in the tokenizer and in the embedding table.

What:     tokens that no text of the corpus needs leave; single characters stay, so that any text can still be split.
Formula:  what splitting needs of each kind of tokenizer stays too (`compressor.pieces`), so a text of which every token stays is split as
          before: same pieces, same logits.
Defaults: off (`vocabulary: full`).
Limits:   WordPiece, BPE and Unigram tokenizers. A text with a token that left is split into smaller pieces: `covered` says how many are.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.encoded import tokenizer_of
from compressor.errors import RecipeError
from compressor.families import position_table
from compressor.pieces import KINDS, cut, kind_of, needed
from compressor.tokens import Ints, Tokens

SETTINGS, ADDED = "tokenizer_config.json", "added_tokens_decoder"


def used(folder: Path, corpus: Tokens, key: str, also: Iterable[int] = ()) -> Ints:
    """Return the ids, ascending, that stay: those of the corpus, special tokens, what splitting needs, and others that are asked for.

    Raises:
        RecipeError: the tokenizer is of a kind whose pieces cannot leave.
    """
    described = check_kind(folder, key)
    asked = {*np.unique(corpus.ids).tolist(), *also, *(token["id"] for token in described["added_tokens"]), *_added(folder)}
    return np.array(sorted(needed(described["model"], asked)))


def asked_by(model: PreTrainedModel) -> set[int]:
    """Return the ids that a model asks for whatever its texts are: that which pads, and where positions begin behind it all before it."""
    table: Any = model.get_input_embeddings()
    pads = {n for n in (table.padding_idx, model.config.pad_token_id) if n is not None and 0 <= n < table.num_embeddings}
    positions = position_table(model)
    behind = positions is not None and positions.padding_idx is not None
    return pads | (set(range(max(pads))) if pads and behind else set())


def check_kind(folder: Path, key: str) -> dict[str, Any]:
    """Return what a folder's tokenizer.json says.

    Raises:
        RecipeError: the tokenizer is of a kind whose pieces cannot leave.
    """
    described: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if (kind := kind_of(described["model"])) not in KINDS:
        raise RecipeError(f"{key}: corpus is exact for {', '.join(KINDS)} tokenizers only, and this one is {kind}; set vocabulary: full")
    return described


def covered(kept: Ints, tokens: Tokens) -> float:
    """Return the share of texts of which every token stays."""
    missing = ~np.isin(tokens.ids, kept)
    return 1.0 - float(np.mean(np.add.reduceat(missing, tokens.starts[:-1]) > 0))


def prune_model(model: PreTrainedModel, kept: Ints) -> None:
    """Take the other rows out of the model's embedding table, in place."""
    table: Any = model.get_input_embeddings()
    old_pad = table.padding_idx
    smaller = nn.Embedding(len(kept), table.embedding_dim)
    smaller.weight = nn.Parameter(table.weight.detach()[torch.from_numpy(kept)].clone())
    place = {int(number): new for new, number in enumerate(kept)}
    if old_pad is not None:
        smaller.padding_idx = place[old_pad]
    model.set_input_embeddings(smaller)
    model.config.vocab_size = len(kept)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        number = getattr(model.config, name, None)
        if number is not None:
            setattr(model.config, name, place.get(number))


def prune_tokenizer(source: Path, target: Path, kept: Ints) -> None:
    """Write the tokenizer with the kept tokens only, renumbered, over the one in `target`."""
    place = {int(number): new for new, number in enumerate(kept)}
    described = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    described["model"] = cut(described["model"], place)
    for token in described["added_tokens"]:
        token["id"] = place[token["id"]]
    for part in ("post_processor", "padding"):
        _renumber(described[part], place)
    (target / "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    if (target / "vocab.txt").exists():
        pieces = tokenizer_of(target).get_vocab()
        (target / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)) + "\n", encoding="utf-8")
    if (target / "vocab.json").exists():
        tokenizer_of(target).model.save(str(target))  # vocab.json, and merges.txt beside it
    if _added(target):
        settings = target / SETTINGS
        described = json.loads(settings.read_text(encoding="utf-8"))
        described[ADDED] = {str(place[int(number)]): token for number, token in described[ADDED].items()}
        settings.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _added(folder: Path) -> set[int]:
    """Return the ids of the tokens that a tokenizer's settings add."""
    settings = folder / SETTINGS
    described = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    return {int(number) for number in described.get(ADDED, ())}


def _renumber(part: Any, place: dict[int, int]) -> None:
    """Renumber the ids that a post-processor or padding adds: BERT's and RoBERTa's pairs [token, id], a template's `ids`, `pad_id`."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("sep", "cls"):
                value[1] = place[value[1]]
            elif key == "pad_id":
                part[key] = place[value]
            elif key == "ids":
                part[key] = [place[number] for number in value]
            else:
                _renumber(value, place)
    elif isinstance(part, list):
        for value in part:
            _renumber(value, place)
