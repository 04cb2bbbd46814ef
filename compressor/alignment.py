"""Whether two tokenizers split texts alike: what looks inside two models compares them token by token."""

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors

from compressor.data import Example
from compressor.encoded import TOKENIZER_FILES, tokenizer_of
from compressor.tokens import Ints, Tokens

SPECIAL = -1
UNKNOWN = -2
STRANGE = 0.5
"""Share of pieces that the other tokenizer has not, above which texts are not split alike."""


def aligned(student: Tokens, teacher: Tokens, student_model: Path, teacher_model: Path) -> bool:
    """Say whether all texts were split into the same pieces; special tokens may differ in name ([CLS], <s>) but not in place."""
    if not np.array_equal(student.starts, teacher.starts):
        return False
    ours, theirs = translation(student_model, teacher_model)
    return bool(np.array_equal(ours[student.ids], theirs[teacher.ids]))


class Apart:
    """Texts that two tokenizers split otherwise because they hold a special token of one only, as </s> is to BERT's."""

    def __init__(self, student_model: Path, teacher_model: Path) -> None:
        ours, theirs = (
            {token.content for token in tokenizer_of(model).get_added_tokens_decoder().values() if token.special}
            for model in (student_model, teacher_model)
        )
        self.tokens = frozenset() if student_model == teacher_model else frozenset(ours ^ theirs)

    def holds(self, text: str) -> bool:
        """Return whether a text holds such a token."""
        return any(token in text for token in self.tokens)

    def keeps(self, example: Example) -> bool:
        """Return whether an example holds none."""
        return not (self.holds(example.text) or self.holds(example.text_pair or ""))


def alike(texts: Sequence[str], student_model: Path, teacher_model: Path) -> bool:
    """Say whether two tokenizers split these texts into the same pieces, special tokens aside, and texts with one of one model only."""
    if student_model == teacher_model:
        return True
    apart, (ours, theirs) = Apart(student_model, teacher_model), translation(student_model, teacher_model)
    same = [text for text in texts if not apart.holds(text)]
    # Which are left out later, if they are few of all; where half of some hold one, as a separator, they are not.
    return len(same) > len(texts) / 2 and all(
        np.array_equal(ours[student], theirs[teacher])
        for student, teacher in zip(_ids(student_model, same), _ids(teacher_model, same), strict=True)
    )


def _ids(model: Path, texts: Sequence[str]) -> Iterator[Ints]:
    tokenizer = tokenizer_of(model)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for found in tokenizer.encode_batch(texts, add_special_tokens=False):
        yield np.array(found.ids, np.int64)


def translation(student_model: Path, teacher_model: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each tokenizer an array from its ids to ids that both share: the teacher's, SPECIAL, or UNKNOWN to the teacher."""
    student, teacher = tokenizer_of(student_model), tokenizer_of(teacher_model)
    vocabulary = teacher.get_vocab()
    ours = np.full(max(student.get_vocab().values()) + 1, UNKNOWN, np.int64)
    for piece, number in student.get_vocab().items():
        ours[number] = vocabulary.get(piece, UNKNOWN)
    theirs = np.arange(max(vocabulary.values()) + 1)
    for tokenizer, table in ((student, ours), (teacher, theirs)):
        table[[number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = SPECIAL
    return ours, theirs


def joining_as(teacher_model: Path, student_model: Path, out: Path) -> Path:
    """Return a folder with the student's tokenizer that puts as many special tokens around a pair of texts as the teacher's.

    BERT writes one separator between two texts, RoBERTa and MPNet two. The student's own folder serves where there is nothing to change,
    and where most of its pieces are none of the teacher's, so that no token is compared.
    """
    student, teacher = tokenizer_of(student_model), tokenizer_of(teacher_model)
    plain = isinstance(student.post_processor, processors.BertProcessing | processors.RobertaProcessing | processors.TemplateProcessing)
    if not plain or student.num_special_tokens_to_add(True) == teacher.num_special_tokens_to_add(True):
        return student_model
    if (translation(student_model, teacher_model)[0] == UNKNOWN).mean() > STRANGE:
        return student_model
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ("config.json", *TOKENIZER_FILES):
        if (student_model / name).exists():
            shutil.copy(student_model / name, out / name)
    student.post_processor = _pair_template(tokenizer_of(student_model), teacher)
    student.save(str(out / "tokenizer.json"))
    described = out / "tokenizer_config.json"
    if described.exists():  # transformers rebuilds a BertTokenizer from its class, not from the file
        settings = json.loads(described.read_text(encoding="utf-8"))
        described.write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2), encoding="utf-8")
    return out


def _pair_template(student: Tokenizer, teacher: Tokenizer) -> processors.TemplateProcessing:
    """Return the teacher's way to join texts with the student's special tokens: the first at the start, the other everywhere else."""
    for tokenizer in (student, teacher):
        tokenizer.no_padding()
    own = student.encode("a").tokens
    first, other = own[0], own[-1]
    parts = list[str]()
    for sequence, run in groupby(teacher.encode("a", "b").sequence_ids):
        segment = 1 if "$B:1" in parts else 0
        if sequence is None:
            parts += [f"{other if parts else first}:{segment}"] * len(list(run))
        else:
            parts.append("$A:0" if sequence == 0 else "$B:1")
    tokens = [(token, student.token_to_id(token)) for token in dict.fromkeys((first, other))]
    return processors.TemplateProcessing(single=f"{first} $A {other}", pair=" ".join(parts), special_tokens=tokens)
