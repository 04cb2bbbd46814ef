import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification

from compressor.alignment import aligned
from compressor.augmentation import Neighbours, _words, augmented, changed
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.distillation import _texts
from compressor.encoded import mask_token, tokenizer_of
from compressor.pretrained import load_model
from compressor.settings.distilling import Augment, Distill, SoftLabels, Student
from compressor.splits import LeftOut, Splits
from compressor.tagging import TokenClassification
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


PIECES: dict[str, tuple[models.Model, pre_tokenizers.PreTokenizer]] = {
    "byte-level": (
        models.BPE({"film": 0, "Ġfilm": 1, "ĠcafÃ©": 2, "Ġ": 3, "ing": 4, "Ġ42": 5, "ĠÃ": 6, "Ġplot": 7}, []),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]),
    ),
    "sentencepiece": (
        models.Unigram([(token, -1.0) for token in ("film", "▁film", "▁café", "▁", "ing", "▁42", ",", "▁plot")], 0),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]),
    ),
}
"""Small vocabularies, with the words film, café and plot under 1, 2 and 7."""


@pytest.mark.parametrize("kind", PIECES)
def test_words_are_pieces_that_start_one_without_the_tokenizers_marker(kind: str, tmp_path: Path) -> None:
    model, splits = PIECES[kind]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splits  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    encoder = BertForSequenceClassification(BertConfig(vocab_size=8, **sizes))
    near = Neighbours.of(encoder, tmp_path)
    assert near.index.keys() == {"film", "café", "plot"}
    table = torch.nn.functional.normalize(encoder.get_input_embeddings().weight.detach(), dim=-1)  # type: ignore[union-attr,arg-type]
    torch.testing.assert_close(near.vectors[[near.index[word] for word in ("film", "café", "plot")]], table[[1, 2, 7]])


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


def test_a_copy_that_differs_by_spaces_alone_is_none() -> None:
    still = Augment(mask=1e-9, swap=0.0, ngrams=0.0)
    for text, pair in (("a  b\nc", None), ("a b c", None), ("a b", "c\td")):
        assert not list(augmented([Example(text, pair)], still, NEAR, "[MASK]", 1))


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


def test_words_of_an_example_stay_words(tiny_model: Path) -> None:
    words = ["U.S.", "film", "good", "(", "bad", ")"]
    example = Example(" ".join(words), label=["O"] * 6, words=words)
    copies = list(augmented([example], Augment(copies=50, mask=0.3), NEAR, "[MASK]", 1))
    assert {copy.text for copy in copies} == {" ".join(copy.words or ()) for copy in copies}
    assert {copy.label for copy in copies} == {None}
    assert {word for copy in copies for word in copy.words or ()} == {*words, "great", "[MASK]"}
    masked = next(copy for copy in copies if copy.words == ["[MASK]"])
    windows = TokenClassification().windows(tokenizer_of(tiny_model), [masked], 16, 0)
    assert windows.tokens.ids.tolist() == [2, 4, 3]  # [CLS] [MASK] [SEP]


def test_a_teacher_reads_masked_words_with_its_own_mask_token(tiny_model: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(tiny_model, tmp_path / "teacher"))
    described = (teacher / "tokenizer.json").read_text(encoding="utf-8")
    (teacher / "tokenizer.json").write_text(described.replace("[MASK]", "<mask>"), encoding="utf-8")
    row = {"text": "good film", "words": ["good", "film"], "label": ["O", "O"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "unlabelled.jsonl").touch()
    settings = Distill(
        student=Student(layers="first 1"),
        objectives=(SoftLabels(type="soft_labels"),),
        augment=Augment(mask=1.0, swap=0.0, ngrams=0.0),
    )
    splits, student = Splits(tmp_path, ("O",), 16, 0), load_model(tiny_model, ("O", "B-x"), "token-classification")
    *read, left_out = _texts(settings, splits, TokenClassification(), student, tiny_model, teacher, 1, False)
    assert left_out == LeftOut()
    for texts in read:
        assert texts.tokens.of_text(1).ids.tolist() == [2, 4, 4, 3]  # [CLS] [MASK] [MASK] [SEP]


@pytest.mark.parametrize(("odd", "told"), [(1, LeftOut("good <mask>", 1)), (2, LeftOut())])
def test_a_few_texts_that_two_tokenizers_read_otherwise_are_left_out(odd: int, told: LeftOut, tiny_model: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(tiny_model, tmp_path / "teacher"))
    described = (teacher / "tokenizer.json").read_text(encoding="utf-8")
    (teacher / "tokenizer.json").write_text(described.replace("[MASK]", "<mask>"), encoding="utf-8")
    rows = [{"text": "good film"}] * 10 + [{"text": "good <mask>"}] * odd + [{"text": "bad"}] * 10
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row | {"label": "a"}) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "unlabelled.jsonl").touch()
    settings = Distill(student=Student(layers="first 1"), objectives=(SoftLabels(type="soft_labels"),))
    splits, student = Splits(tmp_path, ("a", "b"), 16, 0), load_model(tiny_model, ("a", "b"))
    ours, theirs, left_out = _texts(settings, splits, TextClassification(), student, tiny_model, teacher, 1, True)
    assert left_out == told
    assert aligned(ours.tokens, theirs.tokens, tiny_model, teacher) is (odd == 1)
    assert len(ours) == len(theirs) == 20 + (odd == 2) * odd
    *_, whole = _texts(settings, splits, TextClassification(), student, tiny_model, teacher, 1, False)
    assert whole == LeftOut()


def test_the_mask_token_is_the_tokenizers_own(tiny_model: Path) -> None:
    assert mask_token(tiny_model) == "[MASK]"


def test_words_come_by_their_ids_in_every_process(tiny_model: Path) -> None:
    found = _words(tokenizer_of(tiny_model))
    assert len(found) > 10
    assert list(found.values()) == sorted(found.values())
