"""Extractive question answering: the answer is a span of the context (SQuAD).

What:     contexts longer than the model are read in windows that overlap; of the most probable starts and ends of all windows, the best
          span of at most 30 tokens answers.
Papers:   SQuAD (arXiv:1606.05250), its second version for questions without an answer (arXiv:1806.03822), BERT (arXiv:1810.04805).
Formula:  score of a span = start logit + end logit; [CLS] stands for no answer. Exact match and F1 as the official scripts count them.
Limits:   a question of more than a quarter of max_length is cut there.
"""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from compressor.characters import is_inside, on_a_line
from compressor.choices import UNLABELLED, Choice, softmax
from compressor.data import Example, given_texts, text_of
from compressor.errors import RecipeError, one_line
from compressor.files import Columns, Reader, Row, opened
from compressor.scores import Metric
from compressor.tokens import Floats, Ints, Tokens
from compressor.windows import Windows, pieces, settle

N_BEST, LONGEST = 20, 30
"""Starts and ends of a window that are tried, and the most tokens of an answer: the values of BERT's own script."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A span of the context, where it begins and ends (characters), and its probability; an empty text: there is no answer."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Answer(Alternative):
    """The most probable span, and the next best ones, among which probabilities are shared."""

    others: tuple[Alternative, ...] = ()

    def line(self) -> str:
        """Return the answer as a line for people."""
        return f"{on_a_line(self.text)}\t{self.score:.4f}"


@dataclass(frozen=True, slots=True)
class Span:
    """A possible answer: its score, and where it begins and ends (characters)."""

    score: float
    start: int
    end: int


NOTHING = Span(math.nan, 0, 0)
"""What is found where no likely start is followed by a likely end: an answer whose confidence is none."""


def squad_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the questions of a SQuAD file, numbered from 1.

    Raises:
        RecipeError: it has another form.
    """
    with opened(path) as file:
        try:
            articles = json.load(file)["data"]
            paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
            asked = [(paragraph["context"], dict(qa)) for paragraph in paragraphs for qa in paragraph["qas"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {one_line(error, 100)}"
            raise RecipeError(f"{path}: no SQuAD file ({what}); write data > paragraphs > context, qas > question, answers") from None
    for number, (context, qa) in enumerate(asked, 1):
        lacks = "question" if "question" not in qa else "answers" if columns.label and "answers" not in qa else None
        if lacks:
            yield number, RecipeError(f"{path}: row {number}, question {qa.get('id', '')!r}, has no {lacks!r}; add it")
        else:
            yield number, {columns.text: qa["question"], columns.text_pair or "": context, columns.label or "": qa.get("answers", [])}


@dataclass(frozen=True)
class QuestionAnswering:
    """A span of a context that answers a question; logits are (tokens, 2), outcomes (examples, 2): exact match and F1."""

    no_answer: bool = False
    head: ClassVar[str] = "question-answering"
    labelled: ClassVar[bool] = True
    choice: ClassVar[Choice] = "positions"
    per_token: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "f1": lambda outcomes: float(outcomes[:, 1].mean()),
        "exact_match": lambda outcomes: float(outcomes[:, 0].mean()),
    }
    forms: ClassVar[Mapping[str, Reader]] = {".json": squad_rows}

    def example(self, where: str, row: Mapping[str, Any], columns: Columns) -> Example:
        """Return a row's question, context and answers, each [text, start]: a list of objects, or an object of lists."""
        question, context = (
            text_of(where, columns.text, row[columns.text]),
            text_of(where, str(columns.text_pair), row[columns.text_pair or ""]),
        )
        if columns.label is None:
            return Example(question, context)
        answers = _answers(where, columns.label, row[columns.label])
        if not answers and not self.no_answer:
            raise RecipeError(f"{where}: column {columns.label!r} is empty; give it an answer, or set task.no_answer: true")
        for text, start in answers:
            if start < 0 or context[start : start + len(text)] != text:
                there = f"{context[max(0, start) : max(0, start) + len(text)]!r:.60} stands at character {start}"
                told = "mend it, or leave such rows out (data.skip_bad: true; --skip-bad)"
                raise RecipeError(f"{where}: answer {text!r:.60} is not in its context ({there}); {told}")
        return Example(question, context, answers)

    def given(self, value: Any) -> Example:
        """Return the example that a caller gave as a pair of question and context.

        Raises:
            RecipeError: the context is missing, or this is no pair of texts.
        """
        found = given_texts(value)
        if found.text_pair is None:
            raise RecipeError("a question needs its context: give a pair of texts, on a line with a tab between")
        return found

    def names(self, example: Example) -> Sequence[str]:
        """Return nothing: positions have no names."""
        return ()

    def outputs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the two outputs of each token."""
        return ("start", "end")

    def windows(self, tokenizer: Tokenizer, examples: Sequence[Example], max_length: int, stride: int) -> Windows:
        """Return each question with each window of its context; a token of the context stands at its characters (start, end)."""
        questions = _cut(tokenizer, [e.text for e in examples], max_length // 4)
        settle(tokenizer, max_length, stride, "only_second")
        pairs = [(question, str(e.text_pair)) for question, e in zip(questions, examples, strict=True)]
        parts, owners = list[Encoding](), list[int]()
        for row, encoding in enumerate(tokenizer.encode_batch(pairs)):
            found = pieces(encoding)
            parts += found
            owners += [row] * len(found)
        tokens = Tokens.of(parts)
        flat = chain.from_iterable(chain.from_iterable(p.offsets for p in parts))
        places = np.fromiter(flat, np.int32, 2 * len(tokens.ids)).reshape(-1, 2)
        places[np.fromiter((side != 1 for p in parts for side in p.sequence_ids), bool, len(places))] = -1
        return Windows(tokens, np.array(owners, np.int64), places)

    def targets(self, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Ints:
        """Return the first and last token of each window's first answer (windows, 2): [CLS] where the window lacks it; -100 if unknown."""
        found = np.full((len(windows), 2), UNLABELLED, np.int64)
        for window, (owner, (begin, end)) in enumerate(zip(windows.owners.tolist(), windows.spans(), strict=True)):
            answers = examples[owner].label
            if answers is not None:
                found[window] = _tokens_of(answers[0], windows.places[begin:end]) if answers else (0, 0)
        return found

    def outcomes(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> Floats:
        """Return exact match and F1 of each question, the best over its right answers."""
        found = np.zeros((len(examples), 2))
        for row, (answer, example) in enumerate(zip(self.decode(logits, windows, examples, outputs), examples, strict=True)):
            right = [text for text, _ in example.label]
            if self.no_answer:
                right = [text for text in right if normalized(text)] or [""]
            found[row] = max(exact_match(answer.text, text) for text in right), max(self._f1(answer.text, text) for text in right)
        return found

    def decode(self, logits: Floats, windows: Windows, examples: Sequence[Example], outputs: Sequence[str]) -> list[Answer]:
        """Return the best spans of each question's windows."""
        answers = []
        for example, best in zip(examples, self.spans(logits, windows, examples), strict=True):
            probabilities = np.nan_to_num(softmax(np.array([span.score for span in best]))).tolist()
            first, *others = [(*_words(str(example.text_pair), span), p) for span, p in zip(best, probabilities, strict=True)]
            answers.append(Answer(*first, tuple(Alternative(*other) for other in others)))
        return answers

    def spans(self, logits: Floats, windows: Windows, examples: Sequence[Example]) -> list[list[Span]]:
        """Return the best spans of each question, each once, the best first; an empty one stands for no answer.

        Where no window has a span, the only one is an empty one whose score is no number.
        """
        places, found = list(windows.spans()), list[list[Span]]()
        for own in windows.of_examples(len(examples)):
            spans = [span for w in own for span in _best_spans(logits[slice(*places[w])], windows.places[slice(*places[w])])]
            if self.no_answer:
                spans.append(Span(min(float(logits[places[w][0]].sum()) for w in own), 0, 0))
            once: dict[tuple[int, int], Span] = {}  # windows overlap: the same words are found by two of them
            for span in sorted(spans, key=lambda span: -span.score):
                end = _end_of(str(examples[len(found)].text_pair), span)
                once.setdefault((span.start, end), Span(span.score, span.start, end))
                if len(once) == N_BEST:
                    break
            found.append(list(once.values()) or [NOTHING])
        return found

    def _f1(self, answer: str, right: str) -> float:
        """Return F1 over words; where questions may have no answer, two empty sides agree, as in the second version's script."""
        ours, theirs = normalized(answer).split(), normalized(right).split()
        if self.no_answer and not (ours and theirs):
            return float(ours == theirs)
        same = sum((Counter(ours) & Counter(theirs)).values())
        return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def _words(context: str, span: Span) -> tuple[str, int, int]:
    """Return a span's text, its start and its end, without the space that some tokenizers count to the word behind it."""
    text = context[span.start : span.end]
    start = span.start + len(text) - len(text.lstrip())
    return text.strip(), start, start + len(text.strip())


def _end_of(context: str, span: Span) -> int:
    """Return where a span ends with the marks behind it, of which some tokenizers have no token."""
    end = span.end
    while span.start < end < len(context) and is_inside(context[end]):
        end += 1
    return end


def normalized(text: str) -> str:
    """Return an answer in small letters without punctuation, articles and surplus spaces, as the official script compares it."""
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, right: str) -> float:
    """Return 1 if both are the same answer, else 0."""
    return float(normalized(answer) == normalized(right))


def _answers(where: str, column: str, value: object) -> list[tuple[str, int]]:
    """Return the answers of SQuAD's form [{text, answer_start}], or of the Hub's {text: [], answer_start: []}."""
    try:
        if isinstance(value, Mapping):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(item["text"], item["answer_start"]) for item in value]  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError):
        raise RecipeError(f"{where}: column {column!r} holds no answers; write a list of {{text, answer_start}}") from None
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            raise RecipeError(f"{where}: an answer of column {column!r} has no text or no answer_start; give it both")
    return pairs


def _cut(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[str]:
    """Return texts of at most so many tokens; one of no more bytes has no more tokens."""
    if all(len(text.encode()) <= longest for text in texts):
        return list(texts)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [text[: e.offsets[longest - 1][1]] if len(e.ids) > longest else text for text, e in zip(texts, found, strict=True)]


def _tokens_of(answer: tuple[str, int], places: NDArray[np.int32]) -> tuple[int, int]:
    """Return the first and last token of an answer in a window, or [CLS] twice if it is not wholly there."""
    text, start = answer
    end = start + len(text)
    inside = np.flatnonzero((places[:, 0] >= 0) & (places[:, 1] > start) & (places[:, 0] < end))
    there = (places[:, 0] >= 0).nonzero()[0]
    first, last = start + len(text) - len(text.lstrip()), start + len(_seen(text))  # what a tokenizer may leave out is not cut off
    if not len(inside) or places[there[0], 0] > first or places[there[-1], 1] < last:
        return 0, 0
    return int(inside[0]), int(inside[-1])


def _seen(text: str) -> str:
    """Return a text without the spaces and marks at its end, of which a tokenizer may have no token."""
    end = len(text)
    while end and (text[end - 1].isspace() or is_inside(text[end - 1])):
        end -= 1
    return text[:end]


def _best_spans(logits: Floats, places: NDArray[np.int32]) -> list[Span]:
    """Return the best spans of a window's best starts and ends, those that are in order and not too long, the best first."""
    context = np.flatnonzero(places[:, 0] >= 0)
    starts, ends = (context[np.argsort(-logits[context, side], kind="stable")[:N_BEST]] for side in (0, 1))
    long = ends[None, :] - starts[:, None]
    first, last = np.nonzero((long >= 0) & (long < LONGEST))
    scores = logits[starts[first], 0] + logits[ends[last], 1]
    best = np.argsort(-scores, kind="stable")[:N_BEST]  # no other can be among the best of all windows
    begins, stops = places[starts[first[best]], 0].tolist(), places[ends[last[best]], 1].tolist()
    return [Span(*found) for found in zip(scores[best].tolist(), begins, stops, strict=True)]
