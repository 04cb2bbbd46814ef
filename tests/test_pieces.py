"""Tokenizers that learn their pieces from this repository's own front page, and lose those that a few of its lines do not need."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from compressor.classification import TextClassification
from compressor.data import Example
from compressor.encoded import pad_id_of, tokenizer_of
from compressor.modeling import PlainModel
from compressor.pieces import cut, kind_of, needed
from compressor.pretrained import load_model
from compressor.tokens import Tokens
from compressor.vocabulary import asked_by, covered, prune_model, prune_tokenizer, used
from tests.conftest import compress, write_project

TASK, LABELS = TextClassification(), ("x", "y")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LINES = [line for line in (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").splitlines() if line.strip()]
CORPUS, OTHERS = LINES[:20], LINES[20:]


def byte_pairs() -> Tokenizer:
    """As RoBERTa has it: pairs of bytes, of which 256 stand for every character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return tokenizer


def marked_pairs() -> Tokenizer:
    """Pairs of characters, where those inside of a word are marked before and those at its end behind."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=1200, special_tokens=SPECIAL, **marks))
    return tokenizer


def unigrams() -> Tokenizer:
    """As XLM-R has it: pieces with scores, blanks as part of words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(LINES, trainers.UnigramTrainer(vocab_size=900, special_tokens=SPECIAL, unk_token="<unk>"))
    return tokenizer


LEARNED = pytest.mark.parametrize("learned", [byte_pairs, marked_pairs, unigrams])


def model_folder(folder: Path, learned: Callable[[], Tokenizer]) -> Path:
    """A RoBERTa, whose positions start behind the padding token's id."""
    tokenizer = learned()
    first, last = (("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>")))
    tokenizer.post_processor = processors.RobertaProcessing(last, first, trim_offsets=True, add_prefix_space=False)
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")} | {"cls_token": "<s>", "sep_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    tokenizer.model.save(str(folder))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 200}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=tokenizer.get_vocab_size() + 3, pad_token_id=SPECIAL.index("<pad>"), **sizes)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def encoded(folder: Path, texts: list[str]) -> Tokens:
    return TASK.windows(tokenizer_of(folder), [Example(text) for text in texts], 128, 0).tokens


def logits(folder: Path, texts: list[str]) -> torch.Tensor:
    arrays = encoded(folder, texts).padded(pad_id_of(folder))
    with torch.no_grad():
        found: torch.Tensor = PlainModel(load_model(folder, LABELS).eval())(*(torch.from_numpy(a) for a in arrays.values()))
    return found


@LEARNED
def test_texts_of_which_every_piece_stays_are_split_as_before_and_get_the_same_logits(
    learned: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    source, target = (model_folder(tmp_path / name, learned) for name in ("source", "target"))
    kept = used(source, encoded(source, CORPUS), "k")
    model = load_model(source, LABELS)
    prune_model(model, kept)
    model.save_pretrained(target)
    prune_tokenizer(source, target, kept)
    before, after = tokenizer_of(source), tokenizer_of(target)
    assert after.get_vocab_size() == len(kept) < 0.8 * before.get_vocab_size()
    staying = [line for line in OTHERS if covered(kept, encoded(source, [line])) == 1]
    assert staying
    for text in CORPUS + staying:
        assert after.encode(text).tokens == before.encode(text).tokens
    torch.testing.assert_close(logits(target, CORPUS + staying), logits(source, CORPUS + staying))
    loaded = AutoTokenizer.from_pretrained(target)
    assert loaded(CORPUS)["input_ids"] == [encoding.ids for encoding in after.encode_batch(CORPUS)]
    files = {path.name for path in target.iterdir()}
    if "merges.txt" in files:
        saved = models.BPE.read_file(str(target / "vocab.json"), str(target / "merges.txt"))[0]
        assert saved == {piece: number for piece, number in after.get_vocab().items() if piece in saved}
        assert len(saved) == len(kept)


@pytest.mark.parametrize("learned", [byte_pairs, unigrams])
def test_a_text_with_pieces_that_left_can_still_be_read(learned: Callable[[], Tokenizer], tmp_path: Path) -> None:
    source, target = (model_folder(tmp_path / name, learned) for name in ("source", "target"))
    kept = used(source, encoded(source, CORPUS[:3]), "k")
    prune_tokenizer(source, target, kept)
    before, after = tokenizer_of(source), tokenizer_of(target)
    assert any(after.encode(text).tokens != before.encode(text).tokens for text in OTHERS)
    for text in OTHERS:
        assert after.decode(after.encode(text).ids) == before.decode(before.encode(text).ids)


@pytest.mark.parametrize("learned", [byte_pairs, unigrams])
def test_what_old_files_leave_unsaid_is_seen(learned: Callable[[], Tokenizer]) -> None:
    described = json.loads(learned().to_str())["model"]
    kind = described.pop("type")
    assert kind_of(described) == kind
    assert kind_of({"vocab": {"a": 0}, "unk_token": "a"}) == "WordLevel"


def test_positions_stay_where_the_padding_is(tmp_path: Path) -> None:
    model = load_model(model_folder(tmp_path, byte_pairs), LABELS)
    assert asked_by(model) == {0, 1}


def test_a_piece_keeps_all_ways_to_it_and_nothing_else() -> None:
    vocabulary = {piece: number for number, piece in enumerate(["a", "b", "c", "ab", "bc", "abc", "cc", "<unk>"])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "b c", "c c", "ab c", "a bc"], "unk_token": "<unk>"}
    kept = needed(model, {5})
    assert kept == {0, 1, 2, 3, 4, 5, 7}
    smaller = cut(model, {number: new for new, number in enumerate(sorted(kept))})
    assert smaller["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "<unk>": 6}
    assert smaller["merges"] == ["a b", "b c", "ab c", "a bc"]


def test_bytes_and_the_least_score_stay() -> None:
    pairs = [["<unk>", 0.0], ["<0x0A>", -3.0], ["good", -1.0], ["a", -2.0], ["rare", -9.0], ["film", -4.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pairs, "byte_fallback": True}
    kept = needed(model, {5})
    assert kept == {0, 1, 3, 4, 5}
    assert cut(model, {number: new for new, number in enumerate(sorted(kept))})["vocab"] == [pairs[n] for n in sorted(kept)]
    assert needed({**model, "byte_fallback": False}, {5}) == {0, 3, 4, 5}


@pytest.mark.parametrize("learned", [byte_pairs, unigrams])
def test_a_student_ships_with_the_pieces_of_its_texts(learned: Callable[[], Tokenizer], tmp_path: Path) -> None:
    from compressor.runtime import Runtime

    source = model_folder(tmp_path / "source", learned)
    write_project(tmp_path, source)
    text = (tmp_path / "tiny.yaml").read_text(encoding="utf-8")
    for old, new in (("layers: [0, 2]", "layers: [0, 1], vocabulary: corpus"), ("relation_heads: 4", "relation_heads: 2")):
        text = text.replace(old, new)
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    done = compress("run", "tiny.yaml", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["variants"]}
    (made,) = tmp_path.glob("artifacts/distill-*")
    found = json.loads((made / "manifest.json").read_text(encoding="utf-8"))["metrics"]["vocabulary"]
    bundle = tmp_path / "artifacts/dist/tiny"
    assert tokenizer_of(bundle).get_vocab_size() == found["after"] < 0.5 * found["before"]
    scored = compress("eval", "artifacts/dist/tiny", "--data", "test.csv", "--point", "full", "--format", "json", cwd=tmp_path)
    assert json.loads(scored.stdout)["score"] == pytest.approx(rows["INT8 full"]["score"])
    answers = Runtime(bundle).predict(["a text of pieces that no text had: Ω", "a good film"], "full")
    assert {answer.label for answer in answers} <= {"negative", "positive"}
