import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import seqeval.metrics
from hypothesis import given
from hypothesis import strategies as st

from compressor.choices import UNKNOWN, UNLABELLED
from compressor.data import Example, read_examples
from compressor.encoded import tokenizer_of
from compressor.errors import RecipeError
from compressor.files import Columns
from compressor.scores import entity_f1
from compressor.tagging import Entities, Entity, Scheme, TokenClassification, conll_rows, entities, iob2, words_of
from compressor.tokens import Tokens
from compressor.windows import Windows

TASK = TokenClassification()
COLUMNS = Columns("tokens", None, "tags")
OUTPUTS = ("O", "B-actor", "I-actor", "B-film", "I-film")
TAGS = st.lists(st.sampled_from(OUTPUTS), min_size=1, max_size=12)


def windows_of(tiny_model: Path, examples: list[Example], max_length: int = 32, stride: int = 4) -> Windows:
    return TASK.windows(tokenizer_of(tiny_model), examples, max_length, stride)


def logits_for(windows: Windows, answers: list[list[str]]) -> np.ndarray:
    """Logits that answer these tags at each word's own token, and another one everywhere else."""
    logits = np.zeros((len(windows.tokens.ids), len(OUTPUTS)), np.float32)
    logits[:, 4] = 1.0
    for owner, (begin, end) in zip(windows.owners.tolist(), windows.spans(), strict=True):
        for token in range(begin, end):
            if (word := windows.places[token, 0]) >= 0:
                logits[token] = np.eye(len(OUTPUTS))[OUTPUTS.index(answers[owner][word])] * 8
    return logits


@given(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=5))
def test_entity_f1_is_that_of_seqeval(pairs: list[tuple[list[str], list[str]]]) -> None:
    pairs = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in pairs]
    outcomes = [(len(a & b), len(a), len(b)) for a, b in ((set(entities(x)), set(entities(y))) for x, y in pairs)]
    expected = seqeval.metrics.f1_score([b for _, b in pairs], [a for a, _ in pairs], zero_division=0)
    assert entity_f1(np.array(outcomes, float)) == pytest.approx(expected)


@given(TAGS)
def test_entities_are_those_of_seqeval(tags: list[str]) -> None:
    assert entities(tags) == seqeval.metrics.sequence_labeling.get_entities(tags)


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("IOB2", "B-x I-x O B-x B-y", "B-x I-x O B-x B-y"),
        ("IOB1", "I-x I-x O I-x B-x I-y", "B-x I-x O B-x B-x B-y"),
        ("BIOES", "B-x I-x E-x O S-y S-y", "B-x I-x I-x O B-y B-y"),
    ],
)
def test_schemes_are_read_as_iob2(scheme: Scheme, tags: str, expected: str) -> None:
    assert iob2("here", tags.split(), scheme) == expected.split()


@pytest.mark.parametrize(
    ("scheme", "tags", "wrong"),
    [
        ("IOB2", "O I-x", "tag 2, 'I-x', stands between 'O' and 'O', which IOB2 does not allow"),
        ("IOB2", "B-x I-y", "tag 2, 'I-y', stands between 'B-x' and 'O', which IOB2 does not allow"),
        ("IOB2", "B-x E-x", "tag 2 is 'E-x', which IOB2 does not have"),
        ("IOB2", "B-", "tag 1 is 'B-', which IOB2 does not have"),
        ("IOB2", "O -X-", "tag 2 is '-X-', which IOB2 does not have"),
        ("IOB1", "BI-x", "tag 1 is 'BI-x', which IOB1 does not have"),
        ("BIOES", "ES-x", "tag 1 is 'ES-x', which BIOES does not have"),
        ("IOB2", "disease", "tag 1 is 'disease', which IOB2 does not have"),
        ("BIOES", "B-x O", "tag 1, 'B-x', stands between 'O' and 'O', which BIOES does not allow"),
        ("BIOES", "O E-x", "tag 2, 'E-x', stands between 'O' and 'O', which BIOES does not allow"),
        ("BIOES", "B-x E-y", "tag 1, 'B-x', stands between 'O' and 'E-y', which BIOES does not allow"),
    ],
)
def test_tags_that_a_scheme_does_not_allow_are_refused(scheme: Scheme, tags: str, wrong: str) -> None:
    with pytest.raises(RecipeError) as error:
        iob2("train.conll: row 7", tags.split(), scheme)
    assert str(error.value) == f"train.conll: row 7: {wrong}; mend it, or set task.scheme"


def conll(folder: Path, text: str, skipped: list[str] | None = None) -> list[Example]:
    (folder / "train.conll.gz").write_bytes(gzip.compress(text.encode()))
    return list(read_examples("train.conll.gz", COLUMNS, TASK, root=folder, split="train", skipped=skipped))


def test_a_conll_file_has_a_word_and_its_tag_a_line(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nthe DT O\nfilm NN B-film\n\n\n\nan\tO\nactor\tB-actor\n"
    found = conll(tmp_path, text)
    assert found == [
        Example("the film", None, ["O", "B-film"], ["the", "film"]),
        Example("an actor", None, ["O", "B-actor"], ["an", "actor"]),
    ]
    assert TASK.outputs(name for e in found for name in TASK.names(e)) == OUTPUTS


def test_a_word_of_a_conll_file_may_hold_spaces_that_are_not_asciis(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text("10\u00a0mg\tB-Dose\nof\u2009it NN O\nplain \tX O\n", encoding="utf-8")
    assert [row for _, row in conll_rows(path, Columns("tokens", label="tags"))] == [
        {"tokens": ["10\u00a0mg", "of\u2009it", "plain"], "tags": ["B-Dose", "O", "O"]}
    ]


def test_what_is_wrong_in_a_conll_file_is_told_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.conll.gz: row 3 has one column, 'actor'; write a word and its tag"):
        conll(tmp_path, "the O\n\nactor\n")
    with pytest.raises(RecipeError, match=r"train.conll.gz: row 3: tag 1, 'I-x', stands between 'O' and 'O'"):
        conll(tmp_path, "the O\n\nactor I-x\n")
    skipped = list[str]()
    assert [e.text for e in conll(tmp_path, "the O\n\nan O\nactor\nis O\n\nfilm O\n", skipped)] == ["the", "film"]
    assert ["row 4 has one column" in told for told in skipped] == [True]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 words and 1 tags; give each word one"),
        ({"tokens": [], "tags": []}, "column 'tokens' is no list of words"),
        ({"tokens": 3, "tags": []}, "column 'tokens' is no list of words"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "column 'tokens' is empty"),
    ],
)
def test_rows_that_are_no_sentences_are_refused(row: dict[str, object], wrong: str) -> None:
    with pytest.raises(RecipeError, match=wrong):
        TASK.example("f: row 1", row, COLUMNS)
    assert TASK.example("f: row 1", {"tokens": "a b", "tags": "O B-x"}, COLUMNS).label == ["O", "B-x"]


def test_a_word_has_the_tag_of_its_first_token(tiny_model: Path) -> None:
    example = Example("great-film the", label=["B-film", "O"], words=["great-film", "the"])
    targets = TASK.targets(windows_of(tiny_model, [example, Example("film")]), [example, Example("film")], OUTPUTS)
    assert targets.tolist() == [UNLABELLED, 3, UNLABELLED, UNLABELLED, 0, UNLABELLED, UNLABELLED, UNKNOWN, UNLABELLED]


@given(count=st.integers(1, 60), max_length=st.integers(8, 16), stride=st.integers(0, 4))
def test_each_word_of_a_long_text_is_answered_in_one_window(tiny_model: Path, count: int, max_length: int, stride: int) -> None:
    words = (["great-film", "the", "actor"] * count)[:count]
    windows = windows_of(tiny_model, [Example(" ".join(words), words=words)], max_length, stride)
    assert windows.tokens.lengths.max() <= max_length
    places = windows.places[windows.places >= 0]
    assert sorted(places.tolist()) == list(range(count))


def test_answers_of_windows_are_put_together(tiny_model: Path) -> None:
    words = ["the", "great", "film", "is", "quite", "good"] * 4
    tags = ["O", "B-film", "I-film", "O", "B-actor", "O"] * 4
    examples = [Example(" ".join(words), label=tags, words=words), Example("a film", label=["O", "B-film"], words=["a", "film"])]
    windows = windows_of(tiny_model, examples, max_length=10, stride=3)
    assert len(windows) > 4
    logits = logits_for(windows, [tags, ["O", "O"]])
    assert TASK.outcomes(logits, windows, examples, OUTPUTS).tolist() == [[8, 8, 8], [0, 0, 1]]
    first, second = TASK.decode(logits, windows, examples, OUTPUTS)
    assert [(e.label, e.text) for e in first.entities[:2]] == [("film", "great film"), ("actor", "quite")]
    assert all(examples[0].text[e.start : e.end] == e.text and e.score > 0.9 for e in first.entities)
    assert second.entities == ()


def test_a_text_without_words_is_split_around_punctuation() -> None:
    assert [word for word, _ in words_of(Example("Parkinson's disease."))] == ["Parkinson", "'", "s", "disease", "."]
    text = "a  good\tfilm, it is"
    assert all(text[slice(*span)] == word for word, span in words_of(Example(text)))
    given_words = TASK.given(["a", "film"])
    assert words_of(given_words) == [("a", (0, 1)), ("film", (2, 6))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Rene\u0301e Zellweger", ["Rene\u0301e", "Zellweger"]),
        ("Zell\u00adweger, Mu\u0308nchen!", ["Zell\u00adweger", ",", "Mu\u0308nchen", "!"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("می\u200cخواهم.", ["می\u200cخواهم", "."]),
        ("\u200fab \u0301c x_1-y", ["\u200f", "ab", "\u0301", "c", "x_1", "-", "y"]),
        ("ok 👍\ufe0fgood", ["ok", "👍\ufe0f", "good"]),
        ("Berlin,\u200bGermany (\u200fJohn", ["Berlin", ",", "\u200b", "Germany", "(", "\u200f", "John"]),
        ("", []),
    ],
)
def test_marks_and_joiners_do_not_cut_words(text: str, words: list[str]) -> None:
    found = words_of(Example(text))
    assert [word for word, _ in found] == words
    assert all(text[slice(*span)] == word for word, span in found)


def test_a_mark_that_the_tokenizer_leaves_out_ends_no_entity() -> None:
    """PDFs and right-to-left editors leave marks of no width in texts; the model sees none of them."""
    task, text = TokenClassification(), "in New \u200e York"
    example = Example(text)
    assert [word for word, _ in words_of(example)] == ["in", "New", "\u200e", "York"]
    windows = Windows(
        Tokens(np.zeros(5, np.int32), np.zeros(5, np.int8), np.array([0, 5])),
        np.zeros(1, np.int64),
        np.array([[-1], [0], [1], [3], [-1]], np.int32),
    )
    outputs, named = ("O", "B-LOC", "I-LOC"), [0, 0, 1, 2, 0]
    logits = 9 * np.eye(3)[named]
    (found,) = task.decode(logits, windows, [example], outputs)
    assert [(e.label, e.text) for e in found.entities] == [("LOC", "New \u200e York")]
    assert found.entities[0].score == pytest.approx(float(np.exp(9) / (np.exp(9) + 2)))
    (begun,) = task.decode(9 * np.eye(3)[[0, 0, 1, 1, 0]], windows, [example], outputs)
    assert [e.text for e in begun.entities] == ["New", "York"]
    right = replace(example, label=["O", "B-LOC", "I-LOC", "I-LOC"])
    assert task.outcomes(logits, windows, [right], outputs).tolist() == [[1, 1, 1]]


def test_an_answer_is_one_line_whatever_its_text_holds() -> None:
    entities = Entities((Entity("LOC", "New\r\nYork\x1b[31m", 0, 9, 0.5),))
    assert entities.line() == "New York\\x1b[31m (LOC 0-9 0.5000)"
