"""More texts from few, for the teacher to answer: words masked, swapped for near ones, and texts cut to n-grams.

What:     each copy of a text changes word by word, and may be cut to a few of its words; nobody labels it but the teacher.
Papers:   biLSTM-SOFT (arXiv:1903.12136): masking, swapping, n-gram sampling; TinyBERT (arXiv:1909.10351): words near in embedding.
Formula:  a word becomes the mask token with probability `mask`, else one of its 15 nearest words with probability `swap`; then with
          probability `ngrams` one to five neighbouring words stay alone.
Defaults: no augmentation; mask 0.1, swap 0.1, ngrams 0.25.
Limits:   a word that the tokenizer splits is never swapped; near means cosine of the student's first embeddings, so antonyms are near too.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import torch.nn.functional as F
from tokenizers import Tokenizer, decoders
from torch import Tensor
from transformers import PreTrainedModel

from compressor.data import Example
from compressor.encoded import tokenizer_of
from compressor.settings.distilling import Augment

NEAREST = 15
LONGEST = 5
MARKERS = {"ByteLevel": "Ġ", "Metaspace": "▁"}
"""What a piece that starts a word begins with, by how a tokenizer splits texts; WordPiece marks the others."""


@dataclass
class Neighbours:
    """The words of a vocabulary that lie nearest to a word, by cosine of their embeddings (words, width)."""

    words: list[str]
    vectors: Tensor
    index: dict[str, int] = field(init=False)
    found: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = {word: number for number, word in enumerate(self.words)}
        self.vectors = F.normalize(self.vectors.float(), dim=-1)

    @classmethod
    def of(cls, model: PreTrainedModel, folder: Path) -> "Neighbours":
        """Return those of a model's own embeddings; pieces of words and special tokens are no words."""
        words = _words(tokenizer_of(folder))
        table: Tensor = model.get_input_embeddings().weight  # type: ignore[union-attr,assignment]
        return cls(list(words), table.detach()[list(words.values())])

    def of_word(self, word: str) -> list[str]:
        """Return the nearest words, nearest first; none for a word that is not in the vocabulary."""
        if word not in self.index:
            return []
        if word not in self.found:
            near = (self.vectors @ self.vectors[self.index[word]]).topk(min(NEAREST + 1, len(self.words))).indices.tolist()
            self.found[word] = [self.words[number] for number in near if self.words[number] != word]
        return self.found[word]


def augmented(examples: Iterable[Example], settings: Augment, near: Neighbours, mask: str | None, seed: int) -> Iterator[Example]:
    """Yield `copies` changed copies of each example, without a label; copies that came out unchanged are left out."""
    for number, example in enumerate(examples):
        rng = random.Random(f"{seed}/{number}")
        for _ in range(settings.copies):
            copy = _copy(example, settings, near, mask, rng)
            if any(_words_of(one) != _words_of(other) for one, other in ((copy.text, example.text), (copy.text_pair, example.text_pair))):
                yield copy


def _words_of(text: str | None) -> list[str]:
    """Return what is left of a text when its spaces are one alike, as they are in a copy."""
    return (text or "").split()


def _copy(example: Example, settings: Augment, near: Neighbours, mask: str | None, rng: random.Random) -> Example:
    if example.words is not None:  # they stay words: splitting the changed text again would tear the mask token apart
        words = changed_words(example.words, settings, near, mask, rng)
        return Example(" ".join(words), words=words)
    text = changed(example.text, settings, near, mask, rng)
    return Example(text, None if example.text_pair is None else changed(example.text_pair, settings, near, mask, rng))


def changed(text: str, settings: Augment, near: Neighbours, mask: str | None, rng: random.Random) -> str:
    """Return a text with words masked, swapped and cut."""
    return " ".join(changed_words(text.split(), settings, near, mask, rng))


def changed_words(words: Sequence[str], settings: Augment, near: Neighbours, mask: str | None, rng: random.Random) -> list[str]:
    """Return words masked, swapped and cut."""
    found = [_word(word, settings, near, mask, rng) for word in words]
    if rng.random() < settings.ngrams:
        count = min(rng.randint(1, LONGEST), len(found))
        begin = rng.randint(0, len(found) - count)
        found = found[begin : begin + count]
    return found


def _word(word: str, settings: Augment, near: Neighbours, mask: str | None, rng: random.Random) -> str:
    draw = rng.random()
    if draw < settings.mask:
        return mask or word
    if draw < settings.mask + settings.swap:
        return rng.choice(near.of_word(word.lower()) or [word])
    return word


def _words(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the pieces that start a word, as texts write them, and their ids."""
    splits = repr(tokenizer.pre_tokenizer)
    marker = next((mark for kind, mark in MARKERS.items() if kind in splits), "")
    # A letter beyond ASCII is several bytes to a byte-level tokenizer, each written as a letter of its own.
    read = decoders.ByteLevel().decode if marker == "Ġ" else "".join
    pieces = sorted(tokenizer.get_vocab().items(), key=itemgetter(1))  # which come in another order in each process
    starts = {token.removeprefix(marker): number for token, number in pieces if token.startswith(marker)}
    return {word: number for start, number in starts.items() if (word := read([start])).isalpha()}
