import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from compressor.answering import N_BEST, QuestionAnswering, exact_match, normalized
from compressor.confidence import confidences
from compressor.data import Example, read_examples
from compressor.encoded import tokenizer_of
from compressor.errors import RecipeError
from compressor.files import Columns
from compressor.tokens import Tokens
from compressor.windows import Windows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchmetrics asks setuptools for what it lists as deprecated
    from torchmetrics.functional.text import squad

TASK, OPEN = QuestionAnswering(), QuestionAnswering(no_answer=True)
COLUMNS = Columns("question", "context", "answers")
ANSWERS = [
    ("The  Film!", ["the film"]),
    ("a film", ["film", "great film"]),
    ("film of an actor", ["actor", "the actor's film"]),
    ("film film", ["film"]),
    ("the", ["a"]),
    ("", ["film"]),
    ("$12", ["nearly $12", "12", "twelve"]),
    ("U.S.", ["us", "United States"]),
    ("don't", ["dont"]),
    ("naïve café", ["naive café"]),
    ("theatre", ["re"]),
]


def windows_of(tiny_model: Path, examples: list[Example], max_length: int = 32, stride: int = 8) -> Windows:
    return TASK.windows(tokenizer_of(tiny_model), examples, max_length, stride)


def logits_at(windows: Windows, spans: dict[int, tuple[int, int]], null: float = 0.0) -> np.ndarray:
    """Logits that favour, in each named window, one first and one last token."""
    logits = np.full((len(windows.tokens.ids), 2), -5.0, np.float32)
    for window, (begin, _) in enumerate(windows.spans()):
        logits[begin] = null
        if window in spans:
            for side, token in enumerate(spans[window]):
                logits[begin + token, side] = 5.0
    return logits


@pytest.mark.parametrize(("answer", "right"), ANSWERS)
def test_exact_match_and_f1_are_those_of_the_official_script(answer: str, right: list[str]) -> None:
    """torchmetrics keeps a port of SQuAD's evaluation script, with the second version's rule for empty answers."""
    expected = squad(
        {"prediction_text": answer, "id": "1"},
        {"answers": {"answer_start": [0] * len(right), "text": right}, "id": "1"},
    )
    assert 100 * max(exact_match(answer, text) for text in right) == expected["exact_match"].item()
    assert 100 * max(OPEN._f1(answer, text) for text in right) == pytest.approx(expected["f1"].item())


@given(st.text(), st.text())
def test_any_two_answers_score_as_in_the_official_script(answer: str, right: str) -> None:
    expected = squad({"prediction_text": answer, "id": "1"}, {"answers": {"answer_start": [0], "text": [right]}, "id": "1"})
    assert 100 * exact_match(answer, right) == expected["exact_match"].item()
    assert 100 * OPEN._f1(answer, right) == pytest.approx(expected["f1"].item(), abs=1e-4)
    empty = not (normalized(answer) and normalized(right))  # nothing shared is worth 0 in the first version's script
    assert TASK._f1(answer, right) == (0.0 if empty else OPEN._f1(answer, right))


def test_where_there_may_be_no_answer_two_empty_sides_agree() -> None:
    assert (OPEN._f1("the", ""), OPEN._f1("", "film"), OPEN._f1("a film", "film")) == (1.0, 0.0, 1.0)
    assert normalized("The a an") == ""


@pytest.mark.parametrize("text", ["film", "great", "the great film", "plot"])
def test_an_answer_is_found_again_from_its_own_tokens(text: str, tiny_model: Path) -> None:
    context = "it was very dull and the great film was quite good and the plot is weak"
    example = Example("the actor is", context, [(text, context.index(text))])
    windows = windows_of(tiny_model, [example])
    (first, last), *others = TASK.targets(windows, [example], ("start", "end")).tolist()
    assert others == []
    assert TASK.decode(logits_at(windows, {0: (first, last)}), windows, [example], ("start", "end"))[0].text == text
    assert TASK.outcomes(logits_at(windows, {0: (first, last)}), windows, [example], ("start", "end")).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("mark", ["\u0301", "\ufe0f", "\u0301\u200d"])
def test_marks_that_a_tokenizer_leaves_out_are_part_of_the_answer(mark: str, tiny_model: Path) -> None:
    """An uncased tokenizer's last token ends before them: so would the answer, and at a context's end its target would be none."""
    tokenizer = tokenizer_of(tiny_model)
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True)
    for context in (f"the plot was a great film{mark} and good", f"the plot was a great film{mark}", f"it was great film{mark} "):
        text = context[context.index("great") :].removesuffix(" and good")
        example = Example("what is good", context, [(text, context.index("great"))])
        windows = TASK.windows(tokenizer, [example], 32, 8)
        (target,) = TASK.targets(windows, [example], ("start", "end")).tolist()
        assert target != [0, 0]
        (answer,) = TASK.decode(logits_at(windows, {0: tuple(target)}), windows, [example], ("start", "end"))
        assert (answer.text, context[answer.start : answer.end]) == (text.strip(), text.strip())
        assert TASK.outcomes(logits_at(windows, {0: tuple(target)}), windows, [example], ("start", "end")).tolist() == [[1.0, 1.0]]


def test_a_word_with_its_marks_and_one_without_are_one_answer(tiny_model: Path) -> None:
    """Marks that have tokens of their own: two spans end at one letter, and are the same words."""
    context = "film f\u0301\u0302 good"
    example = Example("what", context)
    places = np.array([[-1, -1], [0, 4], [5, 6], [6, 7], [7, 8], [9, 13]], np.int32)
    ids = np.arange(6, dtype=np.int32)
    windows = Windows(Tokens(ids, np.zeros(6, np.int8), np.array([0, 6])), np.array([0]), places)
    logits = np.full((6, 2), -5.0, np.float32)
    logits[2, 0], logits[2:5, 1] = 5, (5, 4.9, 4.8)
    (answer,) = TASK.decode(logits, windows, [example], ("start", "end"))
    assert (answer.text, answer.start, answer.end) == (context[5:8], 5, 8)
    assert answer.score > 0.9


def test_a_long_context_is_read_in_windows_that_overlap(tiny_model: Path) -> None:
    words = [*["the plot is dull and"] * 6, "great film", *["it was weak"] * 6]
    context = " ".join(words)
    example = Example("what is good", context, [("great film", context.index("great"))])
    windows = windows_of(tiny_model, [example, Example("a film", "a film", [("film", 2)])])
    assert windows.tokens.lengths.max() == 32
    assert set(windows.owners.tolist()) == {0, 1}
    targets = TASK.targets(windows, [example, Example("a film", "a film", [("film", 2)])], ("start", "end")).tolist()
    inside = [w for w, target in enumerate(targets[:-1]) if target != [0, 0]]
    assert 1 <= len(inside) < len(targets) - 1
    for window in inside:
        answer = TASK.decode(logits_at(windows, {window: tuple(targets[window])}), windows, [example, example], ("start", "end"))[0]
        assert (answer.text, context[answer.start : answer.end]) == ("great film", "great film")
        assert answer.score > 0.9


def test_an_answer_that_two_windows_find_is_as_sure_as_one_that_one_finds(tiny_model: Path) -> None:
    context = " ".join([*["the plot is dull and"] * 6, "great film", *["it was weak"] * 6])
    example = Example("what is good", context, [("great film", context.index("great"))])
    windows = windows_of(tiny_model, [example], stride=16)
    targets = TASK.targets(windows, [example], ("start", "end")).tolist()
    inside = {window: tuple(target) for window, target in enumerate(targets) if target != [0, 0]}
    assert len(inside) > 1
    logits = logits_at(windows, inside)
    best = TASK.spans(logits, windows, [example])[0]
    assert len({(span.start, span.end) for span in best}) == len(best)
    assert TASK.decode(logits, windows, [example], ("start", "end"))[0].score > 0.9
    assert confidences("margin", TASK, logits, windows, [example])[0] > 0.9


def test_an_answer_that_a_window_cuts_is_none_of_its_answers(tiny_model: Path) -> None:
    context = " ".join(["film"] * 60)
    example = Example("what", context, [(context[5:284], 5)])  # longer than any window
    windows = windows_of(tiny_model, [example])
    assert len(windows) > 2
    assert TASK.targets(windows, [example], ("start", "end")).tolist() == [[0, 0]] * len(windows)


def test_no_answer_wins_when_cls_does(tiny_model: Path) -> None:
    examples = [Example("what is it", "a great film", [])]
    windows = windows_of(tiny_model, examples)
    span = int(np.flatnonzero(windows.places[:, 0] >= 0)[0])
    assert TASK.targets(windows, examples, ("start", "end")).tolist() == [[0, 0]]
    for null, expected in ((6.0, ""), (4.0, "a great film")):
        logits = logits_at(windows, {0: (span, span + 2)}, null)
        assert OPEN.decode(logits, windows, examples, ("start", "end"))[0].text == expected
        assert OPEN.outcomes(logits, windows, examples, ("start", "end")).tolist() == [[float(not expected)] * 2]
    assert TASK.decode(logits_at(windows, {0: (span, span + 2)}, 6.0), windows, examples, ("start", "end"))[0].text == "a great film"


def test_an_answer_ends_after_it_begins_and_is_not_too_long(tiny_model: Path) -> None:
    example = Example("what", " ".join(["film"] * 40), [("film", 0)])
    windows = windows_of(tiny_model, [example], max_length=64)
    logits = np.full((len(windows.tokens.ids), 2), -5.0, np.float32)
    first = int(np.flatnonzero(windows.places[:, 0] >= 0)[0])
    logits[first + 35, 1] = logits[first + 5, 0] = 5.0  # 31 tokens
    logits[first + 2, 1] = 4.0  # before its start
    logits[first + 7, 1] = 3.0
    assert TASK.decode(logits, windows, [example], ("start", "end"))[0].text == "film film film"


def test_the_next_best_spans_stand_beside_an_answer(tiny_model: Path) -> None:
    example = Example("what", "a great film was dull", [("film", 8)])
    windows = windows_of(tiny_model, [example])
    first = int(np.flatnonzero(windows.places[:, 0] >= 0)[0])
    logits = np.full((len(windows.tokens.ids), 2), -9.0, np.float32)
    logits[first, 0] = logits[first + 2, 1] = 4.0
    logits[first + 4, 0], logits[first + 4, 1] = 3.0, 3.0
    answer = TASK.decode(logits, windows, [example], ("start", "end"))[0]
    second = answer.others[1]  # after the one from the first's start to the second's end
    assert [answer.text, answer.others[0].text, second.text] == ["a great film", "a great film was dull", "dull"]
    assert example.text_pair is not None
    assert example.text_pair[second.start : second.end] == "dull"
    scores = [answer.score, *(other.score for other in answer.others)]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1.0)
    assert len(scores) <= N_BEST


def test_a_long_question_is_cut_so_that_its_context_has_room(tiny_model: Path) -> None:
    example = Example("very " * 50, "a great film", [("film", 8)])
    windows = windows_of(tiny_model, [example])
    assert len(windows) == 1
    assert windows.tokens.lengths.tolist() == [8 + 3 + 3]


def test_a_context_without_tokens_has_no_answer(tiny_model: Path) -> None:
    tokenizer, example = tokenizer_of(tiny_model), Example("what", "\u200b\u200b", [("\u200b", 0)])
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    windows = TASK.windows(tokenizer, [example], 32, 8)
    assert TASK.targets(windows, [example], ("start", "end")).tolist() == [[0, 0]]
    logits = np.zeros((len(windows.tokens.ids), 2), np.float32)
    answer = TASK.decode(logits, windows, [example], ("start", "end"))[0]
    assert (answer.text, answer.score) == ("", 0.0)
    assert np.isnan(confidences("max_softmax", TASK, logits, windows, [example])).all()  # a cascade asks its next member


def squad_file(folder: Path, *questions: dict[str, object], context: str = "a great film") -> Path:
    document = {"version": "1.1", "data": [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path = folder / "train.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    return path


def read(path: Path, task: QuestionAnswering = TASK, skipped: list[str] | None = None) -> list[Example]:
    return list(read_examples(path.name, COLUMNS, task, root=path.parent, split="train", skipped=skipped))


def test_a_squad_file_is_read_question_by_question(tmp_path: Path) -> None:
    answers = [{"text": "film", "answer_start": 8}, {"text": "great film", "answer_start": 2}]
    path = squad_file(
        tmp_path, {"id": "1", "question": "what?", "answers": answers}, {"id": "2", "question": "who?", "answers": answers[:1]}
    )
    assert read(path) == [
        Example("what?", "a great film", [("film", 8), ("great film", 2)]),
        Example("who?", "a great film", [("film", 8)]),
    ]
    hub = {"question": "what?", "context": "a great film", "answers": {"text": ["film"], "answer_start": [8]}}
    assert TASK.example("here", hub, COLUMNS) == Example("what?", "a great film", [("film", 8)])


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        ([{"text": "plot", "answer_start": 2}], r"answer 'plot' is not in its context \('grea' stands at character 2\)"),
        ([{"text": "film", "answer_start": 80}], r"answer 'film' is not in its context \('' stands at character 80\)"),
        ([{"text": "film", "answer_start": -4}], r"answer 'film' is not in its context"),
        ([{"text": "great", "answer_start": -10}], r"answer 'great' is not in its context"),
        ([{"text": "", "answer_start": 2}], "an answer of column 'answers' has no text or no answer_start"),
        ([], "column 'answers' is empty; give it an answer, or set task.no_answer: true"),
        ([3], "column 'answers' holds no answers"),
        (3, "column 'answers' holds no answers"),
    ],
)
def test_a_bad_answer_is_named_or_skipped_and_counted(answers: object, wrong: str, tmp_path: Path) -> None:
    good = {"id": "2", "question": "who?", "answers": [{"text": "film", "answer_start": 8}]}
    path = squad_file(tmp_path, good, {"id": "1", "question": "what?", "answers": answers})
    with pytest.raises(RecipeError, match=f"row 2: {wrong}"):
        read(path)
    skipped: list[str] = []
    assert len(read(path, skipped=skipped)) == 1
    assert len(skipped) == 1
    assert "row 2" in skipped[0]


@pytest.mark.parametrize(("lacking", "kept"), [("question", {"answers": []}), ("answers", {"question": "who?"})])
def test_a_question_that_lacks_a_part_is_named_or_skipped(lacking: str, kept: dict[str, object], tmp_path: Path) -> None:
    """Hidden answers are none that a score may be told of, also where there may be no answer."""
    good = {"question": "who?", "answers": [{"text": "film", "answer_start": 8}]}
    path = squad_file(tmp_path, good, {"id": "q7", **kept})
    with pytest.raises(RecipeError, match=f"row 2, question 'q7', has no '{lacking}'; add it"):
        read(path, OPEN)
    skipped: list[str] = []
    assert (len(read(path, OPEN, skipped)), len(skipped)) == (1, 1)


def test_a_question_without_an_answer_needs_the_setting(tmp_path: Path) -> None:
    assert read(squad_file(tmp_path, {"question": "who?", "answers": [], "is_impossible": True}), OPEN)[0].label == []


@pytest.mark.parametrize("content", ["[]", '{"data": 3}', '{"data": [{}]}', "{", '{"data": [{"paragraphs": [{"context": "x"}]}]}'])
def test_a_file_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"train\.json: no SQuAD file \(.*\); write data > paragraphs"):
        read(tmp_path / "train.json")


def test_windows_that_lack_an_answer_do_not_outvote_the_one_that_has_it(tiny_model: Path) -> None:
    context = " ".join([*["the plot is dull and"] * 6, "great film", *["it was weak"] * 6])
    example = Example("what is good", context, [("great film", context.index("great"))])
    windows = windows_of(tiny_model, [example])
    targets = TASK.targets(windows, [example], ("start", "end")).tolist()
    inside = {window: tuple(target) for window, target in enumerate(targets) if target != [0, 0]}
    assert 0 < len(inside) < len(windows)
    logits = logits_at(windows, inside, null=-5.0)
    for window, (begin, _) in enumerate(windows.spans()):
        logits[begin] = -5.0 if window in inside else 9.0
    assert OPEN.decode(logits, windows, [example], ("start", "end"))[0].text == "great film"


def test_an_answer_is_scored_by_the_nearest_of_its_right_ones(tiny_model: Path) -> None:
    context, answers = "it was a great film", [("great film", 9), ("film", 15)]
    windows = windows_of(tiny_model, [Example("what", context, answers)])
    ((first, last),) = TASK.targets(windows, [Example("what", context, answers)], ("start", "end")).tolist()  # of "great film"
    logits = logits_at(windows, {0: (first, last)})
    for right in (answers, answers[::-1]):
        for task in (TASK, OPEN):
            assert task.outcomes(logits, windows, [Example("what", context, right)], ("start", "end")).tolist() == [[1.0, 1.0]]
