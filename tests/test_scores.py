import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from compressor.scores import accuracy, bounds, changed, interval, label_macro_f1, label_micro_f1, macro_f1, resampled, spearman
from compressor.settings.data import USUAL
from compressor.tasks import TRAINED

CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
SETS = st.lists(st.tuples(*[st.tuples(*[st.integers(0, 1)] * 3)] * 2), min_size=1, max_size=20)
NUMBERS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30)


def test_a_recipe_knows_each_tasks_metrics_in_their_order() -> None:
    assert {name: usual.metrics for name, usual in USUAL.items()} == {name: tuple(make().metrics) for name, make in TRAINED.items()}


@given(CLASSES)
def test_scores_of_classes_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    outcomes = np.array(pairs, float)
    answered, right = outcomes.T
    assert accuracy(outcomes) == pytest.approx(accuracy_score(right, answered))
    assert macro_f1(outcomes) == pytest.approx(f1_score(right, answered, average="macro", zero_division=0))


@given(SETS)
def test_scores_of_label_sets_are_those_of_scikit_learn(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    outcomes = np.array(pairs, float)
    answered, right = outcomes[:, 0], outcomes[:, 1]
    assert label_micro_f1(outcomes) == pytest.approx(f1_score(right, answered, average="micro", zero_division=0))
    named = np.flatnonzero((answered + right).sum(0))  # scikit-learn counts a label that nobody names as 0
    each = [f1_score(right[:, label], answered[:, label], zero_division=0) for label in named]
    assert label_macro_f1(outcomes) == pytest.approx(np.mean(each) if each else 0.0)


@given(NUMBERS)
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    outcomes = np.array(pairs, float)
    constant = any(len(set(column)) == 1 for column in outcomes.T)
    expected = 0.0 if constant else scipy.stats.spearmanr(*outcomes.T).statistic
    assert spearman(outcomes) == pytest.approx(expected)


def test_an_interval_holds_the_score_and_narrows_with_examples() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        outcomes = np.stack([np.zeros(count), rng.integers(0, 4, count)], 1).astype(float)
        low, high = interval(accuracy, outcomes)
        assert low < accuracy(outcomes) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


@pytest.mark.parametrize(("right", "expected"), [(20, (0.85, 1.0)), (0, (0.0, 0.15))])
def test_a_score_that_no_resample_changes_is_not_certain_for_all_that(right: int, expected: tuple[float, float]) -> None:
    outcomes = np.stack([np.zeros(20), np.arange(20) >= right], 1).astype(float)
    assert interval(accuracy, outcomes) == pytest.approx(expected)


def test_a_difference_on_the_same_examples_is_surer_than_either_score() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, 1000)
    answered = np.where(rng.random(1000) < 0.8, right, (right + 1) % 4)
    other = np.where(np.arange(1000) < 20, (right + 2) % 4, answered)  # differs in 20 answers only
    ours, theirs = (np.stack([some, right], 1).astype(float) for some in (answered, other))
    low, high = bounds(resampled(accuracy, ours) - resampled(accuracy, theirs))
    whole = interval(accuracy, ours)
    assert low < accuracy(ours) - accuracy(theirs) < high
    assert 0 < high - low < (whole[1] - whole[0]) / 2
    assert bounds(resampled(accuracy, ours) - resampled(accuracy, ours)) == (0, 0)


def test_where_no_answer_differs_a_change_is_not_certain_for_all_that() -> None:
    """Twenty texts that two models answer alike say little of the next: of so many, three in twenty may differ."""
    alike = resampled(accuracy, np.array([[0, 0]] * 15 + [[0, 1]] * 5))
    assert changed(alike, alike, 20) == pytest.approx((-0.15, 0.15))
    other = resampled(accuracy, np.array([[0, 0]] * 12 + [[0, 1]] * 8))
    assert changed(alike, other, 20) == bounds(alike - other)


def test_macro_f1_of_thousands_of_classes_needs_no_table_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 5000, (400, 2)).astype(float)
    pairs[:100, 1] = pairs[:100, 0]
    wanted = f1_score(pairs[:, 1], pairs[:, 0], average="macro", zero_division=0)
    assert macro_f1(pairs) == pytest.approx(wanted)
