import random
from pathlib import Path

import torch

from compressor.augmentation import Neighbours, augmented, changed
from compressor.data import Example
from compressor.encoded import mask_token
from compressor.modeling import load_model
from compressor.settings.distilling import Augment
from tests.conftest import BAD, GOOD, WORDS

NEAR = Neighbours(["good", "great", "bad"], torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.2]]))


def one(settings: Augment, text: str, seed: int = 0) -> str:
    return changed(text, settings, NEAR, "[MASK]", random.Random(seed))


def test_the_nearest_words_come_first_and_never_the_word_itself() -> None:
    assert NEAR.of_word("good") == ["great", "bad"]
    assert NEAR.of_word("unheard") == []


def test_words_of_a_model_are_whole_words(tiny_model: Path) -> None:
    near = Neighbours.of(load_model(tiny_model, ("a", "b")), tiny_model)
    assert set(near.words) == {*WORDS, *GOOD, *BAD, "unseen"}
    table = near.vectors[near.index["film"]] @ near.vectors.T
    assert near.words[int(table.argsort(descending=True)[1])] == near.of_word("film")[0]


def test_each_change_happens_as_often_as_asked() -> None:
    text = " ".join(["good"] * 2000)
    masked = one(Augment(mask=0.3, swap=0.0, ngrams=0.0), text).split()
    assert 0.25 < masked.count("[MASK]") / 2000 < 0.35
    swapped = one(Augment(mask=0.0, swap=0.2, ngrams=0.0), text).split()
    assert 0.15 < 1 - swapped.count("good") / 2000 < 0.25
    assert set(swapped) == {"good", "great", "bad"}
    lengths = [len(one(Augment(mask=0.0, swap=0.0, ngrams=1.0), "a b c d e f g h", seed).split()) for seed in range(200)]
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert one(Augment(mask=0.0, swap=0.0, ngrams=1.0), "a b c d e f g h", 3) in "a b c d e f g h"


def test_without_a_mask_token_words_stay() -> None:
    assert changed("good bad", Augment(mask=1.0, swap=0.0, ngrams=0.0), NEAR, None, random.Random(0)) == "good bad"


def test_copies_have_no_label_and_follow_from_the_seed() -> None:
    examples = [Example(f"good bad number {i}", "a pair", "yes") for i in range(20)]
    settings = Augment(copies=3)
    first, again, other = (list(augmented(examples, settings, NEAR, "[MASK]", seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert 20 < len(first) <= 60
    assert {e.label for e in first} == {None}
    assert not {(e.text, e.text_pair) for e in first} & {(e.text, e.text_pair) for e in examples}


def test_the_mask_token_is_the_tokenizers_own(tiny_model: Path) -> None:
    assert mask_token(tiny_model) == "[MASK]"
