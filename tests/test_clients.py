"""What other clients read of a bundle's tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from compressor.clients import INPUTS, settle_tokenizer
from compressor.tasks import TASKS

WORDS = ["model", "reads", "texts"]


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A folder with a byte-level tokenizer, as RoBERTa's, that knows these words with a space before them and without."""
    pieces = ["<s>", "</s>", "<unk>", *WORDS, *(f"Ġ{word}" for word in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def settled(folder: Path, config: dict[str, Any], task: str = "text-classification", **how: Any) -> dict[str, Any]:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    settle_tokenizer(folder, TASKS[task](), how.pop("inputs", INPUTS), **how)
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return found


def test_byte_level_words_have_a_space_before_each_as_they_had_in_training(byte_level: Path) -> None:
    ours = [" " + word for word in WORDS]
    before = Tokenizer.from_file(str(byte_level / "tokenizer.json")).encode(ours, is_pretokenized=True).ids
    config = {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>"}
    assert settled(byte_level, config, "token-classification")["add_prefix_space"] is True
    after = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    assert after.encode(ours, is_pretokenized=True).ids == before == [6, 7, 8]
    assert after.encode(WORDS, is_pretokenized=True).ids == before  # as other clients ask
    theirs = AutoTokenizer.from_pretrained(byte_level)
    assert theirs(WORDS, is_split_into_words=True)["input_ids"] == before
    assert theirs(" ".join(WORDS))["input_ids"] == before


def test_words_that_are_split_before_their_bytes_are_seen_stay_as_they_were_learned(byte_level: Path) -> None:
    """A space would stand before each part of them."""
    tokenizer = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    parts = [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)  # type: ignore[assignment]
    tokenizer.save(str(byte_level / "tokenizer.json"))
    before = (byte_level / "tokenizer.json").read_bytes()
    assert "add_prefix_space" not in settled(byte_level, {"tokenizer_class": "TokenizersBackend"}, "token-classification")
    assert (byte_level / "tokenizer.json").read_bytes() == before


def test_settings_that_are_not_there_are_written_where_one_is_needed(byte_level: Path) -> None:
    settle_tokenizer(byte_level, TASKS["text-classification"](), INPUTS)
    assert not (byte_level / "tokenizer_config.json").exists()
    settle_tokenizer(byte_level, TASKS["token-classification"](), INPUTS)
    assert json.loads((byte_level / "tokenizer_config.json").read_text(encoding="utf-8")) == {"add_prefix_space": True}


@pytest.mark.parametrize(("task", "fixed"), [("text-classification", False), ("token-classification", True)])
def test_a_text_is_read_as_it_stands_and_a_file_that_a_store_knows_stays(task: str, fixed: bool, byte_level: Path) -> None:
    before = (byte_level / "tokenizer.json").read_bytes()
    assert "add_prefix_space" not in settled(byte_level, {"tokenizer_class": "TokenizersBackend"}, task, fixed=fixed)
    assert (byte_level / "tokenizer.json").read_bytes() == before


def test_segments_are_given_where_the_graph_reads_them(byte_level: Path) -> None:
    config = {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>"}
    assert "model_input_names" not in settled(byte_level, config, inputs=("input_ids", "attention_mask"))
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(byte_level)("model")
    assert settled(byte_level, config)["model_input_names"] == list(INPUTS)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(byte_level)("model")
    assert settled(byte_level, config | {"model_input_names": ["input_ids"]})["model_input_names"] == ["input_ids"]


def test_added_special_tokens_stand_where_both_versions_read_them(byte_level: Path) -> None:
    found = settled(byte_level, {"tokenizer_class": "TokenizersBackend", "unk_token": "<unk>", "extra_special_tokens": ["[E1]"]})
    assert found["additional_special_tokens"] == ["[E1]"]
    assert "extra_special_tokens" not in found
    assert "[E1]" in AutoTokenizer.from_pretrained(byte_level).all_special_tokens
