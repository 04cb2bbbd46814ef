"""Whether two tokenizers split texts alike: what looks inside two models compares them token by token."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.encoded import tokenizer_of
from compressor.tokens import Tokens

SPECIAL = -1
UNKNOWN = -2


def aligned(student: Tokens, teacher: Tokens, student_model: Path, teacher_model: Path) -> bool:
    """Say whether all texts were split into the same pieces; special tokens may differ in name ([CLS], <s>) but not in place."""
    if not np.array_equal(student.starts, teacher.starts):
        return False
    ours, theirs = translation(student_model, teacher_model)
    return bool(np.array_equal(ours[student.ids], theirs[teacher.ids]))


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
