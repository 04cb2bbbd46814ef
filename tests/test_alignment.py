import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from compressor.alignment import Apart, aligned, alike, joining_as
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.encoded import tokenizer_of
from compressor.tokens import Tokens
from tests.conftest import BAD, GOOD, WORDS

KNOWN = sorted([*WORDS, *GOOD, *BAD])
TEXTS = ["the film is good", "very bad", "a plot"]


def folder_of(path: Path, special: list[str], words: list[str]) -> Path:
    """A tokenizer with other names and other ids than the tiny model's."""
    vocabulary = {token: i for i, token in enumerate([*words, *special])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    first, last = special[1:3]
    tokenizer.post_processor = processors.BertProcessing((last, vocabulary[last]), (first, vocabulary[first]))
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def with_two_separators(path: Path, words: list[str] = KNOWN) -> Path:
    """A tokenizer that writes two between a pair of texts, as RoBERTa's and MPNet's."""
    folder = folder_of(path, ["<unk>", "<s>", "</s>", "<pad>"], words)
    tokenizer = tokenizer_of(folder)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends)  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def encoded(folder: Path, texts: list[str] = TEXTS) -> Tokens:
    return TextClassification().windows(tokenizer_of(folder), [Example(text) for text in texts], 16, 0).tokens


def test_other_ids_and_other_names_of_special_tokens_are_still_the_same_pieces(tiny_model: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", ["<unk>", "<s>", "</s>", "<pad>"], sorted([*WORDS, *GOOD, *BAD]))
    assert encoded(tiny_model).ids.tolist() != encoded(other).ids.tolist()
    assert aligned(encoded(tiny_model), encoded(other), tiny_model, other)
    assert aligned(encoded(other), encoded(tiny_model), other, tiny_model)
    assert alike(TEXTS, tiny_model, other)
    assert alike(TEXTS, other, tiny_model)


def test_another_vocabulary_splits_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    special, rest = ["<unk>", "<s>", "</s>", "<pad>"], [w for w in WORDS if w != "film"]
    other = folder_of(tmp_path / "other", special, [*rest, "good", "bad", "fi", "##lm"])
    assert not aligned(encoded(tiny_model), encoded(other), tiny_model, other)  # more tokens
    renamed = folder_of(tmp_path / "renamed", special, [*rest, *GOOD, *BAD])
    assert not aligned(encoded(tiny_model), encoded(renamed), tiny_model, renamed)  # as many, but one is unknown there
    assert not alike(TEXTS, tiny_model, other)
    assert not alike(TEXTS, tiny_model, renamed)
    assert alike(TEXTS[1:], tiny_model, renamed)


def test_what_is_special_to_one_tokenizer_says_nothing_of_how_texts_are_split(tiny_model: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", ["<unk>", "<s>", "</s>", "<pad>"], sorted([*WORDS, *GOOD, *BAD]))
    apart = Apart(tiny_model, other)
    assert apart.tokens == Apart(other, tiny_model).tokens
    assert {"</s>", "[SEP]"} <= apart.tokens
    assert Apart(tiny_model, tiny_model).tokens == frozenset()
    assert [apart.keeps(e) for e in (Example("good"), Example("good </s>"), Example("good", "[SEP] bad"))] == [True, False, False]
    assert not aligned(*(encoded(folder, ["good </s>"]) for folder in (tiny_model, other)), tiny_model, other)
    assert alike([*TEXTS * 10, "good </s>"], tiny_model, other)
    assert not alike([*TEXTS, *["good </s>"] * 4], tiny_model, other)
    assert not alike(["good </s>"], tiny_model, other)


def test_a_tokenizer_is_aligned_with_itself(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert aligned(encoded(tiny_model), encoded(copy), tiny_model, copy)
    assert not aligned(encoded(tiny_model), encoded(copy, TEXTS[::-1]), tiny_model, copy)


def pairs(folder: Path) -> Tokens:
    return TextClassification().windows(tokenizer_of(folder), [Example("the film is", "very good"), Example("a plot", "bad")], 16, 0).tokens


def test_a_student_joins_pairs_as_its_teacher_does(tiny_model: Path, tmp_path: Path) -> None:
    other = with_two_separators(tmp_path / "other")
    assert not aligned(pairs(tiny_model), pairs(other), tiny_model, other)
    padding = Path(shutil.copytree(tiny_model, tmp_path / "padding"))  # as sentence-transformers' tokenizers pad by themselves
    for folder in (padding, other):
        tokenizer = tokenizer_of(folder)
        tokenizer.enable_padding(length=16)
        tokenizer.save(str(folder / "tokenizer.json"))
    found = joining_as(other, padding, tmp_path / "found")
    assert aligned(pairs(found), pairs(other), found, other)
    assert aligned(encoded(found), encoded(other), found, other)
    assert json.loads((found / "config.json").read_text(encoding="utf-8"))["model_type"] == "bert"
    joined = ["[CLS]", "the", "film", "[SEP]", "[SEP]", "good", "[SEP]"]
    assert AutoTokenizer.from_pretrained(found).tokenize("the film", "good", add_special_tokens=True) == joined
    text = tokenizer_of(found).encode("the film", "good")
    assert (text.tokens[:7], text.type_ids[:7]) == (joined, [0, 0, 0, 0, 0, 1, 1])
    assert len(text.tokens) == 16  # it pads as before


def test_a_student_with_two_separators_joins_pairs_with_its_teachers_one(tiny_model: Path, tmp_path: Path) -> None:
    """As MPNet's, which a teacher of BERT's kind teaches."""
    other = with_two_separators(tmp_path / "other")
    found = joining_as(tiny_model, other, tmp_path / "found")
    assert found != other
    assert aligned(pairs(found), pairs(tiny_model), found, tiny_model)
    assert aligned(encoded(found), encoded(tiny_model), found, tiny_model)


def test_a_student_with_other_pieces_joins_pairs_as_it_learned_to(tiny_model: Path, tmp_path: Path) -> None:
    other = with_two_separators(tmp_path / "other", [f"Ġ{word}" for word in WORDS])
    assert joining_as(tiny_model, other, tmp_path / "found") == other


def test_a_student_that_joins_pairs_so_already_keeps_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert joining_as(copy, tiny_model, tmp_path / "found") == tiny_model
    assert not (tmp_path / "found").exists()
