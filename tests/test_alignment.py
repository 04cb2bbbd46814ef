import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from compressor.alignment import aligned
from compressor.classification import TextClassification
from compressor.data import Example
from compressor.encoded import tokenizer_of
from compressor.tokens import Tokens
from tests.conftest import BAD, GOOD, WORDS

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


def encoded(folder: Path, texts: list[str] = TEXTS) -> Tokens:
    return TextClassification().windows(tokenizer_of(folder), [Example(text) for text in texts], 16, 0).tokens


def test_other_ids_and_other_names_of_special_tokens_are_still_the_same_pieces(tiny_model: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", ["<unk>", "<s>", "</s>", "<pad>"], sorted([*WORDS, *GOOD, *BAD]))
    assert encoded(tiny_model).ids.tolist() != encoded(other).ids.tolist()
    assert aligned(encoded(tiny_model), encoded(other), tiny_model, other)
    assert aligned(encoded(other), encoded(tiny_model), other, tiny_model)


def test_another_vocabulary_splits_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    special, rest = ["<unk>", "<s>", "</s>", "<pad>"], [w for w in WORDS if w != "film"]
    other = folder_of(tmp_path / "other", special, [*rest, "good", "bad", "fi", "##lm"])
    assert not aligned(encoded(tiny_model), encoded(other), tiny_model, other)  # more tokens
    renamed = folder_of(tmp_path / "renamed", special, [*rest, *GOOD, *BAD])
    assert not aligned(encoded(tiny_model), encoded(renamed), tiny_model, renamed)  # as many, but one is unknown there


def test_a_tokenizer_is_aligned_with_itself(tiny_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert aligned(encoded(tiny_model), encoded(copy), tiny_model, copy)
    assert not aligned(encoded(tiny_model), encoded(copy, TEXTS[::-1]), tiny_model, copy)
