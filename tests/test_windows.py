"""What is read of texts: pairs as a tokenizer reads them, without what it would keep of what it cuts off."""

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compressor.windows import settle, whole_texts

LETTERS = "aeinorstdlé"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def words(rng: random.Random, count: int) -> str:
    made = ("".join(rng.choices(LETTERS, k=rng.randint(1, 12))) for _ in range(count))
    return "".join(word + rng.choice([" ", " ", "  ", ", ", "… ", "\n", "-"]) for word in made)


@pytest.fixture(scope="module", params=["WordPiece", "BPE", "Unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer of each kind that encoders have, as BERT, RoBERTa and DeBERTa-v3 do."""
    kind, how = request.param, {"vocab_size": 300, "special_tokens": SPECIAL, "show_progress": False}
    texts = [words(random.Random(seed), 30) for seed in range(100)]
    if kind == "WordPiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: trainers.Trainer = trainers.WordPieceTrainer(**how)
    elif kind == "BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **how)
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **how)
    made.train_from_iterator(texts, trainer)
    named = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=named)
    return made


@pytest.mark.parametrize("max_length", [16, 33])
def test_pairs_are_read_as_the_tokenizer_reads_them_whole(tokenizer: Tokenizer, max_length: int) -> None:
    rng = random.Random(max_length)
    counts = [0, 1, 3, 5, 6, 7, 8, 10, 12, 15, 20, 40, 90]
    pairs = [(words(rng, rng.choice(counts)), words(rng, rng.choice(counts))) for _ in range(300)] + [("a" * 500, words(rng, 60))]
    settle(tokenizer, max_length)
    found, wanted = whole_texts(tokenizer, pairs, max_length).tokens, tokenizer.encode_batch(pairs)
    assert [text.ids.tolist() for text in found] == [e.ids for e in wanted]
    assert [text.segments.tolist() for text in found] == [e.type_ids for e in wanted]
    assert max(map(len, wanted)) == max_length


def test_long_pairs_are_read_side_by_side_whatever_their_words(tokenizer: Tokenizer) -> None:
    """Scripts without spaces have words of thousands of tokens, and runs of blanks are tokens to some tokenizers."""
    rng = random.Random(1)
    dense = ["".join(rng.choices(LETTERS, k=count)) for count in (40, 90, 200, 500)]
    blanks = ["Subject" + "\n" * 60 + words(rng, 30), words(rng, 40) + " " * 50, " " * 300 + "a"]
    pairs = [(a, b) for a in [*dense, *blanks] for b in [*dense, *blanks]]
    for max_length in (32, 33):
        settle(tokenizer, max_length)
        found, wanted = whole_texts(tokenizer, pairs, max_length).tokens, tokenizer.encode_batch(pairs)
        assert [text.ids.tolist() for text in found] == [e.ids for e in wanted]
        assert [text.segments.tolist() for text in found] == [e.type_ids for e in wanted]


def test_two_long_texts_are_never_cut_beside_each_other(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer keeps each piece of one beside each piece of the other."""
    asked, rng = list[Any](), random.Random(1)

    class Recording:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def encode_batch(self, texts: list[Any], **how: Any) -> Any:
            asked.extend(texts)
            return tokenizer.encode_batch(texts, **how)

    long, short = words(rng, 400), words(rng, 1)
    recording: Any = Recording()
    whole_texts(recording, [(long, long), (short, long), (long, short), (short, short)], 32)
    assert asked == [(short, long), (long, short), (short, short), long, long]


def test_pairs_are_long_by_bytes_and_any_tokenizer_tells_where_sides_stand(tokenizer: Tokenizer) -> None:
    odd = Tokenizer.from_str(tokenizer.to_str())
    odd.normalizer = normalizers.Replace("a", "")
    rng = random.Random(2)
    pairs = [(words(rng, 30), words(rng, 30)), ("é" * 20, words(rng, 90)), (words(rng, 90), "é" * 20)]
    for one in (tokenizer, odd):
        settle(one, 32)
        assert [text.ids.tolist() for text in whole_texts(one, pairs, 32).tokens] == [e.ids for e in one.encode_batch(pairs)]
