"""What is read of texts: pairs as a tokenizer reads them, without what it would keep of what it cuts off."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compressor.tokens import Tokens
from compressor.windows import Windows, _shortened, settle, whole_texts

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


def test_of_long_pairs_little_is_left_to_cut_off(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    settle(tokenizer, 32)
    for counts in ((4000, 4000), (4000, 500), (500, 4000)):
        pair = words(rng, counts[0]), words(rng, counts[1])
        short = _shortened(tokenizer, pair, 32)
        assert all(whole.startswith(part) for part, whole in zip(short, pair, strict=True))
        assert len(tokenizer.encode(*short).overflowing) < 40  # of the whole pair thousands


def test_few_windows_are_fewer_where_they_are_long() -> None:
    def few(*lengths: int) -> int:
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return len(Windows.whole(Tokens(np.zeros(starts[-1], np.int32), np.zeros(starts[-1], np.int8), starts)).few())

    assert few(*[512] * 20) == 8
    assert few(5, 6, 7) == 3
    assert few(1024, 1024, 1024) == 2
    assert few(8192, 8192) == 1
