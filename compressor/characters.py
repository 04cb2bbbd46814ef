"""What characters are to the words that they stand in."""

import unicodedata

_JOINERS = "\u00ad\u200c\u200d\u2060"
"""Soft hyphen, the two joiners of Arabic, Persian and Indian scripts, and the word joiner."""


def on_a_line(text: str) -> str:
    """Return a text as a line of an answer: its whitespace as single spaces, and its control characters visible, and harmless."""
    return "".join(c if unicodedata.category(c) != "Cc" else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def is_inside(character: str) -> bool:
    """Say whether a character belongs to the word before it: a combining mark (of Devanagari, of e in a decomposed é), or a joiner."""
    return character > "\x7f" and (character in _JOINERS or unicodedata.category(character) in ("Mn", "Mc", "Me"))
