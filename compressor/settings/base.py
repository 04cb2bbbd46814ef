"""What all sections of a recipe are made of: strict, frozen, and documented by the docstring under each key."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SPLITS = ("train", "validation", "search", "test")
CONTENT, BUNDLE = "content", "bundle"
"""Mark keys that name files, or a bundle: the cache hashes what they hold, not how they are called."""
UNKEYED = "unkeyed"
"""Marks keys that change no result, as how often a training is saved: the cache does not look at them."""

LARGEST = 2**63 - 1
"""Integer that torch, numpy and Python's own slices still take."""

Source = Annotated[str, Field(min_length=1), CONTENT]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the recipe: frozen, and strict about unknown keys and types: `true` and `'1'` are no numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False)
