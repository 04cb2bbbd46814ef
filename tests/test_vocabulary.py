import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from compressor.classification import TextClassification
from compressor.data import Example
from compressor.encoded import pad_id_of, tokenizer_of
from compressor.errors import RecipeError
from compressor.modeling import PlainModel
from compressor.pretrained import load_model
from compressor.tagging import TokenClassification
from compressor.tokens import Tokens
from compressor.vocabulary import asked_by, covered, prune_model, prune_tokenizer, used

PIECES = ["un", "##believ", "##able", "##a", "##b", "b", "a", "film", "##s", "good", "bad", "very", "unbelievable", "[PAD]"]
TASK, LABELS = TextClassification(), ("x", "y")


def model_folder(folder: Path, template: bool) -> Path:
    """A BERT whose special tokens do not come first, with BERT's own post-processor or a template."""
    vocabulary = {token: i for i, token in enumerate([*PIECES, "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = {name: vocabulary[name] for name in ("[SEP]", "[CLS]")}
    tokenizer.post_processor = (
        processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ends.items()))
        if template
        else processors.BertProcessing(*ends.items())
    )
    tokenizer.enable_padding(pad_id=vocabulary["[PAD]"], pad_token="[PAD]")
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=len(vocabulary), pad_token_id=vocabulary["[PAD]"], **sizes)).save_pretrained(folder)
    return folder


def encoded(folder: Path, *texts: str) -> Tokens:
    return TASK.windows(tokenizer_of(folder), [Example(text, "film") for text in texts], 32, 0).tokens


def logits(folder: Path, *texts: str) -> torch.Tensor:
    arrays = encoded(folder, *texts).padded(pad_id_of(folder))
    with torch.no_grad():
        found: torch.Tensor = PlainModel(load_model(folder, LABELS).eval())(*(torch.from_numpy(a) for a in arrays.values()))
    return found


@pytest.mark.parametrize("template", [True, False])
def test_a_covered_text_gets_the_same_pieces_and_the_same_logits(template: bool, tmp_path: Path) -> None:
    source, target = model_folder(tmp_path / "source", template), model_folder(tmp_path / "target", template)
    corpus = ("very good films", "unbelievable", "a film")
    kept = used(source, encoded(source, *corpus), "k")
    model = load_model(source, LABELS)
    prune_model(model, kept)
    model.save_pretrained(target)
    prune_tokenizer(source, target, kept)
    assert tokenizer_of(target).get_vocab_size() == len(kept) < tokenizer_of(source).get_vocab_size()
    for text in (*corpus, "good film", "very good unbelievable films"):
        assert tokenizer_of(target).encode(text, "film").tokens == tokenizer_of(source).encode(text, "film").tokens
    torch.testing.assert_close(logits(target, *corpus, "good"), logits(source, *corpus, "good"))
    padded = AutoTokenizer.from_pretrained(target)(["good", "very good films"], padding=True)["input_ids"][0]
    assert padded[-1] == tokenizer_of(target).token_to_id("[PAD]") == pad_id_of(target)
    shorter, _ = tokenizer_of(target).encode_batch(["good", "very good films"])  # by the file's own padding
    assert shorter.ids == padded


def test_a_tokenizer_may_not_say_its_kind_and_a_model_may_pad_with_a_piece_that_no_text_has(tmp_path: Path) -> None:
    source = model_folder(tmp_path, True)
    path = source / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    del described["model"]["type"]
    path.write_text(json.dumps(described), encoding="utf-8")
    model = load_model(source, LABELS)
    model.config.pad_token_id = PIECES.index("very")
    assert asked_by(model) == {PIECES.index("very"), PIECES.index("[PAD]")}
    kept = used(source, encoded(source, "a film"), "k", asked_by(model))
    prune_model(model, kept)
    prune_tokenizer(source, source, kept)
    assert model.config.pad_token_id == tokenizer_of(source).token_to_id("very") is not None


def test_coverage_is_the_share_of_texts_that_lose_no_token(tmp_path: Path) -> None:
    source = model_folder(tmp_path, True)
    kept = used(source, encoded(source, "very good films"), "k")
    assert covered(kept, encoded(source, "good film", "bad film", "very", "unbelievable")) == 0.5


def test_a_corpus_is_all_windows_of_its_examples_and_none_of_others(tmp_path: Path) -> None:
    source = model_folder(tmp_path, True)
    examples = [Example(text, words=text.split()) for text in ("a film a film very good", "a film", "unbelievable")]
    windows = TokenClassification().windows(tokenizer_of(source), examples, 4, 0)
    assert windows.owners.tolist() == [0, 0, 0, 1, 2]
    assert windows.count == 3
    kept = used(source, windows.first(2), "k")
    assert covered(kept, encoded(source, "very", "good", "film", "unbelievable")) == 0.75


def test_any_text_can_still_be_split_into_characters(tmp_path: Path) -> None:
    source = model_folder(tmp_path, True)
    kept = used(source, encoded(source, "good"), "k")
    names = {number: piece for piece, number in tokenizer_of(source).get_vocab().items()}
    special, characters = {"[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"}, {"a", "b", "##a", "##b", "##s"}
    assert {names[int(n)] for n in kept} == special | characters | {"good", "film"}
    assert np.all(np.diff(kept) > 0)


def test_a_vocabulary_of_whole_words_is_refused(tmp_path: Path) -> None:
    described = {"model": {"type": "WordLevel", "vocab": {}}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    told = "k: corpus is exact for WordPiece, BPE, Unigram tokenizers only, and this one is WordLevel; set vocabulary: full"
    with pytest.raises(RecipeError, match=told):
        used(tmp_path, Tokens.joined([]), "k")
