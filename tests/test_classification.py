import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from compressor.choices import UNLABELLED
from compressor.classification import MultiLabelClassification, TextClassification, TextRegression, by_name
from compressor.data import Example
from compressor.encoded import Encoded
from compressor.errors import RecipeError
from compressor.files import Columns
from compressor.tokens import Tokens
from compressor.windows import Windows

COLUMNS = Columns("text", None, "labels")
SETS, NUMBERS = MultiLabelClassification(), TextRegression()
NONE = Windows.whole(Tokens.joined([]))


def test_labels_are_ordered_numbers_by_size_then_names() -> None:
    assert by_name(["b", "10", "2", "a", "2"]) == ("2", "10", "a", "b")
    assert by_name(["1", "-1", "0", "-10", "-a"]) == ("-10", "-1", "0", "1", "-a")
    assert by_name(["②", "①", "²", "10"]) == ("10", "²", "①", "②")  # digits that are no numbers
    assert by_name(["9" * 5000, "10", "007", "7", "0"]) == ("0", "007", "7", "10", "9" * 5000)  # int() reads 4,300 digits


@pytest.mark.parametrize(("value", "expected"), [(["b", "a"], ["b", "a"]), ("b|a", ["b", "a"]), ([], []), ("", []), ([1, 2], ["1", "2"])])
def test_a_text_may_have_any_number_of_labels(value: Any, expected: list[str]) -> None:
    assert SETS.example("f: row 1", {"text": "x", "labels": value}, COLUMNS).label == expected


@pytest.mark.parametrize("value", [None, 3, {"a": 1}, [None], [["a"]]])
def test_what_is_no_list_of_labels_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match="f: row 1: column 'labels'"):
        SETS.example("f: row 1", {"text": "x", "labels": value}, COLUMNS)


def test_label_sets_are_answered_by_probability_above_one_half() -> None:
    examples, logits = [Example("x", label=["a", "c"]), Example("y")], np.array([[2.0, -1.0, 0.1], [-3.0, 0.0, -0.1]])
    assert SETS.targets(NONE, examples, ("a", "b", "c")).tolist() == [[1, 0, 1], [UNLABELLED] * 3]
    assert SETS.outcomes(logits[:1], NONE, examples[:1], ("a", "b", "c")).tolist() == [[[1, 0, 1], [1, 0, 1]]]
    first, second = SETS.decode(logits, NONE, examples, ("a", "b", "c"))
    assert (first.labels, second.labels) == (("a", "c"), ())
    assert first.probabilities["a"] == pytest.approx(1 / (1 + math.exp(-2)))


def test_numbers_are_read_answered_and_scored() -> None:
    columns = Columns("text", None, "score")
    examples = [NUMBERS.example("f: row 1", {"text": "x", "score": value}, columns) for value in ("2.5", 4, 1e3)]
    assert [e.label for e in examples] == [2.5, 4.0, 1000.0]
    targets = NUMBERS.targets(NONE, [*examples, Example("y")], ("value",))
    assert targets[:3].tolist() == [2.5, 4.0, 1000.0]
    assert np.isnan(targets[3])
    logits = np.array([[0.1], [0.2], [0.3]])
    assert NUMBERS.metrics["spearman"](NUMBERS.outcomes(logits, NONE, examples, ("value",))) == pytest.approx(1.0)
    assert [n.value for n in NUMBERS.decode(logits, NONE, examples, ("value",))] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("value", [None, "many", "nan", math.inf, True, [1]])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"f: row 1: column 'score' is .*, not a number; write one or remove the row"):
        NUMBERS.example("f: row 1", {"text": "x", "score": value}, Columns("text", None, "score"))


def test_a_decimal_of_a_data_base_is_a_number() -> None:
    found = TextRegression().example("f: row 1", {"text": "a", "score": Decimal("1.50")}, Columns("text", None, "score"))
    assert found.label == 1.5


def test_a_text_without_a_label_has_no_target() -> None:
    examples = [Example("x", label="b"), Example("y")]
    assert TextClassification().targets(NONE, examples, ("a", "b")).tolist() == [1, UNLABELLED]


def test_sets_of_thousands_of_labels_are_kept_in_bytes() -> None:
    task, outputs = MultiLabelClassification(), ("a", "b", "c")
    examples = [Example("x", label=["a", "c"]), Example("y", label=[]), Example("z")]
    windows = Windows.whole(Tokens(np.zeros(3, np.int32), np.zeros(3, np.int8), np.arange(4)))
    targets = task.targets(windows, examples, outputs)
    assert (targets.dtype, targets.tolist()) == (np.int8, [[1, 0, 1], [0, 0, 0], [UNLABELLED] * 3])
    encoded = Encoded(task, windows, targets, outputs, examples, 0)
    assert encoded.batch(np.array([0, 1]))["labels"].dtype == np.int64  # as losses have them
    outcomes = task.outcomes(np.array([[1.0, 2.0, -1.0], [-1.0, -1.0, -1.0]]), windows, examples[:2], outputs)
    assert outcomes.dtype == np.int8
    assert task.metrics["micro_f1"](np.repeat(outcomes, 200, 0)) == pytest.approx(0.5)  # sums are no bytes
