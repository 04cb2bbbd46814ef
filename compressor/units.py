"""Quantities as people write them in a recipe: `1.0%`, `8ms`, `40MB`."""

import re
from typing import Annotated

from pydantic import BeforeValidator

_QUANTITY = re.compile(r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z%]+)\s*$", re.ASCII)


def _parse(value: object, units: dict[str, float], example: str) -> float:
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"needs a positive number and a unit, one of {', '.join(units)}; write for example {example}")
    return float(match[1]) * units[match[2]]


def _percent(value: object) -> float:
    share = _parse(value, {"%": 0.01}, "1.0%")
    if not 0.0 <= share <= 1.0:
        raise ValueError("lies not between 0% and 100%; write for example 1.0%")
    return share


def _milliseconds(value: object) -> float:
    return _parse(value, {"ms": 1.0, "us": 1e-3, "s": 1e3}, "8ms")


def megabytes(value: object) -> float:
    """Return the megabytes of a size as 20GB.

    Raises:
        ValueError: it is none.
    """
    return _parse(value, {"MB": 1.0, "kB": 1e-3, "GB": 1e3}, "40MB")


Percent = Annotated[float, BeforeValidator(_percent, json_schema_input_type=str)]
Milliseconds = Annotated[float, BeforeValidator(_milliseconds, json_schema_input_type=str)]
Megabytes = Annotated[float, BeforeValidator(megabytes, json_schema_input_type=str)]
