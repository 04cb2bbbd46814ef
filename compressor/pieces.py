"""What a tokenizer's pieces need of each other, so that some can leave and what the others split is split as before.

WordPiece takes the longest piece that fits: it needs the pieces of a split alone. BPE (arXiv:1508.07909) joins pairs, the earliest learned
first: it needs every pair on the way to a piece, and without the pairs that no piece comes from the first that fits is still the same.
Unigram (arXiv:1804.10959) takes the split of the highest score: it needs the pieces alone, and the least of all scores, from which that
of an unknown character is reckoned.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Model = Mapping[str, Any]
"""The `model` of a tokenizer.json."""


def kind_of(model: Model) -> str:
    """Return the kind of tokenizer; files from before 2021, as some models still have them, do not name it."""
    if "type" in model:
        return str(model["type"])
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def numbered(model: Model) -> dict[str, int]:
    """Return the id of every piece."""
    vocabulary = model["vocab"]
    return dict(vocabulary) if isinstance(vocabulary, Mapping) else {piece: number for number, (piece, _) in enumerate(vocabulary)}


def needed(model: Model, ids: Iterable[int]) -> set[int]:
    """Return these ids and those that splitting needs beside them: single characters and bytes, the unknown, and what the kind needs."""
    pieces = numbered(model)
    kept = set(ids) | {number for piece, number in pieces.items() if _is_single(piece, model)}
    unknown = model["unk_id"] if "unk_id" in model else pieces.get(model["unk_token"])
    return _NEEDED[kind_of(model)](model, pieces, kept if unknown is None else kept | {unknown})


def cut(model: Model, place: Mapping[int, int]) -> dict[str, Any]:
    """Return the model with the pieces only that have a place, in that order."""
    left = {piece: place[number] for piece, number in numbered(model).items() if number in place}
    smaller: dict[str, Any] = {**model, "vocab": left}
    if "merges" in model:
        smaller["merges"] = [merge for merge in model["merges"] if {*_parts(merge), _product(model, merge)} <= left.keys()]
    if "unk_id" in model:
        smaller |= {"vocab": [pair for pair in model["vocab"] if pair[0] in left], "unk_id": place.get(model["unk_id"])}
    return smaller


def _is_single(piece: str, model: Model) -> bool:
    """Return whether a piece is one character, or one byte, which stand for characters that no piece has."""
    prefix, suffix = (model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    byte = model.get("byte_fallback") and len(piece) == len("<0x00>") and piece.startswith("<0x")
    return bool(byte) or len(piece.removeprefix(prefix).removesuffix(suffix)) == 1


def _parts(merge: str | list[str]) -> list[str]:
    """Return the two pieces of a pair, of either way in which files write it."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _product(model: Model, merge: str | list[str]) -> str:
    first, second = _parts(merge)
    return first + second[len(model.get("continuing_subword_prefix") or "") :]


def _as_is(model: Model, pieces: Mapping[str, int], kept: set[int]) -> set[int]:
    return kept


def _with_parts(model: Model, pieces: Mapping[str, int], kept: set[int]) -> set[int]:
    names, made = {number: piece for piece, number in pieces.items()}, defaultdict[str, list[str]](list)
    for merge in model["merges"]:
        made[_product(model, merge)] += _parts(merge)
    todo, found = [names[number] for number in kept if number in names], set(kept)
    while todo:
        parts = {part for part in made[todo.pop()] if pieces[part] not in found}
        found |= {pieces[part] for part in parts}
        todo += parts
    return found


def _with_least(model: Model, pieces: Mapping[str, int], kept: set[int]) -> set[int]:
    scores = [score for _, score in model["vocab"]]
    return kept | {scores.index(min(scores))}


_NEEDED: Mapping[str, Callable[[Model, Mapping[str, int], set[int]], set[int]]] = {
    "WordPiece": _as_is,
    "BPE": _with_parts,
    "Unigram": _with_least,
}
KINDS = tuple(_NEEDED)
"""The kinds of tokenizers whose pieces can leave."""
