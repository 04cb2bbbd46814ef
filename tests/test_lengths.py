import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.lengths import LengthConfig


@pytest.mark.parametrize(
    ("lengths", "gmacs"),
    [((384,) * 6, 4.76), ((269, 253, 252, 202, 104, 34), 2.49), ((315, 251, 242, 159, 142, 33), 2.55)],
)
def test_macs_equal_the_published_configurations(lengths: tuple[int, ...], gmacs: float) -> None:
    """QuaLA-MiniLM (arXiv:2210.17114), 6 layers of 384 at 384 tokens."""
    assert LengthConfig(lengths, 384).macs(384, 1536) / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_macs_equal_the_published_bert_base() -> None:
    assert LengthConfig.full(12, 384).macs(768, 3072) / 1e9 == pytest.approx(35.3, abs=0.05)


@given(st.integers(1, 12), st.integers(2, 512), st.floats(0.01, 0.9), st.integers())
def test_samples_are_valid_and_drop_no_more_than_the_bound(layers: int, max_length: int, bound: float, seed: int) -> None:
    config = LengthConfig.sample(layers, max_length, bound, random.Random(seed))
    passed = max_length
    for length in config.lengths:
        assert (1 - bound) * passed <= length <= passed
        passed = length


@given(st.lists(st.floats(-10, 1000), min_size=1, max_size=12), st.integers(1, 512))
def test_repaired_configurations_are_valid(lengths: list[float], max_length: int) -> None:
    LengthConfig.repaired(lengths, max_length)


def test_an_increasing_configuration_is_refused_in_the_users_words() -> None:
    with pytest.raises(ValueError, match="layer 1 keeps 120 tokens but only 96 reach it"):
        LengthConfig((96, 120), 128)
    with pytest.raises(ValueError, match="layer 1 keeps 0 tokens"):
        LengthConfig((96, 0), 128)


@given(st.integers(1, 64))
def test_full_length_keeps_every_token_of_any_text(tokens: int) -> None:
    assert LengthConfig.full(3, 64).kept(tokens) == (tokens,) * 3


def test_a_text_keeps_its_share_and_at_least_one_token() -> None:
    assert LengthConfig((64, 32, 1), 128).kept(10) == (5, 3, 1)


def test_absolute_counts_leave_short_texts_whole() -> None:
    config = LengthConfig((64, 32, 1), 128, absolute=True)
    assert config.kept(100) == (64, 32, 1)
    assert config.kept(40) == (40, 32, 1)
    assert config.macs(32, 64, 20) > LengthConfig((64, 32, 1), 128).macs(32, 64, 20)
