import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.session import truncated
from compressor.tokens import Ints, Tokens, length_batches

TEXTS = st.lists(st.lists(st.integers(1, 30_000), min_size=1, max_size=20), min_size=1, max_size=12)


def flat(texts: list[list[int]]) -> Tokens:
    return Tokens.joined(
        [Tokens(np.array(t, np.int32), np.array([i % 2 for i in t], np.int8), np.array([0, len(t)], np.int64)) for t in texts]
    )


@given(texts=TEXTS, data=st.data())
@settings(max_examples=60)
def test_padding_chosen_rows_equals_a_naive_loop(texts: list[list[int]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6))
    batch = flat(texts).rows(rows).padded(pad_id=7)
    longest = max(len(texts[row]) for row in rows)
    for place, row in enumerate(rows):
        text, padding = texts[row], longest - len(texts[row])
        assert batch["input_ids"][place].tolist() == text + [7] * padding
        assert batch["attention_mask"][place].tolist() == [1] * len(text) + [0] * padding
        assert batch["token_type_ids"][place].tolist() == [i % 2 for i in text] + [0] * padding


@given(texts=TEXTS, most=st.integers(2, 21))
@settings(max_examples=60)
def test_cut_texts_keep_their_first_tokens_and_their_last(texts: list[list[int]], most: int) -> None:
    expected = flat([text if len(text) <= most else [*text[: most - 1], text[-1]] for text in texts])
    cut = truncated(flat(texts), most)
    assert cut.ids.tolist() == expected.ids.tolist()
    assert cut.starts.tolist() == expected.starts.tolist()
    assert len(cut.segments) == len(cut.ids)


def test_texts_come_back_one_by_one() -> None:
    tokens = flat([[1, 2], [3], [4, 5, 6]])
    assert tokens.lengths.tolist() == [2, 1, 3]
    assert [text.ids.tolist() for text in tokens] == [[1, 2], [3], [4, 5, 6]]
    assert len(Tokens.joined([])) == 0


@given(lengths=st.lists(st.integers(1, 512), max_size=300), batch_size=st.integers(1, 16), seed=st.none() | st.integers(0, 9))
@settings(max_examples=60)
def test_length_batches_hold_every_row_once(lengths: list[int], batch_size: int, seed: int | None) -> None:
    batches = listed(length_batches(np.array(lengths, np.int64), batch_size, seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert batches == listed(length_batches(np.array(lengths, np.int64), batch_size, seed))


def test_length_batches_pad_little_and_differ_by_seed() -> None:
    lengths = np.array([1 + (i * 7919) % 128 for i in range(6400)])

    def padding(batches: list[Ints]) -> float:
        return float(sum(len(b) * lengths[b].max() for b in batches) / lengths.sum())

    assert padding(length_batches(lengths, 32)) < 1.01
    assert padding(length_batches(lengths, 32, seed=1)) < 1.05
    assert listed(length_batches(lengths, 32, seed=1)) != listed(length_batches(lengths, 32, seed=2))


def listed(batches: list[Ints]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]
